"""A folder's photos, names and positions belong together."""

import numpy as np
import pytest

from d2vpr_hf.photos.folder import read_photo_folder
from tests.broken_photos import photo, write_broken


def test_paths_names_and_positions_correspond(tmp_path):
    easting = {"b/2.jpg": 500_002.0, "a@b/1.jpg": 500_001.0, "c.jpg": 500_003.0}
    for name, metres in easting.items():
        folder = (tmp_path / name).parent
        folder.mkdir(exist_ok=True)
        photo(0).save(folder / f"@{metres:.2f}@4000000.00@33@U@@@@@@@@{(tmp_path / name).stem}@@@.jpg")
    write_broken(tmp_path, 0, "pipe")
    folder = read_photo_folder(str(tmp_path))
    assert len(folder) == 4
    assert [tmp_path / name for name in folder.names] == folder.paths
    for name, metres in zip(folder.names, folder.positions.easting, strict=True):
        assert np.isnan(metres) if "pipe" in name else f"@{metres:.2f}@" in name
    assert folder.positions.known.sum() == 3


def test_a_table_gives_positions_by_relative_path(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        photo(0).save(tmp_path / "photos" / name / "1.jpg")
    (tmp_path / "places.csv").write_text("path,lat,lon\nb/1.jpg,48,16\na/1.jpg,-33,151\n")
    folder = read_photo_folder(tmp_path / "photos", positions=tmp_path / "places.csv")
    assert dict(zip(folder.names, folder.positions.latitude, strict=True)) == {"a/1.jpg": -33.0, "b/1.jpg": 48.0}


def test_a_name_that_is_no_utf8_has_a_name_in_text(tmp_path):
    path = bytes(tmp_path) + b"/caf\xe9.jpg"
    with open(path, "wb") as file:  # noqa: PTH123 - a name in bytes
        photo(0).save(file, "JPEG")
    folder = read_photo_folder(tmp_path)
    assert folder.names == ["caf\\xe9.jpg"]
    assert folder.paths[0].exists()


def test_a_folder_without_photos_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(ValueError, match="holds no photo"):
        read_photo_folder(tmp_path)
    with pytest.raises(NotADirectoryError, match="is no folder"):
        read_photo_folder(tmp_path / "nowhere")
