"""A checkpoint folder is written whole, and over nothing."""

import pytest
from transformers import AutoImageProcessor

from d2vpr_hf.models.checkpoint import save_checkpoint


def test_a_folder_holds_all_that_loading_needs(tmp_path, tiny_model, tiny_processor):
    folder = save_checkpoint(tmp_path / "deep" / "d2vpr", tiny_model, tiny_processor)
    assert sorted(path.name for path in folder.iterdir()) == [
        "aggregator_d2vpr.py",
        "config.json",
        "configuration_d2vpr.py",
        "cross_image_d2vpr.py",
        "image_processing_d2vpr.py",
        "model.safetensors",
        "modeling_d2vpr.py",
        "preprocessor_config.json",
        "regions_d2vpr.py",
        "shortening_d2vpr.py",
    ]
    assert AutoImageProcessor.from_pretrained(folder).size == {"height": 56, "width": 56}
    assert [path.name for path in folder.parent.iterdir()] == ["d2vpr"]


def test_nothing_is_overwritten(tmp_path, tiny_model, tiny_processor):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="isn't empty"):
        save_checkpoint(tmp_path, tiny_model, tiny_processor)
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        save_checkpoint(tmp_path / "notes.txt", tiny_model, tiny_processor)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failed_write_leaves_nothing(tmp_path, tiny_model, tiny_processor, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(type(tiny_model), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "d2vpr", tiny_model, tiny_processor)
    assert list(tmp_path.iterdir()) == []


def test_a_model_saved_alone_prepares_images_too(tmp_path, tiny_model, tiny_processor):
    tiny_model.save_pretrained(tmp_path / "alone")
    assert AutoImageProcessor.from_pretrained(tmp_path / "alone").size == {"height": 224, "width": 224}
    tiny_processor.save_pretrained(tmp_path / "both")
    tiny_model.save_pretrained(tmp_path / "both")
    assert AutoImageProcessor.from_pretrained(tmp_path / "both").size == {"height": 56, "width": 56}
