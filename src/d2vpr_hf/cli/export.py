"""`d2vpr export`: a model becomes an ONNX graph, compared with the model on photos."""

import argparse

from .options import add_dim_option, add_json_option, note, open_embedder, print_json, whole_number
from .parser import CommandParser, add_command

DESCRIPTION = """\
Writes a model as an ONNX graph (float32), which ONNX Runtime runs without torch.
  d2vpr export d2vpr-small small_onnx

Before the folder takes its place the graph is run on photos beside the model: if a descriptor differs by more than
1e-5 of its length, that is an error and nothing is written. Needs the extra `onnx`: pip install 'd2vpr-hf[onnx]'."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "export",
        run,
        summary="write a model as an ONNX graph, which runs without torch",
        usage="MODEL OUT [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("which model, and where to")
    group.add_argument(
        "name",
        metavar="MODEL",
        help="a checkpoint folder, a name on the Hugging Face Hub, or one of the package's, d2vpr-base and d2vpr-small",
    )
    group.add_argument("out", metavar="OUT", help="the folder to make; it must not exist yet, or be empty")
    group.add_argument(
        "--size",
        metavar="N",
        type=whole_number(1),
        help="height and width of the images in pixels, a multiple of 14 (default: the processor's)",
    )
    add_dim_option(group)
    group.add_argument(
        "--calibration",
        metavar="FOLDER",
        help="compare on photos of this folder, at most 48 (default: a small town that is drawn)",
    )
    add_json_option(group)
    return parser


def run(options: argparse.Namespace) -> int:
    from ..export.write import check_installed, export_model

    check_installed()
    embedder = open_embedder(options.name, options.dim)
    note("exporting it, and comparing it on photos ...")
    record = export_model(embedder, options.out, size=options.size, calibration=options.calibration)
    if options.json:
        print_json({"folder": options.out, **record})
        return 0
    size, measured = record["size"], record["measured"]
    print(f"{options.out}/{record['graph']}: {record['graph_bytes'] / 1e6:.1f} MB, opset {record['opset']}, float32")
    print(
        f"takes {record['input']['name']} (any number of images, 3, {size['height']}, {size['width']}), gives "
        f"{record['output']['name']} of {record['output']['shape'][1]} numbers"
    )
    print(
        f"on {measured['photos']} photos of {measured['photos_from']} descriptors differ from the model's by "
        f"{measured['relative_error']:.1e} of their length at most (limit {measured['limit']:.0e})"
    )
    return 0
