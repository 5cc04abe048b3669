"""The options that say which model runs and how, and the one place where the command line loads a checkpoint."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .parsing import UsageError, note, whole_number

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor

DEFAULT_MODEL = "d2vpr"
OUR_MODELS = ("d2vpr", "cricavpr")


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to embed, with its processor."""

    name: str
    model: "PreTrainedModel"
    processor: "BaseImageProcessor"


def add_model_options(
    parser: argparse.ArgumentParser,
    default: str | None = DEFAULT_MODEL,
    default_words: str = "",
    *,
    dim_words: str | None = "the checkpoint's own",
) -> None:
    """`--model` and how to run it; without a default the command chooses one itself, as `default_words` says.

    `dim_words` says what `--dim` is where it isn't given; None: the command has no such option.
    """
    group = parser.add_argument_group("which model, and how to run it")
    group.add_argument(
        "--model",
        metavar="M",
        default=default,
        help="a checkpoint folder, a name on the Hugging Face Hub, or d2vpr-small, which comes with the package "
        f"(default: {default_words or default})",
    )
    if dim_words is not None:
        group.add_argument(
            "--dim",
            metavar="N",
            type=whole_number(1),
            help="numbers in a descriptor, of a checkpoint that was trained to give several (a nested head, "
            "nested_dims in its config.json), such as 512 or 256: fewer take less memory and time to search, and cost "
            f"some recall; an index and its queries need the same (default: {dim_words})",
        )
    group.add_argument(
        "--device",
        metavar="D",
        help="cpu, cuda, cuda:1, mps (default: a GPU if there is one, else cpu)",
    )
    group.add_argument(
        "--dtype",
        metavar="TYPE",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="precision of the model: float32, bfloat16 or float16; descriptors stay float32 (default: float32)",
    )
    group.add_argument(
        "--batch-size",
        metavar="N",
        type=whole_number(1),
        default=32,
        help="photos at a time; the result doesn't depend on it (default: 32)",
    )
    group.add_argument(
        "--workers",
        metavar="N",
        type=whole_number(1),
        help="threads that decode photos (default: one for each core, 16 at most)",
    )


def embedding_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_model_options` parsed, as keywords of `embed_images`."""
    return {
        "batch_size": options.batch_size,
        "device": options.device,
        "dtype": options.dtype,
        "workers": options.workers,
    }


def load_checkpoint(name: str, dim: int | None = None, *, usual_dim: int | None = None) -> Checkpoint:
    """Model and processor by folder, Hub name or name in the package, with weights checked by name and shape.

    Args:
        dim: numbers in a descriptor, as `--dim` has them; None: as many as the checkpoint says.
        usual_dim: what None means instead where the checkpoint has a nested head of so many, such as an index's.

    Raises: UsageError if there is no such checkpoint, it holds another kind of model or has no such `dim`.
    """
    where = _checked_place(name)
    note(f"loading the model {name} ...")
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    import d2vpr_hf  # noqa: F401 - teaches the Auto classes the model

    quieten_transformers()
    try:
        config = AutoConfig.from_pretrained(where)
        if config.model_type not in OUR_MODELS:
            raise UsageError(
                f"{name} holds a model of type {config.model_type}, but place descriptors come from "
                f"{' or '.join(OUR_MODELS)} alone. Name another checkpoint with --model."
            )
        model = AutoModel.from_pretrained(where, **_chosen_dim(name, config, dim, usual_dim)).eval()
        return Checkpoint(name, model, AutoImageProcessor.from_pretrained(where))
    except (OSError, ValueError, RuntimeError, StrictDataclassError, SafetensorError) as error:
        raise UsageError(
            f"the checkpoint {name} can't be opened: {_first_sentence(error)} Give --model a checkpoint folder (one "
            "with config.json and model.safetensors) or a Hub name."
        ) from error


def _chosen_dim(name: str, config: "PreTrainedConfig", dim: int | None, usual_dim: int | None) -> dict[str, int]:
    """The argument of `from_pretrained` that gives descriptors of so many numbers; none where they have as many."""
    nested = getattr(config, "nested_dims", None) or ()
    if dim is None and usual_dim in nested:
        dim = usual_dim
    if dim in (None, config.descriptor_dim):
        return {}
    if dim in nested:
        return {"descriptor_dim": dim}
    if nested:
        raise UsageError(
            f"--dim is {dim}, but the descriptors of {name} may have {' or '.join(map(str, nested))} numbers. Give one "
            "of these, or leave --dim out."
        )
    raise UsageError(
        f"--dim is {dim}, but the descriptors of {name} have {config.descriptor_dim} numbers and no other choice: it "
        "has no nested head. Leave --dim out; `d2vpr reduce`, or `d2vpr train` with nested_dims, makes a checkpoint "
        "with fewer."
    )


def quieten_transformers() -> None:
    """Leaves transformers' errors and drops its bars and remarks: the command line says itself what it does."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _checked_place(name: str) -> str:
    """What transformers opens the name by; what no checkpoint can be is refused before the network is asked for it.

    A folder goes before a checkpoint of the package that has its name.
    """
    folder = Path(name)
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            raise UsageError(
                f"{name} is a folder without config.json, so it holds no checkpoint. Name a checkpoint folder with "
                "--model, or make one: `d2vpr convert original.pth out/`."
            )
        try:
            json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError(f"{config} is no JSON ({error}). Restore the file, or name another --model.") from error
        return name
    if folder.exists():
        hint = f" `d2vpr convert {name} out/` makes a folder of it." if folder.suffix in (".pth", ".pt") else ""
        raise UsageError(f"{name} is a file, but a checkpoint is a folder.{hint} Name a folder with --model.")
    from ..models.pretrained import pretrained_names, pretrained_path

    if name in (shipped := pretrained_names()):
        return str(pretrained_path(name))
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        left = " `d2vpr demo` leaves its model there;" if name == DEFAULT_MODEL else ""
        raise UsageError(
            f"there is no model {name!r} here: no such folder, and a name on the Hub has the form owner/name.{left} "
            f"--model takes any checkpoint folder, and what comes with the package: {', '.join(shipped) or 'nothing'}."
        )
    return name


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else text[:300] + " ..."
