"""What is ranked and what counts as right: the protocol of two folders of one's own, and of a named set."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import file_state, hash_file, path_to_text, text_to_path
from ..messages import first_few
from ..photos.dataset import DatasetPhotos
from ..photos.folder import PhotoFolder, read_photo_folder
from ..photos.positions import Positions, positives_within
from ..protocols.open import ProtocolFolder, open_protocol
from ..protocols.positives import read_positives
from ..protocols.records import PROTOCOLS, ProtocolRecord
from ..retrieval.index import PlaceIndex
from ..retrieval.index_folder import SETTINGS_FILE
from .recall import Denominator, count_positives

if TYPE_CHECKING:
    from datasets import DatasetDict

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
        own_rows: for each query the database rows that are the same photo and are left out of its ranking; None where
            no query is in the database.
        whole_database: whether the whole database is ranked, for mean average precision. Every query is then one row
            of it.
    """

    name: str
    database: PhotoFolder | DatasetPhotos | PlaceIndex
    queries: PhotoFolder | DatasetPhotos
    positives: list[np.ndarray] | None
    rule: str
    denominator: Denominator = "all"
    notes: tuple[str, ...] = ()
    own_rows: list[np.ndarray] | None = None
    whole_database: bool = False


def folder_protocol(
    database: str | Path | PhotoFolder | PlaceIndex,
    queries: str | Path | PhotoFolder,
    *,
    positives: str | Path | Mapping[str, Sequence[str]] | None = None,
    radius_m: float | None = None,
    labels: bool = True,
    labelled_only: bool = False,
) -> Protocol:
    """The protocol of two folders of one's own.

    A query that is a database photo too (the same file, a link to it, or equal bytes) isn't an answer to itself, and no
    positive.

    Args:
        database: folder of photos, folder of a saved index, or either of them read.
        queries: folder of photos, or one read.
        positives: {query file name: [database file names]}, or a JSON file of that; a query that isn't listed has
            none.
        radius_m: metres within which a database photo is a positive, inclusive; 25 in the UTM sets.
        labels: False ranks without scoring.
        labelled_only: leave queries without positives out of the count; otherwise they are misses.

    Raises: ValueError unless exactly one of the three is chosen, if coordinates are missing that the radius needs, if
        no query has any positive, or as `read_positives`.
    """
    if (positives is not None) + (radius_m is not None) + (not labels) != 1:
        raise ValueError(f"positives is {positives!r:.60}, radius_m {radius_m} and labels {labels}. {_CHOICES}")
    if labelled_only and not labels:
        raise ValueError(
            "labelled_only is True and labels False, but without labels no query counts. Leave one of the two out."
        )
    database, queries = _opened_database(database), _opened_queries(queries)
    _check_filled(len(database_names(database)), "database")
    _check_filled(len(queries.paths), "query")
    own_rows, notes = _own_rows(database, queries)
    own = {"own_rows": own_rows, "notes": notes}
    if not labels:
        return Protocol("folders", database, queries, None, "none: the photos are ranked without labels", **own)
    if positives is not None:
        rows = read_positives(positives, database_names=database_names(database), query_names=queries.names)
        rule = "listed by name" if isinstance(positives, Mapping) else f"listed by name in {Path(positives).name}"
    else:
        rows = _positives_by_radius(database, queries, radius_m)
        rule = f"database photos within {radius_m:g} m of the query, inclusive{_unknown(database, queries)}"
    rows = _without_own(rows, own_rows)
    if not count_positives(rows).any():
        raise ValueError(
            f"None of the {len(rows)} queries has a positive among the {len(database_names(database))} database photos "
            f"({rule}), so that recall would be 0 whatever the model. {' '.join(notes)} Check that the two folders "
            f"show the same area. {_CHOICES}"
        )
    return Protocol("folders", database, queries, rows, rule, "with_positives" if labelled_only else "all", **own)


def with_distractors(protocol: Protocol, folders: Sequence[str | Path]) -> Protocol:
    """The protocol with more photos in its database, which show the place of no query.

    Args:
        protocol: whose database is photos in a folder.
        folders: of the further photos; what positions they have doesn't matter.

    Raises: ValueError if the database is an index or a dataset, if a folder holds no photo, or if a photo is in the
        protocol, or in two of the folders; NotADirectoryError if there is no such folder.
    """
    photos = protocol.database
    if not isinstance(photos, PhotoFolder):
        raise ValueError(
            f"The database of {protocol.name} is a {type(photos).__name__}, but distractors are added to a folder of "
            "photos. Give the folder that it was made of."
        )
    paths, names = list(photos.paths), list(photos.names)
    for folder in folders:
        more = read_photo_folder(folder)
        same = same_photos([*paths, *protocol.queries.paths], more.paths)
        if twice := [path for path, rows in zip(more.paths, same, strict=True) if len(rows)]:
            raise ValueError(
                f"{path_to_text(folder)} holds {len(twice)} photos that are in {protocol.name} already, such as "
                f"{path_to_text(twice[0])}, but a distractor shows none of its places. Give a folder without them."
            )
        paths += more.paths
        names += [f"{path_to_text(more.root.name)}/{name}" for name in more.names]
    count = len(paths) - len(photos)
    positions = Positions.concatenate([photos.positions, Positions.unknown(count)])
    where = ", ".join(path_to_text(Path(folder).name) for folder in folders)
    note = f"The database holds {count:,} more photos that show the place of no query (distractors: {where})."
    database = PhotoFolder(photos.root, paths, names, positions)
    return replace(protocol, database=database, notes=(*protocol.notes, note))


def named_protocol(name: str | ProtocolFolder, root: str | Path | None = None) -> Protocol:
    """A named protocol in its folder; what isn't as the protocol says stands in its notes.

    Args:
        name: id of the protocol, such as "msls-val-740", or its folder that is open already.
        root: folder of the set; None with an open folder.

    Raises: ValueError if it is a training set, if no query has a positive, or as `open_protocol`.
    """
    if isinstance(name, ProtocolFolder) != (root is None):
        raise ValueError(f"name is {name!r:.60} and root {root}. Give the id of a protocol and its folder.")
    opened = name if isinstance(name, ProtocolFolder) else open_protocol(name, root)
    record, queries = opened.record, opened.queries
    if queries is None:
        raise ValueError(f"{record.id} is a training set: it has no queries to evaluate. Give the id of a test set.")
    photos, positives = (opened.database.photos, queries.photos), opened.positives
    notes = _count_notes(record, len(opened.database), len(queries))
    own = _ranked_whole(record, *photos)
    if not own and not record.rule.is_published:
        own["own_rows"], more = _own_rows(*photos)
        notes += more
        positives = None if positives is None else _without_own(positives, own["own_rows"])
    _check_answerable(positives, record.id, "; ".join([opened.rule, *notes]))
    if opened.left_out:
        notes.append(f"Queries without positives that the protocol leaves out: {len(opened.left_out)}.")
    return Protocol(record.id, *photos, positives, opened.rule, record.denominator, tuple(notes), **own)


def dataset_protocol(splits: "DatasetDict", name: str | None = None) -> Protocol:
    """The protocol whose photos lie in a dataset: exported, or loaded from the Hub.

    Args:
        splits: splits `database` and `queries` with the columns of `load_protocol`.
        name: id of the protocol; by default what the dataset notes.

    Raises: ValueError if a split or column is missing, or if no query has a positive.
    """
    if missing := [split for split in ("database", "queries") if split not in splits]:
        raise ValueError(
            f"The dataset has the splits {', '.join(splits)}, but not {' and '.join(missing)}, which an evaluation "
            "needs. Give what load_protocol, or load_dataset of an export, returns."
        )
    name = name or splits["queries"].info.config_name or "dataset"
    database, queries = (DatasetPhotos.of(splits[split], split) for split in ("database", "queries"))
    lists = splits["queries"].with_format(None)["positives"][:]
    positives = None if any(rows is None for rows in lists) else [np.array(rows, np.int64) for rows in lists]
    rule = "none: the dataset has no positives" if positives is None else "listed in the dataset"
    _check_answerable(positives, name, rule)
    record = next((record for record in PROTOCOLS if record.id == name), None)
    if record is None:
        return Protocol(name, database, queries, positives, rule)
    notes = tuple(_count_notes(record, len(database), len(queries)))
    own = _ranked_whole(record, database, queries)
    return Protocol(name, database, queries, positives, rule, record.denominator, notes, **own)


def same_photos(database: Sequence[Path], queries: Sequence[Path]) -> list[np.ndarray]:
    """For each query the rows of the database that are the same photo: the same file, a link to it, or equal bytes.

    Sizes are compared first, then the ends of the files, and the whole files only where these are equal.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for row, path in enumerate(database):
        by_size[file_state(path)[0]].append(row)
    end, whole = cache(_end_of), cache(hash_file)

    def equal(path: Path, other: Path) -> bool:
        try:
            return path.samefile(other) or (end(path) == end(other) and whole(path) == whole(other))
        except OSError:  # what can't be read is skipped later, with its reason
            return False

    sizes = [file_state(path)[0] for path in queries]
    return [
        np.array([row for row in by_size.get(size, ()) if size > 0 and equal(path, database[row])], np.int64)
        for path, size in zip(queries, sizes, strict=True)
    ]


def _end_of(path: Path) -> bytes:
    """The last bytes of a file, in which photos of one size differ."""
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1024))
        return file.read()


def _own_rows(
    database: PhotoFolder | PlaceIndex, queries: PhotoFolder
) -> tuple[list[np.ndarray] | None, tuple[str, ...]]:
    """The database rows that are the query itself, None where no query has any, and what is to be said of them."""
    paths = map(text_to_path, database_names(database)) if isinstance(database, PlaceIndex) else database.paths
    rows = same_photos(list(paths), queries.paths)
    twice = [name for name, own in zip(queries.names, rows, strict=True) if len(own)]
    if not twice:
        return None, ()
    said = f"{len(twice)} queries are database photos too ({first_few(twice)})"
    return rows, (f"{said}; such a photo is neither an answer to itself nor a positive.",)


def _without_own(positives: list[np.ndarray], own_rows: list[np.ndarray] | None) -> list[np.ndarray]:
    return positives if own_rows is None else [np.setdiff1d(*each) for each in zip(positives, own_rows, strict=True)]


def _ranked_whole(
    record: ProtocolRecord, database: PhotoFolder | DatasetPhotos, queries: PhotoFolder | DatasetPhotos
) -> dict[str, Any]:
    """Where each photo is looked for among all others, the queries' own rows; nothing for other protocols."""
    if not record.rule.holds_queries:
        return {}
    row_of = {path: row for row, path in enumerate(database.paths)}
    return {"own_rows": [np.array([row_of[path]]) for path in queries.paths], "whole_database": True}


def _check_answerable(positives: list[np.ndarray] | None, name: str, rule: str) -> None:
    if positives is not None and not count_positives(positives).any():
        raise ValueError(
            f"None of the {len(positives)} queries of {name} has a positive ({rule}), so that recall would be 0 "
            "whatever the model. `d2vpr verify` tells what is wrong with its folder."
        )


def _count_notes(record: ProtocolRecord, database: int, queries: int) -> list[str]:
    """Where the numbers of photos differ from the protocol's, or can't be known to agree with them."""
    notes: list[str] = []
    if not record.rule.is_published:
        return notes
    for side, expected, found in (("database", record.database, database), ("query", record.queries, queries)):
        if expected is None:
            notes.append(f"How many {side} photos {record.id} has is not known; here are {found:,}.")
        elif not expected.fits(found):
            notes.append(
                f"Not comparable with published figures of {record.id}: here are {found:,} {side} photos, and it "
                f"has {expected} ({expected.source})."
            )
        elif not expected.verified:
            notes.append(
                f"The number of {side} photos of {record.id}, {expected}, is not verified ({expected.source})."
            )
    return notes


def _opened_database(database: str | Path | PhotoFolder | PlaceIndex) -> PhotoFolder | PlaceIndex:
    if not isinstance(database, (str, Path)):
        return database
    return PlaceIndex.load(database) if (Path(database) / SETTINGS_FILE).is_file() else read_photo_folder(database)


def _opened_queries(queries: str | Path | PhotoFolder) -> PhotoFolder:
    return read_photo_folder(queries) if isinstance(queries, (str, Path)) else queries


def database_names(database: PhotoFolder | DatasetPhotos | PlaceIndex) -> list[str]:
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
