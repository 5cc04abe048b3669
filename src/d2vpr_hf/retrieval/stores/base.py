"""What an index asks of the place that keeps its vectors."""

from pathlib import Path
from typing import BinaryIO, Protocol, Self

import numpy as np

from ..similarity import Metric


class VectorStore(Protocol):
    """What an index asks of the place that keeps its vectors.

    Vectors are float32 rows, of unit length where the metric is the inner product; ids are int64, given by the index,
    rising, and never given twice.

    Attributes:
        kind: its name in `index.json` and in `STORES`.
        file_suffix: of the file that `write` fills, without a dot.
        dim, metric: of its vectors.
    """

    kind: str
    file_suffix: str
    dim: int
    metric: Metric

    def __init__(self, dim: int, metric: Metric) -> None:
        """An empty store."""

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
    def read(cls, path: Path, kind: str, dim: int, count: int) -> Self:
        """What `write` has written. Raises ValueError if the file holds anything but `count` such vectors."""

    def ids(self) -> np.ndarray:
        """All ids (rows,), in the order in which they came."""
