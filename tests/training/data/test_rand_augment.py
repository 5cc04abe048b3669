import numpy as np
import pytest
from broken_photos import photo
from PIL import Image

from d2vpr_hf.training.data.rand_augment import OPERATIONS, rand_augment

WITHOUT_MAGNITUDE = {"identity", "autocontrast", "equalize"}
ONE_WAY = {"posterize", "solarize"} | WITHOUT_MAGNITUDE


def test_there_are_fourteen_operations_and_each_does_something():
    # Without pure white, which solarize turns at any strength.
    image = photo(0, 224, 224).point(lambda level: min(level, 254))
    assert len(OPERATIONS) == 14
    for name, operation in OPERATIONS.items():
        weak, half, strong, back = (
            np.asarray(operation(image, *how)).astype(int) for how in ((0.0, 1), (0.5, 1), (1.0, 1), (0.5, -1))
        )
        assert half.shape == (224, 224, 3)
        assert np.array_equal(half, image) == (name == "identity")
        changes = [np.abs(each - np.asarray(image)).mean() for each in (weak, half, strong)]
        if name not in WITHOUT_MAGNITUDE:
            assert changes[0] < 0.1 < changes[1] < changes[2], name
        assert np.array_equal(half, back) == (name in ONE_WAY), name


def test_ranges_are_those_of_the_field():
    # A white picture of 331 pixels, so that a shift's longest way is 150 of them; 15 of 30 is half of everything.
    white = Image.new("RGB", (331, 331), "white")
    shifted = np.asarray(OPERATIONS["translate x"](white, 1.0, 1))[0, :, 0]
    assert (shifted == 0).sum() == 150
    sheared = np.asarray(OPERATIONS["shear y"](white, 1.0, 1))[:, -1, 0]
    assert (sheared == 0).sum() == pytest.approx(0.3 * 331, abs=1)
    bits = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    levels = [len(np.unique(OPERATIONS["posterize"](Image.fromarray(bits), strength, 1))) for strength in (0, 0.5, 1)]
    assert levels == [256, 64, 16]
    turned = np.asarray(OPERATIONS["solarize"](Image.fromarray(bits), 0.5, 1))[..., 0].ravel()
    assert turned.tolist() == [*range(128), *range(127, -1, -1)]
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    bright = [np.asarray(OPERATIONS["brightness"](grey, 0.5, sign))[0, 0, 0] for sign in (-1, 1)]
    assert bright == [55, 145]


def test_every_operation_is_drawn_about_equally_often(monkeypatch):
    drawn = dict.fromkeys(OPERATIONS, 0)
    for name in OPERATIONS:

        def count(image, strength, sign, name=name):
            assert strength == 0.5
            assert sign in (-1, 1)
            drawn[name] += 1
            return image

        monkeypatch.setitem(OPERATIONS, name, count)
    random = np.random.default_rng(0)
    for _ in range(1000):
        rand_augment(Image.new("RGB", (2, 2)), random)
    # 3,000 draws of 14: 214 each with a deviation of 14.
    assert sum(drawn.values()) == 3000
    assert all(150 < count < 280 for count in drawn.values())
