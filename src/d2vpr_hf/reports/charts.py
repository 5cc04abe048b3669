"""Draws curves as SVG: recall@k and precision-recall of one model or several, for pages that open without a network.

Colours come with dashes, because not everybody tells colours apart. Lines and text follow the page's own colours
(`--ink`, `--faint`, `--line`) where it has them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from ..evaluation.intervals import recall_intervals
from ..evaluation.results import Evaluation

_WIDTH, _HEIGHT = 720, 430
_LEGEND_ROW = 24
_CURVE_POINTS = 1000
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 34, 18, 66
# Okabe and Ito's colours, told apart by nearly everybody, dark enough for white and light enough for black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a4d8", "#8c6bb1", "#7f7f7f")
_DASHES = ("", "9 4", "2 4", "12 4 2 4", "5 3", "14 5", "2 2", "8 3 2 3")
_RANK_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        name: what the legend calls it.
        x: (points,) rising, in the chart's units.
        y: (points,) fractions in [0, 1].
        low, high: (points,) of a band around it; None without.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def recall_chart(evaluations: Sequence[Evaluation], names: Sequence[str] | None = None) -> str:
    """SVG of recall@k at every k up to the answers ranked, with 95 % bands where there are at most two models.

    Args:
        evaluations: with labels, at least one.
        names: what the legend calls them; by default the models' names.
    """
    curves = []
    for name, evaluation in zip(names or [each.model_name for each in evaluations], evaluations, strict=True):
        first = evaluation.first_hits[evaluation.counted]
        ks = np.arange(1, evaluation.ranking.shape[1] + 1)
        found = np.bincount(first, minlength=len(ks) + 1)[1:].cumsum() / len(first)
        band = {}
        if len(evaluations) <= 2:
            low, high = np.array(list(recall_intervals(first, ks).values())).T
            band = {"low": low, "high": high}
        curves.append(Curve(name, ks, found, **band))
    return line_chart(curves, x_label="answers looked at (k)", y_label="recall@k", ranks=True)


def precision_recall_chart(evaluations: Sequence[Evaluation], names: Sequence[str] | None = None) -> str:
    """SVG of precision over recall as the least accepted score falls."""
    curves = []
    for name, evaluation in zip(names or [each.model_name for each in evaluations], evaluations, strict=True):
        whole = evaluation.precision_recall
        points = len(whole.recall)
        shown = np.linspace(0, points - 1, min(points, _CURVE_POINTS)).round().astype(np.int64)
        curves.append(Curve(f"{name}: area {100 * whole.area:.1f} %", whole.recall[shown], whole.precision[shown]))
    return line_chart(curves, x_label="recall of the best answer", y_label="precision", ranks=False)


def line_chart(curves: Sequence[Curve], *, x_label: str, y_label: str, ranks: bool) -> str:
    """SVG of curves of fractions, with axes, grid and legend; names are escaped.

    Args:
        curves: at least one.
        x_label, y_label: of the axes.
        ranks: whether x are ranks from 1, on a logarithmic axis, or fractions.
    """
    floor = _floor([each for curve in curves for each in (curve.y, curve.low) if each is not None])
    last_rank = max(2, *(int(curve.x[-1]) for curve in curves)) if ranks else 1

    def across(x: np.ndarray | float) -> np.ndarray:
        share = np.log(np.maximum(x, 1)) / math.log(last_rank) if ranks else np.asarray(x, float)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def up(y: np.ndarray | float) -> np.ndarray:
        return _HEIGHT - _BOTTOM - (np.asarray(y, float) - floor) / (1 - floor) * (_HEIGHT - _TOP - _BOTTOM)

    ticks = [tick for tick in _RANK_TICKS if tick <= last_rank] if ranks else [0, 0.2, 0.4, 0.6, 0.8, 1]
    parts = [
        _grid(floor, up),
        *(_x_tick(float(across(tick)), str(tick) if ranks else _percent(tick)) for tick in ticks),
    ]
    for number, curve in enumerate(curves):
        parts.append(_band(curve, number, across, up))
        parts.append(_line(curve, number, across, up))
    parts.append(_legend(curves))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 16}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(20 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    height = _HEIGHT + _LEGEND_ROW * len(curves) + 8
    label = escape(f"{y_label} over {x_label}: {', '.join(curve.name for curve in curves)}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{label}" '
        'style="background: var(--paper, #ffffff)" font-family="system-ui, sans-serif" font-size="16" '
        'fill="var(--ink, #1c2429)">\n' + "\n".join(part for part in parts if part) + "\n</svg>"
    )


def _floor(values: Sequence[np.ndarray]) -> float:
    """Where the vertical axis begins: at 0, or at a round number below the least value where all are high."""
    least = min((float(each.min()) for each in values if len(each)), default=0.0)
    return max((floor for floor in (0.0, 0.4, 0.6, 0.8, 0.9) if floor + 0.01 <= least), default=0.0)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _grid(floor: float, up) -> str:  # noqa: ANN001 - a scale, as in line_chart
    step = {0.9: 0.02, 0.8: 0.05}.get(floor, 0.1 if floor else 0.2)
    lines = []
    for number in range(round((1 - floor) / step) + 1):
        share = floor + number * step
        y = float(up(share))
        lines.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line, #d5dce0)"/>'
            f'<text x="{_LEFT - 8}" y="{y + 5:.1f}" text-anchor="end" fill="var(--faint, #5b6770)">{_percent(share)}'
            "</text>"
        )
    return "\n".join(lines)


def _x_tick(x: float, text: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}" stroke="var(--faint, #5b6770)"/>'
        f'<text x="{x:.1f}" y="{bottom + 21}" text-anchor="middle" fill="var(--faint, #5b6770)">{text}</text>'
    )


def _points(x: np.ndarray, y: np.ndarray) -> str:
    return " ".join(f"{each_x:.1f},{each_y:.1f}" for each_x, each_y in zip(x, y, strict=True))


def _line(curve: Curve, number: int, across, up) -> str:  # noqa: ANN001
    colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
    if not len(curve.x):
        return ""
    dot = f'<circle cx="{float(across(curve.x[0])):.1f}" cy="{float(up(curve.y[0])):.1f}" r="4" fill="{colour}"/>'
    return (
        f'<polyline points="{_points(across(curve.x), up(curve.y))}" fill="none" stroke="{colour}" stroke-width="2.5" '
        f'stroke-dasharray="{dash}" stroke-linejoin="round"/>{dot}'
    )


def _band(curve: Curve, number: int, across, up) -> str:  # noqa: ANN001
    if curve.low is None or curve.high is None:
        return ""
    x = across(curve.x)
    outline = f"{_points(x, up(curve.high))} {_points(x[::-1], up(curve.low[::-1]))}"
    return f'<polygon points="{outline}" fill="{_COLOURS[number % len(_COLOURS)]}" fill-opacity="0.14"/>'


def _legend(curves: Sequence[Curve]) -> str:
    """Names beside their lines, below the axes, where they hide no curve."""
    lines = []
    for number, curve in enumerate(curves):
        y = _HEIGHT + _LEGEND_ROW * number + 16
        name = curve.name if len(curve.name) <= 80 else f"{curve.name[:39]}…{curve.name[-40:]}"
        lines.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + 42}" y1="{y - 5}" y2="{y - 5}" stroke-width="2.5" '
            f'stroke="{_COLOURS[number % len(_COLOURS)]}" stroke-dasharray="{_DASHES[number % len(_DASHES)]}"/>'
            f'<text x="{_LEFT + 52}" y="{y}">{escape(name)}</text>'
        )
    return "\n".join(lines)
