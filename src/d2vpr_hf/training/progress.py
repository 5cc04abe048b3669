"""How far a run has come: what a saved state holds beside accelerate's own files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .run import PROGRESS


@dataclass
class Progress:
    """Counters of a run.

    Attributes:
        step: steps of the optimiser that are done.
        epoch, epoch_step: the epoch that is under way, from 0, and the steps done in it.
        images: photos seen by all processes.
        replaced: unreadable photos that another one stood in for.
        best_step, best_recall: of the best validation; -1 before the first.
        waited: validations since then.
        teacher_dtype: the precision that the teacher settled on; None without a teacher.
        sums, counted: figures since the last line of metrics, added up over so many steps.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    images: int = 0
    replaced: int = 0
    best_step: int = -1
    best_recall: float = -1.0
    waited: int = 0
    teacher_dtype: str | None = None
    sums: dict[str, float] = field(default_factory=dict)
    counted: int = 0

    def add(self, figures: dict[str, float], *, images: int, last_of_epoch: bool) -> None:
        """Counts one step with its figures."""
        self.step += 1
        self.epoch, self.epoch_step = (self.epoch + 1, 0) if last_of_epoch else (self.epoch, self.epoch_step + 1)
        self.images += images
        self.counted += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """The figures since the last call, averaged over their steps."""
        means = {name: total / self.counted for name, total in self.sums.items()}
        self.sums, self.counted = {}, 0
        return means

    def judge(self, recall: float) -> bool:
        """Whether a validation is the best so far; counts how many weren't."""
        if recall <= self.best_recall:
            self.waited += 1
            return False
        self.best_step, self.best_recall, self.waited = self.step, recall, 0
        return True

    def save(self, state: Path) -> None:
        (state / PROGRESS).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, state: Path) -> "Progress":
        return cls(**json.loads((state / PROGRESS).read_text(encoding="utf-8")))
