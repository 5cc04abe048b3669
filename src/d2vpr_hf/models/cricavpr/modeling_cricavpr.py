"""The CricaVPR model, D2-VPR's published teacher: backbone, 14 fixed regions, cross-image encoder."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from ..d2vpr.aggregator_d2vpr import GeM
from ..d2vpr.backbone_d2vpr import D2VprBackbone
from ..d2vpr.cross_image_d2vpr import cross_image_encoder
from ..d2vpr.modeling_d2vpr import D2VprPreTrainedModel
from ..d2vpr.regions_d2vpr import MEDIUM_CUTS, SMALL_CUTS, kept, region_cuts
from .configuration_cricavpr import CricaVprConfig


class CricaVprBackbone(D2VprBackbone):
    """DINOv2 with adapters and its final norm."""

    def __init__(self, config: CricaVprConfig) -> None:
        super().__init__(config.backbone_config, config.adapter_dim, config.interpolate_offset)
        self.layernorm = nn.LayerNorm(config.backbone_config.hidden_size, eps=config.backbone_config.layer_norm_eps)


@kept
def region_members(grid: tuple[int, int], sampling: str, device: torch.device) -> torch.Tensor:
    """(13, patches) share of each patch in each region's mean: 4 medium and 9 small regions, each row by row.

    Raises: ValueError if the grid has too few patches for a region.
    """
    sets = []
    for cuts in (MEDIUM_CUTS, SMALL_CUTS):
        rows, columns = (axis_members(cuts, length, sampling, device) for length in grid)
        sets.append(torch.einsum("ar,bc->abrc", rows, columns).flatten(2).flatten(0, 1))
    return torch.cat(sets)


def axis_members(cuts: tuple[int, ...], length: int, sampling: str, device: torch.device) -> torch.Tensor:
    """(parts, length) share of each row or column of patches in each part's mean."""
    ends, _ = region_cuts(cuts, length, sampling)
    # Original: the cuts stay at the tokens of a 16 x 16 grid, and the last part takes all that is left.
    ends[-1] = length
    if any(after <= before for before, after in pairwise(ends)):
        raise ValueError(
            f"The image is {length} patches high or wide, too few for regions cut at patches {ends[1:-1]}. "
            f'Give a larger image, or set region_sampling="dense".'
        )
    members = torch.zeros(len(ends) - 1, length, device=device)
    for part, (start, end) in enumerate(pairwise(ends)):
        members[part, start:end] = 1 / (end - start)
    return members


class CricaVprModel(D2VprPreTrainedModel):
    """CricaVPR: a descriptor of 14 regions, in which the images of a batch attend to each other.

    `cross_image_encoder=False` bypasses the encoder: the batch-independent teacher. With it, the same photo gets
    another descriptor in another company, and the model warns once.
    """

    config: CricaVprConfig
    config_class = CricaVprConfig
    base_model_prefix = "cricavpr"
    _no_split_modules = ["D2VprEmbeddings", "D2VprLayer"]  # noqa: RUF012

    def __init__(self, config: CricaVprConfig) -> None:
        super().__init__(config)
        self.backbone = CricaVprBackbone(config)
        self.pool = GeM()
        if config.cross_image_encoder:
            self.encoder = cross_image_encoder(config.backbone_config.hidden_size, config.dropout)
        self.post_init()

    @property
    def aggregated_layers(self) -> Sequence[int]:
        """The last block alone."""
        return (self.config.backbone_config.num_hidden_layers,)

    def aggregate(
        self, blocks: list[torch.Tensor], grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, None, torch.Tensor]:
        """Tokens (batch, 1 + patches, dim), regional descriptors (batch, 14, dim), no boxes, the regions' features."""
        tokens = self.backbone.layernorm(blocks[0])
        # float32 under autocast too: the pool's third power is below what half precision holds.
        with torch.autocast(tokens.device.type, enabled=False):
            weights = region_members(grid, self.config.region_sampling, tokens.device)
            patches = F.normalize(tokens[:, 1:].float().transpose(1, 2), dim=1)  # (batch, dim, patches)
            features = self.pool(patches, weights)  # (batch, 13, dim)
        return tokens, torch.cat([tokens[:, :1], features.to(tokens.dtype)], dim=1), None, features


__all__ = ["CricaVprModel"]
