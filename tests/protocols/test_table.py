"""Benchmarks as datasets: shared columns, lazy photos, a cache that follows the files, and streaming."""

import os

import protocol_trees as trees
import pytest
from datasets import List, Value
from PIL import Image

from d2vpr_hf.protocols.table import load_protocol


@pytest.fixture
def pitts(tmp_path):
    root = tmp_path / "pitts30k"
    trees.utm(zone=17)(root)
    return root


def test_columns_and_positives(pitts, tmp_path):
    splits = load_protocol("pitts30k-test", pitts, cache_dir=tmp_path / "cache")
    assert list(splits) == ["database", "queries"]
    assert splits["database"].features == splits["queries"].features
    assert splits["queries"].features["positives"] == List(Value("int64"))
    assert splits["queries"]["positives"][:] == trees.NEAR
    assert splits["database"]["positives"][:] == [None] * 3
    row = splits["queries"][0]
    assert isinstance(row["image"], Image.Image)
    assert row["image"].size == (12, 8)
    assert row["path"] == trees.utm_name(25.0, zone=17, note="queries")
    assert (row["easting"], row["northing"], row["zone"]) == (500_025.0, 4_000_000.0, 17)
    assert (row["heading_deg"], row["time"]) == (90.0, "2024-01-31T12:30")
    # 500 km east is the middle of zone 17, 81 degrees west.
    assert row["longitude"] == pytest.approx(-81 + 25 / 90_000, abs=1e-4)
    assert row["latitude"] == pytest.approx(36.14, abs=0.01)
    assert splits["queries"].info.config_name == "pitts30k-test"


def test_the_cache_is_written_once_and_follows_the_files(pitts, tmp_path):
    cache = tmp_path / "cache"

    def files() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}

    first = load_protocol("pitts30k-test", pitts, cache_dir=cache)
    before = files()
    assert len(before) == 2
    assert {file["filename"] for split in first.values() for file in split.cache_files} == set(before)
    load_protocol("pitts30k-test", pitts, cache_dir=cache)
    assert files() == before
    # Another date of one photo, another photo, another place: each is another table.
    photo = next((pitts / "images/test/database").iterdir())
    os.utime(photo, ns=(1, 1))
    load_protocol("pitts30k-test", pitts, cache_dir=cache)
    assert len(files()) == 4
    trees.write_photo(pitts / "images/test/database" / trees.utm_name(64.0, zone=17))
    splits = load_protocol("pitts30k-test", pitts, cache_dir=cache)
    assert len(files()) == 6
    assert splits["queries"]["positives"][:] == [[0, 1], [2, 3]]
    assert not [path for path in cache.rglob(".*") if path.is_dir()]


def test_a_list_of_positives_is_part_of_the_files(tmp_path):
    trees.vprbench(tmp_path / "set")
    first = load_protocol("vprbench", tmp_path / "set", cache_dir=tmp_path / "cache")
    trees.save_pairs(tmp_path / "set/ground_truth_new.npy", [[3], [2], [1]])
    second = load_protocol("vprbench", tmp_path / "set", cache_dir=tmp_path / "cache")
    assert first["queries"]["positives"][:] == [[0, 1], [1, 2, 3], [3]]
    assert second["queries"]["positives"][:] == [[3], [2], [1]]


def test_another_count_is_a_warning_from_the_cache_too(pitts, tmp_path, caplog):
    for _ in range(2):
        caplog.clear()
        load_protocol("pitts30k-test", pitts, cache_dir=tmp_path / "cache")
        assert [record.getMessage().split(" (")[0].split(": ")[1] for record in caplog.records] == [
            "3 photos in database, but pitts30k-test has 10,000",
            "2 photos in queries, but pitts30k-test has 6,816",
        ]


def test_a_cache_that_is_broken_off_is_written_anew(pitts, tmp_path, monkeypatch):
    from datasets.arrow_writer import ArrowWriter

    def break_off(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ArrowWriter, "finalize", break_off)
        with pytest.raises(KeyboardInterrupt):
            load_protocol("pitts30k-test", pitts, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    assert len(load_protocol("pitts30k-test", pitts, cache_dir=tmp_path / "cache")["database"]) == 3


def test_streaming_gives_the_same_rows_without_a_cache(pitts, tmp_path):
    cache = tmp_path / "cache"
    stored = load_protocol("pitts30k-test", pitts, cache_dir=cache)
    streamed = load_protocol("pitts30k-test", pitts, streaming=True, cache_dir=tmp_path / "unused")
    assert not (tmp_path / "unused").exists()
    for side in ("database", "queries"):
        rows = list(streamed[side])
        assert len(rows) == len(stored[side])
        assert streamed[side].features == stored[side].features
        for ours, theirs in zip(rows, stored[side], strict=True):
            assert ours["image"].tobytes() == theirs["image"].tobytes()
            assert {**ours, "image": None} == {**theirs, "image": None}
    assert streamed["database"].num_shards == 3


def test_a_set_without_positions_or_labels(tmp_path):
    trees.msls_test(tmp_path / "msls")
    splits = load_protocol("msls-test", tmp_path / "msls", cache_dir=tmp_path / "cache")
    assert splits["queries"]["positives"][:] == [None] * 6
    assert splits["queries"]["latitude"][:] == [None] * 6
    assert splits["queries"]["sequence"][:] == ["seq0"] * 6
    assert "heading_deg" not in splits["queries"].features


def test_a_training_set_is_one_split(tmp_path):
    from d2vpr_hf.town.make import make_town

    make_town(tmp_path / "town", places=2, views=4, layout="gsv", height=24, width=32)
    splits = load_protocol("gsv-cities", tmp_path / "town", cache_dir=tmp_path / "cache")
    assert list(splits) == ["train"]
    assert sorted(splits["train"]["place"][:]) == [0] * 4 + [1] * 4
    assert "positives" not in splits["train"].features


def test_names_that_are_no_utf8_keep_their_photos(pitts, tmp_path):
    folder = os.fsencode(pitts / "images/test/database")
    name = trees.utm_name(64.0, zone=17).replace("pano", "p").encode().replace(b"@p@", b"@p\xff@")
    with open(os.path.join(folder, name), "wb") as file:  # noqa: PTH118, PTH123 - a path of bytes
        file.write(trees.write_photo(tmp_path / "photo.jpg").read_bytes())
    for options in ({}, {"streaming": True}):
        splits = load_protocol("pitts30k-test", pitts, cache_dir=tmp_path / "cache", **options)
        rows = [row for row in splits["database"] if "\\xff" in row["path"]]
        assert [row["image"].size for row in rows] == [(12, 8)]
