"""What a photo's EXIF says: which side is up, where it was taken, and when.

It is read here because Pillow takes numbers of any type, and warns or raises wherever a file is damaged. Here only what
has its right type and range counts, and everything else is as if it weren't there.
"""

import math
import re
import struct
from dataclasses import dataclass
from typing import Any

_MOMENT = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])\b')
_ORIENTATION, _DATE_TIME, _EXIF, _GPS, _ORIGINAL = 0x0112, 0x0132, 0x8769, 0x8825, 0x9003
_ASCII, _SHORT, _LONG, _RATIONAL, _IFD = 2, 3, 4, 5, 13
_BYTES = {_ASCII: 1, _SHORT: 2, _LONG: 4, _RATIONAL: 8, _IFD: 4}
# More entries, or longer values, than any camera writes.
_MOST_ENTRIES, _MOST_BYTES = 1000, 1000


@dataclass(frozen=True)
class Exif:
    """What is known of a photo.

    Attributes:
        orientation: 1 to 8; 1 is upright.
        latitude, longitude: degrees; NaN where they aren't known. What cameras write before they know, 0 N 0 E, isn't.
        time: when it was taken, as YYYYMMDD_hhmmss; empty where it isn't known.
        xmp: the XMP packet beside it, in which programs write what EXIF has no tag for.
    """

    orientation: int = 1
    latitude: float = math.nan
    longitude: float = math.nan
    time: str = ""
    xmp: bytes = b""

    @classmethod
    def of(cls, data: bytes, xmp: bytes = b"") -> "Exif":
        """What an EXIF block, or a TIFF file, says; its orientation by XMP where EXIF has none."""
        data = data.removeprefix(b"Exif\0\0")
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
        if order is None or len(data) < 8:
            order, data = "<", bytes(10)
        main = _tags(data, order, struct.unpack_from(f"{order}I", data, 4)[0])
        places = [main.get(tag) for tag in (_EXIF, _GPS)]
        places = [main.get(tag) for tag in (_EXIF, _GPS)]
        detail, gps = (_tags(data, order, place) if type(place) is int else {} for place in places)
        orientation = main.get(_ORIENTATION)
        if orientation is None and (found := _XMP_ORIENTATION.search(xmp)):
            orientation = int(found[1])
        latitude, longitude = _degrees(gps, 1, "NS", 90), _degrees(gps, 3, "EW", 180)
        if math.isnan(latitude + longitude) or (latitude == 0 and longitude == 0):
            latitude = longitude = math.nan
        found = _MOMENT.match(str(detail.get(_ORIGINAL) or main.get(_DATE_TIME)))
        time = "{}{}{}_{}{}{}".format(*found.groups()) if found else ""
        return cls(orientation if orientation in range(1, 9) else 1, latitude, longitude, time, xmp)


def _degrees(gps: dict[int, Any], tag: int, letters: str, most: int) -> float:
    """Degrees from a letter and from degrees, minutes and seconds, the last may be missing; NaN unless good."""
    letter, parts = gps.get(tag), gps.get(tag + 1)
    if letter not in tuple(letters) or not isinstance(parts, tuple) or not 1 <= len(parts) <= 3:
        return math.nan
    degrees = sum(part / 60**place for place, part in enumerate(parts))
    good = all(0 <= part <= limit for part, limit in zip(parts, (most, 60, 60), strict=False)) and degrees <= most
    return degrees * (1 if letter == letters[0] else -1) if good else math.nan


def _tags(data: bytes, order: str, offset: int) -> dict[int, Any]:
    """{tag: text, int, or tuple of fractions} of a directory; what has another type or lies elsewhere is left out."""
    tags: dict[int, Any] = {}
    if offset + 2 > len(data):
        return tags
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    for entry in range(offset + 2, offset + 2 + 12 * min(count, _MOST_ENTRIES), 12):
        if entry + 12 > len(data):
            break
        tag, kind, number, at = struct.unpack_from(f"{order}HHII", data, entry)
        size = _BYTES.get(kind, 0) * number
        at = at if size > 4 else entry + 8
        if not 0 < size <= _MOST_BYTES or at + size > len(data):
            continue
        value = data[at : at + size]
        if kind == _ASCII:
            tags[tag] = value.split(b"\0")[0].decode("ascii", "replace").strip().upper()
        elif kind == _RATIONAL:
            pairs = struct.iter_unpack(f"{order}II", value)
            tags[tag] = tuple(above / below if below else math.nan for above, below in pairs)
        elif number == 1:
            (tags[tag],) = struct.unpack(f"{order}{'H' if kind == _SHORT else 'I'}", value)
    return tags
