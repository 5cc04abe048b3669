"""Records hold what a card shows, are of the model that is pushed, and tell nothing of the machine that made them."""

import dataclasses
import json

import pytest
from made_evaluation import made_evaluation

from d2vpr_hf.hub.records import read_about, read_comparisons, read_evaluations, read_training, without_folders

WEIGHTS = "a" * 64


def test_an_evaluation_keeps_its_figures_and_loses_names_of_photos_and_folders(tmp_path):
    evaluation = dataclasses.replace(
        made_evaluation(),
        model_name="/home/somebody/runs/d2vpr",
        command=["/home/somebody/.venv/bin/d2vpr", "evaluate", "--database=/data/private/photos", "--radius-m", "25"],
        skipped={"database": [("/data/private/photos/database5.jpg", "is no image")], "queries": []},
    )
    (content,) = read_evaluations([evaluation], WEIGHTS).values()
    full = json.loads(json.dumps(evaluation.to_json()))
    assert content["recall"] == full["recall"] == {"recall@1": 0.5, "recall@3": 0.75, "recall@5": 0.75}
    assert content["model"] == {"name": "d2vpr", "weight_hash": WEIGHTS}
    assert content["command"] == ["d2vpr", "evaluate", "--database=photos", "--radius-m", "25"]
    assert content["counts"]["database_ranked"] == 5
    changed = {"model", "command", "ranking", "skipped"}
    assert set(full) - set(content) == {"ranking", "skipped"}
    assert {name: value for name, value in content.items() if name not in changed} == {
        name: value for name, value in full.items() if name not in changed
    }
    text = json.dumps(content)
    assert not [word for word in ("somebody", "private", "database0.jpg", "query0.jpg") if word in text]
    # Nothing above holds because the words were never there.
    assert all(word in json.dumps(full) for word in ("somebody", "private", "database0.jpg", "query0.jpg"))


def test_evaluations_are_taken_as_objects_json_files_and_folders(tmp_path):
    evaluation = made_evaluation()
    path = evaluation.save(tmp_path / "results")
    found = read_evaluations([evaluation, evaluation.to_json(), path, str(tmp_path / "results")], WEIGHTS)
    assert list(found) == ["made.json", "made-2.json", "made-3.json", "made-4.json"]
    assert all(content == found["made.json"] for content in found.values())
    cost = dataclasses.replace(evaluation, protocol=dataclasses.replace(evaluation.protocol, name="cost"))
    slashed = dataclasses.replace(evaluation, protocol=dataclasses.replace(evaluation.protocol, name="../a b"))
    assert list(read_evaluations([cost, slashed], WEIGHTS)) == ["cost-2.json", "a-b.json"]


def test_what_is_no_evaluation_of_this_model_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"evaluation 2 \(made\) is of the weights aaaaaaaa .* has the weights bbbbbbbb"
    ):
        read_evaluations([dataclasses.replace(made_evaluation(), weight_hash="b" * 64), made_evaluation()], "b" * 64)
    with pytest.raises(ValueError, match=r"evaluation 1 \(made\) has no recall"):
        read_evaluations([made_evaluation(labels=False)], WEIGHTS)
    with pytest.raises(ValueError, match=r"evaluation 1 lacks rule, recall, .*Give results.json as"):
        read_evaluations([{"protocol": "made"}], WEIGHTS)
    partial = made_evaluation().to_json() | {"settings": {"dtype": "float32"}, "counts": None}
    with pytest.raises(ValueError, match=r"lacks counts.database, .*settings.batch_rule, settings.query_method, so it"):
        read_evaluations([partial], WEIGHTS)
    with pytest.raises(FileNotFoundError, match=r"There is no .*gone.json"):
        read_evaluations([tmp_path / "gone.json"], WEIGHTS)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad.json isn't valid JSON"):
        read_evaluations([tmp_path / "bad.json"], WEIGHTS)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list, but a JSON object was expected"):
        read_evaluations([str(tmp_path / "bad.json")], WEIGHTS)


def test_a_training_record_has_stages_and_no_folders(tmp_path):
    stages = [{"stage": "distill", "arguments": {"photos": "/data/gsv_cities", "epochs": 20, "layers": ["~/x/y", 4]}}]
    (tmp_path / "training.json").write_text(json.dumps({"stages": stages}))
    assert read_training(tmp_path / "training.json") == {
        "stages": [{"stage": "distill", "arguments": {"photos": "gsv_cities", "epochs": 20, "layers": ["y", 4]}}]
    }
    for wrong in ({}, {"stages": "distill"}, {"stages": [{"arguments": {}}]}):
        with pytest.raises(ValueError, match="training holds no list `stages`"):
            read_training(wrong)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/me/runs/d2vpr/", "d2vpr"),
        ("C:\\Users\\me\\original.pth", "original.pth"),
        ("listed by name in /home/me/positives.json, and more", "listed by name in positives.json, and more"),
        ("https://arxiv.org/abs/2511.12528", "https://arxiv.org/abs/2511.12528"),
        ("facebook/dinov2-small", "facebook/dinov2-small"),
        ("pitts30k/images/train", "pitts30k/images/train"),
        ("within 25 m, +/-10 frames, 1 / 2", "within 25 m, +/-10 frames, 1 / 2"),
    ],
)
def test_only_paths_from_a_root_are_cut(text, kept):
    assert without_folders({"a": [text]}) == {"a": [kept]}


@pytest.mark.parametrize(
    ("read", "content", "said"),
    [
        (read_about, {"teachers": []}, "has unknown teachers. It must have nothing and may have not_this"),
        (read_about, {"not_this": "no"}, "not_this is a str, but it must be a list"),
        (read_about, {"credits": [3]}, "credits, entry 1 is '3', but it must be text"),
        (read_about, {"data_sources": [{"name": "a"}]}, "data_sources, entry 1 lacks terms"),
        (read_about, {"teacher": {"name": "a", "terms": "b", "c": 1}}, "teacher has unknown c"),
        (read_about, {"retrain": "train"}, "retrain is a str, but it must be an object"),
    ],
)
def test_what_is_said_of_a_checkpoint_has_known_fields(read, content, said):
    with pytest.raises(ValueError, match=said):
        read(content)


def test_a_comparison_has_known_fields_and_is_of_this_model(tmp_path):
    whole = {"name": "a/b", "measure": "m", "rule": "r", "counts": {}, "rows": [{"method": "x", "value": 0.5}]}
    whole["model"] = {"weight_hash": WEIGHTS}
    path = tmp_path / "table.json"
    path.write_text(json.dumps(whole | {"command": "d2vpr evaluate --database=/data/private/photos"}))
    found = read_comparisons([whole, path], WEIGHTS)
    assert list(found) == ["a-b.json", "a-b-2.json"]
    assert found["a-b-2.json"]["command"] == "d2vpr evaluate --database=photos"
    for change, said in (
        ({"model": {"weight_hash": "b" * 64}}, "of the weights bbbbbbbb, but"),
        ({"rows": [{"method": "x"}]}, "comparison 1: rows, entry 1 lacks value"),
        ({"rows": 3}, "rows is a int, but it must be a list"),
        ({"query": 1}, "has unknown query"),
    ):
        with pytest.raises(ValueError, match=said):
            read_comparisons([whole | change], WEIGHTS)


@pytest.mark.parametrize(
    ("read", "content", "said"),
    [
        (
            read_about,
            {"retrain": {"command": "train", "steps": "First train."}},
            "retrain: steps is a str, but it must",
        ),
        (read_about, {"retrain": {"command": ["train"]}}, "retrain: command is .*, but it must be text"),
        (read_about, {"retrain": {"command": "train", "seeds": {"a": 1}}}, "retrain: seeds is a dict"),
        (read_about, {"data_sources": [{"name": "a", "terms": ["CC0"]}]}, "data_sources, entry 1: terms is"),
        (
            read_about,
            {"data_sources": [{"name": "a", "terms": "b", "files": True}]},
            "files is 'True', but it must be an",
        ),
        (read_training, {"stages": [{"stage": "a", "base_model": 3}]}, "stages, entry 1: base_model is a int"),
        (
            read_training,
            {"stages": [{"stage": "a", "best": "yes"}]},
            "stages, entry 1: best is a str, but it must be an",
        ),
    ],
)
def test_a_field_of_another_type_is_refused_by_name(read, content, said):
    with pytest.raises(ValueError, match=said):
        read(content)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"notes": "One note."}, r"evaluation 1 \(made\): notes is a str, but it must be a list"),
        ({"recall": {"recall@1": "half"}}, "recall: recall@1 is 'half', but it must be a finite number"),
        ({"recall": {"recall@1": float("nan")}}, "recall@1 is 'nan', but it must be a finite number"),
        ({"recall": {"<b>@1": 0.5}}, "recall holds '<b>@1', but its names must be recall@1"),
        ({"counts": {"database": "many"}}, "counts.database_ranked"),
        ({"queries_without_positives": "none"}, "queries_without_positives is 'none', but it must be an integer"),
    ],
)
def test_a_damaged_evaluation_is_refused_by_name(change, said, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(made_evaluation().to_json() | change))
    with pytest.raises(ValueError, match=said.replace(r"evaluation 1 \(made\)", "results.json")):
        read_evaluations([path], WEIGHTS)


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "data:text/html,x", "https://a.b/) [x](http://c", "/home", "a b"]
)
def test_a_source_links_to_a_web_page_alone(url):
    with pytest.raises(ValueError, match=r"the url of a is .*, but it must begin with https://"):
        read_about({"data_sources": [{"name": "a", "terms": "b", "url": url}]})
    with pytest.raises(ValueError, match="the url of a is"):
        read_about({"teacher": {"name": "a", "terms": "b", "url": url}})


@pytest.mark.parametrize(
    "text", ["[x](javascript:alert(1))", "[x]( JavaScript:alert(1))", "[x]: data:text/html,y", "[x](<vbscript:z>)"]
)
def test_a_text_that_links_to_code_is_refused_in_every_record(text):
    whole = {"name": "a", "measure": "m", "rule": text, "counts": {}, "rows": [], "model": {"weight_hash": WEIGHTS}}
    for read in (
        lambda: read_about({"credits": ["Somebody", text]}),
        lambda: read_training({"stages": [{"stage": "a", "arguments": {"notes": [text]}}]}),
        lambda: read_comparisons([whole], WEIGHTS),
        lambda: read_evaluations([made_evaluation().to_json() | {"notes": [text]}], WEIGHTS),
    ):
        with pytest.raises(ValueError, match=r"links to .*, but a card links to web pages alone"):
            read()
    assert read_about({"credits": ["[Somebody](https://a.b/c), see [the file](terms.md): `x[1](2)`"]})
