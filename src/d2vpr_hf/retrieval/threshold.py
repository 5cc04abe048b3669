"""Chooses, without labels, the score below which a photo counts as taken outside the map."""

from dataclasses import dataclass

import numpy as np

from ..photos.positions import Positions, positives_within
from .similarity import scores
from .stores.base import VectorStore

APART_M = 100.0
MOST_PHOTOS = 2000
MOST_COMPARED = 20_000
FEWEST_PHOTOS = 20
PERCENTILE = 95
SEED = 0

_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Threshold:
    """A score below which a photo counts as outside the map (None: there is none), and how it was chosen."""

    score: float | None
    rule: str


def choose_threshold(store: VectorStore, positions: Positions) -> Threshold:
    """Score that 95 % of photos from outside the map stay below, estimated from the database alone.

    For up to 2,000 database photos, the best score among database photos more than 100 m away is what the photo would
    reach if its own place weren't in the map. The 95th percentile of these is the threshold. Of a map with more than
    20,000 located photos so many are drawn to compare with, so that it takes no longer in a larger one. The best of
    fewer is lower, and so is the threshold then, which the rule says.

    Args:
        store: the vectors of the database.
        positions: of the same photos, in the order of `store.ids()`.

    Returns: the threshold; its score is None where fewer than 20 photos have another photo farther than 100 m away.
    """
    ids, located = store.ids(), np.flatnonzero(positions.known)
    random = np.random.default_rng(SEED)
    chosen = np.sort(random.choice(located, size=min(MOST_PHOTOS, len(located)), replace=False))
    compared, sampled = located, ""
    if len(located) > MOST_COMPARED:
        compared = np.sort(random.choice(located, size=MOST_COMPARED, replace=False))
        sampled = (
            f"; drawn were {len(chosen)} of the {len(located)} photos with known coordinates, each compared with "
            f"{MOST_COMPARED} of them (random): the best of all may score higher"
        )
    best = np.full(len(chosen), -np.inf, np.float32)
    vectors, where = store.reconstruct(ids[chosen]), positions[chosen]
    for start in range(0, len(compared), _BLOCK_ROWS):
        block = compared[start : start + _BLOCK_ROWS]
        alike = scores(vectors, store.reconstruct(ids[block]), store.metric)  # (chosen, block)
        near = positives_within(positions[block], where, APART_M)
        rows = np.repeat(np.arange(len(chosen)), [len(each) for each in near])
        alike[rows, np.concatenate([*near, np.empty(0, np.int64)])] = -np.inf
        np.maximum(best, alike.max(axis=1, initial=-np.inf), out=best)
    best = best[np.isfinite(best)]
    if len(best) < FEWEST_PHOTOS:
        return Threshold(
            None,
            f"none: {len(best)} database photos have known coordinates and another photo farther than {APART_M:g} m "
            f"away, and {FEWEST_PHOTOS} are needed to say how a photo from outside the map scores{sampled}",
        )
    return Threshold(
        float(np.percentile(best, PERCENTILE)),
        f"{PERCENTILE}th percentile of the best score that each of {len(best)} database photos (random, seed {SEED}) "
        f"reaches among database photos farther than {APART_M:g} m away{sampled}",
    )
