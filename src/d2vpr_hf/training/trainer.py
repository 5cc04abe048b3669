"""Training from arguments to a checkpoint folder: one loop for both stages, and what stands around it."""

import json
import logging
import math
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..messages import first_few, percent
from ..protocols.places import TrainingPlaces
from .arguments import TrainingArguments
from .data.batches import TrainingBatch, training_loader
from .data.sampler import PlaceSampler
from .fitted_starts import fit_starts
from .launching import make_accelerator, threads_each, threads_set
from .parts import (
    Trainee,
    describe_stage,
    make_images,
    make_sampler,
    make_student,
    open_places,
    open_targets,
    open_trainee,
    save_trainee,
)
from .run import Progress, RunFolder, drafted, draw_plots
from .schedule import Schedule, make_optimizer, set_learning_rate, set_training
from .stages import Stage, make_stage
from .targets import Targets, Whitening, fit_whitening
from .teachers import Teacher, TeacherNetwork
from .validation import Validator

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class TrainingStopped(RuntimeError):  # noqa: N818 - reads as what it is
    """A run whose loss became NaN or infinite; the message names step, photos and the last good weights."""


@dataclass
class TrainingLoop:
    """A run under way: whoever made its parts calls `go_on_from` where there is a state, and `run`.

    Attributes:
        student: the trainee's model with its projection, prepared by the accelerator, as is `optimizer`.
        frozen: modules of the model that aren't trained.
        progress: how far the run has come.
    """

    arguments: TrainingArguments
    folder: RunFolder
    accelerator: Accelerator
    trainee: Trainee
    places: TrainingPlaces
    targets: Targets | None
    student: nn.Module
    frozen: list[nn.Module]
    optimizer: torch.optim.Optimizer
    stage: Stage
    sampler: PlaceSampler
    loader: DataLoader
    validator: Validator
    schedule: Schedule
    progress: Progress = field(default_factory=Progress)
    _logged_at: float = 0.0
    _logged_images: int = 0

    def run(self) -> None:
        """Steps to the end of the schedule, or until validation stops getting better."""
        arguments, progress = self.arguments, self.progress
        self._logged_at, self._logged_images = time.perf_counter(), progress.images
        self.set_training()
        with self.bar() as bar:
            if progress.step == 0 and getattr(arguments, "validate_first", False) and self.validator.protocols:
                self.validate(bar)
            while progress.step < self.schedule.steps and not self.out_of_patience:
                for batches, last in self.rest_of_epoch():
                    figures = self.step(batches)
                    images = sum(len(batch.rows) for batch in batches) * self.accelerator.num_processes
                    progress.add(figures, images=images, last_of_epoch=last)
                    bar.update()
                    finished = progress.step == self.schedule.steps
                    if finished or progress.step % arguments.log_every == 0:
                        self.log(bar)
                    if self.validator.protocols and (finished or self.validation_due(last)):
                        self.validate(bar)
                    if finished or self.out_of_patience or progress.step % arguments.save_every == 0:
                        self.save_state()
                    if finished or self.out_of_patience:
                        return

    def rest_of_epoch(self) -> Iterator[tuple[list[TrainingBatch], bool]]:
        """The batches of each step that is left of the epoch, and whether it is the last."""
        size = self.arguments.gradient_accumulation_steps
        self.sampler.set_epoch(self.progress.epoch, self.progress.epoch_step * size)
        steps = len(self.sampler) // size
        if not steps:
            raise ValueError(
                f"Epoch {self.progress.epoch} has too few batches for a step of {size}. Give more places, or fewer "
                "places_per_batch."
            )
        batches = iter(self.loader)
        for number in range(steps):
            yield list(islice(batches, size)), number == steps - 1

    def step(self, batches: Iterable[TrainingBatch]) -> dict[str, float]:
        """One step of the optimiser; returns the figures of its batches, averaged over batches and processes."""
        accelerator, optimizer = self.accelerator, self.optimizer
        set_learning_rate(optimizer, self.schedule.learning_rate(self.progress.step))
        made = []
        for batch in batches:
            for path, reason in batch.replaced:
                logger.warning("%s: %s. Another photo stands in for it.", path, reason)
            moved = batch.to(accelerator.device)
            with accelerator.accumulate(self.student):
                replaced = torch.tensor(float(len(batch.replaced)), device=accelerator.device)
                means = accelerator.reduce(self.stage.backward(moved) | {"replaced": replaced}, "mean")
                figures = {name: value.item() for name, value in means.items()}
                self.check_finite("loss", figures["loss"], batch)
                self.progress.replaced += round(figures.pop("replaced") * accelerator.num_processes)
                if accelerator.sync_gradients and self.arguments.max_grad_norm:
                    length = accelerator.clip_grad_norm_(self.student.parameters(), self.arguments.max_grad_norm)
                    if accelerator.mixed_precision != "fp16":  # whose scaler skips such steps by itself
                        self.check_finite("gradient", float(length), batch)
                optimizer.step()
                optimizer.zero_grad()
            made.append(figures)
        return {name: sum(figures[name] for figures in made) / len(made) for name in made[0]}

    def check_finite(self, what: str, value: float, batch: TrainingBatch) -> None:
        """Stops the run before the weights take a step by NaN or infinity."""
        if math.isfinite(value):
            return
        names = [self.places.names[row] for row in batch.rows]
        record = self.folder.root / f"stopped-at-step-{self.progress.step + 1}-{self.accelerator.process_index}.json"
        record.write_text(json.dumps({"step": self.progress.step + 1, what: str(value), "photos": names}, indent=2))
        raise TrainingStopped(
            f"The {what} is {value} at step {self.progress.step + 1}, so training stops before the weights take it. "
            f"Photos of the step: {first_few(names, 4)} ({record}). The last good weights: {self.folder.last_good()}. "
            "Lower learning_rate, or take mixed_precision no."
        )

    def log(self, bar: tqdm) -> None:
        """One line of metrics: means since the last one."""
        now = time.perf_counter()
        images_per_s = (self.progress.images - self._logged_images) / (now - self._logged_at)
        self._logged_at, self._logged_images = now, self.progress.images
        figures = self.progress.means()
        record = {
            "step": self.progress.step,
            "epoch": self.progress.step / self.schedule.steps_per_epoch,
            **figures,
            "learning_rate": self.schedule.learning_rate(self.progress.step - 1),
            "images_per_s": images_per_s,
            "replaced": self.progress.replaced,
        }
        bar.set_postfix(loss=f"{figures['loss']:.4f}", images_per_s=f"{images_per_s:.1f}")
        self.record(record, {name: value for name, value in record.items() if name != "step"})

    def record(self, record: dict[str, Any], figures: dict[str, float]) -> None:
        """Hands the figures to the tracker, and writes the record down as a line of metrics."""
        self.accelerator.log(figures, step=record["step"])
        if self.accelerator.is_main_process:
            self.folder.append(record)

    def validation_due(self, last_of_epoch: bool) -> bool:
        every = self.arguments.validate_every
        return last_of_epoch if every is None else self.progress.step % every == 0

    @property
    def out_of_patience(self) -> bool:
        return self.arguments.patience is not None and self.progress.waited >= self.arguments.patience

    def validate(self, bar: tqdm) -> None:
        """Recall of the weights as they are; the best so far are kept as a checkpoint."""
        started = time.perf_counter()
        found = [self.validator.measure(self.trainee.model) if self.accelerator.is_main_process else None]
        recalls = broadcast_object_list(found)[0]  # the others wait here
        protocol, first = next(iter(recalls.items()))
        best = self.progress.judge(first[f"recall@{self.validator.k}"])
        record = {"step": self.progress.step, "validation": recalls, "best": best}
        figures = {f"{name} {metric}": share for name, each in recalls.items() for metric, share in each.items()}
        self.record(record, figures)
        words = ", ".join(f"{name} {percent(share)}" for name, share in first.items())
        if self.accelerator.is_main_process:
            mark = " (best so far)" if best else ""
            bar.write(f"step {self.progress.step}: {protocol} {words}{mark}", file=sys.stderr)
        if best:
            self.save_checkpoint(self.folder.best_folder(self.progress.step))
        self.set_training()
        # Validation isn't training time.
        self._logged_at += time.perf_counter() - started

    def save_checkpoint(self, folder: Path) -> None:
        """The model as it is now, with what it was trained on, by what and how far."""
        teachers = self.targets.teachers if self.targets else []
        stage = describe_stage(self.arguments, self.progress, self.accelerator, self.places, self.sampler, teachers)
        save_trainee(folder, self.trainee, self.student, self.accelerator, stage)

    def save_state(self) -> None:
        """Everything that the run needs to go on from here, in one folder."""
        state = self.folder.state_folder(self.progress.step)
        with drafted(state, self.accelerator) as draft:
            self.accelerator.save_state(str(draft))
            self.progress.teacher_dtype = self.targets.teachers[0].dtype if self.targets else None
            if self.accelerator.is_main_process:
                self.progress.save(draft)
        if self.accelerator.is_main_process:
            self.folder.keep_newest_states(self.arguments.keep_states)
            # A run that goes on from an older state needs the best weights as they were then.
            self.folder.keep_best({Progress.load(state).best_step for state in self.folder.states()})

    def go_on_from(self, state: Path) -> None:
        """Brings weights, optimiser, random states and counters back, and forgets what was measured since."""
        self.accelerator.load_state(str(state))
        self.progress = Progress.load(state)
        if self.accelerator.is_main_process:
            self.folder.forget_after(self.progress.step)

    def set_training(self) -> None:
        self.student.train()
        set_training(self.trainee.model, self.frozen, frozen_batchnorm=self.arguments.frozen_batchnorm)

    def bar(self) -> tqdm:
        return tqdm(
            total=self.schedule.steps,
            initial=self.progress.step,
            desc=self.arguments.stage,
            unit="step",
            file=sys.stderr,
            disable=not self.accelerator.is_main_process,
        )


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
        teacher: in place of those that the arguments name: a `Teacher`, or any image network as a
            `TeacherNetwork`.
        places: training photos in place of those that the arguments name: a `datasets.Dataset` with an image and a
            place column, or what `read_training_places` gives.

    Returns: where the checkpoint lies; everything else is in the run's folder (see `training/run.py`).
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
        loop = _prepare(arguments, folder, accelerator, state, teacher, places)
        if accelerator.is_main_process:
            _announce(loop)
            folder.begin(arguments)
        accelerator.wait_for_everyone()
        if state is not None:
            loop.go_on_from(state)
        if arguments.tracker != "none":
            plain = {name: value for name, value in arguments.to_dict().items() if isinstance(value, int | float | str)}
            accelerator.init_trackers("d2vpr", config=plain)
        try:
            loop.run()
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
        return _finish(loop)


def _prepare(
    arguments: TrainingArguments,
    folder: RunFolder,
    accelerator: Accelerator,
    state: Path | None,
    teacher: Teacher | TeacherNetwork | None,
    places: "TrainingPlaces | Dataset | None",
) -> TrainingLoop:
    """Everything that the loop needs, on its device."""
    trainee = open_trainee(arguments)
    places = open_places(arguments, places)
    sampler = make_sampler(arguments, places, accelerator)
    validator = Validator(arguments.validation, k=arguments.validation_k, processor=trainee.processor)
    dtype = Progress.load(state).teacher_dtype if state else None
    targets = open_targets(arguments, trainee.processor, accelerator.device, teacher, dtype)
    images = make_images(arguments, places, trainee.processor, targets)
    if targets and arguments.teacher_whitening is not None:
        # A run that goes on takes the one that it began with.
        if accelerator.is_main_process and not arguments.resume:
            for number, member in enumerate(targets.members):
                fitted = fit_whitening(member, images, arguments.teacher_whitening, arguments.seed)
                fitted.save(folder.whitening(number))
        accelerator.wait_for_everyone()
        for number, member in enumerate(targets.members):
            member.whitening = Whitening.load(folder.whitening(number))
    if state is None and accelerator.is_main_process:
        # Other processes get what is fitted when the student is prepared.
        model, known = trainee.model.to(accelerator.device), targets.teachers[0] if targets else None
        fit_starts(arguments, model, images, sampler, accelerator.mixed_precision, known)
    accelerator.wait_for_everyone()
    student, frozen = make_student(arguments, trainee, targets.width if targets else None)
    student, optimizer = accelerator.prepare(student, make_optimizer(arguments, student))
    # Each process drops other activations out.
    set_seed(arguments.seed, device_specific=True)
    on_cuda = accelerator.device.type == "cuda"
    return TrainingLoop(
        arguments=arguments,
        folder=folder,
        accelerator=accelerator,
        trainee=trainee,
        places=places,
        targets=targets,
        student=student,
        frozen=frozen,
        optimizer=optimizer,
        stage=make_stage(arguments, accelerator, student, targets, getattr(trainee.model.config, "nested_dims", None)),
        sampler=sampler,
        loader=training_loader(images, sampler, workers=arguments.workers, pin_memory=on_cuda),
        validator=validator,
        schedule=Schedule.of(arguments, sampler.steps_per_epoch),
    )


def _announce(loop: TrainingLoop) -> None:
    """Says what really runs: processes, device, batch, steps, teacher."""
    arguments, accelerator, schedule, sampler = loop.arguments, loop.accelerator, loop.schedule, loop.sampler
    processes, device = accelerator.num_processes, accelerator.device.type
    parameters = [*loop.trainee.model.parameters()]
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    everything = sum(each.numel() for each in parameters)
    batch = f"{arguments.places_per_batch} places x {arguments.images_per_place} photos"
    if processes > 1:
        together = processes * arguments.places_per_batch * arguments.images_per_place
        batch += f" in each process, {together} photos together"
    logger.info(
        f"{arguments.stage} with {processes} process{'' if processes == 1 else 'es'} on {device}, precision "
        f"{accelerator.mixed_precision}: {trained} of {everything} parameters trained; batches of {batch}; "
        f"{schedule.steps} steps, {schedule.steps_per_epoch} an epoch."
    )
    for teacher in loop.targets.teachers if loop.targets else ():
        logger.info(f"The teacher is {teacher.name} ({teacher.mode}, {teacher.dtype}).")
    if sampler.dropped_places:
        logger.warning(
            f"{sampler.dropped_places} places with fewer than {arguments.images_per_place} photos are left out, and "
            f"with them {sampler.dropped_images} photos."
        )


def _finish(loop: TrainingLoop) -> TrainingResult:
    """Puts the best weights, or the last ones, where the checkpoint belongs, and draws the plots."""
    folder, progress, best = loop.folder, loop.progress, loop.progress.best_step >= 0
    if not best:
        loop.save_checkpoint(folder.checkpoint)
    if loop.accelerator.is_main_process:
        if best:
            folder.take_best(progress.best_step)
        draw_plots(folder.records(), folder.root)
    loop.accelerator.wait_for_everyone()
    return TrainingResult(
        checkpoint=folder.checkpoint,
        steps=progress.step,
        best_step=progress.best_step if best else progress.step,
        best_recall=progress.best_recall if best else None,
        metric=f"{next(iter(loop.validator.protocols))} recall@{loop.validator.k}" if best else None,
        replaced=progress.replaced,
    )
