"""A model that ends in a PCA or a head: shorter descriptors wherever the checkpoint goes, and nothing without one."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from fresh_process import LIMIT_S
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from d2vpr_hf import D2VprConfig, D2VprModel

DIM, FULL = 8, 14 * 48
STUDENT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56}
SOURCE = {
    "name": "made/train",
    "images": 5,
    "files_sha256": "ab" * 32,
    "seed": 3,
    "renormalise": False,
    "whitening": 0.5,
    "variance_kept": 0.75,
}


@pytest.fixture
def images():
    return torch.randn(3, 3, 56, 84, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pca():
    """(mean, components, files) of a PCA to 8 numbers."""
    random = torch.Generator().manual_seed(2)
    components = torch.linalg.qr(torch.randn(FULL, DIM, generator=random)).Q.T.contiguous()
    files = torch.randint(-(2**62), 2**62, (5, 2), generator=random)
    return 0.02 * torch.randn(FULL, generator=random), components, files


@pytest.fixture
def reduced(tiny_model, pca):
    tiny_model.add_reduction(*pca, SOURCE)
    return tiny_model


@pytest.fixture
def headed(tiny_model):
    tiny_model.add_head(DIM, seed=1)
    return tiny_model


@pytest.fixture
def nested(tiny_model):
    tiny_model.add_head(DIM, seed=1, nested_dims=(3, DIM, 5))
    return tiny_model


def described(model, images):
    with torch.no_grad():
        return model(images).pooler_output


@pytest.mark.parametrize("renormalise", [False, True])
def test_descriptors_are_the_components_of_the_full_ones(tiny_model, images, pca, renormalise):
    full = described(tiny_model, images).double()
    tiny_model.add_reduction(*pca, SOURCE | {"renormalise": renormalise})
    expected = (full - pca[0].double()) @ pca[1].double().T
    if renormalise:
        expected /= expected.norm(dim=1, keepdim=True)
    found = described(tiny_model, images)
    assert found.dtype == torch.float32
    assert found.shape == (3, DIM) == (3, tiny_model.config.descriptor_dim)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    assert torch.pdist(found).min() > 1e-3
    # Without renormalising nothing is of unit length: the mean is gone.
    assert renormalise == bool((found.norm(dim=1) - 1).abs().max() < 1e-5)


def test_a_reduced_descriptor_is_the_same_alone_and_in_company(reduced, images):
    alone = torch.cat([described(reduced, image[None]) for image in images])
    torch.testing.assert_close(described(reduced, images), alone, rtol=0, atol=1e-6)


def test_everything_but_the_descriptor_stays(tiny_model, images, pca):
    with torch.no_grad():
        before = tiny_model(images)
        tiny_model.add_reduction(*pca, SOURCE)
        after = tiny_model(images)
    for name in ("last_hidden_state", "region_boxes", "region_features", "regional_descriptors"):
        assert torch.equal(after[name], before[name])


def test_saved_and_loaded_to_the_bit(tmp_path, reduced, images, pca):
    reduced.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.descriptor_dim, config.regional_dim, config.pca_source) == (DIM, FULL, SOURCE)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(loaded.reduction.files, pca[2])
    assert torch.equal(described(loaded, images), described(reduced, images))


@pytest.mark.parametrize("end", ["reduced", "headed", "nested"])
def test_remote_code_gives_the_same_short_descriptors(tmp_path, request, end, images):
    model = request.getfixturevalue(end)
    model.save_pretrained(tmp_path / "d2vpr")
    arguments = {"descriptor_dim": 5} if end == "nested" else {}
    if end == "nested":
        model = AutoModel.from_pretrained(tmp_path / "d2vpr", **arguments)
    torch.save((images, described(model, images), arguments), tmp_path / "expected.pt")
    code = """
import importlib.util, sys
sys.path = [entry for entry in sys.path if not entry.rstrip("/").endswith("src")]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("d2vpr_hf") is None
import torch
from transformers import AutoModel
images, expected, arguments = torch.load("expected.pt")
model = AutoModel.from_pretrained("d2vpr", trust_remote_code=True, **arguments)
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    assert torch.equal(model(images).pooler_output, expected)
print(tuple(expected.shape), model.config.pca_source and model.config.pca_source["name"], model.config.head_dim)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    expected = {"reduced": "(3, 8) made/train None", "headed": "(3, 8) None 8", "nested": "(3, 5) None 8"}[end]
    assert result.stdout.strip() == expected, result.stdout + result.stderr


@pytest.mark.parametrize("name", ["mean", "components", "files"])
@pytest.mark.parametrize("model_class", [D2VprModel, AutoModel])
def test_a_checkpoint_without_all_of_its_pca_never_loads(tmp_path, reduced, name, model_class):
    reduced.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    tensor = weights.pop(f"reduction.{name}")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"missing: reduction\.{name}"):
        model_class.from_pretrained(tmp_path)
    weights[f"reduction.{name}"] = tensor[1:].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"reduction\.{name}: shape \({len(tensor) - 1},.*expected \({len(tensor)},"):
        model_class.from_pretrained(tmp_path)


def test_a_pca_stays_behind_on_no_request(tmp_path, reduced):
    reduced.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"unexpected: reduction\.components"):
        AutoModel.from_pretrained(tmp_path, pca_source=None, descriptor_dim=None)
    with pytest.raises(ValueError, match=r"reduction\.components: shape \(8, 672\), expected \(4, 672\)"):
        AutoModel.from_pretrained(tmp_path, descriptor_dim=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_pca_stays_in_float32(tmp_path, reduced, images, dtype):
    exact = described(reduced, images)
    with torch.autocast("cpu", dtype=dtype):
        autocast = described(reduced, images)
    assert autocast.dtype == torch.float32
    assert 0 < (autocast - exact).abs().max() < 0.02
    reduced.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.recovery.norm.weight.dtype == dtype
    assert loaded.reduction.components.dtype == loaded.reduction.mean.dtype == torch.float32
    assert loaded.reduction.files.dtype == torch.int64
    halved = described(loaded, images.to(dtype))
    assert halved.dtype == torch.float32
    assert (halved - exact).abs().max() < 0.02


def test_a_pca_is_no_parameter(tiny_model, pca):
    """What is no parameter isn't trained, counted or decayed."""
    before = tiny_model.num_parameters()
    tiny_model.add_reduction(*pca, SOURCE)
    assert tiny_model.num_parameters() == before
    assert not [name for name, _ in tiny_model.named_parameters() if name.startswith("reduction")]
    assert {name for name in tiny_model.state_dict() if name.startswith("reduction")} == {
        "reduction.mean",
        "reduction.components",
        "reduction.files",
    }


def test_gradients_pass_the_pca(reduced, images):
    described = reduced.train()(images).pooler_output
    assert described.requires_grad
    described.square().sum().backward()
    assert reduced.recovery.projection.weight.grad.abs().max() > 0


def test_a_second_pca_and_one_of_other_descriptors_are_refused(tiny_model, pca):
    mean, components, files = pca
    with pytest.raises(ValueError, match=r"'mean': \(671,\)"):
        tiny_model.add_reduction(mean[1:], components, files, SOURCE)
    with pytest.raises(ValueError, match=r"'files': \(4, 2\)"):
        tiny_model.add_reduction(mean, components, files[1:], SOURCE)
    # What was refused has changed nothing.
    assert tiny_model.config.pca_source is None
    assert not hasattr(tiny_model, "reduction")
    tiny_model.add_reduction(mean, components, files, SOURCE)
    with pytest.raises(ValueError, match="ends in a PCA to 8 numbers already, fitted on made/train"):
        tiny_model.add_reduction(mean, components, files, SOURCE)


def test_a_model_without_checkpoint_keeps_the_first_numbers(tiny_config, images):
    torch.manual_seed(0)
    full = D2VprModel(tiny_config).eval()
    short = D2VprModel(type(tiny_config)(**tiny_config.to_dict() | {"descriptor_dim": DIM, "pca_source": SOURCE}))
    short.load_state_dict(full.state_dict(), strict=False)
    assert torch.equal(described(short.eval(), images), described(full, images)[:, :DIM])


def test_the_length_follows_the_width_without_a_pca():
    assert D2VprConfig(aggregator_dim=96).descriptor_dim == D2VprConfig(aggregator_dim=96).regional_dim == 14 * 96
    assert D2VprConfig(descriptor_dim=10_752).pca_source is None
    # Of a checkpoint from before there was whitening.
    before = {name: value for name, value in SOURCE.items() if name != "whitening"}
    assert D2VprConfig(descriptor_dim=512, pca_source=before).pca_source == SOURCE | {"whitening": 0.0}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"descriptor_dim": 512}, r"descriptor_dim is 512, but without a PCA .* 14 \* aggregator_dim = 10752"),
        ({"descriptor_dim": 0, "pca_source": SOURCE}, "gives 1 to 10752"),
        ({"descriptor_dim": 10_753, "pca_source": SOURCE}, "gives 1 to 10752"),
        ({"descriptor_dim": 512, "pca_source": {"name": "x"}}, "entries: files_sha256, images, renormalise, seed"),
        ({"descriptor_dim": 512, "pca_source": SOURCE | {"renormalize": True}}, "entries: renormalize"),
        ({"descriptor_dim": 512, "pca_source": SOURCE | {"renormalise": "no"}}, "entries: renormalise"),
        ({"descriptor_dim": 512, "pca_source": SOURCE | {"whitening": "half"}}, "entries: whitening"),
        ({"descriptor_dim": 512, "pca_source": SOURCE | {"whitening": float("nan")}}, "entries: whitening"),
        ({"descriptor_dim": 512, "pca_source": SOURCE | {"whitening": 2.0}}, "entries: whitening"),
        ({"descriptor_dim": 512, "pca_source": SOURCE | {"whitening": -1.0}}, "entries: whitening"),
        ({"descriptor_dim": "512"}, "descriptor_dim"),
        ({"head_dim": 0}, r"head_dim is 0, but a head shortens 10752 numbers, so it must be 1 to 10752"),
        ({"head_dim": 10_753}, "must be 1 to 10752"),
        (
            {"head_dim": 256, "descriptor_dim": 512},
            "descriptor_dim is 512, but a model with a head gives head_dim = 256",
        ),
        ({"nested_dims": (512, 256)}, "nested_dims is .* but head_dim is None"),
        ({"head_dim": 512, "nested_dims": (512,)}, "must hold head_dim = 512 as its largest and at least one smaller"),
        ({"head_dim": 256, "nested_dims": (512, 256)}, "must hold head_dim = 256 as its largest"),
        ({"head_dim": 512, "nested_dims": (512, 0)}, "at least one smaller number from 1"),
        ({"head_dim": 512, "nested_dims": (512, "256")}, "nested_dims"),
        (
            {"head_dim": 512, "nested_dims": (512, 256), "descriptor_dim": 128},
            "descriptor_dim is 128, but this model's head was trained to be cut to 512, 256 numbers alone",
        ),
        ({"head_dim": 256, "pca_source": SOURCE}, "head_dim is 256, but the model ends in a PCA"),
    ],
)
def test_what_does_not_fit_is_refused(fields, complaint):
    with pytest.raises(StrictDataclassError, match=complaint):
        D2VprConfig(**fields)


def test_files_unknown_leave_no_fingerprints(tmp_path, tiny_model, pca, images):
    mean, components, _ = pca
    tiny_model.add_reduction(mean, components, torch.empty(0, 2, dtype=torch.int64), SOURCE | {"files_sha256": None})
    tiny_model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.reduction.files.shape == (0, 2)
    np.testing.assert_array_equal(described(loaded, images), described(tiny_model, images))


def test_a_head_projects_the_full_descriptor(tiny_model, images):
    full = described(tiny_model, images).double()
    with torch.no_grad():
        before = tiny_model(images)
        tiny_model.add_head(DIM)
        after = tiny_model(images)
    expected = full @ tiny_model.head.weight.detach().double().T
    expected /= expected.norm(dim=1, keepdim=True)
    assert after.pooler_output.shape == (3, DIM) == (3, tiny_model.config.descriptor_dim)
    torch.testing.assert_close(after.pooler_output.double(), expected, rtol=0, atol=1e-6)
    assert torch.pdist(after.pooler_output).min() > 1e-4
    for name in ("last_hidden_state", "region_boxes", "region_features", "regional_descriptors"):
        assert torch.equal(after[name], before[name])


def test_a_new_head_keeps_cosines_but_for_noise():
    model = D2VprModel(D2VprConfig(backbone_config=STUDENT, recovery_layers=(1,), aggregator_dim=96))
    model.add_head(512)
    vectors = torch.nn.functional.normalize(torch.randn(50, 14 * 96, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors[25:] = torch.nn.functional.normalize(vectors[:25] + 0.5 * vectors[25:], dim=1)
    with torch.no_grad():
        short = model.head(vectors)
    error = (short @ short.T - vectors @ vectors.T).abs()
    # The noise of a random projection to n numbers is about 1 / sqrt(n) = 0.044, less for near neighbours.
    assert 0.01 < error.mean() < 0.05
    assert model.head.weight.std().item() == pytest.approx((14 * 96) ** -0.5, rel=0.01)
    again = D2VprModel(D2VprConfig(backbone_config=STUDENT, recovery_layers=(1,), aggregator_dim=96, head_dim=512))
    assert again.head.weight.std().item() == pytest.approx((14 * 96) ** -0.5, rel=0.01)


def test_the_seed_draws_the_head(tiny_config):
    heads = []
    for seed in (3, 3, 4):
        model = D2VprModel(tiny_config)
        model.add_head(DIM, seed=seed)
        heads.append(model.head.weight)
        tiny_config.head_dim = tiny_config.descriptor_dim = None
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("model_class", [D2VprModel, AutoModel])
def test_a_head_is_saved_and_loaded_to_the_bit(tmp_path, headed, images, model_class):
    headed.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.head_dim, config.descriptor_dim, config.regional_dim, config.pca_source) == (DIM, DIM, FULL, None)
    loaded = model_class.from_pretrained(tmp_path)
    assert torch.equal(described(loaded, images), described(headed, images))
    weights = load_file(tmp_path / "model.safetensors")
    head = weights.pop("head.weight")
    assert head.shape == (DIM, FULL)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: head\.weight"):
        model_class.from_pretrained(tmp_path)


def test_a_head_stays_behind_on_no_request(tmp_path, headed):
    headed.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"unexpected: head\.weight"):
        AutoModel.from_pretrained(tmp_path, head_dim=None, descriptor_dim=None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_head_stays_in_float32(tmp_path, headed, images, dtype):
    exact = described(headed, images)
    with torch.autocast("cpu", dtype=dtype):
        autocast = described(headed, images)
    assert autocast.dtype == torch.float32
    assert 0 < (autocast - exact).abs().max() < 0.02
    headed.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.recovery.norm.weight.dtype == dtype
    assert loaded.head.weight.dtype == torch.float32
    assert described(loaded, images.to(dtype)).dtype == torch.float32


def test_a_head_learns(headed, images):
    headed.train()(images).pooler_output.mul(torch.arange(DIM)).sum().backward()
    assert headed.head.weight.grad.abs().max() > 0
    assert headed.recovery.projection.weight.grad.abs().max() > 0


def test_a_model_ends_in_one_of_the_two_once(headed, pca):
    weight = headed.head.weight
    with pytest.raises(ValueError, match="ends in a head to 8 numbers already"):
        headed.add_head(4)
    with pytest.raises(ValueError, match="ends in a head to 8 numbers already"):
        headed.add_reduction(*pca, SOURCE)
    assert headed.head.weight is weight
    assert headed.config.descriptor_dim == DIM
    assert not hasattr(headed, "reduction")


def test_no_head_behind_a_pca_and_none_of_another_length(reduced, tiny_config):
    with pytest.raises(ValueError, match="ends in a PCA to 8 numbers already"):
        reduced.add_head(4)
    model = D2VprModel(type(tiny_config)(**tiny_config.to_dict() | {"descriptor_dim": None, "pca_source": None}))
    with pytest.raises(StrictDataclassError, match="head_dim is 673"):
        model.add_head(673)
    assert not hasattr(model, "head")
    assert model.config.head_dim is None


@pytest.mark.parametrize("model_class", [D2VprModel, AutoModel])
def test_a_nested_head_gives_any_of_its_lengths(tmp_path, nested, images, model_class):
    whole = described(nested, images)
    assert (nested.config.nested_dims, whole.shape) == ((8, 5, 3), (3, 8))
    nested.save_pretrained(tmp_path)
    for dim in (8, 5, 3):
        model = model_class.from_pretrained(tmp_path, descriptor_dim=dim)
        assert model.config.descriptor_dim == dim
        found = described(model, images)
        expected = torch.nn.functional.normalize(whole[:, :dim], dim=1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        assert found.shape == (3, dim)
        assert torch.pdist(found).min() > 1e-4
        assert torch.equal(model.head.weight, nested.head.weight)
    for unchosen in ({}, {"descriptor_dim": None}):
        assert torch.equal(described(model_class.from_pretrained(tmp_path, **unchosen), images), whole)


def test_a_model_saved_at_fewer_numbers_keeps_all_of_its_head(tmp_path, nested, images):
    whole = described(nested, images)
    nested.save_pretrained(tmp_path / "whole")
    short = AutoModel.from_pretrained(tmp_path / "whole", descriptor_dim=5)
    short.save_pretrained(tmp_path / "short")
    config = AutoConfig.from_pretrained(tmp_path / "short")
    assert config.to_dict() == short.config.to_dict() | {"_name_or_path": str(tmp_path / "short")}
    assert (config.descriptor_dim, config.head_dim, config.nested_dims) == (5, 8, (8, 5, 3))
    again = AutoModel.from_pretrained(tmp_path / "short")
    assert torch.equal(described(again, images), described(short, images))
    assert torch.equal(described(AutoModel.from_pretrained(tmp_path / "short", descriptor_dim=8), images), whole)


def test_lengths_that_a_checkpoint_lacks_are_refused_with_those_it_has(tmp_path, nested, tiny_config):
    nested.save_pretrained(tmp_path / "nested")
    for dim in (4, 0, 9):
        with pytest.raises(ValueError, match=rf"descriptor_dim is {dim}, but .* cut to 8, 5, 3 numbers alone"):
            AutoModel.from_pretrained(tmp_path / "nested", descriptor_dim=dim)
    torch.manual_seed(0)
    plain = D2VprModel(D2VprConfig(backbone_config=STUDENT, recovery_layers=(1,), aggregator_dim=48))
    plain.save_pretrained(tmp_path / "full")
    with pytest.raises(ValueError, match=r"descriptor_dim is 5, but without a PCA .* = 672 numbers"):
        AutoModel.from_pretrained(tmp_path / "full", descriptor_dim=5)
    plain.add_head(8)
    plain.save_pretrained(tmp_path / "headed")
    with pytest.raises(ValueError, match="descriptor_dim is 5, but a model with a head gives head_dim = 8"):
        AutoModel.from_pretrained(tmp_path / "headed", descriptor_dim=5)


def test_a_nested_head_learns_from_its_prefix(nested, images):
    nested.config.descriptor_dim = 3
    nested.train()(images).pooler_output.mul(torch.arange(3)).sum().backward()
    assert nested.head.weight.grad[:3].abs().max() > 0
    assert nested.head.weight.grad[3:].abs().max() == 0
