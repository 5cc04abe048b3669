"""What of a new model is fitted on photos before it is trained: its recovery module, and its head."""

import logging
from collections.abc import Iterator

import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..models.d2vpr.modeling_d2vpr import D2VprModel, D2VprModelOutput
from .arguments import TrainingArguments
from .data.batches import TrainingImages
from .data.sampler import PlaceSampler
from .teachers import Teacher

logger = logging.getLogger(__name__)

# Photos of the first batches that a head is fitted on, and a recovery module, at most.
HEAD_PHOTOS, RECOVERY_PHOTOS = 4096, 384
AT_A_TIME = 32
# Of the descriptors' directions, those of largest variance.
DIRECTIONS = 1024
# Halfway to directions that vary equally within places, and then a quarter of the way over all photos, as chosen on
# photos that nothing was fitted on (see the table of trials in docs/training.md).
WITHIN_POWER, TOTAL_POWER = 0.5, 0.25
# Of few pairs some directions seem hardly to vary within a place; so much of the whole variance is mixed in.
SHRINKAGE = 0.2
# Of the mean variance of a block's numbers.
RIDGE = 1e-4


def fit_starts(
    arguments: TrainingArguments,
    model: torch.nn.Module,
    images: TrainingImages,
    sampler: PlaceSampler,
    precision: str,
    teacher: Teacher | None,
) -> None:
    """Fits, in place, what the arguments ask to be fitted, on the photos of the first batches.

    Args:
        images: as they are trained on.
        sampler: its epoch is left at the first one.
        precision: "bf16" for bfloat16 autocast, else float32.
        teacher: whose patch tokens a taught recovery module comes near to; it sees the student's own view.

    Raises: ValueError if the photos are too few for the head's numbers.
    """
    photos = FirstPhotos(images, sampler, precision)
    if arguments.recovery_start == "taught":
        start_recovery(model, photos, teacher)
    if getattr(arguments, "head_start", "random") == "whitened":
        start_head(model, photos, arguments.head_first_share)


class FirstPhotos:
    """The photos of the first batches."""

    def __init__(self, images: TrainingImages, sampler: PlaceSampler, precision: str) -> None:
        self.images, self.sampler, self.precision = images, sampler, precision

    def described(self, model: D2VprModel, most: int) -> Iterator[tuple[D2VprModelOutput, torch.Tensor, torch.Tensor]]:
        """What the model says of some photos at a time, blocks included, with their pixel values and their places."""
        device = next(model.parameters()).device
        self.sampler.set_epoch(0)
        draws = [draw for batch in self.sampler for draw in batch][:most]
        was_training = model.training
        model.eval()
        for start in tqdm(range(0, len(draws), AT_A_TIME), desc="fitting on photos", unit="batch"):
            batch = [self.images[draw] for draw in draws[start : start + AT_A_TIME]]
            pixels = torch.stack([image.pixels for image in batch]).to(device)
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                output = model(pixels, output_hidden_states=True)
            yield output, pixels, torch.tensor([image.place for image in batch])
        model.train(was_training)


def start_recovery(model: D2VprModel, photos: FirstPhotos, teacher: Teacher) -> None:
    """Lets the recovery module pass on what of the teacher's patch tokens a linear map finds in its blocks.

    Of a ridge regression's predictions, the directions in which they vary most are kept, and their negatives.
    """
    layers, width = model.config.recovery_layers, teacher.width
    joined = model.recovery.projection.in_features
    squares, products = torch.zeros(joined, joined).double(), torch.zeros(joined, width).double()
    sums, count = torch.zeros(joined).double(), 0
    for output, pixels, _ in photos.described(model, RECOVERY_PHOTOS):
        blocks = [output.hidden_states[layer][:, 1:].float().flatten(0, 1) for layer in layers]
        # As the norm behind it has no bias yet, a token's length makes no difference to what is recovered.
        own = (torch.cat(blocks, dim=1) / blocks[-1].norm(dim=1, keepdim=True)).cpu()
        taught = F.normalize(teacher.teach(pixels).patch_tokens.flatten(2).mT.flatten(0, 1), dim=1).cpu()
        squares += own.T @ own
        products += own.T @ taught
        sums += own.sum(dim=0)
        count += len(own)
    ridge = RIDGE * squares.trace() / joined * torch.eye(joined).double()
    found = torch.linalg.solve(squares + ridge, products)  # (joined, teacher's width)
    mean = found.T @ sums / count
    _, directions = torch.linalg.eigh(found.T @ squares @ found / count - mean[:, None] * mean)
    half = (found @ directions.flip(1)[:, : model.config.aggregator_dim // 2]).T.float()
    half *= joined**0.5 / half.norm()
    with torch.no_grad():
        model.recovery.projection.weight.copy_(torch.cat([half, -half]))


def start_head(model: D2VprModel, photos: FirstPhotos, first_share: float | None) -> None:
    """Lets the head whiten; `first_share` is that of the first vector in the squared length, None its own."""
    found = [
        (output.regional_descriptors.float().cpu(), places)
        for output, _, places in photos.described(model, HEAD_PHOTOS)
    ]
    regional, places = (torch.cat(each) for each in zip(*found, strict=True))
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
