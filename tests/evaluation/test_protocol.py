import numpy as np
import pytest
import torch
from datasets import DatasetDict, load_dataset
from PIL import Image
from protocol_trees import msls_val, nordland_3450, own_folders, pairs, utm

from d2vpr_hf.evaluation.baselines import SquashProcessor, peer_embedder
from d2vpr_hf.evaluation.protocol import benchmark_protocol, dataset_protocol, folder_protocol
from d2vpr_hf.evaluation.run import evaluate_protocol
from d2vpr_hf.protocols.export import export_protocol
from d2vpr_hf.protocols.open import open_protocol
from d2vpr_hf.protocols.table import load_protocol
from d2vpr_hf.retrieval.embedder import Embedder
from d2vpr_hf.retrieval.pca import attach_pca, fit_pca


class Thumbnail:
    name = "thumbnail"
    processor = SquashProcessor(4, 4)

    def encode(self, images):
        return images.flatten(1) + 0.1


@pytest.mark.parametrize(
    ("name", "tree"),
    [("pitts30k-test", utm()), ("msls-val-740", msls_val), ("nordland-3450-2frames", nordland_3450), ("sped", pairs)],
)
def test_a_named_benchmark_runs_as_two_folders_do(tmp_path, name, tree):
    expected = tree(tmp_path)
    protocol = benchmark_protocol(name, tmp_path)
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
        benchmark_protocol(name)


def test_an_exported_benchmark_gives_the_result_of_its_folder(tmp_path):
    expected = utm()(tmp_path / "set")
    benchmark = load_protocol("pitts30k-test", tmp_path / "set", cache_dir=tmp_path / "tables")
    export_protocol(benchmark, tmp_path / "export")
    folder = benchmark_protocol("pitts30k-test", tmp_path / "set")
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
    protocol = benchmark_protocol(open_protocol("folders", tmp_path))
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
