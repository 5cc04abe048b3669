import numpy as np
import pytest

from d2vpr_hf.evaluation.recall import recall_differences, recall_intervals


def answers(queries, share, seed=0):
    """First hits of which about `share` are at rank 1, and half of the others at rank 3."""
    random = np.random.default_rng(seed)
    late = np.where(random.uniform(size=queries) < 0.5, 3, 0)
    return np.where(random.uniform(size=queries) < share, 1, late)


def test_intervals_agree_with_resampled_queries():
    first = answers(500, 0.8)
    intervals = recall_intervals(first, (1, 5))
    random = np.random.default_rng(7)
    for k, (low, high) in intervals.items():
        hit = (first > 0) & (first <= k)
        drawn = hit[random.integers(0, 500, (4000, 500))].mean(axis=1)
        np.testing.assert_allclose([low, high], np.quantile(drawn, [0.025, 0.975]), atol=0.004)
        assert low < hit.mean() < high
    # 1.96 standard errors of a share of 0.8 among 500.
    assert intervals[1][1] - intervals[1][0] == pytest.approx(2 * 1.96 * np.sqrt(0.8 * 0.2 / 500), rel=0.1)


def test_more_queries_narrow_the_interval_and_a_sure_thing_has_none():
    widths = [np.diff(recall_intervals(answers(queries, 0.8), (1,))[1])[0] for queries in (100, 10_000)]
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.3)
    assert recall_intervals(np.ones(20, np.int64), (1,)) == {1: (1.0, 1.0)}
    assert recall_intervals(answers(50, 0.5), (1,)) == recall_intervals(answers(50, 0.5), (1,))


def test_differences_agree_with_resampled_pairs():
    ours = answers(400, 0.7)
    theirs = ours.copy()
    theirs[:30] = 0  # agrees with ours but for 30 queries, most of which ours finds at once
    found = recall_differences(ours, theirs, (1,))[1]
    difference = (ours == 1).astype(float) - (theirs == 1)
    drawn = difference[np.random.default_rng(7).integers(0, 400, (4000, 400))].mean(axis=1)
    assert found[0] == pytest.approx(difference.mean())
    np.testing.assert_allclose(found[1], np.quantile(drawn, [0.025, 0.975]), atol=0.004)
    assert 0 < found[1][0] < found[0] < found[1][1]
    # Unpaired, the two intervals overlap: pairing is what shows that one is better.
    assert recall_intervals(ours, (1,))[1][0] < recall_intervals(theirs, (1,))[1][1]
    back = recall_differences(theirs, ours, (1,))[1]
    assert back[0] == -found[0]
    assert recall_differences(ours, ours, (1, 3)) == {1: (0.0, (0.0, 0.0)), 3: (0.0, (0.0, 0.0))}


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(ValueError, match="No query counts"):
        recall_intervals(np.empty(0, np.int64), (1,))
    with pytest.raises(ValueError, match=r"5 and 4 queries.*one protocol"):
        recall_differences(answers(5, 0.5), answers(4, 0.5), (1,))
