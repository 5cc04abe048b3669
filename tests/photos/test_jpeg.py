"""JPEG files as cameras write them open whatever a decoder warns of; what takes too long, or is damaged, doesn't."""

import struct

import numpy as np
import pytest
from PIL import Image

from d2vpr_hf.photos.images import UnreadableImage, decode_image, read_exif
from d2vpr_hf.photos.jpeg import Jpeg
from tests.broken_photos import damaged_inside, encoded, photo


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data, "photo.jpg"))


def part(mark: int, content: bytes) -> bytes:
    return bytes((0xFF, mark)) + struct.pack(">H", len(content) + 2) + content


def odd_scan(data: bytes) -> bytes:
    """The scan's three last numbers as Samsung's cameras write them, which libjpeg warns of."""
    start = data.index(b"\xff\xda")
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
    return data[: end - 3] + b"\0\0\0" + data[end:]


HARMLESS = {
    "scan parameters of a Samsung": odd_scan,
    "an unknown JFIF revision": lambda data: data.replace(b"JFIF\0\x01", b"JFIF\0\x07"),
    "an unknown Adobe transform": lambda data: data[:2] + part(0xEE, b"Adobe\0\x64\0\0\0\0\x09") + data[2:],
    "a broken ICC profile": lambda data: data[:2] + part(0xE2, b"ICC_PROFILE\0\x09\x02broken") + data[2:],
    "a few bytes between its parts": lambda data: data.replace(b"\xff\xdb", bytes(5) + b"\xff\xdb", 1),
    "fill bytes": lambda data: data[:2] + b"\xff" * 5000 + data[2:],
    "no end mark": lambda data: data[:-2],
    "a second picture behind": lambda data: data + encoded(photo(5)),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_warnings_that_leave_the_pixels_whole_pass(change, mode):
    data = encoded(photo(3, 240, 320).convert(mode))
    odd = change(data)
    assert odd != data or mode == "L"
    np.testing.assert_array_equal(pixels(odd), pixels(data))


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_a_harmless_warning_hides_no_damage(change):
    random = np.random.default_rng(0)
    for number in range(10):
        data = encoded(photo(number, 240, 320))
        with pytest.raises(UnreadableImage):
            decode_image(change(damaged_inside(data, random.bytes(400))), "photo.jpg")
        if change is not HARMLESS["a second picture behind"]:
            with pytest.raises(UnreadableImage):
                decode_image(change(data[: len(data) * 2 // 3]), "photo.jpg")


def test_a_progressive_file_without_its_end_is_cut_short():
    data = encoded(photo(3, 240, 320), progressive=True)
    assert pixels(data).any()
    with pytest.raises(UnreadableImage, match="cut short"):
        decode_image(data[:-2], "photo.jpg")


def test_more_scans_than_a_photo_has_are_refused():
    data = encoded(photo(3, 240, 320), progressive=True)
    scan = part(0xDA, b"\x01\x01\x00\x01\x3f\x00")  # empty: the first component's fine frequencies again
    with pytest.raises(UnreadableImage, match="scans or more, which take too long"):
        decode_image(data[:-2] + scan * 2000 + data[-2:], "photo.jpg")
    size = data.index(b"\xff\xc2") + 5
    large = data[:size] + struct.pack(">HH", 9000, 9000) + data[size + 4 :]
    with pytest.raises(UnreadableImage, match="17 scans or more"):
        decode_image(large[:-2] + scan * 20 + large[-2:] + bytes(10**7), "photo.jpg")


def test_more_bytes_before_the_picture_than_a_photo_has_are_refused(tmp_path):
    data = encoded(photo(3))
    path = tmp_path / "photo.jpg"
    for filling in (b"\xff" * 40_000_000, part(0xE1, bytes(65_000)) * 600, part(0xFE, b"") * 20_000):
        path.write_bytes(data[:2] + filling + data[2:])
        with pytest.raises(UnreadableImage, match=r"bytes before the picture|more than \d+ parts"):
            decode_image(path.read_bytes(), path)
        assert read_exif(path).orientation == 1


def test_exif_behind_large_parts_is_found(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(3), exif=exif)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data[:2] + part(0xE4, bytes(65_000)) * 6 + data[2:])
    assert read_exif(path).orientation == 6
    assert pixels(path.read_bytes()).shape == (120, 90, 3)


def test_parts_are_those_of_the_file():
    jpeg = Jpeg.read(encoded(photo(3, 240, 320)))
    assert (jpeg.size, jpeg.components, jpeg.is_whole) == ((320, 240), 3, True)
    assert len(jpeg.picture) <= len(encoded(photo(3, 240, 320)))
