import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf.evaluation.protocol import folder_protocol
from d2vpr_hf.evaluation.run import DEFAULT_KS, evaluate_protocol
from d2vpr_hf.photos.folder import read_photo_folder
from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.retrieval.embedder import Embedder, embed_images
from d2vpr_hf.retrieval.index import PlaceIndex

METRES_A_DEGREE = 111_194.0


class MeanColour(torch.nn.Module):
    """A model whose descriptor is a photo's mean colour, so that places of other colours are told apart."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.config = SimpleNamespace(cross_image_encoder=False)

    def forward(self, pixel_values):
        colour = pixel_values.mean(dim=(2, 3)) - 0.5
        return SimpleNamespace(pooler_output=torch.nn.functional.normalize(self.scale * colour, dim=-1))


class PlainProcessor:
    size = {"height": 8, "width": 8}  # noqa: RUF012 - as image processors have it

    def __call__(self, image, return_tensors, do_resize=True):
        pixels = np.array(image.convert("RGB").resize((8, 8)) if do_resize else image)[None]
        return {"pixel_values": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255}


COLOURS = {"red": (250, 30, 30), "green": (30, 250, 30), "blue": (30, 30, 250), "sky": (30, 250, 200)}


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), colour).save(path)


def nearly(name):
    """A colour that nobody tells from the named one: of equal files the one is the other."""
    return tuple(value + 1 for value in COLOURS[name])


def utm_name(metres_north, note=""):
    """A name in the benchmarks' layout, so many metres north of a point in zone 33 north."""
    where = Positions.from_degrees([48.0 + metres_north / METRES_A_DEGREE], [15.0])
    easting, northing = where.easting[0], where.northing[0]
    latitude = where.latitude[0]
    return f"@{easting:010.2f}@{northing:010.2f}@33@N@{latitude:09.5f}@00015.00000@{note}@@@@@@@@.jpg"


@pytest.fixture
def folders(tmp_path):
    """Four database photos and four queries; the last query looks like the sky but shows the red place."""
    for name, colour in COLOURS.items():
        paint(tmp_path / "database" / f"{name}.png", colour)
    for name in ("red", "green", "blue"):
        paint(tmp_path / "queries" / "day" / f"{name}.png", tuple(value * 9 // 10 for value in COLOURS[name]))
    paint(tmp_path / "queries" / "night" / "red.png", nearly("sky"))
    return tmp_path


POSITIVES = {
    "day/red.png": ["red.png"],
    "green.png": ["green.png"],
    "day/blue.png": [],
    "night/red.png": ["red.png", "green.png"],
}


@pytest.fixture
def run():
    def run(protocol, model=None, batch_size=32, **options):
        embedder = Embedder(model or MeanColour(), PlainProcessor(), batch_size=batch_size, workers=1)
        return evaluate_protocol(protocol, embedder, progress=False, **options)

    return run


def test_two_folders_with_listed_positives(folders, run):
    (folders / "positives.json").write_text(json.dumps(POSITIVES))
    protocol = folder_protocol(folders / "database", folders / "queries", positives=folders / "positives.json")
    # Database in the order of names: blue, green, red, sky. Queries: day/blue, day/green, day/red, night/red.
    assert [each.tolist() for each in protocol.positives] == [[], [1], [2], [1, 2]]
    result = run(protocol, ks=(1, 2, 10, 1_000_000_000))
    assert result.recall.pop(1_000_000_000) == 3 / 4  # as many as there are
    # day/green and day/red are right at once, day/blue has no positives, night/red finds the sky first; green, which
    # shares the sky's green, comes second and is a positive: 2/4, then 3/4.
    assert result.recall == {1: 2 / 4, 2: 3 / 4, 10: 3 / 4}
    assert result.ranking[:, 0].tolist() == [0, 1, 2, 3]
    assert (result.ranking[:, 4:] == -1).all()
    assert result.queries_without_positives == 1
    assert result.counts == {"database": 4, "database_ranked": 4, "queries": 4, "queries_ranked": 4}
    assert "listed by name in positives.json" in result.markdown()
    assert "Queries without positives: 1; they count as misses." in result.markdown()
    assert "| 50.0 | 75.0 | 75.0 |" in result.markdown()
    assert "batches: each photo by itself" in result.markdown()
    assert result.first_hits.tolist() == [0, 1, 1, 2]
    # Three queries have positives. By falling score red, green and blue's own colours come in some order, of which blue
    # has no positive and is wrong; the sky's photo equals the database's sky and is wrong with the best score of all.
    assert result.precision_recall.recall_at_full_precision == 0
    assert 0 < result.precision_recall.area < 2 / 3
    assert "recall at 100 % precision 0.0 %" in result.markdown()


def test_results_hold_all_that_the_numbers_depend_on(folders, run):
    result = run(folder_protocol(folders / "database", folders / "queries", positives=POSITIVES), ks=(1, 2))
    path = result.save(folders / "results" / "deep")
    saved = json.loads(path.read_text())
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]
    assert saved["recall"] == {"recall@1": 0.5, "recall@2": 0.75}
    assert saved["primary_metric"] == "recall@1"
    assert saved["denominator"] == "all"
    assert saved["counts"]["queries"] == 4
    assert saved["queries_without_positives"] == 1
    low, high = saved["recall_intervals"]["recall@1"]
    assert 0 <= low < 0.5 < high <= 1
    assert saved["recall_intervals"].keys() == {"level", "resamples", "seed", "recall@1", "recall@2"}
    assert saved["ranking"][2]["query"] == "day/red.png"
    assert [(each["positives"], each["first_hit"]) for each in saved["ranking"]] == [(0, None), (1, 1), (1, 1), (2, 2)]
    assert saved["ranking"][2]["answers"][0] == "red.png"
    assert saved["ranking"][2]["scores"] == sorted(saved["ranking"][2]["scores"], reverse=True)
    assert len(saved["model"]["weight_hash"]) == 64
    assert saved["settings"] | {"device": None} == {
        "k": [1, 2],
        "query_method": "hard_resize",
        "metric": "inner_product",
        "batch_size": 32,
        "batch_rule": "each photo by itself: the batch size changes nothing",
        "dtype": "float32",
        "device": None,
        "dim": 3,
        "image_size": {"height": 8, "width": 8},
    }
    assert {"d2vpr_hf", "python", "torch", "transformers", "faiss-cpu"} <= saved["versions"].keys()
    assert saved["command"]


def test_two_folders_with_a_radius(tmp_path, run):
    for metres, colour in ((0, "red"), (20, "green"), (1000, "blue")):
        paint(tmp_path / "database" / utm_name(metres), COLOURS[colour])
    for metres, colour in ((10, "red"), (40, "green"), (1020, "red"), (500, "sky")):
        paint(tmp_path / "queries" / utm_name(metres, note="q"), nearly(colour))
    protocol = folder_protocol(tmp_path / "database", tmp_path / "queries", radius_m=25)
    # In the order of names, which is that of the northings: 10 m sees 0 and 20, 40 m sees 20, 500 m nothing,
    # 1020 m sees 1000.
    assert [each.tolist() for each in protocol.positives] == [[0, 1], [1], [], [2]]
    result = run(protocol, ks=(1, 3))
    assert result.recall == {1: 2 / 4, 3: 3 / 4}
    assert result.queries_without_positives == 1
    narrow = folder_protocol(tmp_path / "database", tmp_path / "queries", radius_m=12)
    assert [each.tolist() for each in narrow.positives] == [[0, 1], [], [], []]


def test_an_index_is_a_database(folders, run):
    model, processor = MeanColour(), PlainProcessor()
    photos = read_photo_folder(folders / "database")
    index = PlaceIndex.build(embed_images(photos.paths, model=model, processor=processor, workers=1, progress=False))
    index.remove(index.places["id"][0])  # blue; ids and rows differ from here on
    index.save(folders / "places")
    for database in (index, folders / "places"):
        protocol = folder_protocol(database, folders / "queries", positives=POSITIVES)
        assert [each.tolist() for each in protocol.positives] == [[], [0], [1], [0, 1]]
        result = run(protocol, ks=(1, 2))
        assert result.recall == {1: 2 / 4, 2: 3 / 4}
        assert result.ranking[1:, 0].tolist() == [0, 1, 2]
        with pytest.raises(ValueError, match=r"can't be compared.*MeanColour"):
            run(protocol, model=MeanColour(2.0))


def test_without_labels_there_is_a_ranking_and_no_recall(folders, run):
    result = run(folder_protocol(folders / "database", folders / "queries", labels=False), ks=(1,))
    assert result.recall is None
    assert result.queries_without_positives is None
    assert result.to_json()["recall"] is None
    assert result.to_json()["ranking"][0]["answers"] == ["blue.png"]
    assert "recall" not in result.markdown()


def test_unreadable_photos_are_reported_and_queries_among_them_count_as_misses(folders, run):
    (folders / "database" / "again.png").write_bytes(b"no photo")
    (folders / "queries" / "day" / "red.png").write_bytes(b"")
    result = run(folder_protocol(folders / "database", folders / "queries", positives=POSITIVES), ks=(1, 5))
    assert [path.rsplit("/", 1)[1] for path, _ in result.skipped["database"]] == ["again.png"]
    assert all(reason for _, reason in [*result.skipped["database"], *result.skipped["queries"]])
    assert result.counts == {"database": 5, "database_ranked": 4, "queries": 4, "queries_ranked": 3}
    # Row 0 is the broken photo, so that the rows of the others have moved up by one.
    assert result.ranking[:, 0].tolist() == [1, 2, -1, 4]
    assert 0 not in result.ranking
    assert result.recall == {1: 1 / 4, 5: 2 / 4}
    assert "Skipped queries photos, counted as misses: 1." in result.markdown()
    for name in COLOURS:
        (folders / "database" / f"{name}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 5 database photos"):
        run(folder_protocol(folders / "database", folders / "queries", positives=POSITIVES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--radius-m 25"),
        ({"radius_m": 25, "labels": False}, "Choose one"),
        ({"radius_m": 25, "positives": POSITIVES}, "Choose one"),
        ({"radius_m": -1}, "radius_m is -1"),
        ({"radius_m": 25}, r"No database and no query photo has coordinates.*--positives.*--no-labels"),
        ({"positives": {"day/red.png": []}}, "None of the 4 queries has a positive"),
        ({"positives": {"red.png": ["red.png"]}}, "red.png fit more than one query photo"),
        (
            {"positives": {"x.png": ["y.png", "z.png"]}},
            "x.png fit no query photo; y.png, z.png fit no database photo",
        ),
        ({"positives": {"green.png": "green.png"}}, "must give a list"),
        ({"positives": {"green.png": [1]}}, "must give a list"),
        ({"positives": "nowhere.json"}, r"nowhere\.json isn't there"),
    ],
)
def test_wrong_protocols_are_refused(folders, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        folder_protocol(folders / "database", folders / "queries", **options)


def test_empty_folders_and_wrong_cut_offs_are_refused(folders, run):
    (folders / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no photo"):
        folder_protocol(folders / "empty", folders / "queries", labels=False)
    protocol = folder_protocol(folders / "database", folders / "queries", labels=False)
    for wrong in ((), (0,), (1.5,)):
        with pytest.raises(ValueError, match="ks"):
            run(protocol, ks=wrong)


def counting(model):
    """The number of photos that a model is shown from here on."""
    shown = []
    model.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    return shown


def test_a_cache_is_read_instead_of_embedding_again(folders, run, tmp_path):
    protocol = folder_protocol(folders / "database", folders / "queries", positives=POSITIVES)
    model = MeanColour()
    shown, plain = counting(model), run(protocol, ks=(1, 2))
    first = run(protocol, model=model, cache=tmp_path / "cache", ks=(1, 2))
    assert sum(shown) == 8
    again = run(protocol, model=model, cache=tmp_path / "cache", ks=(1, 2))
    assert sum(shown) == 8
    for result in (first, again):
        np.testing.assert_array_equal(result.ranking, plain.ranking)
        np.testing.assert_array_equal(result.scores, plain.scores)
    # A photo that has changed is embedded again, and it alone; another query method, or weights, share nothing but
    # the database.
    paint(folders / "queries" / "night" / "red.png", COLOURS["red"])
    assert run(protocol, model=model, cache=tmp_path / "cache", ks=(1, 2)).recall == {1: 3 / 4, 2: 3 / 4}
    assert sum(shown) == 9
    run(protocol, model=model, cache=tmp_path / "cache", query_method="central_crop")
    assert sum(shown) == 9 + 4
    other = MeanColour(2.0)
    shown_to_other = counting(other)
    run(protocol, model=other, cache=tmp_path / "cache")
    assert sum(shown_to_other) == 8


class MixedColour(MeanColour):
    """Each photo gets a little of its neighbour's colour in the batch; no config says so."""

    def __init__(self):
        super().__init__()
        del self.config

    def forward(self, pixel_values):
        return super().forward(pixel_values + 0.1 * pixel_values.roll(1, dims=0))


def test_a_model_that_mixes_images_says_so_and_has_no_cache(folders, run, tmp_path):
    protocol = folder_protocol(folders / "database", folders / "queries", positives=POSITIVES)
    declared = MeanColour()
    declared.config.cross_image_encoder = True
    for model in (declared, MixedColour()):
        assert "mixes the photos of a batch, here 3" in run(protocol, model=model, batch_size=3).settings["batch_rule"]
        with pytest.raises(ValueError, match="cross_image_encoder=False"):
            run(protocol, model=model, cache=tmp_path)
    undeclared = MeanColour()
    del undeclared.config
    shown = counting(undeclared)
    assert run(protocol, model=undeclared).settings["batch_rule"].startswith("each photo by itself")
    assert shown[:5] == [1, 1, 1, 1, 4]  # found out on the four queries, not taken for granted


@pytest.mark.parametrize("method", ["central_crop", "single_query", "five_crops", "nearest_crop", "maj_voting"])
def test_query_methods_run_and_colours_stay_what_they_are(folders, run, method):
    protocol = folder_protocol(folders / "database", folders / "queries", positives=POSITIVES)
    result = run(protocol, ks=(1, 2), query_method=method)
    # Every crop of a photo in one colour has this colour.
    assert result.recall == {1: 2 / 4, 2: 3 / 4}
    assert result.settings["query_method"] == method
    assert f"Queries by {method};" in result.markdown()
    (folders / "queries" / "day" / "red.png").write_bytes(b"")
    result = run(protocol, ks=(1, 2), query_method=method)
    assert [len(photos) for photos in result.skipped.values()] == [0, 1]
    assert result.ranking[:, 0].tolist() == [0, 1, -1, 3]


class LongColour(MeanColour):
    """Descriptors as long as the colour is strong."""

    def forward(self, pixel_values):
        return SimpleNamespace(pooler_output=self.scale * pixel_values.mean(dim=(2, 3)))


def test_descriptors_that_are_not_of_length_1_are_ranked_by_distance(folders, run):
    paint(folders / "database" / "white.png", (255, 255, 255))
    model = LongColour(3.0)
    results = []
    for database in (folders / "database", folders / "places"):
        if database.name == "places":
            photos = read_photo_folder(folders / "database")
            rows = embed_images(photos.paths, model=model, processor=PlainProcessor(), workers=1, progress=False)
            PlaceIndex.build(rows).save(database)
        results.append(run(folder_protocol(database, folders / "queries", positives=POSITIVES), model=model, ks=(1,)))
        # By inner product white, the longest, would be everybody's best answer.
        assert results[-1].ranking[:, 0].tolist() == [0, 1, 2, 3]
        assert results[-1].settings["metric"] == "l2"
        assert (results[-1].scores <= 0).all()
    np.testing.assert_allclose(results[0].scores, results[1].scores, atol=1e-5)
    with pytest.raises(ValueError, match=r"descriptors of LongColour mean nothing.*length is 0"):
        run(folder_protocol(folders / "database", folders / "queries", positives=POSITIVES), model=LongColour(0.0))


def test_the_cut_offs_of_the_field_and_of_the_original_are_the_default(folders, run):
    result = run(folder_protocol(folders / "database", folders / "queries", positives=POSITIVES))
    assert {1, 5, 10, 20} | {1, 5, 10, 100} == set(DEFAULT_KS) == result.recall.keys()
    assert result.recall == {1: 2 / 4, 5: 3 / 4, 10: 3 / 4, 20: 3 / 4, 100: 3 / 4}
