"""Makes the HTML pages that show what an evaluation found: answers beside their photos, and curves with maps of errors.

A page holds its pictures and styles and no script, loads nothing from anywhere, and follows the reader's light or dark
setting. File names are escaped.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ..evaluation.table import Table
from ..files import replace_file, text_to_path
from ..messages import percent
from ..photos.images import UnreadableImage
from ..photos.positions import distances_m
from .pictures import PALETTE, Match, Photo, format_degrees, shorten, thumbnail

if TYPE_CHECKING:
    from ..evaluation.compare import Comparison
    from ..evaluation.results import Evaluation

_THUMBNAIL_WIDTH, _THUMBNAIL_HEIGHT = 300, 225
_JPEG_QUALITY = 78
_NAME_CHARACTERS = 44
# Of each query on a page: four matches and the query fill a row.
PAGE_MATCHES = 4


@dataclass(frozen=True)
class Entry:
    """One query and its answer, as the page shows it.

    Attributes:
        query: the query's file, or its image.
        name: its file name.
        answer: the answer in one line.
        matches: its candidates, best first.
        right: whether the answer is right; None if nobody knows.
        condition: the group it is listed under, such as "night"; entries without one come under one heading.
    """

    query: Photo
    name: str
    answer: str
    matches: Sequence[Match] = field(default=())
    right: bool | None = None
    condition: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing on the page.

    Attributes:
        svg: as `charts` and `error_map` make it; goes into the page unescaped.
        caption: what it shows.
        wide: whether it takes the whole width.
    """

    svg: str
    caption: str
    wide: bool = False


def gallery_page(
    title: str,
    entries: Sequence[Entry],
    *,
    lead: str = "",
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
) -> str:
    """HTML with tables, then every query beside its matches; a switch shows the wrong answers alone.

    Args:
        title: heading of the page.
        entries: what to show, in order; they are grouped by condition in the order of first appearance.
        lead: one sentence below the heading.
        notes: what the reader must know to judge the figures, one paragraph each.
        tables: shown above the pictures.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.condition, []).append(entry)
    verdicts = [entry.right for entry in entries]
    counts = {name: verdicts.count(right) for name, right in (("right", True), ("wrong", False), ("unknown", None))}
    return _page("gallery.html", title=title, lead=lead, notes=notes, tables=tables, groups=groups, **counts)


def evaluation_page(evaluation: "Evaluation") -> str:
    """HTML of one evaluation with labels: recall with its intervals, both curves, and the map of errors.

    Raises: ValueError if the evaluation has no labels.
    """
    if evaluation.recall is None:
        raise ValueError(
            f"{evaluation.protocol.name} was ranked without labels, so that there are no curves. Give positives or a "
            "radius, or look at the gallery of answers."
        )
    rows = [
        [
            f"recall@{k}",
            percent(share),
            "{:.1f} to {:.1f} %".format(*(100 * end for end in evaluation.intervals[k])),
        ]
        for k, share in evaluation.recall.items()
    ]
    table = Table(["", "share", "95 % interval"], rows, f"{evaluation.model_name} on {evaluation.protocol.name}")
    title = f"{evaluation.protocol.name}: {evaluation.model_name}"
    return _figures_page(title, table, evaluation.remarks(), {evaluation.model_name: evaluation})


def comparison_page(comparison: "Comparison") -> str:
    """HTML of several models on one protocol: their table, one plot of each kind, and each one's map of errors."""
    names = list(comparison.evaluations)
    title = f"{comparison.first.protocol.name}: {' and '.join(names) if len(names) == 2 else f'{len(names)} models'}"
    return _figures_page(title, comparison.table(), comparison.remarks(), comparison.evaluations)


def answer_entries(
    evaluation: "Evaluation", queries: Sequence[int], conditions: Sequence[str] | None = None
) -> list[Entry]:
    """Queries with their best matches, for `gallery_page`; those without any answer are left out.

    Args:
        evaluation: what was found.
        queries: rows of the queries, in the order of the page.
        conditions: of all queries, such as "night"; None for none.
    """
    protocol = evaluation.protocol
    entries = []
    for query in queries:
        ranked = [row for row in evaluation.ranking[query, :PAGE_MATCHES].tolist() if row >= 0]
        if not ranked:
            continue
        matches = [_match(evaluation, query, rank, row) for rank, row in enumerate(ranked)]
        there, best = protocol.database.positions, ranked[0]
        answer = f"looks like {matches[0].name}"
        if there.known[best] and there.latitude[best] == there.latitude[best]:
            answer = f"answer {format_degrees(there.latitude[best], there.longitude[best])} · {answer}"
        if protocol.positives is not None and not len(protocol.positives[query]):
            answer += ": no database photo shows its place"
        name, condition = protocol.queries.names[query], conditions[query] if conditions else ""
        entries.append(Entry(protocol.queries.paths[query], name, answer, matches, matches[0].right, condition))
    return entries


def write_picture(path: str | Path, picture: Image.Image) -> Path:
    """Writes a picture as JPEG in one step; returns its path."""
    return replace_file(path, _jpeg(picture, 90))


def _match(evaluation: "Evaluation", query: int, rank: int, row: int) -> Match:
    """One candidate of one query; judged and measured as far as that is known."""
    protocol, name = evaluation.protocol, evaluation.database_names[row]
    here, there = protocol.queries.positions, protocol.database.positions
    away = float(distances_m(here.latitude[query], here.longitude[query], there.latitude[row], there.longitude[row]))
    right = None if protocol.positives is None else bool((protocol.positives[query] == row).any())
    # An index names its photos by their paths.
    paths = getattr(protocol.database, "paths", None)
    path = text_to_path(name) if paths is None else paths[row]
    score = float(evaluation.scores[query, rank])
    return Match(path, Path(name).name, score, away if away == away else None, right=right)


def _figures_page(title: str, table: Table, notes: Sequence[str], evaluations: "dict[str, Evaluation]") -> str:
    # Drawing needs matplotlib, which takes a second to load.
    from .charts import precision_recall_chart, recall_chart
    from .error_map import error_maps

    names, each = list(evaluations), list(evaluations.values())
    bands = "; the bands are 95 % intervals" if len(names) <= 2 else ""
    figures = [
        Figure(recall_chart(each, names), f"How often the right place is among the first k answers{bands}"),
        Figure(precision_recall_chart(each, names), "How well the score of the best answer tells right from wrong"),
    ]
    for name, evaluation in evaluations.items():
        before = f"{name}: " if len(names) > 1 else ""
        figures += [Figure(drawn.svg, before + drawn.caption, wide=True) for drawn in error_maps(evaluation)]
    return _page("figures.html", title=title, lead="", notes=notes, tables=[table], figures=figures)


def _page(template: str, **content: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["short"] = lambda name: shorten(name, _NAME_CHARACTERS)
    return environment.get_template(template).render(palette=PALETTE, **content)


def _data_uri(photo: Photo) -> str:
    """The photo's thumbnail as an address that holds its own bytes; empty if the photo can't be opened."""
    try:
        small = thumbnail(photo, _THUMBNAIL_WIDTH, _THUMBNAIL_HEIGHT)
    except UnreadableImage:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(_jpeg(small, _JPEG_QUALITY)).decode("ascii")


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
