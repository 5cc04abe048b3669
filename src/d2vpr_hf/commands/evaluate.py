"""`d2vpr evaluate`: how often is the right place among the first answers?"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoints import add_model_options, embedding_settings, load_checkpoint
from .parsing import CommandParser, UsageError, add_command, positive_number, whole_number
from .photos import report_skipped

if TYPE_CHECKING:
    import numpy as np

    from ..evaluation.pictures import Match
    from ..evaluation.protocol import Evaluation
    from ..evaluation.reports import Entry, Table

# Queries on the page: more make a file that browsers open slowly.
PAGE_QUERIES = 100
PAGE_MATCHES = 5

DESCRIPTION = """\
Measures how often the right place is among the first k answers (recall@k).
  d2vpr evaluate --database my_photos --queries other_photos --radius-m 25 --save results

A query whose place no database photo shows counts as a miss, and the table says how many there are."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "evaluate",
        run,
        summary="measure how often the right place is found (recall@k)",
        usage="--database DIR --queries DIR (--radius-m R | --positives FILE | --no-labels) [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("which photos")
    group.add_argument("--database", metavar="DIR", required=True, help="photos of known places, or an index of them")
    group.add_argument("--queries", metavar="DIR", required=True, help="photos to find")
    group = parser.add_argument_group("what is right (one of the three)")
    choice = group.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--radius-m", metavar="R", type=positive_number, help="taken within R metres, inclusive; 25 in the benchmarks"
    )
    choice.add_argument(
        "--positives", metavar="FILE", help='listed by name in a JSON file: {"query.jpg": ["database.jpg", ...], ...}'
    )
    choice.add_argument("--no-labels", action="store_true", help="nobody knows: rank and show, without scores")
    group = parser.add_argument_group("what to measure and to keep")
    group.add_argument(
        "--k", metavar="K", nargs="+", type=whole_number(1), default=[1, 5, 10], help="cut-offs (default: 1 5 10)"
    )
    group.add_argument(
        "--save",
        metavar="DIR",
        help="folder for results.json and gallery.html, wrong answers first (default: print only)",
    )
    group.add_argument("--json", action="store_true", help="print all results as JSON (default: a table)")
    add_model_options(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    if options.no_labels and not (options.save or options.json):
        raise UsageError("--no-labels ranks without scores, so there is nothing to print. Add --save DIR or --json.")
    from ..evaluation.protocol import evaluate_protocol, folder_protocol

    protocol = folder_protocol(
        options.database,
        options.queries,
        positives=options.positives,
        radius_m=options.radius_m,
        labels=not options.no_labels,
    )
    checkpoint = load_checkpoint(options.model)
    evaluation = evaluate_protocol(
        protocol,
        model=checkpoint.model,
        processor=checkpoint.processor,
        ks=options.k,
        **embedding_settings(options),
    )
    for photos in evaluation.skipped.values():
        report_skipped(photos)
    saved = _save(evaluation, Path(options.save)) if options.save else []
    if options.json:
        print(json.dumps(evaluation.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    print(_table(evaluation).text())
    for line in _remarks(evaluation):
        print(line)
    for path in saved:
        print(f"written: {path}")
    return 0


def _table(evaluation: "Evaluation") -> "Table":
    """Recall at each cut-off with the counts behind it; without labels the counts alone."""
    from ..evaluation.reports import Table

    counts = evaluation.counts
    caption = f"{evaluation.model_name} (weights {evaluation.weight_hash[:8]}): {evaluation.protocol.rule}"
    if evaluation.recall is None:
        return Table(
            ["", "photos"], [["database", str(counts["database"])], ["queries", str(counts["queries"])]], caption
        )
    scored = counts["queries"]
    if evaluation.protocol.denominator == "with_positives":
        scored -= evaluation.queries_without_positives
    rows = [
        [f"recall@{k}", f"{100 * share:.1f} %", f"{round(share * scored)} of {scored}"]
        for k, share in evaluation.recall.items()
    ]
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
    return lines


def _save(evaluation: "Evaluation", folder: Path) -> list[Path]:
    """Writes results.json and the page; returns their paths."""
    from ..evaluation.reports import gallery_page, write_atomically

    entries = _entries(evaluation)
    total = evaluation.counts["queries_ranked"]
    notes = _remarks(evaluation)
    if len(entries) < total:
        notes.append(f"Shown are {len(entries)} of {total} queries, wrong answers first. results.json has them all.")
    page = gallery_page("Where were these photos taken?", entries, notes=notes, tables=[_table(evaluation)])
    return [evaluation.save(folder), write_atomically(folder / "gallery.html", page)]


def _entries(evaluation: "Evaluation") -> "list[Entry]":
    """Queries with their best matches for the page, wrong answers first."""
    from ..evaluation.reports import Entry

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
    from ..data.coordinates import distances_m
    from ..data.images import text_to_path
    from ..evaluation.pictures import Match
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
