import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from made_evaluation import made_evaluation

from d2vpr_hf.reports.charts import Curve, line_chart, precision_recall_chart, recall_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(chart):
    root = ElementTree.fromstring(chart)
    points = [line.get("points").split() for line in root.iter(f"{SVG}polyline")]
    lines = [[tuple(map(float, point.split(","))) for point in line] for line in points]
    return lines, " ".join(text.text for text in root.iter(f"{SVG}text")), root


def test_recall_rises_from_where_it_is_to_where_it_is():
    evaluation = made_evaluation()  # recall 0.5 at 1, 0.75 from 3 on, of five answers
    lines, words, root = drawn(recall_chart([evaluation]))
    (line,) = lines
    assert len(line) == 5
    heights = {round(y, 1) for _, y in line}
    assert len(heights) == 2
    # The vertical axis: a share of 1 is at the top grid line, so that 0.5 and 0.75 stand in proportion.
    grid = sorted(float(each.get("y1")) for each in root.iter(f"{SVG}line") if each.get("x2") == "686")
    assert grid[0] == 18.0
    bottom = grid[-1]
    assert {round((bottom - y) / (bottom - grid[0]), 2) for y in heights} == {0.5, 0.75}
    xs = [x for x, _ in line]
    assert xs == sorted(xs)
    assert xs[0] == 84
    # Ranks are logarithmic: from 1 to 2 is as far as from 2 to 4.
    assert xs[1] - xs[0] == pytest.approx(xs[3] - xs[1], abs=0.2)
    assert "recall@k" in words
    assert evaluation.model_name in words
    assert len(list(root.iter(f"{SVG}polygon"))) == 1  # the band of intervals


def test_several_models_share_a_chart_and_are_told_apart_without_colour():
    evaluations = [made_evaluation() for _ in range(3)]
    lines, words, root = drawn(recall_chart(evaluations, ["one", "two", "three & <four>"]))
    assert len(lines) == 3
    assert not list(root.iter(f"{SVG}polygon"))
    assert all(name in words for name in ("one", "two", "three & <four>"))
    assert len({line.get("stroke") for line in root.iter(f"{SVG}polyline")}) == 3
    assert len({line.get("stroke-dasharray") for line in root.iter(f"{SVG}polyline")}) == 3


def test_precision_falls_over_recall():
    evaluation = made_evaluation()
    lines, words, _ = drawn(precision_recall_chart([evaluation]))
    assert len(lines[0]) == len(evaluation.precision_recall.recall)
    assert f"area {100 * evaluation.precision_recall.area:.1f} %" in words
    assert "precision" in words


def test_high_values_get_a_closer_look_and_all_lie_in_the_frame():
    high = Curve("high", np.arange(1, 101), np.linspace(0.91, 0.99, 100))
    chart = line_chart([high], x_label="k", y_label="recall", ranks=True)
    lines, words, _ = drawn(chart)
    assert "90 %" in words
    assert "80 %" not in words
    assert all(84 <= x <= 686 and 18 <= y <= 364 for x, y in lines[0])
    assert not re.search(r"nan|inf", chart)
    low = Curve("low", np.arange(1, 101), np.linspace(0.0, 0.99, 100))
    assert "0 %" in drawn(line_chart([low, high], x_label="k", y_label="recall", ranks=True))[1]
