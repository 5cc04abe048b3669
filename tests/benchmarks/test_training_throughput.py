import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_throughput.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("training_throughput", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_loader_step_and_both_are_measured_in_one_run(script, monkeypatch, capsys):
    options = "--places 2 --images 2 --steps 2 --rounds 2 --width 32 --height 24 --workers 1 --device cpu --json"
    monkeypatch.setattr(sys, "argv", ["training_throughput.py", *options.split()])
    script.main()
    result = json.loads(capsys.readouterr().out)
    assert set(result["images_a_second"]) == set(result["all_rounds"]) == {"loader", "step", "together"}
    assert all(len(rates) == 2 and min(rates) > 0 for rates in result["all_rounds"].values())
    alone = result["images_a_second"]["loader"], result["images_a_second"]["step"]
    assert result["bound"] == pytest.approx(alone[0] * alone[1] / (alone[0] + alone[1]))
    assert result["reached"] == pytest.approx(result["images_a_second"]["together"] / result["bound"])
    assert result["settings"]["workers"] == 1
