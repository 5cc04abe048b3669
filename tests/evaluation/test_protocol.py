import os
import shutil

import numpy as np
import pytest
import torch
from datasets import DatasetDict, load_dataset
from PIL import Image
from protocol_trees import msls_val, nordland_3450, own_folders, pairs, utm, utm_name

from d2vpr_hf.evaluation.baselines import SquashProcessor, peer_embedder
from d2vpr_hf.evaluation.protocol import (
    database_names,
    dataset_protocol,
    folder_protocol,
    named_protocol,
    with_distractors,
)
from d2vpr_hf.evaluation.run import evaluate_protocol
from d2vpr_hf.protocols.export import export_protocol
from d2vpr_hf.protocols.open import open_protocol
from d2vpr_hf.protocols.table import load_protocol
from d2vpr_hf.retrieval.embedder import Embedder
from d2vpr_hf.retrieval.index import PlaceIndex
from d2vpr_hf.retrieval.pca import attach_pca, fit_pca


class Thumbnail:
    name = "thumbnail"
    processor = SquashProcessor(4, 4)

    def encode(self, images):
        return images.flatten(1) + 0.1


def repaint(folder):
    """The photos of a made tree have equal bytes on both sides; queries of one's own aren't database photos."""
    for row, path in enumerate(sorted(folder.rglob("*.jpg"))):
        Image.new("RGB", (12, 8), (row, 200, 100)).save(path)


@pytest.mark.parametrize(
    ("name", "tree"),
    [("pitts30k-test", utm()), ("msls-val-740", msls_val), ("nordland-3450-2frames", nordland_3450), ("sped", pairs)],
)
def test_a_named_benchmark_runs_as_two_folders_do(tmp_path, name, tree):
    expected = tree(tmp_path)
    protocol = named_protocol(name, tmp_path)
    assert protocol.name == name
    assert [rows.tolist() for rows in protocol.positives] == expected
    assert protocol.denominator == open_protocol(name, tmp_path).record.denominator
    # The trees are small: the notes say that this is no result of the benchmark.
    assert any("Not comparable with published figures" in note for note in protocol.notes)
    result = evaluate_protocol(protocol, peer_embedder(Thumbnail(), workers=1), ks=(1, 100), progress=False)
    assert result.counts["queries"] == len(expected)
    answerable = np.mean([bool(rows) for rows in expected])
    assert result.recall[100] == pytest.approx(answerable)  # every photo is ranked, so that all that can be found is
    saved = result.to_json()
    assert saved["protocol"] == name
    assert saved["notes"] == list(protocol.notes)
    assert saved["recall"]["recall@100"] == result.recall[100]
    assert protocol.notes[0] in result.markdown()
    with pytest.raises(ValueError, match="Give the id of a protocol and its folder"):
        named_protocol(name)


def test_an_exported_benchmark_gives_the_result_of_its_folder(tmp_path):
    expected = utm()(tmp_path / "set")
    benchmark = load_protocol("pitts30k-test", tmp_path / "set", cache_dir=tmp_path / "tables")
    export_protocol(benchmark, tmp_path / "export")
    folder = named_protocol("pitts30k-test", tmp_path / "set")
    embedder = peer_embedder(Thumbnail(), workers=1)
    of_folder = evaluate_protocol(folder, embedder, progress=False)
    exported = load_dataset(str(tmp_path / "export"), cache_dir=str(tmp_path / "datasets"))
    for given in (benchmark, exported):
        protocol = dataset_protocol(given, "pitts30k-test")
        assert [rows.tolist() for rows in protocol.positives] == expected
        assert (protocol.name, protocol.denominator, protocol.notes) == (folder.name, folder.denominator, folder.notes)
        np.testing.assert_allclose(protocol.queries.positions.easting, folder.queries.positions.easting)
        result = evaluate_protocol(protocol, embedder, progress=False)
        assert result.recall == of_folder.recall
        np.testing.assert_array_equal(result.ranking, of_folder.ranking)
        assert result.to_json()["ranking"] == of_folder.to_json()["ranking"]
        with pytest.raises(ValueError, match="inside of a dataset"):
            evaluate_protocol(protocol, embedder, cache=tmp_path, progress=False)
    assert dataset_protocol(benchmark).name == "pitts30k-test"
    with pytest.raises(ValueError, match="not queries"):
        dataset_protocol(DatasetDict(database=benchmark["database"]))
    with pytest.raises(ValueError, match="queries has no column zone"):
        dataset_protocol(DatasetDict(benchmark, queries=benchmark["queries"].remove_columns("zone")))


def test_a_broken_photo_of_a_dataset_is_skipped_by_its_name(tmp_path):
    utm()(tmp_path / "set")
    broken = sorted((tmp_path / "set").rglob("queries/*.jpg"))[0]
    broken.write_bytes(b"no photo")
    protocol = dataset_protocol(load_protocol("pitts30k-test", tmp_path / "set", cache_dir=tmp_path / "tables"))
    result = evaluate_protocol(protocol, peer_embedder(Thumbnail(), workers=1), progress=False)
    assert [path for path, _ in result.skipped["queries"]] == [broken.name]
    assert (result.ranking[protocol.queries.names.index(broken.name)] == -1).all()


def test_ones_own_folders_have_no_expected_counts(tmp_path):
    own_folders(tmp_path)
    repaint(tmp_path / "queries")
    protocol = named_protocol(open_protocol("folders", tmp_path))
    assert protocol.notes == ()


def test_a_pca_is_not_tested_on_photos_that_it_was_fitted_on(tmp_path, tiny_model, tiny_processor, caplog):
    random = np.random.default_rng(0)
    for folder in ("train", "test/database", "test/queries"):
        (tmp_path / folder).mkdir(parents=True)
        for row in range(6):
            pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{row}.png")
    embedder = Embedder(tiny_model, tiny_processor, workers=1)
    positives = {f"{row}.png": [f"{row}.png"] for row in range(6)}
    protocol = folder_protocol(tmp_path / "test/database", tmp_path / "test/queries", positives=positives)
    descriptors = embedder.embed(tmp_path / "train", progress=False)
    attach_pca(tiny_model, fit_pca(descriptors, 4, source="made photos"))
    with torch.no_grad():
        result = evaluate_protocol(protocol, embedder, ks=(1,), progress=False)
    # As published, reduced descriptors aren't divided by their length again.
    assert result.settings["metric"] == "l2"
    assert result.settings["dim"] == 4
    seen = folder_protocol(tmp_path / "train", tmp_path / "test/queries", positives=positives)
    with pytest.raises(ValueError, match=r"6 of the 6 test photos.*made photos"):
        evaluate_protocol(seen, embedder, ks=(1,), progress=False)
    utm()(tmp_path / "set")
    inside = dataset_protocol(load_protocol("pitts30k-test", tmp_path / "set", cache_dir=tmp_path / "tables"))
    evaluate_protocol(inside, embedder, ks=(1,), progress=False)
    assert "make sure yourself" in caplog.text


def test_a_query_that_is_a_database_photo_neither_answers_itself_nor_is_its_own_positive(tmp_path):
    random = np.random.default_rng(0)
    database, queries = tmp_path / "database", tmp_path / "queries"
    for folder in (database, queries):
        folder.mkdir()
    for row in range(4):
        pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(database / f"{row}.png")
        other = np.clip(pixels.astype(int) + 3, 0, 255).astype(np.uint8)
        Image.fromarray(other).save(database / f"{row}-again.png")
    # The same file by a copy, a symbolic and a hard link; the fourth query is a photo of its own.
    shutil.copy(database / "0.png", queries / "copy.png")
    (queries / "link.png").symlink_to(database / "1.png")
    os.link(database / "2.png", queries / "hard.png")
    Image.fromarray(random.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(queries / "own.png")
    listed = {"copy.png": ["0.png", "0-again.png"], "link.png": ["1.png"], "hard.png": ["2.png"], "own.png": ["3.png"]}
    index = PlaceIndex.build(peer_embedder(Thumbnail(), workers=1).embed(database, progress=False))
    for photos in (database, index):
        protocol = folder_protocol(photos, queries, positives=listed)
        names = database_names(protocol.database)
        shown = [[names[row].rsplit("/", 1)[-1] for row in rows] for rows in protocol.positives]
        assert dict(zip(protocol.queries.names, shown, strict=True)) == {
            "copy.png": ["0-again.png"], "link.png": [], "hard.png": [], "own.png": ["3.png"],
        }  # fmt: skip
        assert "3 queries are database photos too (copy.png, hard.png, link.png)" in protocol.notes[0]
        for method in ("hard_resize", "five_crops"):
            embedder = peer_embedder(Thumbnail(), workers=1)
            result = evaluate_protocol(protocol, embedder, ks=(1, 100), query_method=method, progress=False)
            best = {
                query: names[row].rsplit("/", 1)[-1]
                for query, row in zip(protocol.queries.names, result.ranking[:, 0], strict=True)
            }
            assert [best[name] for name in ("copy.png", "link.png", "hard.png")] == [
                "0-again.png", "1-again.png", "2-again.png",
            ]  # fmt: skip
            assert result.hits == {1: 1 + (best["own.png"] == "3.png"), 100: 2}
            # The others are ranked to the end, the photo itself is not there.
            assert [len({*row} - {-1}) for row in result.ranking.tolist()] == [
                8 if name == "own.png" else 7 for name in protocol.queries.names
            ]


def test_a_folder_in_itself_is_refused_and_ranked_without_the_photo_itself(tmp_path):
    random = np.random.default_rng(0)
    for row in range(3):
        pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / utm_name(1000 * row))  # each a kilometre from the next
    with pytest.raises(ValueError, match=r"None of the 3 queries has a positive.*3 queries are database photos too"):
        folder_protocol(tmp_path, tmp_path, radius_m=25)
    ranked = evaluate_protocol(
        folder_protocol(tmp_path, tmp_path, labels=False), peer_embedder(Thumbnail(), workers=1), progress=False
    )
    assert all(query not in row for query, row in enumerate(ranked.ranking.tolist()))


def test_a_copy_of_a_photo_of_the_protocol_is_no_distractor(tmp_path):
    own_folders(tmp_path / "set")
    repaint(tmp_path / "set" / "queries")
    protocol = named_protocol("folders", tmp_path / "set")
    (tmp_path / "more").mkdir()
    shutil.copy(protocol.queries.paths[0], tmp_path / "more" / "another name.jpg")
    with pytest.raises(ValueError, match="more holds 1 photos that are in folders already"):
        with_distractors(protocol, [tmp_path / "more"])
