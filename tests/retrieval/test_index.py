import numpy as np
import pytest

from d2vpr_hf.photos.positions import Positions, distances_m
from d2vpr_hf.retrieval import index as module
from d2vpr_hf.retrieval.embedder import Descriptors
from d2vpr_hf.retrieval.index import PlaceIndex

WEIGHTS, OTHER_WEIGHTS = "a" * 64, "b" * 64


def unit_vectors(rows, dim=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def descriptors(rows=30, dim=16, seed=0, prefix="place", weight_hash=WEIGHTS):
    paths = [f"{prefix}/{row:04d}.jpg" for row in range(rows)]
    return Descriptors(unit_vectors(rows, dim, seed), paths, [], "tiny", weight_hash)


def line_of_places(rows, step_m=20.0):
    """Places on a line to the north, `step_m` apart, in UTM zone 33 north."""
    return Positions.from_degrees(48.0 + np.arange(rows) * step_m / 111_194.0, np.full(rows, 15.0))


@pytest.fixture
def index():
    return PlaceIndex.build(descriptors(), line_of_places(30))


def test_search_agrees_with_a_matrix_product(index):
    queries = descriptors(8, seed=1)
    matches = index.search(queries, 6)
    scores = queries.vectors @ descriptors().vectors.T
    expected = np.argsort(-scores, axis=1)[:, :6]
    np.testing.assert_array_equal(matches.ids, expected)
    np.testing.assert_allclose(matches.scores, np.take_along_axis(scores, expected, 1), atol=1e-6)
    assert matches.paths[3, 2] == f"place/{expected[3, 2]:04d}.jpg"
    np.testing.assert_array_equal(matches.latitude, line_of_places(30).latitude[expected])
    # Places stand 20 m apart on a line, so that two of them are 20 m times the difference of their ids apart.
    np.testing.assert_allclose(
        matches.distances_m, 20.0 * np.abs(expected[:, :, None] - expected[:, None]), rtol=2e-3, atol=1e-6
    )


def test_a_permuted_database_gives_the_permuted_ranking(index):
    order = np.random.default_rng(1).permutation(30)
    given = descriptors()
    permuted = Descriptors(given.vectors[order], [given.paths[row] for row in order], [], "tiny", WEIGHTS)
    queries = unit_vectors(25, seed=1)
    found, expected = PlaceIndex.build(permuted).search(queries, 30), index.search(queries, 30)
    np.testing.assert_array_equal(found.paths, expected.paths)
    np.testing.assert_array_equal(order[found.ids], expected.ids)
    assert (found.ids != expected.ids).any()
    assert len({tuple(row) for row in expected.ids}) == 25  # a constant ranking would pass the lines above


def test_equal_scores_stand_in_the_order_of_their_ids():
    vectors = np.repeat(unit_vectors(1), 40, axis=0)
    index = PlaceIndex.build(Descriptors(vectors, [f"{row}.jpg" for row in range(40)], [], "tiny", WEIGHTS))
    for queries in (vectors[:1], np.repeat(vectors[:1], 30, axis=0)):
        assert (np.diff(index.search(queries, 40).ids, axis=1) == 1).all()


def test_a_row_runs_out_of_places(index):
    matches = index.search(unit_vectors(2, seed=3), 33)
    assert (matches.ids[:, 30:] == -1).all()
    assert (matches.ids[:, :30] >= 0).all()
    assert np.isnan(matches.scores[:, 30:]).all()
    assert np.isnan(matches.latitude[:, 30:]).all()
    assert (matches.paths[:, 30:] == "").all()
    assert np.isnan(matches.distances_m[:, 30:]).all()
    assert np.isfinite(matches.distances_m[:, :30, :30]).all()


def test_near_and_exclude_restrict_before_ranking(index):
    where = line_of_places(30)
    query = descriptors().vectors[25:26]  # its own photo lies 500 m north of the first place
    assert index.search(query, 1).ids[0, 0] == 25
    near = index.search(query, 10, near=(where.latitude[2], where.longitude[2]), radius_m=41.0)
    assert sorted(near.ids[0, :5]) == [0, 1, 2, 3, 4]
    assert (near.ids[0, 5:] == -1).all()
    excluded = index.search(np.repeat(query, 30, axis=0), 30, exclude=[25, 3])
    assert (np.sort(excluded.ids, axis=1)[:, 2:] == [id for id in range(30) if id not in (3, 25)]).all()
    both = index.search(query, 5, near=(where.latitude[2], where.longitude[2]), radius_m=41.0, exclude=np.array([0, 4]))
    assert sorted(both.ids[0]) == [-1, -1, 1, 2, 3]
    assert (index.search(query, 3, exclude=range(30)).ids == -1).all()
    assert (index.search(query, 3, near=(-40.0, 170.0), radius_m=1e5).ids == -1).all()


def test_near_is_inclusive_and_crosses_the_date_line():
    places = Positions.from_degrees([0.0, 0.0, 0.0], [179.9999, -179.9999, 179.0])
    index = PlaceIndex.build(descriptors(3), places)
    found = index.search(unit_vectors(1), 3, near=(0.0, 180.0), radius_m=12.0)  # both are 11.1 m away
    assert sorted(found.ids[0]) == [-1, 0, 1]
    assert sorted(index.search(unit_vectors(1), 3, near=(0.0, 179.0), radius_m=0).ids[0]) == [-1, -1, 2]


def test_photos_without_coordinates_are_never_near():
    places = Positions.from_degrees([48.0, np.nan, 48.0], [15.0, np.nan, 15.0])
    index = PlaceIndex.build(descriptors(3), places)
    assert sorted(index.search(unit_vectors(1), 3, near=(48.0, 15.0), radius_m=1e6).ids[0]) == [-1, 0, 2]
    assert sorted(index.search(unit_vectors(1), 3).ids[0]) == [0, 1, 2]
    assert (
        PlaceIndex.build(descriptors(3)).search(unit_vectors(1), 3, near=(48.0, 15.0), radius_m=1e6).ids == -1
    ).all()


def test_ids_are_never_given_twice(index, tmp_path):
    assert index.remove([29, 28, 5]) == 3
    assert len(index) == 27
    assert 5 not in index.search(descriptors().vectors[5:6], 27).ids
    assert index.add(descriptors(2, seed=5, prefix="new")).tolist() == [30, 31]
    assert index.remove(range(30, 32)) == 2
    index.save(tmp_path / "places")
    loaded = PlaceIndex.load(tmp_path / "places")
    assert loaded.add(descriptors(1, seed=6, prefix="newer")).tolist() == [32]
    assert loaded.search(descriptors(1, seed=6).vectors, 1).paths[0, 0] == "newer/0000.jpg"


def test_removing_is_by_known_ids_and_can_empty_the_index(index):
    with pytest.raises(ValueError, match=r"no places with the ids 77"):
        index.remove([1, 77])
    assert len(index) == 30
    assert index.remove(index.places["id"]) == 30
    assert (index.search(unit_vectors(2), 3).ids == -1).all()
    assert index.threshold.score is None


def test_adding_a_path_twice_names_it(index):
    with pytest.raises(ValueError, match=r"already has place/0000.jpg, place/0001.jpg\. Remove"):
        index.add(descriptors(2))
    twice = Descriptors(unit_vectors(2), ["a.jpg", "a.jpg"], [], "tiny", WEIGHTS)
    with pytest.raises(ValueError, match=r"a\.jpg more than once"):
        PlaceIndex.build(twice)
    assert len(index) == 30


def test_size_and_time_of_files_are_kept(tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"12345")
    given = Descriptors(unit_vectors(2), [str(photo), "0"], [], "tiny", WEIGHTS)
    places = PlaceIndex.build(given).places
    assert places["size_bytes"].tolist() == [5, -1]
    assert places["mtime_ns"].tolist() == [photo.stat().st_mtime_ns, -1]


def test_descriptors_of_another_model_are_refused(index):
    other = descriptors(2, prefix="other", weight_hash=OTHER_WEIGHTS)
    for call in (index.search, index.add):
        with pytest.raises(ValueError, match=r"tiny \(weights aaaaaaaa\).*\(weights bbbbbbbb\).*d2vpr index"):
            call(other)
    with pytest.raises(ValueError, match=r"shape \(2, 8\).*\(rows, 16\)"):
        index.search(unit_vectors(2, dim=8))
    with pytest.raises(ValueError, match=r"\(1, 16\)"):
        index.search(unit_vectors(1)[0])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3.0, 0.0])
def test_rows_that_mean_nothing_are_named(index, wrong):
    given = descriptors(4, seed=4, prefix="new")
    given.vectors[2] *= wrong
    for call in (index.search, index.add):
        with pytest.raises(ValueError, match=r"rows 2 \['new/0002.jpg'\]"):
            call(given)
    assert len(index) == 30
    assert index.search(given.vectors[:2], 30).ids.max() == 29  # nothing of the refused ones was added


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 1.5}, "k is 1.5"),
        ({"near": (48.0, 15.0)}, "go together"),
        ({"radius_m": 5.0}, "go together"),
        ({"near": (98.0, 15.0), "radius_m": 5.0}, "within ±90"),
        ({"near": (48.0, 15.0), "radius_m": -5.0}, "metres from 0"),
        ({"near": (48.0, 15.0), "radius_m": np.nan}, "metres from 0"),
        ({"near": 48.0, "radius_m": 5.0}, "within ±90"),
        ({"exclude": ["a.jpg"]}, "exclude holds"),
    ],
)
def test_wrong_options_are_refused(index, options, message):
    with pytest.raises(ValueError, match=message):
        index.search(unit_vectors(1), **options)


def test_rows_must_fit():
    with pytest.raises(ValueError, match="2 positions for 3 descriptors"):
        PlaceIndex.build(descriptors(3), line_of_places(2))
    given = descriptors(3)
    given.paths.pop()
    with pytest.raises(ValueError, match="3 rows but 2 paths"):
        PlaceIndex.build(given)
    with pytest.raises(ValueError, match="1 photos were skipped"):
        PlaceIndex.build(Descriptors(np.empty((0, 16), np.float32), [], [("a.jpg", "empty")], "tiny", WEIGHTS))


def test_vectors_come_back_by_id():
    descriptors = Descriptors(np.eye(3, dtype=np.float32), ["a", "b", "c"], [], "made", "0" * 64)
    index = PlaceIndex.build(descriptors)
    ids = index.places["id"].to_numpy()
    np.testing.assert_array_equal(index.vectors(ids[[2, 0]]), np.eye(3, dtype=np.float32)[[2, 0]])
    with pytest.raises(ValueError, match="aren't in the index"):
        index.vectors(int(ids.max()) + 1)


@pytest.mark.parametrize("queries", [1, 40])
def test_what_may_be_the_answer_is_ranked_as_among_all(queries):
    random = np.random.default_rng(3)
    where = Positions.from_degrees(48 + random.random(200) / 10, 11 + random.random(200) / 10)
    given = descriptors(200)
    index = PlaceIndex.build(given, where)
    index.remove(range(0, 200, 7))
    asked = unit_vectors(queries, seed=2)
    for radius_m in (0.0, 900.0, 3000.0, 6000.0, 1e5):
        near = (48.05, 11.05)
        metres = distances_m(*near, where.latitude, where.longitude)
        allowed = [row for row in range(200) if row % 7 and metres[row] <= radius_m and row != 5]
        scores = asked @ given.vectors[allowed].T
        expected = np.full((queries, 200), -1)
        expected[:, : len(allowed)] = np.array(allowed, int)[np.argsort(-scores, axis=1)]
        found = index.search(asked, 200, near=near, radius_m=radius_m, exclude=[5])
        np.testing.assert_array_equal(found.ids, expected)
    assert len(allowed) == 170


def test_near_is_exact_at_its_edge(monkeypatch):
    """By the sphere alone, which is up to 0.6 % off, some would fall on the wrong side; those alone are looked at."""
    asked = []

    def counted(*degrees):
        asked.append(np.size(degrees[2]))
        return distances_m(*degrees)

    monkeypatch.setattr(module, "distances_m", counted)
    random = np.random.default_rng(0)
    where = Positions.from_degrees(-60 + random.random(3000), 20 + random.random(3000))
    index = PlaceIndex.build(descriptors(3000, dim=2), where)
    metres = distances_m(-59.5, 20.5, where.latitude, where.longitude)
    for radius_m in np.sort(metres)[[5, 500, 1500, 2900]]:
        found = index.search(unit_vectors(1, dim=2), 3000, near=(-59.5, 20.5), radius_m=radius_m)
        assert set(found.ids[0]) - {-1} == set(np.flatnonzero(metres <= radius_m))
    index.search(unit_vectors(1, dim=2), 5, near=(-59.5, 20.5), radius_m=1e6)
    assert len(asked) == 5
    assert 0 < sum(asked) < 3000 / 4


def test_descriptors_of_other_settings_are_refused(tmp_path):
    def made(prefix, size, dtype="float32"):
        given = descriptors(3, prefix=prefix)
        given.processor, given.dtype = size and {"size": size}, dtype
        return given

    index = PlaceIndex.build(made("a", 224))
    index.save(tmp_path)
    index = PlaceIndex.load(tmp_path)
    assert (index.processor, index.dtype) == ({"size": 224}, "float32")
    for call in (index.search, index.add):
        with pytest.raises(ValueError, match=r"other settings \(processor size 224, now 168\).*d2vpr index"):
            call(made("b", 168))
        with pytest.raises(ValueError, match="dtype float32, now bfloat16"):
            call(made("b", 224, "bfloat16"))
    assert len(index) == 3
    index.add(made("b", None, None))  # of which nobody knows
    index.add(made("c", 224))
    assert len(index) == 9
