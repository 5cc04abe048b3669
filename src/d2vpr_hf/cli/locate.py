"""`d2vpr locate`: where was this photo taken?"""

import argparse
import os
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..messages import did_you_mean, printable
from .options import (
    add_json_option,
    add_model_options,
    embedding_settings,
    finite_number,
    note,
    open_embedder,
    positive_number,
    print_json,
    report_skipped,
    skipped_json,
    whole_number,
)
from .parser import CommandParser, UsageError, add_command

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from ..photos.positions import Positions
    from ..reports.pictures import Match
    from ..retrieval.embedder import Embedder
    from ..retrieval.locate import Answer

# Metres within which two places count as the same, as in the published sets.
SAME_PLACE_M = 25.0
# Of a picture's name before what it shows: with that, and while it is written, it stays below the 255 of any disk.
_NAME_BYTES = 200

DESCRIPTION = """\
Tells where photos were taken, by the most similar photos of an index.
  d2vpr locate photo.jpg --index places

The answer is the place of the best match. Its confidence says how far the matches agree: each counts 1 / rank, and
confidence is the share of those within 25 m of the best match. Below a score that the index chose without labels the
answer is 'not in this map'."""


def add_parser(subparsers: argparse._SubParsersAction) -> CommandParser:
    parser = add_command(
        subparsers,
        "locate",
        run,
        summary="tell where a photo was taken",
        usage="PHOTO [PHOTO ...] --index PLACES [options]",
        description=DESCRIPTION,
    )
    group = parser.add_argument_group("which photos, and which map")
    group.add_argument("photos", metavar="PHOTO", nargs="+", help="photos, or folders of photos")
    group.add_argument("--index", metavar="PLACES", required=True, help="folder that `d2vpr index` made")
    group = parser.add_argument_group("what may be the answer")
    group.add_argument("--k", metavar="K", type=whole_number(1), default=5, help="matches to look at (default: 5)")
    group.add_argument(
        "--near",
        metavar=("LAT", "LON"),
        nargs=2,
        type=finite_number,
        help="only places around this point (degrees, WGS84)",
    )
    group.add_argument(
        "--radius-m", metavar="R", type=positive_number, help="how far around it, in metres (needed with --near)"
    )
    group.add_argument(
        "--exclude", metavar="PLACE", nargs="+", default=[], help="photos of the index, by name or id, to leave out"
    )
    group.add_argument(
        "--threshold",
        metavar="T",
        type=finite_number,
        help="score below which a photo is not in this map; -1, the lowest score of descriptors of length 1, never "
        "says so (default: the index's own)",
    )
    group = parser.add_argument_group("what to show")
    group.add_argument(
        "--out", metavar="DIR", default="results", help="folder of the pictures that are made (default: results)"
    )
    group.add_argument("--regions", action="store_true", help="draw the 13 regions that the model reads, too")
    group.add_argument("--no-pictures", action="store_true", help="make none (default: one of each photo's matches)")
    add_json_option(group)
    add_model_options(parser, default=None, default_words="the one that made the index", dim_words="the index's")
    return parser


def run(options: argparse.Namespace) -> int:
    if (options.near is None) != (options.radius_m is None):
        raise UsageError("--near LAT LON and --radius-m R go together. Give both, or neither.")
    if options.regions and options.no_pictures:
        raise UsageError("--regions draws a picture, and --no-pictures none. Leave one of them out.")
    paths = _photo_paths(options.photos)
    from ..retrieval.index import PlaceIndex

    index = PlaceIndex.load(options.index)
    excluded = _excluded_ids(index.places, options.exclude)
    embedder = open_embedder(
        options.model or _own_model(index.model_name, options.index),
        options.dim,
        usual_dim=index.dim,
        **embedding_settings(options),
    )
    if options.regions and embedder.model.config.model_type != "d2vpr":
        raise UsageError(
            f"--regions: a {embedder.model.config.model_type} model has no deformed regions. Leave --regions out, or "
            "use a d2vpr model."
        )
    from ..retrieval.locate import locate

    descriptors = embedder.embed(paths, progress=len(paths) > options.batch_size)
    report_skipped(descriptors.skipped)
    if not descriptors.paths:
        return 1
    k = min(options.k, len(index))
    answers = locate(
        descriptors,
        index,
        k=k,
        same_place_m=SAME_PLACE_M,
        threshold=options.threshold,
        near=options.near and tuple(options.near),
        radius_m=options.radius_m,
        exclude=excluded,
    )
    pictures = [{}] * len(answers) if options.no_pictures else _picture_paths(answers, options)
    rule = f"{options.threshold:g}, as given" if options.threshold is not None else index.threshold.rule
    if options.json:
        result = {
            "answers": [asdict(answer) | paths for answer, paths in zip(answers, pictures, strict=True)],
            "confidence_rule": f"share of the matches, each counting 1 / rank, within {SAME_PLACE_M:g} m of the best",
            "threshold_rule": rule,
            "skipped": skipped_json(descriptors.skipped),
        }
        print_json(result)
    else:
        for answer, paths in zip(answers, pictures, strict=True):
            print("\n".join(map(printable, _lines(answer, paths))), end="\n\n")
        if any(answer.confidence is not None for answer in answers):
            print(
                f"confidence: share of the {k} best matches, each counting 1 / rank, that lie within "
                f"{SAME_PLACE_M:g} m of the best"
            )
        print(printable(_threshold_words(answers[0].threshold, rule)))
    # The answers are out before anything is drawn, which may fail.
    sys.stdout.flush()
    if not options.no_pictures:
        _draw(answers, pictures, embedder)
    return 0


def _own_model(name: str, index: str) -> str:
    """The model that the index names, if opening it asks nobody: the index may be someone else's.

    Raises: UsageError if it is neither a folder nor one of the package's.
    """
    from ..models.checkpoint import pretrained_names

    if os.path.isdir(name) or name in pretrained_names():  # noqa: PTH112 - a Path complains of names that are too long
        return name
    raise UsageError(
        f"{index} was made by the model {repr(name)[:80]}, which is no folder here and doesn't come with the package. "
        "Nothing is fetched by a name that only an index gives: if you trust it, give the model with --model."
    )


def _photo_paths(names: Sequence[str]) -> list[Path]:
    """The photos named, those of a folder in its place.

    Raises: UsageError if one isn't there.
    """
    photos = [Path(name) for name in names]
    if missing := [photo for photo in photos if not photo.exists()]:
        raise UsageError(f"there is no photo {missing[0]}. Check the path.")
    from ..photos.folder import list_images

    paths: list[Path] = []
    for photo in photos:
        found = list_images(photo) if photo.is_dir() else [photo]
        if not found:
            raise UsageError(f"{photo} holds no photo. Give photos, or a folder of them.")
        paths += found
    return list(dict.fromkeys(paths))


def _excluded_ids(places: "pd.DataFrame", names: Sequence[str]) -> "np.ndarray | None":
    """Ids of the places named by id, path or file name; None for none.

    Raises: UsageError if one isn't in the index.
    """
    if not names:
        return None
    import numpy as np

    from ..files import name_key

    by_name: dict[str, list[int]] = {}
    for place, path in zip(places["id"].tolist(), places["path"].tolist(), strict=True):
        for name in {path, Path(path).name, str(place)}:
            by_name.setdefault(name_key(name), []).append(place)
    for name in names:
        if name_key(name) not in by_name:
            raise UsageError(
                f"--exclude names {name}, but the index has no photo and no id of that name."
                f"{did_you_mean(name, by_name)}"
            )
    return np.unique(np.concatenate([by_name[name_key(name)] for name in names]))


def _picture_paths(answers: "Sequence[Answer]", options: argparse.Namespace) -> list[dict[str, str]]:
    """Where the pictures of every answer will lie, by kind: names that no disk refuses and no two photos share."""
    from ..files import text_to_path
    from ..reports.pictures import shorten

    taken: set[str] = set()
    numbers: dict[str, int] = {}
    paths = []
    for answer in answers:
        stem = text_to_path(answer.query).stem.encode("utf-8", "replace").decode().replace("?", "_")
        lengths = range(len(stem), 0, -1)
        stem = next(short for each in lengths if len((short := shorten(stem, each)).encode()) <= _NAME_BYTES)
        # Some disks take names for the same that differ in case or in how an accent is written.
        alike = unicodedata.normalize("NFC", stem).casefold()
        name, number = stem, numbers.get(alike, 1)
        while unicodedata.normalize("NFC", name).casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        numbers[alike] = number
        taken.add(unicodedata.normalize("NFC", name).casefold())
        kinds = {"picture": "matches"} | ({"regions_picture": "regions"} if options.regions else {})
        paths.append({kind: str(Path(options.out) / f"{name}-{what}.jpg") for kind, what in kinds.items()})
    return paths


def _draw(answers: "Sequence[Answer]", pictures: list[dict[str, str]], embedder: "Embedder") -> None:
    """Writes the pictures of every answer; a photo that is gone meanwhile is left out, with its reason."""
    from ..files import text_to_path
    from ..photos.images import UnreadableImage
    from ..photos.positions import Positions
    from ..reports.pages import write_picture
    from ..reports.pictures import matches_picture, region_boxes, regions_picture

    photos = [text_to_path(answer.query) for answer in answers]
    own = Positions.from_photos(photos)
    for row, (answer, photo, paths) in enumerate(zip(answers, photos, pictures, strict=True)):
        picture = matches_picture(
            photo,
            _matches(answer, own[[row]]),
            title=_title(answer),
            query_name=photo.name,
            query_note=_own_note(own, row),
        )
        write_picture(paths["picture"], picture)
        if "regions_picture" in paths:
            try:
                title = f"{photo.name}: the regions that the model reads"
                regions = regions_picture(photo, region_boxes(photo, embedder), title=title)
                write_picture(paths["regions_picture"], regions)
            except UnreadableImage as error:
                note(f"no picture of the regions of {photo.name}: {error.reason}")


def _matches(answer: "Answer", own: "Positions") -> "list[Match]":
    """The candidates for the picture: judged where the photo itself says where it was taken."""
    from ..files import text_to_path
    from ..photos.positions import distances_m
    from ..reports.pictures import Match

    matches: list[Match] = []
    for rank, each in enumerate(answer.candidates):
        path, score = text_to_path(each["path"]), each["score"]
        if each["latitude"] is not None and own.known[0] and own.latitude[0] == own.latitude[0]:
            away = float(distances_m(own.latitude[0], own.longitude[0], each["latitude"], each["longitude"]))
            matches.append(Match(path, path.name, score, away, right=away <= SAME_PLACE_M))
        else:
            from_first = each["distance_m"] if rank else None
            matches.append(Match(path, path.name, score, from_first, "from no. 1"))
    return matches


def _title(answer: "Answer") -> str:
    from ..reports.pictures import format_degrees

    if answer.score is None:
        return "nothing to compare with"
    if not answer.in_map:
        return f"not in this map: best score {answer.score:.3f} is below {answer.threshold:.3f}"
    if answer.latitude is None:
        return f"looks like {Path(answer.candidates[0]['path']).name} · no coordinates known"
    confidence = "" if answer.confidence is None else f" · confidence {answer.confidence:.2f}"
    return f"{format_degrees(answer.latitude, answer.longitude)}{confidence}"


def _own_note(own: "Positions", row: int) -> str:
    latitude, longitude = own.latitude[row], own.longitude[row]
    return f"taken at {latitude:.5f}, {longitude:.5f}" if latitude == latitude else ""


def _lines(answer: "Answer", pictures: dict[str, str]) -> list[str]:
    """The answer for a terminal."""
    name = Path(answer.query).name
    if answer.score is None:
        return [f"{name}: no place of the index may be the answer (--near and --exclude leave none)"]
    best = answer.candidates[0]
    lines = [f"{name}: {_title(answer).split(' · ')[0]}"]
    if answer.in_map and answer.latitude is not None:
        lines.append("  confidence  " + ("unknown" if answer.confidence is None else f"{answer.confidence:.2f}"))
    lines.append(f"  best match  {Path(best['path']).name} (score {best['score']:.3f})")
    names = {"picture": "picture", "regions_picture": "regions"}
    return lines + [f"  {names[kind]:11} {path}" for kind, path in pictures.items()]


def _threshold_words(threshold: float | None, rule: str) -> str:
    """When a photo is not in this map, and how that was chosen."""
    if threshold is None:
        return f"'not in this map' is never said: {rule.removeprefix('none: ')}"
    return f"'not in this map': best score below {threshold:.3f} ({rule})"
