"""`d2vpr train` and examples/train.py, as they are typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_training import STUDENT, draw_training_town, draw_validation_town

from d2vpr_hf.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def town(tmp_path_factory) -> Path:
    return draw_training_town(tmp_path_factory.mktemp("town") / "town")


@pytest.fixture
def config(town, tmp_path) -> Path:
    lines = {
        "stage": "finetune",
        "data": [str(town)],
        "model_config": STUDENT,
        "image_size": 56,
        "places_per_batch": 4,
        "images_per_place": 2,
        "epochs": 1,
        "workers": 0,
        "threads": 1,
        "tracker": "none",
        "learning_rate": "1e-3",
    }
    path = tmp_path / "mine.yaml"
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items()))
    return path


def test_a_file_runs_and_the_command_line_wins(config, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "--config", str(config), "--output", str(out), "--epochs", "2", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["steps"] == 6
    assert Path(result["checkpoint"]).is_dir()
    resolved = json.loads((out / "arguments.json").read_text())
    assert (resolved["epochs"], resolved["learning_rate"]) == (2, 1e-3)
    assert "1 process on cpu" in printed.err
    assert main(["train", "--config", str(config), "--output", str(out), "--epochs", "2", "--resume"]) == 0
    assert "the weights of step 6 of 6" in capsys.readouterr().out
    assert main(["train", "--resume", "--output", str(out)]) == 0
    assert "the weights of step 6 of 6" in capsys.readouterr().out


def test_a_teacher_of_ones_own_is_found_in_the_working_directory(config, tmp_path, capsys, monkeypatch):
    lines = ["import torch", "class Colours:", "    name, width = 'colours', 3", "    def feature_map(self, pixels):"]
    lines += ["        return torch.nn.functional.avg_pool2d(pixels, 14) + 3", "def make():", "    return Colours()"]
    (tmp_path / "teacher_of_mine.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    words = ["--stage", "distill", "--teacher", "teacher_of_mine:make", "--output", "run"]
    assert main(["train", "--config", str(config), *words]) == 0
    assert "The teacher is colours" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lerning_rate", "1"], "Did you mean --learning_rate?"),
        (["--learning-rate", "fast"], "learning_rate is 'fast'"),
        (["--stage", "distill", "--head_dim", "8"], "head_dim is for stage finetune"),
        (["--stage", "pretrain"], "there are distill, finetune"),
        (["--alpha", "1", "--stage", "distill", "--teacher", "x"], "alpha, which is a key of another stage"),
    ],
)
def test_what_is_wrong_is_named(config, words, message, capsys):
    assert main(["train", "--config", str(config), *words]) == 2
    assert message in capsys.readouterr().err


def test_broken_files_and_keys_without_a_stage_are_named(tmp_path, capsys):
    broken = tmp_path / "broken.yaml"
    for text, message in (
        ("stage: [", "isn't YAML"),
        ("- a\n- b\n", "holds no keys"),
        ("stage: finetune\ndat: x\n", "'dat'"),
    ):
        broken.write_text(text)
        assert main(["train", "--config", str(broken)]) == 2
        assert message in capsys.readouterr().err
    assert main(["train", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml. Give --config a YAML file" in capsys.readouterr().err
    assert main(["train", "--resume", "--output", str(tmp_path / "nowhere")]) == 2
    assert "holds no training run" in capsys.readouterr().err
    assert main(["train", "--epochs", "3"]) == 2
    assert "--epochs needs to know what to train" in capsys.readouterr().err


def test_help_explains_every_key(capsys):
    from d2vpr_hf.training.arguments import STAGES
    from d2vpr_hf.training.keys import documented_keys

    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for key in documented_keys(STAGES):
        assert f"--{key.name} " in text or f"--{key.name}\n" in text, key.name
    assert "BatchNorm normalises by each" in text
    assert "CUDA only" in text
    assert "--places-per-batch" not in text


def test_two_processes_train_one_model(config, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.accelerate_cli",
        "launch",
        "--multi_gpu",
        "--num_processes",
        "2",
    ]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    out = tmp_path / "run"
    keys = ["--config", str(config), "--output", str(out), "--validation", f"folders={tmp_path / 'val'}", "--json"]
    draw_validation_town(tmp_path / "val")
    done = subprocess.run(
        [*launch, str(ROOT / "examples" / "train.py"), *keys, "--places_per_batch", "2", "--save_every", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes on cpu" in done.stderr
    result = json.loads(done.stdout)
    assert result["steps"] == 3
    assert result["best_recall"] > 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (step,) = [record["step"] for record in records if "loss" in record]
    assert step == 3
    assert {path.name for path in (out / "states" / "step-00000003").glob("random_states_*")} == {
        "random_states_0.pkl",
        "random_states_1.pkl",
    }
