"""An evaluation of somebody else's scores, where a similarity matrix is all that is published."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import path_to_text
from .protocol import Protocol, database_names
from .recall import recall_at_k
from .results import Evaluation
from .run import DEFAULT_KS, answers_ranked, package_versions, without_own


def read_scores(address: str) -> np.ndarray:
    """(queries, database) of an .npz or .npy file of numbers.

    Args:
        address: "FILE.npz#NAME" for one array of several, or the file alone where it holds one.

    Raises: FileNotFoundError; ValueError if the file holds no such array.
    """
    file, _, name = address.partition("#")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path_to_text(path)} isn't there, but scores are read from it. Give them as FILE.npz#NAME or FILE.npy."
        )
    try:
        content = np.load(path, allow_pickle=False)
        arrays = dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {name: content}
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{path_to_text(path)} can't be read as numbers ({error}). Give a .npy or .npz file of scores (queries, "
            "database)."
        ) from error
    if not name and len(arrays) == 1:
        return next(iter(arrays.values()))
    if name not in arrays:
        raise ValueError(
            f"{path_to_text(path)} holds {', '.join(arrays)}, but {name or 'no name'} is asked for. Name one of them: "
            f"{path_to_text(path)}#{next(iter(arrays))}."
        )
    return arrays[name]


def evaluate_scores(protocol: Protocol, scores: np.ndarray, *, name: str, ks: Sequence[int] = DEFAULT_KS) -> Evaluation:
    """What a matrix of scores gives on a protocol, ranked as a model's scores are.

    Args:
        protocol: with labels or without.
        scores: (queries, database) in the protocol's order, the higher the more alike. Of equal scores the lower row
            comes first.
        name: for tables.
        ks: cut-offs of recall@k.

    Raises: ValueError if the matrix has another shape or holds what is no finite number.
    """
    names, ks = database_names(protocol.database), sorted({int(k) for k in ks})
    expected = (len(protocol.queries.paths), len(names))
    scores = np.asarray(scores)
    if scores.shape != expected or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
        raise ValueError(
            f"{name} has scores of shape {scores.shape} and type {scores.dtype}, but {protocol.name} needs {expected} "
            "(queries, database) finite numbers. Give those of this protocol, in the order of its photos."
        )
    kept = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")
    sorted_scores = np.take_along_axis(scores, kept, axis=1)
    depth = answers_ranked(protocol, ks)
    ranking = np.full((len(kept), depth), -1, np.int64)
    found = np.full(ranking.shape, np.nan, np.float32)
    answers = min(depth, len(names))
    ranking[:, :answers], found[:, :answers] = kept[:, :answers], sorted_scores[:, :answers]
    if protocol.own_rows is not None:
        found, ranking = without_own(found, ranking, protocol.own_rows)
    positives = protocol.positives
    return Evaluation(
        protocol=protocol,
        recall=None if positives is None else recall_at_k(ranking, positives, ks, protocol.denominator),
        ranking=ranking,
        scores=found,
        database_names=names,
        skipped={"database": [], "queries": []},
        model_name=name,
        weight_hash=hashlib.sha256(np.ascontiguousarray(scores).tobytes()).hexdigest(),
        settings={
            "k": ks,
            "query_method": "given scores",
            "metric": "given scores",
            "batch_size": None,
            "batch_rule": "scores as given, from no photo",
            "dtype": str(scores.dtype),
            "device": None,
            "dim": None,
            "image_size": None,
        },
        versions=package_versions(),
        command=list(sys.argv),
    )
