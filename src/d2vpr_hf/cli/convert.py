"""`d2vpr convert`: a published .pth checkpoint becomes a checkpoint folder."""

import argparse

from .options import add_json_option, note, print_json
from .parser import CommandParser, add_command

DESCRIPTION = """\
Converts a checkpoint as the authors of D2-VPR or CricaVPR publish it into a folder that AutoModel opens.
  d2vpr convert original.pth d2vpr

Every tensor must be there with its shape; what is missing, extra or misshapen is listed. Only tensors are read from
the file, no code."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "convert",
        run,
        summary="make a checkpoint folder of published weights (.pth)",
        usage="CHECKPOINT OUT [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("from where to where")
    group.add_argument("checkpoint", metavar="CHECKPOINT", help="the published .pth file")
    group.add_argument("out", metavar="OUT", help="the folder to make; it must not exist yet, or be empty")
    add_json_option(group)
    return parser


def run(options: argparse.Namespace) -> int:
    note(f"converting {options.checkpoint} ...")
    from ..models.convert import convert_checkpoint

    config = convert_checkpoint(options.checkpoint, options.out)
    if options.json:
        result = {
            "folder": options.out,
            "model_type": config.model_type,
            "descriptor_dim": config.descriptor_dim,
            "cross_image_encoder": config.cross_image_encoder,
            "converted_from": config.converted_from,
        }
        print_json(result)
        return 0
    encoder = "with the cross-image encoder" if config.cross_image_encoder else "without a cross-image encoder"
    print(f"{options.out}: a {config.model_type} model {encoder}, {config.descriptor_dim} numbers a descriptor")
    print(f"converted from {config.converted_from['file']} (SHA-256 {config.converted_from['sha256']})")
    if config.cross_image_encoder:
        note("note: with the encoder a photo's descriptor depends on the others of its batch.")
    return 0
