"""Targets from the teacher and from the disk; the precision that the teacher settles on."""

import shutil

import pytest
import torch
from accelerate import Accelerator
from made_training import TEACHER, arguments, losses, teacher

from d2vpr_hf import D2VprModel
from d2vpr_hf.training.data.batches import TrainingBatch
from d2vpr_hf.training.run import RunFolder
from d2vpr_hf.training.setup import make_images, make_sampler, open_places, open_targets, open_trainee
from d2vpr_hf.training.targets import LiveTargets, settle_precision
from d2vpr_hf.training.trainer import train
from d2vpr_hf.training.whitening import Whitening

DISTILL = {"stage": "distill", "trainable_blocks": -1, "epochs": 1}


@pytest.fixture(scope="module")
def taught_by(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    teacher().save_pretrained(folder)
    return str(folder)


def test_cached_targets_are_the_teachers_and_spare_it(training_town, tmp_path, taught_by, monkeypatch):
    keys = DISTILL | {"teacher": taught_by, "augmentation": "none", "teacher_dtype": "float32"}
    live = train(arguments(training_town, tmp_path / "live", **keys))
    cached = {**keys, "teacher_cache": str(tmp_path / "kept")}
    first = train(arguments(training_town, tmp_path / "first", **cached))
    assert live.steps == first.steps

    def silent(*_, **__):
        raise AssertionError("the teacher was asked for what is kept")

    monkeypatch.setattr("d2vpr_hf.training.teachers.Teacher.describe", silent)
    train(arguments(training_town, tmp_path / "second", **cached))
    history = [losses(RunFolder(tmp_path / name).records()) for name in ("live", "first", "second")]
    assert len(set(history[0])) == len(history[0]) == 3
    # Kept in half precision, where its rounding is far below what separates photos.
    torch.testing.assert_close(torch.tensor(history[1]), torch.tensor(history[0]), rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.tensor(history[2]), torch.tensor(history[0]), rtol=1e-3, atol=0)


def test_a_cache_needs_targets_of_their_own(training_town, tmp_path):
    from d2vpr_hf import CricaVprConfig, CricaVprModel

    fields = {name: value for name, value in TEACHER.items() if name != "model_type"} | {"cross_image_encoder": True}
    CricaVprModel(CricaVprConfig(**fields)).save_pretrained(tmp_path / "with_encoder")
    keys = DISTILL | {"teacher": str(tmp_path / "with_encoder"), "augmentation": "none"}
    with pytest.raises(ValueError, match="depends on its batch"):
        train(arguments(training_town, tmp_path / "run", **keys, teacher_mode="as_published", teacher_cache="kept"))
    published = train(arguments(training_town, tmp_path / "run", **keys, teacher_mode="place_grouped"))
    assert published.steps == 3


def test_the_precision_is_settled_before_the_first_step(training_town, tmp_path, taught_by):
    settings = arguments(training_town, tmp_path / "run", **DISTILL, teacher=taught_by)
    accelerator = Accelerator(cpu=True)
    places, trainee = open_places(settings), open_trainee(settings)
    targets = open_targets(settings, places, trainee.processor, accelerator.device)
    assert isinstance(targets, LiveTargets)
    assert targets.teacher.dtype == "auto"
    draws = next(iter(make_sampler(settings, places, accelerator)))
    settle_precision(targets.teacher, make_images(settings, places, trainee.processor), draws, 2, accelerator)
    assert targets.teacher.dtype == targets.teacher.precision.dtype
    assert targets.teacher.precision.images == len(draws) == 8
    assert targets.teacher.precision.errors["bfloat16"] > 0


class Colours:
    """A network that is no teacher of ours: the colours of a photo's parts."""

    name, width = "colours", 3

    def feature_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(pixel_values, 14) + 3


def test_any_network_teaches_through_a_projection_that_is_dropped(training_town, tmp_path):
    settings = arguments(training_town, tmp_path / "run", **DISTILL, teacher="given", learning_rate=1e-2)
    result = train(settings, teacher=Colours())
    found = losses(RunFolder(tmp_path / "run").records())
    assert found[-1] < found[0]
    from safetensors.torch import load_file

    assert not [name for name in load_file(result.checkpoint / "model.safetensors") if "projection.linear" in name]


def test_only_files_have_a_place_in_the_cache(training_town, tmp_path, taught_by):
    import datasets

    from d2vpr_hf.protocols.places import read_training_places

    photos = sorted((training_town / "Images").rglob("*.jpg"))[:8]
    rows = {"image": [{"bytes": path.read_bytes(), "path": None} for path in photos], "place": [0, 0, 1, 1, 2, 2, 3, 3]}
    features = datasets.Features({"image": datasets.Image(), "place": datasets.Value("int64")})
    places = read_training_places(datasets.Dataset.from_dict(rows, features=features))
    keys = DISTILL | {"teacher": taught_by, "augmentation": "none"}
    assert train(arguments("none", tmp_path / "live", **keys), places=places).steps == 1
    with pytest.raises(ValueError, match="no file"):
        train(arguments("none", tmp_path / "run", **keys, teacher_cache=str(tmp_path / "kept")), places=places)


def test_a_teacher_sees_photos_as_they_are_while_the_student_sees_them_augmented(training_town, tmp_path, taught_by):
    keys = DISTILL | {"teacher": taught_by, "teacher_dtype": "float32", "augmentation": "revisit"}
    settings = arguments(training_town, tmp_path / "run", **keys, teacher_sees="plain")
    plain = arguments(training_town, tmp_path / "run", **keys | {"augmentation": "none"})
    places, trainee = open_places(settings), open_trainee(settings)
    rows = [3, 8, 21]
    seen, bare = (
        TrainingBatch.of([make_images(each, places, trainee.processor)[row, 5] for row in rows])
        for each in (settings, plain)
    )
    assert not torch.equal(seen.pixel_values, bare.pixel_values)
    targets = open_targets(settings, places, trainee.processor, torch.device("cpu"))
    kept = open_targets(
        arguments(training_town, tmp_path / "run", **keys, teacher_sees="plain", teacher_cache=str(tmp_path / "kept")),
        places,
        trainee.processor,
        torch.device("cpu"),
    )
    expected = targets.teacher.teach(bare.pixel_values).regional_descriptors
    assert torch.equal(targets.teach_batch(seen, 1).regional_descriptors, expected)
    torch.testing.assert_close(kept.teach_batch(seen, 1).regional_descriptors, expected, rtol=2e-3, atol=2e-3)
    # Known in part: what is missing alone is taught.
    asked = []
    teach, kept.teacher.teach = kept.teacher.teach, lambda pixels: asked.append(len(pixels)) or teach(pixels)
    more = TrainingBatch.of([make_images(settings, places, trainee.processor)[row, 6] for row in [8, 9, 21, 10]])
    kept.teach_batch(more, 1)
    kept.teach_batch(more, 1)
    assert asked == [2]


def test_a_whitened_teacher_is_followed_through_a_projection_and_the_same_after_a_stop(training_town, tmp_path):
    keys = DISTILL | {"teacher": "given", "teacher_whitening": 2, "learning_rate": 1e-2, "epochs": 2}
    keys |= {"save_every": 2, "keep_states": 3}
    whole = train(arguments(training_town, tmp_path / "whole", **keys), teacher=Colours())
    assert whole.steps == 6
    found = losses(RunFolder(tmp_path / "whole").records())
    assert found[-1] < found[0]
    saved = Whitening.load(RunFolder(tmp_path / "whole").whitening)
    assert saved.mean.shape == (14, 3)
    assert saved.dim == 2
    # What brings the student to the whitened width is no part of the model.
    assert D2VprModel.from_pretrained(whole.checkpoint).config.aggregator_dim == 48
    for number in (4, 6):
        shutil.rmtree(RunFolder(tmp_path / "whole").state_folder(number))
    again = arguments(training_town, tmp_path / "whole", **keys, resume=True)
    train(again, teacher=Colours())
    assert losses(RunFolder(tmp_path / "whole").records()) == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"augmentation": "revisit", "teacher_cache": "kept"}, "teacher_sees to plain"),
        ({"teacher_whitening": 2, "token_weight": 1.0}, "token_weight is 1.0"),
        ({"teacher_sees": "plain", "token_weight": 1.0}, "token_weight is 1.0"),
        ({"teacher_whitening": 1}, "teacher_whitening is 1, but must be at least 2"),
        ({"teacher_sees": "blurred"}, "augmented or plain"),
    ],
)
def test_keys_of_the_teacher_that_do_not_fit_are_refused(training_town, tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        arguments(training_town, tmp_path / "run", **DISTILL, **keys)
