"""The CricaVPR model, D2-VPR's published teacher: backbone, 14 fixed regions, cross-image encoder."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..d2vpr.aggregator_d2vpr import GeM
from ..d2vpr.cross_image_d2vpr import attend_across_images, cross_image_encoder, refuse_groups_without_encoder
from ..d2vpr.modeling_d2vpr import D2VprBackbone, D2VprPreTrainedModel, patch_grid
from ..d2vpr.regions_d2vpr import MEDIUM_CUTS, SMALL_CUTS, region_cuts
from .configuration_cricavpr import CricaVprConfig


@dataclass
class CricaVprModelOutput(ModelOutput):
    """What a CricaVPR model finds in a batch of images.

    Args:
        last_hidden_state: (batch, 1 + patches, hidden_size) class token and patch tokens after the final norm.
        pooler_output: (batch, descriptor_dim) float32 descriptors of unit length: global, 4 medium, 9 small regions.
        region_features: (batch, 13, hidden_size) the regions as pooled, before the encoder.
        regional_descriptors: (batch, 14, hidden_size) float32, the 14 vectors as they are joined to a descriptor,
            before that is brought to unit length: global, 4 medium, 9 small regions.
        hidden_states: on request, the embedding and each block's output, (batch, 1 + patches, hidden_size).
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    region_features: torch.FloatTensor | None = None
    regional_descriptors: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class CricaVprBackbone(D2VprBackbone):
    """DINOv2 with adapters and its final norm."""

    def __init__(self, config: CricaVprConfig) -> None:
        super().__init__(config.backbone_config, config.adapter_dim, config.interpolate_offset)
        self.layernorm = nn.LayerNorm(config.backbone_config.hidden_size, eps=config.backbone_config.layer_norm_eps)


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

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        output_hidden_states: bool | None = None,
        images_per_group: int | None = None,
    ) -> CricaVprModelOutput:
        """Descriptors of a batch of images.

        Args:
            pixel_values: (batch, 3, height, width) as the processor makes them, height and width multiples of 14
                pixels.
            output_hidden_states: whether to keep what every block gives.
            images_per_group: with the cross-image encoder, images attend to each other within groups of so many that
                follow each other in the batch; None, as published, makes the batch one group.

        Raises: ValueError if height or width is no multiple of the patch size, or too small for the regions; if the
            batch is no multiple of `images_per_group`, or that is given without an encoder.
        """
        grid = patch_grid(pixel_values, self.config.backbone_config.patch_size)
        depth = self.config.backbone_config.num_hidden_layers
        keep_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        blocks = self.backbone(pixel_values, grid, set(range(depth + 1)) if keep_all else {depth})
        tokens = self.backbone.layernorm(blocks[depth])  # (batch, 1 + patches, dim)
        # float32 under autocast too: the pool's third power is below what half precision holds.
        with torch.autocast(tokens.device.type, enabled=False):
            weights = region_members(grid, self.config.region_sampling, tokens.device)
            patches = F.normalize(tokens[:, 1:].float().transpose(1, 2), dim=1)  # (batch, dim, patches)
            features = self.pool(patches, weights)  # (batch, 13, dim)
        vectors = torch.cat([tokens[:, :1], features.to(tokens.dtype)], dim=1)  # (batch, 14, dim)
        if self.config.cross_image_encoder:
            self.warn_of_company()
            vectors = attend_across_images(self.encoder, vectors, images_per_group)
        else:
            refuse_groups_without_encoder(images_per_group)
        # float32 under autocast too: rounding here would shift every similarity.
        vectors = vectors.float()
        descriptor = F.normalize(vectors.flatten(1), dim=-1)  # (batch, 14 * dim)
        hidden_states = tuple(blocks[number] for number in sorted(blocks)) if keep_all else None
        return CricaVprModelOutput(tokens, descriptor, features, vectors, hidden_states)


__all__ = ["CricaVprModel", "CricaVprModelOutput"]
