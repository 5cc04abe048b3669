"""The two stages: what each makes of a batch, from pixel values to gradients. The loop is the same for both."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import ModelOutput

from ..models.d2vpr.backbone_d2vpr import running_statistics_kept
from .arguments import DistillArguments, FinetuneArguments, TrainingArguments
from .data.batches import TrainingBatch
from .losses import DistillationLoss, MultiSimilarity, StudentProjection, gather
from .targets import Targets
from .teachers import TeacherOutput


@dataclass
class StudentOutput(ModelOutput):
    """What the losses read of a student.

    Attributes:
        descriptors: (images, descriptor_dim) float32, of unit length.
        regional: (images, 14, teacher's width), brought to the teacher's width.
        tokens: (images, teacher's width, rows, columns), likewise; None where no loss reads them.
    """

    descriptors: torch.Tensor | None = None
    regional: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


class Student(nn.Module):
    """The model that is trained, with the projection to its teacher's width, which is dropped afterwards.

    Args:
        teacher_width: of the targets; None without a teacher.
        needs_tokens: whether a loss reads the patch tokens.
        signed: targets are centred, and a student's regions, which are never negative, meet them by a projection alone.
    """

    def __init__(
        self, model: nn.Module, teacher_width: int | None, *, needs_tokens: bool, signed: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.needs_tokens = needs_tokens
        config = model.config
        self.patch_size = config.backbone_config.patch_size
        width = getattr(config, "aggregator_dim", config.backbone_config.hidden_size)
        self.projection = StudentProjection(width, teacher_width or width, always=signed)

    def forward(self, pixel_values: torch.Tensor) -> StudentOutput:
        output = self.model(pixel_values)
        grid = tuple(side // self.patch_size for side in pixel_values.shape[-2:])
        tokens = output.last_hidden_state[:, 1:].transpose(1, 2).unflatten(2, grid)
        regional, tokens = self.projection(output.regional_descriptors, tokens if self.needs_tokens else None)
        return StudentOutput(output.pooler_output, regional, tokens)


class Stage(Protocol):
    """What the loop asks of a stage."""

    def backward(self, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        """Adds a batch's gradients to the student's; returns figures for the log, `loss` among them."""


class Distill:
    """Stage 1: the student's descriptors follow the teacher's."""

    def __init__(
        self, arguments: DistillArguments, accelerator: Accelerator, student: nn.Module, teacher: Targets
    ) -> None:
        self.accelerator = accelerator
        self.student = student
        self.following = Following(arguments, teacher)

    def backward(self, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        target = self.following.target(batch)
        terms = self.following.terms(self.student(batch.pixel_values), target)
        self.accelerator.backward(terms["loss"])
        return terms


class Following:
    """The distillation term of either stage."""

    def __init__(self, arguments: TrainingArguments, targets: Targets) -> None:
        self.targets = targets
        self.images_per_place = arguments.images_per_place
        self.loss = DistillationLoss(arguments.distillation_loss, arguments.region_weight, arguments.token_weight)

    def target(self, batch: TrainingBatch) -> TeacherOutput:
        return self.targets.teach_batch(batch, self.images_per_place)

    def terms(self, output: StudentOutput, target: TeacherOutput) -> dict[str, torch.Tensor]:
        """The loss, and its terms by name."""
        terms = self.loss(output.regional, target, output.tokens)
        found = {"loss": terms.loss, "descriptor_loss": terms.descriptor, "region_loss": terms.regions}
        return found if terms.tokens is None else found | {"token_loss": terms.tokens}


class Finetune:
    """Stage 2: descriptors of one place come together, of others apart; on request with the teacher's term kept.

    With `nested_dims`, such as (512, 256), the loss is the mean of the losses of so many first numbers, each mined by
    itself.
    """

    def __init__(
        self,
        arguments: FinetuneArguments,
        accelerator: Accelerator,
        student: nn.Module,
        teacher: Targets | None = None,
        nested_dims: Sequence[int] | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.student = student
        self.chunk = arguments.descriptor_chunk
        self.weight = arguments.distillation_weight
        self.nested_dims = nested_dims or (None,)
        self.following = Following(arguments, teacher) if teacher is not None else None
        self.loss = MultiSimilarity(arguments.alpha, arguments.beta, arguments.base, arguments.epsilon)

    def backward(self, batch: TrainingBatch) -> dict[str, torch.Tensor]:
        target = self.following.target(batch) if self.following else None
        if self.chunk is None or self.chunk >= len(batch.pixel_values):
            return self.backward_whole(batch, target)
        return self.backward_in_chunks(batch, target)

    def backward_whole(self, batch: TrainingBatch, target: TeacherOutput | None) -> dict[str, torch.Tensor]:
        output = self.student(batch.pixel_values)
        found = self.compare(output.descriptors, batch.places)
        if target is not None:
            found["distillation_loss"] = self.following.terms(output, target)["loss"]
            found["loss"] = found["loss"] + self.weight * found["distillation_loss"]
        self.accelerator.backward(found["loss"])
        return found

    def backward_in_chunks(self, batch: TrainingBatch, target: TeacherOutput | None) -> dict[str, torch.Tensor]:
        """The gradients of `backward_whole`, with the activations of one chunk at a time in memory.

        All descriptors are made without a graph, and the loss gives the gradient of each. Then each chunk is made once
        more, with a graph and the same random numbers, and takes its gradient on.
        """
        chunks = batch.pixel_values.split(self.chunk)
        moments, descriptors = [], []
        with torch.no_grad(), running_statistics_kept(self.student):
            for pixels in chunks:
                moments.append(ReplayedRandomness(pixels.device))
                descriptors.append(self.student(pixels).descriptors)
        leaf = torch.cat(descriptors).requires_grad_()
        found = self.compare(leaf, batch.places)
        gradients = torch.autograd.grad(found["loss"], leaf)[0].split(self.chunk)
        distilled = torch.zeros((), device=leaf.device)
        start = 0
        for number, (pixels, moment, gradient) in enumerate(zip(chunks, moments, gradients, strict=True)):
            last = number == len(chunks) - 1
            # Processes exchange gradients once, with the last chunk.
            with nullcontext() if last else self.accelerator.no_sync(self.student), moment.replayed():
                output = self.student(pixels)
                surrogate = (output.descriptors * gradient).sum()
                if target is not None:
                    part = rows_of(target, slice(start, start + len(pixels)))
                    share = len(pixels) / len(leaf)
                    term = share * self.following.terms(output, part)["loss"]
                    distilled += term.detach()
                    surrogate = surrogate + self.weight * term
                self.accelerator.backward(surrogate)
            start += len(pixels)
        if target is not None:
            found["distillation_loss"] = distilled
            found["loss"] = found["loss"] + self.weight * distilled
        return found

    def compare(self, descriptors: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss over the descriptors of all processes, and how many of them it could still learn from."""
        gathered, places = gather(descriptors), gather(places)
        # The loss takes a prefix of any length for one of unit length. None is the whole.
        terms = [self.loss(gathered[:, :dim], places) for dim in self.nested_dims]
        mined_share = sum(each.mined_share for each in terms) / len(terms)
        return {
            "loss": torch.stack([each.loss for each in terms]).mean(),
            "mined_share": torch.as_tensor(mined_share, device=descriptors.device),
        }


def rows_of(output: TeacherOutput, rows: slice) -> TeacherOutput:
    """Some images of a teacher's output."""
    tokens = output.patch_tokens
    return TeacherOutput(output.regional_descriptors[rows], None if tokens is None else tokens[rows])


def make_stage(
    arguments: TrainingArguments,
    accelerator: Accelerator,
    student: nn.Module,
    teacher: Targets | None,
    nested_dims: Sequence[int] | None = None,
) -> Stage:
    """The stage that the arguments ask for; `nested_dims` as the student's configuration has them."""
    if isinstance(arguments, DistillArguments):
        return Distill(arguments, accelerator, student, teacher)
    return Finetune(arguments, accelerator, student, teacher, nested_dims)


class ReplayedRandomness:
    """The state of the random generators at one moment, to which a block can return.

    A chunk whose descriptors were made without graph is made again with it: dropout must drop the same.
    """

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.cpu_state = torch.get_rng_state()
        self.device_states = [torch.cuda.get_rng_state(each) for each in self.devices]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within, random numbers are those that followed that moment; afterwards the generators are as before."""
        with torch.random.fork_rng(devices=self.devices):
            torch.set_rng_state(self.cpu_state)
            for device, state in zip(self.devices, self.device_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
