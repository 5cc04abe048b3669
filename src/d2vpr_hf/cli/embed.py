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
from .parser import CommandParser, UsageError, add_command

DESCRIPTION = """\
Turns every photo of a folder into a descriptor: a row of numbers, alike for photos of the same place.
  d2vpr embed my_photos descriptors --model d2vpr

Interrupted, even by kill -9, it goes on where it stopped when run again. Run again later, it takes up photos that
were added, changed or removed.

Many photos are shared among processes or machines that see one folder OUT, each with a part of its own:
  d2vpr embed my_photos descriptors --shard 1/4     (2/4, 3/4 and 4/4 elsewhere, at the same time or later)
  d2vpr index my_photos places --from descriptors
Each part goes on by itself when it is run again, and joined they are what one process would have made."""


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
        "--shard",
        metavar="K/N",
        type=_shard,
        help="embed the K-th of N parts of the photos alone, K from 1 to N, into a folder inside OUT; all parts need "
        "the same photos, model and N",
    )
    group.add_argument(
        "--strict", action="store_true", help="stop at the first photo that can't be used (default: skip and list it)"
    )
    add_json_option(group)
    add_model_options(parser)
    return parser


def _shard(text: str) -> tuple[int, int]:
    from ..retrieval.shards import MOST_SHARDS

    number, _, shards = text.partition("/")
    if not (number.isdecimal() and shards.isdecimal() and 1 <= int(number) <= int(shards) <= MOST_SHARDS):
        raise argparse.ArgumentTypeError(
            f"{text} must be a part's number, from 1, and the number of parts, up to {MOST_SHARDS}, such as 3/16"
        )
    return int(number), int(shards)


def run(options: argparse.Namespace) -> int:
    as_hloc = options.format == "hloc"
    if as_hloc and options.shard:
        raise UsageError("--shard writes parts into a folder; leave out --format hloc.")
    if as_hloc:
        from ..retrieval.hloc import check_h5py, write_hloc

        check_h5py()
    embedder = open_embedder(options.model, options.dim, **embedding_settings(options))
    descriptors = embedder.embed(
        options.photos, folder=None if as_hloc else options.out, shard=options.shard, strict=options.strict
    )
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
        part = f", part {options.shard[0]} of {options.shard[1]}" if options.shard else ""
        print(
            f"{rows} photos embedded, {dim} numbers each, in {options.out}{part} ({len(descriptors.skipped)} skipped)"
        )
    return 0 if rows or options.shard else 1  # a part may hold no photo that can be used
