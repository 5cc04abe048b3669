"""Rows of a dataset open one by one, wherever they are stored."""

import io
import pickle
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from d2vpr_hf.photos.dataset import ImageRows
from d2vpr_hf.photos.images import UnreadableImage
from d2vpr_hf.retrieval.embedder import embed_images
from tests.broken_photos import encoded, photo


def dataset_of(entries: list) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": entries}, datasets.Features({"image": datasets.Image()}))


def test_a_cut_row_of_a_column_is_skipped_alone(tiny_model, tiny_processor):
    whole = encoded(photo(0), "JPEG")
    dataset = dataset_of([{"bytes": data, "path": None} for data in (whole, whole[: len(whole) // 2], whole)])
    options = {"model": tiny_model, "processor": tiny_processor, "progress": False}
    descriptors = embed_images(dataset["image"], **options)
    assert descriptors.paths == ["0", "2"]
    assert [path for path, _ in descriptors.skipped] == ["1"]
    assert np.array_equal(descriptors.vectors, embed_images(dataset, **options).vectors)


def test_rows_inside_of_an_archive_open(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a/0.png", encoded(photo(0), "PNG"))
    urls = [f"zip://{name}::{tmp_path / 'photos.zip'}" for name in ("a/0.png", "a/1.png")]
    rows = ImageRows(dataset_of(urls))
    assert np.array_equal(rows(0), photo(0))
    with pytest.raises(UnreadableImage, match=r"1: zip:.*can't be opened"):
        rows(1)
    assert np.array_equal(pickle.loads(pickle.dumps(rows))(0), photo(0))


def test_a_transform_is_not_passed_over_in_silence():
    stored = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stored, "PNG")
    dataset = dataset_of([{"bytes": stored.getvalue(), "path": None}])
    with pytest.raises(ValueError, match=r"has a transform .* which isn't applied here"):
        ImageRows(dataset.with_transform(lambda batch: batch))
    for format in ("numpy", "torch", None):
        assert ImageRows(dataset.with_format(format))(0).size == (8, 8)
