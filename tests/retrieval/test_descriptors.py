"""A folder of descriptors: killed, resumed, brought up to date, damaged, and held by one run at a time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from d2vpr_hf.photos.images import UnreadableImage
from d2vpr_hf.retrieval import descriptors as parts
from d2vpr_hf.retrieval.descriptors import (
    DamagedRows,
    DescriptorFolder,
    Descriptors,
    RowKeys,
    file_states,
    read_rows,
    same_file,
    write_rows,
)
from d2vpr_hf.retrieval.embedder import embed_images
from tests.broken_photos import photo, write_broken, write_good

# What the killed process runs: batches of 4, slow enough to be killed in the middle.
KILLED_RUN = """
import sys, time
import torch
from d2vpr_hf import D2VprImageProcessor, D2VprModel, embed_images
torch.set_num_threads(int(sys.argv[4]))
model = D2VprModel.from_pretrained(sys.argv[1])
processor = D2VprImageProcessor.from_pretrained(sys.argv[1])
model.register_forward_pre_hook(lambda *_: time.sleep(0.15))
embed_images(sys.argv[2], model=model, processor=processor, batch_size=4, folder=sys.argv[3], progress=False)
"""


@pytest.fixture
def run(tiny_model, tiny_processor, tmp_path):
    """embed_images into tmp_path/out; `run.embedded` counts the images that went through the model."""

    def embed(images, folder=tmp_path / "out", **options):
        options = {"model": tiny_model, "processor": tiny_processor, "batch_size": 4, "progress": False, **options}
        return embed_images(images, folder=folder, **options)

    embed.embedded = 0

    def count(_, inputs):
        embed.embedded += len(inputs[0])

    tiny_model.register_forward_pre_hook(count)
    return embed


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        photo(number).save(folder / f"{number:03d}.jpg")
    return folder


def read_part(path):
    return read_rows(path, path.with_suffix(".parquet"), verify=True)


def made_keys(names, states=None):
    """Keys of files that aren't there."""
    return RowKeys(
        names, [f"p{name}" for name in names], np.zeros((len(names), 4), np.int64) if states is None else states
    )


def test_a_killed_run_is_resumed_without_embedding_twice(tmp_path, run, tiny_model, tiny_processor):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for number in range(80):
        photo(number, 30, 40).save(folder / f"{number:03d}.jpg")
    write_broken(folder, 7, "text")
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    source = Path(parts.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_RUN, tmp_path / "model", folder, out, str(torch.get_num_threads())],
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    while len(list(out.glob("parts/part-*.npy"))) < 2:
        assert process.poll() is None, "the run ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    held = sum(len(read_part(path).keys) for path in out.glob("parts/part-*.npy"))
    assert 8 <= held < 80
    assert not (out / "descriptors.json").exists()

    resumed = run(folder)
    assert run.embedded == 80 - held
    whole = run(folder, tmp_path / "uninterrupted")
    assert len(whole) == 80
    assert resumed.paths == whole.paths == sorted(str(path) for path in folder.glob("???.jpg"))
    assert resumed.skipped == whole.skipped
    assert len(whole.skipped) == 1
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)
    assert torch.pdist(torch.tensor(whole.vectors)).min() > 1e-4
    for name in ("descriptors.npy", "images.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory"), OSError(28, "No space left")])
def test_an_interrupted_run_keeps_what_it_had(run, photos, tiny_model, error):
    def stop(*_):
        if run.embedded >= 8:
            raise error

    hook = tiny_model.register_forward_pre_hook(stop, prepend=True)
    with pytest.raises(type(error)):
        run(photos)
    hook.remove()
    assert run.embedded == 8
    assert len(run(photos)) == 12
    assert run.embedded == 12


def test_added_gone_and_changed_photos_are_taken_up(run, photos):
    first = run(photos)
    assert run.embedded == 12
    again = run(photos)
    assert run.embedded == 12
    np.testing.assert_array_equal(again.vectors, first.vectors)

    (photos / "003.jpg").unlink()
    photo(50).save(photos / "000a.jpg")
    photo(51).save(photos / "005.jpg")
    os.utime(photos / "007.jpg", ns=(1, 1))
    updated = run(photos)
    assert run.embedded == 12 + 3
    names = [Path(path).name for path in updated.paths]
    assert names == sorted(path.name for path in photos.iterdir())
    old = dict(zip((Path(path).name for path in first.paths), first.vectors, strict=True))
    for name, vector in zip(names, updated.vectors, strict=True):
        if name in ("000a.jpg", "005.jpg"):
            assert name not in old or np.abs(vector - old[name]).max() > 1e-3
        else:
            np.testing.assert_allclose(vector, old[name], atol=1e-6)
    shutil.rmtree(photos)
    photos.mkdir()
    assert run(photos).vectors.shape == (0, first.vectors.shape[1])
    assert run.embedded == 15


def test_a_folder_that_moved_or_is_named_otherwise_is_known_again(run, photos, tmp_path, monkeypatch):
    first = run(photos)
    moved = photos.rename(tmp_path / "moved")
    second = run(moved)
    monkeypatch.chdir(tmp_path)
    third = run("moved")
    assert run.embedded == 12
    assert [Path(path).parent for path in (first.paths[0], second.paths[0], third.paths[0])] == [
        photos,
        moved,
        Path("moved"),
    ]
    np.testing.assert_array_equal(first.vectors, third.vectors)


def test_lists_of_paths_resume_too_and_keep_their_order(run, photos):
    paths = sorted(photos.iterdir())
    run(paths[:6])
    mixed = [paths[9], paths[2], paths[2], paths[7], paths[0]]
    descriptors = run(mixed)
    assert run.embedded == 6 + 2
    assert descriptors.paths == [str(path) for path in mixed]
    np.testing.assert_array_equal(descriptors.vectors[1], descriptors.vectors[2])
    np.testing.assert_allclose(descriptors.vectors[3], run([paths[7]], None).vectors[0], atol=1e-6)


def test_the_finished_folder_says_the_same_in_every_file(run, photos, tmp_path, tiny_processor):
    write_broken(photos, 0, "empty")
    descriptors = run(photos)
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "descriptors.json",
        "descriptors.npy",
        "images.parquet",
    ]
    assert isinstance(descriptors.vectors, np.memmap)
    table = pd.read_parquet(out / "images.parquet")
    assert table["path"].tolist() == descriptors.paths
    assert table["name"].tolist() == [Path(path).name for path in descriptors.paths]
    assert table["size_bytes"].tolist() == [Path(path).stat().st_size for path in descriptors.paths]
    assert table["mtime_ns"].tolist() == [Path(path).stat().st_mtime_ns for path in descriptors.paths]
    np.testing.assert_array_equal(np.load(out / "descriptors.npy"), descriptors.vectors)
    about = json.loads((out / "descriptors.json").read_text())
    assert about["rows"] == 12
    assert about["dim"] == descriptors.vectors.shape[1]
    assert about["processor"] == json.loads(json.dumps(tiny_processor.to_dict()))
    loaded = Descriptors.load(out)
    np.testing.assert_array_equal(loaded.vectors, descriptors.vectors)
    assert (loaded.paths, loaded.skipped) == (descriptors.paths, descriptors.skipped)
    assert (loaded.model_name, loaded.weight_hash) == (descriptors.model_name, descriptors.weight_hash)
    assert len(loaded.skipped) == 1


def test_other_weights_processor_or_dtype_are_refused(run, photos, tiny_model, tiny_processor):
    run(photos)
    with pytest.raises(ValueError, match="dtype float32, now bfloat16"):
        run(photos, dtype="bfloat16")
    tiny_processor.resample = 0
    with pytest.raises(ValueError, match="processor resample 2, now 0"):
        run(photos)
    tiny_processor.resample = 2
    with torch.no_grad():
        next(tiny_model.parameters()).view(-1)[0] += 1
    with pytest.raises(ValueError, match=r"weights .*[0-9a-f]{8}, now [0-9a-f]{8}.*Name another folder"):
        run(photos)
    assert run.embedded == 12


def stop_before_joining(monkeypatch):
    """A run that is ended when all parts are written."""

    def ended(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(DescriptorFolder, "finish", ended)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "flipped", "empty"])
def test_damaged_parts_are_embedded_again_and_told(run, photos, tmp_path, monkeypatch, caplog, damage, suffix):
    whole = run(photos, tmp_path / "whole")
    monkeypatch.setattr(parts, "_PART_ROWS", 4)
    with monkeypatch.context() as patch:
        stop_before_joining(patch)
        with pytest.raises(KeyboardInterrupt):
            run(photos)
    assert run.embedded == 24
    written = sorted((tmp_path / "out" / "parts").glob(f"*{suffix}"))
    assert len(written) == 3
    data = bytearray(written[1].read_bytes())
    if damage == "flipped":
        data[len(data) // 2 if suffix == ".npy" else data.index(b"jpg")] ^= 1
    kinds = {"truncated": data[:-100], "garbage": b"\xff" * 1000, "flipped": data, "empty": b""}
    written[1].write_bytes(kinds[damage])
    repaired = run(photos)
    assert run.embedded == 24 + 4
    assert written[1].stem in caplog.text
    assert "embedded again" in caplog.text
    assert repaired.paths == whole.paths
    np.testing.assert_array_equal(repaired.vectors, whole.vectors)


def test_a_damaged_finished_file_is_embedded_again_and_refused_by_load(run, photos, tmp_path):
    whole = np.array(run(photos).vectors)
    path = tmp_path / "out" / "descriptors.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-10])
    with pytest.raises(DamagedRows, match="damaged"):
        Descriptors.load(tmp_path / "out")
    np.testing.assert_array_equal(run(photos).vectors, whole)
    assert run.embedded == 24
    (tmp_path / "out" / "descriptors.json").unlink()
    with pytest.raises(FileNotFoundError, match="no finished run"):
        Descriptors.load(tmp_path / "out")


@pytest.mark.parametrize("step", ["descriptors.json", "rmtree"])
def test_ending_anywhere_while_joining_loses_nothing(run, photos, tmp_path, monkeypatch, step):
    run(photos)
    photo(60).save(photos / "900.jpg")
    replace = parts.replace_file

    def ended(path, *content):
        if step in (path.name, "rmtree"):
            raise KeyboardInterrupt
        replace(path, *content)

    with monkeypatch.context() as patch:
        patch.setattr(*((shutil, "rmtree") if step == "rmtree" else (parts, "replace_file")), ended)
        with pytest.raises(KeyboardInterrupt):
            run(photos)
    if step != "rmtree":
        with pytest.raises(ValueError, match="different runs"):
            Descriptors.load(tmp_path / "out")
    assert len(run(photos)) == 13
    assert run.embedded == 13
    assert len(Descriptors.load(tmp_path / "out")) == 13


def test_two_runs_at_once_are_refused_and_temporary_files_removed(run, photos, tmp_path):
    out = tmp_path / "out"
    run(photos)
    left = [out / "descriptors.npy.tmp", out / "parts" / "part-000009.npy.tmp"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
    about = json.loads((out / "descriptors.json").read_text())
    with DescriptorFolder(out, about):
        assert not any(path.exists() for path in left)
        with pytest.raises(RuntimeError, match="written by another run"):
            run(photos)
    assert len(run(photos)) == 12


def test_a_full_disk_leaves_no_half_file(run, photos, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run(photos)
    assert [path.name for path in (tmp_path / "out" / "parts").iterdir()] == []
    assert len(run(photos)) == 12


def test_parts_are_written_every_1024_rows_and_every_second(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(parts.time, "monotonic", lambda: now[0])
    with DescriptorFolder(tmp_path, {"weight_hash": "a"}) as folder:
        written = []
        for number in range(60):
            keys = made_keys([f"{number}-{row}" for row in range(64)])
            folder.add(keys, np.full((64, 3), number, np.float32))
            now[0] += 0.01 if number < 40 else 0.6
            written.append(len(list((tmp_path / "parts").glob("*.npy"))))
    # 16 batches of 64 make 1024 rows: parts after batches 15 and 31. From batch 40 on they come 0.6 s apart, so a
    # second has passed at 42 (0.69 s at 41), 44, ... and 58.
    assert [written[15], written[31], written[39]] == [1, 2, 2]
    assert written[59] - written[39] == 9


def test_joining_keeps_rows_in_order_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_JOIN_ROWS", 7)
    count = 50
    vectors = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    keys = made_keys([f"é\n{row}" for row in range(count)], np.arange(200).reshape(50, 4))
    order = np.random.default_rng(1).permutation(count)
    with DescriptorFolder(
        tmp_path, dict.fromkeys(("model_name", "weight_hash"), "a") | {"processor": None, "dtype": None}
    ) as folder:
        for start in range(0, count, 9):
            folder.add(keys[range(start, min(start + 9, count))], vectors[start : start + 9])
            folder.flush()
        assert folder.missing(keys) == []
        folder.finish(keys[order], [], 3)
    found, rows, _ = DescriptorFolder.read_finished(tmp_path)
    np.testing.assert_array_equal(found, vectors[order])
    assert rows.names == [keys.names[row] for row in order]
    np.testing.assert_array_equal(rows.states, keys.states[order])


def test_a_row_file_without_rows_can_be_read(tmp_path):
    paths = tmp_path / "rows.npy", tmp_path / "rows.parquet"
    checksum = write_rows(*paths, {"dtype": "x"}, made_keys([]), 5, [])
    file = read_rows(*paths, verify=True)
    assert file.vectors().shape == (0, 5)
    assert (file.checksum, file.about) == (checksum, {"dtype": "x"})


@pytest.mark.parametrize("values", [[None] * 12, list(range(12)), ["a", None] * 6])
def test_a_table_that_names_no_photos_is_damaged(run, photos, tmp_path, caplog, values):
    run(photos)
    path = tmp_path / "out" / "images.parquet"
    table = pq.read_table(path)
    changed = table.set_column(1, "path", pa.array(values)).replace_schema_metadata(table.schema.metadata)
    pq.write_table(changed, path)
    with pytest.raises(DamagedRows, match=r"images\.parquet isn't a table of photos"):
        Descriptors.load(tmp_path / "out")
    assert len(run(photos)) == 12
    assert run.embedded == 24
    assert "embedded again" in caplog.text


def without(name):
    return lambda about: json.dumps({key: about[key] for key in about if key != name}).encode()


@pytest.mark.parametrize(
    "broken",
    [
        *[lambda about, content=content: content for content in (b"", b"{", b"[]", b"7", b"[" * 200_000)],
        lambda about: json.dumps(about).encode("utf-16"),
        *[without(name) for name in ("skipped", "model_name", "weight_hash", "processor", "dtype")],
        lambda about: json.dumps(about | {"skipped": [["a"]]}).encode(),
        lambda about: json.dumps(about | {"model_name": None}).encode(),
    ],
)
def test_a_broken_descriptors_json_is_named_and_the_next_run_writes_it_anew(run, photos, tmp_path, broken):
    run(photos)
    path = tmp_path / "out" / "descriptors.json"
    whole = path.read_bytes()
    path.write_bytes(broken(json.loads(whole)))
    with pytest.raises(ValueError, match=r"descriptors\.json .* Run the same command again"):
        Descriptors.load(tmp_path / "out")
    run(photos)
    assert path.read_bytes() == whole
    assert run.embedded == 12


def test_a_folder_of_other_files_is_left_alone(run, photos, tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text("{}")
    for folder, name in ((photos, "000.jpg"), (tmp_path / "index", "index.json")):
        before = sorted(folder.iterdir())
        with pytest.raises(ValueError, match=f"holds {name}.* and no descriptors. Name a new or empty folder"):
            run(photos, folder)
        assert sorted(folder.iterdir()) == before


def test_foreign_files_are_no_rows(tmp_path):
    paths = tmp_path / "other.npy", tmp_path / "other.parquet"
    np.save(paths[0], np.zeros((2, 2), np.float32))
    pd.DataFrame({"name": ["a", "b"]}).to_parquet(paths[1])
    with pytest.raises(DamagedRows, match="no file of descriptors"):
        read_rows(*paths, verify=False)
    write_rows(*paths, {}, made_keys(["a", "b"]), 2, [np.ones((2, 2), np.float32)])
    for other in (np.ones((2, 2)), np.ones((3, 2), np.float32), np.array([["a"]] * 2, object)):
        np.save(paths[0], other)
        with pytest.raises(DamagedRows, match="damaged"):
            read_rows(*paths, verify=False)


@pytest.mark.parametrize("name", ["descriptors.safetensors", "parts/part-000001.safetensors"])
def test_a_folder_of_an_earlier_version_is_named_as_such(run, photos, tmp_path, name):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"rows")
    for call in (lambda: run(photos), lambda: Descriptors.load(tmp_path / "out")):
        with pytest.raises(ValueError, match=r"an earlier version of d2vpr_hf wrote descriptors.*Name another folder"):
            call()
    assert path.read_bytes() == b"rows"


@pytest.mark.parametrize("step", ["vectors", "table"])
def test_ending_between_the_two_finished_files_loses_nothing(run, photos, tmp_path, monkeypatch, step):
    """The vectors take their place first, and are given their table by the next run."""
    run(photos)
    photo(60).save(photos / "900.jpg")
    replace = Path.replace

    def ended(path, target):
        if Path(target).name == {"vectors": "descriptors.npy", "table": "images.parquet"}[step]:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", ended)
        with pytest.raises(KeyboardInterrupt):
            run(photos)
    if step == "table":
        with pytest.raises(ValueError, match="different runs"):
            Descriptors.load(tmp_path / "out")
    assert len(run(photos)) == 13
    assert run.embedded == 13


def test_strict_keeps_what_was_embedded_before(run, photos):
    write_good(photos, 0)
    broken = write_broken(photos, 99, "empty")
    with pytest.raises(UnreadableImage) as caught:
        run(photos, strict=True)
    assert caught.value.path == str(broken)
    broken.unlink()
    assert len(run(photos, strict=True)) == 13
    assert run.embedded == 13


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_flipped_bit_of_finished_rows_is_found(run, photos, tmp_path, place):
    whole = np.array(run(photos).vectors)
    path = tmp_path / "out" / "descriptors.npy"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    photo(60).save(photos / "900.jpg")
    np.testing.assert_array_equal(run(photos).vectors[:12], whole)
    assert run.embedded == 12 + 13


def test_photos_that_swapped_names_are_embedded_again(run, photos):
    first, second = photos / "001.jpg", photos / "002.jpg"
    size = max(path.stat().st_size for path in (first, second))
    for path in (first, second):  # what follows a JPEG's end is no part of it
        path.write_bytes(path.read_bytes().ljust(size, b"\xff"))
        os.utime(path, ns=(5, 5))
    before = run(photos).vectors
    first.rename(photos / "swap")
    second.rename(first)
    (photos / "swap").rename(second)
    after = run(photos).vectors
    assert run.embedded == 12 + 2
    np.testing.assert_allclose(after[[1, 2]], before[[2, 1]], atol=1e-6)
    assert np.abs(before[1] - before[2]).max() > 1e-3
    first.chmod(0o600)
    run(photos)
    assert run.embedded == 14


def test_a_file_is_known_again_by_one_of_time_and_number():
    state = (5, 7, 100, 3)
    assert same_file(state, state)
    assert same_file(state, (5, 7, 200, 3))  # its permissions changed
    assert same_file(state, (5, 7, 100, 4))  # a file system that numbers anew
    assert same_file(state, (5, 7, -1, -1))  # an index of version 1
    for other in ((6, 7, 100, 3), (5, 8, 100, 3), (5, 7, 200, 4)):
        assert not same_file(state, other)
    assert file_states(["there/is/none", "null\0"]).tolist() == [[-1] * 4] * 2


@pytest.mark.parametrize("kept", ["part-000007.npy", "part-000007.parquet"])
def test_half_a_part_is_no_damage(run, photos, tmp_path, caplog, kept):
    """A run that was killed while it removed its parts leaves one of two files."""
    run(photos)
    (tmp_path / "out" / "parts").mkdir()
    (tmp_path / "out" / "parts" / kept).write_bytes(b"left")
    assert len(run(photos)) == 12
    assert run.embedded == 12
    assert "embedded again" not in caplog.text
    assert not (tmp_path / "out" / "parts").exists()
