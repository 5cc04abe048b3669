"""`d2vpr verify`: which protocol is this folder, and what differs from it?"""

import argparse

from .options import add_json_option, print_json, whole_number
from .parser import CommandParser, add_command

DESCRIPTION = """\
Says which named protocol a folder is, and what differs from it: counts, names, coordinates, photos that don't open.
  d2vpr verify data/nordland
  d2vpr verify data/msls --protocol msls-val-740 --all-images

Counts that nobody has verified are shown as such; a difference from them is a remark, not an error. Exit code 0: the
folder is exactly the protocol; 1: it isn't."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "verify",
        run,
        summary="tell which named protocol a folder is, and what differs",
        usage="ROOT [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("what to look at")
    group.add_argument("root", metavar="ROOT", help="the folder of the set")
    group.add_argument(
        "--protocol", metavar="ID", help="compare with this protocol (default: find out); `d2vpr evaluate --list`"
    )
    group.add_argument(
        "--sample",
        metavar="N",
        type=whole_number(0),
        default=200,
        help="photos of the database and of the queries to open (default: 200)",
    )
    group.add_argument("--all-images", action="store_true", help="open every photo")
    add_json_option(group)
    return parser


def run(options: argparse.Namespace) -> int:
    from ..protocols.verify import verify_folder

    result = verify_folder(options.root, options.protocol, sample=None if options.all_images else options.sample)
    if options.json:
        print_json(result.to_json())
    else:
        print(result.text(), end="")
    return 0 if result.exact else 1
