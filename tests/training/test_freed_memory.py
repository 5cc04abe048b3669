"""What is freed stays with the process, in a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import torch
from d2vpr_hf.training.freed_memory import keep_freed_memory

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
