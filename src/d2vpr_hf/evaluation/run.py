"""Runs an evaluation: embeds the photos of a protocol, ranks its database for each query, and scores the ranking."""

import copy
import hashlib
import json
import logging
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..files import path_to_text
from ..photos.dataset import DatasetPhotos
from ..photos.folder import PhotoFolder
from ..retrieval.embedder import Descriptors, Embedder, default_device
from ..retrieval.index import PlaceIndex
from ..retrieval.pca import check_pca_source
from ..retrieval.similarity import Metric, metric_of, nearest_rows, rows_without_meaning
from ..version import __version__
from .protocol import Protocol, database_names
from .query_methods import QueryMethod, Search, batch_rule, mixes_images, query_views, rank_views
from .recall import recall_at_k
from .results import Evaluation

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# What the field's tables show (1, 5, 10), and the further cut-offs of its and the original's logs.
DEFAULT_KS = (1, 5, 10, 20, 100)

_PACKAGES = ("torch", "transformers", "faiss-cpu", "numpy", "pillow")
_NAME_DIGITS = 16


def evaluate_protocol(
    protocol: Protocol,
    embedder: Embedder,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    query_method: QueryMethod = "hard_resize",
    cache: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Embeds the photos of a protocol, ranks the database for each query, and scores the ranking.

    A query that is a database photo too is never an answer to itself.

    Args:
        protocol: from `folder_protocol`, `named_protocol` or `dataset_protocol`. An index as its database must
            come from the same weights.
        embedder: of the model. Where its descriptors aren't of length 1 they are ranked by distance.
        ks: cut-offs of recall@k; the largest is the number of answers kept, or the whole database where the protocol
            has mean average precision. A k above the size of the database takes all of it.
        query_method: how a query becomes descriptors (see `query_methods`); the database is always squashed.
        cache: folder in which descriptors are kept from run to run and read instead of being made again; by default
            none. Each photo's row knows size and time of its file: one that has changed is embedded again, and an
            interrupted evaluation goes on where it stopped. The vectors stay on the disk, so that a database larger
            than memory can be ranked. A model that mixes a batch's images can't use one, nor can photos inside of a
            dataset.
        progress: show a bar.

    Raises: ValueError if a k isn't an integer of at least 1, if the index comes from other weights, if no photo of a
        folder can be read, if a descriptor means nothing, if a cache is given to a model that mixes images, or if the
        model's PCA was fitted on photos of the protocol.
    """
    ks = checked_ks(ks)
    views = query_views(query_method, embedder.processor, embedder.model)
    _check_pca(embedder.model, protocol)
    database, queries = protocol.database, protocol.queries
    mixes = mixes_images(embedder, _images(queries))
    _check_cache(cache, mixes, protocol)

    def embed(photos: PhotoFolder | DatasetPhotos, kind: str, view: Any) -> tuple[Descriptors, np.ndarray]:
        return _embedded(photos, kind, _with_processor(embedder, view), cache, progress)

    if isinstance(database, PlaceIndex):
        # Before the queries are embedded, which may take an hour.
        made_by = embedder.name, embedder.weight_hash, embedder.descriptor_dim
        database.check_maker(*made_by, embedder.processor_settings, embedder.dtype)
        skipped_database: list[tuple[str, str]] = []
        metric, search = database.metric, _searching_index(database)
    else:
        descriptors, rows = embed(database, "database", embedder.processor)
        skipped_database = _skipped_in_any([descriptors], database)
        metric = metric_of(descriptors.vectors)
        search = _searching_vectors(_checked_vectors(descriptors, metric), rows, metric)
    if protocol.whole_database and isinstance(database, PhotoFolder) and views == [embedder.processor]:
        found = [_taken_from(descriptors, rows, protocol)]
    else:
        found = [embed(queries, "query", view) for view in views]
    query_rows, vectors = _common_rows(found, metric)

    depth = answers_ranked(protocol, ks)
    ranking = np.full((len(queries.paths), depth), -1, np.int64)
    scores = np.full(ranking.shape, np.nan, np.float32)
    scores[query_rows], ranking[query_rows] = rank_views(query_method, vectors, depth, metric, search)
    first = found[0][0]
    return scored(
        protocol,
        scores,
        ranking,
        model=(first.model_name, first.weight_hash),
        skipped={"database": skipped_database, "queries": _skipped_in_any([each for each, _ in found], queries)},
        settings={
            "k": ks,
            "query_method": query_method,
            "metric": metric,
            "batch_size": embedder.batch_size,
            "batch_rule": batch_rule(mixes, embedder.batch_size),
            "dtype": embedder.dtype,
            "device": str(_device(embedder)),
            "dim": first.vectors.shape[1],
            "image_size": _image_size(embedder.processor),
        },
    )


def scored(
    protocol: Protocol,
    scores: np.ndarray,
    ranking: np.ndarray,
    *,
    model: tuple[str, str],
    settings: dict[str, Any],
    skipped: dict[str, list[tuple[str, str]]] | None = None,
) -> Evaluation:
    """The evaluation that a ranking makes.

    Args:
        protocol: what was ranked.
        scores, ranking: (queries, answers), of `answers_ranked` answers, the query's own photo among them.
        model: its name and the hash of its weights.
        settings: as `Evaluation` has them; "k" are the cut-offs.
        skipped: as `Evaluation` has it; None for none.
    """
    if protocol.own_rows is not None:
        scores, ranking = _without_own(scores, ranking, protocol.own_rows)
    recall = None
    if protocol.positives is not None:
        answers = ranking.shape[1]
        share = recall_at_k(ranking, protocol.positives, [min(k, answers) for k in settings["k"]], protocol.denominator)
        recall = {k: share[min(k, answers)] for k in settings["k"]}
    return Evaluation(
        protocol=protocol,
        recall=recall,
        ranking=ranking,
        scores=scores,
        database_names=database_names(protocol.database),
        skipped=skipped or {"database": [], "queries": []},
        model_name=model[0],
        weight_hash=model[1],
        settings=settings,
        versions={"d2vpr_hf": __version__, "python": platform.python_version()}
        | {package: version(package) for package in _PACKAGES},
        command=list(sys.argv),
    )


def answers_ranked(protocol: Protocol, ks: Sequence[int]) -> int:
    """How many answers of each query are ranked: the largest k and the query's own photos, or the whole database."""
    whole = len(database_names(protocol.database))
    own = max((len(rows) for rows in protocol.own_rows or ()), default=0)
    return whole if protocol.whole_database else min(max(ks) + own, whole)


def checked_ks(ks: Sequence[int]) -> list[int]:
    """The cut-offs, rising, each once.

    Raises: ValueError if there are none, or one isn't an integer of at least 1.
    """
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"ks holds {k!r}, but a cut-off must be an integer of at least 1.")
    if not len(ks):
        raise ValueError("ks is empty. Give at least one cut-off, such as 1.")
    return sorted({int(k) for k in ks})


def _without_own(
    scores: np.ndarray, ranking: np.ndarray, own_rows: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ranking (queries, answers) without the rows of each query itself; what follows them moves up."""
    own = np.zeros(ranking.shape, bool)
    for query, rows in enumerate(own_rows):
        if len(rows):
            own[query] = np.isin(ranking[query], rows)
    scores, ranking = np.where(own, np.nan, scores), np.where(own, -1, ranking)
    order = np.argsort(own, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ranking, order, axis=1)


def _embedded(
    photos: PhotoFolder | DatasetPhotos, kind: str, embedder: Embedder, cache: str | Path | None, progress: bool
) -> tuple[Descriptors, np.ndarray]:
    """The descriptors, made or read from the cache, and which row of the photos each belongs to."""
    folder = None if cache is None else _cache_folder(Path(cache), photos.paths, embedder)
    descriptors = embedder.embed(_images(photos), folder=folder, progress=progress)
    if not descriptors.paths:
        path, reason = descriptors.skipped[0]
        raise ValueError(
            f"None of the {len(photos.paths)} {kind} photos in {photos.root} can be read ({path}: {reason}). "
            "Give a folder with at least one photo that opens."
        )
    if isinstance(photos, DatasetPhotos):
        return descriptors, np.array(descriptors.paths, np.int64)  # images that aren't files go by their row
    row_of = {path_to_text(path): row for row, path in enumerate(photos.paths)}
    return descriptors, np.array([row_of[path] for path in descriptors.paths], np.int64)


def _cache_folder(cache: Path, paths: Sequence[Path], embedder: Embedder) -> Path:
    """The folder of the descriptors of these photos; its name says what the rows depend on."""
    settings = _short_hash(json.dumps(embedder.processor_settings, sort_keys=True, default=str))
    photos = _short_hash("\n".join(path_to_text(path.absolute()) for path in paths))
    return cache / f"{embedder.weight_hash[:_NAME_DIGITS]}-{settings}-{embedder.dtype}" / photos


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]


def _with_processor(embedder: Embedder, processor: Any) -> Embedder:
    """The same embedder with another processor."""
    other = copy.copy(embedder)
    other.processor = processor
    return other


def _taken_from(database: Descriptors, rows: np.ndarray, protocol: Protocol) -> tuple[Descriptors, np.ndarray]:
    """The queries' descriptors from those of the database that holds them, and which query each belongs to."""
    place = np.full(len(protocol.database.paths), -1)
    place[rows] = np.arange(len(rows))
    own = np.array([each[0] for each in protocol.own_rows], np.int64)
    found = place[own]
    known = np.flatnonzero(found >= 0)
    lost = {path_to_text(protocol.database.paths[row]) for row in own[found < 0].tolist()}
    skipped = [(path, reason) for path, reason in database.skipped if path in lost]
    vectors, paths = database.vectors[found[known]], [database.paths[row] for row in found[known].tolist()]
    return Descriptors(vectors, paths, skipped, database.model_name, database.weight_hash), known


def _images(photos: PhotoFolder | DatasetPhotos) -> "list[Path] | Dataset":
    return photos.images if isinstance(photos, DatasetPhotos) else photos.paths


def _searching_index(index: PlaceIndex) -> Search:
    ids = index.places["id"].to_numpy()

    def search(vectors: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        matches = index.search(vectors, depth)
        rows = np.minimum(np.searchsorted(ids, matches.ids), len(ids) - 1)
        return matches.scores, np.where(matches.ids < 0, -1, rows)

    return search


def _searching_vectors(vectors: np.ndarray, rows: np.ndarray, metric: Metric) -> Search:
    """Ranks vectors that may lie on the disk; `rows` says which database photo each belongs to."""

    def search(queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        scores, found = nearest_rows(queries, vectors, depth, metric)
        return scores, np.where(found < 0, -1, rows[found])

    return search


def _common_rows(found: list[tuple[Descriptors, np.ndarray]], metric: Metric) -> tuple[np.ndarray, list[np.ndarray]]:
    """The queries that have a descriptor in every view, and these descriptors, view by view."""
    common = found[0][1]
    for _, rows in found[1:]:
        common = np.intersect1d(common, rows)
    vectors = []
    for descriptors, rows in found:
        checked = _checked_vectors(descriptors, metric)
        vectors.append(checked if len(rows) == len(common) else checked[np.isin(rows, common)])
    return common, vectors


def _skipped_in_any(descriptors: list[Descriptors], photos: PhotoFolder | DatasetPhotos) -> list[tuple[str, str]]:
    """Each photo that has no descriptor in some view, once."""
    reasons = {path: reason for each in reversed(descriptors) for path, reason in each.skipped}
    if isinstance(photos, DatasetPhotos):
        return [(photos.names[int(row)], reason) for row, reason in reasons.items()]
    return list(reasons.items())


def _check_pca(model: torch.nn.Module, protocol: Protocol) -> None:
    """Refuse a model whose PCA was fitted on photos of the protocol, as far as these are files."""
    database, queries = protocol.database, protocol.queries
    check_pca_source(model, [*(database.places["path"] if isinstance(database, PlaceIndex) else database.paths)])
    check_pca_source(model, queries.paths)
    inside = any(isinstance(photos, DatasetPhotos) for photos in (database, queries))
    if inside and getattr(getattr(model, "config", None), "pca_source", None) is not None:
        logger.warning(
            "The photos of %s lie inside of a dataset, so that they weren't compared with those that the model's PCA "
            "was fitted on: make sure yourself that none is among them.",
            protocol.name,
        )


def _checked_vectors(descriptors: Descriptors, metric: Metric) -> np.ndarray:
    if len(rows := rows_without_meaning(descriptors.vectors, metric)):
        length = np.linalg.norm(descriptors.vectors[rows[0]].astype(np.float64))
        raise ValueError(
            f"{len(rows)} descriptors of {descriptors.model_name} mean nothing, such as that of "
            f"{descriptors.paths[rows[0]]}, whose length is {length:.4g}; by {metric} all must be finite"
            f"{' and of length 1' if metric == 'inner_product' else ' and not 0 throughout'}. Check the model's "
            "weights, or evaluate with dtype='float32'."
        )
    return descriptors.vectors


def _check_cache(cache: str | Path | None, mixes: bool, protocol: Protocol) -> None:
    if cache is not None and mixes:
        raise ValueError(
            f"cache is {cache}, but the model mixes the images of a batch, so that a descriptor belongs to its batch "
            "and can't be kept for another. Leave cache out, or load the model with cross_image_encoder=False."
        )
    if cache is not None and any(isinstance(each, DatasetPhotos) for each in (protocol.queries, protocol.database)):
        raise ValueError(
            f"cache is {cache}, but the photos of {protocol.name} lie inside of a dataset, and descriptors are kept by "
            "file. Leave cache out, or evaluate the protocol's own folder."
        )


def _device(embedder: Embedder) -> torch.device:
    """Where the descriptors are computed."""
    if embedder.device is not None:
        return torch.device(embedder.device)
    return default_device(next((each.device for each in embedder.model.parameters()), torch.device("cpu")))


def _image_size(processor: Any) -> dict[str, int] | None:
    """Height and width that the processor makes; None where it doesn't say."""
    size = getattr(processor, "size", None)
    return None if size is None else {name: int(value) for name, value in dict(size).items() if value is not None}
