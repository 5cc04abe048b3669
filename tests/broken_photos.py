"""Photos of many kinds that can be used, and files of ten kinds that can't."""

import io
import os
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

GOOD_KINDS = (
    "rgb.jpg", "grey.jpg", "cmyk.jpg", "progressive.JPG", "rotated.jpeg", "rgb.png", "palette.png", "alpha.png",
    "16bit.png", "1bit.png", "rgb.webp", "rgb.bmp", "rgb.tif", "palette.gif",
)  # fmt: skip
BROKEN_KINDS = (
    "empty", "text", "truncated-jpeg", "truncated-png", "damaged-inside", "bomb", "header-alone",
    "link-to-nothing", "folder", "pipe",
)  # fmt: skip


def photo(seed: int, height: int = 90, width: int = 120) -> Image.Image:
    """A picture with slopes, edges and texture, so that its JPEG is as dense as a photo's."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = random.normal(0, 12, (height, width, 1))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims this size in 1 bit a pixel and is complete: a few kilobytes of black."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))]
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    chunks += [(b"IDAT", body), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def damaged_inside(data: bytes, filler: bytes) -> bytes:
    """The data with its middle replaced by the filler."""
    start = (len(data) - len(filler)) // 2
    return data[:start] + filler + data[start + len(filler) :]


def write_good(folder: Path, number: int) -> Path:
    """A usable photo; its kind goes round with the number."""
    kind = GOOD_KINDS[number % len(GOOD_KINDS)]
    path, image = folder / f"good {number:03d} {kind}", photo(number)
    if kind == "rotated.jpeg":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
    elif kind == "progressive.JPG":
        image.save(path, "JPEG", progressive=True)
    elif kind == "16bit.png":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        modes = {"grey": "L", "cmyk": "CMYK", "palette": "P", "alpha": "RGBA", "1bit": "1"}
        image.convert(modes.get(kind.split(".")[0], "RGB")).save(path)
    return path


def write_broken(folder: Path, number: int, kind: str) -> Path:
    """Something of the given kind that is named like a photo and is none."""
    random = np.random.default_rng(number)
    path = folder / f"broken {number:03d} {kind}.{'png' if kind == 'truncated-png' else 'jpg'}"
    jpeg = encoded(photo(number))
    if kind == "link-to-nothing":
        path.symlink_to(folder / "gone.jpg")
    elif kind == "folder":
        path.mkdir()
        photo(number).save(path / "inside.jpg")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        png = encoded(photo(number), "PNG")
        content = {
            "empty": b"",
            "text": b"This was never a photo.\n" * (1 + number),
            "truncated-jpeg": jpeg[: int(len(jpeg) * random.uniform(0.4, 0.95))],
            "truncated-png": png[: int(len(png) * random.uniform(0.4, 0.95))],
            "damaged-inside": damaged_inside(jpeg if number % 2 else png, random.bytes(300)),
            "bomb": png_of_size(20_000, 20_000) if number % 2 else png_of_size(12_000, 9_000),
            "header-alone": jpeg[: jpeg.index(b"\xff\xda")] if number % 2 else png[:33],
        }[kind]
        path.write_bytes(content)
    return path
