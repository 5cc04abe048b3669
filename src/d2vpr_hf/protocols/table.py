"""A protocol as a `datasets.DatasetDict`: lazily decoded photos, positions and positives, memory-mapped."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from ..files import path_to_text, replacing_folder
from ..photos.folder import list_files
from ..retrieval.descriptors import file_states
from ..version import __version__
from .layouts.base import Layout, Split
from .open import ProtocolFolder, find_layout, open_protocol, warn_of_counts
from .records import ProtocolRecord, find_record

if TYPE_CHECKING:
    from datasets import DatasetDict, Features, IterableDatasetDict

# Part of the fingerprint: another number makes caches of older code be built anew.
_FORMAT = 2
_ROWS_AT_A_TIME = 10_000
_STREAM_SHARDS = 64


def load_protocol(
    name: str, root: str | Path, *, streaming: bool = False, cache_dir: str | Path | None = None
) -> "DatasetDict | IterableDatasetDict":
    """The splits `database` and `queries` of a protocol (`train` of a training set).

    Columns: image (decoded when it is read), path (relative to the split's folder), latitude, longitude (degrees,
    WGS84), easting, northing (metres), zone (UTM; 0 is unknown or mock), and what the set has of heading_deg, time,
    sequence, place; positives, the row numbers of `database`, null there and where nobody knows them.

    The table is written once into the Arrow cache and memory-mapped afterwards; it is built anew when a file's name,
    size or date changes. Images stay where they are.

    Args:
        name: id of the protocol, such as "pitts30k-test".
        root: the set's folder.
        streaming: give iterable datasets, which write no cache, for sets of millions of photos.
        cache_dir: where the cache lies; the cache of `datasets` by default.

    Raises: as `open_protocol`.
    """
    from datasets import Dataset, DatasetDict, DatasetInfo, IterableDataset, IterableDatasetDict, config

    record, root = find_record(name), Path(root)
    if streaming:
        opened = open_protocol(name, root)
        features = protocol_features(opened)
        return IterableDatasetDict(
            {
                side: IterableDataset.from_generator(
                    _stream, features=features, gen_kwargs={"opened": opened, "side": side, "rows": _shards(split)}
                )
                for side, split in opened.splits.items()
            }
        )
    layout, found = find_layout(record, root)
    folder = Path(cache_dir or config.HF_DATASETS_CACHE) / "d2vpr_hf" / name / fingerprint(record, layout, found)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # of several processes one writes, and the others wait for it
        if is_new := not folder.is_dir():
            _write_cache(open_protocol(name, root), folder)
    info = DatasetInfo(description=describe(record), dataset_name="d2vpr_benchmark", config_name=name)
    tables = {side: folder / f"{side}.arrow" for side in ("train", "database", "queries")}
    splits = DatasetDict(
        {side: Dataset.from_file(str(file), info=info.copy()) for side, file in tables.items() if file.is_file()}
    )
    if not is_new:
        warn_of_counts(record, found, {side: len(split) for side, split in splits.items()})
    return splits


def protocol_features(opened: ProtocolFolder) -> "Features":
    """The columns that both splits of a protocol share."""
    from datasets import Features, Image, List, Value

    columns = {"image": Image(), "path": Value("string")}
    columns |= dict.fromkeys(("latitude", "longitude", "easting", "northing"), Value("float64"))
    columns["zone"] = Value("int16")
    details = {name: column for split in opened.splits.values() for name, column in split.details.items()}
    columns |= {name: Value(_kind(column)) for name, column in sorted(details.items())}
    if opened.queries is not None:
        columns["positives"] = List(Value("int64"))
    return Features(columns)


def describe(record: ProtocolRecord) -> str:
    """Protocol and rule in one line, kept in the dataset's info."""
    return f"{record.id}: {record.title}. Positives: {record.rule}."


def fingerprint(record: ProtocolRecord, layout: Layout, folder: Path) -> str:
    """32 hex digits over the protocol and the names, sizes and dates of all files that it reads.

    Nothing is parsed for it: a set of millions of photos whose table is in the cache is there again in seconds.
    """
    parts = [_FORMAT, __version__, record.id, str(record.rule), record.denominator, repr(layout)]
    digest = hashlib.sha256(json.dumps([*parts, path_to_text(folder.absolute())]).encode())
    for source in layout.sources(folder):
        for line in _files_under(source):
            digest.update(line)
    return digest.hexdigest()[:32]


def _files_under(source: Path) -> Iterator[bytes]:
    """Name, size and date of a file, or of all files in a folder, sorted by name; nothing where neither is there."""
    paths = list_files(source) if source.is_dir() else [source]
    # Of a link to nothing, or a file that isn't there, the name alone counts.
    for path, state in zip(paths, file_states(paths), strict=True):
        yield os.fsencode(path) + b"\0" + state.tobytes()


def rows_of(opened: ProtocolFolder, side: str, rows: range) -> dict[str, list[Any]]:
    """Some rows of a split as columns; what isn't known is None."""
    split = opened.splits[side]
    photos, chosen = split.photos, slice(rows.start, rows.stop)
    columns: dict[str, list[Any]] = {
        "image": [_image(path) for path in photos.paths[chosen]],
        "path": photos.names[chosen],
        "zone": photos.positions.zone[chosen].tolist(),
    }
    for name in ("latitude", "longitude", "easting", "northing"):
        values = getattr(photos.positions, name)[chosen]
        columns[name] = [None if np.isnan(value) else value for value in values.tolist()]
    for name in protocol_features(opened):
        if name not in columns and name != "positives":
            columns[name] = split.details[name][chosen] if name in split.details else [None] * len(rows)
    if opened.queries is not None:
        known = side == "queries" and opened.positives is not None
        columns["positives"] = [each.tolist() for each in opened.positives[chosen]] if known else [None] * len(rows)
    return columns


def _image(path: Path) -> dict[str, Any]:
    """A photo as the Image feature stores it: by its path, or inside where the path isn't UTF-8 and can't be stored."""
    if path_to_text(path) != str(path):
        return {"bytes": path.read_bytes(), "path": None}
    return {"bytes": None, "path": str(path.absolute())}


def _kind(column: list[Any]) -> str:
    sample = next(entry for entry in column if entry is not None)
    return {float: "float32", int: "int64", str: "string"}[type(sample)]


def _write_cache(opened: ProtocolFolder, folder: Path) -> None:
    """The splits as Arrow files, whole or not at all."""
    from datasets.arrow_writer import ArrowWriter

    features = protocol_features(opened)
    with replacing_folder(folder) as draft:
        for side, split in opened.splits.items():
            with ArrowWriter(features=features, path=str(draft / f"{side}.arrow")) as writer:
                for rows in _batches(len(split), _ROWS_AT_A_TIME):
                    writer.write_batch(rows_of(opened, side, rows))
                writer.finalize()


def _batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)] or [range(0)]


def _shards(split: Split) -> list[range]:
    """Rows of a split in parts that workers can share."""
    return _batches(len(split), max(1, -(-len(split) // _STREAM_SHARDS)))


def _stream(opened: ProtocolFolder, side: str, rows: list[range]) -> Iterator[dict[str, Any]]:
    for shard in rows:
        columns = rows_of(opened, side, shard)
        for row in range(len(shard)):
            yield {name: column[row] for name, column in columns.items()}
