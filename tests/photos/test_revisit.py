import numpy as np
from broken_photos import photo
from PIL import Image

from d2vpr_hf.photos import revisit as changes
from d2vpr_hf.photos.revisit import CHANGES, revisit

IMAGE = photo(3, 112, 140)


def pixels(image):
    return np.asarray(image).astype(float)


def test_each_change_is_seeded_keeps_the_size_and_differs():
    for name, probability, change in CHANGES:
        results = [change(IMAGE, np.random.default_rng(seed)) for seed in (0, 0, 1)]
        assert {(image.mode, image.size) for image in results} == {("RGB", IMAGE.size)}
        assert np.array_equal(results[0], results[1])
        assert not np.array_equal(results[0], results[2]), name
        assert not np.array_equal(results[0], IMAGE), name
        # What changes leaves the place recognisable: a thumbnail looks more like its own than like its mirror image.
        small, same = (pixels(image.convert("L").resize((8, 8))).ravel() for image in (results[0], IMAGE))
        mirrored = same.reshape(8, 8)[:, ::-1].ravel()
        assert np.corrcoef(small, same)[0, 1] > max(0.4, np.corrcoef(small, mirrored)[0, 1]), name
        assert 0 < probability < 1


def test_changes_come_about_with_their_probability(monkeypatch):
    came = []
    table = tuple(
        (name, share, lambda image, random, name=name: came.append(name) or image) for name, share, _ in CHANGES
    )
    monkeypatch.setattr(changes, "CHANGES", table)
    random = np.random.default_rng(0)
    for _ in range(2000):
        revisit(IMAGE, random)
    for name, share, _ in CHANGES:
        assert abs(came.count(name) / 2000 - share) < 0.04


def test_crop_and_perspective_show_nothing_from_outside():
    white = Image.new("RGB", (120, 90), "white")
    for seed in range(30):
        for change in (changes.crop, changes.perspective):
            # Bilinear sampling may reach half a pixel beyond the outermost corner.
            assert (np.asarray(change(white, np.random.default_rng(seed)))[1:-1, 1:-1] == 255).all()


def test_perspective_brings_its_four_corners_to_the_picture():
    corners = np.array([[0, 0], [0, 8], [6, 8], [6, 0]], float)
    seen = np.array([[1, 2], [0.5, 7], [5, 6], [6, 1]])
    a, b, c, d, e, f, g, h = changes.projection(corners, seen)
    for (x, y), point in zip(corners, seen, strict=True):
        scale = g * x + h * y + 1
        np.testing.assert_allclose(((a * x + b * y + c) / scale, (d * x + e * y + f) / scale), point)


def test_night_is_dark_and_day_may_be_brighter():
    nights = [pixels(changes.night(IMAGE, np.random.default_rng(seed))).mean() for seed in range(20)]
    assert all(15 < level < 85 for level in nights)
    days = [pixels(changes.light(IMAGE, np.random.default_rng(seed))).mean() for seed in range(20)]
    assert min(days) < pixels(IMAGE).mean() < max(days)


def test_occlusion_stands_on_the_ground():
    for seed in range(20):
        hidden = (pixels(changes.occlusion(IMAGE, np.random.default_rng(seed))) != pixels(IMAGE)).any(axis=2)
        assert 0.005 < hidden.mean() < 0.5
        assert not hidden[: int(0.45 * IMAGE.height)].any()
