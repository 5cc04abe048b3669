"""`d2vpr cut`: perspective views of 360-degree panoramas, under the field's names."""

import argparse

from .options import finite_number, positive_number, print_json, report_skipped, skipped_json, whole_number
from .parser import CommandParser, add_command

DESCRIPTION = """\
Cuts ordinary views out of 360-degree panoramas (equirectangular images), all around, as most street-view sets are made.
  d2vpr cut panorama.jpg views
  d2vpr cut my_panoramas views --headings 8 --field-deg 90 --size 480 640

A view's name says where the panorama was taken (from its own name or EXIF GPS; blank where neither says) and where
the view looks, so that `d2vpr index` and `d2vpr evaluate` read its place. Headings count clockwise from north where the
panorama says where its middle looks (GPano:PoseHeadingDegrees), and else from its centre column."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "cut",
        run,
        summary="cut views out of 360-degree panoramas",
        usage="PANORAMA OUT [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("which panoramas, and where to")
    group.add_argument("panorama", metavar="PANORAMA", help="an equirectangular image, or a folder of them")
    group.add_argument("out", metavar="OUT", help="folder for the views; files of the same name are replaced")
    group = parser.add_argument_group("which views")
    group.add_argument(
        "--headings", metavar="N", type=whole_number(1), default=12, help="views all around, 1 to 360 (default: 12)"
    )
    group.add_argument(
        "--pitch-deg", metavar="P", type=finite_number, default=0.0, help="degrees upwards, -90 to 90 (default: 0)"
    )
    group.add_argument(
        "--field-deg",
        metavar="F",
        type=positive_number,
        default=75.0,
        help="horizontal field of view in degrees, below 180 (default: 75)",
    )
    group.add_argument(
        "--size",
        metavar=("HEIGHT", "WIDTH"),
        nargs=2,
        type=whole_number(1),
        default=[480, 640],
        help="pixels of the views (default: 480 640)",
    )
    group = parser.add_argument_group("how to run, and what to print")
    group.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 (default: a GPU if there is one, else cpu)")
    group.add_argument("--json", action="store_true", help="print the result as JSON (default: as text)")
    return parser


def run(options: argparse.Namespace) -> int:
    import torch

    from ..files import path_to_text
    from ..panoramas.cut import cut_panoramas

    height, width = options.size
    views = cut_panoramas(
        options.panorama,
        options.out,
        headings=options.headings,
        pitch_deg=options.pitch_deg,
        field_deg=options.field_deg,
        height=height,
        width=width,
        device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    report_skipped(views.skipped)
    if options.json:
        paths = [path_to_text(path) for path in views.paths]
        print_json({"views": paths, "skipped": skipped_json(views.skipped)})
    else:
        count = len(views.paths) // options.headings
        panoramas = f"{count} panorama{'s' if count != 1 else ''}"
        print(f"{len(views.paths)} views of {panoramas} in {options.out} ({len(views.skipped)} skipped)")
    return 0 if views.paths else 1
