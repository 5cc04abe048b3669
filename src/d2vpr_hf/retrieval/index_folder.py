"""Keeps an index on disk as one folder that is, at any moment, either the old index or the new one.

The vectors and the table of places are written under names made from their content; `index.json` names them, and
renaming it into place is the one step that turns the old index into the new. What nothing names any more is removed
afterwards. One process writes a folder at a time; a reader that meets a save in progress tries again.
"""

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SETTINGS_FILE = "index.json"
FORMAT_VERSION = 1
PLACES_SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "path": pa.string(),
        "latitude": pa.float64(),
        "longitude": pa.float64(),
        "easting": pa.float64(),
        "northing": pa.float64(),
        "zone": pa.int16(),
        "south": pa.bool_(),
        "size_bytes": pa.int64(),
        "mtime_ns": pa.int64(),
    }
)

_PAYLOADS = {"vectors": "faiss", "places": "parquet"}
_PAYLOAD_NAME = re.compile(r"(vectors|places)-[0-9a-f]{16}\.(faiss|parquet)")
_UNFINISHED = ".unfinished-"
_MAX_SETTINGS_BYTES = 1 << 20
_REBUILD = "Build the index again with `d2vpr index`, or take it from a backup."


def write_index_folder(
    folder: str | Path,
    settings: dict[str, Any],
    places: pd.DataFrame,
    write_vectors: Callable[[BinaryIO], None],
) -> None:
    """Write an index so that a kill or a power cut at any moment leaves the old one or the new one, whole.

    Args:
        folder: made if missing; files in it that aren't an index's stay as they are.
        settings: what `index.json` says besides format, version and the two files.
        places: one row a place, columns as `PLACES_SCHEMA`.
        write_vectors: writes the vectors into the open file it is given.

    Raises: NotADirectoryError if `folder` is a file; OSError if the disk is full. The old index is whole then too.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, but an index is saved as a folder. Give another name.")
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pandas(places, schema=PLACES_SCHEMA, preserve_index=False)
    files = {
        "vectors": _write_payload(folder, "vectors", write_vectors),
        "places": _write_payload(folder, "places", lambda file: pq.write_table(table, file)),
    }
    _flush_names(folder)
    content = json.dumps({"format": "d2vpr_hf index", "version": FORMAT_VERSION} | settings | files, indent=2)
    temporary = _write_unfinished(folder, lambda file: file.write(content.encode() + b"\n"))[0]
    temporary.replace(folder / SETTINGS_FILE)
    _flush_names(folder)
    _flush_names(folder.parent)
    current = {entry["file"] for entry in files.values()}
    for path in folder.iterdir():
        stale = _PAYLOAD_NAME.fullmatch(path.name) and path.name not in current
        if stale or path.name.startswith(_UNFINISHED):
            path.unlink(missing_ok=True)


def read_index_folder(folder: str | Path, verify: bool = True) -> tuple[dict[str, Any], Path, pd.DataFrame]:
    """Settings, path of the vectors and table of places of an index on disk, checked.

    Args:
        verify: compare the SHA-256 of both files (about a second for every 1.5 GB). Without it their names and sizes
            are compared, which finds a truncated or mixed folder but not a changed byte.

    Raises: FileNotFoundError if `folder` holds no index; ValueError if it is truncated, mixed, or not this format.
    """
    folder = Path(folder)
    settings = _read_settings(folder / SETTINGS_FILE)
    paths = {name: _checked_payload(folder, name, settings[name], verify) for name in _PAYLOADS}
    try:
        table = pq.read_table(paths["places"], partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{paths['places']} can't be read as Parquet ({error}). {_REBUILD}") from error
    if table.schema.names != PLACES_SCHEMA.names or table.schema.types != PLACES_SCHEMA.types:
        raise ValueError(
            f"{paths['places']} has the columns {_columns(table.schema)}, but a table of places has "
            f"{_columns(PLACES_SCHEMA)}. {_REBUILD}"
        )
    if len(table) != settings["count"]:
        raise ValueError(
            f"{paths['places']} has {len(table)} rows, but {SETTINGS_FILE} counts {settings['count']} places. "
            f"{_REBUILD}"
        )
    return settings, paths["vectors"], table.to_pandas()


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


class _HashingFile:
    """Passes bytes on to a file and keeps their SHA-256 and number."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size_bytes += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Leave the file open: who opened it flushes it to the disk."""

    def sha256(self) -> str:
        return self._hash.hexdigest()


def _write_payload(folder: Path, name: str, write: Callable[[BinaryIO], None]) -> dict[str, Any]:
    temporary, size_bytes, sha256 = _write_unfinished(folder, write)
    file = f"{name}-{sha256[:16]}.{_PAYLOADS[name]}"
    temporary.replace(folder / file)
    return {"file": file, "size_bytes": size_bytes, "sha256": sha256}


def _write_unfinished(folder: Path, write: Callable[[BinaryIO], None]) -> tuple[Path, int, str]:
    """Write and flush a file under a passing name; gives its path, size and SHA-256."""
    path = folder / f"{_UNFINISHED}{secrets.token_hex(8)}"
    try:
        with path.open("xb") as file:
            hashing = _HashingFile(file)
            write(hashing)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path, hashing.size_bytes, hashing.sha256()


def _flush_names(folder: Path) -> None:
    """Flush a folder's names to the disk, where the system can (Windows can't, and needs no such call)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _checked_payload(folder: Path, name: str, entry: dict[str, Any], verify: bool) -> Path:
    path = folder / entry["file"]
    if not path.is_file():
        raise ValueError(
            f"{folder} is incomplete: {SETTINGS_FILE} names {entry['file']}, which isn't there. Copy the whole folder, "
            f"not single files of it. {_REBUILD}"
        )
    size_bytes = path.stat().st_size
    if size_bytes != entry["size_bytes"]:
        raise ValueError(
            f"{path} has {size_bytes} bytes, but {SETTINGS_FILE} says {entry['size_bytes']}: it is truncated or "
            f"belongs to another index. {_REBUILD}"
        )
    if verify:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != entry["sha256"]:
            raise ValueError(
                f"{path} has SHA-256 {sha256[:16]}…, but {SETTINGS_FILE} says {entry['sha256'][:16]}…: its content is "
                f"damaged or belongs to another index. {_REBUILD}"
            )
    return path


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} holds no index: there is no {path.name} in it. Make one with "
            f"`d2vpr index PHOTOS {path.parent} --model M`."
        )
    if path.stat().st_size > _MAX_SETTINGS_BYTES:
        raise ValueError(
            f"{path} has {path.stat().st_size} bytes, but is never above {_MAX_SETTINGS_BYTES}. {_REBUILD}"
        )
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} isn't JSON ({error}): it is truncated or was changed. {_REBUILD}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a JSON {type(settings).__name__}, but must hold an object. {_REBUILD}")
    if settings.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has version {settings.get('version')!r}, but this version of d2vpr_hf reads version "
            f"{FORMAT_VERSION}. Update d2vpr_hf, or build the index again with `d2vpr index`."
        )
    for field, (expected, valid) in _SETTINGS.items():
        _check_field(path, field, settings, expected, valid)
    for name in _PAYLOADS:
        for field, (expected, valid) in _PAYLOAD_ENTRY.items():
            _check_field(path, field, settings[name], expected, valid, within=f"{name}.")
    return settings


def _check_field(
    path: Path, field: str, found: dict[str, Any], expected: str, valid: Callable[[Any], bool], within: str = ""
) -> None:
    if field not in found:
        raise ValueError(f"{path} lacks the field {within}{field}, which must be {expected}. {_REBUILD}")
    if not valid(found[field]):
        shown = repr(found[field])[:80]
        raise ValueError(f"{path}: {within}{field} is {shown}, but must be {expected}. {_REBUILD}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _is_score(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))


_TEXT = "a text", lambda value: isinstance(value, str)
_COUNT = "a whole number from 0", _is_count
_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model_name": _TEXT,
    "weight_hash": _TEXT,
    "store": _TEXT,
    "dim": ("a whole number from 1", lambda value: _is_count(value) and value >= 1),
    "count": _COUNT,
    "next_id": _COUNT,
    "threshold": ("a number or null", _is_score),
    "threshold_rule": _TEXT,
    "vectors": ("an object", lambda value: isinstance(value, dict)),
    "places": ("an object", lambda value: isinstance(value, dict)),
}
_PAYLOAD_ENTRY: dict[str, tuple[str, Callable[[Any], bool]]] = {
    # The name comes from a file that may be anyone's: a path in it could lead out of the folder.
    "file": (
        "a name such as vectors-0123456789abcdef.faiss",
        lambda value: isinstance(value, str) and _PAYLOAD_NAME.fullmatch(value) is not None,
    ),
    "size_bytes": _COUNT,
    "sha256": (
        "64 hexadecimal digits",
        lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
    ),
}
