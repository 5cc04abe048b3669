"""What the package ships is made of a checkpoint and JSON files, and can be made anew of itself."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from d2vpr_hf import D2VprConfig, D2VprImageProcessor, D2VprModel
from d2vpr_hf.models.checkpoint import TRAINING_FILE, save_checkpoint
from d2vpr_hf.retrieval.embedder import weight_hash

FOLDER = Path(__file__).parents[2] / "model_cards"
STAGES = {"stages": [{"stage": "finetune", "step": 1234}]}
TABLE = """file\tsource\tpath there\tlicence\twhere\tauthor
photos/b.jpg\tme/photos\tx/other.jpg\tCC-BY-4.0\tREADME\tSomebody
photos/a.jpg\tme/photos\tx/a.jpg\tCC-BY-4.0\tREADME\tSomebody
photos/c.jpg\tme/photos\tx/c.jpg\tCC0-1.0\tREADME\t
photos/d.jpg\tPackage d\t\tMIT\tLICENSE\t
photos/unused.jpg\tme/photos\tx/u.jpg\tCC-BY-4.0\tREADME\tSomebody else
"""


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path, tiny_model, tiny_processor):
    folder = save_checkpoint(tmp_path / "checkpoint", tiny_model, tiny_processor)
    (folder / TRAINING_FILE).write_text(json.dumps(STAGES))
    return folder


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in "abcd":
        (tmp_path / "photos" / f"{name}.jpg").write_bytes(name.encode())
    (tmp_path / "SOURCES.tsv").write_text(TABLE)
    return tmp_path


def test_a_checkpoint_is_shipped_with_its_records_and_again_with_results(tmp_path, checkpoint):
    ship = script("ship").ship
    root, about, sources = tmp_path / "root", tmp_path / "about.json", tmp_path / "sources.json"
    about.write_text(json.dumps({"not_this": ["Not that."], "data_sources": [{"name": "towns", "terms": "ours"}]}))
    sources.write_text(json.dumps({"data_sources": [{"name": "a/b", "terms": "CC0"}], "credits": ["Somebody: a.jpg"]}))
    folder = ship("tiny", checkpoint, about=about, sources=[sources], root=root)
    assert folder == root / "src/d2vpr_hf/models/pretrained/tiny"
    assert torch.float16 in {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}
    card = root / "model_cards/tiny.md"
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}
    assert "auto_map" not in (folder / "config.json").read_text() + (folder / "preprocessor_config.json").read_text()
    assert all(
        words in card.read_text() for words in ("- Not that.", "| towns |", "| a/b |", "- Somebody: a.jpg", "1234")
    )

    # Results are of the rounded weights, those that are shipped.
    rounded = D2VprModel.from_pretrained(folder)
    table = {"name": "t", "measure": "mAP", "rule": "r", "counts": {}, "rows": [{"method": "tiny", "value": 0.25}]}
    comparison = tmp_path / "comparison.json"
    comparison.write_text(json.dumps(table | {"model": {"weight_hash": weight_hash(rounded)}}))
    ship("tiny", checkpoint, about=about, comparisons=[comparison], root=root)
    assert "| tiny | 25.0 |" in card.read_text()
    # Of itself it is made again, to the byte.
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ship("tiny", folder, root=root)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    # Results of the weights before rounding are refused, and what is shipped stays.
    comparison.write_text(json.dumps(table | {"model": {"weight_hash": "b" * 64}}))
    with pytest.raises(ValueError, match="of the weights bbbbbbbb"):
        ship("tiny", checkpoint, comparisons=[comparison], root=root)
    assert (folder / "model.safetensors").read_bytes() == before[Path("model.safetensors")]
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_a_large_model_is_not_shipped(tmp_path):
    torch.manual_seed(0)
    backbone = {"hidden_size": 480, "num_hidden_layers": 8, "num_attention_heads": 5, "image_size": 112}
    model = D2VprModel(D2VprConfig(backbone_config=backbone, recovery_layers=(2, 8), aggregator_dim=96))
    folder = save_checkpoint(tmp_path / "large", model, D2VprImageProcessor())
    with pytest.raises(ValueError, match="but the package ships at most 23,000,000"):
        script("ship").ship("large", folder, root=tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_sources_are_listed_by_licence_and_author(photos, monkeypatch, capsys):
    (photos / "FILES.txt").write_text("photos/b.jpg\nphotos/a.jpg\n\nphotos/c.jpg\nphotos/d.jpg\n")
    module = script("list_sources")
    monkeypatch.setattr(sys, "argv", ["list_sources.py", str(photos / "SOURCES.tsv"), str(photos / "FILES.txt")])
    module.main()
    found = json.loads(capsys.readouterr().out)
    # printf '%s  photos/a.jpg\n%s  photos/b.jpg\n' $(printf a | sha256sum) ... | sha256sum
    of_both = "936af555fa0b0d4ba4a87a98a40650a750350dad83286b4de489c8097bfb69ac"
    assert [(each["name"], each["terms"], each["files"]) for each in found["data_sources"]] == [
        ("Package d", "MIT (LICENSE)", 1),
        ("me/photos", "CC-BY-4.0 (README)", 2),
        ("me/photos", "CC0-1.0 (README)", 1),
    ]
    assert found["data_sources"][1]["files_sha256"] == of_both
    assert found["data_sources"][1]["url"] == "https://github.com/me/photos"
    assert "url" not in found["data_sources"][0]
    assert found["credits"] == [
        "Package d, MIT: d.jpg",
        "Somebody (from me/photos), CC-BY-4.0: a.jpg, other.jpg",
    ]
    with pytest.raises(ValueError, match=r"no row for photos/gone\.jpg"):
        module.list_sources(photos / "SOURCES.tsv", ["photos/gone.jpg"])
