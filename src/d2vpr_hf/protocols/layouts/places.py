"""Photos with a place label, each of which is looked for among all others."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...files import text_to_path
from ...photos.folder import PhotoFolder, list_images
from ..places import METADATA, read_training_places
from .base import Layout, Reading, Split

DISTRACTORS = "distractors"


@dataclass(frozen=True)
class PlaceFolders(Layout):
    """One subfolder a place, or a metadata.csv; photos in `distractors` show none of the places."""

    def find(self, root: Path) -> Path | None:
        return root if root.is_dir() else None

    def read(self, folder: Path) -> Reading:
        labelled = read_training_places(folder)
        nowhere = folder / DISTRACTORS
        distractors = list_images(nowhere) if nowhere.is_dir() else []
        paths, places = [text_to_path(name) for name in labelled.names], labelled.places.tolist()
        if not any((folder / name).is_file() for name in METADATA):
            # By its subfolders alone, the folder of the distractors is a place too.
            kept = [row for row, path in enumerate(paths) if nowhere not in path.parents]
            paths, places = [paths[row] for row in kept], [places[row] for row in kept]
        queries = np.arange(len(paths))
        paths, places = [*paths, *distractors], [*places, *[None] * len(distractors)]
        database = Split(PhotoFolder.of(folder, paths), details={"place": places})
        return Reading(database, database[queries])

    def tree(self) -> str:
        return (
            "PLACE/*.jpg (one subfolder a place)\n"
            "distractors/*.jpg (optional: photos of none of the places)\n"
            "or, instead of subfolders, metadata.csv (file_name,place) and the photos that it names"
        )
