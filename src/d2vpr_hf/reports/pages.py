"""Makes the tables and the self-contained HTML page that show what an evaluation found."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from PIL import Image

from ..evaluation.table import Table
from ..files import replace_file
from ..photos.images import UnreadableImage
from .pictures import Match, Photo, shorten, thumbnail

_THUMBNAIL_WIDTH, _THUMBNAIL_HEIGHT = 300, 225
_JPEG_QUALITY = 78
_NAME_CHARACTERS = 44


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


def gallery_page(
    title: str,
    entries: Sequence[Entry],
    *,
    lead: str = "",
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
) -> str:
    """One HTML page with tables, then every query beside its matches; a switch shows the wrong answers alone.

    The page holds its pictures and styles and no script, loads nothing from anywhere and follows the reader's light
    or dark setting. File names are escaped.

    Args:
        title: heading of the page.
        entries: what to show, in order; they are grouped by condition in the order of first appearance.
        lead: one sentence below the heading.
        notes: what the reader must know to judge the figures, one paragraph each.
        tables: shown above the pictures.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = _data_uri
    environment.filters["short"] = lambda name: shorten(name, _NAME_CHARACTERS)
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.condition, []).append(entry)
    template = environment.from_string(files(__package__).joinpath("gallery.html").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        lead=lead,
        notes=notes,
        tables=tables,
        groups=groups,
        right=sum(entry.right is True for entry in entries),
        wrong=sum(entry.right is False for entry in entries),
        unknown=sum(entry.right is None for entry in entries),
    )


def write_atomically(path: str | Path, content: bytes | str) -> Path:
    """Writes a file in one step, so that whoever looks never finds half of it; returns its path.

    Text is written as UTF-8; file names whose bytes are no UTF-8 show a question mark there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    replace_file(path, data)
    return path


def write_picture(path: str | Path, picture: Image.Image) -> Path:
    """Writes a picture as JPEG in one step; returns its path."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90, optimize=True)
    return write_atomically(path, buffer.getvalue())


def _data_uri(photo: Photo) -> str:
    """The photo's thumbnail as an address that holds its own bytes; empty if the photo can't be opened."""
    try:
        small = thumbnail(photo, _THUMBNAIL_WIDTH, _THUMBNAIL_HEIGHT)
    except UnreadableImage:
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
