"""Checkpoint folders open in fresh processes without network: with the package, and without it as remote code."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fresh_process import LIMIT_S

from d2vpr_hf.models.checkpoint import save_checkpoint

HEAVY = (
    *("faiss", "datasets", "accelerate", "evaluate", "kornia", "pandas", "gradio", "matplotlib"),
    *("pytorch_metric_learning", "torch", "transformers"),
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
        timeout=LIMIT_S,
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
    """transformers itself loads accelerate, where it is installed, with its Auto classes."""
    ours = run_offline(f"import sys, d2vpr_hf\n{LIST_HEAVY}", tmp_path)
    assert ours.stdout == "[]\n", ours.stdout + ours.stderr
    bare = run_offline(f"import sys\nfrom transformers import AutoImageProcessor, AutoModel\n{LIST_HEAVY}", tmp_path)
    assert set(ast.literal_eval(bare.stdout)) <= {"accelerate", "torch", "transformers"}, bare.stdout + bare.stderr
    both = run_offline(
        f"import sys, d2vpr_hf\nfrom transformers import AutoImageProcessor, AutoModel\n{LIST_HEAVY}", tmp_path
    )
    assert both.stdout == bare.stdout, both.stdout + both.stderr


KNOWN = """
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

for model_type, name in (("d2vpr", "D2Vpr"), ("cricavpr", "CricaVpr")):
    known = CONFIG_MAPPING[model_type]
    assert known.__name__ == f"{name}Config" and known.__module__.startswith("d2vpr_hf."), known
    assert MODEL_MAPPING[known].__name__ == f"{name}Model"
    assert IMAGE_PROCESSOR_MAPPING[known]["pil"].__name__ == "D2VprImageProcessor"
import d2vpr_hf, sys
assert d2vpr_hf.D2VprModel is MODEL_MAPPING[d2vpr_hf.D2VprConfig]
assert not any(type(finder).__module__.startswith("d2vpr_hf") for finder in sys.meta_path)
print("known")
"""


@pytest.mark.parametrize(
    "first",
    [
        "import d2vpr_hf",
        "from transformers import AutoModel; import d2vpr_hf",
        "from transformers import AutoConfig; import d2vpr_hf",
        # Each of these is half loaded when it, or what it imports, asks for an Auto class.
        "import d2vpr_hf; from transformers import Dinov2Model",
        "import d2vpr_hf; import transformers.modeling_layers",
        "from d2vpr_hf import D2VprModel",
    ],
)
def test_the_auto_classes_know_the_models_whatever_is_imported_first(first, tmp_path):
    result = run_offline(f"{first}\n{KNOWN}", tmp_path)
    assert result.stdout == "known\n", result.stdout + result.stderr


def test_a_model_travels_to_other_processes(checkpoint):
    """By pickle into a spawned process, which imports the module of its class alone, and into a forked one."""
    code = """
import multiprocessing, torch
import d2vpr_hf
from transformers import AutoConfig, AutoModel

def descriptors(model):
    torch.set_num_threads(1)  # sums differ in their last bit with the number of threads
    with torch.no_grad():
        return model(torch.load("expected.pt")[0]).pooler_output

def same(model, expected):
    assert torch.equal(descriptors(model), expected)
    return type(AutoConfig.from_pretrained("d2vpr")).__module__

if __name__ == "__main__":
    model = AutoModel.from_pretrained("d2vpr")
    expected = descriptors(model)
    torch.testing.assert_close(expected, torch.load("expected.pt")[1], rtol=0, atol=1e-5)
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(method, pool.apply(same, [model, expected]))
"""
    (checkpoint / "travels.py").write_text(code)
    run = run_offline("import runpy; runpy.run_path('travels.py', run_name='__main__')", checkpoint)
    where = "d2vpr_hf.models.d2vpr.configuration_d2vpr"
    assert run.stdout.splitlines() == [f"spawn {where}", f"fork {where}"], run.stdout + run.stderr
