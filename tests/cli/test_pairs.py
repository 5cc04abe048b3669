"""Pairs and descriptors for programs for structure from motion."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf.cli import pairs
from d2vpr_hf.cli.main import main
from d2vpr_hf.evaluation.pairs import PAIRS_FORMATS
from d2vpr_hf.models.checkpoint import save_checkpoint


@pytest.fixture
def images(tmp_path, tiny_model, tiny_processor, monkeypatch):
    """A folder of images as hloc has one: eight of a map, three new ones, in folders of their own."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("tiny", tiny_model, tiny_processor)
    for seed, (folder, count) in enumerate((("map", 5), ("map/deep", 3), ("new", 3))):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for row in range(count):
            pixels = np.random.default_rng([seed, row]).integers(0, 256, (6, 8, 3), dtype=np.uint8)
            photo = Image.fromarray(pixels).resize((80, 60), Image.Resampling.NEAREST)
            photo.save(tmp_path / "images" / folder / f"{row}.png")
    return tmp_path / "images"


def written(*more, database="images/map", queries="images/new"):
    arguments = ["pairs", "--database", database, "--queries", queries, "--model", "tiny", "--k", "3", *more]
    assert main(arguments) == 0


def test_pairs_are_those_that_hloc_makes_of_the_descriptors(images):
    h5py = pytest.importorskip("h5py", reason="h5py isn't installed: pip install h5py")
    assert main(["embed", "images", "features.h5", "--format", "hloc", "--model", "tiny"]) == 0
    with h5py.File("features.h5") as file:
        found: list[str] = []
        file.visititems(
            lambda name, each: found.append(each.parent.name[1:]) if isinstance(each, h5py.Dataset) else None
        )
        vectors = {name: torch.from_numpy(file[name]["global_descriptor"].__array__()).float() for name in found}
    assert len(vectors) == 11
    queries = sorted(name for name in vectors if name.startswith("new/"))
    # The photos of a folder in themselves too, where hloc leaves the photo itself out by its name.
    for database, asked in (("map/", queries), ("", sorted(vectors))):
        names = sorted(name for name in vectors if name.startswith(database))
        scores = torch.stack([vectors[name] for name in asked]) @ torch.stack([vectors[name] for name in names]).T
        scores[torch.tensor([[a == b for b in names] for a in asked])] = -torch.inf
        scores[scores < 0] = -torch.inf
        best = torch.topk(scores, 3, dim=1)
        expected = [
            f"{name} {names[row]}"
            for name, rows, values in zip(asked, best.indices, best.values, strict=True)
            for row, value in zip(rows, values, strict=True)
            if value.isfinite()
        ]
        written(database=f"images/{database}", queries="images/new" if database else "images")
        assert Path("pairs.txt").read_text().rstrip("\n").split("\n") == expected
        assert len({line.split()[1] for line in expected}) > 3


def test_colmap_and_opensfm_get_each_pair_once(images, capsys):
    written("--format", "hloc", database="images/map", queries="images/map")
    directed = [tuple(line.split()) for line in Path("pairs.txt").read_text().splitlines()]
    assert all(first != second for first, second in directed)
    once = list({frozenset(pair): None for pair in directed})
    assert len(once) < len(directed) == 3 * 8
    written("--format", "colmap", database="images/map", queries="images/map")
    assert [frozenset(line.split()) for line in Path("pairs.txt").read_text().splitlines()] == once
    written("--format", "opensfm", "--images", "images", "--out", "more/pairs.json", queries="images/map")
    named = json.loads(Path("more/pairs.json").read_text())
    assert [frozenset(name.removeprefix("map/") for name in pair) for pair in named] == once


def test_an_index_is_a_map_and_a_large_k_takes_all(images, capsys):
    assert main(["index", "images/map", "places", "--model", "tiny"]) == 0
    written(database="places")
    of_index = Path("pairs.txt").read_text()
    written("--k", "3")
    assert Path("pairs.txt").read_text() == of_index
    capsys.readouterr()
    written("--k", "1000000000", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["pairs"] <= 3 * 8
    assert result["images"] == str(images)


def test_what_a_file_of_pairs_cannot_hold_is_refused(images, capsys):
    (images / "new" / "0.png").rename(images / "new" / "a photo.png")
    arguments = ["pairs", "--database", "images/map", "--queries", "images/new", "--model", "tiny"]
    assert main(arguments) == 2
    assert "new/a photo.png hold a space" in capsys.readouterr().err
    assert main([*arguments, "--format", "opensfm"]) == 0
    assert main([*arguments, "--format", "opensfm", "--images", "images/map"]) == 2
    assert "aren't in" in capsys.readouterr().err


def test_a_missing_h5py_is_named_before_the_work(images, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("d2vpr_hf.retrieval.hloc.find_spec", lambda name: None if name == "h5py" else find(name))
    assert main(["embed", "images", "features.h5", "--format", "hloc", "--model", "tiny"]) == 2
    message = capsys.readouterr().err
    assert "pip install 'd2vpr_hf[hloc]'" in message
    assert "loading the model" not in message


def test_the_formats_that_help_names_are_those_of_the_code():
    assert pairs.FORMATS == PAIRS_FORMATS
