"""Draws answers for people: a photo beside its matches, and the regions that the model looks at."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..files import text_to_path
from ..messages import format_distance
from ..photos.images import UnreadableImage, open_image

if TYPE_CHECKING:
    from ..retrieval.embedder import Embedder

# Of pages and drawings, in light and in dark. Right and wrong are told apart by people who don't see red and green too
# (one is bluish), and always stand beside the words.
PALETTE = {
    "paper": ("#ffffff", "#14191c"),
    "panel": ("#f2f5f6", "#1d2428"),
    "ink": ("#1c2429", "#e7ecee"),
    "faint": ("#5b6770", "#9caab3"),
    "line": ("#d5dce0", "#343f46"),
    "right": ("#12805c", "#3fbf8f"),
    "wrong": ("#c8322b", "#ff7468"),
    "unknown": ("#4a6785", "#8fb0d3"),
}
RIGHT_COLOUR, WRONG_COLOUR, UNKNOWN_COLOUR = (PALETTE[name][0] for name in ("right", "wrong", "unknown"))
MEDIUM_COLOUR = "#ffb000"
SMALL_COLOUR = "#35c9ff"

_PAPER, _PANEL, _INK, _FAINT_INK = (PALETTE[name][0] for name in ("paper", "panel", "ink", "faint"))
_TILE_WIDTH, _TILE_HEIGHT = 260, 195
_GAP, _MARGIN, _FRAME = 18, 26, 7
_MATCHES_PER_ROW = 5
_REGIONS_LONG_SIDE = 1000
_MEDIUM_REGIONS, _SMALL_REGIONS = 4, 9

Photo = Image.Image | str | Path


@dataclass(frozen=True)
class Match:
    """One candidate for where a photo was taken, as pictures and pages show it.

    Attributes:
        photo: the candidate's file, or its image.
        name: what to call it, usually the file name.
        score: similarity to the query, -1 to 1; None if there is none.
        distance_m: metres from where the query was taken; None if unknown.
        distance_words: what follows the metres, where they are measured from something else.
        right: whether it shows the query's place; None if nobody knows.
    """

    photo: Photo
    name: str
    score: float | None = None
    distance_m: float | None = None
    distance_words: str = "away"
    right: bool | None = None

    @property
    def verdict(self) -> str:
        """ "right", "wrong", or nothing where that isn't known."""
        return {True: "right", False: "wrong", None: ""}[self.right]

    @property
    def facts(self) -> str:
        """Score and distance in one short line."""
        parts = [] if self.score is None else [f"score {self.score:.3f}"]
        if self.distance_m is not None:
            parts.append(f"{format_distance(self.distance_m)} {self.distance_words}".strip())
        return " · ".join(parts)


def format_degrees(latitude: float | None, longitude: float | None) -> str:
    """Coordinates as maps take them: latitude, longitude in degrees with six decimals (0.1 m)."""
    if latitude is None or longitude is None:
        return "no coordinates known"
    return f"{latitude:.6f}, {longitude:.6f}"


def shorten(name: str, characters: int) -> str:
    """The name, cut in its middle if it is longer: both ends of a file name tell photos apart."""
    if len(name) <= characters:
        return name
    return f"{name[: characters // 2]}…{name[len(name) - (characters - characters // 2 - 1) :]}"


def matches_picture(
    query: Photo,
    matches: Sequence[Match],
    *,
    title: str,
    query_name: str = "",
    query_note: str = "",
) -> Image.Image:
    """The query beside its matches, best first, each with rank, verdict, score, distance and file name.

    A frame is green where the match is right, red where it is wrong and grey-blue where nobody knows. A photo that
    can't be opened any more is shown as an empty tile that says why.

    Args:
        query: the photo that was asked about.
        matches: its candidates in the order of their rank; after five a new row begins.
        title: the answer in one line.
        query_name: the query's file name.
        query_note: one line about the query, such as its coordinates or "night".
    """
    columns = 1 + max(1, min(len(matches), _MATCHES_PER_ROW))
    rows = max(1, -(-len(matches) // _MATCHES_PER_ROW))
    tile_step = _TILE_WIDTH + 2 * _FRAME + _GAP
    row_step = _TILE_HEIGHT + 2 * _FRAME + 92
    top = _MARGIN + 54
    width = 2 * _MARGIN + columns * tile_step - _GAP
    page = Image.new("RGB", (width, top + rows * row_step + _MARGIN - 10), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN - 6), _fit(title, 27, width - 2 * _MARGIN), _INK, font=_font(27), stroke_width=0.4)
    _draw_tile(page, (_MARGIN, top), query, _INK, ("query", query_note, query_name))
    for position, match in enumerate(matches):
        row, column = divmod(position, _MATCHES_PER_ROW)
        colour = {True: RIGHT_COLOUR, False: WRONG_COLOUR, None: UNKNOWN_COLOUR}[match.right]
        heading = f"{position + 1} · {match.verdict}" if match.verdict else f"{position + 1}"
        corner = (_MARGIN + (1 + column) * tile_step, top + row * row_step)
        _draw_tile(page, corner, match.photo, colour, (heading, match.facts, match.name))
    if not matches:
        draw.text((_MARGIN + tile_step, top + _TILE_HEIGHT // 2), "no candidates", _FAINT_INK, font=_font(20))
    return page


def regions_picture(photo: Photo, region_boxes: np.ndarray, *, title: str = "") -> Image.Image:
    """The photo in its own shape with the 13 regions that the model moved and stretched for it, and a legend.

    Args:
        photo: the photo that the boxes belong to.
        region_boxes: (13, 4) centre x, centre y, width and height as fractions of the photo: 4 medium regions, then
            9 small ones. Fractions carry over from the squashed image that the model reads.
        title: one line above the photo.

    Raises: ValueError if the boxes have another shape or aren't finite; UnreadableImage if the photo can't be opened.
    """
    boxes = np.asarray(region_boxes, dtype=np.float64)
    if boxes.shape != (_MEDIUM_REGIONS + _SMALL_REGIONS, 4) or not np.isfinite(boxes).all():
        raise ValueError(
            f"region_boxes has shape {boxes.shape} with {np.count_nonzero(~np.isfinite(boxes))} values that aren't "
            "numbers, but must be (13, 4) finite numbers: centre x, centre y, width, height of 4 medium regions, then "
            "of 9 small ones. Give the model's region_boxes of one photo."
        )
    image = _open(photo)
    scale = _REGIONS_LONG_SIDE / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    head, foot = (52 if title else 0), 64
    width = max(image.width, 560)
    page = Image.new("RGB", (width, head + image.height + foot), _PAPER)
    left = (width - image.width) // 2
    draw = ImageDraw.Draw(image)
    kinds = [(MEDIUM_COLOUR, 4)] * _MEDIUM_REGIONS + [(SMALL_COLOUR, 3)] * _SMALL_REGIONS
    # Small ones first, so that the medium ones' fewer and thicker lines stay whole; centres last, on top of all lines.
    for box, (colour, thickness) in reversed(list(zip(boxes, kinds, strict=True))):
        _draw_outline(draw, box, image.size, colour, thickness)
    for box, (colour, thickness) in zip(boxes, kinds, strict=True):
        _draw_centre(draw, box, image.size, colour, thickness + 1)
    page.paste(image, (left, head))
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((16, 12), _fit(title, 24, width - 32), _INK, font=_font(24), stroke_width=0.4)
    x, y = 16, head + image.height + 20
    for colour, thickness, text in (
        (MEDIUM_COLOUR, 4, f"{_MEDIUM_REGIONS} medium regions"),
        (SMALL_COLOUR, 3, f"{_SMALL_REGIONS} small regions"),
    ):
        draw.rectangle((x, y, x + 34, y + 24), fill="#30363a")
        draw.rectangle((x + 5, y + 4, x + 29, y + 20), outline=colour, width=thickness)
        draw.text((x + 44, y - 1), text, _INK, font=_font(20))
        x += 44 + round(_font(20).getlength(text)) + 36
    return page


def region_boxes(photo: Photo, embedder: "Embedder") -> np.ndarray | None:
    """(13, 4) where the model's regions lie on one photo, for `regions_picture`; None where they are fixed."""
    import torch

    model = embedder.model
    with torch.no_grad():
        inputs = embedder.processor(_open(photo), return_tensors="pt").to(next(model.parameters()).device)
        boxes = getattr(model.float()(**inputs), "region_boxes", None)
    return None if boxes is None else boxes[0].cpu().numpy()


def thumbnail(photo: Photo, width: int, height: int) -> Image.Image:
    """The whole photo, fitted into the given pixels without changing its shape.

    Raises: UnreadableImage if the photo can't be opened.
    """
    image = _open(photo)
    scale = min(width / image.width, height / image.height)
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _open(photo: Photo) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo.convert("RGB")
    return open_image(text_to_path(photo) if isinstance(photo, str) else photo)


def _draw_tile(
    page: Image.Image, corner: tuple[int, int], photo: Photo, colour: str, captions: tuple[str, str, str]
) -> None:
    """One framed photo with its heading, its facts and its file name below."""
    draw = ImageDraw.Draw(page)
    left, top = corner
    right, bottom = left + _TILE_WIDTH + 2 * _FRAME, top + _TILE_HEIGHT + 2 * _FRAME
    draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    draw.rectangle((left + _FRAME, top + _FRAME, right - _FRAME - 1, bottom - _FRAME - 1), fill=_PANEL)
    try:
        small = thumbnail(photo, _TILE_WIDTH, _TILE_HEIGHT)
        page.paste(small, ((left + right - small.width) // 2, (top + bottom - small.height) // 2))
    except UnreadableImage as error:
        text = _fit(f"can't be shown: {error.reason}", 15, _TILE_WIDTH - 16)
        draw.text((left + _FRAME + 8, (top + bottom) // 2 - 10), text, _FAINT_INK, font=_font(15))
    heading, facts, name = captions
    width = right - left
    draw.text((left, bottom + 7), _fit(heading, 21, width), colour, font=_font(21), stroke_width=0.4)
    draw.text((left, bottom + 34), _fit(facts, 18, width), _INK, font=_font(18))
    draw.text((left, bottom + 59), _fit(name, 15, width), _FAINT_INK, font=_font(15))


def _draw_outline(
    draw: ImageDraw.ImageDraw, box: np.ndarray, size: tuple[int, int], colour: str, thickness: int
) -> None:
    """One box, on a dark halo that keeps it visible on any photo."""
    centre_x, centre_y, width, height = box
    x0, x1 = sorted((centre_x + sign * width / 2) * (size[0] - 1) for sign in (-1, 1))
    y0, y1 = sorted((centre_y + sign * height / 2) * (size[1] - 1) for sign in (-1, 1))
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="#101417", width=thickness + 2)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=thickness)


def _draw_centre(draw: ImageDraw.ImageDraw, box: np.ndarray, size: tuple[int, int], colour: str, radius: int) -> None:
    x, y = box[0] * (size[0] - 1), box[1] * (size[1] - 1)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="#101417")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(text: str, size: int, width: int) -> str:
    """The text, shortened where it is wider than `width` pixels."""
    font, text = _font(size), _drawable(text)
    if font.getlength(text) <= width:
        return text
    return next(
        (
            short
            for characters in range(len(text) - 1, 2, -1)
            if font.getlength(short := shorten(text, characters)) <= width
        ),
        "…",
    )


def _drawable(text: str) -> str:
    """The text in the characters that Pillow's own font has: accents dropped, the rest as question marks."""
    plain = unicodedata.normalize("NFKD", text.replace("…", "\0").replace("°", "\1").replace("·", "\2"))
    plain = "".join(each for each in plain if not unicodedata.combining(each))
    plain = "".join(each if each in "\0\1\2" or " " <= each <= "~" else "?" for each in plain)
    return plain.replace("\0", "…").replace("\1", "°").replace("\2", "·")
