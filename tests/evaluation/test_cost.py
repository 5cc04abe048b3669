"""Costs are counted exactly: parameters of the paper, multiply-accumulates by hand, and those of the original code."""

import pytest
import torch
from torch import nn
from transformers.utils.generic import ModelOutput

from d2vpr_hf import CricaVprConfig, CricaVprModel, D2VprConfig, D2VprModel
from d2vpr_hf.evaluation.cost import model_cost, original_count, time_models

PATCHES = 16 * 16  # at 224 px


@pytest.fixture(scope="module")
def published():
    """Student, student with encoder and teacher in the paper's shapes, without memory."""
    with torch.device("meta"):
        return (
            D2VprModel(D2VprConfig()),
            D2VprModel(D2VprConfig(cross_image_encoder=True)),
            CricaVprModel(CricaVprConfig()),
        )


class Pooled(nn.Module):
    """A convolution, attention over its cells, and their mean: small enough to count by hand."""

    def __init__(self):
        super().__init__()
        self.cells = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        self.out = nn.Linear(8, 5)
        self.register_buffer("shift", torch.zeros(5, dtype=torch.float64))

    def forward(self, pixel_values):
        cells = self.cells(pixel_values).flatten(2).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(cells, cells, cells)
        return ModelOutput(pooler_output=self.out(attended).mean(dim=1))


def test_a_small_model_is_counted_as_by_hand():
    cost = model_cost(Pooled(), height=16, width=24)
    # 4 x 6 cells: 48 products for each of 8 channels, twice 8 for each pair of cells, 8 for each of 5 outputs.
    assert cost.gmacs * 1e9 == pytest.approx(24 * 8 * 48 + 2 * 24 * 24 * 8 + 24 * 5 * 8, abs=1e-3)
    assert cost.parameters == 8 * 48 + 8 + 5 * 8 + 5
    assert (cost.descriptor_dim, cost.descriptor_bytes) == (5, 20)
    assert cost.weight_bytes == 4 * cost.parameters + 8 * 5
    assert cost.to_json()["gmacs"] == cost.gmacs
    assert (cost.to_json()["height"], cost.to_json()["width"]) == (16, 24)


@pytest.mark.filterwarnings("ignore:The cross-image encoder is on")
def test_parameters_and_bytes_are_those_of_the_paper(published):
    student, with_encoder, teacher = (model_cost(model) for model in published)
    assert (student.parameters, with_encoder.parameters, teacher.parameters) == (27_211_621, 38_239_589, 106_761_665)
    assert f"{with_encoder.parameters / teacher.parameters - 1:.1%}" == "-64.2%"
    assert f"{student.parameters / teacher.parameters - 1:.1%}" == "-74.5%"
    assert {each.descriptor_bytes for each in (student, with_encoder, teacher)} == {4 * 10_752}
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in published[0].buffers())
    assert student.weight_bytes == 4 * student.parameters + buffers


@pytest.mark.filterwarnings("ignore:The cross-image encoder is on")
def test_multiply_accumulates_are_counted_with_attention(published):
    student, with_encoder, teacher = (model_cost(model).gmacs for model in published)
    assert round(student, 3) == 7.053
    # Of 14 vectors, 2 layers: 4 projections of 768 x 768, 2 of 768 x 2048, and attention of one image to itself.
    encoder = 2 * 14 * (4 * 768 * 768 + 2 * 768 * 2048 + 2 * 768)
    assert (with_encoder - student) * 1e9 == pytest.approx(encoder, abs=1)
    assert round(teacher, 3) == 25.661
    alone = CricaVprConfig(cross_image_encoder=False)
    with torch.device("meta"):
        assert (teacher - model_cost(CricaVprModel(alone)).gmacs) * 1e9 == pytest.approx(encoder, abs=1)


@pytest.mark.filterwarnings("ignore:The cross-image encoder is on")
def test_the_original_makes_thirteen_whole_offset_maps(published):
    student, with_encoder, teacher = (original_count(model) for model in published)
    # As measured on the reference code.
    assert [round(each.gmacs, 3) for each in (student, with_encoder, teacher)] == [9.640, 9.794, 25.658]
    one_map = PATCHES * (1536 * 512 + 512 * 4)
    # Only 9 x 9 cells are read; the class token's share is the same for all of them; pooling is a product here.
    ours = 81 * (768 * 512 + 512 * 4) + 768 * 512
    pooled = (4 * 64 + 256) * 13 * (768 + 2)  # every sample for every region, and the boxes' means of x and y
    difference = (student.gmacs - model_cost(published[0]).gmacs) * 1e9
    assert difference == pytest.approx(13 * one_map - ours - pooled, abs=1)
    # What counters of layers see of both gives the paper's figure.
    assert f"{with_encoder.layer_gmacs / teacher.layer_gmacs - 1:.1%}" == "-62.6%"
    encoder_layers = 2 * 14 * 2 * 768 * 2048  # the projections of attention are hidden
    assert (with_encoder.layer_gmacs - student.layer_gmacs) * 1e9 == pytest.approx(encoder_layers, abs=1)


def test_counting_leaves_the_model_as_it_was_and_needs_no_numbers(tiny_model, tiny_config):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    tiny_model.train()
    cost = model_cost(tiny_model, height=56, width=84)
    assert tiny_model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())
    assert not any(module._forward_hooks for module in tiny_model.modules())
    with torch.device("meta"):
        assert model_cost(D2VprModel(tiny_config), height=56, width=84) == cost
    assert cost.descriptor_dim == tiny_config.descriptor_dim
    assert model_cost(tiny_model, height=56, width=112).gmacs > cost.gmacs
    half = model_cost(tiny_model.half(), height=56, width=84)
    assert half.gmacs == cost.gmacs
    assert half.weight_bytes < cost.weight_bytes


class Counting(nn.Module):
    """A model that writes down what it is run on."""

    def __init__(self, log):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.log = log

    def forward(self, pixel_values):
        self.log.append((id(self), tuple(pixel_values.shape), self.training, torch.is_autocast_enabled("cpu")))
        return ModelOutput(pooler_output=self.weight * pixel_values.flatten(1))


def test_models_take_turns_and_come_back_as_they_were():
    log = []
    first, second = Counting(log).train(), Counting(log).eval()
    times = time_models(
        {"first": first, "second": second},
        (1, 8),
        sizes={"second": (14, 28)},
        rounds=2,
        device="cpu",
        dtype="bfloat16",
        progress=False,
    )
    assert times.keys() == {"first", "second"}
    assert all(each.keys() == {1, 8} and min(each.values()) > 0 for each in times.values())
    one_round = [(id(first), (1, 3, 224, 224))] * 4 + [(id(first), (8, 3, 224, 224))]
    one_round += [(id(second), (1, 3, 14, 28))] * 4 + [(id(second), (8, 3, 14, 28))]
    assert [each[:2] for each in log] == one_round * 3
    assert not any(training for _, _, training, _ in log)
    assert all(autocast for *_, autocast in log)
    assert first.training
    assert not second.training
    assert time_models({"one": second}, (2,), rounds=1, device="cpu", progress=False)["one"][2] > 0
