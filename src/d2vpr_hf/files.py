"""Files and folders on the disk: written whole or not at all, hashed, and named in text."""

import errno
import hashlib
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

TEMPORARY_SUFFIX = ".tmp"
LOCK_FILE = ".lock"


# What the system says of a write where there is no room.
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Has errors of the system that name no file, as those of a full disk, name the one that is being written."""
    try:
        yield
    except OSError as error:
        # Who copies a file into a full disk is told of the file that is copied.
        named = error.filename is not None if error.errno not in FULL else getattr(error, "names_target", False)
        if error.errno is not None and not named:
            error.filename, error.names_target = str(path), True
        raise
    except Exception as error:
        # So libraries in Rust say it, safetensors for one.
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            said = OSError(int(number[1]), os.strerror(int(number[1])), str(path))
            said.names_target = True
            raise said from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to fill, which takes its place whole, flushed to the disk, or not at all.

    A link goes on leading to its file, which is the one that is replaced; a device or a pipe takes the bytes as they
    come.
    """
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not (path.is_file() or path.is_dir()):
        with naming(path), path.open("wb") as file:
            yield file
        return
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_file(path: str | Path, content: bytes | str) -> Path:
    """Writes a small file whole or not at all; its folder is made. Returns the path.

    Text is written in UTF-8; what isn't a character, such as the bytes of a file name in another encoding, becomes
    an escape (\\udcff), which JSON reads back as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
    return path


@contextmanager
def replacing_folder(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A draft folder to fill, which takes the folder's place whole, flushed to the disk, or not at all.

    The draft lies beside the folder under a name that doesn't change, so the next run clears what a killed one left.

    Args:
        overwrite: replace what the folder holds, once the draft is whole.

    Raises: as `check_free`; RuntimeError if another run is writing the same folder.
    """
    folder = Path(folder)
    if folder.is_symlink():  # which goes on leading to its folder
        folder = folder.resolve()
    check_free(folder, overwrite=overwrite)
    draft = folder.with_name(f".{folder.name}{TEMPORARY_SUFFIX}")
    draft.mkdir(parents=True, exist_ok=True)
    lock = _taken_lock(draft, folder)
    try:
        for left in draft.iterdir():
            if left.name != LOCK_FILE:
                _remove(left)
        with naming(folder):
            yield draft
        for path in draft.rglob("*"):
            if path.is_file() and path.name != LOCK_FILE:
                sync(path)
        check_free(folder, overwrite=overwrite)
        if folder.exists():
            _remove(folder)
        if os.name == "nt":  # there an open file keeps its folder from being renamed
            lock.release()
        draft.rename(folder)
        (folder / LOCK_FILE).unlink(missing_ok=True)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    finally:
        lock.release()
    sync(folder.parent)


def check_free(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuses a folder that `replacing_folder` couldn't replace, as whoever computes long before it wants to know.

    Raises: FileExistsError if it holds something and `overwrite` is off; ValueError if it is the working directory.
    """
    folder = Path(folder)
    if folder.is_dir() and folder.samefile("."):
        raise ValueError(
            f"{folder} is the working directory, which can't be replaced. Name a folder in it, to be made."
        )
    if not overwrite and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and isn't empty. Remove it, or name another folder.")


@contextmanager
def holding(folder: str | Path, *, wait: float = 0) -> Iterator[None]:
    """Keeps other runs from writing a folder, which is made if it isn't there.

    Args:
        wait: seconds for which another run may hold it still.

    Raises: RuntimeError if another run holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = _taken_lock(folder, folder, wait)
    try:
        yield
    finally:
        lock.release()


def refuse_strangers(folder: Path, own: set[str], *, unless: str, purpose: str) -> None:
    """Refuses a folder that holds something else than what an unfinished run leaves: results would mix with it.

    Args:
        own: names that an unfinished run leaves.
        unless: the file that shows that the folder is one of ours, whatever else it holds.
        purpose: what is to be written, as an error calls it.

    Raises: ValueError naming the first of what is there.
    """
    if not folder.is_dir() or (folder / unless).is_file():
        return
    names = {each.name for each in folder.iterdir() if not each.name.endswith(TEMPORARY_SUFFIX)}
    if others := sorted(names - own - {LOCK_FILE}):
        raise ValueError(f"{folder} holds {others[0]} and no {purpose}. Name a new or empty folder for the {purpose}.")


def sync(path: Path) -> None:
    """Has the system put a file, or a folder's names, on the disk before anything is renamed over it."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows can't flush a folder, and needs no such call
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: str | Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in nanoseconds; (-1, -1) where the file can't be seen."""
    with suppress(OSError):
        status = os.stat(path)  # noqa: PTH116 - a Path would be made for each of a million photos
        return status.st_size, status.st_mtime_ns
    return -1, -1


def path_to_text(path: str | os.PathLike) -> str:
    """The path as text that any file format takes, and that no other path has.

    Bytes that aren't UTF-8 are written as \\xNN; a backslash before an x that is part of the name as \\x5c.
    """
    raw = os.fsencode(path)
    if os.name != "nt":  # there a backslash parts folders, and no name has such bytes
        raw = raw.replace(b"\\x", b"\\x5cx")
    return raw.decode("utf-8", "backslashreplace")


def text_to_path(text: str) -> Path:
    """The path that `path_to_text` wrote.

    A text of before, in which a backslash of the name wasn't marked, gives the file of that very name, if it is there
    and the other isn't.
    """
    if "\\x" not in text or os.name == "nt":
        return Path(text)
    name = re.sub(rb"\\x(5c|[89a-f][0-9a-f])", lambda hit: bytes.fromhex(hit[1].decode()), text.encode())
    path = os.fsdecode(name)
    return Path(text if os.path.lexists(text) and not os.path.lexists(path) else path)


def name_key(text: str) -> str:
    """What two spellings of a file name share: macOS writes é as e and an accent (NFD), other systems as one letter."""
    return unicodedata.normalize("NFC", text)


def _taken_lock(place: Path, folder: Path, wait: float = 0) -> FileLock:
    """The lock that lies in a place, for who writes a folder."""
    lock = FileLock(place / LOCK_FILE)
    try:
        lock.acquire(timeout=wait)
    except Timeout as error:
        raise RuntimeError(
            f"{folder} is being written by another run. Wait for it to end, or name another folder."
        ) from error
    return lock


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
