import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from made_evaluation import made_evaluation

from d2vpr_hf.reports.charts import Curve, line_chart, precision_recall_chart, recall_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(chart):
    """The points of each curve, all words, the whole drawing, and the heights of its horizontal grid lines."""
    root = ElementTree.fromstring(chart)
    groups = {group.get("id"): group for group in root.iter(f"{SVG}g")}
    lines = [
        points(group.find(f"{SVG}path")) for name, group in groups.items() if re.fullmatch(r"curve-\d+", name or "")
    ]
    ticks = [group for name, group in groups.items() if (name or "").startswith("ytick")]
    grid = sorted(points(next(tick.iter(f"{SVG}path")))[0][1] for tick in ticks)
    return lines, " ".join(text.text for text in root.iter(f"{SVG}text")), root, grid


def points(path):
    numbers = list(map(float, re.findall(r"-?[\d.]+", path.get("d"))))
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_recall_rises_from_where_it_is_to_where_it_is():
    evaluation = made_evaluation()  # recall 0.5 at 1, 0.75 from 3 on, of five answers
    (line,), words, root, grid = drawn(recall_chart([evaluation]))
    assert len(line) == 5
    heights = {round(y, 1) for _, y in line}
    assert len(heights) == 2
    # The vertical axis: a share of 1 is at the top grid line, so that 0.5 and 0.75 stand in proportion.
    top, bottom = grid[0], grid[-1]
    assert {round((bottom - y) / (bottom - top), 2) for y in heights} == {0.5, 0.75}
    xs = [x for x, _ in line]
    assert xs == sorted(xs)
    # Ranks are logarithmic: from 1 to 2 is as far as from 2 to 4.
    assert xs[1] - xs[0] == pytest.approx(xs[3] - xs[1], abs=0.2)
    assert "recall@k" in words
    assert evaluation.model_name in words
    assert [group.get("id") for group in root.iter(f"{SVG}g") if "band" in group.get("id", "")] == ["band-0"]


def test_several_models_share_a_chart_and_are_told_apart_without_colour():
    evaluations = [made_evaluation() for _ in range(3)]
    lines, words, root, _ = drawn(recall_chart(evaluations, ["one", "two", "three & <four>"]))
    assert len(lines) == 3
    groups = {group.get("id", ""): group for group in root.iter(f"{SVG}g")}
    assert not any("band" in name for name in groups)
    assert all(name in words for name in ("one", "two", "three & <four>"))
    styles = [groups[f"curve-{number}"].find(f"{SVG}path").get("style") for number in range(3)]
    assert len({re.search(r"stroke: (#\w+)", style)[1] for style in styles}) == 3
    assert len({"".join(re.findall(r"stroke-dasharray: [\d., ]+", style)) for style in styles}) == 3


def test_precision_falls_over_recall():
    evaluation = made_evaluation()
    lines, words, *_ = drawn(precision_recall_chart([evaluation]))
    assert len(lines[0]) == len(evaluation.precision_recall.recall)
    assert f"area {100 * evaluation.precision_recall.area:.1f} %" in words
    assert "precision" in words


def test_high_values_get_a_closer_look_and_all_lie_in_the_frame():
    high = Curve("high", np.arange(1, 101), np.linspace(0.91, 0.99, 100))
    chart = line_chart([high], x_label="k", y_label="recall", ranks=True)
    (line,), words, _, grid = drawn(chart)
    assert "90 %" in words
    assert "80 %" not in words
    assert len(line) == 100
    assert all(grid[0] <= y <= grid[-1] for _, y in line)
    assert not re.search(r"nan|inf", chart)
    low = Curve("low", np.arange(1, 101), np.linspace(0.0, 0.99, 100))
    assert "0 %" in drawn(line_chart([low, high], x_label="k", y_label="recall", ranks=True))[1]


def test_a_drawing_is_the_same_every_time_and_follows_light_and_dark():
    chart = recall_chart([made_evaluation()])
    assert chart == recall_chart([made_evaluation()])
    assert "@media (prefers-color-scheme: dark)" in chart
    assert 'style="fill: var(--paper, #ffffff)' in chart
    root = ElementTree.fromstring(chart)
    assert all("var(--" in text.get("style") for text in root.iter(f"{SVG}text"))
    assert root.get("aria-label").startswith("recall@k over answers looked at")
