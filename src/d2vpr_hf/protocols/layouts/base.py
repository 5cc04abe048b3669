"""How a protocol's photos lie on disk: what every layout gives, and folders of photos with positions in their names."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...photos.folder import PhotoFolder, is_image_name, list_images
from ...photos.names import UtmName
from ...photos.positions import Positions
from ..positives import read_positives

_SPLITS = ("train", "val", "test")


@dataclass
class Split:
    """One side of a protocol: its photos and what the set says of each.

    Attributes:
        photos: files, names and positions, in the protocol's order.
        frame: (photos,) int64 numbers along a video or of a pair, by which frame rules find positives; None where
            photos have none.
        details: columns that only some sets have, one entry a photo, None where it is unknown: heading_deg (float,
            clockwise from north), time (ISO 8601, as far as it is known), sequence (text), place (int) and others.
    """

    photos: PhotoFolder
    frame: np.ndarray | None = None
    details: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, rows: np.ndarray) -> "Split":
        """The photos of some rows."""
        details = {name: [column[row] for row in rows.tolist()] for name, column in self.details.items()}
        return Split(self.photos[rows], None if self.frame is None else self.frame[rows], details)


@dataclass
class Reading:
    """What a layout finds on disk.

    Attributes:
        database: the photos searched in; of a training set all photos.
        queries: the photos to find; None in a training set.
        listed: for each query its positives as rows of the database, where a file of the set lists them.
        listed_in: that file.
    """

    database: Split
    queries: Split | None
    listed: list[np.ndarray] | None = None
    listed_in: Path | None = None


class Layout(ABC):
    """A way in which a protocol's photos may lie on disk."""

    @abstractmethod
    def find(self, root: Path) -> Path | None:
        """The folder under `root`, or `root` itself, in which this layout begins; None where it isn't."""

    @abstractmethod
    def read(self, folder: Path) -> Reading:
        """What lies there; no image is opened."""

    def sources(self, folder: Path) -> list[Path]:
        """The files and folders, of any depth, on which `read` depends."""
        return [folder]

    @abstractmethod
    def tree(self) -> str:
        """The layout as people see it, one path a line."""


@dataclass(frozen=True)
class UtmFolders(Layout):
    """`[images/]SPLIT/{database,queries}` with photos named `@easting@northing@zone@...@.jpg`.

    Attributes:
        split: train, val or test.
        queries: folders of the queries, whose photos follow each other.
        database: folder of the database.
    """

    split: str = "test"
    queries: tuple[str, ...] = ("queries",)
    database: str = "database"

    def find(self, root: Path) -> Path | None:
        places = [root / "images" / self.split, root / "processed" / self.split, root / self.split]
        if root.name == self.split or root.name not in _SPLITS:
            places.append(root)
        return next((place for place in places if self._is_here(place)), None)

    def _is_here(self, folder: Path) -> bool:
        if not all((folder / name).is_dir() for name in (self.database, *self.queries)):
            return False
        # What isn't named this way is somebody's own two folders.
        with os.scandir(folder / self.queries[0]) as entries:
            first = next((entry.name for entry in entries if is_image_name(entry.name)), None)
        return first is None or first.startswith("@")

    def read(self, folder: Path) -> Reading:
        queries = [path for name in self.queries for path in list_images(folder / name)]
        query_root = folder / self.queries[0] if len(self.queries) == 1 else folder
        database = list_images(folder / self.database)
        return Reading(read_utm_split(folder / self.database, database), read_utm_split(query_root, queries))

    def tree(self) -> str:
        name = "@easting@northing@zone@letter@lat@lon@pano@tile@heading@pitch@roll@height@time@note@.jpg"
        lines = [f"images/{self.split}/{folder}/{name}" for folder in (self.database, *self.queries)]
        return "\n".join([*lines, "(the level images/ may be missing)"])


@dataclass(frozen=True)
class TwoFolders(Layout):
    """`{database,queries}` with any photos; positions are read from names or EXIF."""

    def find(self, root: Path) -> Path | None:
        return root if all((root / name).is_dir() for name in ("database", "queries")) else None

    def read(self, folder: Path) -> Reading:
        sides = [folder / name for name in ("database", "queries")]
        database, queries = (Split(PhotoFolder.of(side, list_images(side))) for side in sides)
        table = folder / "positives.json"
        if not table.is_file():
            return Reading(database, queries)
        listed = read_positives(table, database_names=database.photos.names, query_names=queries.photos.names)
        return Reading(database, queries, listed, table)

    def tree(self) -> str:
        return "database/*.jpg\nqueries/*.jpg\npositives.json (optional: {query file name: [database file names]})"


def check_inside(names: Sequence[str], source: str) -> None:
    """Refuses listed names that lead out of the set's folder.

    Raises: ValueError naming the source and the first such name.
    """
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{source} names {name!r}, outside of the set's folder. Correct it, or download it again.")


def read_utm_split(root: Path, paths: Sequence[Path]) -> Split:
    """Photos of the UTM naming scheme, with what their names say."""
    names = [UtmName.read(path) or UtmName() for path in paths]
    headings = [name.number("heading") for name in names]
    details = {
        "heading_deg": [None if np.isnan(heading) else heading for heading in headings],
        "time": [name.iso_time for name in names],
    }
    positions = Positions.from_names(paths)
    # A panorama's name may be a number too; only mock positions, which have no zone, stand for frames.
    numbers = [name.panorama if name.panorama.isdecimal() and len(name.panorama) < 10 else None for name in names]
    mock = len(paths) > 0 and bool((positions.known & (positions.zone == 0)).all())
    frame = np.array([int(number) for number in numbers], np.int64) if mock and None not in numbers else None
    return Split(PhotoFolder.of(root, paths, positions), frame, known_details(details))


def known_details(details: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Those columns of which at least one entry is known."""
    return {name: column for name, column in details.items() if any(entry is not None for entry in column)}
