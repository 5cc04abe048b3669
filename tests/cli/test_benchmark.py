"""`d2vpr benchmark`: one table of counts and times, the paper's figures beside ours, and the same as JSON."""

import json

import pytest
from transformers import AutoModel

from d2vpr_hf import CricaVprConfig, CricaVprModel, D2VprConfig, D2VprModel
from d2vpr_hf.cli import benchmark
from d2vpr_hf.cli.main import main
from d2vpr_hf.evaluation import cost
from d2vpr_hf.evaluation.cost import time_models
from d2vpr_hf.models.checkpoint import save_checkpoint


@pytest.fixture
def model(tmp_path, tiny_model, tiny_processor) -> str:
    """A checkpoint folder of the tiny model, whose processor makes 56 x 56 pixels."""
    return str(save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor))


def test_the_papers_parameters_come_out_exactly_and_its_flops_are_explained(model, tmp_path, capsys):
    assert main(["benchmark", "--rounds", "0", "--model", model, "--save", str(tmp_path / "saved")]) == 0
    text = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    bytes_each = "43,008"
    assert lines["student"][1:] == ["224x224", "27.21", "M", "-74.5", "%", "7.053", "-72.5", "%", bytes_each]
    counted = ["224x224", "38.24", "M", "-64.2", "%", "7.207", "-71.9", "%", bytes_each]
    assert lines["student with encoder"][3:] == counted
    assert lines["teacher"][1:] == ["224x224", "106.76", "M", "25.661", bytes_each]
    assert lines[model][1] == "56x56"
    assert "the paper: -64.2 % parameters and -62.6 % FLOPs" in text
    assert "38.24 of 106.76 million, -64.2 %" in text
    assert "9.79 of 25.66, -61.8 %" in text
    assert "9.12 of 24.37, -62.6 %" in text
    saved = json.loads((tmp_path / "saved" / "benchmark.json").read_text())
    assert [row["name"] for row in saved["models"]] == ["student", "student with encoder", "teacher", model]
    assert [row["parameters"] for row in saved["models"][:3]] == [27_211_621, 38_239_589, 106_761_665]
    assert saved["models"][1]["to_teacher"]["parameters"] == 38_239_589 / 106_761_665 - 1
    assert saved["models"][3]["descriptor_bytes"] == 4 * 14 * 48
    assert all(row["median_ms"] == {} for row in saved["models"])


def test_times_stand_beside_the_counts(model, tiny_config, monkeypatch, capsys):
    asked = {}

    def times(models, batch_sizes, **settings):
        asked.update(settings, batch_sizes=batch_sizes)
        return time_models(models, batch_sizes, **settings)

    monkeypatch.setattr(cost, "time_models", times)
    monkeypatch.setattr(benchmark, "_models", lambda options: tiny_models(options, tiny_config, model))
    words = ["benchmark", "--batch-sizes", "1", "4", "--rounds", "2", "--size", "56", "84", "--dtype", "bfloat16"]
    assert main([*words, "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    names = ["student", "student with encoder", "teacher", "own"]
    sizes = dict.fromkeys(names, (56, 84))
    assert asked == {"batch_sizes": [1, 4], "rounds": 2, "device": "cpu", "dtype": "bfloat16", "sizes": sizes}
    rows = {row["name"]: row for row in result["models"]}
    assert list(rows) == names
    teacher = rows["teacher"]["median_ms"]
    assert teacher.keys() == {"1", "4"}
    for row in rows.values():
        assert (row["height"], row["width"]) == (56, 84)
        assert min(row["median_ms"].values()) > 0
        assert row["to_teacher"]["median_ms"] == {size: row["median_ms"][size] / teacher[size] - 1 for size in teacher}
    assert result["settings"] == {"rounds": 2, "device": "cpu", "dtype": "bfloat16"}
    assert main([*words, "--device", "cpu"]) == 0
    assert "ms, batch 1" in capsys.readouterr().out


def tiny_models(options, config, own):
    encoder = D2VprConfig(**{**config.to_dict(), "cross_image_encoder": True})
    backbone = {**config.backbone_config.to_dict(), "hidden_size": 96}
    models = {
        benchmark.STUDENT: D2VprModel(config),
        benchmark.STUDENT_WITH_ENCODER: D2VprModel(encoder),
        benchmark.TEACHER: CricaVprModel(CricaVprConfig(backbone_config=backbone, region_sampling="dense")),
        "own": AutoModel.from_pretrained(own),
    }
    return models, dict.fromkeys(models, tuple(options.size))


def test_a_model_is_measured_once_and_must_be_one(model, capsys):
    assert main(["benchmark", "--rounds", "0", "--model", model, "--model", model]) == 2
    assert "Give each model once" in capsys.readouterr().err
    assert main(["benchmark", "--rounds", "0", "--model", "missing"]) == 2
    assert "there is no model 'missing'" in capsys.readouterr().err
    assert main(["benchmark", "--rounds", "0", "--size", "100", "224"]) == 2
    assert "14" in capsys.readouterr().err
