"""Photos of a made-up town: casts rays from a batch of cameras and lights what they meet.

Walls, trees and cars stand upright, so where a ray meets them in plan hangs on its course alone. The courses in view
are cut into bins, the nearest few things of each bin are found once, and each ray looks its bin up.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .street_plan import BLOCK_M, HOUSE_ROWS, LAMP, PAVEMENT_M, Street
from .street_surfaces import (
    CAR_COLOURS,
    Surface,
    board_mask,
    hash01,
    noise_at,
    roof_line,
    shade_boards,
    shade_cars,
    shade_ground,
    shade_walls,
)
from .street_weather import Weather

NEAR_WALLS, WALL_LAYERS = 160, 7
NEAR_BOARDS, BOARD_LAYERS = 48, 4
NEAR_CARS, CAR_LAYERS = 32, 3
NEAR_LAMPS = 8
FAR_M = 1e6
HILLS_M = 40.0  # height of the hills around the town, at `HORIZON_M`
HORIZON_M = 900.0
SKY, WALL, GROUND, BOARD, CAR = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class Cameras:
    """A batch of pinhole cameras; every tensor is (batch,) float32.

    Attributes:
        east, north, height_m: the camera's place, in metres of the town.
        heading_deg: clockwise from north.
        pitch_deg: upwards.
        roll_deg: clockwise.
        field_deg: horizontal field of view.
    """

    east: Tensor
    north: Tensor
    height_m: Tensor
    heading_deg: Tensor
    pitch_deg: Tensor
    roll_deg: Tensor
    field_deg: Tensor

    def to(self, device: str | torch.device) -> "Cameras":
        """The same cameras on another device."""
        return Cameras(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def __getitem__(self, rows: slice | Tensor) -> "Cameras":
        return Cameras(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __len__(self) -> int:
        return len(self.east)


@torch.no_grad()
def render(
    street: Street, cameras: Cameras, weather: Weather, *, height: int = 240, width: int = 320, supersample: int = 2
) -> Tensor:
    """Photos as (batch, height, width, 3) uint8 sRGB, on the device of the town.

    Args:
        street: the town; cameras and weather must lie on its device.
        cameras: where each photo is taken from.
        weather: light and weather of each photo, one a camera.
        height, width: of the photo, in pixels.
        supersample: rays a pixel along each side.
    """
    if len(cameras) != len(weather):
        raise ValueError(f"render got {len(cameras)} cameras and {len(weather)} weathers. Give one weather a camera.")
    rays = _cast(street, cameras, weather, height * supersample, width * supersample)
    light = _expose_rays(street, weather, rays)  # (batch, 3, height * supersample, width * supersample), linear
    light = torch.nn.functional.avg_pool2d(light, supersample)
    light = _add_halos(street, cameras, weather, light, rays, supersample)
    light = _add_fall(street.noise, weather, light)
    return _develop(weather, light)


@dataclass(frozen=True)
class _Rays:
    """What each ray meets, all (batch, rays) unless said otherwise."""

    shape: tuple[int, int]
    focal: Tensor  # (batch,) pixels
    eye: Tensor  # (batch, 3)
    forward: Tensor  # (batch, 2) east and north of the heading
    course: Tensor  # metres right for one metre ahead
    rise: Tensor  # metres up for one metre ahead
    ahead: Tensor  # metres ahead of what the ray meets
    what: Tensor  # SKY, WALL, GROUND, BOARD or CAR
    layer: Tensor  # row of the bin's list
    column: Tensor  # the ray's bin
    walls: dict[str, Tensor]  # (batch, layers, bins) each
    boards: dict[str, Tensor]
    cars: dict[str, Tensor]


def _cast(street: Street, cameras: Cameras, weather: Weather, height: int, width: int) -> _Rays:
    """Rays of all cameras, and the first thing that each meets."""
    device = street.walls.device
    focal = 0.5 * width / torch.tan(torch.deg2rad(cameras.field_deg) / 2)
    x = (torch.arange(width, device=device) + 0.5 - width / 2)[None, None] / focal[:, None, None]
    y = (height / 2 - torch.arange(height, device=device) - 0.5)[None, :, None] / focal[:, None, None]
    roll, pitch = (torch.deg2rad(angle)[:, None, None] for angle in (cameras.roll_deg, cameras.pitch_deg))
    right = x * roll.cos() + y * roll.sin()
    up = y * roll.cos() - x * roll.sin()
    depth = pitch.cos() - up * pitch.sin()
    course, rise = (right / depth).flatten(1), ((pitch.sin() + up * pitch.cos()) / depth).flatten(1)

    heading = torch.deg2rad(cameras.heading_deg)
    forward = torch.stack([heading.sin(), heading.cos()], dim=1)
    eye = torch.stack([cameras.east, cameras.north, cameras.height_m], dim=1)
    bins = 2 * width if bool((cameras.roll_deg != 0).any() | (cameras.pitch_deg != 0).any()) else width
    widest = course.abs().amax(dim=1, keepdim=True) * (1 + 1e-6)
    # Level cameras look straight through the middles of the bins.
    if bins == width:
        widest = (0.5 * width / focal)[:, None]
    column = ((course / widest + 1) * (bins / 2)).long().clamp(0, bins - 1)
    middles = ((torch.arange(bins, device=device) + 0.5) * 2 / bins - 1)[None] * widest  # (batch, bins)

    walls = _walls_in_view(street, eye, forward, middles)
    boards = _boards_in_view(street, eye, forward, middles)
    cars = _cars_in_view(street, weather, eye, forward, middles)

    eye_z = eye[:, 2:]
    down = rise < -1e-6
    ahead = torch.where(down, -eye_z / torch.where(down, rise, -1.0), FAR_M)
    what = torch.where(down, GROUND, SKY)
    layer = torch.zeros_like(what)
    flat = column  # (batch, rays)
    for k in reversed(range(WALL_LAYERS)):  # from far to near, so that the nearest comes last
        distance = walls["ahead"][:, k].gather(1, flat)
        z = eye_z + rise * distance
        met = (z >= 0) & (z < walls["top"][:, k].gather(1, flat))
        ahead, what, layer = _replace(met, distance, WALL, k, ahead, what, layer)
    for k in range(CAR_LAYERS):
        distance = _meet_car(cars, k, flat, eye_z, rise)
        ahead, what, layer = _replace(distance < ahead, distance, CAR, k, ahead, what, layer)
    all_boards = street.boards
    for k in reversed(range(BOARD_LAYERS)):
        distance = boards["ahead"][:, k].gather(1, flat)
        near = (distance < ahead).flatten().nonzero()[:, 0]
        if len(near) == 0:
            continue
        d, s, m = distance.flatten()[near], course.flatten()[near], rise.flatten()[near]
        view = near // course.shape[1]
        bin_row = flat.flatten()[near]
        board = all_boards[boards["row"][:, k][view, bin_row]]
        offset = d * s - boards["right"][:, k][view, bin_row]
        solid = board_mask(street.noise, board, offset, eye[view, 2] + m * d, d / focal[view])
        met = torch.zeros_like(down).flatten()
        met[near] = solid
        ahead, what, layer = _replace(met.view_as(down), distance, BOARD, k, ahead, what, layer)
    return _Rays((height, width), focal, eye, forward, course, rise, ahead, what, layer, column, walls, boards, cars)


def _replace(
    met: Tensor, distance: Tensor, kind: int, k: int, ahead: Tensor, what: Tensor, layer: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.where(met, distance, ahead), torch.where(met, kind, what), torch.where(met, k, layer)


def _to_view(points: Tensor, eye: Tensor, forward: Tensor) -> tuple[Tensor, Tensor]:
    """Metres (right, ahead) of (batch, points, 2) plan points."""
    offset = points - eye[:, None, :2]
    ahead = offset[..., 0] * forward[:, None, 0] + offset[..., 1] * forward[:, None, 1]
    right = offset[..., 0] * forward[:, None, 1] - offset[..., 1] * forward[:, None, 0]
    return right, ahead


def _nearest(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest along the last axis in rising order, padded with FAR_M and row 0."""
    found, rows = score.topk(min(count, score.shape[-1]), dim=-1, largest=False)
    if missing := count - found.shape[-1]:
        found = torch.nn.functional.pad(found, (0, missing), value=FAR_M)
        rows = torch.nn.functional.pad(rows, (0, missing), value=0)
    return found, rows


def _layers(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest of (batch, things, bins) in each bin: (batch, count, bins) distances and rows."""
    found, rows = _nearest(score.transpose(1, 2), count)
    return found.transpose(1, 2).contiguous(), rows.transpose(1, 2).contiguous()


def _walls_in_view(street: Street, eye: Tensor, forward: Tensor, middles: Tensor) -> dict[str, Tensor]:
    """The nearest walls of each bin: distance, upper edge, place along the wall."""
    ends = street.walls[None].expand(len(eye), -1, -1)
    right_0, ahead_0 = _to_view(ends[..., :2], eye, forward)
    right_1, ahead_1 = _to_view(ends[..., 2:], eye, forward)
    # Seen from outside, the left end lies to the left.
    outside = right_1 * ahead_0 - right_0 * ahead_1 > 0
    in_front = torch.maximum(ahead_0, ahead_1) > 0.2
    wide = middles[:, -1:].abs() * 1.02
    in_field = (torch.minimum(right_0 - wide * ahead_0, right_1 - wide * ahead_1) < 0) & (
        torch.maximum(right_0 + wide * ahead_0, right_1 + wide * ahead_1) > 0
    )
    middle = (right_0 + right_1).square() + (ahead_0 + ahead_1).square()
    score, near = _nearest(torch.where(outside & in_front & in_field, middle, FAR_M**2), NEAR_WALLS)
    right_0, ahead_0, right_1, ahead_1 = (
        part.gather(1, near)[..., None] for part in (right_0, ahead_0, right_1, ahead_1)
    )
    s = middles[:, None]  # (batch, 1, bins)
    run_right, run_ahead = right_1 - right_0, ahead_1 - ahead_0
    denominator = run_right - s * run_ahead
    share = (s * ahead_0 - right_0) / denominator  # along the wall, 0 to 1
    ahead = ahead_0 + share * run_ahead
    met = (share >= 0) & (share <= 1) & (ahead > 0.2) & (score < FAR_M**2)[..., None]
    ahead, rows = _layers(torch.where(met, ahead, FAR_M), WALL_LAYERS)
    share = share.gather(1, rows)
    wall = near.gather(1, rows.flatten(1)).view_as(rows)
    corner = street.walls[wall]
    length = (corner[..., 2:] - corner[..., :2]).norm(dim=-1)
    # How fast the place along the wall changes with the course, for the size of a pixel on it.
    speed = (ahead_0 * run_right - right_0 * run_ahead) / denominator.square()
    house, kind = street.wall_house[wall], street.wall_kind[wall]
    attributes = dict(zip(HOUSE_ROWS, street.houses[:, house], strict=True))
    top = roof_line(attributes, kind, share * length, length)
    normal = torch.stack([corner[..., 3] - corner[..., 1], corner[..., 0] - corner[..., 2]], dim=1) / length[:, None]
    return {
        "ahead": ahead,
        "top": torch.where(ahead < FAR_M, top, -1.0),
        "along": share * length,
        "length": length,
        "house": house,
        "kind": kind,
        "spread": speed.gather(1, rows).abs() * length,
        "normal_east": normal[:, 0],
        "normal_north": normal[:, 1],
    }


def _boards_in_view(street: Street, eye: Tensor, forward: Tensor, middles: Tensor) -> dict[str, Tensor]:
    """The nearest trees and lamps of each bin; they turn to face the camera."""
    points = street.boards[None, :, 1:3].expand(len(eye), -1, -1)
    right, ahead = _to_view(points, eye, forward)
    in_view = (ahead > 1.5) & (right.abs() < middles[:, -1:].abs() * ahead + 4)
    _, near = _nearest(torch.where(in_view, ahead, FAR_M), NEAR_BOARDS)
    right, ahead = right.gather(1, near)[..., None], ahead.gather(1, near)[..., None]
    reach = torch.where(street.boards[near, 0] == LAMP, 0.4, street.boards[near, 4] * 1.35)[..., None]
    met = ((middles[:, None] * ahead - right).abs() < reach) & (ahead > 1.5)
    found, rows = _layers(torch.where(met, ahead.expand_as(met), FAR_M), BOARD_LAYERS)
    flat = rows.flatten(1)
    return {
        "ahead": found,
        "row": near.gather(1, flat).view_as(rows),
        "right": right[..., 0].gather(1, flat).view_as(rows),
    }


def _cars_in_view(street: Street, weather: Weather, eye: Tensor, forward: Tensor, middles: Tensor) -> dict[str, Tensor]:
    """The nearest parked cars of each bin, each with where the ray enters and leaves its two boxes in plan."""
    visit = weather.visit[:, None]
    bay = torch.arange(len(street.bays), device=eye.device)[None]
    right, ahead = _to_view(street.bays[None, :, :2].expand(len(eye), -1, -1), eye, forward)
    taken = hash01(bay, visit, 11) < weather.traffic[:, None]
    in_view = taken & (ahead > -1) & (right.abs() < middles[:, -1:].abs() * ahead.clamp(min=0) + 5)
    score, near = _nearest(torch.where(in_view, right.square() + ahead.square(), FAR_M**2), NEAR_CARS)
    kind = hash01(near, visit, 12)
    shift = hash01(near, visit, 13) - 0.5
    van = kind > 0.78
    half_length = torch.where(van, 2.5, 1.95 + 0.4 * kind)
    half_width = torch.where(van, 0.98, 0.88)
    roof = torch.where(van, 2.0 + 3.0 * (kind - 0.78), 1.42 + 0.15 * kind)
    course = street.bays[near, 2]
    # Half sizes east and north.
    half_east = torch.where(course == 1, half_width, half_length)
    half_north = torch.where(course == 1, half_length, half_width)
    middle_east = street.bays[near, 0] + shift * (course == 0)
    middle_north = street.bays[near, 1] + shift * (course == 1)
    s = middles[:, None]
    step_east = forward[:, None, :1] + s * forward[:, None, 1:]
    step_north = forward[:, None, 1:] - s * forward[:, None, :1]
    found = {}
    for name, long_m, wide_m in (("body", 0.0, 0.0), ("cabin", 0.62, 0.12)):
        inset = torch.where(van, 0.0, long_m)  # a van's cabin is as long as its body
        inset_east = torch.where(course == 1, torch.where(van, 0.0, wide_m), inset)
        inset_north = torch.where(course == 1, inset, torch.where(van, 0.0, wide_m))
        spans = []
        for middle, half, step, position in (
            (middle_east, half_east - inset_east, step_east, eye[:, None, :1]),
            (middle_north, half_north - inset_north, step_north, eye[:, None, 1:2]),
        ):
            safe = torch.where(step.abs() < 1e-6, 1e-6, step)
            one = (middle[..., None] - half[..., None] - position) / safe
            other = (middle[..., None] + half[..., None] - position) / safe
            spans.append((torch.minimum(one, other), torch.maximum(one, other)))
        found[name] = (
            torch.maximum(spans[0][0], spans[1][0]),
            torch.minimum(spans[0][1], spans[1][1]),
        )
    enter, leave = found["body"]
    met = (enter < leave) & (enter > 0.3) & (score < FAR_M**2)[..., None]
    entered, rows = _layers(torch.where(met, enter, FAR_M), CAR_LAYERS)
    flat = rows.flatten(1)

    def of_bin(values: Tensor) -> Tensor:
        return values.gather(1, flat).view_as(rows)

    return {
        "enter": entered,
        "leave": leave.gather(1, rows),
        "cabin_enter": found["cabin"][0].gather(1, rows),
        "cabin_leave": found["cabin"][1].gather(1, rows),
        "roof": of_bin(roof),
        "waist": of_bin(torch.where(van, 1.15, 0.92)),
        "half_length": of_bin(half_length),
        "half_width": of_bin(half_width),
        "east": of_bin(middle_east),
        "north": of_bin(middle_north),
        "course": of_bin(course),
        "colour": of_bin((hash01(near, visit, 14) * len(CAR_COLOURS)).long()),
    }


def _meet_car(cars: dict[str, Tensor], k: int, column: Tensor, eye_z: Tensor, rise: Tensor) -> Tensor:
    """(batch, rays) metres ahead to the k-th car of the ray's bin, FAR_M where it passes by."""

    def of(name: str) -> Tensor:
        return cars[name][:, k].gather(1, column)

    safe = torch.where(rise.abs() < 1e-6, 1e-6, rise)

    def box(enter: Tensor, leave: Tensor, low: Tensor | float, high: Tensor) -> Tensor:
        one, other = (low - eye_z) / safe, (high - eye_z) / safe
        start = torch.maximum(enter, torch.minimum(one, other))
        end = torch.minimum(leave, torch.maximum(one, other))
        return torch.where((start < end) & (enter < FAR_M / 2), start, FAR_M)

    enter, waist = of("enter"), of("waist")
    body = box(enter, of("leave"), 0.16, waist)
    cabin = box(of("cabin_enter"), of("cabin_leave"), waist, of("roof"))
    return torch.where(enter < FAR_M / 2, torch.minimum(body, cabin), FAR_M)


def _expose_rays(street: Street, weather: Weather, rays: _Rays) -> Tensor:
    """(batch, 3, rows, columns) linear light along every ray."""
    batch, count = rays.what.shape
    out = torch.empty(batch * count, 3, device=rays.what.device)
    shaders = ((WALL, _light_walls), (GROUND, _light_ground), (BOARD, _light_boards), (CAR, _light_cars))
    for kind, shader in shaders:
        at = (rays.what.flatten() == kind).nonzero()[:, 0]
        if len(at):
            out[at] = shader(street, weather, rays, _Hits.gather(rays, at))
    at = (rays.what.flatten() == SKY).nonzero()[:, 0]
    if len(at):
        out[at] = _light_sky(street, weather, rays, at)
    return out.view(batch, *rays.shape, 3).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Hits:
    """The rays that meet one kind of thing, (hits,) each."""

    view: Tensor
    bin: Tensor
    layer: Tensor
    ahead: Tensor
    course: Tensor
    distance: Tensor
    east: Tensor
    north: Tensor
    z: Tensor
    pixel: Tensor  # size of a ray's pixel at this distance, in metres

    @staticmethod
    def gather(rays: _Rays, at: Tensor) -> "_Hits":
        view = at // rays.what.shape[1]
        ahead, course, rise = (part.flatten()[at] for part in (rays.ahead, rays.course, rays.rise))
        eye, forward = rays.eye[view], rays.forward[view]
        right = ahead * course
        return _Hits(
            view=view,
            bin=rays.column.flatten()[at],
            layer=rays.layer.flatten()[at],
            ahead=ahead,
            course=course,
            distance=ahead * (1 + course.square() + rise.square()).sqrt(),
            east=eye[:, 0] + ahead * forward[:, 0] + right * forward[:, 1],
            north=eye[:, 1] + ahead * forward[:, 1] - right * forward[:, 0],
            z=eye[:, 2] + ahead * rise,
            pixel=ahead / rays.focal[view],
        )

    def of(self, table: Tensor) -> Tensor:
        """Entries of a (batch, layers, bins) table."""
        layers, bins = table.shape[1:]
        return table.flatten()[(self.view * layers + self.layer) * bins + self.bin]


def _light_walls(street: Street, weather: Weather, rays: _Rays, hits: _Hits) -> Tensor:
    walls = rays.walls
    surface = shade_walls(
        street,
        hits.of(walls["house"]),
        hits.of(walls["kind"]),
        hits.of(walls["along"]),
        hits.z,
        hits.of(walls["length"]),
        hits.of(walls["spread"]) / rays.focal[hits.view],
        hits.pixel,
        weather.lit_share[hits.view],
        weather.lamps[hits.view],
        weather.snow[hits.view],
        weather.visit[hits.view],
    )
    normal = torch.stack(
        [hits.of(walls["normal_east"]), hits.of(walls["normal_north"]), torch.zeros_like(hits.z)], dim=1
    )
    return _lit(street, weather, hits, surface, normal)


def _light_ground(street: Street, weather: Weather, rays: _Rays, hits: _Hits) -> Tensor:
    blur = hits.pixel * (1 + hits.distance / 12)  # a pixel is longer than wide on the ground
    view = hits.view
    surface = shade_ground(street, hits.east, hits.north, blur, weather.wet[view], weather.snow[view])
    shade = _shade_under_cars(rays, hits)
    normal = torch.zeros(len(view), 3, device=view.device)
    normal[:, 2] = 1
    return _lit(street, weather, hits, surface, normal) * shade[:, None]


def _shade_under_cars(rays: _Rays, hits: _Hits) -> Tensor:
    """(hits,) 1 in the open, less between a car's floor and the ground."""
    shade = torch.ones_like(hits.z)
    for k in range(CAR_LAYERS):
        near = _Hits(**{**hits.__dict__, "layer": torch.full_like(hits.layer, k)})
        enter, leave = near.of(rays.cars["enter"]), near.of(rays.cars["leave"])
        under = ((hits.ahead - enter + 0.25) / 0.3).clamp(0, 1) * ((leave - hits.ahead + 0.25) / 0.3).clamp(0, 1)
        shade = torch.minimum(shade, 1 - 0.75 * under)
    return shade


def _light_boards(street: Street, weather: Weather, rays: _Rays, hits: _Hits) -> Tensor:
    board = street.boards[hits.of(rays.boards["row"])]
    x = hits.ahead * hits.course - hits.of(rays.boards["right"])
    view = hits.view
    surface = shade_boards(street.noise, board, x, hits.z, weather.lamps[view], weather.snow[view])
    forward = rays.forward[view]
    bulge = (x / board[:, 4]).clamp(-1, 1)
    normal = torch.stack(
        [
            forward[:, 1] * bulge - 0.5 * forward[:, 0],
            -forward[:, 0] * bulge - 0.5 * forward[:, 1],
            torch.full_like(x, 0.6),
        ],
        dim=1,
    )
    return _lit(street, weather, hits, surface, torch.nn.functional.normalize(normal, dim=1))


def _light_cars(street: Street, weather: Weather, rays: _Rays, hits: _Hits) -> Tensor:
    cars = rays.cars
    north_south = hits.of(cars["course"]) == 1
    east, north = hits.east - hits.of(cars["east"]), hits.north - hits.of(cars["north"])
    along, across = torch.where(north_south, north, east), torch.where(north_south, east, north)
    size = torch.stack([hits.of(cars["half_length"]), hits.of(cars["half_width"]), hits.of(cars["roof"])], dim=1)
    cabin = hits.z > hits.of(cars["waist"]) + 1e-3
    snow = weather.snow[hits.view]
    surface = shade_cars(hits.of(cars["colour"]), size, along, across, hits.z, cabin, snow)
    flank = (across.abs() > size[:, 1] - 0.14).float()
    side = torch.where(
        north_south[:, None],
        torch.tensor([1.0, 0.0, 0.0], device=east.device),
        torch.tensor([0.0, 1.0, 0.0], device=east.device),
    )
    ahead = torch.where(
        north_south[:, None],
        torch.tensor([0.0, 1.0, 0.0], device=east.device),
        torch.tensor([1.0, 0.0, 0.0], device=east.device),
    )
    normal = side * (across.sign() * flank)[:, None] + ahead * (along.sign() * (1 - flank) * 0.6)[:, None]
    top = ((hits.z > size[:, 2] - 0.03) | (~cabin & (hits.z > hits.of(cars["waist"]) - 0.02))).float()
    normal = torch.where(top[:, None] > 0, torch.tensor([0.0, 0.0, 1.0], device=east.device), normal)
    normal = torch.nn.functional.normalize(normal + torch.tensor([0.0, 0.0, 0.15], device=east.device), dim=1)
    return _lit(street, weather, hits, surface, normal)


def _lit(street: Street, weather: Weather, hits: _Hits, surface: Surface, normal: Tensor) -> Tensor:
    """(hits, 3) light that leaves a surface towards the camera, through the air between."""
    view = hits.view
    sun = weather.sun[view]
    facing = (normal * sun).sum(dim=1).clamp(min=0)
    sunlit = facing * _sun_reaches(street, hits, sun)
    open_sky = 0.62 + 0.38 * normal[:, 2].clamp(min=0) + 0.10 * (hits.z / 10).clamp(0, 1)
    light = weather.sun_light[view] * sunlit[:, None] + weather.sky_light[view] * open_sky[:, None]
    if bool((weather.lamps > 0).any()):
        warm = torch.tensor([1.0, 0.78, 0.48], device=view.device)
        light = light + warm * (weather.lamps[view] * _lamp_light(street, hits, normal))[:, None]
    colour = surface.albedo * light + surface.glow
    if isinstance(surface.gloss, Tensor):
        colour = colour + (surface.gloss * 0.22)[:, None] * weather.horizon[view]
    clear = (-hits.distance * weather.fog_per_m[view]).exp()
    return torch.lerp(weather.horizon[view], colour, clear[:, None])


def _sun_reaches(street: Street, hits: _Hits, sun: Tensor) -> Tensor:
    """(hits,) 0 where the houses across the street stand in the sun; their roofs are taken as 9 to 15 m high."""
    line_x, line_y = (hits.east / BLOCK_M).round(), (hits.north / BLOCK_M).round()
    half_x = street.half_width_x[(line_x.long() + 1).clamp(0, len(street.half_width_x) - 1)]
    half_y = street.half_width_y[(line_y.long() + 1).clamp(0, len(street.half_width_y) - 1)]
    offset_x, offset_y = hits.east - line_x * BLOCK_M, hits.north - line_y * BLOCK_M
    in_x, in_y = offset_x.abs() < half_x + 1.6, offset_y.abs() < half_y + 1.6
    # Metres in plan to the facade towards the sun.
    to_x = (half_x - offset_x * sun[:, 0].sign()).clamp(min=0) / sun[:, 0].abs().clamp(min=1e-3)
    to_y = (half_y - offset_y * sun[:, 1].sign()).clamp(min=0) / sun[:, 1].abs().clamp(min=1e-3)
    run = torch.where(in_x, to_x, to_y)
    crossing = in_x & in_y
    across = torch.where(in_x, hits.north + run * sun[:, 1], hits.east + run * sun[:, 0])
    roof = 9 + 6 * hash01((across / 11).floor().long() + 1000, line_x.long() * 31 + line_y.long() + 1000, 21)
    level = hits.z + run * sun[:, 2] / sun[:, :2].norm(dim=1).clamp(min=1e-3)
    return torch.where(crossing, 1.0, ((level - roof) / 0.4 + 0.5).clamp(0, 1))


def _lamp_light(street: Street, hits: _Hits, normal: Tensor) -> Tensor:
    """(hits,) light of the nearest street lamps, which stand every 24 m on alternate sides of each street."""
    line_x, line_y = (hits.east / BLOCK_M).round(), (hits.north / BLOCK_M).round()
    half_x = street.half_width_x[(line_x.long() + 1).clamp(0, len(street.half_width_x) - 1)]
    half_y = street.half_width_y[(line_y.long() + 1).clamp(0, len(street.half_width_y) - 1)]
    offset_x, offset_y = hits.east - line_x * BLOCK_M, hits.north - line_y * BLOCK_M
    on_x = (offset_x.abs() < half_x + 1.6) & ((offset_y.abs() >= half_y) | (offset_x.abs() < offset_y.abs()))
    along = torch.where(on_x, hits.north, hits.east) + BLOCK_M
    across = torch.where(on_x, offset_x, offset_y)
    half = torch.where(on_x, half_x, half_y)
    nearest = (along / 24 - 0.5).round()
    total = torch.full_like(across, 0.02)
    across_normal = torch.where(on_x, normal[:, 0], normal[:, 1])
    along_normal = torch.where(on_x, normal[:, 1], normal[:, 0])
    for step in (-1, 0, 1):
        index = nearest + step
        side = torch.where(torch.remainder(index, 2) == 0, 1.0, -1.0)
        to_along = (index + 0.5) * 24 - along
        to_across = side * (half - PAVEMENT_M + 0.4) - across
        to_up = 5.4 - hits.z
        square = to_along.square() + to_across.square() + to_up.square()
        towards = to_along * along_normal + to_across * across_normal + to_up * normal[:, 2]
        total = total + 9.0 * (towards / square.sqrt() * 0.8 + 0.2).clamp(min=0.05) / (square + 6)
    return total


def _light_sky(street: Street, weather: Weather, rays: _Rays, at: Tensor) -> Tensor:
    view = at // rays.what.shape[1]
    course, rise = rays.course.flatten()[at], rays.rise.flatten()[at]
    forward = rays.forward[view]
    # Direction with length 1 in plan.
    east, north = forward[:, 0] + course * forward[:, 1], forward[:, 1] - course * forward[:, 0]
    plan = (east.square() + north.square()).sqrt()
    east, north, up = east / plan, north / plan, rise / plan
    blend = (1 - (-3.2 * up.clamp(min=0)).exp())[:, None]
    sky = torch.lerp(weather.horizon[view], weather.zenith[view], blend)
    share = weather.clouds[view]
    drift = (weather.visit[view] % 977).float()
    sheet = 1.0 / (up.clamp(min=0.0) + 0.12)
    cloud = noise_at(street.noise, east * sheet * 0.8 + drift, north * sheet * 0.8 + drift * 0.7)
    cloud = ((cloud + 1.6 * share - 0.7) * 1.6).clamp(0, 1) * (up * 6).clamp(0, 1) * (share < 0.99)
    lightness = weather.sky_light[view] * 1.05 + 0.25 * weather.sun_light[view]
    sky = torch.lerp(sky, lightness, (0.75 * cloud)[:, None])
    glare = (east * weather.sun[view, 0] + north * weather.sun[view, 1] + up * weather.sun[view, 2]) / (
        1 + up**2
    ).sqrt()
    sky = sky + weather.sun_light[view] * (0.35 * glare.clamp(min=0) ** 24)[:, None]
    azimuth = torch.atan2(east, north) / math.pi * 10
    crest = (HILLS_M + 26 * noise_at(street.noise, azimuth, azimuth * 0)) / HORIZON_M
    hill = ((crest - up) * 300).clamp(0, 1)
    ridge = weather.sky_light[view] * torch.tensor([0.20, 0.25, 0.22], device=view.device)
    haze = (-HORIZON_M * weather.fog_per_m[view]).exp()[:, None] * 0.8
    return torch.lerp(sky, torch.lerp(weather.horizon[view], ridge, haze), hill[:, None])


def _add_halos(
    street: Street, cameras: Cameras, weather: Weather, light: Tensor, rays: _Rays, supersample: int
) -> Tensor:
    """Glare around the lamps that are in view and nothing hides."""
    if not bool((weather.lamps > 0).any()):
        return light
    batch, _, height, width = light.shape
    is_lamp = street.boards[:, 0] == LAMP
    lamps = street.boards[is_lamp]
    right, ahead = _to_view(lamps[None, :, 1:3].expand(batch, -1, -1), rays.eye, rays.forward)
    in_view = (ahead > 2) & (right.abs() < ahead * 1.2)
    score, near = _nearest(torch.where(in_view, ahead, FAR_M), NEAR_LAMPS)
    right, ahead = right.gather(1, near), ahead.gather(1, near)
    ahead = ahead.clamp(min=0.5)
    focal = (rays.focal / supersample)[:, None]
    roll, pitch = (torch.deg2rad(angle)[:, None] for angle in (cameras.roll_deg, cameras.pitch_deg))
    up = 5.45 - rays.eye[:, 2:]
    depth = ahead * pitch.cos() + up * pitch.sin()
    lift = up * pitch.cos() - ahead * pitch.sin()
    x = (right * roll.cos() - lift * roll.sin()) / depth * focal + width / 2
    y = height / 2 - (lift * roll.cos() + right * roll.sin()) / depth * focal
    inside = (x > 0) & (x < width) & (y > 0) & (y < height) & (score < FAR_M)
    rows, columns = rays.shape
    at = (y * supersample).long().clamp(0, rows - 1) * columns + (x * supersample).long().clamp(0, columns - 1)
    clear = rays.ahead.gather(1, at) > ahead - 1.0
    strength = weather.lamps[:, None] * (inside & clear) * (-ahead * weather.fog_per_m[:, None]).exp()
    grid_x = torch.arange(width, device=light.device) + 0.5
    grid_y = torch.arange(height, device=light.device) + 0.5
    spread = (focal * 0.35 / ahead).square() + 2.0
    square = (grid_x - x[..., None]).square()[:, :, None] + (grid_y - y[..., None]).square()[..., None]
    halo = (strength[..., None, None] * 0.9 / (1 + square / spread[..., None, None])).sum(dim=1)
    warm = torch.tensor([1.0, 0.78, 0.48], device=light.device)[:, None, None]
    return light + warm * halo[:, None]


def _add_fall(noise: Tensor, weather: Weather, light: Tensor) -> Tensor:
    """Streaks of rain and flakes of snow in front of the scene."""
    if not bool(((weather.wet > 0.5) | (weather.snow > 0)).any()):
        return light
    _, _, height, width = light.shape
    row = torch.arange(height, device=light.device)[:, None].expand(height, width)
    column = torch.arange(width, device=light.device)[None].expand(height, width)
    visit = weather.visit[:, None, None]
    slant = (row + (visit % 7) * 0).float() * 0.12
    lane = (column + slant).long()
    streak = hash01(lane, visit % 65521, (row + hash01(lane, visit % 65521, 5) * 90).long() // 18, 6) > 0.965
    total = torch.where((weather.wet > 0.9)[:, None, None], 0.13 * streak.float(), 0.0)
    for size, share in ((3, 0.004), (5, 0.010), (9, 0.012)):
        cell_row, cell_column = row // size, column // size
        there = hash01(cell_row + 1, cell_column + 1, visit % 65521, size) < share * 2.2
        from_middle = ((row % size - size / 2 + 0.5).square() + (column % size - size / 2 + 0.5).square()).sqrt()
        flake = (1.1 - from_middle / (size * 0.42)).clamp(0, 1) * there
        total = torch.maximum(total, flake * (weather.snow > 0.5)[:, None, None] * 0.75)
    return torch.lerp(light, weather.sky_light[:, :, None, None].expand_as(light) * 1.15, total[:, None])


def _develop(weather: Weather, light: Tensor) -> Tensor:
    """(batch, height, width, 3) uint8 from linear light: exposure, white balance, vignette, tone curve, grain."""
    _, _, height, width = light.shape
    y = torch.linspace(-1, 1, height, device=light.device)[:, None]
    x = torch.linspace(-1, 1, width, device=light.device)[None]
    vignette = 1 - 0.12 * (x.square() + y.square())
    exposed = light * (weather.exposure[:, None] * weather.tint)[:, :, None, None] * vignette
    toned = 1 - (-1.35 * exposed.clamp(min=0)).exp()
    encoded = toned.clamp(min=1e-5) ** (1 / 2.2)
    pixel = torch.arange(height * width * 3, device=light.device).view(3, height, width)[None]
    seed = (weather.visit % 65521)[:, None, None, None]
    grain = hash01(pixel, seed, 1) + hash01(pixel, seed, 2) - 1.0  # triangular, standard deviation 0.41
    encoded = encoded + grain * (weather.grain / 0.41)[:, None, None, None]
    return (encoded * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
