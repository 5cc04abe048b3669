"""Keys of a configuration: how one is declared, held to its type, and shown by `--help`."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from dataclasses import field as dataclass_field
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..messages import did_you_mean

HEADINGS = DATA, MODEL, TEACHER, LOSS, OPTIMISER, SPEED, VALIDATION, RUN = (
    "photos, and how a batch is drawn from them",
    "the model that is trained",
    "the teacher, and how the student follows it",
    "the loss on places (stage finetune)",
    "optimiser and schedule",
    "memory and speed",
    "validation",
    "the run and its folder",
)


def key(default: Any, words: str, group: str) -> Any:
    """A field: its default, its help text, and the heading under which `--help` lists it."""
    metadata = {"help": words, "group": group}
    if isinstance(default, list):
        return dataclass_field(default_factory=lambda: list(default), metadata=metadata)
    return dataclass_field(default=default, metadata=metadata)


def refuse_unknown(values: Iterable[str], known: list[str], origin: str, lists: str = "`d2vpr train --help`") -> None:
    """Raises ValueError for the first key that isn't known, with the nearest that is; `lists` names them all."""
    for name in values:
        if name not in known:
            raise ValueError(f"{origin} has the unknown key {name!r}.{did_you_mean(name, known)} All are in {lists}.")


def checked(name: str, value: Any, kind: Any) -> Any:
    """The value as its type has it; YAML reads 1e-4 as text, and integers where fractions may stand.

    Raises: ValueError if it is of another type.
    """
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for each in kinds:
        if (found := _as_kind(value, each)) is not None or (value is None and each is NoneType):
            return found
    raise ValueError(f"{name} is {value!r}, but expects {describe(kind)}.")


def _as_kind(value: Any, kind: Any) -> Any:
    """The value if it fits one type, else None."""
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    if get_origin(kind) is list:
        entries = value if isinstance(value, list | tuple) else [value]
        if get_args(kind) == (int,):
            numbers = [_as_kind(entry, int) for entry in entries]
            return None if None in numbers else numbers
        return [str(entry) for entry in entries] if all(isinstance(entry, str | int) for entry in entries) else None
    if kind is bool:
        return {"true": True, "false": False}.get(str(value).lower())
    if isinstance(value, bool):
        return None
    if kind in (int, float) and isinstance(value, int | float | str):
        try:
            number = float(value)
        except ValueError:
            return None
        if not math.isfinite(number):
            return None
        return number if kind is float else int(number) if number == int(number) else None
    return value if isinstance(kind, type) and isinstance(value, kind) else None


def describe(kind: Any) -> str:
    """A type in words, for errors and help."""
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind)[:-1]) + f" or {get_args(kind)[-1]}"
    if NoneType in get_args(kind):
        return " or ".join(describe(each) for each in get_args(kind) if each is not NoneType) + " (or nothing)"
    if get_origin(kind) is list:
        return "a list of integers" if get_args(kind) == (int,) else "a list of names"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    return words.get(kind, str(kind))


@dataclass(frozen=True)
class DocumentedKey:
    """A key as `--help` shows it."""

    name: str
    group: str
    help: str
    metavar: str
    many: bool
    is_switch: bool


def documented_keys(stages: Mapping[str, type]) -> list[DocumentedKey]:
    """All keys of the stages' dataclasses, by heading, each with its default or defaults."""
    found: dict[str, DocumentedKey] = {}
    declared = {stage: {field.name: field for field in fields(kind) if field.init} for stage, kind in stages.items()}
    for name in dict.fromkeys(name for names in declared.values() for name in names):
        owners = {stage: names[name] for stage, names in declared.items() if name in names}
        field = [*owners.values()][-1]
        defaults = {stage: _default_words(each.default) for stage, each in owners.items()}
        words = field.metadata["help"]
        if len({*defaults.values()}) > 1:
            each = [f"{stage} {default or 'none'}" for stage, default in defaults.items()]
            words += f" (default: {', '.join(each)})"
        elif "(default:" not in words and (default := next(iter(defaults.values()))):
            words += f" (default: {default})"
        if len(owners) < len(stages):
            words += f" [{', '.join(owners)}]"
        kind = get_type_hints(stages[[*owners][-1]])[name]
        kind = get_args(kind)[0] if NoneType in get_args(kind) else kind
        found[name] = DocumentedKey(
            name,
            field.metadata["group"],
            words.replace("%", "%%"),
            _metavar(kind),
            many=get_origin(kind) is list,
            is_switch=kind is bool,
        )
    return sorted(found.values(), key=lambda each: HEADINGS.index(each.group))


def _default_words(default: Any) -> str:
    if default is None or default is MISSING:
        return ""
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "N", list[int]: "N", float: "X", bool: "true|false", dict: "JSON"}.get(kind, "NAME")
