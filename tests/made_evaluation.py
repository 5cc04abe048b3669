"""An evaluation of made rankings, for the tests of what is drawn and written from one."""

from pathlib import Path

import numpy as np

from d2vpr_hf.evaluation.protocol import Protocol
from d2vpr_hf.evaluation.recall import recall_at_k
from d2vpr_hf.evaluation.results import Evaluation
from d2vpr_hf.photos.folder import PhotoFolder
from d2vpr_hf.photos.positions import Positions

METRES_A_DEGREE = 111_194.0
SETTINGS = {
    "k": [1, 3, 5],
    "query_method": "hard_resize",
    "metric": "inner_product",
    "batch_size": 32,
    "batch_rule": "each photo by itself: the batch size changes nothing",
    "dtype": "float32",
    "device": "cpu",
    "dim": 16,
    "image_size": {"height": 56, "width": 70},
}


def photos(names, north_m, longitude=15.0):
    """Photos so many metres north of a point in zone 33; nan where unknown. No file is there."""
    north_m = np.asarray(north_m, float)
    latitude = 48.0 + north_m / METRES_A_DEGREE
    positions = Positions.from_degrees(latitude, np.where(np.isnan(north_m), np.nan, longitude))
    return PhotoFolder(Path("photos"), [Path("photos") / name for name in names], list(names), positions)


def made_evaluation(ranking=None, *, positives=None, labels=True, longitude=15.0, name="model", **settings):
    """Six database photos 100 m apart on a line and four queries beside the first four of them.

    By default queries 0 and 1 are right at once, query 2 at rank 3, and query 3 never.
    """
    ranking = [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 4, 2, 0, 1], [0, 1, 2, 4, 5]] if ranking is None else ranking
    ranking = np.array(ranking)
    positives = [[0], [1], [2], [3]] if positives is None else positives
    protocol = Protocol(
        "made",
        photos([f"database{row}.jpg" for row in range(6)], [0, 100, 200, 300, 400, 500], longitude),
        photos([f"query{row}.jpg" for row in range(4)], [5, 105, 205, 305], longitude),
        [np.array(each, np.int64) for each in positives] if labels else None,
        "made",
        notes=("The number of photos is not verified (made).",),
    )
    scores = np.linspace(0.9, 0.5, ranking.size, dtype=np.float32).reshape(ranking.shape)
    return Evaluation(
        protocol=protocol,
        recall=recall_at_k(ranking, protocol.positives, (1, 3, 5)) if labels else None,
        ranking=ranking,
        scores=scores,
        database_names=protocol.database.names,
        skipped={"database": [], "queries": []},
        model_name=name,
        weight_hash="a" * 64,
        settings=SETTINGS | settings,
        versions={"python": "3"},
        command=["d2vpr"],
    )
