"""Where descriptors are kept between evaluations, so that a second one needs no model: one folder a set of photos.

A folder's name says what its rows depend on: the model's weights, the processor's settings, the arithmetic and the list
of files. Within it each row knows size and time of its file (see `retrieval.parts`): a photo that has changed is
embedded again, all others are read. An interrupted evaluation goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files import path_to_text

_NAME_DIGITS = 16


def cache_folder(
    cache: str | Path, paths: Sequence[Path], *, weight_hash: str, processor: Callable[..., Any], dtype: str
) -> Path:
    """The folder, below `cache`, of the descriptors of these photos; it may not exist yet.

    Args:
        cache: the user's folder for all of them; it can be deleted at any time.
        paths: the photos, in their order.
        weight_hash: of the model.
        processor: whose settings count.
        dtype: of the arithmetic.
    """
    settings = processor.to_dict() if hasattr(processor, "to_dict") else {"processor": type(processor).__name__}
    photos = "\n".join(path_to_text(path.absolute()) for path in paths)
    made_by = f"{weight_hash[:_NAME_DIGITS]}-{_short_hash(json.dumps(settings, sort_keys=True, default=str))}-{dtype}"
    return Path(cache) / made_by / _short_hash(photos)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]
