"""BatchNorm's running statistics where a forward pass is made twice: they follow each batch once."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


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


def checkpoint_gradients(model: nn.Module) -> None:
    """Switches gradient checkpointing on; the second pass over a block leaves BatchNorm's statistics alone.

    Without that each batch would count twice in the running statistics, as if momentum were larger.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), running_statistics_kept(model)

    settings: dict[str, bool | Callable] = {"use_reentrant": False, "context_fn": contexts}
    model.activation_checkpointing_enable(settings)


class ReplayedRandomness:
    """The state of the random generators at one moment, to which a block can return.

    A chunk whose descriptors were made without graph is made again with it: dropout must drop the same.
    """

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.cpu_state = torch.get_rng_state()
        self.device_states = [torch.cuda.get_rng_state(each) for each in self.devices]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within, random numbers are those that followed that moment; afterwards the generators are as before."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu_state)
            for device, state in zip(self.devices, self.device_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
