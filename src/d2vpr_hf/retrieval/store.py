"""Keeps the vectors of an index: a small protocol, and FAISS with exact search as its embedded kind."""

from pathlib import Path
from typing import BinaryIO, Protocol, Self

import faiss
import numpy as np


class VectorStore(Protocol):
    """What an index asks of the place that keeps its vectors.

    Vectors are float32 rows of unit length; ids are int64, given by the index, and never given twice.
    """

    kind: str
    dim: int

    def __len__(self) -> int:
        """Number of vectors."""

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Take in vectors (rows, dim) under new ids (rows,)."""

    def remove(self, ids: np.ndarray) -> None:
        """Forget the vectors of these ids."""

    def search(self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Scores (queries, k) float32 and ids (queries, k) int64, best first, among the `allowed` ids alone.

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


class FaissStore:
    """Exact inner-product search in memory (FAISS IndexIDMap2 over IndexFlatIP).

    One query and many at once go through different sums inside FAISS, so that a score may differ in its last bits
    between the two. Where more photos than k have exactly the same score, which of them come last in is up to FAISS.
    """

    kind = "faiss-flat-ip"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))

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
        if inner is index or not isinstance(inner, faiss.IndexFlatIP):
            raise ValueError(
                f"{path} holds a FAISS {type(inner).__name__}, but an index of places keeps an IndexIDMap2 over an "
                "IndexFlatIP. Build the index again with `d2vpr index`."
            )
        store = cls(index.d)
        store._index = index
        return store
