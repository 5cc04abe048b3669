"""A student that knows places before it is trained: a pass-through of DINOv2, and a head that is fitted."""

import os

import pytest
import torch
from made_training import STUDENT, arguments
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from d2vpr_hf import D2VprConfig, D2VprModel
from d2vpr_hf.training.fitted_starts import whitening_by_places
from d2vpr_hf.training.parts import make_images, open_places, open_trainee
from d2vpr_hf.training.run import RunFolder
from d2vpr_hf.training.targets import Targets
from d2vpr_hf.training.trainer import train

WHITENED = {"head_dim": 8, "nested_dims": [8, 4], "head_start": "whitened", "places_per_batch": 12, "epochs": 1}


def photos_of_places(places: int, photos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Descriptors that share a large mean, tell places in 6 directions, and photos of one place in 3 others."""
    random = torch.Generator().manual_seed(0)
    number = torch.arange(places).repeat_interleave(photos)
    tells = torch.randn(places, 6, generator=random)[number]
    differs = 3 * torch.randn(places * photos, 3, generator=random)
    rest = 0.1 * torch.randn(places * photos, 11, generator=random)
    return F.normalize(torch.cat([torch.full((len(number), 1), 9.0), tells, differs, rest], dim=1), dim=1), number


def test_what_differs_within_a_place_counts_less():
    descriptors, places = photos_of_places(200, 4)
    projection = whitening_by_places(descriptors, places, 8)
    assert projection.shape == (8, 21)
    strength = projection.norm(dim=0)
    assert strength[1:7].min() > 1.5 * strength[7:10].max()
    mean = F.normalize(descriptors.mean(dim=0), dim=0)
    assert (projection @ mean).abs().max() < 1e-5 * projection.norm()
    shortened = F.normalize(descriptors @ projection.T, dim=1)
    assert torch.equal(shortened.var(dim=0).argsort(descending=True)[:6].sort().values, torch.arange(6))
    with pytest.raises(ValueError, match="directions alone"):
        whitening_by_places(descriptors[:8], places[:8], 8)


def head_after(folder):
    return load_file(folder / "checkpoint" / "model.safetensors")["head.weight"]


def test_a_whitened_head_is_the_start_and_may_be_the_best(training_town, validation_town, tmp_path):
    validation = {"validation": [f"folders={validation_town}"], "validate_first": True, "max_steps": 1}
    for name, keys in {"own": {}, "share": {"head_first_share": 0.1}, "random": {"head_start": "random"}}.items():
        keys = WHITENED | {"learning_rate": 1e-12, "max_steps": 1} | keys
        train(arguments(training_town, tmp_path / name, **keys))
    own, share, random = (head_after(tmp_path / name) for name in ("own", "share", "random"))
    # Fitted on what it is to shorten, it is no random projection, and it follows the share.
    assert all(F.cosine_similarity(own.flatten(), other.flatten(), dim=0) < 0.9 for other in (share, random))
    width = STUDENT["aggregator_dim"]
    # The class token, whose length is that of a layer norm, is nearly all of the descriptor by itself.
    assert share[:, :width].norm() / share[:, width:].norm() < own[:, :width].norm() / own[:, width:].norm() / 2
    # At a rate that ruins it, the start stays the best.
    result = train(arguments(training_town, tmp_path / "ruined", **WHITENED, **validation, learning_rate=0.3))
    records = [record for record in RunFolder(tmp_path / "ruined").records() if "validation" in record]
    assert [record["step"] for record in records] == [0, 1]
    assert records[0]["best"]
    best = max(records, key=lambda record: record["validation"]["folders"]["recall@5"])
    assert result.best_step == best["step"]


def test_no_step_leaves_what_was_fitted(training_town, tmp_path):
    one = train(arguments(training_town, tmp_path / "one", **WHITENED, max_steps=1, learning_rate=1e-12))
    none = train(arguments(training_town, tmp_path / "none", **WHITENED, max_steps=0))
    assert (one.steps, none.steps) == (1, 0)
    torch.testing.assert_close(head_after(tmp_path / "none"), head_after(tmp_path / "one"), rtol=1e-4, atol=1e-6)


def test_a_student_of_dinov2_has_the_fields_that_are_asked_for(tmp_path):
    backbone = Dinov2Config(hidden_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=56)
    Dinov2Model(backbone).save_pretrained(tmp_path / "dinov2")
    fields = {"recovery_layers": [1, 2], "aggregator_dim": 192, "first_vector": "pooled"}
    keys = {"model": str(tmp_path / "dinov2"), "model_config": fields}
    model = open_trainee(arguments(tmp_path, tmp_path / "run", **keys, recovery_start="pass_through")).model
    assert (model.config.recovery_layers, model.config.first_vector) == ((1, 2), "pooled")
    assert torch.equal(model.recovery.projection.weight[:96, 96:], torch.eye(96))
    with pytest.raises(ValueError, match="unknown key 'recovery_layer'"):
        open_trainee(arguments(tmp_path, tmp_path / "run", **keys | {"model_config": {"recovery_layer": [1]}}))
    D2VprModel(D2VprConfig(**STUDENT)).save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="whole d2vpr"):
        open_trainee(
            arguments(tmp_path, tmp_path / "run", model=str(tmp_path / "whole"), recovery_start="pass_through")
        )


@pytest.mark.skipif("D2VPR_TEST_DINOV2" not in os.environ, reason="D2VPR_TEST_DINOV2 names no folder of DINOv2")
def test_a_run_starts_from_real_weights(training_town, tmp_path):
    folder = os.environ["D2VPR_TEST_DINOV2"]
    dinov2 = Dinov2Model.from_pretrained(folder)
    fields = {"recovery_layers": [dinov2.config.num_hidden_layers], "aggregator_dim": 2 * dinov2.config.hidden_size}
    keys = {"model": folder, "model_config": fields | {"first_vector": "pooled"}, "recovery_start": "pass_through"}
    result = train(arguments(training_town, tmp_path / "run", **WHITENED, **keys, max_steps=0))
    model = D2VprModel.from_pretrained(result.checkpoint)
    assert model.config.nested_dims == (8, 4)
    own = model.backbone.state_dict()
    assert all(torch.equal(own[name], each) for name, each in dinov2.state_dict().items() if name in own)
    assert len(own.keys() & dinov2.state_dict().keys()) > 100


def test_a_recovery_module_starts_near_what_its_teacher_says(training_town, tmp_path):
    """Of the teacher's own blocks, what the teacher makes of the last one can be found again but for a rotation."""
    torch.manual_seed(0)
    backbone = Dinov2Config(hidden_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=56)
    Dinov2Model(backbone).save_pretrained(tmp_path / "dinov2")
    fields = {"recovery_layers": (2,), "aggregator_dim": 192}
    taught_by = D2VprModel.from_dinov2(tmp_path / "dinov2", recovery_start="pass_through", **fields).eval()
    with torch.no_grad():
        # Numbers of its own making: some count much more than others.
        taught_by.recovery.projection.weight.mul_(torch.linspace(0.1, 3, 96).repeat(2)[:, None])
    taught_by.save_pretrained(tmp_path / "teacher")
    keys = {"model": str(tmp_path / "dinov2"), "model_config": fields | {"recovery_layers": [1, 2]}, "max_steps": 0}
    keys |= {"stage": "distill", "teacher": str(tmp_path / "teacher"), "teacher_dtype": "float32"}
    settings = arguments(training_town, tmp_path / "photos")
    images = make_images(settings, open_places(settings), open_trainee(settings).processor)
    pixels = torch.stack([images[row, 1].pixels for row in range(4)])
    likeness = {}
    for start in ("teacher", "pass_through", "taught"):
        model = taught_by
        if start != "teacher":
            result = train(arguments(training_town, tmp_path / start, **keys, recovery_start=start))
            model = D2VprModel.from_pretrained(result.checkpoint).eval()
        with torch.no_grad():
            tokens = F.normalize(model(pixels).last_hidden_state[:, 1:].flatten(0, 1), dim=1)
        likeness[start] = tokens @ tokens.T
    apart = {start: float((likeness[start] - likeness["teacher"]).abs().mean()) for start in likeness}
    assert apart["taught"] < apart["pass_through"] / 2
    with pytest.raises(ValueError, match="recovery_start is taught, but there is no teacher"):
        arguments(training_town, tmp_path, model="dinov2", recovery_start="taught")


def test_a_teacher_can_see_larger_photos(training_town, tmp_path):
    keys = {"teacher_sees": "plain", "teacher_image_size": 84, "teacher": "unused", "distillation_weight": 1.0}
    settings = arguments(training_town, tmp_path, **keys)
    images = make_images(settings, open_places(settings), open_trainee(settings).processor, targets=Targets([]))
    assert images[0, 0].pixels.shape == (3, 56, 56)
    assert images[0, 0].plain.shape == (3, 84, 84)
    with pytest.raises(ValueError, match="teacher_image_size is 84, but the teacher sees the student's own view"):
        arguments(training_town, tmp_path, **keys | {"teacher_sees": "augmented"})
