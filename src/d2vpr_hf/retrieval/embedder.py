"""Turns photos into descriptors: decodes them ahead of the model and keeps rows and names together."""

import hashlib
import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..cores import available_cores
from ..files import path_to_text
from ..models.checkpoint import open_checkpoint
from ..models.d2vpr.image_processing_d2vpr import to_rgb
from ..photos.dataset import ImageRows
from ..photos.folder import list_images
from ..photos.images import UnreadableImage, open_image
from .descriptors import DescriptorFolder, Descriptors, RowKeys, file_states
from .shards import check_shard, claim_part

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
# Models that are running, each with its lock: one run changes the mode and device that another has set.
_LOCKS: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()
_NEW_LOCK = threading.Lock()
# Batches that are decoded while a device of its own computes.
_BATCHES_AHEAD = 3


@dataclass
class _Images:
    """Images by row number: what each is called, how to get its pixels, and which file it is, if any."""

    names: list[str]
    load: Callable[[int], Image.Image]
    keys: RowKeys | None = field(default=None)


class Embedder:
    """Turns photos into descriptors: a model, its processor, and how it runs.

        embedder = d2vpr_hf.Embedder.from_pretrained("d2vpr")
        descriptors = embedder.embed("photos/")

    Args:
        model: gives descriptors as `pooler_output`. After `embed` its training mode and device are as before.
        processor: the model's image processor, called for each image by itself.
        batch_size: images at a time. The result doesn't depend on it, unless the model mixes a batch's images.
        device: where the model runs; by default where it is, or the first GPU for a model on the CPU.
        dtype: arithmetic under autocast; weights stay as they are, and descriptors are float32 in any case.
        workers: threads that decode; by default one for each core, 16 at most.
        name: what results and indexes call the model; by default its `name_or_path`, or its class.

    Raises: ValueError for unknown settings.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: Callable[..., Any],
        *,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        workers: int | None = None,
        name: str | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}, but must be one of {', '.join(DTYPES)}.")
        if batch_size < 1 or (workers is not None and workers < 1):
            raise ValueError(f"batch_size is {batch_size} and workers {workers}; both must be 1 or more.")
        self.model, inner = model, _unwrapped(model)
        self.processor = processor
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.workers = workers
        self.name = name or getattr(inner, "name_or_path", "") or type(inner).__name__
        self._hashed: tuple[Any, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        dim: int | None = None,
        usual_dim: int | None = None,
        trust_remote_code: bool = False,
        **settings: Any,
    ) -> Self:
        """The embedder of a checkpoint.

        Args:
            name_or_path, dim, usual_dim, trust_remote_code: as in `open_checkpoint`.
            settings: how it runs: batch_size, device, dtype, workers.

        Raises: ValueError or OSError if there is no such checkpoint or it can't be opened.
        """
        model, processor = open_checkpoint(name_or_path, dim, usual_dim=usual_dim, trust_remote_code=trust_remote_code)
        return cls(model, processor, **{"name": str(name_or_path), **settings})

    @property
    def weight_hash(self) -> str:
        """SHA-256 of the model's weights (see `weight_hash`).

        It is kept until a weight is replaced or changed by an operation of PyTorch; `embed` reads the weights anew.
        """
        state = self._weights_state()
        if self._hashed is None or self._hashed[0] != state:
            self._hashed = state, weight_hash(self.model)
        return self._hashed[1]

    @property
    def descriptor_dim(self) -> int:
        """Numbers in a descriptor as the model's configuration has them; 0 where that says nothing."""
        return descriptor_dim(self.model)

    @property
    def processor_settings(self) -> dict[str, Any]:
        """What the processor does to an image, as it is compared and written to files."""
        return processor_settings(self.processor)

    def embed(
        self,
        images: "str | Path | Image.Image | np.ndarray | Sequence[str | Path | Image.Image | np.ndarray] | Dataset",
        *,
        folder: str | Path | None = None,
        shard: tuple[int, int] | None = None,
        strict: bool = False,
        progress: bool = True,
    ) -> Descriptors:
        """The descriptors of photos, one row for each that can be used.

        Args:
            images: a folder (with its subfolders), a path, a PIL image, an array (height, width, 3) uint8, a
                sequence of these, or a `datasets.Dataset` with an image column.
            folder: write the rows here as they come, and map them from there in the end. Run again, only photos
                that are new or changed since are embedded. Takes files only.
            shard: embed one part of the list alone, (3, 16) for the third of sixteen, into a part folder of `folder`;
                `Descriptors.load` joins them when all are there.
            strict: raise on the first image that can't be used instead of skipping it.
            progress: show a bar on stderr.

        Raises: UnreadableImage (strict only) naming the file; TypeError for inputs of other kinds; ValueError for a
            `folder` of other weights, processor or dtype; RuntimeError if another run is writing to it.
        """
        if shard is not None:
            check_shard(shard)
            if folder is None:
                raise ValueError("shard was given without the folder that takes the parts.")
        source = _as_images(images)
        if folder is not None and source.keys is None:
            raise ValueError(
                "folder was given with images that aren't files, so a second run couldn't tell which it holds already. "
                "Give paths, or leave folder out."
            )
        self._hashed = None
        run = _Run(source, self, strict, progress)
        result = _embed_to_memory(run) if folder is None else _embed_to_folder(run, Path(folder), shard)
        if result.skipped:
            path, reason = result.skipped[0]
            count, total = len(result.skipped), len(result) + len(result.skipped)
            logger.warning("%d of %d images skipped, such as %s: %s.", count, total, path, reason)
        return result

    def _weights_state(self) -> list[Any]:
        tensors = self.model.state_dict().values()
        state = [(tensor.data_ptr(), tensor._version, tensor.numel()) for tensor in tensors]
        return [id(self.model), self.descriptor_dim, *_adapters(self.model), *state]


def embed_images(
    images: "str | Path | Image.Image | np.ndarray | Sequence[str | Path | Image.Image | np.ndarray] | Dataset",
    *,
    model: torch.nn.Module,
    processor: Callable[..., Any],
    strict: bool = False,
    folder: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Descriptors:
    """The descriptors of photos, one row for each that can be used: `Embedder.embed` in one call.

    Args:
        images, strict, folder, progress: as in `Embedder.embed`.
        model, processor: as in `Embedder`.
        settings: how the model runs: batch_size, device, dtype, workers.
    """
    return Embedder(model, processor, **settings).embed(images, strict=strict, folder=folder, progress=progress)


def weight_hash(model: torch.nn.Module) -> str:
    """SHA-256, in hex, over the name, type, shape and bytes of each tensor of the state dict, sorted by name.

    Of a nested head that gives fewer numbers than it has, how many goes in too: its descriptors aren't those of the
    same weights at full length, and whatever tells models apart by this hash keeps them apart.
    """
    model, digest = _unwrapped(model), hashlib.sha256()
    # A part that was compiled has the same weights under a longer name.
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    head_dim = getattr(getattr(model, "config", None), "head_dim", None)
    if head_dim is not None and (dim := descriptor_dim(model)) < head_dim:
        digest.update(f"descriptor_dim {dim}\n".encode())
    for line in _adapters(model):
        digest.update(line.encode())
    return digest.hexdigest()


def descriptor_dim(model: torch.nn.Module) -> int:
    """The model's descriptor length as its config has it; 0 where that says nothing, until a row shows it."""
    return getattr(getattr(_unwrapped(model), "config", None), "descriptor_dim", 0)


def _adapters(model: torch.nn.Module) -> list[str]:
    """Which of peft's adapters count, and how much: all their weights are in the state dict, this isn't."""
    return [
        f"{name} {[] if module.disable_adapters else list(module.active_adapters)} {getattr(module, 'scaling', None)}\n"
        for name, module in getattr(model, "named_modules", list)()
        if isinstance(getattr(module, "disable_adapters", None), bool)
    ]


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside of what `torch.compile` and the classes that spread it over devices put around it."""
    while (inner := getattr(model, "_orig_mod", None)) is not None or isinstance(model, _WRAPPERS):
        model = model.module if inner is None else inner
    return model


@dataclass
class _Run:
    """One walk over images: decodes ahead, batches in order, and hands out rows."""

    source: _Images
    embedder: Embedder
    strict: bool
    progress: bool
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def batches(
        self, rows: Sequence[int], device: torch.device, done: int = 0
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """The row numbers and (rows, dim) float32 descriptors of one batch after the other."""
        bar = tqdm(
            desc="embedding",
            total=done + len(rows),
            initial=done,
            unit=" images",
            disable=not self.progress,
            file=sys.stderr,
        )
        running: tuple[list[int], torch.Tensor] | None = None
        with bar, closing(self._pixels(rows, device, bar)) as prepared:
            for batch, pixels in prepared:
                started = batch, self._descriptors(pixels, device)
                # A GPU computes this batch while the last one's results are fetched.
                if running:
                    yield self._finite(*running)
                running = started
                if device.type == "cpu":
                    yield self._finite(*running)
                    running = None
            if running:
                yield self._finite(*running)

    def _pixels(self, rows: Sequence[int], device: torch.device, bar: tqdm) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Row numbers and (rows, 3, height, width) pixel values; a change of shape starts a new batch.

        On a CPU nothing is decoded while the model runs: decoders would take cores from its threads, which
        wait for each other many times a layer. Decoding and computing in turns uses all cores for both.
        """
        ahead = 0 if device.type == "cpu" else _BATCHES_AHEAD * self.embedder.batch_size
        todo, waiting = iter(rows), deque[tuple[int, Future]]()
        batch: list[int] = []
        pixels: list[torch.Tensor] = []
        pool = ThreadPoolExecutor(self.embedder.workers or _default_workers(), thread_name_prefix="decode")
        try:
            while True:
                while (
                    len(waiting) < self.embedder.batch_size - len(batch) + ahead
                    and (row := next(todo, None)) is not None
                ):
                    waiting.append((row, pool.submit(self._prepare, row)))
                if not waiting:
                    break
                row, future = waiting.popleft()
                bar.update()
                try:
                    image = future.result()
                except UnreadableImage as error:
                    if self.strict:
                        raise
                    self.skipped.append((self.source.names[row], error.reason))
                    continue
                if pixels and image.shape != pixels[0].shape:
                    yield batch, torch.stack(pixels)
                    batch, pixels = [], []
                batch.append(row)
                pixels.append(image)
                if len(batch) == self.embedder.batch_size:
                    yield batch, torch.stack(pixels)
                    batch, pixels = [], []
            if batch:
                yield batch, torch.stack(pixels)
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, row: int) -> torch.Tensor:
        """(3, height, width) pixel values of one image."""
        image = self.source.load(row)
        try:
            return self.embedder.processor(image, return_tensors="pt")["pixel_values"][0]
        except Exception as error:
            error.add_note(f"while the processor prepared {self.source.names[row]}")
            raise

    def _descriptors(self, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
        model, dtype = self.embedder.model, self.embedder.dtype
        pixels = pixels.to(device, next(model.parameters(), pixels).dtype)
        with torch.inference_mode(), torch.autocast(device.type, DTYPES[dtype], enabled=dtype != "float32"):
            return model(pixels).pooler_output

    def _finite(self, rows: list[int], descriptors: torch.Tensor) -> tuple[list[int], np.ndarray]:
        """The rows whose descriptors are numbers; the others are skipped with a reason."""
        vectors = descriptors.float().cpu().numpy()
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise ValueError(
                f"the model's pooler_output has shape {vectors.shape} for {len(rows)} images; expected (images, dim)."
            )
        finite = np.isfinite(vectors).all(axis=1)
        for row in np.asarray(rows)[~finite]:
            name, reason = self.source.names[row], f"the model's descriptor isn't finite in {self.embedder.dtype}"
            if self.strict:
                raise UnreadableImage(name, reason)
            self.skipped.append((name, reason))
        return [row for row, good in zip(rows, finite, strict=True) if good], vectors[finite]


def _embed_to_memory(run: _Run) -> Descriptors:
    embedder, source = run.embedder, run.source
    vectors, kept = np.empty((0, embedder.descriptor_dim), np.float32), []
    about = embedder.name, embedder.weight_hash
    with _evaluating(embedder) as where, closing(run.batches(range(len(source.names)), where)) as batches:
        for rows, found in batches:
            if not kept:
                vectors = np.empty((len(source.names), found.shape[1]), np.float32)
            vectors[len(kept) : len(kept) + len(rows)] = found
            kept += rows
    paths = [source.names[row] for row in kept]
    states = None if source.keys is None else source.keys.states[kept]
    settings = embedder.processor_settings, embedder.dtype
    return Descriptors(vectors[: len(kept)], paths, _in_order(run), *about, states, *settings)


def _embed_to_folder(run: _Run, folder: Path, shard: tuple[int, int] | None) -> Descriptors:
    embedder, keys = run.embedder, run.source.keys
    about = {
        "model_name": embedder.name,
        "weight_hash": embedder.weight_hash,
        "processor": embedder.processor_settings,
        "dtype": embedder.dtype,
    }
    wanted = list(range(len(keys)))
    if shard is not None:
        folder, wanted = claim_part(folder, shard, embedder.batch_size, keys.names, about)
    with DescriptorFolder(folder, about) as store:
        todo = [wanted[row] for row in store.missing(keys[wanted])]
        done = len(wanted) - len(todo)
        with _evaluating(embedder) as where, closing(run.batches(todo, where, done)) as batches:
            for rows, found in batches:
                store.add(keys[rows], found)
        store.finish(keys[wanted], _in_order(run), embedder.descriptor_dim)
    return Descriptors.load(folder)


def _in_order(run: _Run) -> list[tuple[str, str]]:
    """What was skipped, in the order of the input: a descriptor's fault shows later than a file's."""
    place = {name: row for row, name in enumerate(run.source.names)}
    return sorted(run.skipped, key=lambda each: place[each[0]])


@contextmanager
def _evaluating(embedder: Embedder) -> Iterator[torch.device]:
    """The model in evaluation mode on the device; its modes and device are put back afterwards."""
    model, device = embedder.model, embedder.device
    with _NEW_LOCK:
        lock = _LOCKS.setdefault(_unwrapped(model), threading.RLock())
    with lock:
        before = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        where = torch.device(device) if device is not None else default_device(before)
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            if where != before:
                model.to(where)
            yield where
        finally:
            if where != before:
                model.to(before)
            for module in training:
                module.training = True


def default_device(current: torch.device) -> torch.device:
    if current.type != "cpu":
        return current
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _default_workers() -> int:
    return min(16, available_cores())


def processor_settings(processor: Callable[..., Any]) -> dict[str, Any]:
    """What a processor does to an image, as it is compared and written to files."""
    if not hasattr(processor, "to_dict"):
        return {"processor": type(processor).__name__}
    # Whether its code travels with it changes nothing in an image.
    settings = {name: value for name, value in processor.to_dict().items() if name != "auto_map"}
    return json.loads(json.dumps(settings, default=str))


def _as_images(images: Any) -> _Images:
    if isinstance(images, str | os.PathLike):
        root = Path(images)
        return _files(list_images(root), root) if root.is_dir() else _files([root])
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    datasets = sys.modules.get("datasets")  # whoever has a Dataset has loaded it
    if datasets and isinstance(images, datasets.Column) and isinstance(images.source, datasets.Dataset):
        images = images.source.select_columns([images.column_name])  # by row, so that one that is broken ends no run
    if datasets and isinstance(images, datasets.Dataset):
        rows = ImageRows(images)
        return _Images([str(row) for row in range(len(rows))], rows)
    if not isinstance(images, Sequence | np.ndarray):
        raise TypeError(
            f"images is of type {type(images).__name__}; expected a folder, a path, a PIL image, an array (height, "
            "width, 3), a sequence of these, or a datasets.Dataset. Make a list of an iterator first."
        )
    if len(images) and all(isinstance(image, str | os.PathLike) for image in images):
        return _files([Path(image) for image in images])
    names = [path_to_text(each) if isinstance(each, str | os.PathLike) else str(row) for row, each in enumerate(images)]
    return _Images(names, lambda row: _open(images[row], names[row]))


def _open(image: Any, name: str) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except Exception as error:  # a file opened by the caller shows its damage here, by whatever Pillow raises
            raise UnreadableImage(name, f"damaged: {error}") from error
    if not isinstance(image, np.ndarray):
        raise UnreadableImage(name, f"of type {type(image).__name__}, which isn't a path, PIL image or array")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise UnreadableImage(
            name, f"array of shape {image.shape} and type {image.dtype}; expected (height, width, 3) uint8"
        )
    return Image.fromarray(np.ascontiguousarray(image))


def _files(paths: list[Path], root: Path | None = None) -> _Images:
    """Files, known again by their path below the root, or by their whole path where there is none."""
    names = [path_to_text(path) for path in paths]
    known_as = [path_to_text(path.relative_to(root) if root else path.absolute()) for path in paths]
    keys = RowKeys(known_as, names, file_states(paths))

    def load(row: int) -> Image.Image:
        # A photo may change while others are embedded: what counts is its state when it is read.
        before = file_states([paths[row]])
        image = open_image(paths[row])
        if not np.array_equal(before, file_states([paths[row]])):
            raise UnreadableImage(names[row], "changed while it was read; run again when it is written to no more")
        keys.states[row] = before
        return image

    return _Images(names, load, keys)
