"""Published checkpoints are recognised, checked tensor by tensor, and written whole."""

import hashlib
import json
import pickle

import pytest
import torch
from published_rule import published_checkpoint
from transformers import AutoImageProcessor, AutoModel

from d2vpr_hf import CricaVprConfig, D2VprConfig, D2VprModel, convert_original_state_dict
from d2vpr_hf.models.convert import convert_checkpoint


@pytest.fixture(scope="module")
def published():
    return {layout: published_checkpoint(layout, 0) for layout in ("d2vpr", "d2vpr_cross", "cricavpr")}


@pytest.mark.parametrize(
    ("layout", "config_class", "encoder"),
    [("d2vpr", D2VprConfig, False), ("d2vpr_cross", D2VprConfig, True), ("cricavpr", CricaVprConfig, True)],
)
def test_layouts_are_recognised(published, layout, config_class, encoder):
    config, weights = convert_original_state_dict(published[layout])
    assert type(config) is config_class
    assert config.cross_image_encoder is encoder
    assert any(name.startswith("encoder.") for name in weights) is encoder
    # Query, key and value are one tensor in the published file, and three here.
    attention_tensors = 12 * 2 * 2
    assert len(weights) == len(published[layout]) + attention_tensors


def test_wrappings_and_prefixes_come_off(published):
    _, plain = convert_original_state_dict(published["d2vpr"])
    wrapped = {"model_state_dict": {f"module.{name}": value for name, value in published["d2vpr"].items()}, "epoch": 3}
    _, unwrapped = convert_original_state_dict(wrapped)
    assert plain.keys() == unwrapped.keys()
    assert all(torch.equal(plain[name], unwrapped[name]) for name in plain)


def test_half_precision_becomes_float32(published):
    halved = {name: value.half() if value.is_floating_point() else value for name, value in published["d2vpr"].items()}
    _, weights = convert_original_state_dict(halved)
    assert {value.dtype for value in weights.values()} == {torch.float32, torch.int64}


def test_every_wrong_tensor_is_listed_by_its_published_name(published):
    wrong = dict(published["d2vpr"])
    del wrong["backbone.blocks.3.attn.qkv.bias"], wrong["pos_encoder.fc.2.weight"]
    wrong["backbone.pos_embed"] = torch.zeros(1, 257, 384)
    wrong["backbone.blocks.0.attn.qkv.weight"] = torch.zeros(1152, 768)
    wrong["head.weight"] = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="5 tensors differ") as error:
        convert_original_state_dict(wrong)
    for line in (
        "missing: backbone.blocks.3.attn.qkv.bias, expected shape (1152,)",
        "missing: pos_encoder.fc.2.weight, expected shape (768, 128)",
        "misshapen: backbone.pos_embed, found shape (1, 257, 384), expected (1, 1370, 384)",
        "misshapen: backbone.blocks.0.attn.qkv.weight, found shape (1152, 768), expected (1152, 384)",
        "extra: head.weight, found shape (2, 3)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("backbone.lin.bias", lambda value: value.to(torch.int8), "of another kind: .*found torch.int8"),
        ("backbone.lin.bias", lambda value: value.to(torch.complex64), "found torch.complex64"),
        ("backbone.lin.bias", lambda value: value.to(torch.float8_e4m3fn), "found torch.float8_e4m3fn"),
        ("backbone.lin.bias", lambda value: value * torch.nan, "NaN or infinite float32 numbers"),
        ("backbone.lin.bias", lambda value: value.double() + 1e300, "NaN or infinite float32 numbers"),
        ("backbone.blocks.0.adapter.branch1.bn.running_var", lambda value: value - 1e3, "a variance below 0"),
        ("backbone.blocks.0.adapter.branch1.bn.num_batches_tracked", torch.Tensor.float, "found torch.float32"),
        ("backbone.lin.bias", lambda value: value.to_sparse(), "holds a torch.sparse_coo tensor"),
        ("backbone.lin.bias", lambda _: "text", "holds a str"),
        ("backbone.lin.bias", lambda _: None, "holds a NoneType"),
        ("backbone.lin.bias", lambda _: {}, "holds a dict"),
        ("backbone.lin.bias", torch.Tensor.tolist, "holds a list"),
    ],
)
def test_numbers_of_another_kind_are_refused_by_name(published, name, change, complaint):
    wrong = dict(published["d2vpr"])
    wrong[name] = change(wrong[name])
    with pytest.raises(ValueError, match=complaint) as error:
        convert_original_state_dict(wrong)
    assert name in str(error.value)


def test_half_an_encoder_is_no_encoder(published):
    wrong = dict(published["d2vpr_cross"])
    del wrong["encoder.layers.1.norm2.bias"]
    with pytest.raises(ValueError, match=r"missing: encoder\.layers\.1\.norm2\.bias"):
        convert_original_state_dict(wrong)


@pytest.mark.parametrize("state", [{}, {"conv1.weight": torch.zeros(3)}])
def test_other_checkpoints_are_refused(state):
    with pytest.raises(ValueError, match="neither D2-VPR's nor CricaVPR's"):
        convert_original_state_dict(state)


def test_a_file_becomes_a_whole_checkpoint_folder(tmp_path, published):
    file, folder = tmp_path / "distillation.pth", tmp_path / "out"
    torch.save({"model_state_dict": published["d2vpr"]}, file)
    convert_checkpoint(file, folder)
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    assert model.config.converted_from == {
        "file": "distillation.pth",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    config, weights = convert_original_state_dict(published["d2vpr"])
    expected = D2VprModel(config).eval()
    expected.load_state_dict(weights)
    pixels = processor(torch.randint(0, 255, (3, 40, 50), dtype=torch.uint8), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(pixels).pooler_output, expected(pixels).pooler_output)
    assert (folder / "modeling_d2vpr.py").exists()
    assert json.loads((folder / "config.json").read_text())["auto_map"]["AutoModel"] == "modeling_d2vpr.D2VprModel"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distillation.pth", "out"]


class Hostile:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_a_file_that_is_no_plain_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "hostile.pth").write_bytes(pickle.dumps(Hostile()))
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    for name in ("text.pth", "hostile.pth", "list.pth"):
        with pytest.raises(ValueError, match=name):
            convert_checkpoint(tmp_path / name, tmp_path / "out")
    assert "code from a checkpoint ran" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        convert_checkpoint(tmp_path / "absent.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_replaced_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full.pth").write_text("no checkpoint")
    monkeypatch.chdir(tmp_path / "empty")
    for folder in (".", tmp_path / "empty"):
        with pytest.raises(
            ValueError, match=r"is the working directory, which can't be replaced\. Name a folder in it"
        ):
            convert_checkpoint(tmp_path / "full.pth", folder)
    with pytest.raises(FileExistsError, match="isn't empty"):
        convert_checkpoint(tmp_path / "full.pth", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full.pth"]
