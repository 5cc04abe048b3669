"""What textures are made of: numbers from keys, noise that tiles, soft edges and mixed colours."""

import math

import torch
from torch import Tensor


def tiling_noise(random: torch.Generator, size: int = 512) -> Tensor:
    """(size, size) sum of smooth random grids that continue over the edges."""
    total = torch.zeros(size, size)
    cells = 8
    while cells <= size // 4:
        grid = torch.rand(1, 1, cells, cells, generator=random) * 2 - 1
        grid = torch.nn.functional.pad(grid, (1, 1, 1, 1), mode="circular")
        scale = size // cells
        smooth = torch.nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
        total += smooth[0, 0, scale:-scale, scale:-scale] * math.sqrt(8 / cells) * 0.6
        cells *= 2
    return total


def hash01(*keys: Tensor | int) -> Tensor:
    """Numbers in [0, 1) that depend on whole-number keys alone, the same on every device."""
    mixed = 0
    for key, prime in zip(keys, (73856093, 19349663, 83492791, 49979687), strict=False):
        mixed = mixed ^ (key * prime)
    mixed = ((mixed ^ (mixed >> 15)) * 1274126177) & 0x7FFFFFFF
    mixed = ((mixed ^ (mixed >> 13)) * 668265263) & 0x7FFFFFFF
    return ((mixed >> 7) & 0xFFFFF).float() / 0x100000


def noise_at(noise: Tensor, a: Tensor, b: Tensor, texels_per_m: float = 24.0) -> Tensor:
    """Fractal noise at coordinates in metres; repeats every `512 / texels_per_m` metres."""
    row = (a * texels_per_m).long() & 511
    column = (b * texels_per_m).long() & 511
    return noise.flatten().index_select(0, row * 512 + column)


def smooth_noise_at(noise: Tensor, a: Tensor, b: Tensor, texels_per_m: float = 24.0) -> Tensor:
    """As `noise_at`, without steps where the picture shows single texels."""
    row, column = a * texels_per_m, b * texels_per_m
    top, left = row.floor(), column.floor()
    flat, first_row, first_column = noise.flatten(), top.long(), left.long()

    def texel(down: int, right: int) -> Tensor:
        return flat.index_select(0, ((first_row + down) & 511) * 512 + ((first_column + right) & 511))

    upper = torch.lerp(texel(0, 0), texel(0, 1), column - left)
    return torch.lerp(upper, torch.lerp(texel(1, 0), texel(1, 1), column - left), row - top)


def inside(value: Tensor, low: Tensor | float, high: Tensor | float, blur: Tensor) -> Tensor:
    """How much of a pixel `blur` wide, centred on `value`, lies between `low` and `high`."""
    return (((value - low) / blur + 0.5).clamp(0, 1) + ((high - value) / blur + 0.5).clamp(0, 1) - 1).clamp(min=0)


def mix(under: Tensor, over: Tensor | tuple[float, float, float], share: Tensor) -> Tensor:
    """(3, points) `over` laid on `under` where `share` (points,) is 1."""
    if isinstance(over, tuple):
        over = torch.tensor(over, device=under.device)[:, None]
    return torch.addcmul(under, over - under, share)
