"""Tiny models, a town in GSV-Cities' layout and arguments for tests of the trainer."""

from pathlib import Path
from typing import Any

import torch
from conftest import TINY_STUDENT

from d2vpr_hf import CricaVprConfig, CricaVprModel, D2VprConfig, D2VprModel, make_town
from d2vpr_hf.training.arguments import TrainingArguments, resolve_arguments

STUDENT = {"backbone_config": TINY_STUDENT, "recovery_layers": [1, 2, 4], "aggregator_dim": 48}
TEACHER = {
    "model_type": "cricavpr",
    "backbone_config": {**TINY_STUDENT, "hidden_size": 96},
    "region_sampling": "dense",
    "cross_image_encoder": False,
}
PLACES, VIEWS = 12, 3


def draw_training_town(folder: Path) -> Path:
    """A few places, each with a few photos."""
    return make_town(folder, places=PLACES, views=VIEWS, seed=41, layout="gsv", height=56, width=70).root


def draw_validation_town(folder: Path) -> Path:
    town = make_town(folder, 4, views=2, seed=42, layout="plain", queries=6, easy_queries=0, height=56, width=70)
    return town.root


def perturbed(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with random numbers added, so that every weight does something: new adapters and offsets are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def student(**config: Any) -> D2VprModel:
    torch.manual_seed(0)
    return perturbed(D2VprModel(D2VprConfig(**STUDENT, **config)))


def teacher() -> CricaVprModel:
    torch.manual_seed(1)
    return perturbed(CricaVprModel(CricaVprConfig(**{key: TEACHER[key] for key in TEACHER if key != "model_type"})))


def arguments(town: Path, output: Path, **keys: Any) -> TrainingArguments:
    """Arguments of a run that ends in seconds."""
    small = {
        "stage": "finetune",
        "data": [str(town)],
        "output": str(output),
        "image_size": 56,
        "places_per_batch": 4,
        "images_per_place": 2,
        "epochs": 2,
        "workers": 0,
        "threads": 1,
        "log_every": 1,
        "tracker": "none",
        "trainable_blocks": 2,
    }
    if "model" not in keys:
        small["model_config"] = STUDENT
    return resolve_arguments(small | keys)


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records if "loss" in record]
