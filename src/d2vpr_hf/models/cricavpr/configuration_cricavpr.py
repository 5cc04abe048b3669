"""What a CricaVPR model, the published teacher, is made of."""

from huggingface_hub.dataclasses import strict
from transformers import Dinov2Config
from transformers.configuration_utils import SubConfigSpec

from ..d2vpr.configuration_d2vpr import AGGREGATOR_STEP, REGIONS, AdaptedDinov2Config

# The teacher of the paper: DINOv2 ViT-B/14, its position table made for 518 px.
DINOV2_BASE = {"hidden_size": 768, "num_attention_heads": 12, "image_size": 518}


@strict
class CricaVprConfig(AdaptedDinov2Config):
    """Shape of a CricaVPR model: DINOv2 with adapters, 14 fixed regions, a cross-image encoder.

    Its fields are those of `AdaptedDinov2Config`, with DINOv2 ViT-B/14 where no backbone is given, and the encoder on
    as published. Regions of `"original"` sampling are cut at tokens 8, and at 5 and 11, at every image size.

    Source: CricaVPR (CVPR 2024), as D2-VPR uses it for a teacher.
    """

    model_type = "cricavpr"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(Dinov2Config, init_kwargs=DINOV2_BASE)}  # noqa: RUF012

    cross_image_encoder: bool = True

    @property
    def descriptor_dim(self) -> int:
        """Numbers in a descriptor: 14 regional descriptors, one after the other."""
        return REGIONS * self.backbone_config.hidden_size

    def validate_backbone(self) -> None:
        width = self.backbone_config.hidden_size
        if width % AGGREGATOR_STEP:
            raise ValueError(
                f"backbone_config.hidden_size is {width}, but must be a multiple of {AGGREGATOR_STEP}. "
                "The published width is 768."
            )
        super().validate_backbone()


__all__ = ["CricaVprConfig"]
