import numpy as np
import pytest

from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.retrieval import threshold
from d2vpr_hf.retrieval.embedder import Descriptors
from d2vpr_hf.retrieval.index import PlaceIndex
from d2vpr_hf.retrieval.stores.flat import FaissStore
from d2vpr_hf.retrieval.threshold import choose_threshold

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


class CountingStore(FaissStore):
    """Counts the rows that are taken from it."""

    taken = 0

    def reconstruct(self, ids):
        self.taken += len(ids)
        return super().reconstruct(ids)


def counting_store(rows, dim=8):
    store = CountingStore(dim)
    # Ids that aren't row numbers.
    store.add(3 * np.arange(rows) + 5, unit_vectors(rows, dim))
    return store


def best_far_scores(chosen, compared, vectors, far_steps=6):
    far = np.abs(chosen[:, None] - compared) >= far_steps
    return np.where(far, vectors[chosen] @ vectors[compared].T, -np.inf).max(axis=1)


def test_a_large_map_is_sampled_and_says_so(monkeypatch):
    rows = 1500
    small = choose_threshold(counting_store(rows), line_of_places(rows))
    monkeypatch.setattr(threshold, "MOST_PHOTOS", 100)
    monkeypatch.setattr(threshold, "MOST_COMPARED", 300)
    store = counting_store(rows)
    found = choose_threshold(store, line_of_places(rows))
    assert store.taken == 100 + 300
    random = np.random.default_rng(threshold.SEED)
    chosen, compared = (np.sort(random.choice(rows, size=size, replace=False)) for size in (100, 300))
    expected = np.percentile(best_far_scores(chosen, compared, unit_vectors(rows, 8)), 95)
    assert found.score == pytest.approx(expected, abs=1e-6)
    assert found.score < small.score
    assert "each of 100 database photos (random, seed 0)" in found.rule
    assert "drawn were 100 of the 1500 photos with known coordinates, each compared with 300 of them" in found.rule
    assert found == choose_threshold(counting_store(rows), line_of_places(rows))
    # Twice the map takes no more of it.
    larger = counting_store(2 * rows)
    choose_threshold(larger, line_of_places(2 * rows))
    assert larger.taken == 100 + 300
    none = choose_threshold(counting_store(rows), line_of_places(rows, step_m=0.01))
    assert none.score is None
    assert "drawn were 100 of the 1500" in none.rule


def test_a_large_map_takes_at_most_22_000_rows():
    rows = 21_000
    store = counting_store(rows, dim=2)
    choose_threshold(store, line_of_places(rows))
    assert store.taken == 2_000 + 20_000


def test_up_to_20_000_places_every_one_counts():
    rows = 2500
    store = counting_store(rows)
    found = choose_threshold(store, line_of_places(rows))
    chosen = np.sort(np.random.default_rng(0).choice(rows, size=2000, replace=False))
    expected = np.percentile(best_far_scores(chosen, np.arange(rows), unit_vectors(rows, 8)), 95)
    assert found.score == pytest.approx(expected, abs=1e-6)
    assert store.taken == 2000 + rows
    assert found.rule == (
        "95th percentile of the best score that each of 2000 database photos (random, seed 0) reaches among database "
        "photos farther than 100 m away"
    )
