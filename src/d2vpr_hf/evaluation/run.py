"""Runs an evaluation: embeds the photos of a protocol, ranks its database for each query, and scores the ranking."""

import logging
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..files import path_to_text
from ..photos.dataset import DatasetPhotos
from ..photos.folder import PhotoFolder
from ..retrieval.embedder import Descriptors, default_device, descriptor_dim, embed_images, weight_hash
from ..retrieval.index import PlaceIndex
from ..retrieval.nearest import nearest_rows
from ..retrieval.pca import check_pca_source
from ..retrieval.similarity import Metric, metric_of, rows_without_meaning
from ..version import __version__
from .batch_rule import batch_rule, mixes_images
from .descriptor_cache import cache_folder
from .protocol import Protocol, benchmark_protocol, database_names, dataset_protocol, folder_protocol, with_distractors
from .query_methods import QueryMethod, Search, query_views, rank_views
from .recall import recall_at_k
from .results import RESULTS_FILE, Evaluation

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = [
    "DEFAULT_KS",
    "RESULTS_FILE",
    "Evaluation",
    "Protocol",
    "benchmark_protocol",
    "dataset_protocol",
    "evaluate_protocol",
    "folder_protocol",
    "with_distractors",
]

logger = logging.getLogger(__name__)

# What the field's tables show (1, 5, 10), and the further cut-offs of its and the original's logs.
DEFAULT_KS = (1, 5, 10, 20, 100)

_PACKAGES = ("torch", "transformers", "faiss-cpu", "numpy", "pillow")


def evaluate_protocol(
    protocol: Protocol,
    *,
    model: torch.nn.Module,
    processor: Any,
    ks: Sequence[int] = DEFAULT_KS,
    query_method: QueryMethod = "hard_resize",
    cache: str | Path | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    workers: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Embeds the photos of a protocol, ranks the database for each query, and scores the ranking.

    A query that is a database photo too is never an answer to itself.

    Args:
        protocol: from `folder_protocol`, `benchmark_protocol` or `dataset_protocol`. An index as its database must
            come from the same weights.
        model: gives descriptors as `pooler_output`. Where they aren't of length 1 they are ranked by distance.
        processor: the model's image processor.
        ks: cut-offs of recall@k; the largest is the number of answers kept, or the whole database where the protocol
            has mean average precision. A k above the size of the database takes all of it.
        query_method: how a query becomes descriptors (see `query_methods`); the database is always squashed.
        cache: folder in which descriptors are kept from run to run and read instead of being made again (see
            `descriptor_cache`); by default none. With it the vectors stay on the disk, so that a database larger than
            memory can be ranked. A model that mixes a batch's images can't use one, nor can photos inside of a dataset.
        batch_size: photos at a time. The result doesn't depend on it, unless the model mixes a batch's images.
        device: where to embed; by default where the model is, or the first GPU for a model on the CPU.
        dtype: arithmetic under autocast; descriptors are float32 in any case.
        workers: threads that decode; by default one for each core.
        progress: show a bar.

    Raises: ValueError if a k isn't a whole number from 1, if the index comes from other weights, if no photo of a
        folder can be read, if a descriptor means nothing, if a cache is given to a model that mixes images, or if the
            model's PCA was fitted on photos of the protocol.
    """
    ks = sorted({_checked_k(k) for k in ks})
    if not ks:
        raise ValueError("ks is empty. Give at least one cut-off, such as 1.")
    views = query_views(query_method, processor, model)
    _check_pca(model, protocol)
    database, queries = protocol.database, protocol.queries
    # Named here, because the results say where the descriptors were computed.
    device = default_device(_device_of(model)) if device is None else torch.device(device)
    options = {"batch_size": batch_size, "device": device, "dtype": dtype, "workers": workers, "progress": progress}
    mixes = mixes_images(model, processor, _images(queries), device)
    embed = _Embedding(model, options, _checked_cache(cache, mixes, protocol))

    if isinstance(database, PlaceIndex):
        # Before the queries are embedded, which may take an hour.
        _check_same_weights(database, model)
        skipped_database: list[tuple[str, str]] = []
        metric, search = database.metric, _searching_index(database)
    else:
        descriptors, rows = embed(database, "database", processor)
        skipped_database = _skipped_in_any([descriptors], database)
        metric = metric_of(descriptors.vectors)
        search = _searching_vectors(_checked_vectors(descriptors, metric), rows, metric)
    if protocol.own_rows is not None and isinstance(database, PhotoFolder) and views == [processor]:
        found = [_taken_from(descriptors, rows, protocol)]
    else:
        found = [embed(queries, "query", view) for view in views]
    query_rows, vectors = _common_rows(found, metric)

    depth = answers_ranked(protocol, ks)
    ranking = np.full((len(queries.paths), depth), -1, np.int64)
    scores = np.full(ranking.shape, np.nan, np.float32)
    scores[query_rows], ranking[query_rows] = rank_views(query_method, vectors, depth, metric, search)
    if protocol.own_rows is not None:
        scores, ranking = without_own(scores, ranking, protocol.own_rows)
    first = found[0][0]
    return Evaluation(
        protocol=protocol,
        recall=None
        if protocol.positives is None
        else recall_at_k(ranking, protocol.positives, ks, protocol.denominator),
        ranking=ranking,
        scores=scores,
        database_names=database_names(database),
        skipped={"database": skipped_database, "queries": _skipped_in_any([each for each, _ in found], queries)},
        model_name=first.model_name,
        weight_hash=first.weight_hash,
        settings={
            "k": ks,
            "query_method": query_method,
            "metric": metric,
            "batch_size": batch_size,
            "batch_rule": batch_rule(mixes, batch_size),
            "dtype": dtype,
            "device": str(device),
            "dim": first.vectors.shape[1],
            "image_size": _image_size(processor),
        },
        versions=package_versions(),
        command=list(sys.argv),
    )


def answers_ranked(protocol: Protocol, ks: Sequence[int]) -> int:
    """How many answers of each query are ranked: the largest k, or the whole database for average precision."""
    if protocol.own_rows is None:
        return max(ks)
    return max(max(ks) + 1, len(database_names(protocol.database)))


def without_own(scores: np.ndarray, ranking: np.ndarray, own_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ranking (queries, answers) without the row of each query itself; what follows it moves up."""
    own = ranking == own_rows[:, None]
    scores, ranking = np.where(own, np.nan, scores), np.where(own, -1, ranking)
    order = np.argsort(own, axis=1, kind="stable")
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ranking, order, axis=1)


def package_versions() -> dict[str, str]:
    """Of this package, of Python, and of what a result depends on."""
    ours = {"d2vpr_hf": __version__, "python": platform.python_version()}
    return ours | {package: version(package) for package in _PACKAGES}


class _Embedding:
    """Embeds a folder's photos, or reads from the cache what it has of them."""

    def __init__(self, model: torch.nn.Module, options: dict[str, Any], cache: Path | None) -> None:
        self.model = model
        self.options = options
        self.cache = cache
        self.weight_hash = None if cache is None else weight_hash(model)

    def __call__(
        self, photos: PhotoFolder | DatasetPhotos, kind: str, processor: Callable[..., Any]
    ) -> tuple[Descriptors, np.ndarray]:
        """The descriptors, and which row of the photos each belongs to."""
        folder = None
        if self.cache is not None:
            made_by = {"weight_hash": self.weight_hash, "processor": processor, "dtype": self.options["dtype"]}
            folder = cache_folder(self.cache, photos.paths, **made_by)
        images = _images(photos)
        descriptors = embed_images(images, model=self.model, processor=processor, folder=folder, **self.options)
        if not descriptors.paths:
            path, reason = descriptors.skipped[0]
            raise ValueError(
                f"None of the {len(photos.paths)} {kind} photos in {photos.root} can be read ({path}: {reason}). "
                "Give a folder with at least one photo that opens."
            )
        if isinstance(photos, DatasetPhotos):
            return descriptors, np.array(descriptors.paths, np.int64)  # images that are no files go by their row
        row_of = {path_to_text(path): row for row, path in enumerate(photos.paths)}
        return descriptors, np.array([row_of[path] for path in descriptors.paths], np.int64)


def _taken_from(database: Descriptors, rows: np.ndarray, protocol: Protocol) -> tuple[Descriptors, np.ndarray]:
    """The queries' descriptors from those of the database that holds them, and which query each belongs to."""
    place = np.full(len(protocol.database.paths), -1)
    place[rows] = np.arange(len(rows))
    found = place[protocol.own_rows]
    known = np.flatnonzero(found >= 0)
    lost = {path_to_text(protocol.database.paths[row]) for row in protocol.own_rows[found < 0].tolist()}
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


def _checked_cache(cache: str | Path | None, mixes: bool, protocol: Protocol) -> Path | None:
    if cache is None:
        return None
    if mixes:
        raise ValueError(
            f"cache is {cache}, but the model mixes the images of a batch, so that a descriptor belongs to its batch "
            "and can't be kept for another. Leave cache out, or load the model with cross_image_encoder=False."
        )
    if isinstance(protocol.queries, DatasetPhotos) or isinstance(protocol.database, DatasetPhotos):
        raise ValueError(
            f"cache is {cache}, but the photos of {protocol.name} lie inside of a dataset, and descriptors are kept by "
            "file. Leave cache out, or evaluate the benchmark's own folder."
        )
    return Path(cache)


def _device_of(model: torch.nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _check_same_weights(index: PlaceIndex, model: torch.nn.Module) -> None:
    if (found := weight_hash(model)) != index.weight_hash:
        if (dim := descriptor_dim(model)) not in (0, index.dim):
            raise ValueError(
                f"The index holds descriptors of {index.model_name} of {index.dim} numbers, but the model gives {dim}, "
                f"and the two can't be compared. Open the model at descriptor_dim={index.dim} (--dim) if it has a "
                "nested head, or build a new index with `d2vpr index`."
            )
        raise ValueError(
            f"The index holds descriptors of {index.model_name} (weights {index.weight_hash[:8]}), but the model has "
            f"the weights {found[:8]}, and the two can't be compared. Evaluate with {index.model_name}, or build a new "
            "index with `d2vpr index`."
        )


def _checked_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"ks holds {k!r}, but cut-offs are whole numbers from 1.")
    return int(k)


def _image_size(processor: Any) -> dict[str, int] | None:
    """Height and width that the processor makes; None where it doesn't say."""
    size = getattr(processor, "size", None)
    return None if size is None else {name: int(value) for name, value in dict(size).items() if value is not None}
