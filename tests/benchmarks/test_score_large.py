import argparse
import importlib.util
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from d2vpr_hf.evaluation.recall import recall_at_k

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "score_large.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("score_large", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_ways_of_a_made_benchmark_give_what_brute_force_gives(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    options = argparse.Namespace(database=5000, queries=200, dim=64, k=[1, 5, 20], threads=torch.get_num_threads())
    script.write_descriptors(tmp_path, options.database, options.queries, options.dim, seed=0)
    database, queries = (np.fromfile(tmp_path / f"{split}.f32", np.float32) for split in ("database", "queries"))
    ranking = np.argsort(-(queries.reshape(-1, 64) @ database.reshape(-1, 64).T), axis=1, kind="stable")[:, :20]
    # No neighbour looks like a query, so that a hit is nearly always the photo that it was made from.
    shown = [[row] for row in np.load(tmp_path / "rows.npy")]
    found = recall_at_k(ranking, shown, options.k)
    assert 0.2 < found[1] < found[20] < 0.95

    results = {way: script.measure(way, tmp_path, options) for way in ("index", "mapped")}
    for way, result in results.items():
        # Scores that differ in their last bits alone may change places.
        assert (np.load(tmp_path / f"{way}.npy") == ranking).mean() > 0.999
        assert 0 <= result["recall"]["recall@1"] - found[1] < 0.05
        # Inside the grid there are 19 photos within 25 m: rows 24, 14 and 4 m south and 6 and 16 m north of the query
        # hold 1, 5, 5, 5 and 3. At its edges there are fewer.
        assert 17 < result["positives_a_query"] < 19
        assert result["peak_bytes"] >= result["before_bytes"] > 10**8
        assert all(seconds > 0 for seconds in result["seconds"].values())
    # 561.168 times as many photos for 5 times as many queries.
    estimate = script.sf_xl("mapped", results["mapped"], options)
    assert estimate["seconds"] == pytest.approx(2_805.84 * results["mapped"]["seconds"]["rank"])
    script.print_results(options, results, 1.0, {way: script.sf_xl(way, results[way], options) for way in results})
    printed = capsys.readouterr().out
    assert "5,000 database photos, 200 queries, 64 numbers" in printed
    assert f"recall@1 {results['mapped']['recall']['recall@1']:.4f}" in printed
