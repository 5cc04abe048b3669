"""What of a new model is fitted on photos before it is trained: its recovery module, and its head."""

import logging
from collections.abc import Iterator

import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..models.d2vpr.modeling_d2vpr import D2VprModel
from .arguments import TrainingArguments
from .data.batches import TrainingImages
from .data.sampler import PlaceSampler

logger = logging.getLogger(__name__)

# Photos of the first batches that a head is fitted on, and a recovery module, at most.
HEAD_PHOTOS, RECOVERY_PHOTOS = 4096, 512
AT_A_TIME = 32
# Of the descriptors' directions, those of largest variance.
DIRECTIONS = 1024
# Halfway to directions that vary equally within places, and then a quarter of the way over all photos, as chosen on
# photos that nothing was fitted on (see the table of trials in docs/training.md).
WITHIN_POWER, TOTAL_POWER = 0.5, 0.25
# Of few pairs some directions seem hardly to vary within a place; so much of the whole variance is mixed in.
SHRINKAGE = 0.2


def fit_starts(
    arguments: TrainingArguments,
    model: torch.nn.Module,
    images: TrainingImages,
    sampler: PlaceSampler,
    precision: str,
) -> None:
    """Fits, in place, what the arguments ask to be fitted, on the photos of the first batches.

    Args:
        images: as they are trained on.
        sampler: its epoch is left at the first one.
        precision: "bf16" for bfloat16 autocast, else float32.

    Raises: ValueError if the photos are too few for the head's numbers.
    """
    photos = FirstPhotos(images, sampler, precision)
    if arguments.recovery_start == "principal":
        start_recovery(model, photos)
    if getattr(arguments, "head_start", "random") == "whitened":
        start_head(model, photos, arguments.head_first_share)


class FirstPhotos:
    """What a model says of the photos of the first batches."""

    def __init__(self, images: TrainingImages, sampler: PlaceSampler, precision: str) -> None:
        self.images, self.sampler, self.precision = images, sampler, precision

    def described(self, model: D2VprModel, most: int, what: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The field `what` of the model's output, on the CPU, and the places, some photos at a time."""
        device = next(model.parameters()).device
        self.sampler.set_epoch(0)
        draws = [draw for batch in self.sampler for draw in batch][:most]
        was_training = model.training
        model.eval()
        for start in tqdm(range(0, len(draws), AT_A_TIME), desc="fitting on photos", unit="batch"):
            batch = [self.images[draw] for draw in draws[start : start + AT_A_TIME]]
            pixels = torch.stack([image.pixels for image in batch]).to(device)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                output = model(pixels, output_hidden_states=what == "hidden_states")
            yield output[what], torch.tensor([image.place for image in batch])
        model.train(was_training)


def start_recovery(model: D2VprModel, photos: FirstPhotos) -> None:
    """Lets a pass-through pass on the directions in which the last recovery layer's tokens vary most."""
    width, layer = model.config.backbone_config.hidden_size, model.config.recovery_layers[-1]
    second = torch.zeros(width, width, dtype=torch.float64)
    for states, _ in photos.described(model, RECOVERY_PHOTOS, "hidden_states"):
        tokens = F.normalize(states[layer][:, 1:].float().cpu().flatten(0, 1), dim=1).double()
        second += tokens.T @ tokens
    _, directions = torch.linalg.eigh(second)
    half = directions.flip(1)[:, : model.config.aggregator_dim // 2].T.float()
    with torch.no_grad():
        model.recovery.projection.weight[:, -width:] = torch.cat([half, -half])


def start_head(model: D2VprModel, photos: FirstPhotos, first_share: float | None) -> None:
    """Lets the head whiten; `first_share` is that of the first vector in the squared length, None its own."""
    found = list(photos.described(model, HEAD_PHOTOS, "regional_descriptors"))
    regional = torch.cat([each.float().cpu() for each, _ in found])
    places = torch.cat([each for _, each in found])
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
