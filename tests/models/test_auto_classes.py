"""Checkpoint folders open in fresh processes without network: with the package, and without it as remote code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2vpr_hf.models.checkpoint import save_checkpoint

HEAVY = (
    *("faiss", "datasets", "accelerate", "evaluate", "kornia", "pandas", "gradio", "matplotlib"),
    "pytorch_metric_learning",
)
LIST_HEAVY = f"print(sorted(name for name in {HEAVY} if name in sys.modules))"

# The package's own finder is taken off the path, as where it was never installed.
WITHOUT_PACKAGE = """
import importlib.util, sys
sys.path = [entry for entry in sys.path if not entry.rstrip("/").endswith("src")]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("d2vpr_hf") is None, importlib.util.find_spec("d2vpr_hf")
"""
COMPARE = """
import torch
from transformers import AutoImageProcessor, AutoModel, pipeline
from PIL import Image

torch.set_grad_enabled(False)
pixels, expected, photo_expected = torch.load("expected.pt")
model = AutoModel.from_pretrained("d2vpr"{trust})
assert type(model).__module__.startswith("{module}"), type(model)
assert torch.equal(model(pixels).pooler_output, expected)
processor = AutoImageProcessor.from_pretrained("d2vpr"{trust})
photo = Image.open("photo.png")
assert torch.equal(model(**processor(photo, return_tensors="pt")).pooler_output, photo_expected)
extractor = pipeline("image-feature-extraction", model="d2vpr", pool=True{trust})
descriptor = extractor("photo.png", return_tensors=True)
torch.testing.assert_close(descriptor, photo_expected, rtol=0, atol=1e-6)
print("same descriptors")
"""


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tiny_processor):
    from PIL import Image

    save_checkpoint(tmp_path / "d2vpr", tiny_model, tiny_processor)
    photo = Image.effect_noise((80, 60), 90).convert("RGB")
    photo.save(tmp_path / "photo.png")
    pixels = torch.randn(2, 3, 56, 84)
    with torch.no_grad():
        described = tiny_model(**tiny_processor(photo, return_tensors="pt")).pooler_output
        torch.save((pixels, tiny_model(pixels).pooler_output, described), tmp_path / "expected.pt")
    return tmp_path


def run_offline(code: str, folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )


def test_a_folder_named_d2vpr_opens_with_the_package(checkpoint):
    code = "import d2vpr_hf\n" + COMPARE.format(trust="", module="d2vpr_hf.")
    result = run_offline(code, checkpoint)
    assert result.stdout.splitlines()[-1:] == ["same descriptors"], result.stdout + result.stderr
    assert "custom code" not in result.stdout + result.stderr


def test_remote_code_opens_without_the_package(checkpoint):
    code = WITHOUT_PACKAGE + COMPARE.format(trust=", trust_remote_code=True", module="transformers_modules.")
    result = run_offline(code, checkpoint)
    assert result.stdout.splitlines()[-1:] == ["same descriptors"], result.stdout + result.stderr


def test_remote_code_loads_strictly_too(checkpoint):
    config = checkpoint / "d2vpr" / "config.json"
    config.write_text(
        config.read_text().replace('"recovery_layers": [\n    1,', '"recovery_layers": [\n    1,\n    3,')
    )
    code = WITHOUT_PACKAGE + (
        "from transformers import AutoModel\ntry:\n    AutoModel.from_pretrained('d2vpr', trust_remote_code=True)\n"
        "except ValueError as error:\n    print('refused', error)"
    )
    result = run_offline(code, checkpoint)
    assert "refused" in result.stdout, result.stdout + result.stderr
    assert "recovery.projection.weight: shape (48, 96), expected (48, 128)" in result.stdout


def test_a_remote_model_saves_its_code_on(checkpoint):
    code = WITHOUT_PACKAGE + (
        "from transformers import AutoModel\n"
        "AutoModel.from_pretrained('d2vpr', trust_remote_code=True).save_pretrained('again')"
    )
    result = run_offline(code, checkpoint)
    assert result.returncode == 0, result.stderr
    written = {path.name for path in (checkpoint / "again").iterdir()}
    assert written == {path.name for path in (checkpoint / "d2vpr").iterdir()}


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    """transformers itself loads accelerate, where it is installed, with the Auto classes that registering needs."""
    bare = run_offline(f"import sys\nfrom transformers import AutoImageProcessor, AutoModel\n{LIST_HEAVY}", tmp_path)
    assert bare.stdout.strip() in ("[]", "['accelerate']"), bare.stdout + bare.stderr
    ours = run_offline(f"import sys, d2vpr_hf\nassert 'torch' in sys.modules\n{LIST_HEAVY}", tmp_path)
    assert ours.stdout == bare.stdout, ours.stdout + ours.stderr
