"""What a photo's EXIF says: which side is up, where it was taken, and when."""

import re
import struct
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image

_MOMENT = re.compile(r"(\d{4}):(\d\d):(\d\d) (\d\d):(\d\d):(\d\d)")
# What Pillow raises of a damaged EXIF.
_DAMAGED = (ValueError, SyntaxError, TypeError, KeyError, OSError, struct.error)


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 (upright) where there is none or EXIF itself is damaged."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGED:
        return 1
    return found if found in range(1, 9) else 1


def read_degrees(exif: Image.Exif) -> tuple[float, float]:
    """Latitude and longitude; nan where they are missing or can't be."""
    try:
        gps, tags = exif.get_ifd(ExifTags.IFD.GPSInfo), ExifTags.GPS
        latitude = _signed(gps[tags.GPSLatitude], gps[tags.GPSLatitudeRef], "NS")
        longitude = _signed(gps[tags.GPSLongitude], gps[tags.GPSLongitudeRef], "EW")
    except (*_DAMAGED, ZeroDivisionError):
        return np.nan, np.nan
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or (latitude == 0 and longitude == 0):
        return np.nan, np.nan
    return latitude, longitude


def read_time(exif: Image.Exif) -> str:
    """When the photo was taken, as YYYYMMDD_hhmmss; nothing where EXIF doesn't say."""
    text = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    found = _MOMENT.match(str(text))
    return "{}{}{}_{}{}{}".format(*found.groups()) if found else ""


def _signed(parts: Sequence[float], reference: str | bytes, names: str) -> float:
    """Degrees from degrees, minutes and seconds (the last may be missing) and a letter of `names`, + then -."""
    letter = (reference.decode("ascii", "replace") if isinstance(reference, bytes) else reference).strip("\0 ").upper()
    sign = {names[0]: 1, names[1]: -1}[letter]
    return sign * sum(float(part) / 60**place for place, part in enumerate(parts))
