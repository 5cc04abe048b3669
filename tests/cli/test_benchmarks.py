"""The commands for benchmarks from the outside: evaluate by name, verify, reduce."""

import json
import shutil

import numpy as np
import pytest

from d2vpr_hf import make_town
from d2vpr_hf.cli.main import main
from d2vpr_hf.models.checkpoint import save_checkpoint


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tiny_processor):
    return save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """A town in the layout of the benchmarks, small enough to be embedded in a moment."""
    folder = tmp_path_factory.mktemp("benchmark")
    make_town(folder, places=3, views=2, seed=4, queries=4, easy_queries=0, height=60, width=80)
    return folder / "images" / "test"


def test_a_named_benchmark_is_evaluated_compared_and_drawn(checkpoint, benchmark, tmp_path, capsys):
    arguments = ["evaluate", "folders", str(benchmark), "--model", str(checkpoint), "--k", "1", "2"]
    saved = tmp_path / "results"
    assert main([*arguments, "--cache", str(tmp_path / "cache"), "--save", str(saved)]) == 0
    assert "recall@2" in capsys.readouterr().out
    assert {path.name for path in saved.iterdir()} == {"results.json", "gallery.html", "figures.html"}
    results = json.loads((saved / "results.json").read_text())
    assert results["protocol"] == "folders"
    assert results["counts"]["queries"] == 4
    again = [*arguments, "--query-method", "five_crops", "--json"]
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["query_method"] == "five_crops"
    assert main([*arguments, "--against", str(checkpoint), "--save", str(saved)]) == 2
    copy = shutil.copytree(checkpoint, tmp_path / "other")
    shutil.rmtree(saved)
    capsys.readouterr()
    assert main([*arguments, "--against", str(copy), "--save", str(saved)]) == 0
    assert str(copy) in capsys.readouterr().out
    # The model's own results too, which a push takes.
    pages = {"results.json", "gallery.html", "figures.html", "comparison.html", "comparison.json"}
    assert {path.name for path in saved.iterdir()} == pages
    assert json.loads((saved / "results.json").read_text())["model"] == results["model"]
    differences = json.loads((saved / "comparison.json").read_text())["differences"]
    assert differences[str(copy)]["recall@1"] == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_what_a_model_has_to_beat_stands_beside_it(checkpoint, benchmark, tmp_path, capsys):
    np.save(tmp_path / "theirs.npy", np.arange(4 * 6, dtype=float).reshape(4, 6))
    others = ["random", "thumbnail", "tiny_teachers:patch_map@28", f"scores:{tmp_path / 'theirs.npy'}"]
    arguments = ["evaluate", "folders", str(benchmark), "--model", str(checkpoint), "--k", "1", "--json", "--against"]
    assert main([*arguments, *others]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert list(results) == [str(checkpoint), *others[:3], str(tmp_path / "theirs.npy")]
    assert len({result["model"]["weight_hash"] for result in results.values()}) == 5
    assert [result["settings"]["dim"] for result in results.values()] == [672, 672, 256, 48, None]
    for result in results.values():
        assert result["recall"]["recall@1"] == result["hits"]["hits@1"] / result["queries_counted"]
    assert main([*arguments, "tiny_teachers:patch_mop"]) == 2
    assert "Did you mean patch_map?" in capsys.readouterr().err


def test_photos_by_place_with_distractors(checkpoint, benchmark, tmp_path, capsys):
    for number, path in enumerate(sorted((benchmark / "database").rglob("*.jpg"))):
        place = tmp_path / "places" / str(number // 2)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{number}.jpg")
    arguments = ["evaluate", "places", str(tmp_path / "places"), "--model", str(checkpoint), "--k", "1"]
    arguments += ["--distractors", str(benchmark / "queries")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "of 6" in said
    assert "mean of 6" in said
    assert "4 more photos that show the place of no query (distractors: queries)" in said
    assert main([*arguments, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["counts"]["database"] == 10
    assert 0 < results["mean_average_precision"] <= 1
    assert len(results["ranking"]) == 6
    assert main([*arguments, "--against", "thumbnail"]) == 0
    assert "mAP" in capsys.readouterr().out


def test_queries_without_labels_are_left_out_when_told(checkpoint, benchmark, tmp_path, capsys):
    database, queries = (sorted(path.name for path in (benchmark / side).iterdir()) for side in ("database", "queries"))
    (tmp_path / "positives.json").write_text(json.dumps(dict.fromkeys(queries[:3], database)))
    arguments = ["evaluate", "--database", str(benchmark / "database"), "--queries", str(benchmark / "queries")]
    arguments += ["--positives", str(tmp_path / "positives.json"), "--model", str(checkpoint), "--k", "1"]
    assert main(arguments) == 0
    assert "3 of 4" in capsys.readouterr().out
    assert main([*arguments, "--labelled-only"]) == 0
    said = capsys.readouterr().out
    assert "3 of 3" in said
    assert "queries without positives: 1 (left out)" in said


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nordland-vg"], "Did you mean nordland-vg-10frames?"),
        (["sped"], "the folder of sped is missing"),
        (["sped", "somewhere", "--radius-m", "25"], "is a named protocol, which says itself what is right"),
        (["sped", "somewhere", "--labelled-only"], "is a named protocol, which says itself what is right"),
        (["--database", "a"], "--queries DIR"),
        (["--database", "a", "--queries", "b"], "say what is right"),
    ],
)
def test_what_evaluate_needs_is_said(arguments, complaint, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_the_query_methods_of_help_are_those_there_are():
    from d2vpr_hf.cli import evaluate
    from d2vpr_hf.evaluation import query_methods

    assert evaluate.QUERY_METHODS == query_methods.QUERY_METHODS


def test_protocols_are_listed(capsys):
    assert main(["evaluate", "--list"]) == 0
    listed = capsys.readouterr().out
    assert "msls-val-740" in listed
    assert "not verified" in listed
    assert main(["evaluate", "--list", "--json"]) == 0
    assert {"id", "title", "database", "queries"} == set(json.loads(capsys.readouterr().out)[0])


def test_verify_says_what_a_folder_is(benchmark, tmp_path, capsys):
    assert main(["verify", str(benchmark), "--protocol", "folders"]) == 0
    assert "exactly folders" in capsys.readouterr().out
    assert main(["verify", str(benchmark), "--protocol", "pitts30k-test", "--json", "--all-images"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["exact"]
    assert found["errors"]
    assert main(["verify", str(benchmark), "--protocol", "pits30k-test"]) == 2
    assert "Did you mean pitts30k-test?" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "absent")]) == 2


def test_reduce_makes_a_checkpoint_with_shorter_descriptors(checkpoint, benchmark, tmp_path, capsys):
    photos = benchmark / "database"
    out = tmp_path / "short"
    arguments = ["reduce", str(photos), str(out), "--model", str(checkpoint)]
    assert main(arguments) == 2
    assert main([*arguments, "--dim", "3", "--preset", "published"]) == 2
    assert main([*arguments, "--dim", "3", "--renormalise", "--name", "a town", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["descriptor_dim"], made["name"], made["images"]) == (3, "a town", 6)
    config = json.loads((out / "config.json").read_text())
    assert config["descriptor_dim"] == 3
    # The photos that the PCA saw are no test.
    assert main(["evaluate", "folders", str(benchmark), "--model", str(out)]) == 2
    assert "PCA" in capsys.readouterr().err


def test_reduce_whitens(checkpoint, benchmark, tmp_path, capsys):
    arguments = ["reduce", str(benchmark / "database"), "--model", str(checkpoint), "--dim", "3", "--renormalise"]
    for wrong in ("nan", "-1", "2", "half", "inf"):
        assert main([*arguments, str(tmp_path / "wrong"), f"--whitening={wrong}"]) == 2
        assert f"{wrong} must be a number from 0 to 1" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
    assert main([*arguments, str(tmp_path / "half"), "--whitening", "0.5"]) == 0
    assert "whitened: each number is divided by its variance to the power 0.5/2" in capsys.readouterr().out
    assert json.loads((tmp_path / "half" / "config.json").read_text())["pca_source"]["whitening"] == 0.5
    # 0 is what there is without the option, to the bit.
    assert main([*arguments, str(tmp_path / "none"), "--whitening", "0"]) == 0
    assert main([*arguments, str(tmp_path / "plain")]) == 0
    assert "whitened:" not in capsys.readouterr().out
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "none" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("half", "plain")]
    assert weights[0] != weights[1]
