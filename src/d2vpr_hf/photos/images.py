"""Opens photos: turns files into upright RGB pixels, or says why one can't be used."""

import io
import logging
import os
import re
import stat
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import simplejpeg
from PIL import (  # isort: split
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

# Each plugin registers its format on import; no other format is ever tried (some, such as EPS, run programs).
from ..files import path_to_text
from ..models.d2vpr.image_processing_d2vpr import to_rgb, upright
from .exif import Exif
from .jpeg import BrokenJpeg, Jpeg

logger = logging.getLogger(__name__)

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
_MAX_FILE_BYTES = 2**30
# A file with fewer bytes for its pixels than this isn't a photo: cameras write at least 1 byte for 20 pixels. Below
# PIL's limit of pixels, where a drawing or a black photo may be, only what no photo comes near is refused.
_PIXELS_PER_BYTE, _PIXELS_PER_BYTE_BELOW, _SMALL_PIXELS = 32, 256, 2**24
# Decoded at the same time by all threads of a process; a larger photo waits until it is alone.
_PIXELS_IN_FLIGHT = 2**28
# As much of a JPEG as nearly always holds its EXIF, and as may hold it.
_HEADER_BYTES, _MOST_HEADER_BYTES = 2**18, 2**24
# Some cameras leave a few bytes before the end marker; what lost its way in damaged data leaves many more.
_HARMLESS_BYTES = 8
_MOST_CHUNKS, _MOST_PAGES = 200_000, 100
_DEFLATE = ("tiff_adobe_deflate", "tiff_deflate")
_IDENTIFIER = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PNG_TEXTS, _MOST_TEXT_BYTES = (b"Raw profile type exif", b"XML:com.adobe.xmp"), 2**20
_XMP = re.compile(rb"<x:xmpmeta.{,65536}?</x:xmpmeta>", re.DOTALL)
_FILE_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnreadableImage(ValueError):  # noqa: N818 - reads as what it is
    """An image that can't be used.

    Attributes:
        path: the file's path as text (see `path_to_text`), or the row number of an image that isn't a file.
        reason: what is wrong with it, in a few words for people.
    """

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        self.path = path_to_text(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}. Repair it or leave it out.")

    def __reduce__(self) -> tuple:
        return type(self), (self.path, self.reason)


def open_image(path: str | Path) -> Image.Image:
    """The photo, upright, RGB and decoded to the last pixel.

    Only a regular file (or a link to one) is ever opened, so that a pipe can't hang the caller.

    Raises: UnreadableImage with the reason, whatever is wrong with the file.
    """
    try:
        _check_file(path)
        return decode_image(Path(path).read_bytes(), path)
    except OSError as error:
        raise UnreadableImage(path, _os_reason(error)) from error


def decode_image(data: bytes, path: str | Path) -> Image.Image:
    """The image that an image file's bytes hold, as `open_image` gives it; `path` only names it in errors.

    A file that decodes only in part is refused: libjpeg fills what it can't decode with grey and PIL doesn't
    compare checksums, and either would give the descriptor of a picture that was never taken. PNG and TIFF's deflate
    have checksums; a cut GIF or JPEG 2000 is seen by its end. What a flipped bit does to the pixels of a JPEG, WebP,
    AVIF, BMP, PPM, GIF or other TIFF can pass unseen. Of a file with several pages the largest is taken.

    Raises: UnreadableImage with the reason.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            jpeg = Jpeg.read(data)
            with _decoding(jpeg.size, len(data), path):
                return _decode_jpeg(jpeg, path)
        is_png = data.startswith(_IDENTIFIER)
        header = _read_header(_picture_of_png(data, path) if is_png else data, path)
        exif = _exif_of_png(data) if is_png else None
        with _decoding(header.size, len(data), path):
            if header.format == "TIFF":
                _check_deflate(header, data)
            elif header.format == "GIF":
                _check_gif(data, path)
            elif header.format == "JPEG2000" and not data.rstrip(b"\0").endswith(b"\xff\xd9"):
                raise UnreadableImage(path, "cut short: the end mark is missing")
            return _upright_rgb(header, exif, path)
    except UnreadableImage:
        raise
    except BrokenJpeg as error:
        raise UnreadableImage(path, str(error)) from error
    # Decoders raise whatever they stumble over (OSError, SyntaxError, struct.error, ...): the file is at fault.
    except Exception as error:
        raise UnreadableImage(path, f"damaged: {_first_line(error)}") from error


def read_exif(path: str | Path) -> Exif:
    """What the photo's EXIF says, without decoding its pixels; nothing of a file that can't be read.

    `open_image` says what is wrong with such a file.
    """
    try:
        _check_file(path)
        with Path(path).open("rb") as file:
            data = file.read(_HEADER_BYTES)
            if not data.startswith(b"\xff\xd8\xff"):
                return _exif_of_others(data + file.read(), path)
            jpeg = Jpeg.read(data, headers_only=True)
            if not jpeg.exif and not jpeg.is_whole:
                data += file.read(_MOST_HEADER_BYTES - _HEADER_BYTES)
                jpeg = Jpeg.read(data, headers_only=True)
            return Exif.of(jpeg.exif, jpeg.xmp)
    # As in decode_image: whatever is raised, the file is at fault.
    except Exception as error:
        logger.debug("no EXIF in %s: %s", path_to_text(path), error)
        return Exif()


def _exif_of_others(data: bytes, path: str | Path) -> Exif:
    """What is written in a file of another format than JPEG."""
    packet = _XMP.search(data)  # found wherever it lies
    xmp = packet[0] if packet else b""
    if data[:4] in (b"II*\0", b"MM\0*"):
        return Exif.of(data, xmp)
    return _exif_of_png(data) if data.startswith(_IDENTIFIER) else _exif_of(_read_header(data, path))


def _exif_of(image: Image.Image) -> Exif:
    """What Pillow has found beside the picture."""
    return Exif.of(image.info.get("exif", b""), image.info.get("xmp", b""))


def _exif_of_png(data: bytes) -> Exif:
    """What is written before or after a PNG's picture, in a part of its own or as text; nothing of damaged parts."""
    parts = {}
    for kind, part, is_whole in _png_chunks(data):
        if is_whole and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
            content = bytes(part[8:-4])
            name, _, text = content.partition(b"\0") if kind != b"eXIf" else (kind, b"", content)
            if name in (b"eXIf", *_PNG_TEXTS):
                parts[name] = _png_text(kind, text)
    exif, raw, xmp = (parts.get(name, b"") for name in (b"eXIf", *_PNG_TEXTS))
    with suppress(ValueError):  # of what isn't hexadecimal
        exif = exif or bytes.fromhex(b"".join(raw.split(b"\n")[3:]).decode("ascii"))
    return Exif.of(exif, xmp)


def _png_text(kind: bytes, text: bytes) -> bytes:
    """The text of a PNG's part, of which what goes before and compression is taken away; empty if it is damaged."""
    is_packed = kind == b"zTXt"
    if is_packed:
        text = text[1:]
    elif kind == b"iTXt":
        is_packed = text[:1] == b"\1"
        text = text[2:].split(b"\0", 2)[-1]  # after a language and the keyword in it
    with suppress(zlib.error):
        return zlib.decompressobj().decompress(text, _MOST_TEXT_BYTES) if is_packed else text
    return b""


def _check_file(path: str | Path) -> None:
    """Refuses what isn't a regular file, before anything opens it."""
    status = Path(path).stat()
    if stat.S_ISDIR(status.st_mode) and not os.access(path, os.R_OK | os.X_OK):
        raise UnreadableImage(path, "a folder without permission to read it")
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableImage(path, f"{_FILE_KINDS.get(stat.S_IFMT(status.st_mode), 'something')}, not a file")
    if status.st_size == 0:
        raise UnreadableImage(path, "empty file")
    if status.st_size > _MAX_FILE_BYTES:
        raise UnreadableImage(path, f"{status.st_size / 2**30:.1f} GiB, more than any photo has")


def _os_reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "link to nothing" if error.filename and Path(error.filename).is_symlink() else "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return f"can't be read: {error.strerror or _first_line(error)}"


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _read_header(data: bytes, path: str | Path) -> Image.Image:
    """The opened image, not yet decoded.

    Image.open does the same, but warns of large images; switching a warning off isn't safe among threads.
    """
    start = data[:64]
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc", b"ftypmsf1") and b"avif" not in start:
        raise UnreadableImage(path, "HEIC, which can't be read here; convert it to JPEG first")
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts(start) is True:
            try:
                # Pillow warns of EXIF that it reads by itself.
                with _complaints_logged(path) if name in ("TIFF", "AVIF") else nullcontext():
                    image = factory(io.BytesIO(data), path_to_text(path))
                    return _largest_page(image) if name == "TIFF" else image
            # As in decode_image: whatever a decoder raises, the file is at fault.
            except Exception as error:
                reason = f"damaged: its {name} header breaks off or is all there is ({_first_line(error)})"
                raise UnreadableImage(path, reason) from error
    raise UnreadableImage(path, f"not an image: its content is none of {', '.join(_FORMATS)}")


def _largest_page(image: Image.Image) -> Image.Image:
    """A TIFF at its largest page, for the first may be a thumbnail."""
    pixels = []
    while len(pixels) < _MOST_PAGES:
        try:
            image.seek(len(pixels))
        except Exception:  # the end, or damage beyond the pages that there are
            break
        pixels.append(image.width * image.height)
    image.seek(int(np.argmax(pixels)))
    return image


@contextmanager
def _decoding(size: tuple[int, int], file_bytes: int, path: str | Path) -> Iterator[None]:
    """Refuses what would fill the memory, by itself or beside what other threads decode."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, size[0] * size[1]
    if limit is not None and (
        pixels > 2 * limit
        or (pixels > limit and file_bytes * _PIXELS_PER_BYTE < pixels)
        or (pixels > _SMALL_PIXELS and file_bytes * _PIXELS_PER_BYTE_BELOW < pixels)
    ):
        raise UnreadableImage(
            path, f"decompression bomb: {file_bytes} bytes that unfold to {size[0]} x {size[1]} pixels"
        )
    flight = _Flight.of_process()
    with flight.turn:
        flight.turn.wait_for(lambda: not flight.pixels or flight.pixels + pixels <= _PIXELS_IN_FLIGHT)
        flight.pixels += pixels
    try:
        yield
    finally:
        with flight.turn:
            flight.pixels -= pixels
            flight.turn.notify_all()


class _Flight:
    """What the threads of a process decode at the moment."""

    _all: ClassVar[dict[int, "_Flight"]] = {}

    def __init__(self) -> None:
        self.pixels = 0
        self.turn = threading.Condition()
        self.complaints = threading.Lock()

    @classmethod
    def of_process(cls) -> "_Flight":
        """That of this process alone: after a fork the parent's threads give nothing back."""
        return cls._all.setdefault(os.getpid(), cls())


def _upright_rgb(image: Image.Image, exif: Exif | None, path: str | Path) -> Image.Image:
    if image.format == "TIFF":  # Pillow turns it by itself
        # libtiff, which prints, is asked by one thread at a time; what was checked before has nothing to print of.
        is_checked = image.info.get("compression") in ("raw", *_DEFLATE)
        with nullcontext() if is_checked else _complaints_logged(path):
            image.load()
        return to_rgb(image)
    image.load()
    if image.format == "PPM" and image.mode == "I":  # 16 bits by its type, however dark it is
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    orientation = (exif or _exif_of(image)).orientation
    image.info = {name: value for name, value in image.info.items() if name == "transparency"}
    return to_rgb(upright(image, orientation))


def _decode_jpeg(jpeg: Jpeg, path: str | Path) -> Image.Image:
    colours = {1: "GRAY", 3: "RGB", 4: "CMYK"}.get(jpeg.components)
    if colours is None:
        raise UnreadableImage(path, f"damaged: a JPEG of {jpeg.components} components")
    try:
        pixels = simplejpeg.decode_jpeg(jpeg.picture, colours)
    except ValueError as error:
        left_over = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(error))
        if not jpeg.is_whole:
            raise UnreadableImage(path, "cut short: the rest of the picture is missing") from error
        if not left_over or int(left_over[1]) > _HARMLESS_BYTES:
            raise UnreadableImage(path, f"damaged in the middle ({_first_line(error)})") from error
        pixels = simplejpeg.decode_jpeg(jpeg.picture, colours, strict=False)
    if jpeg.has_hole:
        raise UnreadableImage(path, "damaged: a run of zeros where the picture should be")
    if colours == "CMYK":  # PIL lets damage pass; its colours are right, though
        image = _read_header(jpeg.picture, path)
    else:
        image = Image.fromarray(pixels[..., 0] if colours == "GRAY" else pixels)
    return to_rgb(upright(image, Exif.of(jpeg.exif, jpeg.xmp).orientation))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bool]]:
    """Each part of a PNG with its kind, and whether its checksum is right; up to the end mark or a cut."""
    position, view = len(_IDENTIFIER), memoryview(data)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            return
        is_whole = zlib.crc32(view[position + 4 : end]) == int.from_bytes(view[end : end + 4])
        yield kind, view[position : end + 4], is_whole
        if kind == b"IEND":
            return
        position = end + 4


def _picture_of_png(data: bytes, path: str | Path) -> bytes:
    """The file's picture alone, without what Pillow might stumble over beside it, such as a text or an animation.

    The checksums of the picture's parts are compared, as Pillow doesn't.
    """
    kept, kind = [_IDENTIFIER], b""
    for number, (kind, part, is_whole) in enumerate(_png_chunks(data)):
        if number > _MOST_CHUNKS:
            raise UnreadableImage(path, f"more than {_MOST_CHUNKS} parts, which no photo has")
        if kind[0] & 0x20 and kind != b"tRNS":  # such as EXIF, which the picture can do without
            continue
        if not is_whole:
            raise UnreadableImage(path, f"damaged: the checksum of part {kind!r} is wrong")
        if kind in _PNG_PICTURE:
            kept.append(part)
    if kind != b"IEND":
        raise UnreadableImage(path, "cut short: the end mark is missing")
    return b"".join(kept)


def _check_deflate(image: Image.Image, data: bytes) -> None:
    """Compares the checksums of a TIFF's deflated parts, as libtiff doesn't.

    Raises: zlib.error if one is wrong.
    """
    if image.info.get("compression") not in _DEFLATE:
        return
    tags = image.tag_v2
    starts, lengths = (tags.get(strips, tags.get(tiles, ())) for strips, tiles in ((273, 324), (279, 325)))
    for start, length in zip(starts, lengths, strict=True):
        unfolding, part = zlib.decompressobj(), data[start : start + length]
        while part:
            unfolding.decompress(part, 2**20)
            part = unfolding.unconsumed_tail
        if not unfolding.eof:
            raise zlib.error("a part of the picture is cut short")


def _check_gif(data: bytes, path: str | Path) -> None:
    """Walks a GIF's blocks to the end of its first picture."""
    flags, position = data[10], 13
    position += 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
    while position + 10 < len(data):
        kind, is_picture = data[position], data[position] == 0x2C
        if kind not in (0x21, 0x2C):
            break
        if is_picture:
            flags = data[position + 9]
            position += 11 + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
        else:
            position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
        if is_picture and position <= len(data):
            return
    raise UnreadableImage(path, "cut short: the end of the picture is missing")


@contextmanager
def _complaints_logged(path: str | Path) -> Iterator[None]:
    """Puts what Pillow warns of, and what libtiff prints, into the log with the photo's name; a photo at a time."""
    lock = _Flight.of_process().complaints
    with lock, tempfile.TemporaryFile() as printed, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        stderr = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            printed.seek(0)
            lines = printed.read().decode("utf-8", "replace").splitlines()
            for line in [*(str(each.message) for each in warned), *lines]:
                logger.warning("%s: %s", path_to_text(path), line)
