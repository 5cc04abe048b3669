"""Descriptors and the photos they were made from: in memory, as files, and as a folder that grows while it is written.

On disk rows are two files that other programs read with their own libraries: vectors as `.npy` (rows, dim) float32, and
beside it a Parquet table with a row for each of them, which holds the checksum of both.
"""

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import TEMPORARY_SUFFIX, holding, refuse_strangers, replace_file, replacing
from .provenance import differences, read_about
from .shards import MANIFEST_FILE, check_parts, part_folder, read_manifest
from .similarity import release_pages

logger = logging.getLogger(__name__)

VECTORS_FILE = "descriptors.npy"
TABLE_FILE = "images.parquet"
ABOUT_FILE = "descriptors.json"
PARTS_FOLDER = "parts"
# Of versions that wrote rows and names into one file.
_EARLIER_VECTORS = "descriptors.safetensors"
_LARGEST = 2**63 - 1
_PART_ROWS = 1024
_PART_SECONDS = 1.0
_JOIN_ROWS = 1024
# The table of what is being joined waits under this name among the parts until its vectors stand in their place.
_JOINED_TABLE = "joined.parquet"
# What is known of a file, so that it is known again: size, time of the last change, time of the last change of anything
# (its name too), and its number in the file system.
STATE_COLUMNS = ("size_bytes", "mtime_ns", "ctime_ns", "inode")


class DamagedRows(ValueError):  # noqa: N818 - reads as what it is
    """Files of rows that are cut short, garbage, or were changed since they were written."""


@dataclass
class Descriptors:
    """Descriptors of photos; `vectors[i]` belongs to `paths[i]`.

    Attributes:
        vectors: (rows, dim) float32; a read-only memory map if they were written to a folder.
        paths: (rows) the photos as text (see `files.path_to_text`); of images that aren't files, the row number in the
            input.
        skipped: (path, reason) of every image that has no row.
        model_name: the model's name or path.
        weight_hash: SHA-256 of its weights (see `weight_hash`).
        states: (rows, 4) int64 of each file when it was read (see `file_states`); None where nobody knows.
        processor: the settings of the processor; None where nobody knows.
        dtype: of the arithmetic; None where nobody knows.
        names: (rows) each photo's path below the folder that was embedded, or its whole path where there was none; None
            unless they were read from a folder.
    """

    vectors: np.ndarray
    paths: list[str]
    skipped: list[tuple[str, str]]
    model_name: str
    weight_hash: str
    states: np.ndarray | None = None
    processor: dict[str, Any] | None = None
    dtype: str | None = None
    names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """The descriptors that a finished run wrote to a folder; their vectors stay on disk.

        Those that were embedded in parts (`shard`) are joined in memory, in the order of the whole list.

        Raises: FileNotFoundError or ValueError if the folder holds no finished run, its files don't belong together,
            or its parts aren't the whole list.
        """
        sharded = (Path(folder) / MANIFEST_FILE).is_file()
        vectors, keys, about = (_read_parts if sharded else DescriptorFolder.read_finished)(Path(folder))
        return cls(
            vectors,
            list(keys.paths),
            [(path, reason) for path, reason in about["skipped"]],
            about["model_name"],
            about["weight_hash"],
            keys.states,
            about["processor"],
            about["dtype"],
            list(keys.names),
        )


def file_states(paths: Iterable[str | Path]) -> np.ndarray:
    """(files, 4) int64, columns as `STATE_COLUMNS`; -1 where there is no file."""
    states = []
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path would be made for each of a million photos
            states.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & _LARGEST))
        except (OSError, ValueError):  # ValueError: a null character in the name
            states.append((-1, -1, -1, -1))
    return np.array(states, np.int64).reshape(-1, len(STATE_COLUMNS))


def same_file(state: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two states are of one file that wasn't changed in between.

    Size and time don't tell two files apart that have swapped their names: then inode and ctime both differ. One of
    them alone may differ for a file that is the same, by a change of permissions or on a network's file system.
    """
    if tuple(state[:2]) != tuple(other[:2]):
        return False
    unknown = -1 in (*state[2:], *other[2:])
    return unknown or state[2] == other[2] or state[3] == other[3]


@dataclass(frozen=True)
class RowKeys:
    """Which file each row was made from.

    Attributes:
        names: (rows) what a file is known by from run to run: its path below the folder, or its whole path.
        paths: (rows) the path it was given as.
        states: (rows, 4) int64, see `file_states`.
    """

    names: Sequence[str]
    paths: Sequence[str]
    states: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Sequence[int]) -> "RowKeys":
        return RowKeys([self.names[row] for row in rows], [self.paths[row] for row in rows], self.states[rows])

    def __iter__(self) -> Iterator[tuple[str, list[int]]]:
        """Name and state of each row."""
        return zip(self.names, self.states.tolist(), strict=True)

    @classmethod
    def concatenate(cls, parts: Sequence["RowKeys"]) -> "RowKeys":
        """All rows of several keys, in order."""
        return cls(
            [name for part in parts for name in part.names],
            [path for part in parts for path in part.paths],
            np.concatenate([part.states for part in parts]),
        )


@dataclass(frozen=True)
class RowFile:
    """What a pair of files holds: who made the rows, of which photos, and the path of their vectors."""

    path: Path
    about: dict[str, Any]
    checksum: str
    keys: RowKeys

    def vectors(self) -> np.ndarray:
        """A read-only memory map, made for each call: a long run has more parts than a process may map at once."""
        return _mapped(self.path)


def write_rows(
    vectors_path: Path,
    table_path: Path,
    about: dict[str, Any],
    keys: RowKeys,
    dim: int,
    blocks: Iterable[np.ndarray],
) -> str:
    """Writes rows and returns their checksum; each file comes into being whole or not at all, the vectors last.

    Args:
        about: who made the rows; anything JSON takes.
        keys: of all rows.
        blocks: the rows' vectors, (any, dim) float32 each, in order.
    """
    checksum = 0
    with replacing(vectors_path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(keys), dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            data = np.ascontiguousarray(block, "<f4")
            checksum = zlib.crc32(data, checksum)
            file.write(data)
        digits = _checksum(about, keys, checksum)
        columns = {"name": keys.names, "path": keys.paths, **dict(zip(STATE_COLUMNS, keys.states.T, strict=True))}
        buffer = pa.BufferOutputStream()
        table = pa.table(columns).replace_schema_metadata({"about": json.dumps(about), "checksum": digits})
        pq.write_table(table, buffer)
        replace_file(table_path, buffer.getvalue().to_pybytes())
    return digits


def read_rows(vectors_path: Path, table_path: Path, *, verify: bool) -> RowFile:
    """Rows that `write_rows` wrote.

    Args:
        verify: read them all and compare the checksum; otherwise only their lengths and form are checked.

    Raises: DamagedRows if they aren't as they were written; FileNotFoundError if a file isn't there.
    """
    try:
        table = pq.read_table(table_path, partitioning=None)
        metadata = table.schema.metadata or {}
        about, checksum = json.loads(metadata[b"about"]), metadata[b"checksum"].decode()
        kinds = {"name": pa.string(), "path": pa.string(), **dict.fromkeys(STATE_COLUMNS, pa.int64())}
        # Without rows pyarrow gives a column of texts no type.
        if not isinstance(about, dict) or any(
            len(table) and (table[name].type != kind or table[name].null_count) for name, kind in kinds.items()
        ):
            raise ValueError(f"{table_path} isn't a table of photos with {', '.join(kinds)} in each row")
        states = np.column_stack([table[name].to_numpy() for name in STATE_COLUMNS]).astype(np.int64)
        keys = RowKeys(table["name"].to_pylist(), table["path"].to_pylist(), states.reshape(-1, len(STATE_COLUMNS)))
        vectors = _mapped(vectors_path)
    except FileNotFoundError:
        raise
    # Readers raise whatever they stumble over (ArrowInvalid, KeyError, SyntaxError, ...): the files are at fault.
    except Exception as error:
        raise DamagedRows(f"{vectors_path} is damaged or no file of descriptors ({error}).") from error
    if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != len(keys):
        raise DamagedRows(
            f"{vectors_path} is damaged: it has shape {vectors.shape} and type {vectors.dtype}, but its table has "
            f"{len(keys)} rows."
        )
    if verify and _checksum(about, keys, _checksum_of(vectors)) != checksum:
        raise DamagedRows(f"{vectors_path} isn't as it was written: its checksum differs.")
    return RowFile(vectors_path, about, checksum, keys)


class DescriptorFolder:
    """A folder's rows, held by one run at a time (a context manager).

    While a run goes on its rows lie in `parts/`. In the end they are joined with the finished ones into a new
    `descriptors.npy` and `images.parquet`; `descriptors.json` says who made them.

    Args:
        folder: is made if it isn't there.
        about: who makes the rows: model_name, weight_hash, processor (a dict) and dtype.

    Raises (on entering): RuntimeError if another run holds the folder; ValueError if its rows were made with
        other weights, another processor or dtype, or by an earlier version, or it holds other files.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = json.loads(json.dumps(about, default=str))  # as it comes back from a file: lists, no tuples
        self._files: list[RowFile] = []
        self._held: dict[tuple[str, int, int], tuple[int, int]] = {}  # of a photo: file and row
        self._waiting: list[tuple[RowKeys, np.ndarray]] = []
        self._written_at = time.monotonic()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        _refuse_earlier_version(self.folder)
        own = {VECTORS_FILE, TABLE_FILE, PARTS_FOLDER}
        refuse_strangers(self.folder, own, unless=ABOUT_FILE, purpose="descriptors")
        with ExitStack() as stack:
            stack.enter_context(holding(self.folder))
            self.parts_folder.mkdir(exist_ok=True)
            for left in [*self.folder.glob(f"*{TEMPORARY_SUFFIX}"), *self.parts_folder.glob(f"*{TEMPORARY_SUFFIX}")]:
                left.unlink()  # a killed run's; whoever holds the lock is alone
            self._end_a_killed_join()
            pairs = [(self.folder / VECTORS_FILE, self.folder / TABLE_FILE)]
            pairs += [(path, path.with_suffix(".parquet")) for path in sorted(self.parts_folder.glob("part-*.npy"))]
            for vectors_path, table_path in pairs:
                self._take(vectors_path, table_path)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()  # whatever ended the run, Ctrl-C too: what was embedded until then is kept
        finally:
            self._files.clear()
            self._held.clear()
            self._stack.close()

    @property
    def parts_folder(self) -> Path:
        """Where rows wait until all are there."""
        return self.folder / PARTS_FOLDER

    def missing(self, keys: RowKeys) -> list[int]:
        """The rows of `keys` that no file holds: new photos, and those that aren't the file that was read."""
        return [row for row, place in enumerate(self._places(keys)) if place is None]

    def add(self, keys: RowKeys, vectors: np.ndarray) -> None:
        """Takes new rows, (rows, dim) float32, and writes a part every second and every 1024 rows at the latest."""
        if len(keys):
            self._waiting.append((keys, vectors))
        rows = sum(len(keys) for keys, _ in self._waiting)
        if rows >= _PART_ROWS or time.monotonic() - self._written_at >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what waits as one part."""
        if self._waiting:
            numbers = [int(path.stem.partition("-")[2]) for path in self.parts_folder.glob("part-*.npy")]
            path = self.parts_folder / f"part-{max(numbers, default=0) + 1:06d}.npy"
            keys = RowKeys.concatenate([keys for keys, _ in self._waiting])
            vectors = [vectors for _, vectors in self._waiting]
            dim = vectors[0].shape[1]
            checksum = write_rows(path, path.with_suffix(".parquet"), self.about, keys, dim, vectors)
            self._note(RowFile(path, self.about, checksum, keys))
            self._waiting.clear()
        self._written_at = time.monotonic()

    def finish(self, keys: RowKeys, skipped: list[tuple[str, str]], dim: int) -> None:
        """Joins all rows into the finished files, in the order of `keys`, and removes the parts.

        Rows of photos that are in `keys` no longer are dropped. Vectors are copied in blocks, so memory doesn't
        grow with the number of rows.

        Args:
            skipped: (path, reason) of the photos without a row.
            dim: descriptor length, needed where there is no row at all.
        """
        self.flush()
        found = self._places(keys)
        rows = [row for row, place in enumerate(found) if place is not None]
        keys = keys[rows]
        places = np.array([found[row] for row in rows], np.int64).reshape(-1, 2)
        dim = self._files[0].vectors().shape[1] if self._files else dim
        if self._is_finished(keys, places):
            checksum = self._files[0].checksum
        else:
            joined = self.parts_folder / _JOINED_TABLE
            checksum = write_rows(self.folder / VECTORS_FILE, joined, self.about, keys, dim, self._blocks(places, dim))
            joined.replace(self.folder / TABLE_FILE)
        about = {**self.about, "rows": len(keys), "dim": dim, "checksum": checksum, "skipped": skipped}
        replace_file(self.folder / ABOUT_FILE, json.dumps(about, indent=1) + "\n")
        shutil.rmtree(self.parts_folder)

    @staticmethod
    def read_finished(folder: Path) -> tuple[np.ndarray, RowKeys, dict[str, Any]]:
        """The (rows, dim) float32 memory map, the photos, and what `descriptors.json` says.

        Raises: FileNotFoundError if there is no finished run; ValueError if the files don't belong together.
        """
        _refuse_earlier_version(folder)
        for name in (VECTORS_FILE, TABLE_FILE, ABOUT_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} has no {name}, so it holds no finished run. Run the same command again to finish it."
                )
        about = read_about(folder / ABOUT_FILE)
        joined, before = folder / PARTS_FOLDER / _JOINED_TABLE, file_states([folder / TABLE_FILE])
        # Vectors take their place a moment before their table: in between, the two are of different runs.
        whole = not joined.exists()
        if whole:
            rows = read_rows(folder / VECTORS_FILE, folder / TABLE_FILE, verify=False)
            vectors = rows.vectors()
            whole = not joined.exists() and np.array_equal(before, file_states([folder / TABLE_FILE]))
        if not whole or rows.checksum != about.get("checksum"):
            raise ValueError(
                f"{VECTORS_FILE}, {TABLE_FILE} and {ABOUT_FILE} in {folder} are of different runs. Run the same "
                "command again to write all anew."
            )
        return vectors, rows.keys, about

    def _end_a_killed_join(self) -> None:
        """Gives vectors that were put in their place the table that was written for them."""
        joined = self.parts_folder / _JOINED_TABLE
        if joined.exists():
            try:
                read_rows(self.folder / VECTORS_FILE, joined, verify=True)
                joined.replace(self.folder / TABLE_FILE)
            except (DamagedRows, FileNotFoundError):  # the join didn't get that far
                joined.unlink()

    def _take(self, vectors_path: Path, table_path: Path) -> None:
        """Notes the rows of a pair of files; a damaged one is removed, so that its photos are embedded again."""
        if not (vectors_path.exists() and table_path.exists()):  # half of what a killed run was removing, or adding
            return
        try:
            file = read_rows(vectors_path, table_path, verify=True)
        except DamagedRows as error:
            logger.warning("%s Its photos are embedded again.", error)
            vectors_path.unlink()
            table_path.unlink()
            return
        self._refuse_other_maker(file)
        self._note(file)

    def _note(self, file: RowFile) -> None:
        self._files.append(file)
        for row, (name, state) in enumerate(file.keys):
            self._held[name, state[0], state[1]] = (len(self._files) - 1, row)

    def _places(self, keys: RowKeys) -> list[tuple[int, int] | None]:
        """File and row of each photo; None where it isn't held."""
        found = [self._held.get((name, state[0], state[1])) for name, state in keys]
        for row, place in enumerate(found):
            if place is not None and not same_file(self._files[place[0]].keys.states[place[1]], keys.states[row]):
                found[row] = None
        return found

    def _refuse_other_maker(self, file: RowFile) -> None:
        if found := differences(file.about, self.about):
            raise ValueError(
                f"{self.folder} holds descriptors made with other settings: {found}. Rows of both can't be "
                "mixed. Name another folder, or remove this one to embed everything anew."
            )

    def _is_finished(self, keys: RowKeys, places: np.ndarray) -> bool:
        """Whether the finished files hold just these rows in this order, under these paths."""
        if not self._files or self._files[0].path.name != VECTORS_FILE:
            return False
        in_order = np.column_stack([np.zeros(len(keys), np.int64), np.arange(len(keys))])
        return len(self._files[0].keys) == len(keys) and (
            np.array_equal(places, in_order) and list(self._files[0].keys.paths) == list(keys.paths)
        )

    def _blocks(self, places: np.ndarray, dim: int) -> Iterator[np.ndarray]:
        """The vectors of (rows, 2) file and row numbers, block by block."""
        for start in range(0, len(places), _JOIN_ROWS):
            files, rows = places[start : start + _JOIN_ROWS].T
            block = np.empty((len(rows), dim), np.float32)
            for file in np.unique(files):
                block[files == file] = self._files[file].vectors()[rows[files == file]]
            yield block


def _read_parts(folder: Path) -> tuple[np.ndarray, RowKeys, dict[str, Any]]:
    """What `DescriptorFolder.read_finished` gives, of parts that together are the whole list."""
    manifest, parts = read_manifest(folder), []
    for number in range(1, manifest.shards + 1):
        try:
            parts.append(DescriptorFolder.read_finished(part_folder(folder, number, manifest.shards)))
        except FileNotFoundError:
            parts.append(None)
    check_parts(folder, [part and (part[1].names, part[2]) for part in parts])
    keys = RowKeys.concatenate([keys for _, keys, _ in parts])
    dim = max(vectors.shape[1] for vectors, _, _ in parts)  # a part without rows may not know it
    joined, row = np.empty((len(keys), dim), np.float32), 0
    for vectors in [vectors for vectors, _, _ in parts if len(vectors)]:
        joined[row : row + len(vectors)] = vectors
        row += len(vectors)
        release_pages(vectors)
    skipped = [each for _, _, about in parts for each in about["skipped"]]
    return joined, keys, {**parts[0][2], "skipped": skipped}


def _mapped(path: Path) -> np.ndarray:
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors if vectors.size else np.array(vectors)


def _checksum_of(vectors: np.ndarray) -> int:
    checksum = 0
    for start in range(0, len(vectors), _JOIN_ROWS):
        checksum = zlib.crc32(np.ascontiguousarray(vectors[start : start + _JOIN_ROWS]), checksum)
        release_pages(vectors)
    return checksum


def _checksum(about: dict[str, Any], keys: RowKeys, checksum: int) -> str:
    """Of everything: the vectors, whose checksum is given, the photos, and who made the rows."""
    for texts in (keys.names, keys.paths, [json.dumps(about)]):
        checksum = zlib.crc32("\0".join(texts).encode(), checksum)
    return f"{zlib.crc32(np.ascontiguousarray(keys.states, '<i8'), checksum):08x}"


def _refuse_earlier_version(folder: Path) -> None:
    earlier = [folder / _EARLIER_VECTORS, *(folder / PARTS_FOLDER).glob("part-*.safetensors")]
    if found := [path for path in earlier if path.exists()]:
        raise ValueError(
            f"{folder} holds {found[0].name}, as an earlier version of d2vpr_hf wrote descriptors. This version writes "
            f"{VECTORS_FILE}. Name another folder, or remove this one to embed everything anew."
        )
