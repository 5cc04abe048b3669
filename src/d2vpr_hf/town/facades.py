"""Photos of facades as the fronts of drawn houses: one pyramid of all of them, from which any point is read."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..photos.folder import list_images
from ..photos.images import open_image

HEIGHT, WIDTH, LEVELS = 176, 320, 5
LIGHTER = 1.35  # than in its photo, which is taken in less than full light
KERB_SHARE = 0.14  # of a photo's height at its foot, where cars stand and people walk


def read_facades(folder: str | Path, exclude: Collection[str] = ()) -> Tensor:
    """(3, texels) uint8 of the photos of a folder: each in full size, then each in half of it, and so on.

    Args:
        exclude: file names of photos to leave out.

    Raises: ValueError if the folder holds no photo; UnreadableImage for one that can't be used.
    """
    photos = [_front(path) for path in list_images(folder) if path.name not in exclude]
    if not photos:
        raise ValueError(f"{folder} holds no photo. Give a folder of photos of facades, each seen from the front.")
    return torch.cat([_level(photos, level) for level in range(LEVELS)], dim=1)


def count_facades(facades: Tensor) -> int:
    """Number of photos in a pyramid."""
    return facades.shape[1] // sum(_size(level)[0] * _size(level)[1] for level in range(LEVELS))


def facade_at(facades: Tensor, photo: Tensor, across: Tensor, up: Tensor, texel: Tensor) -> Tensor:
    """(3, points) albedo of photos at shares of their width and height, across from the left, up from the foot.

    Args:
        photo: (points,) number of the photo.
        texel: (points,) how many texels of the full size the pixel spans.
    """
    level = texel.clamp(min=1).log2().round().long().clamp(max=LEVELS - 1)
    sizes = torch.tensor([_size(each) for each in range(LEVELS)], device=photo.device)
    starts = (sizes[:, 0] * sizes[:, 1] * count_facades(facades)).cumsum(0).roll(1)
    starts[0] = 0
    height, width = sizes[level].unbind(1)
    row, column = (1 - up) * height - 0.5, across * width - 0.5
    top, left = row.floor(), column.floor()
    first = starts[level] + photo.long() * height * width

    def read(down: int, right: int) -> Tensor:
        at_row = (top.long() + down).clamp(min=0).minimum(height - 1)
        at_column = (left.long() + right).clamp(min=0).minimum(width - 1)
        found = facades.index_select(1, first + at_row * width + at_column).float() / 255
        return (LIGHTER * found**2.2).clamp(max=1)

    upper = torch.lerp(read(0, 0), read(0, 1), column - left)
    return torch.lerp(upper, torch.lerp(read(1, 0), read(1, 1), column - left), row - top)


def _size(level: int) -> tuple[int, int]:
    return HEIGHT >> level, WIDTH >> level


def _front(path: Path) -> Image.Image:
    """The photo without its foot; of an upright one the middle."""
    photo = open_image(path)
    height = min(photo.height, round(photo.width * HEIGHT / WIDTH / (1 - KERB_SHARE)))
    foot = (photo.height + height) / 2 - KERB_SHARE * height
    return photo.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, (0, (photo.height - height) / 2, photo.width, foot))


def _level(photos: Sequence[Image.Image], level: int) -> Tensor:
    height, width = _size(level)
    pixels = [np.asarray(photo.resize((width, height), Image.Resampling.BOX)) for photo in photos]
    return torch.from_numpy(np.stack(pixels)).permute(3, 0, 1, 2).flatten(1)
