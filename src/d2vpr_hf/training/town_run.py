"""Both stages in a tiny size on towns that are drawn: a teacher of its own, a student that follows it, fine-tuning.

It shows the whole way on real image files in GSV-Cities' layout, in minutes on two cores. The towns that train, the
one that chooses the best weights and the one that is measured have different seeds, so that no place is in two.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import AutoImageProcessor, AutoModel

from ..evaluation.protocol import named_protocol
from ..evaluation.results import Evaluation
from ..evaluation.run import evaluate_protocol
from ..evaluation.table import Table
from ..files import replace_file
from ..messages import percent
from ..models.d2vpr.configuration_d2vpr import D2VprConfig
from ..models.d2vpr.modeling_d2vpr import D2VprModel
from ..retrieval.embedder import Embedder
from ..town.make import make_town
from .arguments import resolve_arguments
from .launching import threads_each, threads_set
from .run import RunFolder
from .trainer import train

# Of the photos that a tiny model takes in: pixels a side, of which a patch takes 14.
SIDE = 56
RESULTS = "results.json"
BACKBONE = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "mlp_ratio": 2, "image_size": SIDE}
STUDENT = {"backbone_config": BACKBONE, "recovery_layers": [1, 2, 3, 4], "aggregator_dim": 96}
TEACHER = {
    "model_type": "cricavpr",
    "backbone_config": BACKBONE,
    "region_sampling": "dense",
    "cross_image_encoder": False,
}
# The published loss pulls photos of a place together too weakly for weights that start from nothing: hours and weather
# then tell photos apart sooner than places do.
FINETUNE = {"stage": "finetune", "alpha": 10.0, "base": 0.5}
# Of the towns: each run of another seed takes seeds of its own from here on, far from those of tests and demos.
FIRST_SEED = 70_000
KS = (1, 5)


@dataclass(frozen=True)
class TownSizes:
    """How much a run on towns draws and trains; `places_per_batch` of all processes together."""

    places_per_batch: int = 16
    teacher_places: int = 500
    student_places: int = 500
    validation_places: int = 30
    validation_queries: int = 60
    test_places: int = 40
    test_queries: int = 100
    teacher_epochs: int = 36
    distill_epochs: int = 20
    finetune_epochs: int = 16


@dataclass(frozen=True)
class TownRun:
    """What both stages made of their towns.

    Attributes:
        evaluations: on the town that nothing was trained on, of random weights, the teacher, the distilled and the
            fine-tuned student, all with the same processor.
        checkpoint: of the fine-tuned student.
    """

    evaluations: dict[str, Evaluation]
    checkpoint: Path

    def table(self) -> Table:
        counts = next(iter(self.evaluations.values())).counts
        caption = f"a town of its own: {counts['queries']} queries, {counts['database']} database photos"
        rows = [[name, *(percent(evaluation.recall[k]) for k in KS)] for name, evaluation in self.evaluations.items()]
        return Table(["weights", *(f"recall@{k}" for k in KS)], rows, caption)

    def to_json(self) -> dict[str, Any]:
        return {
            "checkpoint": str(self.checkpoint),
            "recall": {name: {f"recall@{k}": each.recall[k] for k in KS} for name, each in self.evaluations.items()},
            "counts": next(iter(self.evaluations.values())).counts,
        }


def train_on_town(folder: str | Path, *, seed: int = 0, sizes: TownSizes | None = None) -> TownRun:
    """Draws towns into a new folder, trains teacher and student in it, and measures them on a town of its own.

    Args:
        folder: gets `towns/`, a run folder each in `teacher/`, `distill/` and `finetune/`, and results.json.
        seed: of towns, weights and batches.
        sizes: how much of everything; small by default.

    Raises: FileExistsError if the folder is in use.
    """
    root, sizes = Path(folder), sizes or TownSizes()
    state = PartialState(cpu=not torch.cuda.is_available())
    RunFolder(root).check_free()
    state.wait_for_everyone()
    if state.is_main_process:
        with threads_set(threads_each(1)):  # the other processes wait
            draw_towns(root / "towns", seed, sizes)
    state.wait_for_everyone()
    run_stage = partial(_train, root, seed, sizes.places_per_batch)
    teacher = run_stage("teacher", sizes.teacher_epochs, **FINETUNE, model_config=TEACHER)
    follows = {"stage": "distill", "model_config": STUDENT, "teacher": str(teacher), "token_weight": 1.0}
    distilled = run_stage("distill", sizes.distill_epochs, **follows)
    finetuned = run_stage("finetune", sizes.finetune_epochs, **FINETUNE, model=str(distilled))
    evaluations = {}
    if state.is_main_process:
        evaluations = measure(root, seed, {"teacher": teacher, "distilled": distilled, "fine-tuned": finetuned})
        replace_file(root / RESULTS, json.dumps(TownRun(evaluations, finetuned).to_json(), indent=2) + "\n")
    state.wait_for_everyone()
    return TownRun(evaluations, finetuned)


def draw_towns(folder: Path, seed: int, sizes: TownSizes) -> None:
    """Four towns that share no place: for the teacher, for the student, for choosing weights, and for measuring."""
    first = FIRST_SEED + 4 * seed
    size = {"views": 4, "height": 84, "width": 112, "progress": True}
    plain = {"layout": "plain", "easy_queries": 0}
    chosen = plain | {"queries": sizes.validation_queries}
    measured = plain | {"queries": sizes.test_queries}
    make_town(folder / "teacher", sizes.teacher_places, seed=first, layout="gsv", **size)
    make_town(folder / "student", sizes.student_places, seed=first + 1, layout="gsv", **size)
    make_town(folder / "validation", sizes.validation_places, seed=first + 2, **chosen, **size)
    make_town(folder / "test", sizes.test_places, seed=first + 3, **measured, **size)


def _train(root: Path, seed: int, places_per_batch: int, name: str, epochs: int, **keys: Any) -> Path:
    """The checkpoint of one stage, whose run folder bears its name."""
    town = "teacher" if name == "teacher" else "student"
    common = {
        "data": [str(root / "towns" / town)],
        "output": str(root / name),
        "image_size": SIDE,
        "places_per_batch": places_per_batch // PartialState().num_processes,
        "augmentation": "none",
        "trainable_blocks": -1,
        "learning_rate": 2e-3,
        "warmup_epochs": 2,
        "epochs": epochs,
        "validation": [f"folders={root / 'towns' / 'validation'}"],
        "validation_k": 1,
        "validate_every": 200,
        "save_every": 500,
        "seed": seed,
    }
    return train(resolve_arguments(common | keys)).checkpoint


def measure(root: Path, seed: int, checkpoints: dict[str, Path]) -> dict[str, Evaluation]:
    """Random weights and each checkpoint on the town that is kept for it, with one processor."""
    protocol = named_protocol("folders", root / "towns" / "test")
    torch.manual_seed(seed)
    models: dict[str, nn.Module] = {"random": D2VprModel(D2VprConfig(**STUDENT))}
    models |= {name: AutoModel.from_pretrained(path, trust_remote_code=False) for name, path in checkpoints.items()}
    processor = AutoImageProcessor.from_pretrained(checkpoints["fine-tuned"], trust_remote_code=False)
    return {
        name: evaluate_protocol(protocol, Embedder(model.eval(), processor), ks=KS, progress=False)
        for name, model in models.items()
    }
