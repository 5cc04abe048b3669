"""Training from arguments to a checkpoint folder: opens what a run needs, runs the loop, and hands out its best."""

import logging
import multiprocessing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from ..protocols.places import TrainingPlaces
from .arguments import DistillArguments, TrainingArguments
from .checkpointing import TrainedCheckpoint
from .data.batches import TrainingImages, training_loader
from .data.sampler import PlaceSampler
from .launching import make_accelerator, threads_each, threads_set
from .loop import TrainingLoop, TrainingStopped
from .plots import draw_plots
from .run import RunFolder, copy_folder
from .running_statistics import checkpoint_gradients
from .schedule import Schedule
from .setup import (
    Trainee,
    describe_data,
    describe_teacher,
    make_images,
    make_sampler,
    open_places,
    open_targets,
    open_trainee,
)
from .stages import Student, make_stage
from .targets import LiveTargets, fit_whitening, settle_precision
from .teachers import Teacher, TeacherNetwork
from .trainable import freeze
from .validation import Validator
from .whitening import Whitening

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["TrainingResult", "TrainingStopped", "train"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a run has made.

    Attributes:
        checkpoint: folder that `AutoModel.from_pretrained` opens: the weights with the best recall, or the last ones
            where nothing was validated.
        steps: of the optimiser.
        best_step: which of them the checkpoint holds.
        best_recall: its recall in the deciding validation; None without validation.
        metric: which recall that is, such as "folders recall@5"; None without validation.
        replaced: unreadable photos that another one stood in for.
    """

    checkpoint: Path
    steps: int
    best_step: int
    best_recall: float | None
    metric: str | None
    replaced: int

    def to_json(self) -> dict[str, Any]:
        """All of it, the path as text."""
        return {**asdict(self), "checkpoint": str(self.checkpoint)}


def train(
    arguments: TrainingArguments,
    *,
    teacher: Teacher | TeacherNetwork | None = None,
    places: "TrainingPlaces | Dataset | None" = None,
) -> TrainingResult:
    """Runs one stage of training, from its arguments to a checkpoint folder.

    Args:
        arguments: `DistillArguments` or `FinetuneArguments`, or what `resolve_arguments` makes of a configuration.
        teacher: in place of the one that the arguments name: a `Teacher`, or any image network as a
            `TeacherNetwork`.
        places: training photos in place of those that the arguments name: a `datasets.Dataset` with an image and a
            place column, or what `read_training_places` gives.

    Returns: where the checkpoint lies; everything else is in the run's folder (see `run_folder`).
    Raises: ValueError or OSError if arguments, photos, model or teacher don't fit. FileExistsError if the run's folder
        is in use. RuntimeError if the launcher started fewer processes than asked for. TrainingStopped if the loss is
        no number any more.
    """
    # What multiprocessing itself looks at before it lets an imported script start processes.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "train() runs again in a worker process, because a worker imports the script that started it. Put the call "
            'under `if __name__ == "__main__":`, or set workers to 0.'
        )
    folder = RunFolder(arguments.output)
    accelerator = make_accelerator(arguments, folder)
    # Before photos and models are opened, which may take minutes.
    state = folder.newest_state(arguments) if arguments.resume else folder.check_free()
    with threads_set(arguments.threads or threads_each(accelerator.num_processes)):
        loop = _prepare(arguments, folder, accelerator, teacher, places)
        if accelerator.is_main_process:
            folder.begin(arguments)
        accelerator.wait_for_everyone()
        if state is not None:
            loop.go_on_from(state)
        _run(loop)
        return _finish(loop)


def _run(loop: TrainingLoop) -> None:
    """The loop, with accelerate's trackers around it."""
    arguments, accelerator = loop.arguments, loop.accelerator
    if arguments.tracker != "none":
        settings = {name: value for name, value in arguments.to_dict().items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("d2vpr", config=settings)
    try:
        loop.run()
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _prepare(
    arguments: TrainingArguments,
    folder: RunFolder,
    accelerator: Accelerator,
    network: Teacher | TeacherNetwork | None,
    places: "TrainingPlaces | Dataset | None",
) -> TrainingLoop:
    """Everything that the loop needs, on its device."""
    trainee = open_trainee(arguments)
    places = open_places(arguments, places)
    sampler = make_sampler(arguments, places, accelerator)
    validator = Validator(arguments.validation, k=arguments.validation_k, processor=trainee.processor)
    targets = open_targets(arguments, places, trainee.processor, accelerator.device, network)
    images = make_images(arguments, places, trainee.processor)
    if targets:
        settle_precision(targets.teacher, images, next(iter(sampler)), arguments.images_per_place, accelerator)
        if arguments.teacher_whitening is not None:
            targets.whitening = _whitening(arguments, folder, accelerator, targets, images)
    student, frozen = _student(arguments, trainee, targets.width if targets else None)
    optimizer = make_optimizer(arguments, student)
    student, optimizer = accelerator.prepare(student, optimizer)
    # Each process drops other activations out.
    set_seed(arguments.seed, device_specific=True)
    schedule = Schedule.of(arguments, sampler.steps_per_epoch)
    _announce(arguments, accelerator, trainee, sampler, schedule, targets)
    return TrainingLoop(
        arguments=arguments,
        folder=folder,
        accelerator=accelerator,
        student=student,
        frozen=frozen,
        optimizer=optimizer,
        stage=make_stage(arguments, accelerator, student, targets, getattr(trainee.model.config, "nested_dims", None)),
        names=places.names,
        sampler=sampler,
        loader=training_loader(
            images, sampler, workers=arguments.workers, pin_memory=accelerator.device.type == "cuda"
        ),
        validator=validator,
        schedule=schedule,
        checkpoint=TrainedCheckpoint(
            arguments,
            accelerator,
            student,
            trainee,
            describe_data(arguments, places, sampler),
            describe_teacher(targets.teacher) if targets else None,
        ),
        teacher=targets.teacher if targets else None,
    )


def _whitening(
    arguments: TrainingArguments,
    folder: RunFolder,
    accelerator: Accelerator,
    targets: LiveTargets,
    images: TrainingImages,
) -> Whitening:
    """Fitted on the first process; a run that goes on takes the one that it began with."""
    if accelerator.is_main_process and not arguments.resume:
        folder.root.mkdir(parents=True, exist_ok=True)
        fit_whitening(targets, images, arguments.teacher_whitening, arguments.seed).save(folder.whitening)
    accelerator.wait_for_everyone()
    return Whitening.load(folder.whitening)


def _student(
    arguments: TrainingArguments, trainee: Trainee, teacher_width: int | None
) -> tuple[Student, list[nn.Module]]:
    """The student as the arguments want it trained, and what of it is frozen.

    Raises: ValueError for chunks of a model whose images look at each other.
    """
    model, config = trainee.model, trainee.model.config
    if getattr(arguments, "descriptor_chunk", None) and config.cross_image_encoder:
        raise ValueError(
            "descriptor_chunk is set, but the model's cross-image encoder looks at a whole batch, which chunks cut "
            "apart. Leave descriptor_chunk out, or start from a checkpoint without the encoder."
        )
    frozen = freeze(model, trainable_blocks=arguments.trainable_blocks, trainable_modules=arguments.trainable_modules)
    if isinstance(arguments, DistillArguments) and getattr(config, "head_dim", None):
        # Distilling follows the regions, which lie before the head.
        model.head.requires_grad_(False)
        frozen.append(model.head)
    if arguments.gradient_checkpointing:
        checkpoint_gradients(model)
    student = Student(
        model, teacher_width, signed=arguments.teacher_whitening is not None, needs_tokens=arguments.token_weight > 0
    )
    if arguments.sync_batchnorm:
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
    if arguments.compile:
        student.compile()
    return student, frozen


def make_optimizer(arguments: TrainingArguments, student: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all that is trained.

    Raises: ValueError if nothing is.
    """
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("Nothing is left to train. Raise trainable_blocks, or name trainable_modules.")
    kind = torch.optim.AdamW if arguments.optimizer == "adamw" else torch.optim.Adam
    return kind(trained, lr=arguments.learning_rate, weight_decay=arguments.weight_decay)


def _announce(
    arguments: TrainingArguments,
    accelerator: Accelerator,
    trainee: Trainee,
    sampler: PlaceSampler,
    schedule: Schedule,
    targets: LiveTargets | None,
) -> None:
    """Says what really runs: processes, device, batch, steps, teacher."""
    if not accelerator.is_main_process:
        return
    trained = sum(each.numel() for each in trainee.model.parameters() if each.requires_grad)
    everything = sum(each.numel() for each in trainee.model.parameters())
    processes, batch = accelerator.num_processes, arguments.places_per_batch * arguments.images_per_place
    logger.info(
        "%s with %d process%s on %s, precision %s: %d of %d parameters trained; batches of %d places x %d photos%s; "
        "%d steps, %d an epoch.",
        arguments.stage,
        processes,
        "" if processes == 1 else "es",
        accelerator.device.type,
        accelerator.mixed_precision,
        trained,
        everything,
        arguments.places_per_batch,
        arguments.images_per_place,
        "" if processes == 1 else f" in each process, {processes * batch} photos together",
        schedule.steps,
        schedule.steps_per_epoch,
    )
    if targets:
        logger.info("The teacher is %s (%s).", targets.teacher.name, targets.teacher.mode)
    if sampler.dropped_places:
        logger.warning(
            "%d places with fewer than %d photos are left out, and with them %d photos.",
            sampler.dropped_places,
            arguments.images_per_place,
            sampler.dropped_images,
        )


def _finish(loop: TrainingLoop) -> TrainingResult:
    """Puts the best weights, or the last ones, where the checkpoint belongs, and draws the plots."""
    folder, progress = loop.folder, loop.progress
    if progress.best_step < 0:
        loop.checkpoint.write(folder.checkpoint, progress)
    elif loop.accelerator.is_main_process:
        copy_folder(folder.best_folder(progress.best_step), folder.checkpoint)
    if loop.accelerator.is_main_process:
        draw_plots(folder.records(), folder.root)
    loop.accelerator.wait_for_everyone()
    best = progress.best_step >= 0
    return TrainingResult(
        checkpoint=folder.checkpoint,
        steps=progress.step,
        best_step=progress.best_step if best else progress.step,
        best_recall=progress.best_recall if best else None,
        metric=f"{next(iter(loop.validator.protocols))} recall@{loop.validator.k}" if best else None,
        replaced=progress.replaced,
    )
