"""Single photos as training places: each photo is a place, seen as from other stands.

A facade is nearly a plane, and a plane looks from elsewhere like a projection of its photo. Every view shows the
photo's middle, so that views of a photo overlap; near and far don't shift as they do when one really moves.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..photos.images import open_image
from ..photos.revisit import projection, revisit
from .cut import list_panoramas
from .places_folder import check_ranges, generator_of, write_places

FIELD_DEG = 55.0  # of the views, across
RANGES = {
    "views_per_photo": (2, 10**4), "height": (16, 10**4), "width": (16, 10**4), "zoom": (1, 4), "turn_deg": (0, 50),
    "roll_deg": (0, 45), "near": (0, 10**4),
}  # fmt: skip
COLUMNS = ("zoom", "turn_deg", "tilt_deg", "roll_deg", "across", "down")


def cut_photo_views(
    folder: str | Path,
    out: str | Path,
    *,
    views_per_photo: int = 8,
    height: int = 224,
    width: int = 224,
    zoom: float = 2.2,
    turn_deg: float = 40.0,
    roll_deg: float = 5.0,
    near: int = 0,
    seed: int = 0,
    exclude: Collection[str] = (),
    only: Collection[str] = (),
    revisited: bool = False,
    progress: bool = True,
) -> Path:
    """Writes views of photos of facades as places to train with; returns `out`, which `read_training_places` reads.

    What is drawn depends on the seed and the photo's bytes alone. Broken off, the same call goes on where it stopped.

    Args:
        folder: the photos, searched with its subfolders. Of files with the same bytes the first counts.
        out: folder to make. One that the same call has made is left as it is.
        views_per_photo: views of each, 2 or more.
        height, width: pixels of the views.
        zoom: how many times nearer the nearest view is than the farthest, which shows as much as the photo has.
        turn_deg: how far views look from the side, up to 50; up or down by a quarter of it.
        roll_deg: how far views roll to either side.
        near: photos so many places apart in the list may show the same house: they conflict, as overlapping sectors of
            a panorama do.
        seed: of the draws.
        exclude: photos that are left out, by their path below the folder or their file name.
        only: where any are named, these alone are taken.
        revisited: change each view as a second visit does (see `revisit`): light, colours, and things in the way.
        progress: whether to show a bar on stderr.

    Returns: the folder, with `metadata.csv`: for each view file_name, place, photo, how it looks at the photo, and the
        places that conflict with its own; and `photos.json`, as `cut_training_views` writes `panoramas.json`.
    Raises: as `cut_training_views`.
    """
    settings = {
        "views_per_photo": views_per_photo, "height": height, "width": width, "zoom": zoom, "turn_deg": turn_deg,
        "roll_deg": roll_deg, "near": near, "seed": seed, "revisited": revisited,
    }  # fmt: skip
    check_ranges("cut_photo_views", settings, RANGES)

    def draw(photo: Image.Image, digest: str) -> Iterator[list[Image.Image]]:
        random = np.random.default_rng([seed, int(digest[:12], 16)])
        views = [_view(photo, look, height, width) for look in _looks(settings, digest)]
        yield [revisit(view, random) for view in views] if revisited else views

    def describe(digest: str) -> list[list[dict[str, str]]]:
        looks = _looks(settings, digest).tolist()
        return [[dict(zip(COLUMNS, (f"{value:.2f}" for value in look), strict=True)) for look in looks]]

    root, out = Path(folder), Path(out)
    return write_places(
        list_panoramas(root, but_not_in=out), root, out, kind="photo", settings=settings,
        open_source=open_image, draw=draw, describe=describe, near=near, exclude=exclude, only=only, progress=progress,
    )  # fmt: skip


def _looks(settings: Mapping[str, float], digest: str) -> torch.Tensor:
    """(views, 6) how each view looks at its photo: COLUMNS, the last two from -1 to 1."""
    shape = (settings["views_per_photo"], len(COLUMNS))
    draw = 2 * torch.rand(shape, generator=generator_of(settings["seed"], digest), dtype=torch.float64) - 1
    zoom = torch.exp((draw[:, :1] + 1) / 2 * math.log(settings["zoom"]))
    widest = torch.tensor([settings["turn_deg"], settings["turn_deg"] / 4, settings["roll_deg"], 1, 1])
    return torch.cat([zoom, draw[:, 1:] * widest], dim=1).mul(100).round() / 100


def _view(photo: Image.Image, look: torch.Tensor, height: int, width: int) -> Image.Image:
    """The photo's plane as a camera sees it that looks at it from the side."""
    zoom, across, down = look[[0, 4, 5]].tolist()
    turn, tilt, roll = torch.deg2rad(look[1:4]).tolist()
    half = math.tan(math.radians(FIELD_DEG / 2))
    corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * [half, half * height / width]
    corners = corners @ [[math.cos(roll), math.sin(roll)], [-math.sin(roll), math.cos(roll)]]
    x, y = corners.T
    y, ahead = y * math.cos(tilt) + math.sin(tilt), math.cos(tilt) - y * math.sin(tilt)
    x, ahead = x * math.cos(turn) + ahead * math.sin(turn), ahead * math.cos(turn) - x * math.sin(turn)
    quad = np.stack([x / ahead, y / ahead], axis=1)
    quad -= (quad.min(0) + quad.max(0)) / 2
    size = np.array(photo.size)
    quad *= (size / np.ptp(quad, axis=0)).min() / zoom
    reach = np.minimum((size - np.ptp(quad, axis=0)) / 2, 0.3 * np.ptp(quad, axis=0))
    quad += size / 2 + reach * [across, down]
    # Twice as fine first, so that nothing flickers where the photo is finer than the view.
    target = np.array([[0, 0], [0, 2 * height], [2 * width, 2 * height], [2 * width, 0]], float)
    matrix = projection(target, quad)
    large = photo.transform((2 * width, 2 * height), Image.Transform.PERSPECTIVE, matrix, Image.Resampling.BICUBIC)
    return large.reduce(2)
