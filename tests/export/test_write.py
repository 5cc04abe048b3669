"""An export gives the model's descriptors from ONNX Runtime, and what can't be exported leaves nothing behind."""

import json
import re

import numpy as np
import pytest
import torch
from made_models import model_of
from packaging.version import Version
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

import d2vpr_hf
from d2vpr_hf import Embedder, export_model
from d2vpr_hf.cli.main import main
from d2vpr_hf.export import write
from d2vpr_hf.files import hash_file
from d2vpr_hf.models.checkpoint import save_checkpoint

exports = pytest.mark.skipif(
    Version(torch.__version__) < Version(write.TORCH_NEEDED), reason="this torch fails in exporting"
)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(7):
        scene = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(scene).resize((160, 120)).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no photo")
    return folder


def embedder_of(kind, processor):
    return Embedder(model_of(kind), processor, name=kind)


def run_graph(folder, photos):
    """The descriptors of a folder's photos by what the exported folder holds alone."""
    import onnxruntime

    processor = AutoImageProcessor.from_pretrained(folder)
    images = [Image.open(path) for path in sorted(photos.glob("*.png"))]
    pixels = processor(images, return_tensors="np")["pixel_values"]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return [session.run(None, {"pixel_values": part})[0] for part in (pixels, pixels[:1])]


@exports
@pytest.mark.parametrize("kind", ["plain", "centred", "nested", "pca"])
def test_the_graph_gives_the_models_descriptors(kind, tmp_path, photos, tiny_processor):
    embedder, out = embedder_of(kind, tiny_processor), tmp_path / "out"
    record = export_model(embedder, out, calibration=photos)
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "model.onnx", "preprocessor_config.json"]
    assert record == json.loads((out / "export.json").read_text())
    expected = embedder.embed(photos, progress=False).vectors
    found, alone = run_graph(out, photos)
    lengths = np.linalg.norm(expected, axis=1)
    assert (np.linalg.norm(found - expected, axis=1) / lengths).max() < 1e-5
    assert np.linalg.norm(alone[0] - expected[0]) / lengths[0] < 1e-5
    assert record["measured"]["photos"] == 7  # the broken one isn't
    assert 0 < record["measured"]["relative_error"] < 1e-5
    assert record["output"]["shape"] == ["batch", expected.shape[1]]
    assert record["weight_hash"] == embedder.weight_hash
    assert record["processor"] == embedder.processor_settings
    assert record["graph_sha256"] == hash_file(out / "model.onnx")
    assert record["graph_bytes"] == (out / "model.onnx").stat().st_size
    assert (record["format"], record["version"], record["precision"]) == ("d2vpr_hf export", 1, "fp32")


@exports
@pytest.mark.filterwarnings("ignore:The cross-image encoder is on")
def test_cricavpr_is_exported_once_its_encoder_is_left_out(tmp_path, photos, tiny_processor):
    save_checkpoint(tmp_path / "teacher", model_of("teacher"), tiny_processor)
    with pytest.raises(ValueError, match="cross_image_encoder=False"):
        export_model(Embedder.from_pretrained(tmp_path / "teacher"), tmp_path / "out", calibration=photos)
    model = AutoModel.from_pretrained(tmp_path / "teacher", cross_image_encoder=False)
    save_checkpoint(tmp_path / "alone", model, tiny_processor)
    embedder = Embedder.from_pretrained(tmp_path / "alone")
    record = export_model(embedder, tmp_path / "out", calibration=photos)
    expected = embedder.embed(photos, progress=False).vectors
    found = run_graph(tmp_path / "out", photos)[0]
    assert (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max() < 1e-5
    assert record["measured"]["photos"] == 7


@exports
def test_a_shipped_checkpoint_is_exported_and_checked_on_a_drawn_town(tmp_path, capsys):
    import onnx

    out = tmp_path / "small"
    assert main(["export", "d2vpr-small", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"folder": str(out), **json.loads((out / "export.json").read_text())}
    assert printed["measured"]["photos"] == 12
    assert printed["measured"]["photos_from"] == "a drawn town"
    assert printed["measured"]["relative_error"] < 1e-5
    weights = 4 * sum(tensor.numel() for tensor in Embedder.from_pretrained("d2vpr-small").model.parameters())
    assert weights < printed["graph_bytes"] < 1.05 * weights
    graph = onnx.load(out / "model.onnx")
    assert {each.domain: each.version for each in graph.opset_import}[""] == printed["opset"]
    assert [each.name for each in graph.graph.input] == ["pixel_values"]
    assert [each.name for each in graph.graph.output] == ["descriptor"]
    # Where it was made is nobody's business.
    assert str(d2vpr_hf.__path__[0]).encode() not in (out / "model.onnx").read_bytes()


@exports
def test_the_size_is_ones_own(tmp_path, photos, tiny_model, tiny_processor, capsys):
    model, out = save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor), tmp_path / "out"
    assert main(["export", str(model), str(out), "--size", "84", "--calibration", str(photos)]) == 0
    printed = capsys.readouterr().out
    assert "(any number of images, 3, 84, 84), gives descriptor of 672 numbers" in printed
    assert re.search(r"on 7 photos of a folder of photos descriptors differ from the model's by \d\.\de-0\d", printed)
    assert AutoImageProcessor.from_pretrained(out).size == {"height": 84, "width": 84}
    assert run_graph(out, photos)[0].shape == (7, 672)


@exports
def test_a_graph_that_differs_leaves_nothing(tmp_path, photos, tiny_processor, monkeypatch):
    monkeypatch.setattr(write, "ERROR_LIMIT", 1e-12)
    with pytest.raises(ValueError, match=r"differ from the model's by .* on photos \(limit 1e-12\)"):
        export_model(embedder_of("plain", tiny_processor), tmp_path / "out", calibration=photos)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@exports
def test_photos_of_which_none_can_be_read_leave_nothing(tmp_path, photos, tiny_processor):
    for path in photos.glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="no photo that can be read"):
        export_model(embedder_of("plain", tiny_processor), tmp_path / "out", calibration=photos)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@exports
@pytest.mark.filterwarnings("ignore:The cross-image encoder is on")
def test_what_cant_be_exported_is_refused_with_what_to_do(tmp_path, tiny_processor):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="cross_image_encoder=False"):
        export_model(embedder_of("encoder", tiny_processor), out)
    with pytest.raises(ValueError, match=r"float16, but float32 alone"):
        export_model(Embedder(model_of("plain").half(), tiny_processor), out)
    with pytest.raises(ValueError, match="is a Linear, but a D2VprModel"):
        export_model(Embedder(torch.nn.Linear(2, 2), tiny_processor), out)
    with pytest.raises(ValueError, match="multiples of 14"):
        export_model(embedder_of("plain", tiny_processor), out, size=100)
    tiny_processor.do_resize = False
    with pytest.raises(ValueError, match="doesn't bring photos to one height"):
        export_model(embedder_of("plain", tiny_processor), out)
    assert not list(tmp_path.iterdir())


@exports
def test_a_folder_that_holds_something_is_left_alone(tmp_path, tiny_model, tiny_processor, capsys):
    model = save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor)
    before = {path.name: hash_file(path) for path in model.iterdir() if path.is_file()}
    assert main(["export", str(model), str(model)]) == 2
    assert "exists and isn't empty" in capsys.readouterr().err
    assert {path.name: hash_file(path) for path in model.iterdir() if path.is_file()} == before


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(write, "find_spec", lambda name: None if name.startswith("onnx") else name)
    assert main(["export", "d2vpr-small", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "needs onnx, onnxscript, onnxruntime" in message
    assert "pip install 'd2vpr-hf[onnx]'" in message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())


def test_an_older_torch_is_named(monkeypatch):
    monkeypatch.setattr(write, "TORCH_NEEDED", "99.0")
    with pytest.raises(ImportError, match=r"torch 99.0 or newer, and this is"):
        write.check_installed()
