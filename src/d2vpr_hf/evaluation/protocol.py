"""Runs an evaluation: which photos are the database and the queries, what counts as right, and the numbers."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..data.coordinates import Positions, positives_within
from ..data.folders import PhotoFolder, read_photo_folder
from ..data.images import path_to_text
from ..retrieval.embed import Descriptors, _default_device, embed_images, weight_hash
from ..retrieval.index import PlaceIndex
from ..retrieval.index_folder import SETTINGS_FILE
from ..retrieval.row_files import replace_file
from .positives import read_positives
from .recall import Denominator, count_positives, recall_at_k

RESULTS_FILE = "results.json"

_CHOICES = (
    "Choose one: positives=... (--positives positives.json), a JSON file of {query file name: [database file names]}; "
    "radius_m=25 (--radius-m 25), which needs coordinates; or labels=False (--no-labels), which ranks without scoring."
)
_PACKAGES = ("torch", "transformers", "faiss-cpu", "numpy", "pillow")


@dataclass(frozen=True)
class Protocol:
    """What is ranked, and what counts as right.

    Attributes:
        name: short name of the protocol.
        database: the photos, or an index of them.
        queries: the photos to find.
        positives: for each query, the rows of the database that show its place; None where nobody knows.
        rule: in words, what makes a database photo a positive.
        denominator: whether queries without positives count as misses ("all") or don't count ("with_positives").
    """

    name: str
    database: PhotoFolder | PlaceIndex
    queries: PhotoFolder
    positives: list[np.ndarray] | None
    rule: str
    denominator: Denominator = "all"


@dataclass(frozen=True)
class Evaluation:
    """What came out of a run of a protocol, and all that it depends on.

    Attributes:
        protocol: what was run.
        recall: {k: fraction in [0, 1]}, unrounded; None without labels.
        ranking: (queries, answers) rows of the database, best first, for every query of the protocol; -1 where there
            are no more answers, and throughout for a query that was skipped.
        scores: (queries, answers) float32 inner products, nan there.
        database_names: of all database photos, in the order of the rows.
        skipped: {"database": [(path, reason)], "queries": [(path, reason)]}: photos that could not be read. A skipped
            database photo is never an answer; a skipped query counts as a miss.
        model_name: of the model that made the descriptors.
        weight_hash: of its weights.
        settings: cut-offs, batch size, number type, device, image size.
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

    def to_json(self) -> dict[str, Any]:
        """Everything as one JSON object; recall as fractions, `ranking` with the names of the photos."""
        return {
            "protocol": self.protocol.name,
            "rule": self.protocol.rule,
            "denominator": None if self.recall is None else self.protocol.denominator,
            "primary_metric": None if self.recall is None else f"recall@{min(self.recall)}",
            "recall": None if self.recall is None else {f"recall@{k}": share for k, share in self.recall.items()},
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
            "ranking": [
                {
                    "query": query,
                    "answers": [self.database_names[row] for row in rows if row >= 0],
                    "scores": [float(score) for row, score in zip(rows, scores, strict=True) if row >= 0],
                }
                for query, rows, scores in zip(self.protocol.queries.names, self.ranking, self.scores, strict=True)
            ],
        }

    def save(self, folder: str | Path) -> Path:
        """Path of `results.json`, written into `folder` whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RESULTS_FILE
        replace_file(path, json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False).encode())
        return path

    def markdown(self) -> str:
        """The result as a small table (percent, one decimal), with what the numbers leave out below it."""
        counts, recall = self.counts, self.recall or {}
        header = ["protocol", "model", "database", "queries", *(f"recall@{k}" for k in recall)]
        values = [
            self.protocol.name,
            f"{self.model_name} ({self.weight_hash[:8]})",
            f"{counts['database']:,}",
            f"{counts['queries']:,}",
            *(f"{100 * share:.1f}" for share in recall.values()),
        ]
        table = [header, ["---"] * len(header), values]
        lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table]
        lines += ["", f"Positives: {self.protocol.rule}."]
        if self.queries_without_positives:
            treated = "count as misses" if self.protocol.denominator == "all" else "are left out"
            lines.append(f"Queries without positives: {self.queries_without_positives}; they {treated}.")
        for split, photos in self.skipped.items():
            if photos:
                effect = "never an answer" if split == "database" else "counted as misses"
                lines.append(f"Skipped {split} photos, {effect}: {len(photos)}.")
        return "\n".join(lines) + "\n"


def folder_protocol(
    database: str | Path | PhotoFolder | PlaceIndex,
    queries: str | Path | PhotoFolder,
    *,
    positives: str | Path | Mapping[str, Sequence[str]] | None = None,
    radius_m: float | None = None,
    labels: bool = True,
) -> Protocol:
    """The protocol of two folders of one's own.

    Args:
        database: folder of photos, folder of a saved index, or either of them read.
        queries: folder of photos, or one read.
        positives: {query file name: [database file names]}, or a JSON file of that; a query that isn't listed has
            none.
        radius_m: metres within which a database photo is a positive, inclusive; 25 in the UTM benchmarks.
        labels: False ranks without scoring.

    Returns: a protocol in which queries without positives count as misses.
    Raises: ValueError unless exactly one of the three is chosen, if coordinates are missing that the radius needs, if
        no query has any positive, or as `read_positives`.
    """
    if (positives is not None) + (radius_m is not None) + (not labels) != 1:
        raise ValueError(f"positives is {positives!r:.60}, radius_m {radius_m} and labels {labels}. {_CHOICES}")
    database, queries = _opened_database(database), _opened_queries(queries)
    _check_filled(len(_names(database)), "database")
    _check_filled(len(queries.paths), "query")
    if not labels:
        return Protocol("folders", database, queries, None, "none: the photos are ranked without labels")
    if positives is not None:
        rows = read_positives(positives, database_names=_names(database), query_names=queries.names)
        rule = "listed by name" if isinstance(positives, Mapping) else f"listed by name in {Path(positives).name}"
    else:
        rows = _positives_by_radius(database, queries, radius_m)
        rule = f"database photos within {radius_m:g} m of the query, inclusive{_unknown(database, queries)}"
    if not count_positives(rows).any():
        raise ValueError(
            f"None of the {len(rows)} queries has a positive among the {len(_names(database))} database photos "
            f"({rule}), so that recall would be 0 whatever the model. Check that the two folders show the same area. "
            f"{_CHOICES}"
        )
    return Protocol("folders", database, queries, rows, rule)


def evaluate_protocol(
    protocol: Protocol,
    *,
    model: torch.nn.Module,
    processor: Any,
    ks: Sequence[int] = (1, 5, 10),
    batch_size: int = 32,
    device: str | torch.device | None = None,
    dtype: str = "float32",
    workers: int | None = None,
    progress: bool = True,
) -> Evaluation:
    """Embeds the photos of a protocol, ranks the database for each query, and scores the ranking.

    Args:
        protocol: from `folder_protocol`. An index as its database must come from the same weights.
        model: gives descriptors as `pooler_output`.
        processor: the model's image processor.
        ks: cut-offs of recall@k; the largest is the number of answers kept. A k above the size of the database takes
            all of it.
        batch_size: photos at a time. The result doesn't depend on it, unless the model mixes a batch's images.
        device: where to embed; by default where the model is, or the first GPU for a model on the CPU.
        dtype: arithmetic under autocast; descriptors are float32 in any case.
        workers: threads that decode; by default one for each core.
        progress: show a bar.

    Raises: ValueError if a k isn't a whole number from 1, if the index comes from other weights, or if no photo of a
        folder can be read.
    """
    ks = sorted({_checked_k(k) for k in ks})
    if not ks:
        raise ValueError("ks is empty. Give at least one cut-off, such as 1.")
    database, queries = protocol.database, protocol.queries
    # Named here, because the results say where the descriptors were computed.
    device = _default_device(next(model.parameters()).device) if device is None else torch.device(device)
    options = {"batch_size": batch_size, "device": device, "dtype": dtype, "workers": workers, "progress": progress}

    def embed(folder: PhotoFolder, kind: str) -> tuple[Descriptors, np.ndarray]:
        descriptors = embed_images(folder.paths, model=model, processor=processor, **options)
        if not descriptors.paths:
            path, reason = descriptors.skipped[0]
            raise ValueError(
                f"None of the {len(folder.paths)} {kind} photos in {folder.root} can be read ({path}: {reason}). "
                "Give a folder with at least one photo that opens."
            )
        row_of = {path_to_text(path): row for row, path in enumerate(folder.paths)}
        return descriptors, np.array([row_of[path] for path in descriptors.paths], np.int64)

    skipped: dict[str, list[tuple[str, str]]] = {"database": [], "queries": []}
    if isinstance(database, PlaceIndex):
        # Before the queries are embedded, which may take an hour.
        _check_same_weights(database, model)
        index, database_rows = database, np.arange(len(database))
    else:
        descriptors, database_rows = embed(database, "database")
        skipped["database"] = list(descriptors.skipped)
        index = PlaceIndex.build(descriptors, database.positions[database_rows])
        del descriptors
    descriptors, query_rows = embed(queries, "query")
    skipped["queries"] = list(descriptors.skipped)
    matches = index.search(descriptors, ks[-1])

    ranking = np.full((len(queries.paths), ks[-1]), -1, np.int64)
    scores = np.full(ranking.shape, np.nan, np.float32)
    places = np.searchsorted(index.places["id"].to_numpy(), matches.ids)
    ranking[query_rows] = np.where(matches.ids < 0, -1, database_rows[np.minimum(places, len(index) - 1)])
    scores[query_rows] = matches.scores
    return Evaluation(
        protocol=protocol,
        recall=None
        if protocol.positives is None
        else recall_at_k(ranking, protocol.positives, ks, protocol.denominator),
        ranking=ranking,
        scores=scores,
        database_names=_names(database),
        skipped=skipped,
        model_name=descriptors.model_name,
        weight_hash=descriptors.weight_hash,
        settings={
            "k": ks,
            "batch_size": batch_size,
            "dtype": dtype,
            "device": str(device),
            "image_size": _image_size(processor),
        },
        versions={"d2vpr_hf": __version__, "python": platform.python_version()}
        | {package: version(package) for package in _PACKAGES},
        command=list(sys.argv),
    )


def _opened_database(database: str | Path | PhotoFolder | PlaceIndex) -> PhotoFolder | PlaceIndex:
    if not isinstance(database, (str, Path)):
        return database
    return PlaceIndex.load(database) if (Path(database) / SETTINGS_FILE).is_file() else read_photo_folder(database)


def _opened_queries(queries: str | Path | PhotoFolder) -> PhotoFolder:
    return read_photo_folder(queries) if isinstance(queries, (str, Path)) else queries


def _names(database: PhotoFolder | PlaceIndex) -> list[str]:
    return database.places["path"].tolist() if isinstance(database, PlaceIndex) else database.names


def _check_filled(photos: int, kind: str) -> None:
    if not photos:
        raise ValueError(f"The {kind} folder holds no photos. Give a folder with at least one.")


def _positives_by_radius(database: PhotoFolder | PlaceIndex, queries: PhotoFolder, radius_m: float) -> list[np.ndarray]:
    if not 0 <= radius_m < np.inf:
        raise ValueError(f"radius_m is {radius_m}, but must be metres from 0, such as 25.")
    positions: dict[str, Positions] = {"database": database.positions, "query": queries.positions}
    if without := [kind for kind, each in positions.items() if not each.known.any()]:
        raise ValueError(
            f"No {' and no '.join(without)} photo has coordinates (in its name, in EXIF GPS or in a table), but a "
            f"radius of {radius_m:g} m needs them. {_CHOICES}"
        )
    return positives_within(positions["database"], positions["query"], radius_m)


def _unknown(database: PhotoFolder | PlaceIndex, queries: PhotoFolder) -> str:
    """How many photos a radius can say nothing about, in words; empty where there are none."""
    unknown = [int((~each.positions.known).sum()) for each in (database, queries)]
    if not any(unknown):
        return ""
    return f" ({unknown[0]} database photos and {unknown[1]} queries have no coordinates and so no positives)"


def _check_same_weights(index: PlaceIndex, model: torch.nn.Module) -> None:
    if (found := weight_hash(model)) != index.weight_hash:
        raise ValueError(
            f"The index holds descriptors of {index.model_name} (weights {index.weight_hash[:8]}), but the model has "
            f"the weights {found[:8]}, and the two can't be compared. Evaluate with {index.model_name}, or build a new "
            "index with `d2vpr index`."
        )


def _checked_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"ks holds {k!r}, but cut-offs are whole numbers from 1.")
    return int(k)


def _image_size(processor: Any) -> dict[str, int] | None:
    """Height and width that the processor makes; None where it doesn't say."""
    size = getattr(processor, "size", None)
    return None if size is None else {name: int(value) for name, value in dict(size).items() if value is not None}
