"""One loop for both stages: fetch, forward, loss, backward, step, log, validate, save."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from .arguments import TrainingArguments
from .checkpointing import TrainedCheckpoint
from .data.batches import TrainingBatch
from .data.sampler import PlaceSampler
from .progress import Progress
from .run import RunFolder, drafted
from .schedule import Schedule
from .stages import Stage
from .teachers import Teacher
from .trainable import set_training
from .validation import Validation, Validator

logger = logging.getLogger(__name__)

_FILES_SHOWN = 4


class TrainingStopped(RuntimeError):  # noqa: N818 - reads as what it is
    """A run whose loss is no number any more; the message names step, photos and the last good weights."""


@dataclass
class TrainingLoop:
    """A run under way: whoever made its parts calls `go_on_from` where there is a state, and `run`.

    Attributes:
        student: prepared by the accelerator, as is `optimizer`.
        frozen: modules of the student that aren't trained.
        names: what each row of the training set is called.
        checkpoint: writes the student as a checkpoint folder.
        progress: how far the run has come.
    """

    arguments: TrainingArguments
    folder: RunFolder
    accelerator: Accelerator
    student: nn.Module
    frozen: list[nn.Module]
    optimizer: Any
    stage: Stage
    names: list[str]
    sampler: PlaceSampler
    loader: DataLoader
    validator: Validator
    schedule: Schedule
    checkpoint: TrainedCheckpoint
    teacher: Teacher | None
    progress: Progress = field(default_factory=Progress)
    _logged_at: float = 0.0
    _logged_images: int = 0

    def run(self) -> None:
        """Steps to the end of the schedule, or until validation stops getting better."""
        arguments, progress = self.arguments, self.progress
        self._logged_at, self._logged_images = time.perf_counter(), progress.images
        self.set_training()
        with self.bar() as bar:
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
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.progress.step)
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
        """Stops the run before the weights take a step by what is no number."""
        if math.isfinite(value):
            return
        names = [self.names[row] for row in batch.rows]
        record = self.folder.root / f"stopped-at-step-{self.progress.step + 1}-{self.accelerator.process_index}.json"
        record.write_text(json.dumps({"step": self.progress.step + 1, what: str(value), "photos": names}, indent=2))
        raise TrainingStopped(
            f"The {what} is {value} at step {self.progress.step + 1}, so it stops before the weights take it. Its "
            f"photos are {', '.join(names[:_FILES_SHOWN])} and {max(len(names) - _FILES_SHOWN, 0)} more ({record}). "
            f"The last good weights: {self.folder.last_good()}. Lower learning_rate, or take mixed_precision no."
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
        found: list[Validation | None] = [None]
        if self.accelerator.is_main_process:
            found[0] = self.validator.measure(self.checkpoint.model)
        # The others wait here.
        validation = broadcast_object_list(found)[0]
        recall = validation.deciding(self.validator.k)
        best = self.progress.judge(recall)
        record = {"step": self.progress.step, "validation": validation.recalls, "best": best}
        protocol, first = next(iter(validation.recalls.items()))
        recalls = validation.recalls.items()
        self.record(record, {f"{name} {metric}": share for name, each in recalls for metric, share in each.items()})
        if self.accelerator.is_main_process:
            words = ", ".join(f"{name} {100 * share:.1f} %" for name, share in first.items())
            mark = " (best so far)" if best else ""
            bar.write(f"step {self.progress.step}: {protocol} {words}{mark}", file=sys.stderr)
        if best:
            self.checkpoint.write(self.folder.best_folder(self.progress.step), self.progress)
        self.set_training()
        # Validation isn't training time.
        self._logged_at += time.perf_counter() - started

    def save_state(self) -> None:
        """Everything that the run needs to go on from here, in one folder."""
        state = self.folder.state_folder(self.progress.step)
        with drafted(state, self.accelerator) as draft:
            self.accelerator.save_state(str(draft))
            self.progress.teacher_dtype = self.teacher.dtype if self.teacher else None
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
        if self.teacher:
            # Measured anew on another batch it might come out differently.
            self.teacher.dtype = self.progress.teacher_dtype
        if self.accelerator.is_main_process:
            self.folder.forget_after(self.progress.step)

    def set_training(self) -> None:
        self.student.train()
        set_training(self.checkpoint.model, self.frozen, frozen_batchnorm=self.arguments.frozen_batchnorm)

    def bar(self) -> tqdm:
        return tqdm(
            total=self.schedule.steps,
            initial=self.progress.step,
            desc=self.arguments.stage,
            unit="step",
            file=sys.stderr,
            disable=not self.accelerator.is_main_process,
        )
