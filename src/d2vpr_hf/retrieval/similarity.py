"""How descriptors are compared, by inner product where they have length 1 and by distance where they don't, and ranked.

What is compared may be a memory map: it is read from its file block by block and need not fit into memory.
"""

import mmap
from collections.abc import Callable
from typing import Literal

import faiss
import numpy as np

Metric = Literal["inner_product", "l2"]

_LENGTH_TOLERANCE = 1e-3
_BLOCK_ROWS = 8192
_SAMPLED_ROWS = 1000
# Database rows and queries that are in memory at a time; both together stay below 1 GB whatever the dim.
_BLOCK_BYTES = 256 * 2**20
_FAISS_METRICS: dict[Metric, int] = {"inner_product": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}


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


def nearest_rows(
    queries: np.ndarray,
    database: np.ndarray,
    k: int,
    metric: Metric,
    *,
    among: np.ndarray | None = None,
    block_bytes: int = _BLOCK_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best database rows of each query, exactly, without an index.

    Memory doesn't grow with the database: (queries, k) answers and one block of either side. The database is read
    once for every block of queries.

    Args:
        queries: (queries, dim) float32, in memory or mapped.
        database: (rows, dim) float32, in memory or mapped.
        k: answers a query.
        metric: by which they are compared.
        among: numbers of the database rows that may be answers, rising; None: all.
        block_bytes: size of a block of queries and of one of the database.

    Returns: scores (queries, k) float32, best first, and row numbers (queries, k) int64; nan and -1 where the database
        has fewer rows. Equal scores stand in the order of their rows.
    """
    block_rows = max(1, block_bytes // (4 * max(1, queries.shape[1])))
    scores = np.full((len(queries), k), np.nan, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(queries), block_rows):
        asked = slice(start, start + block_rows)
        scores[asked], rows[asked] = _nearest_of_block(queries[asked], database, k, metric, among, block_rows)
        release_pages(queries)
    return scores, rows


def release_pages(array: np.ndarray) -> None:
    """Drops the pages of a read-only map of a file from this process; any other array stays as it is.

    The system may keep them as cache of the file, and reads them again when they are asked for. Without this, a process
    that has walked over a file of 100 GB seems to need as much memory.
    """
    # A private copy-on-write map would lose what was written to it.
    if getattr(array, "mode", None) == "r" and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def _nearest_of_block(
    queries: np.ndarray, database: np.ndarray, k: int, metric: Metric, among: np.ndarray | None, block_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    queries = np.ascontiguousarray(queries, np.float32)
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    best_rows = np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(database if among is None else among), block_rows):
        asked = slice(start, start + block_rows)
        block = np.ascontiguousarray(database[asked if among is None else among[asked]], np.float32)
        values, found = faiss.knn(queries, block, min(k, len(block)), metric=_FAISS_METRICS[metric])
        alike = distance_scores(values) if metric == "l2" else values
        rows = found + start if among is None else among[asked][found]
        best_scores, best_rows = _merged(best_scores, best_rows, alike, rows)
        release_pages(database)
    return np.where(best_rows < 0, np.nan, best_scores), best_rows


def _merged(
    scores: np.ndarray, rows: np.ndarray, more_scores: np.ndarray, more_rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best of two rankings, as many as the first has; of equal scores the lower row comes first."""
    scores, rows = np.hstack([scores, more_scores]), np.hstack([rows, more_rows])
    # lexsort's last key leads.
    order = np.lexsort((rows, -scores), axis=1)[:, : scores.shape[1] - more_scores.shape[1]]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """(rows,) lengths; not finite where a number of the row isn't."""
    block = np.asarray(vectors, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(np.einsum("ij,ij->i", block, block))


def _is_unit(lengths: np.ndarray) -> np.ndarray:
    return np.abs(lengths - 1) < _LENGTH_TOLERANCE


def _is_positive(lengths: np.ndarray) -> np.ndarray:
    return (lengths > 0) & np.isfinite(lengths)
