"""Shorter descriptors by PCA: fitted on photos, kept in the checkpoint, and never tested on what it was fitted on."""

import copy
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy.linalg import blas, eigh

from ..files import hash_file, path_to_text, text_to_path
from ..models.checkpoint import save_checkpoint
from ..models.d2vpr.modeling_d2vpr import D2VprModel
from ..photos.folder import list_images
from .descriptors import Descriptors
from .embedder import Embedder, weight_hash

logger = logging.getLogger(__name__)

# Rows, or columns, that are in memory as float64 at a time.
_BLOCK = 1024
# Below this share of the first component's variance a component is rounding, which whitening would blow up.
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class PcaSettings:
    """What a PCA is asked for.

    Attributes:
        dim: numbers in the shorter descriptor.
        images: the most photos it is fitted on; of more, so many are drawn.
        seed: draws them.
        renormalise: bring what comes out to unit length, so that inner products and distances rank alike.
        whitening: by how much directions of little variance count more, 0 (not at all) to 1 (all the same).
    """

    dim: int
    images: int = 2**14
    seed: int = 0
    renormalise: bool = False
    whitening: float = 0.0


# How D2-VPR's published results were made; its photos are those of pitts30k/images/train. Descriptors that aren't
# renormalised are ranked by distance.
PUBLISHED_PCA = PcaSettings(dim=4096, images=2**14, renormalise=False)


@dataclass(frozen=True)
class PcaSource:
    """The images that a PCA is fitted on.

    Attributes:
        name: what they are, such as "pitts30k/images/train".
        sha256: (images) SHA-256 of each file in hex; None where they aren't files.
        size_bytes: (images) of each file; None where they aren't files.
    """

    name: str
    sha256: tuple[str, ...] | None = None
    size_bytes: tuple[int, ...] | None = None

    @classmethod
    def of_files(cls, name: str, paths: Sequence[str | Path]) -> Self:
        """The source with what its files are known by, which reads them.

        Raises: ValueError naming a file that isn't there.
        """
        hashes, sizes = [], []
        for path in paths:
            file = text_to_path(path) if isinstance(path, str) else path
            try:
                hashes.append(hash_file(file))
                sizes.append(file.stat().st_size)
            except OSError as error:
                raise ValueError(
                    f"{path_to_text(file)} can't be read ({error.strerror}), so that the PCA can't keep what it was "
                    "fitted on. Give the descriptors' files back, or give source=PcaSource(name), whose overlap with "
                    "test images nobody can tell."
                ) from error
        return cls(name, tuple(hashes), tuple(sizes))

    def __getitem__(self, rows: np.ndarray) -> Self:
        if self.sha256 is None:
            return self
        return type(self)(
            self.name, tuple(self.sha256[row] for row in rows), tuple(self.size_bytes[row] for row in rows)
        )

    @property
    def files_sha256(self) -> str | None:
        """SHA-256 of the list of SHA-256, sorted, one a line, as `sha256sum FILES | cut -c-64 | sort | sha256sum`."""
        if self.sha256 is None:
            return None
        return hashlib.sha256("".join(f"{each}\n" for each in sorted(self.sha256)).encode()).hexdigest()

    @property
    def fingerprints(self) -> np.ndarray:
        """(images, 2) int64: size in bytes, and the first 8 bytes of the SHA-256, of each file."""
        heads = [_head(each) for each in self.sha256 or ()]
        return np.array([self.size_bytes or (), heads], np.int64).T.reshape(-1, 2)


@dataclass(frozen=True)
class Pca:
    """A PCA of descriptors.

    Attributes:
        mean: (full dim) float32 of the descriptors.
        components: (dim, full dim) float32 orthogonal rows, most variance first; of length 1 without whitening.
        variance: (dim) float32 of the descriptors along each, with images - 1 in the denominator.
        variance_kept: share of the whole variance that the components hold, in [0, 1].
        images: number of descriptors it was fitted on.
        seed: that drew them.
        renormalise: whether `apply` gives unit length.
        whitening: each row was divided by variance^(whitening / 2), 0 to 1; 0 is a plain PCA.
        source: the images.
        weight_hash: SHA-256 of the weights that made the descriptors; None for an array.
    """

    mean: np.ndarray
    components: np.ndarray
    variance: np.ndarray
    variance_kept: float
    images: int
    seed: int
    renormalise: bool
    whitening: float
    source: PcaSource
    weight_hash: str | None

    @property
    def dim(self) -> int:
        """Numbers in a shorter descriptor."""
        return len(self.components)

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """(rows, dim) float32 of descriptors (rows, full dim), as a model with this PCA gives them.

        Raises: ValueError for another shape.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise ValueError(
                f"The descriptors have shape {vectors.shape}, but the PCA was fitted on (rows, {len(self.mean)}). Give "
                "full descriptors of the model it was fitted for."
            )
        reduced = np.empty((len(vectors), self.dim), np.float32)
        for start in range(0, len(vectors), _BLOCK):
            block = np.asarray(vectors[start : start + _BLOCK], np.float32)
            reduced[start : start + _BLOCK] = (block - self.mean) @ self.components.T
        if self.renormalise:
            reduced /= np.maximum(np.linalg.norm(reduced, axis=1, keepdims=True), 1e-12)
        return reduced

    def to_config(self) -> dict[str, Any]:
        """What a configuration says of it: `D2VprConfig.pca_source`."""
        return {
            "name": self.source.name,
            "images": self.images,
            "files_sha256": self.source.files_sha256,
            "seed": self.seed,
            "renormalise": self.renormalise,
            "whitening": self.whitening,
            "variance_kept": self.variance_kept,
        }


def fit_pca(
    descriptors: Descriptors | np.ndarray,
    dim: int,
    *,
    source: str | PcaSource,
    images: int | None = None,
    seed: int = 0,
    renormalise: bool = False,
    whitening: float = 0.0,
) -> Pca:
    """The `dim` directions in which descriptors vary most.

    Exact, in float64 inside: the eigenvectors of the covariance, or of the inner products where there are fewer
    descriptors than numbers in one. Descriptors are read in blocks and may be a memory map; memory is 8 bytes times the
    square of the smaller of the two, and twice the result.

    Args:
        descriptors: full ones, as `embed_images` gives them, or (rows, full dim).
        dim: of the result, at most the full one and below the number of descriptors.
        source: name of the images, such as "pitts30k/images/train". The files of `Descriptors` are read to be known
            again in a test; for an array, or to leave that out, give a `PcaSource`.
        images: the most descriptors to fit on; of more, so many are drawn. None takes all.
        seed: draws them.
        renormalise: bring what the PCA gives to unit length.
        whitening: by how much directions of little variance count more: each number is divided by
            variance^(whitening / 2). 0 is a plain PCA, 1 gives each number the variance 1; 0.5, with `renormalise`, is
            recommended for places that nobody has trained on. A direction with less than 1e-12 of the first one's
            variance is rounding and refused, so that no number is divided by next to nothing.

    Raises: ValueError if `dim` doesn't fit the descriptors or `whitening` is out of range, if a descriptor holds a
        number that isn't finite, if they vary in fewer directions than `dim`, or if a file isn't there any more.
    """
    given = descriptors.vectors if isinstance(descriptors, Descriptors) else descriptors
    if given.ndim != 2 or not np.issubdtype(given.dtype, np.floating):
        raise ValueError(
            f"The descriptors have shape {given.shape} and type {given.dtype}, but must be floating numbers (rows, "
            "full dim)."
        )
    _check_whitening(whitening)
    rows = _drawn(len(given), images, seed)
    _check_dim(dim, len(rows), given.shape[1])
    source = _drawn_source(source, descriptors, rows)
    mean = _mean(given, rows)
    values, components, total = (_fit_wide if len(rows) < given.shape[1] else _fit_tall)(given, rows, mean, dim)
    if values[-1] <= _LEAST_VARIANCE * values[0]:
        directions = int((values > _LEAST_VARIANCE * values[0]).sum())
        raise ValueError(
            f"The {len(rows)} descriptors vary in {directions} directions alone, so that {dim} numbers can't be found "
            f"in them. Ask for a dim up to {directions}, or give more photos that differ."
        )
    # Either sign is right; the largest number is made positive, so that every machine gives the same.
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(dim), largest])[:, None]
    variance = values / (len(rows) - 1)
    components *= (variance ** (-whitening / 2))[:, None]
    return Pca(
        mean=mean.astype(np.float32),
        components=components.astype(np.float32),
        variance=variance.astype(np.float32),
        variance_kept=float(min(values.sum() / total, 1.0)),
        images=len(rows),
        seed=seed,
        renormalise=renormalise,
        whitening=float(whitening),
        source=source,
        weight_hash=descriptors.weight_hash if isinstance(descriptors, Descriptors) else None,
    )


def attach_pca(model: D2VprModel, pca: Pca) -> None:
    """Puts a PCA behind the model, in place: from now on it gives, and saves, shorter descriptors.

    Raises: ValueError if the model isn't the one whose descriptors the PCA was fitted on, or has a PCA already.
        TypeError for a model that takes none.
    """
    if not hasattr(model, "add_reduction"):
        raise TypeError(f"{type(model).__name__} takes no PCA. Give a D2VprModel.")
    if pca.weight_hash is not None and (found := weight_hash(model)) != pca.weight_hash:
        raise ValueError(
            f"The PCA was fitted on descriptors of the weights {pca.weight_hash[:8]}, but the model has the weights "
            f"{found[:8]}. Give that model, or fit a PCA on this one's descriptors."
        )
    model.add_reduction(
        torch.from_numpy(pca.mean),
        torch.from_numpy(pca.components),
        torch.from_numpy(pca.source.fingerprints),
        pca.to_config(),
    )


def reduce_checkpoint(
    photos: str | Path,
    folder: str | Path,
    embedder: Embedder,
    *,
    settings: PcaSettings,
    name: str | None = None,
    progress: bool = True,
) -> Pca:
    """Writes a checkpoint that gives shorter descriptors, by a PCA fitted on photos.

    Descriptors are written beside `folder`, in `<folder>.descriptors`, until the checkpoint stands: a run that was cut
    short goes on where it was.

    Args:
        photos: a folder, with its subfolders, of photos that nothing will be tested on.
        folder: gets the checkpoint. It must not exist or be empty.
        embedder: of a model without a PCA, which stays as it is; its processor goes into the checkpoint too.
        settings: what is asked for; `PUBLISHED_PCA` is what the published results have.
        name: of the photos, as the checkpoint shows it; the folder's own name where none is given.
        progress: show a bar on stderr.

    Returns: the PCA, with the share of the variance that it keeps.
    Raises: ValueError if there are too few photos, as `fit_pca`, or as `Embedder.embed`. FileExistsError. TypeError for
        a model that takes no PCA.
    """
    photos, folder, model = Path(photos), Path(folder), embedder.model
    if not hasattr(model, "add_reduction"):
        raise TypeError(f"{type(model).__name__} takes no PCA. Give a D2VprModel.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and isn't empty. Remove it, or name another folder.")
    if model.config.pca_source is not None:
        raise ValueError(
            f"The model ends in a PCA to {model.config.descriptor_dim} numbers already. Give the model that it was "
            "fitted for."
        )
    if model.config.head_dim is not None:
        raise ValueError(
            f"The model ends in a learned head of {model.config.head_dim} numbers, which a PCA would only shorten "
            "further. Reduce the checkpoint without the head, or train a shorter head."
        )
    paths = list_images(photos)
    rows = _drawn(len(paths), settings.images, settings.seed)
    # Before the photos are embedded, which may take an hour.
    _check_whitening(settings.whitening)
    _check_dim(settings.dim, len(rows), model.config.descriptor_dim)
    work = folder.with_name(f"{folder.name}.descriptors")
    descriptors = embedder.embed([paths[row] for row in rows], folder=work, progress=progress)
    pca = fit_pca(
        descriptors,
        settings.dim,
        source=photos.resolve().name if name is None else name,
        seed=settings.seed,
        renormalise=settings.renormalise,
        whitening=settings.whitening,
    )
    reduced = copy.deepcopy(model)
    attach_pca(reduced, pca)
    save_checkpoint(folder, reduced, embedder.processor)
    del descriptors
    shutil.rmtree(work)
    return pca


def pca_overlap(model: torch.nn.Module, paths: Sequence[str | Path]) -> list[str]:
    """Those of the files that the model's PCA was fitted on, under whatever name; empty for a model without PCA.

    Files are told by their bytes, and read only where their size is that of one it was fitted on. A photo that was
    saved anew, such as smaller or in another format, isn't recognised. Files that aren't there are passed over.
    """
    reduction = getattr(model, "reduction", None)
    if reduction is None:
        return []
    known = {tuple(each) for each in reduction.files.tolist()}
    sizes = {size for size, _ in known}
    found = []
    for path in paths:
        file = text_to_path(path) if isinstance(path, str) else path
        try:
            size = file.stat().st_size
            if size in sizes and (size, _head(hash_file(file))) in known:
                found.append(path_to_text(file))
        except OSError:
            continue
    return found


def check_pca_source(model: torch.nn.Module, paths: Sequence[str | Path]) -> None:
    """Refuses to test a model on files that its PCA was fitted on: it would look better than it is.

    Raises: ValueError naming some of them.
    """
    source = getattr(getattr(model, "config", None), "pca_source", None)
    if source is None:
        return
    if source["files_sha256"] is None:
        logger.warning(
            "The model's PCA was fitted on %s, whose files it doesn't know: make sure yourself that none is tested on.",
            source["name"],
        )
    if overlap := pca_overlap(model, paths):
        raise ValueError(
            f"{len(overlap)} of the {len(paths)} test photos, such as {overlap[0]}, are among the {source['images']} "
            f"that the model's PCA was fitted on ({source['name']}), so that the result would be better than it is. "
            "Test on other photos, or fit the PCA on others with `d2vpr reduce`."
        )


def _drawn(count: int, images: int | None, seed: int) -> np.ndarray:
    """The rows to fit on, rising."""
    if images is not None and images < 1:
        raise ValueError(f"images is {images}, but a PCA needs some: 16384 as published, or None for all.")
    if images is None or count <= images:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size=images, replace=False))


def _drawn_source(source: str | PcaSource, descriptors: Descriptors | np.ndarray, rows: np.ndarray) -> PcaSource:
    """The images of these rows."""
    if isinstance(source, str):
        if isinstance(descriptors, np.ndarray):
            return PcaSource(source)
        return PcaSource.of_files(source, [descriptors.paths[row] for row in rows])
    if source.sha256 is not None and len(source.sha256) != len(descriptors):
        raise ValueError(
            f"The source names {len(source.sha256)} files, but there are {len(descriptors)} descriptors. Give one file "
            "for each."
        )
    return source[rows]


def _check_dim(dim: int, rows: int, full_dim: int) -> None:
    if not 1 <= dim <= full_dim:
        raise ValueError(f"dim is {dim}, but a PCA of {full_dim} numbers gives 1 to {full_dim}.")
    if dim >= rows:
        raise ValueError(
            f"dim is {dim}, but {rows} photos vary in {max(rows - 1, 0)} directions at most. Give more than {dim} "
            "photos, or a smaller dim."
        )


def _check_whitening(whitening: float) -> None:
    if not isinstance(whitening, Real) or isinstance(whitening, bool) or not 0 <= whitening <= 1:
        raise ValueError(
            f"whitening is {whitening!r}, but must be a number from 0 (a plain PCA) to 1. 0.5 is half of it."
        )


def _blocks(vectors: np.ndarray, rows: np.ndarray, mean: np.ndarray | float = 0.0) -> Iterator[np.ndarray]:
    """(up to 1024, full dim) float64 of the rows, less the mean."""
    for start in range(0, len(rows), _BLOCK):
        yield np.asarray(vectors[rows[start : start + _BLOCK]], np.float64) - mean


def _mean(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(full dim) float64."""
    total = sum(block.sum(axis=0) for block in _blocks(vectors, rows))
    if not np.isfinite(total).all():
        wrong = [row for row in rows if not np.isfinite(vectors[row]).all()]
        raise ValueError(
            f"{len(wrong)} descriptors, such as row {wrong[0]}, hold numbers that aren't finite. Leave them out, or "
            "embed these photos again."
        )
    return total / len(rows)


def _fit_tall(
    vectors: np.ndarray, rows: np.ndarray, mean: np.ndarray, dim: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Sums of squares (dim), components (dim, full dim) and the whole sum, from the covariance."""
    full = vectors.shape[1]
    products = np.zeros((full, full), order="F")
    for block in _blocks(vectors, rows, mean):
        # Adds in place and to the upper triangle alone, with neither a second matrix nor the same sum twice.
        products = blas.dsyrk(1.0, block.T, beta=1.0, c=products, overwrite_c=True)
    values, columns, total = _leading(products, dim)
    del products
    return values, np.ascontiguousarray(columns.T), total


def _fit_wide(
    vectors: np.ndarray, rows: np.ndarray, mean: np.ndarray, dim: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """The same from the rows' inner products, of which there are fewer."""
    products = np.zeros((len(rows), len(rows)), order="F")
    for start in range(0, vectors.shape[1], _BLOCK):
        columns = slice(start, start + _BLOCK)
        block = np.asarray(vectors[rows, columns], np.float64, order="F") - mean[columns]
        products = blas.dsyrk(1.0, np.asfortranarray(block), beta=1.0, c=products, overwrite_c=True)
    values, weights, total = _leading(products, dim)
    components = np.zeros((dim, vectors.shape[1]))
    for start, block in zip(range(0, len(rows), _BLOCK), _blocks(vectors, rows, mean), strict=True):
        components += weights[start : start + _BLOCK].T @ block
    components /= np.maximum(np.linalg.norm(components, axis=1, keepdims=True), np.finfo(float).tiny)
    return values, components, total


def _leading(products: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The `dim` largest eigenvalues, largest first, their eigenvectors in columns, and the sum of all; destroys."""
    side, total = len(products), float(np.trace(products))
    values, columns = eigh(
        products, lower=False, subset_by_index=(side - dim, side - 1), overwrite_a=True, check_finite=False
    )
    return values[::-1], columns[:, ::-1], total


def _head(sha256: str) -> int:
    """The first 8 bytes of a SHA-256 in hex, as a signed number."""
    return int.from_bytes(bytes.fromhex(sha256[:16]), "big", signed=True)
