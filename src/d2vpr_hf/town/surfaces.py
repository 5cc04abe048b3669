"""What the surfaces of a made-up town look like: colour, glow and normal of facades, ground, trees, lamps and cars."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .facades import HEIGHT, WIDTH, facade_at
from .noise import hash01, inside, mix, noise_at
from .plan import ACCENT_COLOURS, PAVEMENT_M, Board, Material, Roof, Street, Tensors, Wall
from .weather import Weather


@dataclass(frozen=True)
class Surface:
    """What light meets at some points: albedo and glow are (3, points) linear RGB, gloss is (points,)."""

    albedo: Tensor
    glow: Tensor | float = 0.0
    gloss: Tensor | float = 0.0


def _rgb(like: Tensor, red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue], device=like.device)[:, None]


def roof_line(attributes: dict[str, Tensor], kind: Tensor, u: Tensor, length: Tensor) -> Tensor:
    """Height in metres of a wall's upper edge at `u` metres from its left end; all arguments broadcast."""
    eaves = attributes["ground_m"] + attributes["storeys"] * attributes["storey_m"]
    roof, rise = attributes["roof"], attributes["roof_m"]
    slope = 1 - (2 * u / length - 1).abs()  # 0 at both ends, 1 in the middle
    front_rise = torch.where(roof == Roof.GABLE, rise * 1.4 * slope, torch.full_like(slope, 0.5))
    front_rise = torch.where(roof == Roof.STEPPED, rise * 1.2 * (slope * 4).ceil() / 4, front_rise)
    front_rise = torch.where(roof == Roof.PITCHED, rise, front_rise)
    side_rise = torch.where(roof == Roof.PITCHED, rise * slope, torch.full_like(slope, 0.5))
    return eaves + torch.where((kind == Wall.FRONT) | (kind == Wall.BACK), front_rise, side_rise)


@dataclass(frozen=True)
class OnWall(Tensors):
    """Points on walls, (points,) each."""

    house: Tensor  # row of the house
    kind: Tensor  # a Wall each
    u: Tensor  # metres from the wall's left end
    z: Tensor  # metres above the ground
    length: Tensor  # metres, the wall's
    blur_u: Tensor  # size of the pixel on the wall, in metres
    blur_z: Tensor


def shade_walls(street: Street, at: OnWall, weather: Weather) -> Surface:
    """Facades at some points, in the weather of each point's photo."""
    photo = street.houses_at(at.house)["photo"]
    shown = (at.kind == Wall.FRONT) & (photo >= 0) & (at.z < at.length * HEIGHT / WIDTH)
    if not bool(shown.any()):
        return _shade_drawn(street, at, weather)
    # From the ground up as a photo shows them, as far as it reaches, and drawn above.
    shown, drawn = shown.nonzero()[:, 0], (~shown).nonzero()[:, 0]
    above = _shade_drawn(street, at[drawn], weather[drawn] if len(weather) > 1 else weather)
    photographed = at[shown]
    share = photographed.u / photographed.length
    rise = photographed.z / photographed.length * WIDTH / HEIGHT
    texel = photographed.blur_u / photographed.length * WIDTH
    albedo = torch.empty(3, len(photo), device=photo.device)
    albedo[:, shown], albedo[:, drawn] = facade_at(street.facades, photo[shown], share, rise, texel), above.albedo
    glow, gloss = torch.zeros_like(albedo), torch.zeros_like(photo)
    glow[:, drawn], gloss[drawn] = above.glow, above.gloss
    return Surface(albedo, glow, gloss)


def _shade_drawn(street: Street, at: OnWall, weather: Weather) -> Surface:
    lit_share, lamps, snow, visit = weather.lit_share, weather.lamps, weather.snow, weather.visit
    u, z, blur_u, blur_z = at.u, at.z, at.blur_u, at.blur_z
    a = street.houses_at(at.house)
    front = at.kind == Wall.FRONT
    number = at.house * 4 + at.kind
    eaves = a["ground_m"] + a["storeys"] * a["storey_m"]
    albedo = _masonry(street.noise, a, u, z, blur_z, number)
    trim = a["trim"] * _rgb(u, 1.0, 0.97, 0.90)
    palette = torch.tensor(ACCENT_COLOURS, device=u.device).T
    accent = palette.index_select(1, a["accent"].long())
    door_colour = palette.index_select(1, a["door_accent"].long())

    # Storeys and columns. Sides and backs have fewer windows, and neither shops nor doors.
    margin = 0.35
    storey = ((z - a["ground_m"]) / a["storey_m"]).floor()
    on_ground = storey < 0
    plain = ~front
    columns = torch.where(plain, (at.length / 4.0).floor().clamp(min=1), a["columns"])
    columns = torch.where(on_ground & front, a["ground_columns"], columns)
    pitch = (at.length - 2 * margin) / columns
    column = ((u - margin) / pitch).floor().clamp(min=0).minimum(columns - 1)
    across = u - margin - (column + 0.5) * pitch  # metres from the middle of the cell
    up = torch.where(on_ground, z, z - a["ground_m"] - storey * a["storey_m"])
    cell_height = torch.where(on_ground, a["ground_m"], a["storey_m"])
    cell = hash01(number, storey.long() + 9, column.long() + 1)

    shop = on_ground & front & (a["shop"] > 0)
    door = on_ground & front & (column == a["door_column"])
    attic = (storey >= a["storeys"]) & (z > eaves)
    has_window = (cell >= torch.where(plain, 0.55, a["blank"])) & ~door & ~attic
    # A dormer or a gable window in every other column of the roof.
    dormer = attic & front & (a["roof"] != 0) & (torch.remainder(column + a["number"], 2) == 0) & (a["columns"] > 2)
    has_window = has_window | (dormer & (a["roof"] == Roof.PITCHED))

    half = 0.5 * pitch * torch.where(shop, 0.86, torch.where(plain, 0.3, a["window_width"]))
    half = half.minimum(torch.where(shop, 3.0, 1.1))
    low = torch.where(shop, 0.5, torch.where(on_ground, a["sill_m"] + 0.35, a["sill_m"]))
    high = torch.where(shop, a["ground_m"] - 1.15, low + a["window_height"] * cell_height)
    high = high.minimum(cell_height - 0.3)
    arch = torch.where(shop, 0.0, a["arched"]) * (half - (half**2 - across**2).clamp(min=0).sqrt())
    high = high - arch
    window = inside(across, -half, half, blur_u) * inside(up, low, high, blur_z) * has_window
    frame_m = 0.11
    glass = inside(across, -half + frame_m, half - frame_m, blur_u) * inside(up, low + frame_m, high - frame_m, blur_z)
    panes_across = torch.where(shop, 2.0, a["panes_across"])
    bar = ((across / (2 * half) + 0.5) * panes_across + 0.5).frac() - 0.5
    bar_across = inside(bar.abs() * 2 * half / panes_across, -1.0, 0.045, blur_u)
    rise = ((up - low) / (high + arch - low) * torch.where(shop, 1.0, a["panes_up"]) + 0.5).frac() - 0.5
    bar_up = inside(rise.abs() * (high + arch - low) / a["panes_up"], -1.0, 0.045, blur_z)
    glass = glass * (1 - torch.maximum(bar_across, bar_up)) * window

    # Below and above the windows, from the wall outwards.
    surround = (
        inside(across, -half - 0.16, half + 0.16, blur_u) * inside(up, low - 0.16, high + 0.2, blur_z) * has_window
    )
    albedo = mix(albedo, trim, surround * front)
    shutter = (a["shutters"] > 0) & has_window & front & ~on_ground & ~attic
    leaf = inside(across.abs(), half + 0.06, half * 1.55, blur_u) * inside(up, low, high + arch, blur_z)
    albedo = mix(albedo, door_colour, leaf * shutter)
    edge = torch.where(front, a["band"], 0.0) * inside(up, -1.0, 0.22, blur_z) * ~on_ground * ~attic
    albedo = mix(albedo, trim * 0.9, edge)
    cornice = inside(z, eaves - 0.35, eaves + 0.12, blur_z) * front
    albedo = mix(albedo, trim * 0.85, cornice)
    tiles = attic & (a["roof"] == Roof.PITCHED)
    slate = 0.10 + 0.16 * a["roof_tint"]
    tile_colour = torch.stack([slate * (1 + 1.2 * a["roof_tint"]), slate, slate * 0.9])
    tile_colour = tile_colour * (0.85 + 0.3 * inside((z / 0.35).frac(), 0.0, 0.6, blur_z / 0.35))
    albedo = torch.where(tiles & (window < 0.5), mix(tile_colour, (0.88, 0.90, 0.94), 0.9 * snow), albedo)

    albedo = mix(albedo, trim, window)
    behind = hash01(number, storey.long() + 9, column.long() + 1 + 1000)
    curtain = inside(up, low + (high - low) * (0.25 + 0.6 * behind), high, blur_z) * (behind < 0.6) * ~shop
    pane = mix(torch.full_like(albedo, 0.045), (0.34, 0.33, 0.30), 0.7 * curtain)
    albedo = mix(albedo, pane, glass)
    lit = hash01(number, storey.long() + 9, column.long() + 1, visit) < torch.where(shop, 2.0 * lit_share, lit_share)
    warmth = hash01(number, column.long(), visit)
    light = torch.stack([torch.full_like(warmth, 1.0), 0.62 + 0.25 * warmth, 0.28 + 0.40 * warmth])
    interior = 0.75 + 0.35 * noise_at(street.noise, u * 0.7, z * 1.1) - 0.35 * curtain
    glow = light * (glass * lit * interior * (0.22 + 0.55 * lamps))

    leaf_width = torch.full_like(half, 0.62).minimum(0.45 * pitch)
    door_top = 2.35
    is_door = door & (z < door_top + 0.4)
    opening = inside(across, -leaf_width - 0.14, leaf_width + 0.14, blur_u) * inside(z, -1.0, door_top + 0.16, blur_z)
    albedo = mix(albedo, trim, opening * is_door)
    panel = inside(across, -leaf_width, leaf_width, blur_u) * inside(z, -1.0, door_top, blur_z) * is_door
    albedo = mix(albedo, door_colour, panel)
    light_above = inside(across, -leaf_width + 0.1, leaf_width - 0.1, blur_u) * inside(z, 1.85, 2.25, blur_z) * is_door
    albedo = mix(albedo, (0.05, 0.05, 0.06), light_above)
    glow = glow + light * (light_above * 0.5 * lamps)

    balcony = front & ~on_ground & ~attic & (hash01(number, column.long() + 77) < a["balconies"])
    rail = inside(across, -half - 0.35, half + 0.35, blur_u) * inside(up, 0.0, 1.0, blur_z) * balcony
    slab = inside(across, -half - 0.4, half + 0.4, blur_u) * inside(up, -0.05, 0.16, blur_z) * balcony
    bars = torch.where(a["roof_tint"] > 0.5, 1.0, inside((u / 0.16).frac(), 0.0, 0.45, blur_u / 0.16))
    albedo = mix(albedo, (0.06, 0.06, 0.07), rail * bars.maximum(inside(up, 0.9, 1.0, blur_z)))
    glow = glow * (1 - 0.8 * rail * bars)
    albedo = mix(albedo, trim * 0.7, slab)

    albedo, glow = _signs(a, at, albedo, glow, accent, lamps)
    ledge = inside(up, low - 0.20, low - 0.02, blur_z) * inside(across, -half - 0.2, half + 0.2, blur_u) * has_window
    albedo = mix(albedo, (0.88, 0.90, 0.94), ledge * snow * front)
    return Surface(albedo=albedo, glow=glow, gloss=glass * 0.6 * (1 - curtain))


def _masonry(noise: Tensor, a: dict[str, Tensor], u: Tensor, z: Tensor, blur_z: Tensor, number: Tensor) -> Tensor:
    """(points, 3) bare wall: courses of brick, boards, concrete panels or plaster, and stains on all of them."""
    colour = torch.stack([a["wall_red"], a["wall_green"], a["wall_blue"]])
    shift = (number % 97) * 0.37
    stain = 0.10 * noise_at(noise, u * 0.35 + shift, z * 0.2) + 0.07 * noise_at(noise, u * 1.7 + shift, z * 1.7)
    material = a["material"]
    course = (z / 0.24).floor()
    joint = inside((z / 0.24).frac(), 0.0, 0.14, blur_z / 0.24)
    beside = inside((u / 0.5 + 0.5 * (course.long() & 1)).frac(), 0.0, 0.07, blur_z / 0.5)
    brick = 1.0 + 0.55 * torch.maximum(joint, beside) + 0.16 * (hash01(course.long(), (u / 0.5).long()) - 0.5)
    board = 1.0 - 0.30 * inside((z / 0.22).frac(), 0.0, 0.2, blur_z / 0.22)
    panel = 1.0 - 0.35 * torch.maximum(
        inside(torch.remainder(z - a["ground_m"], a["storey_m"]), -0.1, 0.06, blur_z),
        inside(torch.remainder(u, 2.4), -0.1, 0.05, blur_z),
    )
    plain = torch.ones_like(u)
    pattern = plain
    for kind, value in (
        (Material.PLASTER, plain),
        (Material.BRICK, brick),
        (Material.CONCRETE, panel),
        (Material.WOOD, board),
    ):
        pattern = torch.where(material == kind, value, pattern)
    plinth = torch.where(z < 0.6, 0.72, 1.0)
    damp = 1 - 0.18 * (-z / 1.2).exp()
    return colour * (pattern * (1 + stain) * plinth * damp).clamp(min=0.05)


def _signs(
    a: dict[str, Tensor], at: OnWall, albedo: Tensor, glow: Tensor, accent: Tensor, lamps: Tensor
) -> tuple[Tensor, Tensor]:
    """Shop fascias with letters, awnings, and banners painted from the first storey to the eaves."""
    u, z, length, blur_u, blur_z = at.u, at.z, at.length, at.blur_u, at.blur_z
    front, eaves = at.kind == Wall.FRONT, a["ground_m"] + a["storeys"] * a["storey_m"]
    shop = front & (a["shop"] > 0)
    number = a["number"].long()
    fascia_low, fascia_high = a["ground_m"] - 0.95, a["ground_m"] - 0.15
    fascia = inside(u, 0.25, length - 0.25, blur_u) * inside(z, fascia_low, fascia_high, blur_z) * shop
    letters = _letters(number, (u - 0.8) / 0.62, (fascia_high - z) / 0.8, 5 + (number % 5), blur_u / 0.62)
    ink = letters * fascia
    pale = (accent.mean(dim=0) < 0.3).float().expand_as(accent) * 0.85 + 0.03
    albedo = mix(mix(albedo, accent, fascia), pale, ink)
    sign_light = fascia * (0.25 + 0.75 * hash01(number, 5)) * lamps
    glow = mix(glow, albedo * 0.9, sign_light.clamp(max=0.9))
    awning = shop & (a["awning"] > 0) & (hash01(number, 8) < 0.8)
    cloth = inside(u, 0.3, length - 0.3, blur_u) * inside(z, fascia_low - 0.75, fascia_low - 0.02, blur_z) * awning
    stripe = inside((u / 0.8).frac(), 0.0, 0.5, blur_u / 0.8)
    albedo = mix(albedo, mix(accent * 1.15, (0.75, 0.73, 0.68), stripe), cloth)
    glow = glow * (1 - cloth)

    left = 0.4 + a["banner"] * (length - 1.9)
    banner = inside(u, left, left + 1.1, blur_u) * inside(z, a["ground_m"] + 0.5, eaves - 0.5, blur_z)
    banner = banner * (front & (a["banner"] > 0))
    letters = _letters(number + 31, (u - left - 0.16) / 0.9, (eaves - 0.7 - z) / 1.1, 1, blur_u / 0.9, rows=9)
    albedo = mix(mix(albedo, accent, banner), pale, letters * banner)
    glow = mix(glow, albedo * 0.8, (0.7 * banner * lamps).clamp(max=0.9))
    return albedo, glow


def _letters(number: Tensor, column: Tensor, row: Tensor, columns: Tensor | int, blur: Tensor, rows: int = 1) -> Tensor:
    """(points,) ink of a house's own letters: grids of 3 by 5 dots, mirrored or not, that spell nothing."""
    letter, line = column.floor(), row.floor()
    dot_x, dot_y = ((column - letter) * 4).long(), ((row - line) * 7).long() - 1
    ink = hash01(number * 64 + letter.long() + line.long() * 7, dot_x, dot_y) < 0.58
    ink = ink & (dot_x < 3) & (dot_y >= 0) & (dot_y < 5)
    ink = ink & (letter >= 0) & (letter < columns) & (line >= 0) & (line < rows)
    # Letters that are smaller than a few pixels become an even tone.
    return torch.lerp(ink.float(), 0.3 * ((letter >= 0) & (letter < columns)).float(), (blur * 3).clamp(0, 1))


def shade_ground(street: Street, east: Tensor, north: Tensor, blur: Tensor, wet: Tensor, snow: Tensor) -> Surface:
    """Road, markings, pavement and yards at (points,) metres east and north; blur is the pixel's size in metres."""
    at = street.beside(east, north)
    half_x, half_y, across_x, across_y = at.half_x, at.half_y, at.offset_x.abs(), at.offset_y.abs()
    # Metres beyond the kerb.
    outside_x, outside_y = across_x - (half_x - PAVEMENT_M), across_y - (half_y - PAVEMENT_M)
    outside = torch.minimum(outside_x, outside_y)
    coarse = noise_at(street.noise, east * 0.5, north * 0.5)
    fine = noise_at(street.noise, east * 3.1, north * 3.1) * (1 - blur * 6).clamp(0, 1)
    grey = torch.full_like(east, 0.115) * (1 + 0.25 * coarse + 0.25 * fine)
    repair = hash01((east / 3.5).floor().long(), (north / 5.0).floor().long(), 3) < 0.10
    road = torch.where(repair, grey * 0.72, grey) * _rgb(east, 1.0, 1.0, 1.03)

    # Paint: along the street whose crossing is the farther one.
    along_x = across_y > half_y + 0.5  # on a north-south street, away from the crossing
    along_y = across_x > half_x + 0.5
    dash = ((torch.where(along_x, north, east) / 6.0).frac().abs() < 0.5) & (along_x | along_y)
    centre = inside(torch.where(along_x, across_x, across_y), -1.0, 0.09, blur) * dash * (outside < 0)
    lane = torch.where(along_x, outside_x, outside_y)
    bay_line = inside(lane, -2.35, -2.23, blur) * (along_x | along_y)
    from_crossing = torch.where(along_x, across_y - half_y, across_x - half_x)
    across = torch.where(along_x, east, north)
    stripes = inside(torch.remainder(across, 1.1), 0.0, 0.55, blur) * inside(from_crossing, 0.6, 3.2, blur)
    stripes = stripes * (along_x | along_y) * (outside < 0)
    paint = torch.maximum(torch.maximum(centre, bay_line * (outside < 0)), stripes) * (0.75 + 0.25 * coarse)
    road = mix(road, (0.62, 0.62, 0.58), 0.85 * paint.clamp(0, 1))

    tone = 0.30 * (1 + 0.14 * coarse + 0.10 * fine + 0.12 * (hash01(east.floor().long(), north.floor().long()) - 0.5))
    joint = torch.maximum(inside(east.frac().abs(), -1.0, 0.05, blur), inside(north.frac().abs(), -1.0, 0.05, blur))
    pavement = tone * (1 - 0.3 * joint) * _rgb(east, 1.0, 0.97, 0.92)
    kerb = inside(outside, -0.02, 0.22, blur)
    pavement = mix(pavement, (0.44, 0.43, 0.41), kerb)
    albedo = torch.where(outside < 0, road, pavement)
    gutter = inside(outside, -0.35, 0.0, blur)
    albedo = albedo * (1 - 0.35 * gutter)
    # Paved up to houses that are set back, too.
    yard = ~((across_x < half_x + 1.5) | (across_y < half_y + 1.5))
    grass = (0.8 + 0.3 * coarse) * _rgb(east, 0.16, 0.20, 0.08)
    albedo = torch.where(yard, grass, albedo)
    tracks = inside(torch.where(along_x, across_x, across_y), 1.0, 1.5, blur.clamp(min=0.3)) * (outside < 0)
    cover = snow * (0.92 - 0.55 * tracks - 0.25 * (outside < 0) + 0.25 * coarse).clamp(0, 1)
    albedo = mix(albedo * (1 - 0.45 * wet), (0.84, 0.87, 0.92), cover)
    puddle = ((coarse * 1.6 + 0.6) * (outside < 0.0)).clamp(0.15, 1)
    return Surface(albedo=albedo, gloss=wet * puddle)


def board_mask(noise: Tensor, board: Tensor, x: Tensor, z: Tensor, blur: Tensor, bare: Tensor) -> Tensor:
    """(points,) True where a tree or lamp is solid, x metres right of its middle and z metres up.

    `board` holds rows of `Street.boards`, `blur` the size of the pixel in metres, and `bare` trees have no leaves.
    """
    kind, height, radius, foot, number = board[:, 0], board[:, 3], board[:, 4], board[:, 5], board[:, 7]
    middle, half = (height + foot) / 2, (height - foot) / 2
    leaves = noise_at(noise, x * 0.9 + number * 3.7, z * 0.9) * 0.55 + 0.25 * noise_at(noise, z * 3 + number, x * 3)
    crown = (x / radius) ** 2 + ((z - middle) / half) ** 2 < 0.85 + leaves
    if bool(bare.any()):
        crown = crown & (~bare | _is_branch(noise, x, z, number, middle, blur))
    trunk = (x.abs() < (0.13 + 0.02 * (2.5 - z)).maximum(blur * 0.4)) & (z < middle)
    post = (x.abs() < torch.full_like(x, 0.07).maximum(blur * 0.4)) & (z < height - 0.2)
    head = (x.abs() < 0.34) & (z > height - 0.3) & (z < height)
    return torch.where(kind == Board.LAMP, post | head, crown | trunk) & (z > 0)


def _is_branch(noise: Tensor, x: Tensor, z: Tensor, number: Tensor, middle: Tensor, blur: Tensor) -> Tensor:
    """(points,) True on the twigs of a bare tree, which rise and fork outwards; finer than a pixel they thin out."""
    shift = number * 3.7
    side, rise = x + 0.35 * noise_at(noise, z * 0.5 + shift, x * 0.5), z - middle
    fan = side / (rise.abs() + 1.2)
    limb = ((fan * 3.1 + 0.3 * noise_at(noise, z * 0.8, shift)).frac().abs() - 0.5).abs() < 0.07 + 0.3 * blur
    twig = noise_at(noise, x * 1.6 + shift, z * 1.1).abs() < 0.07
    return limb | (twig & (noise_at(noise, z * 5 + number, x * 5) > 2 * blur - 0.3))


def shade_boards(noise: Tensor, board: Tensor, x: Tensor, z: Tensor, weather: Weather) -> Surface:
    """Leaves, trunks, posts and lamp heads at (points,) metres right of their middle and above the ground."""
    kind, height, radius, foot, tint, number = (board[:, i] for i in (0, 3, 4, 5, 6, 7))
    lamps, snow = weather.lamps, weather.snow
    middle, half = (height + foot) / 2, (height - foot) / 2
    leafy = (x / radius) ** 2 + ((z - middle) / half) ** 2 < 0.85 + 0.7
    leafy = leafy & ((z > foot) | (x.abs() > 0.2)) & (weather.leaves > 0.5)
    clumps = noise_at(noise, x * 1.3 + number * 3.7, z * 1.3) * 0.5 + noise_at(noise, z * 4 + number, x * 4) * 0.35
    top = ((z - middle) / half).clamp(-1, 1)
    green = torch.stack([0.07 + 0.10 * tint, 0.145 - 0.01 * tint, 0.035 + 0 * tint])
    leaves = mix(green, (0.30, 0.14, 0.03), weather.autumn) * (1 + 0.45 * top + 0.7 * clumps).clamp(0.25, 2.2)
    leaves = mix(leaves, (0.85, 0.88, 0.92), snow * (0.45 + 0.4 * top + 0.6 * clumps).clamp(0, 0.95))
    bark = _rgb(x, 0.11, 0.085, 0.065) * (1 + 0.4 * clumps).clamp(min=0.3)
    bark = mix(bark, (0.85, 0.88, 0.92), snow * (1 - weather.leaves) * (0.35 + 0.5 * clumps).clamp(0, 0.6))
    albedo = torch.where(leafy, leaves, bark)
    is_lamp = kind == Board.LAMP
    albedo = torch.where(is_lamp, torch.full_like(albedo, 0.10), albedo)
    head = is_lamp & (z > height - 0.3)
    glow = _rgb(x, 1.0, 0.80, 0.50) * (3.0 * lamps * head)
    return Surface(albedo=albedo, glow=glow)


CAR_COLOURS = (
    (0.55, 0.56, 0.58), (0.05, 0.05, 0.06), (0.70, 0.70, 0.69), (0.16, 0.17, 0.19),
    (0.40, 0.05, 0.05), (0.06, 0.12, 0.30), (0.72, 0.72, 0.70), (0.10, 0.20, 0.13),
)  # fmt: skip


def shade_cars(
    colour: Tensor, size: Tensor, along: Tensor, across: Tensor, z: Tensor, cabin: Tensor, snow: Tensor
) -> Surface:
    """Bodies, wheels, glass and lights of parked cars, (points,) metres along and across from their middle.

    `colour` is a row in CAR_COLOURS, `size` (3, points) half length, half width and height of the roof, and `cabin`
    says whether the point lies on the upper box.
    """
    paint = torch.tensor(CAR_COLOURS, device=z.device).T.index_select(1, colour)
    half_length, half_width, roof = size.unbind(0)
    on_flank = (across.abs() > half_width - 0.03) | (cabin & (across.abs() > half_width - 0.16))
    van = roof > 1.8
    top = z > roof - 0.03
    waist = torch.where(van, 1.15, 0.92)
    pillar = ((along / (half_length * 0.5)).frac().abs() > 0.9) & on_flank
    cargo = van & (along < half_length * 0.35) & on_flank
    window = cabin & ~top & (z > waist) & (z < roof - 0.1) & ~pillar & ~cargo
    albedo = torch.where(window, torch.full_like(paint, 0.03), paint)
    wheel_from = (along.abs() - half_length * 0.62).abs()
    wheel = on_flank & ~cabin & (wheel_from**2 + (z - 0.32) ** 2 < 0.33**2)
    hub = wheel & (wheel_from**2 + (z - 0.32) ** 2 < 0.17**2)
    albedo = torch.where(wheel, torch.full_like(paint, 0.02), albedo)
    albedo = torch.where(hub, torch.full_like(paint, 0.30), albedo)
    sill = ~wheel & (z < 0.33)
    albedo = torch.where(sill, torch.full_like(paint, 0.03), albedo)
    end = (along.abs() > half_length - 0.03) & (across.abs() > half_width * 0.6) & (z > 0.55) & (z < 0.78)
    lights = torch.where(along > 0, _rgb(z, 0.8, 0.8, 0.75), _rgb(z, 0.5, 0.03, 0.02))
    albedo = torch.where(end, lights, albedo)
    flat = top | (~cabin & (z > waist - 0.04) & ~on_flank)
    albedo = mix(albedo, (0.86, 0.88, 0.92), 0.9 * snow * flat)
    return Surface(albedo=albedo, gloss=0.35 * window + 0.12)
