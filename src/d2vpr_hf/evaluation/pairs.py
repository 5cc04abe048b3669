"""Pairs of photos that may show the same place, in the files that programs for structure from motion read."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from ..files import replace_file, text_to_path
from ..messages import first_few
from .results import Evaluation

PairsFormat = Literal["hloc", "colmap", "opensfm"]
PAIRS_FORMATS: tuple[PairsFormat, ...] = get_args(PairsFormat)

# hloc leaves out what is less alike than this, where it compares by inner product.
_LEAST_SCORE = 0.0


def ranked_pairs(evaluation: Evaluation, k: int) -> list[tuple[Path, Path]]:
    """Each query with its k best database photos, best first, as hloc's `pairs_from_retrieval` has them.

    A query that is a database photo too isn't a pair with itself.

    Args:
        evaluation: of a protocol of files, of at least k answers.
        k: pairs a query, at most.
    """
    queries, database = evaluation.protocol.queries.paths, evaluation.protocol.database
    # An index names its photos by their paths.
    paths = getattr(database, "paths", None) or [text_to_path(name) for name in evaluation.database_names]
    products = evaluation.settings["metric"] == "inner_product"
    return [
        (query, paths[row])
        for query, rows, scores in zip(queries, evaluation.ranking[:, :k], evaluation.scores[:, :k], strict=True)
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
        if row >= 0 and not (products and score < _LEAST_SCORE)
    ]


def write_pairs(
    path: str | Path, pairs: Sequence[tuple[Path, Path]], format: PairsFormat, *, root: str | Path | None = None
) -> Path:
    """Writes pairs for another program; returns the folder that the names are relative to.

    Args:
        path: of the file.
        pairs: photos, the query first.
        format: "hloc": a line a pair, in the order given. "colmap": the same, each pair once whichever comes first, as
            its matches_importer takes them. "opensfm": a JSON list of [name, name], each pair once, for its
            `matching.match_images_with_pairs`.
        root: folder that holds all photos and that names are relative to; by default the deepest one.

    Raises: ValueError if there is no pair, a photo isn't in `root`, or a name holds a space, which ends a name there.
    """
    if not pairs:
        raise ValueError("There is no pair: no query has an answer. Give photos that open.")
    photos = {photo: photo.absolute() for pair in pairs for photo in pair}
    root = Path(os.path.commonpath([photo.parent for photo in photos.values()])) if root is None else Path(root)
    folder = root.absolute()
    if strangers := [photo for photo in photos.values() if not photo.is_relative_to(folder)]:
        raise ValueError(f"{first_few(strangers)} aren't in {folder}. Give a folder that holds all photos.")
    named = {photo: absolute.relative_to(folder).as_posix() for photo, absolute in photos.items()}
    if format != "opensfm" and (spaced := [name for name in named.values() if len(name.split()) != 1]):
        raise ValueError(
            f"{first_few(spaced)} hold a space, which ends a name in a file of pairs. Rename them, or write the format "
            "opensfm."
        )
    lines = [(named[query], named[photo]) for query, photo in pairs]
    if format != "hloc":
        once: dict[frozenset[str], tuple[str, str]] = {}
        for pair in lines:
            once.setdefault(frozenset(pair), pair)
        lines = list(once.values())
    content = json.dumps(lines, indent=1) if format == "opensfm" else "\n".join(" ".join(pair) for pair in lines)
    replace_file(path, content + "\n")
    return root
