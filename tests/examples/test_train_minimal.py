"""Runs the example as a user would, small, and opens what it leaves."""

import subprocess
import sys
from pathlib import Path

from transformers import AutoModel

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_minimal.py"


def test_both_stages_run_and_leave_a_checkpoint(tmp_path):
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 140
    words = ["--places", "8", "--places-per-batch", "4", "--epochs", "2", "--workers", "0"]
    done = subprocess.run([sys.executable, str(EXAMPLE), *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith(("distill", "finetune", "after"))]
    steps = [f"{stage}, epoch {epoch}" for stage in ("distill", "finetune") for epoch in (1, 2)]
    assert [line.split(":")[0] for line in lines] == [*steps[:2], "after distill", *steps[2:], "after finetune"]
    first, second = (float(line.rsplit(" ", 1)[1]) for line in lines[:2])
    assert 0 < second < first
    assert AutoModel.from_pretrained(tmp_path / "runs/minimal/checkpoint").config.aggregator_dim == 96
