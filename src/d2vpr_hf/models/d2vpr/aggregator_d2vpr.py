"""The top-down deformable aggregator: 14 regional descriptors of a photo, of its patch map and class token."""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_d2vpr import D2VprConfig
from .regions_d2vpr import RegionPoints, global_box, neighbours, region_points


class GeM(nn.Module):
    """Generalised mean over each region's samples, with a learned power."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, samples: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(batch, regions, dim) from samples (batch, dim, samples) and weights (regions, samples) whose rows sum to 1.

        Must run in float32: the clamp's third power is below what float16 can hold.
        """
        powers = samples.clamp(min=1e-6).pow(self.p.float())
        return torch.einsum("bds,rs->brd", powers, weights).pow(1.0 / self.p.float())


def rescale_axis(positions: torch.Tensor, length: int, first: int) -> torch.Tensor:
    """Positions in [-1, 1] along `length` cells, as positions in [-1, 1] along the cells from `first` on."""
    cells = (positions + 1) / 2 * (length - 1)
    return (cells - first) / max(length - 1 - first, 1) * 2 - 1


def sample_map(values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(batch, channels, samples) of a map (batch, channels, rows, columns) at points (batch, samples, 2) in [-1, 1]."""
    return F.grid_sample(values, points[:, None], mode="bilinear", padding_mode="border", align_corners=True)[:, :, 0]


class OffsetHead(nn.Conv2d):
    """Last layer of the offset map, a class of its own so that new regions start undeformed."""


class D2VprRegionSampler(nn.Module):
    """The deformable part of the aggregator: 13 regions, each moved and scaled by what the class token asks for."""

    def __init__(self, config: D2VprConfig) -> None:
        super().__init__()
        self.offset_grid = config.offset_grid
        self.region_sampling = config.region_sampling
        dim, inner = config.aggregator_dim, config.aggregator_dim * 2 // 3
        self.offset_in = nn.Conv2d(2 * dim, inner, kernel_size=1)
        self.offset_out = OffsetHead(inner, 4, kernel_size=1)
        self.pool = GeM()

    def forward(self, patch_map: torch.Tensor, class_token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Regional features and boxes.

        Args:
            patch_map: (batch, dim, rows, columns)
            class_token: (batch, dim)

        Returns: features (batch, 13, dim) float32, boxes (batch, 13, 4) float32 as in `D2VprModelOutput`.
        """
        grid = tuple(patch_map.shape[-2:]) if self.region_sampling == "dense" else None
        regions = region_points(grid, self.region_sampling, patch_map.device)
        offsets = self.read_offsets(patch_map, class_token, regions.points)
        # float32 under autocast too: a rounded position samples another place, a rounded power another mean.
        with torch.autocast(patch_map.device.type, enabled=False):
            points = self.deform(offsets.float(), regions)
            samples = sample_map(patch_map.float(), points * 2 - 1)  # (batch, dim, samples)
            features = self.pool(F.normalize(samples, dim=1), regions.weights)
            return features, self.boxes(points, regions)

    def pool_whole(self, patch_map: torch.Tensor) -> torch.Tensor:
        """(batch, dim) float32 of all patches, each counting the same."""
        with torch.autocast(patch_map.device.type, enabled=False):
            patches = F.normalize(patch_map.float().flatten(2), dim=1)
            weights = patches.new_full((1, patches.shape[-1]), 1 / patches.shape[-1])
            return self.pool(patches, weights)[:, 0]

    def read_offsets(self, patch_map: torch.Tensor, class_token: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """(batch, samples, 4) of the offset map, made only where it is read."""
        where = points * 2 - 1
        if self.offset_grid == "original":
            # Original: points in [0, 1] are taken for points in [-1, 1], so that only the bottom right quarter is read.
            where = points
            rows, columns = patch_map.shape[-2:]
            first_row, first_column = (rows - 1) // 2, (columns - 1) // 2
            patch_map = patch_map[:, :, first_row:, first_column:]
            where = torch.stack(
                [rescale_axis(where[:, 0], columns, first_column), rescale_axis(where[:, 1], rows, first_row)], dim=-1
            )
        dim = class_token.shape[-1]
        weight = self.offset_in.weight
        # A 1x1 convolution over [patch, class token] is a sum of two, and the class token's is the same everywhere.
        of_class = F.linear(class_token, weight[:, dim:, 0, 0], self.offset_in.bias)
        hidden = F.relu(F.conv2d(patch_map, weight[:, :dim]) + of_class[:, :, None, None])
        offset_map = self.offset_out(hidden)  # (batch, 4, rows, columns)
        with torch.autocast(patch_map.device.type, enabled=False):
            # By shape, not len(): the exporters take that for a fixed number.
            where = where.expand(offset_map.shape[0], -1, -1)
            return sample_map(offset_map.float(), where).transpose(1, 2)

    @staticmethod
    def deform(offsets: torch.Tensor, regions: RegionPoints) -> torch.Tensor:
        """(batch, samples, 2) points in [0, 1]: each scaled about its region's centre, and shifted in region sizes."""
        shift = offsets[..., :2].clamp(-0.25, 0.25) * regions.extents
        scale = 0.5 + 1.5 * offsets[..., 2:].sigmoid()
        points = (regions.centres + (regions.points - regions.centres) * scale + shift).clamp(0, 1)
        # On a CPU torch reads outside of the map at a position that is NaN, and the process is gone. The samples
        # of such an image are NaN anyway.
        return points.nan_to_num()

    @staticmethod
    def boxes(points: torch.Tensor, regions: RegionPoints) -> torch.Tensor:
        """(batch, 13, 4): mean and extent of each region's points (batch, samples, 2)."""
        centres = torch.einsum("bsc,rs->brc", points, regions.weights)
        inside = regions.members[:, :, None]
        largest = points[:, None].masked_fill(~inside, -torch.inf).amax(dim=2)
        smallest = points[:, None].masked_fill(~inside, torch.inf).amin(dim=2)
        return torch.cat([centres, largest - smallest], dim=-1)


def fusion_block(dim: int, dropout: float) -> nn.Sequential:
    inner = dim // 3
    return nn.Sequential(
        nn.Linear(dim, inner), nn.LayerNorm(inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, dim)
    )


class D2VprAggregator(nn.Module):
    """The top-down deformable aggregator: 14 regional descriptors of an image."""

    def __init__(self, config: D2VprConfig) -> None:
        super().__init__()
        dim = config.aggregator_dim
        self.first_vector = config.first_vector
        self.regions = D2VprRegionSampler(config)
        self.small_to_medium = fusion_block(dim, config.dropout)
        self.medium_to_global = fusion_block(dim, config.dropout)
        self.position = nn.Sequential(nn.Linear(4, dim // 6), nn.ReLU(), nn.Linear(dim // 6, dim))

    def forward(
        self, patch_map: torch.Tensor, class_token: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Regional descriptors (batch, 14, dim): global, 4 medium, 9 small; boxes and features as the sampler's."""
        features, boxes = self.regions(patch_map, class_token)
        # A norm's type is the model's, also where linear layers are quantised.
        regional = features.to(self.small_to_medium[1].weight.dtype)
        medium, small = regional[:, :4], regional[:, 4:]
        around = small[:, neighbours(small.device)].mean(dim=2)  # (batch, 4, dim)
        enhanced = medium + self.small_to_medium(around)
        # Original: the class token alone keeps what the fusion finds; the medium vectors go on as they were.
        start = class_token
        if self.first_vector == "pooled":
            start = self.regions.pool_whole(patch_map).to(regional.dtype)
        whole = start + self.medium_to_global(enhanced.mean(dim=1))
        vectors = torch.cat([whole[:, None], regional], dim=1)  # (batch, 14, dim)
        whole_box = global_box(boxes.device).to(boxes.dtype).expand(boxes.shape[0], -1, -1)
        places = torch.cat([whole_box, boxes], dim=1).to(regional.dtype)
        return vectors + self.position(places), boxes, features
