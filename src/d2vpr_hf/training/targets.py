"""Where a batch's targets come from: the teacher looks at it, or its descriptors lie on the disk already."""

import hashlib
from dataclasses import dataclass, field

from ..data.images import text_to_path
from ..data.training_images import TrainingBatch
from ..data.training_places import TrainingPlaces
from .teacher_cache import TeacherCache
from .teachers import Teacher, TeacherOutput


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
        cache: where they are kept.
        places: the training set, whose images must be files.
    """

    teacher: Teacher
    cache: TeacherCache
    places: TrainingPlaces
    hashes: dict[int, str] = field(default_factory=dict)

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
