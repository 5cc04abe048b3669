"""Pictures of a run's metrics: loss and recall over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import replacing

_INK, _FAINT = "#1c2429", "#d5dce0"
# Okabe and Ito's colours, which nearly everybody tells apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a4d8")


def draw_plots(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes loss.png, and recall.png where something was validated; returns their paths.

    Args:
        records: the lines of metrics.jsonl. The step of the last validation that is marked as the best gets a line.
        folder: of the run, whose name is the title.
    """
    best = max((record["step"] for record in records if record.get("best")), default=None)
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation" in record]
    drawn = []
    if steps:
        names = [name for name in steps[0] if name == "loss" or name.endswith("_loss")]
        curves = {
            name.replace("_", " "): ([each["step"] for each in steps], [each[name] for each in steps]) for name in names
        }
        drawn.append(_plot(folder / "loss.png", curves, "loss", best))
    if validations:
        curves = {}
        for name in validations[0]["validation"]:
            for measure in validations[0]["validation"][name]:
                shares = [100 * each["validation"][name][measure] for each in validations]
                curves[f"{name} {measure}"] = ([each["step"] for each in validations], shares)
        drawn.append(_plot(folder / "recall.png", curves, "queries answered, %", best))
    return drawn


def _plot(path: Path, curves: dict[str, tuple[list[int], list[float]]], label: str, best: int | None) -> Path:
    # Its canvas draws without a window, and leaves pyplot's global state alone.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (name, (steps, values)) in enumerate(curves.items()):
        axes.plot(
            steps,
            values,
            label=name,
            color=_COLOURS[number % len(_COLOURS)],
            marker="o" if len(steps) < 30 else None,
            markersize=4,
        )
    if best is not None:
        axes.axvline(best, color=_INK, linewidth=1, linestyle=":", label=f"best, step {best}")
    axes.set_title(path.parent.name, color=_INK)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(color=_FAINT)
    axes.tick_params(colors=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    with replacing(path) as file:
        figure.savefig(file, format="png")
    return path
