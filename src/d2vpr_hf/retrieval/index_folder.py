"""Keeps an index on disk as one folder that is, at any moment, either the old index or the new one.

The vectors and the table of places are written under names made from their content; `index.json` names them, and
renaming it into place is the one step that turns the old index into the new. What nothing names any more is removed
afterwards. One process writes a folder at a time; a reader that meets a save in progress tries again.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import hash_file, replace_file, replacing, sync
from .similarity import rows_without_meaning
from .stores import store_class
from .stores.base import VectorStore

SETTINGS_FILE = "index.json"
FORMAT_VERSION = 2
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
        "ctime_ns": pa.int64(),
        "inode": pa.int64(),
    }
)
# What version 1 says less: nobody knows it of an index that it wrote.
_NEW_COLUMNS = ("ctime_ns", "inode")
_NEW_SETTINGS = {"processor": None, "dtype": None}

_PAYLOADS = ("vectors", "places")
_PAYLOAD_NAME = re.compile(r"(vectors|places)-[0-9a-f]{16}\.[a-z0-9]{1,16}")
_UNFINISHED = ".unfinished-"
_MAX_SETTINGS_BYTES = 1 << 20
_MOST_ID = 2**62
# Of a model, by its name or path: as long as a system takes a path.
_MOST_NAME = 4096
# Bytes that a place may take in memory, by its path for the most part: what says more isn't a table of places.
_MOST_BYTES_A_PLACE = 1 << 16
_READS = 20
_PAUSE_SECONDS = 0.05
_CHECKED_ROWS = 8192
_REBUILD = "Build the index again with `d2vpr index`, or take it from a backup."


def write_index_folder(folder: Path, settings: dict[str, Any], places: pd.DataFrame, store: VectorStore) -> None:
    """Write an index so that a kill or a power cut at any moment leaves the old one or the new one, whole.

    Args:
        folder: held by the caller (`files.holding`); files in it that aren't an index's stay as they are.
        settings: what `index.json` says besides format, version and the two files.
        places: one row a place, columns as `PLACES_SCHEMA`.
        store: its vectors.

    Raises: OSError if the disk is full. The old index is whole then too.
    """
    table = pa.Table.from_pandas(places, schema=PLACES_SCHEMA, preserve_index=False)
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    files = {
        "vectors": _write_payload(folder, "vectors", store.file_suffix, store.write),
        "places": _write_payload(folder, "places", "parquet", lambda file: file.write(buffer.getvalue())),
    }
    sync(folder)
    content = json.dumps({"format": "d2vpr_hf index", "version": FORMAT_VERSION} | settings | files, indent=2)
    replace_file(folder / SETTINGS_FILE, content + "\n")
    sync(folder.parent)
    current = {entry["file"] for entry in files.values()}
    for path in folder.iterdir():
        stale = _PAYLOAD_NAME.fullmatch(path.name) and path.name not in current
        if stale or path.name.startswith(_UNFINISHED):
            with suppress(PermissionError):  # where a file that a reader has open can't go, the next save removes it
                path.unlink(missing_ok=True)


def read_index_folder(folder: str | Path, verify: bool = True) -> tuple[dict[str, Any], VectorStore, pd.DataFrame]:
    """Settings, vectors and table of places of an index on disk, checked.

    Args:
        verify: compare the SHA-256 of both files and look at every vector (about a second for every 1.5 GB). Without
            it their names, sizes and lengths are compared, which finds a truncated or mixed folder but not a changed
            byte.

    Raises: FileNotFoundError if `folder` holds no index; ValueError if it is truncated, mixed, or not this format.
    """
    folder, settings = Path(folder), None
    for _ in range(_READS):
        before, settings = settings, read_settings(folder)
        try:
            places = _read_places(folder, settings, verify)
            return settings, _read_vectors(folder, settings, places, verify), places
        except FileNotFoundError as error:
            missing = Path(str(error.filename)).name
            # A save that ended in between removed what the old index.json names, and there is a new one now.
            if settings == before:
                time.sleep(_PAUSE_SECONDS)
                if read_settings(folder) == settings:
                    break
    raise ValueError(
        f"{folder} is incomplete: {SETTINGS_FILE} names {missing}, which isn't there. Copy the whole folder, not "
        f"single files of it. {_REBUILD}"
    )


def _write_payload(folder: Path, name: str, suffix: str, write: Callable[[BinaryIO], Any]) -> dict[str, Any]:
    unfinished = folder / f"{_UNFINISHED}{name}"
    with replacing(unfinished) as file:
        write(file)
    sha256 = hash_file(unfinished)
    path = folder / f"{name}-{sha256[:16]}.{suffix}"
    unfinished.replace(path)
    return {"file": path.name, "size_bytes": path.stat().st_size, "sha256": sha256}


def _read_places(folder: Path, settings: dict[str, Any], verify: bool) -> pd.DataFrame:
    path, count = _checked_payload(folder, settings["places"], verify), settings["count"]
    columns = [name for name in PLACES_SCHEMA.names if settings["version"] > 1 or name not in _NEW_COLUMNS]
    expected = pa.schema([PLACES_SCHEMA.field(name) for name in columns])
    try:
        metadata = pq.read_metadata(path)
        schema, rows = metadata.schema.to_arrow_schema(), metadata.num_rows
        size_bytes = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
        if schema.names != expected.names or schema.types != expected.types:
            raise ValueError(
                f"{path} has the columns {_columns(schema)}, but a table of places has {_columns(expected)}. {_REBUILD}"
            )
        if rows != count:
            raise ValueError(f"{path} has {rows} rows, but {SETTINGS_FILE} counts {count} places. {_REBUILD}")
        if size_bytes > _MOST_BYTES_A_PLACE * (count + 1):
            raise ValueError(f"{path} says that it unfolds to {size_bytes} bytes, for {count} places. {_REBUILD}")
        # Each text once, however often a row names it: a small file may name a long one a million times.
        with pq.ParquetFile(path, read_dictionary=["path"]) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} can't be read as Parquet ({error}). {_REBUILD}") from error
    if nulls := [name for name in columns if table[name].null_count and not pa.types.is_floating(table[name].type)]:
        raise ValueError(f"{path} has rows without {', '.join(nulls)}. {_REBUILD}")
    if len(pc.unique(table["path"])) < count or len(pc.unique((table := table.cast(expected))["path"])) < count:
        raise ValueError(f"{path} names a photo more than once. {_REBUILD}")
    places = table.to_pandas()
    _check_places(path, places, settings["next_id"])
    return places.assign(**{name: np.int64(-1) for name in PLACES_SCHEMA.names if name not in columns})


def _check_places(path: Path, places: pd.DataFrame, next_id: int) -> None:
    """Refuses numbers that no place has, before anything is counted or reserved by them."""
    ids = places["id"].to_numpy()
    if (np.diff(ids) <= 0).any() or (len(ids) and not 0 <= ids[0] <= ids[-1] < next_id):
        raise ValueError(f"{path} has ids that don't rise from 0 to below next_id ({next_id}). {_REBUILD}")
    for column, low, high in (("latitude", -90, 90), ("longitude", -180, 180), ("zone", 0, 60)):
        values = places[column].to_numpy()
        if len(wrong := np.flatnonzero((values < low) | (values > high))):
            raise ValueError(
                f"{path} gives {places['path'][wrong[0]]} the {column} {values[wrong[0]]}, but it must be within {low} "
                f"and {high}. {_REBUILD}"
            )


def _read_vectors(folder: Path, settings: dict[str, Any], places: pd.DataFrame, verify: bool) -> VectorStore:
    try:
        kind = store_class(settings["store"])
    except ValueError as error:
        raise ValueError(f"{folder / SETTINGS_FILE} names {error}") from error
    path = _checked_payload(folder, settings["vectors"], verify)
    store = kind.read(path, settings["store"], settings["dim"], settings["count"])
    ids = places["id"].to_numpy()
    if not np.array_equal(store.ids(), ids):
        raise ValueError(f"{path} has the vectors of other ids than the places in {folder}. {_REBUILD}")
    if verify:
        for start in range(0, len(ids), _CHECKED_ROWS):
            some = ids[start : start + _CHECKED_ROWS]
            if len(rows := rows_without_meaning(store.reconstruct(some), store.metric)):
                raise ValueError(
                    f"{path} has a vector of id {some[rows[0]]} that isn't finite, or not of the length that the "
                    f"metric {store.metric} compares. {_REBUILD}"
                )
    return store


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _checked_payload(folder: Path, entry: dict[str, Any], verify: bool) -> Path:
    path = folder / entry["file"]
    size_bytes = path.stat().st_size
    if size_bytes != entry["size_bytes"]:
        raise ValueError(
            f"{path} has {size_bytes} bytes, but {SETTINGS_FILE} says {entry['size_bytes']}: it is truncated or "
            f"belongs to another index. {_REBUILD}"
        )
    if verify and (sha256 := hash_file(path)) != entry["sha256"]:
        raise ValueError(
            f"{path} has SHA-256 {sha256[:16]}…, but {SETTINGS_FILE} says {entry['sha256'][:16]}…: its content is "
            f"damaged or belongs to another index. {_REBUILD}"
        )
    return path


def read_settings(folder: Path) -> dict[str, Any]:
    """What `index.json` says, checked; of an index of version 1 what it didn't say is None.

    Raises: FileNotFoundError if there is none; ValueError if it isn't one.
    """
    path = folder / SETTINGS_FILE
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
    if settings.get("version") not in (1, FORMAT_VERSION):
        raise ValueError(
            f"{path} has version {repr(settings.get('version'))[:80]}, but this version of d2vpr_hf reads the versions "
            f"1 to {FORMAT_VERSION}. Update d2vpr_hf, or build the index again with `d2vpr index`."
        )
    if settings["version"] == 1:
        settings = _NEW_SETTINGS | settings
    for field, (expected, valid) in _SETTINGS.items():
        outer, _, inner = field.rpartition(".")
        found = settings[outer] if outer else settings
        if inner not in found:
            raise ValueError(f"{path} lacks the field {field}, which must be {expected}. {_REBUILD}")
        if not valid(found[inner]):
            raise ValueError(f"{path}: {field} is {repr(found[inner])[:80]}, but must be {expected}. {_REBUILD}")
    return settings


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST_ID


def _is_score(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (number and abs(value) <= sys.float_info.max)  # false for NaN, and for 10**400


def _is_text(form: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(form, value, re.DOTALL) is not None


_TEXT = "a text", _is_text(".*")
_COUNT = "an integer of at least 0", _is_count
_OBJECT = "an object", lambda value: isinstance(value, dict)
# The name comes from a file that may be anyone's: a path in it could lead out of the folder.
_PAYLOAD = {
    "file": ("a name such as vectors-0123456789abcdef.faiss", _is_text(_PAYLOAD_NAME.pattern)),
    "size_bytes": _COUNT,
    "sha256": ("64 hexadecimal digits", _is_text("[0-9a-f]{64}")),
}
_SETTINGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model_name": (f"a text of 1 to {_MOST_NAME} characters", _is_text(f".{{1,{_MOST_NAME}}}")),
    "weight_hash": _TEXT,
    "store": _TEXT,
    "dim": ("an integer of at least 1", lambda value: _is_count(value) and value >= 1),
    "count": _COUNT,
    "next_id": _COUNT,
    "threshold": ("a finite number or null", _is_score),
    "threshold_rule": _TEXT,
    "processor": ("an object or null", lambda value: value is None or isinstance(value, dict)),
    "dtype": ("a text or null", lambda value: value is None or isinstance(value, str)),
    **dict.fromkeys(_PAYLOADS, _OBJECT),
    **{f"{name}.{field}": check for name in _PAYLOADS for field, check in _PAYLOAD.items()},
}
