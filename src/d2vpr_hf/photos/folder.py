"""A folder of photos together with where each of them was taken."""

from dataclasses import dataclass
from pathlib import Path

from ..files import path_to_text
from .images import list_images
from .positions import Positions


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
    names = [path_to_text(path.relative_to(root).as_posix()) for path in paths]
    known = Positions.from_photos(paths) if positions is None else Positions.from_table(positions, names)
    return PhotoFolder(root, paths, names, known)
