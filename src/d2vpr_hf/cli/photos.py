"""What the commands say about photos: which of them were skipped, and why."""

from collections import Counter
from collections.abc import Sequence

from .parsing import note

_SHOWN = 10


def report_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    """Tells the person who waits how many photos couldn't be used, and names the first ones with their reasons."""
    if not skipped:
        return
    note(f"skipped {len(skipped)} photo{'s' if len(skipped) > 1 else ''} that can't be used:")
    for path, reason in skipped[:_SHOWN]:
        note(f"  {path}: {reason}")
    if len(skipped) > _SHOWN:
        reasons = Counter(reason.split(":")[0] for _, reason in skipped[_SHOWN:])
        note(
            f"  and {len(skipped) - _SHOWN} more ({', '.join(f'{n} {reason}' for reason, n in reasons.most_common(4))})"
        )


def skipped_json(skipped: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """The skipped photos for `--json`."""
    return [{"path": path, "reason": reason} for path, reason in skipped]
