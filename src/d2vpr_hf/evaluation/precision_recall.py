"""Whether the score of an answer says if it is right: precision and recall as the least accepted score falls."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of the best answers whose score is at least a threshold.

    Attributes:
        thresholds: (points,) falling scores; at each, all queries whose best answer scores at least so much are
            accepted.
        precision: (points,) share of the accepted queries whose best answer is right.
        recall: (points,) share of the queries with positives that are accepted and right.
        area: under the curve, as the sum of the steps in recall, each times the precision reached there (average
            precision; without interpolation, which would flatter).
        recall_at_full_precision: the largest recall while no accepted answer is wrong; 0 where the answer with the best
            score is.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    area: float
    recall_at_full_precision: float


def precision_recall(scores: np.ndarray, right: np.ndarray, with_positives: int) -> PrecisionRecall:
    """The precision-recall curve over the score of each query's best answer.

    An answer to a query without positives is wrong whenever it is accepted. A query without any answer (score nan) is
    never accepted.

    Args:
        scores: (queries,) of the best answers.
        right: (queries,) bool, whether the best answer is a positive.
        with_positives: queries that have a positive, by which recall is divided.

    Raises: ValueError if no query has a positive.
    """
    if with_positives < 1:
        raise ValueError("No query has a positive, so that recall means nothing. Give a protocol with positives.")
    answered = ~np.isnan(scores)
    scores, right = scores[answered], right[answered]
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    # Equal scores are accepted together: a point stands where the next score is lower.
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.empty(0, np.int64)
    found = np.cumsum(right)[last]
    precision, recall = found / (last + 1), found / with_positives
    full = recall[precision == 1]
    return PrecisionRecall(
        thresholds=scores[last],
        precision=precision,
        recall=recall,
        area=float((np.diff(recall, prepend=0) * precision).sum()),
        recall_at_full_precision=float(full.max(initial=0)),
    )
