"""How a D2-VPR model behaves, on a tiny random one."""

import itertools
import os
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from published_rule import published_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Dinov2Config, Dinov2Model

from d2vpr_hf import D2VprImageProcessor, D2VprModel, convert_original_state_dict
from d2vpr_hf.models.d2vpr.regions_d2vpr import region_points

REAL_PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "toy_san_francisco" / "toy_dataset"


@pytest.fixture
def images():
    return torch.randn(3, 3, 56, 84, generator=torch.Generator().manual_seed(1))


def test_output_shapes(tiny_model, images):
    output = tiny_model(images)
    assert output.last_hidden_state.shape == (3, 1 + 4 * 6, 48)
    assert output.pooler_output.shape == (3, tiny_model.config.descriptor_dim) == (3, 14 * 48)
    assert output.region_boxes.shape == (3, 13, 4)
    assert output.region_features.shape == (3, 13, 48)
    assert output.hidden_states is None
    torch.testing.assert_close(output.pooler_output.norm(dim=1), torch.ones(3))
    assert isinstance(tiny_model(images, return_dict=False), tuple)


def test_hidden_states_are_the_embedding_and_every_block(tiny_model, images):
    states = tiny_model(images, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [(3, 25, 32)] * 5
    recovered = tiny_model.recovery([states[layer] for layer in tiny_model.config.recovery_layers])
    torch.testing.assert_close(recovered, tiny_model(images).last_hidden_state)


@pytest.mark.parametrize("sampling", ["original", "dense"])
@pytest.mark.parametrize(("height", "width"), [(42, 42), (56, 112), (140, 70), (322, 224)])
def test_any_multiple_of_14(tiny_model, sampling, height, width):
    tiny_model.aggregator.regions.region_sampling = sampling
    output = tiny_model(torch.randn(1, 3, height, width))
    assert output.last_hidden_state.shape[1] == 1 + height // 14 * (width // 14)
    assert output.pooler_output.isfinite().all()
    assert (output.region_boxes >= 0).all()
    assert (output.region_boxes <= 1).all()


def test_rows_and_columns_are_not_confused(tiny_model):
    """A photo's transpose gives its transposed regions only where both sides are handled alike."""
    x = region_points((4, 9), "dense", torch.device("cpu"))
    y = region_points((9, 4), "dense", torch.device("cpu"))
    assert x.points.shape == y.points.shape
    ordered = {tuple(point) for point in x.points.tolist()}
    assert ordered == {(b, a) for a, b in y.points.tolist()}
    assert ordered != {(a, b) for a, b in y.points.tolist()}


@pytest.mark.parametrize("side", [(56, 85), (50, 56), (0, 56)])
def test_other_sizes_are_refused(tiny_model, side):
    with pytest.raises(ValueError, match="multiples of 14 pixels"):
        tiny_model(torch.zeros(1, 3, *side))


def test_descriptor_is_the_same_alone_and_in_company(tiny_model, images):
    with torch.no_grad():
        together = tiny_model(images).pooler_output
        alone = torch.cat([tiny_model(image[None]).pooler_output for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert torch.pdist(together).min() > 1e-3  # a constant descriptor would pass the line above


def test_the_encoder_makes_company_count_and_the_model_says_so_once(tiny_config, images):
    torch.manual_seed(0)
    tiny_config.cross_image_encoder = True
    model = D2VprModel(tiny_config).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        together, alone = model(images).pooler_output, model(images[:1]).pooler_output
    assert [str(warning.message)[:27] for warning in caught] == ["The cross-image encoder is "]
    assert (together[:1] - alone).abs().max() > 1e-4
    swapped = model(images.flip(0)).pooler_output.flip(0)
    torch.testing.assert_close(together, swapped, rtol=0, atol=1e-5)


def test_groups_attend_as_if_each_were_a_batch(tiny_config):
    torch.manual_seed(0)
    images = torch.randn(4, 3, 56, 84)
    with pytest.raises(ValueError, match="images_per_group is 2, but this model has no cross-image encoder"):
        D2VprModel(tiny_config)(images, images_per_group=2)
    tiny_config.cross_image_encoder = True
    model = D2VprModel(tiny_config).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the encoder's warning has its own test
        grouped = model(images, images_per_group=2).pooler_output
        each = torch.cat([model(group).pooler_output for group in images.split(2)])
        whole = model(images).pooler_output
    torch.testing.assert_close(grouped, each, rtol=0, atol=1e-6)
    assert (grouped - whole).abs().max() > 1e-4


def test_regional_descriptors_are_the_descriptor_before_its_division_by_length(tiny_model, images):
    output = tiny_model(images)
    regional = output.regional_descriptors
    assert regional.shape == (3, 14, 48)
    torch.testing.assert_close(torch.nn.functional.normalize(regional.flatten(1), dim=1), output.pooler_output)
    assert regional.flatten(1).norm(dim=1).min() > 1.5
    assert output[0] is output.last_hidden_state
    assert output[1] is output.pooler_output
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiny_model(images).regional_descriptors.dtype == torch.float32


@pytest.mark.parametrize("encoder", [False, True])
def test_all_but_the_mask_token_learns(tiny_config, images, encoder):
    """A tensor that no loss reaches stops a training on several processes."""
    tiny_config.cross_image_encoder = encoder
    tiny_config.head_dim = tiny_config.descriptor_dim = 8
    model = D2VprModel(tiny_config).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(images).pooler_output.mul(torch.arange(8)).sum().backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {"backbone.embeddings.mask_token"}
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(images).regional_descriptors.sum().backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert unused == {"backbone.embeddings.mask_token", "head.weight"}


def test_dense_sampling_at_224_px_is_the_original_one(tiny_model):
    image = torch.randn(2, 3, 224, 224)
    original = tiny_model(image).pooler_output
    tiny_model.aggregator.regions.region_sampling = "dense"
    torch.testing.assert_close(tiny_model(image).pooler_output, original, rtol=0, atol=1e-6)
    larger = torch.randn(2, 3, 322, 322)
    dense = tiny_model(larger).pooler_output
    tiny_model.aggregator.regions.region_sampling = "original"
    assert (tiny_model(larger).pooler_output - dense).abs().max() > 1e-4


def test_dense_sampling_scales_samples_and_cuts_with_the_grid():
    points = region_points((23, 23), "dense", torch.device("cpu"))
    # Cuts of 23 tokens at 23 * 8/16 = 11.5, 23 * 5/16 = 7.2 and 23 * 11/16 = 15.8.
    counts = [12 * 12, 12 * 11, 11 * 12, 11 * 11] + [a * b for a, b in itertools.product((7, 9, 7), repeat=2)]
    assert points.members.sum(dim=1).tolist() == counts
    kept = region_points((23, 23), "original", torch.device("cpu"))
    assert kept.members.sum(dim=1).tolist() == [64] * 4 + [25, 30, 25, 30, 36, 30, 25, 30, 25]
    with pytest.raises(ValueError, match="too few"):
        region_points((2, 23), "dense", torch.device("cpu"))


def test_offsets_are_read_where_the_configuration_says(tiny_model, images):
    """The original reads the bottom right quarter alone; centred reading covers the photo."""
    regions = tiny_model.aggregator.regions
    patch_map, class_token = torch.randn(1, 48, 8, 8), torch.randn(1, 48)
    points = region_points((8, 8), "original", torch.device("cpu")).points
    changed = patch_map.clone()
    changed[:, :, :3] += 1
    changed[:, :, :, :3] += 1
    read = regions.read_offsets(patch_map, class_token, points)
    torch.testing.assert_close(regions.read_offsets(changed, class_token, points), read)
    whole = regions.offset_out(
        torch.relu(regions.offset_in(torch.cat([patch_map, class_token[:, :, None, None].expand_as(patch_map)], dim=1)))
    )
    slow = torch.nn.functional.grid_sample(whole, points[None, None], padding_mode="border", align_corners=True)
    torch.testing.assert_close(read, slow[:, :, 0].transpose(1, 2))
    regions.offset_grid = "centred"
    assert (regions.read_offsets(changed, class_token, points) - read).abs().max() > 1e-3


def test_new_models_start_with_adapters_that_do_nothing_and_regions_as_cut(tiny_config):
    model = D2VprModel(tiny_config)
    for layer in model.backbone.encoder.layer:
        assert layer.adapter(torch.randn(2, 7, 32), (2, 3)).count_nonzero() == 0
        assert layer.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.3)
    boxes = model.eval()(torch.randn(1, 3, 56, 56)).region_boxes[0].detach()
    expected = [(0.25, 0.25, 0.5, 0.5), (5 / 32, 5 / 32, 5 / 16, 5 / 16), (0.5, 0.5, 6 / 16, 6 / 16)]
    torch.testing.assert_close(boxes[[0, 4, 8]], torch.tensor(expected))


def test_gradient_checkpointing_changes_no_gradient(tiny_model, images):
    def gradients():
        tiny_model.zero_grad()
        tiny_model(images).pooler_output.square().mul(torch.arange(672.0)).sum().backward()
        return {name: parameter.grad.clone() for name, parameter in tiny_model.named_parameters() if "mask" not in name}

    for module in tiny_model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    tiny_model.train()
    for module in tiny_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    plain = gradients()
    tiny_model.gradient_checkpointing_enable()
    saved = gradients()
    assert all(torch.equal(plain[name], saved[name]) for name in plain)
    assert max(gradient.abs().max() for gradient in plain.values()) > 0


def test_attention_follows_the_configuration(tiny_model, images):
    assert tiny_model.config._attn_implementation == "sdpa"
    fast = tiny_model(images).pooler_output
    tiny_model.set_attn_implementation("eager")
    assert tiny_model.backbone.config._attn_implementation == "eager"
    torch.testing.assert_close(tiny_model(images).pooler_output, fast, rtol=0, atol=1e-5)


def test_every_tensor_of_dinov2_arrives(tmp_path):
    torch.manual_seed(0)
    dinov2 = Dinov2Model(Dinov2Config(hidden_size=96, num_hidden_layers=12, num_attention_heads=2, image_size=70))
    with torch.no_grad():
        for parameter in dinov2.parameters():
            parameter.copy_(torch.randn_like(parameter))
    dinov2.save_pretrained(tmp_path)
    student = D2VprModel.from_dinov2(tmp_path, aggregator_dim=96).eval()
    assert str(tmp_path) not in student.config.to_json_string(use_diff=False)
    arrived = student.backbone.state_dict()
    expected = {key: value for key, value in dinov2.state_dict().items() if not key.startswith("layernorm.")}
    assert len(expected) == 12 * 18 + 5
    for key, value in expected.items():
        assert torch.equal(arrived[key], value), key
    # With adapters that do nothing, at the table's own size, the student is DINOv2.
    image = torch.randn(1, 3, 70, 70)
    with torch.no_grad():
        ours = student(image, output_hidden_states=True).hidden_states
        theirs = dinov2.eval()(image, output_hidden_states=True).hidden_states
    torch.testing.assert_close(ours[-1], theirs[-1])


def test_a_checkpoint_of_another_kind_starts_no_student(tmp_path):
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, use_swiglu_ffn=True
    )
    dinov2 = Dinov2Model(config)
    dinov2.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.layer.2.norm1.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"encoder\.layer\.2\.norm1\.weight"):
        D2VprModel.from_dinov2(tmp_path, aggregator_dim=48, recovery_layers=(4,))


def signed_mean(tokens):
    """(images, 2 * width): the generalised mean, power 3, of unit tokens' positive parts and of their negative ones."""
    unit = torch.cat([tokens, -tokens], dim=-1)
    unit = unit / unit.norm(dim=-1, keepdim=True)
    return unit.clamp(min=1e-6).pow(3).mean(dim=1).pow(1 / 3)


def assert_starts_as_pass_through(folder, image, rows, columns):
    """Of `rows` x `columns` patches, both even: without a training step, the last recovery layer's signed means."""
    dinov2 = Dinov2Model.from_pretrained(folder).eval()
    width, last = dinov2.config.hidden_size, dinov2.config.num_hidden_layers
    student = D2VprModel.from_dinov2(
        folder,
        recovery_start="pass_through",
        first_vector="pooled",
        recovery_layers=(1, last),
        aggregator_dim=2 * width,
        region_sampling="dense",
    ).eval()
    with torch.no_grad():
        block = student(image, output_hidden_states=True).hidden_states[-1][:, 1:]
        output = student(image)
    torch.testing.assert_close(output.regional_descriptors[:, 0], signed_mean(block), rtol=1e-3, atol=1e-5)
    # The medium regions' outer samples lie in their own quadrants, so that each is told apart from the others.
    grid = block.unflatten(1, (rows, columns))
    quadrants = [
        signed_mean(part.flatten(1, 2))
        for half in grid.split(rows // 2, dim=1)
        for part in half.split(columns // 2, dim=2)
    ]
    medium = output.regional_descriptors[0, 1:5]
    likeness = torch.nn.functional.cosine_similarity(
        medium[:, None], torch.cat([each[:1] for each in quadrants]), dim=2
    )
    assert likeness.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert torch.equal(output.regional_descriptors[:, 1:], output.region_features)


def test_a_pass_through_is_the_signed_mean_of_a_block_before_any_training(tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=96, num_hidden_layers=3, num_attention_heads=2, image_size=112)
    Dinov2Model(config).save_pretrained(tmp_path)
    assert_starts_as_pass_through(tmp_path, torch.randn(2, 3, 112, 112), 8, 8)
    narrow = D2VprModel.from_dinov2(tmp_path, recovery_start="pass_through", recovery_layers=(3,), aggregator_dim=96)
    assert torch.equal(narrow.recovery.projection.weight[:48, :48], torch.eye(48))
    assert torch.equal(narrow.recovery.projection.weight[48:], -narrow.recovery.projection.weight[:48])
    with pytest.raises(ValueError, match=r"aggregator_dim is 240.*aggregator_dim=192"):
        D2VprModel.from_dinov2(tmp_path, recovery_start="pass_through", recovery_layers=(3,), aggregator_dim=240)


@pytest.mark.skipif("D2VPR_TEST_DINOV2" not in os.environ, reason="D2VPR_TEST_DINOV2 names no folder of DINOv2")
def test_a_pass_through_of_real_weights():
    assert_starts_as_pass_through(os.environ["D2VPR_TEST_DINOV2"], torch.randn(2, 3, 112, 112), 8, 8)


def broken(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("model_class", [D2VprModel, AutoModel])
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda weights: weights.pop("recovery.norm.weight"), "missing: recovery.norm.weight"),
        (lambda weights: weights.update(stray=torch.zeros(2)), "unexpected: stray"),
        (
            lambda weights: weights.update({"recovery.norm.weight": torch.zeros(5)}),
            r"recovery.norm.weight: shape \(5,\), expected \(48,\)",
        ),
    ],
)
def test_weights_that_do_not_match_never_load(tmp_path, tiny_model, model_class, change, complaint):
    tiny_model.save_pretrained(tmp_path)
    broken(tmp_path, change)
    with pytest.raises(ValueError, match=complaint):
        model_class.from_pretrained(tmp_path)
    # Not even where transformers would be told to look away.
    with pytest.raises(ValueError, match=complaint):
        model_class.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_a_pickle_in_place_of_safetensors_is_refused(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        D2VprModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_class", [D2VprModel, AutoModel])
def test_an_encoder_may_stay_behind_only_on_request(tmp_path, tiny_config, model_class, images):
    tiny_config.cross_image_encoder = True
    model = D2VprModel(tiny_config).eval()
    model.save_pretrained(tmp_path)
    assert model_class.from_pretrained(tmp_path).config.cross_image_encoder
    without = model_class.from_pretrained(tmp_path, cross_image_encoder=False)
    assert not hasattr(without, "encoder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens = model(images).last_hidden_state
    assert torch.equal(without(images).last_hidden_state, tokens)
    broken(tmp_path, lambda weights: weights.update(stray=torch.zeros(2)))
    with pytest.raises(ValueError, match="unexpected: stray"):
        model_class.from_pretrained(tmp_path, cross_image_encoder=False)


def test_saved_and_loaded_to_the_bit(tmp_path, tiny_model, images):
    tiny_model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, D2VprModel)
    assert torch.equal(loaded(images).pooler_output, tiny_model(images).pooler_output)
    assert loaded.config.recovery_layers == tiny_model.config.recovery_layers == (1, 2, 4)
    assert loaded.config.backbone_config.hidden_size == 32


@pytest.fixture(scope="module")
def exact_descriptors():
    """A model with weights by rule, photos, and their descriptors in float32."""
    config, weights = convert_original_state_dict(published_checkpoint("d2vpr", 0))
    model = D2VprModel(config).eval()
    model.load_state_dict(weights)
    files = sorted(REAL_PHOTOS.glob("*/*.jpg"))[:4]
    if not files:
        pytest.skip("the real photos of shared/data aren't beside this checkout")
    pixels = D2VprImageProcessor()([Image.open(file) for file in files], return_tensors="pt").pixel_values
    with torch.no_grad():
        return model, pixels, model(pixels).pooler_output


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(exact_descriptors, dtype):
    """The original itself differs by 2.5 % of the mean distance between photos in bfloat16."""
    model, pixels, exact = exact_descriptors
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        rounded = model(pixels).pooler_output
    assert rounded.dtype == torch.float32
    assert rounded.isfinite().all()
    share = (rounded - exact).norm(dim=1).max() / torch.pdist(exact).mean()
    assert 0 < share < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_descriptors_and_gradients(tiny_model, images, dtype):
    with torch.autocast("cpu", dtype=dtype):
        descriptor = tiny_model(images).pooler_output
    descriptor.square().mul(torch.arange(672.0)).sum().backward()
    assert descriptor.isfinite().all()
    for name, parameter in tiny_model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
