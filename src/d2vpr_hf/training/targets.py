"""Where a batch's targets come from: the teacher looks at it, or its descriptors lie on the disk already."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ..files import text_to_path
from ..protocols.places import TrainingPlaces
from .data.batches import TrainingBatch, TrainingImages
from .teacher_cache import TeacherCache
from .teacher_precision import choose_precision
from .teachers import Teacher, TeacherOutput
from .whitening import FITTED_ON, Whitening

logger = logging.getLogger(__name__)

FITTED_AT_A_TIME = 64


@dataclass
class LiveTargets:
    """Targets that the teacher makes of each batch.

    Attributes:
        plain: the photos as they are, where the teacher sees them so; None: it sees what the student sees.
        whitening: of what the teacher says; None: it is taken as it is.
    """

    teacher: Teacher
    plain: TrainingImages | None = None
    whitening: Whitening | None = None

    @property
    def width(self) -> int:
        """Numbers in each of the 14 vectors of a target."""
        return self.teacher.width if self.whitening is None else self.whitening.dim

    def teach_batch(self, batch: TrainingBatch, images_per_place: int) -> TeacherOutput:
        output = self.teach_raw(batch, images_per_place)
        return output if self.whitening is None else TeacherOutput(self.whitening(output.regional_descriptors))

    def teach_raw(self, batch: TrainingBatch, images_per_place: int) -> TeacherOutput:
        """Before whitening."""
        return self.teacher.teach(self.seen(batch, range(len(batch))), images_per_place=images_per_place)

    def seen(self, batch: TrainingBatch, places: Sequence[int]) -> torch.Tensor:
        """Pixel values of some images of a batch as the teacher sees them."""
        if self.plain is None:
            return batch.pixel_values[list(places)]
        return TrainingBatch.of([self.plain[batch.rows[place], 0] for place in places]).pixel_values


@dataclass
class CachedTargets(LiveTargets):
    """Targets kept by the content of each photo's file; the teacher makes those that are missing.

    Attributes:
        folder: where they are kept.
        processor: prepares the photos.
        places: the training set, whose images must be files.
    """

    folder: str = field(kw_only=True)
    processor: Callable[..., Any] = field(kw_only=True)
    places: TrainingPlaces = field(kw_only=True)
    hashes: dict[int, str] = field(default_factory=dict)

    @cached_property
    def cache(self) -> TeacherCache:
        """Opened when the teacher's precision, which its rows depend on, is settled."""
        return TeacherCache(self.folder, self.teacher, self.processor)

    def teach_raw(self, batch: TrainingBatch, images_per_place: int) -> TeacherOutput:
        hashes = [self.hash_of(row) for row in batch.rows]
        if missing := self.cache.missing(hashes):
            known = self.teacher.teach(self.seen(batch, missing)).regional_descriptors
            self.cache.add([hashes[place] for place in missing], known)
        return TeacherOutput(self.cache.lookup(hashes).to(batch.pixel_values.device))

    def hash_of(self, row: int) -> str:
        """SHA-256 of a photo's file, read once a run."""
        if row not in self.hashes:
            path = text_to_path(self.places.names[row])
            if not path.is_file():
                raise ValueError(
                    f"teacher_cache knows photos by their files, but {self.places.names[row]} of {self.places.name} is "
                    "no file. Leave teacher_cache out, or train on a folder."
                )
            with path.open("rb") as file:
                self.hashes[row] = hashlib.file_digest(file, "sha256").hexdigest()
        return self.hashes[row]


def settle_precision(
    teacher: Teacher,
    images: TrainingImages,
    draws: list[tuple[int, int]],
    images_per_place: int,
    accelerator: Accelerator,
) -> None:
    """Chooses the precision of a teacher that is to choose for itself: on the first process, for all of them.

    Args:
        draws: of a batch to measure it on.
    """
    if teacher.dtype != "auto":
        return
    chosen = [None]
    if accelerator.is_main_process:
        pixels = TrainingBatch.of([images[draw] for draw in draws]).pixel_values.to(teacher.device)
        teacher.precision = choose_precision(teacher, pixels, images_per_place=images_per_place)
        chosen[0] = teacher.precision.dtype
        logger.info("The teacher runs in %s: %s", chosen[0], teacher.precision.reason)
    teacher.dtype = broadcast_object_list(chosen)[0]


def fit_whitening(targets: LiveTargets, images: TrainingImages, dim: int, seed: int) -> Whitening:
    """The whitening of a teacher's descriptors of up to `FITTED_ON` training photos, drawn by the seed."""
    rows = np.random.default_rng(seed).permutation(len(images))[:FITTED_ON].tolist()
    found = []
    for start in tqdm(range(0, len(rows), FITTED_AT_A_TIME), desc="whitening the teacher", unit="batch"):
        batch = TrainingBatch.of([images[row, seed] for row in rows[start : start + FITTED_AT_A_TIME]])
        found.append(targets.teach_raw(batch, 1).regional_descriptors.cpu())
    return Whitening.fit(torch.cat(found), dim)
