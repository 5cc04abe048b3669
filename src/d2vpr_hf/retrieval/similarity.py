"""How descriptors are compared: by inner product where they have length 1, by distance where they don't."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from .mapped_pages import release_pages

Metric = Literal["inner_product", "l2"]

_LENGTH_TOLERANCE = 1e-3
_BLOCK_ROWS = 8192
_SAMPLED_ROWS = 1000


def metric_of(vectors: np.ndarray) -> Metric:
    """The metric that descriptors are made for: "inner_product" where most have length 1, "l2" otherwise.

    "Most" and not "all", so that a broken row is found as such and doesn't change how all others are compared.
    Descriptors reduced by PCA without dividing by their length again are compared by distance, as their benchmarks do.

    Args:
        vectors: (rows, dim), of which up to 1,000 rows, evenly spread, are looked at.
    """
    rows = np.linspace(0, len(vectors) - 1, min(_SAMPLED_ROWS, len(vectors))).round().astype(np.int64)
    return "inner_product" if 2 * _is_unit(_lengths(np.asarray(vectors[rows]))).sum() > len(rows) else "l2"


def rows_without_meaning(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Numbers of the rows whose scores would mean nothing, rising.

    These are rows that hold a number that isn't finite or nothing but zeros and, by inner product, rows that aren't of
    length 1, because the longest would win.

    Args:
        vectors: (rows, dim); read in blocks, so that a memory map stays on the disk.
    """
    meaningful: Callable[[np.ndarray], np.ndarray] = _is_unit if metric == "inner_product" else _is_positive
    wrong = [np.empty(0, np.int64)]
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        wrong += [start + np.flatnonzero(~meaningful(_lengths(block)))]
        release_pages(vectors)
    return np.concatenate(wrong)


def scores(queries: np.ndarray, database: np.ndarray, metric: Metric) -> np.ndarray:
    """Scores (queries, database) float32, the higher the more alike: inner products, or minus the distances.

    Args:
        queries: (queries, dim) float32.
        database: (database, dim) float32.
    """
    products = queries @ database.T
    if metric == "inner_product":
        return products
    squares = np.square(queries).sum(axis=1)[:, None] + np.square(database).sum(axis=1) - 2 * products
    return distance_scores(squares)


def distance_scores(squared_distances: np.ndarray) -> np.ndarray:
    """Scores by the metric "l2": minus the distance, so that by either metric the best score is the highest.

    Rounding can leave a square of nearly 0 a little below it; infinite ones (no match) stay infinite.
    """
    return -np.sqrt(np.maximum(squared_distances, 0))


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """(rows,) lengths; not finite where a number of the row isn't."""
    block = np.asarray(vectors, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(np.einsum("ij,ij->i", block, block))


def _is_unit(lengths: np.ndarray) -> np.ndarray:
    return np.abs(lengths - 1) < _LENGTH_TOLERANCE


def _is_positive(lengths: np.ndarray) -> np.ndarray:
    return (lengths > 0) & np.isfinite(lengths)
