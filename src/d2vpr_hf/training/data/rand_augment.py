"""RandAugment as the field trains with it, on PIL images: 14 operations of one magnitude, drawn with equal chance."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

BINS = 31
_STRONGEST_SHEAR = 0.3
_STRONGEST_TURN_DEG = 30.0
# Of the width or height: 150 pixels of the 331 that the ranges were first made for.
_STRONGEST_SHIFT = 150 / 331
_STRONGEST_ENHANCEMENT = 0.9
_FEWEST_BITS = 4


def rand_augment(
    image: Image.Image, random: np.random.Generator, *, operations: int = 3, magnitude: int = 15
) -> Image.Image:
    """The RGB image after some operations in a row, each drawn anew; what they bring in from outside is black.

    Args:
        magnitude: 0 (next to nothing, except by autocontrast and equalize, which have none) to 30.

    Source: RandAugment (Cubuk et al., 2020), with the operations and ranges of torchvision, which GSV-Cities and its
        successors use with 3 operations, bilinear.
    """
    for name in random.choice(list(OPERATIONS), size=operations):
        signed = random.choice((-1, 1))
        image = OPERATIONS[name](image, magnitude / (BINS - 1), signed)
    return image


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _shear_x(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, sign * strength * _STRONGEST_SHEAR, 0, 0, 1, 0)


def _shear_y(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0, 0, sign * strength * _STRONGEST_SHEAR, 1, 0)


def _translate_x(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0, sign * int(strength * _STRONGEST_SHIFT * image.width), 0, 1, 0)


def _translate_y(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return _affine(image, 1, 0, 0, 0, 1, sign * int(strength * _STRONGEST_SHIFT * image.height))


def _rotate(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return image.rotate(sign * strength * _STRONGEST_TURN_DEG, Image.Resampling.BILINEAR)


def _enhance(kind: type) -> "Operation":
    def operation(image: Image.Image, strength: float, sign: int) -> Image.Image:
        return kind(image).enhance(1 + sign * strength * _STRONGEST_ENHANCEMENT)

    return operation


def _posterize(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(strength * _FEWEST_BITS))


def _solarize(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return ImageOps.solarize(image, 255 * (1 - strength))


Operation = Callable[[Image.Image, float, int], Image.Image]
# Each takes the image, its strength from 0 to 1, and in which of two directions to go where there are two.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, sign: image,
    "shear x": _shear_x,
    "shear y": _shear_y,
    "translate x": _translate_x,
    "translate y": _translate_y,
    "rotate": _rotate,
    "brightness": _enhance(ImageEnhance.Brightness),
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
}
