"""The photos of a folder, found by the one walk over files there is, together with where each of them was taken."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import path_to_text
from .positions import Positions

# HEIC can't be read, but a phone's photos in it are better reported than passed over.
IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".avif", ".bmp", ".gif",
    ".tif", ".tiff", ".jp2", ".ppm", ".pgm", ".heic", ".heif",
)  # fmt: skip

# Of NAS systems, macOS and Windows: thumbnails, deleted files and the like, whose names may be those of photos.
_SYSTEM_FOLDERS = frozenset(
    ["@eaDir", "@Recycle", "#recycle", "#snapshot", "__MACOSX", "$RECYCLE.BIN", "System Volume Information"]
)


@dataclass
class PhotoFolder:
    """The photos of a folder, sorted by path.

    Attributes:
        root: the folder.
        paths: (photos) files, broken ones among them: whether a photo can be used shows when it is opened.
        names: (photos) paths relative to the root, with forward slashes, as text (see `path_to_text`).
        positions: (photos) where each was taken.
    """

    root: Path
    paths: list[Path]
    names: list[str]
    positions: Positions

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: np.ndarray) -> "PhotoFolder":
        """The photos of some rows, given as numbers."""
        chosen = rows.tolist()
        paths, names = ([each[row] for row in chosen] for each in (self.paths, self.names))
        return PhotoFolder(self.root, paths, names, self.positions[rows])

    @classmethod
    def of(cls, root: Path, paths: Sequence[Path], positions: Positions | None = None) -> "PhotoFolder":
        """Photos below a root with their positions; by default those of their names or EXIF."""
        return cls(root, list(paths), names_below(root, paths), positions or Positions.from_photos(paths))


def read_photo_folder(folder: str | Path, *, positions: str | Path | None = None) -> PhotoFolder:
    """The photos of a folder and of its subfolders, with their positions.

    Args:
        folder: where the photos lie.
        positions: a CSV or Parquet file with the columns path (relative to the folder, or the base name), lat
            and lon. Without it each photo's name or EXIF is read (see `Positions.from_photos`).

    Raises: NotADirectoryError if there is no such folder; ValueError if it holds no photo, or the table is wrong.
    """
    root = Path(folder)
    paths = list_images(root)
    if not paths:
        raise ValueError(f"{path_to_text(root)} holds no photo (such as .jpg or .png), nor do its subfolders.")
    listed = positions and Positions.from_table(positions, names_below(root, paths))
    return PhotoFolder.of(root, paths, listed)


def names_below(root: Path, paths: Sequence[Path]) -> list[str]:
    """Paths relative to a root, with forward slashes, as text."""
    return [path_to_text(path.relative_to(root).as_posix()) for path in paths]


def list_images(folder: str | Path) -> list[Path]:
    """Everything under a folder that is named like an image, sorted by path (see `list_files`).

    Broken links, folders and pipes with such a name are listed too, so that whoever opens them can report them.

    Raises: NotADirectoryError if there is no such folder; PermissionError if it can't be read.
    """
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"{path_to_text(folder)} is not a folder. Give a folder that holds photos.")
    return [Path(path) for path in list_files(folder) if is_image_name(path) or path.endswith(os.sep)]


def list_files(folder: str | Path) -> list[str]:
    """Everything under a folder but the folders that were entered, sorted by path.

    Links to folders are followed, each folder once. A folder named like an image isn't entered and stands for itself,
    as does one that can't be read (it ends with a slash), so that whoever opens it can report it. Names that start with
    a dot are passed over, and folders in which systems keep thumbnails and deleted files.

    Raises: PermissionError if the folder itself can't be read.
    """
    found: list[str] = []
    entered: set[tuple[int, int]] = set()
    waiting = [str(folder)]
    while waiting:
        here = waiting.pop()
        try:
            status = Path(here).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(here) as scanned:
                # Sorted, so that of two links to one folder the same one is entered each time.
                entries = sorted(scanned, key=lambda entry: os.fsencode(entry.name), reverse=True)
        except OSError:
            if here == str(folder):
                raise
            found.append(f"{here}{os.sep}")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_image_name(entry.name) or not entry.is_dir():
                found.append(entry.path)
            elif entry.name not in _SYSTEM_FOLDERS:
                waiting.append(entry.path)
    return sorted(found, key=os.fsencode)


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)
