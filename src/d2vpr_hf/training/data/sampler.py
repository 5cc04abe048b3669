"""Which images a training step takes: a few of each of several places, the same whatever the number of processes."""

from collections.abc import Collection, Iterator, Mapping
from itertools import chain

import numpy as np
from torch.utils.data import Sampler


class PlaceSampler(Sampler[list[tuple[int, int]]]):
    """The batches of an epoch, for a DataLoader's `batch_sampler`.

    A step takes `processes` times `places_per_batch` different places, in an order that is shuffled for each epoch,
    and `images_per_place` images of each, chosen anew in each epoch. Each process draws its own places of every step;
    together the processes draw what one process with as many places a batch does. Global random states stay untouched.

    Iterating gives lists of (row, draw seed), the images of a place next to each other. The draw seed, which depends on
    seed, epoch and row alone, decides how the image is augmented. An epoch begins at its first step again each time
    that it is iterated, until `set_epoch` names another.

    Args:
        places: (rows,) place id of each image.
        places_per_batch: of one process.
        images_per_place: places with fewer images are left out.
        seed: of all that is drawn, from 0.
        rank, processes: which of how many processes this is.
        conflicts: {place: places that never share a step with it}, in either direction (see
            `TrainingPlaces.conflicts`). A place that has to give way comes in a later step of the epoch.

    Attributes:
        places_used: places that the epochs draw from.
        dropped_places, dropped_images: places with fewer than `images_per_place` images, and their images.

    Raises: ValueError if the numbers are out of range, or there are too few places for a single step.
    """

    def __init__(
        self,
        places: np.ndarray,
        *,
        places_per_batch: int,
        images_per_place: int,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        conflicts: Mapping[int, Collection[int]] | None = None,
    ) -> None:
        for name, value, low in (
            ("places_per_batch", places_per_batch, 1), ("images_per_place", images_per_place, 1), ("seed", seed, 0),
            ("processes", processes, 1),
        ):  # fmt: skip
            if value < low:
                raise ValueError(f"PlaceSampler: {name} is {value}, but must be at least {low}. Give such a number.")
        if not 0 <= rank < processes:
            raise ValueError(
                f"PlaceSampler: rank is {rank}, but of {processes} processes it must be 0 to {processes - 1}."
            )
        self.places_per_batch, self.images_per_place = places_per_batch, images_per_place
        self.seed, self.rank, self.processes = seed, rank, processes
        self._ids, self._place, counts = np.unique(places, return_inverse=True, return_counts=True)
        self._starts = np.cumsum(counts) - counts
        usable = counts >= images_per_place
        self._usable = np.flatnonzero(usable)
        self.places_used = len(self._usable)
        self.dropped_places = len(counts) - self.places_used
        self.dropped_images = int(counts[~usable].sum())
        self._conflicts = self._both_ways(conflicts or {})
        if self.places_used < self._places_a_step:
            few = (
                f", and {self.dropped_places} have fewer than {images_per_place} images" if self.dropped_places else ""
            )
            raise ValueError(
                f"A step takes {places_per_batch} places on each of {processes} processes, but only {self.places_used} "
                f"places can be used{few}. Lower places_per_batch or images_per_place, or add photos."
            )
        self.set_epoch(0)
        if not len(self):
            raise ValueError(
                f"No {self._places_a_step} of the {self.places_used} places are free of conflicts with each other, "
                f"which a step of {places_per_batch} places on each of {processes} processes needs. Lower "
                "places_per_batch, or add photos of other places."
            )

    @property
    def _places_a_step(self) -> int:
        return self.places_per_batch * self.processes

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps of the present epoch; with conflicts it may differ between epochs."""
        return len(self._steps)

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the epoch to iterate, and the step to begin with, as if the steps before had been taken.

        Raises: ValueError if a number is negative, or the epoch has fewer steps.
        """
        if epoch < 0:
            raise ValueError(f"PlaceSampler.set_epoch: epoch is {epoch}, but epochs count from 0.")
        self._epoch = epoch
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(self._usable)
        self._steps = self._fill_steps(order)  # (steps, places a step)
        if not 0 <= first_step <= len(self._steps):
            raise ValueError(
                f"PlaceSampler.set_epoch: first_step is {first_step}, but epoch {epoch} has {len(self._steps)} steps. "
                "Give the number of steps already taken in it."
            )
        self._first_step = first_step

    def __len__(self) -> int:
        """Steps from the first one that iterating gives to the end of the epoch."""
        return len(self._steps) - self._first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps, first_step = self._steps, self._first_step
        rows, seeds = self._draw_images()
        mine = slice(self.rank * self.places_per_batch, (self.rank + 1) * self.places_per_batch)
        choice = np.arange(self.images_per_place)
        for step in steps[first_step:, mine]:
            chosen = rows[self._starts[step][:, None] + choice].ravel()
            yield list(zip(chosen.tolist(), seeds[chosen].tolist(), strict=True))

    def _draw_images(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) the rows sorted by place and shuffled within each, and (rows,) the draw seed of each row."""
        random = np.random.default_rng([self.seed, self._epoch, 1])
        keys = random.random(len(self._place))
        return np.lexsort((keys, self._place)), random.integers(2**63, size=len(self._place))

    def _both_ways(self, conflicts: Mapping[int, Collection[int]]) -> dict[int, set[int]]:
        """The conflicts between usable places, by their positions among all places, in both directions."""
        position = dict(zip(self._ids[self._usable].tolist(), self._usable.tolist(), strict=True))
        both: dict[int, set[int]] = {}
        for place, others in conflicts.items():
            for other in others:
                if place != other and place in position and other in position:
                    both.setdefault(position[place], set()).add(position[other])
                    both.setdefault(position[other], set()).add(position[place])
        return both

    def _fill_steps(self, order: np.ndarray) -> np.ndarray:
        """(steps, places a step): places in this order, each in the first step that has room and no conflict."""
        size = self._places_a_step
        if not self._conflicts:
            return order[: len(order) // size * size].reshape(-1, size)
        steps, waiting, ahead = [], [], iter(order.tolist())
        while True:
            step, blocked, later = [], set(), []
            again = iter(waiting)
            for place in chain(again, ahead):
                if place in blocked:
                    later.append(place)
                    continue
                step.append(place)
                blocked.update(self._conflicts.get(place, ()))
                if len(step) == size:
                    break
            else:
                return np.array(steps, np.int64).reshape(-1, size)
            steps.append(step)
            waiting = later + list(again)
