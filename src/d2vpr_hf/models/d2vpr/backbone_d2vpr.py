"""The student: DINOv2 with an adapter in each block, in the order in which an image passes through it."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint, noop_context_fn
from transformers import Dinov2Config
from transformers import initialization as init
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings, Dinov2Layer, Dinov2PreTrainedModel


def patch_grid(pixel_values: torch.Tensor, patch: int) -> tuple[int, int]:
    """(rows, columns) of patches of `patch` pixels in (batch, 3, height, width)."""
    if pixel_values.ndim != 4 or any(side % patch or not side for side in pixel_values.shape[-2:]):
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, but must be (batch, 3, height, width) with height "
            f"and width multiples of {patch} pixels. Prepare images with the checkpoint's processor."
        )
    return pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch


class D2VprEmbeddings(Dinov2Embeddings):
    """DINOv2's embeddings with the position table resized as the published weights expect."""

    def __init__(self, config: Dinov2Config, interpolate_offset: float) -> None:
        super().__init__(config)
        self.interpolate_offset = interpolate_offset

    def interpolate_pos_encoding(self, embeddings: torch.Tensor, height: int, width: int) -> torch.Tensor:
        table = self.position_embeddings
        side = math.isqrt(table.shape[1] - 1)
        rows, columns = height // self.patch_size, width // self.patch_size
        if isinstance(height, torch.SymInt) or isinstance(width, torch.SymInt):
            patches = self._resized_to_any(table[0, 1:].unflatten(0, (side, side)), rows, columns)
            return torch.cat([table[:, :1], patches.flatten(0, 1)[None].to(table.dtype)], dim=1)
        if rows == columns == side:
            return table
        patches = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        # Original: the factor is (grid + 0.1) / side, whose rounding shifts every sampled point; a resize to the
        # grid's size differs by far more than rounding. (Where the model is traced, a count is a tensor.)
        factors = [(int(count) + self.interpolate_offset) / side for count in (rows, columns)]
        patches = F.interpolate(patches, scale_factor=factors, mode="bicubic", antialias=False).to(table.dtype)
        return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)

    def _resized_to_any(self, table: torch.Tensor, rows: torch.SymInt, columns: torch.SymInt) -> torch.Tensor:
        """(rows, columns, dim) of a table (side, side, dim), where an exporter leaves the sizes open.

        The same numbers as below but for rounding; an interpolation by a factor would keep the traced size.
        """
        side = table.shape[0]
        counts = [torch.scalar_tensor(count, device=table.device) for count in (rows, columns)]
        # At its own size the table stays as it is.
        offset = sum((count - side).abs() for count in counts).clamp(max=1) * self.interpolate_offset
        for count, size in zip((rows, columns), counts, strict=True):
            taps, weights = cubic_taps(torch.arange(count, device=table.device), (size + offset) / side)
            table = torch.einsum("ntsd,nt->nsd", table.float()[taps.clamp(0, side - 1)], weights)
            table = table.transpose(0, 1)
        return table


def cubic_taps(targets: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(targets, 4) numbers of the cells that bicubic interpolation by a factor reads, and their weights."""
    positions = (targets + 0.5) / factor - 0.5
    taps = positions.floor()[:, None] + torch.arange(-1, 3, device=targets.device)
    away = (positions[:, None] - taps).abs()
    near = (1.25 * away - 2.25) * away**2 + 1
    far = ((-0.75 * away + 3.75) * away - 6) * away + 3
    return taps.long(), torch.where(away <= 1, near, far)


class ConvNormAct(nn.Module):
    """A convolution that keeps the grid's size, BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, patch_map: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(patch_map)))


class AdapterUp(nn.Linear):
    """Last layer of an adapter, a class of its own so that it starts at zero and the adapter at nothing."""


class D2VprAdapter(nn.Module):
    """Multi-scale convolutions beside a block's MLP, which give the tokens a sense of their neighbours."""

    def __init__(self, hidden_size: int, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, channels)
        self.branch1 = ConvNormAct(channels, channels // 2, kernel_size=1)
        self.branch3 = nn.Sequential(
            ConvNormAct(channels, channels // 16, kernel_size=1),
            ConvNormAct(channels // 16, channels // 4, kernel_size=3),
        )
        self.branch5 = nn.Sequential(
            ConvNormAct(channels, channels // 16, kernel_size=1),
            ConvNormAct(channels // 16, channels // 4, kernel_size=5),
        )
        self.up = AdapterUp(channels, hidden_size)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        reduced = F.relu(self.down(hidden_states))  # (batch, 1 + patches, channels)
        patch_map = reduced[:, 1:].transpose(1, 2).unflatten(2, grid)  # (batch, channels, rows, columns)
        convolved = torch.cat([self.branch1(patch_map), self.branch3(patch_map), self.branch5(patch_map)], dim=1)
        patches = convolved.flatten(2).transpose(1, 2)
        # Original: the class token skips the convolutions, and what skips is added again, so it counts twice.
        return self.up(torch.cat([reduced[:, :1], patches], dim=1) + reduced)


class D2VprLayer(Dinov2Layer):
    """A DINOv2 block with an adapter beside its MLP."""

    def __init__(self, config: Dinov2Config, adapter_dim: int) -> None:
        super().__init__(config)
        self.adapter = D2VprAdapter(config.hidden_size, adapter_dim)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The block's output, and its attention where that is eager."""
        attended, attention = self.attention(self.norm1(hidden_states))
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(attended))
        normed = self.norm2(hidden_states)
        # Original: the adapter counts a fifth, and stands inside the second residual branch, before its layer scale.
        branch = self.mlp(normed) + 0.2 * self.adapter(normed, grid)
        return hidden_states + self.drop_path(self.layer_scale2(branch)), attention


class D2VprEncoder(nn.Module):
    """The student's blocks."""

    def __init__(self, config: Dinov2Config, adapter_dim: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList([D2VprLayer(config, adapter_dim) for _ in range(config.num_hidden_layers)])

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int], keep: set[int], keep_attention: bool = False
    ) -> tuple[dict[int, torch.Tensor], tuple[torch.Tensor, ...] | None]:
        """Outputs of the blocks in `keep`, by block number from 1 (0 is the embedding), and attentions on request."""
        kept = {0: hidden_states} if 0 in keep else {}
        attentions = []
        for number, layer in enumerate(self.layer, start=1):
            hidden_states, attention = layer(hidden_states, grid)
            if number in keep:
                kept[number] = hidden_states
            if keep_attention:
                attentions.append(attention)
        return kept, tuple(attentions) if keep_attention else None


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Within, BatchNorm in training mode normalises by its batch as ever, but leaves its running statistics alone."""
    following = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.training]
    kept = [(each, each.momentum, each.num_batches_tracked) for each in following]
    for module in following:
        # Not switched off: autograd must save the same tensors in both passes over a checkpointed block.
        module.momentum, module.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for module, momentum, batches in kept:
            module.momentum, module.num_batches_tracked = momentum, batches


class _SecondPass:
    """Around the second pass over a block, entered anew by every backward: a context of `contextmanager` serves one."""

    def __init__(self, model: nn.Module, given: AbstractContextManager) -> None:
        self._model, self._given = model, given

    def __enter__(self) -> None:
        with ExitStack() as entered:
            entered.enter_context(running_statistics_kept(self._model))
            entered.enter_context(self._given)
            self._entered = entered.pop_all()

    def __exit__(self, *error: object) -> bool | None:
        return self._entered.__exit__(*error)


def _checkpoint_contexts(model: nn.Module, given: Callable) -> tuple[AbstractContextManager, AbstractContextManager]:
    first, second = given()
    return first, _SecondPass(model, second)


class CheckpointsOnce:
    """Has gradient checkpointing, which passes each block twice, count each batch once in BatchNorm's statistics."""

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs
    ) -> None:
        if enable:
            settings = getattr(gradient_checkpointing_func, "keywords", {})
            if settings.get("use_reentrant"):
                raise ValueError(
                    "With use_reentrant=True gradient checkpointing counts each batch twice in BatchNorm's running "
                    "statistics, by which the model describes photos. Give use_reentrant=False, or leave it out."
                )
            contexts = partial(_checkpoint_contexts, self, settings.get("context_fn", noop_context_fn))
            gradient_checkpointing_func = partial(gradient_checkpointing_func, use_reentrant=False, context_fn=contexts)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)


class D2VprBackbone(CheckpointsOnce, Dinov2PreTrainedModel):
    """The student: DINOv2 with adapters, whose tensors bear the names of transformers' `Dinov2Model`."""

    _no_split_modules = ["D2VprEmbeddings", "D2VprLayer"]  # noqa: RUF012

    def __init__(self, config: Dinov2Config, adapter_dim: int, interpolate_offset: float) -> None:
        super().__init__(config)
        self.embeddings = D2VprEmbeddings(config, interpolate_offset)
        self.encoder = D2VprEncoder(config, adapter_dim)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AdapterUp):
            init.zeros_(module.weight)

    def forward(
        self, pixel_values: torch.Tensor, grid: tuple[int, int], keep: set[int], keep_attention: bool = False
    ) -> tuple[dict[int, torch.Tensor], tuple[torch.Tensor, ...] | None]:
        return self.encoder(self.embeddings(pixel_values), grid, keep, keep_attention)
