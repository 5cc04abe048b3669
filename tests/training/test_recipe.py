"""A recipe makes its photos, runs its stages one on the other, and goes on where it was broken off."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_training import STUDENT
from PIL import Image
from transformers import AutoModel

from d2vpr_hf import pretrained_path
from d2vpr_hf.cli.main import main
from d2vpr_hf.protocols.places import read_training_places
from d2vpr_hf.training.arguments import DistillArguments, FinetuneArguments
from d2vpr_hf.training.recipe import Recipe

ROOT = Path(__file__).parents[2]
SMALL = {"height": 56, "width": 70}


@pytest.fixture
def values(tmp_path):
    folder = tmp_path / "panoramas"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png", "kept_out.png"):
        Image.fromarray(random.integers(0, 256, (64, 128, 3), np.uint8)).save(folder / name)
    common = {"panoramas": str(folder), **SMALL}
    return {
        "output": str(tmp_path / "run"),
        "photos": {
            "views": {**common, "sectors": 3, "views_per_sector": 2, "exclude": ["kept_out.png"]},
            "held_out": {**common, "sectors": 2, "views_per_sector": 2, "only": ["kept_out.png"], "revisited": True},
            "town": {"town_seeds": [43, 44], "places": 4, "views": 2, "layout": "gsv", **SMALL},
        },
        "image_size": 56,
        "images_per_place": 2,
        "trainable_blocks": -1,
        "epochs": 1,
        "workers": 0,
        "threads": 1,
        "tracker": "none",
        "stages": [
            {
                "stage": "distill",
                "data": ["views", "town-43"],
                "model_config": STUDENT,
                "teacher": "tiny_teachers:Colours",
                "places_per_batch": 2,
            },
            {
                "stage": "finetune",
                "data": ["town-43", "town-44"],
                "places_per_batch": 4,
                "nested_dims": [32, 16],
                "validation": ["places=held_out"],
                "validation_k": 1,
            },
        ],
    }


def test_photos_of_facades_become_places_too(values, tmp_path):
    photos = {"facades": {"photos": values["photos"]["views"]["panoramas"], "views_per_photo": 2, **SMALL}}
    recipe = Recipe.read(values | {"photos": values["photos"] | photos}, {}, "mine.yaml")
    made = recipe.photos["facades"]
    made.make()
    places = read_training_places(made.folder)
    assert made.folder == tmp_path / "run" / "data" / "facades"
    assert places.places.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"views_per_foto.*Did you mean views_per_photo"):
        Recipe.read(values | {"photos": {"f": {"photos": "x", "views_per_foto": 2}}}, {}, "mine.yaml")


def test_stages_get_their_own_keys_folders_and_the_model_before_them(values, tmp_path):
    first, second = Recipe.read(values, {"seed": "5"}, "mine.yaml").stages
    assert isinstance(first, DistillArguments)
    assert isinstance(second, FinetuneArguments)
    assert first.output == str(tmp_path / "run" / "1-distill")
    assert first.data == [str(tmp_path / "run" / "data" / name) for name in ("views", "town-43")]
    assert second.model == str(tmp_path / "run" / "1-distill" / "checkpoint")
    assert second.validation == [f"places={tmp_path / 'run' / 'data' / 'held_out'}"]
    assert (first.seed, second.seed, second.head_dim) == (5, 5, 32)
    # A key of one stage may stand for all, and is left out of the others.
    assert Recipe.read(values | {"alpha": 10.0}, {}, "mine.yaml").stages[1].alpha == 10.0


def test_a_file_with_stages_runs_and_goes_on(values, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metric"] == "places recall@1"
    out = tmp_path / "run"
    assert result["checkpoint"] == str(out / "2-finetune" / "checkpoint")
    assert AutoModel.from_pretrained(result["checkpoint"]).config.nested_dims == (32, 16)
    table = (out / "data" / "held_out" / "metadata.csv").read_text()
    assert "kept_out.png" in table
    assert "a.png" not in table
    assert "kept_out.png" not in (out / "data" / "views" / "metadata.csv").read_text()
    losses = (out / "2-finetune" / "metrics.jsonl").read_text()
    before = {path: path.stat().st_mtime_ns for path in (out / "1-distill" / "checkpoint").iterdir()}
    drawn = next((out / "data" / "town-44" / "Images").rglob("*.jpg"))
    drawn_at = drawn.stat().st_mtime_ns
    shutil.rmtree(out / "2-finetune")
    assert main(["train", "--config", str(path), "--resume"]) == 0
    # Finished photos and the finished stage stay as they are.
    assert {path: path.stat().st_mtime_ns for path in (out / "1-distill" / "checkpoint").iterdir()} == before
    assert drawn.stat().st_mtime_ns == drawn_at
    again = (out / "2-finetune" / "metrics.jsonl").read_text()
    first, second = ([json.loads(line).get("loss") for line in text.splitlines()] for text in (losses, again))
    assert first == second
    assert main(["train", "--config", str(path)]) == 2
    assert "holds a training run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["d2vpr-base", "d2vpr-small"])
def test_the_recipe_of_a_shipped_checkpoint_is_how_it_was_made(name):
    config = ROOT / "examples/configs" / f"{name.replace('-', '_')}.yaml"
    recipe = Recipe.read(yaml.safe_load(config.read_text()), {}, config.name)
    shipped = json.loads((pretrained_path(name) / "training.json").read_text())["stages"]
    assert [stage["arguments"]["stage"] for stage in shipped] == [stage.stage for stage in recipe.stages]
    # Folders differ, and how the processes and threads were shared out.
    differ = {"data", "output", "model", "teacher", "workers", "threads", "tracker"}
    if name == "d2vpr-base":
        # It was made with one step of its head at a rate of 1e-9, which changes nothing that float16 keeps.
        differ |= {"max_steps", "learning_rate", "epochs", "trainable_blocks", "trainable_modules"}
    for stage, record in zip(recipe.stages, shipped, strict=True):
        # A key that the run didn't know yet had the effect of its default.
        ran, asked = stage.defaults() | record["arguments"], stage.to_dict()
        assert {name: value for name, value in asked.items() if name not in differ and ran[name] != value} == {}
    # 16 panoramas and every third facade are held out whole.
    assert len(recipe.photos["facades"].keys["exclude"]) == 84
    assert {"leadenhall_market.jpg", "vestibule.jpg"} < {*recipe.photos["views"].keys["exclude"]}
    # The demo draws its town with seed 0.
    assert all(made.keys["seed"] >= 70_000 for made in recipe.photos.values() if made.cut is None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"photos": {"views": {"sectors": 3}}},
            r"photos.views of mine.yaml must have either",
        ),
        ({"photos": {"town": {"town_seeds": [1], "vews": 3}}}, "vews.*Did you mean views"),
        ({"photos": ["views"]}, "photos in mine.yaml must be a mapping"),
        ({"stages": []}, "has no stages"),
        ({"lerning_rate": 1}, "Did you mean learning_rate"),
        ({"stages": [{"stage": "distil"}]}, "stage is 'distil'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(values, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        Recipe.read(values | change, {}, "mine.yaml")
    assert not (tmp_path / "run").exists()
