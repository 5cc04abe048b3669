"""Several models on one protocol: one table, and how sure each difference to the first is."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..files import replace_file
from .given_scores import evaluate_scores
from .intervals import Interval, recall_differences
from .query_methods import QueryMethod
from .run import DEFAULT_KS, Evaluation, Protocol, evaluate_protocol
from .table import Table

COMPARISON_FILE = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several models on the same queries; the first is the baseline.

    Attributes:
        evaluations: by the name of the model.
    """

    evaluations: dict[str, Evaluation]

    @property
    def baseline(self) -> str:
        """Name of the model that the others are compared with."""
        return next(iter(self.evaluations))

    @cached_property
    def differences(self) -> dict[str, dict[int, tuple[float, Interval]]]:
        """{name: {k: (recall minus the baseline's, its 95 % interval over queries)}} of all but the baseline."""
        first = self.evaluations[self.baseline]
        return {
            name: recall_differences(each.first_hits[each.counted], first.first_hits[first.counted], each.recall)
            for name, each in self.evaluations.items()
            if name != self.baseline
        }

    def table(self) -> Table:
        """One row a model: what it is, its recall in percent, and its difference to the baseline in points."""
        first = self.evaluations[self.baseline]
        lowest = min(first.recall)
        precise = first.mean_average_precision is not None
        header = ["model", "dim", "image", *(f"recall@{k}" for k in first.recall), f"hits@{lowest}"]
        header += [*(["mAP"] if precise else []), f"recall@{lowest} to the first"]
        rows = []
        for name, each in self.evaluations.items():
            dim, size = each.settings["dim"], each.settings["image_size"]
            image = "own" if not size or None in (size.get("height"), size.get("width")) else "{height}x{width}"
            recalls = [f"{100 * share:.1f}" for share in each.recall.values()]
            difference = _in_points(*self.differences[name][lowest]) if name != self.baseline else ""
            made = ["", ""] if dim is None else [f"{dim:,}", image.format(**(size or {}))]
            row = [name, *made, *recalls, f"{each.hits[lowest]} of {each.queries_counted}"]
            row += [f"{100 * each.mean_average_precision:.1f}"] if precise else []
            rows.append([*row, difference])
        shares = "recall and mAP" if precise else "recall"
        caption = f"{first.protocol.name}: {shares} in percent; differences in points, with their paired 95 % intervals"
        return Table(header, rows, caption)

    def markdown(self) -> str:
        """The table for a card, with what the numbers depend on below it."""
        table = self.table()
        lines = [table.header, ["---"] * len(table.header), *table.rows]
        rows = [f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines]
        return "\n".join([*rows, "", f"{table.caption}.", *self.remarks()]) + "\n"

    def remarks(self) -> list[str]:
        """What must be known to judge the figures, one sentence a line."""
        first = self.evaluations[self.baseline]
        lines = [f"Positives: {first.protocol.rule}.", f"Queries by {first.settings['query_method']}."]
        if first.queries_without_positives:
            treated = "count as misses" if first.protocol.denominator == "all" else "are left out"
            lines.append(f"Queries without positives: {first.queries_without_positives}; they {treated}.")
        lines += [
            f"{name}: {each.settings['batch_rule']}."
            for name, each in self.evaluations.items()
            if each.settings["batch_rule"] != first.settings["batch_rule"]
        ]
        return [*lines, *first.protocol.notes]

    def to_json(self) -> dict[str, Any]:
        """Baseline, differences as fractions, and the results of each model without their rankings.

        Of each query a result has the rank of its first hit (0 where there is none) and, where the protocol has mean
        average precision, its average precision (null without positives), in the order of `queries`.
        """
        return {
            "protocol": self.evaluations[self.baseline].protocol.name,
            "baseline": self.baseline,
            "differences": {
                name: {
                    f"recall@{k}": {"difference": difference, "interval": list(interval)}
                    for k, (difference, interval) in each.items()
                }
                for name, each in self.differences.items()
            },
            "queries": list(self.evaluations[self.baseline].protocol.queries.names),
            "results": {name: _result_json(each) for name, each in self.evaluations.items()},
        }

    def save(self, folder: str | Path) -> Path:
        """Path of `comparison.json`, written into `folder` whole or not at all."""
        path = Path(folder) / COMPARISON_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
        # Arguments and names whose bytes are no UTF-8 become escapes, which JSON reads back as they were.
        replace_file(path, content.encode("utf-8", "backslashreplace"))
        return path


def compare_models(
    protocol: Protocol,
    models: Mapping[str, tuple[torch.nn.Module, Callable[..., Any]]],
    *,
    scores: Mapping[str, np.ndarray] | None = None,
    ks: Sequence[int] = DEFAULT_KS,
    query_method: QueryMethod = "hard_resize",
    cache: str | Path | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    workers: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Evaluates each model on one protocol, with its own processor and everything else the same.

    Args:
        protocol: with labels and photos; an index as its database belongs to one model.
        models: {name: (model, processor)}, the baseline first. Of a peer these are `PeerModel(peer)` and
            `peer.processor`.
        scores: {name: (queries, database) scores} of others, as `evaluate_scores` takes them; they come last.
        ks, query_method, cache, batch_size, device, dtype, workers, progress: as in `evaluate_protocol`.

    Raises: ValueError if there are fewer than two models or no labels; otherwise as `evaluate_protocol`.
    """
    scores = scores or {}
    if not models or len(models) + len(scores) < 2:
        raise ValueError(f"{len(models)} model given, but a comparison needs two. Give another, or evaluate it alone.")
    if protocol.positives is None:
        raise ValueError(f"{protocol.name} has no labels ({protocol.rule}), so that there is nothing to compare.")
    options = {"batch_size": batch_size, "device": device, "dtype": dtype, "workers": workers, "progress": progress}
    return Comparison(
        {
            name: evaluate_protocol(
                protocol,
                model=model,
                processor=processor,
                ks=ks,
                query_method=query_method,
                cache=cache,
                **options,
            )
            for name, (model, processor) in models.items()
        }
        | {name: evaluate_scores(protocol, matrix, name=name, ks=ks) for name, matrix in scores.items()}
    )


def _result_json(evaluation: Evaluation) -> dict[str, Any]:
    result = {key: value for key, value in evaluation.to_json().items() if key != "ranking"}
    result["first_hits"] = evaluation.first_hits.tolist()
    if evaluation.average_precisions is not None:
        precisions = evaluation.average_precisions.tolist()
        result["average_precisions"] = [None if math.isnan(each) else each for each in precisions]
    return result


def _in_points(difference: float, interval: Interval) -> str:
    low, high = interval
    return f"{100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
