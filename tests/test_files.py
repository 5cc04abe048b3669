"""Files are written whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from d2vpr_hf.files import path_to_text, replace_file, replacing, replacing_folder, text_to_path


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_link_leads_to_its_file_afterwards_and_a_pipe_is_written_to(tmp_path):
    real, link, pipe = replace_file(tmp_path / "real.txt", "old"), tmp_path / "link.txt", tmp_path / "pipe"
    link.symlink_to(real)
    replace_file(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    folder, leading = tmp_path / "folder", tmp_path / "leading"
    folder.mkdir()
    leading.symlink_to(folder)
    with replacing_folder(leading, overwrite=True) as draft:
        (draft / "a").write_text("a")
    assert leading.is_symlink()
    assert [each.name for each in folder.iterdir()] == ["a"]
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    replace_file(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.skipif(os.name == "nt", reason="names of Windows are text")
def test_each_path_has_a_text_of_its_own_and_the_text_gives_it_back(tmp_path):
    names = [
        b"caf\xe9.jpg",
        b"caf\\xe9.jpg",
        b"caf\\x5cxe9.jpg",
        b"\\\xe9",
        b"\\\\x41",
        b"a\\b",
        b"\\x",
        b"\\x5c",
        "é".encode(),
    ]
    texts = [path_to_text(os.fsdecode(name)) for name in names]
    assert len(set(texts)) == len(names)
    assert texts[0] == "caf\\xe9.jpg"
    assert [os.fsencode(text_to_path(text)) for text in texts] == names
    # With all of them on the disk too, where each other's names lie in wait.
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):  # noqa: PTH118, PTH123 - names in bytes
            pass
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)  # noqa: PTH118 - as above
        assert os.fsencode(text_to_path(path_to_text(os.fsdecode(path)))) == path


def test_a_text_of_before_still_gives_its_file(tmp_path):
    (tmp_path / "caf\\xe9.jpg").touch()
    assert text_to_path(f"{tmp_path}/caf\\xe9.jpg") == tmp_path / "caf\\xe9.jpg"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOSPC, "No space left on device", "source.jpg"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_names_the_file_that_is_written(tmp_path, error):
    def fill(folder):
        with replacing_folder(folder) as draft, replacing(draft / "page.html") as file:
            file.write(b"x")
            raise error

    with pytest.raises(OSError, match="No space left on device") as caught:
        fill(tmp_path / "folder")
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename).name == "page.html"
    assert not (tmp_path / "folder").exists()


def test_other_errors_keep_the_file_that_they_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"), replacing(tmp_path / "page.html") as file:
        file.write((tmp_path / "gone.jpg").read_bytes())
