"""Gives memory back while a large mapped file is read: pages that were read otherwise stay until others need room."""

import mmap

import numpy as np


def release_pages(array: np.ndarray) -> None:
    """Drop the pages of a read-only map of a file from this process; any other array stays as it is.

    The system may keep them as cache of the file, and reads them again when they are asked for. Without this, a process
    that has walked over a file of 100 GB seems to need as much memory.
    """
    # A private copy-on-write map would lose what was written to it.
    if getattr(array, "mode", None) == "r" and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)
