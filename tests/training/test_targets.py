"""Targets from the teacher and from the disk, and their whitening."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from made_training import TEACHER, arguments, losses, student, teacher
from torch.nn import functional as F

from d2vpr_hf import D2VprModel
from d2vpr_hf.cli.main import main
from d2vpr_hf.training.data.batches import TrainingBatch
from d2vpr_hf.training.parts import make_images, open_places, open_targets, open_trainee
from d2vpr_hf.training.run import RunFolder
from d2vpr_hf.training.targets import Whitening, fit_whitening
from d2vpr_hf.training.trainer import train

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

    monkeypatch.setattr("d2vpr_hf.training.teachers.Teacher.teach", silent)
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
    with pytest.raises(ValueError, match="depends on the batch"):
        train(arguments(training_town, tmp_path / "run", **keys, teacher_mode="as_published", teacher_cache="kept"))
    published = train(arguments(training_town, tmp_path / "run", **keys, teacher_mode="place_grouped"))
    assert published.steps == 3


def test_an_automatic_precision_is_float32_on_a_cpu_and_any_can_be_asked_for(training_town, tmp_path, taught_by):
    for asked, runs in (("auto", "float32"), ("bfloat16", "bfloat16")):
        keys = DISTILL | {"teacher": taught_by, "teacher_dtype": asked}
        result = train(arguments(training_town, tmp_path / asked, **keys))
        (stage,) = json.loads((result.checkpoint / "training.json").read_text())["stages"]
        assert (stage["arguments"]["teacher_dtype"], stage["teacher"]["dtype"]) == (asked, runs)
    found = [losses(RunFolder(tmp_path / asked).records()) for asked in ("auto", "bfloat16")]
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.05)


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
    with pytest.raises(ValueError, match="isn't a file"):
        train(arguments("none", tmp_path / "run", **keys, teacher_cache=str(tmp_path / "kept")), places=places)


def test_a_teacher_sees_photos_as_they_are_while_the_student_sees_them_augmented(training_town, tmp_path, taught_by):
    keys = DISTILL | {"teacher": taught_by, "teacher_dtype": "float32", "augmentation": "revisit"}
    keys |= {"teacher_sees": "plain"}
    settings = arguments(training_town, tmp_path / "run", **keys)
    plain = arguments(training_town, tmp_path / "run", **keys | {"augmentation": "none"})
    cached = arguments(training_town, tmp_path / "run", **keys, teacher_cache=str(tmp_path / "kept"))
    places, processor = open_places(settings), open_trainee(settings).processor
    rows = [3, 8, 21]

    def opened(settings):
        targets = open_targets(settings, processor, torch.device("cpu"))
        return targets, make_images(settings, places, processor, targets)

    def batch_of(images, rows, seed=5):
        return TrainingBatch.of([images[row, seed] for row in rows])

    (targets, images), (kept, kept_images) = opened(settings), opened(cached)
    seen, bare = batch_of(images, rows), batch_of(make_images(plain, places, processor), rows)
    assert bare.plain_values is None
    assert not torch.equal(seen.pixel_values, bare.pixel_values)
    assert torch.equal(seen.plain_values, bare.pixel_values)
    expected = targets.teachers[0].teach(bare.pixel_values).regional_descriptors
    assert torch.equal(targets.teach_batch(seen, 1).regional_descriptors, expected)
    found = kept.teach_batch(batch_of(kept_images, rows), 1).regional_descriptors
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    # Known in part: what is missing alone is taught.
    asked = []
    (keeper,) = kept.teachers
    teach, keeper.teach = keeper.teach, lambda pixels: asked.append(len(pixels)) or teach(pixels)
    more = batch_of(kept_images, [8, 9, 21, 10], seed=6)
    kept.teach_batch(more, 1)
    kept.teach_batch(more, 1)
    assert asked == [2]
    # A later run prepares plain views of what is missing alone, and says of all which file they are.
    again, again_images = opened(cached)
    later = batch_of(again_images, [8, 4, 21, 5])
    assert later.plain_at == [1, 3]
    assert torch.equal(later.plain_values, batch_of(images, [4, 5]).plain_values)
    assert later.hashes[0] == more.hashes[0]
    expected = targets.teachers[0].teach(batch_of(images, [8, 4, 21, 5]).plain_values).regional_descriptors
    found = again.teach_batch(later, 1).regional_descriptors
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_worker_processes_prepare_what_the_teacher_sees(training_town, tmp_path, taught_by, monkeypatch):
    """The training process opens and hashes no photo, and the losses are those without workers."""
    keys = DISTILL | {"teacher": taught_by, "teacher_sees": "plain", "teacher_cache": str(tmp_path / "kept")}
    train(arguments(training_town, tmp_path / "alone", **keys))

    def refused(*_):
        raise AssertionError("the training process opened a photo")

    shutil.rmtree(tmp_path / "kept")
    monkeypatch.setattr("d2vpr_hf.training.data.batches.TrainingImages.__getitem__", refused)
    train(arguments(training_town, tmp_path / "workers", **keys | {"workers": 1}))
    alone, workers = (losses(RunFolder(tmp_path / name).records()) for name in ("alone", "workers"))
    assert workers == alone
    assert len(set(alone)) == 3


def test_a_whitened_teacher_is_followed_through_a_projection_and_the_same_after_a_stop(training_town, tmp_path):
    keys = DISTILL | {"teacher": "given", "teacher_whitening": 2, "learning_rate": 1e-2, "epochs": 2}
    keys |= {"save_every": 2, "keep_states": 3}
    whole = train(arguments(training_town, tmp_path / "whole", **keys), teacher=Colours())
    assert whole.steps == 6
    found = losses(RunFolder(tmp_path / "whole").records())
    assert found[-1] < found[0]
    saved = Whitening.load(RunFolder(tmp_path / "whole").whitening())
    assert saved.mean.shape == (14, 3)
    assert saved.dim == 2
    # What brings the student to the whitened width is no part of the model.
    assert D2VprModel.from_pretrained(whole.checkpoint).config.aggregator_dim == 48
    for number in (4, 6):
        shutil.rmtree(RunFolder(tmp_path / "whole").state_folder(number))
    again = arguments(training_town, tmp_path / "whole", **keys, resume=True)
    train(again, teacher=Colours())
    assert losses(RunFolder(tmp_path / "whole").records()) == pytest.approx(found, abs=1e-6)


@pytest.fixture(scope="module")
def taught_by_two(taught_by, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("teacher") / "other"
    student().save_pretrained(folder)
    return [taught_by, str(folder)]


def test_a_list_of_one_teacher_is_that_teacher(training_town, tmp_path, taught_by):
    keys = DISTILL | {"teacher_dtype": "float32"}
    results = [
        train(arguments(training_town, tmp_path / name, **keys, teacher=asked))
        for name, asked in (("name", taught_by), ("list", [taught_by]))
    ]
    histories = [losses(RunFolder(tmp_path / name).records()) for name in ("name", "list")]
    assert histories[0] == histories[1]
    stages = [json.loads((each.checkpoint / "training.json").read_text())["stages"][0] for each in results]
    assert stages[0]["teacher"] == stages[1]["teacher"]
    assert stages[0]["teacher"]["name"] == stages[1]["arguments"]["teacher"] == taught_by


@pytest.mark.parametrize("dim", [None, 8])
def test_targets_of_several_teachers_stand_side_by_side(training_town, tmp_path, taught_by_two, dim):
    """Each is whitened by itself, or else of unit length, whatever stands beside it."""
    keys = DISTILL | {"teacher_dtype": "float32", "teacher_whitening": dim}
    settings = arguments(training_town, tmp_path / "both", **keys, teacher=taught_by_two)
    places, processor = open_places(settings), open_trainee(settings).processor
    batch, found = None, {}
    for name, asked in (("both", taught_by_two), ("first", taught_by_two[0]), ("second", taught_by_two[1])):
        settings = arguments(training_town, tmp_path / name, **keys, teacher=asked)
        targets = open_targets(settings, processor, torch.device("cpu"))
        images = make_images(settings, places, processor, targets)
        for member in targets.members if dim else ():
            member.whitening = fit_whitening(member, images, dim, seed=0)
        batch = batch or TrainingBatch.of([images[row, 5] for row in (3, 8, 21)])
        found[name] = targets.teach_batch(batch, 1).regional_descriptors
        assert found[name].shape[-1] == targets.width
    expected = torch.cat([F.normalize(found[name], dim=-1) for name in ("first", "second")], dim=-1)
    torch.testing.assert_close(found["both"], expected)
    assert found["both"].shape[-1] == (16 if dim else 96 + 48)


def test_several_teachers_are_cached_named_and_the_same_after_a_stop(training_town, tmp_path, taught_by_two):
    keys = DISTILL | {"teacher": taught_by_two, "teacher_whitening": 4, "augmentation": "none", "epochs": 2}
    keys |= {"save_every": 2, "keep_states": 3, "teacher_cache": str(tmp_path / "kept")}
    whole = train(arguments(training_town, tmp_path / "whole", **keys))
    folder = RunFolder(tmp_path / "whole")
    found = losses(folder.records())
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert not torch.equal(*(Whitening.load(folder.whitening(number)).projection[:48] for number in (0, 1)))
    (stage,) = json.loads((whole.checkpoint / "training.json").read_text())["stages"]
    assert stage["teacher"]["name"] == stage["arguments"]["teacher"] == taught_by_two
    assert stage["teacher"]["width"] == [96, 48]
    for number in (4, 6):
        shutil.rmtree(folder.state_folder(number))
    with pytest.raises(ValueError, match=r"teacher is '.*', but the run in"):
        train(arguments(training_town, tmp_path / "whole", **keys | {"teacher": taught_by_two[0]}, resume=True))
    train(arguments(training_town, tmp_path / "whole", **keys, resume=True))
    assert losses(folder.records()) == pytest.approx(found, abs=1e-6)


def test_a_photo_that_one_of_the_teachers_lacks_is_shown_to_it(training_town, tmp_path, taught_by_two):
    keys = DISTILL | {"teacher_sees": "plain", "teacher_cache": str(tmp_path / "kept"), "teacher_dtype": "float32"}
    train(arguments(training_town, tmp_path / "first", **keys, teacher=taught_by_two[0]))
    train(arguments(training_town, tmp_path / "both", **keys, teacher=taught_by_two))
    uncached = {name: value for name, value in keys.items() if name != "teacher_cache"}
    train(arguments(training_town, tmp_path / "live", **uncached, teacher=taught_by_two))
    histories = [losses(RunFolder(tmp_path / name).records()) for name in ("both", "live")]
    assert histories[0] == pytest.approx(histories[1], rel=1e-3)


def test_the_command_line_takes_several_teachers(training_town, tmp_path, taught_by_two, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = arguments(training_town, tmp_path / "run", **DISTILL, max_steps=1).to_dict()
    Path("run.yaml").write_text(json.dumps(keys))  # JSON is YAML
    assert main(["train", "--config", "run.yaml", "--teacher", *taught_by_two]) == 0
    (stage,) = json.loads(Path("run/checkpoint/training.json").read_text())["stages"]
    assert stage["teacher"]["name"] == stage["arguments"]["teacher"] == taught_by_two


def test_the_teacher_that_fails_is_named(training_town, tmp_path, taught_by):
    missing = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere can't be opened as a teacher"):
        train(arguments(training_town, tmp_path / "run", **DISTILL, teacher=[taught_by, missing]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"augmentation": "revisit", "teacher_cache": "kept"}, "teacher_sees to plain"),
        ({"teacher_whitening": 2, "token_weight": 1.0}, "token_weight is 1.0"),
        ({"teacher_sees": "plain", "token_weight": 1.0}, "token_weight is 1.0"),
        ({"teacher_whitening": 1}, "teacher_whitening is 1, but must be at least 2"),
        ({"teacher": ["one", "two", "one"]}, "teacher names one twice"),
        ({"teacher": ["one", "two"], "token_weight": 1.0}, "teacher names one, two, but patch tokens"),
        ({"teacher": {"name": "one"}}, "expects a list of names or text"),
        ({"teacher_sees": "blurred"}, "augmented or plain"),
    ],
)
def test_keys_of_the_teacher_that_do_not_fit_are_refused(training_town, tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        arguments(training_town, tmp_path / "run", **DISTILL, **keys)


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
    with pytest.raises(ValueError, match=r"teacher_whitening is 8, .* by mine vary in 4 directions"):
        Whitening.fit(flat, 8, "mine")


def test_it_is_kept_and_read(tmp_path):
    whitening = Whitening.fit(skewed(), 5)
    whitening.save(tmp_path / "whitening.safetensors")
    regional = skewed(seed=1)
    assert torch.equal(Whitening.load(tmp_path / "whitening.safetensors")(regional), whitening(regional))
