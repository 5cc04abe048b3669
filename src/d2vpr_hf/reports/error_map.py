"""Draws where a model goes wrong: a map, as SVG, with an arrow from each query to the place it was taken for.

Positions are metres in UTM, east to the right and north up, without any background: nothing is loaded from anywhere.
A set that spans several UTM zones, such as two cities, gets one map a zone.
"""

import math
from dataclasses import dataclass
from html import escape

import numpy as np

from ..evaluation.results import Evaluation
from ..messages import format_distance
from ..photos.positions import Positions, points_in_zone

_WIDTH, _MOST_HEIGHT, _LEAST_HEIGHT = 1000, 720, 180
_MARGIN, _FOOT = 30, 74
_MOST_MAPS = 4
# With more wrong answers, the arrows hide each other and the page grows; the worst ones are shown.
_MOST_ARROWS = 1500
_RIGHT = "var(--right, #12805c)"
_WRONG = "var(--wrong, #c8322b)"
_FAINT = "var(--faint, #5b6770)"


@dataclass(frozen=True)
class ErrorMap:
    """A map and what it shows, in one line."""

    svg: str
    caption: str


def error_maps(evaluation: Evaluation) -> list[ErrorMap]:
    """Maps of the best answers, one for each of the UTM zones with the most queries, four at most.

    A dot is a query: green where its best answer is right, red where it is wrong, with an arrow to the answer; hollow
    where no database photo shows its place. Small grey dots are the database. Queries without coordinates or without
    any answer aren't on it. Without labels, or where no photo has coordinates, there is no map.
    """
    queries, database = evaluation.protocol.queries.positions, evaluation.protocol.database.positions
    if evaluation.recall is None or not queries.known.any() or not database.known.any():
        return []
    groups, counts = np.unique(_group(queries)[queries.known], return_counts=True)
    chosen = groups[np.argsort(-counts, kind="stable")][:_MOST_MAPS]
    maps = [_map_of_zone(evaluation, database, queries, *divmod(int(group), 2)) for group in chosen]
    return [each for each in maps if each is not None]


def _group(positions: Positions) -> np.ndarray:
    """(rows,) a number for each zone and hemisphere."""
    return positions.zone.astype(np.int64) * 2 + positions.south


def _map_of_zone(
    evaluation: Evaluation, database: Positions, queries: Positions, zone: int, south: int
) -> ErrorMap | None:
    rows, points = points_in_zone(database, zone, bool(south))
    places = np.full((len(database), 2), np.nan)
    places[rows] = points
    answers = evaluation.ranking[:, 0]
    asked = np.flatnonzero(queries.known & (_group(queries) == zone * 2 + south) & (answers >= 0))
    own = np.flatnonzero(database.known & (_group(database) == zone * 2 + south))
    if not len(asked):
        return None
    here = np.column_stack([queries.easting[asked], queries.northing[asked]])
    there = places[answers[asked]]
    right = evaluation.first_hits[asked] == 1
    answerable = np.array([len(evaluation.protocol.positives[query]) > 0 for query in asked])
    # The frame holds the queries and the zone's own photos; an arrow to another city leaves it.
    frame = _Frame(np.vstack([here, places[own]]))
    names, shown = evaluation.protocol.queries.names, evaluation.database_names
    tips = [
        _tip(names[query], shown[answers[query]], start, end, good)
        for query, start, end, good in zip(asked, here, there, right, strict=True)
    ]
    elsewhere = np.isnan(there[:, 0])
    away = np.where(elsewhere, np.inf, np.hypot(*(np.nan_to_num(there) - here).T))
    wrong = np.flatnonzero(~right)
    arrows = [row for row in wrong[np.argsort(-away[wrong], kind="stable")] if not elsewhere[row]][:_MOST_ARROWS]
    pixels, targets = frame.pixels(here), frame.pixels(there)
    parts = [
        frame.dots(places[own]),
        *(_arrow(pixels[row], targets[row], tips[row]) for row in arrows),
        *(_dot(pixels[row], _RIGHT, tips[row]) for row in np.flatnonzero(right)),
        *(_dot(pixels[row], _WRONG, tips[row], hollow=not answerable[row]) for row in wrong),
    ]
    caption = (
        f"Best answers {_zone_name(zone, bool(south))}: {int(right.sum())} of {len(asked)} right; an arrow leads from "
        "where a photo was taken to where the model puts it"
    )
    if len(wrong) - int(elsewhere[wrong].sum()) > len(arrows):
        caption += f" (the {len(arrows)} longest are drawn)"
    if elsewhere[wrong].any():
        caption += f"; {int(elsewhere[wrong].sum())} wrong answers lie too far away to draw, or have no coordinates"
    counts = int(right.sum()), int((~right & answerable).sum()), int((~right & ~answerable).sum())
    return ErrorMap(frame.svg("\n".join(parts), counts, caption), caption)


class _Frame:
    """The map's scale: from metres to pixels, the same in both directions."""

    def __init__(self, points: np.ndarray) -> None:
        low, high = points.min(axis=0), points.max(axis=0)
        # A single place, or a straight line of them, needs some width too.
        extent = np.maximum(high - low, max(float((high - low).max()) * 0.02, 20.0))
        self.middle = (low + high) / 2
        inside = np.array([_WIDTH - 2 * _MARGIN, _MOST_HEIGHT - 2 * _MARGIN])
        self.pixels_a_metre = float((inside / extent).min())
        height = extent[1] * self.pixels_a_metre + 2 * _MARGIN
        self.height = int(np.clip(height, _LEAST_HEIGHT, _MOST_HEIGHT))

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(points, 2) x and y, down, of points east and north."""
        offset = (points - self.middle) * self.pixels_a_metre
        return np.column_stack([_WIDTH / 2 + offset[:, 0], self.height / 2 - offset[:, 1]])

    def dots(self, points: np.ndarray) -> str:
        """Small dots, one for all points that fall on the same pixel, so that a large database stays small."""
        whole = np.unique(self.pixels(points).round().astype(int), axis=0)
        path = "".join(f"M{x} {y}h0" for x, y in whole)
        return f'<path d="{path}" stroke="{_FAINT}" stroke-opacity="0.55" stroke-width="3" stroke-linecap="round"/>'

    def svg(self, content: str, counts: tuple[int, int, int], label: str) -> str:
        """The whole drawing with frame, scale bar, north arrow and legend."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {self.height + _FOOT}" role="img" '
            f'aria-label="{escape(label, quote=True)}" style="background: var(--paper, #ffffff)" '
            'font-family="system-ui, sans-serif" font-size="15" fill="var(--ink, #1c2429)">\n'
            # Arrow heads follow their lines; each drawing brings its own, since a page may hold several.
            f'<svg x="0" y="0" width="{_WIDTH}" height="{self.height}" viewBox="0 0 {_WIDTH} {self.height}">\n'
            f'<rect width="{_WIDTH}" height="{self.height}" fill="var(--panel, #f2f5f6)"/>\n{content}\n</svg>\n'
            f"{self._scale_bar()}\n{_north()}\n{_legend(counts, self.height)}\n</svg>"
        )

    def _scale_bar(self) -> str:
        metres = _round_length(0.22 * _WIDTH / self.pixels_a_metre)
        length, y = metres * self.pixels_a_metre, self.height + 26
        return (
            f'<path d="M{_MARGIN} {y - 6}v12M{_MARGIN} {y}h{length:.1f}M{_MARGIN + length:.1f} {y - 6}v12" '
            'stroke="var(--ink, #1c2429)" stroke-width="2" fill="none"/>'
            f'<text x="{_MARGIN + length + 12:.1f}" y="{y + 5}">{_length_name(metres)}</text>'
        )


def _round_length(most_m: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten up to a length."""
    power = 10.0 ** math.floor(math.log10(most_m))
    return max(step * power for step in (1, 2, 5) if step * power <= most_m * (1 + 1e-9))


def _length_name(metres: float) -> str:
    return f"{metres:g} m" if metres < 1000 else f"{metres / 1000:g} km"


def _north() -> str:
    return (
        f'<path d="M{_WIDTH - 28} 52v-30m-6 10l6 -12l6 12" stroke="var(--ink, #1c2429)" stroke-width="2" fill="none"/>'
        f'<text x="{_WIDTH - 28}" y="68" text-anchor="middle">N</text>'
    )


def _legend(counts: tuple[int, int, int], top: int) -> str:
    """Signs and their meaning in the foot, with how many there are of each."""
    right, wrong, unanswerable = counts
    entries = [(_dot(np.array([0.0, 0.0]), _RIGHT, ""), f"right: {right}")]
    entries.append((_dot(np.array([0.0, 0.0]), _WRONG, ""), f"wrong: {wrong}"))
    if unanswerable:
        sign = _dot(np.array([0.0, 0.0]), _WRONG, "", hollow=True)
        entries.append((sign, f"not in the database: {unanswerable}"))
    grey = f'<circle r="2" fill="{_FAINT}"/>'
    entries.append((grey, "database photo"))
    drawn, x = [], _MARGIN + 6
    for sign, text in entries:
        drawn.append(f'<g transform="translate({x} {top + 54})">{sign}<text x="14" y="5">{text}</text></g>')
        x += 44 + 8 * len(text)
    return "".join(drawn)


def _dot(point: np.ndarray, colour: str, tip: str, hollow: bool = False) -> str:
    fill = f'fill="var(--panel, #f2f5f6)" stroke="{colour}" stroke-width="2"' if hollow else f'fill="{colour}"'
    return f'<circle cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="5" fill-opacity="0.85" {fill}>{_title(tip)}</circle>'


def _arrow(start: np.ndarray, end: np.ndarray, tip: str) -> str:
    """A line with an open head; too short a one for a head is a line alone."""
    step = end - start
    length = float(np.hypot(*step))
    path = f"M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"
    if length > 14:
        along = step / length * 10
        across = np.array([-along[1], along[0]]) * 0.45
        left, right = end - along + across, end - along - across
        path += f"M{left[0]:.1f} {left[1]:.1f}L{end[0]:.1f} {end[1]:.1f}L{right[0]:.1f} {right[1]:.1f}"
    return (
        f'<path d="{path}" stroke="{_WRONG}" stroke-opacity="0.75" stroke-width="1.8" fill="none">{_title(tip)}</path>'
    )


def _title(tip: str) -> str:
    return f"<title>{escape(tip)}</title>" if tip else ""


def _tip(query: str, answer: str, start: np.ndarray, end: np.ndarray, right: bool) -> str:
    verdict = "right" if right else "wrong"
    distance_m = float(np.hypot(*(end - start)))
    away = f", {format_distance(distance_m)} away" if math.isfinite(distance_m) else ""
    return f"{verdict}: {query} → {answer}{away}"


def _zone_name(zone: int, south: bool) -> str:
    return f"in UTM zone {zone}{' south' if south else ''}" if zone else "by metres along the track"
