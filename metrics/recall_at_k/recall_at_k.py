"""The share of queries whose place is among their first k answers, as a metric for Hugging Face's `evaluate`.

It stands alone, because `evaluate.load` copies this file away from everything that lies beside it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import datasets
import evaluate
import numpy as np

_DESCRIPTION = (
    "recall@k of visual place recognition, and of any retrieval with several right answers: the share of queries with "
    "at least one positive among their first k answers. Some fields call this accuracy@k or hit rate, and mean by "
    "recall@k the share of the positives that are found."
)

_INPUTS = """
Args:
    predictions: for each query, the ids of its answers, best first. -1 at the end of a row says that the query has no
        more answers; no id stands twice in a row.
    references: for each query, the ids of its positives, in any order and of any number; an empty list where there
        are none.
    k (list of int): cut-offs, none above the number of answers; default [1, 5, 10].
    denominator (str): "all" (default) counts a query without positives as a miss; "with_positives" leaves it out.
    database_size (int): number of things that could be an answer. If given, ids must be below it, and a k above it
        takes all of a row that ranks them all.
    per_query (bool): also return what each query contributes; default False.

Returns:
    {"recall@<k>": fraction in [0, 1], ..., "queries": number of queries, "queries_without_positives": how many of
    them have none}, and with per_query "per_query": for each query, in order, {"first_hit": the rank of its first
    positive from 1, or None, "positives": how many it has, "hit@<k>": whether first_hit is within k, ...}.

Examples:
    >>> recall = evaluate.load("recall_at_k")
    >>> recall.compute(predictions=[[3, 1, 2], [0, 2, 1]], references=[[3], [1, 7]], k=[1, 3])
    {'recall@1': 0.5, 'recall@3': 1.0, 'queries': 2, 'queries_without_positives': 0}
"""

_CITATION = """@inproceedings{berton2022benchmark,
    title = {Deep Visual Geo-localization Benchmark},
    author = {Berton, Gabriele and Mereu, Riccardo and Trivigno, Gabriele and Masone, Carlo and Csurka, Gabriela and
        Sattler, Torsten and Caputo, Barbara},
    booktitle = {CVPR},
    year = {2022},
}"""

_LARGEST_ID = np.iinfo(np.int64).max


class RecallAtK(evaluate.Metric):
    """recall@k over lists of ids; a value that isn't an id is refused, with its row named.

    `evaluate` itself turns 1.7 into 1 and True into 1 without a word, so rows are checked before it sees them.
    """

    def _info(self) -> evaluate.MetricInfo:
        # Sequence, which old and new versions of datasets know; the new ones call it List.
        ids = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
            license="Apache-2.0",
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **named: Any) -> None:
        """Take in one query: the ids of its answers and of its positives."""
        # evaluate.combine hands one row over under the names of many.
        row = {"predictions": prediction, "references": reference} | named
        self._check_names(row)
        rows = {name: [value] for name, value in row.items()}
        checked = {name: _checked_rows(value, name, len(self)) for name, value in rows.items()}
        super().add(prediction=checked["predictions"][0], reference=checked["references"][0])

    def add_batch(self, *, predictions: Any = None, references: Any = None, **named: Any) -> None:
        """Take in several queries: for each, the ids of its answers and of its positives."""
        rows = {"predictions": predictions, "references": references} | named
        self._check_names(rows)
        checked = {name: _checked_rows(value, name, len(self)) for name, value in rows.items()}
        answers, positives = (len(checked[name]) for name in ("predictions", "references"))
        if answers != positives:
            raise ValueError(
                f"predictions has {answers} rows and references {positives}, but both need one for each query. Give an "
                "empty list in references where a query has no positives."
            )
        super().add_batch(**checked)

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        k: int | Sequence[int] = (1, 5, 10),
        denominator: Literal["all", "with_positives"] = "all",
        database_size: int | None = None,
        per_query: bool = False,
    ) -> dict[str, Any] | None:
        """The result over these queries and those added before; afterwards none is left."""
        settings = _checked_settings(k, denominator, database_size)
        if predictions is None and references is None and self.writer is None:
            predictions, references = [], []  # nothing was added: evaluate would speak of a missing cache file
        result = super().compute(predictions=predictions, references=references, per_query=per_query, **settings)
        if isinstance(result, ValueError):
            raise result
        return result

    def _compute(
        self, predictions: list[list[int]], references: list[list[int]], **settings: Any
    ) -> dict[str, Any] | ValueError:
        # Returned, not raised: after an exception evaluate would keep its file and its lock on it.
        try:
            return _score(predictions, references, **settings)
        except ValueError as error:
            return error

    def _check_names(self, given: dict[str, Any]) -> None:
        if unknown := sorted(set(given) - set(self._feature_names())):
            raise ValueError(f"recall_at_k has no input {unknown}; its inputs are {self._feature_names()}.")


def _score(
    predictions: list[list[int]],
    references: list[list[int]],
    ks: Sequence[int],
    denominator: str,
    database_size: int | None,
    per_query: bool,
) -> dict[str, Any]:
    if not predictions:
        raise ValueError("There is no query to score. Give predictions and references, or add queries first.")
    shortest = min(range(len(predictions)), key=lambda row: len(predictions[row]))
    # Where the whole database is ranked there are no more answers to give.
    if len(predictions[shortest]) < (max(ks) if database_size is None else min(max(ks), database_size)):
        answers = len(predictions[shortest])
        raise ValueError(
            f"k holds {max(ks)}, but predictions[{shortest}] has {answers} answers. Give no k above {answers}, rank "
            "more answers, or fill the row with -1 where there are no more."
        )
    if database_size is not None:
        for name, rows in (("predictions", predictions), ("references", references)):
            _check_below(rows, name, database_size)
    first_hits = [_first_hit(answers, set(ids)) for answers, ids in zip(predictions, references, strict=True)]
    counted = [bool(ids) or denominator == "all" for ids in references]
    if not any(counted):
        raise ValueError(
            f"None of the {len(references)} queries has a positive, so that denominator='with_positives' leaves "
            "nothing to score. Check references, or count such queries as misses with denominator='all'."
        )
    result: dict[str, Any] = {
        f"recall@{k}": sum(hit is not None and hit <= k for hit in first_hits) / sum(counted) for k in ks
    }
    result |= {"queries": len(references), "queries_without_positives": sum(not ids for ids in references)}
    if per_query:
        result["per_query"] = [
            {"first_hit": hit, "positives": len(set(ids))} | {f"hit@{k}": hit is not None and hit <= k for k in ks}
            for hit, ids in zip(first_hits, references, strict=True)
        ]
    return result


def _first_hit(answers: list[int], positives: set[int]) -> int | None:
    """Rank from 1 of the first answer that is a positive; None where there is none."""
    return next((rank for rank, answer in enumerate(answers, start=1) if answer in positives), None)


def _checked_settings(k: Any, denominator: Any, database_size: Any) -> dict[str, Any]:
    ks = [k] if np.ndim(k) == 0 else list(k)
    for each in ks:
        if not _is_whole(each) or each < 1:
            raise ValueError(f"k holds {each!r}, but cut-offs are integers of at least 1, such as [1, 5, 10].")
    if not ks:
        raise ValueError("k is empty. Give at least one cut-off, such as [1].")
    if denominator not in ("all", "with_positives"):
        raise ValueError(f"denominator is {denominator!r}, but must be 'all' or 'with_positives'.")
    if database_size is not None and (not _is_whole(database_size) or database_size < 1):
        raise ValueError(f"database_size is {database_size!r}, but must be an integer of at least 1, or None.")
    return {"ks": [int(each) for each in ks], "denominator": denominator, "database_size": database_size}


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _checked_rows(rows: Any, name: str, rows_before: int) -> list[np.ndarray]:
    """Each row as int64 ids; `rows_before` is the number of queries that are in already."""
    if rows is None:
        raise ValueError(f"{name} is missing. Give predictions and references together, one row for each query.")
    rows = _listed(rows)
    if rows is None:
        raise ValueError(f"{name} isn't a list of rows. Give, for each query, a list of ids, such as [[3, 1], [0, 2]].")
    return [_checked_row(row, name, number) for number, row in enumerate(rows, start=rows_before)]


def _checked_row(row: Any, name: str, number: int) -> np.ndarray:
    def refuse(found: str) -> ValueError:
        return ValueError(
            f"{name}[{number}] {found}, but must be a list of ids: integers of at least 0 that fit into 64 bits. "
            "Convert names to row numbers of the database first."
        )

    values = _listed(row)
    if values is None:
        raise refuse(f"is {row!r:.60}")
    if isinstance(values, list):
        # One by one, because an array of [1, True, 2.0] would no longer tell what it was made from.
        if strange := [value for value in values if not (_is_whole(value) and abs(value) <= _LARGEST_ID)]:
            raise refuse(f"holds {strange[0]!r:.60}")
        values = np.array(values, np.int64)
    if not values.size:
        return np.empty(0, np.int64)
    if values.ndim != 1:
        raise refuse(f"has shape {values.shape}")
    if values.dtype.kind not in "iu" or values.max() > _LARGEST_ID:
        raise refuse(f"is of type {values.dtype} and holds {values.max()}")
    ids = values.astype(np.int64)
    if name == "predictions":
        _check_ranking(ids, number)
    elif ids.min() < 0:
        raise refuse(f"holds {ids.min()}")
    return ids


def _check_ranking(ids: np.ndarray, number: int) -> None:
    answers = ids[: len(ids) - np.argmax(ids[::-1] != -1)] if (ids != -1).any() else ids[:0]
    if answers.size and answers.min() < 0:
        raise ValueError(
            f"predictions[{number}] holds {answers.min()} at rank {np.argmin(answers) + 1}, but ids are integers "
            "from 0. Only -1 may stand below, at the end of a row, where there are no more answers."
        )
    known, times = np.unique(answers, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"predictions[{number}] holds {known[times > 1][0]} more than once, but an answer has one rank. Keep the "
            "first of each."
        )


def _check_below(rows: list[list[int]], name: str, database_size: int) -> None:
    for number, row in enumerate(rows):
        if row and max(row) >= database_size:
            raise ValueError(
                f"{name}[{number}] holds {max(row)}, but a database of {database_size} has the ids 0 to "
                f"{database_size - 1}. Check that the ids are row numbers of this database."
            )


def _listed(values: Any) -> Any:
    """A collection as an array or a list; None if it is something else, such as a number or a text."""
    if hasattr(values, "__array__") and not np.isscalar(values):
        array = np.asarray(values)
        # An array of objects may hold rows of different lengths, or texts.
        return list(array) if array.dtype == object and array.ndim == 1 else array if array.ndim else None
    if isinstance(values, (list, tuple, set, frozenset, range, Sequence)) and not isinstance(values, (str, bytes)):
        return list(values)
    return None
