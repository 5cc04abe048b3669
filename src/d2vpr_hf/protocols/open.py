"""Opens a named protocol in its folder: the photos in order, where they were taken, and what counts as right."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import path_to_text, replace_file
from ..messages import first_few
from .layouts.base import Layout, Reading, Split
from .records import ProtocolRecord, find_record

logger = logging.getLogger(__name__)


@dataclass
class ProtocolFolder:
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

    record: ProtocolRecord
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


def open_protocol(name: str, root: str | Path) -> ProtocolFolder:
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
    opened = assemble(record, folder, layout, reading)
    warn_of_counts(record, folder, {side: len(split) for side, split in opened.splits.items()})
    return opened


def warn_of_counts(record: ProtocolRecord, folder: Path, counts: dict[str, int]) -> None:
    """Logs each split whose number of photos is another than the protocol's."""
    for side, found in counts.items():
        expected = record.queries if side == "queries" else record.database
        if expected is not None and not expected.fits(found):
            logger.warning(
                "%s: %d photos in %s, but %s has %s (%s). `d2vpr verify` tells what differs.",
                path_to_text(folder), found, side, record.id, expected, expected.source,
            )  # fmt: skip


def find_layout(record: ProtocolRecord, root: Path) -> tuple[Layout, Path]:
    """The layout of a protocol that lies in a folder, and where it begins.

    Raises: NotADirectoryError if there is no such folder; ValueError that shows the layouts if none is found.
    """
    if not root.is_dir():
        raise NotADirectoryError(f"{path_to_text(root)} is not a folder. Give the folder that holds {record.id}.")
    for layout in record.layouts:
        if (folder := layout.find(root)) is not None:
            return layout, folder
    raise ValueError(
        f"{path_to_text(root)} holds {names_in(root)}, which is not a layout of {record.id}. Give the folder that "
        f"holds\n{_trees(record)}"
    )


def names_in(folder: Path) -> str:
    """What lies in a folder, in words."""
    return first_few(sorted(path_to_text(path.name) for path in folder.iterdir()), 8) or "nothing"


def missing_photos(split: Split) -> list[str]:
    """Names of the photos that a list names and that aren't there."""
    return [name for name, path in zip(split.photos.names, split.photos.paths, strict=True) if not path.is_file()]


def assemble(record: ProtocolRecord, folder: Path, layout: Layout, reading: Reading) -> ProtocolFolder:
    """A protocol from what a layout read: its positives, and the queries that it leaves out removed.

    Raises: ValueError if one side is empty, or what the rule needs isn't in the set.
    """
    database, queries = reading.database, reading.queries
    if queries is None:
        return ProtocolFolder(record, folder, layout, database, None, None, [], str(record.rule))
    for side, split in (("database photos", database), ("queries", queries)):
        if not len(split):
            raise ValueError(f"{path_to_text(split.photos.root)} holds no {side} of {record.id}. Unpack the set there.")
    try:
        positives, rule = record.rule.positives(reading)
    except ValueError as error:
        raise ValueError(
            f"{path_to_text(folder)} isn't {record.id}, whose positives are {record.rule}: {error} Give the set in the "
            f"layout\n{_trees(record)}"
        ) from error
    left_out = []
    if record.denominator == "with_positives" and positives is not None:
        kept = np.array([len(rows) > 0 for rows in positives], bool)
        left_out = [name for name, keep in zip(queries.photos.names, kept, strict=True) if not keep]
        queries = queries[np.flatnonzero(kept)]
        positives = [rows for rows, keep in zip(positives, kept, strict=True) if keep]
    return ProtocolFolder(record, folder, layout, database, queries, positives, left_out, rule)


def _trees(record: ProtocolRecord) -> str:
    return "\nor\n".join(layout.tree() for layout in record.layouts)


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
            "photos. Rank the database of the same protocol."
        )
    keys = [Path(name).stem for name in database_names]
    lines = (
        " ".join([Path(query).stem, *(keys[row] for row in rows if row >= 0)])
        for query, rows in zip(query_names, ranking.tolist(), strict=True)
    )
    return replace_file(path, "".join(f"{line}\n" for line in lines))


def _check_present(split: Split, record: ProtocolRecord, folder: Path) -> None:
    if missing := missing_photos(split):
        raise FileNotFoundError(
            f"{path_to_text(folder)} lacks {len(missing)} of the {len(split)} photos that {record.id} lists, such as "
            f"{missing[0]}. Unpack all of the set; `d2vpr verify` lists what is missing."
        )
