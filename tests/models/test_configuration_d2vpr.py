"""Configurations check themselves and survive saving."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, Dinov2Config, ViTConfig

from d2vpr_hf import CricaVprConfig, D2VprConfig


def test_defaults_are_the_published_student_and_teacher():
    student, teacher = D2VprConfig(), CricaVprConfig()
    assert (student.backbone_config.hidden_size, student.backbone_config.num_attention_heads) == (384, 6)
    assert (teacher.backbone_config.hidden_size, teacher.backbone_config.num_attention_heads) == (768, 12)
    assert student.backbone_config.image_size == teacher.backbone_config.image_size == 518
    assert student.descriptor_dim == teacher.descriptor_dim == 10_752
    assert not student.cross_image_encoder
    assert teacher.cross_image_encoder


@pytest.mark.parametrize("config_class", [D2VprConfig, CricaVprConfig])
def test_saved_and_loaded(tmp_path, config_class):
    config = config_class(backbone_config={"hidden_size": 96, "num_attention_heads": 2}, region_sampling="dense")
    assert isinstance(config.backbone_config, Dinov2Config)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is config_class
    assert loaded.backbone_config.to_dict() == config.backbone_config.to_dict()
    assert loaded.region_sampling == "dense"
    assert getattr(loaded, "recovery_layers", None) == getattr(config, "recovery_layers", None)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"recovery_layers": (2, 13)}, r"blocks \[13\], but the backbone has blocks 1 to 12"),
        ({"recovery_layers": (0, 2)}, r"blocks \[0\]"),
        ({"recovery_layers": ()}, "recovery_layers is empty"),
        ({"aggregator_dim": 100}, "multiple of 48"),
        ({"aggregator_dim": 0}, "multiple of 48"),
        ({"adapter_ratio": 0.01}, "multiple of 16"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"offset_grid": "legacy"}, "expected one of"),
        ({"region_sampling": "sparse"}, "expected one of"),
        ({"cross_image_encoder": 1}, "expected bool"),
        ({"backbone_config": ViTConfig()}, "the backbone is DINOv2"),
    ],
)
def test_what_does_not_fit_is_refused(fields, complaint):
    with pytest.raises(StrictDataclassError, match=complaint):
        D2VprConfig(**fields)


def test_the_teacher_checks_its_widths():
    with pytest.raises(StrictDataclassError, match="multiple of 48"):
        CricaVprConfig(backbone_config={"hidden_size": 100, "num_attention_heads": 2})
    with pytest.raises(StrictDataclassError, match="multiple of 16"):
        CricaVprConfig(adapter_ratio=0.01)
