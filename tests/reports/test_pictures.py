import numpy as np
import pytest
from PIL import Image, ImageColor

from d2vpr_hf.messages import format_distance
from d2vpr_hf.reports import pictures
from d2vpr_hf.reports.pictures import Match, matches_picture, regions_picture, thumbnail

GREY = Image.new("RGB", (400, 300), (128, 128, 128))
MEDIUM = [[x, y, 0.5, 0.5] for y in (0.3, 0.7) for x in (0.3, 0.7)]
SMALL = [[x, y, 0.3, 0.3] for y in (0.2, 0.5, 0.8) for x in (0.2, 0.5, 0.8)]


def count_pixels(image: Image.Image, colour: str) -> int:
    return int((np.asarray(image) == ImageColor.getrgb(colour)).all(axis=-1).sum())


def test_frames_tell_right_from_wrong_and_from_unknown():
    frames = {}
    for right in (True, False, None):
        picture = matches_picture(GREY, [Match(GREY, "a.jpg", 0.5, right=right)], title="an answer")
        frames[right] = [
            count_pixels(picture, colour)
            for colour in (pictures.RIGHT_COLOUR, pictures.WRONG_COLOUR, pictures.UNKNOWN_COLOUR)
        ]
    assert [int(np.argmax(frames[right])) for right in (True, False, None)] == [0, 1, 2]
    for counts in frames.values():
        assert sum(count > 1000 for count in counts) == 1  # a frame is thick enough to see, and there is only one


def test_every_match_has_its_tile_and_a_sixth_begins_a_row():
    sizes = {
        count: matches_picture(GREY, [Match(GREY, "a.jpg", right=True)] * count, title="").size
        for count in (1, 3, 5, 6)
    }
    assert sizes[1][0] < sizes[3][0] < sizes[5][0] == sizes[6][0]
    assert sizes[1][1] == sizes[5][1] < sizes[6][1]
    one, six = (
        count_pixels(matches_picture(GREY, [Match(GREY, "", right=True)] * count, title=""), pictures.RIGHT_COLOUR)
        for count in (1, 6)
    )
    assert six > 5.5 * one


def test_the_query_and_each_match_show_their_own_photo(tmp_path):
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    paths = [tmp_path / f"{name}.png" for name in "qab"]
    for path, colour in zip(paths, colours, strict=True):
        Image.new("RGB", (320, 240), colour).save(path)
    picture = np.asarray(
        matches_picture(paths[0], [Match(str(path), path.name) for path in paths[1:]], title="t", query_name="q")
    )
    columns = [np.flatnonzero((picture == colour).all(axis=-1).any(axis=0)).mean() for colour in colours]
    assert columns == sorted(columns)
    assert columns[0] < picture.shape[1] / 3 < columns[1]


def test_a_photo_that_is_gone_leaves_the_rest_of_the_picture(tmp_path):
    picture = matches_picture(tmp_path / "gone.jpg", [Match(GREY, "there.jpg", right=True)], title="t")
    assert count_pixels(picture, "#808080") > 10_000


def test_no_matches_still_make_a_picture():
    picture = matches_picture(GREY, [], title="not in this map")
    assert picture.width > 500
    assert count_pixels(picture, "#808080") > 10_000


def test_long_and_foreign_names_fit():
    font = pictures._font(15)
    short = pictures._fit("@0543256.96@4178906.70@10@S@037.75713@-122.50894@" * 3 + "last.jpg", 15, 200)
    assert font.getlength(short) <= 200
    assert short.startswith("@05")
    assert short.endswith("last.jpg")
    assert "…" in short
    assert pictures._fit("été 東.jpg", 15, 500) == "ete ?.jpg"
    matches_picture(GREY, [Match(GREY, "東京" * 200, 0.1)], title="é" * 500, query_name="\udcff.jpg")


def test_facts_name_score_and_distance():
    assert Match(GREY, "a", 0.8731, 12.3, right=True).facts == "score 0.873 · 12 m away"
    assert Match(GREY, "a", 0.5, 3.0, "from the first").facts == "score 0.500 · 3.0 m from the first"
    assert Match(GREY, "a").facts == ""


@pytest.mark.parametrize(
    ("distance_m", "text"),
    [(0, "0.0 m"), (9.94, "9.9 m"), (9.96, "10 m"), (25, "25 m"), (999, "999 m"), (999.9, "1.0 km"), (81234, "81 km")],
)
def test_distances_are_written_for_people(distance_m, text):
    assert format_distance(distance_m) == text


@pytest.mark.parametrize("size", [(400, 300), (300, 900), (60, 60)])
def test_regions_are_drawn_in_place_on_the_photo_in_its_own_shape(size):
    boxes = np.array(MEDIUM + SMALL)
    boxes[0] = [0.75, 0.25, 0.4, 0.3]
    picture = regions_picture(Image.new("RGB", size, (128, 128, 128)), boxes)
    scale = 1000 / max(size)
    width, height = round(size[0] * scale), round(size[1] * scale)
    left = (picture.width - width) // 2
    pixels = np.asarray(picture)
    medium = (pixels == ImageColor.getrgb(pictures.MEDIUM_COLOUR)).all(axis=-1)
    # The box's right edge lies at centre x + width / 2 = 0.95 of the photo, its top at 0.10.
    assert medium[round(0.25 * height), left + round(0.95 * (width - 1)) - 2]
    assert medium[round(0.10 * (height - 1)) + 2, left + round(0.75 * width)]
    assert not medium[round(0.25 * height), left + round(0.85 * width)]
    assert count_pixels(picture, pictures.SMALL_COLOUR) > 2000


def test_boxes_beyond_the_photo_are_drawn_as_far_as_it_goes():
    boxes = np.array(MEDIUM + SMALL)
    boxes[:, :2] += 0.4
    boxes[5, 2:] = -0.2
    assert count_pixels(regions_picture(GREY, boxes, title="t"), pictures.MEDIUM_COLOUR) > 500


@pytest.mark.parametrize("boxes", [np.zeros((4, 4)), np.zeros((1, 13, 4)), np.full((13, 4), np.nan)])
def test_boxes_that_are_none_are_refused(boxes):
    with pytest.raises(ValueError, match=r"region_boxes has shape .* must be \(13, 4\)"):
        regions_picture(GREY, boxes)


def test_thumbnail_keeps_the_shape():
    assert thumbnail(Image.new("RGB", (1000, 200)), 300, 225).size == (300, 60)
    assert thumbnail(Image.new("L", (10, 1000)), 300, 225).size == (2, 225)
