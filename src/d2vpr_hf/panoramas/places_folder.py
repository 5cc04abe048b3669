"""A folder of training places, written image by image: drawn beside its name, gone on with when broken off."""

import csv
import hashlib
import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..files import hash_file, path_to_text, replace_file
from ..messages import did_you_mean
from .cut import open_all, write_views

logger = logging.getLogger(__name__)

TABLE = "metadata.csv"


def write_places(
    sources: Sequence[Path],
    root: Path,
    out: Path,
    *,
    kind: str,
    settings: Mapping[str, Any],
    open_source: Callable[[Path], Any],
    draw: Callable[[Any, str], Iterable[Iterable[Image.Image]]],
    describe: Callable[[str], Sequence[Sequence[Mapping[str, Any]]]],
    near: int = 0,
    exclude: Collection[str] = (),
    only: Collection[str] = (),
    progress: bool = True,
) -> Path:
    """Writes the places of each source, and a table that `read_training_places` reads; returns `out`.

    Args:
        sources: files below the root. Of those with the same bytes the first counts.
        out: folder to make. One that the same call has made is left as it is.
        kind: what a source is called, as a column of the table and in the record, such as "panorama".
        settings: all that decides the views, but for the sources themselves.
        open_source: gives what `draw` takes; raises UnreadableImage for what can't be used.
        draw: the views of each place of a source, given the SHA-256 of its bytes.
        describe: the columns of each view of each place, from the SHA-256 alone.
        near: sources at most so many apart may show the same, so that their places conflict.
        exclude, only: names of sources below the root, or their base names.

    Raises: ValueError if a name is unknown, or no source can be used; FileExistsError if `out` holds anything else.
    """
    paths = _chosen(sources, root, exclude, only)
    digests, skipped = _digests(paths)
    record = {"settings": settings, "files": hashlib.sha256("\n".join(sorted(digests.values())).encode()).hexdigest()}
    record_name = f"{kind}s.json"
    if _is_finished(out, record, kind):
        return out
    draft = _open_draft(out, settings, record_name)
    folders = {
        name: draft / f"{re.sub('[^A-Za-z0-9_-]', '_', paths[name].stem)[:40]}-{digest[:12]}"
        for name, digest in digests.items()
    }
    waiting = {name: paths[name] for name in digests if not folders[name].is_dir()}
    with ThreadPoolExecutor() as pool:
        for name, source in open_all(waiting, open_source, skipped, progress=progress):
            part = folders[name].with_name(f".{folders[name].name}")
            for place, views in enumerate(draw(source, digests[name])):
                images = list(views)
                write_views([part / _view_name(place, view) for view in range(len(images))], images, pool)
            part.rename(folders[name])
    for name, reason in skipped:
        logger.warning("%s: %s; left out.", name, reason)
    used = {name: digest for name, digest in digests.items() if folders[name].is_dir()}
    if not used:
        raise ValueError(
            f"{path_to_text(root)} holds no {kind} that can be used; {len(skipped)} files were skipped, such as "
            f"{skipped[0][0]}: {skipped[0][1]}."
        )
    described = {name: describe(digest) for name, digest in used.items()}
    starts = np.cumsum([0, *map(len, described.values())]).tolist()
    rows = []
    for number, name in enumerate(used):
        around = {}
        if near:
            first, last = starts[max(number - near, 0)], starts[min(number + near + 1, len(used))]
            own = range(starts[number], starts[number + 1])
            around = {"conflicts": " ".join(str(place) for place in range(first, last) if place not in own)}
        for place, views in enumerate(described[name]):
            for view, columns in enumerate(views):
                file_name = f"{folders[name].name}/{_view_name(place, view)}"
                rows.append({"file_name": file_name, "place": starts[number] + place, kind: name, **columns, **around})
    _finish(draft, out, rows, record_name, {**record, f"{kind}s": used, "skipped": skipped})
    return out


def check_ranges(maker: str, settings: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuses numbers with which views of a place might not overlap.

    Raises: ValueError that names the first setting out of its range, both ends included.
    """
    for name, (low, high) in ranges.items():
        if not low <= settings[name] <= high:
            raise ValueError(
                f"{maker}: {name} is {settings[name]}, but must be from {low} to {high}, so that views of a place "
                "overlap."
            )


def generator_of(seed: int, digest: str) -> torch.Generator:
    """What the views of a source are drawn from."""
    state = hashlib.sha256(f"{seed} {digest}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(state[:7]))


def _view_name(place: int, view: int) -> str:
    return f"{place:03d}_{view:02d}.jpg"


def _chosen(sources: Sequence[Path], root: Path, exclude: Collection[str], only: Collection[str]) -> dict[str, Path]:
    """The sources that aren't to be left out, by their names below the root."""
    names = {path_to_text(path.relative_to(root).as_posix()): path for path in sources}
    bases = {name: name.rpartition("/")[2] for name in names}
    known = sorted({*names, *bases.values()})
    for name in [*exclude, *only]:
        if name not in known:
            raise ValueError(
                f"{'exclude' if name in exclude else 'only'} names {name!r}, but {path_to_text(root)} holds no such "
                f"file.{did_you_mean(name, known)} Give paths below the folder, or file names."
            )
    return {
        name: path
        for name, path in names.items()
        if not {name, bases[name]} & {*exclude} and (not only or {name, bases[name]} & {*only})
    }


def _digests(sources: dict[str, Path]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """SHA-256 of each file that is the first with its bytes, and the other files with the reason."""
    first: dict[str, str] = {}
    skipped = []
    for name, path in sources.items():
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


def _is_finished(out: Path, record: Mapping[str, Any], kind: str) -> bool:
    """Whether the folder is what this call makes.

    Raises: FileExistsError if it is something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = _read_json(out / f"{kind}s.json")
    if (out / TABLE).is_file() and all(found.get(key) == value for key, value in record.items()):
        return True
    what = f"views of other {kind}s or with other settings" if found else "something else"
    raise FileExistsError(f"{path_to_text(out)} exists and holds {what}. Remove it, or name another folder.")


def _open_draft(out: Path, settings: Mapping[str, Any], record_name: str) -> Path:
    """The folder beside `out` in which the views are written; one of other settings starts anew."""
    draft = out.with_name(f".{out.name}-unfinished")
    if _read_json(draft / record_name).get("settings") != settings:
        shutil.rmtree(draft, ignore_errors=True)
        replace_file(draft / record_name, json.dumps({"settings": settings}))
    return draft


def _finish(draft: Path, out: Path, rows: list[dict[str, Any]], record_name: str, record: Mapping[str, Any]) -> None:
    """Writes table and record, clears away what belongs to neither, and gives the folder its name."""
    named = {row["file_name"].partition("/")[0] for row in rows}
    for path in draft.iterdir():
        if path.is_dir() and path.name not in named:
            shutil.rmtree(path)
    replace_file(draft / record_name, json.dumps(record, indent=2, ensure_ascii=False))
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
