"""The plan of a made-up town: where its streets, houses, trees, lamps and parking bays are, as tensors by seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Self

import torch
from torch import Tensor

from .facades import count_facades, facade_at
from .noise import tiling_noise

BLOCK_M = 120.0  # from one crossing to the next
PLACE_SPACING_M = BLOCK_M / 2  # places are crossings and the middles between two crossings
PAVEMENT_M = 3.4
HOUSE_DEPTH_M = 11.0
Wall = IntEnum("Wall", "FRONT SIDE BACK", start=0)
Roof = IntEnum("Roof", "FLAT GABLE PITCHED STEPPED", start=0)
Material = IntEnum("Material", "PLASTER BRICK CONCRETE WOOD", start=0)
Board = IntEnum("Board", "TREE LAMP", start=0)

# Every house takes its colours from here, so that no colour belongs to one place.
WALL_COLOURS = (
    ((0.78, 0.72, 0.60), (0.70, 0.55, 0.42), (0.62, 0.64, 0.62), (0.80, 0.78, 0.74), (0.66, 0.60, 0.36)),  # plaster
    ((0.42, 0.20, 0.14), (0.50, 0.29, 0.20), (0.34, 0.19, 0.16), (0.55, 0.42, 0.30), (0.38, 0.30, 0.27)),  # brick
    ((0.46, 0.46, 0.45), (0.56, 0.55, 0.52), (0.38, 0.39, 0.41), (0.62, 0.60, 0.56), (0.50, 0.47, 0.43)),  # concrete
    ((0.44, 0.32, 0.21), (0.62, 0.58, 0.50), (0.30, 0.36, 0.38), (0.36, 0.42, 0.32), (0.50, 0.26, 0.19)),  # wood
)
ACCENT_COLOURS = (
    (0.45, 0.10, 0.09), (0.10, 0.25, 0.42), (0.11, 0.32, 0.20), (0.70, 0.52, 0.12),
    (0.20, 0.20, 0.22), (0.48, 0.28, 0.12), (0.62, 0.62, 0.60), (0.32, 0.16, 0.34),
)  # fmt: skip

HOUSE_ROWS = (
    "number", "storeys", "ground_m", "storey_m", "roof", "roof_m", "material", "wall_red", "wall_green", "wall_blue",
    "trim", "accent", "door_accent", "columns", "window_width", "window_height", "sill_m", "arched", "panes_across",
    "panes_up", "shutters", "blank", "balconies", "band", "shop", "awning", "door_column", "ground_columns", "banner",
    "roof_tint", "photo",
)  # fmt: skip
COLOUR_ROWS = torch.tensor([HOUSE_ROWS.index(f"wall_{colour}") for colour in ("red", "green", "blue")])


class Tensors:
    """A dataclass of tensors alone, which are moved, indexed and joined together."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor changed."""
        return type(self)(**{field.name: change(getattr(self, field.name)) for field in fields(self)})

    def to(self, device: str | torch.device) -> Self:
        """The same on another device."""
        return self.each(lambda values: values.to(device))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return self.each(lambda values: values[rows])

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One after the other, along the first axis."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})


@dataclass(frozen=True)
class Street(Tensors):
    """A town as tensors, in metres east and north of its first crossing."""

    # (lines,) from the middle of a north-south street to its facades; entry i lies at east `BLOCK_M * (i - 1)`, so that
    # the ring of blocks around the town has streets too.
    half_width_x: Tensor
    half_width_y: Tensor  # (lines,) the same for the east-west streets
    walls: Tensor  # (walls, 4) ends of each in plan (east, north, east, north), left to right seen from outside
    wall_house: Tensor  # (walls,) row in `houses`
    wall_kind: Tensor  # (walls,) a Wall each
    houses: Tensor  # (attributes, houses), rows named by HOUSE_ROWS
    boards: Tensor  # (boards, 8) trees, lamps: kind, east, north, height_m, radius_m, foot of crown_m, tint, number
    bays: Tensor  # (bays, 3) parking bays: east, north, and 1 where the street runs north-south
    places: Tensor  # (places, 3) east, north, and the street's course: 0 north-south, 1 east-west, 2 a crossing
    facades: Tensor  # (3, texels) photos that houses have for fronts (see facades.py), often none
    noise: Tensor  # (512, 512) fractal noise that tiles, mean 0, about -1 to 1

    def houses_at(self, rows: Tensor) -> dict[str, Tensor]:
        """The attributes of houses by their names, each of the rows' shape."""
        found = self.houses.index_select(1, rows.flatten()).unflatten(1, rows.shape)
        return dict(zip(HOUSE_ROWS, found, strict=True))

    def beside(self, east: Tensor, north: Tensor) -> "Beside":
        """Where points lie in the streets nearest to them."""
        line_x, line_y = (east / BLOCK_M).round(), (north / BLOCK_M).round()
        last = len(self.half_width_x) - 1
        return Beside(
            line_x, line_y, self.half_width_x.index_select(0, (line_x.long() + 1).clamp(0, last)),
            self.half_width_y.index_select(0, (line_y.long() + 1).clamp(0, last)), east - line_x * BLOCK_M,
            north - line_y * BLOCK_M,
        )  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """Points in the nearest north-south street (x) and the nearest east-west street (y), (points,) each."""

    line_x: Tensor  # number of the street
    line_y: Tensor
    half_x: Tensor  # metres from its middle to its facades
    half_y: Tensor
    offset_x: Tensor  # metres east, or north, of its middle
    offset_y: Tensor


def lay_out_street(
    places: int, seed: int, *, alike: float = 0.0, landmarks: bool = False, facades: Tensor | None = None
) -> Street:
    """A town with room for `places` places, all of it drawn from `seed`.

    Args:
        places: how many places it has, each at least `PLACE_SPACING_M` from the next.
        seed: any integer; the same seed and number of places give the same town.
        alike: share of houses that look like the one to their left but for details.
        landmarks: some houses are towers, each of a colour of its own.
        facades: photos (see `read_facades`) that most houses have for fronts.
    """
    random = torch.Generator().manual_seed(seed)
    blocks = 1
    while (2 * blocks + 1) ** 2 - blocks**2 < places:
        blocks += 1
    lines = blocks + 3  # the town's own blocks + 1 streets, and one more on each side
    half_width_x, half_width_y = 8.4 + 2.8 * torch.rand(2, lines, generator=random)
    half_widths = {"half_width_x": half_width_x, "half_width_y": half_width_y}
    walls, widths = _build_walls(half_width_x.tolist(), half_width_y.tolist(), random)
    street = Street(
        **half_widths, **walls, houses=_design_houses(widths, random),
        boards=_plant_boards(**half_widths, random=random), bays=_mark_bays(**half_widths),
        places=_choose_places(blocks, places, random),
        facades=torch.empty(3, 0, dtype=torch.uint8) if facades is None else facades, noise=tiling_noise(random),
    )  # fmt: skip
    # Whatever may be left out comes last and draws apart, so that the rest of a town stays as it is.
    random = torch.Generator().manual_seed(seed + 2)
    if alike:
        street = _repeat_houses(street, alike, random)
    if facades is not None:
        street = _hang_photos(street, random)
    return _raise_towers(street, random) if landmarks else street


def _choose_places(blocks: int, count: int, random: torch.Generator) -> Tensor:
    """(count, 3) crossings and mid-blocks; the inner points of blocks aren't streets."""
    across = torch.arange(2 * blocks + 1)
    column, row = (part.flatten() for part in torch.meshgrid(across, across, indexing="ij"))
    on_street = (column % 2 == 0) | (row % 2 == 0)
    column, row = column[on_street], row[on_street]
    # A mid-block of a north-south street lies on an even column and an odd row.
    course = torch.where(row % 2 == 1, 0, torch.where(column % 2 == 1, 1, 2))
    candidates = torch.stack([column * PLACE_SPACING_M, row * PLACE_SPACING_M, course.float()], dim=1)
    return candidates[torch.randperm(len(candidates), generator=random)[:count]]


def _build_walls(
    half_width_x: list[float], half_width_y: list[float], random: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Houses around every block, each with four walls whose right-hand side is the outside; and their widths."""
    corners, widths, kinds = [], [], []
    for block_x in range(len(half_width_x) - 1):
        west = BLOCK_M * (block_x - 1) + half_width_x[block_x]
        east = BLOCK_M * block_x - half_width_x[block_x + 1]
        for block_y in range(len(half_width_y) - 1):
            south = BLOCK_M * (block_y - 1) + half_width_y[block_y]
            north = BLOCK_M * block_y - half_width_y[block_y + 1]
            depth = HOUSE_DEPTH_M + 1.5  # the houses of the other two sides stand between these
            for start, along, length, has_corners in (
                ((west, south), (1.0, 0.0), east - west, True),
                ((east, north), (-1.0, 0.0), east - west, True),
                ((east, south + depth), (0.0, 1.0), north - south - 2 * depth, False),
                ((west, north - depth), (0.0, -1.0), north - south - 2 * depth, False),
            ):
                for offset, width, setback in _divide_side(length, random):
                    inward = (-along[1], along[0])
                    foot = _step(_step(start, along, offset), inward, setback)
                    right = _step(foot, along, width)
                    back = [_step(front, inward, HOUSE_DEPTH_M) for front in (right, foot)]
                    corners.append((foot, right, *back))
                    widths.append(width)
                    # A corner house has fronts on both streets.
                    left = Wall.FRONT if has_corners and offset == 0 else Wall.SIDE
                    right_side = Wall.FRONT if has_corners and offset + width > length - 0.5 else Wall.SIDE
                    kinds += [Wall.FRONT, right_side, Wall.BACK, left]
    ring = torch.tensor(corners)  # (houses, 4 corners, 2)
    walls = torch.cat([ring, ring.roll(-1, dims=1)], dim=-1).flatten(0, 1)  # (houses * 4, 4)
    wall_house = torch.arange(len(ring)).repeat_interleave(4)
    return {"walls": walls, "wall_house": wall_house, "wall_kind": torch.tensor(kinds)}, torch.tensor(widths)


def _step(start: tuple[float, float], course: tuple[float, float], metres: float) -> tuple[float, float]:
    return start[0] + course[0] * metres, start[1] + course[1] * metres


def _divide_side(length: float, random: torch.Generator) -> list[tuple[float, float, float]]:
    """Offset, width and setback of the houses along one side of a block, with a gap here and there."""
    houses, offset = [], 0.0
    while length - offset > 7.0:
        draw = torch.rand(4, generator=random).tolist()
        width = 7.0 + 9.0 * draw[0]
        if length - offset - width < 7.5:
            width = length - offset
        houses.append((offset, width, 1.4 * draw[1] if draw[2] < 0.3 else 0.0))
        offset += width + (2.0 + 3.5 * draw[3] / 0.22 if draw[3] < 0.22 else 0.0)
    return houses


def _design_houses(widths: Tensor, random: torch.Generator) -> Tensor:
    """(attributes, houses): every feature drawn on its own, so that few houses are alike."""
    count = len(widths)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    def chance(share: float) -> Tensor:
        return (torch.rand(count, generator=random) < share).float()

    def pick(number: int) -> Tensor:
        return torch.randint(number, (count,), generator=random)

    material, shade = pick(4), pick(5)
    colour = torch.tensor(WALL_COLOURS)[material, shade] * uniform(0.88, 1.12)[:, None]
    spacing = uniform(1.9, 3.9)
    columns = (widths / spacing).floor().clamp(2, 7)
    shop = chance(0.42)
    ground_columns = torch.where(shop > 0, (widths / uniform(2.8, 5.0)).floor().clamp(2, 4), columns)
    rows = {
        "number": torch.arange(count).float(), "storeys": pick(4).float() + 1 + chance(0.25),
        "ground_m": uniform(3.1, 4.4), "storey_m": uniform(2.7, 3.6), "roof": pick(4).float(),
        "roof_m": uniform(1.8, 4.0), "material": material.float(), "wall_red": colour[:, 0],
        "wall_green": colour[:, 1], "wall_blue": colour[:, 2], "trim": 0.30 + 0.55 * chance(0.7) * uniform(0.8, 1.1),
        "accent": pick(len(ACCENT_COLOURS)).float(), "door_accent": pick(len(ACCENT_COLOURS)).float(),
        "columns": columns, "window_width": uniform(0.34, 0.72), "window_height": uniform(0.42, 0.68),
        "sill_m": uniform(0.45, 0.95), "arched": chance(0.28), "panes_across": pick(3).float() + 1,
        "panes_up": pick(3).float() + 1, "shutters": chance(0.25), "blank": chance(0.45) * uniform(0.12, 0.35),
        "balconies": chance(0.4) * uniform(0.2, 0.6), "band": chance(0.5), "shop": shop, "awning": chance(0.5),
        "door_column": (torch.rand(count, generator=random) * ground_columns).floor(),
        "ground_columns": ground_columns, "banner": chance(0.28) * uniform(0.1, 0.9),
        "roof_tint": uniform(0.0, 1.0), "photo": torch.full((count,), -1.0),
    }  # fmt: skip
    return torch.stack([rows[name] for name in HOUSE_ROWS])


def _repeat_houses(street: Street, share: float, random: torch.Generator) -> Street:
    """Rows of houses alike: some take over what their left neighbour has, but for what people change."""
    houses = street.houses.clone()
    own = {"number", "accent", "door_accent", "door_column", "banner", "awning", "shutters", "balconies"}
    rows = torch.tensor([i for i, name in enumerate(HOUSE_ROWS) if name not in own])
    follows = torch.rand(houses.shape[1], generator=random) < share
    tone = 0.94 + 0.12 * torch.rand(houses.shape[1], generator=random)
    for house in range(1, houses.shape[1]):
        if follows[house]:
            houses[rows, house] = houses[rows, house - 1]
            houses[COLOUR_ROWS, house] *= tone[house]
            door = HOUSE_ROWS.index("door_column")
            houses[door, house] = houses[door, house].minimum(houses[HOUSE_ROWS.index("ground_columns"), house] - 1)
    return replace(street, houses=houses)


def _hang_photos(street: Street, random: torch.Generator) -> Street:
    """Five of six houses show a photo, which neighbours never share, and the rest of their wall in its colours."""
    houses, count = street.houses.clone(), count_facades(street.facades)
    hung = torch.rand(houses.shape[1], generator=random) < 5 / 6
    order = torch.cat([torch.randperm(count, generator=random) for _ in range(houses.shape[1] // count + 1)])
    photo = order[: houses.shape[1]]
    beside_a_window, low = torch.full((count,), 0.03), torch.full((count,), 0.45)
    tone = facade_at(street.facades, torch.arange(count), beside_a_window, low, low * 1e3)
    houses[HOUSE_ROWS.index("photo")] = torch.where(hung, photo, -1).float()
    houses[COLOUR_ROWS] = torch.where(hung, tone[:, photo], houses[COLOUR_ROWS])
    return replace(street, houses=houses)


def _raise_towers(street: Street, random: torch.Generator) -> Street:
    """One house in twelve becomes a tower, 20 to 45 m high, in a colour that other houses don't have."""
    houses, count = street.houses.clone(), street.houses.shape[1]
    chosen = torch.randperm(count, generator=random)[: count // 12]
    storeys, storey_m, roof_m, hue, light = torch.rand(5, len(chosen), generator=random)
    changed = {"storeys": 5 + (7 * storeys).floor(), "storey_m": 3 + 0.6 * storey_m, "roof_m": 2 + 6 * roof_m}
    for name, values in changed.items():
        houses[HOUSE_ROWS.index(name), chosen] = values
    wheel = torch.stack([hue, (hue + 1 / 3) % 1, (hue + 2 / 3) % 1])
    houses[COLOUR_ROWS[:, None], chosen] = (0.16 + 0.36 * (2 * wheel - 1).abs()) * (0.6 + 0.7 * light)
    return replace(street, houses=houses)


def _along_streets(half_width_x: Tensor, half_width_y: Tensor, spacing_m: float) -> tuple[Tensor, ...]:
    """Points every `spacing_m` along all streets: middle of the street (east, north), course, half width, index.

    The course is 1 for north-south streets. Points on crossings, where nothing may stand, are left out.
    """
    found = []
    for course, own, crossing in ((1, half_width_x, half_width_y), (0, half_width_y, half_width_x)):
        middle = BLOCK_M * (torch.arange(len(own)) - 1.0)
        along = torch.arange(-BLOCK_M, BLOCK_M * (len(crossing) - 2) + 0.1, spacing_m) + spacing_m / 2
        line = (along / BLOCK_M).round().long()
        clear = (along - line * BLOCK_M).abs() > crossing[(line + 1).clamp(0, len(crossing) - 1)] + 3.0
        index = torch.arange(len(along))[clear]
        along = along[clear]
        street, point = torch.meshgrid(torch.arange(len(own)), torch.arange(len(along)), indexing="ij")
        street, point = street.flatten(), point.flatten()
        across_m, along_m = middle[street], along[point]
        east, north = (across_m, along_m) if course == 1 else (along_m, across_m)
        found.append((east, north, torch.full_like(street, course), own[street], index[point]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _beside(east: Tensor, north: Tensor, course: Tensor, offset_m: Tensor) -> tuple[Tensor, Tensor]:
    return east + offset_m * (course == 1), north + offset_m * (course == 0)


def _plant_boards(half_width_x: Tensor, half_width_y: Tensor, random: torch.Generator) -> Tensor:
    """(boards, 8) trees along some streets and lamps along all of them."""
    east, north, course, half_width, index = _along_streets(half_width_x, half_width_y, 24.0)
    side = torch.where(index % 2 == 0, 1.0, -1.0)
    lamp_east, lamp_north = _beside(east, north, course, side * (half_width - PAVEMENT_M + 0.4))
    ones = torch.ones_like(lamp_east)
    lamps = [Board.LAMP * ones, lamp_east, lamp_north, 5.6 * ones, 0.5 * ones, 0 * ones, 0 * ones]
    east, north, course, half_width, _ = _along_streets(half_width_x, half_width_y, 11.0)
    trees = []
    for side in (-1.0, 1.0):
        draw = torch.rand(7, len(east), generator=random)
        # Density changes every 60 m or so: an avenue here, a bare street there.
        stretch = ((east / 60).round() * 31 + (north / 60).round() * 17 + side * 5 + 1000).long()
        density = torch.rand(int(stretch.max()) + 1, generator=random)[stretch]
        stands = draw[0] < (1.1 * density - 0.35)
        along = 5.0 * (draw[1] - 0.5)
        tree_east, tree_north = _beside(east, north, course, side * (half_width - PAVEMENT_M + 0.7))
        tree_east, tree_north = _beside(tree_east, tree_north, 1 - course, along)
        height = 5.0 + 4.5 * draw[2]
        radius, foot = 1.2 + 1.5 * draw[3], 2.1 + 0.9 * draw[4]
        tree = torch.stack([0 * height + Board.TREE, tree_east, tree_north, height, radius, foot, draw[5]], dim=1)
        trees.append(tree[stands])
    boards = torch.cat([torch.stack(lamps, dim=1), *trees])
    return torch.cat([boards, torch.arange(len(boards)).float()[:, None]], dim=1)


def _mark_bays(half_width_x: Tensor, half_width_y: Tensor) -> Tensor:
    """(bays, 3) parking bays along both kerbs of every street."""
    east, north, course, half_width, _ = _along_streets(half_width_x, half_width_y, 6.0)
    sides = []
    for side in (-1.0, 1.0):
        bay_east, bay_north = _beside(east, north, course, side * (half_width - PAVEMENT_M - 1.15))
        sides.append(torch.stack([bay_east, bay_north, course.float()], dim=1))
    return torch.cat(sides)
