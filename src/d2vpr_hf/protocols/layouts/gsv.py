"""GSV-Cities: training photos by city, with a table of places for each."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...files import path_to_text
from ...photos.folder import PhotoFolder
from ...photos.positions import Positions
from ...photos.tables import read_table
from .base import Layout, Reading, Split, check_inside

if TYPE_CHECKING:
    from pandas import DataFrame

_COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
_NUMBERS = ("place_id", "year", "month", "northdeg")
# Place numbers start anew in each city; the field's training adds this for each city before it, sorted by name.
PLACES_A_CITY = 100_000


@dataclass(frozen=True)
class GsvCities(Layout):
    """`Images/CITY/*.jpg` and `Dataframes/CITY.csv`; photos of one place share a place number."""

    def find(self, root: Path) -> Path | None:
        return root if (root / "Images").is_dir() and any((root / "Dataframes").glob("*.csv")) else None

    def read(self, folder: Path) -> Reading:
        import pandas as pd  # loaded where it is used: importing this package leaves pandas alone

        table = pd.concat([read_city(*city) for city in enumerate(city_tables(folder))], ignore_index=True)
        months = zip(table["year"].tolist(), table["month"].tolist(), strict=True)
        paths, positions = [folder / name for name in table["name"]], Positions.from_degrees(table["lat"], table["lon"])
        split = Split(
            PhotoFolder.of(folder, paths, positions),
            details={
                # Headings above 360 degrees occur in the tables.
                "heading_deg": (np.asarray(table["northdeg"], np.float64) % 360).tolist(),
                "time": [f"{year:04d}-{month:02d}" for year, month in months],
                "place": table["place"].tolist(),
                "city": table["city_id"].tolist(),
                "panorama": table["panoid"].tolist(),
            },
        )
        return Reading(split, None)

    def tree(self) -> str:
        name = "CITY_PLACE_YEAR_MONTH_NORTHDEG_LAT_LON_PANOID.jpg"
        return f"Images/CITY/{name}\nDataframes/CITY.csv ({','.join(_COLUMNS)})"


def city_tables(folder: Path) -> list[Path]:
    """The tables of GSV-Cities, sorted by city."""
    return sorted((folder / "Dataframes").glob("*.csv"))


def read_city(number: int, path: Path) -> "DataFrame":
    """The table of a city with two columns more: each photo's name from the set's folder, and its place in the set.

    Args:
        number: of the city among all tables, from 0.
        path: the table.

    Raises: ValueError if it isn't a table of the set.
    """
    table = read_table(path, dtype={"panoid": str, "city_id": str})
    if missing := [column for column in _COLUMNS if column not in table.columns]:
        raise ValueError(f"{path_to_text(path)} lacks the columns {missing}. Download it again.")
    if odd := [column for column in _NUMBERS if table[column].dtype.kind != "i"]:
        raise ValueError(f"{path_to_text(path)} has something else than integers in {odd}. Download it again.")
    if not table["place_id"].between(0, PLACES_A_CITY - 1).all():
        raise ValueError(
            f"{path_to_text(path)} has place numbers from {table['place_id'].min()} to {table['place_id'].max()}, but "
            f"a city's are 0 to {PLACES_A_CITY - 1}. Download it again."
        )
    columns = (table[column].tolist() for column in ("city_id", *_NUMBERS, "lat", "lon", "panoid"))
    table["name"] = [
        f"Images/{path.stem}/{city}_{place:07d}_{year:04d}_{month:02d}_{northdeg:03d}_{lat}_{lon}_{panoid}.jpg"
        for city, place, year, month, northdeg, lat, lon, panoid in zip(*columns, strict=True)
    ]
    check_inside(table["name"].tolist(), path_to_text(path))
    table["place"] = table["place_id"] + number * PLACES_A_CITY
    return table
