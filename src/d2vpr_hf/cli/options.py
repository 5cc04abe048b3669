"""The options that say which model runs and how, and the one place where the command line loads a checkpoint."""

import argparse
from typing import TYPE_CHECKING, Any

from .parsing import UsageError, note, whole_number

if TYPE_CHECKING:
    from ..retrieval.embedder import Embedder

DEFAULT_MODEL = "d2vpr"


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
    """What `add_model_options` parsed, as keywords of `Embedder`."""
    return {
        "batch_size": options.batch_size,
        "device": options.device,
        "dtype": options.dtype,
        "workers": options.workers,
    }


def open_embedder(name: str, dim: int | None = None, *, usual_dim: int | None = None, **settings: Any) -> "Embedder":
    """The checkpoint of this name, ready to embed.

    Args:
        dim, usual_dim: as in `open_checkpoint`.
        settings: keywords of `Embedder`, as `embedding_settings` gives them.

    Raises: UsageError if there is no such checkpoint, it holds another kind of model or has no such `dim`.
    """
    note(f"loading the model {name} ...")
    from ..retrieval.embedder import Embedder

    quieten_transformers()
    try:
        return Embedder.from_pretrained(name, dim=dim, usual_dim=usual_dim, **settings)
    except (OSError, ValueError) as error:
        if (text := str(error)).startswith("dim "):
            raise UsageError(f"--{text}") from error
        raise UsageError(
            f"{text} --model takes a checkpoint folder (one with config.json and model.safetensors), a name on the "
            "Hub, or what comes with the package."
        ) from error


def quieten_transformers() -> None:
    """Leaves transformers' errors and drops its bars and remarks: the command line says itself what it does."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
