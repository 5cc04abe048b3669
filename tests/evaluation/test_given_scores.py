"""Scores that somebody published stand beside models."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_evaluation import photos
from PIL import Image

from d2vpr_hf.evaluation.baselines import evaluate_scores, open_peer, read_scores
from d2vpr_hf.evaluation.compare import compare_models
from d2vpr_hf.evaluation.protocol import Protocol, folder_protocol, named_protocol

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def protocol(**more):
    database, queries = photos(["0.jpg", "1.jpg", "2.jpg"], [0, 0, 0]), photos(["a.jpg", "b.jpg"], [0, 0])
    positives = [np.array([2]), np.array([0, 1])]
    return Protocol("made", database, queries, positives, "made", **more)


def test_scores_are_ranked_as_a_model_s_are():
    # Query a: 1, then 0 before 2, which score alike; its positive is last. Query b: 0 first, which is right.
    result = evaluate_scores(protocol(), np.array([[0.1, 0.9, 0.1], [3, 2, 1]]), name="theirs", ks=(1, 3, 9))
    assert result.ranking[:, :3].tolist() == [[1, 0, 2], [0, 1, 2]]
    assert (result.ranking[:, 3:] == -1).all()
    assert result.hits == {1: 1, 3: 2, 9: 2}
    assert result.first_hits.tolist() == [3, 1]
    assert result.to_json()["model"]["name"] == "theirs"
    left_out = evaluate_scores(
        protocol(own_rows=[np.array([1]), np.array([0])], whole_database=True),
        [[0.1, 0.9, 0.1], [3, 2, 1]],
        name="theirs",
        ks=(1,),
    )
    assert [[row for row in rows if row >= 0] for rows in left_out.ranking.tolist()] == [[0, 2], [1, 2]]


@pytest.mark.parametrize("scores", [np.zeros((2, 2)), np.zeros(3), np.full((2, 3), np.nan), np.full((2, 3), "1")])
def test_what_is_no_matrix_of_the_protocol_is_refused(scores):
    with pytest.raises(ValueError, match=r"theirs has scores of shape .* but made needs \(2, 3\)"):
        evaluate_scores(protocol(), scores, name="theirs")


def test_a_file_is_read_by_the_name_of_its_array(tmp_path):
    np.savez(tmp_path / "two.npz", one=np.eye(2), other=np.zeros((2, 2)))
    np.save(tmp_path / "alone.npy", np.eye(3))
    assert read_scores(f"{tmp_path}/two.npz#one").tolist() == np.eye(2).tolist()
    assert read_scores(f"{tmp_path}/alone.npy").shape == (3, 3)
    with pytest.raises(ValueError, match=r"holds one, other, but no name is asked for. Name one of them: .*#one"):
        read_scores(f"{tmp_path}/two.npz")
    with pytest.raises(FileNotFoundError, match="isn't there"):
        read_scores(f"{tmp_path}/absent.npz#one")
    hostile = np.empty(1, object)
    hostile[0] = [1]
    np.save(tmp_path / "objects.npy", hostile, allow_pickle=True)
    with pytest.raises(ValueError, match="can't be read as numbers"):
        read_scores(f"{tmp_path}/objects.npy")


def npy(header):
    padded = header.encode().ljust(-(-(len(header) + 11) // 64) * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


DESCRIPTION = "{'descr': '<f8', 'fortran_order': False, 'shape': "


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 no zip", npy(DESCRIPTION + "(1099511627776,)}"), npy(DESCRIPTION + "(1"), npy("{'descr': ((")],
)
def test_what_is_no_array_is_refused_by_its_name(tmp_path, content):
    (tmp_path / "alone.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "several.npz", "w") as file:
        file.writestr("a.npy", content)
    for name in ("alone.npy", "several.npz"):
        with pytest.raises(ValueError, match=rf"{name} (can't be read as numbers|holds a, but no name)"):
            read_scores(f"{tmp_path}/{name}")


def test_models_and_scores_stand_in_one_table(tmp_path):
    for folder in ("database", "queries"):
        (tmp_path / folder).mkdir()
        for row in range(2):
            pixels = np.random.default_rng(row).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels + (folder == "queries")).save(tmp_path / folder / f"{row}.png")
    same = {f"{row}.png": [f"{row}.png"] for row in range(2)}
    folders = folder_protocol(tmp_path / "database", tmp_path / "queries", positives=same)
    options = {"ks": (1,), "progress": False}
    models = {"thumbnail": open_peer("thumbnail", workers=1)}
    comparison = compare_models(folders, models, scores={"theirs": 1 - np.eye(2)}, **options)
    assert comparison.differences["theirs"][1] == (1.0, (1.0, 1.0))
    assert "| theirs |  |  | 0.0 | 0 of 2 | +100.0 (+100.0 to +100.0) |" in comparison.markdown()
    with pytest.raises(ValueError, match="needs two"):
        compare_models(folders, models, **options)
    with pytest.raises(ValueError, match="needs two"):
        compare_models(folders, {}, scores={"theirs": np.eye(2), "others": np.eye(2)}, **options)


def test_published_scores_give_the_published_recall():
    scores, corridor = DATA / "metadata/vpr_bench/corridor_scores.npz", DATA / "corridor/datasets/corridor"
    if not scores.is_file() or not corridor.is_dir():
        pytest.skip("the corridor's photos and published scores aren't here")
    protocol = named_protocol("vprbench-corridor", corridor)
    hits = {
        name: evaluate_scores(protocol, read_scores(f"{scores}#{name}"), name=name, ks=(1,)).hits[1]
        for name in ("NetVLAD", "denseVLAD", "HybridNet")
    }
    assert hits == {"NetVLAD": 75, "denseVLAD": 78, "HybridNet": 100}  # of 111: .676, .703, .901
