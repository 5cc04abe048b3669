"""Batches for a training step: opens and augments images in worker processes, and replaces those that can't be used."""

import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ...files import hash_file, text_to_path
from ...photos.images import UnreadableImage
from ...protocols.places import TrainingPlaces
from .sampler import PlaceSampler

# More broken images in a row are no accident, and whoever trains should know at once.
_MOST_TRIED = 200
# By how much workers give way, of 19.
_NICENESS = 10

Transform = Callable[[Image.Image, int], torch.Tensor]


@dataclass(frozen=True)
class TrainingImage:
    """One image of a batch.

    Attributes:
        pixels: (3, height, width) float32.
        place: id of the place that it shows.
        row: of the image that is really here.
        replaced: (path, reason) of each image that was to be here and couldn't be used.
        plain: (3, height, width) float32 of the image as it is; None where nobody needs it.
        sha256: of the image's file, in hex; None likewise.
    """

    pixels: torch.Tensor
    place: int
    row: int
    replaced: list[tuple[str, str]]
    plain: torch.Tensor | None = None
    sha256: str | None = None


@dataclass
class TrainingBatch:
    """The images of a step, those of a place next to each other.

    Attributes:
        pixel_values: (images, 3, height, width) float32.
        places: (images,) int64 place ids.
        rows: (images) rows of the images that are really here.
        replaced: (path, reason) of each image that couldn't be used and for which another stands here.
        plain_values: (plain images, 3, height, width) float32 of images as they are; None where nobody needs them.
        plain_at: (plain images) which images of the batch these are.
        hashes: (images) SHA-256 of the images' files, in hex; None where nobody needs them.
    """

    pixel_values: torch.Tensor
    places: torch.Tensor
    rows: list[int]
    replaced: list[tuple[str, str]] = field(default_factory=list)
    plain_values: torch.Tensor | None = None
    plain_at: list[int] = field(default_factory=list)
    hashes: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, images: list[TrainingImage]) -> Self:
        """The images as one batch, in their order."""
        plain = {at: image.plain for at, image in enumerate(images) if image.plain is not None}
        return cls(
            torch.stack([image.pixels for image in images]),
            torch.tensor([image.place for image in images], dtype=torch.int64),
            [image.row for image in images],
            [each for image in images for each in image.replaced],
            torch.stack([*plain.values()]) if plain else None,
            [*plain],
            [image.sha256 for image in images],
        )

    def pin_memory(self) -> Self:
        """The batch in memory from which a GPU copies by itself, as a DataLoader with `pin_memory=True` asks for it."""
        return self._each_tensor(torch.Tensor.pin_memory)

    def to(self, device: torch.device | str) -> Self:
        """The batch with its tensors on a device; pinned memory is copied while the caller goes on."""
        return self._each_tensor(lambda tensor: tensor.to(device, non_blocking=True))

    def teacher_view(self, images: Sequence[int] | None = None) -> torch.Tensor:
        """(images, 3, height, width) of some of the images, or all: as they are where the batch has them so."""
        images = range(len(self)) if images is None else images
        if self.plain_values is None:
            return self.pixel_values[list(images)]
        return self.plain_values[[self.plain_at.index(image) for image in images]]

    def _each_tensor(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        plain = None if self.plain_values is None else change(self.plain_values)
        return replace(self, pixel_values=change(self.pixel_values), places=change(self.places), plain_values=plain)


class TrainingImages(Dataset[TrainingImage]):
    """Training images, opened and augmented when they are asked for, by (row, draw seed).

    An image that can't be used is replaced by another of its place, or of another place (then with that one's id) if
    none of its place can be used; which one depends on the draw seed alone.

    Args:
        places: the images.
        transform: makes (3, height, width) float32 of an image and a draw seed, such as TrainingTransform. It goes to
            worker processes by pickle.
        plain: makes the image as it is, for a teacher that sees it so; None: nobody does.
        hashed: whether the hash of each image's file is wanted; the images must be files.
        known: hashes of images that need no plain view.

    Raises: ValueError for `hashed` images that aren't files.
    """

    def __init__(
        self,
        places: TrainingPlaces,
        transform: Transform,
        *,
        plain: Transform | None = None,
        hashed: bool = False,
        known: Collection[str] = frozenset(),
    ) -> None:
        self.places, self.transform, self.plain = places, transform, plain
        self.hashed, self.known = hashed, known
        self._hashes: dict[int, str] = {}
        if hashed and not text_to_path(places.names[0]).is_file():
            raise ValueError(
                f"Descriptors are kept by the content of a photo's file, but {places.names[0]} of {places.name} isn't "
                "a file. Leave teacher_cache out, or train on a folder."
            )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, draw: tuple[int, int]) -> TrainingImage:
        """The image of a row, or what stands for it.

        Raises: ValueError if 200 images in a row can't be used.
        """
        row, seed = draw
        replaced = []
        for candidate in self._candidates(row, seed):
            try:
                image = self.places.open(candidate)
            except UnreadableImage as error:
                replaced.append((error.path, error.reason))
                continue
            sha256 = self._hash(candidate) if self.hashed else None
            wants_plain = self.plain is not None and sha256 not in self.known
            return TrainingImage(
                self.transform(image, seed),
                int(self.places.places[candidate]),
                candidate,
                replaced,
                plain=self.plain(image, 0) if wants_plain else None,
                sha256=sha256,
            )
        path, reason = replaced[0]
        raise ValueError(
            f"{self.places.name}: {len(replaced)} images in a row can't be used, such as {path}: {reason}. Look at "
            "the files, or give the folder anew."
        )

    def _hash(self, row: int) -> str:
        """SHA-256 of a photo's file, read once by each worker."""
        if row not in self._hashes:
            self._hashes[row] = hash_file(text_to_path(self.places.names[row]))
        return self._hashes[row]

    def _candidates(self, row: int, seed: int) -> Iterator[int]:
        """The row, then the other images of its place, then images of other places, up to some number."""
        yield row
        random = np.random.default_rng(seed)
        is_same = self.places.places == self.places.places[row]
        same, others = np.flatnonzero(is_same), np.flatnonzero(~is_same)
        further = np.concatenate([random.permutation(same[same != row]), random.permutation(others)])
        yield from further[: _MOST_TRIED - 1].tolist()


def training_loader(
    images: TrainingImages, sampler: PlaceSampler, *, workers: int = 2, pin_memory: bool = False
) -> DataLoader:
    """TrainingBatches in the order of the sampler, prepared by worker processes while the step computes.

    The batches are the same whatever the workers. Nothing is drawn from the global random state. Workers start anew and
    not as copies of this process, so a script that calls this needs `if __name__ == "__main__":` around what it does.

    Args:
        workers: processes that prepare batches, two ahead each; 0 prepares them here, between the steps. They give way
            to the training step where both want the same core, and live as long as the loader.
        pin_memory: copy the batches to where a GPU fetches them by itself.
    """
    own_processes = {
        "prefetch_factor": 2,
        "persistent_workers": True,
        "multiprocessing_context": _context(),
        "worker_init_fn": _start,
    }
    return DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=TrainingBatch.of,
        pin_memory=pin_memory,
        # Without a generator of its own every pass over the loader would draw from the global one.
        generator=torch.Generator(),
        **(own_processes if workers else {}),
    )


def _start(worker: int) -> None:
    """What a worker does before its first batch."""
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
    # torch looks at the worker's parent, which is the server that started it: a worker whose trainer was killed would
    # wait for its next batch forever.
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        Thread(target=_leave_with, args=(trainer,), daemon=True).start()


def _leave_with(trainer: BaseProcess) -> None:
    trainer.join()
    os._exit(1)


def _context() -> multiprocessing.context.BaseContext:
    """How workers start: never as a copy of this process, whose other threads may hold a lock at that moment.

    A copy would also take over what the communication of several processes has opened. Workers start from a server
    that has loaded this module and nothing else, where the system has that, and anew elsewhere.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
