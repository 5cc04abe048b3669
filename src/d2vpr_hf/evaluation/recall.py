"""Scores a ranking: the share of queries whose place is among their first k answers."""

from collections.abc import Collection, Sequence
from itertools import chain
from typing import Literal

import numpy as np

Denominator = Literal["all", "with_positives"]


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
        denominator: "all" counts a query without positives as a miss, as the UTM benchmarks do;
            "with_positives" leaves such queries out, as the benchmarks with lists of positives do.

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
                f"ks holds {k!r}, but each query has {answers} answers. Give whole numbers from 1 to {answers}, or "
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
    # scoring a large benchmark.
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


def _flatten_positives(positives: Sequence[Collection[int]]) -> np.ndarray:
    """All positives one after the other; a value that is no index is refused, with its query named."""
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
