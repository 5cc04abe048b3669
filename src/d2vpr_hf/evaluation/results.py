"""What came out of an evaluation: the ranking, the figures made from it, and the files that hold them."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replace_file
from ..messages import percent
from . import recall as scoring
from .protocol import Protocol
from .table import Table

RESULTS_FILE = "results.json"

# What the file holds of each query and of the curve; all of it would make hundreds of megabytes of a large set.
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
        return None if positives is None else int((scoring.count_positives(positives) == 0).sum())

    @cached_property
    def first_hits(self) -> np.ndarray | None:
        """(queries,) rank, from 1, of each query's first right answer; 0 where there is none. None without labels."""
        positives = self.protocol.positives
        return None if positives is None else scoring.first_hits(self.ranking, positives)

    @cached_property
    def counted(self) -> np.ndarray | None:
        """(queries,) bool: which queries recall is divided by; None without labels."""
        if self.protocol.positives is None:
            return None
        return (scoring.count_positives(self.protocol.positives) > 0) | (self.protocol.denominator == "all")

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
        if not self.protocol.whole_database or self.protocol.positives is None:
            return None
        return scoring.average_precision(self.ranking, self.protocol.positives)

    @property
    def mean_average_precision(self) -> float | None:
        """Mean over all queries that have a positive, a fraction; None as `average_precisions`."""
        return None if self.average_precisions is None else float(np.nanmean(self.average_precisions))

    @cached_property
    def intervals(self) -> dict[int, scoring.Interval] | None:
        """{k: (low, high)}: 95 % bootstrap intervals of recall; None without labels."""
        return None if self.recall is None else scoring.recall_intervals(self.first_hits[self.counted], self.recall)

    @cached_property
    def precision_recall(self) -> scoring.PrecisionRecall | None:
        """How well the score of the best answer tells right from wrong; None without labels."""
        if self.recall is None:
            return None
        with_positives = len(self.protocol.positives) - self.queries_without_positives
        best, right = self.scores[self.counted, 0], self.first_hits[self.counted] == 1
        return scoring.precision_recall(best, right, with_positives)

    def table(self) -> Table:
        """Recall at each cut-off with the counts behind it; without labels the counts alone."""
        caption = f"{self.model_name} (weights {self.weight_hash[:8]}): {self.protocol.rule}"
        if self.recall is None:
            return Table(["", "photos"], [[side, str(self.counts[side])] for side in ("database", "queries")], caption)
        rows = [
            [f"recall@{k}", percent(share), f"{self.hits[k]} of {self.queries_counted}"]
            for k, share in self.recall.items()
        ]
        if self.mean_average_precision is not None:
            with_positives = self.counts["queries"] - self.queries_without_positives
            rows.append(["mAP", percent(self.mean_average_precision), f"mean of {with_positives}"])
        return Table(["", "share", "queries"], rows, caption)

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON object; recall as fractions, of each query its first ten answers by name."""
        return self.summary_json() | {"ranking": [self._query_json(query) for query in range(len(self.ranking))]}

    def summary_json(self) -> dict[str, Any]:
        """`to_json` without what concerns single queries."""
        labelled = self.recall is not None
        return {
            "protocol": self.protocol.name,
            "rule": self.protocol.rule,
            "notes": list(self.protocol.notes),
            "denominator": self.protocol.denominator if labelled else None,
            "primary_metric": f"recall@{min(self.recall)}" if labelled else None,
            "recall": {f"recall@{k}": share for k, share in self.recall.items()} if labelled else None,
            "hits": {f"hits@{k}": hits for k, hits in self.hits.items()} if labelled else None,
            "queries_counted": self.queries_counted,
            "mean_average_precision": self.mean_average_precision,
            "recall_intervals": self._intervals_json() if labelled else None,
            "precision_recall": self._precision_recall_json() if labelled else None,
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
        }

    def save(self, folder: str | Path) -> Path:
        """Path of `results.json`, written into `folder` whole or not at all."""
        content = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        return replace_file(Path(folder) / RESULTS_FILE, content)

    def markdown(self) -> str:
        """The result as a small table (percent, one decimal), with what the numbers leave out below it."""
        counts, figures = self.counts, {f"recall@{k}": share for k, share in (self.recall or {}).items()}
        if self.mean_average_precision is not None:
            figures["mAP"] = self.mean_average_precision
        cells = [self.protocol.name, f"{self.model_name} ({self.weight_hash[:8]})"]
        cells += [
            f"{counts['database']:,}",
            f"{counts['queries']:,}",
            *(f"{100 * each:.1f}" for each in figures.values()),
        ]
        table = Table(["protocol", "model", "database", "queries", *figures], [cells])
        ranges = [
            f"recall@{k} {100 * low:.1f} to {100 * high:.1f}" for k, (low, high) in (self.intervals or {}).items()
        ]
        sure = [f"95 % intervals (bootstrap over queries): {', '.join(ranges)}."] if ranges else []
        return "\n".join([table.markdown(), "", *sure, *self.remarks()]) + "\n"

    def remarks(self) -> list[str]:
        """What must be known to judge the figures, one sentence a line."""
        lines = [f"Positives: {self.protocol.rule}."]
        if self.recall is not None:
            curve = self.precision_recall
            lines.append(
                f"Score of the best answer: area under precision-recall {percent(curve.area)}, recall at 100 % "
                f"precision {percent(curve.recall_at_full_precision)}."
            )
        lines.append(f"Queries by {self.settings['query_method']}; batches: {self.settings['batch_rule']}.")
        lines += self.without_positives_remark()
        for split, photos in self.skipped.items():
            if photos:
                effect = "never an answer" if split == "database" else "counted as misses"
                lines.append(f"Skipped {split} photos, {effect}: {len(photos)}.")
        return [*lines, *self.protocol.notes]

    def without_positives_remark(self) -> list[str]:
        """How many queries nothing answers and how they count, in a sentence; none where there are none."""
        if not self.queries_without_positives:
            return []
        treated = "count as misses" if self.protocol.denominator == "all" else "are left out"
        return [f"Queries without positives: {self.queries_without_positives}; they {treated}."]

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

    def _intervals_json(self) -> dict[str, Any]:
        made = {"level": scoring.LEVEL, "resamples": scoring.RESAMPLES, "seed": scoring.SEED}
        return made | {f"recall@{k}": list(interval) for k, interval in self.intervals.items()}

    def _precision_recall_json(self) -> dict[str, Any]:
        curve = self.precision_recall
        shown = scoring.evenly_spread(len(curve.recall), _SAVED_CURVE_POINTS)
        return {
            "area": curve.area,
            "recall_at_full_precision": curve.recall_at_full_precision,
            "thresholds": curve.thresholds[shown].tolist(),
            "precision": curve.precision[shown].tolist(),
            "recall": curve.recall[shown].tolist(),
        }
