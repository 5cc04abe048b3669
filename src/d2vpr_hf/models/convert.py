"""Published checkpoints of D2-VPR and CricaVPR, brought into this package's form."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers.configuration_utils import PreTrainedConfig

from ..files import check_free, hash_file
from ..messages import first_few
from .checkpoint import impossible_numbers, save_checkpoint
from .cricavpr.configuration_cricavpr import CricaVprConfig
from .cricavpr.modeling_cricavpr import CricaVprModel
from .d2vpr.configuration_d2vpr import D2VprConfig
from .d2vpr.image_processing_d2vpr import D2VprImageProcessor
from .d2vpr.modeling_d2vpr import D2VprModel

# Our names on the left, published ones on the right; each pattern is applied once, in order.
SHARED_NAMES = (
    (r"^backbone\.embeddings\.cls_token$", "backbone.cls_token"),
    (r"^backbone\.embeddings\.mask_token$", "backbone.mask_token"),
    (r"^backbone\.embeddings\.position_embeddings$", "backbone.pos_embed"),
    (r"^backbone\.embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
    (r"^backbone\.encoder\.layer\.(\d+)\.", r"backbone.blocks.\1."),
    (r"\.attention\.[qkv]_proj\.", ".attn.qkv."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.adapter\.down\.", ".adapter.D_fc1."),
    (r"\.adapter\.up\.", ".adapter.D_fc2."),
    (r"\.adapter\.branch3\.", ".adapter.branch2."),
    (r"\.adapter\.branch5\.", ".adapter.branch3."),
    (r"(\.adapter\.branch\d(?:\.\d)?)\.norm\.", r"\1.bn."),
)
D2VPR_NAMES = (
    *SHARED_NAMES,
    (r"^recovery\.projection\.", "backbone.lin."),
    (r"^recovery\.norm\.", "backbone.up_norm."),
    (r"^aggregator\.regions\.offset_in\.", "offset_generator.0."),
    (r"^aggregator\.regions\.offset_out\.", "offset_generator.2."),
    (r"^aggregator\.regions\.pool\.p$", "aggregation.1.p"),
    (r"^aggregator\.(small_to_medium|medium_to_global)\.", r"topdown_fusion.\1."),
    (r"^aggregator\.position\.", "pos_encoder.fc."),
)
CRICAVPR_NAMES = (
    *SHARED_NAMES,
    (r"^backbone\.layernorm\.", "backbone.norm."),
    (r"^pool\.p$", "aggregation.1.p"),
)
# Beginnings of names that one of the two models has and the other hasn't.
D2VPR_MARKS = ("backbone.lin.", "backbone.up_norm.", "offset_generator.", "topdown_fusion.", "pos_encoder.")
CRICAVPR_MARKS = ("backbone.norm.",)
FRACTIONS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGERS = (torch.int64, torch.int32)
WRAPPINGS = ("model_state_dict", "state_dict")
MODULE_PREFIX = "module."


def convert_original_state_dict(state_dict: Mapping) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Configuration and weights, in this package's names, of a published checkpoint.

    Args:
        state_dict: published names to tensors, of D2-VPR with or without its cross-image encoder or of CricaVPR; the
            wrapping `{"model_state_dict": ...}` and a `module.` before each name are taken off.

    Returns: a `D2VprConfig` and what `D2VprModel(config).load_state_dict(..., strict=True)` takes; for CricaVPR a
        `CricaVprConfig` and `CricaVprModel`'s. A checkpoint that holds an encoder gets `cross_image_encoder=True`.
    Raises: ValueError listing, by published name, every tensor that is missing, extra, of another shape or kind of
        numbers, or holds NaN, infinity or what float32 can't hold; or naming what isn't a tensor.
    """
    published = unwrap(state_dict)
    config, model_class, names = recognise(published)
    with torch.device("meta"):
        expected = model_class(config).state_dict()
    renamed = {name: published_name(name, names) for name in expected}
    check_tensors(published, expected_tensors(expected, renamed))
    return config, {
        name: take(published[renamed[name]], name).to(dtype=tensor.dtype) for name, tensor in expected.items()
    }


def convert_checkpoint(checkpoint: str | Path, folder: str | Path) -> PreTrainedConfig:
    """Writes a published checkpoint file as a checkpoint folder of this package.

    Args:
        checkpoint: the `.pth` file; only tensors and plain containers are read from it (`weights_only`).
        folder: gets configuration, safetensors, processor and the code that loads them. It must not exist or be empty.

    Returns: the configuration written, whose `converted_from` holds the file's name and SHA-256.
    Raises: ValueError if the file holds no such checkpoint, or the folder is the working directory. FileNotFoundError,
        FileExistsError.
    """
    check_free(folder)
    checkpoint = Path(checkpoint)
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{checkpoint} can't be read as a PyTorch checkpoint of tensors alone ({type(error).__name__}: {error}). "
            "Give the .pth file as it was published."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{checkpoint} holds a {type(content).__name__}, but a state dict was expected.")
    config, weights = convert_original_state_dict(content)
    config.converted_from = {"file": checkpoint.name, "sha256": hash_file(checkpoint)}
    model = (D2VprModel if isinstance(config, D2VprConfig) else CricaVprModel)(config)
    model.load_state_dict(weights, strict=True)
    save_checkpoint(folder, model, D2VprImageProcessor())
    return config


def unwrap(state_dict: Mapping) -> dict[str, torch.Tensor]:
    """Tensors by published name, without wrapping and prefix."""
    for wrapping in WRAPPINGS:
        if isinstance(state_dict.get(wrapping), Mapping):
            state_dict = state_dict[wrapping]
    for name, value in state_dict.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
            found = f"{value.layout} tensor" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"{name!r} of the checkpoint holds a {found}, but an ordinary tensor was expected. Give the state dict "
                "as it was published."
            )
    tensors = {str(name).removeprefix(MODULE_PREFIX): value for name, value in state_dict.items()}
    if len(tensors) < len(state_dict):
        raise ValueError(f"Some tensors are there twice, with and without {MODULE_PREFIX!r}. Keep one of each.")
    return tensors


def recognise(published: Mapping[str, torch.Tensor]) -> tuple[PreTrainedConfig, Callable, tuple]:
    """Configuration, model class and names of the model whose checkpoint this is."""
    if any(name.startswith(D2VPR_MARKS) for name in published):
        has_encoder = any(name.startswith("encoder.") for name in published)
        return D2VprConfig(cross_image_encoder=has_encoder), D2VprModel, D2VPR_NAMES
    if any(name.startswith(CRICAVPR_MARKS) for name in published):
        return CricaVprConfig(), CricaVprModel, CRICAVPR_NAMES
    raise ValueError(
        f"The checkpoint's names ({first_few(sorted(published), 5) or 'none'}) are neither D2-VPR's nor CricaVPR's. "
        f"One of {', '.join(D2VPR_MARKS + CRICAVPR_MARKS)} was expected. Give a checkpoint of one of the two."
    )


def published_name(name: str, names: tuple) -> str:
    for ours, theirs in names:
        name = re.sub(ours, theirs, name)
    return name


def expected_tensors(expected: Mapping[str, torch.Tensor], renamed: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Every published tensor, without its numbers; query, key and value are one there."""
    published = {renamed[name]: tensor for name, tensor in expected.items()}
    return {name: torch.cat([each] * 3) if ".attn.qkv." in name else each for name, each in published.items()}


def check_tensors(published: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    problems = [
        f"missing: {name}, expected shape {tuple(expected[name].shape)}" for name in expected if name not in published
    ]
    for name, tensor in published.items():
        found = tuple(tensor.shape)
        if name not in expected:
            problems.append(f"extra: {name}, found shape {found}")
        elif found != tuple(expected[name].shape):
            problems.append(f"misshapen: {name}, found shape {found}, expected {tuple(expected[name].shape)}")
        elif tensor.dtype not in (kinds := FRACTIONS if expected[name].is_floating_point() else INTEGERS):
            problems.append(
                f"of another kind: {name}, found {tensor.dtype}, expected one of {', '.join(map(str, kinds))}"
            )
        else:
            problems += impossible_numbers({name: tensor})
    if problems:
        raise ValueError(
            f"The checkpoint doesn't fit, {len(problems)} tensors differ:\n  "
            + "\n  ".join(problems)
            + "\nGive the file as it was published."
        )


def take(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The part of a published tensor that is ours of this name: a third of query, key and value, or all."""
    for part, projection in enumerate((".q_proj.", ".k_proj.", ".v_proj.")):
        if projection in name:
            return tensor.chunk(3)[part].clone()
    return tensor
