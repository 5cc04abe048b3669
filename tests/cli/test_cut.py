"""`d2vpr cut`: panoramas in, named views out."""

import json

import numpy as np
import pytest
from PIL import Image

from d2vpr_hf.cli.main import main


@pytest.fixture
def panorama(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "market.png")
    return tmp_path / "market.png"


def test_views_are_written_and_counted(panorama, tmp_path, capsys):
    words = ["--headings", "3", "--pitch-deg", "10", "--field-deg", "60", "--size", "20", "30", "--device", "cpu"]
    assert main(["cut", str(panorama), str(tmp_path / "views"), *words]) == 0
    out, err = capsys.readouterr()
    assert out == f"3 views of 1 panorama in {tmp_path / 'views'} (0 skipped)\n"
    assert "cutting" in err
    names = sorted(path.name for path in (tmp_path / "views").iterdir())
    assert names == [f"@@@@@@@market@@{turn}@010@@@@@.jpg" for turn in ("000", "120", "240")]
    views = [np.asarray(Image.open(tmp_path / "views" / name), np.float32) for name in names]
    assert {view.shape for view in views} == {(20, 30, 3)}
    assert np.abs(views[0] - views[1]).mean() > 10


def test_json_lists_views_and_what_was_skipped(panorama, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert main(["cut", str(tmp_path), str(tmp_path / "views"), "--headings", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["views"]) == 2
    assert Image.open(result["views"][0]).size == (640, 480)
    assert [each["path"] for each in result["skipped"]] == [str(tmp_path / "broken.jpg")]
    panorama.unlink()
    assert main(["cut", str(tmp_path / "broken.jpg"), str(tmp_path / "views")]) == 1
    assert main(["cut", str(panorama), str(tmp_path / "views")]) == 2
    assert "isn't there" in capsys.readouterr().err
