"""Photos inside of a `datasets.Dataset`: its rows opened one by one, and a protocol's photos that were exported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .images import UnreadableImage, decode_image, open_image
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


class ImageRows:
    """Opens the rows of a dataset's one image column, or of the one called 'image'; goes to other processes by pickle.

    Args:
        dataset: with its images undecoded in here, so that damage shows by itself and ends no run.
        names: what to call each row in errors; its number by default.

    Raises: ValueError if there is no such column, or the dataset transforms its rows, which would be passed over.
    """

    def __init__(self, dataset: "Dataset", names: Sequence[str] | None = None) -> None:
        from datasets import Image as ImageFeature

        if dataset.format["type"] == "custom":
            raise ValueError(
                "The dataset has a transform (with_transform or set_transform), which isn't applied here: images are "
                "opened as they are stored. Reset it with dataset.with_format(None), or apply it by dataset.map(...)."
            )
        columns = [name for name, kind in dataset.features.items() if isinstance(kind, ImageFeature)]
        columns = ["image"] if "image" in columns else columns
        if len(columns) != 1:
            raise ValueError(
                f"The dataset's columns are {', '.join(dataset.features)}, of which {len(columns)} hold images; "
                "expected one, or one called 'image'. Choose it with dataset.select_columns(...), or "
                "cast_column(..., Image())."
            )
        stored = dataset.select_columns(columns).cast_column(columns[0], ImageFeature(decode=False))
        self._column, self._rows, self._names = columns[0], stored.with_format(None), names

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, row: int) -> Image.Image:
        """The image of a row, upright and RGB; raises UnreadableImage if it can't be used."""
        name = str(row) if self._names is None else self._names[row]
        image = self._rows[row][self._column]
        if image is None or (image["bytes"] is None and image["path"] is None):
            raise UnreadableImage(name, "no image in this row")
        try:
            if image["bytes"] is not None:
                return decode_image(image["bytes"], name)
            if "://" not in image["path"]:
                return open_image(image["path"])
        except UnreadableImage as error:
            raise UnreadableImage(name, error.reason) from error
        return decode_image(_fetched(image["path"], name), name)


def _fetched(url: str, name: str) -> bytes:
    """What lies inside of an archive or elsewhere, as `datasets` opens it."""
    import fsspec

    try:
        with fsspec.open(url) as file:
            return file.read()
    # Whatever its file system raises.
    except Exception as error:
        raise UnreadableImage(name, f"{url} can't be opened ({error})") from error
