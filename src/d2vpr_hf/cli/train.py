"""`d2vpr train`: a configuration becomes a training run; without one, a made town shows both stages."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..messages import percent
from .options import add_json_option, quieten_transformers
from .parser import CommandParser, UsageError, add_command

if TYPE_CHECKING:
    from ..training.town_run import TownRun
    from ..training.trainer import TrainingResult

DESCRIPTION = """\
Trains D2-VPR: stage distill teaches a student to give a teacher's descriptors, stage finetune brings descriptors of
the same place together.
  d2vpr train                              both stages in a tiny size, on a town that it draws
  d2vpr train --config examples/configs/distill.yaml --data GSV-Cities --output runs/distill
  d2vpr train --config examples/configs/finetune.yaml --data GSV-Cities --model runs/distill/checkpoint

`accelerate launch examples/train.py` is the same with accelerate's launcher: several GPUs, mixed precision, FSDP,
DeepSpeed as its own configuration says. Several processes on a CPU need
  accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no ...

A configuration is a YAML file of the keys below; what stands on the command line wins. One with `stages` makes its
photos and runs one stage after the other, as examples/configs/d2vpr_small.yaml does; --resume goes on with it.
BatchNorm normalises by each process's own batch unless --sync_batchnorm is on (CUDA only)."""

TOWN_KEYS = ("output", "seed")


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    from ..training.arguments import PRESET_NAMES, STAGES

    parser = add_command(
        subparsers,
        "train",
        run,
        summary="train a model: distill from a teacher, fine-tune on places",
        usage="[--config FILE] [--KEY VALUE ...]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("what to run")
    group.add_argument("--config", metavar="FILE", help="YAML file of keys (default: draw a town and train on it)")
    group.add_argument("--stage", metavar="STAGE", choices=tuple(STAGES), help="distill or finetune, without a file")
    group.add_argument(
        "--preset",
        metavar="NAME",
        choices=PRESET_NAMES,
        help="published: the recipe of the paper as it was really run (default: default)",
    )
    add_json_option(group)
    _add_keys(parser)
    return parser


def _add_keys(parser: CommandParser) -> None:
    """An option for each key of either stage, under its heading. All are text, which the arguments themselves check."""
    from ..training.arguments import STAGES
    from ..training.keys import documented_keys

    groups: dict[str, argparse._ArgumentGroup] = {}
    for key in documented_keys(STAGES):
        if key.group not in groups:
            groups[key.group] = parser.add_argument_group(key.group)
        names = dict.fromkeys([f"--{key.name}", f"--{key.name.replace('_', '-')}"])
        many = {"nargs": "+"} if key.many else {"nargs": "?", "const": "true"} if key.is_switch else {}
        groups[key.group].add_argument(
            *names, dest=key.name, default=argparse.SUPPRESS, metavar=key.metavar, help=key.help, **many
        )


def run(options: argparse.Namespace) -> int:
    from ..training.arguments import STAGES
    from ..training.keys import documented_keys
    from ..training.launching import keep_freed_memory

    quieten_transformers()
    _show_log()
    keep_freed_memory()
    given = {key.name: getattr(options, key.name) for key in documented_keys(STAGES) if hasattr(options, key.name)}
    if options.config is None and options.stage is None and "resume" in given and "output" in given:
        given = _begun_run(given["output"]) | given
        options.stage = given.pop("stage")
    if options.config is None and options.stage is None:
        return _run_town(options, given)
    from ..training.arguments import resolve_arguments
    from ..training.trainer import train

    # A teacher's module:factory is looked for here, as `python -c` does.
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as the interpreter has it
    values = _read_config(options.config) if options.config else {}
    asked = {name: value for name in ("stage", "preset") if (value := getattr(options, name)) is not None}
    if "stages" in values:
        result = _run_recipe(options.config, values, given | asked)
    else:
        result = train(resolve_arguments(values | asked | given, options.config or "the command line"))
    if _is_main_process():
        print(json.dumps(result.to_json(), indent=2) if options.json else _result_text(result))
    return 0


def _run_recipe(config: str, values: dict[str, Any], given: dict[str, Any]) -> "TrainingResult":
    """All stages of a configuration that lists several."""
    from ..training.keys import checked
    from ..training.recipe import Recipe

    if foreign := sorted({"stage", "preset", "model", "data", "head_dim"} & given.keys()):
        raise UsageError(f"--{foreign[0]} is one stage's, but {config} lists several. Change it in a copy of the file.")
    resume = checked("resume", given.pop("resume", False), bool)
    return Recipe.read(values, given, config).run(resume=resume)


def _run_town(options: argparse.Namespace, given: dict[str, Any]) -> int:
    """Teacher, distilled and fine-tuned student of a town."""
    if options.preset or (others := sorted(given.keys() - set(TOWN_KEYS))):
        name = "preset" if options.preset else others[0]
        raise UsageError(
            f"--{name} needs to know what to train: give --config FILE or --stage. Without them a town is drawn, which "
            "takes --output and --seed alone."
        )
    from ..training.keys import checked
    from ..training.town_run import train_on_town

    town = train_on_town(given.get("output", "runs/town"), seed=checked("seed", given.get("seed", 0), int))
    if _is_main_process():
        print(json.dumps(town.to_json(), indent=2) if options.json else _town_text(town))
    return 0


def _begun_run(folder: str) -> dict[str, Any]:
    """The keys of a run that is to go on."""
    path = Path(folder) / "arguments.json"
    if not path.is_file():
        raise UsageError(f"{folder} holds no training run to go on with. Leave --resume out, or name the run's folder.")
    return {name: value for name, value in _read_keys(path, "JSON", json.loads).items() if value is not None}


def _read_config(path: str) -> dict[str, Any]:
    import yaml

    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}. Give --config a YAML file, such as examples/configs/distill.yaml.")
    return _read_keys(Path(path), "YAML", yaml.safe_load)


def _read_keys(path: Path, form: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """The keys of a run's file."""
    import yaml

    try:
        values = read(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} isn't {form} ({' '.join(str(error).split())}). Repair the file.") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise UsageError(
            f"{path} holds no keys, but must look like examples/configs/distill.yaml: one 'key: value' a line."
        )
    return values


def _result_text(result: "TrainingResult") -> str:
    lines = [f"{result.checkpoint}: the weights of step {result.best_step} of {result.steps}"]
    if result.best_recall is not None:
        lines.append(f"in validation: {result.metric} {percent(result.best_recall)}")
    if result.replaced:
        lines.append(f"times that another photo stood in for an unreadable one: {result.replaced}")
    return "\n".join(lines)


def _town_text(town: "TownRun") -> str:
    return f"{town.table().text()}\ncheckpoint: {town.checkpoint}\nA drawn town is no evidence about real streets."


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


class _BesideTheBar(logging.Handler):
    """Lines that a progress bar makes room for."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _show_log() -> None:
    """Has the trainer's log shown on stderr, once for all processes."""
    log = logging.getLogger("d2vpr_hf.training")
    if log.handlers or not _is_main_process():
        return
    handler = _BesideTheBar()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
