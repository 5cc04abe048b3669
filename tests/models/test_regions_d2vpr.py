"""What regions are made of is made once a grid and device, whatever asked for it first."""

import copy

import pytest
import torch
from torch.overrides import TorchFunctionMode

from d2vpr_hf import CricaVprConfig, CricaVprModel
from d2vpr_hf.models.d2vpr.regions_d2vpr import MOST_KEPT, kept, region_points

TEACHER = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56}


MAKERS = (torch.tensor, torch.as_tensor, torch.zeros, torch.arange, torch.Tensor.new_tensor)


class CountingMade(TorchFunctionMode):
    """Counts the tensors that are made of Python numbers."""

    made = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.made += function in MAKERS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampling", ["original", "dense"])
@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_a_second_pass_makes_no_tensor_of_python_numbers(tiny_config, tiny_model, sampling, kind):
    if kind == "teacher":
        model = CricaVprModel(CricaVprConfig(backbone_config=TEACHER, adapter_ratio=1 / 3, cross_image_encoder=False))
        model.config.region_sampling = sampling
    else:
        model = tiny_model
        model.aggregator.regions.region_sampling = sampling
    images = torch.randn(1, 3, 14 * 19, 14 * 17)  # a grid that no other test has
    with CountingMade() as first:
        expected = model.eval()(images).pooler_output
    with CountingMade() as second:
        assert torch.equal(model(images).pooler_output, expected)
    assert second.made == 0
    assert first.made > 0 or (kind, sampling) == ("student", "original")


def test_what_inference_made_serves_a_training_step(tiny_model):
    tiny_model.aggregator.regions.region_sampling = "dense"
    images = torch.randn(1, 3, 14 * 13, 14 * 18)
    with torch.inference_mode():
        tiny_model(images)
    tiny_model(images).region_boxes.sum().backward()
    assert tiny_model.aggregator.regions.offset_out.bias.grad.count_nonzero() > 0


def test_tracing_without_numbers_leaves_nothing_behind(tiny_model):
    tiny_model.aggregator.regions.region_sampling = "dense"
    images = torch.randn(2, 3, 14 * 12, 14 * 18)
    exported = torch.export.export(copy.deepcopy(tiny_model), (images,))
    expected = tiny_model(images).pooler_output
    assert type(region_points((12, 18), "dense", torch.device("cpu")).points) is torch.Tensor
    torch.testing.assert_close(exported.module()(images).pooler_output, expected)


def test_models_made_without_numbers_get_them_with_their_weights(tiny_model, tmp_path):
    images = torch.randn(2, 3, 56, 84)
    expected = tiny_model(images).pooler_output
    with torch.device("meta"):
        empty = type(tiny_model)(tiny_model.config)
    empty.load_state_dict(tiny_model.state_dict(), assign=True)
    assert torch.equal(empty.eval()(images).pooler_output, expected)
    assert not [name for name, _ in tiny_model.named_buffers() if name.startswith("aggregator")]


def test_only_so_much_is_kept():
    made = []

    @kept
    def numbers(count: int) -> torch.Tensor:
        made.append(count)
        return torch.arange(count)

    for count in [*range(MOST_KEPT), 0, MOST_KEPT, 0]:
        assert torch.equal(numbers(count), torch.arange(count))
    assert made == [*range(MOST_KEPT), MOST_KEPT, 0]
