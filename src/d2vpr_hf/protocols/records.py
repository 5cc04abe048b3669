"""What a named protocol is: layout, expected counts, what counts as right; protocols.toml holds all there are."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..messages import did_you_mean
from .layouts.base import Layout, TwoFolders, UtmFolders
from .layouts.frames import FrameFolders
from .layouts.gsv import GsvCities
from .layouts.listed import DbStruct, ImageLists
from .layouts.msls import MslsTree
from .layouts.places import PlaceFolders
from .rules import Frames, Hidden, Listed, OthersOfPlace, Own, Rule, SamePlace, Within


@dataclass(frozen=True)
class Count:
    """An expected number.

    Attributes:
        number: how many.
        source: where it was counted, or who says so, "not verified" where nobody has counted.
        at_least: whether only a lower bound is known.
    """

    number: int
    source: str = "commonly cited, not verified"
    at_least: bool = False

    @property
    def verified(self) -> bool:
        """Whether it was counted in the set's own data or code; others are commonly cited."""
        return "not verified" not in self.source

    def __str__(self) -> str:
        return f"{'more than ' if self.at_least else ''}{self.number:,}"

    @property
    def mark(self) -> str:
        """What stands behind a number that nobody has verified."""
        return "" if self.verified else " (cited)"

    def fits(self, found: int) -> bool:
        """Whether a found number is this one, or above a lower bound."""
        return found > self.number if self.at_least else found == self.number


@dataclass(frozen=True)
class ProtocolRecord:
    """One protocol.

    Attributes:
        id: its stable name.
        title: for people.
        layouts: in which it may lie on disk; the first that is found is read.
        rule: what makes a database photo a positive.
        database, queries: expected numbers of photos; None where none is known.
        dropped: how many queries the list has beyond those, which have no positive and are left out.
        denominator: whether queries without positives count as misses ("all") or are left out ("with_positives").
        image_size: of the published photos, in words; empty where it isn't known.
        zone: UTM zone of all photos; None where it isn't one, or not known.
        positives: fewest and most positives of a query, where they were counted.
        notes: what people ask about it.
        images: how to get the photos.
    """

    id: str
    title: str
    layouts: tuple[Layout, ...]
    rule: Rule
    database: Count | None = None
    queries: Count | None = None
    dropped: Count | None = None
    denominator: Literal["all", "with_positives"] = "all"
    image_size: str = ""
    zone: int | None = None
    positives: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    images: str = ""


def find_record(name: str) -> ProtocolRecord:
    """The record of a protocol.

    Raises: ValueError naming the nearest and all known ids.
    """
    for record in PROTOCOLS:
        if record.id == name:
            return record
    known = [record.id for record in PROTOCOLS]
    raise ValueError(f"{name!r} is not a protocol.{did_you_mean(name, known)} Known are {', '.join(known)}.")


def _made(values: dict[str, Any], shared_notes: dict[str, str]) -> ProtocolRecord:
    """A record from its table in protocols.toml."""
    counts = {side: Count(**values[side]) for side in ("database", "queries", "dropped") if side in values}
    notes = [shared_notes[note[1:]] if note.startswith("@") else note for note in values.get("notes", ())]
    layouts = tuple(_of_kind(_LAYOUTS, layout) for layout in values["layouts"])
    made = counts | {"notes": tuple(notes), "layouts": layouts, "rule": _of_kind(_RULES, values["rule"])}
    return ProtocolRecord(**_with_tuples(values | made))


def _of_kind(kinds: tuple[type, ...], values: dict[str, Any]) -> Any:
    kind = next(each for each in kinds if each.__name__ == values["kind"])
    return kind(**_with_tuples({name: value for name, value in values.items() if name != "kind"}))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """TOML's lists as tuples, which can be hashed."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


_LAYOUTS = (UtmFolders, TwoFolders, FrameFolders, GsvCities, DbStruct, ImageLists, MslsTree, PlaceFolders)
_RULES = (Within, Frames, Listed, Hidden, SamePlace, Own, OthersOfPlace)
_TABLES = tomllib.loads(Path(__file__).with_name("protocols.toml").read_text(encoding="utf-8"))
PROTOCOLS = tuple(_made(values, _TABLES["notes"]) for values in _TABLES["protocols"])
