"""Where photos were taken: WGS84 degrees and UTM metres, read from names, EXIF or a table, and who is near whom."""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from pyproj import Geod, Proj, Transformer
from scipy.spatial import cKDTree

from ..files import name_key, path_to_text
from ..messages import first_few
from .images import read_exif
from .names import UtmName
from .tables import read_table

logger = logging.getLogger(__name__)

# A zone is 6 degrees wide. Twice that on either side is far beyond any radius, and projections still hold there.
_WINDOW_DEGREES = 12
# Beyond it the standard has no UTM zones.
_POLAR_DEGREES = 84
# A name whose metres and degrees are further apart is wrong in one of them; rounding makes a metre.
_DOUBTFUL_M = 5000


@dataclass(frozen=True, eq=False)
class Positions:
    """Where each of a list of photos was taken.

    Attributes:
        latitude, longitude: (rows,) float64 degrees, WGS84, north and east positive; NaN where unknown.
        easting, northing: (rows,) float64 metres in the row's UTM zone; NaN where unknown.
        zone: (rows,) int16, 1 to 60, or 0 where unknown. Zone 0 with an easting is a mock position, as
            sets made from videos have: metres along the track, without degrees.
        south: (rows,) bool, True on the southern hemisphere, whose northings start at 10,000,000 on the equator.
    """

    latitude: np.ndarray
    longitude: np.ndarray
    easting: np.ndarray
    northing: np.ndarray
    zone: np.ndarray
    south: np.ndarray

    def __post_init__(self) -> None:
        lengths = {field.name: np.shape(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) != 1 or len(lengths["zone"]) != 1:
            raise ValueError(f"Positions needs six arrays of one length, one entry a photo, but got shapes {lengths}.")

    def __len__(self) -> int:
        return len(self.zone)

    def __getitem__(self, rows: slice | Sequence[int] | np.ndarray) -> "Positions":
        """The positions of some rows, as a slice, row numbers or a mask."""
        return Positions(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def known(self) -> np.ndarray:
        """(rows,) bool: whether the row has a position in metres, true or mock."""
        return ~np.isnan(self.easting)

    @classmethod
    def unknown(cls, count: int) -> "Positions":
        """Positions of `count` photos of which nothing is known."""
        return cls(*(np.full(count, np.nan) for _ in range(4)), np.zeros(count, np.int16), np.zeros(count, bool))

    @classmethod
    def concatenate(cls, parts: Sequence["Positions"]) -> "Positions":
        """All rows of several positions, in order."""
        parts = [*parts, cls.unknown(0)]
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def from_degrees(cls, latitude: Sequence[float], longitude: Sequence[float]) -> "Positions":
        """Positions from WGS84 degrees; NaN means unknown.

        Longitudes up to 360 are taken and come back within -180 to 180. Zones are those of the UTM standard,
        with its exceptions in Norway and on Svalbard.

        Raises: ValueError naming the first row outside of -90 to 90 and -180 to 360 degrees.
        """
        latitude, longitude = np.asarray(latitude, np.float64), np.asarray(longitude, np.float64)
        if bad := _rows_out_of_range(latitude, longitude):
            row = bad[0]
            raise ValueError(
                f"row {row} has latitude {latitude[row]} and longitude {longitude[row]}, but latitudes lie within "
                "-90 and 90 degrees and longitudes within -180 and 360. Check that the two aren't swapped."
            )
        missing = np.isnan(latitude) | np.isnan(longitude)
        latitude = np.where(missing, np.nan, latitude)
        longitude = np.where(missing, np.nan, _wrapped(longitude))
        zone, south = _utm_zone(latitude, longitude), latitude < 0
        return cls(latitude, longitude, *_utm(longitude, latitude, zone, south), zone, south)

    @classmethod
    def from_names(cls, paths: Sequence[str | Path]) -> "Positions":
        """Positions from the field's file names, `@easting@northing@zone@letter@latitude@longitude@...@.jpg`.

        Only the base name is read. Metres stay as written. Degrees are computed from them where the zone is
        given, since names round degrees to about a metre; blank zones give mock positions. A name of another
        form, or with other than numbers where numbers belong, is unknown, and so are degrees of exactly 0, 0. Metres
        that no zone has are left out and logged. Of the two hemispheres the one counts that the name's own degrees
        agree with, whatever its letter; where neither does, the name is unknown and logged.
        """
        named, apart_m, impossible = _read_names(paths)
        if len(impossible):
            logger.warning(
                "%d names have metres or a band letter that can't be right, such as %r: their metres count as unknown. "
                "Expected an easting from 0 to 1,000,000, a northing from 0 to 10,000,000 and a letter from C to X.",
                len(impossible), path_to_text(paths[impossible[0]]),
            )  # fmt: skip
        doubtful = np.flatnonzero(apart_m > _DOUBTFUL_M)
        if len(doubtful):
            logger.warning(
                "%d names have metres and degrees more than %d km apart, such as %r: their places count as unknown.",
                len(doubtful), _DOUBTFUL_M / 1000, path_to_text(paths[doubtful[0]]),
            )  # fmt: skip
        return named._with_rows(doubtful, cls.unknown(len(doubtful)))

    @classmethod
    def from_photos(cls, paths: Sequence[str | Path]) -> "Positions":
        """Positions from each photo's name if it is of the field's form, else from its EXIF GPS.

        EXIF without a hemisphere, with a division by zero, or at exactly 0 N 0 E (what cameras write before
        they know) is unknown.
        """
        named = cls.from_names(paths)
        others = np.flatnonzero(~named.known)
        with ThreadPoolExecutor() as pool:
            exif = list(pool.map(lambda row: read_exif(paths[row]), others))
        latitude, longitude = np.array([(each.latitude, each.longitude) for each in exif]).reshape(-1, 2).T
        return named._with_rows(others, cls.from_degrees(latitude, longitude))

    @classmethod
    def from_table(cls, table: str | Path, paths: Sequence[str | Path]) -> "Positions":
        """Positions from a CSV or Parquet file with the columns path, lat and lon (degrees, WGS84).

        A photo's row has its path as given here or, failing that, the end of it, such as the base name, or a longer
        path that ends with it. A row that fits several photos in this way is given to none. Photos without a row, and
        those at exactly 0, 0, are unknown, and rows without a photo are left out; all of it is logged as a warning.

        Raises: ValueError naming the row if degrees aren't numbers or out of range, or a path appears twice or is
            no text; naming the columns if one is missing; naming the photo if several rows fit it.
        """
        wanted, latitude, longitude = _read_table(Path(table))
        photos = [name_key(path_to_text(path)) for path in paths]
        rows, unclear = _matching_rows(wanted, photos, str(table))
        nowhere = (latitude == 0) & (longitude == 0)
        latitude, longitude = np.where(nowhere, np.nan, latitude), np.where(nowhere, np.nan, longitude)
        unused = np.setdiff1d(np.setdiff1d(np.arange(len(wanted)), rows), unclear)
        without = np.flatnonzero(rows < 0)
        for number, what, example in (
            (unused, "rows match no photo", wanted),
            (unclear, "rows fit several photos and are given to none", wanted),
            (np.flatnonzero(nowhere), "rows are at 0, 0, which counts as unknown", wanted),
            (without, "photos have no row and so no position", photos),
        ):
            if len(number):
                logger.warning("%s: %d %s, such as %r.", table, len(number), what, example[number[0]])
        found = np.flatnonzero(rows >= 0)
        return cls.unknown(len(paths))._with_rows(found, cls.from_degrees(latitude, longitude)[rows[found]])

    def _with_rows(self, rows: np.ndarray, others: "Positions") -> "Positions":
        """These positions, with some rows taken from others."""
        columns = [getattr(self, field.name).copy() for field in fields(self)]
        for column, field in zip(columns, fields(self), strict=True):
            column[rows] = getattr(others, field.name)
        return Positions(*columns)


def positives_within(database: Positions, queries: Positions, radius_m: float = 25.0) -> list[np.ndarray]:
    """For each query, the database rows within `radius_m` metres, the radius itself included.

    Distances are plain distances in UTM, as the field measures them. A database photo of another zone or
    hemisphere than the query's is projected into the query's zone first, so that borders don't matter. Mock
    positions are compared with mock positions only. Whoever has no position is near nobody.

    Returns: for each query an int64 array of database rows, ascending.
    Raises: ValueError if the radius is negative or no number.
    """
    if not radius_m >= 0:
        raise ValueError(f"radius_m is {radius_m}, but must be a distance in metres, 0 or more, such as 25.")
    positives = [np.empty(0, np.int64) for _ in range(len(queries))]
    group = queries.zone.astype(np.int64) * 2 + queries.south
    # Zones meet at the poles, and beyond their last parallels UTM isn't meant to be used.
    polar = queries.known & (np.abs(queries.latitude) > _POLAR_DEGREES)
    _find_near_poles(positives, database, queries, np.flatnonzero(polar), radius_m)
    for key in np.unique(group[queries.known & ~polar]):
        zone, south = divmod(int(key), 2)
        asking = np.flatnonzero(queries.known & ~polar & (group == key))
        rows, points = points_in_zone(database, zone, bool(south))
        if not len(rows):
            continue
        near = cKDTree(points).query_ball_point(
            np.column_stack([queries.easting[asking], queries.northing[asking]]), radius_m, return_sorted=True
        )
        for query, found in zip(asking, near, strict=True):
            positives[query] = rows[np.asarray(found, np.int64)]
    return positives


def _find_near_poles(
    positives: list[np.ndarray], database: Positions, queries: Positions, asking: np.ndarray, radius_m: float
) -> None:
    """Fills in the positives of queries near a pole, by straight lines through space, which know no border."""
    rows = np.flatnonzero(database.known & (np.abs(database.latitude) > _POLAR_DEGREES - 1))
    if not len(asking) or not len(rows):
        return
    to_space = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    points = [
        np.column_stack(to_space.transform(each.longitude[chosen], each.latitude[chosen], np.zeros(len(chosen))))
        for each, chosen in ((database, rows), (queries, asking))
    ]
    near = cKDTree(points[0]).query_ball_point(points[1], radius_m, return_sorted=True)
    for query, found in zip(asking, near, strict=True):
        positives[query] = rows[np.asarray(found, np.int64)]


def distances_m(
    latitude_a: np.ndarray, longitude_a: np.ndarray, latitude_b: np.ndarray, longitude_b: np.ndarray
) -> np.ndarray:
    """Distances in metres along the WGS84 ellipsoid, element by element; NaN where a degree is NaN.

    The four broadcast. UTM's metres, which `positives_within` compares, differ from these by up to 0.1 %.
    """
    degrees = np.broadcast_arrays(longitude_a, latitude_a, longitude_b, latitude_b)
    degrees = [np.array(each, np.float64) for each in degrees]
    missing = np.isnan(degrees).any(axis=0)
    distance = np.asarray(Geod(ellps="WGS84").inv(*(np.where(missing, 0.0, each) for each in degrees))[2])
    return np.where(missing, np.nan, distance)


def points_in_zone(positions: Positions, zone: int, south: bool) -> tuple[np.ndarray, np.ndarray]:
    """The rows that can be near something in a zone, ascending, and their (rows, 2) easting and northing there."""
    same = positions.known & (positions.zone == zone) & (positions.south == south)
    if zone == 0:
        rows = np.flatnonzero(positions.known & (positions.zone == 0))
        return rows, np.column_stack([positions.easting[rows], positions.northing[rows]])
    meridian = zone * 6 - 183
    off = np.abs(_wrapped(positions.longitude - meridian))
    rows = np.flatnonzero(same | (positions.known & (positions.zone > 0) & (off <= _WINDOW_DEGREES)))
    others = np.where(same[rows], 0, zone)
    easting, northing = _utm(positions.longitude[rows], positions.latitude[rows], others, np.full(len(rows), south))
    # Rows of the zone itself keep the metres they came with: names round them, and published results compare those.
    easting = np.where(same[rows], positions.easting[rows], easting)
    northing = np.where(same[rows], positions.northing[rows], northing)
    return rows, np.column_stack([easting, northing])


def _wrapped(longitude: np.ndarray) -> np.ndarray:
    return (longitude + 180) % 360 - 180


def _rows_out_of_range(latitude: np.ndarray, longitude: np.ndarray) -> list[int]:
    bad = (np.abs(latitude) > 90) | (longitude < -180) | (longitude > 360)
    return np.flatnonzero(bad).tolist()


def _utm_zone(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """(rows,) int16 zone by the UTM standard; 0 where a degree is NaN."""
    zone = np.floor((np.nan_to_num(longitude) + 180) / 6).astype(np.int16) % 60 + 1
    norway = (latitude >= 56) & (latitude < 64) & (longitude >= 3) & (longitude < 12)
    zone[norway] = 32
    svalbard = (latitude >= 72) & (longitude >= 0) & (longitude < 42)
    borders = np.searchsorted([9, 21, 33], longitude[svalbard], side="right")
    zone[svalbard] = np.array([31, 33, 35, 37])[borders]
    zone[np.isnan(latitude) | np.isnan(longitude)] = 0
    return zone


def _utm(
    x: np.ndarray, y: np.ndarray, zone: np.ndarray, south: np.ndarray, *, inverse: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude to easting and northing in each row's zone, or back; NaN where the zone is 0."""
    first, second = np.full(len(zone), np.nan), np.full(len(zone), np.nan)
    for number, below in {*zip(zone.tolist(), south.tolist(), strict=True)}:
        if number > 0:
            rows = (zone == number) & (south == below)
            utm = Proj(proj="utm", zone=number, south=below, ellps="WGS84")
            first[rows], second[rows] = utm(x[rows], y[rows], inverse=inverse)
    return first, second


def apart_in_names_m(paths: Sequence[str | Path]) -> np.ndarray:
    """(rows,) metres between the two places that a name holds, by metres and by degrees; NaN where one is missing."""
    return _read_names(paths)[1]


def _read_names(paths: Sequence[str | Path]) -> tuple[Positions, np.ndarray, np.ndarray]:
    """The places that names hold, how far those by metres and by degrees are apart, and rows of impossible metres."""
    parsed = np.array([_of_name(path) for path in paths], np.float64).reshape(-1, 7)
    easting, northing, zone, south, latitude, longitude, impossible = parsed.T
    zone, south = zone.astype(np.int16), south.astype(bool)
    exact, apart_m = [], []
    for below in (south, ~south):
        degrees = _utm(easting, northing, zone, below, inverse=True)
        exact.append(degrees)
        apart_m.append(distances_m(latitude, longitude, degrees[1], degrees[0]))
    # Some write the hemisphere's letter in place of the band's.
    other = (apart_m[0] > _DOUBTFUL_M) & (apart_m[1] <= _DOUBTFUL_M)
    south = south ^ other
    exact_longitude, exact_latitude = (np.where(other, exact[1][axis], exact[0][axis]) for axis in (0, 1))
    named = Positions(
        np.where(zone > 0, exact_latitude, latitude),
        np.where(zone > 0, exact_longitude, longitude),
        easting, northing, zone, south,
    )  # fmt: skip
    only = np.flatnonzero(np.isnan(easting) & ~np.isnan(latitude) & ~np.isnan(longitude))
    named = named._with_rows(only, Positions.from_degrees(latitude[only], longitude[only]))
    return named, np.where(other, apart_m[1], apart_m[0]), np.flatnonzero(impossible)


def _matching_rows(wanted: Sequence[str], photos: Sequence[str], table: str) -> tuple[np.ndarray, np.ndarray]:
    """(photos,) each one's row of a table, -1 for none; and the rows that fit several photos.

    Raises: ValueError if several rows fit a photo.
    """
    keys = [name_key(path) for path in wanted]
    row_of = {path: row for row, path in enumerate(keys)}
    rows = np.array([row_of.get(path, -1) for path in photos], np.int64)
    taken = set(rows.tolist())
    of_base = defaultdict(list)
    for row, path in enumerate(keys):
        if row not in taken:
            of_base[path.rpartition("/")[2]].append(row)
    fitting = defaultdict(list)
    for photo in np.flatnonzero(rows < 0).tolist():
        name, base = photos[photo], photos[photo].rpartition("/")[2]
        ends = [row for row in of_base[base] if f"/{name}".endswith(f"/{keys[row]}") or keys[row].endswith(f"/{name}")]
        if len(ends) > 1:
            raise ValueError(
                f"{table} has {len(ends)} rows named {base!r}, and none with the path {name!r}. "
                "Write paths relative to the folder of photos."
            )
        for row in ends:
            fitting[row].append(photo)
    for row, fits in fitting.items():
        if len(fits) == 1:
            rows[fits[0]] = row
    return rows, np.array([row for row, fits in fitting.items() if len(fits) > 1], np.int64)


def _of_name(path: str | os.PathLike) -> tuple[float, float, int, bool, float, float, bool]:
    """Easting, northing, zone, south, latitude and longitude as a base name has them, NaN, 0 and False for blanks;
    and whether its metres are impossible."""
    name = UtmName.read(path) or UtmName()
    zone, latitude, longitude = (name.number(field) for field in ("zone", "latitude", "longitude"))
    south = name.letter.upper() < "N" if name.letter else latitude < 0
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or (latitude == 0 and longitude == 0):
        latitude = longitude = np.nan
    metres = name.metres
    if metres is None or np.isnan(metres[0]):
        return np.nan, np.nan, 0, False, latitude, longitude, metres is None
    if zone not in range(1, 61):
        return *metres, 0, False, latitude, longitude, False
    return *metres, int(zone), south, latitude, longitude, False


def _read_table(table: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The paths, latitudes and longitudes of a CSV or Parquet table."""
    import pandas as pd  # loaded where it is used: importing this package leaves pandas alone

    is_parquet = table.suffix.lower() == ".parquet"
    frame = read_table(table, dtype={"path": str})
    if missing := [name for name in ("path", "lat", "lon") if name not in frame.columns]:
        raise ValueError(
            f"{table} lacks {', '.join(missing)}; its columns are {first_few([str(name)[:40] for name in frame], 8)}. "
            "It needs path, lat and lon (degrees, WGS84); rename or add them."
        )
    # As people count lines in a CSV: the header is line 1.
    label = "row {}" if is_parquet else "line {}"
    first = 0 if is_parquet else 2
    degrees = frame[["lat", "lon"]].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    not_numbers = np.flatnonzero((np.isnan(degrees) & frame[["lat", "lon"]].notna().to_numpy()).any(axis=1))
    not_text = np.flatnonzero(~frame["path"].map(lambda path: isinstance(path, str)).to_numpy(bool))
    for bad, complaint in (
        (not_text, "has no path"),
        (not_numbers, "has a lat or lon that is not a number"),
        (_rows_out_of_range(*degrees.T), "has a lat outside of -90 to 90 or a lon outside of -180 to 360"),
    ):
        if len(bad):
            found = frame.loc[frame.index[bad[0]], ["path", "lat", "lon"]].to_dict()
            raise ValueError(f"{table}, {label.format(bad[0] + first)} {complaint}: {found}. Correct or remove it.")
    paths = [Path(path).as_posix() for path in frame["path"]]
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise ValueError(f"{table} has {len(twice)} paths more than once, such as {twice[0]!r}. Keep one row for each.")
    return paths, degrees[:, 0], degrees[:, 1]
