"""What may stand behind the 14 regional descriptors and make the descriptor shorter: a PCA, or a learned head."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_d2vpr import D2VprConfig


class D2VprReduction(nn.Module):
    """A PCA of descriptors, kept with the files that it was fitted on. Nothing here is trained, so all are buffers."""

    def __init__(self, config: D2VprConfig) -> None:
        super().__init__()
        self.renormalise = config.pca_source["renormalise"]
        files = config.pca_source["images"] if config.pca_source["files_sha256"] else 0
        self.register_buffer("mean", torch.zeros(config.regional_dim))
        self.register_buffer("components", torch.eye(config.descriptor_dim, config.regional_dim))
        # Size in bytes and the first 8 bytes of the SHA-256 of each file, by which they are known again anywhere.
        self.register_buffer("files", torch.zeros(files, 2, dtype=torch.int64))

    def forward(self, descriptor: torch.Tensor) -> torch.Tensor:
        """(batch, descriptor_dim) of descriptors (batch, 14 * aggregator_dim), both float32."""
        # float32 under autocast too, as the descriptor itself.
        with torch.autocast(descriptor.device.type, enabled=False):
            reduced = F.linear(descriptor - self.mean.float(), self.components.float())
            return F.normalize(reduced, dim=-1) if self.renormalise else reduced


class D2VprHead(nn.Module):
    """A learned projection of descriptors to fewer numbers, of unit length again.

    It has no bias: one would turn all descriptors the same way. A new one is a random projection, which keeps cosines
    but for noise, so that training starts from the full descriptor's neighbours.
    """

    def __init__(self, config: D2VprConfig) -> None:
        super().__init__()
        # No nn.Linear: quantised, that can't be cut to its first rows.
        self.weight = nn.Parameter(torch.empty(config.head_dim, config.regional_dim))

    def forward(self, descriptor: torch.Tensor, dim: int | None = None) -> torch.Tensor:
        """(batch, dim) of descriptors (batch, 14 * aggregator_dim), both float32 and of unit length.

        `dim` keeps the first numbers alone, as many as are given; None: all, which are head_dim.
        """
        # float32 under autocast too, as the descriptor itself.
        with torch.autocast(descriptor.device.type, enabled=False):
            return F.normalize(F.linear(descriptor, self.weight[:dim].float()), dim=-1)
