"""A grey thumbnail as a descriptor: what any place descriptor has to beat."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..photos.images import open_image

THUMBNAIL_SIDE = 16


def thumbnail_descriptors(paths: Sequence[Path]) -> np.ndarray:
    """(photos, 256) float32 grey thumbnails of mean 0 and length 1.

    Raises: UnreadableImage.
    """
    return np.stack([_descriptor(open_image(path)) for path in paths])


class ThumbnailProcessor:
    """Makes `pixel_values` (1, 1, 16, 16): grey, of mean 0 and length 1."""

    size = {"height": THUMBNAIL_SIDE, "width": THUMBNAIL_SIDE}  # noqa: RUF012 - as processors have it

    def __call__(self, image: Image.Image, return_tensors: str, do_resize: bool = True) -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.from_numpy(_descriptor(image)).view(1, 1, THUMBNAIL_SIDE, THUMBNAIL_SIDE)}

    def to_dict(self) -> dict[str, Any]:
        """The settings, by which descriptors kept on disk are told apart."""
        return {"processor": type(self).__name__, "size": self.size}


class ThumbnailPeer:
    """The thumbnail among models that are compared."""

    name = "thumbnail"

    def __init__(self) -> None:
        self.processor = ThumbnailProcessor()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(images, 256) of thumbnails (images, 1, 16, 16)."""
        return images.flatten(1)


def _descriptor(image: Image.Image) -> np.ndarray:
    """(256,) float32 of mean 0 and length 1; the same number throughout for a photo of one grey."""
    small = image.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32).ravel()
    pixels = pixels - pixels.mean()
    length = np.linalg.norm(pixels)
    # Of length 1 too, and at right angles to every other thumbnail.
    return pixels / length if length > 1e-3 else np.full_like(pixels, 1 / THUMBNAIL_SIDE)
