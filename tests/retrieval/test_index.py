import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from d2vpr_hf.data.coordinates import Positions
from d2vpr_hf.retrieval import index_folder
from d2vpr_hf.retrieval.embed import Descriptors
from d2vpr_hf.retrieval.index import PlaceIndex
from d2vpr_hf.retrieval.index_folder import SETTINGS_FILE
from d2vpr_hf.retrieval.store import FaissStore

WEIGHTS, OTHER_WEIGHTS = "a" * 64, "b" * 64


def unit_vectors(rows, dim=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def descriptors(rows=30, dim=16, seed=0, prefix="place", weight_hash=WEIGHTS):
    paths = [f"{prefix}/{row:04d}.jpg" for row in range(rows)]
    return Descriptors(unit_vectors(rows, dim, seed), paths, [], "tiny", weight_hash)


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


def test_search_agrees_with_a_matrix_product(index):
    queries = descriptors(8, seed=1)
    matches = index.search(queries, 6)
    scores = queries.vectors @ descriptors().vectors.T
    expected = np.argsort(-scores, axis=1)[:, :6]
    np.testing.assert_array_equal(matches.ids, expected)
    np.testing.assert_allclose(matches.scores, np.take_along_axis(scores, expected, 1), atol=1e-6)
    assert matches.paths[3, 2] == f"place/{expected[3, 2]:04d}.jpg"
    np.testing.assert_array_equal(matches.latitude, line_of_places(30).latitude[expected])
    # Places stand 20 m apart on a line, so that two of them are 20 m times the difference of their ids apart.
    np.testing.assert_allclose(
        matches.distances_m, 20.0 * np.abs(expected[:, :, None] - expected[:, None]), rtol=2e-3, atol=1e-6
    )


def test_a_permuted_database_gives_the_permuted_ranking(index):
    order = np.random.default_rng(1).permutation(30)
    given = descriptors()
    permuted = Descriptors(given.vectors[order], [given.paths[row] for row in order], [], "tiny", WEIGHTS)
    queries = unit_vectors(25, seed=1)
    found, expected = PlaceIndex.build(permuted).search(queries, 30), index.search(queries, 30)
    np.testing.assert_array_equal(found.paths, expected.paths)
    np.testing.assert_array_equal(order[found.ids], expected.ids)
    assert (found.ids != expected.ids).any()
    assert len({tuple(row) for row in expected.ids}) == 25  # a constant ranking would pass the lines above


def test_equal_scores_stand_in_the_order_of_their_ids():
    vectors = np.repeat(unit_vectors(1), 40, axis=0)
    index = PlaceIndex.build(Descriptors(vectors, [f"{row}.jpg" for row in range(40)], [], "tiny", WEIGHTS))
    for queries in (vectors[:1], np.repeat(vectors[:1], 30, axis=0)):
        assert (np.diff(index.search(queries, 40).ids, axis=1) == 1).all()


def test_a_row_runs_out_of_places(index):
    matches = index.search(unit_vectors(2, seed=3), 33)
    assert (matches.ids[:, 30:] == -1).all()
    assert (matches.ids[:, :30] >= 0).all()
    assert np.isnan(matches.scores[:, 30:]).all()
    assert np.isnan(matches.latitude[:, 30:]).all()
    assert (matches.paths[:, 30:] == "").all()
    assert np.isnan(matches.distances_m[:, 30:]).all()
    assert np.isfinite(matches.distances_m[:, :30, :30]).all()


def test_near_and_exclude_restrict_before_ranking(index):
    where = line_of_places(30)
    query = descriptors().vectors[25:26]  # its own photo lies 500 m north of the first place
    assert index.search(query, 1).ids[0, 0] == 25
    near = index.search(query, 10, near=(where.latitude[2], where.longitude[2]), radius_m=41.0)
    assert sorted(near.ids[0, :5]) == [0, 1, 2, 3, 4]
    assert (near.ids[0, 5:] == -1).all()
    excluded = index.search(np.repeat(query, 30, axis=0), 30, exclude=[25, 3])
    assert (np.sort(excluded.ids, axis=1)[:, 2:] == [id for id in range(30) if id not in (3, 25)]).all()
    both = index.search(query, 5, near=(where.latitude[2], where.longitude[2]), radius_m=41.0, exclude=np.array([0, 4]))
    assert sorted(both.ids[0]) == [-1, -1, 1, 2, 3]
    assert (index.search(query, 3, exclude=range(30)).ids == -1).all()
    assert (index.search(query, 3, near=(-40.0, 170.0), radius_m=1e5).ids == -1).all()


def test_near_is_inclusive_and_crosses_the_date_line():
    places = Positions.from_degrees([0.0, 0.0, 0.0], [179.9999, -179.9999, 179.0])
    index = PlaceIndex.build(descriptors(3), places)
    found = index.search(unit_vectors(1), 3, near=(0.0, 180.0), radius_m=12.0)  # both are 11.1 m away
    assert sorted(found.ids[0]) == [-1, 0, 1]
    assert sorted(index.search(unit_vectors(1), 3, near=(0.0, 179.0), radius_m=0).ids[0]) == [-1, -1, 2]


def test_photos_without_coordinates_are_never_near():
    places = Positions.from_degrees([48.0, np.nan, 48.0], [15.0, np.nan, 15.0])
    index = PlaceIndex.build(descriptors(3), places)
    assert sorted(index.search(unit_vectors(1), 3, near=(48.0, 15.0), radius_m=1e6).ids[0]) == [-1, 0, 2]
    assert sorted(index.search(unit_vectors(1), 3).ids[0]) == [0, 1, 2]
    assert (
        PlaceIndex.build(descriptors(3)).search(unit_vectors(1), 3, near=(48.0, 15.0), radius_m=1e6).ids == -1
    ).all()


def test_ids_are_never_given_twice(index, tmp_path):
    assert index.remove([29, 28, 5]) == 3
    assert len(index) == 27
    assert 5 not in index.search(descriptors().vectors[5:6], 27).ids
    assert index.add(descriptors(2, seed=5, prefix="new")).tolist() == [30, 31]
    assert index.remove(range(30, 32)) == 2
    index.save(tmp_path / "places")
    loaded = PlaceIndex.load(tmp_path / "places")
    assert loaded.add(descriptors(1, seed=6, prefix="newer")).tolist() == [32]
    assert loaded.search(descriptors(1, seed=6).vectors, 1).paths[0, 0] == "newer/0000.jpg"


def test_removing_is_by_known_ids_and_can_empty_the_index(index):
    with pytest.raises(ValueError, match=r"no places with the ids 77"):
        index.remove([1, 77])
    assert len(index) == 30
    assert index.remove(index.places["id"]) == 30
    assert (index.search(unit_vectors(2), 3).ids == -1).all()
    assert index.threshold.score is None


def test_adding_a_path_twice_names_it(index):
    with pytest.raises(ValueError, match=r"already has place/0000.jpg, place/0001.jpg\. Remove"):
        index.add(descriptors(2))
    twice = Descriptors(unit_vectors(2), ["a.jpg", "a.jpg"], [], "tiny", WEIGHTS)
    with pytest.raises(ValueError, match=r"a\.jpg more than once"):
        PlaceIndex.build(twice)
    assert len(index) == 30


def test_size_and_time_of_files_are_kept(tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"12345")
    given = Descriptors(unit_vectors(2), [str(photo), "0"], [], "tiny", WEIGHTS)
    places = PlaceIndex.build(given).places
    assert places["size_bytes"].tolist() == [5, -1]
    assert places["mtime_ns"].tolist() == [photo.stat().st_mtime_ns, -1]


def test_descriptors_of_another_model_are_refused(index):
    other = descriptors(2, prefix="other", weight_hash=OTHER_WEIGHTS)
    for call in (index.search, index.add):
        with pytest.raises(ValueError, match=r"tiny \(weights aaaaaaaa\).*\(weights bbbbbbbb\).*d2vpr index"):
            call(other)
    with pytest.raises(ValueError, match=r"shape \(2, 8\).*\(rows, 16\)"):
        index.search(unit_vectors(2, dim=8))
    with pytest.raises(ValueError, match=r"\(1, 16\)"):
        index.search(unit_vectors(1)[0])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3.0, 0.0])
def test_rows_that_mean_nothing_are_named(index, wrong):
    given = descriptors(4, seed=4, prefix="new")
    given.vectors[2] *= wrong
    for call in (index.search, index.add):
        with pytest.raises(ValueError, match=r"rows 2 \['new/0002.jpg'\]"):
            call(given)
    assert len(index) == 30
    assert index.search(given.vectors[:2], 30).ids.max() == 29  # nothing of the refused ones was added


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 1.5}, "k is 1.5"),
        ({"near": (48.0, 15.0)}, "go together"),
        ({"radius_m": 5.0}, "go together"),
        ({"near": (98.0, 15.0), "radius_m": 5.0}, "within ±90"),
        ({"near": (48.0, 15.0), "radius_m": -5.0}, "metres from 0"),
        ({"near": (48.0, 15.0), "radius_m": np.nan}, "metres from 0"),
        ({"near": 48.0, "radius_m": 5.0}, "within ±90"),
        ({"exclude": ["a.jpg"]}, "exclude holds"),
    ],
)
def test_wrong_options_are_refused(index, options, message):
    with pytest.raises(ValueError, match=message):
        index.search(unit_vectors(1), **options)


def test_rows_must_fit():
    with pytest.raises(ValueError, match="2 positions for 3 descriptors"):
        PlaceIndex.build(descriptors(3), line_of_places(2))
    given = descriptors(3)
    given.paths.pop()
    with pytest.raises(ValueError, match="3 rows but 2 paths"):
        PlaceIndex.build(given)
    with pytest.raises(ValueError, match="1 photos were skipped"):
        PlaceIndex.build(Descriptors(np.empty((0, 16), np.float32), [], [("a.jpg", "empty")], "tiny", WEIGHTS))


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
    assert names == ["index.json", "notes.txt", "places", "vectors"]
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
            patch.setattr(index_folder.os, "fsync", counted(os.fsync))
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


SAVER = """
import sys
from d2vpr_hf.retrieval.index import PlaceIndex
old, new = PlaceIndex.load(sys.argv[1]), PlaceIndex.load(sys.argv[2])
print("ready", flush=True)
while True:
    new.save(sys.argv[3])
    old.save(sys.argv[3])
"""


def test_kill_9_while_saving_leaves_a_whole_index(tmp_path):
    for name, rows in (("old", 400), ("new", 700)):
        PlaceIndex.build(descriptors(rows, dim=256), line_of_places(rows)).save(tmp_path / name)
    target, seeded = tmp_path / "target", random.Random(0)
    shutil.copytree(tmp_path / "old", target)
    counts = []
    for _ in range(5):
        command = [sys.executable, "-c", SAVER, *map(str, (tmp_path / "old", tmp_path / "new", target))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as saver:
            assert saver.stdout.readline() == b"ready\n"
            time.sleep(0.05 + seeded.random() / 10)
            saver.send_signal(signal.SIGKILL)
        counts.append(len(PlaceIndex.load(target)))
    assert set(counts) <= {400, 700}


def test_a_truncated_folder_is_refused(index, tmp_path):
    index.save(tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
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
        ("dim", "16", "dim is '16', but must be a whole number"),
        ("dim", True, "dim is True"),
        ("dim", 17, "don't belong"),
        ("count", -1, "count is -1"),
        ("count", 29, "30 rows, but index.json counts 29"),
        ("next_id", 3, "below next_id"),
        ("next_id", 1.5, "next_id is 1.5"),
        ("model_name", None, "model_name is None, but must be a text"),
        ("weight_hash", ["a"], "weight_hash is"),
        ("threshold", "high", "threshold is 'high'"),
        ("threshold", float("nan"), "threshold is nan"),
        ("version", 2, "version 2"),
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
    settings[name] = index_folder._write_payload(folder, name, write)
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
    with pytest.raises(ValueError, match="holds a FAISS IndexHNSWFlat"):
        PlaceIndex.load(tmp_path)
    replace_payload(tmp_path, "vectors", FaissStore(16).write)
    with pytest.raises(ValueError, match="0 vectors of 16 numbers"):
        PlaceIndex.load(tmp_path)


def test_the_threshold_is_what_a_photo_from_outside_would_score(index):
    # Places stand 20 m apart: those more than 100 m away are 6 or more steps away.
    scores = descriptors().vectors @ descriptors().vectors.T
    steps = np.abs(np.arange(30)[:, None] - np.arange(30))
    expected = np.percentile(np.where(steps >= 6, scores, -np.inf).max(axis=1), 95)
    assert index.threshold.score == pytest.approx(expected, abs=1e-6)
    assert "95th percentile" in index.threshold.rule
    assert "each of 30 database photos" in index.threshold.rule


def test_the_threshold_follows_the_places(index):
    before = index.threshold.score
    index.remove(range(5))
    assert index.threshold.score != before
    index.remove(range(5, 12))  # 18 are left
    assert index.threshold.score is None
    assert "18 database photos" in index.threshold.rule
    assert PlaceIndex.build(descriptors()).threshold.score is None
    assert PlaceIndex.build(descriptors(), line_of_places(30, step_m=2.0)).threshold.score is None
