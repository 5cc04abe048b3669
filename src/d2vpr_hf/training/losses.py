"""What training brings down: the distance of a student to its teacher, and that of a photo to its place."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from .teachers import TeacherOutput, check_choice

DistillationKind = Literal["cosine", "mse"]


@dataclass
class DistillationTerms:
    """A distillation loss and what it is made of.

    Attributes:
        loss: the sum, each term with its weight; the one to go back from.
        descriptor: of the joined descriptors.
        regions: mean over the 14 regional descriptors of 1 - cosine, whether it has a weight or not.
        tokens: mean over the patches of 1 - cosine; None where it has no weight.
    """

    loss: torch.Tensor
    descriptor: torch.Tensor
    regions: torch.Tensor
    tokens: torch.Tensor | None


@dataclass(frozen=True)
class DistillationLoss:
    """How far a student is from its teacher, in float32.

    Args:
        kind: of the descriptor's term. "cosine" is the mean of 1 - cosine of the joined descriptors: about 1 for a
            student that knows nothing, 0 for the teacher's equal. "mse" is the original's: the mean of the squared
            differences over all numbers of the unit-length descriptors, which is 2 * (1 - cosine) / (14 * width). As
            the numbers of a descriptor share a length of 1, each is about 0.01, and the loss is of the order of 1e-5.
        region_weight: of the mean of 1 - cosine of each of the 14 regional descriptors by itself. In the joined
            descriptor a region counts by its length, and the global one may be all that counts.
        token_weight: of the mean of 1 - cosine of each patch token.
    """

    kind: DistillationKind = "cosine"
    region_weight: float = 0.0
    token_weight: float = 0.0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(DistillationKind))
        if self.region_weight < 0 or self.token_weight < 0:
            raise ValueError(
                f"region_weight is {self.region_weight} and token_weight {self.token_weight}; neither may be negative. "
                "Give 0 to leave a term out."
            )

    def __call__(
        self, student_regional: torch.Tensor, teacher: TeacherOutput, student_tokens: torch.Tensor | None = None
    ) -> DistillationTerms:
        """The loss of a batch.

        Args:
            student_regional: (images, 14, width), of the teacher's width (see `StudentProjection`).
            teacher: targets of the same images.
            student_tokens: (images, width, rows, columns), only needed with a `token_weight`. The teacher's map is
                resampled to the student's grid where the two differ.

        Raises: ValueError if shapes differ, or tokens are asked for that one side hasn't.
        """
        target = teacher.regional_descriptors
        if student_regional.shape != target.shape:
            raise ValueError(
                f"The student's regional descriptors have shape {tuple(student_regional.shape)}, the teacher's "
                f"{tuple(target.shape)}. Give both the same images, and a student of another width through a "
                "StudentProjection."
            )
        with torch.autocast(target.device.type, enabled=False):
            student_regional, target = student_regional.float(), target.float()
            descriptor = self._descriptor_term(student_regional.flatten(1), target.flatten(1))
            regions = _one_minus_cosine(student_regional, target, dim=2)
            loss = descriptor + self.region_weight * regions
            tokens = None
            if self.token_weight:
                tokens = _token_term(student_tokens, teacher.patch_tokens)
                loss = loss + self.token_weight * tokens
        return DistillationTerms(loss, descriptor, regions, tokens)

    def _descriptor_term(self, student: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.kind == "cosine":
            return _one_minus_cosine(student, target, dim=1)
        return F.mse_loss(F.normalize(student, dim=1), F.normalize(target, dim=1))


def _token_term(student: torch.Tensor | None, target: torch.Tensor | None) -> torch.Tensor:
    for whose, tokens in (("student", student), ("teacher", target)):
        if tokens is None:
            raise ValueError(
                f"token_weight asks for patch tokens, but the {whose}'s are missing. Give them (a teacher's cached "
                "descriptors have none), or set token_weight to 0."
            )
    if student.shape[:2] != target.shape[:2]:
        raise ValueError(
            f"The student's patch tokens have shape {tuple(student.shape)}, the teacher's {tuple(target.shape)}: "
            "images or width differ. Give both the same images, and a student of another width through a "
            "StudentProjection."
        )
    student, target = student.float(), target.float()
    if student.shape[2:] != target.shape[2:]:
        target = F.interpolate(target, size=student.shape[2:], mode="bilinear", align_corners=False)
    return _one_minus_cosine(student, target, dim=1)


def _one_minus_cosine(student: torch.Tensor, target: torch.Tensor, dim: int) -> torch.Tensor:
    return 1 - F.cosine_similarity(student, target, dim=dim).mean()


class StudentProjection(nn.Module):
    """Brings a student's vectors to its teacher's width; learned with the student, and dropped when it has learned.

    It is the student's side that is projected: of a projection of the teacher's side the loss would make whatever is
    easiest to meet, the same vector for every image, and nothing would be learned. For equal widths it does nothing and
    has no parameters, unless it is wanted `always`. A new one keeps the cosines of a student that is not wider than its
    teacher.
    """

    def __init__(self, student_width: int, teacher_width: int, *, always: bool = False) -> None:
        super().__init__()
        self.linear: nn.Linear | None = None
        if always or student_width != teacher_width:
            self.linear = nn.Linear(student_width, teacher_width, bias=False)
            nn.init.orthogonal_(self.linear.weight)

    def forward(
        self, regional: torch.Tensor, tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same, in the teacher's width.

        Args:
            regional: (images, 14, width)
            tokens: (images, width, rows, columns), where the loss has a weight for them.
        """
        if self.linear is None:
            return regional, tokens
        regional = self.linear(regional)
        if tokens is not None:
            tokens = self.linear(tokens.movedim(1, -1)).movedim(-1, 1)
        return regional, tokens


@dataclass
class MultiSimilarityTerms:
    """A multi-similarity loss and how much there was to learn.

    Attributes:
        loss: the one to go back from; 0 where nothing was mined, or but one pair of each kind, which
            pytorch-metric-learning takes for nothing.
        mined_share: share of the images that are the anchor of a mined pair, in [0, 1].
    """

    loss: torch.Tensor
    mined_share: float


class MultiSimilarity:
    """The multi-similarity loss over pairs that are still hard, in float32.

    A pair of one place is mined if it is less alike than the anchor's most alike photo of another place, plus epsilon;
    a pair of two places if it is more alike than the anchor's least alike photo of its own, minus epsilon. Where a
    batch holds no such pairs, or a single place, the loss is 0.

    Args:
        alpha: how sharply pairs of one place count by being unlike.
        beta: how sharply pairs of two places count by being alike.
        base: cosine from which a pair counts.
        epsilon: margin of mining.

    Source: Wang et al., CVPR 2019, as pytorch-metric-learning has it; the defaults are usual in place recognition.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 50.0, base: float = 0.0, epsilon: float = 0.1) -> None:
        from pytorch_metric_learning.losses import MultiSimilarityLoss
        from pytorch_metric_learning.miners import MultiSimilarityMiner

        self._loss = MultiSimilarityLoss(alpha=alpha, beta=beta, base=base)
        self._miner = MultiSimilarityMiner(epsilon=epsilon)

    def __call__(self, descriptors: torch.Tensor, places: torch.Tensor) -> MultiSimilarityTerms:
        """The loss of a batch.

        Args:
            descriptors: (images, dim), of any length.
            places: (images,) integers; equal for photos of one place.

        Raises: ValueError if there isn't one place for each descriptor.
        """
        if descriptors.ndim != 2 or places.shape != descriptors.shape[:1]:
            raise ValueError(
                f"descriptors has shape {tuple(descriptors.shape)} and places {tuple(places.shape)}, but (images, dim) "
                "and (images,) were expected. Give the place of each image."
            )
        # Rounding to half precision would decide which pairs are mined.
        with torch.autocast(descriptors.device.type, enabled=False):
            descriptors = descriptors.float()
            places = places.to(descriptors.device)
            mined = self._miner(descriptors, places)
            loss = self._loss(descriptors, places, mined)
        anchors = torch.cat([mined[0], mined[2]]).unique()
        return MultiSimilarityTerms(loss, len(anchors) / max(len(descriptors), 1))


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        # Each process has its own copy of the loss; DDP divides what they find by their number, so here it is summed.
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        rows = len(gradient) // dist.get_world_size()
        return gradient[dist.get_rank() * rows :][:rows]


def gather(values: torch.Tensor) -> torch.Tensor:
    """(processes * rows, ...) of each process's (rows, ...), in the order of the processes; all give equally many rows.

    Gradients reach each process's own model: the loss of what comes back, made by every process, has under DDP the
    gradient of one process with all rows.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return _Gathered.apply(values) if several else values
