"""Descriptors in the HDF5 file that hloc (Hierarchical-Localization) reads as global features."""

import os
from importlib.util import find_spec
from pathlib import Path

from ..files import replacing, text_to_path
from .descriptors import Descriptors

# What hloc calls a photo's descriptor within its group.
_DATASET = "global_descriptor"


def check_h5py() -> None:
    """Raises: ImportError with the install command if h5py isn't there."""
    if find_spec("h5py") is None:
        raise ImportError("hloc's files are HDF5, which needs h5py. Install it: pip install 'd2vpr_hf[hloc]'.")


def write_hloc(path: str | Path, descriptors: Descriptors, root: str | Path) -> None:
    """Writes descriptors as hloc's `extract_features` does, whole or not at all: a group a photo, named by its path.

    Args:
        path: of the file.
        descriptors: of files.
        root: folder that names are relative to, hloc's image folder.

    Raises: ImportError if h5py isn't there.
    """
    check_h5py()
    import h5py

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file, h5py.File(file.name, "w") as content:
        for photo, vector in zip(descriptors.paths, descriptors.vectors, strict=True):
            name = Path(os.path.relpath(text_to_path(photo), root)).as_posix()
            content.create_group(name).create_dataset(_DATASET, data=vector)
