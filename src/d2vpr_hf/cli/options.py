"""The options that several commands share, how they open a model, and how they print what came out."""

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..messages import printable
from .parser import UsageError

if TYPE_CHECKING:
    from ..retrieval.embedder import Embedder

DEFAULT_MODEL = "d2vpr-base"
_SKIPPED_SHOWN = 10


def whole_number(least: int) -> Callable[[str], int]:
    """A type for options that take an integer of at least `least`."""

    def parse(text: str) -> int:
        if not text.strip().lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} must be an integer of at least {least}")
        return int(text)

    return parse


def finite_number(text: str) -> float:
    """A type for options that take any number but NaN and infinity."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} must be a finite number")
    return number


def positive_number(text: str) -> float:
    """A type for options that take a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number above 0")
    return number


def share(text: str) -> float:
    """A type for options that take a number from 0 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be a number from 0 to 1")
    return number


def add_json_option(parser: argparse._ActionsContainer, otherwise: str = "as text") -> None:
    """`--json`, for programs that read the result."""
    parser.add_argument("--json", action="store_true", help=f"print the result as JSON (default: {otherwise})")


def add_photos_argument(parser: argparse._ActionsContainer, more: str = "") -> None:
    """`PHOTOS`, the folder that a command reads."""
    parser.add_argument("photos", metavar="PHOTOS", help=f"a folder of photos, searched with its subfolders{more}")


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """`--device`, where the computing happens."""
    parser.add_argument(
        "--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one, else cpu)"
    )


def add_dtype_option(parser: argparse._ActionsContainer) -> None:
    """`--dtype`, the number type of the computing."""
    parser.add_argument(
        "--dtype",
        metavar="TYPE",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="precision of the model: float32, bfloat16 or float16; descriptors stay float32 (default: float32)",
    )


def add_dim_option(parser: argparse._ActionsContainer, otherwise: str = "the checkpoint's own") -> None:
    """`--dim`, how many numbers a nested head gives."""
    parser.add_argument(
        "--dim",
        metavar="N",
        type=whole_number(1),
        help="numbers in a descriptor, of a checkpoint that was trained to give several (a nested head, "
        "nested_dims in its config.json), such as 512 or 256: fewer take less memory and time to search, and cost "
        f"some recall; an index and its queries need the same (default: {otherwise})",
    )


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
        help="a checkpoint folder, a name on the Hugging Face Hub, or one of the package's, d2vpr-base or d2vpr-small "
        f"(default: {default_words or default})",
    )
    if dim_words is not None:
        add_dim_option(group, dim_words)
    add_device_option(group)
    add_dtype_option(group)
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
    return {name: getattr(options, name) for name in ("batch_size", "device", "dtype", "workers")}


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


def note(text: str) -> None:
    """A line for the person who waits: stderr, so that stdout holds the result alone."""
    print(printable(text), file=sys.stderr, flush=True)


def print_json(result: Any) -> None:
    """The result for programs."""
    # Where the terminal can't show a name, its escapes must be those of JSON.
    unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    text = json.dumps(result, indent=2, ensure_ascii=not unicode)
    # JSON leaves these control characters as they are, and a terminal may obey them.
    print(re.sub(r"[\x7f-\x9f]", lambda hit: f"\\u{ord(hit[0]):04x}", text))


def report_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Tells the person who waits how many photos couldn't be used, and names the first ones with their reasons."""
    if not skipped:
        return
    note(f"skipped {len(skipped)} photo{'s' if len(skipped) > 1 else ''} that can't be used:")
    for path, reason in skipped[:_SKIPPED_SHOWN]:
        note(f"  {path}: {reason}")
    if more := skipped[_SKIPPED_SHOWN:]:
        reasons = Counter(reason.split(":")[0] for _, reason in more).most_common(4)
        note(f"  and {len(more)} more ({', '.join(f'{count} {reason}' for reason, count in reasons)})")


def skipped_json(skipped: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """The skipped photos for `--json`."""
    return [{"path": path, "reason": reason} for path, reason in skipped]
