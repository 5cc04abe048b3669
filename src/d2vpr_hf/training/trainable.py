"""Which parts of a model a stage trains, and what the others do meanwhile."""

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# Of the modules behind the blocks, those that a loss can't reach in any stage.
UNREACHED = ("mask_token",)


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
