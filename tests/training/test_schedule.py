"""What is trained, and with which learning rate."""

from itertools import pairwise

import pytest
import torch
from made_training import arguments, student, teacher
from torch import nn

from d2vpr_hf import D2VprConfig, D2VprModel
from d2vpr_hf.training.schedule import Schedule, freeze, make_optimizer, set_learning_rate, set_training
from d2vpr_hf.training.stages import Student


def schedule(batches: int, **keys) -> Schedule:
    return Schedule.of(arguments("town", "out", **keys), batches)


def test_the_published_warm_up_ends_where_it_ended():
    """LR 2e-4 * (step + 1) / (3900 * N) over 120 epochs of N steps: 2e-4 * 120 / 3900 = 6.15e-6."""
    found = schedule(484, preset="published", epochs=120, learning_rate=2e-4)
    assert found.steps == 120 * 484
    assert found.learning_rate(0) == pytest.approx(2e-4 / (3900 * 484))
    assert found.learning_rate(found.steps - 1) == pytest.approx(6.1538e-6, rel=1e-4)


def test_the_default_rises_and_falls():
    found = schedule(100, epochs=4, warmup_epochs=0.5, learning_rate=1.0)
    rates = [found.learning_rate(step) for step in range(400)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[49] == rates[50] == 1.0
    assert rates[225] == pytest.approx(0.505)  # half of the way down to a hundredth
    assert 0.01 < rates[-1] < 0.011
    assert all(before > after for before, after in pairwise(rates[50:]))


def test_steps_are_counted_in_accumulated_batches():
    assert schedule(10, epochs=2, gradient_accumulation_steps=4).steps == 4
    assert schedule(10, epochs=2, gradient_accumulation_steps=4, max_steps=3).steps == 3
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 4"):
        schedule(3, gradient_accumulation_steps=4)


def test_a_constant_rate_stays():
    found = schedule(10, schedule="constant", warmup_epochs=0, learning_rate=0.5)
    assert {found.learning_rate(step) for step in range(20)} == {0.5}


def rates(optimizer: torch.optim.Optimizer, trainee: Student) -> dict[str, float]:
    names = {parameter: name for name, parameter in trainee.named_parameters()}
    return {names[each]: group["lr"] for group in optimizer.param_groups for each in group["params"]}


def test_the_rate_drops_by_layer():
    """Block b of 4 has rate * 0.5^(4 - b), the embeddings that of block 0, and what stands behind them all of it."""
    trainee = Student(student(), 96, needs_tokens=False)
    freeze(trainee.model, trainable_blocks=-1, trainable_modules=None)
    optimizer = make_optimizer(arguments("town", "out", layer_rate_decay=0.5, learning_rate=1e-3), trainee)
    for rate in (1e-3, 4e-4):
        set_learning_rate(optimizer, rate)
        found = rates(optimizer, trainee)
        assert found.keys() == {name for name, each in trainee.named_parameters() if each.requires_grad}
        shares = {"model.backbone.embeddings.": 1 / 16}
        shares |= {f"model.backbone.encoder.layer.{b}.": 0.5 ** (3 - b) for b in range(4)}
        for name, value in found.items():
            share = next((share for start, share in shares.items() if name.startswith(start)), 1.0)
            assert value == pytest.approx(rate * share), name


def test_without_a_drop_all_parameters_are_one_group_in_their_order():
    trainee = Student(student(), 96, needs_tokens=False)
    freeze(trainee.model, trainable_blocks=2, trainable_modules=None)
    (group,) = make_optimizer(arguments("town", "out"), trainee).param_groups
    expected = [each for each in trainee.parameters() if each.requires_grad]
    assert all(found is each for found, each in zip(group["params"], expected, strict=True))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_as_many_parameters_are_trained_as_in_the_original():
    """10,726,309 of 27,211,621: the last four blocks with their adapters, and everything behind them."""
    with torch.device("meta"):
        model = D2VprModel(D2VprConfig())
    freeze(model, trainable_blocks=4, trainable_modules=None)
    counts = [
        sum(each.numel() for each in model.parameters() if each.requires_grad is wanted) for wanted in (True, False)
    ]
    assert counts == [10_726_309, 16_485_312]


def test_modules_are_chosen_by_name():
    model = student(head_dim=16)
    freeze(model, trainable_blocks=1, trainable_modules=["aggregator", "head"])
    found = trained(model)
    assert {name.split(".")[0] for name in found} == {"backbone", "aggregator", "head"}
    assert {name.split(".")[3] for name in found if name.startswith("backbone")} == {"3"}
    freeze(model, trainable_blocks=0, trainable_modules=["recovery"])
    assert {name.split(".")[0] for name in trained(model)} == {"recovery"}


def test_everything_is_everything_that_a_loss_reaches():
    model = student()
    assert freeze(model, trainable_blocks=-1, trainable_modules=None) == []
    model.train()(torch.randn(2, 3, 56, 56)).pooler_output.square().sum().backward()
    without = {name for name, each in model.named_parameters() if each.requires_grad and each.grad is None}
    assert without == set()
    assert "backbone.embeddings.mask_token" not in trained(model)


def test_blocks_behind_the_last_recovery_layer_are_left_out():
    model = student()
    model.config.recovery_layers = (1, 2)
    freeze(model, trainable_blocks=-1, trainable_modules=None)
    blocks = {name.split(".")[3] for name in trained(model) if name.startswith("backbone.encoder")}
    assert blocks == {"0", "1"}


def test_the_teacher_of_the_paper_can_be_trained_too():
    model = teacher()
    freeze(model, trainable_blocks=0, trainable_modules=None)
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in trained(model)} == {
        "backbone.layernorm",
        "pool.p",
    }


def test_unknown_modules_and_too_many_blocks_are_named():
    with pytest.raises(ValueError, match="'agregator', but behind its blocks the model has recovery, aggregator"):
        freeze(student(), trainable_blocks=1, trainable_modules=["agregator"])
    with pytest.raises(ValueError, match="5, but the model has 4"):
        freeze(student(), trainable_blocks=5, trainable_modules=None)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_frozen_batchnorm(mode):
    model = student()
    frozen = freeze(model, trainable_blocks=1, trainable_modules=None)
    set_training(model, frozen, frozen_batchnorm=mode)
    first, last = model.backbone.encoder.layer[0], model.backbone.encoder.layer[3]
    assert first.adapter.branch1.norm.training is (mode == "train")
    assert not first.training
    assert last.training
    assert last.adapter.branch1.norm.training
