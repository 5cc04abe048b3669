"""The folder of a training run: what was asked for, what was measured, states to go on from, the checkpoint.

    arguments.json  versions.json          what runs
    metrics.jsonl                          one line every so many steps, and one a validation
    loss.png  recall.png                   the same as pictures
    states/step-00000500/                  everything that a run needs to go on, of the last few saves
    best/step-00000400/                    the checkpoint with the best recall so far
    checkpoint/                            in the end: the best weights, or the last where nothing was validated

Every file and folder is written beside its place and renamed into it, so that a run that is killed leaves none by half.
A run that goes on removes what was left beside.
"""

import json
import platform
import shutil
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..files import TEMPORARY_SUFFIX, replace_file, replacing, replacing_folder
from ..version import __version__
from .arguments import FREE_ON_RESUME, TrainingArguments

ARGUMENTS, VERSIONS, METRICS = "arguments.json", "versions.json", "metrics.jsonl"
CHECKPOINT, STATES, BEST = "checkpoint", "states", "best"
PROGRESS, TRACKER = "progress.json", "tracker"
WHITENING = "teacher_whitening{}.safetensors"
# Of a folder in the making, until d2vpr_hf 0.1.
OLD_DRAFT = ".draft"

# Of a picture.
# Okabe and Ito's colours, which nearly everybody tells apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a4d8")

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "pytorch-metric-learning", "numpy", "pillow")


class RunFolder:
    """The folder of one run, from which it can go on.

    Attributes:
        root: the folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @property
    def metrics(self) -> Path:
        return self.root / METRICS

    def whitening(self, number: int = 0) -> Path:
        """What centres and whitens the descriptors of the teacher with this number."""
        return self.root / (WHITENING.format("") if number == 0 else WHITENING.format(f"_{number + 1}"))

    @property
    def checkpoint(self) -> Path:
        return self.root / CHECKPOINT

    @property
    def is_finished(self) -> bool:
        """Whether its checkpoint is whole, which is the last thing that a run writes."""
        return self.checkpoint.is_dir()

    def check_free(self) -> None:
        """Raises FileExistsError if the folder holds a run, or anything else."""
        # A run that never came to its first step has left nothing to lose.
        begun = {ARGUMENTS, VERSIONS, TRACKER, *(path.name for path in self.root.glob(WHITENING.format("*")))}
        if self.root.exists() and (not self.root.is_dir() or {path.name for path in self.root.iterdir()} - begun):
            what = "a training run" if (self.root / ARGUMENTS).is_file() else "files that no training run wrote"
            raise FileExistsError(
                f"{self.root} holds {what}. Go on with a run by --resume, or name another folder with --output."
            )

    def newest_state(self, arguments: TrainingArguments) -> Path:
        """The newest state of the run in the folder, which was asked for the same.

        Raises: FileNotFoundError if there is no run or no state. ValueError for a key that would change batches or
            losses.
        """
        if not (self.root / ARGUMENTS).is_file():
            raise FileNotFoundError(f"{self.root} holds no training run to go on with. Leave --resume out.")
        # A key that the run doesn't know yet had the effect of its default.
        before = arguments.defaults() | json.loads((self.root / ARGUMENTS).read_text(encoding="utf-8"))
        now = arguments.to_dict()
        for name in sorted((before.keys() | now.keys()) - FREE_ON_RESUME):
            if before.get(name) != now.get(name):
                raise ValueError(
                    f"{name} is {now.get(name)!r}, but the run in {self.root} has {before.get(name)!r}, and can't go "
                    "on as another. Give the same, or start a new run in another folder with --output."
                )
        states = self.states()
        if not states:
            raise FileNotFoundError(
                f"The run in {self.root} was stopped before it saved a state. Remove the folder and start again "
                "without --resume; a smaller --save_every saves earlier."
            )
        return states[-1]

    def begin(self, arguments: TrainingArguments) -> None:
        """Makes the folder, or rids it of what a killed run left by half, and writes down what runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        for left in [*self.root.rglob(f"*{TEMPORARY_SUFFIX}"), *self.root.rglob(f"*{OLD_DRAFT}")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        self._write(ARGUMENTS, arguments.to_dict())
        self._write(VERSIONS, versions())

    def states(self) -> list[Path]:
        """The whole states, oldest first."""
        return sorted((self.root / STATES).glob("step-*[0-9]"))

    def last_good(self) -> str:
        """In words: where the weights before now lie."""
        found = [*self.states()[-1:], *sorted((self.root / BEST).glob("step-*[0-9]"))[-1:]]
        return " and ".join(str(path) for path in found) or "nothing was saved yet"

    def state_folder(self, step: int) -> Path:
        return self.root / STATES / f"step-{step:08d}"

    def best_folder(self, step: int) -> Path:
        return self.root / BEST / f"step-{step:08d}"

    def keep_newest_states(self, count: int) -> None:
        """Removes all but the newest states."""
        for state in self.states()[:-count]:
            discard(state)

    def take_best(self, step: int) -> None:
        """Makes the best weights of this step the checkpoint."""
        with replacing_folder(self.checkpoint, overwrite=True) as draft:
            shutil.copytree(self.best_folder(step), draft, dirs_exist_ok=True)

    def keep_best(self, steps: Collection[int]) -> None:
        """Removes the best weights of all but these steps."""
        kept = {self.best_folder(step) for step in steps}
        for folder in (self.root / BEST).glob("step-*[0-9]"):
            if folder not in kept:
                discard(folder)

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line of metrics."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All lines of metrics; one that a killed run left by half is passed over."""
        if not self.metrics.is_file():
            return []
        records = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def forget_after(self, step: int) -> None:
        """Drops the lines of steps that are about to be made again."""
        kept = [record for record in self.records() if record["step"] <= step]
        replace_file(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def _write(self, name: str, content: dict[str, Any]) -> None:
        replace_file(self.root / name, json.dumps(content, indent=2) + "\n")


@contextmanager
def drafted(folder: Path, accelerator: Accelerator) -> Iterator[Path]:
    """A folder for all processes to fill, which takes its place when everything in it has reached the disk."""
    with ExitStack() as whole:
        draft = [None]
        if accelerator.is_main_process:
            draft[0] = whole.enter_context(replacing_folder(folder, overwrite=True))
        yield broadcast_object_list(draft)[0]
        accelerator.wait_for_everyone()
    accelerator.wait_for_everyone()


def discard(folder: Path) -> None:
    """Removes a folder; renamed first, so that a half removed one isn't taken for whole."""
    shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}{TEMPORARY_SUFFIX}")))


def versions() -> dict[str, Any]:
    """What the run runs on."""
    found = {"d2vpr_hf": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {**found, "command": sys.argv}


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


def draw_plots(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes loss.png, and recall.png where something was validated; returns their paths.

    Args:
        records: the lines of metrics.jsonl. The step of the last validation that is marked as the best gets a line.
        folder: of the run, whose name is the title.
    """
    best = max((record["step"] for record in records if record.get("best")), default=None)
    losses: dict[str, list[tuple[int, float]]] = {}
    recalls: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name == "loss" or name.endswith("_loss"):
                losses.setdefault(name.replace("_", " "), []).append((record["step"], value))
        for name, measures in record.get("validation", {}).items():
            for measure, share in measures.items():
                recalls.setdefault(f"{name} {measure}", []).append((record["step"], 100 * share))
    pictures = (("loss.png", losses, "loss"), ("recall.png", recalls, "queries answered, %"))
    return [_plot(folder / name, curves, label, best) for name, curves, label in pictures if curves]


def _plot(path: Path, curves: dict[str, list[tuple[int, float]]], label: str, best: int | None) -> Path:
    # Its canvas draws without a window, and leaves pyplot's global state alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for colour, (name, points) in zip(cycle(_COLOURS), curves.items(), strict=False):
        marker = "o" if len(points) < 30 else None
        axes.plot(*zip(*points, strict=True), label=name, color=colour, marker=marker, markersize=4)
    if best is not None:
        axes.axvline(best, color="black", linewidth=1, linestyle=":", label=f"best, step {best}")
    axes.set(title=path.parent.name, xlabel="step", ylabel=label)
    axes.grid(color="lightgrey")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png")
    return path
