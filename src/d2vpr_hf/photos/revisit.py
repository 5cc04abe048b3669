"""What changes between two visits to a place, done to a photo: another stand, things in the way, light, and the camera.

The place itself stays as it is: nothing is mirrored, turned upside down or inverted.
"""

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def revisit(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """The RGB image after the changes of CHANGES that come about, each with its probability, in the table's order."""
    for _, probability, change in CHANGES:
        if random.random() < probability:
            image = change(image, random)
    return image


def crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A part of at least half the area, of nearly the same shape, enlarged: nearer, or another camera."""
    width, height = image.size
    share, shape = math.sqrt(random.uniform(0.5, 1)), math.exp(random.uniform(-0.12, 0.12))
    across, down = min(1.0, share * shape) * width, min(1.0, share / shape) * height
    left, top = random.uniform(0, width - across), random.uniform(0, height - down)
    return image.resize(image.size, Image.Resampling.BILINEAR, (left, top, left + across, top + down))


def perspective(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """The corners drawn from up to an eighth further inside, each by itself: another direction."""
    width, height = image.size
    inside = random.uniform(0, 1 / 8, (4, 2))
    towards = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]])
    corners = (np.array([[0, 0], [0, 1], [1, 1], [1, 0]]) + towards * inside) * (width, height)
    matrix = projection(np.array([[0, 0], [0, height], [width, height], [width, 0]], float), corners)
    return image.transform(image.size, Image.Transform.PERSPECTIVE, matrix, Image.Resampling.BILINEAR)


def occlusion(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """One to three dull, rounded shapes on the ground, as parked cars and passers-by are: up to a sixth of it each."""
    width, height = image.size
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for _ in range(random.integers(1, 4)):
        across, down = random.uniform(0.1, 0.45) * width, random.uniform(0.1, 0.37) * height
        left, bottom = random.uniform(-0.3 * across, width - 0.7 * across), random.uniform(0.85, 1.1) * height
        colour = tuple(int(level) for level in random.uniform(20, 200) + random.uniform(-20, 20, 3))
        box = (left, bottom - down, left + across, bottom)
        draw.rounded_rectangle(box, radius=random.uniform(0.1, 0.5) * min(across, down), fill=colour)
        below = (left, bottom - down * random.uniform(0.3, 0.6), left + across, bottom)
        draw.rounded_rectangle(below, radius=4, fill=tuple(level // 2 for level in colour))
    return image


def light(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Brighter or darker, in the shadows more or less than elsewhere, of more or less contrast."""
    gain, gamma = math.exp(random.uniform(-0.5, 0.25)), math.exp(random.uniform(-0.4, 0.4))
    levels = np.clip(gain * (np.arange(256) / 255) ** gamma, 0, 1) * 255
    image = image.point(levels.round().astype(np.uint8).tolist() * 3)
    return ImageEnhance.Contrast(image).enhance(random.uniform(0.6, 1.3))


def colour(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Another white balance, and duller or brighter colours."""
    warmth, tint = random.uniform(-0.2, 0.2), random.uniform(-0.08, 0.08)
    image = _gains(image, (math.exp(warmth), math.exp(tint), math.exp(-warmth)))
    return ImageEnhance.Color(image).enhance(random.uniform(0.3, 1.6))


def night(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Dark with bright things left bright, tinted by a dusk's blue or a lamp's orange, and noisy."""
    levels = (np.arange(256) / 255) ** random.uniform(1.3, 2.2)
    # A night's mean level is about the same, whatever the day's was.
    mean = np.average(levels, weights=image.convert("L").histogram())
    levels *= min(255.0, random.uniform(25, 65) / max(mean, 1e-3))
    image = image.point(levels.round().astype(np.uint8).tolist() * 3)
    warmth = random.uniform(0.1, 0.4) * random.choice((-1, 1))
    image = ImageEnhance.Color(image).enhance(random.uniform(0.2, 0.8))
    return _with_noise(_gains(image, (math.exp(warmth), 1, math.exp(-warmth))), random.uniform(4, 12), random)


def blur(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Out of focus by up to a hundredth of the smaller side."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.002, 0.01) * min(image.size)))


def noise(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """A sensor's noise of 2 to 12 of 255 levels."""
    return _with_noise(image, random.uniform(2, 12), random)


def jpeg(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Stored as JPEG of quality 20 to 70 and read again."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(random.integers(20, 71)))
    return Image.open(buffer).convert("RGB")


def _gains(image: Image.Image, gains: tuple[float, float, float]) -> Image.Image:
    levels = np.clip(np.multiply.outer(gains, np.arange(256)), 0, 255)
    return image.point(levels.round().astype(np.uint8).ravel().tolist())


def _with_noise(image: Image.Image, deviation: float, random: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    noisy = pixels + np.float32(deviation) * random.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def projection(target: np.ndarray, source: np.ndarray) -> list[float]:
    """PIL's eight numbers of the projection that takes (4, 2) points of the result to those of the image."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(rows), np.array(values)).tolist()


# (name, probability, change): where one stands, what stands there, what light there is, and how the camera sees it.
CHANGES: tuple[tuple[str, float, Change], ...] = (
    ("crop", 0.5, crop),
    ("perspective", 0.5, perspective),
    ("occlusion", 0.3, occlusion),
    ("light", 0.7, light),
    ("colour", 0.5, colour),
    ("night", 0.2, night),
    ("blur", 0.2, blur),
    ("noise", 0.2, noise),
    ("jpeg", 0.3, jpeg),
)
