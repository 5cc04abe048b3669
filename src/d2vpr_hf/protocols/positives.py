"""Reads which database photos show the place of each query, from lists of file names."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..files import name_key
from ..messages import first_few

_SHAPE = '{"query.jpg": ["database.jpg", ...], ...}'


def read_positives(
    positives: str | Path | Mapping[str, Sequence[str]],
    *,
    database_names: Sequence[str],
    query_names: Sequence[str],
) -> list[np.ndarray]:
    """Row numbers of the positives of each query, sorted; empty for a query that isn't listed.

    Args:
        positives: {query file name: [database file names]}, or a JSON file of that. A name is a path relative to the
            folder, or its end, such as the base name, where that fits one photo alone.
        database_names: of the database photos, in their order.
        query_names: of the queries, in their order.

    Raises: FileNotFoundError if the file is missing; ValueError if it isn't of this shape, or if it has names that fit
        no photo or several, all listed.
    """
    source = "positives" if isinstance(positives, Mapping) else str(positives)
    listed = _checked_lists(positives if isinstance(positives, Mapping) else _read_json(Path(positives)), source)
    queries, database = _NameTable(query_names), _NameTable(database_names)
    rows: list[list[int]] = [[] for _ in query_names]
    for query, names in listed.items():
        row = queries.row(query)
        found = [database.row(name) for name in names]
        if row is not None:
            rows[row] += [each for each in found if each is not None]
    problems = [*queries.problems("query"), *database.problems("database")]
    if problems:
        raise ValueError(
            f"{source} has names that don't fit the photos: {'; '.join(problems)}. Name each photo by its path "
            "relative to its folder, or by its file name where that is unique."
        )
    return [np.unique(np.array(each, np.int64)) for each in rows]


class _NameTable:
    """Finds photos by their relative path or the end of it, and remembers the names that fit none or several."""

    def __init__(self, names: Sequence[str]) -> None:
        self._by_base = defaultdict(list)
        for row, name in enumerate(map(name_key, names)):
            self._by_base[PurePosixPath(name).name].append((name, row))
        self._missing: dict[str, None] = {}
        self._ambiguous: dict[str, None] = {}

    def row(self, name: str) -> int | None:
        key = name_key(name)
        same_base = self._by_base.get(PurePosixPath(key).name, [])
        rows = [row for known, row in same_base if known == key]
        rows = rows or [row for known, row in same_base if known.endswith(f"/{key}")]
        if len(rows) == 1:
            return rows[0]
        (self._ambiguous if rows else self._missing)[name] = None
        return None

    def problems(self, kind: str) -> list[str]:
        cases = ((self._missing, "no"), (self._ambiguous, "more than one"))
        return [f"{first_few(list(names), 10)} fit {number} {kind} photo" for names, number in cases if names]


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path} isn't there, but positives are read from a JSON file of {_SHAPE}.")
    twice: list[str] = []

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # JSON itself would keep the last of two equal names in silence.
        twice.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=as_dict)
    except (ValueError, RecursionError) as error:  # of text, of numbers too long, of depth
        raise ValueError(f"{path} isn't JSON ({error}). Positives are a JSON file of {_SHAPE}.") from error
    if twice:
        raise ValueError(f"{path} lists {first_few(twice, 10)} more than once. Join the lists of each query into one.")
    return content


def _checked_lists(content: Any, source: str) -> Mapping[str, Sequence[str]]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds a {type(content).__name__}, but positives are {_SHAPE}.")
    for query, names in content.items():
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in (query, *names)):
            raise ValueError(
                f"{source} gives {str(names)[:60]!r} for query {query!r}, but must give a list of database file names: "
                f"{_SHAPE}."
            )
    return content
