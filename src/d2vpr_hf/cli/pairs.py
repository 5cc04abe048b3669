"""`d2vpr pairs`: which photos may show the same place, for programs for structure from motion."""

import argparse
from pathlib import Path

from .options import (
    add_json_option,
    add_model_options,
    embedding_settings,
    open_embedder,
    print_json,
    report_skipped,
    skipped_json,
    whole_number,
)
from .parser import CommandParser, add_command

# As in evaluation/pairs.py, which help must not load.
FORMATS = ("hloc", "colmap", "opensfm")

DESCRIPTION = """\
Writes for each query the database photos that look most like it, as pairs that hloc, COLMAP or OpenSfM match.
  d2vpr pairs --database images/map --queries images/new --k 20 --format hloc

Names are relative to the deepest folder that holds all photos, or to --images. The pairs for hloc are those that its
own pairs_from_retrieval makes of these descriptors (`d2vpr embed --format hloc`). COLMAP and OpenSfM get each pair
once."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "pairs",
        run,
        summary="write pairs of photos to match, for hloc, COLMAP or OpenSfM",
        usage="--database DIR --queries DIR [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("which photos")
    group.add_argument("--database", metavar="DIR", required=True, help="folder of photos, or an index of them")
    group.add_argument(
        "--queries", metavar="DIR", required=True, help="folder of photos to pair with them; may be the same"
    )
    group.add_argument("--k", metavar="K", type=whole_number(1), default=20, help="pairs a query (default: 20)")
    group = parser.add_argument_group("what to write")
    group.add_argument(
        "--format", metavar="FORMAT", default="hloc", choices=FORMATS, help=f"{', '.join(FORMATS)} (default: hloc)"
    )
    group.add_argument("--out", metavar="FILE", help="the file (default: pairs.txt, of OpenSfM pairs.json)")
    group.add_argument(
        "--images", metavar="DIR", help="folder that names are relative to (default: the deepest that holds all)"
    )
    add_json_option(group)
    add_model_options(parser, dim_words="the index's with one as --database, else the checkpoint's own")
    return parser


def run(options: argparse.Namespace) -> int:
    from ..evaluation.pairs import ranked_pairs, write_pairs
    from ..evaluation.protocol import folder_protocol
    from ..evaluation.run import evaluate_protocol

    protocol = folder_protocol(options.database, options.queries, labels=False)
    usual_dim = getattr(protocol.database, "dim", None)
    embedder = open_embedder(options.model, options.dim, usual_dim=usual_dim, **embedding_settings(options))
    evaluation = evaluate_protocol(protocol, embedder, ks=[options.k])
    skipped = [*evaluation.skipped["database"], *evaluation.skipped["queries"]]
    report_skipped(skipped)
    pairs = ranked_pairs(evaluation, options.k)
    out = Path(options.out or ("pairs.json" if options.format == "opensfm" else "pairs.txt"))
    root = write_pairs(out, pairs, options.format, root=options.images)
    if options.json:
        print_json({"pairs": len(pairs), "file": str(out), "images": str(root), "skipped": skipped_json(skipped)})
    else:
        print(f"{len(pairs)} pairs of {evaluation.counts['queries_ranked']} queries in {out}, named from {root} on")
    return 0
