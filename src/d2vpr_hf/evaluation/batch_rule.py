"""Whether a descriptor depends on the other photos of its batch, which makes a result another one in other company."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..retrieval.embedder import embed_images

if TYPE_CHECKING:
    from datasets import Dataset

_PHOTOS = 4
# Rounding takes a millionth off a cosine, a cross-image encoder a thousandth and more.
_LEAST_COSINE = 0.9999


def mixes_images(
    model: torch.nn.Module, processor: Callable[..., Any], photos: "list[Path] | Dataset", device: torch.device
) -> bool:
    """Whether the model mixes the images of a batch, as its config says, or else as a few photos show.

    Args:
        model: whose config may have `cross_image_encoder`; models of others have not.
        processor: of the model.
        photos: of which the first four are embedded alone and together.
        device: where.
    """
    declared = getattr(getattr(model, "config", None), "cross_image_encoder", None)
    if declared is not None:
        return bool(declared)
    options = {"model": model, "processor": processor, "device": device, "workers": 1, "progress": False}
    few = photos[:_PHOTOS] if isinstance(photos, list) else photos.select(range(min(_PHOTOS, len(photos))))
    alone, together = (embed_images(few, batch_size=size, **options).vectors for size in (1, _PHOTOS))
    lengths = np.linalg.norm(alone, axis=1) * np.linalg.norm(together, axis=1)
    return bool(((alone * together).sum(axis=1) < _LEAST_COSINE * lengths).any())


def batch_rule(mixes: bool, batch_size: int) -> str:
    """In words, what the descriptors owe to the batches."""
    if not mixes:
        return "each photo by itself: the batch size changes nothing"
    return (
        f"the model mixes the photos of a batch, here {batch_size} in the order of their names. Alone, or in another "
        "order, they get other descriptors and another recall"
    )
