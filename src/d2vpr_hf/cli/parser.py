"""The parser of `d2vpr` and its subcommands: help that keeps its examples, errors that suggest the nearest name."""

import argparse
import shutil
from collections.abc import Callable, Sequence
from typing import NoReturn

from ..messages import did_you_mean


class UsageError(Exception):
    """Options that contradict each other or name what isn't there; the message says what to do."""


class CommandParser(argparse.ArgumentParser):
    """A parser whose help keeps its line breaks and whose errors name the nearest known option or command."""

    def __init__(self, **settings) -> None:
        # An abbreviation that works today may be ambiguous tomorrow.
        super().__init__(**{"formatter_class": _Help, "allow_abbrev": False, "add_help": False} | settings)
        self._optionals.title = "more"
        self.add_argument("-h", "--help", action="help", help="show this text")

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(parsed, "parser", self)
            known = [name for action in parser._actions for name in action.option_strings]
            parser.error(f"unknown option {unknown[0]}.{did_you_mean(unknown[0].split('=')[0], known)}")
        return parsed

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> object:
        # As a path it would be the current folder. A command's arguments are looked at by the command's own parser.
        if "" in arg_strings and action.nargs != argparse.PARSER:
            raise argparse.ArgumentError(action, "an empty text was given. Is a variable of the shell unset?")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            name = action.metavar or "/".join(action.option_strings)
            raise argparse.ArgumentError(
                None, f"{value} isn't a known {name}; there are {', '.join(known)}.{did_you_mean(value, known)}"
            )

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"{self.prog}: {message}{end} `{self.prog} --help` shows how it is used.\n")

    def format_help(self) -> str:
        # Help and the like come last: whoever reads the text has found them.
        self._action_groups.sort(key=lambda group: group is self._optionals)
        return super().format_help()


class _Help(argparse.RawDescriptionHelpFormatter):
    """Option texts in one column that leaves room for them, in at most 110 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(110, shutil.get_terminal_size((100, 24)).columns))

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        # argparse measures the names of commands without their indentation, and would give the longest a line alone.
        for command in self._iter_indented_subactions(action):
            self._action_max_length = max(self._action_max_length, self._current_indent + len(command.dest))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = action.option_strings
        # A key that may be written with _ or - is shown once.
        action.option_strings = [*{name.replace("-", "_"): name for name in reversed(names)}.values()][::-1]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = names


def add_command(
    subparsers: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    usage: str,
    description: str,
) -> CommandParser:
    """A subcommand's parser: usage, what it does with an example, and the function that runs it."""
    parser = subparsers.add_parser(
        name, prog=f"d2vpr {name}", help=summary, usage=f"d2vpr {name} {usage}", description=description
    )
    parser.set_defaults(run=run, parser=parser)
    return parser
