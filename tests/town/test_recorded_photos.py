"""Towns and views by default settings are the same to the byte as they were when these digests were taken.

Models were trained on such photos by seed alone, and tests and the demo count hits on them: a change of the drawing
goes behind an option. Another version of torch may round otherwise, and then photos differ by a level here and there.
"""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf.panoramas.cut import cut_panoramas
from d2vpr_hf.panoramas.training_views import cut_training_views
from d2vpr_hf.town.make import make_town

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
        ({"places": 2, "views": 3, "queries": 12}, "4b5c157a950517d30bc10dbcdadeb405734d0db6b0831ed8c4be6648b2ceff1c"),
        (
            {"places": 2, "views": 6, "seed": 74010, "layout": "gsv"},
            "3e19596b0a4124613978b428a2b1d522a3eba1deee16c6ff4dcd87b302914d9e",
        ),
        (
            {"places": 1, "views": 2, "seed": 5, "layout": "plain", "queries": 4, "batch_size": 3},
            "e7708415743f652705725ecc34f9a8bdedc605c8ea1ac5a8a8c460a856e88431",
        ),
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
    assert digest(tmp_path / "views") == "6c63dd23893da25e0d2d69b3b46e2a5215ef9e70dc953f5395774b5852ea277e"
    assert digest(tmp_path / "places") == "2bd1ccb3dac20a902edb77de7b2847fa6e2b85ab5e39360dafbc4d5e8fecb058"
    assert digest(tmp_path / "revisited") == "2c439aedd474da675850e692579cd804fbcb0f61a24a5b9f7566b236e6fbb0b3"
