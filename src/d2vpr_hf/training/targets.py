"""What a student is to give for each photo: its teachers' descriptors, whitened or read from the disk on request."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch.nn import functional as F
from tqdm import tqdm

from ..files import replace_file
from .data.batches import TrainingBatch, TrainingImages
from .teacher_cache import TeacherCache
from .teachers import Teacher, TeacherOutput

# Photos that it is fitted on, at most.
FITTED_ON = 2048
FITTED_AT_A_TIME = 64
# Of the largest variance: directions below it are rounding, which whitening would blow up.
LEAST_VARIANCE = 1e-6


@dataclass(frozen=True)
class Whitening:
    """An affine map of each of the 14 regional descriptors; what comes out is of unit length.

    Attributes:
        mean: (14, width) of each region over the photos.
        projection: (width, dim) onto the directions of largest variance of all regions, each divided by its deviation.
    """

    mean: torch.Tensor
    projection: torch.Tensor

    @property
    def dim(self) -> int:
        return self.projection.shape[1]

    @classmethod
    def fit(cls, regional: torch.Tensor, dim: int, teacher: str = "the teacher") -> Self:
        """The whitening of the photos' (photos, 14, width) regional descriptors to `dim` numbers.

        Args:
            teacher: its name, for errors.

        Raises: ValueError if the descriptors vary in fewer than `dim` directions.
        """
        mean = regional.double().mean(dim=0)
        centred = (regional.double() - mean).flatten(0, 1)
        variances, directions = torch.linalg.eigh(centred.T @ centred / len(centred))
        variances, directions = variances.flip(0), directions.flip(1)
        found = int((variances > LEAST_VARIANCE * variances[0]).sum())
        if found < dim:
            raise ValueError(
                f"teacher_whitening is {dim}, but the descriptors of {len(regional)} photos by {teacher} vary in "
                f"{found} directions. Lower it, or give more photos."
            )
        projection = directions[:, :dim] / variances[:dim].sqrt()
        return cls(mean.float(), projection.float().contiguous())

    def __call__(self, regional: torch.Tensor) -> torch.Tensor:
        """(images, 14, dim) of unit length, of (images, 14, width)."""
        device = regional.device
        return F.normalize((regional - self.mean.to(device)) @ self.projection.to(device), dim=-1)

    def save(self, path: Path) -> None:
        """Writes it whole or not at all."""
        replace_file(path, save({"mean": self.mean, "projection": self.projection}))

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls(**load_file(path))


@dataclass
class TeacherTargets:
    """One teacher's targets of each batch.

    Attributes:
        teacher: makes them.
        cache: keeps them by the content of each photo's file, so that none is made twice; None: nothing is kept.
        whitening: of what the teacher says; None: it is taken as it is.
    """

    teacher: Teacher
    cache: TeacherCache | None = None
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
        if self.cache is None:
            return self.teacher.teach(batch.teacher_view(), images_per_place=images_per_place)
        if missing := self.cache.missing(batch.hashes):
            known = self.teacher.teach(batch.teacher_view(missing)).regional_descriptors
            self.cache.add([batch.hashes[place] for place in missing], known)
        return TeacherOutput(self.cache.lookup(batch.hashes).to(batch.pixel_values.device))


@dataclass
class Targets:
    """Targets of each batch: those of one teacher as they are, of several side by side.

    Of several, each vector is brought to unit length first: a teacher's length would say how much it counts.

    Attributes:
        members: of each teacher, in the order in which they stand.
    """

    members: list[TeacherTargets]

    @property
    def width(self) -> int:
        """Numbers in each of the 14 vectors of a target."""
        return sum(member.width for member in self.members)

    @property
    def teachers(self) -> list[Teacher]:
        return [member.teacher for member in self.members]

    def known(self) -> frozenset[str] | None:
        """SHA-256 in hex of the images that no teacher need see; None where nothing is kept."""
        caches = [member.cache for member in self.members if member.cache is not None]
        return frozenset.intersection(*(cache.known() for cache in caches)) if caches else None

    def teach_batch(self, batch: TrainingBatch, images_per_place: int) -> TeacherOutput:
        outputs = [member.teach_batch(batch, images_per_place) for member in self.members]
        if len(outputs) == 1:
            return outputs[0]
        return TeacherOutput(torch.cat([F.normalize(each.regional_descriptors, dim=-1) for each in outputs], dim=-1))


def fit_whitening(targets: TeacherTargets, images: TrainingImages, dim: int, seed: int) -> Whitening:
    """The whitening of a teacher's descriptors of up to `FITTED_ON` training photos, drawn by the seed."""
    rows = np.random.default_rng(seed).permutation(len(images))[:FITTED_ON].tolist()
    found, name = [], targets.teacher.name
    for start in tqdm(range(0, len(rows), FITTED_AT_A_TIME), desc=f"whitening {name}", unit="batch"):
        batch = TrainingBatch.of([images[row, seed] for row in rows[start : start + FITTED_AT_A_TIME]])
        found.append(targets.teach_raw(batch, 1).regional_descriptors.cpu())
    return Whitening.fit(torch.cat(found), dim, name)
