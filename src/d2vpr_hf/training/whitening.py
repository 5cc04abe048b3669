"""Centring and whitening of a teacher's descriptors, so that a cosine sees how photos differ."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save
from torch.nn import functional as F

from ..files import replace_file

# Photos that it is fitted on, at most.
FITTED_ON = 2048
# Of the largest variance: directions below it are rounding, which whitening would blow up.
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Whitening:
    """An affine map of each of the 14 regional descriptors; what comes out is of unit length.

    Attributes:
        mean: (14, width) of each region over the photos.
        projection: (width, dim) onto the directions of largest variance of all regions, each divided by its deviation.
    """

    mean: torch.Tensor
    projection: torch.Tensor

    @property
    def dim(self) -> int:
        return self.projection.shape[1]

    @classmethod
    def fit(cls, regional: torch.Tensor, dim: int) -> Self:
        """The whitening of the photos' (photos, 14, width) regional descriptors to `dim` numbers.

        Raises: ValueError if the descriptors vary in fewer than `dim` directions.
        """
        mean = regional.double().mean(dim=0)
        centred = (regional.double() - mean).flatten(0, 1)
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        variances, directions = variances.flip(0), directions.flip(1)
        found = int((variances > LEAST_VARIANCE * variances[0]).sum())
        if found < dim:
            raise ValueError(
                f"teacher_whitening is {dim}, but the teacher's descriptors of {len(regional)} photos vary in {found} "
                "directions. Lower it, or give more photos."
            )
        projection = directions[:, :dim] / variances[:dim].sqrt()
        return cls(mean.float(), projection.float().contiguous())

    def __call__(self, regional: torch.Tensor) -> torch.Tensor:
        """(images, 14, dim) of unit length, of (images, 14, width)."""
        device = regional.device
        return F.normalize((regional - self.mean.to(device)) @ self.projection.to(device), dim=-1)

    def save(self, path: Path) -> None:
        """Writes it whole or not at all."""
        replace_file(path, save({"mean": self.mean, "projection": self.projection}))

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(**load_file(path))
