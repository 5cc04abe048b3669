"""`d2vpr benchmark`: what does a photo cost the student, the teacher, and a checkpoint of your own?"""

import argparse
import json
import platform
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import points
from .options import (
    add_device_option,
    add_dtype_option,
    add_json_option,
    note,
    open_embedder,
    print_json,
    whole_number,
)
from .parser import CommandParser, UsageError, add_command

if TYPE_CHECKING:
    from torch import nn

    from ..evaluation.cost import ModelCost, OriginalCount
    from ..evaluation.table import Table

STUDENT, STUDENT_WITH_ENCODER, TEACHER = "student", "student with encoder", "teacher"
RESULT_FILE = "benchmark.json"
# What the paper (arXiv 2511.12528) says of its student against its teacher.
PAPER = {"parameters": -0.642, "flops": -0.626}

DESCRIPTION = """\
Counts and measures in one run what a photo costs: parameters, multiply-accumulates (attention's included), milliseconds
and bytes a descriptor, of D2-VPR's student with and without its encoder, of its teacher CricaVPR, and of any --model.
  d2vpr benchmark
  d2vpr benchmark --model d2vpr --model d2vpr-512 --batch-sizes 1 8 32 --save results

Student and teacher have the paper's shapes and random weights, which decide neither counts nor times. The figures of
the paper stand below, with what they leave out."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "benchmark",
        run,
        summary="count and measure what a photo costs: parameters, GMACs, milliseconds",
        usage="[options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("what to measure")
    group.add_argument(
        "--model",
        metavar="M",
        action="append",
        default=[],
        help="a checkpoint folder or a name on the Hugging Face Hub, measured beside the others; may be repeated",
    )
    group.add_argument(
        "--size",
        metavar=("HEIGHT", "WIDTH"),
        nargs=2,
        type=whole_number(1),
        help="pixels of the photos, multiples of 14 (default: 224 224, and of a --model what its processor makes)",
    )
    group.add_argument(
        "--batch-sizes",
        metavar="N",
        nargs="+",
        type=whole_number(1),
        default=[1, 32],
        help="photos at a time (default: 1 32)",
    )
    group = parser.add_argument_group("how to run, and what to keep")
    group.add_argument(
        "--rounds",
        metavar="N",
        type=whole_number(0),
        default=4,
        help="how often each model is timed, in turns; the median counts; 0 counts without timing (default: 4)",
    )
    add_device_option(group)
    add_dtype_option(group)
    group.add_argument("--save", metavar="DIR", help=f"folder for {RESULT_FILE} (default: print only)")
    add_json_option(group)
    return parser


def run(options: argparse.Namespace) -> int:
    models, sizes = _models(options)
    from ..evaluation.cost import model_cost, original_count, time_models
    from ..files import replace_file

    with warnings.catch_warnings():
        # That an encoder makes descriptors depend on the batch is of no matter to what they cost.
        warnings.simplefilter("ignore")
        costs = {name: model_cost(model, height=sizes[name][0], width=sizes[name][1]) for name, model in models.items()}
        originals = {name: original_count(models[name]) for name in (STUDENT_WITH_ENCODER, TEACHER)}
        times = {}
        if options.rounds:
            how = {name: getattr(options, name) for name in ("rounds", "device", "dtype")}
            times = time_models(models, options.batch_sizes, sizes=sizes, **how)
    result = _result(options, costs, times, originals)
    remarks = _remarks(result)
    if options.save:
        content = json.dumps(result, indent=2, ensure_ascii=False)
        remarks.append(f"written: {replace_file(Path(options.save) / RESULT_FILE, content)}")
    if options.json:
        print_json(result)
    else:
        print("\n".join([_table(result).text(), *remarks]))
    return 0


def _models(options: argparse.Namespace) -> "tuple[dict[str, nn.Module], dict[str, tuple[int, int]]]":
    """The models by name, and the (height, width) of each one's photos."""
    own = {}
    for name in options.model:
        if name in own or name in (STUDENT, STUDENT_WITH_ENCODER, TEACHER):
            raise UsageError(f"--model {name} names a row that is there already. Give each model once.")
        own[name] = open_embedder(name)
    note("making student and teacher ...")
    import torch

    from .. import CricaVprConfig, CricaVprModel, D2VprConfig, D2VprModel

    # Nobody looks at their descriptors; without timing they need no memory either.
    with torch.device("cpu" if options.rounds else "meta"):
        models: dict[str, nn.Module] = {
            STUDENT: D2VprModel(D2VprConfig()),
            STUDENT_WITH_ENCODER: D2VprModel(D2VprConfig(cross_image_encoder=True)),
            TEACHER: CricaVprModel(CricaVprConfig()),
        }
    size = tuple(options.size or (224, 224))
    sizes = dict.fromkeys(models, size)
    for name, embedder in own.items():
        models[name] = embedder.model
        its_own = (embedder.processor.size["height"], embedder.processor.size["width"])
        sizes[name] = size if options.size else its_own
    return models, sizes


def _result(
    options: argparse.Namespace,
    costs: "dict[str, ModelCost]",
    times: dict[str, dict[int, float]],
    originals: "dict[str, OriginalCount]",
) -> dict[str, Any]:
    """Everything as one JSON object; changes against the teacher as fractions."""
    import torch

    from ..cores import available_cores
    from ..version import __version__

    rows = []
    for name, cost in costs.items():
        median_ms = {str(size): each for size, each in times.get(name, {}).items()}
        teacher = costs[TEACHER]
        change = {
            "parameters": cost.parameters / teacher.parameters - 1,
            "gmacs": cost.gmacs / teacher.gmacs - 1,
            "descriptor_bytes": cost.descriptor_bytes / teacher.descriptor_bytes - 1,
            "median_ms": {size: each / times[TEACHER][int(size)] - 1 for size, each in median_ms.items()},
        }
        rows.append({"name": name, **cost.to_json(), "median_ms": median_ms, "to_teacher": change})
    counted = {
        kind: {name: getattr(count, kind) for name, count in originals.items()} for kind in ("gmacs", "layer_gmacs")
    }
    to_teacher = {kind: found[STUDENT_WITH_ENCODER] / found[TEACHER] - 1 for kind, found in counted.items()}
    return {
        "models": rows,
        "paper": PAPER,
        "original": counted | {"to_teacher": to_teacher},
        "settings": {"rounds": options.rounds, "device": options.device, "dtype": options.dtype},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": available_cores(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"d2vpr_hf": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "command": sys.argv,
    }


def _table(result: dict[str, Any]) -> "Table":
    """One row a model; each change is the one to the teacher."""
    from ..evaluation.table import Table

    sizes = list(result["models"][0]["median_ms"])
    header = ["", "image", "parameters", "", "GMACs", ""]
    for size in sizes:
        header += [f"ms, batch {size}", ""]
    rows = []
    for row in result["models"]:
        change = row["to_teacher"]
        cells = [row["name"], f"{row['height']}x{row['width']}"]
        cells += [f"{row['parameters'] / 1e6:.2f} M", _percent(change["parameters"])]
        cells += [f"{row['gmacs']:.3f}", _percent(change["gmacs"])]
        for size in sizes:
            cells += [f"{row['median_ms'][size]:.1f}", _percent(change["median_ms"][size])]
        rows.append([*cells, f"{row['descriptor_bytes']:,}", _percent(change["descriptor_bytes"])])
    caption = "a photo each, and the change to the teacher; milliseconds are medians, descriptors float32"
    return Table([*header, "descriptor bytes", ""], rows, caption)


def _remarks(result: dict[str, Any]) -> list[str]:
    """The paper's figures, and where ours come from, in sentences."""
    rows = {row["name"]: row for row in result["models"]}
    student, teacher, original = rows[STUDENT_WITH_ENCODER], rows[TEACHER], result["original"]
    share = student["to_teacher"]

    def of(kind: str) -> str:
        found = original[kind]
        change = _percent(original["to_teacher"][kind])
        return f"{found[STUDENT_WITH_ENCODER]:.2f} of {found[TEACHER]:.2f}, {change}"

    return [
        f"the paper: {_percent(PAPER['parameters'])} parameters and {_percent(PAPER['flops'])} FLOPs, with the encoder",
        f"parameters here: {student['parameters'] / 1e6:.2f} of {teacher['parameters'] / 1e6:.2f} million, "
        f"{_percent(share['parameters'])}",
        f"GMACs here: {_percent(share['gmacs'])}, all matrix products and convolutions counted, attention's too (a "
        "FLOP count is twice that)",
        f"GMACs as the original computes, at 224x224: {of('gmacs')}; it makes the offset map 13 times and whole, this "
        "model once and where it is read, for the same descriptors",
        f"of these in linear and convolution layers alone, all that layer-wise counters see: {of('layer_gmacs')}; how "
        "the paper counted isn't known here",
    ]


def _percent(change: float) -> str:
    return "" if change == 0 else f"{points(change)} %"
