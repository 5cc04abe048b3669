"""What a D2-VPR model is made of, as a transformers configuration."""

from types import NoneType
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import Dinov2Config
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

# The student of the paper: DINOv2 ViT-S/14, its position table made for 518 px.
DINOV2_SMALL = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518}

# Widths of the aggregator's inner layers are fixed fractions of its width; 48 divides them all.
AGGREGATOR_STEP = 48
# The narrowest branch of an adapter has a sixteenth of its channels.
ADAPTER_STEP = 16
# The largest DINOv2 has a width of 1,536, 40 blocks and 24 heads.
BACKBONE_LIMITS = {
    "hidden_size": 8192,
    "num_hidden_layers": 128,
    "num_attention_heads": 128,
    "patch_size": 128,
    "image_size": 4096,
    "mlp_ratio": 16,
}
# Of the position table: 256 MiB of them. The largest DINOv2 has 2 million.
MOST_POSITION_NUMBERS = 2**26
MOST_AGGREGATOR_DIM, MOST_PCA_IMAGES = 16_384, 10_000_000
# Global, 4 medium, 9 small regions.
REGIONS = 14
# What a checkpoint says of the photos that its PCA was fitted on.
PCA_SOURCE_FIELDS = {
    "name": str,
    "images": int,
    "files_sha256": (str, NoneType),
    "seed": int,
    "renormalise": bool,
    "whitening": float,
    "variance_kept": float,
}


@strict
class AdaptedDinov2Config(PreTrainedConfig):
    """What D2-VPR and its teacher share: DINOv2 with adapters, 14 regions, a cross-image encoder.

    Args:
        backbone_config: a `Dinov2Config` (or its dict).
        adapter_ratio: width of an adapter's inner channels, as a share of the backbone's width.
        region_sampling: `"original"` keeps the sample counts and cuts of a 16x16 grid at every image size;
            `"dense"` scales both with the grid and is for new training. At 224 px the two are one.
        cross_image_encoder: lets the images of a batch attend to each other. A descriptor then depends on the batch.
        interpolate_offset: patches added to the grid size when the position table is resized.
        dropout: of the student's fusion and of the cross-image encoder, in training alone.
        converted_from: file name and SHA-256 of the checkpoint that was converted, if one was.
    """

    backbone_config: dict | PreTrainedConfig | None = None
    adapter_ratio: float | int = 0.5
    region_sampling: Literal["original", "dense"] = "original"
    cross_image_encoder: bool = False
    interpolate_offset: float | int = 0.1
    dropout: float | int = 0.1
    converted_from: dict | None = None

    def __post_init__(self, **kwargs) -> None:
        for fields in (kwargs, self.backbone_config):
            if isinstance(fields, dict) and fields.pop("num_labels", None) not in (None, 2):
                raise ValueError("num_labels is given, but a model of places has no labels. Leave it out.")
        if isinstance(self.backbone_config, dict):
            # transformers looks a field of this name up by its model_type, which a short dict may lack.
            self.backbone_config = {"model_type": "dinov2", **self.backbone_config}
        super().__post_init__(**kwargs)

    @property
    def adapter_dim(self) -> int:
        """Inner channels of an adapter."""
        return int(self.backbone_config.hidden_size * self.adapter_ratio)

    def validate_backbone(self) -> None:
        if self.backbone_config.model_type != "dinov2":
            raise ValueError(
                f"backbone_config is a {self.backbone_config.model_type} configuration, but the backbone is DINOv2. "
                "Give a Dinov2Config."
            )
        self._check_numbers()
        if self.adapter_dim < ADAPTER_STEP or self.adapter_dim % ADAPTER_STEP:
            raise ValueError(
                f"adapter_ratio {self.adapter_ratio} of {self.backbone_config.hidden_size} channels gives an adapter "
                f"of {self.adapter_dim}, but it must be a positive multiple of {ADAPTER_STEP}. Change adapter_ratio "
                "(0.5 as published) or backbone_config.hidden_size."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but must be at least 0 and below 1.")

    def _check_numbers(self) -> None:
        """A configuration comes from anywhere: what builds a model must neither hang nor fill the memory."""
        backbone = self.backbone_config
        for name, most in BACKBONE_LIMITS.items():
            value = getattr(backbone, name, None)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"backbone_config.{name} is {value!r}, but must be an integer from 1 to {most:,}.")
        numbers = (backbone.image_size // backbone.patch_size) ** 2 * backbone.hidden_size
        if not 0 < numbers <= MOST_POSITION_NUMBERS:
            raise ValueError(
                f"backbone_config has image_size {backbone.image_size}, patch_size {backbone.patch_size} and "
                f"hidden_size {backbone.hidden_size}, so its position table has {numbers:,} numbers, but must have 1 to"
                f" {MOST_POSITION_NUMBERS:,}. The published image_size is 518, and patch_size 14."
            )
        if backbone.num_channels != 3 or backbone.hidden_size % backbone.num_attention_heads:
            raise ValueError(
                f"backbone_config has {backbone.num_channels} channels and {backbone.hidden_size} numbers for "
                f"{backbone.num_attention_heads} attention heads, but must have 3 channels and the same number a head."
            )
        for name, most in (("adapter_ratio", 4), ("interpolate_offset", 1)):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name} is {value}, but must be from 0 to {most}.")
        # A configuration file could name code on the Hub this way; whoever wants it calls set_attn_implementation.
        if "/" in str(self._attn_implementation):
            raise ValueError(
                f"The configuration asks for the attention {self._attn_implementation!r}, which is code on the Hub "
                'and isn\'t loaded. Take that out of config.json; "sdpa" and "eager" are known.'
            )


@strict
class D2VprConfig(AdaptedDinov2Config):
    """Shape of a D2-VPR model: the DINOv2 student, its recovery layers and the deformable aggregator.

    Args:
        backbone_config, adapter_ratio, region_sampling, cross_image_encoder, interpolate_offset, dropout,
            converted_from: as `AdaptedDinov2Config` has them; the student is DINOv2 ViT-S/14 where none is given.
        recovery_layers: the blocks whose outputs the recovery module joins, counted from 1.
        aggregator_dim: width of the recovered tokens and of each of the 14 regional descriptors, a multiple of 48.
        offset_grid: where the offset map is read. `"original"` reads its bottom right quarter for every region, as
            published weights expect; `"centred"` reads it under the region itself.
        first_vector: what the first of the 14 vectors, that of the whole image, starts from: `"class_token"`, as
            published, or `"pooled"`, all patch tokens pooled as a region's are.
        descriptor_dim: numbers in a descriptor; 14 * aggregator_dim, fewer only with a PCA or a head. With nested_dims
            it may be any of these.
        pca_source: None, or the model ends in a PCA, and this says what it was fitted on: `name` of the photos, how
            many `images`, `files_sha256` (of the SHA-256 of each file in hex, sorted, one a line; None where the
            photos were no files), `seed` that drew them, whether its output is brought to unit length
            (`renormalise`), its `whitening` (each number was divided by variance^(whitening / 2); 0 where a
            checkpoint doesn't say), and the share of the variance it keeps (`variance_kept`).
        head_dim: None, or the model ends in a learned projection to so many numbers, which descriptor_dim then is.
        nested_dims: None, or how many of the head's first numbers were trained to be a descriptor by themselves, such
            as (512, 256): head_dim and at least one below it, kept in falling order.

    Raises: huggingface_hub's StrictDataclassError (a type or a relation between fields doesn't hold).
    Source: arXiv 2511.12528.
    """

    model_type = "d2vpr"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(Dinov2Config, init_kwargs=DINOV2_SMALL)}  # noqa: RUF012
    _auto_class = "AutoConfig"

    recovery_layers: list[int] | tuple[int, ...] = (2, 4, 8, 12)
    aggregator_dim: int = 768
    offset_grid: Literal["original", "centred"] = "original"
    first_vector: Literal["class_token", "pooled"] = "class_token"
    descriptor_dim: int | None = None
    pca_source: dict | None = None
    head_dim: int | None = None
    nested_dims: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs) -> None:
        # JSON knows no tuples, and a saved configuration must equal the loaded one.
        self.recovery_layers = tuple(self.recovery_layers)
        if self.pca_source is not None:
            # Checkpoints from before there was whitening don't name it.
            self.pca_source = {"whitening": 0.0, **self.pca_source}
        self._settle_descriptor()
        super().__post_init__(**kwargs)

    def _settle_descriptor(self) -> None:
        if self.nested_dims is not None:
            self.nested_dims = tuple(sorted(set(self.nested_dims), reverse=True))
        if self.descriptor_dim is None:
            self.descriptor_dim = self.regional_dim if self.head_dim is None else self.head_dim

    def check_descriptor(self) -> None:
        """Checks once more what makes a descriptor: arguments of `from_pretrained`, such as `descriptor_dim=256`, are
        set on a configuration that was checked without them. A `descriptor_dim` of None becomes the longest.

        Raises: ValueError if descriptor_dim is none that the model can give, naming those it can.
        """
        self._settle_descriptor()
        self.validate_head()
        self.validate_reduction()

    @property
    def regional_dim(self) -> int:
        """Numbers in the 14 regional descriptors, one after the other: a descriptor without PCA or head."""
        return REGIONS * self.aggregator_dim

    def validate_recovery(self) -> None:
        depth = self.backbone_config.num_hidden_layers
        if unknown := [layer for layer in self.recovery_layers if not 1 <= layer <= depth]:
            raise ValueError(
                f"recovery_layers names blocks {unknown}, but the backbone has blocks 1 to {depth}. "
                f"Give 1-based block numbers up to {depth}; (2, 4, 8, 12) are those of 12 blocks."
            )
        if not 1 <= len(self.recovery_layers) <= BACKBONE_LIMITS["num_hidden_layers"]:
            found = f"has {len(self.recovery_layers):,} entries" if self.recovery_layers else "is empty"
            raise ValueError(f"recovery_layers {found}. Give at least one 1-based block number, such as (12,).")
        if not AGGREGATOR_STEP <= self.aggregator_dim <= MOST_AGGREGATOR_DIM or self.aggregator_dim % AGGREGATOR_STEP:
            raise ValueError(
                f"aggregator_dim is {self.aggregator_dim}, but must be a positive multiple of {AGGREGATOR_STEP}, at "
                f"most {MOST_AGGREGATOR_DIM:,}. The published width is 768."
            )

    def validate_head(self) -> None:
        if self.head_dim is None:
            if self.nested_dims is not None:
                raise ValueError(
                    f"nested_dims is {self.nested_dims}, but head_dim is None, and only a head's descriptor is nested. "
                    "Give the largest of them as head_dim, or leave nested_dims out."
                )
            return
        if self.pca_source is not None:
            raise ValueError(
                f"head_dim is {self.head_dim}, but the model ends in a PCA (pca_source) already, and a descriptor is "
                "shortened by one of the two. Leave one out."
            )
        if not 1 <= self.head_dim <= self.regional_dim:
            raise ValueError(
                f"head_dim is {self.head_dim}, but a head shortens {self.regional_dim} numbers, so it must be 1 to "
                f"{self.regional_dim}. Give 512 or 256, say."
            )
        if self.nested_dims is not None:
            self._validate_nested()
        elif self.descriptor_dim != self.head_dim:
            raise ValueError(
                f"descriptor_dim is {self.descriptor_dim}, but a model with a head gives head_dim = {self.head_dim} "
                "numbers. Leave descriptor_dim out."
            )

    def _validate_nested(self) -> None:
        if len(self.nested_dims) < 2 or self.nested_dims[0] != self.head_dim or self.nested_dims[-1] < 1:
            raise ValueError(
                f"nested_dims is {self.nested_dims}, but must hold head_dim = {self.head_dim} as its largest and at "
                f"least one smaller number from 1. Give ({self.head_dim}, {max(self.head_dim // 2, 1)}), say, or leave "
                "it out."
            )
        if self.descriptor_dim not in self.nested_dims:
            known = ", ".join(map(str, self.nested_dims))
            raise ValueError(
                f"descriptor_dim is {self.descriptor_dim}, but this model's head was trained to be cut to {known} "
                "numbers alone (nested_dims). Give one of these, or leave descriptor_dim out."
            )

    def validate_reduction(self) -> None:
        if self.pca_source is None:
            if self.head_dim is None and self.descriptor_dim != self.regional_dim:
                raise ValueError(
                    f"descriptor_dim is {self.descriptor_dim}, but without a PCA (pca_source is None) a descriptor has "
                    f"{REGIONS} * aggregator_dim = {self.regional_dim} numbers. Leave descriptor_dim out, and fit a "
                    "PCA with `d2vpr reduce`, or set head_dim, for shorter descriptors."
                )
            return
        if not 1 <= self.descriptor_dim <= self.regional_dim:
            raise ValueError(
                f"descriptor_dim is {self.descriptor_dim}, but a PCA of {self.regional_dim} numbers gives 1 to "
                f"{self.regional_dim}. Give the dim that it was fitted for."
            )
        wrong = sorted(self.pca_source.keys() ^ PCA_SOURCE_FIELDS.keys()) or [
            name for name, kind in PCA_SOURCE_FIELDS.items() if not isinstance(self.pca_source[name], kind)
        ]
        if not wrong and not 0 <= self.pca_source["images"] <= MOST_PCA_IMAGES:
            wrong = ["images"]
        if not wrong and not 0 <= self.pca_source["whitening"] <= 1:
            wrong = ["whitening"]
        if wrong:
            raise ValueError(
                f"pca_source has missing, unknown or mistyped entries: {', '.join(wrong)}. It must hold "
                f"{', '.join(PCA_SOURCE_FIELDS)}, as `d2vpr reduce` writes them."
            )


__all__ = ["D2VprConfig"]
