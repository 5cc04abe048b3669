"""The cross-image encoder, by which the images of a batch, or of each group in it, attend to each other."""

import torch
from torch import nn


def cross_image_encoder(dim: int, dropout: float) -> nn.TransformerEncoder:
    """Two post-norm layers whose attention runs over the images of a batch, region by region.

    Source: CricaVPR's cross-image encoder, which D2-VPR takes over.
    """
    layer = nn.TransformerEncoderLayer(
        d_model=dim, nhead=dim // 48, dim_feedforward=dim * 8 // 3, dropout=dropout, activation="gelu"
    )
    return nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)


def attend_across_images(
    encoder: nn.TransformerEncoder, vectors: torch.Tensor, images_per_group: int | None
) -> torch.Tensor:
    """Regional descriptors (batch, 14, dim) after the images of a group, or of the batch, attended to each other.

    Args:
        vectors: (batch, 14, dim)
        images_per_group: the batch is cut into groups of so many images, in order; None takes it whole.

    Raises: ValueError if the batch isn't a multiple of `images_per_group`.
    """
    images, regions, _ = vectors.shape
    size = images if images_per_group is None else images_per_group
    if size < 1 or images % size:
        raise ValueError(
            f"images_per_group is {size}, but the batch has {images} images, and must be a multiple of it. Give each "
            "group the same number of images, one group after the other."
        )
    # Original: images stand where attention expects the sequence, so that they attend to each other.
    sequences = vectors.unflatten(0, (-1, size)).transpose(0, 1).flatten(1, 2)  # (size, groups * 14, dim)
    return encoder(sequences).unflatten(1, (-1, regions)).transpose(0, 1).flatten(0, 1)
