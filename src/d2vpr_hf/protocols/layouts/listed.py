"""Sets whose photos and positions are listed in files: NetVLAD's `.mat` and Patch-NetVLAD's lists."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyproj import Proj

from ...photos.folder import PhotoFolder
from ...photos.positions import Positions
from .base import Layout, Reading, Split, check_inside


@dataclass(frozen=True)
class DbStruct(Layout):
    """The photos as their authors give them, with NetVLAD's list of names and UTM positions (`dbStruct`).

    Attributes:
        file: name of the `.mat` file, in the folder of the photos or in `datasets/` there.
        zone: UTM zone of the positions, on the northern hemisphere.
        query_folder: where the queries lie, below the folder of the photos.
        database_suffix: suffix of the database photos, which differs from the listed one in some sets.
    """

    file: str
    zone: int
    query_folder: str
    database_suffix: str = ".jpg"

    def find(self, root: Path) -> Path | None:
        places = (root, root / "raw_data")
        return next((place for place in places if self._file(place) is not None), None)

    def _file(self, folder: Path) -> Path | None:
        files = (folder / self.file, folder / "datasets" / self.file)
        return next((file for file in files if file.is_file()), None)

    def read(self, folder: Path) -> Reading:
        from scipy.io import loadmat  # loaded where it is used: few sets come as MATLAB files

        file = self._file(folder)
        try:
            fields = loadmat(file)["dbStruct"].item()
            names = [[str(np.ravel(cell[0])[0]) for cell in fields[place]] for place in (1, 3)]
            metres = [np.asarray(fields[place], np.float64).T.reshape(-1, 2) for place in (2, 4)]
        # loadmat raises whatever it stumbles over: the file is at fault.
        except Exception as error:
            raise ValueError(
                f"{file} can't be read ({error!r:.80}), but should hold dbStruct with names and UTM positions of "
                "database and queries. Download it again."
            ) from error
        database = [str(Path(name).with_suffix(self.database_suffix)) for name in names[0]]
        queries = [f"{self.query_folder}/{name}" for name in names[1]]
        return Reading(
            read_listed_split(folder, database, metres[0], self.zone, str(file)),
            read_listed_split(folder, queries, metres[1], self.zone, str(file)),
        )

    def tree(self) -> str:
        photo = f"NNN/...{self.database_suffix}"
        return f"{photo} (database)\n{self.query_folder}/...jpg\n{self.file} (or datasets/{self.file})"


@dataclass(frozen=True)
class ImageLists(Layout):
    """Patch-NetVLAD's lists: names in two text files, UTM positions in an `.npz` of the same order.

    Attributes:
        prefix: of the two text files, PREFIX_imageNames_index.txt and PREFIX_imageNames_query.txt.
        metres_file: name of the `.npz`, with utmDb and utmQ.
        zone: UTM zone of the positions on the northern hemisphere; 0 where they are frame numbers instead.
    """

    prefix: str
    metres_file: str
    zone: int

    def find(self, root: Path) -> Path | None:
        return root if all(self._file(root, name) for name in self._names()) else None

    def _names(self) -> tuple[str, str, str]:
        return f"{self.prefix}_imageNames_index.txt", f"{self.prefix}_imageNames_query.txt", self.metres_file

    def _file(self, root: Path, name: str) -> Path | None:
        files = (root / folder / name for folder in ("", "dataset_imagenames", "dataset_gt_files"))
        return next((file for file in files if file.is_file()), None)

    def read(self, folder: Path) -> Reading:
        index, query, file = (self._file(folder, name) for name in self._names())
        try:
            with np.load(file, allow_pickle=False) as arrays:
                metres = [np.asarray(arrays[name], np.float64).reshape(-1, 2) for name in ("utmDb", "utmQ")]
        # As above: a damaged archive raises zlib's, zipfile's or NumPy's own.
        except Exception as error:
            raise ValueError(
                f"{file} can't be read ({error!r:.80}), but should hold utmDb and utmQ. Download it again."
            ) from error
        splits = []
        for names_file, positions in zip((index, query), metres, strict=True):
            names = [line.strip().removeprefix("./") for line in names_file.read_text().splitlines() if line.strip()]
            splits.append(read_listed_split(folder, names, positions, self.zone, str(file)))
        return Reading(*splits)

    def tree(self) -> str:
        return "\n".join([*self._names(), "and the photos, at the paths that the lists name"])


def read_listed_split(root: Path, names: Sequence[str], metres: np.ndarray, zone: int, source: str) -> Split:
    """Photos in the order of a list, at given UTM positions.

    Args:
        names: paths below `root`.
        metres: (photos, 2) easting and northing.
        zone: UTM zone on the northern hemisphere; 0 where both columns hold the number of the frame instead.
        source: the file they come from, for errors.

    Raises: ValueError if there isn't one position a name, or a name leads out of the root.
    """
    if len(names) != len(metres):
        raise ValueError(
            f"{source} has positions of {len(metres)} photos, but {len(names)} names are listed. "
            "Use lists and positions of one release."
        )
    check_inside(names, source)
    easting, northing = metres.T
    rows = len(names)
    longitude, latitude = np.full(rows, np.nan), np.full(rows, np.nan)
    if zone:
        longitude, latitude = Proj(proj="utm", zone=zone, ellps="WGS84")(easting, northing, inverse=True)
    zones, south = np.full(rows, zone, np.int16), np.zeros(rows, bool)
    positions = Positions(latitude, longitude, easting, northing, zones, south)
    photos = PhotoFolder.of(root, [root / name for name in names], positions)
    return Split(photos, None if zone else northing.astype(np.int64))
