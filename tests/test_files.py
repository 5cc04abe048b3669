"""Files are written whole or not at all."""

import pytest

from d2vpr_hf.files import replace_file


def test_writing_replaces_the_file_whole_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "page.html"
    replace_file(path, "first")
    assert replace_file(path, "näme \udcff") == path
    assert path.read_bytes() == "näme \\udcff".encode()
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = replace_file(tmp_path / "page.html", "old")

    def fail(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
