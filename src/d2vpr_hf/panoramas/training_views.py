"""Panoramas as training places: a place is a panorama and a sector of its headings.

Views of one sector are positives: at least half of each is seen in the other. Views of one panorama that share no
heading are hard negatives. Sectors with views that share headings are neither, and conflict: no training step may hold
both (see `TrainingPlaces.conflicts`). Turning shows no parallax: places seen while moving come from elsewhere.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..files import path_to_text
from ..photos.revisit import revisit
from .cut import as_images, list_panoramas, open_panorama
from .places_folder import TABLE, check_ranges, generator_of, write_places
from .views import cut_views, heading_spans

# How far views of a sector may differ, in shares of the field of view, in degrees for the roll. The widest of these
# still leave half of each view in any other, at every field of view in FIELDS and every shape of view in SHAPES.
HEADING_SHARE, PITCH_SHARE, FIELD_SHARE, ROLL_DEG = 1 / 8, 1 / 20, 0.06, 2.0
FIELDS_DEG = (30.0, 100.0)
SHAPES = (0.5, 1.5)  # height by width
RANGES = {
    "sectors": (1, math.inf), "views_per_sector": (2, math.inf), "field_deg": FIELDS_DEG, "height by width": SHAPES,
    "pitch_deg": (-60, 60), "roll_deg": (0, 180), "field_share": (0, 0.6), "crop": (0, 0.8),
}  # fmt: skip
# What conflicts follow from.
SPAN_COLUMNS = ("place", "panorama", "first_heading_deg", "last_heading_deg")


def cut_training_views(
    folder: str | Path,
    out: str | Path,
    *,
    sectors: int = 8,
    views_per_sector: int = 4,
    field_deg: float = 75.0,
    height: int = 224,
    width: int = 224,
    seed: int = 0,
    device: str | torch.device = "cpu",
    exclude: Collection[str] = (),
    only: Collection[str] = (),
    revisited: bool = False,
    pitch_deg: float = 0.0,
    roll_deg: float = ROLL_DEG,
    field_share: float = FIELD_SHARE,
    crop: float = 0.0,
    progress: bool = True,
) -> Path:
    """Writes views of panoramas as places to train with; returns `out`, which `read_training_places` reads.

    Each panorama gives `sectors` places, evenly spread in heading. The views of a place look around the middle of its
    sector, with headings, pitches, rolls and fields drawn anew for each. What is drawn depends on the seed and the
    panorama's bytes alone. Everything is written beside `out` and renamed into place at the end; broken off, the same
    call goes on with the panorama at which it stopped.

    Args:
        folder: the panoramas, searched with its subfolders. Of files with the same bytes the first counts.
        out: folder to make. One that the same call has made is left as it is.
        sectors: places of each panorama.
        views_per_sector: views of each place, 2 or more.
        field_deg: horizontal field of view, 30 to 100.
        height, width: pixels of the views; the height between half and one and a half of the width.
        seed: of the draws.
        device: where views are computed.
        exclude: panoramas that are left out, by their path below the folder or their file name.
        only: where any are named, these alone are taken.
        revisited: change each view as a second visit does (see `revisit`), for views to validate with: views of one
            moment are too easily told.
        pitch_deg: how far views look up, in the middle.
        roll_deg: how far views roll to either side.
        field_share: how far a view's field of view differs to either side, as a share of `field_deg`.
        crop: how much of its height and width a view may lose at its edges, as a share. With more than the defaults of
            these three, a view that shows half of another may show less of the next.
        progress: whether to show a bar on stderr.

    Returns: the folder, with `metadata.csv`: for each view file_name, place, panorama, heading_deg, pitch_deg,
        roll_deg, field_deg, and the first and last heading that it shows, from which conflicts follow; and
        `panoramas.json`: settings, the SHA-256 of each panorama that was used, and the reasons of those that
        weren't.
    Raises: ValueError if a number is out of range, a name to exclude or to take is unknown, or no panorama can be used;
        FileExistsError if `out` holds anything else than the same call would make.
    """
    settings = {
        "sectors": sectors, "views_per_sector": views_per_sector, "field_deg": field_deg, "height": height,
        "width": width, "seed": seed, "revisited": revisited,
    }  # fmt: skip
    moved = {"pitch_deg": pitch_deg, "roll_deg": roll_deg, "field_share": field_share, "crop": crop}
    shape = round(height / width, 2) if width > 0 else 0
    check_ranges("cut_training_views", settings | moved | {"height by width": shape}, RANGES)
    # Folders of before these could be chosen record none of them.
    defaults = {"pitch_deg": 0.0, "roll_deg": ROLL_DEG, "field_share": FIELD_SHARE, "crop": 0.0}
    recorded = settings | {name: value for name, value in moved.items() if value != defaults[name]}
    size = {"height": height, "width": width}

    def draw(panorama: torch.Tensor, digest: str) -> Iterator[Iterator[Image.Image]]:
        angles, windows = _draw(settings | moved, digest)
        for sector in range(sectors):
            images = as_images(cut_views(panorama.to(device), *angles[:, sector], **size))
            if crop:
                boxes = (windows[:, sector].T * torch.tensor([width, height] * 2)).tolist()
                images = map(lambda image, box: image.resize(image.size, Image.Resampling.BICUBIC, box), images, boxes)
            if revisited:
                random = np.random.default_rng([seed, sector, int(digest[:12], 16)])
                images = [revisit(image, random) for image in images]
            yield images

    def describe(digest: str) -> list[list[dict[str, str]]]:
        angles, windows = _draw(settings | moved, digest)
        first, last = heading_spans(*angles, **size)
        columns = {
            **dict(zip(("heading_deg", "pitch_deg", "roll_deg", "field_deg"), angles, strict=True)),
            # Outwards, so that rounding hides no overlap.
            "first_heading_deg": first.mul(100).floor() / 100,
            "last_heading_deg": last.mul(100).ceil() / 100,
            **(dict(zip(("left", "top", "right", "bottom"), windows, strict=True)) if crop else {}),
        }
        return [
            [
                {name: f"{values[sector, view].item():.2f}" for name, values in columns.items()}
                for view in range(views_per_sector)
            ]
            for sector in range(sectors)
        ]

    root, out = Path(folder), Path(out)
    return write_places(
        list_panoramas(root, but_not_in=out), root, out, kind="panorama", settings=recorded,
        open_source=open_panorama, draw=draw, describe=describe, exclude=exclude, only=only, progress=progress,
    )  # fmt: skip


def panorama_conflicts(table: str | Path | Mapping[str, Sequence]) -> dict[int, frozenset[int]]:
    """{place: places that it conflicts with}: those of its panorama with a view that shares a heading with one of its.

    Args:
        table: a folder that `cut_training_views` made, or its metadata.csv, or the columns place, panorama,
            first_heading_deg and last_heading_deg of one (degrees, first <= last, one row a view).

    Returns: places without any are left out.
    Raises: ValueError if a column is missing.
    """
    columns, where = table, "the table"
    if isinstance(table, str | Path):
        path = Path(table) / TABLE if Path(table).is_dir() else Path(table)
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = [*csv.reader(file)] or [[]]
        columns, where = {name: [row[i] for row in rows] for i, name in enumerate(header)}, path_to_text(path)
    if missing := [name for name in SPAN_COLUMNS if name not in columns]:
        raise ValueError(
            f"{where} lacks {', '.join(missing)}; its columns are {', '.join(columns)}. Give a table that "
            "cut_training_views wrote."
        )
    place, panorama, first, last = (np.asarray(columns[name]) for name in SPAN_COLUMNS)
    place, first, last = place.astype(np.int64), first.astype(np.float64), last.astype(np.float64)
    middle, reach = (first + last) / 2, (last - first) / 2
    _, number = np.unique(panorama, return_inverse=True)
    order = np.argsort(number, kind="stable")
    conflicts: dict[int, set[int]] = defaultdict(set)
    for rows in np.split(order, np.flatnonzero(np.diff(number[order])) + 1):
        apart = np.abs((middle[rows, None] - middle[rows] + 180) % 360 - 180)
        shared = (apart < reach[rows, None] + reach[rows]) & (place[rows, None] != place[rows])
        for one, other in zip(*np.nonzero(shared), strict=True):
            conflicts[int(place[rows[one]])].add(int(place[rows[other]]))
    return {each: frozenset(others) for each, others in sorted(conflicts.items())}


def _draw(settings: Mapping[str, Any], digest: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What each view shows, in hundredths, as the table states them.

    Returns: (4, sectors, views) heading, pitch, roll and field in degrees; and of that (4, sectors, views) left, top,
        right and bottom of what is kept, as shares.
    """
    random = generator_of(settings["seed"], digest)
    shape = (settings["sectors"], settings["views_per_sector"])
    heading, pitch, roll, field = 2 * torch.rand((4, *shape), generator=random, dtype=torch.float64) - 1
    wide = settings["field_deg"]
    high = 2 * math.degrees(math.atan(math.tan(math.radians(wide / 2)) * settings["height"] / settings["width"]))
    middles = torch.arange(settings["sectors"], dtype=torch.float64)[:, None] * 360 / settings["sectors"]
    angles = torch.stack(
        [
            (middles + heading * HEADING_SHARE * wide) % 360,
            settings["pitch_deg"] + pitch * PITCH_SHARE * min(wide, high),
            roll * settings["roll_deg"],
            wide * (1 + field * settings["field_share"]),
        ]
    )
    lost, across, down = torch.rand((3, *shape), generator=random, dtype=torch.float64)
    left, top, kept = settings["crop"] * lost * across, settings["crop"] * lost * down, 1 - settings["crop"] * lost
    windows = torch.stack([left, top, left + kept, top + kept])
    return angles.mul(100).round() / 100, windows.mul(100).round() / 100
