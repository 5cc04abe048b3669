"""Mapillary Street-Level Sequences as they are downloaded: a folder a city, with tables, or lists of other releases."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...files import path_to_text
from ...photos.folder import PhotoFolder
from ...photos.positions import Positions
from ...photos.tables import read_table
from ..object_arrays import read_names, read_positive_rows, read_row_numbers
from .base import Layout, Reading, Split, check_inside, known_details

# Two releases of the same lists: GSV-Cities' and OpenVPRLab's.
_LISTS = (
    ("{name}_dbImages.npy", "{name}_qImages.npy", "{name}_qIdx.npy", "{name}_pIdx.npy"),
    ("{name}_ref_image_names.npy", "{name}_query_image_names.npy", None, "{name}_ground_truth_25m.npy"),
)
_COLUMNS = {
    "seq_info": ("key", "sequence_key", "frame_number"),
    "subtask_index": ("all",),
    "raw": ("lat", "lon", "ca", "captured_at", "pano"),
    "postprocessed": ("easting", "northing"),
}


@dataclass(frozen=True)
class MslsTree(Layout):
    """`train_val/CITY/{database,query}/images/KEY.jpg` with the tables of the download.

    Positions, the frames of the task and panoramas come from the tables. Where NumPy lists of names and positives lie
    beside the cities, those are used instead: they are what most published numbers were computed with.

    Attributes:
        name: of the lists, such as msls_val.
        cities: in the order in which they are joined.
        part: folder of the download that holds the cities.
        labelled: whether positions or positives are published.
    """

    name: str
    cities: tuple[str, ...]
    part: str = "train_val"
    labelled: bool = True

    def find(self, root: Path) -> Path | None:
        for place in (root / self.part, root):
            if all((place / city / side / "images").is_dir() for city in self.cities for side in ("database", "query")):
                return place
        return None

    def read(self, folder: Path) -> Reading:
        for names in _LISTS:
            files = [None if name is None else self._file(folder, name.format(name=self.name)) for name in names]
            if files[0] is not None and files[1] is not None:
                return self._read_lists(folder, files)
        database, queries = (
            _joined(folder, [self._read_city(folder / city / side) for city in self.cities])
            for side in ("database", "query")
        )
        return Reading(database, queries)

    def _file(self, folder: Path, name: str) -> Path | None:
        places = (folder, folder.parent, folder / self.name, folder.parent / self.name)
        return next((place / name for place in places if (place / name).is_file()), None)

    def _read_lists(self, folder: Path, files: list[Path | None]) -> Reading:
        database, queries = read_names(files[0]), read_names(files[1])
        if files[2] is not None:
            kept = read_row_numbers(files[2])
            if len(kept) and not 0 <= kept.min() <= kept.max() < len(queries):
                raise ValueError(
                    f"{files[2]} keeps the query {kept.max()}, but {files[1].name} lists {len(queries)}. "
                    "Use lists of one release."
                )
            queries = [queries[row] for row in kept]
        listed = None
        if files[3] is not None:
            listed = read_positive_rows(files[3], queries=len(queries), database=len(database))
        elif self.labelled:
            raise ValueError(
                f"{files[0].parent} has {files[0].name}, but no list of positives beside it. Copy all of the lists "
                "there, or remove them so that the tables of the download are read."
            )
        splits = (
            self._listed_split(folder, names, side) for names, side in ((database, "database"), (queries, "query"))
        )
        return Reading(*splits, listed, files[3])

    def _listed_split(self, folder: Path, names: list[str], side: str) -> Split:
        # Lists begin at train_val/ or at the city; either way the last four parts say which photo it is.
        names = ["/".join(Path(name).parts[-4:]) for name in names]
        check_inside(names, f"The list of {self.name}")
        cities = [folder / city / side for city in self.cities]
        tables = [city / f"{table}.csv" for city in cities for table in self._tables(whole=True)]
        if all(table.is_file() for table in tables):
            whole = _joined(folder, [self._read_city(city, whole=True) for city in cities])
            row_of = {name: row for row, name in enumerate(whole.photos.names)}
            if all(name in row_of for name in names):
                return whole[np.array([row_of[name] for name in names], np.int64)]
        # The lists alone say nothing more of a photo.
        photos = [folder / name for name in names]
        return Split(PhotoFolder.of(folder, photos, Positions.unknown(len(names))))

    def _tables(self, whole: bool) -> list[str]:
        tables = ["seq_info"] if whole else ["seq_info", "subtask_index"]
        return tables + (["raw", "postprocessed"] if self.labelled else [])

    def _read_city(self, folder: Path, whole: bool = False) -> Split:
        """The photos of one side of a city: those of the task, or the whole table."""
        tables = {}
        for table in self._tables(whole):
            file = folder / f"{table}.csv"
            if not file.is_file():
                raise ValueError(
                    f"{path_to_text(file)} is missing, but it says which photos belong to {self.name}. Unpack the "
                    "download's metadata too, or put the NumPy lists of the set beside the cities."
                )
            tables[table] = read_table(file, index_col=0)
            if lacking := [column for column in _COLUMNS[table] if column not in tables[table].columns]:
                raise ValueError(f"{path_to_text(file)} lacks the columns {lacking}. Unpack it again.")
        if len({len(table) for table in tables.values()}) != 1:
            lengths = {name: len(table) for name, table in tables.items()}
            raise ValueError(f"The tables in {path_to_text(folder)} have {lengths} rows, but need one a photo each.")
        sequences = tables["seq_info"]
        photos = [folder / "images" / f"{key}.jpg" for key in sequences["key"]]
        details: dict[str, list[Any]] = {
            "sequence": sequences["sequence_key"].astype(str).tolist(),
            "frame_number": [int(number) for number in sequences["frame_number"]],
        }
        positions = Positions.unknown(len(photos))
        if self.labelled:
            raw, metres = tables["raw"], tables["postprocessed"]
            # Positives are measured in the metres of the download.
            positions = replace(
                Positions.from_degrees(raw["lat"], raw["lon"]),
                easting=metres["easting"].to_numpy(np.float64),
                northing=metres["northing"].to_numpy(np.float64),
            )
            details["heading_deg"] = [float(angle) if np.isfinite(angle) else None for angle in raw["ca"]]
            details["time"] = raw["captured_at"].astype(str).tolist()
        split = Split(PhotoFolder.of(folder, photos, positions), details=details)
        if whole:
            return split
        keep = tables["subtask_index"]["all"].to_numpy(bool)
        if self.labelled:
            keep = keep & ~tables["raw"]["pano"].to_numpy(bool)
        return split[np.flatnonzero(keep)]

    def sources(self, folder: Path) -> list[Path]:
        lists = {name.format(name=self.name) for names in _LISTS for name in names if name is not None}
        found = (self._file(folder, name) for name in sorted(lists))
        return [*(folder / city for city in self.cities), *(file for file in found if file is not None)]

    def tree(self) -> str:
        cities = "{" + ",".join(self.cities) + "}"
        tables = "{raw,postprocessed,seq_info,subtask_index}" if self.labelled else "{seq_info,subtask_index}"
        lists = [name.format(name=self.name) for name in _LISTS[0] if name and (self.labelled or "Images" in name)]
        return "\n".join(
            [
                f"{self.part}/{cities}/{{database,query}}/images/KEY.jpg",
                f"{self.part}/{cities}/{{database,query}}/{tables}.csv, or instead of the tables:",
                f"{', '.join(lists)} (beside {self.part}/ or in {self.name}/)",
            ]
        )


def _joined(root: Path, parts: list[Split]) -> Split:
    """The photos of several folders, one after the other, named from their common root."""
    paths = [path for part in parts for path in part.photos.paths]
    positions = Positions.concatenate([part.photos.positions for part in parts])
    details = {name: [entry for part in parts for entry in part.details[name]] for name in parts[0].details}
    return Split(PhotoFolder.of(root, paths, positions), details=known_details(details))
