"""Photos for training by the place that they show: of GSV-Cities, a dataset, a folder, or several of these."""

import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..files import path_to_text, text_to_path
from ..messages import did_you_mean
from ..panoramas.training_views import SPAN_COLUMNS, panorama_conflicts
from ..photos.dataset import ImageRows
from ..photos.folder import list_images
from ..photos.images import open_image
from ..photos.tables import read_table
from .layouts.base import check_inside
from .layouts.gsv import GsvCities, city_tables, read_city

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import Series

METADATA = ("metadata.csv", "metadata.parquet")


@dataclass(frozen=True)
class TrainingPlaces:
    """Images to train with, each of a known place; none is opened before it is asked for.

    Attributes:
        name: what to call the set.
        places: (rows,) int64 id of the place that each image shows.
        names: (rows) what to call each image: its path as text (see `path_to_text`), or the row in its dataset.
        open: gives the image of a row, upright and RGB; raises UnreadableImage if it can't be used. It goes to other
            processes by pickle.
        conflicts: {place: places that it must never share a training step with}, for places that are neither the same
            nor surely different; whichever of two places names the other, it holds for both.
    """

    name: str
    places: np.ndarray
    names: list[str]
    open: Callable[[int], Image.Image]
    conflicts: dict[int, frozenset[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)


def read_training_places(
    source: "str | Path | Dataset | Sequence[str | Path | Dataset]",
    *,
    place_column: str = "place",
    cities: Sequence[str] | None = None,
) -> TrainingPlaces:
    """The images of a source, by place.

    Args:
        source: the root of GSV-Cities; a folder with a metadata.csv or metadata.parquet whose columns are file_name
            and place, conflicts too in one of `cut_training_views`; a folder with one subfolder a place; a
            `datasets.Dataset` with an image column and a place column; or several of these, whose places are all taken
            for different ones.
        place_column: the column that holds the place, as integers or text.
        cities: take these alone, by the names that GSV-Cities' tables bear, or by the dataset's column city.

    Returns: places keep their numbers; GSV-Cities' are place_id + 100,000 for each city before it, sorted by name,
        whether or not that one is taken. Text is numbered from 0 in sorted order.
    Raises: ValueError if columns or cities are missing, or no place has two images; FileNotFoundError if photos that
        GSV-Cities' tables list are missing; NotADirectoryError if there is no such folder; TypeError for sources of
        another kind.
    """
    if isinstance(source, str | os.PathLike):
        root = Path(source)
        if not root.is_dir():
            raise NotADirectoryError(f"{path_to_text(root)} is not a folder. Give the folder that holds the places.")
        if GsvCities().find(root):
            return _of_gsv_cities(root, cities)
        if cities is not None:
            raise ValueError(
                f"cities is {list(cities)}, but {path_to_text(root)} isn't laid out by city, as GSV-Cities is "
                "(Images/CITY and Dataframes/CITY.csv). Leave cities out, or give GSV-Cities' root."
            )
        tables = [root / name for name in METADATA if (root / name).is_file()]
        return _of_metadata(root, tables[0], place_column) if tables else _of_subfolders(root)
    datasets = sys.modules.get("datasets")  # whoever has a Dataset has loaded it
    if datasets and isinstance(source, datasets.Dataset):
        return _of_dataset(source, place_column, cities)
    if datasets and isinstance(source, datasets.DatasetDict):
        raise TypeError(
            f"The source is a DatasetDict of {', '.join(source)}. Give one of them: source[{min(source)!r}]."
        )
    if not isinstance(source, Sequence):
        raise TypeError(
            f"The source is of type {type(source).__name__}; expected a folder, a datasets.Dataset, or a list of "
            "these. Load a streamed dataset without streaming: training draws its images in random order."
        )
    return join_training_places(
        [read_training_places(each, place_column=place_column, cities=cities) for each in source]
    )


def join_training_places(sources: Sequence[TrainingPlaces]) -> TrainingPlaces:
    """Several sets as one, row after row; no place of one is a place of another.

    The first set's places keep their numbers; those of each further one begin after the highest before it.

    Raises: ValueError if there is no set.
    """
    if not sources:
        raise ValueError("There are no sources of training places to join. Give one or more.")
    places, conflicts, highest = [], {}, None
    for source in sources:
        shift = 0 if highest is None else highest + 1 - int(source.places.min())
        places.append(source.places + shift)
        conflicts |= {
            place + shift: frozenset(other + shift for other in others) for place, others in source.conflicts.items()
        }
        highest = int(places[-1].max())
    starts = np.cumsum([0, *(len(source) for source in sources[:-1])]).tolist()
    return TrainingPlaces(
        " + ".join(source.name for source in sources),
        np.concatenate(places),
        [name for source in sources for name in source.names],
        _Joined(starts, [source.open for source in sources]),
        conflicts,
    )


# What opens a row is a class where it goes to worker processes: a function inside a function can't be pickled.


@dataclass(frozen=True)
class _Files:
    """Opens files by the names that `path_to_text` gave them."""

    names: list[str]

    def __call__(self, row: int) -> Image.Image:
        return open_image(text_to_path(self.names[row]))


@dataclass(frozen=True)
class _Joined:
    """Opens the rows of several sets that follow each other, each from its start on."""

    starts: list[int]
    opens: list[Callable[[int], Image.Image]]

    def __call__(self, row: int) -> Image.Image:
        source = bisect_right(self.starts, row) - 1
        return self.opens[source](row - self.starts[source])


def _of_gsv_cities(root: Path, cities: Sequence[str] | None) -> TrainingPlaces:
    tables = city_tables(root)
    known = [table.stem for table in tables]
    _check_cities(cities, known, path_to_text(root))
    names, places, missing = [], [], []
    for number, path in enumerate(tables):
        if cities is None or path.stem in cities:
            table = read_city(number, path)
            names += table["name"].tolist()
            places.append(table["place"].to_numpy(np.int64))
            missing += _missing_photos(root / "Images" / path.stem, table["name"])
    if missing:
        raise FileNotFoundError(
            f"{path_to_text(root)} lacks {len(missing)} of the {len(names)} photos that its tables list, such as "
            f"{missing[0]}. Unpack all of the set, or name the cities that are there."
        )
    return _checked("GSV-Cities", np.concatenate(places), _below(root, names))


def _below(root: Path, names: Sequence[str]) -> list[str]:
    base = path_to_text(root)
    return [f"{base}/{name}" for name in names]


def _missing_photos(folder: Path, names: "Series") -> list[str]:
    """The names whose photo isn't in the folder, which is listed once: a look at each of 530,000 takes far longer."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()  # noqa: PTH208 - names alone, and quickly
    return [name for name in names if name.rpartition("/")[2] not in there]


def _of_metadata(root: Path, path: Path, place_column: str) -> TrainingPlaces:
    table = read_table(path, low_memory=False)
    for column in ("file_name", place_column):
        _check_column(column, list(table.columns), path_to_text(path))
    if table["file_name"].isna().any():
        row = int(table["file_name"].isna().argmax())
        raise ValueError(f"{path_to_text(path)} has no file_name in row {row}. Fill it in, or leave the row out.")
    names = table["file_name"].astype(str).tolist()
    check_inside(names, path_to_text(path))
    places = _checked(root.name, _place_ids(table[place_column], path_to_text(path)), _below(root, names))
    if place_column == "place" and set(SPAN_COLUMNS) <= set(table.columns):
        return replace(places, conflicts=panorama_conflicts(table))
    if place_column == "place" and "conflicts" in table.columns:
        named = table.drop_duplicates("place").set_index("place")["conflicts"].fillna("").astype(str)
        return replace(places, conflicts={place: frozenset(map(int, text.split())) for place, text in named.items()})
    return places


def _of_subfolders(root: Path) -> TrainingPlaces:
    import pandas as pd  # loaded where it is used: importing this package leaves pandas alone

    paths = list_images(root)
    where = path_to_text(root)
    inside = [os.path.relpath(path, root) for path in paths]
    beside = [name for name in inside if os.sep not in name]
    if not paths or beside:
        found = f"photos beside its subfolders, such as {path_to_text(beside[0])}" if beside else "no photo"
        raise ValueError(
            f"{where} holds {found}; expected one subfolder a place, or a {' or '.join(METADATA)} with the columns "
            "file_name and place, or GSV-Cities' Images and Dataframes. Arrange the photos in one of these ways."
        )
    if {"database", "queries"} <= {name.split(os.sep, 1)[0] for name in inside}:
        raise ValueError(
            f"{where} holds database and queries, which is a set to evaluate, not one subfolder a place. Train on "
            "another folder, and give this one for validation."
        )
    files = [path_to_text(path) for path in paths]
    places = pd.Series([path_to_text(name.split(os.sep, 1)[0]) for name in inside])
    return _checked(root.name, _place_ids(places, where), files)


def _of_dataset(dataset: "Dataset", place_column: str, cities: Sequence[str] | None) -> TrainingPlaces:
    name = dataset.info.dataset_name or "dataset"
    _check_column(place_column, list(dataset.features), name)
    if cities is not None:
        _check_column("city", list(dataset.features), name)
        city = dataset.select_columns(["city"]).with_format("pandas")[:]["city"]
        _check_cities(cities, sorted(city.dropna().unique()), name)
        dataset = dataset.select(np.flatnonzero(city.isin(cities)))
    wanted = [place_column] + (["path"] if "path" in dataset.features else [])
    table = dataset.select_columns(wanted).with_format("pandas")[:]
    rows = [f"row {row} of {name}" for row in range(len(dataset))] if "path" not in table else table["path"].tolist()
    return _checked(name, _place_ids(table[place_column], name), rows, ImageRows(dataset, rows))


def _place_ids(column: "Series", where: str) -> np.ndarray:
    """(rows,) int64 of a column of integers or text."""
    import pandas as pd  # loaded where it is used: importing this package leaves pandas alone

    if column.isna().any():
        row = int(column.isna().argmax())
        raise ValueError(f"{where} has no place in row {row}. Fill it in, or leave the row out.")
    if column.dtype.kind in "iu":
        return column.to_numpy(np.int64)
    if not pd.api.types.is_string_dtype(column):
        raise ValueError(f"The places in {where} are of type {column.dtype}; expected integers or text. Convert them.")
    return pd.factorize(column, sort=True)[0].astype(np.int64)


def _checked(
    name: str, places: np.ndarray, names: list[str], opener: Callable[[int], Image.Image] | None = None
) -> TrainingPlaces:
    """The set, if a place has two images."""
    _, counts = np.unique(places, return_counts=True)
    if counts.max(initial=0) < 2:
        raise ValueError(
            f"{name} holds {len(places)} images of {len(counts)} places, none with two images, but images are compared "
            "with others of their place. Give photos that share a place, and check the column that tells it."
        )
    return TrainingPlaces(name, places, names, opener or _Files(names))


def _check_column(column: str, known: list[Any], where: str) -> None:
    if column not in known:
        raise ValueError(
            f"{where} has no column {column!r}; its columns are {', '.join(map(str, known))}. Name the right one "
            "(place_column for the place), or add it."
        )


def _check_cities(cities: Sequence[str] | None, known: Sequence[str], where: str) -> None:
    if isinstance(cities, str) or (cities is not None and not len(cities)):
        raise ValueError(f"cities is {cities!r}; expected a list of names. Known are {', '.join(known)}.")
    for city in cities or ():
        if city not in known:
            raise ValueError(f"{where} has no city {city!r}.{did_you_mean(city, known)} Known are {', '.join(known)}.")
