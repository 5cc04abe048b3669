import dataclasses
import json
import os
import re

import numpy as np
import pytest
from made_evaluation import made_evaluation
from PIL import Image

from d2vpr_hf.evaluation.baselines import SquashProcessor, peer_embedder
from d2vpr_hf.evaluation.compare import Comparison, compare_models
from d2vpr_hf.evaluation.protocol import folder_protocol
from d2vpr_hf.evaluation.run import evaluate_protocol
from d2vpr_hf.reports.pages import comparison_page, evaluation_page


class Thumbnail:
    """A peer whose descriptor is the photo itself, at a size."""

    def __init__(self, side):
        self.name = f"thumbnail {side}"
        self.processor = SquashProcessor(side, side)

    def encode(self, images):
        return images.flatten(1)


BETTER = [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [2, 5, 4, 0, 1], [0, 1, 2, 4, 5]]


def test_differences_are_paired_and_signed():
    comparison = Comparison({"first": made_evaluation(), "better": made_evaluation(BETTER), "same": made_evaluation()})
    assert comparison.model == "first"
    assert comparison.differences.keys() == {"better", "same"}
    # The model minus the other, which is better by one of four queries at 1, by none at 3 and 5.
    difference, (low, high) = comparison.differences["better"][1]
    assert difference == -0.25
    assert -1 <= low < difference < high == 0
    assert comparison.differences["better"][3] == (0.0, (0.0, 0.0))
    assert comparison.differences["same"][1] == (0.0, (0.0, 0.0))


def test_one_table_for_people_and_one_file_for_programs(tmp_path):
    comparison = Comparison(
        {"first": made_evaluation(), "bett|er": made_evaluation(BETTER, dim=10752, image_size=None)}
    )
    markdown = comparison.markdown()
    assert "| first | 16 | 56x70 | 50.0 | 75.0 | 75.0 | 2 of 4 |  |" in markdown
    assert "| bett/er | 10,752 | own | 75.0 | 75.0 | 75.0 | 3 of 4 | -25.0 (-75.0 to +0.0) |" in markdown
    assert "The number of photos is not verified (made)." in markdown
    saved = json.loads(comparison.save(tmp_path / "deep").read_text())
    assert saved["model"] == "first"
    assert saved["differences"]["bett|er"]["recall@1"]["difference"] == -0.25
    assert saved["results"]["first"]["recall"] == {"recall@1": 0.5, "recall@3": 0.75, "recall@5": 0.75}
    assert saved["results"]["first"]["hits"] == {"hits@1": 2, "hits@3": 3, "hits@5": 3}
    assert saved["results"]["first"]["first_hits"] == [1, 1, 3, 0]
    assert saved["queries"] == ["query0.jpg", "query1.jpg", "query2.jpg", "query3.jpg"]
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["comparison.json"]


def test_a_command_line_whose_bytes_are_no_utf_8_is_kept(tmp_path):
    given = ["d2vpr", "evaluate", os.fsdecode(b"photos-\xff")]
    odd = dataclasses.replace(made_evaluation(), command=given)
    assert json.loads(odd.save(tmp_path).read_text())["command"] == given
    saved = json.loads(Comparison({"first": odd, "second": made_evaluation()}).save(tmp_path).read_text())
    assert saved["results"]["first"]["command"] == given


def test_pages_hold_all_they_show():
    first, better = made_evaluation(name="<b>first</b>"), made_evaluation(BETTER)
    page = evaluation_page(first)
    assert page.count("<svg") == 3  # two curves and a map
    assert "50.0 %" in page
    assert "0.0 to 100.0 %" in page
    both = comparison_page(Comparison({"<b>first</b>": first, "second": better}))
    assert both.count("<svg") == 4
    assert "-25.0" in both
    for each in (page, both):
        assert "<b>first" not in each
        assert "&lt;b&gt;first" in each
        assert "<script" not in each
        assert not re.search(r"url\((?!#)", each)
        names = {"://www.w3.org/2000/svg", "://www.w3.org/1999/xlink"}
        assert {part.split('"')[0] for part in each.split("http")[1:]} <= names
    with pytest.raises(ValueError, match="without labels"):
        evaluation_page(made_evaluation(labels=False))


def test_models_are_compared_on_the_same_photos(tmp_path):
    random = np.random.default_rng(0)
    for folder, noise in (("database", 0), ("queries", 100)):
        (tmp_path / folder).mkdir()
        for row in range(6):
            pixels = np.random.default_rng(row).integers(0, 156, (16, 16, 3))
            pixels = pixels + random.integers(0, noise + 1, pixels.shape)
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{row}.png")
    positives = {f"{row}.png": [f"{row}.png"] for row in range(6)}
    protocol = folder_protocol(tmp_path / "database", tmp_path / "queries", positives=positives)
    models = {peer.name: peer_embedder(peer, workers=1) for peer in (Thumbnail(1), Thumbnail(16))}
    options = {"ks": (1, 3), "progress": False}
    comparison = compare_models(protocol, models, cache=tmp_path / "cache", **options)
    assert comparison.evaluations["thumbnail 16"].recall[1] == 1
    assert comparison.evaluations["thumbnail 1"].recall[1] < 1
    alone = evaluate_protocol(protocol, models["thumbnail 1"], **options)
    np.testing.assert_array_equal(alone.ranking, comparison.evaluations["thumbnail 1"].ranking)
    assert [each.settings["dim"] for each in comparison.evaluations.values()] == [3, 768]
    with pytest.raises(ValueError, match="1 model given"):
        compare_models(protocol, dict(list(models.items())[:1]), **options)
    unlabelled = folder_protocol(tmp_path / "database", tmp_path / "queries", labels=False)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_models(unlabelled, models, **options)
