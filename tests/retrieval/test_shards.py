"""A list that several processes embed in parts: lost, started again, started twice, and joined to one result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from d2vpr_hf.files import holding
from d2vpr_hf.photos.folder import read_photo_folder
from d2vpr_hf.retrieval import shards as module
from d2vpr_hf.retrieval.descriptors import DescriptorFolder, Descriptors
from d2vpr_hf.retrieval.embedder import Embedder
from d2vpr_hf.retrieval.index import PlaceIndex
from d2vpr_hf.retrieval.update import EmbeddedPhotos, index_photos
from tests.broken_photos import photo, write_broken

# A process with one part, in batches of 4; one that is to be killed gets stuck in its third.
PROCESS = """
import sys, time
import torch
from d2vpr_hf import Embedder
torch.set_num_threads(int(sys.argv[5]))
embedder = Embedder.from_pretrained(sys.argv[1], batch_size=4, device="cpu")
calls = []
def wait(*_):
    calls.append(1)
    time.sleep(1.1 if len(calls) < 3 else 600)
if sys.argv[6] == "stuck":
    embedder.model.register_forward_pre_hook(wait)
embedder.embed(sys.argv[2], folder=sys.argv[3], shard=(int(sys.argv[4]), 4), progress=False)
"""


@pytest.fixture
def embedder(tiny_model, tiny_processor) -> Embedder:
    return Embedder(tiny_model, tiny_processor, batch_size=4, device="cpu")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(13):
        photo(number, 30, 40).save(folder / f"{number:03d}.jpg")
    return folder


def embed_parts(embedder, photos, out, shards, numbers=None):
    for number in numbers or range(shards, 0, -1):
        embedder.embed(photos, folder=out, shard=(number, shards), progress=False)


def test_of_four_processes_one_is_killed_and_one_is_started_twice(tmp_path, embedder):
    folder, out, checkpoint = tmp_path / "photos", tmp_path / "out", tmp_path / "model"
    folder.mkdir()
    for number in range(90):
        photo(number, 30, 40).save(folder / f"{number:03d}.jpg")
    write_broken(folder, 7, "text")  # the last of the list, by its name
    embedder.model.save_pretrained(checkpoint)
    embedder.processor.save_pretrained(checkpoint)

    def start(number, pace="fast"):
        words = [checkpoint, folder, out, number, torch.get_num_threads(), pace]
        environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2]), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", PROCESS, *map(str, words)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    killed = start(2, "stuck")
    part = module.part_folder(out, 2, 4)
    while not list(part.glob("parts/part-*.npy")):
        assert killed.poll() is None, "the process ended before it was killed"
        time.sleep(0.02)
    twice = start(2)  # the other still holds the part
    assert twice.wait(300) == 1
    assert "is being written by another run" in twice.stderr.read()
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(300) == -signal.SIGKILL
    others = [start(number) for number in (1, 3, 4)]
    with pytest.raises(ValueError, match=r"2/4 \(unfinished\)"):
        Descriptors.load(out)
    assert [process.wait(300) for process in others] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"of 4 parts 1 aren't finished, 2/4 \(unfinished\)\. Run"):
        Descriptors.load(out)
    held = len(list(part.glob("parts/part-*.npy")))
    assert held >= 1
    again = [start(2), start(3)]  # the one that was lost, and one that was finished
    assert [process.wait(300) for process in again] == [0, 0]

    joined = Descriptors.load(out)
    whole = embedder.embed(folder, folder=tmp_path / "whole", progress=False)
    assert joined.paths == whole.paths
    assert joined.skipped == whole.skipped
    assert len(joined.skipped) == 1
    np.testing.assert_array_equal(joined.vectors, whole.vectors)
    np.testing.assert_array_equal(joined.states, whole.states)
    assert joined.weight_hash == whole.weight_hash
    assert torch.pdist(torch.tensor(joined.vectors)).min() > 1e-4


@pytest.mark.parametrize("shards", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("total", [0, 1, 13, 64])
def test_parts_one_after_the_other_are_the_list(shards, block, total):
    manifest = module.Manifest(shards, block, {}, [str(row) for row in range(total)])
    ranges = [manifest.rows(number) for number in range(1, shards + 1)]
    assert [row for each in ranges for row in each] == list(range(total))
    assert all(each.start % block == 0 for each in ranges if each)


def test_more_parts_than_photos(tmp_path, embedder, photos):
    embed_parts(embedder, photos, tmp_path / "out", 20)
    joined = Descriptors.load(tmp_path / "out")
    np.testing.assert_array_equal(joined.vectors, embedder.embed(photos, progress=False).vectors)
    assert len(joined) == 13


@pytest.mark.parametrize("shard", [(0, 4), (5, 4), (-1, 4), (1, 0), (1,), (1.0, 4), (True, 4), "1/4", 3])
def test_shards_that_are_none(tmp_path, embedder, photos, shard):
    with pytest.raises(ValueError, match=r"shard is .* but must be a part's number"):
        embedder.embed(photos, folder=tmp_path / "out", shard=shard, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_shard_needs_a_folder(embedder, photos):
    with pytest.raises(ValueError, match="without the folder"):
        embedder.embed(photos, shard=(1, 2), progress=False)


def test_another_list_another_number_of_parts_another_model(tmp_path, embedder, photos):
    out = tmp_path / "out"
    embed_parts(embedder, photos, out, 2, [1])
    with pytest.raises(ValueError, match="made of 2 parts, not of 3"):
        embed_parts(embedder, photos, out, 3, [1])
    photo(50).save(photos / "004b.jpg")
    with pytest.raises(ValueError, match=r"13 of them, now 14, and number 6 is 005\.jpg there, now 004b\.jpg"):
        embed_parts(embedder, photos, out, 2, [2])
    (photos / "004b.jpg").unlink()
    (photos / "012.jpg").rename(tmp_path / "012.jpg")
    with pytest.raises(ValueError, match=r"number 13 is 012\.jpg there, now nothing"):
        embed_parts(embedder, photos, out, 2, [2])
    (tmp_path / "012.jpg").rename(photos / "012.jpg")
    with torch.no_grad():
        next(embedder.model.parameters()).add_(1)
    with pytest.raises(ValueError, match="made with other settings: weights"):
        embed_parts(embedder, photos, out, 2, [2])
    with torch.no_grad():
        next(embedder.model.parameters()).sub_(1)
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == ["part-00001-of-00002", "shards.json"]


def test_folders_of_parts_and_others_do_not_mix(tmp_path, embedder, photos):
    embedder.embed(photos, folder=tmp_path / "whole", progress=False)
    with pytest.raises(ValueError, match=r"descriptors\.json and no shards\.json"):
        embed_parts(embedder, photos, tmp_path / "whole", 2)
    embed_parts(embedder, photos, tmp_path / "out", 2)
    with pytest.raises(ValueError, match="Name a new or empty folder"):
        embedder.embed(photos, folder=tmp_path / "out", progress=False)


def test_parts_at_fault_are_named(tmp_path, embedder, photos):
    out = tmp_path / "out"
    embed_parts(embedder, photos, out, 3)
    parts = [module.part_folder(out, number, 3) for number in (1, 2, 3)]
    shutil.move(parts[1], tmp_path / "kept")
    with pytest.raises(ValueError, match=r"1 aren't finished, 2/3 \(missing\)"):
        Descriptors.load(out)
    shutil.copytree(parts[0], parts[1])
    with pytest.raises(ValueError, match=r"part-00002-of-00003 holds 000\.jpg, which isn't there"):
        Descriptors.load(out)
    shutil.rmtree(parts[1])
    shutil.move(tmp_path / "kept", parts[1])
    manifest = json.loads((out / "shards.json").read_text())
    for change, match in [
        (
            {"about": {**manifest["about"], "dtype": "bfloat16"}},
            "part-00001-of-00003 was made with other .*dtype",
        ),
        ({"names": [*manifest["names"], "013.jpg"]}, r"holds 5 photos and 0 that were skipped, but has 6 .* 3/3"),
        ({"shards": 0}, "isn't as it was written"),
        ({"names": "abc"}, "isn't as it was written"),
        ({"block": 0}, "isn't as it was written"),
    ]:
        (out / "shards.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=match):
            Descriptors.load(out)
    for text in ("", "[]", '{"shards": 3}', "{" * 100_000):
        (out / "shards.json").write_text(text)
        with pytest.raises(ValueError, match="isn't as it was written"):
            Descriptors.load(out)


def test_one_writes_the_list_while_others_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.1)
    with holding(tmp_path), pytest.raises(RuntimeError, match="being written by another run"):
        module.claim_part(tmp_path, (1, 2), 4, ["a"], {})
    folder, rows = module.claim_part(tmp_path, (2, 2), 4, ["a", "b"], {})
    assert (folder.name, rows) == ("part-00002-of-00002", [0, 1])


def test_an_index_of_parts_is_that_of_the_photos(tmp_path, embedder, photos, monkeypatch):
    write_broken(photos, 3, "empty")
    out = tmp_path / "out"
    embed_parts(embedder, photos, out, 2)
    listed = read_photo_folder(photos)
    update = index_photos(listed, tmp_path / "places", EmbeddedPhotos(listed, out))
    direct = index_photos(listed, tmp_path / "direct", embedder, progress=False)
    assert (update.added, len(update.skipped)) == (13, 1)
    assert update.skipped == direct.skipped
    for name in ("weight_hash", "processor", "dtype"):
        assert getattr(update.index, name) == getattr(direct.index, name)
    loaded = PlaceIndex.load(tmp_path / "places")
    assert loaded.places["path"].tolist() == direct.index.places["path"].tolist()
    np.testing.assert_array_equal(loaded.vectors(loaded.places["id"]), direct.index.vectors(direct.index.places["id"]))
    # The model itself goes on from there, and embeds nothing anew.
    assert index_photos(listed, tmp_path / "places", embedder, progress=False).kept == 13


def test_an_index_names_photos_that_were_not_embedded(tmp_path, embedder, photos):
    embedder.embed(photos, folder=tmp_path / "out", progress=False)
    photo(70).save(photos / "005.jpg")
    photo(71).save(photos / "900.jpg")
    with pytest.raises(ValueError, match=r"2 of 14 photos have no .*, or were changed since: 005\.jpg, 900"):
        EmbeddedPhotos(read_photo_folder(photos), tmp_path / "out")


def test_parts_are_ordinary_folders(tmp_path, embedder, photos):
    embed_parts(embedder, photos, tmp_path / "out", 2, [1])
    _, keys, _ = DescriptorFolder.read_finished(tmp_path / "out" / "part-00001-of-00002")
    assert keys.names == ["000.jpg", "001.jpg", "002.jpg", "003.jpg", "004.jpg", "005.jpg", "006.jpg", "007.jpg"]
