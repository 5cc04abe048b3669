"""A table that can't be read is named, whoever reads it."""

import pytest

from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.photos.tables import read_table
from d2vpr_hf.protocols.places import read_training_places
from d2vpr_hf.protocols.positives import read_positives

BROKEN = {
    "UTF-16": "path,lat,lon\nä.jpg,1,2\n".encode("utf-16"),
    "Latin-1": "path,lat,lon\nä.jpg,1,2\n".encode("latin-1"),
    "empty": b"",
    "an open quote": b'path,lat,lon\n"a.jpg,1,2\nb.jpg,1,2\n',
    "NUL bytes": bytes(50),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_broken_table_is_named(tmp_path, content, suffix):
    for name in (f"positions.{suffix}", f"metadata.{suffix}"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"positions\.{suffix}"):
        Positions.from_table(tmp_path / f"positions.{suffix}", ["a.jpg"])
    with pytest.raises(ValueError, match=rf"metadata\.{suffix}"):
        read_training_places(tmp_path)


def test_a_missing_table_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read_table(tmp_path / "none.csv")


@pytest.mark.parametrize("content", [b'{"a.jpg": [' + b"9" * 5000 + b"]}", b"[" * 100_000, "{}".encode("utf-16")[:3]])
def test_a_broken_file_of_positives_is_named(tmp_path, content):
    (tmp_path / "positives.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"positives\.json isn't JSON"):
        read_positives(tmp_path / "positives.json", database_names=["a.jpg"], query_names=["a.jpg"])
