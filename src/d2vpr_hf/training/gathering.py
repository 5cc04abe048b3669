"""Descriptors of all processes in one loss, with gradients that reach each process's own model."""

from typing import Any

import torch
import torch.distributed as dist


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        # Each process has its own copy of the loss; DDP divides what they find by their number, so here it is summed.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        rows = len(gradient) // dist.get_world_size()
        return gradient[dist.get_rank() * rows :][:rows]


def gather_with_gradient(values: torch.Tensor) -> torch.Tensor:
    """(processes * rows, ...) of each process's (rows, ...), in the order of the processes; all give equally many rows.

    The loss of what comes back, made by every process, has under DDP the gradient of one process with all rows.
    """
    return _Gathered.apply(values) if _several() else values


def gather_labels(values: torch.Tensor) -> torch.Tensor:
    """As `gather_with_gradient`, of whole numbers."""
    if not _several():
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
