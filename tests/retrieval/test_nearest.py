import numpy as np
import pytest

from d2vpr_hf.retrieval.nearest import nearest_rows


def vectors(rows, dim=24, seed=0):
    made = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def longer(made, seed=5):
    """The same directions in other lengths, by which the two metrics rank differently."""
    return made * np.random.default_rng(seed).uniform(0.5, 1.5, (len(made), 1)).astype(np.float32)


@pytest.mark.parametrize("block_bytes", [1, 4 * 24 * 7, 2**20])
@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_blocks_of_any_size_agree_with_all_pairs(metric, block_bytes):
    queries, database = vectors(11, seed=1), longer(vectors(60))
    exact = {
        "inner_product": queries.astype(np.float64) @ database.T,
        "l2": -np.linalg.norm(queries[:, None].astype(np.float64) - database, axis=2),
    }
    expected = np.argsort(-exact[metric], axis=1)[:, :9]
    scores, rows = nearest_rows(queries, database, 9, metric, block_bytes=block_bytes)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(exact[metric], expected, 1), atol=1e-5)
    other = "l2" if metric == "inner_product" else "inner_product"
    assert (nearest_rows(queries, database, 9, other)[1] != rows).any()


def test_a_mapped_database_gives_what_one_in_memory_gives(tmp_path):
    database, queries = vectors(50), vectors(4, seed=1)
    database.tofile(tmp_path / "database")
    mapped = np.memmap(tmp_path / "database", np.float32, "r", shape=database.shape)
    for found, expected in zip(
        nearest_rows(queries, mapped, 3, "l2", block_bytes=500), nearest_rows(queries, database, 3, "l2"), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_scores_stand_in_the_order_of_their_rows_across_blocks():
    database = np.repeat(vectors(1), 12, axis=0)
    _, rows = nearest_rows(database[:2], database, 12, "inner_product", block_bytes=4 * 24 * 5)
    assert rows.tolist() == [list(range(12))] * 2


def test_a_row_runs_out_of_answers():
    scores, rows = nearest_rows(vectors(2, seed=1), vectors(3), 5, "inner_product")
    assert sorted(rows[0, :3].tolist()) == [0, 1, 2]
    assert (rows[:, 3:] == -1).all()
    assert np.isnan(scores[:, 3:]).all()
    assert np.isfinite(scores[:, :3]).all()
