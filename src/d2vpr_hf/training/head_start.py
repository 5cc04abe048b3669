"""A head that is fitted before it is trained: it whitens, and what differs within a place counts less."""

import logging

import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..models.d2vpr.modeling_d2vpr import D2VprModel
from .data.batches import TrainingImages
from .data.sampler import PlaceSampler

logger = logging.getLogger(__name__)

# Photos that it is fitted on, at most: those of the first batches.
FITTED_ON = 4096
# Of the descriptors' directions, those of largest variance.
DIRECTIONS = 1024
# Halfway to directions that vary equally within places, and half of that again over all photos. Both were chosen on
# panoramas held out, as the table of trials in docs/training.md says.
WITHIN_POWER, TOTAL_POWER = 0.5, 0.25
# Of few pairs some directions seem hardly to vary within a place; so much of the whole variance is mixed in.
SHRINKAGE = 0.2


def start_head(
    model: D2VprModel, images: TrainingImages, sampler: PlaceSampler, *, first_share: float | None, precision: str
) -> None:
    """Fits the model's head, in place, on the photos of the first batches.

    Args:
        images: as they are trained on.
        sampler: its epoch is left at the first one.
        first_share: of the squared length, what the first of the 14 vectors has; None: as much as it has by itself.
        precision: "bf16" for bfloat16 autocast, else float32.

    Raises: ValueError if the photos are too few for the head's numbers.
    """
    regional, places = _describe(model, images, sampler, precision)
    weights = torch.ones(regional.shape[1])
    if first_share is not None:
        squares = regional.double().pow(2).sum(dim=2).mean(dim=0)  # (14)
        weights[0] = (first_share / (1 - first_share) * squares[1:].sum() / squares[0]).sqrt()
    scale = weights.repeat_interleave(regional.shape[2])
    descriptors = F.normalize(regional.flatten(1) * scale, dim=1)
    projection = whitening_by_places(descriptors, places, model.config.head_dim)
    with torch.no_grad():
        model.head.weight.copy_(projection * scale)
    logger.info("The head starts whitened, fitted on %d photos of %d places.", len(places), len(places.unique()))


def _describe(
    model: D2VprModel, images: TrainingImages, sampler: PlaceSampler, precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(photos, 14, dim) regional descriptors of the first batches' photos, and (photos) their places."""
    device = next(model.parameters()).device
    found, places = [], []
    was_training = model.training
    model.eval()
    sampler.set_epoch(0)
    draws = [draw for batch in sampler for draw in batch][:FITTED_ON]
    for start in tqdm(range(0, len(draws), 32), desc="fitting the head", unit="batch"):
        batch = [images[draw] for draw in draws[start : start + 32]]
        pixels = torch.stack([image.pixels for image in batch]).to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            found.append(model(pixels).regional_descriptors.float().cpu())
        places += [image.place for image in batch]
    model.train(was_training)
    return torch.cat(found), torch.tensor(places)


def whitening_by_places(descriptors: torch.Tensor, places: torch.Tensor, dim: int) -> torch.Tensor:
    """(dim, full dim) float32 projection of descriptors (photos, full dim), most variance first.

    What the descriptors share is projected out, since a head has no bias. Directions are weighed by how much they vary
    within a place, then by how much they vary at all.

    Raises: ValueError if the photos are too few.
    """
    mean = F.normalize(descriptors.double().mean(dim=0), dim=0)
    centred = descriptors.double() - (descriptors.double() @ mean)[:, None] * mean
    values, vectors = torch.linalg.eigh(centred @ centred.T / len(centred))
    values, vectors = values.flip(0)[:DIRECTIONS], vectors.flip(1)[:, :DIRECTIONS]
    kept = values > 1e-9 * values[0]
    if (directions := int(kept.sum())) < dim:
        raise ValueError(
            f"A whitened head of {dim} numbers is to be fitted, but the {len(descriptors)} photos vary in {directions} "
            "directions alone. Give more photos, a shorter head, or head_start: random."
        )
    values, vectors = values[kept], vectors[:, kept]
    basis = centred.T @ (vectors / (len(centred) * values).sqrt())  # (full dim, directions), orthonormal
    within = (1 - SHRINKAGE) * _within(centred @ basis, places) + SHRINKAGE * torch.diag(values)
    basis = basis @ _power(within, -WITHIN_POWER / 2)
    values, vectors = torch.linalg.eigh(basis.T @ (centred.T @ (centred @ basis)) / len(centred))
    values, vectors = values.flip(0)[:dim], vectors.flip(1)[:, :dim]
    projection = (basis @ (vectors * values.pow(-TOTAL_POWER / 2))).T
    return (projection / projection.norm(dim=1).mean()).float()


def _within(coordinates: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Covariance of what differs between photos of one place."""
    _, number, counts = places.unique(return_inverse=True, return_counts=True)
    sums = coordinates.new_zeros(len(counts), coordinates.shape[1]).index_add_(0, number, coordinates)
    apart = coordinates - (sums / counts[:, None])[number]
    return apart.T @ apart / max(len(places) - len(counts), 1)


def _power(matrix: torch.Tensor, exponent: float) -> torch.Tensor:
    """A power of a symmetric matrix without directions of variance 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.pow(exponent) @ vectors.T
