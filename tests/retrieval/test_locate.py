import json
from dataclasses import asdict

import numpy as np
import pytest

from d2vpr_hf.photos.positions import Positions
from d2vpr_hf.retrieval.embedder import Descriptors
from d2vpr_hf.retrieval.index import PlaceIndex
from d2vpr_hf.retrieval.locate import locate

WEIGHTS = "a" * 64
METRES_A_DEGREE = 111_194.0


def described(vectors, prefix="place"):
    vectors = np.asarray(vectors, np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return Descriptors(vectors, [f"{prefix}/{row}.jpg" for row in range(len(vectors))], [], "tiny", WEIGHTS)


def north(*metres):
    """Places on a meridian, so many metres north of 48 degrees; nan is a place without coordinates."""
    metres = np.array(metres, float)
    return Positions.from_degrees(48.0 + metres / METRES_A_DEGREE, np.where(np.isnan(metres), np.nan, 15.0))


# Four places whose scores with the query (1, 0) fall in their order.
FAN = [[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3]]
QUERY = described([[1.0, 0.0]], prefix="query")


def test_confidence_is_the_agreement_of_the_matches():
    # The matches of rank 1, 2 and 4 stand within 25 m of the first, that of rank 3 doesn't:
    # (1 + 1/2 + 1/4) / (1 + 1/2 + 1/3 + 1/4) = 21/25.
    (answer,) = locate(QUERY, PlaceIndex.build(described(FAN), north(0, 20, 60, 10)), k=4)
    assert answer.confidence == pytest.approx(21 / 25)
    assert (answer.query, answer.latitude, answer.longitude) == ("query/0.jpg", 48.0, 15.0)
    assert answer.score == pytest.approx(1.0)
    assert [candidate["path"] for candidate in answer.candidates] == [f"place/{rank}.jpg" for rank in range(4)]
    assert [candidate["distance_m"] for candidate in answer.candidates] == pytest.approx([0, 20, 60, 10], rel=2e-3)
    (wider,) = locate(QUERY, PlaceIndex.build(described(FAN), north(0, 20, 60, 10)), k=4, same_place_m=70)
    assert wider.confidence == 1.0


def test_a_match_without_coordinates_agrees_with_nothing():
    # Rank 2 is unknown: (1 + 1/3 + 1/4) / (1 + 1/2 + 1/3 + 1/4) = 19/25.
    (answer,) = locate(QUERY, PlaceIndex.build(described(FAN), north(0, np.nan, 5, 10)), k=4)
    assert answer.confidence == pytest.approx(19 / 25)
    assert answer.candidates[1]["distance_m"] is None
    assert answer.candidates[1]["latitude"] is None


def test_without_coordinates_there_is_a_match_but_no_confidence():
    (answer,) = locate(QUERY, PlaceIndex.build(described(FAN), north(np.nan, 0, 5, 10)))
    assert (answer.confidence, answer.latitude, answer.longitude) == (None, None, None)
    assert answer.in_map
    assert answer.candidates[0]["path"] == "place/0.jpg"


def test_a_single_match_has_nothing_to_agree_with():
    index = PlaceIndex.build(described(FAN), north(0, 20, 60, 10))
    assert locate(QUERY, index, k=1)[0].confidence is None
    index.remove([1, 2, 3])
    (answer,) = locate(QUERY, index)
    assert answer.confidence is None
    assert len(answer.candidates) == 1
    index.remove([0])
    (answer,) = locate(QUERY, index)
    assert (answer.in_map, answer.score, answer.latitude, answer.candidates) == (False, None, None, [])


def test_a_photo_below_the_threshold_is_not_in_the_map():
    random = np.random.default_rng(0)
    # Twenty places 200 m apart, four photos of each; a photo of place 20 isn't in the index.
    centres = random.standard_normal((21, 32))
    views = (centres[:, None] + 0.3 * random.standard_normal((21, 5, 32))).reshape(-1, 32)
    place, view = np.divmod(np.arange(105), 5)
    database, queries = (place < 20) & (view < 4), view == 4
    index = PlaceIndex.build(described(views[database]), north(*(200.0 * place[database])))
    answers = locate(described(views[queries], prefix="query"), index)
    assert [answer.in_map for answer in answers] == [True] * 20 + [False]
    assert answers[0].threshold == index.threshold.score
    assert answers[20].score < index.threshold.score < answers[0].score
    assert [answer.confidence > 0.9 for answer in answers[:20]] == [True] * 20
    assert all(answer.in_map for answer in locate(described(views[queries]), index, threshold=-1.0))
    assert not any(answer.in_map for answer in locate(described(views[queries]), index, threshold=1.1))


def test_without_a_threshold_everything_is_in_the_map_and_the_answer_says_so():
    (answer,) = locate(described([[-1.0, 0.0]]), PlaceIndex.build(described(FAN), north(0, 20, 60, 10)))
    assert answer.in_map
    assert answer.threshold is None


def test_answers_are_json():
    answers = locate(QUERY, PlaceIndex.build(described(FAN), north(0, np.nan, 5, 10)))
    assert json.loads(json.dumps([asdict(answer) for answer in answers], allow_nan=False))[0]["query"] == "query/0.jpg"


def test_no_query_no_answer_and_a_radius_is_needed():
    index = PlaceIndex.build(described(FAN), north(0, 20, 60, 10))
    assert locate(Descriptors(np.empty((0, 2), np.float32), [], [], "tiny", WEIGHTS), index) == []
    with pytest.raises(ValueError, match="same_place_m is 0"):
        locate(QUERY, index, same_place_m=0)


def test_only_what_may_be_the_answer_is_ranked():
    index = PlaceIndex.build(described(FAN), north(0, 20, 60, 10))
    (free,) = locate(QUERY, index, k=4)
    first = free.candidates[0]["path"]
    excluded = index.places["id"][index.places["path"] == first]
    (without,) = locate(QUERY, index, k=4, exclude=excluded)
    assert [each["path"] for each in without.candidates] == [each["path"] for each in free.candidates[1:]]
    far = max(free.candidates, key=lambda each: each["latitude"])
    (near,) = locate(QUERY, index, k=4, near=(far["latitude"], far["longitude"]), radius_m=15)
    assert [each["path"] for each in near.candidates] == [far["path"]]
