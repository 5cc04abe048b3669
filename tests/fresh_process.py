"""Python in a process of its own, as a user starts it: with the Hub of a test, and without the package if asked."""

import os
import subprocess
import sys
from pathlib import Path

# A busy machine takes minutes for what takes seconds; only what hangs takes so long.
LIMIT_S = 3600

# The package's own finder is taken off the path, as where it was never installed.
WITHOUT_PACKAGE = """
import importlib.util, sys
sys.path = [entry for entry in sys.path if not entry.rstrip("/").endswith("src")]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("d2vpr_hf") is None, importlib.util.find_spec("d2vpr_hf")
"""


def hub_environment(url: str, home: Path, **more: str) -> dict[str, str]:
    """The variables of a process that takes `url` for the Hub, logged in as me, with caches of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE_"))}
    return kept | {
        "HF_ENDPOINT": url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_x",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        **more,
    }


def run_python(
    code: str, folder: Path, environment: dict[str, str], *, package: bool = True
) -> subprocess.CompletedProcess:
    """Runs code in a folder, and shows what it said if it fails."""
    run = subprocess.run(
        [sys.executable, "-c", ("" if package else WITHOUT_PACKAGE) + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run
