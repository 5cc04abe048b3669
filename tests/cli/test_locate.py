"""Answers of `d2vpr locate` come before its pictures, and no picture takes the place of another."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from d2vpr_hf.cli.main import main
from d2vpr_hf.models.checkpoint import save_checkpoint


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_processor, monkeypatch, capsys):
    """A working directory with an index of four photos."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("tiny", tiny_model, tiny_processor)
    (tmp_path / "photos").mkdir()
    for row in range(4):
        pixels = np.random.default_rng(row).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{row}.png")
    assert main(["index", "photos", "places", "--model", "tiny"]) == 0
    capsys.readouterr()
    return tmp_path


def query(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "photos" / "1.png", path)
    return str(path)


def test_photos_of_one_name_have_pictures_of_their_own(folder, capsys):
    names = ["a/IMG.png", "b/IMG.png", "c/IMG-2.png", "d/img.png", "e/IMG.jpg", "f/e\u0301.png", "g/\u00e9.png"]
    photos = [query(folder, name) for name in names]
    assert main(["locate", *photos, "--index", "places", "--json"]) == 0
    pictures = [answer["picture"] for answer in json.loads(capsys.readouterr().out)["answers"]]
    assert len({each.casefold() for each in pictures}) == len(names)
    assert sorted(path.name for path in (folder / "results").iterdir()) == sorted(
        each.removeprefix("results/") for each in pictures
    )
    assert len(pictures) == len(list((folder / "results").iterdir()))


def test_a_name_as_long_as_a_disk_takes_it_is_shortened(folder, capsys):
    longest = [query(folder, name) for name in ("x" * 250 + "1.png", "x" * 250 + "2.png", "é" * 125 + ".png")]
    assert main(["locate", *longest, "--index", "places", "--regions"]) == 0
    assert capsys.readouterr().out.count("best match  1.png") == 3
    assert len(list((folder / "results").iterdir())) == 6


def test_answers_are_there_though_no_picture_can_be_written(folder, capsys):
    (folder / "results").write_text("a file")
    arguments = ["locate", query(folder, "q.png"), "--index", "places"]
    for more in ([], ["--json"]):
        assert main([*arguments, *more]) == 2
        out, err = capsys.readouterr()
        assert "1.png" in out
        assert "results" in err.splitlines()[-1]
    assert main([*arguments, "--no-pictures"]) == 0
    out = capsys.readouterr().out
    assert "best match  1.png" in out
    assert "results" not in out
    assert main([*arguments, "--no-pictures", "--json"]) == 0
    assert "picture" not in json.loads(capsys.readouterr().out)["answers"][0]
    assert main([*arguments, "--no-pictures", "--regions"]) == 2


def test_names_that_the_terminal_cannot_show_are_escaped_as_json_has_it(folder, monkeypatch):
    photo = query(folder, "é東京😀.png")
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["locate", photo, "--index", "places", "--no-pictures", "--json"]) == 0
    shown.flush()
    assert json.loads(shown.buffer.getvalue())["answers"][0]["query"] == photo


def test_more_matches_than_places_are_all_places(folder, capsys):
    arguments = ["locate", query(folder, "q.png"), "--index", "places", "--no-pictures", "--k", "1000000000"]
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["answers"][0]["candidates"]) == 4


def test_an_excluded_name_may_be_spelled_as_another_system_writes_it(folder, capsys):
    (folder / "photos" / "2.png").rename(folder / "photos" / "e\u0301.png")
    assert main(["index", "photos", "accents", "--model", "tiny"]) == 0
    capsys.readouterr()
    arguments = ["locate", query(folder, "q.png"), "--index", "accents", "--no-pictures", "--json"]
    assert main([*arguments, "--exclude", "\u00e9.png"]) == 0
    assert len(json.loads(capsys.readouterr().out)["answers"][0]["candidates"]) == 3


def change_settings(folder, **changed):
    path = folder / "places" / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_a_model_that_only_the_index_names_is_never_fetched(folder, monkeypatch, capsys):
    photo, opened = query(folder, "q.png"), []
    with monkeypatch.context() as patch:
        patch.setattr("d2vpr_hf.retrieval.embedder.open_checkpoint", lambda name, *_, **__: opened.append(name))
        for name in ("someone/evil", "a/" + "x" * 4000, "a\0b"):
            change_settings(folder, model_name=name)
            assert main(["locate", photo, "--index", "places"]) == 2
            err = capsys.readouterr().err
            assert repr(name)[:8] in err
            assert "give the model with --model" in err
            assert len(err) < 500
    assert not opened
    assert main(["locate", photo, "--index", "places", "--no-pictures", "--model", "tiny"]) == 0


EVIL = "\x1b]0;owned\x07 \x9b2J \r"


@pytest.mark.parametrize(
    ("changed", "more", "code"),
    [
        ({"threshold_rule": EVIL}, [], 0),
        ({"threshold_rule": EVIL}, ["--json"], 0),
        ({"model_name": EVIL}, [], 2),
        ({"model_name": f"photos/../{EVIL}"}, [], 2),
        ({"dtype": EVIL}, [], 2),
        ({"store": EVIL}, [], 2),
    ],
)
def test_texts_of_an_index_cannot_steer_the_terminal(folder, capsys, changed, more, code):
    (folder / EVIL).mkdir()
    change_settings(folder, **changed)
    assert main(["locate", query(folder, "q.png"), "--index", "places", "--no-pictures", *more]) == code
    text = "".join(capsys.readouterr())
    assert "owned" in text or "dtype" in changed
    assert not set(text) & set("\x1b\x07\x9b\r")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999", "x"])
def test_numbers_of_options_are_finite(number, capsys):
    locate = ["locate", "q.png", "--index", "places"]
    for words in (
        [*locate, f"--threshold={number}"],
        ["cut", "q.png", "out", f"--pitch-deg={number}"],
        *([[*locate, "--radius-m", "5", "--near", number, "3"]] if number != "-inf" else []),
    ):
        assert main(words) == 2
        assert f"{number} must be a finite number" in capsys.readouterr().err
