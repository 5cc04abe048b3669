"""Exact search in memory, by FAISS: the kind of store that an index has unless it is told otherwise."""

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, Self

import faiss
import numpy as np

from ..similarity import Metric, distance_scores, nearest_rows

_INDEXES: dict[Metric, type[faiss.IndexFlat]] = {"inner_product": faiss.IndexFlatIP, "l2": faiss.IndexFlatL2}
_KINDS: dict[Metric, str] = {"inner_product": "faiss-flat-ip", "l2": "faiss-flat-l2"}
# What FAISS writes for such an index: a header for the map of ids and one for the vectors, each with name, dim, count,
# two numbers without meaning, whether it is trained, and metric; the number of floats, and these; the number of ids,
# and these.
_HEADER = struct.Struct("<4siq16x?i")
_NAMES: dict[Metric, bytes] = {"inner_product": b"IxFI", "l2": b"IxF2"}
_LENGTH = struct.Struct("<Q")
# From so many on FAISS multiplies matrices, but not where only some vectors may be answers.
_MANY_QUERIES = 20


class FaissStore:
    """Exact search in memory (FAISS IndexIDMap2 over IndexFlatIP or IndexFlatL2).

    One query and many at once go through different sums inside FAISS, so that a score may differ in its last bits
    between the two. Where more photos than k have exactly the same score, which of them come last in is up to FAISS.
    """

    file_suffix = "faiss"

    def __init__(self, dim: int, metric: Metric = "inner_product") -> None:
        self.dim = dim
        self.metric = metric
        self._index = faiss.IndexIDMap2(_INDEXES[metric](dim))

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
        queries, own, flat = np.ascontiguousarray(queries, np.float32), self.ids(), self._index.index
        rows = None if allowed is None else np.flatnonzero(np.isin(own, allowed))
        if rows is not None and len(rows) < len(own) and len(queries) >= _MANY_QUERIES:
            vectors = faiss.rev_swig_ptr(faiss.downcast_index(flat).get_xb(), flat.ntotal * flat.d)
            scores, found = nearest_rows(queries, vectors.reshape(-1, flat.d), k, self.metric, among=rows)
        else:
            parameters = None
            if rows is not None and len(rows) < len(own):
                # FAISS keeps a pointer into this array: the name holds it until the search is done.
                bitmap = np.packbits(np.isin(np.arange(len(own)), rows), bitorder="little")
                parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bitmap))
            scores, found = flat.search(queries, k, params=parameters)
            scores = distance_scores(scores) if self.metric == "l2" else scores
        ids = np.where(found < 0, -1, own[found]) if len(own) else found
        scores[ids < 0] = np.nan
        # lexsort's last key leads; nan sorts behind every number, which keeps the padding last.
        order = np.lexsort((ids, -scores), axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def reconstruct(self, ids: np.ndarray) -> np.ndarray:
        return self._index.reconstruct_batch(np.ascontiguousarray(ids, np.int64))

    def write(self, file: BinaryIO) -> None:
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write, 1 << 22))

    @classmethod
    def read(cls, path: Path, kind: str, dim: int, count: int) -> Self:
        metric = next(metric for metric, name in _KINDS.items() if name == kind)
        # By one handle: a save may remove the file meanwhile.
        with path.open("rb") as file:
            _check_file(file, metric, dim, count)
            file.seek(0)
            store = cls(dim, metric)
            store._index = faiss.read_index(faiss.PyCallbackIOReader(file.read, 1 << 22))
        return store


def _check_file(file: BinaryIO, metric: Metric, dim: int, count: int) -> None:
    """Compares every length that the file names with what it must be: FAISS itself believes them, and writes there."""
    metric_type = _INDEXES[metric](1).metric_type
    headers = [(name, dim, count, True, metric_type) for name in (b"IxM2", _NAMES[metric])]
    expected = [2 * _HEADER.size + 2 * _LENGTH.size + count * (4 * dim + 8), *headers, (dim * count,), (count,)]
    found: list[Any] = [file.seek(0, os.SEEK_END)]
    if found[0] == expected[0]:
        file.seek(0)
        found += [_read(file, _HEADER), _read(file, _HEADER), _read(file, _LENGTH)]
        file.seek(4 * dim * count, os.SEEK_CUR)
        found.append(_read(file, _LENGTH))
    if found != expected:
        raise ValueError(
            f"{file.name} can't be read as FAISS vectors of this index: size, headers and lengths are {found}, but "
            f"{count} vectors of {dim} numbers have {expected}, so that it and index.json don't belong together. Build "
            "the index again with `d2vpr index`."
        )


def _read(file: BinaryIO, form: struct.Struct) -> tuple:
    data = file.read(form.size)
    return form.unpack(data) if len(data) == form.size else ()
