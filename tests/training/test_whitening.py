"""Whitened descriptors vary alike in every direction, and a run keeps the map that it began with."""

import pytest
import torch
from torch.nn import functional as F

from d2vpr_hf.training.whitening import Whitening


def skewed(photos=400, width=12, seed=0):
    """Descriptors with a large shared mean and directions of very different variance, as behind a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(photos, 14, width, generator=generator) * torch.logspace(0, -2, width)
    return mixed @ torch.linalg.qr(torch.randn(width, width, generator=generator)).Q + 5


def test_what_comes_out_is_centred_white_and_of_unit_length():
    regional = skewed()
    whitening = Whitening.fit(regional, 8)
    assert whitening.dim == 8
    before = (regional - whitening.mean) @ whitening.projection
    torch.testing.assert_close(before.mean(dim=0), torch.zeros(14, 8), atol=1e-3, rtol=0)
    joined = before.flatten(0, 1)
    torch.testing.assert_close(joined.T @ joined / len(joined), torch.eye(8), atol=1e-3, rtol=0)
    found = whitening(regional)
    torch.testing.assert_close(found, F.normalize(before, dim=-1))
    assert F.cosine_similarity(regional[0], regional[1], dim=-1).min() > 0.9 > found[0, 0] @ found[1, 0]


def test_directions_that_nothing_varies_in_are_refused():
    flat = skewed(width=12)
    flat[..., 4:] = 1.0
    with pytest.raises(ValueError, match=r"teacher_whitening is 8, .* vary in 4 directions"):
        Whitening.fit(flat, 8)


def test_it_is_kept_and_read(tmp_path):
    whitening = Whitening.fit(skewed(), 5)
    whitening.save(tmp_path / "whitening.safetensors")
    regional = skewed(seed=1)
    assert torch.equal(Whitening.load(tmp_path / "whitening.safetensors")(regional), whitening(regional))
