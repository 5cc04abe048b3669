"""Cuts perspective views from equirectangular panoramas.

A panorama's width spans 360 degrees and its height 180. Its centre column is heading 0, headings count clockwise (to
the right), pitches upwards. A view's camera rolls clockwise, so that what it shows turns the other way.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Rays that are followed at a time, which bounds the memory: some 100 bytes each.
_RAYS_AT_A_TIME = 2**22

Angles = Tensor | float


def cut_views(
    panorama: Tensor,
    heading_deg: Angles,
    pitch_deg: Angles,
    roll_deg: Angles,
    field_deg: Angles,
    *,
    height: int,
    width: int,
) -> Tensor:
    """Perspective views of panoramas, (views, 3, height, width) float32 in the panorama's own range, on its device.

    Where a view is coarser than its panorama, each pixel is the mean of n x n points sampled within it, n being the
    panorama's pixels that a pixel spans in the middle of the widest view, rounded up; elsewhere a pixel spans fewer.
    Points are read bilinearly, across the seam at 180 degrees and over the poles.

    Args:
        panorama: (3, height, width), or (panoramas, 3, height, width); of any number type.
        heading_deg, pitch_deg, roll_deg: where each view looks; numbers or tensors that broadcast to (views,), or to
            (panoramas, views of each).
        field_deg: horizontal field of view, above 0 and below 180.
        height, width: pixels of the views.

    Returns: of several panoramas all views of the first, then those of the second, and so on.
    Raises: ValueError if the panorama has another shape, or a field is out of range.
    """
    if panorama.ndim not in (3, 4) or panorama.shape[-3] != 3:
        raise ValueError(
            f"panorama has shape {tuple(panorama.shape)}; expected (3, height, width), or (panoramas, 3, height, "
            "width) for several. Bring the colours to the front."
        )
    panoramas = (panorama if panorama.ndim == 4 else panorama[None]).float()
    angles = [
        torch.as_tensor(each, dtype=torch.float32, device=panorama.device)
        for each in (heading_deg, pitch_deg, roll_deg, field_deg)
    ]
    angles = torch.stack(torch.broadcast_tensors(*angles))  # (4, views) or (4, panoramas, views of each)
    angles = angles.reshape(4, -1, angles.shape[-1] if angles.ndim > 1 else 1)
    angles = torch.deg2rad(angles.expand(-1, len(panoramas), -1))  # (4, panoramas, views of each)
    focal = _focal(angles[3], width)
    # In the middle of a view, where its pixels are coarsest.
    spans = panoramas.shape[-1] / (2 * math.pi) / focal
    samples = max(1, math.ceil(spans.max().item() - 1e-3)) if spans.numel() else 1
    around = _with_neighbours(panoramas)
    views_at_a_time = max(1, _RAYS_AT_A_TIME // (len(panoramas) * height * width * samples**2))
    parts = [
        _sample(around, part, height, width, samples) for part in angles.split(views_at_a_time, dim=2)
    ]  # each (panoramas, views, 3, height, width)
    return torch.cat(parts, dim=1).flatten(0, 1)


def heading_spans(
    heading_deg: Angles, pitch_deg: Angles, roll_deg: Angles, field_deg: Angles, *, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """First and last heading, in degrees, that each view shows in any of its rows, corners included.

    Args: as those of `cut_views`; of any one shape.
    Returns: two tensors of that shape, first <= last, not brought to 0 to 360. A view that looks over a pole spans 360
        degrees.
    """
    angles = [torch.as_tensor(each, dtype=torch.float64) for each in (heading_deg, pitch_deg, roll_deg, field_deg)]
    angles = torch.stack(torch.broadcast_tensors(*angles))
    heading, (_, pitch, roll, field) = angles[0], torch.deg2rad(angles)[..., None]
    focal = _focal(field, width)
    # Along a view's straight edge the heading only rises or only falls, so that corners are the extremes.
    x = torch.tensor([-1, 1, -1, 1], dtype=torch.float64) * width / 2 / focal
    y = torch.tensor([-1, -1, 1, 1], dtype=torch.float64) * height / 2 / focal
    right, _, ahead = _turn(x, y, pitch, roll)
    off = torch.rad2deg(torch.atan2(right, ahead))
    over_a_pole = (ahead <= 0).any(dim=-1)
    first = torch.where(over_a_pole, -180.0, off.amin(dim=-1))
    last = torch.where(over_a_pole, 180.0, off.amax(dim=-1))
    return heading + first, heading + last


def _focal(field: Tensor, width: int) -> Tensor:
    """Focal lengths in pixels of horizontal fields in radians."""
    if not bool(((field > 0) & (field < math.pi)).all()):
        found = torch.rad2deg(field).flatten().tolist()
        raise ValueError(
            f"field_deg has values from {min(found):g} to {max(found):g}, but a flat picture shows more than 0 and "
            "less than 180 degrees. Give such a field, 60 to 90 for street photos."
        )
    return width / 2 / torch.tan(field / 2)


def _turn(x: Tensor, y: Tensor, pitch: Tensor, roll: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right, up and ahead, in the frame of the view's heading, of rays through (x right, y down, 1 ahead)."""
    right = x * roll.cos() - y * roll.sin()
    down = x * roll.sin() + y * roll.cos()
    return right, pitch.sin() - down * pitch.cos(), pitch.cos() + down * pitch.sin()


def _with_neighbours(panoramas: Tensor) -> Tensor:
    """The panoramas with one more pixel on each side: what lies beyond the seam and beyond the poles."""
    half = panoramas.shape[-1] // 2
    # One step beyond a pole is the same row, half-way round.
    above, below = (panoramas[..., row, :].roll(half, dims=-1)[..., None, :] for row in (0, -1))
    tall = torch.cat([above, panoramas, below], dim=-2)
    return torch.cat([tall[..., -1:], tall, tall[..., :1]], dim=-1)


def _sample(around: Tensor, angles: Tensor, height: int, width: int, samples: int) -> Tensor:
    """(panoramas, views, 3, height, width) of panoramas with their neighbours and (4, panoramas, views) radians."""
    heading, pitch, roll, field = angles[..., None, None]
    rows, columns = height * samples, width * samples
    focal = _focal(field, columns)
    x = (torch.arange(columns, device=around.device) + 0.5 - columns / 2) / focal  # (panoramas, views, 1, columns)
    y = (torch.arange(rows, device=around.device) + 0.5 - rows / 2)[:, None] / focal  # (panoramas, views, rows, 1)
    right, up, ahead = _turn(x, y, pitch, roll)
    turns = (heading + torch.atan2(right, ahead)) / (2 * math.pi) + 0.5  # of the panorama's width, from its left edge
    falls = 0.5 - torch.atan2(up, torch.hypot(right, ahead)) / math.pi  # of its height, from the top
    tall, wide = (length - 2 for length in around.shape[-2:])
    # In [-1, 1] from edge to edge, neighbours included.
    grid = torch.stack([((turns % 1) * wide + 1) * 2 / (wide + 2) - 1, (falls * tall + 1) * 2 / (tall + 2) - 1], dim=-1)
    views = grid.shape[1]
    found = F.grid_sample(around, grid.flatten(1, 2), mode="bilinear", align_corners=False)
    found = F.avg_pool2d(found, samples)  # (panoramas, 3, views * height, width)
    return found.unflatten(2, (views, height)).transpose(1, 2)
