"""Who made descriptors, and whether rows of two makers may stand side by side."""

import json
from pathlib import Path
from typing import Any

# What must be equal for rows to stand side by side, and how an error calls it.
_COMPARED = {"weight_hash": "weights or descriptor_dim (--dim)", "processor": "processor", "dtype": "dtype"}


def difference(there: Any, now: Any) -> str:
    """Two settings that differ, in short: of dicts the entries that differ, of hashes the first digits."""
    if isinstance(there, dict) and isinstance(now, dict):
        names = [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]
        return "; ".join(f"{name} {there.get(name)!r}, now {now.get(name)!r}" for name in names)
    return f"{str(there)[:8]}, now {str(now)[:8]}"


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """What keeps rows of two makers apart, in words; empty if nothing does."""
    return ", ".join(
        f"{called} {difference(there.get(entry), now.get(entry))}"
        for entry, called in _COMPARED.items()
        if there.get(entry) != now.get(entry)
    )


def read_about(path: Path) -> dict[str, Any]:
    """What `descriptors.json` says, with all that `Descriptors.load` takes from it."""
    remedy = "Run the same command again to write it anew."
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} isn't JSON in UTF-8 ({error}): it is truncated or was changed. {remedy}") from error
    kinds = {"model_name": str, "weight_hash": str, "processor": dict | None, "dtype": str | None, "skipped": list}
    wrong = [
        name
        for name, kind in kinds.items()
        if not isinstance(about, dict) or name not in about or not isinstance(about[name], kind)
    ]
    pairs = [] if wrong else about["skipped"]
    if wrong or not all(isinstance(each, list) and [type(text) for text in each] == [str, str] for each in pairs):
        raise ValueError(f"{path} has no usable {', '.join(wrong) or 'skipped'}. {remedy}")
    return about
