"""Towns and views by default settings are the same to the byte as they were when these digests were taken.

Models were trained on such photos by seed alone, and tests and the demo count hits on them: a change of the drawing goes
behind an option. Another version of torch may round otherwise, and then photos differ by a level here and there.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf import cut_panoramas, cut_training_views, make_town

TORCH, PROCESSORS = "2.13.0", ("AVX2", "AVX512")
same_arithmetic = pytest.mark.skipif(
    torch.__version__.partition("+")[0] != TORCH or torch.backends.cpu.get_cpu_capability() not in PROCESSORS,
    reason=f"taken with torch {TORCH} on {' or '.join(PROCESSORS)}",
)


def digest(folder: Path) -> str:
    """Of the names and bytes of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode())
            total.update(path.read_bytes())
    return total.hexdigest()


@same_arithmetic
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"places": 2, "views": 3, "queries": 12}, "UTM"),
        ({"places": 2, "views": 6, "seed": 74010, "layout": "gsv"}, "GSV"),
        ({"places": 1, "views": 2, "seed": 5, "layout": "plain", "queries": 4, "batch_size": 3}, "PLAIN"),
    ],
)
def test_towns_are_drawn_as_before(arguments, expected, tmp_path):
    make_town(tmp_path / "town", **arguments, height=72, width=96)
    assert digest(tmp_path / "town") == expected


@same_arithmetic
def test_views_are_cut_as_before(tmp_path):
    heading, pitch = np.linspace(0, 20, 256), np.linspace(0, 9, 128)[:, None]
    waves = [np.sin(heading * rate) * np.cos(pitch * rate) for rate in (1, 2.3, 5.1)]
    (tmp_path / "in").mkdir()
    Image.fromarray(((np.stack(waves, -1) + 1) * 127).round().astype(np.uint8)).save(tmp_path / "in" / "p.png")
    size = {"height": 48, "width": 64, "progress": False}
    cut_panoramas(tmp_path / "in", tmp_path / "views", headings=3, pitch_deg=8, **size)
    cut_training_views(tmp_path / "in", tmp_path / "places", sectors=3, views_per_sector=2, **size)
    cut_training_views(tmp_path / "in", tmp_path / "revisited", sectors=2, views_per_sector=2, revisited=True, **size)
    assert digest(tmp_path / "views") == "VIEWS"
    assert digest(tmp_path / "places") == "PLACES"
    assert digest(tmp_path / "revisited") == "REVISITED"
