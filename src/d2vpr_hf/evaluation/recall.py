"""Scores a ranking: the share of queries whose place is among their first k answers, and how sure that is.

Intervals come from the bootstrap over queries, which are drawn as if each were independent of the others. Where many
show one place (the crops of a panorama, the frames of a drive), the true interval is wider.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

Denominator = Literal["all", "with_positives"]
Interval = tuple[float, float]

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95


def recall_at_k(
    ranking: np.ndarray,
    positives: Sequence[Collection[int]],
    ks: Sequence[int],
    denominator: Denominator = "all",
) -> dict[int, float]:
    """Share of queries with at least one positive among their first k answers.

    Some libraries call this accuracy@k and mean by recall the share of the positives that are found.

    Args:
        ranking: (queries, answers) database indices, nearest first; -1 where a query has no more answers.
        positives: for each query, the database indices that show the same place, in any order.
        ks: cut-offs, none above the number of answers.
        denominator: "all" counts a query without positives as a miss, as the UTM sets do;
            "with_positives" leaves such queries out, as the sets with lists of positives do.

    Returns: {k: fraction in [0, 1]}, unrounded.
    Raises: ValueError if `positives` isn't one per query, a k exceeds the answers, something isn't an index, or no
        query is left to divide by.
    Source: deep visual geo-localization benchmark (Berton et al., CVPR 2022), there in percent.
    """
    hits = hits_at_k(ranking, positives, ks)
    if denominator == "with_positives":
        hits = hits[count_positives(positives) > 0]
    elif denominator != "all":
        raise ValueError(f"denominator is {denominator!r}, but must be 'all' or 'with_positives'.")
    if not len(hits):
        raise ValueError(
            f"No query is left to score: ranking has {len(ranking)} queries and denominator is {denominator!r}. "
            "Give at least one query, and with 'with_positives' at least one that has a positive."
        )
    return dict(zip((int(k) for k in ks), hits.mean(axis=0).tolist(), strict=True))


def hits_at_k(ranking: np.ndarray, positives: Sequence[Collection[int]], ks: Sequence[int]) -> np.ndarray:
    """Whether each query has a positive among its first k answers.

    Args: see `recall_at_k`.
    Returns: (queries, len(ks)) bool, one column for each k in the order given.
    Raises: ValueError as `recall_at_k`.
    """
    first = first_hits(ranking, positives)
    answers = np.shape(ranking)[1]
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= answers:
            raise ValueError(
                f"ks holds {k!r}, but each query has {answers} answers. Give integers from 1 to {answers}, or "
                "rank more answers."
            )
    return (first[:, None] > 0) & (first[:, None] <= np.asarray(ks, np.int64))


def first_hits(ranking: np.ndarray, positives: Sequence[Collection[int]]) -> np.ndarray:
    """(queries,) int64 rank, from 1, of the first positive among each query's answers; 0 where there is none.

    Args: see `recall_at_k`.
    Raises: ValueError as `recall_at_k`.
    """
    hit = _right_answers(ranking, positives)
    return np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, 0) if hit.shape[1] else np.zeros(len(hit), np.int64)


def _right_answers(ranking: np.ndarray, positives: Sequence[Collection[int]]) -> np.ndarray:
    """(queries, answers) bool: which answers are positives of their query."""
    ranking = np.asarray(ranking)
    if ranking.ndim != 2 or not np.issubdtype(ranking.dtype, np.integer):
        raise ValueError(
            f"ranking has shape {ranking.shape} and type {ranking.dtype}, but must be (queries, answers) of integers: "
            "database indices, nearest first."
        )
    queries, answers = ranking.shape
    if len(positives) != queries:
        raise ValueError(
            f"positives has {len(positives)} entries for {queries} queries. Give one collection of database indices "
            "for each query, an empty one where there is none."
        )
    # One sorted search over all (query, database index) pairs at once: a loop over queries would be the slow part of
    # scoring a large set.
    flat = _flatten_positives(positives)
    indices, labels = np.unique(np.concatenate([ranking.ravel(), flat]), return_inverse=True)
    ranked, wanted = labels[: ranking.size].reshape(queries, answers), labels[ranking.size :]
    row = np.arange(queries)
    pairs = np.repeat(row, count_positives(positives)) * len(indices) + wanted
    return np.isin(row[:, None] * len(indices) + ranked, pairs)


def average_precision(ranking: np.ndarray, positives: Sequence[Collection[int]]) -> np.ndarray:
    """(queries,) float64 average precision of each query in [0, 1]; nan where it has no positive.

    It is the mean over all positives of the precision at the positive's rank, which is 0 for a positive that isn't
    among the answers. The ranking must hold the whole database to be average precision and no cut of it.

    Args: see `recall_at_k`.
    Raises: ValueError as `recall_at_k`.
    """
    right = _right_answers(ranking, positives)
    ranks = np.arange(1, right.shape[1] + 1)
    counts = count_positives(positives).astype(np.float64)
    sums = (right * np.cumsum(right, axis=1) / ranks).sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(right), np.nan), where=counts > 0)


def count_positives(positives: Sequence[Collection[int]]) -> np.ndarray:
    """(queries,) int64 number of positives of each query."""
    return np.fromiter((len(each) for each in positives), dtype=np.int64, count=len(positives))


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
    # large set than for a small one.
    return {
        k: _interval(random.binomial(queries, _hits(first_hits, k).mean(), RESAMPLES) / queries) for k in map(int, ks)
    }


def recall_differences(
    first_hits: np.ndarray, other_first_hits: np.ndarray, ks: Sequence[int]
) -> dict[int, tuple[float, Interval]]:
    """{k: (difference, (low, high))}: recall@k of a model minus that of another on the same queries, as fractions.

    Pairing leaves out what both have in common, so that the interval is narrower than those of the two suggest.

    Args:
        first_hits: of the model, as in `recall_intervals`.
        other_first_hits: of the other, for the same queries in the same order.
        ks: cut-offs.

    Raises: ValueError if no query counts, or if the two have different numbers of them.
    """
    queries = _checked_count(first_hits)
    if len(other_first_hits) != queries:
        raise ValueError(
            f"The two models answered {queries} and {len(other_first_hits)} queries, but a paired difference needs "
            "the same ones. Evaluate both on one protocol."
        )
    random = np.random.default_rng(SEED)
    differences = {}
    for k in map(int, ks):
        ours, theirs = _hits(first_hits, k), _hits(other_first_hits, k)
        # Resampled pairs: only those on which the two disagree move the difference.
        shares = [(theirs & ~ours).mean(), (ours & ~theirs).mean()]
        worse, better, _ = random.multinomial(queries, [*shares, max(0.0, 1 - sum(shares))], RESAMPLES).T
        differences[k] = float(ours.mean() - theirs.mean()), _interval((better - worse) / queries)
    return differences


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of the best answers whose score is at least a threshold.

    Attributes:
        thresholds: (points,) falling scores; at each, all queries whose best answer scores at least so much are
            accepted.
        precision: (points,) share of the accepted queries whose best answer is right.
        recall: (points,) share of the queries with positives that are accepted and right.
        area: under the curve, as the sum of the steps in recall, each times the precision reached there (average
            precision; without interpolation, which would flatter).
        recall_at_full_precision: the largest recall while no accepted answer is wrong; 0 where the answer with the best
            score is.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    area: float
    recall_at_full_precision: float


def precision_recall(scores: np.ndarray, right: np.ndarray, with_positives: int) -> PrecisionRecall:
    """The precision-recall curve over the score of each query's best answer.

    An answer to a query without positives is wrong whenever it is accepted. A query without any answer (score nan) is
    never accepted.

    Args:
        scores: (queries,) of the best answers.
        right: (queries,) bool, whether the best answer is a positive.
        with_positives: queries that have a positive, by which recall is divided.

    Raises: ValueError if no query has a positive.
    """
    if with_positives < 1:
        raise ValueError("No query has a positive, so that recall means nothing. Give a protocol with positives.")
    answered = ~np.isnan(scores)
    scores, right = scores[answered], right[answered]
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    # Equal scores are accepted together: a point stands where the next score is lower.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.empty(0, np.int64)
    found = np.cumsum(right)[last]
    precision, recall = found / (last + 1), found / with_positives
    full = recall[precision == 1]
    return PrecisionRecall(
        thresholds=scores[last],
        precision=precision,
        recall=recall,
        area=float((np.diff(recall, prepend=0) * precision).sum()),
        recall_at_full_precision=float(full.max(initial=0)),
    )


def evenly_spread(count: int, most: int) -> np.ndarray:
    """Numbers of at most so many of `count` things, evenly spread from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def chance_recall(positives: Sequence[Collection[int]], photos: int, ks: Sequence[int]) -> dict[int, float]:
    """Recall@k to expect of a ranking drawn at random, for each k.

    A query with p positives among n photos is missed by k random answers with the probability
    (n - p) / n * (n - p - 1) / (n - 1) * ..., k factors.
    """
    counts = count_positives(positives).astype(np.float64)
    misses = {}
    for k in ks:
        steps = np.arange(min(k, photos))
        factors = np.clip(photos - counts[:, None] - steps, 0, None) / (photos - steps)
        misses[k] = factors.prod(axis=1)
    return {k: float(1 - missed.mean()) for k, missed in misses.items()}


def _hits(first_hits: np.ndarray, k: int) -> np.ndarray:
    return (first_hits > 0) & (first_hits <= k)


def _interval(values: np.ndarray) -> Interval:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _checked_count(first_hits: np.ndarray) -> int:
    if not len(first_hits):
        raise ValueError("No query counts, so that there is no recall. Give at least one query that does.")
    return len(first_hits)


def _flatten_positives(positives: Sequence[Collection[int]]) -> np.ndarray:
    """All positives one after the other; a value that isn't an index is refused, with its query named."""
    if all(isinstance(each, np.ndarray) for each in positives):
        filled = [each for each in positives if each.size]
        flat = np.concatenate(filled) if filled else np.empty(0, np.int64)
    else:
        flat = np.array(list(chain.from_iterable(positives)))
    if not flat.size:
        return np.empty(0, np.int64)
    if flat.ndim == 1 and np.issubdtype(flat.dtype, np.integer) and flat.min() >= 0:
        return flat.astype(np.int64)
    for query, each in enumerate(positives):
        values = np.asarray(list(each))
        if values.size and not (values.ndim == 1 and np.issubdtype(values.dtype, np.integer) and values.min() >= 0):
            raise ValueError(
                f"positives of query {query} hold {values.ravel()[:5].tolist()}, but must be database indices: whole "
                "numbers from 0. Convert names to row numbers first."
            )
    raise ValueError(
        f"positives are of type {flat.dtype} when joined, but must be database indices that fit into 64-bit integers."
    )
