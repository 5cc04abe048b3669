"""The parts of a run: the model, opened and saved, its photos, its teacher, and the order of the batches."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoImageProcessor, AutoModel, Dinov2Config
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import cached_file

from ..models.checkpoint import TRAINING_FILE, read_config
from ..models.cricavpr.configuration_cricavpr import CricaVprConfig
from ..models.cricavpr.modeling_cricavpr import CricaVprModel
from ..models.d2vpr.configuration_d2vpr import D2VprConfig
from ..models.d2vpr.image_processing_d2vpr import D2VprImageProcessor
from ..models.d2vpr.modeling_d2vpr import D2VprModel
from ..protocols.places import TrainingPlaces, read_training_places
from .arguments import DistillArguments, TrainingArguments
from .data.batches import TrainingImages
from .data.sampler import PlaceSampler
from .data.transform import TrainingTransform
from .keys import refuse_unknown
from .run import Progress, drafted, versions
from .schedule import freeze
from .stages import Student
from .targets import Targets, TeacherTargets
from .teacher_cache import TeacherCache
from .teachers import Teacher, TeacherNetwork, open_teacher

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

OURS = {"d2vpr": (D2VprConfig, D2VprModel), "cricavpr": (CricaVprConfig, CricaVprModel)}


@dataclass(frozen=True)
class Trainee:
    """The model of a run with its processor.

    Attributes:
        model: D2-VPR or CricaVPR.
        processor: prepares its photos.
        history: the stages that it went through before, as its checkpoint has them.
    """

    model: nn.Module
    processor: BaseImageProcessor
    history: list[dict[str, Any]]


def save_trainee(
    folder: Path, trainee: Trainee, student: nn.Module, accelerator: Accelerator, stage: dict[str, Any]
) -> None:
    """Writes the model as a checkpoint folder, whole or not at all; all processes call this together.

    Args:
        student: the model with its projection to the teacher's width, which is dropped here.
        stage: what is noted of this stage, behind those before.
    """
    weights = accelerator.get_state_dict(student)
    with drafted(folder, accelerator) as draft:
        if accelerator.is_main_process:
            own = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
            trainee.processor.save_pretrained(draft)
            trainee.model.save_pretrained(draft, state_dict=own)
            record = {"stages": [*trainee.history, stage]}
            (draft / TRAINING_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def describe_stage(
    arguments: TrainingArguments,
    progress: Progress,
    accelerator: Accelerator,
    places: TrainingPlaces,
    sampler: PlaceSampler,
    teachers: Sequence[Teacher],
) -> dict[str, Any]:
    """A stage as the checkpoint's `training.json` has it."""
    best = None
    if progress.best_step >= 0:
        best = {"step": progress.best_step, "recall": progress.best_recall}
        best |= {"metric": f"recall@{arguments.validation_k}", "validation": arguments.validation[0]}
    of_teacher = ("name", "mode", "width", "version_hash", "dtype")
    # Of one teacher each fact is a value, of several a list in their order.
    facts = {name: [getattr(teacher, name) for teacher in teachers] for name in of_teacher}
    if len(teachers) == 1:
        facts = {name: values[0] for name, values in facts.items()}
    return {
        "stage": arguments.stage,
        "base_model": arguments.model,
        "step": progress.step,
        "images": progress.images,
        "processes": accelerator.num_processes,
        "best": best,
        "data": {
            "name": places.name,
            "sources": arguments.data or [places.name],
            "images": len(places),
            "places": sampler.places_used,
            "dropped_places": sampler.dropped_places,
            "dropped_images": sampler.dropped_images,
        },
        "teacher": facts if teachers else None,
        "arguments": arguments.to_dict(),
        "versions": versions(),
    }


def open_trainee(arguments: TrainingArguments) -> Trainee:
    """The model to train: loaded, or new with seeded random weights.

    Raises: ValueError if a checkpoint or configuration is of another kind, or has a head already and another is asked
        for. OSError if there is no such checkpoint.
    """
    torch.manual_seed(arguments.seed)
    if arguments.model is None:
        trainee = Trainee(_new_model(arguments.model_config), D2VprImageProcessor(), [])
    else:
        trainee = _loaded(arguments)
    model, processor = trainee.model, trainee.processor
    processor = resized(processor, arguments.image_size)
    if arguments.head_dim is not None:
        _give_head(model, arguments)
    if getattr(model.config, "nested_dims", None):
        # A checkpoint saved at fewer numbers goes on with all of its head.
        model.config.descriptor_dim = model.config.head_dim
    return Trainee(model, processor, trainee.history)


def resized(processor: BaseImageProcessor, side: int | None) -> BaseImageProcessor:
    """The processor for photos of so many pixels a side; None: as it is."""
    if side is None:
        return processor
    return type(processor).from_dict(processor.to_dict() | {"size": {"height": side, "width": side}})


def _give_head(model: nn.Module, arguments: TrainingArguments) -> None:
    """Puts the head that is asked for behind the model, or takes the one that is there if it is as long."""
    if not isinstance(model, D2VprModel):
        raise ValueError(f"head_dim is for D2-VPR, but the model is a {type(model).__name__}. Leave it out.")
    if model.config.head_dim is None:
        model.add_head(arguments.head_dim, seed=arguments.seed)
    elif model.config.head_dim != arguments.head_dim:
        raise ValueError(
            f"head_dim is {arguments.head_dim}, but {arguments.model} has a head of {model.config.head_dim} "
            "already. Leave it out, or start from a checkpoint without a head."
        )
    if arguments.nested_dims is not None:
        model.config.nested_dims = tuple(arguments.nested_dims)


def _new_model(config: Mapping[str, Any]) -> nn.Module:
    """A model with random weights."""
    kind = config.get("model_type", "d2vpr")
    if kind not in OURS:
        raise ValueError(f"model_config has the model_type {kind!r}, but there are {' and '.join(OURS)}.")
    config_class, model_class = OURS[kind]
    inner = config.get("backbone_config") or {}
    refuse_unknown(inner, [*Dinov2Config().to_dict()], "model_config.backbone_config", "Dinov2Config")
    refuse_unknown(config, [*config_class().to_dict()], "model_config", config_class.__name__)
    try:
        return model_class(config_class.from_dict(dict(config)))
    except StrictDataclassError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"model_config isn't a valid {config_class.__name__}: {reason}") from error


def _loaded(arguments: TrainingArguments) -> Trainee:
    """A checkpoint of ours, or a new student that starts from DINOv2's weights."""
    name = arguments.model
    if not Path(name).is_dir():
        logger.info("There is no folder %s, so it is looked for on the Hugging Face Hub.", name)
    try:
        config = read_config(name)
    except OSError as error:
        raise OSError(f"The model {name} is neither a checkpoint folder nor found on the Hub: {error}") from error
    if config.model_type == "dinov2":
        fields = arguments.model_config or {}
        refuse_unknown(fields, [*D2VprConfig().to_dict()], "model_config", "D2VprConfig")
        start = "random" if arguments.recovery_start == "random" else "pass_through"
        model = D2VprModel.from_dinov2(name, recovery_start=start, **fields)
        return Trainee(model, D2VprImageProcessor(), [])
    if config.model_type not in OURS:
        raise ValueError(
            f"{name} holds a model of type {config.model_type}, but what is trained is {', '.join(OURS)}, or a new "
            "student from dinov2. Give another --model."
        )
    if arguments.model_config is not None or arguments.recovery_start != "random":
        raise ValueError(
            f"{name} is a whole {config.model_type}, but model_config and recovery_start shape a new student that "
            "starts from DINOv2. Leave them out."
        )
    model = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
    return Trainee(model, AutoImageProcessor.from_pretrained(name, trust_remote_code=False), read_history(name))


def read_history(name: str) -> list[dict[str, Any]]:
    """The stages that a checkpoint says it went through; none where it says nothing."""
    found = cached_file(name, TRAINING_FILE, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(found).read_text(encoding="utf-8"))["stages"] if found else []


def open_places(arguments: TrainingArguments, given: "TrainingPlaces | Dataset | None" = None) -> TrainingPlaces:
    """The training photos: those given, or of all sources that the arguments name.

    Raises: ValueError if there are neither.
    """
    if isinstance(given, TrainingPlaces):
        return given
    if given is not None:
        return read_training_places(given, place_column=arguments.place_column, cities=arguments.cities)
    if not arguments.data:
        raise ValueError("data is missing. Give at least one folder of training photos: --data FOLDER.")
    sources = arguments.data if len(arguments.data) > 1 else arguments.data[0]
    return read_training_places(sources, place_column=arguments.place_column, cities=arguments.cities)


def make_images(
    arguments: TrainingArguments,
    places: TrainingPlaces,
    processor: BaseImageProcessor,
    targets: Targets | None = None,
) -> TrainingImages:
    """The photos as the model takes them, with what their targets need."""
    transform = TrainingTransform(
        processor,
        augmentation=arguments.augmentation,
        operations=arguments.augmentation_operations,
        magnitude=arguments.augmentation_magnitude,
    )
    if targets is None:
        return TrainingImages(places, transform)
    plain = None
    if arguments.teacher_sees == "plain":
        plain = TrainingTransform(resized(processor, arguments.teacher_image_size), augmentation="none")
    if (known := targets.known()) is None:
        return TrainingImages(places, transform, plain=plain)
    return TrainingImages(places, transform, plain=plain, hashed=True, known=known)


def make_sampler(arguments: TrainingArguments, places: TrainingPlaces, accelerator: Accelerator) -> PlaceSampler:
    """Which photos each step of each process takes."""
    return PlaceSampler(
        places.places,
        places_per_batch=arguments.places_per_batch,
        images_per_place=arguments.images_per_place,
        seed=arguments.seed,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        conflicts=places.conflicts,
    )


def open_targets(
    arguments: TrainingArguments,
    processor: BaseImageProcessor,
    device: torch.device,
    network: Teacher | TeacherNetwork | None = None,
    dtype: str | None = None,
) -> Targets | None:
    """What gives each batch its targets; None where nobody is followed.

    Args:
        network: a teacher in place of those that the arguments name.
        dtype: the teachers' arithmetic in place of the one that the arguments name.
    """
    sources = arguments.teachers if network is None else [network]
    dtype = dtype or arguments.teacher_dtype
    members = []
    for source in sources:
        if isinstance(source, Teacher):
            teacher = source.to(device)
        else:
            teacher = open_teacher(source, mode=arguments.teacher_mode, device=device, dtype=dtype)
        cache = None
        if arguments.teacher_cache is not None:
            cache = TeacherCache(arguments.teacher_cache, teacher, resized(processor, arguments.teacher_image_size))
        members.append(TeacherTargets(teacher, cache))
    return Targets(members) if members else None


def make_student(
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
        # The second is its name in earlier versions of transformers.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    student = Student(
        model, teacher_width, signed=arguments.teacher_whitening is not None, needs_tokens=arguments.token_weight > 0
    )
    if arguments.sync_batchnorm:
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
    if arguments.compile:
        student.compile()
    return student, frozen
