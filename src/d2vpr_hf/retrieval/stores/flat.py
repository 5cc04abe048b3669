"""Keeps the vectors of an index: a small protocol, and FAISS with exact search as its embedded kind."""

from pathlib import Path
from typing import BinaryIO, Protocol, Self

import faiss
import numpy as np

from ..similarity import Metric, distance_scores


class VectorStore(Protocol):
    """What an index asks of the place that keeps its vectors.

    Vectors are float32 rows, of unit length where the metric is the inner product; ids are int64, given by the index,
    and never given twice.
    """

    kind: str
    dim: int
    metric: Metric

    def __len__(self) -> int:
        """Number of vectors."""

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Take in vectors (rows, dim) under new ids (rows,)."""

    def remove(self, ids: np.ndarray) -> None:
        """Forget the vectors of these ids."""

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (queries, k) float32 and ids (queries, k) int64, best first, among the `allowed` ids alone.

        Scores are inner products, or minus the distances.
        Where there are fewer than k, scores are nan and ids -1. Equal scores stand in the order of their ids.
        """

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        """Vectors (rows, dim) of these ids."""

    def write(self, file: BinaryIO) -> None:
        """Write everything into an open file."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` has written. Raises ValueError if the file holds anything else."""

    def ids(self) -> np.ndarray:
        """All ids (rows,), in the order in which they came."""


_FLAT_INDEXES: dict[Metric, type[faiss.IndexFlat]] = {"inner_product": faiss.IndexFlatIP, "l2": faiss.IndexFlatL2}
_KINDS: dict[Metric, str] = {"inner_product": "faiss-flat-ip", "l2": "faiss-flat-l2"}


class FaissStore:
    """Exact search in memory (FAISS IndexIDMap2 over IndexFlatIP or IndexFlatL2).

    One query and many at once go through different sums inside FAISS, so that a score may differ in its last bits
    between the two. Where more photos than k have exactly the same score, which of them come last in is up to FAISS.
    """

    kinds = tuple(_KINDS.values())

    def __init__(self, dim: int, metric: Metric = "inner_product") -> None:
        self.dim = dim
        self.metric = metric
        self._index = faiss.IndexIDMap2(_FLAT_INDEXES[metric](dim))

    @property
    def kind(self) -> str:
        return _KINDS[self.metric]

    def __len__(self) -> int:
        return self._index.ntotal

    def ids(self) -> np.ndarray:
        return faiss.vector_to_array(self._index.id_map)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        # In one call, because FAISS then allocates once and exactly; in blocks its memory would grow by doubling.
        self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.ascontiguousarray(ids, np.int64))

    def remove(self, ids: np.ndarray) -> None:
        self._index.remove_ids(np.ascontiguousarray(ids, np.int64))

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        queries = np.ascontiguousarray(queries, np.float32)
        if allowed is None:
            scores, ids = self._index.search(queries, k)
        else:
            bits = np.zeros(int(allowed.max(initial=-1)) + 1, bool)
            bits[allowed] = True
            # FAISS keeps a pointer into this array: the name holds it until the search is done.
            bitmap = np.packbits(bits, bitorder="little")
            selector = faiss.IDSelectorBitmap(bitmap)
            scores, ids = self._index.search(queries, k, params=faiss.SearchParameters(sel=selector))
        if self.metric == "l2":
            scores = distance_scores(scores)
        scores[ids < 0] = np.nan
        # lexsort's last key leads; nan sorts behind every number, which keeps the padding last.
        order = np.lexsort((ids, -scores), axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        return self._index.reconstruct_batch(np.ascontiguousarray(ids, np.int64))

    def write(self, file: BinaryIO) -> None:
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write, 1 << 22))

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            index = faiss.read_index(str(path))
        except (RuntimeError, MemoryError) as error:
            reason = str(error).splitlines()[0][-200:]
            raise ValueError(
                f"{path} can't be read as FAISS vectors ({reason}). Build the index again with `d2vpr index`."
            ) from error
        inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexIDMap2) else index
        metrics = [metric for metric, kind in _FLAT_INDEXES.items() if inner is not index and isinstance(inner, kind)]
        if not metrics:
            raise ValueError(
                f"{path} holds a FAISS {type(inner).__name__}, but an index of places keeps an IndexIDMap2 over an "
                "IndexFlatIP or IndexFlatL2. Build the index again with `d2vpr index`."
            )
        store = cls(index.d, metrics[0])
        store._index = index
        return store
