"""The student as a checkpoint folder, with what it was trained on, by what and how far."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ..models.checkpoint import TRAINING_FILE
from .arguments import TrainingArguments
from .progress import Progress
from .run import drafted, versions
from .setup import Trainee


@dataclass(frozen=True)
class TrainedCheckpoint:
    """Writes the student of a run, whenever it is asked for.

    Attributes:
        data: what the checkpoint says of the photos that it was trained on.
        teacher: likewise of the teacher; None without.
    """

    arguments: TrainingArguments
    accelerator: Accelerator
    student: nn.Module
    trainee: Trainee
    data: Mapping[str, Any]
    teacher: Mapping[str, Any] | None

    @property
    def model(self) -> nn.Module:
        """The model itself, without what training wraps around it."""
        return self.trainee.model

    def write(self, folder: Path, progress: Progress) -> None:
        """Writes the folder whole or not at all; all processes call this together."""
        weights = self.accelerator.get_state_dict(self.student)
        with drafted(folder, self.accelerator) as draft:
            if self.accelerator.is_main_process:
                # The projection to the teacher's width is dropped here.
                own = {
                    name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")
                }
                self.trainee.processor.save_pretrained(draft)
                self.model.save_pretrained(draft, state_dict=own)
                record = {"stages": [*self.trainee.history, self.describe(progress)]}
                (draft / TRAINING_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def describe(self, progress: Progress) -> dict[str, Any]:
        """This stage, as the checkpoint's `training.json` has it."""
        best = None if progress.best_step < 0 else {"step": progress.best_step, "recall": progress.best_recall}
        if best is not None:
            best |= {"metric": f"recall@{self.arguments.validation_k}", "validation": self.arguments.validation[0]}
        return {
            "stage": self.arguments.stage,
            "base_model": self.arguments.model,
            "step": progress.step,
            "images": progress.images,
            "processes": self.accelerator.num_processes,
            "best": best,
            "data": dict(self.data),
            "teacher": None if self.teacher is None else dict(self.teacher),
            "arguments": self.arguments.to_dict(),
            "versions": versions(),
        }
