"""Answers where photos were taken: the place of the best match, and how far to believe it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .descriptors import Descriptors
from .index import PlaceIndex


@dataclass(frozen=True)
class Answer:
    """Where one photo was taken, as far as the index can say.

    Attributes:
        query: path of the photo.
        latitude: degrees (WGS84) of the best match; None where it has no coordinates or there is no match.
        longitude: the same.
        in_map: whether the best match scores at least `threshold`; without a threshold, whether there is a match.
        confidence: agreement of the matches, in [0, 1]: each counts 1 / rank, and the share of those within the radius
            of the best match is taken. One without coordinates agrees with nothing. None where the best match has no
            coordinates, or where there is no other match to agree with it.
        score: of the best match, an inner product, or minus a distance where the index's metric is "l2"; None where
            there is no match.
        threshold: score below which the photo counts as outside the map; None where there is none, so that `in_map`
            says nothing.
        candidates: the matches, best first: path, score, latitude, longitude, and distance_m to the best match; None
            where there are no coordinates.
    """

    query: str
    latitude: float | None
    longitude: float | None
    in_map: bool
    confidence: float | None
    score: float | None
    threshold: float | None
    candidates: list[dict[str, Any]]


def locate(
    descriptors: Descriptors,
    index: PlaceIndex,
    *,
    k: int = 5,
    same_place_m: float = 25.0,
    threshold: float | None = None,
    near: tuple[float, float] | None = None,
    radius_m: float | None = None,
    exclude: int | Iterable[int] | None = None,
) -> list[Answer]:
    """Where each photo was taken, one answer a descriptor.

    Args:
        descriptors: of the photos, by the model that made the index.
        index: the map.
        k: matches to look at.
        same_place_m: metres within which two places count as the same, for the confidence.
        threshold: score below which a photo counts as outside the map. By default the index's own, of which
            `index.threshold.rule` says how it was chosen; a number below every score, such as -1 for an inner product,
            switches it off.
        near, radius_m, exclude: which places are ranked at all, as in `PlaceIndex.search`.

    Raises: ValueError if the descriptors come from another model, or `same_place_m` isn't above 0.
    """
    if not 0 < same_place_m < np.inf:
        raise ValueError(f"same_place_m is {same_place_m}, but must be metres above 0, such as 25.")
    matches = index.search(descriptors, k, near=near, radius_m=radius_m, exclude=exclude)
    threshold = index.threshold.score if threshold is None else float(threshold)
    to_first_m = matches.distances_m[:, 0]  # (queries, k)
    confidence = _agreement(matches.ids, to_first_m, same_place_m)
    return [
        Answer(
            query=str(path),
            latitude=_known(matches.latitude[row, 0]),
            longitude=_known(matches.longitude[row, 0]),
            # A comparison with nan, the score of no match, is false.
            in_map=bool(matches.scores[row, 0] >= (-np.inf if threshold is None else threshold)),
            confidence=_known(confidence[row]),
            score=_known(matches.scores[row, 0]),
            threshold=threshold,
            candidates=[
                {
                    "path": str(matches.paths[row, rank]),
                    "score": float(matches.scores[row, rank]),
                    "latitude": _known(matches.latitude[row, rank]),
                    "longitude": _known(matches.longitude[row, rank]),
                    "distance_m": _known(to_first_m[row, rank]),
                }
                for rank in np.flatnonzero(matches.ids[row] >= 0)
            ],
        )
        for row, path in enumerate(descriptors.paths)
    ]


def _agreement(ids: np.ndarray, to_first_m: np.ndarray, radius_m: float) -> np.ndarray:
    """(queries,) share of the matches, each counting 1 / rank, within the radius of the best; nan where unknown."""
    there = ids >= 0
    weights = there / np.arange(1, ids.shape[1] + 1)  # (queries, k)
    total = weights.sum(axis=1)
    agreeing = np.where(to_first_m <= radius_m, weights, 0).sum(axis=1)
    judged = (there.sum(axis=1) > 1) & np.isfinite(to_first_m[:, 0])
    return np.divide(agreeing, total, out=np.full(len(ids), np.nan), where=judged)


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
