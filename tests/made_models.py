"""Tiny models of every kind that a configuration can ask for, in which every weight does something."""

import torch
from transformers import AutoModel, PreTrainedModel

from d2vpr_hf import CricaVprConfig, D2VprConfig

STUDENT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56}
TEACHER = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56}
PCA = {"name": "photos", "images": 9, "files_sha256": None, "seed": 0, "renormalise": True, "variance_kept": 0.5}
KINDS = {
    "plain": {},
    "centred": {"offset_grid": "centred", "region_sampling": "dense", "interpolate_offset": 0.0},
    "encoder": {"cross_image_encoder": True, "dropout": 0.3},
    "head": {"head_dim": 24},
    "nested": {"head_dim": 24, "nested_dims": (24, 8), "descriptor_dim": 8},
    "pca": {"pca_source": PCA, "descriptor_dim": 24},
    "teacher": {},
}


def config_of(kind: str) -> D2VprConfig | CricaVprConfig:
    if kind == "teacher":
        return CricaVprConfig(backbone_config=TEACHER, adapter_ratio=1 / 3, region_sampling="dense")
    return D2VprConfig(backbone_config=STUDENT, recovery_layers=(1, 2, 4), aggregator_dim=48, **KINDS[kind])


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModel.from_config(config_of(kind)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
    return model
