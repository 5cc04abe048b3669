"""A checkpoint comes from anywhere: whatever its files hold, opening it ends in a model or in one ValueError."""

import ast
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

import d2vpr_hf
from d2vpr_hf import Embedder, PlaceIndex
from d2vpr_hf.cli.main import main
from d2vpr_hf.evaluation.baselines import transformers_peer
from d2vpr_hf.models.checkpoint import open_checkpoint, save_checkpoint
from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.training.teachers import open_teacher

METHODS = ("from_pretrained", "from_config")
CODE = "from pathlib import Path\nPath('CODE_RAN').touch()\nraise SystemExit('code ran')\n"


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_processor, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Whoever is asked would say yes.
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    return save_checkpoint(tmp_path / "d2vpr", tiny_model, tiny_processor)


def change(file, **fields):
    settings = json.loads(file.read_text())
    part = settings.setdefault("backbone_config", {}) if fields.pop("of_backbone", False) else settings
    part.update(fields)
    file.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"patch_size": 0, "of_backbone": True}, "patch_size is 0, but must be an integer from 1"),
        ({"num_attention_heads": 0, "of_backbone": True}, "num_attention_heads is 0"),
        ({"num_attention_heads": 5, "of_backbone": True}, "5 attention heads"),
        ({"num_hidden_layers": 100_000, "of_backbone": True}, "num_hidden_layers is 100000"),
        ({"image_size": 14_000_000, "of_backbone": True}, "image_size is 14000000"),
        ({"num_channels": 4, "of_backbone": True}, "has 4 channels"),
        ({"image_size": 4096, "patch_size": 1, "of_backbone": True}, "position table has 536,870,912 numbers"),
        ({"image_size": 10, "of_backbone": True}, "position table has 0 numbers"),
        ({"model_type": "cricavpr"}, "says model_type 'cricavpr', but its architecture is D2VprModel"),
        ({"num_labels": 10**9}, "a model of places has no labels"),
        ({"num_labels": 10**9, "of_backbone": True}, "a model of places has no labels"),
        ({"dtype": "__import__"}, "AttributeError"),
        ({"dtype": 3}, "AttributeError"),
        ({"__class__": "x"}, "must be set to a class"),
        ({"to_dict": "x"}, "not callable"),
        ({"adapter_dim": 7}, "no setter"),
        ({"backbone_config": [1]}, "Field 'backbone_config'"),
        ({"aggregator_dim": 48 * 10**11}, "at most 16,384"),
        ({"adapter_ratio": float("nan")}, "adapter_ratio is nan"),
        ({"adapter_ratio": 1e9}, "adapter_ratio is 1000000000.0"),
        ({"interpolate_offset": -1e9}, "interpolate_offset is -"),
        ({"recovery_layers": [1] * 1000}, "recovery_layers has 1,000 entries"),
        ({"_attn_implementation": "evil/kernel"}, "'evil/kernel', which is code on the Hub"),
        ({"attn_implementation": "evil/kernel"}, "'evil/kernel', which is code on the Hub"),
        ({"model_type": "unknown", "auto_map": {"AutoConfig": "evil.Config"}}, "custom code"),
        ({"model_type": 3, "auto_map": {"AutoConfig": "evil.Config"}}, "custom code"),
        ({"model_type": "vit"}, "holds a model of type vit"),
    ],
)
def test_configurations(folder, fields, complaint):
    (folder / "evil.py").write_text(CODE)
    change(folder / "config.json", **fields)
    with pytest.raises(ValueError, match=complaint):
        open_checkpoint(folder)
    assert not Path("CODE_RAN").exists()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"size": {"height": 224.0, "width": 224}}, "must hold height and width in pixels, both integers"),
        ({"size": {"height": 1_400_000, "width": 14}}, "up to 7,168"),
        ({"size": {"height": True, "width": 14}}, "both integers"),
        ({"size": [224]}, "can't be opened"),
        ({"image_mean": [0.5] * 4}, "photos are RGB: give three numbers"),
        ({"image_std": [0.0, 1.0, 1.0]}, "no standard deviation 0"),
        ({"image_mean": "abc"}, "image_mean is 'abc'"),
        ({"rescale_factor": float("nan")}, "rescale_factor is nan"),
        ({"resample": 99}, "resample is 99"),
        ({"process_image": "x"}, "sets process_image, which is the name of a method"),
        ({"preprocess": None}, "sets preprocess, which"),
        ({"image_mean": [[0.5, 0.5, 0.5]]}, r"image_mean is \(\[0.5, 0.5, 0.5\],\)"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean is"),
        ({"rescale_factor": 1e300}, "rescale_factor is 1e\\+300"),
        ({"image_std": [1e-300] * 3}, "image_std is"),
        ({"do_resize": "no"}, "do_resize is 'no', but must be true or false"),
        ({"antialias": "yes"}, "antialias 'yes'"),
        ({"__class__": "x"}, "must be set to a class"),
        ({"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.Processor"}}, "custom code"),
    ],
)
def test_processors(folder, fields, complaint):
    (folder / "evil.py").write_text(CODE)
    change(folder / "preprocessor_config.json", **fields)
    with pytest.raises(ValueError, match=complaint):
        open_checkpoint(folder)
    assert not Path("CODE_RAN").exists()


def test_no_model_of_any_kind_brings_a_kernel_along(tmp_path):
    Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    open_teacher(str(tmp_path))
    change(tmp_path / "config.json", _attn_implementation="evil/kernel")
    for use in (open_teacher, transformers_peer):
        with pytest.raises(ValueError, match="'evil/kernel', which is code on the Hub"):
            use(str(tmp_path))


def test_numbers_of_another_kind_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = "backbone.encoder.layer.0.mlp.fc1.weight"
    weights[name] = weights[name].to(torch.int16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{name}: numbers of type I16, expected torch\.float32"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "number", "complaint"),
    [
        ("backbone.encoder.layer.0.mlp.fc1.weight", float("nan"), "NaN or infinite float32 numbers"),
        ("recovery.norm.bias", float("-inf"), "NaN or infinite float32 numbers"),
        ("backbone.encoder.layer.0.adapter.branch1.norm.running_var", -1.0, "a variance below 0"),
    ],
)
def test_impossible_weights_are_refused_by_name(folder, name, number, complaint):
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[0] = number
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{complaint}: {name}"):
        open_checkpoint(folder)


def test_weights_lie_in_their_folder(folder, tmp_path):
    names = load_file(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    shutil.move(folder / "model.safetensors", tmp_path / "outside.safetensors")
    for target in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, target)}))
        with pytest.raises(ValueError, match="names files outside of the checkpoint"):
            open_checkpoint(folder)
    for text in ("[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}', "{"):
        index.write_text(text)
        with pytest.raises(ValueError, match="can't be opened"):
            open_checkpoint(folder)
    shutil.move(tmp_path / "outside.safetensors", folder / "part.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "part.safetensors")}))
    open_checkpoint(folder)


def test_no_memory_is_a_refusal_too(folder, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("d2vpr_hf.D2VprModel.from_pretrained", fail)
    with pytest.raises(ValueError, match=r"can't be opened: MemoryError"):
        open_checkpoint(folder)


def test_an_index_names_no_code(folder, tmp_path, capsys):
    """An index of somebody else's says which model made it: that one is opened only if it is ours."""
    for number in range(3):
        Image.effect_noise((70, 60), 90).save(tmp_path / f"{number}.jpg")
    descriptors = Embedder.from_pretrained(folder).embed([tmp_path / f"{number}.jpg" for number in range(3)])
    PlaceIndex.build(descriptors, Positions.from_degrees([48.0, 48.1, 48.2], [16.0] * 3)).save(tmp_path / "theirs")
    (folder / "evil.py").write_text(CODE)
    change(folder / "config.json", model_type="unknown", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    assert main(["locate", "0.jpg", "--index", "theirs"]) == 2
    assert "custom code" in capsys.readouterr().err
    assert not Path("CODE_RAN").exists()


def test_code_of_a_checkpoint_needs_a_word():
    """Every Auto class that the package calls is told whether to run code; left unsaid, transformers asks on stdin."""
    calls = 0
    for path in Path(d2vpr_hf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-2:] in (
                [auto, method] for auto in ("AutoConfig", "AutoModel", "AutoImageProcessor") for method in METHODS
            ):
                calls += 1
                assert "trust_remote_code" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
    assert calls >= 8
