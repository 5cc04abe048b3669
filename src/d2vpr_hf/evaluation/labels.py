"""What is ranked and what counts as right: the protocol of two folders of one's own, and of a named benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.benchmark_records import Own
from ..data.benchmarks import Benchmark, open_benchmark
from ..data.coordinates import Positions, positives_within
from ..data.folders import PhotoFolder, read_photo_folder
from ..data.positives import read_positives
from ..retrieval.index import PlaceIndex
from ..retrieval.index_folder import SETTINGS_FILE
from .recall import Denominator, count_positives

_CHOICES = (
    "Choose one: positives=... (--positives positives.json), a JSON file of {query file name: [database file names]}; "
    "radius_m=25 (--radius-m 25), which needs coordinates; or labels=False (--no-labels), which ranks without scoring."
)


@dataclass(frozen=True)
class Protocol:
    """What is ranked, and what counts as right.

    Attributes:
        name: short name of the protocol.
        database: the photos, or an index of them.
        queries: the photos to find.
        positives: for each query, the rows of the database that show its place; None where nobody knows.
        rule: in words, what makes a database photo a positive.
        denominator: whether queries without positives count as misses ("all") or don't count ("with_positives").
        notes: what people must know to judge the figures, one sentence each, such as counts that nobody has verified.
    """

    name: str
    database: PhotoFolder | PlaceIndex
    queries: PhotoFolder
    positives: list[np.ndarray] | None
    rule: str
    denominator: Denominator = "all"
    notes: tuple[str, ...] = ()


def folder_protocol(
    database: str | Path | PhotoFolder | PlaceIndex,
    queries: str | Path | PhotoFolder,
    *,
    positives: str | Path | Mapping[str, Sequence[str]] | None = None,
    radius_m: float | None = None,
    labels: bool = True,
) -> Protocol:
    """The protocol of two folders of one's own.

    Args:
        database: folder of photos, folder of a saved index, or either of them read.
        queries: folder of photos, or one read.
        positives: {query file name: [database file names]}, or a JSON file of that; a query that isn't listed has
            none.
        radius_m: metres within which a database photo is a positive, inclusive; 25 in the UTM benchmarks.
        labels: False ranks without scoring.

    Returns: a protocol in which queries without positives count as misses.
    Raises: ValueError unless exactly one of the three is chosen, if coordinates are missing that the radius needs, if
        no query has any positive, or as `read_positives`.
    """
    if (positives is not None) + (radius_m is not None) + (not labels) != 1:
        raise ValueError(f"positives is {positives!r:.60}, radius_m {radius_m} and labels {labels}. {_CHOICES}")
    database, queries = _opened_database(database), _opened_queries(queries)
    _check_filled(len(database_names(database)), "database")
    _check_filled(len(queries.paths), "query")
    if not labels:
        return Protocol("folders", database, queries, None, "none: the photos are ranked without labels")
    if positives is not None:
        rows = read_positives(positives, database_names=database_names(database), query_names=queries.names)
        rule = "listed by name" if isinstance(positives, Mapping) else f"listed by name in {Path(positives).name}"
    else:
        rows = _positives_by_radius(database, queries, radius_m)
        rule = f"database photos within {radius_m:g} m of the query, inclusive{_unknown(database, queries)}"
    if not count_positives(rows).any():
        raise ValueError(
            f"None of the {len(rows)} queries has a positive among the {len(database_names(database))} database photos "
            f"({rule}), so that recall would be 0 whatever the model. Check that the two folders show the same area. "
            f"{_CHOICES}"
        )
    return Protocol("folders", database, queries, rows, rule)


def benchmark_protocol(name: str | Benchmark, root: str | Path | None = None) -> Protocol:
    """The protocol of a named benchmark; what isn't as the protocol says stands in its notes.

    Args:
        name: id of the protocol, such as "msls-val-740", or a benchmark that is open already.
        root: folder of the set; None with an open benchmark.

    Raises: ValueError if it is a training set, if no query has a positive, or as `data.benchmarks.open_benchmark`.
    """
    if isinstance(name, Benchmark) != (root is None):
        raise ValueError(f"name is {name!r:.60} and root {root}. Give the id of a protocol and its folder.")
    benchmark = name if isinstance(name, Benchmark) else open_benchmark(name, root)
    record, queries = benchmark.record, benchmark.queries
    if queries is None:
        raise ValueError(f"{record.id} is a training set: it has no queries to evaluate. Give the id of a test set.")
    if benchmark.positives is not None and not count_positives(benchmark.positives).any():
        raise ValueError(
            f"None of the {len(queries)} queries of {record.id} in {benchmark.root} has a positive ({benchmark.rule}), "
            "so that recall would be 0 whatever the model. `d2vpr verify` tells what is wrong with the folder."
        )
    return Protocol(
        record.id,
        benchmark.database.photos,
        queries.photos,
        benchmark.positives,
        benchmark.rule,
        record.denominator,
        tuple(_benchmark_notes(benchmark)),
    )


def _benchmark_notes(benchmark: Benchmark) -> list[str]:
    """What differs from the protocol, or can't be known to agree with it."""
    record, notes = benchmark.record, []
    if isinstance(record.rule, Own):
        return notes
    for side, expected, split in (
        ("database", record.database, benchmark.database),
        ("query", record.queries, benchmark.queries),
    ):
        if expected is None:
            notes.append(f"How many {side} photos {record.id} has is not known; here are {len(split):,}.")
        elif not expected.fits(len(split)):
            notes.append(
                f"Not comparable with published figures of {record.id}: here are {len(split):,} {side} photos, and it "
                f"has {expected} ({expected.source})."
            )
        elif not expected.verified:
            notes.append(
                f"The number of {side} photos of {record.id}, {expected}, is not verified ({expected.source})."
            )
    if benchmark.left_out:
        notes.append(f"Queries without positives that the protocol leaves out: {len(benchmark.left_out)}.")
    return notes


def _opened_database(database: str | Path | PhotoFolder | PlaceIndex) -> PhotoFolder | PlaceIndex:
    if not isinstance(database, (str, Path)):
        return database
    return PlaceIndex.load(database) if (Path(database) / SETTINGS_FILE).is_file() else read_photo_folder(database)


def _opened_queries(queries: str | Path | PhotoFolder) -> PhotoFolder:
    return read_photo_folder(queries) if isinstance(queries, (str, Path)) else queries


def database_names(database: PhotoFolder | PlaceIndex) -> list[str]:
    return database.places["path"].tolist() if isinstance(database, PlaceIndex) else database.names


def _check_filled(photos: int, kind: str) -> None:
    if not photos:
        raise ValueError(f"The {kind} folder holds no photos. Give a folder with at least one.")


def _positives_by_radius(database: PhotoFolder | PlaceIndex, queries: PhotoFolder, radius_m: float) -> list[np.ndarray]:
    if not 0 <= radius_m < np.inf:
        raise ValueError(f"radius_m is {radius_m}, but must be metres from 0, such as 25.")
    positions: dict[str, Positions] = {"database": database.positions, "query": queries.positions}
    if without := [kind for kind, each in positions.items() if not each.known.any()]:
        raise ValueError(
            f"No {' and no '.join(without)} photo has coordinates (in its name, in EXIF GPS or in a table), but a "
            f"radius of {radius_m:g} m needs them. {_CHOICES}"
        )
    return positives_within(positions["database"], positions["query"], radius_m)


def _unknown(database: PhotoFolder | PlaceIndex, queries: PhotoFolder) -> str:
    """How many photos a radius can say nothing about, in words; empty where there are none."""
    unknown = [int((~each.positions.known).sum()) for each in (database, queries)]
    if not any(unknown):
        return ""
    return f" ({unknown[0]} database photos and {unknown[1]} queries have no coordinates and so no positives)"
