"""Converted checkpoints give the original's recorded outputs and gradients."""

import json
import warnings

import numpy as np
import pytest
import torch
from published_rule import RECORDED, gradient_weights, published_checkpoint, rule_images
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from d2vpr_hf import CricaVprModel, D2VprConfig, D2VprModel, convert_original_state_dict
from d2vpr_hf.models.convert import D2VPR_NAMES, published_name

RECORDINGS = [("golden_seed0_b3_s224.npz", 0, 3, 224), ("golden_seed1_b2_s322.npz", 1, 2, 322)]


def converted(layout, seed):
    config, weights = convert_original_state_dict(published_checkpoint(layout, seed))
    model = (D2VprModel if isinstance(config, D2VprConfig) else CricaVprModel)(config)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def relative_error(found, recorded):
    return np.linalg.norm(found.double().numpy() - recorded) / np.linalg.norm(recorded)


@pytest.mark.parametrize("layout", ["d2vpr", "d2vpr_cross", "cricavpr"])
@pytest.mark.parametrize(("file", "seed", "batch", "side"), RECORDINGS)
def test_outputs_equal_the_recorded_ones(layout, file, seed, batch, side):
    recorded = np.load(RECORDED / file)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the encoder's warning has its own test
        output = converted(layout, seed)(rule_images(seed, batch, side, side))
    assert relative_error(output.pooler_output, recorded[f"{layout}/descriptor"]) < 1e-5
    assert relative_error(output.last_hidden_state[:, 0], recorded[f"{layout}/class_token"]) < 1e-5
    patch_tokens = output.last_hidden_state[:, 1::16]
    assert relative_error(patch_tokens, recorded[f"{layout}/patch_tokens_every_16th"]) < 1e-5
    if layout == "d2vpr":
        assert relative_error(output.region_features, recorded["d2vpr/region_features"]) < 1e-5
        assert relative_error(output.region_boxes, recorded["d2vpr/region_boxes"]) < 1e-5


def test_gradients_equal_the_recorded_ones():
    recorded = json.loads((RECORDED / "d2vpr_gradients_seed0.json").read_text())
    model = converted("d2vpr", 0)
    descriptor = model(rule_images(0, 3, 224, 224)).pooler_output
    loss = (descriptor * gradient_weights(0, tuple(descriptor.shape))).sum()
    loss.backward()
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-3)
    squares = {}
    for name, parameter in model.named_parameters():
        published = published_name(name, D2VPR_NAMES)
        if parameter.grad is not None:
            squares[published] = squares.get(published, 0) + parameter.grad.double().square().sum().item()
    expected = {name: norm for name, norm in recorded["grad_l2"].items() if norm is not None}
    assert squares.keys() == expected.keys()
    for name, norm in expected.items():
        assert squares[name] ** 0.5 == pytest.approx(norm, rel=1e-3), name


def test_a_photo_costs_seven_gmacs():
    model = D2VprModel(D2VprConfig()).eval()
    # Fused attention counts as nothing, so the count runs on the plain one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 224, 224))
    assert 6.9e9 < counter.get_total_flops() / 2 < 7.1e9


def test_parameters_are_those_of_the_paper():
    def count(model_class, config):
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in model_class(config).parameters())

    teacher = count(CricaVprModel, CricaVprModel.config_class())
    assert teacher == 106_761_665
    assert count(D2VprModel, D2VprConfig()) == 27_211_621
    with_encoder = count(D2VprModel, D2VprConfig(cross_image_encoder=True))
    assert with_encoder == 38_239_589
    assert f"{1 - with_encoder / teacher:.1%}" == "64.2%"
