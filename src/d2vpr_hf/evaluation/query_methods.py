"""The six ways in which the field turns a query into descriptors and ranks the database for it, and what a batch does.

    hard_resize    squashes the query as the database is squashed (the default, and the only way for the database)
    single_query   keeps its shape: the shorter side gets the model's size
    central_crop   scales it to cover the model's size and keeps the middle
    five_crops     the mean of the descriptors of five square crops, as large as the shorter side: four corners, middle
    nearest_crop   ranks for each of these crops and keeps each database photo's best
    maj_voting     the same, after photos on which several crops agree were moved forward

Source: deep visual geo-localization benchmark (Berton et al., CVPR 2022).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from ..retrieval.embedder import Embedder
from ..retrieval.similarity import Metric, distance_scores

if TYPE_CHECKING:
    from datasets import Dataset

QueryMethod = Literal["hard_resize", "single_query", "central_crop", "five_crops", "nearest_crop", "maj_voting"]
QUERY_METHODS: tuple[QueryMethod, ...] = get_args(QueryMethod)

_CROPS = 5
_CROP_METHODS = ("five_crops", "nearest_crop", "maj_voting")
# What agreement of crops takes off a squared distance, and among how many of each crop's first answers it is counted.
_VOTE_WEIGHT = 0.01
_VOTING_RANKS = (1, 5, 10)
_TRIED_PHOTOS = 4
# Rounding takes a millionth off a cosine, a cross-image encoder a thousandth and more.
_LEAST_COSINE = 0.9999

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


class QueryView:
    """An image processor that shows the model one view of a query: the whole in another shape, or a crop.

    Args:
        processor: the model's own, which normalises the view.
        method: any but "hard_resize", which is the processor itself.
        view: which of the five crops; 0 where the method has one view.
        patch_size: pixels; `single_query` makes the longer side a multiple of it, because a model of patches takes no
            other. The models of the field's own benchmark take any, and there it isn't rounded.
    """

    def __init__(self, processor: Callable[..., Any], method: QueryMethod, view: int, patch_size: int) -> None:
        self.processor = processor
        self.method = method
        self.view = view
        self.patch_size = patch_size
        self.height, self.width = input_size(processor)
        self.resample = Image.Resampling(getattr(processor, "resample", Image.Resampling.BILINEAR))

    def __call__(self, image: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        # The view has its final size, so that the processor's own steps of that kind are off.
        steps = {"do_resize": False}
        if hasattr(self.processor, "do_center_crop"):
            steps["do_center_crop"] = False
        return self.processor(self.cut(image), return_tensors=return_tensors, **steps)

    def cut(self, image: Image.Image) -> Image.Image:
        """The view of an upright RGB image, in the size that the model gets."""
        if self.method == "single_query":
            return self._whole(image)
        if self.method == "central_crop":
            return self._middle(image)
        side = min(self.height, self.width)
        scaled = image.resize(_with_shorter_side(image.size, side), self.resample)
        right, bottom = scaled.width - side, scaled.height - side
        corners = [(0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))]
        left, top = corners[self.view]
        return scaled.crop((left, top, left + side, top + side))

    def _whole(self, image: Image.Image) -> Image.Image:
        side = min(self.height, self.width)
        size = _with_shorter_side(image.size, side)
        size = tuple(max(1, round(length / self.patch_size)) * self.patch_size for length in size)
        return image.resize(size, self.resample)

    def _middle(self, image: Image.Image) -> Image.Image:
        scale = max(self.height / image.height, self.width / image.width)
        # Original: scales by picking the nearest pixel, without any filter, in this method alone.
        rows, columns = (_nearest_pixels(length, scale) for length in (image.height, image.width))
        top = max(0, round((len(rows) - self.height) / 2))
        left = max(0, round((len(columns) - self.width) / 2))
        pixels = np.asarray(image)[rows[top : top + self.height]][:, columns[left : left + self.width]]
        return Image.fromarray(pixels)

    def to_dict(self) -> dict[str, Any]:
        """The settings of the processor and of the view, by which descriptors kept on disk are told apart."""
        settings = self.processor.to_dict() if hasattr(self.processor, "to_dict") else {}
        return settings | {"query_method": self.method, "query_view": self.view, "patch_size": self.patch_size}


def query_views(method: QueryMethod, processor: Callable[..., Any], model: torch.nn.Module) -> list[Callable[..., Any]]:
    """The processors by which a query is embedded, one for each of its views.

    Raises: ValueError for an unknown method, or if the processor doesn't say what size it makes.
    """
    if method not in QUERY_METHODS:
        raise ValueError(f"query_method is {method!r}, but must be one of {', '.join(QUERY_METHODS)}.")
    if method == "hard_resize":
        return [processor]
    views = _CROPS if method in _CROP_METHODS else 1
    # The three methods of crops see the same views: one name for them lets a cache serve all three.
    known_as = "five_crops" if method in _CROP_METHODS else method
    return [QueryView(processor, known_as, view, _patch_size(model)) for view in range(views)]


def rank_views(
    method: QueryMethod, views: list[np.ndarray], k: int, metric: Metric, search: Search
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (queries, k) and database rows (queries, k) of the best answers, best first.

    Every constant follows k: each view is searched deep enough that the first k answers are what they would be if it
    were searched to the end.

    Args:
        method: how the views count.
        views: for each view, the descriptors (queries, dim) of all queries.
        k: answers a query.
        metric: of the search.
        search: gives scores and database rows (queries, depth), best first, for descriptors and a depth; nan and -1
            where the database has fewer.

    Returns: nan and -1 where the database has fewer than k.
    """
    if method not in _CROP_METHODS:
        return search(views[0], k)
    if method == "five_crops":
        mean = np.mean(views, axis=0)
        if metric == "inner_product":
            # The ranking is the same; the score becomes that of a descriptor like all others.
            mean = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return search(mean, k)
    voting = method == "maj_voting"
    depth = max(k, _VOTING_RANKS[-1]) if voting else k
    found = [search(view, depth) for view in views]
    scores, rows = (np.stack(each, axis=1) for each in zip(*found, strict=True))  # (queries, views, depth)
    squares = 2 - 2 * scores if metric == "inner_product" else scores**2
    if voting:
        squares = squares - _votes(rows)
    squares, rows = _best_once(squares.reshape(len(rows), -1), rows.reshape(len(rows), -1), k)
    scores = 1 - squares / 2 if metric == "inner_product" else distance_scores(squares)
    return np.where(rows < 0, np.nan, scores).astype(np.float32), rows


def input_size(processor: Callable[..., Any]) -> tuple[int, int]:
    """(height, width) in pixels that a processor makes.

    Raises: ValueError if it doesn't say.
    """
    for name in ("crop_size", "size") if getattr(processor, "do_center_crop", False) else ("size",):
        size = dict(getattr(processor, name, None) or {})
        if size.get("height") and size.get("width"):
            return int(size["height"]), int(size["width"])
    raise ValueError(
        f"{type(processor).__name__} doesn't say what height and width it makes (its size is "
        f"{getattr(processor, 'size', None)}), which crops need. Use query_method='hard_resize', or a processor whose "
        "size has height and width."
    )


def mixes_images(embedder: Embedder, photos: "list[Path] | Dataset") -> bool:
    """Whether a descriptor depends on the other photos of its batch, which makes a result another one in other company.

    The model's config says so (`cross_image_encoder`); of a model without that, the first photos are embedded alone and
    together.
    """
    declared = getattr(getattr(embedder.model, "config", None), "cross_image_encoder", None)
    if declared is not None:
        return bool(declared)
    few = photos[:_TRIED_PHOTOS] if isinstance(photos, list) else photos.select(range(min(_TRIED_PHOTOS, len(photos))))
    settings = {"device": embedder.device, "workers": 1}
    alone, together = (
        Embedder(embedder.model, embedder.processor, batch_size=size, **settings).embed(few, progress=False).vectors
        for size in (1, _TRIED_PHOTOS)
    )
    lengths = np.linalg.norm(alone, axis=1) * np.linalg.norm(together, axis=1)
    return bool(((alone * together).sum(axis=1) < _LEAST_COSINE * lengths).any())


def batch_rule(mixes: bool, batch_size: int) -> str:
    """In words, what the descriptors owe to the batches."""
    if not mixes:
        return "each photo by itself: the batch size changes nothing"
    return (
        f"the model mixes the photos of a batch, here {batch_size} in the order of their names. Alone, or in another "
        "order, they get other descriptors and another recall"
    )


def _votes(rows: np.ndarray) -> np.ndarray:
    """(queries, views, depth) what agreement takes off the squared distance of each answer."""
    votes = np.zeros(rows.shape)
    for ranks in _VOTING_RANKS:
        first = rows[:, :, :ranks]
        flat = first.reshape(len(rows), -1)
        count = (flat[:, :, None] == flat[:, None]).sum(axis=2).reshape(first.shape)
        votes[:, :, :ranks] += np.where(count > 1, _VOTE_WEIGHT * count / ranks, 0)
    return votes


def _best_once(squares: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest answers (queries, k) of (queries, any), each database row once, with its least distance."""
    squares = np.where(rows < 0, np.inf, squares)
    order = np.argsort(squares, axis=1, kind="stable")
    squares, rows = np.take_along_axis(squares, order, axis=1), np.take_along_axis(rows, order, axis=1)
    # Sorted by row, stably, the first of equal ones is the nearest.
    by_row = np.argsort(rows, axis=1, kind="stable")
    sorted_rows = np.take_along_axis(rows, by_row, axis=1)
    repeated = np.zeros(rows.shape, bool)
    np.put_along_axis(repeated, by_row[:, 1:], sorted_rows[:, 1:] == sorted_rows[:, :-1], axis=1)
    kept = np.argsort(repeated | (rows < 0), axis=1, kind="stable")[:, :k]
    gone = np.take_along_axis(repeated | (rows < 0), kept, axis=1)
    squares = np.where(gone, np.inf, np.take_along_axis(squares, kept, axis=1))
    return squares, np.where(gone, -1, np.take_along_axis(rows, kept, axis=1))


def _with_shorter_side(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) scaled so that the shorter one is `side`; the other is cut to a whole pixel."""
    width, height = size
    return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)


def _nearest_pixels(length: int, scale: float) -> np.ndarray:
    """The source pixel of each pixel along an axis of `length` that is scaled."""
    scaled = int(length * scale + 1e-6)  # an exact fit may come out a hair short of an integer
    return np.minimum((np.arange(scaled) / scale).astype(np.int64), length - 1)


def _patch_size(model: torch.nn.Module) -> int:
    """Pixels of a patch's side; 1 where the model isn't made of patches, or doesn't say."""
    config = getattr(model, "config", None)
    size = getattr(getattr(config, "backbone_config", None), "patch_size", None) or getattr(config, "patch_size", None)
    return size if isinstance(size, int) else 1
