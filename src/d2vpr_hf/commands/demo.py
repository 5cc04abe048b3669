"""`d2vpr demo`: the whole way from photos to places, on a town that is drawn or on one's own photos."""

import argparse
import json
from pathlib import Path

from .checkpoints import add_model_options, embedding_settings, load_checkpoint, quieten_transformers
from .parsing import CommandParser, add_command, note
from .photos import report_skipped

RANDOM_FIRST_LINE = "This model has random weights (seed 0), never trained: its answers are no measure of D²-VPR."
RANDOM_NOTE = (
    "The model has random weights (seed 0) and was never trained. The answers show how the tool works, not how well "
    "D²-VPR does; --model takes a trained checkpoint."
)
TOWN_NOTE = "The town is drawn. What works on it, or fails, is no evidence about real streets."

DESCRIPTION = """\
Shows the whole way on a small town that it draws itself: index the photos of its places, then locate other photos of
them, taken at other hours, in other weather and in other directions.
  d2vpr demo
  d2vpr demo --photos my_photos          the same with photos of your own, some of them held out

It needs no network and takes under two minutes. It leaves d2vpr-demo/ (pictures, a page, the index) and, unless
--model is given, the model that it used as d2vpr/. A drawn town is no evidence about real streets."""


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
    group.add_argument("--json", action="store_true", help="print the result as JSON (default: a table)")
    add_model_options(parser, default=None, default_words="seeded random weights, written to d2vpr/")
    return parser


def run(options: argparse.Namespace) -> int:
    show = _nowhere if options.json else print
    if options.model is None:
        show(RANDOM_FIRST_LINE)
    else:
        show(f"These are the answers of the checkpoint {options.model}.")
    from ..demo import check_folder, claim_folder, is_demo_model, locate_split, own_split, town_split, write_demo_model

    quieten_transformers()
    out = Path(options.out)
    # Both folders are looked at before either is written, so that a refusal leaves nothing behind.
    folder = check_folder(out / "d2vpr-demo")
    checkpoint = load_checkpoint(options.model or str(write_demo_model(out / "d2vpr")), options.dim)
    claim_folder(folder)
    notes = [RANDOM_NOTE] if is_demo_model(checkpoint.name) else []
    if options.photos is None:
        note("drawing a town ...")
        split = town_split(folder / "town")
        notes.append(TOWN_NOTE)
    else:
        split = own_split(options.photos)
        notes.append(
            f"{len(split.queries.paths)} of your photos were held out and located among the other "
            f"{len(split.database.paths)}."
        )
    result = locate_split(
        split,
        folder,
        model=checkpoint.model,
        processor=checkpoint.processor,
        notes=notes,
        embedding=embedding_settings(options),
    )
    report_skipped(result.skipped)
    if options.json:
        made = {"name": checkpoint.name, "random_weights": RANDOM_NOTE in notes}
        print(json.dumps({"model": made} | result.to_json(), indent=2, ensure_ascii=False))
        return 0
    print(f"{result.queries} photos located among {result.places} others in {result.seconds:.0f} s.\n")
    for table in result.tables():
        print(table.text(), end="\n\n")
    if not result.recall:
        print("No coordinates are known, so nobody can say which answers are right: look at them.\n")
    elif result.unanswerable:
        print(f"{result.unanswerable} photos have no other one within 25 m; they count as wrong.\n")
    for text in notes:
        print(text)
    print()
    for kind in ("page", "pictures", "places"):
        print(f"{kind:9} {result.files[kind]}")
    if options.model is None:
        print(f'model     {checkpoint.name}/  (AutoModel.from_pretrained("{checkpoint.name}") after import d2vpr_hf)')
    return 0


def _nowhere(text: str) -> None:
    """Takes the place of print where stdout is for JSON."""
