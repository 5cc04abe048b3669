"""What transformers' own common tests ask of every model, asked of ours: they aren't in its wheel."""

import copy
import functools
import json
import warnings

import pytest
import torch
from made_models import KINDS, config_of, model_of
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, pipeline

from d2vpr_hf.models.checkpoint import save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:The cross-image encoder is on")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def images():
    return torch.randn(3, 3, 56, 84, generator=torch.Generator().manual_seed(1))


def test_every_option_is_saved_and_loaded(kind, images, tmp_path):
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""} == {
        **model.config.to_dict(),
        "_name_or_path": "",
        "architectures": [type(model).__name__],
        "dtype": "float32",
    }
    loaded = AutoModel.from_pretrained(tmp_path)
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images).pooler_output, model(images).pooler_output)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


def test_loading_from_a_state_dict_needs_no_checkpoint(kind, images):
    model = model_of(kind)
    again = type(model).from_pretrained(None, config=config_of(kind), state_dict=model.state_dict())
    assert torch.equal(again(images).pooler_output, model(images).pooler_output)
    left_out = dict(list(model.state_dict().items())[1:])
    with pytest.raises(ValueError, match="missing: "):
        type(model).from_pretrained(None, config=config_of(kind), state_dict=left_out)


def test_every_weight_is_initialised(kind):
    """Whatever stood in the memory of a new model is gone: two of the same seed are equal, and none is extreme."""
    found = []
    for filling in (1e9, torch.nan):
        with torch.device("meta"):
            model = type(model_of(kind))(config_of(kind))
        model.to_empty(device="cpu")
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data.fill_(filling if tensor.is_floating_point() else 7)
        for module in model.modules():
            module._is_hf_initialized = False
        torch.manual_seed(0)
        model.init_weights()
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name
        assert not tensor.is_floating_point() or tensor.abs().max() < 50, name


def test_tuples_hold_what_outputs_hold(kind, images):
    model = model_of(kind)
    model.set_attn_implementation("eager")
    arguments = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        named = model(images, **arguments)
        plain = model(images, **arguments, return_dict=False)
    assert len(plain) == len(named.to_tuple()) == (6 if kind == "teacher" else 7)
    flat = [each for value in plain for each in (value if isinstance(value, tuple) else (value,))]
    expected = [each for value in named.to_tuple() for each in (value if isinstance(value, tuple) else (value,))]
    assert len(flat) == len(expected) > 7
    assert all(map(torch.equal, flat, expected))


def test_batches_are_rows(kind, images):
    model = model_of(kind)
    if model.config.cross_image_encoder:
        # The images of a batch attend to each other there; in groups of one, each to itself.
        model.forward = functools.partial(model.forward, images_per_group=1)
    with torch.no_grad():
        whole, twice = model(images), model(images)
        alone = [model(image[None]) for image in images]
    for name, value in whole.items():
        assert torch.equal(value, twice[name]), name
        each = torch.cat([output[name] for output in alone])
        torch.testing.assert_close(each, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone_only", [False, True])
def test_gradient_checkpointing_trains_the_same_model(kind, images, backbone_only):
    """BatchNorm counts each batch once, though each block is passed twice."""
    plain, saving = model_of(kind).train(), model_of(kind).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        (saving.backbone if backbone_only else saving).gradient_checkpointing_enable()
    for model in (plain, saving):
        torch.manual_seed(0)
        optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
        for _ in range(3):
            model(images).regional_descriptors.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    fresh = model_of(kind).state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(saving.state_dict()[name], tensor), name
        if name.endswith("num_batches_tracked"):
            assert tensor == 3
        if name.endswith("running_var"):
            assert not torch.equal(tensor, fresh[name]), name


def test_two_backwards_over_one_checkpointed_forward(kind, images):
    model = model_of(kind).train()
    model.gradient_checkpointing_enable()
    loss = model(images).pooler_output.square().sum()
    parameters = [each for each in model.parameters() if each.requires_grad]
    first = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    for one, other in zip(first, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        assert one is other is None or torch.equal(one, other)
    tracked = [tensor for name, tensor in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(tensor) for tensor in tracked} == {1}


def test_gradient_checkpointing_that_counts_twice_is_refused(kind, images):
    model = model_of(kind).train()
    with pytest.raises(ValueError, match=r"counts each batch twice.*Give use_reentrant=False"):
        model.gradient_checkpointing_enable({"use_reentrant": True})
    assert not model.is_gradient_checkpointing
    passes = []

    def contexts():
        passes.append(torch.utils.checkpoint.noop_context_fn())
        return passes[-1]

    model.gradient_checkpointing_enable({"context_fn": contexts})
    model = copy.deepcopy(model)
    model(images).pooler_output.sum().backward()
    assert len(passes) == model.config.backbone_config.num_hidden_layers
    tracked = [tensor for name, tensor in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(tensor) for tensor in tracked} == {1}
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_other_number_types_and_device_maps(kind, images, tmp_path, dtype):
    model_of(kind).save_pretrained(tmp_path)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(tmp_path)(images).pooler_output
        mapped = AutoModel.from_pretrained(tmp_path, device_map={"": "cpu"})
        assert torch.equal(mapped(images).pooler_output, expected)
        small = AutoModel.from_pretrained(tmp_path, dtype=dtype)
        found = small(images.to(dtype)).pooler_output
    exact = {"reduction.mean", "reduction.components", "head.weight"} & small.state_dict().keys()
    assert small._keep_in_fp32_modules_strict == exact
    for name, tensor in small.state_dict().items():
        assert tensor.dtype == (torch.float32 if name in exact else dtype) or not tensor.is_floating_point(), name
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, expected).min() > 0.98


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_kinds_of_attention_agree(kind, images, tmp_path, attention):
    model_of(kind).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, attn_implementation=attention)
    assert model.backbone.encoder.layer[0].attention.config._attn_implementation == attention
    with torch.no_grad():
        torch.testing.assert_close(model(images).pooler_output, model_of(kind)(images).pooler_output, rtol=0, atol=1e-5)


def test_attentions_are_given_where_they_are_made(kind, images):
    model = model_of(kind)
    with pytest.raises(ValueError, match=r'attention is sdpa.*attn_implementation="eager"'):
        model(images, output_attentions=True)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        assert model(images).attentions is None
        attentions = model(images, output_attentions=True).attentions
        model.config.output_attentions = True
        assert all(map(torch.equal, model(images).attentions, attentions))
    depth, heads = model.config.backbone_config.num_hidden_layers, 2
    assert [each.shape for each in attentions] == [(3, heads, 25, 25)] * depth
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(3, heads, 25))
    assert not torch.equal(attentions[0], attentions[1])


def test_input_embeddings_are_the_patch_embeddings(kind, images):
    model = model_of(kind)
    patches = model.get_input_embeddings()
    assert patches is model.backbone.embeddings.patch_embeddings
    assert patches(images).shape == (3, 24, model.config.backbone_config.hidden_size)
    other = copy.deepcopy(patches)
    model.set_input_embeddings(other)
    assert model.backbone.embeddings.patch_embeddings is other


def test_linear_layers_may_be_quantised(kind, images):
    from torch.ao.quantization import quantize_dynamic

    model = model_of(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantised = quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        found, expected = quantised(images).pooler_output, model(images).pooler_output
    assert not torch.equal(found, expected)
    assert torch.cosine_similarity(found, expected).min() > 0.9


@pytest.mark.parametrize("side", [56, 84])
def test_traced_models_are_the_same(kind, side):
    """At the position table's own size and at another."""
    model, images = model_of(kind), torch.randn(2, 3, side, 56)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, which is what a trace is
        traced = torch.jit.trace(model, (images,), strict=False, check_trace=False)
        torch.testing.assert_close(traced(images)["pooler_output"], model(images).pooler_output)


def test_the_pipeline_gives_descriptors(kind, tmp_path, tiny_processor):
    from PIL import Image

    folder = save_checkpoint(tmp_path / "d2vpr", model_of(kind), tiny_processor)
    photos = [Image.effect_mandelbrot((90, 70), (-2, -1, 1, 1), quality).convert("RGB") for quality in (20, 90)]
    extract = pipeline("image-feature-extraction", model=str(folder), pool=True, device="cpu")
    expected = model_of(kind)(tiny_processor(photos[:1], return_tensors="pt")["pixel_values"]).pooler_output
    torch.testing.assert_close(torch.tensor(extract(photos[0])), expected.detach())
    assert json.dumps(extract(photos[0])) != json.dumps(extract(photos[1]))
