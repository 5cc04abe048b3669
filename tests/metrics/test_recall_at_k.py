import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image

from d2vpr_hf.evaluation.protocol import folder_protocol
from d2vpr_hf.evaluation.recall import hits_at_k, recall_at_k
from d2vpr_hf.evaluation.run import evaluate_protocol
from d2vpr_hf.retrieval.embedder import Embedder

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "metrics" / "recall_at_k"
PUBLISHED = ROOT.parent / "shared" / "data" / "metadata" / "vpr_bench"

PREDICTIONS = [[3, 1, 2], [0, 2, 1], [5, 6, -1]]
REFERENCES = [[3], [1, 7, 9, 4], []]
# Query 0 hits at rank 1, query 1 at rank 3, query 2 has nothing to find.
RESULT = {"recall@1": 1 / 3, "recall@3": 2 / 3, "queries": 3, "queries_without_positives": 1}


@pytest.fixture(scope="module")
def modules_cache(tmp_path_factory):
    """evaluate copies the metric to its cache before it imports it; here to one of the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path_factory.mktemp("modules"))
        yield


@pytest.fixture
def metric(modules_cache, tmp_path):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path / "rows"))


def kept_files(metric):
    """What the metric has left on disk, apart from its locks."""
    return [path.name for path in Path(metric.data_dir).rglob("*.arrow")]


def test_result_worked_out_by_hand(metric):
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES, k=[1, 3]) == RESULT
    # Without query 2, one of two queries hits at rank 1 and both within 3.
    counted = metric.compute(predictions=PREDICTIONS, references=REFERENCES, k=[3, 1], denominator="with_positives")
    assert counted == RESULT | {"recall@1": 1 / 2, "recall@3": 1.0}
    assert list(counted)[:2] == ["recall@3", "recall@1"]


def test_default_cut_offs_and_a_single_one(metric):
    rows = {"predictions": [list(range(10))], "references": [[4]]}
    assert metric.compute(**rows) == {
        "recall@1": 0.0, "recall@5": 1.0, "recall@10": 1.0, "queries": 1, "queries_without_positives": 0,
    }  # fmt: skip
    assert metric.compute(**rows, k=4)["recall@4"] == 0.0


def test_per_query_result_says_what_each_contributes(metric):
    result = metric.compute(predictions=PREDICTIONS, references=REFERENCES, k=[1, 3], per_query=True)
    assert result == RESULT | {
        "per_query": [
            {"first_hit": 1, "positives": 1, "hit@1": True, "hit@3": True},
            {"first_hit": 3, "positives": 4, "hit@1": False, "hit@3": True},
            {"first_hit": None, "positives": 0, "hit@1": False, "hit@3": False},
        ]
    }
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    "kind",
    [
        np.array,
        torch.tensor,
        pd.Series,
        lambda rows: [np.array(row, np.int32) for row in rows],
        lambda rows: tuple(tuple(row) for row in rows),
        lambda rows: datasets.Dataset.from_dict({"ids": rows})["ids"],
    ],
)
def test_kinds_of_collections_give_the_same_result(metric, kind):
    references = [{3}, range(1, 8), np.array([])]
    assert metric.compute(predictions=kind(PREDICTIONS), references=references, k=np.array([1, 3])) == RESULT


@pytest.mark.parametrize("seed", range(4))
def test_random_rankings_agree_with_the_library(metric, seed):
    """Rows of other lengths, queries without positives, large ids and rankings that run out among them."""
    random = np.random.default_rng(seed)
    ids = random.choice(2**62, 40, replace=False)
    ranking = np.stack([random.permutation(ids)[:12] for _ in range(50)])
    for row in random.choice(50, 8, replace=False):
        ranking[row, random.integers(0, 12) :] = -1
    positives = [random.choice(ids, random.integers(0, 6), replace=False) for _ in range(50)]
    ks = [1, 2, 5, 12]
    for denominator in ("all", "with_positives"):
        expected = recall_at_k(ranking, positives, ks, denominator)
        result = metric.compute(
            predictions=ranking, references=positives, k=ks, denominator=denominator, per_query=True
        )
        assert {k: result[f"recall@{k}"] for k in ks} == expected
        assert 0 < expected[1] < expected[5] < expected[12] < 1
    hits = [[query[f"hit@{k}"] for k in ks] for query in result["per_query"]]
    assert hits == hits_at_k(ranking, positives, ks).tolist()
    assert result["queries_without_positives"] == sum(not len(each) for each in positives)


def test_result_equals_the_runners(metric, tmp_path, tiny_model, tiny_processor):
    """The ranking of an evaluation, in which one query could not be read and there are few database photos."""
    random = np.random.default_rng(0)
    for split, count in (("database", 6), ("queries", 5)):
        (tmp_path / split).mkdir()
        for number in range(count):
            pixels = random.integers(0, 255, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).resize((64, 64)).save(tmp_path / split / f"{number}.png")
    (tmp_path / "queries" / "3.png").write_bytes(b"no photo")
    listed = {f"{query}.png": [f"{row}.png" for row in range(query, 4)] for query in range(5)}
    protocol = folder_protocol(tmp_path / "database", tmp_path / "queries", positives=listed)
    run = evaluate_protocol(protocol, Embedder(tiny_model, tiny_processor), ks=(1, 2, 5, 8), progress=False)
    result = metric.compute(
        predictions=run.ranking, references=protocol.positives, k=[1, 2, 5, 8], database_size=6, per_query=True
    )
    assert {f"recall@{k}": share for k, share in run.recall.items()}.items() <= result.items()
    assert run.recall[8] == 3 / 5  # query 3 can't be read and query 4 has no positive
    assert result["per_query"][3]["first_hit"] is None
    assert result["queries_without_positives"] == run.queries_without_positives == 1


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[3, 1], [0, 1.7]], [[3], [1]], r"predictions\[1\] holds 1.7"),
        ([[3, 1], [0, 2.0]], [[3], [1]], r"predictions\[1\] holds 2.0"),
        (np.array([[3.0, 1.0]]), [[3]], r"predictions\[0\] is of type float64"),
        ([[3], [0]], [[3], np.array([1.0])], r"references\[1\] is of type float64"),
        ([[3], [0]], [[3], ["a.jpg"]], r"references\[1\] holds 'a.jpg'"),
        (["31", "02"], [[3], [1]], r"predictions\[0\] is '31'"),
        ([b"31", b"02"], [[3], [1]], r"predictions\[0\] is b'31'"),
        ([[3], [True]], [[3], [1]], r"predictions\[1\] holds True"),
        (np.array([[True, False]]), [[1]], r"predictions\[0\] is of type bool"),
        ([[3], [None]], [[3], [1]], r"predictions\[1\] holds None"),
        ([[3], None], [[3], [1]], r"predictions\[1\] is None"),
        ([[3], [[4]]], [[3], [1]], r"predictions\[1\] holds \[4\]"),
        (np.zeros((2, 1, 1), int), [[3], [1]], r"predictions\[0\] has shape \(1, 1\)"),
        ([3, 0], [[3], [1]], r"predictions\[0\] is 3"),
        (np.array([3, 0]), [[3], [1]], r"predictions\[0\] is .*3"),
        ([[3], [0]], 3, "references isn't a list of rows"),
        ("31", [[3], [1]], "predictions isn't a list of rows"),
        ([[3], [0]], [[3], [1, -1]], r"references\[1\] holds -1"),
        ([[3, 1], [-1, 2]], [[3], [1]], r"predictions\[1\] holds -1 at rank 1"),
        ([[3, 1], [2, -2]], [[3], [1]], r"predictions\[1\] holds -2 at rank 2"),
        ([[3, 1], [2, 2]], [[3], [1]], r"predictions\[1\] holds 2 more than once"),
        ([[3, 1], [2, 2**63]], [[3], [1]], r"predictions\[1\] holds 9223372036854775808"),
        ([[3], [2]], [[3], [1, 2**70]], r"references\[1\] holds 1180591620717411303424"),
        (np.array([[2**63]], np.uint64), [[3]], r"predictions\[0\] is of type uint64"),
        ([[3], [2]], [[3]], "predictions has 2 rows and references 1"),
        ([[3], [2]], None, "references is missing"),
        ([], [], "no query to score"),
        (None, None, "no query to score"),
    ],
)
def test_what_is_no_id_is_refused_with_its_row(metric, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=references, k=[1])
    # Nothing of it is left to spoil the next result.
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES, k=[1, 3]) == RESULT
    assert kept_files(metric) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": [1, 4]}, r"k holds 4, but predictions\[1\] has 3 answers"),
        ({"k": [0]}, "k holds 0"),
        ({"k": [1.0]}, "k holds 1.0"),
        ({"k": True}, "k holds True"),
        ({"k": "5"}, "k holds '5'"),
        ({"k": []}, "k is empty"),
        ({"k": [1], "denominator": "some"}, "denominator is 'some'"),
        ({"k": [1], "database_size": 7}, r"references\[1\] holds 9, but a database of 7 has the ids 0 to 6"),
        ({"k": [1], "database_size": 6}, r"predictions\[2\] holds 6, but a database of 6"),
        ({"k": [1], "database_size": 7.5}, "database_size is 7.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(metric, settings, message):
    predictions = [[3, 1, 2, 0], *PREDICTIONS[1:]]
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=predictions, references=REFERENCES, **settings)
    assert metric.compute(predictions=predictions, references=REFERENCES, k=[1, 3], database_size=10) == RESULT
    assert kept_files(metric) == []


def test_unknown_names_are_refused(metric):
    with pytest.raises(TypeError, match="top"):
        metric.compute(predictions=PREDICTIONS, references=REFERENCES, top=3)
    with pytest.raises(ValueError, match=r"no input \['labels'\]"):
        metric.add_batch(predictions=PREDICTIONS, references=REFERENCES, labels=[])
    with pytest.raises(ValueError, match=r"no input \['label'\]"):
        metric.add(prediction=[1], reference=[1], label=[])


def test_queries_without_positives_alone_leave_nothing_to_divide_by(metric):
    assert metric.compute(predictions=[[1], [2]], references=[[], []], k=[1])["recall@1"] == 0.0
    with pytest.raises(ValueError, match="None of the 2 queries has a positive"):
        metric.compute(predictions=[[1], [2]], references=[[], []], k=[1], denominator="with_positives")


def test_rows_may_come_one_by_one_and_in_batches(metric):
    metric.add(prediction=PREDICTIONS[0], reference=REFERENCES[0])
    with pytest.raises(ValueError, match=r"predictions\[1\] holds 0.5"):
        metric.add(prediction=[0.5], reference=[1])
    metric.add_batch(predictions=PREDICTIONS[1:], references=REFERENCES[1:])
    with pytest.raises(ValueError, match=r"references\[4\] holds 'a'"):
        metric.add_batch(predictions=PREDICTIONS[:2], references=[[1], ["a"]])
    assert metric.compute(k=[1, 3]) == RESULT
    with pytest.raises(ValueError, match="no query to score"):
        metric.compute(k=[1, 3])


def test_it_combines_as_other_metrics_do(metric, modules_cache, tmp_path):
    other = evaluate.load(str(FOLDER), cache_dir=str(tmp_path / "rows"), experiment_id="other", keep_in_memory=True)
    both = evaluate.combine({"one": metric, "two": other})
    expected = {f"{name}_{key}": value for name in ("one", "two") for key, value in RESULT.items()}
    assert both.compute(predictions=PREDICTIONS, references=REFERENCES, k=[1, 3]) == expected
    both.add(PREDICTIONS[0], REFERENCES[0])
    both.add_batch(PREDICTIONS[1:], REFERENCES[1:])
    assert both.compute(k=[1, 3]) == expected


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"published scores are not at {PUBLISHED}")
def test_published_scores_give_the_published_recall(metric):
    scores = np.load(PUBLISHED / "corridor_scores.npz")
    named = json.loads((PUBLISHED / "corridor_positives.json").read_text())
    positives = [named[str(query)] for query in range(len(named))]
    found = {}
    for method in ("HybridNet", "denseVLAD", "NetVLAD"):
        # Stable, so that equal scores keep the order of the database.
        ranking = np.argsort(-scores[method], axis=1, kind="stable")
        result = metric.compute(
            predictions=ranking, references=positives, k=[1, 5, 20], database_size=scores[method].shape[1]
        )
        assert {k: result[f"recall@{k}"] for k in (1, 5, 20)} == recall_at_k(ranking, positives, (1, 5, 20))
        found[method] = round(result["recall@1"], 3)
    assert found == {"HybridNet": 0.901, "denseVLAD": 0.703, "NetVLAD": 0.676}


WITHOUT_NETWORK = """
import json
import socket
import sys

asked = []

def refuse(*args, **options):
    asked.append(str(args))
    raise OSError("there is no network here")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import evaluate

metric = evaluate.load("metrics/recall_at_k")
result = metric.compute(predictions=[[3, 1, 2], [0, 2, 1], [5, 6, -1]], references=[[3], [1, 7, 9, 4], []], k=[1, 3])
ours = [name for name in sys.modules if name.split(".")[0] in ("d2vpr_hf", "faiss")]
print(json.dumps({"result": result, "asked": asked, "ours": ours}))
"""


def test_it_loads_in_a_process_without_network(tmp_path):
    """From the folder alone: caches are empty, the package is not imported, and nobody asks for another host."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and name != "PYTHONPATH"}
    environment = kept | {"HF_HOME": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {"result": RESULT, "asked": [], "ours": []}


def test_card_is_that_of_a_space_and_its_example_prints_what_it_says(modules_cache, monkeypatch):
    monkeypatch.chdir(ROOT)
    card = SpaceCard.load(FOLDER / "README.md")
    assert card.data.sdk == "gradio"
    assert (FOLDER / card.data.app_file).is_file()
    assert {"evaluate", "metric"} <= set(card.data.tags)
    code, printed = card.text.split("```python\n", 1)[1].split("```", 3)[:3:2]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, {})
    assert output.getvalue().strip() == printed.strip()


def test_page_shows_the_result_and_what_is_wrong(modules_cache):
    gradio = pytest.importorskip("gradio", reason="gradio, which the Space's page needs, is not installed")
    spec = importlib.util.spec_from_file_location("recall_at_k_app", FOLDER / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    assert app.page().fn is app.score
    assert app.score(json.dumps(PREDICTIONS), json.dumps(REFERENCES), "[1, 3]", "all") == RESULT
    with pytest.raises(gradio.Error, match=r"predictions\[0\] holds 3.5"):
        app.score("[[3.5]]", "[[3]]", "[1]", "all")
    with pytest.raises(gradio.Error, match="references isn't JSON"):
        app.score("[[3]]", "[[3", "[1]", "all")
    for example in app.EXAMPLES:
        assert 0 < app.score(*example)["recall@1"] < 1
