"""The photos of a `datasets.Dataset` as a protocol takes them: of a protocol exported, or loaded from the Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .positions import Positions

if TYPE_CHECKING:
    from datasets import Dataset

_NEEDED = ("image", "path", "latitude", "longitude", "easting", "northing", "zone")


@dataclass
class DatasetPhotos:
    """Photos whose files may lie inside of a dataset.

    Attributes:
        images: the dataset with its image column alone.
        root: what to call it.
        paths: (photos) what to call each photo, as a path; no file needs to be there.
        names: (photos) the same as text.
        positions: (photos) where each was taken.
    """

    images: "Dataset"
    root: Path
    paths: list[Path]
    names: list[str]
    positions: Positions

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, dataset: "Dataset", name: str) -> "DatasetPhotos":
        """The photos of one split, with the columns of `load_protocol`.

        Raises: ValueError if a column is missing.
        """
        if missing := [column for column in _NEEDED if column not in dataset.features]:
            raise ValueError(
                f"{name} has no column {', '.join(missing)}, but needs {', '.join(_NEEDED)} (and positives). "
                "Give what load_protocol, or load_dataset of an export, returns."
            )
        table = dataset.select_columns([column for column in _NEEDED if column != "image"]).with_format(None)[:]
        latitude, longitude, easting, northing = (np.array(table[each], np.float64) for each in _NEEDED[2:6])
        zone = np.array(table["zone"], np.int16)
        # Northings alone don't tell the hemisphere; of mock positions, which have no degrees, there is none.
        positions = Positions(latitude, longitude, easting, northing, zone, latitude < 0)
        names = list(table["path"])
        return cls(dataset.select_columns(["image"]), Path(name), [Path(each) for each in names], names, positions)
