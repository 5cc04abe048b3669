"""Brings an index folder up to date with a folder of photos, embedding only what it doesn't hold yet."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..files import holding, path_to_text, refuse_strangers
from ..messages import first_few
from ..photos.folder import PhotoFolder
from ..photos.positions import Positions
from .descriptors import STATE_COLUMNS, Descriptors, file_states, same_file
from .embedder import Embedder
from .index import PlaceIndex
from .index_folder import SETTINGS_FILE

# Where the rows of an unfinished run wait for the next one, inside the index folder.
PARTIAL_FOLDER = "descriptors.partial"


@dataclass(frozen=True)
class IndexUpdate:
    """What `index_photos` did.

    Attributes:
        index: the index as saved.
        added: photos that are new in it or were changed.
        kept: photos that it held already.
        removed: places whose photo is gone or was changed.
        skipped: photos that can't be used, as (path, reason).
    """

    index: PlaceIndex
    added: int
    kept: int
    removed: int
    skipped: list[tuple[str, str]]


class EmbeddedPhotos:
    """Takes the place of an embedder for photos that were embedded before: gives their rows and runs no model.

    Photos are known by their path below the folder, so that it may be mounted elsewhere than where they were embedded.

    Args:
        photos: the folder as it is now.
        folder: where `Embedder.embed` wrote its descriptors, in parts or not.

    Raises: FileNotFoundError or ValueError as `Descriptors.load`; ValueError if photos have no descriptor there or
        were changed since.
    """

    def __init__(self, photos: PhotoFolder, folder: str | Path) -> None:
        self._held = held = Descriptors.load(folder)
        self.name, self.weight_hash, self.dtype = held.model_name, held.weight_hash, held.dtype
        self.descriptor_dim, self.processor_settings = held.vectors.shape[1], held.processor
        row_of = {name.replace(os.sep, "/"): row for row, name in enumerate(held.names)}
        # What was skipped is told by the path it was given as, whose end is the path below the folder.
        reasons = {"/".join(parts[at:]): why for parts, why in _parts(held.skipped) for at in range(len(parts))}
        self._rows: dict[Path, int] = {}
        self._skipped: dict[Path, str] = {}
        unknown = []
        for path, name in zip(photos.paths, photos.names, strict=True):
            row = row_of.get(name, row_of.get(path_to_text(path.absolute()).replace(os.sep, "/")))
            if row is not None and same_file(held.states[row].tolist(), file_states([path])[0].tolist()):
                self._rows[path] = row
            elif row is None and name in reasons:
                self._skipped[path] = reasons[name]
            else:
                unknown.append(name)
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(photos)} photos have no descriptor in {folder}, or were changed since: "
                f"{first_few(unknown)}. Embed them first, by the command that made it."
            )

    def embed(self, images: list[Path], **_: Any) -> Descriptors:
        """The rows of some of the photos."""
        held, kept = self._held, [path for path in images if path in self._rows]
        rows = [self._rows[path] for path in kept]
        skipped = [(path_to_text(path), self._skipped[path]) for path in images if path in self._skipped]
        vectors = held.vectors if rows == list(range(len(held))) else held.vectors[rows]
        about = self.name, self.weight_hash, held.states[rows], self.processor_settings, self.dtype
        return Descriptors(vectors, [path_to_text(path) for path in kept], skipped, *about)


def index_photos(
    photos: PhotoFolder,
    places: str | Path,
    embedder: Embedder | EmbeddedPhotos,
    *,
    progress: bool = True,
) -> IndexUpdate:
    """The index of a folder's photos, made or brought up to date, and saved.

    Run again after an interruption it goes on where it stopped; run again later it takes up photos that were added,
    changed or removed, and positions that were learnt. No photo is embedded twice while its file and the weights stay
    the same.

    Args:
        photos: the photos and where they were taken.
        places: the index folder.
        embedder: the model and how it runs, or the photos' descriptors of before.
        progress: show a bar on stderr.

    Raises: ValueError if the folder holds an index of other weights or settings, or if no photo can be used;
        RuntimeError if another run is writing it.
    """
    places = Path(places)
    refuse_strangers(places, {PARTIAL_FOLDER}, unless=SETTINGS_FILE, purpose="index")
    with holding(places):
        return _updated(photos, places, embedder, progress)


def _updated(photos: PhotoFolder, places: Path, embedder: Embedder | EmbeddedPhotos, progress: bool) -> IndexUpdate:
    partial = places / PARTIAL_FOLDER
    paths = [path_to_text(path) for path in photos.paths]
    row_of = {path: row for row, path in enumerate(paths)}
    old = _load_index(places, embedder)
    up_to_date = np.zeros(0, bool) if old is None else _up_to_date(old, photos, row_of)
    held = set() if old is None else set(old.places["path"].to_numpy()[up_to_date])
    wanted = [path for path, text in zip(photos.paths, paths, strict=True) if text not in held]
    skipped: list[tuple[str, str]] = []
    new: Descriptors | None = None
    if wanted:
        new = embedder.embed(wanted, folder=partial, progress=progress)
        skipped = list(new.skipped)
    if old is None:
        if new is None or not len(new.paths):
            shutil.rmtree(partial, ignore_errors=True)
            raise ValueError(
                f"None of the {len(paths)} photos in {path_to_text(photos.root)} can be used "
                f"({skipped[0][0]}: {skipped[0][1]}). Give a folder with at least one photo that opens."
            )
        index, removed = PlaceIndex.build(new, _positions(photos, new.paths, row_of)), 0
    else:
        index = old
        _take_new_positions(index, photos, row_of, up_to_date)
        gone = [path for path in old.places["path"] if path not in held]
        removed = len(gone)
        if gone:
            index.remove(index.places["id"][index.places["path"].isin(gone)])
        if new is not None and len(new.paths):
            index.add(new, _positions(photos, new.paths, row_of))
    index.save_held(places)
    shutil.rmtree(partial, ignore_errors=True)
    return IndexUpdate(index, 0 if new is None else len(new.paths), len(held), removed, skipped)


def _load_index(places: Path, embedder: Embedder | EmbeddedPhotos) -> PlaceIndex | None:
    """The index that the folder holds; None where there is none yet."""
    if not (places / SETTINGS_FILE).is_file():
        return None
    index = PlaceIndex.load(places)
    made_by = embedder.name, embedder.weight_hash, embedder.descriptor_dim
    index.check_maker(*made_by, embedder.processor_settings, embedder.dtype)
    return index


def _up_to_date(index: PlaceIndex, photos: PhotoFolder, row_of: dict[str, int]) -> np.ndarray:
    """(places,) bool: the photo is still wanted, and its file is the one that was embedded, whose state is kept."""
    table, columns = index.places, list(STATE_COLUMNS)
    wanted = np.flatnonzero(table["path"].isin(row_of))
    states = file_states(photos.paths[row_of[path]] for path in table["path"].iloc[wanted])
    pairs = zip(table[columns].to_numpy()[wanted].tolist(), states.tolist(), strict=True)
    same = np.array([same_file(then, now) and -1 not in now for then, now in pairs], bool)
    table.loc[wanted[same], columns] = states[same]
    return np.isin(np.arange(len(table)), wanted[same])


def _parts(skipped: list[tuple[str, str]]) -> list[tuple[tuple[str, ...], str]]:
    """The parts of each path, and the reason."""
    return [(PurePath(path).parts, reason) for path, reason in skipped]


def _positions(photos: PhotoFolder, paths: list[str], row_of: dict[str, int]) -> Positions:
    return photos.positions[np.array([row_of[path] for path in paths], np.int64)]


def _take_new_positions(index: PlaceIndex, photos: PhotoFolder, row_of: dict[str, int], up_to_date: np.ndarray) -> None:
    """Gives places that are kept the coordinates that are known of them now, under new ids where these changed."""
    table = index.places[up_to_date]
    if not len(table):
        return
    now = _positions(photos, table["path"].tolist(), row_of)
    columns = {name: getattr(now, name) for name in ("latitude", "longitude", "easting", "northing")}
    same = np.ones(len(table), bool)
    for name, values in columns.items():
        same &= np.isclose(table[name].to_numpy(), values, rtol=0, atol=1e-9, equal_nan=True)
    if same.all():
        return
    moved = table[~same]
    ids = moved["id"].to_numpy()
    vectors = index.vectors(ids)
    index.remove(ids)
    index.add(
        Descriptors(
            vectors,
            moved["path"].tolist(),
            [],
            index.model_name,
            index.weight_hash,
            moved[list(STATE_COLUMNS)].to_numpy(),
        ),
        now[np.flatnonzero(~same)],
    )
