"""Panoramas as training places: a place is a panorama and a sector of its headings.

Views of one sector are positives: at least half of each is seen in the other. Views of one panorama that share no
heading are hard negatives. Sectors with views that share headings are neither, and conflict: no training step may hold
both (see `TrainingPlaces.conflicts`). Turning shows no parallax: places seen while moving come from elsewhere.
"""

import csv
import hashlib
import io
import json
import logging
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import hash_file, path_to_text, replace_file
from ..messages import did_you_mean
from ..photos.revisit import revisit
from .cut import as_images, list_panoramas, open_panoramas, write_views
from .views import cut_views, heading_spans

logger = logging.getLogger(__name__)

TABLE = "metadata.csv"
RECORD = "panoramas.json"
# How far views of a sector may differ, in shares of the field of view, in degrees for the roll. The widest of these
# still leave half of each view in any other, at every field of view in FIELDS and every shape of view in SHAPES.
HEADING_SHARE, PITCH_SHARE, FIELD_SHARE, ROLL_DEG = 1 / 8, 1 / 20, 0.06, 2.0
FIELDS_DEG = (30.0, 100.0)
SHAPES = (0.5, 1.5)  # height by width
# What conflicts follow from.
SPAN_COLUMNS = ("place", "panorama", "first_heading_deg", "last_heading_deg")


@dataclass(frozen=True)
class _Settings:
    """All that decides the views, but for the panoramas themselves."""

    sectors: int
    views_per_sector: int
    field_deg: float
    height: int
    width: int
    seed: int
    revisited: bool

    def __post_init__(self) -> None:
        shape = self.height / self.width if self.width > 0 else 0
        for name, found, expected, holds in (
            ("sectors", self.sectors, "1 or more", self.sectors >= 1),
            ("views_per_sector", self.views_per_sector, "2 or more", self.views_per_sector >= 2),
            ("field_deg", self.field_deg, "from {} to {}".format(*FIELDS_DEG), _within(self.field_deg, FIELDS_DEG)),
            ("height by width", round(shape, 2), "from {} to {}".format(*SHAPES), _within(shape, SHAPES)),
        ):
            if not holds:
                raise ValueError(
                    f"cut_training_views: {name} is {found}, but must be {expected}, so that views of a place overlap "
                    "by half."
                )


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
        field_deg: horizontal field of view, 30 to 100; a view's own differs by up to 6 %.
        height, width: pixels of the views; the height between half and one and a half of the width.
        seed: of the draws.
        device: where views are computed.
        exclude: panoramas that are left out, by their path below the folder or their file name.
        only: where any are named, these alone are taken.
        revisited: change each view as a second visit does (see `revisit`), for views to validate with: views of one
            moment are too easily told.
        progress: whether to show a bar on stderr.

    Returns: the folder, with `metadata.csv`: for each view file_name, place, panorama, heading_deg, pitch_deg,
        roll_deg, field_deg, and the first and last heading that it shows, from which conflicts follow; and
        `panoramas.json`: settings, the SHA-256 of each panorama that was used, and the reasons of those that
        weren't.
    Raises: ValueError if a number is out of range, a name to exclude or to take is unknown, or no panorama can be used;
        FileExistsError if `out` holds anything else than the same call would make.
    """
    settings = _Settings(sectors, views_per_sector, field_deg, height, width, seed, revisited)
    root, out = Path(folder), Path(out)
    paths = _chosen(list_panoramas(root, but_not_in=out), root, exclude, only)
    digests, skipped = _digests(paths)
    files = hashlib.sha256("\n".join(sorted(digests.values())).encode()).hexdigest()
    if _is_finished(out, settings, files):
        return out
    draft = _open_draft(out, settings)
    folders = {
        name: draft / f"{re.sub('[^A-Za-z0-9_-]', '_', paths[name].stem)[:40]}-{digest[:12]}"
        for name, digest in digests.items()
    }
    waiting = {name: paths[name] for name in digests if not folders[name].is_dir()}
    with ThreadPoolExecutor() as pool:
        for name, panorama in open_panoramas(waiting, skipped, device=device, progress=progress):
            _write_views(folders[name], panorama, digests[name], settings, pool)
    for name, reason in skipped:
        logger.warning("%s: %s; left out.", name, reason)
    used = {name: digest for name, digest in digests.items() if folders[name].is_dir()}
    if not used:
        raise ValueError(
            f"{path_to_text(root)} holds no panorama that can be used; {len(skipped)} files were skipped, such as "
            f"{skipped[0][0]}: {skipped[0][1]}. Give equirectangular images."
        )
    rows = [
        row
        for number, (name, digest) in enumerate(used.items())
        for row in _rows(folders[name].name, name, number * sectors, _draw(settings, digest), settings)
    ]
    _finish(draft, out, rows, {"settings": asdict(settings), "files": files, "panoramas": used, "skipped": skipped})
    return out


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


def _within(number: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= number <= limits[1]


def _chosen(panoramas: Sequence[Path], root: Path, exclude: Collection[str], only: Collection[str]) -> dict[str, Path]:
    """The panoramas that aren't to be left out, by their names below the folder."""
    names = {path_to_text(path.relative_to(root).as_posix()): path for path in panoramas}
    bases = {name: name.rpartition("/")[2] for name in names}
    known = sorted({*names, *bases.values()})
    for name in [*exclude, *only]:
        if name not in known:
            raise ValueError(
                f"{'exclude' if name in exclude else 'only'} names {name!r}, but {path_to_text(root)} holds no such "
                f"panorama.{did_you_mean(name, known)} Give paths below the folder, or file names."
            )
    return {
        name: path
        for name, path in names.items()
        if not {name, bases[name]} & {*exclude} and (not only or {name, bases[name]} & {*only})
    }


def _digests(panoramas: dict[str, Path]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """SHA-256 of each file that is the first with its bytes, and the other files with the reason."""
    first: dict[str, str] = {}
    skipped = []
    for name, path in panoramas.items():
        try:
            digest = hash_file(path)
        except OSError as error:
            skipped.append((name, error.strerror or "can't be read"))
            continue
        if digest in first:
            skipped.append((name, f"the same bytes as {first[digest]}"))
        else:
            first[digest] = name
    return {name: digest for digest, name in first.items()}, skipped


def _draw(settings: _Settings, digest: str) -> torch.Tensor:
    """(4, sectors, views) heading, pitch, roll and field in degrees, in hundredths, as the table states them."""
    seed = hashlib.sha256(f"{settings.seed} {digest}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(seed[:7]))
    shape = (4, settings.sectors, settings.views_per_sector)
    heading, pitch, roll, field = 2 * torch.rand(shape, generator=random, dtype=torch.float64) - 1
    wide = settings.field_deg
    high = 2 * math.degrees(math.atan(math.tan(math.radians(wide / 2)) * settings.height / settings.width))
    middles = torch.arange(settings.sectors, dtype=torch.float64)[:, None] * 360 / settings.sectors
    angles = torch.stack(
        [
            (middles + heading * HEADING_SHARE * wide) % 360,
            pitch * PITCH_SHARE * min(wide, high),
            roll * ROLL_DEG,
            wide * (1 + field * FIELD_SHARE),
        ]
    )
    return angles.mul(100).round() / 100


def _write_views(
    folder: Path, panorama: torch.Tensor, digest: str, settings: _Settings, pool: ThreadPoolExecutor
) -> None:
    """Writes all views of a panorama, under their folder's name when they are whole."""
    part, angles = folder.with_name(f".{folder.name}"), _draw(settings, digest)
    for sector in range(settings.sectors):
        views = cut_views(panorama, *angles[:, sector], height=settings.height, width=settings.width)
        names = [part / _view_name(sector, view) for view in range(len(views))]
        images = as_images(views)
        if settings.revisited:
            random = np.random.default_rng([settings.seed, sector, int(digest[:12], 16)])
            images = [revisit(image, random) for image in images]
        write_views(names, images, pool)
    part.rename(folder)


def _view_name(sector: int, view: int) -> str:
    return f"{sector:03d}_{view:02d}.jpg"


def _rows(views: str, name: str, first_place: int, angles: torch.Tensor, settings: _Settings) -> list[dict[str, Any]]:
    """The table's rows of a panorama."""
    first, last = heading_spans(*angles, height=settings.height, width=settings.width)
    columns = {
        **dict(zip(("heading_deg", "pitch_deg", "roll_deg", "field_deg"), angles, strict=True)),
        # Outwards, so that rounding hides no overlap.
        "first_heading_deg": first.mul(100).floor() / 100,
        "last_heading_deg": last.mul(100).ceil() / 100,
    }
    return [
        {
            "file_name": f"{views}/{_view_name(sector, view)}",
            "place": first_place + sector,
            "panorama": name,
            **{column: f"{values[sector, view].item():.2f}" for column, values in columns.items()},
        }
        for sector in range(settings.sectors)
        for view in range(settings.views_per_sector)
    ]


def _is_finished(out: Path, settings: _Settings, files: str) -> bool:
    """Whether the folder is what this call makes.

    Raises: FileExistsError if it is something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = _read_json(out / RECORD)
    if record.get("settings") == asdict(settings) and record.get("files") == files and (out / TABLE).is_file():
        return True
    what = "views of other panoramas or with other settings" if record else "something else"
    raise FileExistsError(f"{path_to_text(out)} exists and holds {what}. Remove it, or name another folder.")


def _open_draft(out: Path, settings: _Settings) -> Path:
    """The folder beside `out` in which the views are written; one of other settings starts anew."""
    draft = out.with_name(f".{out.name}-unfinished")
    if _read_json(draft / RECORD).get("settings") != asdict(settings):
        shutil.rmtree(draft, ignore_errors=True)
        replace_file(draft / RECORD, json.dumps({"settings": asdict(settings)}))
    return draft


def _finish(draft: Path, out: Path, rows: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Writes table and record, clears away what belongs to neither, and gives the folder its name."""
    named = {row["file_name"].partition("/")[0] for row in rows}
    for path in draft.iterdir():
        if path.is_dir() and path.name not in named:
            shutil.rmtree(path)
    replace_file(draft / RECORD, json.dumps(record, indent=2, ensure_ascii=False))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(draft / TABLE, table.getvalue())
    if out.exists():
        out.rmdir()  # it is empty
    draft.rename(out)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
