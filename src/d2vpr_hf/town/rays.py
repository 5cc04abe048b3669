"""Rays of a batch of cameras in a made-up town, and the first thing that each of them meets.

Walls, trees and cars stand upright, so where a ray meets them in plan hangs on its course alone. The courses in view
are cut into bins, the nearest few things of each bin are found once, and each ray looks its bin up.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import hash01
from .plan import Board, Street, Tensors
from .surfaces import CAR_COLOURS, board_mask, roof_line
from .weather import Weather

NEAR_WALLS, WALL_LAYERS = 160, 7
NEAR_BOARDS, BOARD_LAYERS = 48, 4
NEAR_CARS, CAR_LAYERS = 32, 3
FAR_M = 1e6
SKY, WALL, GROUND, BOARD, CAR = 0, 1, 2, 3, 4
LAYERS = 8  # a ray's code is its kind times this, and the row of its bin's list


@dataclass(frozen=True)
class Cameras(Tensors):
    """A batch of pinhole cameras; every tensor is (batch,) float32."""

    east: Tensor  # metres of the town
    north: Tensor
    height_m: Tensor
    heading_deg: Tensor  # clockwise from north
    pitch_deg: Tensor  # upwards
    roll_deg: Tensor  # clockwise
    field_deg: Tensor  # horizontal field of view


@dataclass(frozen=True)
class Rays:
    """What each ray meets, all (batch, rays) unless said otherwise."""

    shape: tuple[int, int]  # rows and columns of rays
    focal: Tensor  # (batch,) rays
    eye: Tensor  # (batch, 3)
    forward: Tensor  # (batch, 2) east and north of the heading
    course: Tensor  # metres right for one metre ahead
    rise: Tensor  # metres up for one metre ahead
    ahead: Tensor  # metres ahead of what the ray meets
    code: Tensor  # kind of thing times LAYERS, and the row of the bin's list
    column: Tensor  # the ray's bin
    middles: Tensor  # (batch, bins) course of each bin
    walls: dict[str, Tensor]  # (batch, layers, bins) each
    boards: dict[str, Tensor]
    cars: dict[str, Tensor]


def cast_rays(street: Street, cameras: Cameras, weather: Weather, height: int, width: int) -> Rays:
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
    code = torch.where(down, GROUND * LAYERS, SKY)
    for k in reversed(range(WALL_LAYERS)):  # from far to near, so that the nearest comes last
        table = walls["ahead"][:, k]
        if bool((table < FAR_M).any()):
            distance = table.gather(1, column)
            z = torch.addcmul(eye_z, rise, distance)
            met = (z >= 0) & (z < walls["top"][:, k].gather(1, column))
            ahead, code = torch.where(met, distance, ahead), torch.where(met, WALL * LAYERS + k, code)
    # Few rays come near a car or a tree, and only those are looked at.
    for things, layers, kind in ((cars["enter"], CAR_LAYERS, CAR), (boards["ahead"], BOARD_LAYERS, BOARD)):
        for k in range(layers):
            reach = things[:, k].gather(1, column).flatten()
            near = (reach < ahead.flatten()).nonzero()[:, 0]
            if len(near) == 0:
                break
            view = near // column.shape[1]
            slot = view * bins + column.flatten().index_select(0, near)
            m, z_0 = rise.flatten().index_select(0, near), eye[:, 2].index_select(0, view)
            if kind == CAR:
                distance = _meet_car({name: table[:, k].flatten() for name, table in cars.items()}, slot, z_0, m)
            else:
                distance = reach.index_select(0, near)
                board = street.boards.index_select(0, boards["row"][:, k].flatten().index_select(0, slot))
                right = boards["right"][:, k].flatten().index_select(0, slot)
                offset = distance * course.flatten().index_select(0, near) - right
                pixel = distance / focal.index_select(0, view)
                bare = weather.leaves.index_select(0, view) < 0.5
                met = board_mask(street.noise, board, offset, z_0 + m * distance, pixel, bare)
                distance = torch.where(met, distance, FAR_M)
            closer = distance < ahead.flatten().index_select(0, near)
            at = near[closer]
            ahead.view(-1)[at] = distance[closer]
            code.view(-1)[at] = kind * LAYERS + k
    shape = (height, width)
    return Rays(shape, focal, eye, forward, course, rise, ahead, code, column, middles, walls, boards, cars)


def to_view(points: Tensor, eye: Tensor, forward: Tensor) -> tuple[Tensor, Tensor]:
    """Metres (right, ahead) of (batch, points, 2) plan points."""
    offset = points - eye[:, None, :2]
    ahead = offset[..., 0] * forward[:, None, 0] + offset[..., 1] * forward[:, None, 1]
    right = offset[..., 0] * forward[:, None, 1] - offset[..., 1] * forward[:, None, 0]
    return right, ahead


def nearest(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest along the last axis in rising order, padded with FAR_M and row 0."""
    found, rows = score.topk(min(count, score.shape[-1]), dim=-1, largest=False)
    if missing := count - found.shape[-1]:
        found = torch.nn.functional.pad(found, (0, missing), value=FAR_M)
        rows = torch.nn.functional.pad(rows, (0, missing), value=0)
    return found, rows


def _layers(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` nearest of (batch, things, bins) in each bin: (batch, count, bins) distances and rows."""
    found, rows = nearest(score.transpose(1, 2), count)
    return found.transpose(1, 2).contiguous(), rows.transpose(1, 2).contiguous()


def _walls_in_view(street: Street, eye: Tensor, forward: Tensor, middles: Tensor) -> dict[str, Tensor]:
    """The nearest walls of each bin: distance, upper edge, place along the wall."""
    ends = street.walls[None].expand(len(eye), -1, -1)
    right_0, ahead_0 = to_view(ends[..., :2], eye, forward)
    right_1, ahead_1 = to_view(ends[..., 2:], eye, forward)
    # Seen from outside, the left end lies to the left.
    outside = right_1 * ahead_0 - right_0 * ahead_1 > 0
    in_front = torch.maximum(ahead_0, ahead_1) > 0.2
    wide = middles[:, -1:].abs() * 1.02
    in_field = (torch.minimum(right_0 - wide * ahead_0, right_1 - wide * ahead_1) < 0) & (
        torch.maximum(right_0 + wide * ahead_0, right_1 + wide * ahead_1) > 0
    )
    middle = (right_0 + right_1).square() + (ahead_0 + ahead_1).square()
    score, near = nearest(torch.where(outside & in_front & in_field, middle, FAR_M**2), NEAR_WALLS)
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
    top = roof_line(street.houses_at(house), kind, share * length, length)
    normal = torch.stack([corner[..., 3] - corner[..., 1], corner[..., 0] - corner[..., 2]], dim=1) / length[:, None]
    return {
        "ahead": ahead, "top": torch.where(ahead < FAR_M, top, -1.0), "along": share * length, "length": length,
        "house": house, "kind": kind, "spread": speed.gather(1, rows) * length, "wall": wall,
        "normal_east": normal[:, 0], "normal_north": normal[:, 1],
    }  # fmt: skip


def _boards_in_view(street: Street, eye: Tensor, forward: Tensor, middles: Tensor) -> dict[str, Tensor]:
    """The nearest trees and lamps of each bin; they turn to face the camera."""
    points = street.boards[None, :, 1:3].expand(len(eye), -1, -1)
    right, ahead = to_view(points, eye, forward)
    in_view = (ahead > 1.5) & (right.abs() < middles[:, -1:].abs() * ahead + 4)
    _, near = nearest(torch.where(in_view, ahead, FAR_M), NEAR_BOARDS)
    right, ahead = right.gather(1, near)[..., None], ahead.gather(1, near)[..., None]
    reach = torch.where(street.boards[near, 0] == Board.LAMP, 0.4, street.boards[near, 4] * 1.35)[..., None]
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
    right, ahead = to_view(street.bays[None, :, :2].expand(len(eye), -1, -1), eye, forward)
    taken = hash01(bay, visit, 11) < weather.traffic[:, None]
    in_view = taken & (ahead > -1) & (right.abs() < middles[:, -1:].abs() * ahead.clamp(min=0) + 5)
    score, near = nearest(torch.where(in_view, right.square() + ahead.square(), FAR_M**2), NEAR_CARS)
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
        found[name] = torch.maximum(spans[0][0], spans[1][0]), torch.minimum(spans[0][1], spans[1][1])
    enter, leave = found["body"]
    met = (enter < leave) & (enter > 0.3) & (score < FAR_M**2)[..., None]
    entered, rows = _layers(torch.where(met, enter, FAR_M), CAR_LAYERS)
    flat = rows.flatten(1)

    def of_bin(values: Tensor) -> Tensor:
        return values.gather(1, flat).view_as(rows)

    return {
        "enter": entered, "leave": leave.gather(1, rows), "cabin_enter": found["cabin"][0].gather(1, rows),
        "cabin_leave": found["cabin"][1].gather(1, rows), "roof": of_bin(roof),
        "waist": of_bin(torch.where(van, 1.15, 0.92)), "half_length": of_bin(half_length),
        "half_width": of_bin(half_width), "east": of_bin(middle_east), "north": of_bin(middle_north),
        "course": of_bin(course), "colour": of_bin((hash01(near, visit, 14) * len(CAR_COLOURS)).long()),
    }  # fmt: skip


def _meet_car(cars: dict[str, Tensor], slot: Tensor, eye_z: Tensor, rise: Tensor) -> Tensor:
    """(rays,) metres ahead to the car at `slot` of the flat tables, FAR_M where the ray passes by."""

    def of(name: str) -> Tensor:
        return cars[name].index_select(0, slot)

    safe = torch.where(rise.abs() < 1e-6, 1e-6, rise)

    def box(enter: Tensor, leave: Tensor, low: Tensor | float, high: Tensor) -> Tensor:
        one, other = (low - eye_z) / safe, (high - eye_z) / safe
        start = torch.maximum(enter, torch.minimum(one, other))
        end = torch.minimum(leave, torch.maximum(one, other))
        return torch.where((start < end) & (enter < FAR_M / 2), start, FAR_M)

    waist = of("waist")
    body = box(of("enter"), of("leave"), 0.16, waist)
    return torch.minimum(body, box(of("cabin_enter"), of("cabin_leave"), waist, of("roof")))
