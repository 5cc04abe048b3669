"""Sets of numbered frames: VPR-Bench's `ref/` and `query/`, and pairs of photos that share a number."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...files import path_to_text
from ...photos.folder import PhotoFolder, list_images
from ...photos.positions import Positions
from ..object_arrays import read_positive_rows
from .base import Layout, Reading, Split


@dataclass(frozen=True)
class FrameFolders(Layout):
    """Two folders of photos named by a number, and perhaps a NumPy file of positives beside them.

    Attributes:
        database: folder of the database.
        queries: folder of the queries.
        query_step: the query number i shows the same as the database photo number i * query_step.
        truth: names under which the list of positives may lie; the first that is there is read.
        numbered_from_zero: whether the numbers run from 0 without a gap.
    """

    database: str = "ref"
    queries: str = "query"
    query_step: int = 1
    truth: tuple[str, ...] = ("ground_truth_new.npy",)
    numbered_from_zero: bool = True

    def find(self, root: Path) -> Path | None:
        return root if all((root / name).is_dir() for name in (self.database, self.queries)) else None

    def read(self, folder: Path) -> Reading:
        database, queries = (
            self._read_split(folder / self.database, 1),
            self._read_split(folder / self.queries, self.query_step),
        )
        file = next((folder / name for name in self.truth if (folder / name).is_file()), None)
        listed = file and read_positive_rows(file, queries=len(queries), database=len(database))
        return Reading(database, queries, listed, file)

    def _read_split(self, folder: Path, step: int) -> Split:
        paths = list_images(folder)
        numbers = [re.search(r"(\d{1,9})$", path.stem) for path in paths]
        if None in numbers:
            unnumbered = paths[numbers.index(None)]
            raise ValueError(
                f"{path_to_text(folder)} holds {path_to_text(unnumbered.name)!r}, but photos of this layout are named "
                f"by a number, such as 0000012.jpg. Remove it, or give a folder in the layout:\n{self.tree()}"
            )
        frame = np.array([int(number[1]) for number in numbers], np.int64)
        known, times = np.unique(frame, return_counts=True)
        if (times > 1).any():
            raise ValueError(
                f"{path_to_text(folder)} has the number {known[times > 1][0]} more than once, but a number is one "
                "photo. Remove what isn't of the set."
            )
        if self.numbered_from_zero and len(known) and (missing := known[-1] + 1 - len(known)):
            first = np.flatnonzero(np.append(known, -1) != np.arange(len(known) + 1))[0]
            raise ValueError(
                f"{path_to_text(folder)} has numbers up to {known[-1]}, but {missing} are missing, first {first}. "
                "Positives are rows counted from 0, so every photo must be there: download the set again."
            )
        # Names of different lengths sort otherwise than their numbers.
        order = np.argsort(frame, kind="stable")
        photos = PhotoFolder.of(folder, [paths[row] for row in order], Positions.unknown(len(paths)))
        return Split(photos, frame[order] * step)

    def tree(self) -> str:
        number = "0000000.jpg" if self.numbered_from_zero else "NUMBER.jpg (or .png; the same in both folders)"
        lines = [f"{self.database}/{number}", f"{self.queries}/{number}"]
        return "\n".join(lines + [f"{name} (positives; may be missing)" for name in self.truth])
