"""Draws curves as SVG: recall@k and precision-recall of one model or several, for pages that open without a network.

Colours come with dashes, because not everybody tells colours apart. A drawing follows the reader's light or dark
setting by itself, in a page as in a README, and the same figures give the same bytes.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MultipleLocator, NullLocator, PercentFormatter, StrMethodFormatter

from ..evaluation.recall import evenly_spread, recall_intervals
from ..evaluation.results import Evaluation
from ..messages import percent
from .pictures import PALETTE, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVE_POINTS = 1000
_NAME_CHARACTERS = 80
# Okabe and Ito's colours, told apart by nearly everybody, dark enough for white and light enough for black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a4d8", "#8c6bb1", "#7f7f7f")
_DASHES = ((), (4, 2), (1, 2), (5, 2, 1, 2), (2, 1), (6, 2), (1, 1), (3, 1, 1, 1))
_RANK_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
# Text stays text, no point of a curve is left out, and ids follow from what is drawn.
_SVG = {"svg.fonttype": "none", "svg.hashsalt": "d2vpr", "path.simplify": False, "font.size": 11}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


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
        shown = evenly_spread(len(whole.recall), _CURVE_POINTS)
        curves.append(Curve(f"{name}: area {percent(whole.area)}", whole.recall[shown], whole.precision[shown]))
    return line_chart(curves, x_label="recall of the best answer", y_label="precision", ranks=False)


def line_chart(curves: Sequence[Curve], *, x_label: str, y_label: str, ranks: bool) -> str:
    """SVG of curves of fractions, with axes, grid and legend; names are escaped.

    Args:
        curves: at least one.
        x_label, y_label: of the axes.
        ranks: whether x are ranks from 1, on a logarithmic axis, or fractions.
    """
    with mpl.rc_context(_SVG):
        figure, axes = new_figure(7.2, 4.2 + 0.22 * len(curves))
        for number, curve in enumerate(curves):
            colour, dashes = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
            if curve.low is not None and curve.high is not None:
                axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.14, lw=0, gid=f"band-{number}")
            dashed = {"dashes": dashes} if dashes else {}
            name = shorten(curve.name, _NAME_CHARACTERS)
            # The dot keeps a curve of a single point in sight.
            axes.plot(curve.x, curve.y, c=colour, lw=2, marker="o", ms=5, markevery=[0], gid=f"curve-{number}",
                      label=name, clip_on=False, **dashed)  # fmt: skip
        floor = _floor([each for curve in curves for each in (curve.y, curve.low) if each is not None])
        axes.set(xlabel=x_label, ylabel=y_label, ylim=(floor, 1))
        axes.yaxis.set_major_locator(MultipleLocator({0.9: 0.02, 0.8: 0.05}.get(floor, 0.1 if floor else 0.2)))
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
        axes.grid(axis="y")
        if ranks:
            last = max(2, *(int(curve.x[-1]) for curve in curves))
            axes.set(xscale="log", xlim=(1, last))
            axes.xaxis.set_major_locator(FixedLocator([tick for tick in _RANK_TICKS if tick <= last]))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.set_xlim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
        figure.legend(loc="outside lower left", frameon=False, labelcolor=PALETTE["ink"][0], handlelength=4)
        return to_svg(figure, f"{y_label} over {x_label}: {', '.join(curve.name for curve in curves)}")


def new_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    """A figure of so many inches with one pair of axes, in colours that `to_svg` knows."""
    ink, faint, line = (PALETTE[name][0] for name in ("ink", "faint", "line"))
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PALETTE["paper"][0])
    axes = figure.add_subplot(facecolor=PALETTE["paper"][0])
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(line)
    axes.tick_params(color=faint, labelcolor=faint, grid_color=line)
    axes.xaxis.label.set_color(ink)
    axes.yaxis.label.set_color(ink)
    axes.set_axisbelow(True)
    return figure, axes


def to_svg(figure: Figure, label: str) -> str:
    """The figure as SVG for a page or a file of its own.

    Args:
        figure: in the light colours of `PALETTE`. Addresses (`urls`) of its parts become what a pointer shows there.
        label: what it shows, for those who don't see it.
    """
    content = io.StringIO()
    with mpl.rc_context(_SVG):
        figure.savefig(content, format="svg", metadata=_NO_METADATA)
    svg = content.getvalue()
    svg = re.sub(r'<a xlink:href="([^"]*)"[^>]*>', r"<g><title>\1</title>", svg).replace("</a>", "</g>")
    for name, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{name}, {light})")
    light, dark = (" ".join(f"--{name}: {each[mode]};" for name, each in PALETTE.items()) for mode in (0, 1))
    style = f"<style>svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    attributes, _, rest = svg[svg.index("<svg ") + len("<svg ") :].partition(">")
    return f'<svg role="img" aria-label="{escape(label)}" {attributes}>\n{style}{rest}'


def _floor(values: Sequence[np.ndarray]) -> float:
    """Where the vertical axis begins: at 0, or at a round number below the least value where all are high."""
    least = min((float(each.min()) for each in values if len(each)), default=0.0)
    return max((floor for floor in (0.0, 0.4, 0.6, 0.8, 0.9) if floor + 0.01 <= least), default=0.0)
