"""Opens a named benchmark: its photos in order, where they were taken, and what counts as right."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import path_to_text
from ..photos.positions import positives_within
from .layouts.base import Layout, Reading, Split
from .records import BenchmarkRecord, Frames, Hidden, OthersOfPlace, Own, SamePlace, Within, find_record

logger = logging.getLogger(__name__)


@dataclass
class Benchmark:
    """A protocol with the photos that were found for it.

    Attributes:
        record: what the protocol is.
        root: the folder in which its layout begins.
        layout: in which it lies there.
        database: the photos searched in; of a training set all photos.
        queries: the photos to find, without those that the protocol leaves out; None in a training set.
        positives: for each query an int64 array of database rows, ascending; None without labels.
        left_out: names of queries without positives that the protocol leaves out.
        rule: in words, what makes a database photo a positive here.
    """

    record: BenchmarkRecord
    root: Path
    layout: Layout
    database: Split
    queries: Split | None
    positives: list[np.ndarray] | None
    left_out: list[str]
    rule: str

    @property
    def splits(self) -> dict[str, Split]:
        """{"database": ..., "queries": ...}, or {"train": ...} of a training set."""
        if self.queries is None:
            return {"train": self.database}
        return {"database": self.database, "queries": self.queries}


def open_benchmark(name: str, root: str | Path) -> Benchmark:
    """The photos of a protocol in a folder, and their positives; no image is opened.

    Counts other than the protocol's are logged as a warning: `verify_folder` tells what differs.

    Args:
        name: id of the protocol.
        root: the folder of the set, as its layout begins, or the one above.

    Raises: ValueError if the name is unknown, no layout of the protocol is found, or a file of it can't be used;
        FileNotFoundError if listed photos are missing; NotADirectoryError if there is no such folder.
    """
    record, root = find_record(name), Path(root)
    layout, folder = find_layout(record, root)
    reading = layout.read(folder)
    for split in (reading.database, reading.queries):
        if split is not None:
            _check_present(split, record, folder)
    benchmark = assemble(record, folder, layout, reading)
    warn_of_counts(record, folder, {side: len(split) for side, split in benchmark.splits.items()})
    return benchmark


def warn_of_counts(record: BenchmarkRecord, folder: Path, counts: dict[str, int]) -> None:
    """Logs each split whose number of photos is another than the protocol's."""
    for side, found in counts.items():
        expected = record.queries if side == "queries" else record.database
        if expected is not None and not expected.fits(found):
            logger.warning(
                "%s: %d photos in %s, but %s has %s (%s). `d2vpr verify` tells what differs.",
                path_to_text(folder), found, side, record.id, expected, expected.source,
            )  # fmt: skip


def find_layout(record: BenchmarkRecord, root: Path) -> tuple[Layout, Path]:
    """The layout of a protocol that lies in a folder, and where it begins.

    Raises: NotADirectoryError if there is no such folder; ValueError that shows the layouts if none is found.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"{path_to_text(root)} is no folder. Give the folder that holds {record.id}.")
    for layout in record.layouts:
        if (folder := layout.find(root)) is not None:
            return layout, folder
    found = sorted(path_to_text(path.name) for path in root.iterdir())
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    trees = "\nor\n".join(layout.tree() for layout in record.layouts)
    raise ValueError(
        f"{path_to_text(root)} holds {shown or 'nothing'}, which is no layout of {record.id}. Give the folder that "
        f"holds\n{trees}"
    )


def missing_photos(split: Split) -> list[str]:
    """Names of the photos that a list names and that aren't there."""
    return [name for name, path in zip(split.photos.names, split.photos.paths, strict=True) if not path.is_file()]


def assemble(record: BenchmarkRecord, folder: Path, layout: Layout, reading: Reading) -> Benchmark:
    """A benchmark from what a layout read: its positives, and the queries that it leaves out removed."""
    if reading.queries is None:
        return Benchmark(record, folder, layout, reading.database, None, None, [], str(record.rule))
    positives, rule = find_positives(record, reading)
    queries, left_out = reading.queries, []
    if record.denominator == "with_positives" and positives is not None:
        kept = np.array([len(rows) > 0 for rows in positives], bool)
        left_out = [name for name, keep in zip(queries.photos.names, kept, strict=True) if not keep]
        queries = queries[np.flatnonzero(kept)]
        positives = [rows for rows, keep in zip(positives, kept, strict=True) if keep]
    return Benchmark(record, folder, layout, reading.database, queries, positives, left_out, rule)


def find_positives(record: BenchmarkRecord, reading: Reading) -> tuple[list[np.ndarray] | None, str]:
    """For each query its positives, None where nobody knows them, and in words where they come from.

    Raises: ValueError if what the rule needs isn't in the set.
    """
    rule, database, queries = record.rule, reading.database, reading.queries
    for side, split in (("database photos", database), ("queries", queries)):
        if not len(split):
            raise ValueError(f"{path_to_text(split.photos.root)} holds no {side} of {record.id}. Unpack the set there.")
    if isinstance(rule, (Hidden, SamePlace)):
        return None, str(rule)
    if reading.listed is not None:
        return reading.listed, f"{rule} (as listed in {reading.listed_in.name})"
    if isinstance(rule, OthersOfPlace):
        return _others_of_place(database, queries), str(rule)
    if isinstance(rule, Frames):
        if database.frame is None or queries.frame is None:
            raise ValueError(
                f"The photos of {record.id} need frame numbers, but a name in {database.photos.root} or "
                f"{queries.photos.root} has none. Give the set in a layout of its own:\n"
                + "\nor\n".join(layout.tree() for layout in record.layouts)
            )
        return positives_by_frame(database.frame, queries.frame, rule.reach), str(rule)
    known = [split.photos.positions.known.any() for split in (database, queries)]
    if isinstance(rule, Own):
        if not all(known):
            return None, "none: no coordinates and no positives.json"
        near = positives_within(database.photos.positions, queries.photos.positions, rule.radius_m)
        return near, str(Within(rule.radius_m))
    if not isinstance(rule, Within):
        raise ValueError(
            f"{record.id} takes its positives from a file of the set, but none lies in {database.photos.root.parent}. "
            "Copy it there; the layout is\n" + "\nor\n".join(layout.tree() for layout in record.layouts)
        )
    if not all(known):
        raise ValueError(
            f"No {'database' if not known[0] else 'query'} photo of {record.id} has coordinates in its name or the "
            f"set's tables, but its positives are {rule}. Give the set in the layout\n{record.layouts[0].tree()}"
        )
    return positives_within(database.photos.positions, queries.photos.positions, rule.radius_m), str(rule)


def positives_by_frame(database: np.ndarray, queries: np.ndarray, reach: int) -> list[np.ndarray]:
    """For each query the database rows whose frame number is at most `reach` away, ascending."""
    order = np.argsort(database, kind="stable")
    numbers = database[order]
    first = np.searchsorted(numbers, queries - reach, side="left")
    last = np.searchsorted(numbers, queries + reach, side="right")
    return [np.sort(order[low:high]) for low, high in zip(first, last, strict=True)]


def _others_of_place(database: Split, queries: Split) -> list[np.ndarray]:
    """For each query the database rows of its place but for its own, ascending."""
    rows: dict[int, list[int]] = {}
    for row, place in enumerate(database.details["place"]):
        rows.setdefault(place, []).append(row)
    own = {path: row for row, path in enumerate(database.photos.paths)}
    return [
        np.array([row for row in rows[place] if row != own[path]], np.int64)
        for path, place in zip(queries.photos.paths, queries.details["place"], strict=True)
    ]


def write_predictions(
    path: str | Path, ranking: np.ndarray, *, query_names: Sequence[str], database_names: Sequence[str]
) -> Path:
    """The path of a challenge's predictions, written as a line a query: its key and the keys of the answers.

    A key is a photo's name without folder and suffix, as Mapillary's challenge takes it.

    Args:
        ranking: (queries, answers) rows of the database, best first; -1 (no answer) is left out.
        query_names: of the rows of the ranking.
        database_names: of the database.

    Raises: ValueError if there isn't one row a query, or a row isn't in the database.
    """
    ranking = np.asarray(ranking)
    if ranking.ndim != 2 or len(ranking) != len(query_names):
        raise ValueError(
            f"ranking has the shape {ranking.shape}, but there are {len(query_names)} queries. Give a row a query."
        )
    if ranking.size and not -1 <= ranking.min() <= ranking.max() < len(database_names):
        raise ValueError(
            f"ranking holds rows from {ranking.min()} to {ranking.max()}, but the database has {len(database_names)} "
            "photos. Rank the database of the same benchmark."
        )
    keys = [Path(name).stem for name in database_names]
    lines = (
        " ".join([Path(query).stem, *(keys[row] for row in rows if row >= 0)])
        for query, rows in zip(query_names, ranking.tolist(), strict=True)
    )
    path = Path(path)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def _check_present(split: Split, record: BenchmarkRecord, folder: Path) -> None:
    missing = missing_photos(split)
    if missing:
        raise FileNotFoundError(
            f"{path_to_text(folder)} lacks {len(missing)} of the {len(split)} photos that {record.id} lists, such as "
            f"{missing[0]}. Unpack all of the set; `d2vpr verify` lists what is missing."
        )
