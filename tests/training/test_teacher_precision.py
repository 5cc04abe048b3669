"""The precision follows what is measured: errors, and seconds."""

from types import SimpleNamespace

import pytest
import torch
from tiny_teachers import PatchMap, tiny_cricavpr

from d2vpr_hf.training import teacher_precision
from d2vpr_hf.training.teacher_precision import choose_precision, relative_error
from d2vpr_hf.training.teachers import MapTeacher, PlaceTeacher, Teacher


@pytest.fixture
def images():
    return torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a `Paced` network turns, so that no load on the machine decides a test."""
    Paced.now = 0.0
    monkeypatch.setattr(teacher_precision, "time", SimpleNamespace(perf_counter=lambda: Paced.now))


class Paced(PatchMap):
    """A network whose seconds are set by precision; what it computes is real."""

    now = 0.0

    def __init__(self, seconds, offset=0.0, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.seconds = seconds
        self.project.bias.data = offset * torch.randn(self.width)
        self.project.weight.data *= scale

    def feature_map(self, pixel_values):
        half = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if half else torch.float32
        Paced.now += self.seconds[str(dtype).removeprefix("torch.")]
        return super().feature_map(pixel_values)


def chosen(network, images):
    return choose_precision(as_teacher(MapTeacher(network)), images)


def as_teacher(network, mode="batch_independent"):
    return Teacher(network, name="tiny", mode=mode, version_hash="0" * 64)


def test_the_fewest_digits_that_are_enough_and_pay(images, clock):
    choice = chosen(Paced({"float32": 0.2, "bfloat16": 0.1, "float16": 0.02}), images)
    assert choice.dtype == "bfloat16"
    assert choice.reason.startswith("bfloat16: error 0.")
    assert (choice.device, choice.images) == ("cpu", 4)
    assert choice.mean_distance > 0.1
    # bfloat16 has 3 binary digits fewer than float16.
    assert 0 == choice.errors["float32"] < choice.errors["float16"] < choice.errors["bfloat16"] < 0.05
    assert choice.seconds == pytest.approx({"float32": 0.2, "bfloat16": 0.1, "float16": 0.02})
    assert choice.reason.endswith("2.0 times float32's speed")


def test_a_precision_that_errs_too_much_is_passed_over(images, clock):
    # What the photos share is so much larger than what tells them apart that bfloat16 rounds the difference away.
    choice = chosen(Paced({"float32": 0.2, "bfloat16": 0.01, "float16": 0.05}, offset=40.0), images)
    assert choice.errors["bfloat16"] > 0.05 > choice.errors["float16"] > 0
    assert choice.dtype == "float16"


def test_numbers_beyond_float16_leave_float32(images, clock):
    choice = chosen(Paced({"float32": 0.1, "bfloat16": 0.2, "float16": 0.01}, scale=1e6), images)
    assert choice.errors["float16"] == float("inf")
    assert choice.errors["bfloat16"] < 0.05
    assert (choice.dtype, choice.reason) == ("float32", "float32: bfloat16 takes 2.0 times as long")


def test_no_precision_is_exact_enough(images, clock):
    choice = chosen(Paced({"float32": 0.05, "bfloat16": 0.01, "float16": 0.01}, offset=1e3), images)
    assert min(choice.errors["bfloat16"], choice.errors["float16"]) > 0.05
    assert choice.dtype == "float32"
    assert choice.reason.startswith("float32: the error in bfloat16 is ")


def test_the_error_is_that_of_the_descriptors(images):
    """The measured shares, from the model's own descriptors."""
    model = tiny_cricavpr(cross_image_encoder=False)
    choice = choose_precision(as_teacher(PlaceTeacher(model)), images)
    with torch.no_grad():
        exact = model(images).pooler_output
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(images).pooler_output
    # The six pairs of four photos.
    pairs = [(exact[one] - exact[other]).norm() for one in range(4) for other in range(one)]
    mean_distance = sum(pairs) / 6
    expected = (rounded - exact).norm(dim=1).mean() / mean_distance
    assert choice.mean_distance == pytest.approx(mean_distance.item(), rel=1e-5)
    assert choice.errors["bfloat16"] == pytest.approx(expected.item(), rel=1e-4)
    assert choice.errors["bfloat16"] > 1e-4


def test_the_teacher_stays_as_it_is(images):
    teacher = as_teacher(PlaceTeacher(tiny_cricavpr()), mode="place_grouped")
    choice = choose_precision(teacher, images, images_per_place=2)
    assert (teacher.dtype, teacher.precision) == ("auto", None)
    assert choice.errors.keys() == choice.seconds.keys() == {"float32", "bfloat16", "float16"}


@pytest.mark.parametrize("same", [True, False])
def test_nothing_to_compare_with_leaves_float32(images, same):
    batch = images[:1].expand(3, -1, -1, -1) if same else images[:1]
    choice = chosen(Paced({"float32": 0.0, "bfloat16": 0.0, "float16": 0.0}), batch)
    assert (choice.dtype, choice.errors, choice.seconds) == ("float32", {}, {})
    what = "3 images with equal descriptors" if same else "one image"
    assert choice.reason.startswith(f"float32: a batch of {what} has no distance")
    assert (choice.mean_distance is None) != same


def test_relative_error_by_hand():
    exact = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    # Distances are sqrt(2), 2 and sqrt(2); one of three descriptors is 0.3 off.
    found = exact + torch.tensor([[0.3, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert relative_error(found, exact) == pytest.approx(0.1 / ((2 * 2**0.5 + 2) / 3))
    assert relative_error(found * float("nan"), exact) == float("inf")
    assert relative_error(found[:1], exact[:1]) == float("inf")
    assert relative_error(exact, exact[:1].expand(3, -1)) == float("inf")
