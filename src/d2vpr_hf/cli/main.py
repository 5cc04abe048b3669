"""The `d2vpr` command: finds the subcommand, and turns what goes wrong into one paragraph and an exit code."""

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..version import __version__
from .parser import CommandParser, UsageError

# In the order in which a user needs them. Each is a module with add_parser, which imports what is heavy when it runs.
COMMANDS = (
    "demo", "index", "locate", "embed", "evaluate", "verify", "reduce", "convert", "cut", "train", "benchmark", "push",
)  # fmt: skip

OK, NOTHING_USABLE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

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

    Returns: the exit code: 0 done, 1 done but nothing usable came out, 2 wrong usage or input, 130 interrupted.
    """
    debug = bool(os.environ.get("D2VPR_DEBUG"))
    embedding = logging.getLogger("d2vpr_hf.retrieval.embedder")
    level = embedding.level
    try:
        # The commands list themselves what was skipped.
        embedding.setLevel(logging.ERROR)
        parser = build_parser()
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.print_help(sys.stderr)
            return BAD_INPUT
        debug = debug or options.debug
        return options.run(options)
    except SystemExit as stop:  # argparse has printed help, version or what is wrong with the usage
        return int(stop.code or OK)
    except KeyboardInterrupt:
        _say("interrupted. What was written so far is whole; the same command goes on from there.")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain again when it flushes on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (UsageError, ValueError, OSError, ImportError, RuntimeError) as error:
        if debug:
            raise
        # What the libraries below raise as RuntimeError (memory, devices) doesn't always say where it comes from.
        where = " `--debug` shows where this comes from." if isinstance(error, RuntimeError) else ""
        _say(_one_paragraph(error) + where)
        return BAD_INPUT
    finally:
        embedding.setLevel(level)


def _one_paragraph(error: Exception) -> str:
    """The error for people, without the traceback that `--debug` shows."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Check the path and its permissions."
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith((".", "?", "`", "!")) else f"{text}."


def _say(text: str) -> None:
    print(f"d2vpr: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
