"""What a push would upload lies in a folder first, which opens like any checkpoint."""

import dataclasses
import json

import pytest
import torch
from made_evaluation import made_evaluation

from d2vpr_hf import D2VprImageProcessor, D2VprModel, write_release
from d2vpr_hf.retrieval.embedder import weight_hash


def test_the_folder_opens_and_says_what_is_in_it(tmp_path, tiny_model, tiny_processor):
    folder = write_release(tmp_path / "out" / "release", tiny_model, tiny_processor, "me/d2vpr-tiny")
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected, found = (each(pixels).pooler_output for each in (tiny_model, D2VprModel.from_pretrained(folder)))
    assert torch.equal(found, expected)
    assert D2VprImageProcessor.from_pretrained(folder).size == {"height": 56, "width": 56}
    cost = json.loads((folder / "evaluations" / "cost.json").read_text())
    card = (folder / "README.md").read_text()
    assert f"| parameters | {cost['parameters']:,} |" in card
    assert "license: apache-2.0" in card
    assert [path.name for path in folder.parent.iterdir()] == ["release"]


def test_a_model_that_was_pushed_can_be_pushed_on(tmp_path, tiny_model, tiny_processor):
    first = write_release(tmp_path / "first", tiny_model, tiny_processor, "me/first", training={"stages": []})
    second = write_release(tmp_path / "second", D2VprModel.from_pretrained(first), tiny_processor, "me/second")
    names = [sorted(path.relative_to(each).as_posix() for path in each.rglob("*")) for each in (first, second)]
    assert names[0] == names[1]
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_the_modules_of_sentence_transformers_are_named(tmp_path, tiny_model, tiny_processor):
    folder = write_release(tmp_path / "release", tiny_model, tiny_processor, "me/tiny")
    (module,) = json.loads((folder / "modules.json").read_text())
    file, name = module["type"].split(".")
    assert f"\nclass {name}(" in (folder / f"{file}.py").read_text()
    assert json.loads((folder / "config_sentence_transformers.json").read_text())["similarity_fn_name"] == "cosine"


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path, tiny_model, tiny_processor, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="isn't empty"):
        write_release(tmp_path / "full", tiny_model, tiny_processor, "me/tiny")
    with pytest.raises(ValueError, match="holds no list `stages`"):
        write_release(tmp_path / "bad", tiny_model, tiny_processor, "me/tiny", training={})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("d2vpr_hf.hub.release._write_sentence_transformers", fail)
    with pytest.raises(OSError, match="disk full"):
        write_release(tmp_path / "release", tiny_model, tiny_processor, "me/tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_results_of_the_folder_go_along_while_they_are_of_its_weights(tmp_path, tiny_model, tiny_processor):
    evaluation = dataclasses.replace(made_evaluation(), weight_hash=weight_hash(tiny_model))
    table = {"name": "t", "measure": "mAP", "rule": "r", "counts": {}, "rows": [{"method": "tiny", "value": 0.25}]}
    table["model"] = {"weight_hash": weight_hash(tiny_model)}
    first = write_release(
        tmp_path / "a", tiny_model, tiny_processor, "me/a", evaluations=[evaluation], comparisons=[table]
    )
    # Of weights that lay here before.
    stale = json.loads((first / "evaluations" / "made.json").read_text()) | {"model": {"name": "x", "weight_hash": "b"}}
    (first / "evaluations" / "stale.json").write_text(json.dumps(stale))
    (first / "evaluations" / "broken.json").write_text("{")
    model = D2VprModel.from_pretrained(first)
    second = write_release(tmp_path / "b", model, tiny_processor, "me/b")
    found = sorted(path.relative_to(second).as_posix() for path in second.rglob("*s/*.json"))
    assert found == ["comparisons/t.json", "evaluations/cost.json", "evaluations/made.json"]
    bare = write_release(tmp_path / "c", model, tiny_processor, "me/c", evaluations=[], comparisons=[])
    assert [path.name for path in bare.rglob("*s/*.json")] == ["cost.json"]
    with torch.no_grad():
        model.recovery.norm.weight.mul_(2)
    changed = write_release(tmp_path / "d", model, tiny_processor, "me/d")
    assert [path.name for path in changed.rglob("*s/*.json")] == ["cost.json"]
