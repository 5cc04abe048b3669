"""How many processes really run, with the launchers themselves, and the memory that a process keeps."""

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


SCRIPT = """
import resource
import torch
from d2vpr_hf.training.launching import keep_freed_memory

def faults_of_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_steps()
before = faults_of_steps()
print(keep_freed_memory())
faults_of_steps()
print(before, faults_of_steps())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems keep memory in their own way")
def test_memory_that_a_step_frees_is_not_asked_for_again():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    taken, counts = run.stdout.splitlines()
    if taken == "False":
        pytest.skip("this C library has no mallopt")
    before, after = map(int, counts.split())
    # Each step touches 16,384 pages of 4 KiB, or 32 of 2 MiB.
    assert before > 20 * 16
    assert after < before / 10
