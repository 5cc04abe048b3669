"""Draws where a model goes wrong: a map, as SVG, with an arrow from each query to the place it was taken for.

Positions are metres in UTM, east to the right and north up, without any background: nothing is loaded from anywhere.
A set that spans several UTM zones, such as two cities, gets one map a zone.
"""

import math
from dataclasses import dataclass

import numpy as np

from ..evaluation.results import Evaluation
from ..messages import format_distance
from ..photos.positions import Positions, points_in_zone
from .charts import new_figure, to_svg
from .pictures import PALETTE

_WIDTH, _LEAST_HEIGHT, _MOST_HEIGHT = 10.0, 2.5, 7.5
_MOST_MAPS = 4
# With more wrong answers, the arrows hide each other and the page grows; the worst ones are shown.
_MOST_ARROWS = 1500


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
    if not len(asked):
        return None
    own = places[database.known & (_group(database) == zone * 2 + south)]
    here = np.column_stack([queries.easting[asked], queries.northing[asked]])
    there = places[answers[asked]]
    # The frame holds the queries and the zone's own photos, from its corner on; an arrow to another city leaves it.
    corner = np.vstack([here, own]).min(axis=0)
    own, here, there = own - corner, here - corner, there - corner
    right = evaluation.first_hits[asked] == 1
    answerable = np.array([len(evaluation.protocol.positives[query]) > 0 for query in asked])
    names, shown = evaluation.protocol.queries.names, evaluation.database_names
    away = np.hypot(*(there - here).T)
    tips = [
        _tip(names[query], shown[answers[query]], distance_m, good)
        for query, distance_m, good in zip(asked, away, right, strict=True)
    ]
    elsewhere = np.isnan(away)
    longest = np.argsort(-np.nan_to_num(away), kind="stable")
    arrows = longest[(~right & ~elsewhere)[longest]][:_MOST_ARROWS]
    caption = (
        f"Best answers {_zone_name(zone, bool(south))}: {int(right.sum())} of {len(asked)} right; an arrow leads from "
        "where a photo was taken to where the model puts it"
    )
    if (~right & ~elsewhere).sum() > len(arrows):
        caption += f" (the {len(arrows)} longest are drawn)"
    if lost := int((~right & elsewhere).sum()):
        caption += f"; {lost} wrong answers lie too far away to draw, or have no coordinates"

    extent = np.vstack([here, own]).max(axis=0)
    # A single place, or a straight line of them, needs some width too.
    room = np.maximum(extent, max(0.02 * float(extent.max()), 20.0)) * 1.08
    figure, axes = new_figure(_WIDTH, float(np.clip(_WIDTH * room[1] / room[0] + 1.3, _LEAST_HEIGHT, _MOST_HEIGHT)))
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0)
    axes.update_datalim([extent / 2 - room / 2, extent / 2 + room / 2])
    axes.set(xlabel="metres to the east", ylabel="metres to the north")
    red, green, faint = (PALETTE[name][0] for name in ("wrong", "right", "faint"))
    # As pixels, so that a large database stays small on the page.
    axes.plot(*own.T, ".", c=faint, ms=6, alpha=0.7, rasterized=True, label="database photo")
    start, step = here[arrows], there[arrows] - here[arrows]
    axes.quiver(*start.T, *step.T, angles="xy", scale_units="xy", scale=1, units="dots", width=1.6, headwidth=5,
                color=red, alpha=0.75, urls=[tips[row] for row in arrows])  # fmt: skip
    for kind, chosen, edge, face in (
        ("right", right, green, green),
        ("wrong", ~right & answerable, red, red),
        ("not in the database", ~right & ~answerable, red, PALETTE["paper"][0]),
    ):
        if chosen.any() or kind != "not in the database":
            axes.scatter(*here[chosen].T, s=34, c=face, ec=edge, lw=1.5, clip_on=False, label=f"{kind}: {chosen.sum()}",
                         zorder=3, urls=[tips[row] for row in np.flatnonzero(chosen)])  # fmt: skip
    figure.legend(loc="outside lower left", ncols=4, frameon=False, labelcolor=PALETTE["ink"][0])
    return ErrorMap(to_svg(figure, caption), caption)


def _tip(query: str, answer: str, distance_m: float, right: bool) -> str:
    away = f", {format_distance(distance_m)} away" if math.isfinite(distance_m) else ""
    return f"{'right' if right else 'wrong'}: {query} → {answer}{away}"


def _zone_name(zone: int, south: bool) -> str:
    return f"in UTM zone {zone}{' south' if south else ''}" if zone else "by metres along the track"
