"""`d2vpr index`: a folder of photos becomes a map that can be asked."""

import argparse
from pathlib import Path

from .options import (
    add_json_option,
    add_model_options,
    add_photos_argument,
    embedding_settings,
    note,
    open_embedder,
    print_json,
    report_skipped,
    skipped_json,
)
from .parser import CommandParser, UsageError, add_command

DESCRIPTION = """\
Learns the places of your photos: embeds them and writes an index that `d2vpr locate` asks.
  d2vpr index my_photos places

Where each photo was taken is read from its EXIF GPS, from a name as published sets have it
(@easting@northing@zone@letter@latitude@longitude@...@.jpg), or from --positions. Photos without coordinates are
found by name. Interrupted, even by kill -9, it goes on where it stopped when run again; run again later, it takes
up photos that were added, changed or removed. The index keeps absolute paths of the photos."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "index",
        run,
        summary="learn the places of a folder of photos",
        usage="PHOTOS PLACES [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("which photos, and where to")
    add_photos_argument(group)
    group.add_argument("places", metavar="PLACES", help="folder of the index; made, or brought up to date")
    group.add_argument(
        "--positions",
        metavar="TABLE",
        help="CSV or Parquet with the columns path (relative to PHOTOS), lat and lon (degrees, WGS84)",
    )
    group.add_argument(
        "--from",
        dest="embedded",
        metavar="OUT",
        help="take the descriptors that `d2vpr embed PHOTOS OUT` wrote, in parts or not, and load no model; parts that "
        "are missing or unfinished are named",
    )
    add_json_option(group)
    add_model_options(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    if options.embedded is not None and options.dim is not None:
        raise UsageError("--dim is that of the descriptors of --from. Leave one of them out.")
    from ..photos.folder import read_photo_folder

    # Absolute, so that the pictures of `d2vpr locate` find the photos from any working directory.
    photos = read_photo_folder(Path(options.photos).absolute(), positions=options.positions)
    from ..retrieval.update import EmbeddedPhotos, index_photos

    if options.embedded is not None:
        embedder = EmbeddedPhotos(photos, options.embedded)
    else:
        embedder = open_embedder(options.model, options.dim, **embedding_settings(options))
    update = index_photos(photos, options.places, embedder)
    report_skipped(update.skipped)
    index = update.index
    located = int(index.positions.known.sum())
    if options.json:
        result = {
            "places": len(index),
            "with_coordinates": located,
            "added": update.added,
            "kept": update.kept,
            "removed": update.removed,
            "folder": options.places,
            "model_name": index.model_name,
            "weight_hash": index.weight_hash,
            "threshold": index.threshold.score,
            "threshold_rule": index.threshold.rule,
            "skipped": skipped_json(update.skipped),
        }
        print_json(result)
    else:
        print(
            f"{len(index)} places in {options.places}, {located} with coordinates "
            f"({update.added} added, {update.kept} kept, {update.removed} removed, {len(update.skipped)} skipped)"
        )
        note(f"ask it: d2vpr locate photo.jpg --index {options.places}")
    return 0 if len(index) else 1
