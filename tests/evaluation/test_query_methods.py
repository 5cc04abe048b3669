import numpy as np
import pytest
import torch
from PIL import Image

from d2vpr_hf.evaluation.query_methods import QUERY_METHODS, QueryView, query_views, rank_views
from d2vpr_hf.retrieval.similarity import nearest_rows


def photo(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def view(processor, method, number=0, patch_size=14):
    return QueryView(processor, method, number, patch_size)


def unit(rows, dim=12, seed=0):
    made = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def searching(database, metric):
    return lambda queries, depth: nearest_rows(queries, database, depth, metric)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (90, 160), (100, 100)])
def test_views_have_the_sizes_of_their_method(tiny_processor, width, height):
    image = photo(width, height)
    for method in ("central_crop", "five_crops"):
        assert view(tiny_processor, method).cut(image).size == (56, 56)
    whole = view(tiny_processor, "single_query").cut(image)
    assert min(whole.size) == 56
    assert {side % 14 for side in whole.size} == {0}
    assert abs(whole.width / whole.height - width / height) < 14 / 56
    free = view(tiny_processor, "single_query", patch_size=1).cut(image)
    assert free.size == {(640, 480): (74, 56), (90, 160): (56, 99), (100, 100): (56, 56)}[width, height]


def test_five_crops_are_corners_and_middle(tiny_processor):
    image = Image.new("RGB", (112, 56))
    image.paste((255, 0, 0), (0, 0, 56, 56))
    image.paste((0, 0, 255), (56, 0, 112, 56))
    means = [np.asarray(view(tiny_processor, "five_crops", number).cut(image)).mean(axis=(0, 1)) for number in range(5)]
    np.testing.assert_allclose(
        means, [[255, 0, 0], [0, 0, 255], [255, 0, 0], [0, 0, 255], [127.5, 0, 127.5]], atol=0.01
    )


@pytest.mark.parametrize(("width", "height"), [(131, 77), (60, 200), (56, 56), (30, 20), (640, 480)])
def test_the_central_crop_picks_the_pixels_that_torch_picks(tiny_processor, width, height):
    image = photo(width, height)
    scale = max(56 / height, 56 / width)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    scaled = torch.nn.functional.interpolate(tensor, scale_factor=scale)[0]
    top, left = round((scaled.shape[1] - 56) / 2), round((scaled.shape[2] - 56) / 2)
    expected = scaled[:, top : top + 56, left : left + 56].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(np.asarray(view(tiny_processor, "central_crop").cut(image)), expected)


def test_views_are_normalised_by_the_processor_and_go_into_the_model(tiny_model, tiny_processor):
    image = photo(90, 60)
    for method in QUERY_METHODS:
        processors = query_views(method, tiny_processor, tiny_model)
        assert len(processors) == (5 if method in ("five_crops", "nearest_crop", "maj_voting") else 1)
        pixels = [processor(image, return_tensors="pt")["pixel_values"] for processor in processors]
        with torch.inference_mode():
            found = torch.cat([tiny_model(each).pooler_output for each in pixels])
        # In a photo that is wider than high, the upper and the lower corner's crops are the same.
        assert len({tuple(row.tolist()) for row in found}) == (3 if len(processors) == 5 else 1)
    plain = tiny_processor(view(tiny_processor, "central_crop").cut(image), return_tensors="pt")["pixel_values"]
    shown = query_views("central_crop", tiny_processor, tiny_model)[0](image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(shown, plain)


def plain_ranking(method, views, database, depth, k):
    """The field's own loops over queries and crops, with squared distances, in plain steps."""
    answers = []
    for query in range(len(views[0])):
        crops = []
        for crop in views:
            squares = ((database.astype(np.float64) - crop[query]) ** 2).sum(axis=1)
            order = np.argsort(squares, kind="stable")[:depth]
            crops.append((squares[order].copy(), order))
        if method == "maj_voting":
            for ranks in (1, 5, 10):
                listed = np.concatenate([order[:ranks] for _, order in crops])
                for row in set(listed.tolist()):
                    count = (listed == row).sum()
                    for squares, order in crops:
                        if count > 1:
                            squares[:ranks][order[:ranks] == row] -= 0.01 * count / ranks
        merged = sorted((square, row) for squares, order in crops for square, row in zip(squares, order, strict=True))
        once = list(dict.fromkeys(int(row) for _, row in merged))
        answers.append(once[:k])
    return answers


@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize("method", ["nearest_crop", "maj_voting"])
def test_crops_are_merged_as_the_field_does_at_every_k(method, metric):
    database, middle = unit(300), unit(15, seed=1)
    if metric == "l2":
        database = database * np.linspace(0.8, 1.2, 300, dtype=np.float32)[:, None]
    # Crops of one query look alike, so that they agree on some answers and not on others.
    views = [middle + 0.12 * unit(15, seed=seed) for seed in range(2, 7)]
    views = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in views]
    for k in (1, 3, 20, 37):
        scores, rows = rank_views(method, views, k, metric, searching(database, metric))
        # As deep as the original for its own k of 20, deeper for a larger one.
        assert rows.tolist() == plain_ranking(method, views, database, max(20, k), k)
        assert (np.diff(scores, axis=1) <= 0).all()
    plain = rank_views("nearest_crop", views, 20, metric, searching(database, metric))[1]
    voted = rank_views("maj_voting", views, 20, metric, searching(database, metric))[1]
    assert (plain != voted).any()
    assert all(len(set(row)) == 20 for row in voted.tolist())


def test_five_crops_rank_by_the_mean(tiny_model):
    database, views = unit(50), [unit(6, seed=seed) for seed in range(1, 6)]
    scores, rows = rank_views("five_crops", views, 50, "inner_product", searching(database, "inner_product"))
    mean = np.mean(views, axis=0)
    assert rows.tolist() == np.argsort(((database - mean[:, None]) ** 2).sum(axis=2), axis=1).tolist()
    np.testing.assert_allclose(scores[:, 0], (mean @ database.T).max(axis=1) / np.linalg.norm(mean, axis=1), rtol=1e-5)


def test_a_small_database_runs_out():
    database, views = unit(4), [unit(3, seed=seed) for seed in range(1, 6)]
    for method in ("nearest_crop", "maj_voting"):
        scores, rows = rank_views(method, views, 7, "inner_product", searching(database, "inner_product"))
        assert [sorted(row[:4]) for row in rows.tolist()] == [[0, 1, 2, 3]] * 3
        assert (rows[:, 4:] == -1).all()
        assert np.isnan(scores[:, 4:]).all()


def test_what_has_no_size_or_name_is_refused(tiny_processor, tiny_model):
    with pytest.raises(ValueError, match=r"query_method is 'ten_crops'.*maj_voting"):
        query_views("ten_crops", tiny_processor, tiny_model)
    with pytest.raises(ValueError, match="doesn't say what height and width"):
        query_views("five_crops", object(), tiny_model)


def test_views_are_told_apart_by_their_settings(tiny_processor, tiny_model):
    known = [each.to_dict() for each in query_views("maj_voting", tiny_processor, tiny_model)]
    assert known == [each.to_dict() for each in query_views("five_crops", tiny_processor, tiny_model)]
    assert len({str(each) for each in [*known, tiny_processor.to_dict()]}) == 6
