import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.retrieval import index_folder
from d2vpr_hf.retrieval.embedder import Descriptors
from d2vpr_hf.retrieval.index import PlaceIndex
from d2vpr_hf.retrieval.index_folder import SETTINGS_FILE
from d2vpr_hf.retrieval.stores.flat import FaissStore

WEIGHTS = "a" * 64


def unit_vectors(rows, dim=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def descriptors(rows=30, dim=16, seed=0):
    paths = [f"place/{row:04d}.jpg" for row in range(rows)]
    return Descriptors(unit_vectors(rows, dim, seed), paths, [], "tiny", WEIGHTS)


def line_of_places(rows, step_m=20.0):
    """Places on a line to the north, `step_m` apart, in UTM zone 33 north."""
    return Positions.from_degrees(48.0 + np.arange(rows) * step_m / 111_194.0, np.full(rows, 15.0))


@pytest.fixture
def index():
    return PlaceIndex.build(descriptors(), line_of_places(30))


def same_index(one, other):
    pd.testing.assert_frame_equal(one.places, other.places)
    assert (one.model_name, one.weight_hash, one.dim) == (other.model_name, other.weight_hash, other.dim)
    assert one.threshold == other.threshold
    query = unit_vectors(7, one.dim, seed=9)
    found, expected = one.search(query, 5), other.search(query, 5)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_saved_equals_loaded_to_the_bit(index, tmp_path):
    index.remove([3, 4])
    index.save(tmp_path / "a" / "places")
    loaded = PlaceIndex.load(tmp_path / "a" / "places")
    same_index(loaded, index)
    assert len(loaded) == 28
    loaded.save(tmp_path / "again")
    same_index(PlaceIndex.load(tmp_path / "again", verify=False), index)


def test_saving_again_leaves_three_files_and_what_is_not_its_own(index, tmp_path):
    index.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".unfinished-0123").write_text("of a save that was killed")
    index.remove([0])
    index.save(tmp_path)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == [".lock", "index.json", "notes.txt", "places", "vectors"]
    assert len(PlaceIndex.load(tmp_path)) == 29
    with pytest.raises(NotADirectoryError, match=r"notes\.txt is a file"):
        index.save(tmp_path / "notes.txt")


class StoppedError(Exception):
    pass


def test_a_save_stopped_at_any_step_leaves_the_old_index_or_the_new(index, tmp_path, monkeypatch):
    index.save(tmp_path / "old")
    smaller = PlaceIndex.load(tmp_path / "old")
    smaller.remove(range(10))
    outcomes = []
    for stop_at in range(100):
        folder = tmp_path / f"stopped-{stop_at}"
        shutil.copytree(tmp_path / "old", folder)
        steps = 0

        def counted(call, stop_at=stop_at):
            def step(*args, **kwargs):
                nonlocal steps
                steps += 1
                if steps > stop_at:
                    raise StoppedError
                return call(*args, **kwargs)

            return step

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(os.fsync))
            for name in ("replace", "unlink", "open"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            try:
                smaller.save(folder)
                finished = True
            except StoppedError:
                finished = False
        outcomes.append(len(PlaceIndex.load(folder)))
        if finished:
            break
    assert finished
    assert outcomes == sorted(outcomes, reverse=True)
    assert outcomes[0] == 30
    assert outcomes.count(30) >= 8  # two payloads are opened, flushed and renamed before the one step that counts
    assert outcomes.count(20) >= 3  # flushing and cleaning up come after it


KILLER = """
import os, random, signal, sys, time
from d2vpr_hf.retrieval.index import PlaceIndex

old, new, target = sys.argv[1:]
old, new = PlaceIndex.load(old), PlaceIndex.load(new)
random.seed(0)
seen = []
# On a slow machine it takes more, and longer, rounds until a save gets far enough to count.
while len(seen) < 12 or (len(set(seen)) < 2 and len(seen) < 200):
    saver = os.fork()
    while not saver:
        new.save(target)
        old.save(target)
    time.sleep(random.random() * (1 + len(seen) / 6) / 10)
    os.kill(saver, signal.SIGKILL)
    os.waitpid(saver, 0)
    seen.append(len(PlaceIndex.load(target)))
print(*seen)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_kill_9_while_saving_leaves_a_whole_index(tmp_path):
    for name, rows in (("old", 400), ("new", 700)):
        PlaceIndex.build(descriptors(rows, dim=256), line_of_places(rows)).save(tmp_path / name)
    shutil.copytree(tmp_path / "old", tmp_path / "target")
    folders = [str(tmp_path / name) for name in ("old", "new", "target")]
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLER, *folders]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) >= 12
    assert set(run.stdout.split()) == {"400", "700"}


def test_a_truncated_folder_is_refused(index, tmp_path):
    index.save(tmp_path / "whole")
    for path in (tmp_path / "whole").glob("[!.]*"):
        broken = tmp_path / f"broken-{path.name}"
        shutil.copytree(tmp_path / "whole", broken)
        (broken / path.name).write_bytes(path.read_bytes()[:-40])
        for verify in (True, False):
            with pytest.raises(ValueError, match=path.name):
                PlaceIndex.load(broken, verify=verify)
        (broken / path.name).unlink()
        with pytest.raises((ValueError, FileNotFoundError), match=path.name):
            PlaceIndex.load(broken)


def test_a_folder_mixed_from_two_indexes_is_refused(index, tmp_path):
    index.save(tmp_path / "one")
    PlaceIndex.build(descriptors(seed=1), line_of_places(30)).save(tmp_path / "two")
    own, foreign = (next((tmp_path / name).glob("vectors-*")) for name in ("one", "two"))
    assert own.stat().st_size == foreign.stat().st_size
    shutil.copy(tmp_path / "two" / "index.json", tmp_path / "one" / "index.json")
    with pytest.raises(ValueError, match=f"names {foreign.name}, which isn't there"):
        PlaceIndex.load(tmp_path / "one")
    shutil.copy(own, tmp_path / "one" / foreign.name)  # a file of the right name and size, with other content
    with pytest.raises(ValueError, match="SHA-256"):
        PlaceIndex.load(tmp_path / "one")


def test_a_folder_without_an_index_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no index.*d2vpr index"):
        PlaceIndex.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dim", "16", "dim is '16', but must be an integer"),
        ("dim", True, "dim is True"),
        ("dim", 17, "don't belong"),
        ("dim", 2**61, "don't belong"),
        ("count", -1, "count is -1"),
        ("count", 29, "30 rows, but index.json counts 29"),
        ("next_id", 3, "below next_id"),
        ("next_id", 1.5, "next_id is 1.5"),
        ("model_name", None, "model_name is None, but must be a text"),
        ("weight_hash", ["a"], "weight_hash is"),
        ("threshold", "high", "threshold is 'high'"),
        ("threshold", float("nan"), "threshold is nan"),
        ("threshold", 10**400, "threshold is 1000.*finite number"),
        ("threshold", float("-inf"), "threshold is -inf"),
        ("dim", 10**400, "dim is 1000"),
        ("model_name", "", "model_name is '', but must be a text of 1 to"),
        ("model_name", "x" * 5000, "^.{,300}model_name is 'x{79}, but must be a text of 1 to"),
        ("version", 3, "version 3"),
        ("processor", "resized", "processor is 'resized'"),
        ("dtype", 16, "dtype is 16"),
        ("store", "pgvector", "kind 'pgvector'"),
        ("vectors", [], "vectors is"),
        ("vectors", {}, "lacks the field vectors.file"),
        ("places", {"file": "../../secret"}, "places.file is '../../secret'"),
    ],
)
def test_a_changed_index_json_is_refused(index, tmp_path, field, value, message):
    index.save(tmp_path)
    settings = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(settings | {field: value}))
    with pytest.raises(ValueError, match=message):
        PlaceIndex.load(tmp_path)
    del settings[field]
    (tmp_path / "index.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=field):
        PlaceIndex.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[1]", b"null", b"\xff\xfe", b'{"a": ', b"[" * 200_000, b" " * (2 << 20)])
def test_an_index_json_that_is_none_is_refused(index, tmp_path, content):
    index.save(tmp_path)
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match=SETTINGS_FILE):
        PlaceIndex.load(tmp_path)


def replace_payload(folder, name, write):
    """Put other content into an index, with a right hash and size, as a hostile hand could."""
    settings = json.loads((folder / "index.json").read_text())
    suffix = "faiss" if name == "vectors" else "parquet"
    settings[name] = index_folder._write_payload(folder, name, suffix, write)
    (folder / "index.json").write_text(json.dumps(settings))


def test_other_content_with_a_right_hash_is_refused(index, tmp_path):
    index.save(tmp_path)
    wrong_table = pa.table({"id": [1.0], "path": ["a"]})
    replace_payload(tmp_path, "places", lambda file: pq.write_table(wrong_table, file))
    with pytest.raises(ValueError, match="has the columns id double, path string"):
        PlaceIndex.load(tmp_path)
    replace_payload(tmp_path, "places", lambda file: file.write(b"PAR1 no table"))
    with pytest.raises(ValueError, match="can't be read as Parquet"):
        PlaceIndex.load(tmp_path)
    index.save(tmp_path)
    replace_payload(tmp_path, "vectors", lambda file: file.write(b"IxM2 no vectors"))
    with pytest.raises(ValueError, match="can't be read as FAISS"):
        PlaceIndex.load(tmp_path)
    other = faiss.IndexHNSWFlat(16, 4)
    replace_payload(tmp_path, "vectors", lambda file: faiss.write_index(other, faiss.PyCallbackIOWriter(file.write)))
    with pytest.raises(ValueError, match=r"can't be read as FAISS vectors .* are \[334\], but"):
        PlaceIndex.load(tmp_path)
    replace_payload(tmp_path, "vectors", FaissStore(16).write)
    with pytest.raises(ValueError, match=r"are \[90\], but 30 vectors of 16 numbers have \[2250, "):
        PlaceIndex.load(tmp_path)


def test_a_reader_that_meets_a_save_reads_what_is_there_afterwards(index, tmp_path, monkeypatch):
    index.save(tmp_path)
    smaller = PlaceIndex.load(tmp_path)
    smaller.remove([1])
    for function in ("_read_places", "_read_vectors"):
        for saved in (smaller, index):
            read = getattr(index_folder, function)

            def disturbed(*args, read=read, function=function, saved=saved):
                monkeypatch.setattr(index_folder, function, read)
                saved.save(tmp_path)
                return read(*args)

            monkeypatch.setattr(index_folder, function, disturbed)
            same_index(PlaceIndex.load(tmp_path), saved)


def faiss_file(index):
    return lambda file: faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def with_inner(inner, ids=30):
    """An IndexIDMap2 of 30 vectors of 16 numbers over another index than it says."""
    outer = faiss.IndexIDMap2(faiss.IndexFlatIP(16))
    outer.add_with_ids(unit_vectors(30), np.arange(30))
    outer.index, outer.own_fields = inner, False
    faiss.copy_array_to_vector(np.arange(ids), outer.id_map)
    return outer


def flat(kind, dim, rows):
    made = kind(dim)
    made.add(unit_vectors(rows, dim))
    return made


@pytest.mark.parametrize(
    "made",
    [
        lambda: with_inner(flat(faiss.IndexFlatIP, 8, 60)),
        lambda: with_inner(flat(faiss.IndexFlatIP, 32, 30)),
        lambda: with_inner(flat(faiss.IndexFlatIP, 16, 15)),
        lambda: with_inner(flat(faiss.IndexFlatL2, 16, 30)),
        lambda: with_inner(flat(faiss.IndexFlatIP, 16, 30), ids=29),
        lambda: with_inner(flat(lambda dim: faiss.IndexFlat(dim, faiss.METRIC_L1), 16, 30)),
    ],
)
def test_vectors_that_are_not_what_they_say_are_refused_before_faiss_reads_them(index, tmp_path, monkeypatch, made):
    index.save(tmp_path)
    inner = made()
    replace_payload(tmp_path, "vectors", faiss_file(inner))
    monkeypatch.setattr(faiss, "read_index", lambda path: pytest.fail("FAISS read it"))
    with pytest.raises(ValueError, match="don't belong together"):
        PlaceIndex.load(tmp_path)


@pytest.mark.parametrize("position", [4, 8, 33, 41, 45, 70, 74, 82 + 30 * 64])
def test_a_length_that_is_claimed_is_compared(index, tmp_path, monkeypatch, position):
    """Dim, count and metric of both headers, the number of floats and that of ids, each far too large."""
    index.save(tmp_path)
    data = bytearray(next(tmp_path.glob("vectors-*")).read_bytes())
    data[position : position + 4] = (2**30).to_bytes(4, "little")
    replace_payload(tmp_path, "vectors", lambda file: file.write(data))
    monkeypatch.setattr(faiss, "read_index", lambda path: pytest.fail("FAISS read it"))
    with pytest.raises(ValueError, match="don't belong together"):
        PlaceIndex.load(tmp_path)


@pytest.mark.parametrize("factor", [np.nan, np.inf, 2.0, 0.0])
def test_vectors_that_mean_nothing_are_refused(index, tmp_path, factor):
    index.save(tmp_path)
    wrong = FaissStore(16)
    vectors = unit_vectors(30)
    vectors[7] *= factor
    wrong.add(np.arange(30), vectors)
    replace_payload(tmp_path, "vectors", wrong.write)
    with pytest.raises(ValueError, match="vector of id 7 that isn't finite, or not of the length"):
        PlaceIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("latitude", 90.5, "the latitude 90.5, but it must be within -90 and 90"),
        ("longitude", -np.inf, "the longitude -inf, but"),
        ("zone", 61, "the zone 61, but it must be within 0 and 60"),
        ("path", "place/0000.jpg", "names a photo more than once"),
        ("path", None, "rows without path"),
        ("id", 2**36, "below next_id"),
        ("id", None, "rows without id"),
    ],
)
def test_places_that_cannot_be_are_refused(index, tmp_path, column, value, message):
    index.save(tmp_path)
    values = index.places[column].tolist()
    values[9 if value != 2**36 else 29] = value
    table = pa.Table.from_pandas(index.places, schema=index_folder.PLACES_SCHEMA, preserve_index=False)
    place = table.schema.get_field_index(column)
    table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    replace_payload(tmp_path, "places", lambda file: pq.write_table(table, file))
    with pytest.raises(ValueError, match=message):
        PlaceIndex.load(tmp_path)


@pytest.mark.parametrize("alike", [True, False])
def test_a_small_table_that_unfolds_to_gigabytes_is_refused(tmp_path, alike):
    rows = 3000
    PlaceIndex.build(descriptors(rows, dim=2)).save(tmp_path)
    table = pq.read_table(next(tmp_path.glob("places-*")))
    texts = ["x" * 500_000 + ("" if alike else str(row)) for row in range(rows if alike else 600)]
    long = table.slice(0, len(texts)).set_column(1, table.schema.field(1), pa.array(texts, pa.string()))
    long = pa.concat_tables([long, table.slice(len(texts))])
    buffer = pa.BufferOutputStream()
    pq.write_table(long, buffer, compression="zstd", use_dictionary=alike)
    assert buffer.tell() < 1_000_000
    replace_payload(tmp_path, "places", lambda file: file.write(buffer.getvalue()))
    with pytest.raises(ValueError, match="more than once" if alike else "unfolds to"):
        PlaceIndex.load(tmp_path)
