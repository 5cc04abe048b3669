"""Views of a photo all show its middle and nothing beyond its edges; photos that may show the same house conflict."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf.panoramas.photo_views import COLUMNS, _view, cut_photo_views
from d2vpr_hf.protocols.places import read_training_places

SIZE = {"height": 48, "width": 64, "progress": False}


@pytest.fixture
def photos(tmp_path):
    """Five photos of one colour each, with a red middle."""
    (tmp_path / "in").mkdir()
    for number in range(5):
        pixels = np.full((90, 160, 3), 60 + 40 * number, np.uint8)
        pixels[40:50, 75:85] = (255, 0, 0)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    return tmp_path / "in"


def test_every_view_shows_the_middle_and_no_edge(photos, tmp_path):
    out = cut_photo_views(photos, tmp_path / "out", views_per_photo=30, roll_deg=8, **SIZE)
    views = [np.asarray(Image.open(path)).astype(int) for path in sorted(out.glob("4-*/*.jpg"))]
    assert len(views) == 30
    for view in views:
        red = view[..., 0] - view[..., 1] > 100
        assert red.any()
        assert view[..., 0].min() > 140  # beyond the edge all would be black; JPEG blurs the red by up to 60
    assert len({view.tobytes() for view in views}) == 30


def test_a_level_view_from_the_front_is_a_part_of_the_photo():
    rows, columns = np.mgrid[0:90, 0:160]
    photo = Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))
    for zoom, across, down in ((1, 0, 0), (2, 0, 0), (2, 1, -0.5)):
        look = torch.tensor([zoom, 0, 0, 0, across, down], dtype=torch.float64)
        view = np.asarray(_view(photo, look, 45, 60))
        # The widest 4:3 view is 120 x 90; one of half of it may shift by 0.3 of its own size, 18 x 13.5.
        wide, high = 120 / zoom, 90 / zoom
        left = 80 - wide / 2 + (across * 0.3 * wide if zoom > 1 else 0)
        top = 45 - high / 2 + (down * 0.3 * high if zoom > 1 else 0)
        middle = view[22, 30]
        assert middle[0] == pytest.approx(left + 30.5 / 60 * wide, abs=1.5)
        assert middle[1] == pytest.approx(top + 22.5 / 45 * high, abs=1.5)
        assert view[22, 55, 0] - view[22, 5, 0] == pytest.approx(50 / 60 * wide, abs=2)


def test_a_view_from_the_right_makes_the_right_side_larger():
    pixels = np.zeros((90, 160, 3), np.uint8)
    pixels[:, 40:120] = 255
    views = {}
    for turn in (-30, 30):
        look = torch.tensor([1, turn, 0, 0, 0, 0], dtype=torch.float64)
        bright = np.asarray(_view(Image.fromarray(pixels), look, 60, 80))[30, :, 0] > 128
        views[turn] = bright
    assert np.array_equal(views[30], views[-30][::-1])  # a mirrored stand sees a mirrored picture
    assert views[30][:40].sum() != views[30][40:].sum()


def test_the_table_says_how_each_view_looks_and_what_conflicts(photos, tmp_path):
    out = cut_photo_views(photos, tmp_path / "out", views_per_photo=3, near=1, **SIZE)
    with (out / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file_name", "place", "photo", *COLUMNS, "conflicts"]
    assert all(1 <= float(row["zoom"]) <= 2.2 and abs(float(row["turn_deg"])) <= 40 for row in rows)
    places = read_training_places(out)
    assert places.places.tolist() == np.repeat(range(5), 3).tolist()
    assert places.conflicts == {0: {1}, 1: {0, 2}, 2: {1, 3}, 3: {2, 4}, 4: {3}}
    assert read_training_places(cut_photo_views(photos, tmp_path / "free", **SIZE)).conflicts == {}


def test_the_same_call_gives_the_same_views(photos, tmp_path):
    def files(name, **changed):
        out = cut_photo_views(photos, tmp_path / name, views_per_photo=2, **SIZE, **changed)
        return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.jpg")}

    first = files("one")
    assert first == files("other")
    assert not {*first.values()} & {*files("seed", seed=1).values()}
    assert first.keys() == files("visited", revisited=True).keys()
    alone = files("alone", only=["2.png"])
    assert {*alone.items()} <= {*first.items()}


@pytest.mark.parametrize("wrong", [{"zoom": 5}, {"views_per_photo": 1}, {"turn_deg": 60}, {"near": -1}])
def test_what_cannot_be_drawn_is_refused(wrong, photos, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        cut_photo_views(photos, tmp_path / "out", **wrong)
