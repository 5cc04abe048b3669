"""A checkpoint folder is written whole, and over nothing."""

import os

import pytest
import torch
from fresh_process import run_python
from PIL import Image
from published_rule import published_checkpoint
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from d2vpr_hf.models.checkpoint import round_to_float16, save_checkpoint
from d2vpr_hf.retrieval.embedder import weight_hash


def test_a_folder_holds_all_that_loading_needs(tmp_path, tiny_model, tiny_processor):
    folder = save_checkpoint(tmp_path / "deep" / "d2vpr", tiny_model, tiny_processor)
    assert sorted(path.name for path in folder.iterdir()) == [
        "aggregator_d2vpr.py",
        "backbone_d2vpr.py",
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


def test_weights_that_are_float16_numbers_take_half_the_space_and_load_as_float32(tmp_path, tiny_model, tiny_processor):
    full = save_checkpoint(tmp_path / "full", tiny_model, tiny_processor) / "model.safetensors"
    assert {tensor.dtype for tensor in load_file(full).values()} == {torch.float32, torch.int64}
    round_to_float16(tiny_model)
    folder = save_checkpoint(tmp_path / "half", tiny_model, tiny_processor)
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    assert (folder / "model.safetensors").stat().st_size < 0.6 * full.stat().st_size
    loaded = AutoModel.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    assert weight_hash(loaded) == weight_hash(tiny_model)
    # Half a unit in the last place of float16, at most.
    before, after = load_file(full), loaded.state_dict()
    assert all(torch.allclose(after[name], before[name], rtol=2**-11, atol=2**-25) for name in before)
    # One number that float16 lacks, and the file has float32 again.
    with torch.no_grad():
        next(loaded.parameters()).view(-1)[0] = 1 + 2**-12
    again = save_checkpoint(tmp_path / "again", loaded, tiny_processor)
    assert weight_hash(AutoModel.from_pretrained(again)) == weight_hash(loaded) != weight_hash(tiny_model)


def test_numbers_too_large_for_float16_are_refused(tiny_model):
    with torch.no_grad():
        tiny_model.recovery.norm.bias[3] = 1e5
    before = weight_hash(tiny_model)
    with pytest.raises(ValueError, match=r"recovery\.norm\.bias .* Keep its weights in float32"):
        round_to_float16(tiny_model)
    assert weight_hash(tiny_model) == before


KILLER = """
import os, signal, sys
from pathlib import Path

from transformers import AutoModel
from transformers.utils import logging

from d2vpr_hf import Embedder
from d2vpr_hf.models.checkpoint import open_checkpoint, save_checkpoint
from d2vpr_hf.models.convert import convert_checkpoint
from d2vpr_hf.retrieval.pca import PcaSettings, reduce_checkpoint

logging.set_verbosity_error()
logging.disable_progress_bar()
settings = PcaSettings(dim=4, images=8)
writers = {
    "saved": lambda folder: save_checkpoint(folder, *open_checkpoint("tiny")),
    "reduced": lambda folder: reduce_checkpoint("photos", folder, Embedder.from_pretrained("tiny"), settings=settings),
    "converted": lambda folder: convert_checkpoint("published.pth", folder),
}


def run(write, killed_at=None):
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    calls, flush = 0, os.fsync

    def fsync(handle):
        nonlocal calls
        calls += 1
        if calls == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(handle)

    os.fsync = fsync
    write()
    os._exit(0)


for kind, write in writers.items():
    folder = Path(f"to_{kind}") / kind
    kills = 0
    # Up to the flush after the folder was renamed into place.
    for number in [8, 12] if kind == "converted" else range(1, 40, 4):
        if folder.exists():
            break
        kills += run(lambda: write(folder), killed_at=number)
    if not folder.exists():
        assert not run(lambda: write(folder)), kind
    AutoModel.from_pretrained(folder)
    assert [path.name for path in folder.parent.iterdir()] == [kind], list(folder.parent.iterdir())
    assert not (folder / ".lock").exists()
    print(kind, kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kill_9_leaves_nothing_that_the_next_run_does_not_clear(tmp_path, tiny_model, tiny_processor):
    """Whoever writes a checkpoint: saving, reducing, converting."""
    save_checkpoint(tmp_path / "tiny", tiny_model, tiny_processor)
    torch.save(published_checkpoint("d2vpr", seed=0), tmp_path / "published.pth")
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Image.effect_noise((60, 60), 20 + 20 * number).save(tmp_path / "photos" / f"{number}.jpg")
    said = run_python(KILLER, tmp_path, os.environ | {"OMP_NUM_THREADS": "1"}).stdout.split()
    kills = dict(zip(said[::2], map(int, said[1::2]), strict=True))
    assert kills["saved"] >= 3
    assert kills["reduced"] >= 3
    assert kills["converted"] >= 1
