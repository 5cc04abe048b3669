"""The D2-VPR model, in the order in which an image passes through it: student, recovery, aggregator, descriptor."""

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Model
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import (
    IMAGE_PROCESSOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    ModelOutput,
    cached_file,
)
from transformers.utils.generic import can_return_tuple

from .aggregator_d2vpr import D2VprAggregator, GeM, OffsetHead
from .backbone_d2vpr import CheckpointsOnce, D2VprBackbone, patch_grid
from .configuration_d2vpr import D2VprConfig
from .cross_image_d2vpr import attend_across_images, cross_image_encoder
from .image_processing_d2vpr import D2VprImageProcessor
from .shortening_d2vpr import D2VprHead, D2VprReduction

ENCODER_PREFIX = "encoder."
# DINOv2 normalises its last block's output; the recovery module has a norm of its own in that place.
UNUSED_DINOV2_TENSORS = ("layernorm.weight", "layernorm.bias")


@dataclass
class D2VprModelOutput(ModelOutput):
    """What a D2-VPR model, or its teacher CricaVPR, finds in a batch of images; `dim` is the aggregator's width.

    Args:
        last_hidden_state: (batch, 1 + patches, dim) class token and patch tokens after the recovery norm; the
            teacher's after its final norm.
        pooler_output: (batch, descriptor_dim) float32 descriptors of unit length: global, 4 medium, 9 small regions.
            With a PCA its components of these, which are of unit length only if the PCA renormalises; with a head
            its projection of these, or the first numbers of that, of unit length.
        region_boxes: (batch, 13, 4) centre x, centre y, width, height in shares of the image: 4 medium regions, then
            9 small ones, each row by row. None for the teacher, whose regions don't move.
        region_features: (batch, 13, dim) the regions as pooled, before fusion, position and encoder.
        regional_descriptors: (batch, 14, dim) float32, the 14 vectors as they are joined to a descriptor,
            before that is brought to unit length: global, 4 medium, 9 small regions.
        hidden_states: on request, the backbone's embedding and each block's output, (batch, 1 + patches, hidden_size).
        attentions: on request, each block's (batch, heads, 1 + patches, 1 + patches).
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    region_boxes: torch.FloatTensor | None = None
    region_features: torch.FloatTensor | None = None
    regional_descriptors: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class D2VprRecovery(nn.Module):
    """The distillation recovery module: the outputs of several blocks, joined and brought to the aggregator's width."""

    def __init__(self, config: D2VprConfig) -> None:
        super().__init__()
        joined = len(config.recovery_layers) * config.backbone_config.hidden_size
        self.projection = nn.Linear(joined, config.aggregator_dim)
        self.norm = nn.LayerNorm(config.aggregator_dim, eps=1e-6)

    def forward(self, block_outputs: list[torch.Tensor]) -> torch.Tensor:
        return self.norm(self.projection(torch.cat(block_outputs, dim=-1)))


# By these words transformers says that there are no safetensors. Its own advice is to read pickles.
NO_SAFETENSORS = ("cannot be loaded with `safetensors`", "Error no file named model.safetensors found")
# What tells transformers where on the Hub, and in which cache, a checkpoint lies.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def saved_with_encoder(name: str | os.PathLike | None, arguments: dict) -> bool:
    """Whether the checkpoint's own configuration asks for the cross-image encoder."""
    if name is None:  # weights come from a state dict, which has no configuration of its own
        return False
    saved, _ = D2VprConfig.get_config_dict(name, **{key: arguments[key] for key in HUB_ARGUMENTS if key in arguments})
    return bool(saved.get("cross_image_encoder"))


def strange_numbers(name: str | os.PathLike | None, arguments: dict, state: Mapping[str, torch.Tensor]) -> list[str]:
    """What is wrong with a checkpoint's files though transformers loads it: files that lie elsewhere, and integers in
    place of fractions or the reverse, which are cast in silence.
    """
    where = {key: arguments[key] for key in HUB_ARGUMENTS if key in arguments}
    where |= {"local_files_only": True, "force_download": False}  # they were read a moment ago
    find = partial(cached_file, name, _raise_exceptions_for_missing_entries=False, **where)
    if name is None:
        return []
    files, problems = [SAFE_WEIGHTS_NAME], []
    if (single := find(SAFE_WEIGHTS_NAME)) is None and (index := find(SAFE_WEIGHTS_INDEX_NAME)) is not None:
        files = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
        if elsewhere := [file for file in files if Path(file).name != file]:
            return [f"{SAFE_WEIGHTS_INDEX_NAME} names files outside of the checkpoint: {', '.join(elsewhere)}"]
    for file in filter(None, [single] if single else map(find, files)):
        with safe_open(file, "pt") as tensors:
            kinds = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118 - it isn't a dict
        problems += [
            f"{key}: numbers of type {kinds[key]}, expected {state[key].dtype}"
            for key in sorted(kinds.keys() & state.keys())
            if state[key].is_floating_point() != kinds[key].startswith(("F", "BF"))
        ]
    return problems


def own_memory(model: nn.Module) -> None:
    """Copies weights out of the mapped checkpoint file.

    In the file they lie at odd addresses, on which matrix products round otherwise, so that a loaded model would differ
    from the saved one in the last bit; and a file that is replaced would change under a running model.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


class D2VprPreTrainedModel(CheckpointsOnce, PreTrainedModel):
    """Initialisation, and loading and saving that leave nothing out in silence."""

    config: D2VprConfig
    base_model_prefix = "d2vpr"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["D2VprEmbeddings", "D2VprLayer", "D2VprAggregator"]  # noqa: RUF012
    _supports_sdpa = True
    _warned_of_company = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GeM):
            init.constant_(module.p, 3.0)
        elif isinstance(module, D2VprReduction):
            # A model without a checkpoint keeps the first numbers, until a PCA is put in.
            init.zeros_(module.mean)
            init.zeros_(module.files)
            init.copy_(module.components, torch.eye(*module.components.shape))
        elif isinstance(module, D2VprHead):
            init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
        elif isinstance(module, OffsetHead):
            # The scale 0.5 + 1.5 * sigmoid(bias) is 1 here: new regions start as they are cut.
            init.zeros_(module.weight)
            init.copy_(module.bias, torch.tensor([0.0, 0.0, -math.log(2), -math.log(2)]))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args,
        output_loading_info: bool = False,
        **kwargs,
    ) -> Self | tuple[Self, dict]:
        """The model of a checkpoint folder or Hub repository; arguments as transformers' own.

        Only safetensors are read. With `cross_image_encoder=False` a checkpoint that holds an encoder loads without it.
        `descriptor_dim` chooses the length of the descriptors where the checkpoint has `nested_dims`.

        Raises: ValueError naming every weight that is missing, unexpected or of another shape, or the lengths that the
            checkpoint has where `descriptor_dim` is none of them. OSError if there is no such checkpoint.
        """
        kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True}
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except OSError as error:
            if not any(words in str(error) for words in NO_SAFETENSORS):
                raise
            raise OSError(
                f"{pretrained_model_name_or_path} holds no model.safetensors, and weights of another kind, such as "
                "pytorch_model.bin, aren't read: unpickling runs whatever code is in them. Ask for safetensors, or use "
                "`d2vpr convert` for a published checkpoint."
            ) from error
        unexpected = set(info["unexpected_keys"])
        if not model.config.cross_image_encoder and saved_with_encoder(pretrained_model_name_or_path, kwargs):
            unexpected = {key for key in unexpected if not key.startswith(ENCODER_PREFIX)}
        problems = [f"missing: {key}" for key in sorted(info["missing_keys"])]
        problems += [f"unexpected: {key}" for key in sorted(unexpected)]
        problems += [
            f"{key}: shape {tuple(found)}, expected {tuple(expected)}"
            for key, found, expected in sorted(info["mismatched_keys"])
        ]
        problems += list(info["error_msgs"])
        problems += strange_numbers(pretrained_model_name_or_path, kwargs, model.state_dict())
        if problems:
            raise ValueError(
                f"The weights in {pretrained_model_name_or_path} don't fit {cls.__name__} with its configuration:\n  "
                + "\n  ".join(problems)
                + "\nUse the config.json saved with these weights, or `d2vpr convert` for a published checkpoint."
            )
        own_memory(model)
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Writes weights, configuration and the code that loads them without this package.

        A folder without a processor gets the default one (224 x 224 pixels), so that every checkpoint prepares images
        by itself; a processor that lies there already stays.
        """
        if not (Path(save_directory) / IMAGE_PROCESSOR_NAME).exists():
            D2VprImageProcessor().save_pretrained(save_directory)
        super().save_pretrained(save_directory, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        output_hidden_states: bool | None = None,
        images_per_group: int | None = None,
        output_attentions: bool | None = None,
    ) -> D2VprModelOutput:
        """Descriptors of a batch of images.

        Args:
            pixel_values: (batch, 3, height, width) as the processor makes them, height and width multiples of 14
                pixels.
            output_hidden_states: whether to keep what every block gives.
            images_per_group: with the cross-image encoder, images attend to each other within groups of so many that
                follow each other in the batch; None, as published, makes the batch one group.
            output_attentions: whether to keep every block's attention, which eager attention alone can give.

        Raises: ValueError if height or width isn't a multiple of the patch size, or too small for the regions; if the
            batch isn't a multiple of `images_per_group`, or that is given without an encoder; if attentions are asked
            of another kind of attention.
        """
        grid = patch_grid(pixel_values, self.config.backbone_config.patch_size)
        keep_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layers = self.aggregated_layers
        keep = set(range(self.config.backbone_config.num_hidden_layers + 1)) if keep_all else set(layers)
        keep_attention = self.config.output_attentions if output_attentions is None else output_attentions
        if keep_attention and self.backbone.config._attn_implementation != "eager":
            raise ValueError(
                f"The model's attention is {self.backbone.config._attn_implementation}, which can't give attentions. "
                'Load the model with attn_implementation="eager", or leave output_attentions out.'
            )
        blocks, attentions = self.backbone(pixel_values, grid, keep, keep_attention)
        tokens, vectors, boxes, features = self.aggregate([blocks[layer] for layer in layers], grid)
        if self.config.cross_image_encoder:
            self._warn_of_company()
            vectors = attend_across_images(self.encoder, vectors, images_per_group)
        elif images_per_group is not None:
            raise ValueError(
                f"images_per_group is {images_per_group}, but this model has no cross-image encoder, so its images "
                "never attend to each other. Leave images_per_group out, or load a checkpoint with an encoder."
            )
        # float32 under autocast too: rounding here would shift every similarity.
        vectors = vectors.float()
        descriptor = self.shorten(F.normalize(vectors.flatten(1), dim=-1))  # (batch, descriptor_dim)
        hidden_states = tuple(blocks[number] for number in sorted(blocks)) if keep_all else None
        return D2VprModelOutput(tokens, descriptor, boxes, features, vectors, hidden_states, attentions)

    def shorten(self, descriptor: torch.Tensor) -> torch.Tensor:
        """The descriptor that the model gives, of (batch, 14 * dim) of unit length."""
        return descriptor

    def get_input_embeddings(self) -> nn.Module:
        """What an image meets first: the patch embeddings."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Puts other patch embeddings in."""
        self.backbone.set_input_embeddings(value)

    def _warn_of_company(self) -> None:
        if self._warned_of_company:
            return
        self._warned_of_company = True
        warnings.warn(
            "The cross-image encoder is on: each descriptor depends on the other images of its batch, and so does "
            "recall. For descriptors that stand alone load the model with cross_image_encoder=False.",
            stacklevel=2,
        )


class D2VprModel(D2VprPreTrainedModel):
    """D2-VPR: one descriptor an image, by which photos of the same place are nearest neighbours.

    A configuration with a `pca_source` adds a PCA at the end, whose weights are the checkpoint's; one with a `head_dim`
    adds a learned projection. With `nested_dims` its first numbers alone are a descriptor too:
    `from_pretrained(folder, descriptor_dim=256)` gives the first 256, brought to unit length again. The projection
    stays whole, so that a model saved at 256 opens at 512 as well.

    Without the cross-image encoder a descriptor depends on its image alone. With it (`cross_image_encoder=True`, which
    a converted checkpoint that holds one asks for) the images of a batch attend to each other: the same photo gets
    another descriptor in another company, results depend on batch size and order, and a single image gains nothing.
    The model then warns once.

    Source: arXiv 2511.12528.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: D2VprConfig) -> None:
        super().__init__(config)
        config.check_descriptor()
        self.backbone = D2VprBackbone(config.backbone_config, config.adapter_dim, config.interpolate_offset)
        self.recovery = D2VprRecovery(config)
        self.aggregator = D2VprAggregator(config)
        if config.cross_image_encoder:
            self.encoder = cross_image_encoder(config.aggregator_dim, config.dropout)
        if config.pca_source is not None:
            self.reduction = D2VprReduction(config)
        if config.head_dim is not None:
            self.head = D2VprHead(config)
        # Each by itself: the whole module would bring the integers of its files to float32 too.
        exact = ("reduction.mean", "reduction.components", "head.weight")
        self._keep_in_fp32_modules_strict = {name for name in exact if name in self.state_dict()}
        self.post_init()

    @classmethod
    def from_dinov2(
        cls,
        name_or_path: str | os.PathLike,
        *,
        recovery_start: Literal["random", "pass_through"] = "random",
        **config,
    ) -> Self:
        """A new student that starts from DINOv2's weights, with adapters that do nothing yet.

        Args:
            name_or_path: a DINOv2 checkpoint, such as "facebook/dinov2-small".
            recovery_start: what the recovery module and the aggregator start as. "random" is weights of no meaning.
                "pass_through" is the last recovery layer as it is: its numbers, as many as fit, and beside them their
                negatives, of which the pooling keeps what is above 0, the regions undeformed. With
                `first_vector="pooled"` such a model knows places before any training.
            config: fields of `D2VprConfig`; its `backbone_config` is the checkpoint's.

        Raises: ValueError if a tensor of the student is neither in the checkpoint nor an adapter's, or the aggregator
            is more than twice as wide as the checkpoint, which "pass_through" can't fill.
        """
        dinov2, info = Dinov2Model.from_pretrained(name_or_path, output_loading_info=True, dtype=torch.float32)
        if absent := sorted(info["missing_keys"]):
            raise ValueError(
                f"{name_or_path} lacks {absent}, so it can't start a student. Give a whole DINOv2 checkpoint."
            )
        # Where the checkpoint lay here is nobody's business who opens the student.
        dinov2.config.name_or_path = ""
        model = cls(D2VprConfig(backbone_config=dinov2.config, **config))
        weights = {key: value for key, value in dinov2.state_dict().items() if key not in UNUSED_DINOV2_TENSORS}
        missing, unexpected = model.backbone.load_state_dict(weights, strict=False)
        strangers = [key for key in missing if ".adapter." not in key] + unexpected
        if strangers:
            raise ValueError(
                f"{name_or_path} and the student don't hold the same tensors: {strangers}. Give a DINOv2 checkpoint."
            )
        if recovery_start == "pass_through":
            model._pass_through()
        return model

    @torch.no_grad()
    def _pass_through(self) -> None:
        """Makes recovery and aggregator start as the last recovery layer's signed regional features."""
        width, dim = self.config.backbone_config.hidden_size, self.config.aggregator_dim
        if dim > 2 * width:
            raise ValueError(
                f"aggregator_dim is {dim}, but a pass-through holds the {width} numbers of a block and their "
                f"negatives. Give aggregator_dim={2 * width}, or leave recovery_start out."
            )
        half = torch.eye(dim // 2, width)
        signed = torch.cat([half, -half])
        init.zeros_(self.recovery.projection.weight)
        init.zeros_(self.recovery.projection.bias)
        self.recovery.projection.weight[:, -width:] = signed
        aggregator = self.aggregator
        for last in (aggregator.small_to_medium[-1], aggregator.medium_to_global[-1], aggregator.position[-1]):
            init.zeros_(last.weight)
            init.zeros_(last.bias)

    def add_reduction(
        self, mean: torch.Tensor, components: torch.Tensor, files: torch.Tensor, source: dict[str, object]
    ) -> None:
        """Puts a PCA behind the model, in place; from then on it is part of the configuration and of the checkpoint.

        Args:
            mean: (14 * aggregator_dim) of the descriptors that the PCA was fitted on.
            components: (descriptor_dim, 14 * aggregator_dim) orthonormal rows.
            files: (images, 2) int64 size in bytes and first 8 bytes of the SHA-256 of each file; (0, 2) where the
                images were no files.
            source: the configuration's `pca_source`.

        Raises: ValueError if the model has a PCA or a head already, or a tensor's shape doesn't fit. huggingface_hub's
            StrictDataclassError if the source doesn't hold what the configuration asks for.
        """
        self._refuse_second_end()
        fields = {**self.config.to_dict(), "pca_source": source, "descriptor_dim": len(components)}
        checked = type(self.config).from_dict(fields)
        reduction = D2VprReduction(checked)
        tensors = {"mean": mean, "components": components, "files": files}
        expected = {name: tuple(tensor.shape) for name, tensor in reduction.state_dict().items()}
        if (found := {name: tuple(tensor.shape) for name, tensor in tensors.items()}) != expected:
            raise ValueError(
                f"The PCA's tensors have the shapes {found}, but this model and `source` ask for {expected}. Fit the "
                "PCA on descriptors of this model."
            )
        reduction.load_state_dict(tensors)
        self.reduction = reduction.to(self.device).train(self.training)
        self.config.descriptor_dim, self.config.pca_source = checked.descriptor_dim, checked.pca_source

    def add_head(self, dim: int, seed: int = 0, nested_dims: Sequence[int] | None = None) -> None:
        """Puts a new head behind the model, in place: a random projection to `dim` numbers, for training to improve.

        From then on it is part of the configuration and of the checkpoint.

        Args:
            dim: numbers in a descriptor, such as 512 or 256.
            seed: draws the projection.
            nested_dims: the configuration's, such as (512, 256), where training is to make prefixes descriptors too.

        Raises: ValueError if the model has a head or a PCA already. huggingface_hub's StrictDataclassError if `dim` or
            `nested_dims` is none that the configuration admits.
        """
        self._refuse_second_end()
        ends = {"head_dim": dim, "descriptor_dim": dim, "nested_dims": nested_dims}
        checked = type(self.config).from_dict({**self.config.to_dict(), **ends})
        head = D2VprHead(checked)
        nn.init.normal_(head.weight, std=head.weight.shape[1] ** -0.5, generator=torch.Generator().manual_seed(seed))
        self.head = head.to(self.device).train(self.training)
        for name in ends:
            setattr(self.config, name, getattr(checked, name))

    def _refuse_second_end(self) -> None:
        if self.config.pca_source is not None:
            raise ValueError(
                f"The model ends in a PCA to {self.config.descriptor_dim} numbers already, fitted on "
                f"{self.config.pca_source['name']}. Load the checkpoint it was made of, and go on from that."
            )
        if self.config.head_dim is not None:
            raise ValueError(
                f"The model ends in a head to {self.config.head_dim} numbers already. Load the checkpoint it was put "
                "on, or train this head further."
            )

    @property
    def aggregated_layers(self) -> Sequence[int]:
        """The blocks whose outputs are aggregated, counted from 1."""
        return self.config.recovery_layers

    def aggregate(
        self, blocks: list[torch.Tensor], grid: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens (batch, 1 + patches, dim), regional descriptors (batch, 14, dim), the regions' boxes, features."""
        tokens = self.recovery(blocks)
        patch_map = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)  # (batch, dim, rows, columns)
        return tokens, *self.aggregator(patch_map, tokens[:, 0])

    def shorten(self, descriptor: torch.Tensor) -> torch.Tensor:
        """Behind a PCA or a head, if the model has one."""
        if self.config.pca_source is not None:
            return self.reduction(descriptor)
        if self.config.head_dim is not None:
            return self.head(descriptor, self.config.descriptor_dim)
        return descriptor


__all__ = ["D2VprModel", "D2VprModelOutput", "D2VprPreTrainedModel"]
