"""Several models on one protocol: one table, and how sure each difference of the first to another is."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replace_file
from ..messages import points
from ..retrieval.embedder import Embedder
from .baselines import evaluate_scores
from .protocol import Protocol
from .query_methods import QueryMethod
from .recall import Interval, recall_differences
from .results import Evaluation
from .run import DEFAULT_KS, evaluate_protocol
from .table import Table

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several models on the same queries: the model in question first, then what it is compared with.

    Attributes:
        evaluations: by the name of the model.
    """

    evaluations: dict[str, Evaluation]

    @property
    def model(self) -> str:
        """Name of the model that is compared with the others."""
        return next(iter(self.evaluations))

    @property
    def first(self) -> Evaluation:
        """That of the model."""
        return self.evaluations[self.model]

    @cached_property
    def differences(self) -> dict[str, dict[int, tuple[float, Interval]]]:
        """{name: {k: (the model's recall minus the other's, its 95 % interval over queries)}} of all others."""
        return {
            name: recall_differences(
                self.first.first_hits[self.first.counted], each.first_hits[each.counted], each.recall
            )
            for name, each in self.evaluations.items()
            if name != self.model
        }

    def table(self) -> Table:
        """One row a model: what it is, its recall in percent, and the first model's minus it in points."""
        lowest = min(self.first.recall)
        precise = self.first.mean_average_precision is not None
        header = ["model", "dim", "image", *(f"recall@{k}" for k in self.first.recall), f"hits@{lowest}"]
        header += [*(["mAP"] if precise else []), f"recall@{lowest}: the first minus this"]
        rows = []
        for name, each in self.evaluations.items():
            dim, size = each.settings["dim"], each.settings["image_size"] or {}
            image = f"{size['height']}x{size['width']}" if {"height", "width"} <= size.keys() else "own"
            made = ["", ""] if dim is None else [f"{dim:,}", image]
            recalls = [f"{100 * share:.1f}" for share in each.recall.values()]
            row = [name, *made, *recalls, f"{each.hits[lowest]} of {each.queries_counted}"]
            row += [f"{100 * each.mean_average_precision:.1f}"] if precise else []
            rows.append([*row, "" if name == self.model else points(*self.differences[name][lowest])])
        shares = "recall and mAP" if precise else "recall"
        caption = f"{self.first.protocol.name}: {shares} in percent; differences in points, with paired 95 % intervals"
        return Table(header, rows, caption)

    def markdown(self) -> str:
        """The table for a card, with what the numbers depend on below it."""
        table = self.table()
        return "\n".join([table.markdown(), "", f"{table.caption}.", *self.remarks()]) + "\n"

    def remarks(self) -> list[str]:
        """What must be known to judge the figures, one sentence a line."""
        first = self.first
        lines = [f"Positives: {first.protocol.rule}.", f"Queries by {first.settings['query_method']}."]
        lines += first.without_positives_remark()
        lines += [
            f"{name}: {each.settings['batch_rule']}."
            for name, each in self.evaluations.items()
            if each.settings["batch_rule"] != first.settings["batch_rule"]
        ]
        return [*lines, *first.protocol.notes]

    def to_json(self) -> dict[str, Any]:
        """The model's name, its differences as fractions, and the results of each model without their rankings.

        Of each query a result has the rank of its first hit (0 where there is none) and, where the protocol has mean
        average precision, its average precision (null without positives), in the order of `queries`.
        """
        return {
            "protocol": self.first.protocol.name,
            "model": self.model,
            "difference": "the model's minus the other's",
            "differences": {
                name: {
                    f"recall@{k}": {"difference": difference, "interval": list(interval)}
                    for k, (difference, interval) in each.items()
                }
                for name, each in self.differences.items()
            },
            "queries": list(self.first.protocol.queries.names),
            "results": {name: _result_json(each) for name, each in self.evaluations.items()},
        }

    def save(self, folder: str | Path) -> Path:
        """Path of `comparison.json`, written into `folder` whole or not at all."""
        content = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        return replace_file(Path(folder) / COMPARISON_FILE, content)


def compare_models(
    protocol: Protocol,
    embedders: Mapping[str, Embedder],
    *,
    scores: Mapping[str, np.ndarray] | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    query_method: QueryMethod = "hard_resize",
    cache: str | Path | None = None,
    progress: bool = True,
) -> Comparison:
    """Evaluates each model on one protocol, with its own processor and everything else the same.

    Args:
        protocol: with labels and photos; an index as its database belongs to one model.
        embedders: {name: embedder}, the model in question first. `open_peer` opens what to compare with.
        scores: {name: (queries, database) scores} of others, as `evaluate_scores` takes them; they come last.
        ks, query_method, cache, progress: as in `evaluate_protocol`.

    Raises: ValueError if there are fewer than two models or no labels; otherwise as `evaluate_protocol`.
    """
    scores = scores or {}
    if not embedders or len(embedders) + len(scores) < 2:
        raise ValueError(
            f"{len(embedders)} model given, but a comparison needs two. Give another, or evaluate it alone."
        )
    if protocol.positives is None:
        raise ValueError(f"{protocol.name} has no labels ({protocol.rule}), so that there is nothing to compare.")
    how = {"ks": ks, "query_method": query_method, "cache": cache, "progress": progress}
    evaluations = {name: evaluate_protocol(protocol, each, **how) for name, each in embedders.items()}
    given = {name: evaluate_scores(protocol, matrix, name=name, ks=ks) for name, matrix in scores.items()}
    return Comparison(evaluations | given)


def _result_json(evaluation: Evaluation) -> dict[str, Any]:
    result = evaluation.summary_json() | {"first_hits": evaluation.first_hits.tolist()}
    if evaluation.average_precisions is not None:
        precisions = evaluation.average_precisions.tolist()
        result["average_precisions"] = [None if math.isnan(each) else each for each in precisions]
    return result
