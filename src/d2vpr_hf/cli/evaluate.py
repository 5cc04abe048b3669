"""`d2vpr evaluate`: how often is the right place among the first answers?"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import add_model_options, embedding_settings, open_embedder, positive_number, report_skipped, whole_number
from .parser import CommandParser, UsageError, add_command

if TYPE_CHECKING:
    import numpy as np
    from torch.nn import Module

    from ..evaluation.protocol import Protocol
    from ..evaluation.results import Evaluation
    from ..evaluation.table import Table
    from ..protocols.records import Count
    from ..reports.pages import Entry
    from ..reports.pictures import Match
    from ..retrieval.embedder import Embedder

# Queries on the page: more make a file that browsers open slowly. Four matches and the query fill a row.
PAGE_QUERIES = 100
PAGE_MATCHES = 4
# The set whose labels are hidden: what counts is the file of its predictions.
CHALLENGE = "msls-test"
# What --against takes for scores that somebody else computed.
SCORES = "scores:"
# As in evaluation/query_methods.py, which help must not load.
QUERY_METHODS = ("hard_resize", "single_query", "central_crop", "five_crops", "nearest_crop", "maj_voting")

DESCRIPTION = """\
Measures how often the right place is among the first k answers (recall@k), on a named benchmark or on folders of
your own.
  d2vpr evaluate msls-val-740 data/msls --model d2vpr --save results
  d2vpr evaluate --database my_photos --queries other_photos --radius-m 25 --save results
  d2vpr evaluate nordland-vg-10frames data/nordland --against d2vpr-512 hf:facebook/dinov2-small
  d2vpr evaluate places my_places --distractors holiday_photos --against random thumbnail

A query whose place no database photo shows counts as a miss where the protocol says so, and the table says how many
there are. The protocol places takes one subfolder a place: each photo is looked for among all others, and mean average
precision (mAP) is measured too. --against compares models on the same queries: one table, with intervals of the
differences."""


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
    group = parser.add_argument_group("a named benchmark")
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
        help="folders of photos that show the place of no query, added to the database (here, or to a benchmark's)",
    )
    group = parser.add_argument_group("what is right in them (one of the three)")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument(
        "--radius-m", metavar="R", type=positive_number, help="taken within R metres, inclusive; 25 in the benchmarks"
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
        help="folder for results.json, gallery.html (wrong answers first) and figures.html (curves, map of errors) "
        "(default: print only)",
    )
    group.add_argument("--json", action="store_true", help="print all results as JSON (default: a table)")
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
    checkpoint = open_embedder(options.model, options.dim, usual_dim=usual_dim)
    settings = {
        "ks": options.k,
        "query_method": options.query_method,
        "cache": options.cache,
        **embedding_settings(options),
    }
    if options.against:
        return _compare(options, protocol, checkpoint, settings)
    from ..evaluation.run import evaluate_protocol

    evaluation = evaluate_protocol(protocol, model=checkpoint.model, processor=checkpoint.processor, **settings)
    for photos in evaluation.skipped.values():
        report_skipped(photos)
    saved = _save(evaluation, Path(options.save)) if options.save else []
    if options.json:
        print(json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    print(_table(evaluation).text())
    for line in _remarks(evaluation):
        print(line)
    _say_written(saved)
    return 0


def _list_protocols(options: argparse.Namespace) -> int:
    """Prints every protocol with its counts and where they come from."""
    from ..evaluation.table import Table
    from ..protocols.records import PROTOCOLS

    def words(count: "Count | None") -> str:
        return "" if count is None else f"{count}" if count.verified else f"{count} (not verified)"

    rows = [[record.id, record.title, words(record.database), words(record.queries)] for record in PROTOCOLS]
    if options.json:
        print(
            json.dumps([dict(zip(("id", "title", "database", "queries"), row, strict=True)) for row in rows], indent=2)
        )
    else:
        print(Table(["protocol", "set", "database", "queries"], rows).text())
    return 0


def _protocol(options: argparse.Namespace) -> "Protocol":
    """What the options name: a benchmark in its folder, or two folders of one's own; distractors in its database."""
    from ..evaluation.protocol import with_distractors

    protocol = _protocol_alone(options)
    return with_distractors(protocol, options.distractors) if options.distractors else protocol


def _protocol_alone(options: argparse.Namespace) -> "Protocol":
    from ..evaluation.protocol import benchmark_protocol, folder_protocol
    from ..protocols.records import find_record

    free = options.database is not None or options.queries is not None
    labels = [options.radius_m is not None, options.positives is not None, options.no_labels]
    if options.protocol is not None:
        if free or any(labels) or options.labelled_only:
            raise UsageError(
                f"{options.protocol} is a named benchmark, which says itself what is right. Leave --database, "
                "--queries and what goes with them out, or leave the name out."
            )
        find_record(options.protocol)
        if options.root is None:
            raise UsageError(f"the folder of {options.protocol} is missing: d2vpr evaluate {options.protocol} ROOT.")
        return benchmark_protocol(options.protocol, options.root)
    if options.database is None or options.queries is None:
        raise UsageError("name a benchmark and its folder, or give --database DIR and --queries DIR.")
    if not any(labels):
        raise UsageError("say what is right: --radius-m 25, --positives positives.json, or --no-labels.")
    return folder_protocol(
        options.database,
        options.queries,
        positives=options.positives,
        radius_m=options.radius_m,
        labels=not options.no_labels,
        labelled_only=options.labelled_only,
    )


def _compare(
    options: argparse.Namespace, protocol: "Protocol", checkpoint: "Embedder", settings: dict[str, Any]
) -> int:
    """The model first, and those of --against beside it."""
    from ..evaluation.compare import compare_models
    from ..evaluation.given_scores import read_scores
    from ..reports.figures_page import comparison_page
    from ..reports.pages import write_atomically

    models = {checkpoint.name: (checkpoint.model, checkpoint.processor)}
    scores = {}
    for name in options.against:
        if name.startswith(SCORES):
            address = name.removeprefix(SCORES)
            scores[address.partition("#")[2] or address] = read_scores(address)
        else:
            models[name] = _opened(name, checkpoint, options.trust_remote_code)
    comparison = compare_models(protocol, models, scores=scores, **settings)
    for evaluation in comparison.evaluations.values():
        for photos in evaluation.skipped.values():
            report_skipped(photos)
    saved = []
    if options.save:
        page = write_atomically(Path(options.save) / "comparison.html", comparison_page(comparison))
        saved = [comparison.save(options.save), page]
    if options.json:
        print(json.dumps(comparison.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    print(comparison.table().text())
    for line in comparison.remarks():
        print(line)
    _say_written(saved)
    return 0


def _opened(name: str, checkpoint: "Embedder", trust_remote_code: bool) -> "tuple[Module, Callable[..., Any]]":
    """Model and processor of what --against names; a folder of that name comes first."""
    from ..evaluation.baselines import HUB_PEERS, PeerModel, is_network, open_peer, random_weights

    if not Path(name).is_dir():
        if name == "random":
            return random_weights(checkpoint.model), checkpoint.processor
        if name.startswith("hf:") or name in ("thumbnail", *HUB_PEERS) or is_network(name):
            # A module:factory is looked for here, as `python -c` does.
            sys.path.insert(0, os.getcwd())  # noqa: PTH109 - as the interpreter has it
            peer = open_peer(name, trust_remote_code=trust_remote_code)
            return PeerModel(peer), peer.processor
    other = open_embedder(name)
    return other.model, other.processor


def _say_written(paths: "list[Path]") -> None:
    for path in paths:
        print(f"written: {path}")


def _table(evaluation: "Evaluation") -> "Table":
    """Recall at each cut-off with the counts behind it; without labels the counts alone."""
    from ..evaluation.table import Table

    counts = evaluation.counts
    caption = f"{evaluation.model_name} (weights {evaluation.weight_hash[:8]}): {evaluation.protocol.rule}"
    if evaluation.recall is None:
        return Table(
            ["", "photos"], [["database", str(counts["database"])], ["queries", str(counts["queries"])]], caption
        )
    rows = [
        [f"recall@{k}", f"{100 * share:.1f} %", f"{evaluation.hits[k]} of {evaluation.queries_counted}"]
        for k, share in evaluation.recall.items()
    ]
    if (precision := evaluation.mean_average_precision) is not None:
        with_positives = counts["queries"] - evaluation.queries_without_positives
        rows.append(["mAP", f"{100 * precision:.1f} %", f"mean of {with_positives}"])
    return Table(["", "share", "queries"], rows, caption)


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
    from ..protocols.open import write_predictions
    from ..reports.figures_page import evaluation_page
    from ..reports.pages import gallery_page, write_atomically

    entries = _entries(evaluation)
    total = evaluation.counts["queries_ranked"]
    notes = _remarks(evaluation)
    if len(entries) < total:
        notes.append(f"Shown are {len(entries)} of {total} queries, wrong answers first. results.json has them all.")
    page = gallery_page("Where were these photos taken?", entries, notes=notes, tables=[_table(evaluation)])
    saved = [evaluation.save(folder), write_atomically(folder / "gallery.html", page)]
    protocol = evaluation.protocol
    if evaluation.recall is not None:
        saved.append(write_atomically(folder / "figures.html", evaluation_page(evaluation)))
    elif protocol.name == CHALLENGE:
        names = {"query_names": protocol.queries.names, "database_names": evaluation.database_names}
        saved.append(write_predictions(folder / "predictions.txt", evaluation.ranking, **names))
    return saved


def _entries(evaluation: "Evaluation") -> "list[Entry]":
    """Queries with their best matches for the page, wrong answers first."""
    from ..reports.pages import Entry

    protocol = evaluation.protocol
    shown = [row for row, ranked in enumerate(evaluation.ranking) if (ranked >= 0).any()]
    right = {row: _is_right(evaluation, row, evaluation.ranking[row, 0]) for row in shown}
    shown = sorted(shown, key=lambda row: right[row] is True)[:PAGE_QUERIES]
    entries = []
    for row in shown:
        matches = [_match(evaluation, row, rank) for rank in range(min(PAGE_MATCHES, evaluation.ranking.shape[1]))]
        matches = [match for match in matches if match is not None]
        answer = f"{protocol.queries.names[row]} looks like {matches[0].name}"
        if protocol.positives is not None and not len(protocol.positives[row]):
            answer += ": no database photo shows its place"
        entries.append(Entry(protocol.queries.paths[row], protocol.queries.names[row], answer, matches, right[row]))
    return entries


def _is_right(evaluation: "Evaluation", query: int, place: "int | np.integer") -> bool | None:
    positives = evaluation.protocol.positives
    return None if positives is None else bool((positives[query] == place).any())


def _match(evaluation: "Evaluation", query: int, rank: int) -> "Match | None":
    """One candidate of one query; None where there are no more."""
    from ..files import text_to_path
    from ..photos.positions import distances_m
    from ..reports.pictures import Match
    from ..retrieval.index import PlaceIndex

    place = int(evaluation.ranking[query, rank])
    if place < 0:
        return None
    database, name = evaluation.protocol.database, evaluation.database_names[place]
    path = text_to_path(name) if isinstance(database, PlaceIndex) else database.paths[place]
    here, there = evaluation.protocol.queries.positions, database.positions
    away = float(
        distances_m(here.latitude[query], here.longitude[query], there.latitude[place], there.longitude[place])
    )
    return Match(
        path,
        Path(name).name,
        float(evaluation.scores[query, rank]),
        away if away == away else None,
        right=_is_right(evaluation, query, place),
    )
