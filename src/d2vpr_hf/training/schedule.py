"""What of a model is trained, and with which learning rate at each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arguments import TrainingArguments

# Of the modules behind the blocks, those that a loss can't reach in any stage.
UNREACHED = ("mask_token",)
# Of a group of the optimiser: what it has of the learning rate. States keep it.
RATE_SHARE = "rate_share"


def model_parts(model: nn.Module) -> tuple[nn.Module, list[nn.Module], dict[str, nn.Module]]:
    """A D2-VPR or CricaVPR model as embeddings, blocks, and the modules behind the blocks by name."""
    backbone = model.backbone
    behind = {name: module for name, module in backbone.named_children() if name not in ("embeddings", "encoder")}
    behind |= {name: module for name, module in model.named_children() if name != "backbone"}
    return backbone.embeddings, list(backbone.encoder.layer), behind


def freeze(model: nn.Module, *, trainable_blocks: int, trainable_modules: Sequence[str] | None) -> list[nn.Module]:
    """Freezes all but the last blocks and the modules behind them.

    Args:
        model: a D2-VPR or CricaVPR model.
        trainable_blocks: how many of the last blocks are trained; -1: all of them, and the embeddings.
        trainable_modules: names of modules behind the blocks; None: all of them.

    Returns: the frozen modules.
    Raises: ValueError for more blocks than there are, or an unknown module.
    Source: the original trains its last four blocks and everything behind them in stage 2.
    """
    embeddings, blocks, behind = model_parts(model)
    if trainable_blocks > len(blocks):
        raise ValueError(f"trainable_blocks is {trainable_blocks}, but the model has {len(blocks)} blocks.")
    if unknown := [name for name in trainable_modules or () if name not in behind]:
        raise ValueError(
            f"trainable_modules has {unknown[0]!r}, but behind its blocks the model has {', '.join(behind)}."
        )
    everything = trainable_blocks < 0
    trained = blocks if everything else blocks[len(blocks) - trainable_blocks :]
    # Blocks that no recovery layer comes from or after aren't reached by any loss.
    reached = max(getattr(model.config, "recovery_layers", (len(blocks),)))
    trained = [block for block in trained if block in blocks[:reached]]
    frozen = [] if everything else [embeddings]
    frozen += [block for block in blocks if block not in trained]
    frozen += [module for name, module in behind.items() if trainable_modules and name not in trainable_modules]
    model.requires_grad_(True)
    for module in frozen:
        module.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith(UNREACHED):
            parameter.requires_grad_(False)
    return frozen


def set_training(model: nn.Module, frozen: Sequence[nn.Module], *, frozen_batchnorm: str) -> None:
    """Training mode for what is trained; what is frozen is in evaluation mode.

    With `frozen_batchnorm="train"` BatchNorm of frozen modules keeps following the batches.
    """
    model.train()
    for part in frozen:
        part.eval()
        if frozen_batchnorm == "train":
            for module in part.modules():
                if isinstance(module, _BatchNorm):
                    module.train()


def make_optimizer(arguments: TrainingArguments, student: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all that is trained, with a group for each share of the learning rate.

    Args:
        student: the model that is trained, as `model`, and what is trained with it.

    Raises: ValueError if nothing is.
    """
    shares = layer_shares(student.model, arguments.layer_rate_decay)
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in student.parameters():
        if parameter.requires_grad:
            groups.setdefault(shares.get(parameter, 1.0), []).append(parameter)
    if not groups:
        raise ValueError("Nothing is left to train. Raise trainable_blocks, or name trainable_modules.")
    kind = torch.optim.AdamW if arguments.optimizer == "adamw" else torch.optim.Adam
    parts = [{"params": members, RATE_SHARE: share} for share, members in groups.items()]
    optimizer = kind(parts, lr=arguments.learning_rate, weight_decay=arguments.weight_decay)
    set_learning_rate(optimizer, arguments.learning_rate)
    return optimizer


def layer_shares(model: nn.Module, decay: float) -> dict[nn.Parameter, float]:
    """Each parameter's share of the learning rate: decay^(n - b) in block b of n, the embeddings as block 0."""
    embeddings, blocks, _ = model_parts(model)
    layers = [embeddings, *blocks]
    return {
        parameter: decay ** (len(blocks) - number)
        for number, layer in enumerate(layers)
        for parameter in layer.parameters()
    }


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, of which each group has its share."""
    for group in optimizer.param_groups:
        # A state of version 0.1 brings a group back that has none.
        group["lr"] = rate * group.get(RATE_SHARE, 1.0)


@dataclass(frozen=True)
class Schedule:
    """Steps of a run and their learning rates.

    Attributes:
        steps_per_epoch: steps of the optimiser in an epoch.
        steps: of the whole run.
        warmup_steps: in which the rate rises; may exceed the steps of the run, as in the published recipe.
        peak: the learning rate after the warm-up.
        falls: whether it falls along a cosine to a hundredth afterwards.
    """

    steps_per_epoch: int
    steps: int
    warmup_steps: float
    peak: float
    falls: bool

    @classmethod
    def of(cls, arguments: TrainingArguments, batches_per_epoch: int) -> "Schedule":
        """The schedule of a run whose sampler gives so many batches an epoch.

        Raises: ValueError if an epoch has fewer batches than one step takes.
        """
        steps_per_epoch = batches_per_epoch // arguments.gradient_accumulation_steps
        if not steps_per_epoch:
            raise ValueError(
                f"An epoch has {batches_per_epoch} batches, but gradient_accumulation_steps is "
                f"{arguments.gradient_accumulation_steps}. Give more places, or fewer places_per_batch."
            )
        steps = arguments.epochs * steps_per_epoch
        steps = steps if arguments.max_steps is None else min(steps, arguments.max_steps)
        warmup = arguments.warmup_epochs * steps_per_epoch
        return cls(steps_per_epoch, steps, warmup, arguments.learning_rate, arguments.schedule == "cosine")

    def learning_rate(self, step: int) -> float:
        """Of the step with this number, the first of which is 0."""
        if step < self.warmup_steps:
            # Original: the rate rises by step + 1, so that the first step has one.
            return self.peak * min((step + 1) / self.warmup_steps, 1.0)
        if not self.falls:
            return self.peak
        share = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.peak * (0.01 + 0.99 * (1 + math.cos(math.pi * min(share, 1.0))) / 2)
