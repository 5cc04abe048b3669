import numpy as np
import pytest

from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.retrieval.embedder import Descriptors
from d2vpr_hf.retrieval.index import PlaceIndex

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
