"""A benchmark that went through Parquet is the same elsewhere, without the files it was made of."""

import shutil

import protocol_trees as trees
import pyarrow.parquet as pq
import pytest
from datasets import DatasetDict, load_dataset

from d2vpr_hf.protocols.export import export_protocol
from d2vpr_hf.protocols.table import load_protocol


@pytest.fixture
def pitts(tmp_path):
    root = tmp_path / "pitts30k"
    trees.utm(zone=17)(root)
    trees.write_photo(root / "images/test/queries" / trees.utm_name(900.0, zone=17))
    return load_protocol("pitts30k-test", root, cache_dir=tmp_path / "cache")


def test_an_export_gives_the_same_rows_and_positives(pitts, tmp_path):
    before = {side: list(split) for side, split in pitts.items()}
    files = {row["path"]: (tmp_path / "pitts30k/images/test" / side / row["path"]).read_bytes()
             for side, rows in before.items() for row in rows}  # fmt: skip
    folder = export_protocol(pitts, tmp_path / "export")
    shutil.rmtree(tmp_path / "pitts30k")
    shutil.rmtree(tmp_path / "cache")
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "other"))
    assert list(loaded) == ["database", "queries"]
    assert loaded["queries"]["positives"][:] == [*trees.NEAR, []]
    assert loaded["database"]["positives"][:] == [None] * 3
    for side, split in loaded.items():
        assert split.features == pitts[side].features
        for ours, theirs in zip(split, before[side], strict=True):
            assert ours["image"].tobytes() == theirs["image"].tobytes()
            assert {**ours, "image": None} == {**theirs, "image": None}
    # The photos are inside as they were on disk, to the byte, and no path of this machine is.
    table = pq.read_table(folder / "data/queries-00000.parquet")
    for row in table.to_pylist():
        assert row["image"]["bytes"] == files[row["path"]]
        assert row["image"]["path"] == row["path"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "# Pitts30k test" in text
    assert "10,000: counted in Patch-NetVLAD's lists" in text
    assert "terms of the set" in text


def test_large_splits_are_several_files(pitts, tmp_path, monkeypatch):
    monkeypatch.setattr("d2vpr_hf.protocols.export._ROWS_AT_A_TIME", 1)
    folder = export_protocol(pitts, tmp_path / "export", shard_bytes=1)
    assert sorted(path.name for path in (folder / "data").iterdir()) == [
        f"{side}-{number:05d}.parquet" for side in ("database", "queries") for number in range(3)
    ]
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "other"))
    assert loaded["queries"]["positives"][:] == [*trees.NEAR, []]


def test_what_cannot_be_exported_is_refused(pitts, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    with pytest.raises(FileExistsError, match="full exists and isn't empty"):
        export_protocol(pitts, tmp_path / "full")
    with pytest.raises(ValueError, match=r"has the splits \['queries'\], but pitts30k-test has"):
        export_protocol(DatasetDict(queries=pitts["queries"]), tmp_path / "export")
    folder = export_protocol(pitts, tmp_path / "first")
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="notes 'default' as its protocol, which isn't one"):
        export_protocol(loaded, tmp_path / "second")
    assert export_protocol(loaded, tmp_path / "second", protocol="pitts30k-test").is_dir()
