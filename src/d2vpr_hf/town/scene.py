"""Photos of a made-up town: samples the rays of a batch of cameras, lights what they meet, and develops the picture."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import hash01, mix, noise_at, smooth_noise_at
from .plan import BLOCK_M, PAVEMENT_M, Board, Street, Tensors
from .rays import BOARD, CAR, CAR_LAYERS, FAR_M, GROUND, LAYERS, SKY, WALL, Cameras, Rays, cast_rays, nearest, to_view
from .surfaces import OnWall, Surface, shade_boards, shade_cars, shade_ground, shade_walls
from .weather import Weather

SUPERSAMPLE = 2  # rays a pixel along each side
NEAR_LAMPS = 8
HILLS_M = 40.0  # height of the hills around the town, at `HORIZON_M`
HORIZON_M = 900.0


@torch.no_grad()
def render(street: Street, cameras: Cameras, weather: Weather, *, height: int = 240, width: int = 320) -> Tensor:
    """Photos as (batch, height, width, 3) uint8 sRGB, on the device of the town, of the cameras and of the weather."""
    if len(cameras) != len(weather):
        raise ValueError(f"render got {len(cameras)} cameras and {len(weather)} weathers. Give one weather a camera.")
    rays = cast_rays(street, cameras, weather, height * SUPERSAMPLE, width * SUPERSAMPLE)
    light = _expose(street, weather, rays)  # (batch, 3, height, width), linear
    light = _add_halos(street, cameras, weather, light, rays)
    light = _add_fall(street.noise, weather, light)
    return _develop(weather, light)


@dataclass(frozen=True)
class _Hits(Tensors):
    """Samples of the picture and what they meet, (samples,) each."""

    view: Tensor
    bin: Tensor
    layer: Tensor
    ahead: Tensor
    course: Tensor
    rise: Tensor
    pixel: Tensor  # width of the sample, metres at 1 m ahead

    def of(self, table: Tensor) -> Tensor:
        """(samples,) entries of a (batch, layers, bins) table."""
        layers, bins = table.shape[1:]
        return table.flatten().index_select(0, (self.view * layers + self.layer) * bins + self.bin)


@dataclass(frozen=True)
class _Points:
    """Where samples meet something, (samples,) each, and the weather there."""

    east: Tensor
    north: Tensor
    z: Tensor
    distance: Tensor
    size: Tensor  # width of the sample in metres
    weather: Weather

    @staticmethod
    def of(hits: _Hits, rays: Rays, weather: Weather) -> "_Points":
        eye = rays.eye.index_select(0, hits.view).unbind(1)
        forward = rays.forward.index_select(0, hits.view).unbind(1)
        right = hits.ahead * hits.course
        return _Points(
            east=eye[0] + hits.ahead * forward[0] + right * forward[1],
            north=eye[1] + hits.ahead * forward[1] - right * forward[0], z=eye[2] + hits.ahead * hits.rise,
            distance=hits.ahead * (1 + hits.course.square() + hits.rise.square()).sqrt(),
            size=hits.ahead * hits.pixel, weather=weather.spread(hits.view),
        )  # fmt: skip


def _expose(street: Street, weather: Weather, rays: Rays) -> Tensor:
    """(batch, 3, height, width) linear light; a pixel whose rays all meet one plane is sampled once."""
    batch = len(weather)
    height, width = (side // SUPERSAMPLE for side in rays.shape)

    def by_pixel(values: Tensor) -> Tensor:
        """(batch * height * width, rays of a pixel)"""
        blocks = values.view(batch, height, SUPERSAMPLE, width, SUPERSAMPLE).transpose(2, 3)
        return blocks.reshape(-1, SUPERSAMPLE**2)

    code, column = by_pixel(rays.code), by_pixel(rays.column)
    course, rise, ahead = by_pixel(rays.course), by_pixel(rays.rise), by_pixel(rays.ahead)
    view = torch.arange(batch, device=code.device).repeat_interleave(height * width)
    kind, layer = code // LAYERS, code % LAYERS
    layers, bins = rays.walls["wall"].shape[1:]
    wall_at = (view[:, None] * layers + layer.clamp(max=layers - 1)) * bins + column
    wall = rays.walls["wall"].flatten().index_select(0, wall_at.flatten()).view_as(code)
    thing = torch.where(kind == WALL, wall + 100, kind)
    plain = (thing == thing[:, :1]).all(dim=1) & (kind[:, 0] != BOARD) & (kind[:, 0] != CAR)
    once, often = plain.nonzero()[:, 0], (~plain).nonzero()[:, 0]

    def samples(values: Tensor, *, mean: bool) -> Tensor:
        first = values.index_select(0, once)
        return torch.cat([first.mean(dim=1) if mean else first[:, 0], values.index_select(0, often).flatten()])

    view = torch.cat([view[once], view[often].repeat_interleave(SUPERSAMPLE**2)])
    kind = samples(kind, mean=False)
    size = torch.full_like(view, 1.0, dtype=torch.float32)
    size[: len(once)] = SUPERSAMPLE
    hits = _Hits(
        view, samples(column, mean=False), samples(layer, mean=False), samples(ahead, mean=True),
        samples(course, mean=True), samples(rise, mean=True), size / rays.focal[view],
    )  # fmt: skip
    light = torch.empty(3, len(view), device=view.device)
    for this, shader in (
        (SKY, _light_sky), (WALL, _light_walls), (GROUND, _light_ground), (BOARD, _light_boards), (CAR, _light_cars)
    ):  # fmt: skip
        at = (kind == this).nonzero()[:, 0]
        if len(at):
            these = hits.each(lambda values, at=at: values.index_select(0, at))
            light[:, at] = shader(street, weather, rays, these)
    picture = torch.empty(3, batch * height * width, device=view.device)
    picture[:, once] = light[:, : len(once)]
    picture[:, often] = light[:, len(once) :].view(3, -1, SUPERSAMPLE**2).mean(dim=2)
    return picture.view(3, batch, height, width).transpose(0, 1)


def _light_walls(street: Street, weather: Weather, rays: Rays, hits: _Hits) -> Tensor:
    walls, points = rays.walls, _Points.of(hits, rays, weather)
    bins = rays.middles.shape[1]
    spread = hits.of(walls["spread"])
    # The table holds the middle of the bin, and the sample may lie beside it.
    aside = hits.course - rays.middles.flatten().index_select(0, hits.view * bins + hits.bin)
    at = OnWall(
        house=hits.of(walls["house"]), kind=hits.of(walls["kind"]), u=hits.of(walls["along"]) + spread * aside,
        z=points.z, length=hits.of(walls["length"]), blur_u=spread.abs() * hits.pixel, blur_z=points.size,
    )  # fmt: skip
    surface = shade_walls(street, at, points.weather)
    normal = (hits.of(walls["normal_east"]), hits.of(walls["normal_north"]), torch.zeros_like(points.z))
    return _lit(street, points, surface, normal)


def _light_ground(street: Street, weather: Weather, rays: Rays, hits: _Hits) -> Tensor:
    points = _Points.of(hits, rays, weather)
    blur = points.size * (1 + points.distance / 12)  # a pixel is longer than wide on the ground
    surface = shade_ground(street, points.east, points.north, blur, points.weather.wet, points.weather.snow)
    flat = torch.zeros_like(blur)
    return _lit(street, points, surface, (flat, flat, flat + 1)) * _shade_under_cars(rays, hits)


def _shade_under_cars(rays: Rays, hits: _Hits) -> Tensor:
    """(samples,) 1 in the open, less between a car's floor and the ground."""
    shade = torch.ones_like(hits.ahead)
    bins = rays.middles.shape[1]
    for k in range(CAR_LAYERS):
        at = (hits.view * CAR_LAYERS + k) * bins + hits.bin
        enter = rays.cars["enter"].flatten().index_select(0, at)
        leave = rays.cars["leave"].flatten().index_select(0, at)
        under = ((hits.ahead - enter + 0.25) / 0.3).clamp(0, 1) * ((leave - hits.ahead + 0.25) / 0.3).clamp(0, 1)
        shade = torch.minimum(shade, 1 - 0.75 * under)
    return shade


def _light_boards(street: Street, weather: Weather, rays: Rays, hits: _Hits) -> Tensor:
    points = _Points.of(hits, rays, weather)
    board = street.boards.index_select(0, hits.of(rays.boards["row"]))
    x = hits.ahead * hits.course - hits.of(rays.boards["right"])
    surface = shade_boards(street.noise, board, x, points.z, points.weather)
    # Rounded across, and turned half to the sky.
    east, north = rays.forward.index_select(0, hits.view).unbind(1)
    bulge = (x / board[:, 4]).clamp(-1, 1)
    normal = (north * bulge - 0.5 * east, -east * bulge - 0.5 * north, torch.full_like(x, 0.6))
    length = (bulge.square() + 0.61).sqrt()
    return _lit(street, points, surface, tuple(part / length for part in normal))


def _light_cars(street: Street, weather: Weather, rays: Rays, hits: _Hits) -> Tensor:
    cars, points = rays.cars, _Points.of(hits, rays, weather)
    north_south = hits.of(cars["course"]) == 1
    east, north = points.east - hits.of(cars["east"]), points.north - hits.of(cars["north"])
    along, across = torch.where(north_south, north, east), torch.where(north_south, east, north)
    size = torch.stack([hits.of(cars["half_length"]), hits.of(cars["half_width"]), hits.of(cars["roof"])])
    waist = hits.of(cars["waist"])
    cabin = points.z > waist + 1e-3
    surface = shade_cars(hits.of(cars["colour"]), size, along, across, points.z, cabin, points.weather.snow)
    flank = across.abs() > size[1] - 0.14
    top = (points.z > size[2] - 0.03) | (~cabin & (points.z > waist - 0.02))
    sideways = torch.where(top | ~flank, 0.0, across.sign())
    lengthways = torch.where(top | flank, 0.0, along.sign())
    east, north = torch.where(north_south, sideways, lengthways), torch.where(north_south, lengthways, sideways)
    return _lit(street, points, surface, (east * 0.98, north * 0.98, torch.where(top, 1.0, 0.2)))


def _lit(street: Street, points: _Points, surface: Surface, normal: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(3, samples) light that leaves a surface towards the camera, through the air between."""
    weather = points.weather
    sun = weather.sun.unbind(1)
    sun_light, sky_light, horizon = (
        part.T.contiguous() for part in (weather.sun_light, weather.sky_light, weather.horizon)
    )
    open_sky = 0.62 + 0.38 * normal[2].clamp(min=0) + 0.10 * (points.z / 10).clamp(0, 1)
    light = sky_light * open_sky
    if bool((weather.sun_light > 0).any()):
        facing = (normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2]).clamp(min=0)
        light = light + sun_light * (facing * _sun_reaches(street, points))
    if bool((weather.lamps > 0).any()):
        warm = torch.tensor([1.0, 0.78, 0.48], device=light.device)[:, None]
        light = light + warm * (weather.lamps * _lamp_light(street, points, normal))
    colour = surface.albedo * light + surface.glow + horizon * (surface.gloss * 0.22)
    return mix(horizon, colour, (-points.distance * weather.fog_per_m).exp())


def _sun_reaches(street: Street, hits: _Points) -> Tensor:
    """(hits,) 0 where the houses across the street stand in the sun; their roofs are taken as 9 to 15 m high."""
    sun = hits.weather.sun
    at = street.beside(hits.east, hits.north)
    in_x, in_y = at.offset_x.abs() < at.half_x + 1.6, at.offset_y.abs() < at.half_y + 1.6
    # Metres in plan to the facade towards the sun.
    to_x = (at.half_x - at.offset_x * sun[:, 0].sign()).clamp(min=0) / sun[:, 0].abs().clamp(min=1e-3)
    to_y = (at.half_y - at.offset_y * sun[:, 1].sign()).clamp(min=0) / sun[:, 1].abs().clamp(min=1e-3)
    run = torch.where(in_x, to_x, to_y)
    crossing = in_x & in_y
    across = torch.where(in_x, hits.north + run * sun[:, 1], hits.east + run * sun[:, 0])
    block = at.line_x.long() * 31 + at.line_y.long() + 1000
    roof = 9 + 6 * hash01((across / 11).floor().long() + 1000, block, 21)
    level = hits.z + run * sun[:, 2] / sun[:, :2].norm(dim=1).clamp(min=1e-3)
    return torch.where(crossing, 1.0, ((level - roof) / 0.4 + 0.5).clamp(0, 1))


def _lamp_light(street: Street, hits: _Points, normal: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(hits,) light of the nearest street lamps, which stand every 24 m on alternate sides of each street."""
    at = street.beside(hits.east, hits.north)
    away_x, away_y = at.offset_x.abs(), at.offset_y.abs()
    on_x = (away_x < at.half_x + 1.6) & ((away_y >= at.half_y) | (away_x < away_y))
    along = torch.where(on_x, hits.north, hits.east) + BLOCK_M
    across = torch.where(on_x, at.offset_x, at.offset_y)
    half = torch.where(on_x, at.half_x, at.half_y)
    nearest = (along / 24 - 0.5).round()
    total = torch.full_like(across, 0.02)
    across_normal = torch.where(on_x, normal[0], normal[1])
    along_normal = torch.where(on_x, normal[1], normal[0])
    for step in (-1, 0, 1):
        index = nearest + step
        side = torch.where(torch.remainder(index, 2) == 0, 1.0, -1.0)
        to_along = (index + 0.5) * 24 - along
        to_across = side * (half - PAVEMENT_M + 0.4) - across
        to_up = 5.4 - hits.z
        square = to_along.square() + to_across.square() + to_up.square()
        towards = to_along * along_normal + to_across * across_normal + to_up * normal[2]
        total = total + 9.0 * (towards / square.sqrt() * 0.8 + 0.2).clamp(min=0.05) / (square + 6)
    return total


def _light_sky(street: Street, weather: Weather, rays: Rays, hits: _Hits) -> Tensor:
    here = weather.spread(hits.view)
    horizon, zenith, sun_light, sky_light = here.horizon.T, here.zenith.T, here.sun_light.T, here.sky_light.T
    forward = rays.forward.index_select(0, hits.view).unbind(1)
    # Direction with length 1 in plan.
    east, north = forward[0] + hits.course * forward[1], forward[1] - hits.course * forward[0]
    plan = (1 + hits.course.square()).sqrt()
    east, north, up = east / plan, north / plan, hits.rise / plan
    sky = mix(horizon, zenith, 1 - (-3.2 * up.clamp(min=0)).exp())
    drift = (here.visit % 977).float()
    sheet = 1.0 / (up.clamp(min=0.0) + 0.12)
    cloud = smooth_noise_at(street.noise, east * sheet * 0.8 + drift, north * sheet * 0.8 + drift * 0.7)
    cloud = ((cloud + 1.6 * here.clouds - 0.7) * 1.6).clamp(0, 1) * (up * 6).clamp(0, 1) * (here.clouds < 0.99)
    sky = mix(sky, sky_light * 1.05 + 0.25 * sun_light, 0.75 * cloud)
    sun = here.sun.unbind(1)
    glare = (east * sun[0] + north * sun[1] + up * sun[2]) / (1 + up.square()).sqrt()
    sky = sky + sun_light * (0.35 * glare.clamp(min=0) ** 24)
    azimuth = torch.atan2(east, north) / math.pi * 10
    crest = (HILLS_M + 26 * noise_at(street.noise, azimuth, azimuth * 0)) / HORIZON_M
    ridge = sky_light * torch.tensor([0.20, 0.25, 0.22], device=sky.device)[:, None]
    ridge = mix(horizon, ridge, (-HORIZON_M * here.fog_per_m).exp() * 0.8)
    return mix(sky, ridge, ((crest - up) * 300).clamp(0, 1))


def _add_halos(street: Street, cameras: Cameras, weather: Weather, light: Tensor, rays: Rays) -> Tensor:
    """Glare around the lamps that are in view and nothing hides."""
    if not bool((weather.lamps > 0).any()):
        return light
    batch, _, height, width = light.shape
    is_lamp = street.boards[:, 0] == Board.LAMP
    lamps = street.boards[is_lamp]
    right, ahead = to_view(lamps[None, :, 1:3].expand(batch, -1, -1), rays.eye, rays.forward)
    in_view = (ahead > 2) & (right.abs() < ahead * 1.2)
    score, near = nearest(torch.where(in_view, ahead, FAR_M), NEAR_LAMPS)
    right, ahead = right.gather(1, near), ahead.gather(1, near)
    ahead = ahead.clamp(min=0.5)
    focal = (rays.focal / SUPERSAMPLE)[:, None]
    roll, pitch = (torch.deg2rad(angle)[:, None] for angle in (cameras.roll_deg, cameras.pitch_deg))
    up = 5.45 - rays.eye[:, 2:]
    depth = ahead * pitch.cos() + up * pitch.sin()
    lift = up * pitch.cos() - ahead * pitch.sin()
    x = (right * roll.cos() - lift * roll.sin()) / depth * focal + width / 2
    y = height / 2 - (lift * roll.cos() + right * roll.sin()) / depth * focal
    inside = (x > 0) & (x < width) & (y > 0) & (y < height) & (score < FAR_M)
    rows, columns = rays.shape
    at = (y * SUPERSAMPLE).long().clamp(0, rows - 1) * columns + (x * SUPERSAMPLE).long().clamp(0, columns - 1)
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
    if not bool((weather.fall > 0).any()):
        return light
    _, _, height, width = light.shape
    row = torch.arange(height, device=light.device)[:, None].expand(height, width)
    column = torch.arange(width, device=light.device)[None].expand(height, width)
    visit = weather.visit[:, None, None]
    lane = column + row // 8  # the wind slants them
    streak = hash01(lane, visit % 65521, (row + hash01(lane, visit % 65521, 5) * 90).long() // 18, 6) > 0.965
    total = torch.where(((weather.wet > 0.9) & (weather.fall > 0))[:, None, None], 0.13 * streak.float(), 0.0)
    for size, share in ((3, 0.004), (5, 0.010), (9, 0.012)):
        cell_row, cell_column = row // size, column // size
        there = hash01(cell_row + 1, cell_column + 1, visit % 65521, size) < share * 2.2
        from_middle = ((row % size - size / 2 + 0.5).square() + (column % size - size / 2 + 0.5).square()).sqrt()
        flake = (1.1 - from_middle / (size * 0.42)).clamp(0, 1) * there
        total = torch.maximum(total, flake * ((weather.snow > 0.5) & (weather.fall > 0))[:, None, None] * 0.75)
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
    encoded = torch.lerp(encoded, encoded.square() * (3 - 2 * encoded), 0.55)  # contrast
    pixel = torch.arange(height * width * 3, device=light.device).view(3, height, width)[None]
    seed = (weather.visit % 65521)[:, None, None, None]
    grain = hash01(pixel, seed, 1) + hash01(pixel, seed, 2) - 1.0  # triangular, standard deviation 0.41
    encoded = encoded + grain * (weather.grain / 0.41)[:, None, None, None]
    return (encoded * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
