"""Ranks descriptors that need not fit into memory: the database is read from its file block by block."""

import faiss
import numpy as np

from .mapped_pages import release_pages
from .similarity import Metric, distance_scores

# Database rows and queries that are in memory at a time; both together stay below 1 GB whatever the dim.
_BLOCK_BYTES = 256 * 2**20
_FAISS_METRICS: dict[Metric, int] = {"inner_product": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}


def nearest_rows(
    queries: np.ndarray, database: np.ndarray, k: int, metric: Metric, *, block_bytes: int = _BLOCK_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """The k best database rows of each query, exactly, without an index.

    Memory doesn't grow with the database: (queries, k) answers and one block of either side. The database is read
    once for every block of queries.

    Args:
        queries: (queries, dim) float32, in memory or mapped.
        database: (rows, dim) float32, in memory or mapped.
        k: answers a query.
        metric: by which they are compared.
        block_bytes: size of a block of queries and of one of the database.

    Returns: scores (queries, k) float32, best first, and row numbers (queries, k) int64; nan and -1 where the database
        has fewer rows. Equal scores stand in the order of their rows.
    """
    block_rows = max(1, block_bytes // (4 * max(1, queries.shape[1])))
    scores = np.full((len(queries), k), np.nan, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(queries), block_rows):
        asked = slice(start, start + block_rows)
        scores[asked], rows[asked] = _nearest_of_block(queries[asked], database, k, metric, block_rows)
        release_pages(queries)
    return scores, rows


def _nearest_of_block(
    queries: np.ndarray, database: np.ndarray, k: int, metric: Metric, block_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    queries = np.ascontiguousarray(queries, np.float32)
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    best_rows = np.full((len(queries), k), -1, np.int64)
    for start in range(0, len(database), block_rows):
        block = np.ascontiguousarray(database[start : start + block_rows], np.float32)
        values, found = faiss.knn(queries, block, min(k, len(block)), metric=_FAISS_METRICS[metric])
        alike = distance_scores(values) if metric == "l2" else values
        best_scores, best_rows = _merged(best_scores, best_rows, alike, found + start)
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
