import json
import resource
from pathlib import Path

import numpy as np
import pytest

from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.retrieval.embedder import Descriptors
from d2vpr_hf.retrieval.index import PlaceIndex
from d2vpr_hf.retrieval.locate import locate
from d2vpr_hf.retrieval.similarity import metric_of, nearest_rows, release_pages, rows_without_meaning

WEIGHTS = "a" * 64
ROWS, DIM = 8192, 1024  # 32 MB
STATUS = Path("/proc/self/statm")


def made(rows, dim=16, seed=0, unit=False, prefix="place"):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    if unit:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Descriptors(vectors, [f"{prefix}/{row:04d}.jpg" for row in range(rows)], [], "tiny", WEIGHTS)


def line_of_places(rows):
    return Positions.from_degrees(48.0 + np.arange(rows) * 20 / 111_194.0, np.full(rows, 15.0))


def test_descriptors_that_are_not_of_length_1_are_ranked_by_distance():
    database, queries = made(40), made(7, seed=1)
    index = PlaceIndex.build(database)
    assert index.metric == "l2"
    exact = np.linalg.norm(queries.vectors[:, None].astype(np.float64) - database.vectors, axis=2)
    expected = np.argsort(exact, axis=1)[:, :6]
    matches = index.search(queries, 6)
    np.testing.assert_array_equal(matches.ids, expected)
    np.testing.assert_allclose(matches.scores, -np.take_along_axis(exact, expected, 1), atol=1e-4)
    # By inner product the longest would win: another ranking, which this must not be.
    assert (np.argsort(-(queries.vectors @ database.vectors.T), axis=1)[:, 0] != expected[:, 0]).any()
    assert PlaceIndex.build(made(40, unit=True)).metric == "inner_product"


def test_padding_and_exclusion_hold_by_distance_too():
    index = PlaceIndex.build(made(3))
    matches = index.search(made(2, seed=1), 5, exclude=[1])
    assert set(matches.ids[:, :2].ravel().tolist()) == {0, 2}
    assert (matches.ids[:, 2:] == -1).all()
    assert np.isnan(matches.scores[:, 2:]).all()


def test_the_metric_is_saved_with_the_index(tmp_path):
    index, queries = PlaceIndex.build(made(30), line_of_places(30)), made(5, seed=1)
    index.save(tmp_path / "places")
    loaded = PlaceIndex.load(tmp_path / "places")
    assert loaded.metric == "l2"
    np.testing.assert_array_equal(loaded.search(queries, 4).ids, index.search(queries, 4).ids)
    settings_file = tmp_path / "places" / "index.json"
    settings = json.loads(settings_file.read_text())
    assert settings["store"] == "faiss-flat-l2"
    settings_file.write_text(json.dumps(settings | {"store": "faiss-flat-ip"}))
    with pytest.raises(ValueError, match=r"IxF2.*but 30 vectors of 16 numbers have .*IxFI.*don't belong together"):
        PlaceIndex.load(tmp_path / "places")


def test_the_threshold_and_the_answers_follow_the_metric():
    database = made(30)
    index = PlaceIndex.build(database, line_of_places(30))
    distances = np.linalg.norm(database.vectors[:, None].astype(np.float64) - database.vectors, axis=2)
    # Places stand 20 m apart: those more than 100 m away are 6 or more steps away.
    steps = np.abs(np.arange(30)[:, None] - np.arange(30))
    expected = np.percentile(-np.where(steps >= 6, distances, np.inf).min(axis=1), 95)
    assert index.threshold.score == pytest.approx(expected, abs=1e-4)
    near, far = made(2), made(1, seed=9)
    near.vectors += 0.01
    far.vectors *= 5
    assert [answer.in_map for answer in locate(near, index)] == [True, True]
    assert [answer.in_map for answer in locate(far, index)] == [False]
    assert locate(near, index)[1].candidates[0]["path"] == "place/0001.jpg"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0, 1e30])
def test_rows_that_mean_nothing_by_distance_are_named(wrong):
    index, given = PlaceIndex.build(made(30)), made(4, seed=4, prefix="new")
    given.vectors[2] *= wrong
    for call in (index.search, index.add):
        with pytest.raises(ValueError, match=r"rows 2 \['new/0002.jpg'\].*metric is l2"):
            call(given)


def test_one_broken_row_does_not_change_the_metric():
    broken = made(9, unit=True)
    broken.vectors[4] *= 3
    assert metric_of(broken.vectors) == "inner_product"
    assert rows_without_meaning(broken.vectors, "inner_product").tolist() == [4]
    assert rows_without_meaning(broken.vectors, "l2").tolist() == []
    with pytest.raises(ValueError, match=r"place/0004.jpg.*aren't of length 1 \(row 4 has length 3\)"):
        PlaceIndex.build(broken)


def vectors(rows, dim=24, seed=0):
    made = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def longer(made, seed=5):
    """The same directions in other lengths, by which the two metrics rank differently."""
    return made * np.random.default_rng(seed).uniform(0.5, 1.5, (len(made), 1)).astype(np.float32)


@pytest.mark.parametrize("block_bytes", [1, 4 * 24 * 7, 2**20])
@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_blocks_of_any_size_agree_with_all_pairs(metric, block_bytes):
    queries, database = vectors(11, seed=1), longer(vectors(60))
    exact = {
        "inner_product": queries.astype(np.float64) @ database.T,
        "l2": -np.linalg.norm(queries[:, None].astype(np.float64) - database, axis=2),
    }
    expected = np.argsort(-exact[metric], axis=1)[:, :9]
    scores, rows = nearest_rows(queries, database, 9, metric, block_bytes=block_bytes)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(exact[metric], expected, 1), atol=1e-5)
    other = "l2" if metric == "inner_product" else "inner_product"
    assert (nearest_rows(queries, database, 9, other)[1] != rows).any()


def test_a_mapped_database_gives_what_one_in_memory_gives(tmp_path):
    database, queries = vectors(50), vectors(4, seed=1)
    database.tofile(tmp_path / "database")
    mapped = np.memmap(tmp_path / "database", np.float32, "r", shape=database.shape)
    for found, expected in zip(
        nearest_rows(queries, mapped, 3, "l2", block_bytes=500), nearest_rows(queries, database, 3, "l2"), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_scores_stand_in_the_order_of_their_rows_across_blocks():
    database = np.repeat(vectors(1), 12, axis=0)
    _, rows = nearest_rows(database[:2], database, 12, "inner_product", block_bytes=4 * 24 * 5)
    assert rows.tolist() == [list(range(12))] * 2


def test_a_row_runs_out_of_answers():
    scores, rows = nearest_rows(vectors(2, seed=1), vectors(3), 5, "inner_product")
    assert sorted(rows[0, :3].tolist()) == [0, 1, 2]
    assert (rows[:, 3:] == -1).all()
    assert np.isnan(scores[:, 3:]).all()
    assert np.isfinite(scores[:, :3]).all()


@pytest.fixture
def mapped(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIM), np.float32)
    vectors.tofile(tmp_path / "vectors")
    return np.memmap(tmp_path / "vectors", np.float32, "r", shape=vectors.shape)


def mapped_bytes():
    """Pages of files in this process."""
    return int(STATUS.read_text().split()[2]) * resource.getpagesize()


@pytest.mark.skipif(not STATUS.exists(), reason="needs /proc, which Linux has")
def test_walking_over_a_mapped_file_leaves_nothing_of_it_in_memory(mapped):
    before = mapped_bytes()
    total = float(mapped.sum())
    assert mapped_bytes() - before > mapped.nbytes / 2  # else the lines below would show nothing
    release_pages(mapped)
    assert mapped_bytes() - before < mapped.nbytes / 8
    assert float(mapped.sum()) == total
    release_pages(mapped)
    nearest_rows(np.array(mapped[:3]), mapped, 5, "l2", block_bytes=2**20)
    assert rows_without_meaning(mapped, "l2").tolist() == []
    assert mapped_bytes() - before < mapped.nbytes / 4


def test_nothing_that_was_written_is_lost(mapped, tmp_path):
    private = np.memmap(tmp_path / "vectors", np.float32, "c", shape=mapped.shape)
    private[5] = 7
    shared = np.memmap(tmp_path / "shared", np.float32, "w+", shape=(4, 4))
    shared[:] = 3
    plain = np.ones(4)
    for array in (private, shared, plain, private[2:]):
        release_pages(array)
    assert (private[5] == 7).all()
    assert (shared == 3).all()
    assert (plain == 1).all()
