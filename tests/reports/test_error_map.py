import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from made_evaluation import made_evaluation, photos

from d2vpr_hf.photos.folder import PhotoFolder
from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.reports.error_map import _length_name, _round_length, error_maps

SVG = "{http://www.w3.org/2000/svg}"


def signs(svg):
    """Circles and arrows with a tip, by their tips."""
    root = ElementTree.fromstring(svg)
    circles = {each[0].text: each for each in root.iter(f"{SVG}circle") if len(each)}
    arrows = {each[0].text: each.get("d") for each in root.iter(f"{SVG}path") if len(each)}
    return circles, arrows, root


def test_arrows_lead_from_wrong_queries_to_their_answers_in_scale():
    (drawing,) = error_maps(made_evaluation())
    circles, arrows, root = signs(drawing.svg)
    # Query 2 at 205 m is taken for photo 5 at 500 m, query 3 at 305 m for photo 0 at 0 m.
    assert sorted(arrows) == [
        "wrong: query2.jpg → database5.jpg, 295 m away",
        "wrong: query3.jpg → database0.jpg, 305 m away",
    ]
    assert len(circles) == 4
    assert sum(tip.startswith("right") for tip in circles) == 2
    starts, ends = {}, {}
    for tip, path in arrows.items():
        x, y, to_x, to_y = map(float, re.match(r"M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)", path).groups())
        assert float(circles[tip].get("cx")) == x
        assert x == pytest.approx(to_x, abs=0.5)  # all on a line to the north
        starts[tip], ends[tip] = y, to_y
    up, down = sorted(arrows)
    assert ends[up] < starts[up]  # 295 m to the north is upwards
    assert ends[down] > starts[down]
    pixels_a_metre = (starts[up] - ends[up]) / 295
    assert (ends[down] - starts[down]) / 305 == pytest.approx(pixels_a_metre, rel=0.01)
    bar = re.search(r"h([1-9][\d.]+)M", drawing.svg)
    length = next(text.text for text in root.iter(f"{SVG}text") if text.text.endswith(" m"))
    assert float(bar.group(1)) / float(length.split()[0]) == pytest.approx(pixels_a_metre, rel=0.01)
    assert "2 of 4 right" in drawing.caption
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert {"N", "right: 2", "wrong: 2", "database photo"} <= set(words)


def test_a_query_that_nothing_answers_is_hollow():
    (drawing,) = error_maps(made_evaluation(positives=[[0], [1], [2], []]))
    circles, _, _ = signs(drawing.svg)
    hollow = [tip for tip, circle in circles.items() if circle.get("stroke")]
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
    assert len(signs(maps[0].svg)[1]) == 1
    assert "1 wrong answers lie too far away" in maps[0].caption
    assert not re.search(r"nan|inf\b", maps[0].svg + maps[1].svg)


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


@pytest.mark.parametrize(("most_m", "length"), [(999, "500 m"), (1000, "1 km"), (2.4, "2 m"), (57_000, "50 km")])
def test_the_scale_bar_has_a_round_length(most_m, length):
    assert _length_name(_round_length(most_m)) == length
