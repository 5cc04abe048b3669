"""Where a batch's targets come from: the teacher looks at it, or its descriptors lie on the disk already."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..data.images import text_to_path
from ..data.training_images import TrainingBatch, TrainingImages
from ..data.training_places import TrainingPlaces
from .teacher_cache import TeacherCache
from .teacher_precision import choose_precision
from .teachers import Teacher, TeacherOutput

logger = logging.getLogger(__name__)


@dataclass
class LiveTargets:
    """Targets that the teacher makes of each batch."""

    teacher: Teacher

    def teach_batch(self, batch: TrainingBatch, images_per_place: int) -> TeacherOutput:
        return self.teacher.teach(batch.pixel_values, images_per_place=images_per_place)


@dataclass
class CachedTargets:
    """Targets kept by the content of each photo's file; the teacher makes those that are missing.

    Args:
        teacher: one whose descriptors depend on their photo alone.
        folder: where they are kept.
        processor: prepares the photos.
        places: the training set, whose images must be files.
    """

    teacher: Teacher
    folder: str
    processor: Callable[..., Any]
    places: TrainingPlaces
    hashes: dict[int, str] = field(default_factory=dict)

    @cached_property
    def cache(self) -> TeacherCache:
        """Opened when the teacher's precision, which its rows depend on, is settled."""
        return TeacherCache(self.folder, self.teacher, self.processor)

    def teach_batch(self, batch: TrainingBatch, images_per_place: int) -> TeacherOutput:
        hashes = [self.hash_of(row) for row in batch.rows]
        if (known := self.cache.lookup(hashes)) is None:
            known = self.teacher.teach(batch.pixel_values, images_per_place=images_per_place).regional_descriptors
            self.cache.add(hashes, known)
        return TeacherOutput(known.to(batch.pixel_values.device))

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


Targets = LiveTargets | CachedTargets


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
