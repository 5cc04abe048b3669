"""Takes a protocol's photos elsewhere: Parquet files with the photos inside, and a card that says what they are."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..files import replace_file, replacing_folder
from .records import PROTOCOLS, Count, ProtocolRecord, find_record

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_ROWS_AT_A_TIME = 100
_SHARE = (
    "The photos belong to those who took them, and most sets don't allow passing them on. Share this copy only "
    "where the terms of the set allow it, and name its authors."
)


def export_protocol(
    splits: "DatasetDict", folder: str | Path, *, protocol: str | None = None, shard_bytes: int = 500_000_000
) -> Path:
    """The folder, filled with Parquet files that hold the photos as they lie on disk, and a card.

    `datasets.load_dataset(folder)` gives the same rows, positives among them, on any machine.

    Args:
        splits: from `load_protocol`.
        folder: new or empty.
        protocol: id of the protocol; by default what `load_protocol` noted.
        shard_bytes: size beyond which the next file is begun.

    Raises: ValueError if the protocol isn't known or its splits are others, FileExistsError if the folder holds
        anything, FileNotFoundError if a photo isn't there any more.
    """
    record = _record_of(splits, protocol)
    with replacing_folder(folder) as draft:
        (draft / "data").mkdir()
        for side, split in splits.items():
            _write_split(split, draft / "data", side, shard_bytes)
        replace_file(draft / "README.md", _front_matter(record, splits) + card_text(record))
    return Path(folder)


def card_text(record: ProtocolRecord) -> str:
    """The text of a dataset card: what the protocol is, how to load it, and whose the photos are."""
    load = 'from datasets import load_dataset\n\nsplits = load_dataset("...")  # this folder or repository'
    columns = (
        "rows share `place`" if record.rule.is_training else "`positives` of a query are row numbers of `database`"
    )
    return (
        f"\n# {record.title}\n\n{record_text(record)}\n## Loading\n\n```python\n{load}\n```\n\n"
        f"Each row has `image` and its position; {columns}.\n\n## Terms\n\n{_SHARE}\n"
    )


def record_text(record: ProtocolRecord) -> str:
    """A protocol in Markdown, without its title."""
    treated = {
        "all": "All queries count; one without positives is a miss.",
        "with_positives": "Queries without positives are left out before anything is counted.",
    }[record.denominator]
    rows = {
        "Protocol": f"`{record.id}`",
        "Database": _count_text(record.database),
        "Queries": _count_text(record.queries),
        "Left out": _count_text(record.dropped),
        "Positives": str(record.rule),
        "Denominator": treated,
        "Positives a query": record.positives and "{} to {} in the published lists".format(*record.positives),
        "UTM zone": record.zone and str(record.zone),
        "Photos": record.image_size,
        "Where from": record.images,
    }
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items() if value)])
    trees = "\n\nor\n\n".join(f"```\n{layout.tree()}\n```" for layout in record.layouts)
    notes = "".join(f"- {note}\n" for note in record.notes)
    return f"{table}\n\n## Layout\n\n{trees}\n" + (f"\n## Notes\n\n{notes}" if notes else "")


def _count_text(count: Count | None) -> str:
    return "" if count is None else f"{count}{count.mark}: {count.source}"


def _record_of(splits: "DatasetDict", protocol: str | None) -> ProtocolRecord:
    noted = next(iter(splits.values())).info.config_name if len(splits) else None
    name = protocol or noted
    if protocol is None and name not in {record.id for record in PROTOCOLS}:
        raise ValueError(
            f"The dataset notes {noted!r} as its protocol, which isn't one. Give protocol=, such as 'pitts30k-test'."
        )
    record = find_record(name)
    expected = {"train"} if record.rule.is_training else {"database", "queries"}
    if set(splits) != expected:
        raise ValueError(
            f"The dataset has the splits {sorted(splits)}, but {record.id} has {sorted(expected)}. Give what "
            "load_protocol returns."
        )
    return record


def _write_split(split: "Dataset", folder: Path, side: str, shard_bytes: int) -> None:
    import pyarrow.parquet as pq
    from datasets.table import embed_table_storage

    schema, number, written = split.features.arrow_schema, 0, 0
    path = folder / f"{side}-{number:05d}.parquet"
    writer = pq.ParquetWriter(path, schema)
    try:
        for table in split.with_format("arrow").iter(_ROWS_AT_A_TIME):
            if written > shard_bytes:
                writer.close()
                number, written = number + 1, 0
                path = folder / f"{side}-{number:05d}.parquet"
                writer = pq.ParquetWriter(path, schema)
            embedded = embed_table_storage(table.cast(schema))
            writer.write_table(embedded)
            written += embedded.nbytes
    finally:
        writer.close()


def _front_matter(record: ProtocolRecord, splits: "DatasetDict") -> str:
    files = "".join(f"  - split: {side}\n    path: data/{side}-*.parquet\n" for side in splits)
    head = [
        "---",
        f"pretty_name: {record.title!r}",
        "license: other",
        "task_categories:\n- image-feature-extraction",
        "tags:\n- visual-place-recognition\n- image-retrieval",
        "configs:\n- config_name: default\n  data_files:",
    ]
    return "\n".join(head) + f"\n{files}---\n"
