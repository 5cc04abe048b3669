"""Makes a town that exists nowhere and writes photos of it, for demos, tests and training runs without real photos."""

import io
import json
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational
from pyproj import Transformer
from tqdm import tqdm

from ..files import replace_file
from ..photos.names import UtmName
from .facades import read_facades
from .plan import Street, lay_out_street
from .scene import render
from .shots import Shots, plan_database, plan_easy_queries, plan_queries, plan_training_shots

LAYOUTS = ("utm", "gsv", "plain")
CITY = "MadeTown"
# The town's first crossing lies in the open sea of the Gulf of Guinea, on the middle meridian of its zone.
UTM_ZONE, UTM_EPSG = 31, 32631
ORIGIN_EAST_M, ORIGIN_NORTH_M = 500_000.0, 200_000.0
RECORD = "made_town.json"  # names the files of a finished or begun town, so that it alone is ever replaced
JPEG_QUALITY = 90
HOURS = {"day": (10, 15), "dusk": (18, 19), "night": (21, 23), "fog": (7, 10), "rain": (9, 16), "snow": (9, 15)}


@dataclass(frozen=True)
class Town:
    """A town on disk.

    Attributes:
        root: folder of the whole town.
        database, queries, queries_easy: folders of photos; None in GSV-Cities' layout, which has no such parts, and
            for queries that were not asked for.
        conditions: file name -> "day", "dusk", "night", "fog", "rain" or "snow".
    """

    root: Path
    database: Path | None
    queries: Path | None
    queries_easy: Path | None
    conditions: dict[str, str] = field(repr=False)


def make_town(
    folder: str | Path,
    places: int = 40,
    views: int = 4,
    seed: int = 0,
    layout: str = "utm",
    *,
    queries: int | None = None,
    easy_queries: int | None = None,
    height: int = 240,
    width: int = 320,
    moved: bool = False,
    seasons: bool = False,
    alike: float = 0.0,
    landmarks: bool = False,
    facades: str | Path | None = None,
    facades_exclude: Collection[str] = (),
    device: str | torch.device = "cpu",
    batch_size: int = 1,
    progress: bool = False,
) -> Town:
    """A made-up town of streets, photographed and written as JPEG files with GPS positions.

    Places are 60 m apart or more and photos of one place less than 20 m, so "within 25 m" means the same place. The
    database is taken by day with `views` headings around each place. Queries stand elsewhere, look up to 18 degrees
    to the side of a database photo, have other cars and another hour, and at least half are taken by night, in fog,
    rain or snow. Easy queries are by day, without cars, within 1 m and 5 degrees of a database photo.

    Args:
        folder: where the town goes; new, empty, or written by an earlier call, which is then replaced.
        places: number of places.
        views: database photos of each place; in GSV-Cities' layout all photos of a place, in one direction.
        seed: the same seed and arguments give the same pixels on the same device and version of torch.
        layout: "utm" (folder/images/test/{database,queries,queries_easy}/@utm_east@utm_north@...@.jpg), "gsv"
            (GSV-Cities: folder/Images/CITY/*.jpg and folder/Dataframes/CITY.csv) or "plain"
            (folder/{database,queries,queries_easy}/*.jpg, positions in EXIF alone).
        queries: number of queries, default two a place and at least 100; none in GSV-Cities' layout.
        easy_queries: number of easy queries, default one a place; none in GSV-Cities' layout.
        height, width: of the photos, in pixels.
        moved: take queries up to 18 m along the street from their place, at zooms from 0.6 to 1.6; in GSV-Cities'
            layout all photos, which look at one house front from up to 20 m along the street to either side.
        seasons: snow that lies, bare and brown trees, and wet roads, in queries and in GSV-Cities' layout.
        alike: share of houses, 0 to 1, that look like the one beside them but for details.
        landmarks: some houses are towers, each of a colour of its own.
        facades: folder of photos of facades, seen from the front, that most houses have for fronts.
        facades_exclude: file names of photos there that aren't used, such as those to validate with.
        device: where the photos are drawn; on the CPU by as many workers as `torch.get_num_threads()`.
        batch_size: photos drawn at a time; more than one pays on an accelerator.
        progress: show a bar on stderr.

    Raises: ValueError for an argument out of range; FileExistsError if the folder holds anything else than a made town.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"make_town: layout is {layout!r}; known are {list(LAYOUTS)}. Give one of them.")
    if layout == "gsv" and (queries or easy_queries):
        raise ValueError(
            f"make_town: queries={queries}, easy_queries={easy_queries} with layout='gsv', which has no queries: all "
            "photos of a place stand together there. Leave them out, or use layout='utm' or 'plain'."
        )
    for name, value, low in (
        ("places", places, 1), ("views", views, 1), ("queries", 0 if queries is None else queries, 0),
        ("easy_queries", 0 if easy_queries is None else easy_queries, 0), ("height", height, 16), ("width", width, 16),
        ("batch_size", batch_size, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"make_town: {name} is {value!r}, but must be an integer of at least {low}.")
    if not 0 <= alike <= 1:
        raise ValueError(f"make_town: alike is {alike!r}, but must be a share from 0 to 1.")
    photos = None if facades is None else read_facades(facades, facades_exclude)
    root = Path(folder)
    _clear_earlier_town(root)

    street = lay_out_street(places, seed, alike=alike, landmarks=landmarks, facades=photos)
    changes = {"moved": moved, "seasons": seasons}
    random = torch.Generator().manual_seed(seed + 1)
    if layout == "gsv":
        shots = plan_training_shots(street, views, random, **changes)
    else:
        shots = database = plan_database(street.places, views, random)
        if count := max(2 * places, 100) if queries is None else queries:
            shots = Shots.join([shots, plan_queries(street.places, database, count, random, **changes)])
        if count := places if easy_queries is None else easy_queries:
            shots = Shots.join([shots, plan_easy_queries(database, count, random)])
    files, table = _name_files(shots, layout, random)

    settings = {"places": places, "views": views, "seed": seed, "layout": layout, "height": height, "width": width}
    changes |= {"alike": alike, "landmarks": landmarks, "facades": None if facades is None else str(facades)}
    changes["facades_exclude"] = sorted(facades_exclude)
    settings |= {name: value for name, value in changes.items() if value}
    record = {"made_by": "d2vpr_hf.make_town", **settings, "files": [*files, *table]}
    # First, so that a town that is broken off can be replaced too.
    replace_file(root / RECORD, json.dumps(record, indent=1))
    with tqdm(total=len(files), desc="drawing the town", unit="photo", disable=not progress) as bar:
        for count in _draw(root, street.to(device), shots, files, batch_size, {"height": height, "width": width}):
            bar.update(count)
    for name, text in table.items():
        replace_file(root / name, text)
    parts = {} if layout == "gsv" else {part: root / _part_folder(layout, part) for part in set(shots.part)}
    conditions = dict(zip([Path(name).name for name in files], shots.conditions, strict=True))
    return Town(root, parts.get("database"), parts.get("queries"), parts.get("queries_easy"), conditions)


def _draw(
    root: Path, street: Street, shots: Shots, files: dict[str, Image.Exif], batch_size: int, size: dict[str, int]
) -> Iterator[int]:
    """Draws and writes all photos; on the CPU with as many workers as torch has threads, each on one thread.

    A photo is thousands of short steps. Threads that meet after each of them wait for the slowest every time, and on a
    busy machine that takes many times as long as a photo a worker. The pixels don't depend on the number either.
    """
    device, names = street.walls.device, list(files)

    def draw(start: int) -> int:
        rows = slice(start, start + batch_size)
        cameras, weather = shots.cameras[rows].to(device), shots.weather[rows].to(device)
        photos = render(street, cameras, weather, **size).cpu().numpy()
        for name, photo in zip(names[rows], photos, strict=True):
            content = io.BytesIO()
            Image.fromarray(photo).save(content, "JPEG", quality=JPEG_QUALITY, exif=files[name])
            replace_file(root / name, content.getvalue())
        return len(photos)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    workers = threads if device.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(draw, range(0, len(names), batch_size))
    finally:
        pool.shutdown(cancel_futures=True)  # an interruption doesn't wait for the whole town
        torch.set_num_threads(threads)


def _clear_earlier_town(root: Path) -> None:
    """Removes what an earlier call wrote into `root`; anything else there is an error."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    what = "is a file" if not root.is_dir() else f"holds {min(path.name for path in root.iterdir())!r}"
    try:
        names = json.loads((root / RECORD).read_bytes())["files"]
        if outside := [name for name in names if ".." in Path(name).parts or Path(name).is_absolute()]:
            raise ValueError(f"{RECORD} names {outside[0]!r}, outside its folder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{root} {what}, but make_town needs a folder that is new or empty, or holds a town of its own, whose "
            f"files its {RECORD} lists ({error}). Give another folder, or empty this one."
        ) from error
    for name in names:
        (root / name).unlink(missing_ok=True)


def _part_folder(layout: str, part: str) -> Path:
    return {"utm": Path("images/test") / part, "gsv": Path("Images") / CITY, "plain": Path(part)}[layout]


def _name_files(shots: Shots, layout: str, random: torch.Generator) -> tuple[dict[str, Image.Exif], dict[str, str]]:
    """{file name from the root: EXIF} in the order of the shots, and {name: text} of the tables."""
    easting = (shots.cameras.east.double() + ORIGIN_EAST_M).tolist()
    northing = (shots.cameras.north.double() + ORIGIN_NORTH_M).tolist()
    to_degrees = Transformer.from_crs(UTM_EPSG, 4326, always_xy=True)
    longitudes, latitudes = to_degrees.transform(easting, northing)
    tokens = torch.randint(16, (len(easting), 22), generator=random).tolist()
    moments = torch.rand(len(easting), 4, generator=random).tolist()
    files, rows = {}, ["place_id,year,month,northdeg,city_id,lat,lon,panoid"]
    seen: dict[str, int] = {}
    for i, (part, place, condition) in enumerate(zip(shots.part, shots.place, shots.conditions, strict=True)):
        heading = shots.cameras.heading_deg[i].item()
        latitude, longitude = round(latitudes[i], 7), round(longitudes[i], 7)
        pano = "".join(f"{digit:x}" for digit in tokens[i])
        year = 2023 if part == "database" and layout != "gsv" else 2024
        first, last = HOURS[condition]
        month = 1 + 2 * int(moments[i][0] * 2) if condition == "snow" else 1 + int(moments[i][0] * 12)
        day, hour = 1 + int(moments[i][1] * 28), first + int(moments[i][2] * (last - first + 1))
        minute = int(moments[i][3] * 60)
        turn = round(heading) % 360
        number = seen[part] = seen.get(part, -1) + 1
        if layout == "utm":
            name = UtmName.of_place(
                easting[i], northing[i], UTM_ZONE, latitude, longitude,
                panorama=pano, heading=f"{turn:03d}", pitch=f"{round(shots.cameras.pitch_deg[i].item()):03d}",
                time=f"{year:04d}{month:02d}{day:02d}_{hour:02d}{minute:02d}00", note=condition,
            )  # fmt: skip
        elif layout == "gsv":
            name = f"{CITY}_{place:07d}_{year:04d}_{month:02d}_{turn:03d}_{latitude}_{longitude}_{pano}.jpg"
            rows.append(f"{place},{year},{month},{turn},{CITY},{latitude},{longitude},{pano}")
        else:
            name = f"{part}_{number:05d}.jpg"
        moment = f"{year:04d}:{month:02d}:{day:02d} {hour:02d}:{minute:02d}:00"
        files[(_part_folder(layout, part) / str(name)).as_posix()] = _exif(latitude, longitude, heading, moment)
    return files, {f"Dataframes/{CITY}.csv": "\n".join(rows) + "\n"} if layout == "gsv" else {}


def _exif(latitude: float, longitude: float, heading_deg: float, moment: str) -> Image.Exif:
    def sexagesimal(degrees: float) -> tuple[IFDRational, IFDRational, IFDRational]:
        parts = round(abs(degrees) * 3600 * 10_000)  # ten-thousandths of a second, 3 mm
        minutes, seconds = divmod(parts, 60 * 10_000)
        return IFDRational(minutes // 60, 1), IFDRational(minutes % 60, 1), IFDRational(seconds, 10_000)

    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "d2vpr_hf make_town"
    exif[ExifTags.Base.DateTime] = moment
    tags = ExifTags.GPS
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {
            tags.GPSVersionID: b"\x02\x03\x00\x00",
            tags.GPSLatitudeRef: "N" if latitude >= 0 else "S",
            tags.GPSLatitude: sexagesimal(latitude),
            tags.GPSLongitudeRef: "E" if longitude >= 0 else "W",
            tags.GPSLongitude: sexagesimal(longitude),
            tags.GPSImgDirectionRef: "T",
            tags.GPSImgDirection: IFDRational(round(heading_deg * 100) % 36_000, 100),
            tags.GPSMapDatum: "WGS-84",
        }
    )
    return exif
