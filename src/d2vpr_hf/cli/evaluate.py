"""`d2vpr evaluate`: how often is the right place among the first answers?"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import (
    add_json_option,
    add_model_options,
    embedding_settings,
    open_embedder,
    positive_number,
    print_json,
    report_skipped,
    whole_number,
)
from .parser import CommandParser, UsageError, add_command

if TYPE_CHECKING:
    from ..evaluation.protocol import Protocol
    from ..evaluation.results import Evaluation
    from ..protocols.records import Count
    from ..retrieval.embedder import Embedder

# Queries on the page: more make a file that browsers open slowly.
PAGE_QUERIES = 100
# The set whose labels are hidden: what counts is the file of its predictions.
CHALLENGE = "msls-test"
# What --against takes for scores that somebody else computed.
SCORES = "scores:"
# As in evaluation/query_methods.py, which help must not load.
QUERY_METHODS = ("hard_resize", "single_query", "central_crop", "five_crops", "nearest_crop", "maj_voting")

DESCRIPTION = """\
Measures how often the right place is among the first k answers (recall@k), on a named protocol or on folders of
your own.
  d2vpr evaluate msls-val-740 data/msls --model d2vpr --save results
  d2vpr evaluate --database my_photos --queries other_photos --radius-m 25 --save results
  d2vpr evaluate nordland-vg-10frames data/nordland --against d2vpr-512 hf:facebook/dinov2-small
  d2vpr evaluate places my_places --distractors holiday_photos --against random thumbnail

A query whose place no database photo shows counts as a miss where the protocol says so, and the table says how many
there are. The protocol places takes one subfolder a place: each photo is looked for among all others, and mean average
precision (mAP) is measured too. --against compares models on the same queries: one table, with the model's recall
minus each of theirs and how sure that is."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "evaluate",
        run,
        summary="measure how often the right place is found (recall@k)",
        usage=(
            "PROTOCOL ROOT [options]\n"
            "       d2vpr evaluate --database DIR --queries DIR (--radius-m R|--positives FILE|--no-labels) [options]"
        ),
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("a named protocol")
    group.add_argument("protocol", metavar="PROTOCOL", nargs="?", help="its id, such as msls-val-740")
    group.add_argument("root", metavar="ROOT", nargs="?", help="its folder; `d2vpr verify` checks it")
    group.add_argument("--list", action="store_true", help="show all protocols with their counts, and stop")
    group = parser.add_argument_group("or folders of your own")
    group.add_argument("--database", metavar="DIR", help="photos of known places, or an index of them")
    group.add_argument("--queries", metavar="DIR", help="photos to find")
    group.add_argument(
        "--distractors",
        metavar="DIR",
        nargs="+",
        default=[],
        help="folders of photos that show the place of no query, added to the database (here, or to a protocol's)",
    )
    group = parser.add_argument_group("what is right in them (one of the three)")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--radius-m",
        metavar="R",
        type=positive_number,
        help="taken within R metres, inclusive; 25 in published sets",
    )
    choice.add_argument(
        "--positives", metavar="FILE", help='listed by name in a JSON file: {"query.jpg": ["database.jpg", ...], ...}'
    )
    choice.add_argument("--no-labels", action="store_true", help="nobody knows: rank and show, without scores")
    group = parser.add_argument_group("what to measure and to keep")
    group.add_argument(
        "--k",
        metavar="K",
        nargs="+",
        type=whole_number(1),
        default=[1, 5, 10, 20, 100],
        help="cut-offs (default: 1 5 10 20 100)",
    )
    group.add_argument(
        "--labelled-only",
        action="store_true",
        help="leave queries without positives out of the count (default: they are misses)",
    )
    group.add_argument(
        "--query-method",
        metavar="METHOD",
        default="hard_resize",
        choices=QUERY_METHODS,
        help=f"how a query photo comes to the model's size: {', '.join(QUERY_METHODS)} (default: hard_resize)",
    )
    group.add_argument(
        "--against",
        metavar="M",
        nargs="+",
        default=[],
        help="what to compare with: checkpoints; hf:NAME for any image model of transformers; a peer of torch.hub, "
        "such as megaloc; random (the same model, random weights); thumbnail (16x16 grey pixels); "
        "module.path:factory[@SIDE] for a network as the trainer's teachers are, pooled by GeM, at SIDE px (default: "
        "224); scores:FILE.npz#NAME for scores (queries, database) that somebody published",
    )
    group.add_argument(
        "--trust-remote-code", action="store_true", help="let the code that a model of --against brings run here"
    )
    group.add_argument("--cache", metavar="DIR", help="keep descriptors here, for the next run (default: keep none)")
    group.add_argument(
        "--save",
        metavar="DIR",
        help="folder for results.json, gallery.html (wrong answers first), figures.html (curves, map of errors) and, "
        "with --against, comparison.json and comparison.html (default: print only)",
    )
    add_json_option(group, "a table")
    add_model_options(parser, dim_words="the index's with one as --database, else the checkpoint's own")
    return parser


def run(options: argparse.Namespace) -> int:
    if options.list:
        return _list_protocols(options)
    protocol = _protocol(options)
    if protocol.positives is None and not (options.save or options.json):
        raise UsageError("without labels there is no score, and so nothing to print. Add --save DIR or --json.")
    # Of a folder of photos there is none.
    usual_dim = getattr(protocol.database, "dim", None)
    embedder = open_embedder(options.model, options.dim, usual_dim=usual_dim, **embedding_settings(options))
    settings = {"ks": options.k, "query_method": options.query_method, "cache": options.cache}
    if options.against:
        return _compare(options, protocol, embedder, settings)
    from ..evaluation.run import evaluate_protocol

    evaluation = evaluate_protocol(protocol, embedder, **settings)
    _report_skipped(evaluation)
    saved = _save(evaluation, Path(options.save)) if options.save else []
    _show(options, evaluation.to_json(), evaluation.table().text(), _remarks(evaluation), saved)
    return 0


def _compare(options: argparse.Namespace, protocol: "Protocol", embedder: "Embedder", settings: dict[str, Any]) -> int:
    """The model first, and those of --against beside it."""
    from ..evaluation.baselines import read_scores
    from ..evaluation.compare import compare_models
    from ..files import replace_file
    from ..reports.pages import comparison_page

    embedders, scores = {embedder.name: embedder}, {}
    for name in options.against:
        if name.startswith(SCORES):
            address = name.removeprefix(SCORES)
            scores[address.partition("#")[2] or address] = read_scores(address)
        else:
            embedders[name] = _opened(name, embedder, options)
    comparison = compare_models(protocol, embedders, scores=scores, **settings)
    for evaluation in comparison.evaluations.values():
        _report_skipped(evaluation)
    saved = []
    if options.save:
        page = replace_file(Path(options.save) / "comparison.html", comparison_page(comparison))
        saved = [comparison.save(options.save), page, *_save(comparison.first, Path(options.save))]
    _show(options, comparison.to_json(), comparison.table().text(), comparison.remarks(), saved)
    return 0


def _show(
    options: argparse.Namespace, result: dict[str, Any], table: str, remarks: list[str], saved: list[Path]
) -> None:
    """Prints a result: as JSON, or its table with what must be known and the files that were written."""
    if options.json:
        print_json(result)
    else:
        print("\n".join([table, *remarks, *(f"written: {path}" for path in saved)]))


def _report_skipped(evaluation: "Evaluation") -> None:
    for photos in evaluation.skipped.values():
        report_skipped(photos)


def _list_protocols(options: argparse.Namespace) -> int:
    """Prints every protocol with its counts and where they come from."""
    from ..evaluation.table import Table
    from ..protocols.records import PROTOCOLS

    def words(count: "Count | None") -> str:
        return "" if count is None else f"{count}" if count.verified else f"{count} (not verified)"

    rows = [[record.id, record.title, words(record.database), words(record.queries)] for record in PROTOCOLS]
    if options.json:
        named = [dict(zip(("id", "title", "database", "queries"), row, strict=True)) for row in rows]
        print_json(named)
    else:
        print(Table(["protocol", "set", "database", "queries"], rows).text())
    return 0


def _protocol(options: argparse.Namespace) -> "Protocol":
    """What the options name: a protocol in its folder, or two folders of one's own; distractors in its database."""
    from ..evaluation.protocol import folder_protocol, named_protocol, with_distractors
    from ..protocols.records import find_record

    free = options.database is not None or options.queries is not None
    labels = [options.radius_m is not None, options.positives is not None, options.no_labels]
    if options.protocol is not None:
        if free or any(labels) or options.labelled_only:
            raise UsageError(
                f"{options.protocol} is a named protocol, which says itself what is right. Leave --database, "
                "--queries and what goes with them out, or leave the name out."
            )
        find_record(options.protocol)
        if options.root is None:
            raise UsageError(f"the folder of {options.protocol} is missing: d2vpr evaluate {options.protocol} ROOT.")
        protocol = named_protocol(options.protocol, options.root)
    elif options.database is None or options.queries is None:
        raise UsageError("name a protocol and its folder, or give --database DIR and --queries DIR.")
    elif not any(labels):
        raise UsageError("say what is right: --radius-m 25, --positives positives.json, or --no-labels.")
    else:
        protocol = folder_protocol(
            options.database,
            options.queries,
            positives=options.positives,
            radius_m=options.radius_m,
            labels=not options.no_labels,
            labelled_only=options.labelled_only,
        )
    return with_distractors(protocol, options.distractors) if options.distractors else protocol


def _opened(name: str, embedder: "Embedder", options: argparse.Namespace) -> "Embedder":
    """What --against names, run as the model is; a folder of that name comes first."""
    from ..evaluation.baselines import HUB_PEERS, is_network, open_peer, random_weights
    from ..retrieval.embedder import Embedder

    settings = embedding_settings(options)
    if not Path(name).is_dir():
        if name == "random":
            return Embedder(random_weights(embedder.model), embedder.processor, **settings)
        if name.startswith("hf:") or name in ("thumbnail", *HUB_PEERS) or is_network(name):
            # A module:factory is looked for here, as `python -c` does.
            sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as the interpreter has it
            return open_peer(name, trust_remote_code=options.trust_remote_code, **settings)
    return open_embedder(name, **settings)


def _remarks(evaluation: "Evaluation") -> list[str]:
    """What the figures contain and leave out, in sentences."""
    counts, without = evaluation.counts, evaluation.queries_without_positives
    lines = [f"database: {counts['database']} photos, {counts['database_ranked']} of them ranked"]
    if without is not None:
        treated = "counted as misses" if evaluation.protocol.denominator == "all" else "left out"
        lines.append(f"queries without positives: {without} ({treated})")
    lines.append(
        f"skipped: {len(evaluation.skipped['database'])} database photos (never an answer), "
        f"{len(evaluation.skipped['queries'])} queries (counted as misses)"
    )
    if whole := [k for k in evaluation.recall or () if k >= counts["database_ranked"]]:
        names = ", ".join(f"recall@{k}" for k in whole)
        lines.append(f"{names}: so many answers are the whole database")
    return [*lines, *evaluation.protocol.notes]


def _save(evaluation: "Evaluation", folder: Path) -> list[Path]:
    """Writes results.json and the pages, of a challenge its predictions; returns their paths."""
    from ..files import replace_file
    from ..protocols.open import write_predictions
    from ..reports.pages import answer_entries, evaluation_page, gallery_page

    total, notes, protocol = evaluation.counts["queries_ranked"], _remarks(evaluation), evaluation.protocol
    shown = [query for query, ranked in enumerate(evaluation.ranking) if (ranked >= 0).any()]
    if evaluation.recall is not None:  # wrong answers first
        shown.sort(key=lambda query: evaluation.first_hits[query] == 1)
    entries = answer_entries(evaluation, shown[:PAGE_QUERIES])
    if len(entries) < total:
        notes.append(f"Shown are {len(entries)} of {total} queries, wrong answers first. results.json has them all.")
    page = gallery_page("Where were these photos taken?", entries, notes=notes, tables=[evaluation.table()])
    saved = [evaluation.save(folder), replace_file(folder / "gallery.html", page)]
    if evaluation.recall is not None:
        saved.append(replace_file(folder / "figures.html", evaluation_page(evaluation)))
    elif protocol.name == CHALLENGE:
        names = {"query_names": protocol.queries.names, "database_names": evaluation.database_names}
        saved.append(write_predictions(folder / "predictions.txt", evaluation.ranking, **names))
    return saved
