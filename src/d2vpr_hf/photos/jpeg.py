"""The parts of a JPEG file: what a decoder needs, without what makes it warn or takes it long."""

import re
from dataclasses import dataclass

# Bytes, marks and scans before or in the picture of which no camera writes as many.
_MOST_BYTES_BEFORE = 2**24
_MOST_MARKS = 10_000
_MOST_SCANS = 100
# A progressive file has some 10 scans, each of which takes a large photo's decoder a good part of a second.
_SCANS_OF_LARGE, _LARGE_PIXELS = 16, 10**9
# Some programs leave a few bytes between the parts.
_HARMLESS_BYTES = 8
_BLANK_BYTES = 64
_START, _END, _SCAN, _TABLE, _JFIF, _EXIF, _ADOBE = 0xD8, 0xD9, 0xDA, 0xC4, 0xE0, 0xE1, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARK = re.compile(rb"\xff([^\x00\xff])")
_MARK_AFTER_SCAN = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")


class BrokenJpeg(ValueError):  # noqa: N818 - reads as what it is
    """Why a JPEG file can't be used, in a few words."""


@dataclass
class Jpeg:
    """A JPEG file that was read up to its picture's end; nothing is decoded.

    Attributes:
        picture: the file without EXIF, thumbnails and notes, and with headers as the standard has them, where cameras
            write others to no effect: a decoder has nothing to warn of but damage.
        size: width and height.
        components: 1 for grey, 3 for colours, 4 for CMYK.
        exif, xmp: what is written of the photo.
        is_whole: whether the end mark is there, or the picture where it alone was looked for.
    """

    picture: bytes = b""
    size: tuple[int, int] = (0, 0)
    components: int = 0
    exif: bytes = b""
    xmp: bytes = b""
    is_whole: bool = False
    _progressive: bool = False
    _scans: int = 0
    _first_scan: int = 0
    _end_of_block_first: bool = True

    @classmethod
    def read(cls, data: bytes, *, headers_only: bool = False) -> "Jpeg":
        """The parts of a file.

        Args:
            data: the file.
            headers_only: stop at the picture, or at the end of the data if that comes first.

        Raises: BrokenJpeg if it has more than a photo has, or no picture.
        """
        jpeg, kept, position = cls(), bytearray(b"\xff\xd8"), 2
        for _ in range(_MOST_MARKS):
            found = (_MARK_AFTER_SCAN if jpeg._scans else _MARK).search(data, position)
            if jpeg._scans:
                kept += data[position : found.start() if found else len(data)]
            elif position > _MOST_BYTES_BEFORE or (found and found.end() > _MOST_BYTES_BEFORE):
                raise BrokenJpeg(
                    f"{found.end() if found else position} bytes before the picture, more than any photo has"
                )
            elif found and len(data[position : found.start()].replace(b"\xff", b"")) > _HARMLESS_BYTES:
                raise BrokenJpeg("damaged: its header has gaps")
            if not found or found[1][0] == _END:
                jpeg.is_whole = found is not None
                break
            mark, start = found[1][0], found.end()
            length = int.from_bytes(data[start : start + 2])
            if mark in (0x01, _START, *range(0xD0, 0xD8)):  # marks without a content
                kept += found[0] if jpeg._scans else b""
                position = start
                continue
            position = start + length
            if length < 2 or position > len(data):
                break
            if mark == _SCAN and headers_only:
                jpeg.is_whole = True
                return jpeg
            content = jpeg._take(mark, bytearray(data[start + 2 : position]))
            if content is not None:
                kept += bytes((0xFF, mark)) + data[start : start + 2] + content
            if mark == _SCAN:
                jpeg._count_scan(len(kept))
        else:
            raise BrokenJpeg(f"more than {_MOST_MARKS} parts, which no photo has")
        if not headers_only and not (jpeg._scans and jpeg.components):
            raise BrokenJpeg("damaged: its JPEG header breaks off or is all there is")
        if not headers_only and not jpeg.is_whole and jpeg._progressive:
            raise BrokenJpeg("cut short: the rest of the picture is missing")
        jpeg.picture = bytes(kept + b"\xff\xd9")
        return jpeg

    def _take(self, mark: int, content: bytearray) -> bytearray | None:
        """What is kept of a part; None where a decoder doesn't need it."""
        if mark in _FRAMES and len(content) >= 6:
            self.size = (int.from_bytes(content[3:5]), int.from_bytes(content[1:3]))
            self.components, self._progressive = content[5], mark not in (0xC0, 0xC1)
        elif mark == _TABLE:
            self._note_tables(content)
        elif mark == _SCAN and not self._progressive and len(content) >= 3:
            content[-3:] = (0, 63, 0)  # what a picture in one go has there, whatever some cameras write
        elif mark == _EXIF and content.startswith(b"Exif\0"):
            self.exif += content[6:] if self.exif else content
        elif mark == _EXIF and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            self.xmp += content
        if self._scans or not (_JFIF <= mark <= 0xEF or mark == 0xFE):
            return content
        if mark == _JFIF and content.startswith(b"JFIF\0") and len(content) >= 14:
            content[5] = 1
            return content
        if mark == _ADOBE and content.startswith(b"Adobe") and len(content) >= 12:
            content[11] = content[11] if content[11] <= 2 else 2 if self.components == 4 else 1
            return content
        return None

    def _count_scan(self, position: int) -> None:
        self._scans += 1
        self._first_scan = self._first_scan or position
        pixels = self._scans * self.size[0] * self.size[1]
        if self._scans > _MOST_SCANS or (self._scans > _SCANS_OF_LARGE and pixels > _LARGE_PIXELS):
            raise BrokenJpeg(f"{self._scans} scans or more, which take too long to decode")

    def _note_tables(self, content: bytearray) -> None:
        table = 0
        while table + 17 <= len(content):
            if content[table] == 0x10:  # the AC table that luma uses
                self._end_of_block_first = table + 17 < len(content) and content[table + 17] == 0
            table += 17 + sum(content[table + 1 : table + 17])

    @property
    def has_hole(self) -> bool:
        """Whether the picture's data has a run of zeros that no encoder writes.

        A lost disk block reads as zeros, which libjpeg decodes without complaint as noise. In most files the
        shortest luma code, all zeros, isn't 'end of block', so such a run would mean several blocks in a row with
        all 63 frequencies at -1. In the other files, and in progressive ones, zeros are flat blocks, which an evenly
        white sky has too.
        """
        if self._progressive or self._end_of_block_first:
            return False
        return self.picture.find(bytes(_BLANK_BYTES), self._first_scan) >= 0
