"""Where the 13 regions of a photo lie: their cuts, and the points at which they are sampled."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

# The aggregator's cuts, in sixteenths of an image side: quadrants, and a grid of three by three.
MEDIUM_CUTS = (0, 8, 16)
SMALL_CUTS = (0, 5, 11, 16)


def region_cuts(cuts: tuple[int, ...], length: int, sampling: str) -> tuple[list[int], int]:
    """Where one side of the token grid is cut into regions, and the side's length in the same unit.

    Args:
        cuts: the cuts in sixteenths of the side, ends included.
        length: tokens along the side.
        sampling: `"original"` stays with sixteenths; `"dense"` cuts between whole tokens.

    Raises: ValueError if a dense cut leaves a region without a token.
    """
    if sampling == "original":
        return list(cuts), 16
    # Half a token up: Python's own rounding goes to the even neighbour.
    dense = [math.floor(cut * length / 16 + 0.5) for cut in cuts]
    if min(after - before for before, after in pairwise(dense)) < 1:
        raise ValueError(
            f'The image is {length} patches high or wide, too few for region_sampling="dense", which needs '
            "3. Give a larger image."
        )
    return dense, length


@dataclass
class RegionPoints:
    """Sample points of all 13 regions, before they are deformed.

    Args:
        points: (samples, 2) x and y in [0, 1].
        centres: (samples, 2) x and y of the middle of each sample's region.
        extents: (samples, 2) width and height of each sample's region.
        members: (13, samples) whether a sample belongs to a region.
    """

    points: torch.Tensor
    centres: torch.Tensor
    extents: torch.Tensor
    members: torch.Tensor


def region_axis(
    cuts: tuple[int, ...], length: int, sampling: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One side's sample points: position, centre and extent of their part (all in [0, 1]), and the part's number."""
    ends, side = region_cuts(cuts, length, sampling)
    rows = []
    for part, (start, end) in enumerate(pairwise(ends)):
        count = end - start
        steps = [index / (count - 1) for index in range(count)] if count > 1 else [0.5]
        rows += [((start + step * count) / side, (start + end) / 2 / side, count / side, part) for step in steps]
    return torch.tensor(rows, dtype=torch.float32, device=device).unbind(1)


def region_points(grid: tuple[int, int], sampling: str, device: torch.device) -> RegionPoints:
    """The base points of 4 medium and 9 small regions on a token grid of (rows, columns).

    Each set of regions is a product of row parts and column parts, so its points are a product as well.
    """
    points, centres, extents, members = [], [], [], []
    for cuts in (MEDIUM_CUTS, SMALL_CUTS):
        (y, y_centre, height, row), (x, x_centre, width, column) = (
            region_axis(cuts, length, sampling, device) for length in grid
        )
        parts = len(cuts) - 1
        for pair, pairs in ((x, y), points), ((x_centre, y_centre), centres), ((width, height), extents):
            pairs.append(torch.stack(torch.meshgrid(*pair, indexing="xy"), dim=-1).flatten(0, 1))
        region = (row[:, None] * parts + column).flatten()
        members.append(region == torch.arange(parts**2, device=device)[:, None])
    return RegionPoints(torch.cat(points), torch.cat(centres), torch.cat(extents), torch.block_diag(*members).bool())
