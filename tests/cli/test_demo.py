import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf import Embedder
from d2vpr_hf.cli import demo_run as demo
from d2vpr_hf.cli.demo_run import (
    claim_folder,
    hold_out,
    is_demo_model,
    locate_split,
    own_split,
    town_split,
    write_demo_model,
)
from d2vpr_hf.cli.main import main
from d2vpr_hf.evaluation.baselines import open_peer, random_weights
from d2vpr_hf.evaluation.recall import chance_recall
from d2vpr_hf.models.checkpoint import DEFAULT_PRETRAINED, pretrained_path, save_checkpoint
from d2vpr_hf.photos.folder import PhotoFolder, read_photo_folder
from d2vpr_hf.photos.positions import Positions, positives_within
from d2vpr_hf.retrieval.embedder import weight_hash
from d2vpr_hf.town.make import make_town


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> Path:
    """Three places, seen from two sides each; three other photos of them."""
    root = tmp_path_factory.mktemp("town")
    make_town(root, 3, 2, queries=3, easy_queries=3, height=56, width=56)
    return root / "images" / "test"


@pytest.fixture(scope="module")
def demo_model(tmp_path_factory) -> Path:
    return write_demo_model(tmp_path_factory.mktemp("model") / "d2vpr")


def photo_folder(latitudes: list[float]) -> PhotoFolder:
    paths = [Path(f"{number}.jpg") for number in range(len(latitudes))]
    positions = Positions.from_degrees(latitudes, [8.54] * len(latitudes))
    return PhotoFolder(Path(), paths, [path.name for path in paths], positions)


def test_the_whole_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "town_split", partial(town_split, places=2, queries=3))
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    first = out.splitlines()[0]
    assert "this project's own model" in first
    assert "isn't the published D²-VPR" in first
    assert "of DINOv2's blocks" in out
    assert "no evidence about real streets" in out
    assert "No town of this seed went into the model" in out
    assert "condition  queries  right  wrong  recall@1  recall@5" in out
    rows = ["this model", "random weights", "grey thumbnail of 16x16 pixels", "chance"]
    assert re.findall(r"^((?!all|day|dusk|night|fog|rain|snow)[a-z].+?)  +\d[\d.]+ %", out, re.MULTILINE) == rows
    assert re.search(r"points above random weights and -?[\d.]+ points above grey thumbnail", out)
    assert "were taken at night, in fog, rain or snow." in out
    assert "%|" in err  # progress bars, which stdout must not hold
    assert "%|" not in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d2vpr", "d2vpr-demo"]
    page = Path("d2vpr-demo/answers.html").read_text(encoding="utf-8")
    assert page.count("<article") == 3
    assert "no evidence about real streets" in page
    pictures = sorted(path.stem for path in Path("d2vpr-demo/pictures").iterdir())
    assert "regions" in pictures
    assert all(name == "regions" or name.endswith(("-right", "-wrong")) for name in pictures)

    # The line of the README works where the demo ran.
    from transformers import AutoImageProcessor, AutoModel

    model, processor = AutoModel.from_pretrained("d2vpr"), AutoImageProcessor.from_pretrained("d2vpr")
    descriptor = model(**processor(Image.new("RGB", (64, 48)), return_tensors="pt")).pooler_output
    assert descriptor.shape == (1, model.config.descriptor_dim)
    assert model.dtype == descriptor.dtype == torch.float32
    assert weight_hash(model) == weight_hash(AutoModel.from_pretrained(pretrained_path()))


def test_the_demo_finds_the_places_of_a_town_that_it_never_saw(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["queries"], result["judged"]) == (48, 48)
    assert result["hard_queries"] >= 24
    recall = {method: each["recall@1"] for method, each in result["recall"].items()}
    assert recall["this model"] >= 0.8
    assert recall["this model"] >= recall["random weights"] + 0.25
    assert recall["this model"] > recall[demo.THUMBNAIL] > recall["chance"]
    assert result["above"] == {
        method: pytest.approx(recall["this model"] - recall[method])
        for method in (demo.RANDOM, demo.THUMBNAIL, "chance")
    }


def test_own_photos_with_a_checkpoint_of_ones_own(town, tmp_path, tiny_model, tiny_processor, capsys):
    model = save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor)
    arguments = ["demo", "--photos", str(town / "database"), "--model", str(model), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"These are the answers of the checkpoint {model}."
    assert "random" not in out
    assert "drawn" not in out
    assert "1 of your photos were held out and located among the other 5" in out
    assert not (tmp_path / "out" / "d2vpr").exists()
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["places"], result["queries"]) == (5, 1)
    assert set(result["recall"]) == {"this model", "grey thumbnail of 16x16 pixels", "chance"}


def test_photos_without_coordinates_are_shown_and_not_judged(tmp_path, tiny_model, tiny_processor, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.jpg")
    (photos / "broken.jpg").write_bytes(b"no image")
    model = save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor)
    assert main(["demo", "--photos", str(photos), "--model", str(model), "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "nobody can say which answers are right" in out
    assert "recall" not in out
    assert "broken.jpg: not an image" in err
    assert (tmp_path / "d2vpr-demo" / "pictures" / "answer.jpg").is_file()


def test_one_photo_is_too_few(tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "only.jpg")
    with pytest.raises(ValueError, match="holds one photo, but two are needed"):
        own_split(tmp_path)


def test_the_model_is_the_packages_and_only_the_demos_own_folder_is_replaced(demo_model, tmp_path, monkeypatch):
    shipped = pretrained_path(DEFAULT_PRETRAINED)
    again = write_demo_model(tmp_path / "d2vpr")
    for folder in (demo_model, again):
        assert (folder / "model.safetensors").read_bytes() == (shipped / "model.safetensors").read_bytes()
    assert json.loads((again / demo.MODEL_MARK).read_text())["model"] == DEFAULT_PRETRAINED
    assert is_demo_model(again)
    written = (again / "model.safetensors").stat().st_ino
    write_demo_model(again)
    assert (again / "model.safetensors").stat().st_ino == written
    # What another version of the package ships takes its place.
    other = tmp_path / "other"
    shutil.copytree(shipped, other)
    about = json.loads((other / "about.json").read_text())
    (other / "about.json").write_text(json.dumps(about | {"not_this": ["It is another card."]}))
    monkeypatch.setattr(demo, "pretrained_path", lambda name: other)
    write_demo_model(again)
    assert "It is another card." in (again / "README.md").read_text()
    assert is_demo_model(again)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d2vpr", "other"]


def test_a_model_that_the_demo_did_not_write_stays(
    demo_model, tmp_path, monkeypatch, tiny_model, tiny_processor, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = save_checkpoint(tmp_path / "d2vpr", tiny_model, tiny_processor)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["demo"]) == 2
    assert "--out" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not Path("d2vpr-demo").exists()
    # One that the demo wrote and somebody trained on is somebody's, too.
    (tmp_path / "mine").mkdir()
    shutil.copytree(demo_model, tmp_path / "mine", dirs_exist_ok=True)
    assert is_demo_model("mine")
    with Path("mine/config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(FileExistsError, match="--out"):
        write_demo_model("mine")


def test_a_demo_folder_that_the_demo_did_not_write_stays(tmp_path):
    folder = tmp_path / "d2vpr-demo"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="--out"):
        claim_folder(folder)
    assert (folder / "thesis.txt").read_text() == "mine"
    (folder / "thesis.txt").unlink()
    claim_folder(folder)
    (folder / "places").mkdir()
    assert not (claim_folder(folder) / "places").exists()


def test_an_easy_query_set_is_found(town, tmp_path, tiny_model, tiny_processor):
    database, queries = read_photo_folder(town / "database"), read_photo_folder(town / "queries_easy")
    split = demo.Split(database, queries, ["day", "night", "day"])
    embedder = Embedder(tiny_model, tiny_processor)
    untrained = Embedder(random_weights(tiny_model), tiny_processor)
    result = locate_split(split, tmp_path, embedder, untrained=untrained, progress=False)
    assert list(result.recall) == ["this model", "random weights", demo.THUMBNAIL, "chance"]
    assert result.recall[demo.THUMBNAIL] == {1: 1.0, 5: 1.0}
    assert (result.judged, result.hard_queries) == (3, 1)
    assert "1 of the 3 queries (33.3 %)" in result.summary()
    # Compared with itself the model gains nothing.
    again = locate_split(split, tmp_path / "again", embedder, untrained=embedder, progress=False)
    assert again.above["random weights"] == 0
    assert sum(queries for queries, _, _ in result.conditions.values()) == 3
    assert list(result.conditions) == ["day", "night"]
    right = sum(right for _, right, _ in result.conditions.values())
    assert result.recall["this model"][1] == pytest.approx(right / 3)
    table = result.tables()[0]
    assert [row[0] for row in table.rows] == ["day", "night", "all"]
    assert all(int(row[1]) == int(row[2]) + int(row[3]) for row in table.rows)


def test_random_weights_are_the_same_each_time_and_leave_the_random_state(tiny_model):
    state = torch.get_rng_state()
    first, second = random_weights(tiny_model), random_weights(tiny_model)
    assert torch.equal(torch.get_rng_state(), state)
    assert weight_hash(first) == weight_hash(second) != weight_hash(tiny_model)
    assert first.config.to_dict() == tiny_model.config.to_dict()


def test_thumbnails_tell_photos_apart_and_ignore_brightness(tmp_path):
    pixels = np.random.default_rng(0).integers(40, 140, (2, 64, 64), dtype=np.uint8)
    images = [pixels[0], pixels[0] + 60, pixels[1], np.zeros_like(pixels[0])]
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    rows = open_peer("thumbnail", workers=1).embed(paths, progress=False).vectors
    scores = rows @ rows.T
    assert scores[0, 1] == pytest.approx(1, abs=0.02)
    assert abs(scores[0, 2]) < 0.5
    assert np.isfinite(rows).all()  # a black photo has no contrast to divide by


def test_chance_is_that_of_drawing_without_putting_back():
    # 2 positives among 4 photos: 1 answer hits with 2/4; 2 answers miss with 2/4 * 1/3; 3 always hit.
    recall = chance_recall([np.array([0, 3])], 4, (1, 2, 3, 9))
    assert recall == pytest.approx({1: 0.5, 2: 1 - 1 / 6, 3: 1.0, 9: 1.0})
    assert chance_recall([np.array([]), np.array([1])], 2, (1,)) == pytest.approx({1: 0.25})


def test_held_out_photos_can_be_answered_by_those_that_stay():
    # Ten pairs, 8 m apart, 1 km between pairs, and ten photos that stand alone.
    pairs = [47.0 + 0.009 * pair + side * 8 / 111_000 for pair in range(10) for side in range(2)]
    photos = photo_folder(pairs + [48.0 + 0.009 * number for number in range(10)])
    held = hold_out(photos)
    assert len(held) == 6
    assert max(held) < 20
    kept = np.setdiff1d(np.arange(30), held)
    positives = positives_within(photos.positions[kept], photos.positions[held], 25)
    assert all(len(each) == 1 for each in positives)
    assert np.array_equal(held, hold_out(photos))
    assert not np.array_equal(held, hold_out(photos, seed=1))


@pytest.mark.parametrize("count", [2, 3, 1000])
def test_photos_that_stand_alone_are_held_out_all_the_same(count):
    held = hold_out(photo_folder([10 + 0.05 * number for number in range(count)]))
    assert len(held) == max(1, min(40, count // 5))
    assert len(set(held.tolist())) == len(held)
