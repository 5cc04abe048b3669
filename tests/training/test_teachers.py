"""Every kind of teacher opens, describes images in its mode, and is never trained."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_teachers import (
    WIDTH,
    Colours,
    patch_map,
    tiny_cricavpr,
    tiny_dinov2,
    tiny_dinov2_with_registers,
)
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from d2vpr_hf import CricaVprModel, D2VprModel
from d2vpr_hf.training.teacher_cache import unit_descriptors
from d2vpr_hf.training.teachers import TeacherOutput, open_teacher


@pytest.fixture
def images():
    return torch.randn(6, 3, 56, 70, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def cricavpr(tmp_path):
    folder = tmp_path / "cricavpr"
    tiny_cricavpr().save_pretrained(folder)
    return folder


@pytest.fixture
def opened(tmp_path, cricavpr, tiny_model):
    """A function that opens a teacher of a kind, in float32."""
    tiny_model.save_pretrained(tmp_path / "d2vpr")
    tiny_dinov2().save_pretrained(tmp_path / "dinov2")
    tiny_dinov2_with_registers().save_pretrained(tmp_path / "dinov2_with_registers")

    def open_kind(kind, **settings):
        name = kind if ":" in kind else tmp_path / kind
        return open_teacher(name, **{"dtype": "float32", **settings})

    return open_kind


@pytest.mark.parametrize(
    ("kind", "width", "name"),
    [
        ("cricavpr", WIDTH, "cricavpr"),
        ("d2vpr", 48, "d2vpr"),
        ("dinov2", WIDTH, "dinov2"),
        ("dinov2_with_registers", WIDTH, "dinov2_with_registers"),
        ("tiny_teachers:patch_map", WIDTH, "patch-map"),
        ("tiny_teachers:colours", 3, "colours"),
    ],
)
def test_every_kind_gives_targets_that_stand_alone(opened, images, kind, width, name):
    teacher = opened(kind)
    assert teacher.name.endswith(name)
    assert (teacher.width, teacher.mode, len(teacher.version_hash)) == (width, "batch_independent", 64)
    output = teacher.teach(images, images_per_place=2)
    assert output.regional_descriptors.shape == (6, 14, width)
    assert output.patch_tokens.shape == (6, width, 4, 5)
    assert output.regional_descriptors.dtype == output.patch_tokens.dtype == torch.float32
    alone = torch.cat([teacher.teach(image[None]).regional_descriptors for image in images])
    torch.testing.assert_close(output.regional_descriptors, alone, rtol=0, atol=1e-5)
    assert torch.pdist(unit_descriptors(alone)).min() > 1e-3
    assert alone.std(dim=1).min() > 1e-6  # the 14 differ too


@pytest.mark.parametrize("kind", ["cricavpr", "tiny_teachers:patch_map"])
def test_a_teacher_is_never_trained_but_teaches(opened, images, kind):
    teacher = opened(kind)
    holder = torch.nn.Sequential(teacher).train()
    assert holder.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    target = teacher.teach(images).regional_descriptors
    assert not target.requires_grad
    student = torch.randn(6, 14, WIDTH, requires_grad=True)
    (student * target).sum().backward()
    assert torch.equal(student.grad, target)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_cricavpr_teaches_its_own_descriptors_in_each_mode(cricavpr, images, recwarn):
    with_encoder = CricaVprModel.from_pretrained(cricavpr)
    without = CricaVprModel.from_pretrained(cricavpr, cross_image_encoder=False)
    with torch.no_grad():
        expected = {
            "as_published": with_encoder(images),
            "place_grouped": with_encoder(images, images_per_group=2),
            "batch_independent": without(images),
        }
    found = {}
    recwarn.clear()
    for mode, output in expected.items():
        teacher = open_teacher(cricavpr, mode=mode, dtype="float32")
        found[mode] = teacher.teach(images, images_per_place=2)
        assert torch.equal(found[mode].regional_descriptors, output.regional_descriptors)
        torch.testing.assert_close(unit_descriptors(found[mode].regional_descriptors), output.pooler_output)
        assert torch.equal(found[mode].patch_tokens.flatten(2).transpose(1, 2), output.last_hidden_state[:, 1:])
    # Who names a mode needs no warning of it.
    assert not [warning for warning in recwarn if "encoder" in str(warning.message)]
    descriptors = [unit_descriptors(output.regional_descriptors) for output in found.values()]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (descriptors[one] - descriptors[other]).norm(dim=1).min() > 1e-3


def test_d2vpr_with_an_encoder_teaches_in_each_mode(tmp_path, tiny_config, images):
    tiny_config.cross_image_encoder = True
    D2VprModel(tiny_config).save_pretrained(tmp_path)
    outputs = [
        open_teacher(tmp_path, mode=mode, dtype="float32").teach(images, images_per_place=3).regional_descriptors
        for mode in ("as_published", "place_grouped", "batch_independent")
    ]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4
    assert (outputs[1] - outputs[2]).abs().max() > 1e-4


def test_a_place_is_all_that_place_grouped_sees(cricavpr, images):
    teacher = open_teacher(cricavpr, mode="place_grouped", dtype="float32")
    together = teacher.teach(images, images_per_place=3).regional_descriptors
    each = torch.cat([teacher.teach(place, images_per_place=3).regional_descriptors for place in images.split(3)])
    torch.testing.assert_close(together, each, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match='runs in mode "place_grouped", but images_per_place is None'):
        teacher.teach(images)
    with pytest.raises(ValueError, match="images_per_group is 4, but the batch has 6 images"):
        teacher.teach(images, images_per_place=4)


@pytest.mark.parametrize(("kind", "registers"), [("dinov2", 0), ("dinov2_with_registers", 4)])
def test_dinov2_teaches_its_class_token_and_fixed_regions(opened, images, kind, registers):
    teacher = opened(kind)
    with torch.no_grad():
        tokens = teacher.network.model(images).last_hidden_state
    assert tokens.shape[1] == 1 + registers + 4 * 5
    output = teacher.teach(images)
    regional = output.regional_descriptors
    torch.testing.assert_close(regional[:, 0], F.normalize(tokens[:, 0], dim=1))
    patches = tokens[:, 1 + registers :].unflatten(1, (4, 5))
    torch.testing.assert_close(output.patch_tokens, patches.permute(0, 3, 1, 2))
    # Half of 5 columns is 2.5, which rounds up; a region is a generalised mean of power 3 of unit-length tokens.
    quadrant = F.normalize(patches[:, 2:, :3], dim=-1).clamp(min=1e-6).pow(3).mean(dim=(1, 2)).pow(1 / 3)
    torch.testing.assert_close(regional[:, 3], quadrant)


def test_a_network_of_other_making_teaches_the_mean_of_its_map(images):
    teacher = open_teacher("tiny_teachers:patch_map", dtype="float32")
    with torch.no_grad():
        expected = patch_map().feature_map(images)
    output = teacher.teach(images)
    assert torch.equal(output.patch_tokens, expected)
    torch.testing.assert_close(output.regional_descriptors[:, 0], F.normalize(expected.mean(dim=(2, 3)), dim=1))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_module:teacher", "No module named 'no_such_module'"),
        ("tiny_teachers:patch_mp", r"tiny_teachers has no patch_mp\. Did you mean patch_map\?"),
        ("tiny_teachers:nothing", "returned a object, but a teacher needs the attributes name"),
    ],
)
def test_a_factory_that_gives_no_teacher_is_refused(name, complaint):
    with pytest.raises(ValueError, match=complaint):
        open_teacher(name)


def test_a_map_of_another_width_is_refused(images):
    with pytest.raises(ValueError, match=r"feature_map of colours has shape \(6, 3, 4, 5\) .* but its width is 5"):
        open_teacher("tiny_teachers:sized", dtype="float32").teach(images)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "d2vpr", "tiny_teachers:colours"])
@pytest.mark.parametrize("mode", ["as_published", "place_grouped"])
def test_modes_of_the_encoder_need_one(opened, kind, mode):
    with pytest.raises(ValueError, match=rf"is '{mode}', but it has no cross-image encoder.*batch_independent"):
        opened(kind, mode=mode)


def test_names_that_are_not_known_are_told_the_nearest(cricavpr):
    with pytest.raises(ValueError, match=r"mode is 'place_groupd', .* Did you mean place_grouped\?"):
        open_teacher(cricavpr, mode="place_groupd")
    with pytest.raises(ValueError, match=r"dtype is 'float61', but must be one of auto, .* Did you mean float16\?"):
        open_teacher(cricavpr, dtype="float61")


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"vit holds a model of type vit, .* CricaVPR, D2-VPR, DINOv2 or DINOv2 with"):
        open_teacher(tmp_path / "vit")
    with pytest.raises(ValueError, match=r"(?s)absent can't be opened as a teacher: .* CricaVPR, D2-VPR, DINOv2"):
        open_teacher(tmp_path / "absent")


def test_a_dinov2_that_lacks_weights_is_refused(tmp_path):
    tiny_dinov2().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks layernorm\.weight, so it can't teach"):
        open_teacher(tmp_path)


def test_the_version_tells_teachers_apart_and_no_copies(tmp_path):
    def version(name, **settings):
        return open_teacher(tmp_path / name, **settings).version_hash

    tiny_cricavpr().save_pretrained(tmp_path / "one")
    tiny_cricavpr().save_pretrained(tmp_path / "copy")
    tiny_cricavpr(seed=1).save_pretrained(tmp_path / "weights")
    tiny_cricavpr(region_sampling="original").save_pretrained(tmp_path / "regions")
    assert version("one") == version("copy")
    others = [version("weights"), version("regions"), version("one", mode="as_published")]
    assert len({version("one"), *others}) == 4


def test_a_network_without_weights_is_known_by_name_and_version(monkeypatch):
    first = open_teacher("tiny_teachers:colours").version_hash
    assert open_teacher("tiny_teachers:colours").version_hash == first
    monkeypatch.setattr(Colours, "version", "2")
    assert open_teacher("tiny_teachers:colours").version_hash != first


def test_an_automatic_precision_follows_the_device(cricavpr, images, monkeypatch):
    teacher = open_teacher(cricavpr)
    assert teacher.dtype == "float32"
    exact = open_teacher(cricavpr, dtype="float32").teach(images)
    assert isinstance(exact, TeacherOutput)
    assert torch.equal(teacher.teach(images).regional_descriptors, exact.regional_descriptors)
    rounded = open_teacher(cricavpr, dtype="bfloat16").teach(images).regional_descriptors
    assert not torch.equal(rounded, exact.regional_descriptors)
    torch.testing.assert_close(rounded, exact.regional_descriptors, rtol=0.1, atol=0.05)
    monkeypatch.setattr(type(teacher), "device", torch.device("cuda"))
    for supported, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported, **_: supported)
        assert teacher.dtype == expected
