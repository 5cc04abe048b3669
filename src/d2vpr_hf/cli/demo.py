"""`d2vpr demo`: the whole way from photos to places, on a town that is drawn or on one's own photos."""

import argparse
from pathlib import Path

from .options import (
    add_json_option,
    add_model_options,
    embedding_settings,
    note,
    open_embedder,
    print_json,
    quieten_transformers,
    report_skipped,
)
from .parser import CommandParser, add_command

FIRST_LINE = "This is d2vpr-base, this project's own model. It isn't the published D²-VPR."
MODEL_NOTE = (
    "The model is d2vpr-base, this project's own, of DINOv2's blocks; --model d2vpr-small takes the smaller one. It "
    "isn't the published D²-VPR, of which `d2vpr convert` makes a checkpoint for --model."
)
TOWN_NOTE = "The town is drawn. What works on it, or fails, is no evidence about real streets."
UNSEEN_NOTE = "No town of this seed went into the model."

DESCRIPTION = """\
Shows the whole way on a small town that it draws itself: index the photos of its places, then locate other photos of
them, taken at other hours, in other weather and in other directions.
  d2vpr demo
  d2vpr demo --photos my_photos          the same with photos of your own, some of them held out

It needs no network and takes under two minutes. It leaves d2vpr-demo/ (pictures, a page, the index) and, unless
--model is given, the model that comes with the package as d2vpr/, which the other commands take by default. A drawn
town is no evidence about real streets."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "demo",
        run,
        summary="see it work, on a town that it draws or on your own photos",
        usage="[--photos FOLDER] [--model M] [--out DIR]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("which photos, and where to")
    group.add_argument(
        "--photos", metavar="FOLDER", help="your own photos; some are held out and located (default: draw a town)"
    )
    group.add_argument(
        "--out",
        metavar="DIR",
        default=".",
        help="where d2vpr/ and d2vpr-demo/ are made (default: the working directory)",
    )
    add_json_option(group, "a table")
    add_model_options(parser, default=None, default_words="d2vpr-base, written to d2vpr/")
    return parser


def run(options: argparse.Namespace) -> int:
    own_model = options.model is not None
    if not options.json:
        print(f"These are the answers of the checkpoint {options.model}." if own_model else FIRST_LINE)
    from ..evaluation.baselines import random_weights
    from ..retrieval.embedder import Embedder
    from .demo_run import check_folder, claim_folder, locate_split, own_split, town_split, write_demo_model

    quieten_transformers()
    out, settings = Path(options.out), embedding_settings(options)
    # Both folders are looked at before either is written, so that a refusal leaves nothing behind.
    folder = check_folder(out / "d2vpr-demo")
    embedder = open_embedder(options.model or str(write_demo_model(out / "d2vpr")), options.dim, **settings)
    claim_folder(folder)
    notes = [] if own_model else [MODEL_NOTE]
    if options.photos is None:
        note("drawing a town ...")
        split = town_split(folder / "town")
        notes += [TOWN_NOTE] if own_model else [TOWN_NOTE, UNSEEN_NOTE]
    else:
        split = own_split(options.photos)
        notes.append(
            f"{len(split.queries.paths)} of your photos were held out and located among the other "
            f"{len(split.database.paths)}."
        )
    untrained = None if own_model else Embedder(random_weights(embedder.model), embedder.processor, **settings)
    result = locate_split(split, folder, embedder, untrained=untrained, notes=notes)
    report_skipped(result.skipped)
    if options.json:
        made = {"model": {"name": embedder.name}, "notes": notes}
        print_json(made | result.to_json())
        return 0
    print(f"{result.lead()} in {result.seconds:.0f} s.\n")
    for table in result.tables():
        print(table.text(), end="\n\n")
    if result.recall:
        print(result.summary(), end="\n\n")
    else:
        print(
            "No other photo is known to lie within 25 m of one that was located, so nobody can say which answers are "
            "right: look at them.\n"
        )
    if unanswerable := result.comparison.first.queries_without_positives:
        print(f"{unanswerable} photos have no other one within 25 m; they count as wrong.\n")
    print(*notes, "", sep="\n")
    for kind in ("page", "pictures", "places"):
        print(f"{kind:9} {result.files[kind]}")
    if not own_model:
        print(f'model     {embedder.name}/  (AutoModel.from_pretrained("{embedder.name}") after import d2vpr_hf)')
    return 0
