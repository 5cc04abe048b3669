"""The file that holds rows: descriptors together with the files they were made from, in one safetensors file.

One file, so that descriptors and names can't come apart, whenever a run is killed. Its tensors: `vectors` (rows, dim)
float32; `size_bytes` and `mtime_ns` (rows,) int64 of each photo; `names` and `paths` uint8, all texts in UTF-8 one
after the other, with `name_ends` and `path_ends` (rows,) int64. Its metadata: `about`, in JSON, who made it;
`checksum`, the CRC-32 of all tensors.
"""

import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from ..files import replacing

_BLOCK_BYTES = 2**24


class DamagedRows(ValueError):  # noqa: N818 - reads as what it is
    """A file of rows that is cut short, garbage, or was changed since it was written."""


@dataclass(frozen=True)
class RowKeys:
    """Which file each row was made from.

    Attributes:
        names: (rows) what a file is known by from run to run: its path below the folder, or its whole path.
        paths: (rows) the path it was given as.
        size_bytes, mtime_ns: (rows,) int64, the file's state when it was listed.
    """

    names: Sequence[str]
    paths: Sequence[str]
    size_bytes: np.ndarray
    mtime_ns: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Sequence[int]) -> "RowKeys":
        names, paths = [self.names[row] for row in rows], [self.paths[row] for row in rows]
        return RowKeys(names, paths, self.size_bytes[rows], self.mtime_ns[rows])

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        """Name, size and time of each row; who shares them all is the same photo."""
        return zip(self.names, self.size_bytes.tolist(), self.mtime_ns.tolist(), strict=True)

    @classmethod
    def of_files(cls, names: Sequence[str], paths: Sequence[str], files: Sequence[Path]) -> "RowKeys":
        """Keys with the files' present sizes and times; -1 for a file without."""
        states = np.array([_file_state(file) for file in files], np.int64).reshape(-1, 2)
        return cls(names, paths, states[:, 0], states[:, 1])

    @classmethod
    def concatenate(cls, parts: Sequence["RowKeys"]) -> "RowKeys":
        """All rows of several keys, in order."""
        return cls(
            [name for part in parts for name in part.names],
            [path for part in parts for path in part.paths],
            np.concatenate([part.size_bytes for part in parts]),
            np.concatenate([part.mtime_ns for part in parts]),
        )


@dataclass(frozen=True)
class RowFile:
    """What a file of rows holds; its vectors are (rows, dim) float32 and begin at byte `start`."""

    path: Path
    about: dict[str, Any]
    checksum: str
    keys: RowKeys
    start: int
    shape: tuple[int, int]

    def vectors(self) -> np.ndarray:
        """A read-only memory map, made for each call: a long run has more parts than a process may map at once."""
        return (
            np.memmap(self.path, "<f4", "r", self.start, self.shape)
            if all(self.shape)
            else np.empty(self.shape, np.float32)
        )


def write_row_file(path: Path, about: dict[str, Any], keys: RowKeys, dim: int, blocks: Iterable[np.ndarray]) -> str:
    """Writes a file of rows and returns its checksum.

    It comes into being whole or not at all: it is written beside its place, flushed to the disk and renamed.

    Args:
        about: who made the rows; anything JSON takes.
        keys: of all rows.
        blocks: the rows' vectors, (any, dim) float32 each, in order.
    """
    names, paths = ([text.encode() for text in texts] for texts in (keys.names, keys.paths))
    integers = (keys.size_bytes, keys.mtime_ns, np.cumsum([*map(len, names)]), np.cumsum([*map(len, paths)]))
    tensors = {
        name: ("I64", [len(keys)], 8 * len(keys)) for name in ("size_bytes", "mtime_ns", "name_ends", "path_ends")
    }
    tensors["vectors"] = ("F32", [len(keys), dim], 4 * len(keys) * dim)
    for name, texts in (("names", names), ("paths", paths)):
        length = sum(map(len, texts))
        tensors[name] = ("U8", [length], length)
    with replacing(path) as file:
        file.write(_header(tensors, about, checksum=0))
        checksum = 0
        for column in integers:
            checksum = _write(file, np.asarray(column, "<i8"), checksum)
        for block in blocks:
            checksum = _write(file, np.ascontiguousarray(block, "<f4"), checksum)
        for texts in (names, paths):
            checksum = _write(file, np.frombuffer(b"".join(texts), np.uint8), checksum)
        file.seek(0)
        file.write(_header(tensors, about, checksum))
    return f"{checksum:08x}"


def read_row_file(path: Path, *, verify: bool) -> RowFile:
    """A file of rows.

    Args:
        verify: read it all and compare the checksum; otherwise only its length and form are checked.

    Raises: DamagedRows if it isn't as it was written; FileNotFoundError if there is none.
    """
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            about, checksum = json.loads(metadata["about"]), metadata["checksum"]
            size_bytes, mtime_ns = file.get_tensor("size_bytes"), file.get_tensor("mtime_ns")
            names = _texts(file.get_tensor("names"), file.get_tensor("name_ends"))
            paths = _texts(file.get_tensor("paths"), file.get_tensor("path_ends"))
            shape = tuple(file.get_slice("vectors").get_shape())
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            start = 8 + header_bytes + json.loads(file.read(header_bytes))["vectors"]["data_offsets"][0]
            if verify and _checksum_of(file) != checksum:
                raise DamagedRows(f"{path} isn't as it was written: its checksum differs.")
    except (SafetensorError, KeyError, ValueError, IndexError) as error:
        if isinstance(error, DamagedRows):
            raise
        raise DamagedRows(f"{path} is damaged or no file of descriptors ({error}).") from error
    if len({len(names), len(paths), len(size_bytes), len(mtime_ns), shape[0]}) != 1:
        raise DamagedRows(f"{path} is damaged: its columns differ in length.")
    return RowFile(path, about, checksum, RowKeys(names, paths, size_bytes, mtime_ns), start, shape)


def _header(tensors: dict[str, tuple[str, list[int], int]], about: dict[str, Any], checksum: int) -> bytes:
    """The safetensors header, as long for any checksum, so that it can be written again once that is known."""
    header: dict[str, Any] = {"__metadata__": {"about": json.dumps(about), "checksum": f"{checksum:08x}"}}
    position = 0
    for name, (kind, shape, length) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [position, position + length]}
        position += length
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, block: np.ndarray, checksum: int) -> int:
    data = memoryview(block.reshape(-1)).cast("B") if block.size else b""
    file.write(data)
    return zlib.crc32(data, checksum)


def _checksum_of(file: BinaryIO) -> str:
    checksum = 0
    while block := file.read(_BLOCK_BYTES):
        checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def _texts(content: np.ndarray, ends: np.ndarray) -> list[str]:
    data, starts = content.tobytes(), [0, *ends.tolist()]
    return [data[start:end].decode() for start, end in pairwise(starts)]


def _file_state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
