"""What a training run is asked to do: one dataclass a stage, whose fields are the keys of a configuration file."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

from .keys import DATA, LOSS, MODEL, OPTIMISER, RUN, SPEED, TEACHER, VALIDATION, checked, key, refuse_unknown

Stage = Literal["distill", "finetune"]

TEACHER_WORDS = (
    "a folder or Hub name of DINOv2 (with or without registers), CricaVPR or D2-VPR, or module:factory for any network "
    "(see docs/training.md); of several the targets stand side by side"
)

# What may differ when a run goes on: none of it decides a batch or a loss that is still to come.
FREE_ON_RESUME = frozenset(
    [
        "output",
        "resume",
        "workers",
        "threads",
        "log_every",
        "tracker",
        "validation",
        "validate_every",
        "validation_k",
        "patience",
        "save_every",
        "keep_states",
    ]
)


@dataclass(kw_only=True)
class TrainingArguments:
    """Keys that both stages share. `from_mapping` makes one of a configuration, `to_dict` writes it down.

    Raises: ValueError naming the key, what was found and what is expected.
    """

    data: list[str] = key(
        [],
        "folders to train on: GSV-Cities (Images/, Dataframes/), or photos with a place column (metadata.csv) or one "
        "subfolder a place; several are joined",
        DATA,
    )
    cities: list[str] | None = key(None, "of GSV-Cities, these alone", DATA)
    place_column: str = key("place", "column of metadata.csv that names the place", DATA)
    places_per_batch: int = key(16, "places in a batch of one process", DATA)
    images_per_place: int = key(4, "photos of each; places with fewer are left out, and counted", DATA)
    augmentation: Literal["randaugment", "revisit", "none"] = key(
        "randaugment", "randaugment: the field's; revisit: light, night, weather, occlusion, view", DATA
    )
    augmentation_operations: int = key(3, "operations of RandAugment on each photo", DATA)
    augmentation_magnitude: int = key(15, "their strength, 0 to 30", DATA)
    image_size: int | None = key(None, "pixels a side, a multiple of 14 (default: the model's processor's)", DATA)

    model: str | None = key(
        None, "what to start from: a folder or Hub name of D2-VPR, CricaVPR or (new adapters) DINOv2", MODEL
    )
    model_config: dict | str | None = key(
        None,
        "instead: a configuration (JSON, or its file) of a new model with random weights; beside a model of DINOv2: "
        "fields of the student",
        MODEL,
    )
    recovery_start: Literal["random", "pass_through", "taught"] = key(
        "random",
        "of a student from DINOv2. pass_through: the last of its recovery layers as it is, which knows places before "
        "any training; taught: what comes nearest to the teacher's patch tokens, by regression on training photos",
        MODEL,
    )
    head_dim: int | None = key(
        None, "give the model a learned compact head of this many numbers, such as 512 or 256", MODEL
    )
    nested_dims: list[int] | None = key(
        None,
        "train the head's first numbers to be a descriptor by themselves too, such as 512 256; the largest is "
        "head_dim, which may be left out",
        MODEL,
    )
    trainable_blocks: int = key(-1, "how many of the last blocks are trained; -1: all, and the embeddings", MODEL)
    trainable_modules: list[str] | None = key(
        None, "of what comes behind the blocks, these modules alone (default: all of it)", MODEL
    )
    frozen_batchnorm: Literal["eval", "train"] = key(
        "eval", "train: BatchNorm of frozen modules goes on following the batches, as in the published recipe", MODEL
    )

    teacher: list[str] | str | None = key(None, TEACHER_WORDS, TEACHER)
    teacher_mode: Literal["batch_independent", "place_grouped", "as_published"] = key(
        "batch_independent",
        "whose images a teacher's cross-image encoder sees: none but its own, those of its place, the whole batch",
        TEACHER,
    )
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "arithmetic of the teacher; auto: bfloat16 where the accelerator has it, else float32", TEACHER
    )
    teacher_sees: Literal["augmented", "plain"] = key(
        "augmented",
        "plain: the photo as it is, while the student sees it augmented and so learns to look through the changes",
        TEACHER,
    )
    teacher_image_size: int | None = key(
        None,
        "pixels a side of the photos that it sees plain, a multiple of 14 (default: as many as the student's)",
        TEACHER,
    )
    teacher_cache: str | None = key(
        None, "folder that keeps its descriptors by image hash; needs photos that it sees as they are", TEACHER
    )
    teacher_whitening: int | None = key(
        None,
        "centre its descriptors and whiten them to so many numbers: features after a ReLU share a large mean, and a "
        "cosine sees little else",
        TEACHER,
    )
    distillation_loss: Literal["cosine", "mse"] = key(
        "cosine", "cosine: 1 - cosine of descriptors; mse: as published, some 1e-5 at the start", TEACHER
    )
    region_weight: float = key(
        1.0, "weight of a further term, 1 - cosine of each of the 14 regions: the global one may outweigh them", TEACHER
    )
    token_weight: float = key(0.0, "weight of a further term: 1 - cosine of each patch token", TEACHER)

    optimizer: Literal["adamw", "adam"] = key("adamw", "the optimiser", OPTIMISER)
    learning_rate: float = key(1e-4, "at the end of the warm-up", OPTIMISER)
    layer_rate_decay: float = key(
        1.0,
        "drop of the learning rate by layer: each block has this share of the next one's, and the embeddings of the "
        "first's, so that what is pretrained changes less the nearer it is to the photo",
        OPTIMISER,
    )
    weight_decay: float = key(1e-2, "of AdamW; of Adam it is an L2 penalty", OPTIMISER)
    schedule: Literal["cosine", "constant"] = key("cosine", "cosine falls to a hundredth", OPTIMISER)
    warmup_epochs: float = key(0.5, "epochs in which the learning rate rises from 0; parts of one count", OPTIMISER)
    epochs: int = key(10, "passes through all places", OPTIMISER)
    max_steps: int | None = key(
        None,
        "stop after so many steps; 0: nothing but what is fitted before them (default: after all epochs)",
        OPTIMISER,
    )
    gradient_accumulation_steps: int = key(
        1, "batches before each step of the optimiser; each has its own loss", OPTIMISER
    )
    max_grad_norm: float = key(1.0, "gradients are clipped to this length; 0: not at all", OPTIMISER)

    mixed_precision: Literal["no", "fp16", "bf16"] | None = key(
        None, "arithmetic of the student (default: what `accelerate launch` was told, else no)", SPEED
    )
    gradient_checkpointing: bool = key(False, "compute activations twice to keep fewer of them", SPEED)
    compile: bool = key(False, "torch.compile the student", SPEED)
    sync_batchnorm: bool = key(
        False,
        "BatchNorm over the batches of all processes (CUDA only). Otherwise each process normalises by its own batch, "
        "so that results in training depend on the number of processes",
        SPEED,
    )
    workers: int = key(2, "processes that decode and augment photos; 0: none beside the trainer", SPEED)
    threads: int | None = key(None, "of torch on a CPU (default: the cores, shared by the processes)", SPEED)

    validation: list[str] = key(
        [], "PROTOCOL=FOLDER, such as msls-val-740=data/msls; the first decides which checkpoint is best", VALIDATION
    )
    validate_every: int | None = key(None, "steps (default: each epoch)", VALIDATION)
    validation_k: int = key(5, "the best checkpoint has the best recall@k", VALIDATION)
    patience: int | None = key(None, "stop after so many validations without a better one (default: never)", VALIDATION)

    output: str = key("runs/train", "folder of the run: settings, metrics, plots, states, checkpoint", RUN)
    resume: bool = key(False, "go on with the run in the folder; the same batches and losses as without a stop", RUN)
    seed: int = key(0, "of weights, batches and augmentation", RUN)
    save_every: int = key(500, "steps between full states, from which a run can go on", RUN)
    keep_states: int = key(2, "how many of them are kept", RUN)
    log_every: int = key(10, "steps between lines of metrics", RUN)
    tracker: str = key("tensorboard", "any of accelerate's trackers; none: the run folder's own files alone", RUN)

    stage: Stage = dataclass_field(init=False, default="distill")

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for name in self.names():
            setattr(self, name, checked(name, getattr(self, name), types[name]))
        if isinstance(self.model_config, str):
            self.model_config = read_model_config(self.model_config)
        if len(self.teachers) < 2:
            self.teacher = next(iter(self.teachers), None)
        self.check()

    @property
    def teachers(self) -> list[str]:
        """The names of all of them."""
        return [self.teacher] if isinstance(self.teacher, str) else self.teacher or []

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.init]

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        made = {field.name: field for field in fields(cls) if field.init}
        return {name: [] if field.default is MISSING else field.default for name, field in made.items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], origin: str = "the configuration") -> Self:
        """Arguments of a mapping, all keys of which must be known; `origin` names it in errors."""
        refuse_unknown(values, cls.names(), origin)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All keys with their values, and the stage."""
        return {"stage": self.stage, **{name: getattr(self, name) for name in self.names()}}

    def check(self) -> None:
        """What one key can't know by itself."""
        at_least = {
            "places_per_batch": 1, "images_per_place": 1, "augmentation_operations": 0, "epochs": 1, "workers": 0,
            "gradient_accumulation_steps": 1, "validation_k": 1, "save_every": 1, "keep_states": 1, "log_every": 1,
            "warmup_epochs": 0, "max_grad_norm": 0, "region_weight": 0, "token_weight": 0, "weight_decay": 0,
            "trainable_blocks": -1, "seed": 0,
        }  # fmt: skip
        optional = {
            "max_steps": 0, "validate_every": 1, "patience": 1, "threads": 1, "head_dim": 1, "image_size": 14,
            "teacher_image_size": 14, "teacher_whitening": 2,
        }  # fmt: skip
        for name, least in (at_least | optional).items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, but must be at least {least}.")
        if self.nested_dims is not None:
            self._settle_nested_dims()
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}, but must be above 0.")
        if not 0 < self.layer_rate_decay <= 1:
            raise ValueError(f"layer_rate_decay is {self.layer_rate_decay}, but must be above 0 and at most 1.")
        if self.augmentation_magnitude not in range(31):
            raise ValueError(f"augmentation_magnitude is {self.augmentation_magnitude}, but must be 0 to 30.")
        for name in ("image_size", "teacher_image_size"):
            if (size := getattr(self, name)) is not None and size % 14:
                raise ValueError(f"{name} is {size}, but must be a multiple of 14 pixels, such as 224.")
        if self.teacher_image_size is not None and self.teacher_sees == "augmented":
            raise ValueError(
                f"teacher_image_size is {self.teacher_image_size}, but the teacher sees the student's own view. Set "
                "teacher_sees to plain, or leave teacher_image_size out."
            )
        if self.model is None and self.model_config is None:
            raise ValueError(
                "neither of model and model_config given, but one of them is needed: a checkpoint to start from "
                "(--model facebook/dinov2-small), or the configuration of a new model with random weights."
            )
        if self.model is None and self.recovery_start != "random":
            raise ValueError(
                f"recovery_start is {self.recovery_start}, but passes on blocks of DINOv2, and model names none. Give "
                "model, or leave recovery_start out."
            )
        if self.recovery_start == "taught" and self.teacher is None:
            raise ValueError("recovery_start is taught, but there is no teacher. Give one, or pass_through.")
        if twice := [name for number, name in enumerate(self.teachers) if name in self.teachers[:number]]:
            raise ValueError(f"teacher names {twice[0]} twice. Name each teacher once.")
        if len(self.teachers) > 1 and (self.token_weight or self.recovery_start == "taught"):
            raise ValueError(
                f"teacher names {', '.join(self.teachers)}, but patch tokens are followed of one teacher alone. Name "
                "one, or set token_weight to 0 and recovery_start to another than taught."
            )
        for entry in self.validation:
            if not all(entry.partition("=")):
                raise ValueError(f"validation has {entry!r}, but expects PROTOCOL=FOLDER, such as folders=data/town.")
        if self.patience is not None and not self.validation:
            raise ValueError("patience needs a validation set to wait for. Give --validation, or leave patience out.")
        if self.teacher_cache is not None and self.teacher_sees == "augmented" and self.augmentation != "none":
            raise ValueError(
                f"teacher_cache keeps descriptors of photos as they are, but augmentation is {self.augmentation} and "
                "the teacher sees it too. Set teacher_sees to plain or augmentation to none, or leave teacher_cache "
                "out."
            )
        if self.token_weight and (self.teacher_whitening is not None or self.teacher_sees == "plain"):
            raise ValueError(
                f"token_weight is {self.token_weight}, but patch tokens are followed as the teacher gives them, of the "
                "student's own view. Set token_weight to 0, or leave teacher_whitening out and teacher_sees at "
                "augmented."
            )
        if self.teacher_cache is not None and self.token_weight:
            raise ValueError("teacher_cache keeps no patch tokens. Set token_weight to 0, or leave teacher_cache out.")

    def _settle_nested_dims(self) -> None:
        """Falling order, and the largest as head_dim."""
        dims = sorted(set(self.nested_dims), reverse=True)
        if len(dims) < 2 or dims[-1] < 1 or self.head_dim not in (None, dims[0]):
            raise ValueError(
                f"nested_dims is {self.nested_dims} with head_dim {self.head_dim}, but must be at least two numbers "
                "from 1, of which head_dim is the largest. Give 512 256, say, and leave head_dim out."
            )
        self.nested_dims, self.head_dim = dims, dims[0]


@dataclass(kw_only=True)
class DistillArguments(TrainingArguments):
    """Stage 1: the student learns to give the teacher's descriptors."""

    teacher: list[str] | str | None = key("facebook/dinov2-base", TEACHER_WORDS, TEACHER)

    stage: Stage = dataclass_field(init=False, default="distill")

    def check(self) -> None:
        super().check()
        if self.teacher is None:
            raise ValueError(
                "teacher is missing: stage distill follows one. Give --teacher facebook/dinov2-base, or a converted "
                "CricaVPR folder."
            )
        if self.head_dim is not None:
            name = "head_dim" if self.nested_dims is None else "nested_dims"
            raise ValueError(f"{name} is for stage finetune: distilling gives a head nothing to learn. Leave it out.")


@dataclass(kw_only=True)
class FinetuneArguments(TrainingArguments):
    """Stage 2: descriptors of the same place come together, of others apart."""

    trainable_blocks: int = key(4, "how many of the last blocks are trained; -1: all, and the embeddings", MODEL)
    places_per_batch: int = key(32, "places in a batch of one process; all processes' descriptors are compared", DATA)
    descriptor_chunk: int | None = key(
        None,
        "photos at a time: the whole batch's descriptors without graph, then chunk by chunk with the cached gradient, "
        "so that memory holds one chunk (default: the whole batch at once)",
        SPEED,
    )
    alpha: float = key(1.0, "multi-similarity: weight of positives", LOSS)
    beta: float = key(50.0, "multi-similarity: weight of negatives", LOSS)
    base: float = key(0.0, "multi-similarity: similarity that separates them", LOSS)
    epsilon: float = key(0.1, "margin of the miner", LOSS)
    distillation_weight: float = key(0.0, "keep following a teacher, with this weight", LOSS)
    head_start: Literal["random", "whitened"] = key(
        "random",
        "of a new head. whitened: fitted on up to 4,096 training photos, so that what differs within a place counts "
        "less and rare differences count more",
        MODEL,
    )
    head_first_share: float | None = key(
        None,
        "of the squared length, what the first of the 14 vectors, that of the whole image, has before a whitened head "
        "(default: as much as it has by itself)",
        MODEL,
    )
    validate_first: bool = key(False, "validate before the first step too: the start may be the best", VALIDATION)

    stage: Stage = dataclass_field(init=False, default="finetune")

    def check(self) -> None:
        super().check()
        if self.images_per_place < 2:
            raise ValueError(f"images_per_place is {self.images_per_place}, but a positive pair needs at least 2.")
        if self.places_per_batch < 2:
            raise ValueError(f"places_per_batch is {self.places_per_batch}, but a negative pair needs at least 2.")
        if self.descriptor_chunk is not None and self.descriptor_chunk < 1:
            raise ValueError(f"descriptor_chunk is {self.descriptor_chunk}, but must be at least 1 photo.")
        if self.distillation_weight < 0:
            raise ValueError(f"distillation_weight is {self.distillation_weight}, but must be at least 0.")
        if self.head_start == "whitened" and self.head_dim is None:
            raise ValueError("head_start is whitened, but there is no new head. Give head_dim or nested_dims.")
        if self.head_first_share is not None and not (self.head_start == "whitened" and 0 < self.head_first_share < 1):
            raise ValueError(
                f"head_first_share is {self.head_first_share} with head_start {self.head_start}, but must be above 0 "
                "and below 1, with head_start whitened."
            )
        if (self.teacher is None) != (self.distillation_weight == 0):
            raise ValueError(
                f"teacher is {self.teacher} and distillation_weight {self.distillation_weight}: stage finetune follows "
                "a teacher only with both. Give both, or neither."
            )


STAGES: dict[str, type[TrainingArguments]] = {"distill": DistillArguments, "finetune": FinetuneArguments}

# The published recipes as they were really run; what each key differs in from the default, and why, is in
# docs/training.md.
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("distill", "published"): {
        "places_per_batch": 8,
        "images_per_place": 4,
        "teacher_mode": "as_published",
        "teacher_dtype": "float32",
        "distillation_loss": "mse",
        "region_weight": 0.0,
        "optimizer": "adam",
        "learning_rate": 2.5e-5,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "epochs": 20,
        "max_grad_norm": 0.0,
    },
    ("finetune", "published"): {
        "places_per_batch": 128,
        "images_per_place": 4,
        "frozen_batchnorm": "train",
        "optimizer": "adamw",
        "learning_rate": 2e-4,
        "weight_decay": 1e-3,
        "schedule": "constant",
        "warmup_epochs": 3900.0,
        "epochs": 120,
        "max_grad_norm": 0.0,
        "mixed_precision": "fp16",
        "validation_k": 1,
    },
}
PRESET_NAMES = ("default", "published")


def resolve_arguments(values: Mapping[str, Any], origin: str = "the configuration") -> TrainingArguments:
    """The arguments of a stage from `stage`, `preset` and further keys, which win over the preset.

    Raises: ValueError for an unknown stage, preset or key, with the nearest known one, and for values that don't fit.
    """
    values = dict(values)
    stage, preset = values.pop("stage", None), values.pop("preset", "default")
    if stage not in STAGES:
        raise ValueError(f"stage is {stage!r} in {origin}, but must be one of {', '.join(STAGES)}.")
    if preset not in PRESET_NAMES:
        raise ValueError(f"preset is {preset!r} in {origin}; there are {', '.join(PRESET_NAMES)}.")
    others = {name for kind in STAGES.values() for name in kind.names()} - {*STAGES[stage].names()}
    if foreign := sorted(others & values.keys()):
        raise ValueError(f"{origin} has {foreign[0]}, which is a key of another stage than {stage}. Leave it out.")
    refuse_unknown(values, [*STAGES[stage].names(), "stage", "preset"], origin)
    return STAGES[stage].from_mapping(PRESETS.get((stage, preset), {}) | values, origin)


def read_model_config(text: str) -> dict[str, Any]:
    """The object of a JSON text, or of the file that it names.

    Raises: ValueError if there is no such file, or it doesn't hold a JSON object.
    """
    origin = "model_config"
    if not text.lstrip().startswith("{"):
        origin = f"model_config {text}"
        if not Path(text).is_file():
            raise ValueError(f"{origin} isn't a file. Give a JSON object, or the file of one.")
        text = Path(text).read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{origin} isn't JSON ({error}). Give a JSON object, or the file of one.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{origin} holds a {type(found).__name__}, but expects a JSON object of D2VprConfig's fields.")
    return found
