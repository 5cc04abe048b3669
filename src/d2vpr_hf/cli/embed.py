"""`d2vpr embed`: photos to descriptors in a folder."""

import argparse
from pathlib import Path

from .options import (
    add_json_option,
    add_model_options,
    add_photos_argument,
    embedding_settings,
    open_embedder,
    print_json,
    report_skipped,
    skipped_json,
)
from .parser import CommandParser, add_command

DESCRIPTION = """\
Turns every photo of a folder into a descriptor: a row of numbers, alike for photos of the same place.
  d2vpr embed my_photos descriptors --model d2vpr

Interrupted, even by kill -9, it goes on where it stopped when run again. Run again later, it takes up photos that
were added, changed or removed."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "embed",
        run,
        summary="turn photos into descriptors, to use them in a program of your own",
        usage="PHOTOS OUT [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("which photos, and where to")
    add_photos_argument(group, ", or one photo")
    group.add_argument(
        "out",
        metavar="OUT",
        help="folder for descriptors.npy (float32 rows), images.parquet (their paths) and descriptors.json; with "
        "--format hloc a file",
    )
    group.add_argument(
        "--format",
        metavar="FORMAT",
        default="folder",
        choices=("folder", "hloc"),
        help="folder, or hloc: the HDF5 file of global features that hloc reads, made in one go (default: folder)",
    )
    group.add_argument(
        "--strict", action="store_true", help="stop at the first photo that can't be used (default: skip and list it)"
    )
    add_json_option(group)
    add_model_options(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    as_hloc = options.format == "hloc"
    if as_hloc:
        from ..retrieval.hloc import check_h5py, write_hloc

        check_h5py()
    embedder = open_embedder(options.model, options.dim, **embedding_settings(options))
    descriptors = embedder.embed(options.photos, folder=None if as_hloc else options.out, strict=options.strict)
    report_skipped(descriptors.skipped)
    if as_hloc:
        photos = Path(options.photos)
        write_hloc(options.out, descriptors, photos if photos.is_dir() else photos.parent)
    rows, dim = descriptors.vectors.shape
    if options.json:
        result = {
            "rows": rows,
            "dim": dim,
            "folder": options.out,
            "model_name": descriptors.model_name,
            "weight_hash": descriptors.weight_hash,
            "skipped": skipped_json(descriptors.skipped),
        }
        print_json(result)
    else:
        print(f"{rows} photos embedded, {dim} numbers each, in {options.out} ({len(descriptors.skipped)} skipped)")
    return 0 if rows else 1
