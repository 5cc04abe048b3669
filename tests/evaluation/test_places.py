"""Photos by place: each is looked for among all others, with distractors, and mean average precision is measured."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf.evaluation.baselines import PeerModel, SquashProcessor, peer_embedder
from d2vpr_hf.evaluation.protocol import dataset_protocol, folder_protocol, named_protocol, with_distractors
from d2vpr_hf.evaluation.run import evaluate_protocol
from d2vpr_hf.protocols.table import load_protocol
from d2vpr_hf.training.validation import Validator


class Colour(torch.nn.Module):
    """A photo's mean colour, so that places of other colours are told apart; ranked by distance."""

    name = "colour"
    processor = SquashProcessor(4, 4)

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(3.0))

    def encode(self, images):
        return images.mean(dim=(2, 3)) + self.shift


EMBEDDER = peer_embedder(Colour(), workers=1)
# Shades of red: the nearer two are, the more alike the photos.
SHADES = {"a/0": 0, "a/1": 31, "b/0": 10, "b/1": 60, "c/0": 200}


def paint(path, red):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 40, 40)).save(path)


@pytest.fixture
def places(tmp_path):
    for name, red in SHADES.items():
        paint(tmp_path / "places" / f"{name}.png", red)
    return tmp_path / "places"


def test_each_photo_is_looked_for_among_all_others(places):
    protocol = named_protocol("places", places)
    result = evaluate_protocol(protocol, EMBEDDER, ks=(1, 2, 100), progress=False)
    assert protocol.queries.names == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]  # c/0 is alone in its place
    assert result.counts["database"] == 5
    assert not (result.ranking == np.stack(protocol.own_rows)).any()
    # From 0: 10, 31, 60, 200. From 31: 10, 60, 0, 200. From 10: 0, 31, 60, 200. From 60: 31, 10, 0, 200.
    expected = [[2, 1, 3, 4], [2, 3, 0, 4], [0, 1, 3, 4], [1, 2, 0, 4]]
    assert [[row for row in rows if row >= 0] for rows in result.ranking.tolist()] == expected
    # The positives are rows 1, 0, 3 and 2, at ranks 2, 3, 3 and 2.
    assert result.hits == {1: 0, 2: 2, 100: 4}
    assert result.recall == {1: 0.0, 2: 1 / 2, 100: 1.0}
    assert result.average_precisions.tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 3, 1 / 2])
    assert result.mean_average_precision == pytest.approx(5 / 12)


def test_results_hold_hits_and_counts(places):
    result = evaluate_protocol(named_protocol("places", places), EMBEDDER, ks=(1, 2), progress=False)
    saved = json.loads(json.dumps(result.to_json()))
    assert saved["hits"] == {"hits@1": 0, "hits@2": 2}
    assert saved["queries_counted"] == 4
    assert saved["recall"]["recall@2"] == saved["hits"]["hits@2"] / saved["queries_counted"]
    assert saved["mean_average_precision"] == np.mean([each["average_precision"] for each in saved["ranking"]])
    assert result.markdown().splitlines()[0].endswith("| mAP |")
    assert result.markdown().splitlines()[2].endswith("| 41.7 |")


def test_no_query_method_lets_a_photo_answer_itself(places):
    protocol = named_protocol("places", places)
    squashed = evaluate_protocol(protocol, EMBEDDER, ks=(1,), progress=False)
    for method in ("single_query", "five_crops", "nearest_crop"):
        result = evaluate_protocol(protocol, EMBEDDER, ks=(1,), query_method=method, progress=False)
        np.testing.assert_array_equal(result.ranking, squashed.ranking)


def test_a_twin_is_an_answer_and_the_photo_itself_is_none(places):
    paint(places / "c" / "1.png", SHADES["c/0"])  # the same pixels under another name
    protocol = named_protocol("places", places)
    result = evaluate_protocol(protocol, EMBEDDER, ks=(1,), progress=False)
    for name, twin in (("c/0.png", "c/1.png"), ("c/1.png", "c/0.png")):
        row = protocol.queries.names.index(name)
        assert result.database_names[result.ranking[row, 0]] == twin
        assert name not in [result.database_names[found] for found in result.ranking[row] if found >= 0]


def test_an_unreadable_photo_is_a_miss_and_no_answer(places):
    (places / "a" / "1.png").write_bytes(b"broken")
    result = evaluate_protocol(named_protocol("places", places), EMBEDDER, ks=(1, 5), progress=False)
    skipped = {split: [path[-7:] for path, _ in photos] for split, photos in result.skipped.items()}
    assert skipped == {"database": ["a/1.png"], "queries": ["a/1.png"]}
    assert result.hits[5] == 2
    # From 10: 0, 60; from 60: 10.
    assert result.average_precisions.tolist() == pytest.approx([0, 0, 1 / 2, 1])


def test_distractors_are_in_the_database_alone(places, tmp_path):
    for number, red in enumerate((5, 20)):
        paint(tmp_path / "holidays" / f"{number}.png", red)
    plain = named_protocol("places", places)
    protocol = with_distractors(plain, [tmp_path / "holidays"])
    assert protocol.queries.names == plain.queries.names
    assert protocol.database.names == [*plain.database.names, "holidays/0.png", "holidays/1.png"]
    assert [rows.tolist() for rows in protocol.positives] == [rows.tolist() for rows in plain.positives]
    result = evaluate_protocol(protocol, EMBEDDER, ks=(1,), progress=False)
    # From 0: 5, 10, 20, 31: the one positive falls from rank 2 to 4.
    assert result.ranking[0].tolist()[:4] == [5, 2, 6, 1]
    assert result.average_precisions[0] == pytest.approx(1 / 4)
    assert "2 more photos that show the place of no query (distractors: holidays)" in result.markdown()
    # The same, where they lie beside the places.
    (tmp_path / "holidays").rename(places / "distractors")
    inside = evaluate_protocol(named_protocol("places", places), EMBEDDER, ks=(1,), progress=False)
    assert inside.average_precisions.tolist() == result.average_precisions.tolist()
    assert inside.counts == result.counts


def test_distractors_that_are_in_the_protocol_are_refused(places, tmp_path):
    protocol = named_protocol("places", places)
    with pytest.raises(ValueError, match=r"a holds 2 photos that are in places already.*Give a folder without them"):
        with_distractors(protocol, [places / "a"])
    paint(tmp_path / "holidays" / "0.png", 5)
    with pytest.raises(ValueError, match="holds 1 photos"):
        with_distractors(protocol, [tmp_path / "holidays", tmp_path / "holidays"])
    table = load_protocol("places", places, cache_dir=tmp_path / "tables")
    with pytest.raises(ValueError, match="DatasetPhotos, but distractors are added to a folder"):
        with_distractors(dataset_protocol(table), [tmp_path / "holidays"])


def test_a_dataset_of_places_gives_the_same(places, tmp_path):
    table = load_protocol("places", places, cache_dir=tmp_path / "tables")
    of_table = evaluate_protocol(dataset_protocol(table), EMBEDDER, ks=(1, 2), progress=False)
    of_folder = evaluate_protocol(named_protocol("places", places), EMBEDDER, ks=(1, 2), progress=False)
    np.testing.assert_array_equal(of_table.ranking, of_folder.ranking)
    assert of_table.mean_average_precision == of_folder.mean_average_precision


def test_queries_without_labels_count_or_not(places):
    folders = {"database": places / "a", "queries": places / "b", "positives": {"0.png": ["0.png"]}}
    all_count = evaluate_protocol(folder_protocol(**folders), EMBEDDER, ks=(1,), progress=False)
    assert (all_count.hits[1], all_count.queries_counted) == (1, 2)
    labelled = evaluate_protocol(folder_protocol(**folders, labelled_only=True), EMBEDDER, ks=(1,), progress=False)
    assert (labelled.hits[1], labelled.queries_counted) == (1, 1)
    assert labelled.recall == {1: 1.0}
    assert len(labelled.ranking) == 2  # both are ranked and can be looked at
    with pytest.raises(ValueError, match="labelled_only is True and labels False"):
        folder_protocol(places / "a", places / "b", labels=False, labelled_only=True)


def test_places_that_share_nothing_are_refused(tmp_path):
    paint(tmp_path / "a" / "0.png", 0)
    paint(tmp_path / "b" / "0.png", 0)
    with pytest.raises(ValueError, match="none with two images"):
        named_protocol("places", tmp_path)


def test_the_trainer_validates_on_places(places):
    found = Validator([f"places={places}"], k=1, processor=Colour.processor).measure(PeerModel(Colour()))
    assert found["places"]["mAP"] == pytest.approx(5 / 12)
    assert found["places"]["recall@1"] == 0.0
