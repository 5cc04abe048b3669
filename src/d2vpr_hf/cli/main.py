"""The `d2vpr` command: finds the subcommand, and turns what goes wrong into one paragraph and an exit code."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ..messages import printable
from ..version import __version__
from .parser import CommandParser, UsageError

# In the order in which a user needs them. Each is a module with add_parser, which imports what is heavy when it runs.
COMMANDS = (
    "demo", "index", "locate", "embed", "pairs", "evaluate", "verify",
    "reduce", "convert", "cut", "export", "train", "benchmark", "push",
)  # fmt: skip

OK, BAD_INPUT, INTERRUPTED, TERMINATED = 0, 2, 130, 143
# What our own checks raise, and what the libraries below say of files, memory and devices.
_EXPECTED = (UsageError, ValueError, OSError, ImportError, RuntimeError)

DESCRIPTION = """\
Tells where a photo was taken by finding the most similar ones among your geo-tagged photos.

  d2vpr demo                                   see it work on a town that it draws itself
  d2vpr index my_photos places                 learn the places of your own photos
  d2vpr locate photo.jpg --index places        ask where another photo was taken"""

EPILOG = """\
`d2vpr COMMAND --help` explains a command, with an example.
Exit codes: 0 done; 1 done, but nothing usable came out; 2 wrong usage or input that can't be used."""


def build_parser() -> CommandParser:
    """The parser of `d2vpr` with all its subcommands."""
    parser = CommandParser(prog="d2vpr", usage="d2vpr COMMAND ...", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"d2vpr {__version__}", help="print the version")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name in COMMANDS:
        command = import_module(f"{__package__}.{name}").add_parser(subparsers)
        # Taken up again after the subcommand has set its own, so that every one has it in the same place.
        command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after `d2vpr`; by default those of the process.

    Returns: the exit code: 0 done, 1 done but nothing usable came out, 2 wrong usage or input, 130 interrupted, 143
        terminated.
    """
    debug = bool(os.environ.get("D2VPR_DEBUG"))
    with _console():
        return _run(arguments, debug)


def _run(arguments: Sequence[str] | None, debug: bool) -> int:
    try:
        parser = build_parser()
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.print_help(sys.stderr)
            return BAD_INPUT
        debug = debug or options.debug
        code = options.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse has printed help, version or what is wrong with the usage
        return int(stop.code or OK)
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, _Terminated)
        _say(
            f"{'terminated' if terminated else 'interrupted'}. What was written so far is whole; index, "
            "embed, reduce and train go on from there when they are run again."
        )
        return TERMINATED if terminated else INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        _drop_output()
        return OK
    except Exception as error:
        if debug:
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        _say(_one_paragraph(error))
        return BAD_INPUT


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: after what is being written is whole."""


@contextmanager
def _console() -> Iterator[None]:
    """While a command runs: names that the terminal can't show don't end it, and SIGTERM doesn't go unanswered."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise _Terminated

    embedding = logging.getLogger("d2vpr_hf.retrieval.embedder")
    level = embedding.level
    # The commands list themselves what was skipped.
    embedding.setLevel(logging.ERROR)
    if sys.stdout is None:  # closed by whoever started the command
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Only the main thread may set a handler, and one that a program has set itself is its own.
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        embedding.setLevel(level)
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _one_paragraph(error: Exception) -> str:
    """The error for people, without the traceback that `--debug` shows."""
    if isinstance(error, OSError) and error.strerror:
        from ..files import FULL  # only now: it takes a while to load

        full = error.errno in FULL
        if error.filename is not None:
            remedy = "Make room there, or name another folder." if full else "Check the path and its permissions."
            return f"{error.filename}: {error.strerror}. {remedy}"
        if full:
            return f"the answer can't be printed: {error.strerror}. Let the output go elsewhere."
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"memory ran out ({text or 'no more is said'}). Give fewer photos at a time (--batch-size, --workers)."
    if not isinstance(error, _EXPECTED) or isinstance(error, RecursionError):
        return (
            f"this should not have happened ({type(error).__name__}: {text}). Please report it, with the command and "
            "what it prints when --debug is added."
        )
    text = text or type(error).__name__
    text = text if text.endswith((".", "?", "`", "!")) else f"{text}."
    # What the libraries below raise as RuntimeError (memory, devices) doesn't always say where it comes from.
    return f"{text} `--debug` shows where this comes from." if isinstance(error, RuntimeError) else text


def _drop_output() -> None:
    """Lets what can't be printed go: Python would complain again when it flushes on its way out."""
    with suppress(OSError, ValueError):  # of a standard output that isn't a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    print(f"d2vpr: {printable(text)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
