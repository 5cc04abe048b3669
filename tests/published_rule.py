"""Weights and images by rule: the inputs of the recorded outputs in recorded/, the same on any machine."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch

RECORDED = Path(__file__).parent / "recorded"


def published_shapes(layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint: d2vpr, d2vpr_cross or cricavpr."""
    shapes = json.loads((RECORDED / "published_shapes.json").read_text())
    named = shapes["d2vpr_cross" if layout == "d2vpr" else layout]
    return {name: tuple(shape) for name, shape in named.items() if layout != "d2vpr" or not name.startswith("encoder.")}


def published_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    middle, spread = {
        "running_mean": (0, 0.1),
        "p": (3, 0.1),
        "gamma": (0.5, 0.1),
        "cls_token": (0, 0.3),
        "pos_embed": (0, 0.3),
        "mask_token": (0, 0.3),
    }.get(kind, (float(kind == "weight"), 0.1) if len(shape) == 1 else (0, 1 / math.sqrt(math.prod(shape[1:]))))
    return (middle + spread * rng.standard_normal(shape)).astype(np.float32)


def published_checkpoint(layout: str, seed: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(np.asarray(published_tensor(name, shape, seed)))
        for name, shape in published_shapes(layout).items()
    }


def rule_images(seed: int, batch: int, height: int, width: int) -> torch.Tensor:
    """Normalised pixel values (batch, 3, height, width)."""
    rng = np.random.default_rng([seed, 7])
    coarse = rng.standard_normal((batch, 3, -(-height // 32), -(-width // 32))).astype(np.float32)
    noise = rng.standard_normal((batch, 3, height, width)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), (height, width), mode="bilinear")
    return smooth + 0.3 * torch.from_numpy(noise)


def gradient_weights(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, 9]).standard_normal(shape).astype(np.float32))
