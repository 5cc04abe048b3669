import json
from pathlib import Path

import numpy as np
import pytest

from d2vpr_hf.evaluation.recall import average_precision, hits_at_k, recall_at_k

PUBLISHED = Path(__file__).parents[2].parent / "shared" / "data" / "metadata" / "vpr_bench"


def test_recall_of_a_ranking_worked_out_by_hand():
    ranking = np.array([[3, 1, 2], [0, 2, 1], [1, 0, 3], [2, 3, 0]])
    positives = [[3], [1, 2], [2], []]
    # Query 0 hits at rank 1, query 1 at rank 2, query 2 never, query 3 has nothing to find.
    assert recall_at_k(ranking, positives, (1, 2, 3)) == {1: 1 / 4, 2: 2 / 4, 3: 2 / 4}
    assert recall_at_k(ranking, positives, (3, 1), denominator="with_positives") == {3: 2 / 3, 1: 1 / 3}
    assert hits_at_k(ranking, positives, (1, 2)).tolist() == [[1, 1], [0, 1], [0, 0], [0, 0]]


def test_average_precision_worked_out_by_hand():
    ranking = np.array([[3, 1, 2, 0], [0, 2, 1, 3], [1, 0, 2, -1], [2, 3, 0, 1]])
    positives = [[3, 2], [1, 2], [3, 1], []]
    # Query 0: ranks 1 and 3, (1/1 + 2/3) / 2; query 1: ranks 2 and 3, (1/2 + 2/3) / 2; query 2: one at rank 1, the
    # other isn't ranked, (1 + 0) / 2; query 3 has nothing to find.
    found = average_precision(ranking, positives)
    assert found[:3].tolist() == pytest.approx([5 / 6, 7 / 12, 1 / 2])
    assert np.isnan(found[3])


def test_average_precision_is_that_of_the_steps_of_precision_over_recall():
    random = np.random.default_rng(1)
    ranking = np.stack([random.permutation(30) for _ in range(40)])
    positives = [random.choice(30, size=random.integers(1, 6), replace=False) for _ in range(40)]
    expected = []
    for row, right in zip(ranking, positives, strict=True):
        area = 0.0
        for cut in range(1, 31):
            gained = (row[cut - 1] in right) / len(right)  # what recall rises by at this cut-off
            area += gained * len({*row[:cut]} & {*right}) / cut
        expected.append(area)
    assert average_precision(ranking, positives).tolist() == pytest.approx(expected)
    assert 0 < min(expected) < np.mean(expected) < max(expected) <= 1


def test_an_index_counts_only_for_its_own_query():
    # Both queries have the other's positive on top: pairing query and index wrongly would give 1.
    assert recall_at_k(np.array([[5], [9]]), [[9], [5]], (1,)) == {1: 0.0}


def test_padding_is_never_a_hit_and_large_ids_do_not_collide():
    large = 2**62
    ranking = np.array([[-1, -1], [large, -1], [large + 1, 7]])
    assert hits_at_k(ranking, [[0], [large], [large]], (2,)).ravel().tolist() == [False, True, False]


def test_random_rankings_agree_with_a_plain_loop():
    random = np.random.default_rng(0)
    ranking = np.stack([random.permutation(40)[:12] for _ in range(60)])
    positives = [random.choice(40, size=random.integers(0, 4), replace=False) for _ in range(60)]
    expected = {
        k: np.mean([bool({*r[:k]} & {*p}) for r, p in zip(ranking, positives, strict=True)]) for k in (1, 5, 12)
    }
    assert recall_at_k(ranking, positives, (1, 5, 12)) == pytest.approx(expected)
    assert 0 < expected[1] < expected[5] < expected[12] < 1


def test_kinds_of_collections_give_the_same_recall():
    ranking = np.array([[0, 1], [1, 0]])
    kinds = [[0], [0]], [{0}, {0}], [np.array([0]), np.array([0])], ((0,), range(1)), [np.array([0]), [0]]
    assert [recall_at_k(ranking, kind, (1, 2)) for kind in kinds] == [{1: 0.5, 2: 1.0}] * 5


@pytest.mark.parametrize(
    ("ranking", "positives", "ks", "message"),
    [
        (np.zeros((2, 3), int), [[0]], (1,), "positives has 1 entries for 2 queries"),
        (np.zeros((1, 3), int), [[0]], (4,), "ks holds 4, but each query has 3 answers"),
        (np.zeros((1, 3), int), [[0]], (0,), "ks holds 0"),
        (np.zeros((1, 3)), [[0]], (1,), "type float64"),
        (np.zeros(3, int), [[0]] * 3, (1,), r"shape \(3,\)"),
        (np.zeros((3, 1), int), [[0], [1.5], [2]], (1,), r"positives of query 1 hold \[1.5\]"),
        (np.zeros((2, 1), int), [[0], ["a.jpg"]], (1,), "positives of query 1"),
        (np.zeros((2, 1), int), [[], [-1]], (1,), "positives of query 1"),
        (np.zeros((2, 1), int), [np.array([0]), np.array([0.0])], (1,), "positives of query 1"),
        (np.zeros((0, 1), int), [], (1,), "No query is left"),
    ],
)
def test_wrong_input_is_refused_by_name(ranking, positives, ks, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(ranking, positives, ks)


def test_denominator_is_checked():
    with pytest.raises(ValueError, match="No query is left"):
        recall_at_k(np.array([[0]]), [[]], (1,), denominator="with_positives")
    with pytest.raises(ValueError, match="'some'"):
        recall_at_k(np.array([[0]]), [[0]], (1,), denominator="some")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"published scores are not at {PUBLISHED}")
def test_published_scores_give_the_published_recall():
    scores = np.load(PUBLISHED / "corridor_scores.npz")
    named = json.loads((PUBLISHED / "corridor_positives.json").read_text())
    positives = [named[str(query)] for query in range(len(named))]
    found = {}
    for method in ("HybridNet", "denseVLAD", "NetVLAD"):
        # Stable, so that equal scores keep the order of the database.
        ranking = np.argsort(-scores[method], axis=1, kind="stable")
        found[method] = round(recall_at_k(ranking, positives, (1,))[1], 3)
    assert found == {"HybridNet": 0.901, "denseVLAD": 0.703, "NetVLAD": 0.676}
