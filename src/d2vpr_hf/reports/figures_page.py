"""Makes the page of an evaluation's curves and maps: one HTML file without script that opens without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from ..evaluation.compare import Comparison
from ..evaluation.results import Evaluation
from ..evaluation.table import Table
from .charts import precision_recall_chart, recall_chart
from .error_map import error_maps


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


def evaluation_page(evaluation: Evaluation) -> str:
    """HTML of one evaluation with labels: recall with its intervals, both curves, and the map of errors.

    Raises: ValueError if the evaluation has no labels.
    """
    _check_labels(evaluation)
    rows = [
        [
            f"recall@{k}",
            f"{100 * share:.1f} %",
            "{:.1f} to {:.1f} %".format(*(100 * end for end in evaluation.intervals[k])),
        ]
        for k, share in evaluation.recall.items()
    ]
    table = Table(["", "share", "95 % interval"], rows, f"{evaluation.model_name} on {evaluation.protocol.name}")
    figures = [*_curves([evaluation], [evaluation.model_name]), *_maps(evaluation)]
    return _page(f"{evaluation.protocol.name}: {evaluation.model_name}", [table], evaluation.remarks(), figures)


def comparison_page(comparison: Comparison) -> str:
    """HTML of several models on one protocol: their table, one plot of each kind, and each one's map of errors."""
    names, evaluations = list(comparison.evaluations), list(comparison.evaluations.values())
    figures = _curves(evaluations, names)
    for name, evaluation in comparison.evaluations.items():
        figures += _maps(evaluation, f"{name}: ")
    title = f"{evaluations[0].protocol.name}: {' and '.join(names) if len(names) == 2 else f'{len(names)} models'}"
    return _page(title, [comparison.table()], comparison.remarks(), figures)


def _curves(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[Figure]:
    bands = "; the bands are 95 % intervals" if len(evaluations) <= 2 else ""
    return [
        Figure(recall_chart(evaluations, names), f"How often the right place is among the first k answers{bands}"),
        Figure(
            precision_recall_chart(evaluations, names),
            "How well the score of the best answer tells right from wrong",
        ),
    ]


def _maps(evaluation: Evaluation, before: str = "") -> list[Figure]:
    return [Figure(each.svg, before + each.caption, wide=True) for each in error_maps(evaluation)]


def _page(title: str, tables: Sequence[Table], notes: Sequence[str], figures: Sequence[Figure]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("figures.html").read_text(encoding="utf-8"))
    return template.render(title=title, tables=tables, notes=notes, figures=figures)


def _check_labels(evaluation: Evaluation) -> None:
    if evaluation.recall is None:
        raise ValueError(
            f"{evaluation.protocol.name} was ranked without labels, so that there are no curves. Give positives or a "
            "radius, or look at the gallery of answers."
        )
