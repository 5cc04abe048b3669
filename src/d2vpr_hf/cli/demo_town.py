"""The demo: from photos to places and a page of answers, with nothing but what this package makes."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluation.grey_thumbnail import THUMBNAIL_SIDE, thumbnail_descriptors
from ..evaluation.recall import count_positives, hits_at_k
from ..evaluation.table import Table
from ..files import hash_file, path_to_text, replace_file, replacing_folder, text_to_path
from ..hub.release import recorded_results, write_release
from ..models.checkpoint import DEFAULT_PRETRAINED, open_checkpoint, pretrained_path
from ..photos.folder import PhotoFolder, read_photo_folder
from ..photos.images import open_image
from ..photos.positions import distances_m, positives_within
from ..reports.pages import Entry, gallery_page, write_atomically, write_picture
from ..reports.pictures import Match, format_degrees, matches_picture, regions_picture
from ..retrieval.embedder import Embedder, embed_images
from ..retrieval.index import PlaceIndex
from ..retrieval.locate import Answer, locate
from ..retrieval.update import index_photos
from ..town.make import make_town
from ..town.shots import HARD_CONDITIONS
from ..town.weather import CONDITIONS
from ..version import __version__

SEED = 0
PLACES, QUERIES = 24, 48
SAME_PLACE_M = 25.0
KS = (1, 5)
PAGE_MATCHES = 3
HELD_OUT_MOST = 40
# Files by which the demo recognises what it wrote itself; it overwrites nothing else.
MODEL_MARK, FOLDER_MARK = "made_by_demo.json", ".made_by_d2vpr_demo"
THIS_MODEL, RANDOM, CHANCE = "this model", "random weights", "chance"
THUMBNAIL = f"grey thumbnail of {THUMBNAIL_SIDE}x{THUMBNAIL_SIDE} pixels"


@dataclass(frozen=True)
class Split:
    """Photos whose places are learnt, and photos to locate.

    Attributes:
        database: the photos to learn.
        queries: the photos to locate.
        conditions: of each query, such as "night"; empty text where it has none.
    """

    database: PhotoFolder
    queries: PhotoFolder
    conditions: list[str]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        recall: {method: {k: fraction}} of the model, random weights if asked for, a grey thumbnail and chance; empty
            where nobody knows what is right.
        conditions: {condition: (queries, right first answers, right among the first five)}, judged queries alone.
        places: photos in the index.
        queries: photos located.
        unanswerable: judged queries that no photo of the index shows; they count as misses.
        skipped: photos that can't be used, as (path, reason).
        files: what was written, by kind.
        seconds: from the first photo read to the last file written.
    """

    recall: dict[str, dict[int, float]]
    conditions: dict[str, tuple[int, int, int]]
    places: int
    queries: int
    unanswerable: int
    skipped: list[tuple[str, str]]
    files: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def judged(self) -> int:
        """Queries whose answers can be judged."""
        return sum(queries for queries, _, _ in self.conditions.values())

    @property
    def hard_queries(self) -> int:
        """Judged queries taken at night, in fog, rain or snow; only a drawn town says so of its own."""
        return sum(queries for name, (queries, _, _) in self.conditions.items() if name in HARD_CONDITIONS)

    @property
    def above(self) -> dict[str, float]:
        """{method: recall@1 of the model minus that of the method, as a fraction}; empty without labels."""
        return {
            method: self.recall[THIS_MODEL][1] - recall[1]
            for method, recall in self.recall.items()
            if method != THIS_MODEL
        }

    def summary(self) -> str:
        """What recall@1 comes to, in a sentence; empty without labels."""
        if not self.recall:
            return ""
        gains = [f"{100 * self.above[method]:.1f} points above {method}" for method in self.above if method != CHANCE]
        text = f"recall@1 of the model is {_percent(self.recall[THIS_MODEL][1])}: {' and '.join(gains)}."
        if self.hard_queries:
            share = f"{self.hard_queries} of the {self.judged} queries ({_percent(self.hard_queries / self.judged)})"
            text += f" {share} were taken at night, in fog, rain or snow."
        return text

    def tables(self) -> list[Table]:
        """Right and wrong by condition, and the model against what it has to beat; none without labels."""
        if not self.recall:
            return []
        rows = [
            [
                name or "all",
                str(queries),
                str(right),
                str(queries - right),
                _percent(right / queries),
                _percent(among / queries),
            ]
            for name, (queries, right, among) in self.conditions.items()
        ]
        if len(rows) > 1:
            queries, right, among = (sum(each) for each in zip(*self.conditions.values(), strict=True))
            rows.append(
                [
                    "all",
                    str(queries),
                    str(right),
                    str(queries - right),
                    *map(_percent, (right / queries, among / queries)),
                ]
            )
        by_condition = Table(
            ["condition", "queries", "right", "wrong", "recall@1", "recall@5"],
            rows,
            f"Right means that the first answer lies within {SAME_PLACE_M:g} m of where the photo was taken.",
        )
        by_method = Table(
            ["descriptor", *(f"recall@{k}" for k in KS)],
            [[name, *(_percent(share) for share in recall.values())] for name, recall in self.recall.items()],
        )
        return [by_condition, by_method]

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object; recall as unrounded fractions."""
        return {
            "recall": {
                method: {f"recall@{k}": share for k, share in recall.items()} for method, recall in self.recall.items()
            },
            "above": self.above,
            "judged": self.judged,
            "hard_queries": self.hard_queries,
            "conditions": {
                name or "all": {"queries": queries, "right": right, "right_among_5": among}
                for name, (queries, right, among) in self.conditions.items()
            },
            "places": self.places,
            "queries": self.queries,
            "queries_without_positives": self.unanswerable,
            "skipped": [{"path": path, "reason": reason} for path, reason in self.skipped],
            "files": self.files,
            "seconds": self.seconds,
        }


def write_demo_model(folder: str | Path) -> Path:
    """Writes the checkpoint that comes with the package, its code and its card into a folder of the demo's own.

    A folder that the demo wrote before, unchanged since, is kept if it is the same checkpoint, and replaced otherwise.

    Raises: FileExistsError if the folder holds anything else.
    """
    folder, source = Path(folder), pretrained_path(DEFAULT_PRETRAINED)
    made_of = _digests(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if (mark := _own_mark(folder)) is None:
            raise FileExistsError(
                f"{folder} is there already and the demo didn't write it (or it was changed since), so it stays as it "
                "is. Run the demo elsewhere with --out DIR, or use that checkpoint with --model."
            )
        if mark.get("made_of") == made_of and mark.get("version") == __version__:
            return folder
    model, processor = open_checkpoint(source)
    with replacing_folder(folder, overwrite=True) as draft:
        release = write_release(draft / "release", model, processor, DEFAULT_PRETRAINED, **recorded_results(source))
        mark = {"made_by": "d2vpr demo", "version": __version__, "model": DEFAULT_PRETRAINED}
        mark |= {"made_of": made_of, "sha256": _digests(release)}
        for path in release.iterdir():
            path.rename(draft / path.name)
        release.rmdir()
        replace_file(draft / MODEL_MARK, json.dumps(mark, indent=2) + "\n")
    return folder


def is_demo_model(folder: str | Path) -> bool:
    """Whether a folder is a model that the demo wrote, with not a byte changed since."""
    return _own_mark(Path(folder)) is not None


def _own_mark(folder: Path) -> dict[str, Any] | None:
    """What the demo says of the model that it wrote into a folder; None where it didn't, or a byte has changed."""
    try:
        mark = json.loads((folder / MODEL_MARK).read_text(encoding="utf-8"))
        return mark if mark["made_by"] == "d2vpr demo" and mark["sha256"] == _digests(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def chance_recall(positives: Sequence[np.ndarray], photos: int, ks: Sequence[int]) -> dict[int, float]:
    """Recall@k to expect of a ranking drawn at random, for each k.

    A query with p positives among n photos is missed by k random answers with the probability
    (n - p) / n * (n - p - 1) / (n - 1) * ..., k factors.
    """
    counts = np.array([len(each) for each in positives], np.float64)
    misses = {}
    for k in ks:
        steps = np.arange(min(k, photos))
        factors = np.clip(photos - counts[:, None] - steps, 0, None) / (photos - steps)
        misses[k] = factors.prod(axis=1)
    return {k: float(1 - missed.mean()) for k, missed in misses.items()}


def hold_out(photos: "PhotoFolder", seed: int = SEED) -> np.ndarray:
    """Rows of photos to locate among the others: one in five, at most 40, at least one.

    Where coordinates are known, photos are preferred that another one within 25 m can answer.
    """
    count = len(photos.paths)
    order = np.random.default_rng(seed).permutation(count)
    wanted = max(1, min(HELD_OUT_MOST, count // 5))
    if not photos.positions.known.any():
        return np.sort(order[:wanted])
    neighbours = positives_within(photos.positions, photos.positions, SAME_PLACE_M)
    chosen: list[int] = []
    left = np.ones(count, bool)
    for row in order:
        others = neighbours[row][neighbours[row] != row]
        # One that stays behind must answer it, and it must not be the only answer of one chosen before.
        if len(chosen) < wanted and left[others].any() and not _orphans(chosen, neighbours, left, row):
            chosen.append(int(row))
            left[row] = False
    return np.sort(chosen if chosen else order[:wanted])


def _orphans(chosen: Sequence[int], neighbours: Sequence[np.ndarray], left: np.ndarray, row: int) -> bool:
    """Whether taking `row` away leaves one of the chosen photos without an answer."""
    return any(row in neighbours[each] and left[neighbours[each]].sum() == 1 for each in chosen)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model folder but the mark, by path inside it."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MODEL_MARK and "__pycache__" not in path.parts:
            digests[path.relative_to(folder).as_posix()] = hash_file(path)
    return digests


def check_folder(folder: str | Path) -> Path:
    """The demo's own folder, if it is free or was written by the demo.

    Raises: FileExistsError if it holds what the demo didn't write.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not (folder / FOLDER_MARK).is_file():
        raise FileExistsError(
            f"{folder} is there already and the demo didn't write it, so it stays as it is. Run the demo elsewhere "
            "with --out DIR."
        )
    return folder


def claim_folder(folder: str | Path) -> Path:
    """The demo's own folder, made, or rid of what an earlier run left in it (its town stays, to be drawn over).

    Raises: FileExistsError if it holds what the demo didn't write.
    """
    folder = check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FOLDER_MARK, "Made by `d2vpr demo`, which replaces what it wrote when it runs again.\n")
    for name in ("places", "pictures"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "answers.html").unlink(missing_ok=True)
    return folder


def town_split(folder: str | Path, *, places: int = PLACES, queries: int = QUERIES) -> Split:
    """A town drawn into a folder: its database photos, and photos at other hours, in other weather and directions."""
    town = make_town(folder, places, seed=SEED, layout="plain", queries=queries, easy_queries=0, progress=True)
    queries = read_photo_folder(town.queries)
    conditions = [town.conditions[path.name] for path in queries.paths]
    by_condition = sorted(range(len(conditions)), key=lambda row: CONDITIONS.index(conditions[row]))
    return Split(
        read_photo_folder(town.database), _rows(queries, by_condition), [conditions[row] for row in by_condition]
    )


def own_split(folder: str | Path) -> Split:
    """The photos of a folder, some of them held out to be located among the others.

    Raises: ValueError if there are fewer than two photos.
    """
    photos = read_photo_folder(Path(folder).absolute())
    if len(photos.paths) < 2:
        raise ValueError(f"{folder} holds one photo, but two are needed: one to learn and one to locate. Add photos.")
    held = hold_out(photos)
    kept = np.setdiff1d(np.arange(len(photos.paths)), held)
    return Split(_rows(photos, kept), _rows(photos, held), [""] * len(held))


def locate_split(
    split: Split,
    folder: str | Path,
    *,
    model: Any,
    processor: Any,
    untrained: Any = None,
    notes: Sequence[str] = (),
    embedding: dict[str, Any] | None = None,
) -> DemoResult:
    """Indexes the database, locates the queries, judges the answers where coordinates are known, and draws them.

    Args:
        split: what to learn and what to locate.
        folder: gets `places/` (the index), `pictures/` and `answers.html`.
        model: gives descriptors as `pooler_output`.
        processor: the model's image processor.
        untrained: a model to compare with, such as `peers.random_weights` makes it, with the same
            processor; None for none.
        notes: what the reader of the page must know, one paragraph each.
        embedding: further keywords of `embed_images`.

    Raises: ValueError if no photo of the database or none of the queries can be used.
    """
    started, folder, embedding = time.perf_counter(), Path(folder), embedding or {}
    update = index_photos(split.database, folder / "places", Embedder(model, processor, **embedding))
    index = update.index
    descriptors = embed_images(split.queries.paths, model=model, processor=processor, **embedding)
    skipped = [*update.skipped, *descriptors.skipped]
    if not descriptors.paths:
        path, reason = descriptors.skipped[0]
        raise ValueError(f"None of the photos to locate can be used ({path}: {reason}). Give photos that open.")
    row_of = {path_to_text(path): row for row, path in enumerate(split.queries.paths)}
    rows = np.array([row_of[path] for path in descriptors.paths], np.int64)
    queries = _rows(split.queries, rows)
    conditions = [split.conditions[row] for row in rows]
    answers = locate(descriptors, index, k=max(KS), same_place_m=SAME_PLACE_M)
    ranking = _ranking(answers, index)
    judged = np.flatnonzero(queries.positions.known) if index.positions.known.any() else np.zeros(0, np.int64)
    positives = positives_within(index.positions, queries.positions[judged], SAME_PLACE_M)
    hits = hits_at_k(ranking[judged], positives, KS)  # (judged, 2)
    entries = _entries(answers, ranking, queries, conditions, index, dict(zip(judged.tolist(), positives, strict=True)))
    by_condition: dict[str, tuple[int, int, int]] = {}
    for condition in dict.fromkeys(conditions[row] for row in judged):
        own = hits[[conditions[row] == condition for row in judged]]
        by_condition[condition] = (len(own), *own.sum(axis=0).tolist())
    paths = [text_to_path(path) for path in index.places["path"]], [queries.paths[row] for row in judged]
    others: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if len(judged):
        if untrained is not None:
            settings = embedding | {"model": untrained, "processor": processor}
            others[RANDOM] = tuple(embed_images(each, **settings).vectors for each in paths)
        others[THUMBNAIL] = tuple(thumbnail_descriptors(each) for each in paths)
    result = DemoResult(
        recall=_recall_of_methods(hits, positives, others, len(index)),
        conditions=by_condition,
        places=len(index),
        queries=len(queries.paths),
        unanswerable=int((count_positives(positives) == 0).sum()),
        skipped=skipped,
    )
    result.files.update(places=str(folder / "places"))
    result.files.update(_draw(entries, folder / "pictures", model, processor))
    page = gallery_page(
        "Where were these photos taken?",
        entries,
        lead=f"{len(queries.paths)} photos, located among {len(index)} others.",
        notes=notes,
        tables=result.tables(),
    )
    result.files["page"] = str(write_atomically(folder / "answers.html", page))
    return replace(result, seconds=time.perf_counter() - started)


def _rows(photos: PhotoFolder, rows: Sequence[int] | np.ndarray) -> PhotoFolder:
    """Some of the photos, in the order given."""
    return PhotoFolder(
        photos.root,
        [photos.paths[row] for row in rows],
        [photos.names[row] for row in rows],
        photos.positions[np.asarray(rows, np.int64)],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ranking(answers: Sequence[Answer], index: PlaceIndex) -> np.ndarray:
    """(queries, 5) rows of the index, best first, -1 where there are no more."""
    row_of = {path: row for row, path in enumerate(index.places["path"])}
    ranking = np.full((len(answers), max(KS)), -1, np.int64)
    for query, answer in enumerate(answers):
        for rank, candidate in enumerate(answer.candidates):
            ranking[query, rank] = row_of[candidate["path"]]
    return ranking


def _recall_of_methods(
    hits: np.ndarray, positives: Sequence[np.ndarray], others: dict[str, tuple[np.ndarray, np.ndarray]], photos: int
) -> dict[str, dict[int, float]]:
    """Recall of the model, and of what it has to beat on the same photos; empty if no query can be judged.

    Args:
        hits: (judged, 2) of the model.
        positives: of each judged query, rows of the database.
        others: {method: descriptors of the database, of the judged queries}.
        photos: in the database.
    """
    if not len(hits):
        return {}
    found = {THIS_MODEL: hits}
    for method, (database, queries) in others.items():
        nearest = np.argsort(-(queries @ database.T), axis=1, kind="stable")[:, : max(KS)]
        nearest = np.pad(nearest, ((0, 0), (0, max(KS) - nearest.shape[1])), constant_values=-1)
        found[method] = hits_at_k(nearest, positives, KS)
    recall = {method: dict(zip(KS, each.mean(axis=0).tolist(), strict=True)) for method, each in found.items()}
    return recall | {CHANCE: chance_recall(positives, photos, KS)}


def _entries(
    answers: Sequence[Answer],
    ranking: np.ndarray,
    queries: PhotoFolder,
    conditions: Sequence[str],
    index: PlaceIndex,
    positives: dict[int, np.ndarray],
) -> list[Entry]:
    """Every query with its answer and its matches, for pictures and page."""
    entries = []
    for query, answer in enumerate(answers):
        latitude, longitude = queries.positions.latitude[query], queries.positions.longitude[query]
        matches = []
        for row, candidate in zip(ranking[query], answer.candidates, strict=False):
            path = text_to_path(candidate["path"])
            there = index.positions[[row]]
            away = float(distances_m(latitude, longitude, there.latitude[0], there.longitude[0]))
            right = bool((positives[query] == row).any()) if query in positives else None
            matches.append(Match(path, path.name, candidate["score"], away if away == away else None, right=right))
        where = (
            f"looks like {matches[0].name}"
            if answer.latitude is None
            else f"answer {format_degrees(answer.latitude, answer.longitude)}"
        )
        confidence = "" if answer.confidence is None else f" · confidence {answer.confidence:.2f}"
        entries.append(
            Entry(
                queries.paths[query],
                queries.paths[query].name,
                f"{where}{confidence}",
                matches[:PAGE_MATCHES],
                matches[0].right,
                conditions[query],
            )
        )
    return entries


def _draw(entries: Sequence[Entry], folder: Path, model: Any, processor: Any) -> dict[str, str]:
    """Writes a picture of the first right and the first wrong answer of each condition, and one of the regions."""
    chosen: dict[str, Entry] = {}
    for entry in entries:
        verdict = {True: "right", False: "wrong", None: "answer"}[entry.right]
        chosen.setdefault("-".join(filter(None, (entry.condition, verdict))), entry)
    for name, entry in chosen.items():
        picture = matches_picture(
            entry.query, entry.matches, title=entry.answer, query_name=entry.name, query_note=entry.condition
        )
        write_picture(folder / f"{name}.jpg", picture)
    first = entries[0]
    with torch.no_grad():
        device = next(model.parameters()).device
        boxes = getattr(
            model.float()(**processor(open_image(first.query), return_tensors="pt").to(device)), "region_boxes", None
        )
    if boxes is not None:  # a CricaVPR model has fixed regions
        title = "The regions that the model reads"
        write_picture(folder / "regions.jpg", regions_picture(first.query, boxes[0].cpu().numpy(), title=title))
    return {"pictures": str(folder)}
