"""What EXIF says counts if it has its type and range; nothing in it ends a run."""

import math
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from d2vpr_hf.panoramas.cut import cut_panoramas
from d2vpr_hf.photos.exif import Exif
from d2vpr_hf.photos.images import open_image, read_exif
from d2vpr_hf.photos.positions import Positions
from tests.broken_photos import encoded, photo

ASCII, SHORT, LONG, RATIONAL, SRATIONAL = 2, 3, 4, 5, 10
SIZES = {ASCII: "B", SHORT: "H", LONG: "I", RATIONAL: "II", SRATIONAL: "ii"}


def directory(entries: list[tuple[int, int, bytes]], at: int) -> bytes:
    """A TIFF directory at an offset, and the values that it points to."""
    table, values = struct.pack("<H", len(entries)), b""
    behind = at + 2 + 12 * len(entries) + 4
    for tag, kind, value in entries:
        count = len(value) // struct.calcsize(f"<{SIZES[kind]}")
        place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", behind + len(values))
        values += value if len(value) > 4 else b""
        table += struct.pack("<HHI", tag, kind, count) + place
    return table + bytes(4) + values


def exif_with_gps(gps: list[tuple[int, int, bytes]]) -> bytes:
    main = directory([(0x8825, LONG, struct.pack("<I", 8 + 18))], 8)
    return b"Exif\0\0II*\0\x08\0\0\0" + main + directory(gps, 8 + 18)


def rationals(*parts: float, kind: str = "I") -> bytes:
    return b"".join(struct.pack(f"<{kind}{kind}", round(part * 1000), 1000) for part in parts)


SOUTH, EAST = (2, RATIONAL, rationals(33, 51, 24)), (4, RATIONAL, rationals(151, 12, 0))
GOOD = [(1, ASCII, b"S\0"), SOUTH, (3, ASCII, b"E\0"), EAST]


def test_degrees_minutes_and_seconds():
    exif = Exif.of(exif_with_gps(GOOD))
    assert exif.latitude == pytest.approx(-(33 + 51 / 60 + 24 / 3600))
    assert exif.longitude == pytest.approx(151.2)


@pytest.mark.parametrize(
    "change",
    [
        (2, SRATIONAL, rationals(-33, 51, 24, kind="i")),
        (2, RATIONAL, rationals(33, 51, 2400)),
        (2, RATIONAL, rationals(33, 510, 24)),
        (2, RATIONAL, rationals(91, 0, 0)),
        (2, RATIONAL, rationals(33, 51, 24, 1)),
        (2, RATIONAL, struct.pack("<II", 33, 0)),
        (2, SHORT, struct.pack("<HHH", 33, 51, 24)),
        (2, ASCII, b"33 51 24\0"),
        (1, SHORT, struct.pack("<H", 83)),
        (1, ASCII, b"Q\0"),
        (3, ASCII, b"N\0"),
    ],
)
def test_a_number_of_a_wrong_type_or_range_makes_the_place_unknown(change, tmp_path):
    exif = exif_with_gps(sorted([change, *(entry for entry in GOOD if entry[0] != change[0])]))
    assert math.isnan(Exif.of(exif).latitude)
    assert math.isnan(Exif.of(exif).longitude)
    paths = [tmp_path / "odd.jpg", tmp_path / "good.jpg"]
    photo(0).save(paths[0], exif=exif)
    photo(1).save(paths[1], exif=exif_with_gps(GOOD))
    # One photo's EXIF neither ends the run nor changes the other's place.
    assert Positions.from_photos(paths).known.tolist() == [False, True]


def test_no_bytes_of_exif_raise_or_give_a_place_that_is_none(recwarn):
    random = np.random.default_rng(0)
    whole, known = exif_with_gps(GOOD), 0
    for _ in range(3000):
        data = bytearray(whole)
        for place in random.integers(6, len(data), random.integers(1, 6)):
            data[place] = random.integers(256)
        exif = Exif.of(bytes(data[: random.integers(len(data))] if random.random() < 0.2 else data))
        known += not math.isnan(exif.latitude)
        assert math.isnan(exif.latitude) == math.isnan(exif.longitude)
        assert math.isnan(exif.latitude) or (abs(exif.latitude) <= 90 and abs(exif.longitude) <= 180)
        assert exif.orientation in range(1, 9)
    assert 100 < known < 2900
    assert not recwarn.list


def gps_image_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:05:06 07:08:09"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({1: "S", 2: (IFDRational(33), IFDRational(30), IFDRational(0))})
    exif.get_ifd(ExifTags.IFD.GPSInfo).update({3: "E", 4: (IFDRational(151), IFDRational(0), IFDRational(0))})
    again = Image.Exif()
    again.load(exif.tobytes())
    return again


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_every_format_that_holds_exif_gives_its_place_and_time(suffix, tmp_path):
    path = tmp_path / f"photo.{suffix}"
    photo(0).save(path, exif=gps_image_exif())
    exif = read_exif(path)
    assert (exif.latitude, exif.longitude, exif.time) == (-33.5, 151.0, "20240506_070809")
    assert Positions.from_photos([path]).known.all()


def test_exif_behind_the_picture_of_a_png_is_found(tmp_path):
    photo(0).save(tmp_path / "photo.png", exif=gps_image_exif())
    data = (tmp_path / "photo.png").read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4])
    (tmp_path / "photo.png").write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert read_exif(tmp_path / "photo.png").latitude == -33.5


def test_a_tiff_panorama_with_exif_is_cut(tmp_path):
    photo(0, 64, 128).save(tmp_path / "sphere.tif", exif=gps_image_exif())
    views = cut_panoramas(tmp_path / "sphere.tif", tmp_path / "out", headings=2, height=8, width=8, progress=False)
    assert all("@20240506_070809@" in path.name for path in views.paths)
    assert Positions.from_names(views.paths).known.all()


def test_an_orientation_in_xmp_alone_turns_the_photo(tmp_path):
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    data = encoded(photo(0))
    part = b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp
    (tmp_path / "photo.jpg").write_bytes(data[:2] + part + data[2:])
    assert open_image(tmp_path / "photo.jpg").size == photo(0).size[::-1]
