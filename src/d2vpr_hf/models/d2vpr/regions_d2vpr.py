"""Where the 13 regions of a photo lie: their cuts, and the points at which they are sampled."""

import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch

# The aggregator's cuts, in sixteenths of an image side: quadrants, and a grid of three by three.
MEDIUM_CUTS = (0, 8, 16)
SMALL_CUTS = (0, 5, 11, 16)
# The four small regions that lie around each medium one, both counted row by row.
NEIGHBOURS = ((0, 1, 3, 4), (1, 2, 4, 5), (3, 4, 6, 7), (4, 5, 7, 8))
# Photos come in few sizes; past so many, what was kept for the others is dropped.
MOST_KEPT = 64


def kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps the tensors that a function makes of its arguments, so that a forward pass builds and copies nothing."""
    memory = {}

    @torch.compiler.assume_constant_result
    @functools.wraps(make)
    def remembered(*key: Any) -> Any:
        if isinstance(key[0], tuple) and any(isinstance(side, torch.SymInt) for side in key[0]):
            return make(*key)
        if key not in memory:
            # What a call under inference mode makes must serve a training step as well.
            with torch.inference_mode(False):
                made = make(*key)
            tensors = made if isinstance(made, tuple) else (made,)
            if any(type(tensor) is not torch.Tensor for tensor in tensors):
                return made  # a tensor without numbers, as exporters trace with, serves nobody else
            if len(memory) >= MOST_KEPT:
                memory.clear()
            memory[key] = made
        return memory[key]

    return remembered


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


class RegionPoints(NamedTuple):
    """Sample points of all 13 regions, before they are deformed.

    Args:
        points: (samples, 2) x and y in [0, 1].
        centres: (samples, 2) x and y of the middle of each sample's region.
        extents: (samples, 2) width and height of each sample's region.
        members: (13, samples) whether a sample belongs to a region.
        weights: (13, samples) share of each sample in its region's mean.
    """

    points: torch.Tensor
    centres: torch.Tensor
    extents: torch.Tensor
    members: torch.Tensor
    weights: torch.Tensor


def region_axis(
    cuts: tuple[int, ...], length: int, sampling: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """One side's sample points: position, centre and extent of their part (all in [0, 1]), and the part's number."""
    if isinstance(length, torch.SymInt):  # an exporter leaves the size open
        side, ends = length, (torch.tensor(cuts, device=device) * length + 8) // 16
    else:
        ends, side = region_cuts(cuts, length, sampling)
        ends = torch.tensor(ends, device=device)
    tokens = torch.arange(side, device=device)
    part = (tokens[:, None] >= ends[1:-1]).sum(dim=1)
    start, count = ends[part].double(), (ends[part + 1] - ends[part]).double()
    step = torch.where(count > 1, (tokens - start) / (count - 1).clamp(min=1), 0.5)
    return ((start + step * count) / side).float(), ((start + count / 2) / side).float(), (count / side).float(), part


@kept
def region_points(grid: tuple[int, int] | None, sampling: str, device: torch.device) -> RegionPoints:
    """The base points of 4 medium and 9 small regions on a token grid of (rows, columns).

    With `"original"` sampling they are the same on every grid, which may be None.

    Each set of regions is a product of row parts and column parts, so its points are a product as well.
    """
    points, centres, extents, members = [], [], [], []
    for cuts in (MEDIUM_CUTS, SMALL_CUTS):
        (y, y_centre, height, row), (x, x_centre, width, column) = (
            region_axis(cuts, length, sampling, device) for length in grid or (0, 0)
        )
        parts = len(cuts) - 1
        for pair, pairs in ((x, y), points), ((x_centre, y_centre), centres), ((width, height), extents):
            pairs.append(torch.stack(torch.meshgrid(*pair, indexing="xy"), dim=-1).flatten(0, 1))
        region = (row[:, None] * parts + column).flatten()
        members.append(region == torch.arange(parts**2, device=device)[:, None])
    inside = torch.block_diag(*members).bool()
    weights = inside.float() / inside.sum(dim=1, keepdim=True)
    return RegionPoints(torch.cat(points), torch.cat(centres), torch.cat(extents), inside, weights)


@kept
def neighbours(device: torch.device) -> torch.Tensor:
    """(4, 4) numbers of the small regions around each medium one."""
    return torch.tensor(NEIGHBOURS, device=device)


@kept
def global_box(device: torch.device) -> torch.Tensor:
    """(1, 1, 4) box of the whole image."""
    return torch.tensor([[[0.5, 0.5, 1.0, 1.0]]], dtype=torch.float32, device=device)
