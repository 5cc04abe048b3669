"""What `d2vpr demo` does: it indexes photos, finds others among them, and compares that with what is simple."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.baselines import THUMBNAIL_SIDE, open_peer
from ..evaluation.compare import Comparison
from ..evaluation.protocol import Protocol, folder_protocol
from ..evaluation.recall import chance_recall
from ..evaluation.run import evaluate_protocol
from ..evaluation.table import Table
from ..files import hash_file, replace_file, replacing_folder
from ..hub.release import recorded_results, write_release
from ..messages import percent, points
from ..models.checkpoint import DEFAULT_PRETRAINED, open_checkpoint, pretrained_path
from ..photos.folder import PhotoFolder, read_photo_folder
from ..photos.positions import positives_within
from ..reports.pages import Entry, answer_entries, gallery_page, write_picture
from ..reports.pictures import matches_picture, region_boxes, regions_picture
from ..retrieval.embedder import Embedder
from ..retrieval.index import PlaceIndex
from ..retrieval.update import index_photos
from ..town.make import make_town
from ..town.shots import HARD_CONDITIONS
from ..town.weather import CONDITIONS
from ..version import __version__

SEED = 0
PLACES, QUERIES = 24, 48
SAME_PLACE_M = 25.0
KS = (1, 5)
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
        comparison: of the model with random weights, if asked for, and a grey thumbnail; alone where nobody knows
            what is right.
        query_conditions: of each query.
        skipped: photos that can't be used, as (path, reason).
        files: what was written, by kind.
        seconds: from the first photo read to the last file written.
    """

    comparison: Comparison
    query_conditions: list[str]
    skipped: list[tuple[str, str]]
    files: dict[str, str]
    seconds: float

    @cached_property
    def recall(self) -> dict[str, dict[int, float]]:
        """{method: {k: fraction}} of the models and of chance; empty where nobody knows what is right."""
        model = self.comparison.first
        if model.recall is None:
            return {}
        found = {name: each.recall for name, each in self.comparison.evaluations.items()}
        return found | {CHANCE: chance_recall(model.protocol.positives, model.counts["database"], KS)}

    @property
    def above(self) -> dict[str, float]:
        """{method: recall@1 of the model minus that of the method, as a fraction}; empty without labels."""
        return {
            name: self.recall[THIS_MODEL][1] - recall[1] for name, recall in self.recall.items() if name != THIS_MODEL
        }

    @cached_property
    def conditions(self) -> dict[str, tuple[int, int, int]]:
        """{condition: (queries, right first answers, right among the first five)}; empty without labels."""
        if not self.recall:
            return {}
        first, conditions = self.comparison.first.first_hits, np.array(self.query_conditions)
        return {
            name: (int(own.sum()), int((first[own] == 1).sum()), int((first[own] > 0).sum()))
            for name in dict.fromkeys(self.query_conditions)
            for own in [conditions == name]
        }

    @property
    def judged(self) -> int:
        """Queries whose answers can be judged."""
        return sum(queries for queries, _, _ in self.conditions.values())

    @property
    def hard_queries(self) -> int:
        """Judged queries taken at night, in fog, rain or snow; only a drawn town says so of its own."""
        return sum(queries for name, (queries, _, _) in self.conditions.items() if name in HARD_CONDITIONS)

    def lead(self) -> str:
        """How many photos were located among how many."""
        counts = self.comparison.first.counts
        return f"{counts['queries_ranked']} photos located among {counts['database']} others"

    def summary(self) -> str:
        """What recall@1 comes to, in a sentence; empty without labels."""
        if not self.recall:
            return ""
        gains = [f"{points(self.above[name]).lstrip('+')} points above {name}" for name in self.above if name != CHANCE]
        text = f"recall@1 of the model is {percent(self.recall[THIS_MODEL][1])}: {' and '.join(gains)}."
        if self.hard_queries:
            share = f"{self.hard_queries} of the {self.judged} queries ({percent(self.hard_queries / self.judged)})"
            text += f" {share} were taken at night, in fog, rain or snow."
        return text

    def tables(self) -> list[Table]:
        """Right and wrong by condition, and the model against what it has to beat; none without labels."""
        if not self.recall:
            return []
        counted = {name or "all": counts for name, counts in self.conditions.items()}
        if len(counted) > 1:
            counted["all"] = tuple(map(sum, zip(*counted.values(), strict=True)))
        rows = [
            [name, str(total), str(right), str(total - right), percent(right / total), percent(among / total)]
            for name, (total, right, among) in counted.items()
        ]
        caption = f"Right means that the first answer lies within {SAME_PLACE_M:g} m of where the photo was taken."
        return [
            Table(["condition", "queries", "right", "wrong", "recall@1", "recall@5"], rows, caption),
            Table(
                ["descriptor", *(f"recall@{k}" for k in KS)],
                [[name, *map(percent, recall.values())] for name, recall in self.recall.items()],
            ),
        ]

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
            "places": self.comparison.first.counts["database"],
            "queries": self.comparison.first.counts["queries_ranked"],
            "queries_without_positives": self.comparison.first.queries_without_positives or 0,
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
    mark = {"made_by": "d2vpr demo", "version": __version__, "model": DEFAULT_PRETRAINED, "made_of": _digests(source)}
    if _is_filled(folder):
        if (found := _own_mark(folder)) is None:
            raise FileExistsError(
                f"{folder} is there already and the demo didn't write it (or it was changed since), so it stays as it "
                "is. Run the demo elsewhere with --out DIR, or use that checkpoint with --model."
            )
        if mark.items() <= found.items():
            return folder
    model, processor = open_checkpoint(source)
    with replacing_folder(folder, overwrite=True) as draft:
        release = write_release(draft / "release", model, processor, DEFAULT_PRETRAINED, **recorded_results(source))
        mark["sha256"] = _digests(release)
        for path in release.iterdir():
            path.rename(draft / path.name)
        release.rmdir()
        replace_file(draft / MODEL_MARK, json.dumps(mark, indent=2) + "\n")
    return folder


def is_demo_model(folder: str | Path) -> bool:
    """Whether a folder is a model that the demo wrote, with not a byte changed since."""
    return _own_mark(Path(folder)) is not None


def check_folder(folder: str | Path) -> Path:
    """The demo's own folder, if it is free or was written by the demo.

    Raises: FileExistsError if it holds what the demo didn't write.
    """
    folder = Path(folder)
    if _is_filled(folder) and not (folder / FOLDER_MARK).is_file():
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
    replace_file(folder / FOLDER_MARK, "Made by `d2vpr demo`, which replaces what it wrote when it runs again.\n")
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


def hold_out(photos: PhotoFolder, seed: int = SEED) -> np.ndarray:
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
        orphans = any(row in neighbours[each] and left[neighbours[each]].sum() == 1 for each in chosen)
        if len(chosen) < wanted and left[others].any() and not orphans:
            chosen.append(int(row))
            left[row] = False
    return np.sort(chosen if chosen else order[:wanted])


def locate_split(
    split: Split,
    folder: str | Path,
    embedder: Embedder,
    *,
    untrained: Embedder | None = None,
    notes: Sequence[str] = (),
    progress: bool = True,
) -> DemoResult:
    """Indexes the database, finds the queries in it, compares where coordinates are known, and draws the answers.

    Args:
        split: what to learn and what to locate.
        folder: gets `places/` (the index), `pictures/` and `answers.html`.
        embedder: of the model.
        untrained: what to compare with, such as one of `baselines.random_weights`; None for none.
        notes: what the reader of the page must know, one paragraph each.
        progress: show bars.

    Raises: ValueError if no photo of the database or none of the queries can be used.
    """
    started, folder = time.perf_counter(), Path(folder)
    update = index_photos(split.database, folder / "places", embedder, progress=progress)
    protocol = _protocol(update.index, split.queries)
    evaluations = {THIS_MODEL: evaluate_protocol(protocol, embedder, ks=KS, progress=progress)}
    if protocol.positives is not None:
        photos = _protocol(split.database, split.queries)
        others = {} if untrained is None else {RANDOM: untrained}
        for name, each in (others | {THUMBNAIL: open_peer("thumbnail")}).items():
            evaluations[name] = evaluate_protocol(photos, each, ks=KS, progress=progress)
    found = evaluations[THIS_MODEL]
    entries = answer_entries(found, range(len(split.queries)), split.conditions)
    files = {
        "places": str(folder / "places"),
        "pictures": str(folder / "pictures"),
        "page": str(folder / "answers.html"),
    }
    _draw(entries, folder / "pictures", embedder)
    skipped = [*update.skipped, *found.skipped["queries"]]
    result = DemoResult(Comparison(evaluations), split.conditions, skipped, files, 0.0)
    page = gallery_page(
        "Where were these photos taken?",
        entries,
        lead=f"{result.lead()}.",
        notes=notes,
        tables=result.tables(),
    )
    replace_file(files["page"], page)
    return DemoResult(result.comparison, split.conditions, skipped, files, time.perf_counter() - started)


def _protocol(database: PhotoFolder | PlaceIndex, queries: PhotoFolder) -> Protocol:
    """By the radius, where it finds anything: one that holds out photos without neighbours can judge no answer."""
    answerable = any(map(len, positives_within(database.positions, queries.positions, SAME_PLACE_M)))
    return folder_protocol(database, queries, **({"radius_m": SAME_PLACE_M} if answerable else {"labels": False}))


def _is_filled(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _own_mark(folder: Path) -> dict[str, Any] | None:
    """What the demo says of the model that it wrote into a folder; None where it didn't, or a byte has changed."""
    try:
        mark = json.loads((folder / MODEL_MARK).read_text(encoding="utf-8"))
        return mark if mark["made_by"] == "d2vpr demo" and mark["sha256"] == _digests(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a model folder but the mark, by path inside it."""
    return {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MODEL_MARK and "__pycache__" not in path.parts
    }


def _rows(photos: PhotoFolder, rows: Sequence[int] | np.ndarray) -> PhotoFolder:
    """Some of the photos, in the order given."""
    return PhotoFolder(
        photos.root,
        [photos.paths[row] for row in rows],
        [photos.names[row] for row in rows],
        photos.positions[np.asarray(rows, np.int64)],
    )


def _draw(entries: Sequence[Entry], folder: Path, embedder: Embedder) -> None:
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
    boxes = region_boxes(entries[0].query, embedder)
    if boxes is not None:  # a CricaVPR model has fixed regions
        write_picture(
            folder / "regions.jpg",
            regions_picture(entries[0].query, boxes, title="The regions that the model reads"),
        )
