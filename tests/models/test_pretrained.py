"""The package's checkpoints open in every way in which a checkpoint is opened, and are the same in each."""

import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from fresh_process import hub_environment, run_python
from loopback_hub import LoopbackHub
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModel

import d2vpr_hf
from d2vpr_hf import D2VprModel

ROOT = Path(__file__).parents[2]
NAME = "d2vpr-small"
SIZES = {"d2vpr-base": (23_000_000, 46_000_000), "d2vpr-small": (8_000_000, 16_000_000)}  # parameters, bytes, at most


@pytest.mark.parametrize("name", SIZES)
def test_it_is_found_by_name(name):
    folder = d2vpr_hf.pretrained_path(name)
    assert (folder == d2vpr_hf.pretrained_path()) == (name == "d2vpr-base")
    assert folder.parent == Path(d2vpr_hf.__file__).parent / "models/pretrained"
    there = {path.name for path in folder.iterdir()}
    assert there >= {"config.json", "model.safetensors", "preprocessor_config.json", "evaluations"}
    for unknown in ("d2vpr-large", "", "..", f"{NAME}/evaluations"):
        with pytest.raises(ValueError, match="it has d2vpr-base, d2vpr-small"):
            d2vpr_hf.pretrained_path(unknown)


@pytest.mark.parametrize("name", SIZES)
def test_it_says_how_it_was_made(name):
    there = {path.name for path in d2vpr_hf.pretrained_path(name).iterdir()}
    assert there >= {"training.json", "about.json", "comparisons"}


@pytest.mark.parametrize(("name", "most_parameters", "most_bytes"), [(name, *most) for name, most in SIZES.items()])
def test_it_is_small_and_computes_in_float32(name, most_parameters, most_bytes):
    folder = d2vpr_hf.pretrained_path(name)
    assert (folder / "model.safetensors").stat().st_size <= most_bytes
    with safe_open(folder / "model.safetensors", "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - it isn't a dict
    assert kinds <= {torch.float16, torch.int64}
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) <= most_parameters
    assert {tensor.dtype for tensor in model.state_dict().values()} <= {torch.float32, torch.int64}
    photos = [Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), quality).convert("RGB") for quality in (20, 90)]
    descriptors = model(**processor(photos, return_tensors="pt")).pooler_output
    assert descriptors.dtype == torch.float32
    assert torch.allclose(descriptors.norm(dim=1), torch.ones(2))
    assert not torch.allclose(descriptors[0], descriptors[1])


@pytest.mark.parametrize("name", SIZES)
def test_no_code_lies_in_it(name):
    """The package has it; what leaves the package gets it from `save_pretrained`."""
    files = [path for path in d2vpr_hf.pretrained_path(name).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert not [path for path in files if "auto_map" in path.read_text(errors="replace")]


PUSH = """
import d2vpr_hf
from transformers import AutoImageProcessor, AutoModel

folder = d2vpr_hf.pretrained_path("d2vpr-small")
model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
d2vpr_hf.push_model(model, processor, "me/small")
model.save_pretrained("copy")
processor.save_pretrained("copy")
"""
DESCRIBE = """
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

torch.set_grad_enabled(False)
torch.set_num_threads(1)
expected = torch.load("expected.pt")
for name in {names}:
    model = AutoModel.from_pretrained(name{trust})
    images = [Image.open(f"{{number}}.png") for number in range(len(expected))]
    pixels = AutoImageProcessor.from_pretrained(name{trust})(images, return_tensors="pt")
    found = model(**pixels).pooler_output
    assert found.dtype == torch.float32, name
    assert torch.equal(found, expected), name
    print(type(model).__module__)
"""


def test_the_same_photos_give_the_same_descriptors_wherever_it_is_opened(tmp_path):
    folder = d2vpr_hf.pretrained_path(NAME)
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    random = torch.Generator().manual_seed(0)
    images = []
    for number, (width, height) in enumerate([(150, 100), (112, 112), (70, 200)]):
        pixels = torch.randint(0, 256, (height, width, 3), generator=random, dtype=torch.uint8)
        images.append(Image.fromarray(pixels.numpy()))
        images[-1].save(tmp_path / f"{number}.png")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            expected = model(**processor(images, return_tensors="pt")).pooler_output
    finally:
        torch.set_num_threads(threads)
    assert len({tuple(row.tolist()) for row in expected}) == 3
    torch.save(expected, tmp_path / "expected.pt")
    with LoopbackHub() as hub:
        environment = hub_environment(hub.url, tmp_path / "home")
        run_python(PUSH, tmp_path, environment)
        with_package = "import d2vpr_hf\n" + DESCRIBE.format(names=[str(folder), "copy", "me/small"], trust="")
        said = run_python(with_package, tmp_path, environment).stdout
        assert said.split() == ["d2vpr_hf.models.d2vpr.modeling_d2vpr"] * 3
        trusting = "import d2vpr_hf\n" + DESCRIBE.format(names=[str(folder)], trust=", trust_remote_code=True")
        assert run_python(trusting, tmp_path, environment).stdout.split() == ["d2vpr_hf.models.d2vpr.modeling_d2vpr"]
        without = DESCRIBE.format(names=["copy", "me/small"], trust=", trust_remote_code=True")
        said = run_python(without, tmp_path, environment, package=False).stdout
        assert all(line.startswith("transformers_modules.") for line in said.split())
        assert len(said.split()) == 2
        # A push keeps the small file, and what the checkpoint says of itself.
        pushed = hub.repositories["me/small"]
    assert pushed["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    for name in ("training.json", "about.json"):
        if (folder / name).is_file():
            assert pushed[name] == (folder / name).read_bytes()


def test_another_precision_is_had_by_asking():
    folder = d2vpr_hf.pretrained_path(NAME)
    assert D2VprModel.from_pretrained(folder, dtype=torch.float16).dtype == torch.float16
    assert D2VprModel.from_pretrained(folder, dtype="auto").dtype == torch.float32


def test_wheels_and_source_archives_carry_it():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    folder = d2vpr_hf.pretrained_path(NAME).relative_to(ROOT)
    assert any(folder.is_relative_to(each) for each in build["targets"]["wheel"]["only-include"])
    assert not any(folder.is_relative_to(each.lstrip("/")) for each in build["targets"]["sdist"]["exclude"])


def test_a_built_wheel_holds_every_file_of_it(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling, which builds the wheel, isn't installed")
    (path,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    folder = d2vpr_hf.pretrained_path(NAME)
    files = [each for each in folder.rglob("*") if each.is_file() and "__pycache__" not in each.parts]
    with zipfile.ZipFile(path) as archive:
        for each in files:
            assert archive.read(f"d2vpr_hf/models/pretrained/{NAME}/{each.relative_to(folder)}") == each.read_bytes()
