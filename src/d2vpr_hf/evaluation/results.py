"""What came out of an evaluation: the ranking, the figures made from it, and the files that hold them."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replace_file
from . import intervals
from .intervals import Interval, recall_intervals
from .precision_recall import PrecisionRecall, precision_recall
from .protocol import Protocol
from .recall import average_precision, count_positives, first_hits

RESULTS_FILE = "results.json"

# What the file holds of each query and of the curve; all of it would make hundreds of megabytes of a large benchmark.
_SAVED_ANSWERS = 10
_SAVED_CURVE_POINTS = 1000


@dataclass(frozen=True)
class Evaluation:
    """What came out of a run of a protocol, and all that it depends on.

    Attributes:
        protocol: what was run.
        recall: {k: fraction in [0, 1]}, unrounded; None without labels.
        ranking: (queries, answers) rows of the database, best first, for every query of the protocol; -1 where there
            are no more answers, and throughout for a query that was skipped.
        scores: (queries, answers) float32 inner products, or minus the distances where settings["metric"] is "l2"; nan
            there.
        database_names: of all database photos, in the order of the rows.
        skipped: {"database": [(path, reason)], "queries": [(path, reason)]}: photos that could not be read. A skipped
            database photo is never an answer; a skipped query counts as a miss.
        model_name: of the model that made the descriptors.
        weight_hash: of its weights.
        settings: cut-offs, query method, metric, batch size and rule, number type, device, dim of the
            descriptors, image size.
        versions: of Python and the packages.
        command: the command line.
    """

    protocol: Protocol
    recall: dict[int, float] | None
    ranking: np.ndarray
    scores: np.ndarray
    database_names: list[str]
    skipped: dict[str, list[tuple[str, str]]]
    model_name: str
    weight_hash: str
    settings: dict[str, Any]
    versions: dict[str, str]
    command: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of database photos and queries, all of them and those that could be read."""
        database, queries = len(self.database_names), len(self.protocol.queries.paths)
        return {
            "database": database,
            "database_ranked": database - len(self.skipped["database"]),
            "queries": queries,
            "queries_ranked": queries - len(self.skipped["queries"]),
        }

    @property
    def queries_without_positives(self) -> int | None:
        """Number of queries that nothing in the database answers; None without labels."""
        positives = self.protocol.positives
        return None if positives is None else int((count_positives(positives) == 0).sum())

    @cached_property
    def first_hits(self) -> np.ndarray | None:
        """(queries,) rank, from 1, of each query's first right answer; 0 where there is none. None without labels."""
        return None if self.protocol.positives is None else first_hits(self.ranking, self.protocol.positives)

    @cached_property
    def counted(self) -> np.ndarray | None:
        """(queries,) bool: which queries recall is divided by; None without labels."""
        if self.protocol.positives is None:
            return None
        return (count_positives(self.protocol.positives) > 0) | (self.protocol.denominator == "all")

    @cached_property
    def hits(self) -> dict[int, int] | None:
        """{k: counted queries with a positive among their first k answers}; recall is these over `queries_counted`."""
        if self.recall is None:
            return None
        ranks = self.first_hits[self.counted]
        return {k: int(((ranks > 0) & (ranks <= k)).sum()) for k in self.recall}

    @property
    def queries_counted(self) -> int | None:
        """Number of queries that recall is divided by; None without labels."""
        return None if self.counted is None else int(self.counted.sum())

    @cached_property
    def average_precisions(self) -> np.ndarray | None:
        """(queries,) of each query, nan without positives; None where the protocol doesn't rank the whole database."""
        if self.protocol.own_rows is None or self.protocol.positives is None:
            return None
        return average_precision(self.ranking, self.protocol.positives)

    @property
    def mean_average_precision(self) -> float | None:
        """Mean over all queries that have a positive, a fraction; None as `average_precisions`."""
        return None if self.average_precisions is None else float(np.nanmean(self.average_precisions))

    @cached_property
    def intervals(self) -> dict[int, Interval] | None:
        """{k: (low, high)}: 95 % bootstrap intervals of recall; None without labels."""
        return None if self.recall is None else recall_intervals(self.first_hits[self.counted], self.recall)

    @cached_property
    def precision_recall(self) -> PrecisionRecall | None:
        """How well the score of the best answer tells right from wrong; None without labels."""
        if self.recall is None:
            return None
        with_positives = len(self.protocol.positives) - self.queries_without_positives
        return precision_recall(self.scores[self.counted, 0], self.first_hits[self.counted] == 1, with_positives)

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON object; recall as fractions, of each query its first ten answers by name."""
        return {
            "protocol": self.protocol.name,
            "rule": self.protocol.rule,
            "notes": list(self.protocol.notes),
            "denominator": None if self.recall is None else self.protocol.denominator,
            "primary_metric": None if self.recall is None else f"recall@{min(self.recall)}",
            "recall": None if self.recall is None else {f"recall@{k}": share for k, share in self.recall.items()},
            "hits": None if self.recall is None else {f"hits@{k}": hits for k, hits in self.hits.items()},
            "queries_counted": self.queries_counted,
            "mean_average_precision": self.mean_average_precision,
            "recall_intervals": self._intervals_json(),
            "precision_recall": self._precision_recall_json(),
            "counts": self.counts,
            "queries_without_positives": self.queries_without_positives,
            "skipped": {
                split: [{"path": path, "reason": reason} for path, reason in photos]
                for split, photos in self.skipped.items()
            },
            "model": {"name": self.model_name, "weight_hash": self.weight_hash},
            "settings": self.settings,
            "versions": self.versions,
            "command": self.command,
            "ranking": [self._query_json(query) for query in range(len(self.ranking))],
        }

    def save(self, folder: str | Path) -> Path:
        """Path of `results.json`, written into `folder` whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RESULTS_FILE
        content = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        # Arguments and names whose bytes are no UTF-8 become escapes, which JSON reads back as they were.
        replace_file(path, content.encode("utf-8", "backslashreplace"))
        return path

    def markdown(self) -> str:
        """The result as a small table (percent, one decimal), with what the numbers leave out below it."""
        counts, recall = self.counts, self.recall or {}
        precision = self.mean_average_precision
        header = ["protocol", "model", "database", "queries", *(f"recall@{k}" for k in recall)]
        header += [] if precision is None else ["mAP"]
        values = [
            self.protocol.name,
            f"{self.model_name} ({self.weight_hash[:8]})",
            f"{counts['database']:,}",
            f"{counts['queries']:,}",
            *(f"{100 * share:.1f}" for share in recall.values()),
            *([] if precision is None else [f"{100 * precision:.1f}"]),
        ]
        table = [header, ["---"] * len(header), values]
        lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table]
        ranges = [
            f"recall@{k} {100 * low:.1f} to {100 * high:.1f}" for k, (low, high) in (self.intervals or {}).items()
        ]
        sure = [f"95 % intervals (bootstrap over queries): {', '.join(ranges)}."] if ranges else []
        return "\n".join([*lines, "", *sure, *self.remarks()]) + "\n"

    def remarks(self) -> list[str]:
        """What must be known to judge the figures, one sentence a line."""
        lines = [f"Positives: {self.protocol.rule}."]
        if self.recall is not None:
            curve = self.precision_recall
            lines.append(
                f"Score of the best answer: area under precision-recall {100 * curve.area:.1f} %, recall at 100 % "
                f"precision {100 * curve.recall_at_full_precision:.1f} %."
            )
        lines.append(f"Queries by {self.settings['query_method']}; batches: {self.settings['batch_rule']}.")
        if self.queries_without_positives:
            treated = "count as misses" if self.protocol.denominator == "all" else "are left out"
            lines.append(f"Queries without positives: {self.queries_without_positives}; they {treated}.")
        for split, photos in self.skipped.items():
            if photos:
                effect = "never an answer" if split == "database" else "counted as misses"
                lines.append(f"Skipped {split} photos, {effect}: {len(photos)}.")
        return [*lines, *self.protocol.notes]

    def _query_json(self, query: int) -> dict[str, Any]:
        rows, scores = self.ranking[query, :_SAVED_ANSWERS], self.scores[query, :_SAVED_ANSWERS]
        positives, precisions = self.protocol.positives, self.average_precisions
        found = {
            "query": self.protocol.queries.names[query],
            "positives": None if positives is None else len(positives[query]),
            "first_hit": None if positives is None or not self.first_hits[query] else int(self.first_hits[query]),
            "answers": [self.database_names[row] for row in rows if row >= 0],
            "scores": [float(score) for row, score in zip(rows, scores, strict=True) if row >= 0],
        }
        if precisions is not None:
            found["average_precision"] = None if np.isnan(precisions[query]) else float(precisions[query])
        return found

    def _intervals_json(self) -> dict[str, Any] | None:
        if self.recall is None:
            return None
        made = {"level": intervals.LEVEL, "resamples": intervals.RESAMPLES, "seed": intervals.SEED}
        return made | {f"recall@{k}": list(interval) for k, interval in self.intervals.items()}

    def _precision_recall_json(self) -> dict[str, Any] | None:
        curve = self.precision_recall
        if curve is None:
            return None
        points = len(curve.recall)
        shown = np.linspace(0, points - 1, min(points, _SAVED_CURVE_POINTS)).round().astype(np.int64)
        return {
            "area": curve.area,
            "recall_at_full_precision": curve.recall_at_full_precision,
            "thresholds": curve.thresholds[shown].tolist(),
            "precision": curve.precision[shown].tolist(),
            "recall": curve.recall[shown].tolist(),
        }
