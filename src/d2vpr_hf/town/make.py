"""Makes a town that exists nowhere and writes photos of it, for demos, tests and training runs without real photos."""

import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational
from pyproj import Transformer
from torch import Tensor
from tqdm import tqdm

from .plan import Street, lay_out_street
from .rays import Cameras
from .scene import render
from .weather import CONDITIONS, Weather, draw_weather

LAYOUTS = ("utm", "gsv", "plain")
CITY = "MadeTown"
# The town's first crossing lies in the open sea of the Gulf of Guinea, on the middle meridian of its zone.
UTM_ZONE, UTM_LETTER, UTM_EPSG = 31, "N", 32631
ORIGIN_EAST_M, ORIGIN_NORTH_M = 500_000.0, 200_000.0
RECORD = "made_town.json"  # names the files of a finished or begun town, so that it alone is ever replaced
JPEG_QUALITY = 90
HARD_CONDITIONS = ("night", "fog", "rain", "snow")
HOURS = {"day": (10, 15), "dusk": (18, 19), "night": (21, 23), "fog": (7, 10), "rain": (9, 16), "snow": (9, 15)}
# Along and across the street, from the place's middle.
DATABASE_REACH_M, QUERY_REACH_M, TRAINING_REACH_M = (3.0, 1.2), (3.5, 1.6), (5.0, 2.0)
QUERY_TURN_DEG = (4.0, 18.0)
NEAR_SHARE, NEAR_M, NEAR_TURN_DEG = 0.33, (0.6, 1.6), (1.0, 5.0)
EASY_RADIUS_M, EASY_TURN_DEG = 0.6, 2.5


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


@dataclass
class _Shots:
    """Photos to take, one entry each: part of the town, place, camera and condition."""

    part: list[str]
    place: list[int]
    cameras: Cameras
    weather: Weather
    conditions: list[str]

    @staticmethod
    def join(shots: list["_Shots"]) -> "_Shots":
        def join_tensors(parts: list) -> object:
            kind = type(parts[0])
            return kind(*(torch.cat([getattr(part, name) for part in parts]) for name in kind.__dataclass_fields__))

        return _Shots(
            [part for shot in shots for part in shot.part],
            [place for shot in shots for place in shot.place],
            join_tensors([shot.cameras for shot in shots]),
            join_tensors([shot.weather for shot in shots]),
            [name for shot in shots for name in shot.conditions],
        )


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
        device: where the photos are drawn; on the CPU by as many workers as `torch.get_num_threads()`.
        batch_size: photos drawn at a time; more than one pays on an accelerator.
        progress: show a bar on stderr.

    Raises: ValueError for an argument out of range; FileExistsError if the folder holds anything else than a made town.
    """
    for name, value, low in (
        ("places", places, 1), ("views", views, 1), ("queries", queries, 0), ("easy_queries", easy_queries, 0),
        ("height", height, 16), ("width", width, 16), ("batch_size", batch_size, 1),
    ):  # fmt: skip
        optional = name in ("queries", "easy_queries")
        if not (optional and value is None) and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ValueError(f"make_town: {name} is {value!r}, but must be a whole number of at least {low}. Give one.")
    if layout not in LAYOUTS:
        raise ValueError(f"make_town: layout is {layout!r}; known are {list(LAYOUTS)}. Give one of them.")
    if layout == "gsv" and (queries or easy_queries):
        raise ValueError(
            f"make_town: queries={queries}, easy_queries={easy_queries} with layout='gsv', which has no queries: all "
            "photos of a place stand together there. Leave them out, or use layout='utm' or 'plain'."
        )
    root = Path(folder)
    _clear_earlier_town(root)

    street = lay_out_street(places, seed)
    random = torch.Generator().manual_seed(seed + 1)
    if layout == "gsv":
        shots = _plan_training_shots(street.places, views, random)
    else:
        database = _plan_database(street.places, views, random)
        shots = [database]
        count = max(2 * places, 100) if queries is None else queries
        if count:
            shots.append(_plan_queries(street.places, database, count, random))
        count = places if easy_queries is None else easy_queries
        if count:
            shots.append(_plan_easy_queries(database, count, random))
        shots = _Shots.join(shots)
    files, table = _name_files(shots, layout, random)
    conditions = {Path(name).name: condition for name, (condition, _) in files.items()}

    root.mkdir(parents=True, exist_ok=True)
    settings = {"places": places, "views": views, "seed": seed, "layout": layout, "height": height, "width": width}
    record = {"made_by": "d2vpr_hf.make_town", **settings, "files": [*files, *table]}
    # First, so that a town that is broken off can be replaced too.
    _write(root / RECORD, lambda file: file.write(json.dumps(record, indent=1).encode()))
    _draw(root, street.to(device), shots, files, batch_size, height=height, width=width, progress=progress)
    for name, text in table.items():
        _write(root / name, lambda file, text=text: file.write(text.encode()))
    parts = {} if layout == "gsv" else {part: root / _part_folder(layout, part) for part in set(shots.part)}
    return Town(root, parts.get("database"), parts.get("queries"), parts.get("queries_easy"), conditions)


def _draw(
    root: Path,
    street: Street,
    shots: _Shots,
    files: dict[str, tuple[str, Image.Exif]],
    batch_size: int,
    *,
    height: int,
    width: int,
    progress: bool,
) -> None:
    """Draws and writes all photos; on the CPU with as many workers as torch has threads, each on one thread.

    A photo is thousands of short steps. Threads that meet after each of them wait for the slowest every time, and on a
    busy machine that takes many times as long as a photo a worker. The pixels don't depend on the number either.
    """
    device, names = street.walls.device, list(files)

    def draw(start: int) -> int:
        rows = slice(start, start + batch_size)
        cameras, weather = shots.cameras[rows].to(device), shots.weather[rows].to(device)
        photos = render(street, cameras, weather, height=height, width=width).cpu().numpy()
        for name, photo in zip(names[rows], photos, strict=True):
            image, exif = Image.fromarray(photo), files[name][1]
            _write(root / name, lambda file, i=image, e=exif: i.save(file, "JPEG", quality=JPEG_QUALITY, exif=e))
        return len(photos)

    threads = torch.get_num_threads()
    starts = range(0, len(names), batch_size)
    with tqdm(total=len(names), desc="drawing the town", unit="photo", disable=not progress) as bar:
        if device.type != "cpu":
            for start in starts:
                bar.update(draw(start))
            return
        torch.set_num_threads(1)
        pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        try:
            for done in pool.map(draw, starts):
                bar.update(done)
        finally:
            pool.shutdown(cancel_futures=True)  # an interruption doesn't wait for the whole town
            torch.set_num_threads(threads)


def _clear_earlier_town(root: Path) -> None:
    """Removes what an earlier call wrote into `root`; anything else there is an error."""
    if not root.exists():
        return
    if not root.is_dir():
        raise FileExistsError(f"{root} is a file, but make_town needs a folder. Give a folder that is new or empty.")
    found = sorted(path.name for path in root.iterdir())
    if not found:
        return
    if RECORD not in found:
        raise FileExistsError(
            f"{root} holds {found[0]!r}{' and more' if len(found) > 1 else ''}, which make_town did not write, and it "
            "expects a new or empty folder, or a town of its own. Give another folder, or empty this one."
        )
    try:
        names = json.loads((root / RECORD).read_text())["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileExistsError(
            f"{root / RECORD} can't be read ({error}), but should list the files of an earlier town, which alone may "
            "be replaced. Give another folder, or remove this one."
        ) from error
    for name in names:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise FileExistsError(f"{root / RECORD} names {name!r}, outside its folder. Give another folder.")
        (root / name).unlink(missing_ok=True)


def _write(path: Path, fill: Callable) -> None:
    """Fills a file under another name first, so that no half of it is ever seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            fill(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _uniform(count: int, low: float, high: float, random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=random)


def _turn(count: int, low_deg: float, high_deg: float, random: torch.Generator) -> Tensor:
    """Angles of `low_deg` to `high_deg` to either side."""
    side = torch.randint(2, (count,), generator=random) * 2 - 1
    return side * _uniform(count, low_deg, high_deg, random)


def _stand(place: Tensor, along_m: float, across_m: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """East and north of points on the road near (photos, 3) places, along and across its street."""
    along, across = _uniform(len(place), -along_m, along_m, random), _uniform(len(place), -across_m, across_m, random)
    east_west = place[:, 2] == 1
    return place[:, 0] + torch.where(east_west, along, across), place[:, 1] + torch.where(east_west, across, along)


def _plan_database(places: Tensor, views: int, random: torch.Generator) -> _Shots:
    """By day, headings spread evenly around each place."""
    place = torch.arange(len(places)).repeat_interleave(views)
    count = len(place)
    first = _uniform(len(places), 0, 360, random).repeat_interleave(views)
    step = torch.arange(views).repeat(len(places)) * (360 / views)
    heading = (first + step + _turn(count, 0, 60 / views, random)) % 360
    east, north = _stand(places[place], *DATABASE_REACH_M, random)
    cameras = Cameras(
        east,
        north,
        torch.full((count,), 2.4),
        heading,
        _uniform(count, 4, 9, random),
        _turn(count, 0, 1, random),
        torch.full((count,), 75.0),
    )
    conditions = ["day"] * count
    weather = draw_weather(conditions, random, traffic=(0.0, 0.3), steady=True)
    return _Shots(["database"] * count, place.tolist(), cameras, weather, conditions)


def _plan_queries(places: Tensor, database: _Shots, count: int, random: torch.Generator) -> _Shots:
    """Other positions, headings, hours and weather, each overlapping one database photo."""
    seen = _spread_over(database, len(places), count, random)
    place = torch.tensor(database.place)[seen]
    hard = math.ceil(0.55 * count)
    conditions = [HARD_CONDITIONS[i % 4] for i in range(hard)]
    conditions += ["dusk" if i % 4 == 0 else "day" for i in range(count - hard)]
    # A fixed share in every condition is taken close to a database photo, the rest anywhere around the place.
    near = torch.zeros(count, dtype=torch.bool)
    for name in CONDITIONS:
        rows = [i for i, condition in enumerate(conditions) if condition == name]
        near[rows[: round(NEAR_SHARE * len(rows))]] = True
    order = torch.randperm(count, generator=random)
    conditions, near = [conditions[i] for i in order.tolist()], near[order]
    east, north = _stand(places[place], *QUERY_REACH_M, random)
    like = database.cameras[seen]
    away, course = _uniform(count, *NEAR_M, random), _uniform(count, 0, 2 * math.pi, random)
    turn = torch.where(near, _turn(count, *NEAR_TURN_DEG, random), _turn(count, *QUERY_TURN_DEG, random))
    cameras = Cameras(
        torch.where(near, like.east + away * course.sin(), east),
        torch.where(near, like.north + away * course.cos(), north),
        _uniform(count, 1.9, 2.5, random),
        (like.heading_deg + turn) % 360,
        torch.where(near, like.pitch_deg + _turn(count, 0, 1.5, random), _uniform(count, 3, 10, random)),
        torch.where(near, like.roll_deg, _turn(count, 0, 2, random)),
        torch.where(near, like.field_deg, _uniform(count, 68, 78, random)),
    )
    weather = draw_weather(conditions, random, traffic=(0.15, 0.6))
    return _Shots(["queries"] * count, place.tolist(), cameras, weather, conditions)


def _plan_easy_queries(database: _Shots, count: int, random: torch.Generator) -> _Shots:
    """By day, without cars, within 1 m and 5 degrees of a database photo."""
    seen = _spread_over(database, max(database.place) + 1, count, random)
    like = database.cameras[seen]
    away, course = EASY_RADIUS_M * torch.rand(count, generator=random).sqrt(), _uniform(count, 0, 2 * math.pi, random)
    cameras = Cameras(
        like.east + away * course.sin(),
        like.north + away * course.cos(),
        like.height_m,
        (like.heading_deg + _turn(count, 0, EASY_TURN_DEG, random)) % 360,
        like.pitch_deg + _turn(count, 0, 1, random),
        like.roll_deg,
        like.field_deg,
    )
    conditions = ["day"] * count
    weather = replace(database.weather.spread(seen), traffic=torch.zeros(count))  # the same hour
    place = torch.tensor(database.place)[seen].tolist()
    return _Shots(["queries_easy"] * count, place, cameras, weather, conditions)


def _spread_over(database: _Shots, places: int, count: int, random: torch.Generator) -> Tensor:
    """(count,) database rows: places in turn, in random order, and a random view of each."""
    views = len(database.place) // places
    rounds = [torch.randperm(places, generator=random) for _ in range(math.ceil(count / places))]
    return torch.cat(rounds)[:count] * views + torch.randint(views, (count,), generator=random)


def _plan_training_shots(places: Tensor, views: int, random: torch.Generator) -> _Shots:
    """All photos of a place in one direction, at different hours and in different weather."""
    place = torch.arange(len(places)).repeat_interleave(views)
    count = len(place)
    heading = _uniform(len(places), 0, 360, random).repeat_interleave(views)
    order = torch.rand(len(places), len(CONDITIONS), generator=random).argsort(dim=1)
    order = order.repeat(1, math.ceil(views / len(CONDITIONS)))[:, :views].flatten()
    conditions = [CONDITIONS[i] for i in order.tolist()]
    east, north = _stand(places[place], *TRAINING_REACH_M, random)
    cameras = Cameras(
        east,
        north,
        _uniform(count, 1.6, 2.5, random),
        (heading + _turn(count, 0, 14, random)) % 360,
        _uniform(count, 3, 10, random),
        _turn(count, 0, 2, random),
        _uniform(count, 68, 78, random),
    )
    weather = draw_weather(conditions, random, traffic=(0.1, 0.8))
    return _Shots(["database"] * count, place.tolist(), cameras, weather, conditions)


def _part_folder(layout: str, part: str) -> Path:
    return {"utm": Path("images/test") / part, "gsv": Path("Images") / CITY, "plain": Path(part)}[layout]


def _name_files(
    shots: _Shots, layout: str, random: torch.Generator
) -> tuple[dict[str, tuple[str, Image.Exif]], dict[str, str]]:
    """{file name from the root: (condition, EXIF)} in the order of the shots, and {name: text} of the tables."""
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
            fields = (
                _padded(easting[i], 7, 2), _padded(northing[i], 7, 2), f"{UTM_ZONE:02d}", UTM_LETTER,
                _padded(latitude, 3, 5), _padded(longitude, 4, 5), pano, "", f"{turn:03d}",
                f"{round(shots.cameras.pitch_deg[i].item()):03d}", "", "",
                f"{year:04d}{month:02d}{day:02d}_{hour:02d}{minute:02d}00", condition,
            )  # fmt: skip
            name = f"@{'@'.join(fields)}@.jpg"
        elif layout == "gsv":
            name = f"{CITY}_{place:07d}_{year:04d}_{month:02d}_{turn:03d}_{latitude}_{longitude}_{pano}.jpg"
            rows.append(f"{place},{year},{month},{turn},{CITY},{latitude},{longitude},{pano}")
        else:
            name = f"{part}_{number:05d}.jpg"
        moment = f"{year:04d}:{month:02d}:{day:02d} {hour:02d}:{minute:02d}:00"
        exif = _exif(latitude, longitude, heading, moment)
        files[(_part_folder(layout, part) / name).as_posix()] = (condition, exif)
    table = {f"Dataframes/{CITY}.csv": "\n".join(rows) + "\n"} if layout == "gsv" else {}
    return files, table


def _padded(number: float, before: int, after: int) -> str:
    """Fixed width as in the benchmarks' names: (5.5, 3, 2) gives 005.50, a minus sign comes in addition."""
    return f"{'-' if number < 0 else ''}{abs(number):0{before + 1 + after}.{after}f}"


def _exif(latitude: float, longitude: float, heading_deg: float, moment: str) -> Image.Exif:
    def sexagesimal(degrees: float) -> tuple[IFDRational, IFDRational, IFDRational]:
        parts = round(abs(degrees) * 3600 * 10_000)  # ten-thousandths of a second, 3 mm
        minutes, seconds = divmod(parts, 60 * 10_000)
        return IFDRational(minutes // 60, 1), IFDRational(minutes % 60, 1), IFDRational(seconds, 10_000)

    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "d2vpr_hf make_town"
    exif[ExifTags.Base.DateTime] = moment
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {
            ExifTags.GPS.GPSVersionID: b"\x02\x03\x00\x00",
            ExifTags.GPS.GPSLatitudeRef: "N" if latitude >= 0 else "S",
            ExifTags.GPS.GPSLatitude: sexagesimal(latitude),
            ExifTags.GPS.GPSLongitudeRef: "E" if longitude >= 0 else "W",
            ExifTags.GPS.GPSLongitude: sexagesimal(longitude),
            ExifTags.GPS.GPSImgDirectionRef: "T",
            ExifTags.GPS.GPSImgDirection: IFDRational(round(heading_deg * 100) % 36_000, 100),
            ExifTags.GPS.GPSMapDatum: "WGS-84",
        }
    )
    return exif
