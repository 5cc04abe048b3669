"""How many processes really run, with the launchers themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from d2vpr_hf.training.launching import check_launcher

EXAMPLE = Path(__file__).parents[2] / "examples" / "train.py"


def test_a_launcher_that_started_too_few_is_told_by_its_environment():
    launched = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    with pytest.raises(RuntimeError, match="--multi_gpu --num_processes 2"):
        check_launcher(launched)
    check_launcher(launched | {"WORLD_SIZE": "2"})
    check_launcher({"ACCELERATE_MIXED_PRECISION": "no"})
    check_launcher({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})  # somebody else's


def test_accelerate_launch_that_starts_one_of_two_processes_is_stopped(training_town, tmp_path):
    keys = f"--stage finetune --data {training_town} --model_config {{}} --output {tmp_path / 'run'}".split()
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*command, str(EXAMPLE), *keys], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode != 0
    assert "started one alone" in done.stderr
    assert not (tmp_path / "run").exists()
