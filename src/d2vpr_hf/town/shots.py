"""Which photos of a made-up town are taken: where each camera stands and looks, at what hour and in which weather."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .plan import Street
from .rays import Cameras
from .weather import CONDITIONS, Weather, draw_weather

HARD_CONDITIONS = ("night", "fog", "rain", "snow")
# Along and across the street, from the place's middle.
DATABASE_REACH_M, QUERY_REACH_M, TRAINING_REACH_M = (3.0, 1.2), (3.5, 1.6), (5.0, 2.0)
QUERY_TURN_DEG = (4.0, 18.0)
NEAR_SHARE, NEAR_M, NEAR_TURN_DEG = 0.33, (0.6, 1.6), (1.0, 5.0)
# Of photos that are taken from wherever one passes.
MOVED_ALONG_M, QUERY_MOVED_ALONG_M, MOVED_TURN_DEG, LOOKS_AT_M, ZOOMS = 20.0, 18.0, 12.0, 15.0, (0.6, 1.6)
EASY_RADIUS_M, EASY_TURN_DEG = 0.6, 2.5


@dataclass
class Shots:
    """Photos to take, one entry each."""

    part: list[str]  # "database", "queries" or "queries_easy"
    place: list[int]
    cameras: Cameras
    weather: Weather
    conditions: list[str]

    @staticmethod
    def join(shots: Sequence["Shots"]) -> "Shots":
        """One after the other."""
        return Shots(
            [part for shot in shots for part in shot.part],
            [place for shot in shots for place in shot.place],
            Cameras.join([shot.cameras for shot in shots]),
            Weather.join([shot.weather for shot in shots]),
            [name for shot in shots for name in shot.conditions],
        )


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


def plan_database(places: Tensor, views: int, random: torch.Generator) -> Shots:
    """By day, headings spread evenly around each place."""
    place = torch.arange(len(places)).repeat_interleave(views)
    count = len(place)
    first = _uniform(len(places), 0, 360, random).repeat_interleave(views)
    step = torch.arange(views).repeat(len(places)) * (360 / views)
    heading = (first + step + _turn(count, 0, 60 / views, random)) % 360
    east, north = _stand(places[place], *DATABASE_REACH_M, random)
    height_m, field_deg = torch.full((count,), 2.4), torch.full((count,), 75.0)
    pitch, roll = _uniform(count, 4, 9, random), _turn(count, 0, 1, random)
    cameras = Cameras(east, north, height_m, heading, pitch, roll, field_deg)
    conditions = ["day"] * count
    weather = draw_weather(conditions, random, traffic=(0.0, 0.3), steady=True)
    return Shots(["database"] * count, place.tolist(), cameras, weather, conditions)


def plan_queries(
    places: Tensor, database: Shots, count: int, random: torch.Generator, *, moved: bool = False, seasons: bool = False
) -> Shots:
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
    if moved:
        cameras = _move_queries(like, places[place], cameras, random)
    weather = draw_weather(conditions, random, traffic=(0.15, 0.6), seasons=seasons)
    return Shots(["queries"] * count, place.tolist(), cameras, weather, conditions)


def plan_easy_queries(database: Shots, count: int, random: torch.Generator) -> Shots:
    """By day, without cars, within 1 m and 5 degrees of a database photo."""
    seen = _spread_over(database, max(database.place) + 1, count, random)
    like = database.cameras[seen]
    away, course = EASY_RADIUS_M * torch.rand(count, generator=random).sqrt(), _uniform(count, 0, 2 * math.pi, random)
    cameras = replace(
        like,
        east=like.east + away * course.sin(),
        north=like.north + away * course.cos(),
        heading_deg=(like.heading_deg + _turn(count, 0, EASY_TURN_DEG, random)) % 360,
        pitch_deg=like.pitch_deg + _turn(count, 0, 1, random),
    )
    conditions = ["day"] * count
    weather = replace(database.weather.spread(seen), traffic=torch.zeros(count))  # the same hour
    place = torch.tensor(database.place)[seen].tolist()
    return Shots(["queries_easy"] * count, place, cameras, weather, conditions)


def _spread_over(database: Shots, places: int, count: int, random: torch.Generator) -> Tensor:
    """(count,) database rows: places in turn, in random order, and a random view of each."""
    views = len(database.place) // places
    rounds = [torch.randperm(places, generator=random) for _ in range(math.ceil(count / places))]
    return torch.cat(rounds)[:count] * views + torch.randint(views, (count,), generator=random)


def plan_training_shots(
    street: Street, views: int, random: torch.Generator, *, moved: bool = False, seasons: bool = False
) -> Shots:
    """All photos of a place in one direction, or of one house front, at different hours and in different weather."""
    places = street.places
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
    if moved:
        # By day mostly: what changes here is the stand.
        by_day = (torch.rand(count, generator=random) < 0.45).tolist()
        conditions = ["day" if day else name for day, name in zip(by_day, conditions, strict=True)]
        cameras = _move_about(street, place, cameras, random)
    weather = draw_weather(conditions, random, traffic=(0.1, 0.8), seasons=seasons)
    return Shots(["database"] * count, place.tolist(), cameras, weather, conditions)


def _move_about(street: Street, place: Tensor, cameras: Cameras, random: torch.Generator) -> Cameras:
    """Cameras up to 20 m along the street from the place, on the road or the pavement, which look at a front there."""
    count = len(place)
    # What a place's photos look at: a front across the street from its middle, or the corner of a crossing.
    east, north, course = street.places.unbind(1)
    at = street.beside(east, north)
    side_x, side_y, shift = (torch.randint(2, (len(east),), generator=random) * 2 - 1 for _ in range(3))
    shift = shift * _uniform(len(east), 0, 4, random)
    front_x, front_y = east + side_x * at.half_x, north + side_y * at.half_y
    crossing = course == 2
    target_east = torch.where(course == 1, east + shift, front_x + torch.where(crossing, side_x * shift.abs(), 0))
    target_north = torch.where(course == 0, north + shift, front_y)
    # Where each stands: along its street, from the far pavement to the near lane.
    along, draw = _uniform(count, -MOVED_ALONG_M, MOVED_ALONG_M, random), torch.rand(4, count, generator=random)
    east_west = torch.where(crossing[place], draw[0] < 0.5, course[place] == 1)
    half = torch.where(east_west, at.half_y[place], at.half_x[place])
    on_pavement = (draw[1] < 0.5) & ~crossing[place]
    away = torch.where(on_pavement, half - 1 - 1.4 * draw[2], (half - 6.2).clamp(min=1.5) * (2 * draw[2] - 1))
    across = -torch.where(east_west, side_y[place], side_x[place]) * away
    stand_east = east[place] + torch.where(east_west, along, across)
    stand_north = north[place] + torch.where(east_west, across, along)
    stand = replace(cameras, east=stand_east, north=stand_north)
    return _zoomed(_look_at(stand, target_east[place], target_north[place], 5, random), draw[3])


def _move_queries(like: Cameras, places: Tensor, cameras: Cameras, random: torch.Generator) -> Cameras:
    """Cameras up to 18 m along the street from the place, which look at what a database photo looks at."""
    east, north = _stand(places, QUERY_MOVED_ALONG_M, QUERY_REACH_M[1], random)
    course = torch.deg2rad(like.heading_deg)
    towards_east, towards_north = like.east + LOOKS_AT_M * course.sin(), like.north + LOOKS_AT_M * course.cos()
    stand = replace(cameras, east=east, north=north)
    looking = _zoomed(_look_at(stand, towards_east, towards_north, 4, random), torch.rand(len(east), generator=random))
    # Whoever stands closer to it than 6 m looks as the database photo does.
    close = (towards_east - east).square() + (towards_north - north).square() < 36
    return replace(looking, heading_deg=torch.where(close, like.heading_deg, looking.heading_deg))


def _look_at(cameras: Cameras, east: Tensor, north: Tensor, roll_deg: float, random: torch.Generator) -> Cameras:
    """Cameras that look towards points, more or less."""
    heading = torch.rad2deg(torch.atan2(east - cameras.east, north - cameras.north))
    heading = (heading + _turn(len(heading), 0, MOVED_TURN_DEG, random)) % 360
    return replace(cameras, heading_deg=heading, roll_deg=_turn(len(heading), 0, roll_deg, random))


def _zoomed(cameras: Cameras, draw: Tensor) -> Cameras:
    """Cameras at a zoom of 0.6 to 1.6, by draws from 0 to 1."""
    zoom = ZOOMS[0] * (ZOOMS[1] / ZOOMS[0]) ** draw
    half = torch.atan(torch.tan(torch.deg2rad(cameras.field_deg) / 2) / zoom)
    return replace(cameras, field_deg=2 * torch.rad2deg(half))
