"""GSV-Cities: training photos by city, with a table of places for each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .coordinates import Positions
from .folders import PhotoFolder
from .images import path_to_text
from .layouts import Reading, Split, check_inside

_COLUMNS = ("place_id", "year", "month", "northdeg", "city_id", "lat", "lon", "panoid")
_NUMBERS = ("place_id", "year", "month", "northdeg")


@dataclass(frozen=True)
class GsvCities:
    """`Images/CITY/*.jpg` and `Dataframes/CITY.csv`; photos of one place share a place number."""

    def find(self, root: Path) -> Path | None:
        return root if (root / "Images").is_dir() and any((root / "Dataframes").glob("*.csv")) else None

    def read(self, folder: Path) -> Reading:
        import pandas as pd  # loaded where it is used: importing this package leaves pandas alone

        frames = []
        for table in sorted((folder / "Dataframes").glob("*.csv")):
            frame = pd.read_csv(table, dtype={"panoid": str, "city_id": str})
            if missing := [column for column in _COLUMNS if column not in frame.columns]:
                raise ValueError(f"{path_to_text(table)} lacks the columns {missing}. Download it again.")
            if odd := [column for column in _NUMBERS if frame[column].dtype.kind != "i"]:
                raise ValueError(
                    f"{path_to_text(table)} has something else than whole numbers in {odd}. Download it again."
                )
            frame["name"] = [
                f"Images/{table.stem}/{row.city_id}_{row.place_id:07d}_{row.year:04d}_{row.month:02d}_{row.northdeg:03d}"
                f"_{row.lat}_{row.lon}_{row.panoid}.jpg"
                for row in frame.itertuples()
            ]
            frames.append(frame)
        table = pd.concat(frames, ignore_index=True)
        names = table["name"].tolist()
        check_inside(names, f"A table in {path_to_text(folder / 'Dataframes')}")
        months = zip(table["year"].tolist(), table["month"].tolist(), strict=True)
        # Place numbers start anew in each city.
        place = table.groupby(["city_id", "place_id"], sort=False).ngroup()
        split = Split(
            PhotoFolder(
                folder,
                [folder / name for name in names],
                [path_to_text(name) for name in names],
                Positions.from_degrees(table["lat"], table["lon"]),
            ),
            details={
                # Headings above 360 degrees occur in the tables.
                "heading_deg": (np.asarray(table["northdeg"], np.float64) % 360).tolist(),
                "time": [f"{year:04d}-{month:02d}" for year, month in months],
                "place": place.tolist(),
                "city": table["city_id"].tolist(),
                "panorama": table["panoid"].tolist(),
            },
        )
        return Reading(split, None)

    def sources(self, folder: Path) -> list[Path]:
        return [folder / "Images", folder / "Dataframes"]

    def tree(self) -> str:
        name = "CITY_PLACE_YEAR_MONTH_NORTHDEG_LAT_LON_PANOID.jpg"
        return f"Images/CITY/{name}\nDataframes/CITY.csv ({','.join(_COLUMNS)})"
