"""A folder of descriptors that is written as it comes, survives being killed, and is brought up to date later."""

import fcntl
import io
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import TEMPORARY_SUFFIX, replace_file
from .row_files import DamagedRows, RowFile, RowKeys, read_row_file, write_row_file

logger = logging.getLogger(__name__)

VECTORS_FILE = "descriptors.safetensors"
TABLE_FILE = "images.parquet"
ABOUT_FILE = "descriptors.json"
PARTS_FOLDER = "parts"
_LOCK_FILE = ".lock"
_PART_ROWS = 1024
_PART_SECONDS = 1.0
_JOIN_ROWS = 1024
# What must be equal for rows to stand side by side, and how an error calls it.
_PROVENANCE = {"weight_hash": "descriptor_dim or weights", "processor": "processor", "dtype": "dtype"}


class DescriptorFolder:
    """A folder's rows, held by one run at a time (a context manager).

    While a run goes on its rows lie in `parts/`, each part written whole or not at all. In the end they are
    joined with the finished file into a new `descriptors.safetensors`, the only file that counts;
    `images.parquet` and `descriptors.json` say the same for people and other programs.

    Args:
        folder: is made if it isn't there.
        about: who makes the rows: model_name, weight_hash, processor (a dict) and dtype.

    Raises (on entering): RuntimeError if another run holds the folder; ValueError if its rows were made with
        other weights, another processor or dtype.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        self.about = json.loads(json.dumps(about, default=str))  # as it comes back from a file: lists, no tuples
        self._files: list[RowFile] = []
        self._held: dict[tuple[str, int, int], tuple[int, int]] = {}

    def __enter__(self) -> "DescriptorFolder":
        (self.folder / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / _LOCK_FILE).open("w")
        try:
            self._take_lock()
            for left in [*self.folder.glob(f"*{TEMPORARY_SUFFIX}"), *self._parts_folder.glob(f"*{TEMPORARY_SUFFIX}")]:
                left.unlink()  # a killed run's; whoever holds the lock is alone
            for path in [self.folder / VECTORS_FILE, *sorted(self._parts_folder.glob("part-*.safetensors"))]:
                if path.exists():
                    self._take_file(path)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._held.clear()
        self._lock.close()

    def missing(self, keys: RowKeys) -> list[int]:
        """The rows of `keys` that no file holds: new photos, and those whose size or time has changed."""
        return [row for row, key in enumerate(keys) if key not in self._held]

    @contextmanager
    def writer(self) -> Iterator["PartWriter"]:
        """Takes new rows; what it took is on the disk when it is left, whatever it is left by."""
        writer = PartWriter(self)
        try:
            yield writer
        finally:
            writer.flush()

    def finish(self, keys: RowKeys, skipped: list[tuple[str, str]], dim: int) -> None:
        """Joins all rows into the finished files, in the order of `keys`, and removes the parts.

        Rows of photos that are in `keys` no longer are dropped. Vectors are copied in blocks, so memory doesn't
        grow with the number of rows.

        Args:
            skipped: (path, reason) of the photos without a row.
            dim: descriptor length, needed where there is no row at all.
        """
        rows = [row for row, key in enumerate(keys) if key in self._held]
        keys = keys[rows]
        places = np.array([self._held[key] for key in keys], np.int64).reshape(-1, 2)
        dim = self._files[0].shape[1] if self._files else dim
        path = self.folder / VECTORS_FILE
        if self._is_finished(keys, places):
            checksum = self._files[0].checksum
        else:
            checksum = write_row_file(path, self.about, keys, dim, self._blocks(places, dim))
        replace_file(self.folder / TABLE_FILE, _table(keys, checksum))
        about = {**self.about, "rows": len(keys), "dim": dim, "checksum": checksum, "skipped": skipped}
        replace_file(self.folder / ABOUT_FILE, (json.dumps(about, indent=1) + "\n").encode())
        shutil.rmtree(self._parts_folder)

    @staticmethod
    def read_finished(folder: Path) -> tuple[np.ndarray, RowKeys, dict[str, Any]]:
        """The (rows, dim) float32 memory map, the photos, and what `descriptors.json` says.

        Raises: FileNotFoundError if there is no finished run; ValueError if the files don't belong together.
        """
        for name in (VECTORS_FILE, ABOUT_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} has no {name}, so it holds no finished run. Run the same command again to finish it."
                )
        about = json.loads((folder / ABOUT_FILE).read_text())
        file = read_row_file(folder / VECTORS_FILE, verify=False)
        if file.checksum != about.get("checksum"):
            raise ValueError(
                f"{folder / VECTORS_FILE} and {ABOUT_FILE} are of different runs (checksums {file.checksum} and "
                f"{about.get('checksum')}). Run the same command again to write both anew."
            )
        return file.vectors(), file.keys, about

    @property
    def _parts_folder(self) -> Path:
        return self.folder / PARTS_FOLDER

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"{self.folder} is being written by another run. Wait for it to end, or name another folder."
            ) from error

    def _take_file(self, path: Path) -> None:
        """Notes the rows of a file; a damaged one is removed, so that its photos are embedded again."""
        try:
            file = read_row_file(path, verify=path.name != VECTORS_FILE)
        except DamagedRows as error:
            logger.warning("%s Its photos are embedded again.", error)
            path.unlink()
            return
        self._refuse_other_maker(file)
        self._note(file)

    def _note(self, file: RowFile) -> None:
        self._files.append(file)
        for row, key in enumerate(file.keys):
            self._held.setdefault(key, (len(self._files) - 1, row))

    def _refuse_other_maker(self, file: RowFile) -> None:
        found = [
            f"{called} {_difference(file.about.get(entry), self.about.get(entry))}"
            for entry, called in _PROVENANCE.items()
            if file.about.get(entry) != self.about.get(entry)
        ]
        if found:
            raise ValueError(
                f"{self.folder} holds descriptors made with other settings: {', '.join(found)}. Rows of both can't be "
                "mixed. Name another folder, or remove this one to embed everything anew."
            )

    def _is_finished(self, keys: RowKeys, places: np.ndarray) -> bool:
        """Whether the finished file holds just these rows in this order, under these paths."""
        if not self._files or self._files[0].path.name != VECTORS_FILE:
            return False
        in_order = np.column_stack([np.zeros(len(keys), np.int64), np.arange(len(keys))])
        return len(self._files[0].keys) == len(keys) and (
            np.array_equal(places, in_order) and self._files[0].keys.paths == keys.paths
        )

    def _blocks(self, places: np.ndarray, dim: int) -> Iterator[np.ndarray]:
        """The vectors of (rows, 2) file and row numbers, block by block."""
        for start in range(0, len(places), _JOIN_ROWS):
            files, rows = places[start : start + _JOIN_ROWS].T
            block = np.empty((len(rows), dim), np.float32)
            for file in np.unique(files):
                block[files == file] = self._files[file].vectors()[rows[files == file]]
            yield block


class PartWriter:
    """Gathers rows and writes them as parts, every second and every 1024 rows at the latest."""

    def __init__(self, folder: DescriptorFolder) -> None:
        self._folder = folder
        numbers = [int(path.stem.partition("-")[2]) for path in folder._parts_folder.glob("part-*.safetensors")]
        self._number = max(numbers, default=0)
        self._rows: list[tuple[RowKeys, np.ndarray]] = []
        self._written_at = time.monotonic()

    def add(self, keys: RowKeys, vectors: np.ndarray) -> None:
        """Takes rows: `vectors` is (rows, dim) float32."""
        if len(keys):
            self._rows.append((keys, vectors))
        waiting = sum(len(keys) for keys, _ in self._rows)
        if waiting >= _PART_ROWS or time.monotonic() - self._written_at >= _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what waits as one part."""
        if self._rows:
            self._number += 1
            path = self._folder._parts_folder / f"part-{self._number:06d}.safetensors"
            keys = RowKeys.concatenate([keys for keys, _ in self._rows])
            vectors = [vectors for _, vectors in self._rows]
            write_row_file(path, self._folder.about, keys, vectors[0].shape[1], vectors)
            self._folder._note(read_row_file(path, verify=False))
            self._rows.clear()
        self._written_at = time.monotonic()


def _table(keys: RowKeys, checksum: str) -> bytes:
    """`images.parquet`: one row for each descriptor, in order."""
    columns = {"name": keys.names, "path": keys.paths, "size_bytes": keys.size_bytes, "mtime_ns": keys.mtime_ns}
    table = pa.table(columns).replace_schema_metadata({"checksum": checksum})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _difference(there: Any, now: Any) -> str:
    """Two settings that differ, in short: of dicts the entries that differ, of hashes the first digits."""
    if isinstance(there, dict) and isinstance(now, dict):
        names = [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]
        return "; ".join(f"{name} {there.get(name)!r}, now {now.get(name)!r}" for name in names)
    return f"{str(there)[:8]}, now {str(now)[:8]}"
