import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from made_evaluation import made_evaluation, photos

from d2vpr_hf.photos.folder import PhotoFolder
from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.reports.error_map import error_maps

SVG = "{http://www.w3.org/2000/svg}"


def signs(svg):
    """Where dots are, their outlines and the corners of arrows, by their tips."""
    root = ElementTree.fromstring(svg)
    circles, hollow, arrows = {}, [], {}
    for group in (each for each in root.iter(f"{SVG}g") if each.find(f"{SVG}title") is not None):
        tip = group.find(f"{SVG}title").text
        used, path = next(group.iter(f"{SVG}use"), None), next(group.iter(f"{SVG}path"), None)
        numbers = [] if path is None else list(map(float, re.findall(r"-?[\d.]+", path.get("d"))))
        points = np.array(numbers).reshape(-1, 2)
        if path is not None and "C" not in path.get("d"):
            arrows[tip] = points
            continue
        shown = path if used is None else used
        circles[tip] = (float(used.get("x")), float(used.get("y"))) if path is None else tuple(points[:-1].mean(axis=0))
        if "fill: var(--paper" in shown.get("style"):
            hollow.append(tip)
    return circles, hollow, arrows, root


def ticks(root, axis):
    """{metres: pixels} of an axis."""
    found = {}
    for group in (each for each in root.iter(f"{SVG}g") if each.get("id", "").startswith(f"{axis}tick")):
        used, text = next(group.iter(f"{SVG}use")), next(group.iter(f"{SVG}text")).text
        found[float(text.replace("\u2212", "-"))] = float(used.get(axis))
    return found


def test_arrows_lead_from_wrong_queries_to_their_answers_in_scale():
    (drawing,) = error_maps(made_evaluation())
    circles, _, arrows, root = signs(drawing.svg)
    # Query 2 at 205 m is taken for photo 5 at 500 m, query 3 at 305 m for photo 0 at 0 m.
    assert sorted(arrows) == [
        "wrong: query2.jpg → database5.jpg, 295 m away",
        "wrong: query3.jpg → database0.jpg, 305 m away",
    ]
    assert len(circles) == 4
    assert sum(tip.startswith("right") for tip in circles) == 2
    up, down = (arrows[tip] for tip in sorted(arrows))
    for tip, corners in arrows.items():
        x, y = circles[tip]
        assert np.ptp(corners[:, 0]) < 15  # all on a line to the north
        assert np.abs(corners[:, 0] - x).max() < 15
        # An arrow begins at the query's dot.
        assert np.abs(corners[:, 1] - y).min() < 1
    (scale,) = {
        round((low_y - high_y) / (high - low), 3)
        for (low, low_y), (high, high_y) in itertools.pairwise(ticks(root, "y").items())
    }
    assert scale > 0  # north is up
    assert circles[sorted(arrows)[0]][1] - up[:, 1].min() == pytest.approx(295 * scale, rel=0.01)
    assert down[:, 1].max() - circles[sorted(arrows)[1]][1] == pytest.approx(305 * scale, rel=0.01)
    # Both axes have one scale.
    (across,) = {
        round((high_x - low_x) / (high - low), 3)
        for (low, low_x), (high, high_x) in itertools.pairwise(ticks(root, "x").items())
    }
    assert across == pytest.approx(scale, rel=0.01)
    assert "2 of 4 right" in drawing.caption
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"metres to the north", "metres to the east", "right: 2", "wrong: 2", "database photo"} <= set(words)
    assert error_maps(made_evaluation())[0].svg == drawing.svg


def test_a_query_that_nothing_answers_is_hollow():
    (drawing,) = error_maps(made_evaluation(positives=[[0], [1], [2], []]))
    _, hollow, _, _ = signs(drawing.svg)
    assert [tip[:17] for tip in hollow] == ["wrong: query3.jpg"]
    assert "not in the database: 1" in drawing.svg


def test_zones_get_maps_of_their_own_and_answers_elsewhere_no_arrow():
    evaluation = made_evaluation()
    here = photos(["a.jpg", "b.jpg"], [0, 100])
    there = photos(["c.jpg", "d.jpg", "e.jpg", "f.jpg"], [0, 100, 200, 300], longitude=-120.0)
    positions = Positions.concatenate([here.positions, there.positions])
    both = PhotoFolder(here.root, here.paths + there.paths, here.names + there.names, positions)
    queries = photos(["q0.jpg", "q1.jpg", "q2.jpg", "q3.jpg"], [0, 100, 0, 0])
    queries.positions = Positions.concatenate([queries.positions[:2], there.positions[:2]])
    object.__setattr__(evaluation.protocol, "database", both)
    object.__setattr__(evaluation.protocol, "queries", queries)
    maps = error_maps(evaluation)
    assert [re.search(r"zone \d+", each.caption).group() for each in maps] == ["zone 11", "zone 33"]
    # In zone 11: query 2's best answer is row 5, f.jpg there; query 3's is row 0, a.jpg on the other side of the world.
    assert len(signs(maps[0].svg)[2]) == 1
    assert "1 wrong answers lie too far away" in maps[0].caption
    pixels = re.sub(r"base64,[^\"]+", "", maps[0].svg + maps[1].svg)
    assert not re.search(r"nan|inf\b", pixels)


def test_names_are_escaped():
    evaluation = made_evaluation()
    evaluation.protocol.queries.names[3] = "<script>&.jpg"
    svg = error_maps(evaluation)[0].svg
    assert "<script>" not in svg
    assert any("<script>&.jpg" in tip for tip in signs(svg)[0])


def test_without_labels_or_coordinates_there_is_no_map():
    assert error_maps(made_evaluation(labels=False)) == []
    evaluation = made_evaluation()
    evaluation.protocol.queries.positions = Positions.unknown(4)
    assert error_maps(evaluation) == []
    skipped = made_evaluation(np.full((4, 5), -1))
    assert error_maps(skipped) == []


def test_a_line_of_mock_positions_is_drawn():
    evaluation = made_evaluation()
    for side in (evaluation.protocol.database, evaluation.protocol.queries):
        rows = len(side)
        side.positions = Positions(
            np.full(rows, np.nan), np.full(rows, np.nan), np.zeros(rows), 25 / 10.5 * np.arange(rows),
            np.zeros(rows, np.int16), np.zeros(rows, bool),
        )  # fmt: skip
    (drawing,) = error_maps(evaluation)
    assert "by metres along the track" in drawing.caption
    assert len(signs(drawing.svg)[0]) == 4


def test_a_large_database_stays_small_on_the_page():
    evaluation = made_evaluation()
    many = photos([f"{row}.jpg" for row in range(20_000)], np.linspace(0, 600, 20_000))
    object.__setattr__(evaluation.protocol, "database", many)
    object.__setattr__(evaluation, "database_names", many.names)
    assert len(error_maps(evaluation)[0].svg) < 20_000
