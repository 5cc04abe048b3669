"""Opens photos: turns files into upright RGB pixels, or says why one can't be used."""

import io
import logging
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import simplejpeg
from PIL import (  # isort: split
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    ExifTags,
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
from ..models.d2vpr.image_processing_d2vpr import to_rgb
from .exif import orientation

logger = logging.getLogger(__name__)

_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
_MAX_FILE_BYTES = 2**30
# A file with fewer bytes for its pixels than this is no photo: cameras write at least 1 byte for 20 pixels.
_PIXELS_PER_BYTE = 32
# Some cameras leave a few bytes before the end marker; what lost its way in damaged data leaves many more.
_HARMLESS_BYTES = 8
_BLANK_BYTES = 64
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
        path: the file's path as text (see `path_to_text`), or the row number of an image that is no file.
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
    compare PNG checksums, and either would give the descriptor of a picture that was never taken. A single
    flipped bit in a JPEG and damage in a WebP or AVIF file, which carry no checksums, can pass unseen.

    Raises: UnreadableImage with the reason.
    """
    try:
        header = _read_header(io.BytesIO(data), path)
        _refuse_bomb(header.size, len(data), path)
        if header.format in ("JPEG", "MPO"):
            return _decode_jpeg(data, header, path)
        if header.format == "PNG":
            _check_png(data, path)
        header.load()
        return to_rgb(header)
    except UnreadableImage:
        raise
    # Decoders raise whatever they stumble over (OSError, SyntaxError, struct.error, ...): the file is at fault.
    except Exception as error:
        raise UnreadableImage(path, f"damaged: {_first_line(error)}") from error


def read_exif(path: str | Path) -> Image.Exif:
    """The photo's EXIF, without decoding its pixels where the format allows; empty if there is none.

    A file that can't be read has none here: `open_image` says what is wrong with it.
    """
    try:
        _check_file(path)
        with Path(path).open("rb") as file:
            header = _read_header(file, path)
            _refuse_bomb(header.size, Path(path).stat().st_size, path)
            return header.getexif()
    # As in decode_image: whatever a decoder raises, the file is at fault.
    except Exception as error:
        logger.debug("no EXIF in %s: %s", path_to_text(path), error)
        return Image.Exif()


def _check_file(path: str | Path) -> None:
    """Refuses what isn't a regular file, before anything opens it."""
    status = Path(path).stat()
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


def _read_header(file: BinaryIO, path: str | Path) -> Image.Image:
    """The opened image, not yet decoded.

    Image.open does the same, but warns of large images; switching a warning off isn't safe among threads.
    """
    start = file.read(64)
    file.seek(0)
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc", b"ftypmsf1") and b"avif" not in start:
        raise UnreadableImage(path, "HEIC, which can't be read here; convert it to JPEG first")
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts(start) is True:
            try:
                return factory(file, path_to_text(path))
            # As in decode_image: whatever a decoder raises, the file is at fault.
            except Exception as error:
                reason = f"damaged: its {name} header breaks off or is all there is ({_first_line(error)})"
                raise UnreadableImage(path, reason) from error
    raise UnreadableImage(path, f"not an image: its content is none of {', '.join(_FORMATS)}")


def _refuse_bomb(size: tuple[int, int], file_bytes: int, path: str | Path) -> None:
    """Refuses what would fill the memory: above twice PIL's limit, or above the limit in too small a file."""
    limit, pixels = Image.MAX_IMAGE_PIXELS, size[0] * size[1]
    if limit is None or pixels <= limit:
        return
    if pixels > 2 * limit or file_bytes * _PIXELS_PER_BYTE < pixels:
        raise UnreadableImage(
            path, f"decompression bomb: {file_bytes} bytes that unfold to {size[0]} x {size[1]} pixels"
        )


def _decode_jpeg(data: bytes, header: Image.Image, path: str | Path) -> Image.Image:
    if header.mode not in ("RGB", "L"):
        simplejpeg.decode_jpeg(data, "CMYK")  # PIL lets damage pass; its colours are right, though
        header.load()
        return to_rgb(header)
    colours = "RGB" if header.mode == "RGB" else "GRAY"
    try:
        pixels = simplejpeg.decode_jpeg(data, colours)
    except ValueError as error:
        left_over = re.search(r"(\d+) extraneous bytes before marker 0xd9", str(error))
        if str(error).startswith("Premature end of"):
            raise UnreadableImage(path, "cut short: the rest of the picture is missing") from error
        if not left_over or int(left_over[1]) > _HARMLESS_BYTES:
            raise UnreadableImage(path, f"damaged in the middle ({_first_line(error)})") from error
        pixels = simplejpeg.decode_jpeg(data, colours, strict=False)
    if _has_hole(data):
        raise UnreadableImage(path, "damaged: a run of zeros where the picture should be")
    image = Image.fromarray(pixels[..., 0] if colours == "GRAY" else pixels)
    image.getexif()[ExifTags.Base.Orientation] = orientation(header)
    return to_rgb(image)


def _has_hole(data: bytes) -> bool:
    """Whether a baseline JPEG's picture data has a run of zeros that no encoder writes.

    A lost disk block reads as zeros, which libjpeg decodes without complaint as noise. In most files the
    shortest luma code, all zeros, isn't 'end of block', so such a run would mean several blocks in a row with
    all 63 frequencies at -1. In the other files zeros are flat blocks, which an evenly white sky has too.
    """
    hole = data.rfind(bytes(_BLANK_BYTES))
    if hole < 0:
        return False
    position, end_of_block_first = 2, True
    while data[position] == 0xFF and position < hole:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4])
        if marker == 0xC2:  # progressive: zeros may be long runs of empty blocks
            return False
        if marker == 0xC4:
            table, end = position + 4, position + 2 + length
            while table < end:
                if data[table] == 0x10:  # the AC table that luma uses
                    end_of_block_first = data[table + 17] == 0
                table += 17 + sum(data[table + 1 : table + 17])
        position += 2 + length
        if marker == 0xDA:
            scan_end = data.find(b"\xff\xd9", position)
            hole = data.find(bytes(_BLANK_BYTES), position, scan_end)
            return hole >= 0 and not end_of_block_first
    return False


def _check_png(data: bytes, path: str | Path) -> None:
    """Compares the checksum of every chunk up to the end mark, which PIL leaves out for the pixels."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise UnreadableImage(path, f"damaged: the checksum of part {kind!r} is wrong")
        if kind == b"IEND":
            return
        position = end + 4
    raise UnreadableImage(path, "cut short: the end mark is missing")
