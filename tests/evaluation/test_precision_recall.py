import numpy as np
import pytest

from d2vpr_hf.evaluation.recall import precision_recall


def test_a_curve_worked_out_by_hand():
    scores = np.array([0.9, 0.4, 0.8, 0.7, np.nan, 0.4], np.float32)
    right = np.array([True, True, True, False, False, False])
    curve = precision_recall(scores, right, with_positives=4)
    # By falling score: 0.9 right (1/1, found 1 of 4), 0.8 right (2/2, 2 of 4), 0.7 wrong (2/3, 2 of 4), then the two at
    # 0.4 together, one right (3/5, 3 of 4). The query without an answer is never accepted.
    np.testing.assert_allclose(curve.thresholds, [0.9, 0.8, 0.7, 0.4], rtol=1e-6)
    np.testing.assert_allclose(curve.precision, [1, 1, 2 / 3, 3 / 5])
    np.testing.assert_allclose(curve.recall, [1 / 4, 2 / 4, 2 / 4, 3 / 4])
    assert curve.area == pytest.approx(1 / 4 + 1 / 4 + 0 + 1 / 4 * 3 / 5)
    assert curve.recall_at_full_precision == 2 / 4


def test_a_wrong_best_score_leaves_no_recall_at_full_precision():
    curve = precision_recall(np.array([0.5, 0.9]), np.array([True, False]), with_positives=2)
    assert curve.recall_at_full_precision == 0
    assert curve.area == pytest.approx(1 / 2 * 1 / 2)


def test_all_right_is_the_whole_area_and_no_answer_none():
    scores = np.linspace(0, 1, 7)
    whole = precision_recall(scores, np.ones(7, bool), with_positives=7)
    assert (whole.area, whole.recall_at_full_precision) == (pytest.approx(1), 1)
    none = precision_recall(np.full(3, np.nan), np.zeros(3, bool), with_positives=3)
    assert (none.area, none.recall_at_full_precision, len(none.recall)) == (0, 0, 0)
    with pytest.raises(ValueError, match="No query has a positive"):
        precision_recall(scores, np.zeros(7, bool), with_positives=0)


def test_the_area_is_the_average_precision_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn isn't installed: pip install scikit-learn")
    random = np.random.default_rng(0)
    scores = random.uniform(size=400).round(2)  # rounded, so that many are equal
    right = random.uniform(size=400) < scores
    curve = precision_recall(scores, right, with_positives=int(right.sum()))
    assert curve.area == pytest.approx(metrics.average_precision_score(right, scores))
    assert 0.5 < curve.area < 0.95
    # Queries that have a positive but a wrong best answer make recall, and the area with it, smaller in proportion.
    assert precision_recall(scores, right, 400).area == pytest.approx(curve.area * right.sum() / 400)
