"""Runs the example as a user would, in an empty folder, on a model that is small."""

import json
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from d2vpr_hf.models.checkpoint import save_checkpoint

EXAMPLE = Path(__file__).parents[2] / "examples" / "evaluate_benchmark.py"


def test_the_example_leaves_results_and_a_page(tmp_path, monkeypatch, capsys, tiny_model, tiny_processor):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("d2vpr", tiny_model, tiny_processor)
    runpy.run_path(str(EXAMPLE))
    said = capsys.readouterr().out
    assert "thumbnails of five crops: recall@1" in said
    assert said.count("first right answer at rank") == 3
    folder = tmp_path / "runs" / "evaluate_benchmark"
    results = json.loads((folder / "results.json").read_text())
    assert results["protocol"] == "folders"
    assert results["counts"] == {"database": 27, "database_ranked": 27, "queries": 18, "queries_ranked": 18}
    assert 0 < results["recall"]["recall@10"] <= 1
    page = (folder / "comparison.html").read_text()
    assert page.count("<svg") == 4  # two curves, and a map of each model
    assert "thumbnail" in page
    for drawing in ("recall_curves.svg", "error_map.svg"):
        assert ElementTree.parse(folder / drawing).getroot().tag == "{http://www.w3.org/2000/svg}svg"
