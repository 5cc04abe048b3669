"""What messages and tables say alike: the nearest known name, the first few of a list, shares and distances."""

import difflib
import re
from collections.abc import Collection, Iterable


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """' Did you mean X?' for the end of a message; nothing where no known name resembles it."""
    close = difflib.get_close_matches(str(name), [str(each) for each in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def first_few(items: Collection[object], count: int = 3) -> str:
    """The first of a list, and how many more there are: 'a, b, c and 4 more'."""
    shown = ", ".join(str(item) for item, _ in zip(items, range(count), strict=False))
    return f"{shown} and {len(items) - count} more" if len(items) > count else shown


def printable(text: str) -> str:
    """The text with control characters as escapes such as \\x1b, so that names from a file can't steer a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda hit: f"\\x{ord(hit[0]):02x}", text)


def percent(share: float, digits: int = 1) -> str:
    """A fraction in [0, 1] for people: '87.5 %'."""
    return f"{100 * share:.{digits}f} %"


def points(difference: float, interval: tuple[float, float] | None = None) -> str:
    """A difference of two shares for people, in percentage points: '+5.4 (+2.1 to +8.6)'."""
    if interval is None:
        return f"{100 * difference:+.1f}"
    low, high = interval
    return f"{points(difference)} ({points(low)} to {points(high)})"


def format_distance(distance_m: float) -> str:
    """A distance for people: "0.4 m", "12 m", "3.4 km", "812 km"."""
    if distance_m < 9.95:
        return f"{distance_m:.1f} m"
    if distance_m < 999.5:
        return f"{distance_m:.0f} m"
    kilometres = distance_m / 1000
    return f"{kilometres:.1f} km" if kilometres < 9.95 else f"{kilometres:.0f} km"
