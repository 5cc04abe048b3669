"""A teacher's descriptors on disk, by the content of the image files, so that later epochs need no teacher.

It serves where images aren't augmented: one file, one target. Each call of `add` writes one safetensors file with
`hashes` (rows, 32) uint8 and `descriptors` (rows, 14, width), whole or not at all, so a killed run loses none but the
rows it was writing. Several processes may share a folder.
"""

import hashlib
import json
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn import functional as F

from ..files import TEMPORARY_SUFFIX, replace_file
from ..retrieval.embedder import processor_settings
from .teachers import Teacher

logger = logging.getLogger(__name__)

_HASH_BYTES = 32
_NAME_DIGITS = 16
# A file that is being written is younger than this; an older one was left by a killed run.
_ABANDONED_SECONDS = 3600.0
# float16 is kept where its error is below this share of the mean distance between different photos' descriptors.
_LARGEST_ERROR = 0.05
# Descriptors that are nearer to each other than float32's rounding are of equal images.
_EQUAL = 1e-5


class TeacherCache:
    """Regional descriptors of one teacher, with one processor, in one precision.

    Args:
        folder: the user's folder for all of them; it can be deleted at any time. What differs in teacher, processor or
            precision has a subfolder of its own.
        teacher: whose descriptors they are.
        processor: the image processor, whose settings count.

    Raises: ValueError for a teacher whose descriptors depend on the batch, or if the subfolder holds rows of another
        teacher.
    """

    def __init__(self, folder: str | Path, teacher: Teacher, processor: Callable[..., Any]) -> None:
        if teacher.mode != "batch_independent":
            raise ValueError(
                f"The teacher {teacher.name} runs in mode {teacher.mode!r}, in which an image's descriptor depends on "
                "the batch, so it can't be kept. Take teacher_mode batch_independent, or leave teacher_cache out."
            )
        about = {"teacher": teacher.version_hash, "width": teacher.width, "dtype": teacher.dtype}
        about["processor"] = processor_settings(processor)
        self._about = json.dumps(about, sort_keys=True, default=str)
        self.folder = Path(folder) / hashlib.sha256(self._about.encode()).hexdigest()[:_NAME_DIGITS]
        self._width = teacher.width
        self._rows: dict[bytes, tuple[Path, int]] = {}
        self._taken: set[str] = set()
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"*{TEMPORARY_SUFFIX}"):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink(missing_ok=True)
        self._take_new_parts()

    def __len__(self) -> int:
        return len(self._rows)

    def known(self) -> frozenset[str]:
        """SHA-256 in hex of all images whose descriptors are here."""
        return frozenset(key.hex() for key in self._rows)

    def lookup(self, hashes: Sequence[str]) -> torch.Tensor | None:
        """Regional descriptors (images, 14, width) float32 on the CPU; None unless all of the images are there.

        Args:
            hashes: SHA-256 in hex of the content of each image's file.
        """
        if self.missing(hashes):
            return None
        keys = [_key(each) for each in hashes]
        found = torch.empty(len(keys), 14, self._width)
        wanted: dict[Path, list[tuple[int, int]]] = defaultdict(list)
        for place, key in enumerate(keys):
            part, row = self._rows[key]
            wanted[part].append((place, row))
        for part, places in wanted.items():
            with safe_open(part, "pt") as file:
                descriptors = file.get_slice("descriptors")
                for place, row in places:
                    found[place] = descriptors[row]
        return found

    def missing(self, hashes: Sequence[str]) -> list[int]:
        """Which of the images have no descriptors here yet."""
        if any(_key(each) not in self._rows for each in hashes):
            self._take_new_parts()
        return [place for place, each in enumerate(hashes) if _key(each) not in self._rows]

    def add(self, hashes: Sequence[str], regional_descriptors: torch.Tensor) -> None:
        """Keeps the descriptors of images; they are on the disk when this returns.

        They are kept in float16 where its rounding errs by less than 5 % of the mean distance between the batch's
        images, else in float32.

        Args:
            hashes: SHA-256 in hex of the content of each image's file.
            regional_descriptors: (images, 14, width)
        """
        if (shape := tuple(regional_descriptors.shape)) != (len(hashes), 14, self._width):
            raise ValueError(
                f"regional_descriptors has shape {shape}, but ({len(hashes)}, 14, {self._width}) was expected. Give "
                "one row for each hash, as this cache's teacher makes it."
            )
        exact = regional_descriptors.detach().float().cpu()
        rounded = exact.half()
        error = relative_error(unit_descriptors(rounded), unit_descriptors(exact))
        kept = rounded if error < _LARGEST_ERROR else exact
        digests = torch.frombuffer(bytearray(b"".join(map(_key, hashes))), dtype=torch.uint8).view(-1, _HASH_BYTES)
        part = self.folder / f"part-{uuid.uuid4().hex}.safetensors"
        replace_file(part, save({"hashes": digests, "descriptors": kept.contiguous()}, {"about": self._about}))
        self._take_part(part)

    def _take_new_parts(self) -> None:
        """Notes the rows of parts that were not seen before, this process's or another's."""
        for part in sorted(self.folder.glob("part-*.safetensors")):
            if part.name not in self._taken:
                self._take_part(part)

    def _take_part(self, part: Path) -> None:
        try:
            with safe_open(part, "pt") as file:
                about = (file.metadata() or {}).get("about")
                digests = file.get_tensor("hashes").numpy()
        except (SafetensorError, OSError) as error:
            logger.warning("%s is damaged (%s). Its images are taught again.", part, error)
            part.unlink(missing_ok=True)
            return
        if about != self._about:
            raise ValueError(
                f"{part} holds descriptors of another teacher, processor or precision than its folder's. Remove "
                f"{self.folder}; its images are taught again."
            )
        self._taken.add(part.name)
        for row, digest in enumerate(digests):
            self._rows.setdefault(digest.tobytes(), (part, row))


def _key(sha256: str) -> bytes:
    key = bytes.fromhex(sha256)
    if len(key) != _HASH_BYTES:
        raise ValueError(
            f"{sha256!r} isn't a SHA-256 in hex, which has 64 digits. Give that of each image file's content."
        )
    return key


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean distance of descriptors to their exact values, as a share of the mean distance between the exact ones.

    Args:
        found, exact: (images, dim) of unit length.

    Returns: inf where one isn't finite, or where the exact ones are equal or a single one.
    """
    distance = float(torch.pdist(exact).mean())
    error = float((found - exact).norm(dim=1).mean())
    return error / distance if distance > _EQUAL and error < float("inf") else float("inf")


def unit_descriptors(regional_descriptors: torch.Tensor) -> torch.Tensor:
    """(images, 14 * width) of unit length, in float32, of (images, 14, width)."""
    return F.normalize(regional_descriptors.flatten(1).float(), dim=1)
