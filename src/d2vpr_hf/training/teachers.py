"""What a student learns from: any teacher, opened by its name, as 14 regional descriptors and a map of patch tokens."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Model, Dinov2WithRegistersModel
from transformers.configuration_utils import PreTrainedConfig

from ..evaluation.networks import TeacherNetwork, call_factory, checked_network, is_factory
from ..messages import did_you_mean
from ..models.checkpoint import read_config
from ..models.cricavpr.modeling_cricavpr import CricaVprModel, region_members
from ..models.d2vpr.aggregator_d2vpr import GeM
from ..models.d2vpr.backbone_d2vpr import patch_grid
from ..models.d2vpr.modeling_d2vpr import D2VprModel
from ..retrieval.embedder import DTYPES, weight_hash

logger = logging.getLogger(__name__)

TeacherMode = Literal["as_published", "place_grouped", "batch_independent"]
TeacherDtype = Literal["auto", "float32", "bfloat16", "float16"]

_PLACE_MODELS = {"cricavpr": CricaVprModel, "d2vpr": D2VprModel}
_DINOV2_MODELS = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
_WHAT_WORKS = (
    "A teacher is a checkpoint (folder or Hub name) of CricaVPR, D2-VPR, DINOv2 or DINOv2 with registers, or "
    '"module.path:factory" for a Python callable that returns a TeacherNetwork.'
)
# Of a saved configuration, what says where it comes from and not what the model computes.
_ORIGINS = {"_name_or_path", "transformers_version", "dtype", "architectures", "auto_map", "converted_from"}


@dataclass
class TeacherOutput:
    """What a teacher says of a batch of images; free of any graph, so that a loss can take it for a target.

    Attributes:
        regional_descriptors: (images, 14, width) float32, not of unit length: global, 4 medium, 9 small regions.
        patch_tokens: (images, width, rows, columns) float32; None where only descriptors were kept.
    """

    regional_descriptors: torch.Tensor
    patch_tokens: torch.Tensor | None = None


class PlaceTeacher(nn.Module):
    """CricaVPR or D2-VPR: its own 14 vectors and patch tokens."""

    def __init__(self, model: CricaVprModel | D2VprModel) -> None:
        super().__init__()
        self.model = model
        self.width = (
            model.config.backbone_config.hidden_size
            if isinstance(model, CricaVprModel)
            else model.config.aggregator_dim
        )
        # The warning that descriptors depend on their company is for who embeds; here the mode asks for that by name.
        model._warned_of_company = True

    def forward(self, pixel_values: torch.Tensor, images_per_group: int | None) -> TeacherOutput:
        output = self.model(pixel_values, images_per_group=images_per_group)
        grid = patch_grid(pixel_values, self.model.config.backbone_config.patch_size)
        return TeacherOutput(output.regional_descriptors, patch_map(output.last_hidden_state, grid))


class Dinov2Teacher(nn.Module):
    """DINOv2, with or without registers: class token after the final norm, and regions pooled from the patch tokens."""

    def __init__(self, model: Dinov2Model | Dinov2WithRegistersModel) -> None:
        super().__init__()
        self.model = model
        self.width = model.config.hidden_size
        self.pooling = RegionPooling()

    def forward(self, pixel_values: torch.Tensor, images_per_group: None) -> TeacherOutput:
        grid = patch_grid(pixel_values, self.model.config.patch_size)
        tokens = self.model(pixel_values).last_hidden_state
        patches = patch_map(tokens, grid)
        return TeacherOutput(self.pooling(tokens[:, 0].float(), patches), patches)


class MapTeacher(nn.Module):
    """A network of other making: the mean of its map, and regions pooled from it."""

    def __init__(self, network: TeacherNetwork) -> None:
        super().__init__()
        self.network = network
        self.width = network.width
        self.pooling = RegionPooling()

    def forward(self, pixel_values: torch.Tensor, images_per_group: None) -> TeacherOutput:
        patches = self.network.feature_map(pixel_values)
        if patches.ndim != 4 or patches.shape[:2] != (len(pixel_values), self.width):
            raise ValueError(
                f"The feature_map of {self.network.name} has shape {tuple(patches.shape)} for {len(pixel_values)} "
                f"images, but its width is {self.width}, so ({len(pixel_values)}, {self.width}, rows, columns) was "
                "expected. Mend the network, or what it states for its width."
            )
        patches = patches.float()
        return TeacherOutput(self.pooling(patches.mean(dim=(2, 3)), patches), patches)


class RegionPooling(nn.Module):
    """14 regional descriptors of a teacher that has none of its own, in the way of CricaVPR's fixed regions.

    Regions are generalised means with power 3 of patch tokens of unit length, because the student's own regions are
    such means: they are never negative, so a plain mean of signed numbers is a target that no student reaches. The
    global vector is brought to unit length like a patch token: as it comes from a final norm, its length is many times
    a region's, and it would be all that the joined descriptor says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = GeM()

    def forward(self, whole: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """(images, 14, width) of the global vector (images, width) and a map (images, width, rows, columns)."""
        # float32 under autocast too: the pool's third power is below what half precision holds.
        with torch.autocast(patches.device.type, enabled=False):
            members = region_members(tuple(patches.shape[-2:]), "dense", patches.device)
            regions = self.pool(F.normalize(patches.flatten(2), dim=1), members)  # (images, 13, width)
            return torch.cat([F.normalize(whole, dim=-1)[:, None], regions], dim=1)


class Teacher(nn.Module):
    """A frozen network that describes images; always in evaluation mode, and never with a graph.

    Args:
        network: gives a `TeacherOutput` of pixel values and the number of images in a group.
        name: for logs and cards.
        mode: "as_published", where a cross-image encoder attends over the whole batch; "place_grouped", where it does
            so over the images of each place; "batch_independent", without one: an image's target is its own.
        version_hash: SHA-256 of weights and configuration.
        dtype: arithmetic under autocast; "auto" is bfloat16 where the teacher's device is an accelerator that has it,
            else float32.

    Attributes:
        width: numbers in a regional descriptor.
    """

    def __init__(
        self, network: nn.Module, *, name: str, mode: TeacherMode, version_hash: str, dtype: TeacherDtype = "auto"
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.width: int = network.width
        self.mode = mode
        self.version_hash = version_hash
        self._dtype = dtype
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where it runs; of a network that isn't a module, where its regions are pooled."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> str:
        """Of its arithmetic, "float32", "bfloat16" or "float16"."""
        if self._dtype != "auto":
            return self._dtype
        kind = self.device.type
        has_bfloat16 = kind == "xpu" or (kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
        return "bfloat16" if has_bfloat16 else "float32"

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever the student around it does."""
        return super().train(False)

    @torch.no_grad()
    def teach(self, pixel_values: torch.Tensor, *, images_per_place: int | None = None) -> TeacherOutput:
        """Targets for a batch of images.

        Args:
            pixel_values: (images, 3, height, width) as the student's processor makes them.
            images_per_place: images of a place, which follow each other; what "place_grouped" groups by. The other
                modes don't depend on it.

        Raises: ValueError if the mode is "place_grouped" and the number of images isn't a multiple of
            `images_per_place`, or none is given; or if the images have a size that the teacher can't take.
        """
        pixel_values = pixel_values.to(self.device)
        group = None
        if self.mode == "place_grouped":
            if images_per_place is None:
                raise ValueError(
                    f'The teacher {self.name} runs in mode "place_grouped", but images_per_place is None. Give the '
                    "number of images that each place has in the batch."
                )
            group = images_per_place
        with torch.autocast(pixel_values.device.type, DTYPES[self.dtype], enabled=self.dtype != "float32"):
            output = self.network(pixel_values, group)
        return TeacherOutput(output.regional_descriptors.float(), output.patch_tokens.float())


def patch_map(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """(images, width, rows, columns) of tokens (images, any + patches, width); class and register tokens come first."""
    patches = tokens[:, tokens.shape[1] - grid[0] * grid[1] :]
    return patches.transpose(1, 2).unflatten(2, grid)


def open_teacher(
    name_or_path: str | os.PathLike | TeacherNetwork,
    *,
    mode: TeacherMode = "batch_independent",
    device: str | torch.device | None = None,
    dtype: TeacherDtype = "auto",
) -> Teacher:
    """A teacher by its name.

    Args:
        name_or_path: a checkpoint (folder or Hub name) of CricaVPR, D2-VPR, DINOv2 or DINOv2 with registers, or
            "module.path:factory" for a Python callable that is called without arguments and returns a `TeacherNetwork`;
            or such a network itself.
        mode: what the cross-image encoder does, see `Teacher`; a teacher without one is "batch_independent".
        device: where it runs; the CPU where none is given.
        dtype: arithmetic under autocast, weights stay float32; see `Teacher`.

    Raises: ValueError if there is no such teacher, or it has no encoder and `mode` asks for one.
    """
    check_choice("mode", mode, get_args(TeacherMode))
    check_choice("dtype", dtype, get_args(TeacherDtype))
    if not isinstance(name_or_path, str | os.PathLike):
        what = f"The teacher is a {type(name_or_path).__name__}"
        network, name, version = _wrap_network(checked_network(name_or_path, "teacher", what), mode)
    elif is_factory(name := os.fspath(name_or_path)) and not Path(name).exists():
        network, name, version = _wrap_network(call_factory(name, "teacher"), mode)
    else:
        network, version = _open_checkpoint(name, mode)
    return Teacher(network, name=name, mode=mode, version_hash=version, dtype=dtype).to(device or "cpu")


def check_choice(field: str, value: str, known: Sequence[str]) -> None:
    """Refuses what isn't known.

    Raises: ValueError naming the nearest choice, and all.
    """
    if value in known:
        return
    raise ValueError(f"{field} is {value!r}, but must be one of {', '.join(known)}.{did_you_mean(value, known)}")


def _open_checkpoint(name: str, mode: TeacherMode) -> tuple[nn.Module, str]:
    if not Path(name).is_dir():
        logger.info("There is no folder %s, so the teacher is looked for on the Hugging Face Hub.", name)
    try:
        config = read_config(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} can't be opened as a teacher: {error}\n{_WHAT_WORKS}") from error
    kind = config.model_type
    if kind in _PLACE_MODELS:
        if mode != "batch_independent" and not config.cross_image_encoder:
            raise _no_encoder(name, mode)
        with_encoder = mode != "batch_independent"
        model = _PLACE_MODELS[kind].from_pretrained(name, cross_image_encoder=with_encoder, dtype=torch.float32)
        return PlaceTeacher(model), _version_hash(model)
    if kind in _DINOV2_MODELS:
        if mode != "batch_independent":
            raise _no_encoder(name, mode)
        model, info = _DINOV2_MODELS[kind].from_pretrained(name, output_loading_info=True, dtype=torch.float32)
        if absent := sorted(info["missing_keys"]):
            raise ValueError(f"{name} lacks {', '.join(absent)}, so it can't teach. Give a whole checkpoint of {kind}.")
        return Dinov2Teacher(model), _version_hash(model)
    raise ValueError(f"{name} holds a model of type {kind}, which can't be opened as a teacher. {_WHAT_WORKS}")


def _wrap_network(network: TeacherNetwork, mode: str) -> tuple[nn.Module, str, str]:
    if mode != "batch_independent":
        raise _no_encoder(network.name, mode)
    if isinstance(network, nn.Module):
        return MapTeacher(network), network.name, _hash_of(weight_hash(network), network.name)
    return MapTeacher(network), network.name, _hash_of(network.name, str(getattr(network, "version", "")))


def _version_hash(model: nn.Module) -> str:
    return _hash_of(weight_hash(model), json.dumps(_settings_of(model.config), sort_keys=True, default=str))


def _settings_of(config: PreTrainedConfig | dict[str, Any]) -> dict[str, Any]:
    """A configuration without its origins, by which copies of one teacher would be told apart."""
    entries = config if isinstance(config, dict) else config.to_dict()
    return {
        key: _settings_of(value) if isinstance(value, dict) else value
        for key, value in entries.items()
        if key not in _ORIGINS
    }


def _hash_of(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _no_encoder(name: str, mode: str) -> ValueError:
    return ValueError(
        f"The mode of the teacher {name} is {mode!r}, but it has no cross-image encoder, so its images never attend to "
        'each other. Give mode="batch_independent", or a checkpoint with an encoder, such as CricaVPR\'s.'
    )
