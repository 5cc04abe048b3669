"""How sure a recall is: 95 % intervals by the bootstrap over queries, of one model and of two on the same queries.

Queries are drawn as if each were independent of the others. Where many show one place (the crops of a panorama, the
frames of a drive), the true interval is wider.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95

Interval = tuple[float, float]


def recall_intervals(first_hits: np.ndarray, ks: Sequence[int]) -> dict[int, Interval]:
    """{k: (low, high)} as fractions: where recall@k lies in 95 % of the resamples.

    Args:
        first_hits: (queries,) rank, from 1, of the first positive of each query that counts; 0 where there is none.
        ks: cut-offs.

    Raises: ValueError if no query counts.
    """
    queries = _checked_count(first_hits)
    random = np.random.default_rng(SEED)
    # The number of hits in as many queries, drawn with replacement, is binomial: so drawn, it costs nothing more for a
    # large benchmark than for a small one.
    return {
        k: _interval(random.binomial(queries, _hits(first_hits, k).mean(), RESAMPLES) / queries) for k in map(int, ks)
    }


def recall_differences(
    first_hits: np.ndarray, baseline_first_hits: np.ndarray, ks: Sequence[int]
) -> dict[int, tuple[float, Interval]]:
    """{k: (difference, (low, high))} of recall@k to a baseline on the same queries, as fractions.

    Pairing leaves out what both have in common, so that the interval is narrower than those of the two suggest.

    Args:
        first_hits: as in `recall_intervals`.
        baseline_first_hits: of the baseline, for the same queries in the same order.
        ks: cut-offs.

    Raises: ValueError if no query counts, or if the two have different numbers of them.
    """
    queries = _checked_count(first_hits)
    if len(baseline_first_hits) != queries:
        raise ValueError(
            f"The two models answered {queries} and {len(baseline_first_hits)} queries, but a paired difference needs "
            "the same ones. Evaluate both on one protocol."
        )
    random = np.random.default_rng(SEED)
    differences = {}
    for k in map(int, ks):
        ours, theirs = _hits(first_hits, k), _hits(baseline_first_hits, k)
        # Resampled pairs: only those on which the two disagree move the difference.
        shares = [(ours & ~theirs).mean(), (theirs & ~ours).mean()]
        better, worse, _ = random.multinomial(queries, [*shares, max(0.0, 1 - sum(shares))], RESAMPLES).T
        differences[k] = float(ours.mean() - theirs.mean()), _interval((better - worse) / queries)
    return differences


def _hits(first_hits: np.ndarray, k: int) -> np.ndarray:
    return (first_hits > 0) & (first_hits <= k)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _checked_count(first_hits: np.ndarray) -> int:
    if not len(first_hits):
        raise ValueError("No query counts, so that there is no recall. Give at least one query that does.")
    return len(first_hits)
