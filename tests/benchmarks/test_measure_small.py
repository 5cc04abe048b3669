import importlib.util
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2vpr_hf.cli.main import main
from d2vpr_hf.hub.records import read_comparisons
from d2vpr_hf.models.checkpoint import save_checkpoint
from d2vpr_hf.retrieval.embedder import weight_hash

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "measure_small.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("measure_small", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def paint(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_figures_are_those_of_the_commands_it_prints(script, tmp_path, tiny_model, tiny_processor, monkeypatch, capsys):
    checkpoint = save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor)
    data = tmp_path / "data"
    toy = data / "toy_san_francisco" / "toy_dataset"
    for number in range(1, 15):
        paint(toy / "database" / f"db{number}.jpg", number)
    for number in range(1, 6):
        paint(toy / "queries" / f"q{number}.jpg", 20 + number)
    for seed, name in enumerate(("berlin/images/01", "berlin/images/02", "lund/images/01", "lund/images/02"), 30):
        paint(data / "opensfm" / "data" / f"{name}.jpg", seed)
    paint(data / "training" / "photos" / "0.jpg", 40)
    out = tmp_path / "out" / "measured.json"
    arguments = [str(checkpoint), str(data), str(out), "--network", "tiny_teachers:patch_map@28"]
    arguments += ["--comparisons", str(tmp_path / "tables")]
    monkeypatch.setattr(sys, "argv", ["measure_small.py", *arguments])
    script.main()
    said = capsys.readouterr()
    assert "left out: corridor" in said.err
    measured = json.loads(out.read_text())
    assert list(measured["sets"]) == ["toy_san_francisco", "opensfm"]
    assert {row["queries"] for row in measured["rows"] if row["set"] == "toy_san_francisco"} == {4}
    assert len(measured["rows"]) == 2 * 4
    assert set(measured["sets"]["opensfm"]["by_place"][str(checkpoint)]) == {"berlin", "lund"}
    assert measured["markdown"] in said.out
    for name, each in measured["sets"].items():
        assert each["command"] in said.out
        assert main([*shlex.split(each["command"])[1:], "--json"]) == 0
        again = json.loads(capsys.readouterr().out)
        for row in (row for row in measured["rows"] if row["set"] == name):
            assert again["results"][row["model"]]["hits"] == row["hits"]
            assert again["results"][row["model"]]["mean_average_precision"] == row["mean_average_precision"]

    tables = read_comparisons(sorted((tmp_path / "tables").iterdir()), weight_hash(tiny_model))
    by_name = {table["name"]: table for table in tables.values()}
    assert list(by_name) == ["opensfm, berlin", "opensfm, lund", "opensfm", "toy_san_francisco"]
    assert [row["of"] for row in by_name["toy_san_francisco"]["rows"]] == [4] * 4
    assert by_name["opensfm, lund"]["counts"] == {"database": 24, "queries": 2}
    assert by_name["toy_san_francisco"]["counts"]["queries"] == 4
    methods = ["tiny", "random weights", "grey thumbnail, 16x16", "tiny_teachers:patch_map@28 + GeM"]
    assert [row["method"] for row in by_name["opensfm"]["rows"]] == methods
    precisions = {row["method"]: row["value"] for row in by_name["opensfm, lund"]["rows"]}
    places = measured["sets"]["opensfm"]["by_place"]
    assert list(precisions.values()) == [each["lund"]["mean_average_precision"] for each in places.values()]


def test_nothing_to_measure_is_said(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["measure_small.py", "tiny", str(tmp_path), str(tmp_path / "out.json")])
    with pytest.raises(SystemExit, match="holds none of the sets"):
        script.main()
