"""Takes a benchmark elsewhere: Parquet files with the photos inside, and the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..files import path_to_text
from .pages import record_text
from .records import PROTOCOLS, BenchmarkRecord, SamePlace, find_record

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_ROWS_AT_A_TIME = 100
_SHARE = (
    "The photos belong to those who took them, and most benchmarks don't allow passing them on. Share this copy only "
    "where the terms of the set allow it, and name its authors."
)


def export_benchmark(
    benchmark: "DatasetDict", folder: str | Path, *, protocol: str | None = None, shard_bytes: int = 500_000_000
) -> Path:
    """The folder, filled with Parquet files that hold the photos as they lie on disk, and a card.

    `datasets.load_dataset(folder)` gives the same rows, positives among them, on any machine.

    Args:
        benchmark: from `load_benchmark`.
        folder: new or empty.
        protocol: id of the protocol; by default what `load_benchmark` noted.
        shard_bytes: size beyond which the next file is begun.

    Raises: ValueError if the protocol isn't known or its splits are others, FileExistsError if the folder holds
        anything, FileNotFoundError if a photo isn't there any more.
    """
    record = _record_of(benchmark, protocol)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"{path_to_text(folder)} holds {path_to_text(next(folder.iterdir()).name)!r}, but an export needs a new or "
            "empty folder. Give another one, or empty this one."
        )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for side, split in benchmark.items():
        _write_split(split, folder / "data", side, shard_bytes)
    # Last, so that a folder with a card is whole.
    (folder / "README.md").write_text(_front_matter(record, benchmark) + card_text(record), encoding="utf-8")
    return folder


def push_benchmark(
    benchmark: "DatasetDict",
    repo_id: str,
    *,
    protocol: str | None = None,
    private: bool = True,
    token: str | None = None,
) -> None:
    """Uploads a benchmark, photos and positives, as a dataset repository with a card; private unless told otherwise.

    Only for sets that may be shared: most benchmarks may not.

    Args:
        benchmark: from `load_benchmark`.
        repo_id: "owner/name".
        protocol: id of the protocol; by default what `load_benchmark` noted.
        private: whether only the owner sees it.
        token: for the Hub; by default the one that is logged in.

    Raises: ValueError if the protocol isn't known or its splits are others.
    """
    from huggingface_hub import DatasetCard

    record = _record_of(benchmark, protocol)
    benchmark.push_to_hub(repo_id, private=private, token=token, embed_external_files=True)
    # The upload wrote a card of its own, with the head that load_dataset needs and without a text.
    card = DatasetCard.load(repo_id, token=token)
    card.text = card_text(record)
    card.data.pretty_name = record.title
    card.push_to_hub(repo_id, token=token)


def card_text(record: BenchmarkRecord) -> str:
    """The text of a dataset card: what the protocol is, how to load it, and whose the photos are."""
    load = 'from datasets import load_dataset\n\nbenchmark = load_dataset("...")  # this folder or repository'
    columns = (
        "`positives` of a query are row numbers of `database`" if not _is_training(record) else "rows share `place`"
    )
    return (
        f"\n# {record.title}\n\n{record_text(record)}\n## Loading\n\n```python\n{load}\n```\n\n"
        f"Each row has `image` and its position; {columns}.\n\n## Terms\n\n{_SHARE}\n"
    )


def _is_training(record: BenchmarkRecord) -> bool:
    return isinstance(record.rule, SamePlace)


def _record_of(benchmark: "DatasetDict", protocol: str | None) -> BenchmarkRecord:
    noted = next(iter(benchmark.values())).info.config_name if len(benchmark) else None
    name = protocol or noted
    if protocol is None and name not in {record.id for record in PROTOCOLS}:
        raise ValueError(
            f"The dataset notes {noted!r} as its protocol, which is none. Give protocol=, such as 'pitts30k-test'."
        )
    record = find_record(name)
    expected = {"train"} if _is_training(record) else {"database", "queries"}
    if set(benchmark) != expected:
        raise ValueError(
            f"The dataset has the splits {sorted(benchmark)}, but {record.id} has {sorted(expected)}. Give what "
            "load_benchmark returns."
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


def _front_matter(record: BenchmarkRecord, benchmark: "DatasetDict") -> str:
    files = "".join(f"  - split: {side}\n    path: data/{side}-*.parquet\n" for side in benchmark)
    head = [
        "---",
        f"pretty_name: {record.title!r}",
        "license: other",
        "task_categories:\n- image-feature-extraction",
        "tags:\n- visual-place-recognition\n- image-retrieval",
        "configs:\n- config_name: default\n  data_files:",
    ]
    return "\n".join(head) + f"\n{files}---\n"
