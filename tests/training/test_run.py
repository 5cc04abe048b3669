"""The run's folder: metrics and their pictures, states, whole or not at all."""

import json

import numpy as np
import pytest
from accelerate import Accelerator
from made_training import arguments
from PIL import Image

from d2vpr_hf.training.run import RunFolder, drafted, draw_plots


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    found = RunFolder(tmp_path / "run")
    found.begin(arguments(tmp_path / "town", found.root))
    return found


def test_lines_after_a_state_are_forgotten_and_half_a_line_is_passed_over(folder):
    for step in (1, 2, 3):
        folder.append({"step": step, "loss": step / 2})
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in folder.records()] == [1, 2, 3]
    folder.forget_after(2)
    folder.append({"step": 3, "loss": 9})
    assert [record["loss"] for record in folder.records()] == [0.5, 1.0, 9]


def test_a_folder_appears_whole_or_not_at_all(folder):
    accelerator = Accelerator(cpu=True)
    with drafted(folder.state_folder(7), accelerator) as draft:
        (draft / "weights").write_text("all of them")
        assert folder.states() == []
    assert [path.name for path in folder.states()] == ["step-00000007"]
    assert (folder.state_folder(7) / "weights").read_text() == "all of them"
    with pytest.raises(ZeroDivisionError), drafted(folder.state_folder(8), accelerator) as draft:
        (draft / "weights").write_text("half of them" * (1 // len(folder.records())))
    assert [path.name for path in folder.states()] == ["step-00000007"]
    assert [path.name for path in folder.root.rglob("*step*")] == ["step-00000007"]


def test_a_run_that_begins_clears_what_a_killed_one_left_in_the_making(folder):
    """As `drafted`, `replacing` and version 0.1 name it."""
    for name in ("states/.step-00000008.tmp", "best/.step-00000008.tmp", "states/step-00000009.draft"):
        (folder.root / name).mkdir(parents=True)
        (folder.root / name / "model.safetensors").write_text("half")
    (folder.root / "metrics.jsonl.tmp").write_text("half")
    folder.state_folder(4).mkdir(parents=True)
    assert folder.states() == [folder.state_folder(4)]
    folder.begin(arguments("town", folder.root))
    found = {str(path.relative_to(folder.root)) for path in folder.root.rglob("*")}
    assert found == {"arguments.json", "versions.json", "states", "states/step-00000004", "best"}


def test_old_states_go(folder):
    for step in (5, 10, 100, 1000):
        (folder.state_folder(step)).mkdir(parents=True)
    folder.keep_newest_states(2)
    assert [path.name for path in folder.states()] == ["step-00000100", "step-00001000"]
    for step in (5, 100, 900):
        (folder.best_folder(step)).mkdir(parents=True)
    folder.keep_best({100, 900, -1})
    assert sorted(path.name for path in (folder.root / "best").iterdir()) == ["step-00000100", "step-00000900"]


def test_the_best_weights_replace_what_was_there(folder):
    for path, text in ((folder.best_folder(3), "new weights"), (folder.checkpoint, "old weights")):
        path.mkdir(parents=True)
        (path / "weights").write_text(text)
    folder.take_best(3)
    assert {path.name: path.read_text() for path in folder.checkpoint.iterdir()} == {"weights": "new weights"}
    assert (folder.best_folder(3) / "weights").read_text() == "new weights"
    assert [path.name for path in folder.root.glob("*check*")] == ["checkpoint"]


def test_what_was_asked_for_is_written_down(folder):
    assert json.loads((folder.root / "arguments.json").read_text())["places_per_batch"] == 4
    versions = json.loads((folder.root / "versions.json").read_text())
    assert {"d2vpr_hf", "python", "torch", "accelerate", "command"} <= versions.keys()


def picture(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_loss_and_recall_are_drawn(tmp_path):
    steps = [{"step": step, "loss": 1 / step, "mined_share": 0.5, "learning_rate": 1e-4} for step in range(1, 9)]
    validations = [{"step": 4, "validation": {"folders": {"recall@1": 0.5, "recall@5": 0.75}}, "best": True}]
    (tmp_path / "first").mkdir()
    (tmp_path / "other").mkdir()
    drawn = draw_plots(steps + validations, tmp_path / "first")
    assert [path.name for path in drawn] == ["loss.png", "recall.png"]
    other = draw_plots([{**record, "loss": 1 - record["step"] / 9} for record in steps], tmp_path / "other")
    assert [path.name for path in other] == ["loss.png"]
    first, changed = picture(drawn[0]), picture(other[0])
    assert first.std() > 5
    assert first.shape == changed.shape
    assert (first != changed).any()
    assert draw_plots([], tmp_path) == []
