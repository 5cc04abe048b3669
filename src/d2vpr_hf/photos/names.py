"""The field's file names, which say where a photo was taken: `@easting@northing@zone@letter@lat@lon@...@.jpg`.

Source: naming scheme of the deep visual geo-localization benchmark (Berton et al., CVPR 2022).
"""

import math
import os
import re
from dataclasses import astuple, dataclass

from ..files import path_to_text

# UTM's bands of 8 degrees from 80 degrees south on; the last reaches to 84 degrees north.
_BANDS = "CDEFGHJKLMNPQRSTUVWXX"
# Fixed widths: digits before the point, and after it.
_METRES, _LATITUDE, _LONGITUDE = (7, 2), (3, 5), (4, 5)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
# A zone reaches from 166,000 to 834,000 m at the equator; some sets go on a little in the neighbour's.
_MOST_EASTING, _MOST_NORTHING = 1_000_000, 10_000_000


@dataclass(frozen=True)
class UtmName:
    """The fields of a name, as text; what isn't known is empty."""

    easting: str = ""
    northing: str = ""
    zone: str = ""
    letter: str = ""
    latitude: str = ""
    longitude: str = ""
    panorama: str = ""
    tile: str = ""
    heading: str = ""
    pitch: str = ""
    roll: str = ""
    height: str = ""
    time: str = ""
    note: str = ""

    @classmethod
    def read(cls, path: str | os.PathLike) -> "UtmName | None":
        """The fields of a base name; None for a name of another form, or with words where a place's numbers belong."""
        parts = path_to_text(path).rpartition("/")[2].split("@")  # folders may have an "@" of their own
        if len(parts) < 8 or parts[0]:
            return None
        name = cls(*(part.strip() for part in parts[1:15]))
        place = (name.easting, name.northing, name.zone, name.latitude, name.longitude)
        return name if all(not text or _is_number(text) for text in place) else None

    @classmethod
    def of_place(
        cls, easting: float, northing: float, zone: int, latitude: float, longitude: float, **more: str
    ) -> "UtmName":
        """The name of a place in numbers, NaN and zone 0 where they aren't known; `more` are the other fields."""
        banded = zone > 0 and -80 <= latitude <= 84
        return cls(
            _padded(easting, *_METRES),
            _padded(northing, *_METRES),
            f"{zone:02d}" if zone else "",
            _BANDS[int((latitude + 80) // 8)] if banded else "",
            _padded(latitude, *_LATITUDE),
            _padded(longitude, *_LONGITUDE),
            **more,
        )

    def __str__(self) -> str:
        return f"@{'@'.join(astuple(self))}@.jpg"

    def number(self, field: str) -> float:
        """A field as a number; NaN where it is empty, infinite or something else, such as 1_000 or digits not ASCII."""
        text = getattr(self, field)
        plain = text.isascii() and "_" not in text and _is_number(text)
        return float(text) if plain and math.isfinite(float(text)) else math.nan

    @property
    def metres(self) -> tuple[float, float] | None:
        """Easting and northing, NaN where one is empty; None where they can't be right, or the band's letter can't."""
        texts = (self.easting, self.northing)
        if not all(texts):
            return math.nan, math.nan
        if not all(_DECIMAL.fullmatch(text) for text in texts) or not re.fullmatch("[A-Za-z]*", self.letter):
            return None
        easting, northing = map(float, texts)
        if not self.zone:  # metres along a track, which may begin anywhere
            return (easting, northing) if max(abs(easting), abs(northing)) <= _MOST_NORTHING else None
        return (easting, northing) if 0 <= easting <= _MOST_EASTING and 0 <= northing <= _MOST_NORTHING else None

    @property
    def iso_time(self) -> str | None:
        """`20130501_1230` as `2013-05-01T12:30`; None for what isn't `YYYYMMDD_hhmmss` or a beginning of it."""
        found = re.fullmatch(r"(\d{4})(?:(\d\d)(?:(\d\d)(?:_(\d\d)(?:(\d\d)(\d\d)?)?)?)?)?", self.time)
        if not found:
            return None
        year, month, day, hour, minute, second = found.groups()
        date = "-".join(part for part in (year, month, day) if part)
        # ISO 8601 has no time of hours alone.
        clock = ":".join(part for part in (hour, minute or "00", second) if part) if hour else ""
        return f"{date}T{clock}" if clock else date


def _padded(number: float, before: int, after: int) -> str:
    """Fixed width: (5.5, 3, 2) gives 005.50, a minus sign comes in addition; nothing for NaN."""
    return "" if math.isnan(number) else f"{'-' if number < 0 else ''}{abs(number):0{before + 1 + after}.{after}f}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
