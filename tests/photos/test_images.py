"""Files to pixels: what is listed, what is decoded, and what is refused and why."""

import io
import os
import socket
import struct
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from d2vpr_hf.files import path_to_text, text_to_path
from d2vpr_hf.photos import images
from d2vpr_hf.photos.folder import list_images
from d2vpr_hf.photos.images import UnreadableImage, decode_image, open_image, read_exif
from tests.broken_photos import (
    BROKEN_KINDS,
    GOOD_KINDS,
    damaged_inside,
    encoded,
    photo,
    png_of_size,
    write_broken,
    write_good,
)

REASONS = {
    "empty": "empty file",
    "text": "not an image",
    "truncated-jpeg": "cut short",
    "truncated-png": "cut short",
    "damaged-inside": "damaged",
    "bomb": "decompression bomb",
    "header-alone": "cut short|damaged",
    "link-to-nothing": "link to nothing",
    "folder": "a folder, not a file",
    "pipe": "a named pipe, not a file",
}


@pytest.mark.parametrize("number", range(len(GOOD_KINDS)), ids=GOOD_KINDS)
def test_every_kind_of_photo_is_upright_rgb_and_looks_right(tmp_path, number):
    image = open_image(write_good(tmp_path, number))
    original = photo(number)
    kind = GOOD_KINDS[number].split(".")[0]
    if kind == "rotated":
        original = original.transpose(Image.Transpose.ROTATE_270)
    if kind in ("grey", "16bit", "1bit"):
        original = original.convert("L").convert("RGB")
    assert image.mode == "RGB"
    assert image.size == original.size
    # Shrunk, so that dithering and compression average out and shape and colour remain.
    seen, expected = (np.asarray(one.resize((12, 12), 4)).astype(float) for one in (image, original))
    assert np.abs(seen - expected).mean() < 12
    assert np.corrcoef(seen.ravel(), expected.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_pixels_equal_pil(tmp_path, mode, options):
    path = tmp_path / "photo.jpg"
    photo(3, 77, 101).convert(mode).save(path, quality=83, **options)
    expected = np.asarray(Image.open(path).convert("RGB"))
    assert expected.std() > 10
    np.testing.assert_array_equal(np.asarray(open_image(path)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(1).save(tmp_path / "photo.jpg", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "photo.jpg"))
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "photo.jpg")), np.asarray(expected))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", BROKEN_KINDS)
def test_broken_files_are_refused_with_a_reason(tmp_path, kind, number):
    path = write_broken(tmp_path, number, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImage, match=REASONS[kind]) as caught:
            open_image(path)
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)


def test_a_folder_of_good_and_broken_photos_comes_apart(tmp_path):
    good = [write_good(tmp_path, number) for number in range(len(GOOD_KINDS))]
    broken = [write_broken(tmp_path, number, kind) for number, kind in enumerate(BROKEN_KINDS)]
    read = []
    refused = []
    for path in list_images(tmp_path):
        try:
            open_image(path)
            read.append(path)
        except UnreadableImage:
            refused.append(path)
    assert sorted(read) == sorted(good)
    assert sorted(refused) == sorted(broken)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("filler", ["zeros", "ones", "random"])
def test_damage_in_the_middle_is_seen(kind, filler):
    random = np.random.default_rng(0)
    unseen = 0
    for number in range(40):
        data = encoded(photo(number, 240, 320), kind)
        length = int(random.integers(200, 2000))
        fill = {"zeros": bytes(length), "ones": b"\xff" * length, "random": random.bytes(length)}[filler]
        decode_image(data, "whole")
        try:
            decode_image(damaged_inside(data, fill), "damaged")
            unseen += 1
        except UnreadableImage:
            pass
    assert unseen == 0


def test_a_few_bytes_before_the_end_mark_are_harmless():
    data = encoded(photo(2))
    assert data.endswith(b"\xff\xd9")
    padded = decode_image(data[:-2] + bytes(4) + data[-2:], "padded")
    np.testing.assert_array_equal(np.asarray(padded), np.asarray(decode_image(data, "plain")))
    with pytest.raises(UnreadableImage, match="damaged"):
        decode_image(data[:-2] + bytes(40) + data[-2:], "padded more")


def test_bytes_after_the_end_are_harmless():
    for kind in ("JPEG", "PNG"):
        data = encoded(photo(2), kind)
        np.testing.assert_array_equal(
            np.asarray(decode_image(data + bytes(1000), "longer")), np.asarray(decode_image(data, "plain"))
        )


def test_flat_skies_are_no_damage():
    """Evenly coloured JPEGs with tables of their own hold long runs of zeros that are right."""
    sky = Image.new("RGB", (2000, 1500), (250, 250, 250))
    sky.paste(photo(0), (900, 1400))
    for options in ({}, {"optimize": True}, {"progressive": True}, {"quality": 30, "optimize": True}):
        for image in (sky, sky.convert("L")):
            assert decode_image(encoded(image, **options), "sky").size == sky.size


def test_large_photos_pass_and_bombs_do_not(monkeypatch):
    # With a limit of 10,000 pixels, 12,000 to 20,000 are allowed to files with a byte for each 32 pixels.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(encoded(photo(0, 120, 150), "PNG"), "large photo").size == (150, 120)
        with pytest.raises(UnreadableImage, match="bomb"):
            decode_image(png_of_size(150, 120), "small file")
        with pytest.raises(UnreadableImage, match="bomb"):
            decode_image(encoded(photo(0, 150, 150), "PNG"), "more than twice the limit")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_no_permission_is_a_reason(tmp_path):
    path = write_good(tmp_path, 0)
    path.chmod(0)
    with pytest.raises(UnreadableImage, match="no permission"):
        open_image(path)


def test_missing_files_sockets_and_foreign_formats_are_reasons(tmp_path, monkeypatch):
    with pytest.raises(UnreadableImage, match="no such file"):
        open_image(tmp_path / "never.jpg")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        with pytest.raises(UnreadableImage, match="a socket"):
            open_image("socket.jpg")
    (tmp_path / "drawing.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    with pytest.raises(UnreadableImage, match="not an image"):
        open_image(tmp_path / "drawing.jpg")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(UnreadableImage, match="HEIC"):
        open_image(tmp_path / "phone.heic")


def test_damaged_exif_does_not_lose_the_photo():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(0), exif=exif)
    start = data.index(b"Exif\0\0") + 6
    broken = data[:start] + b"\xff" * 20 + data[start + 20 :]
    assert decode_image(broken, "photo").mode == "RGB"


def test_listing_is_recursive_sorted_and_shows_what_is_broken(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".thumbnails").mkdir()
    folder = tmp_path / "a folder.jpg"
    folder.mkdir()
    for name in (
        "b/deep/2.JPG",
        "b/1.jpeg",
        "c.png",
        "a folder.jpg/inside.jpg",
        ".hidden.jpg",
        ".thumbnails/t.jpg",
        "notes.txt",
    ):
        photo(0).save(tmp_path / name, "JPEG")
    (tmp_path / "d.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "e.jpg")
    (tmp_path / "b" / "round").symlink_to(tmp_path)
    expected = ["a folder.jpg", "b/1.jpeg", "b/deep/2.JPG", "c.png", "d.jpg", "e.jpg"]
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == expected
    with pytest.raises(NotADirectoryError, match=r"notes\.txt"):
        list_images(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    "name", [b"new\nline.jpg", b"caf\xe9.jpg", "@é ö 場.jpg".encode(), b"back\\xslash.jpg", b"lit\\xe9.jpg"]
)
def test_odd_names_are_read_and_become_text_and_back(tmp_path, name):
    folder = tmp_path / "a@b c"
    folder.mkdir()
    path = os.fsencode(folder) + b"/" + name
    with open(path, "wb") as file:  # noqa: PTH123 - a name in bytes
        file.write(encoded(photo(0)))
    (listed,) = list_images(folder)
    assert open_image(listed).size == (120, 90)
    text = path_to_text(listed)
    text.encode("utf-8")
    assert os.fsencode(text_to_path(text)) == path


def test_a_png_with_a_broken_part_beside_the_picture_is_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(photo(0), "PNG", exif=exif)
    start = whole.index(b"eXIf")
    broken = whole[: start + 8] + b"\xff\xff\xff" + whole[start + 11 :]
    # Its checksum is wrong, so that nobody knows which side is up.
    np.testing.assert_array_equal(np.asarray(decode_image(broken, "photo.png")), np.asarray(photo(0)))
    assert decode_image(whole, "photo.png").size == photo(0).size[::-1]


def png_with(parts, *, behind=False, **options) -> bytes:
    """A PNG with more parts, of right checksums, before or behind its picture."""
    data = encoded(photo(0), "PNG", **options)
    place = len(data) - 12 if behind else 33
    more = (
        struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text)) for kind, text in parts
    )
    return data[:place] + b"".join(more) + data[place:]


@pytest.mark.parametrize(
    "parts",
    [
        [(b"tEXt", b"Raw profile type exif\0\nexif\n4\nzz")],
        [(b"tEXt", b"transparency\0a")],
        [(b"tEXt", b"Comment\0" + b"a" * 1_000_000)] * 70,
        [(b"zTXt", b"Comment\0\7a")],
        [(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**21)))],
        [(b"iCCP", b"")],
        [(b"iCCP", b"name\0\7a")],
        *([(kind, b"\0")] for kind in (b"pHYs", b"gAMA", b"cHRM", b"acTL", b"fcTL")),
        [(b"sRGB", b"")],
    ],
    ids=lambda parts: f"{parts[0][0].decode()} {parts[0][1][:12]!r}",
)
def test_what_is_odd_beside_the_picture_of_a_png_does_not_lose_it(parts):
    for behind in (False, True):
        np.testing.assert_array_equal(decode_image(png_with(parts, behind=behind), "photo.png"), photo(0))


def test_exif_and_xmp_in_texts_of_a_png_turn_the_photo():
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = b"\nexif\n8\n" + exif.tobytes().hex().encode()
    xmp = b'<x tiff:Orientation="6"/>'
    for part in (
        (b"tEXt", b"Raw profile type exif\0" + raw),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(xmp)),
    ):
        for behind in (False, True):
            assert decode_image(png_with([part], behind=behind), "photo.png").size == photo(0).size[::-1]


def cut_inside(kind: str, **options) -> list[bytes]:
    """Files that end before their picture does, by a little and by much."""
    data = encoded(photo(0, 240, 320), kind, **options)
    return [data[: len(data) - 3], data[: len(data) * 2 // 3]]


@pytest.mark.parametrize(
    "cut",
    [*cut_inside("GIF"), *cut_inside("JPEG2000"), *cut_inside("TIFF", compression="tiff_adobe_deflate")],
    ids=["GIF a little", "GIF", "JPEG2000 a little", "JPEG2000", "TIFF a little", "TIFF"],
)
def test_what_ends_before_its_picture_is_refused(cut):
    with pytest.raises(UnreadableImage, match=r"cut short|damaged"):
        decode_image(cut, "photo")


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_deflate"])
def test_a_checksum_of_deflated_tiff_is_compared(compression):
    data = encoded(photo(0, 240, 320), "TIFF", compression=compression)
    decode_image(data, "photo.tif")
    with Image.open(io.BytesIO(data)) as image:
        ends = [start + length for start, length in zip(image.tag_v2[273], image.tag_v2[279], strict=True)]
    for end in ends:
        flipped = data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:]
        with pytest.raises(UnreadableImage, match="damaged"):
            decode_image(flipped, "photo.tif")


@pytest.mark.parametrize("filler", [bytes(64), b"\xff" * 64, bytes(range(200))], ids=["zeros", "ones", "others"])
def test_damage_in_a_deflated_tiff_is_seen(filler):
    for number in range(20):
        data = encoded(photo(number, 240, 320), "TIFF", compression="tiff_adobe_deflate")
        with pytest.raises(UnreadableImage, match="damaged"):
            decode_image(damaged_inside(data, filler), "photo.tif")


def test_the_largest_page_of_a_tiff_is_taken(tmp_path):
    pages = [photo(0, 30, 40), photo(1, 240, 320), photo(2, 60, 80)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "pages.tif")), np.asarray(pages[1]))


def grey_alpha_png(side: int) -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 4, 0, 0, 0))]
    rows = zlib.compressobj(9)
    body = b"".join(rows.compress(bytes(1 + 2 * side)) for _ in range(side)) + rows.flush()
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IDAT", body), (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_a_small_file_below_the_pixel_limit_does_not_unfold_to_gigabytes():
    screen = encoded(Image.new("P", (9000, 9000)), "GIF")
    for data in (grey_alpha_png(9400), screen):
        with pytest.raises(UnreadableImage, match="decompression bomb"):
            decode_image(data, "small file")
    # A drawing of 4 megapixels may be as flat as it likes.
    assert decode_image(grey_alpha_png(2000), "drawing").size == (2000, 2000)


def test_a_large_photo_waits_for_other_threads(monkeypatch):
    monkeypatch.setattr(images, "_PIXELS_IN_FLIGHT", 20_000)
    data, running, most = encoded(photo(0, 120, 150), "PNG"), [0], [0]
    original = images._upright_rgb

    def watched(*arguments):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        running[0] -= 1
        return original(*arguments)

    monkeypatch.setattr(images, "_upright_rgb", watched)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda _: decode_image(data, "photo").size, range(24)))
    assert sizes == [(150, 120)] * 24
    assert most == [1]


def test_what_libraries_print_and_warn_of_goes_to_the_log_with_the_name(capfd, caplog, recwarn):
    data = bytearray(encoded(photo(0, 240, 320), "TIFF", compression="tiff_lzw"))
    data[300:340] = b"\xff" * 40
    with pytest.raises(UnreadableImage, match=r"photo\.tif: damaged"):
        decode_image(bytes(data), "photo.tif")
    whole = encoded(photo(0), "TIFF", compression="tiff_adobe_deflate")
    with pytest.raises(UnreadableImage, match=r"cut\.tif: damaged"):
        decode_image(whole[:-3], "cut.tif")
    assert capfd.readouterr().err == ""
    assert "photo.tif: " in caplog.text
    assert "cut.tif: " in caplog.text
    assert not recwarn.list


def test_what_pillow_warns_of_in_exif_goes_to_the_log_with_the_name(tmp_path, caplog, recwarn):
    cut_short = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0"
    (tmp_path / "photo.avif").write_bytes(data := encoded(photo(0), "AVIF", exif=cut_short))
    recwarn.clear()
    for read in (lambda: read_exif(tmp_path / "photo.avif"), lambda: decode_image(data, "photo.avif")):
        caplog.clear()
        read()
        assert "photo.avif: Corrupt EXIF data" in caplog.text
    assert not recwarn.list


def test_dark_16_bit_photos_stay_dark():
    for kind, mode in (("PPM", np.int32), ("PNG", np.uint16), ("TIFF", np.uint16)):
        dark = np.full((20, 20), 200, np.uint16)
        assert np.asarray(decode_image(encoded(Image.fromarray(dark.astype(mode)), kind), "dark")).max() == 0
