"""What counts as right in a protocol: each rule finds its own positives."""

from collections import defaultdict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..photos.positions import positives_within
from .layouts.base import Reading

Positives = list[np.ndarray]


class Rule:
    """What makes a database photo a positive.

    Attributes:
        words: the rule for people.
        is_published: whether the set has published counts and names; one's own folders have none.
        is_training: whether it says what shows one place in a training set, which has no queries.
        holds_queries: whether each query is a database photo too, which isn't an answer to itself.
        radius_m: metres within which positions make a positive, where they do.
        reach: how far the numbers of frames may be apart, where they make a positive.
    """

    words: ClassVar[str]
    is_published: ClassVar[bool] = True
    is_training: ClassVar[bool] = False
    holds_queries: ClassVar[bool] = False
    radius_m: float | None = None
    reach: int | None = None

    def __str__(self) -> str:
        return self.words

    def positives(self, reading: Reading) -> tuple[Positives | None, str]:
        """For each query its positives as rows of the database, None where nobody knows them; and where they are from.

        Raises: ValueError if what the rule needs isn't in the set.
        """
        if reading.listed is not None:
            return reading.listed, f"{self} (as listed in {reading.listed_in.name})"
        return self.found(reading), str(self)

    def found(self, reading: Reading) -> Positives | None:
        """The positives by the rule itself, whatever a file of the set lists."""
        raise NotImplementedError


@dataclass(frozen=True)
class Within(Rule):
    """Database photos within a radius of the query, in plane UTM metres, the radius included."""

    radius_m: float = 25.0

    def __str__(self) -> str:
        return f"database photos within {self.radius_m:g} m of the query in UTM, the {self.radius_m:g} m included"

    def found(self, reading: Reading) -> Positives:
        for kind, split in (("database", reading.database), ("query", reading.queries)):
            if not split.photos.positions.known.any():
                raise ValueError(f"no {kind} photo has coordinates in its name or the set's tables.")
        return positives_within(reading.database.photos.positions, reading.queries.photos.positions, self.radius_m)


@dataclass(frozen=True)
class Frames(Rule):
    """Database frames at most `reach` numbers away from the query's; 0 makes pairs."""

    reach: int

    def __str__(self) -> str:
        if self.reach == 0:
            return "the one database photo with the query's number (1-to-1)"
        return f"database frames at most {self.reach} from the query's frame (±{self.reach}), both ends included"

    def found(self, reading: Reading) -> Positives:
        database, queries = reading.database.frame, reading.queries.frame
        if database is None or queries is None:
            raise ValueError("its photos need frame numbers, but not every name has one.")
        return positives_by_frame(database, queries, self.reach)


@dataclass(frozen=True)
class Listed(Rule):
    """What the set's own file lists."""

    words = "the database photos that the set's own file lists for the query"

    def found(self, reading: Reading) -> Positives:
        raise ValueError("it takes its positives from a file of the set, and none is there. Copy it there.")


@dataclass(frozen=True)
class Hidden(Rule):
    """Positives that only the set's authors know."""

    words = "not published: the ranking is written as a file and scored by the challenge's server"

    def found(self, reading: Reading) -> None:
        return None


@dataclass(frozen=True)
class SamePlace(Rule):
    """Training photos with the same place number."""

    words = "photos of the same place number (a training set: there are no queries)"
    is_training = True


@dataclass(frozen=True)
class Own(Rule):
    """One's own two folders: a list beside them, else a radius where coordinates are known, else no labels."""

    is_published = False
    radius_m: float = 25.0

    def __str__(self) -> str:
        return (
            f"what positives.json lists; without it, database photos within {self.radius_m:g} m where both folders "
            "have coordinates; else none (the photos are ranked without scoring)"
        )

    def positives(self, reading: Reading) -> tuple[Positives | None, str]:
        if reading.listed is not None:
            return super().positives(reading)
        try:
            return Within(self.radius_m).positives(reading)
        except ValueError:
            return None, "none: no coordinates and no positives.json"


@dataclass(frozen=True)
class OthersOfPlace(Rule):
    """The other photos of the query's place; the database holds the query too, which isn't an answer to itself."""

    words = "the other photos of the query's place (each photo is looked for among all others, itself left out)"
    is_published = False
    holds_queries = True

    def found(self, reading: Reading) -> Positives:
        database, queries = reading.database, reading.queries
        rows = defaultdict(list)
        for row, place in enumerate(database.details["place"]):
            rows[place].append(row)
        own = {path: row for row, path in enumerate(database.photos.paths)}
        return [
            np.array([row for row in rows[place] if row != own[path]], np.int64)
            for path, place in zip(queries.photos.paths, queries.details["place"], strict=True)
        ]


def positives_by_frame(database: np.ndarray, queries: np.ndarray, reach: int) -> Positives:
    """For each query the database rows whose frame number is at most `reach` away, ascending."""
    order = np.argsort(database, kind="stable")
    numbers = database[order]
    first = np.searchsorted(numbers, queries - reach, side="left")
    last = np.searchsorted(numbers, queries + reach, side="right")
    return [np.sort(order[low:high]) for low, high in zip(first, last, strict=True)]
