"""Checkpoints come from the Hub whole and in the revision asked for, or not at all; with the package and without."""

import io
import pickle
from pathlib import Path

import pytest
import torch
from fresh_process import hub_environment, run_python
from loopback_hub import LoopbackHub
from safetensors.torch import load, save

from d2vpr_hf import D2VprImageProcessor, D2VprModel, write_release

BROKEN = {
    "missing": "missing: recovery.norm.bias",
    "unexpected": "unexpected: recovery.norm.other",
    "misshapen": "recovery.norm.bias: shape (7,), expected (48,)",
}


class Hostile:
    """Unpickled, it would leave a file."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


@pytest.fixture(scope="module")
def models():
    """Two tiny models of other weights."""
    from d2vpr_hf import D2VprConfig

    student = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56}
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = D2VprModel(D2VprConfig(backbone_config=student, recovery_layers=(1, 2, 4), aggregator_dim=48)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        made.append(model)
    return made


@pytest.fixture(scope="module")
def stocked(models, tmp_path_factory):
    """A Hub with a model in two revisions, in shards, and in all ways in which it may be broken."""
    work = tmp_path_factory.mktemp("stocked")
    with LoopbackHub() as hub:
        folders = []
        for number, (model, side) in enumerate(zip(models, (56, 84), strict=True)):
            processor = D2VprImageProcessor(size={"height": side, "width": side})
            folders.append(write_release(work / f"{number}", model, processor, "me/tiny"))
        hub.store_folder("me/tiny", folders[0])
        files = dict(hub.repositories["me/tiny"])
        hub.stored["me/tiny"].branches["v2"] = hub.stored["me/tiny"].branches["main"]
        hub.commit("me/tiny", "v2", {path: (folders[1] / path).read_bytes() for path in files}, "second")

        models[0].save_pretrained(work / "shards", max_shard_size="100KB")
        shards = {path.name: path.read_bytes() for path in (work / "shards").glob("*.safetensors*")}
        assert len(shards) > 2
        code = {path: content for path, content in files.items() if path != "model.safetensors"}
        hub.create("me/sharded")
        hub.commit("me/sharded", "main", code | shards)

        weights = load(files["model.safetensors"])
        changed = {
            "missing": {name: each for name, each in weights.items() if name != "recovery.norm.bias"},
            "unexpected": weights | {"recovery.norm.other": torch.zeros(3)},
            "misshapen": weights | {"recovery.norm.bias": torch.zeros(7)},
        }
        for name, tensors in changed.items():
            hub.create(f"me/{name}")
            hub.commit(f"me/{name}", "main", code | {"model.safetensors": save(tensors, {"format": "pt"})})
        plain = io.BytesIO()
        torch.save(weights, plain)
        for name, content in (("pickle", plain.getvalue()), ("hostile", pickle.dumps(Hostile()))):
            hub.create(f"me/{name}")
            hub.commit(f"me/{name}", "main", code | {"pytorch_model.bin": content})
        yield hub


@pytest.fixture(scope="module")
def home(stocked, tmp_path_factory, models):
    """A folder with what to expect, in which every process shares one cache."""
    folder = tmp_path_factory.mktemp("loading")
    pixels = torch.randn(2, 3, 56, 84)
    with torch.no_grad():
        torch.save([pixels, *(model(pixels).pooler_output for model in models)], folder / "expected.pt")
    return folder


# A line that breaks costs the piece that was on its way: here pieces are as small as the file is.
PIECES = "from huggingface_hub import constants\nconstants.DOWNLOAD_CHUNK_SIZE = 1000\n"
LOADING = """
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

torch.set_grad_enabled(False)
pixels, first, second = torch.load("expected.pt")

def descriptors(name, **where):
    return AutoModel.from_pretrained(name{trust}, **where)(pixels).pooler_output

assert torch.equal(descriptors("me/tiny"), first)
assert torch.equal(descriptors("me/tiny", revision="v2"), second)
assert torch.equal(descriptors("me/tiny", revision="{commit}"), second)
assert not torch.equal(first, second)
for side, where in ((56, {{}}), (84, {{"revision": "v2"}})):
    assert AutoImageProcessor.from_pretrained("me/tiny"{trust}, **where).size["height"] == side
print("revisions")
"""
REFUSING = """
assert torch.equal(descriptors("me/sharded"), first)
for name in ("missing", "unexpected", "misshapen", "pickle", "hostile"):
    try:
        descriptors(f"me/{{name}}")
    except (OSError, ValueError) as error:
        print(f"{{name}} refused:", " ".join(str(error).split()))
for where in ({{"revision": "gone"}}, {{}}):
    try:
        descriptors("me/tiny" if where else "me/gone", **where)
    except OSError as error:
        print("absent:", " ".join(str(error).split()))
"""


def check_refusals(output, folder):
    said = output.splitlines()
    for name, problem in BROKEN.items():
        (line,) = [line for line in said if line.startswith(f"{name} refused:")]
        assert problem in line
        assert f"me/{name}" in line
    for name in ("pickle", "hostile"):
        (line,) = [line for line in said if line.startswith(f"{name} refused:")]
        assert f"me/{name} holds no model.safetensors, and weights of another kind" in line
    assert not (folder / "unpickled").exists()
    gone_revision, gone_model = [line for line in said if line.startswith("absent:")]
    assert "gone is not a valid git identifier" in gone_revision
    assert "me/gone" in gone_model


def test_with_the_package_over_a_broken_line(stocked, home):
    commit = stocked.stored["me/tiny"].branches["v2"]
    stocked.break_downloads = 2
    stocked.requests.clear()
    code = PIECES + "import d2vpr_hf\n" + (LOADING + REFUSING).format(trust="", commit=commit)
    run = run_python(code, home, hub_environment(stocked.url, home / "home"))
    assert "revisions" in run.stdout.splitlines()
    check_refusals(run.stdout, home)
    # The download went on where it was cut, instead of beginning anew.
    assert stocked.break_downloads == 0
    ranges = [each for method, path, each in stocked.requests if each and path.endswith("model.safetensors")]
    size = len(stocked.repositories["me/tiny"]["model.safetensors"])
    first = size // 2 // 1000 * 1000
    assert ranges == [f"bytes={first}-", f"bytes={(size - first) // 2 // 1000 * 1000 + first}-"]


def test_without_the_package_and_then_without_a_network(stocked, home):
    commit = stocked.stored["me/tiny"].branches["v2"]
    environment = hub_environment(stocked.url, home / "home")
    trusting = LOADING.format(trust=", trust_remote_code=True", commit=commit)
    refusing = REFUSING.format()
    run = run_python(trusting + refusing, home, environment, package=False)
    check_refusals(run.stdout, home)
    asked = len(stocked.requests)
    offline = """
try:
    descriptors("me/never-asked-for")
except OSError as error:
    print("not in the cache:", " ".join(str(error).split()))
"""
    run = run_python(trusting + offline, home, environment | {"HF_HUB_OFFLINE": "1"}, package=False)
    assert "revisions" in run.stdout.splitlines()
    assert "not in the cache:" in run.stdout
    assert len(stocked.requests) == asked


def test_a_folder_with_a_pickle_alone_is_refused(tmp_path, stocked, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, content in stocked.repositories["me/hostile"].items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(content)
    with pytest.raises(OSError, match=r"model holds no model\.safetensors.*unpickling runs whatever code"):
        D2VprModel.from_pretrained(tmp_path / "model")
    assert not (tmp_path / "unpickled").exists()
    # It would have left its file.
    pickle.loads(stocked.repositories["me/hostile"]["pytorch_model.bin"])
    assert (tmp_path / "unpickled").exists()
