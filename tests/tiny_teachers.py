"""Tiny random teachers of every kind, in folders or behind a factory."""

import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from d2vpr_hf import CricaVprConfig, CricaVprModel

WIDTH = 48
TINY = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56}


def seeded(model_class, config, seed):
    """A model with every weight doing something: a new one's adapters start at zero."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_cricavpr(seed=0, **fields):
    fields = {"adapter_ratio": 1 / 3, "region_sampling": "dense", **fields}
    return seeded(CricaVprModel, CricaVprConfig(backbone_config=TINY, **fields), seed)


def tiny_dinov2(seed=0):
    return seeded(Dinov2Model, Dinov2Config(**TINY), seed)


def tiny_dinov2_with_registers(seed=0):
    return seeded(Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**TINY, patch_size=14), seed)


class PatchMap(torch.nn.Module):
    """One convolution: a teacher of other making."""

    name = "patch-map"
    width = WIDTH

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Conv2d(3, WIDTH, kernel_size=14, stride=14)

    def feature_map(self, pixel_values):
        return self.project(pixel_values)


class Colours:
    """No module: its map is the photo's colours."""

    name = "colours"
    width = 3
    version = "1"

    def feature_map(self, pixel_values):
        return torch.nn.functional.avg_pool2d(pixel_values, 14)


class Sized(Colours):
    """A network that states another width than it has."""

    width = 5


def patch_map():
    torch.manual_seed(0)
    return PatchMap()


def colours():
    return Colours()


def sized():
    return Sized()


def nothing():
    return object()
