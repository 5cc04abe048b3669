"""A folder's photos, names and positions belong together."""

import os
import unicodedata

import numpy as np
import pytest

from d2vpr_hf.photos.folder import list_images, read_photo_folder
from d2vpr_hf.photos.images import UnreadableImage, open_image
from d2vpr_hf.protocols.positives import read_positives
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
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        read_photo_folder(tmp_path / "nowhere")


def test_thumbnails_of_a_nas_are_no_photos(tmp_path):
    for name in ("1.jpg", "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "b/@eaDir/2.jpg/SYNOPHOTO_THUMB_M.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(0).save(tmp_path / name)
    (tmp_path / "#recycle").mkdir()
    photo(1).save(tmp_path / "#recycle" / "3.jpg")
    assert read_photo_folder(tmp_path).names == ["1.jpg", "b/2.jpg"]


def test_a_folder_without_permission_is_listed_and_ends_no_walk(tmp_path, monkeypatch):
    for name in ("a/1.jpg", "b/2.jpg"):
        (tmp_path / name).parent.mkdir()
        photo(0).save(tmp_path / name)
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    # As root, who runs the tests in containers, every folder can be read.
    monkeypatch.setattr(os, "scandir", refusing)
    monkeypatch.setattr(os, "access", lambda path, *_: not str(path).endswith("/a"))
    folder = read_photo_folder(tmp_path)
    assert folder.names == ["a", "b/2.jpg"]
    with pytest.raises(UnreadableImage, match="a folder without permission to read it"):
        open_image(folder.paths[0])
    with pytest.raises(PermissionError):
        list_images(tmp_path / "a")


def test_names_that_differ_in_their_accents_spelling_match(tmp_path):
    names = [unicodedata.normalize(form, "café/été.jpg") for form in ("NFD", "NFC")]
    assert names[0] != names[1]
    for on_disk, in_table in (names, names[::-1]):
        root = tmp_path / str(len(on_disk))
        (root / on_disk).parent.mkdir(parents=True)
        photo(0).save(root / on_disk)
        (tmp_path / "places.csv").write_text(f"path,lat,lon\n{in_table},48,16\n")
        folder = read_photo_folder(root, positions=tmp_path / "places.csv")
        assert folder.positions.latitude.tolist() == [48.0]
        (rows,) = read_positives({on_disk: [in_table]}, database_names=[on_disk], query_names=[in_table])
        assert rows.tolist() == [0]
