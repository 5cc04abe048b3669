"""PCA of descriptors: right to the last digits, drawn and kept reproducibly, and never tested on its own photos."""

import hashlib
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from d2vpr_hf import CricaVprModel, D2VprConfig, D2VprModel, Descriptors, Embedder, PlaceIndex, embed_images
from d2vpr_hf.retrieval import pca as reduce
from d2vpr_hf.retrieval.embedder import weight_hash
from d2vpr_hf.retrieval.pca import (
    PUBLISHED_PCA,
    Pca,
    PcaSettings,
    PcaSource,
    attach_pca,
    check_pca_source,
    fit_pca,
    pca_overlap,
    reduce_checkpoint,
)
from tests.broken_photos import photo, write_broken

TALL, WIDE = (2000, 672), (500, 1344)


def made_descriptors(rows, full_dim, seed=0):
    """(rows, full_dim) float32 of unit length, about a mean, with variances that fall as those of real ones do."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.standard_normal((full_dim, full_dim)))[0]
    spread = np.arange(1, full_dim + 1) ** -0.7
    vectors = random.standard_normal((rows, full_dim)) * spread @ directions + random.standard_normal(full_dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def by_svd(vectors, dim):
    """(mean, components, variance) by the definition, in float64."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    _, spreads, components = np.linalg.svd(vectors - mean, full_matrices=False)
    return mean, components[:dim], spreads[:dim] ** 2 / (len(vectors) - 1)


def assert_same_pca(found, mean, components, variance, atol):
    signs = np.sign((found.components * components).sum(axis=1))
    np.testing.assert_allclose(found.components, signs[:, None] * components, atol=atol)
    np.testing.assert_allclose(found.mean, mean, atol=atol)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_equal_to_the_definition_up_to_sign(shape):
    vectors = made_descriptors(*shape)
    pca = fit_pca(vectors, 256, source="made")
    assert_same_pca(pca, *by_svd(vectors, 256), atol=1e-6)
    assert pca.components.dtype == pca.mean.dtype == pca.variance.dtype == np.float32
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(256), atol=2e-6)
    # The coordinates have the variances that they are said to have, and nothing in common.
    covariance = np.cov(pca.apply(vectors).T.astype(np.float64))
    np.testing.assert_allclose(covariance, np.diag(pca.variance), atol=1e-7)
    assert pca.variance_kept == pytest.approx(pca.variance.sum() / vectors.var(axis=0, ddof=1).sum(), rel=1e-5)


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_to_scikit_learn_up_to_sign(shape, dtype):
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn isn't installed")
    vectors = made_descriptors(*shape)
    theirs = decomposition.PCA(256, svd_solver="full").fit(vectors.astype(dtype))
    pca = fit_pca(vectors, 256, source="made")
    # What float32 leaves of it is scikit-learn's own rounding.
    atol = 1e-6 if dtype == np.float64 else 3e-4
    assert_same_pca(pca, theirs.mean_, theirs.components_, theirs.explained_variance_, atol)
    signs = np.sign((pca.components * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(pca.apply(vectors), signs * theirs.transform(vectors.astype(dtype)), atol=2e-6)
    assert pca.variance_kept == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-6)


@pytest.mark.parametrize("shape", [(300, 280), (280, 300)])
def test_blocks_make_no_difference(shape, monkeypatch):
    vectors = made_descriptors(*shape)
    whole = fit_pca(vectors, 20, source="made")
    monkeypatch.setattr(reduce, "_BLOCK", 64)
    blocked = fit_pca(vectors, 20, source="made")
    np.testing.assert_allclose(blocked.components, whole.components, atol=1e-7)
    np.testing.assert_allclose(blocked.apply(vectors), whole.apply(vectors), atol=1e-6)


def test_all_directions_are_a_rotation():
    vectors = made_descriptors(100, 24)
    turned = fit_pca(vectors, 24, source="made").apply(vectors)
    distances = torch.pdist(torch.from_numpy(vectors))
    torch.testing.assert_close(torch.pdist(torch.from_numpy(turned)), distances, rtol=1e-5, atol=1e-6)
    assert distances.min() > 1e-2


def test_renormalised_vectors_are_of_unit_length_and_else_the_same():
    vectors = made_descriptors(100, 48)
    plain = fit_pca(vectors, 6, source="made").apply(vectors)
    unit = fit_pca(vectors, 6, source="made", renormalise=True).apply(vectors)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).min() > 0.1


@pytest.mark.parametrize("whitening", [0.5, 1.0])
def test_whitening_evens_out_how_much_directions_vary(whitening):
    vectors = made_descriptors(100, 48)
    plain, whitened = (fit_pca(vectors, 6, source="made", whitening=power) for power in (0.0, whitening))
    deviations = plain.apply(vectors).std(axis=0, ddof=1)
    assert deviations[0] > 1.2 * deviations[-1]
    found = whitened.apply(vectors).std(axis=0, ddof=1)
    np.testing.assert_allclose(found, deviations ** (1 - whitening), rtol=1e-4)
    assert (whitened.whitening, whitened.to_config()["whitening"]) == (whitening, whitening)
    np.testing.assert_array_equal(whitened.variance, plain.variance)


@pytest.mark.parametrize("shape", [(300, 96), (60, 96)])
@pytest.mark.parametrize("whitening", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("renormalise", [False, True])
def test_whitened_equals_the_definition(shape, whitening, renormalise):
    vectors = made_descriptors(*shape)
    pca = fit_pca(vectors, 24, source="made", whitening=whitening, renormalise=renormalise)
    mean, components, variance = by_svd(vectors, 24)
    components = components * np.sign((pca.components * components).sum(axis=1))[:, None]
    expected = (vectors - mean) @ components.T / variance ** (whitening / 2)
    if renormalise:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(pca.apply(vectors), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_fully_whitened_equals_scikit_learn(shape):
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn isn't installed")
    vectors = made_descriptors(*shape)
    theirs = decomposition.PCA(64, svd_solver="full", whiten=True).fit(vectors.astype(np.float64))
    pca = fit_pca(vectors, 64, source="made", whitening=1.0)
    signs = np.sign((pca.components * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(pca.apply(vectors), signs * theirs.transform(vectors.astype(np.float64)), atol=1e-4)


def test_no_whitening_is_a_plain_pca_to_the_bit():
    vectors = made_descriptors(100, 48)
    plain = fit_pca(vectors, 6, source="made")
    for zero in (0, 0.0, np.float32(0)):
        found = fit_pca(vectors, 6, source="made", whitening=zero)
        assert found.components.tobytes() == plain.components.tobytes()
        assert found.to_config() == plain.to_config()
        assert type(found.whitening) is float


@pytest.mark.parametrize("wrong", [float("nan"), -1, 2, 1.5, float("inf"), "half", "0.5", None, True, [0.5]])
def test_a_wrong_whitening_is_refused_before_anything_is_embedded(wrong, tmp_path, photos, options, monkeypatch):
    complaint = re.escape(f"whitening is {wrong!r}, but must be a number from 0 (a plain PCA) to 1")
    with pytest.raises(ValueError, match=complaint):
        fit_pca(made_descriptors(100, 48), 6, source="made", whitening=wrong)
    monkeypatch.setattr(Embedder, "embed", None)
    with pytest.raises(ValueError, match=complaint):
        reduced(photos, tmp_path / "short", options, settings=PcaSettings(dim=6, whitening=wrong))


@pytest.mark.parametrize("share", [1e-7, 0.0])
def test_directions_of_next_to_no_variance_are_not_blown_up(share):
    vectors = made_descriptors(100, 48).astype(np.float64)
    mean, components, variance = by_svd(vectors, 48)
    # The last 8 directions have `share` of the first one's deviation: below 1e-6 it is rounding.
    placed = (vectors - mean) @ components.T / np.sqrt(variance)
    deviations = np.r_[np.full(40, 1.0), np.full(8, share)]
    vectors = placed * deviations @ components + mean
    with pytest.raises(ValueError, match="vary in 40 directions alone"):
        fit_pca(vectors, 44, source="made", whitening=1.0)
    pca = fit_pca(vectors, 40, source="made", whitening=1.0)
    np.testing.assert_allclose(np.abs(pca.apply(vectors)).max(), np.abs(placed[:, :40]).max(), rtol=0.5)


@pytest.mark.parametrize("renormalise", [True, False])
def test_a_whitened_checkpoint_is_loaded_to_the_bit(tmp_path, photos, options, renormalise):
    settings = PcaSettings(dim=6, renormalise=renormalise, whitening=0.5)
    pca = reduced(photos, tmp_path / "short", options, settings=settings)
    loaded = AutoModel.from_pretrained(tmp_path / "short")
    assert loaded.config.pca_source["whitening"] == 0.5
    assert loaded.reduction.components.numpy().tobytes() == pca.components.tobytes()
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "short")
    first, second = (embed_images(photos, model=each, processor=processor, progress=False) for each in (loaded, again))
    assert first.vectors.tobytes() == second.vectors.tobytes()
    full = embed_images(photos, **options)
    np.testing.assert_allclose(first.vectors, pca.apply(full.vectors), rtol=1e-4, atol=2e-5)
    # An old checkpoint doesn't name whitening, and has none.
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    del config["pca_source"]["whitening"]
    (tmp_path / "again" / "config.json").write_text(json.dumps(config))
    assert AutoModel.from_pretrained(tmp_path / "again").config.pca_source["whitening"] == 0.0


def test_the_seed_draws_the_descriptors():
    vectors = made_descriptors(200, 32)
    fits = [fit_pca(vectors, 4, source="made", images=50, seed=seed) for seed in (1, 1, 2)]
    assert [each.images for each in fits] == [50, 50, 50]
    np.testing.assert_array_equal(fits[0].components, fits[1].components)
    assert np.abs(fits[0].components - fits[2].components).max() > 1e-3
    everything = fit_pca(vectors, 4, source="made", images=1000, seed=1)
    assert everything.images == 200
    np.testing.assert_array_equal(everything.components, fit_pca(vectors, 4, source="made").components)


@pytest.mark.parametrize(
    ("dim", "change", "complaint"),
    [
        (0, None, "dim is 0, but a PCA of 32 numbers gives 1 to 32"),
        (33, None, "gives 1 to 32"),
        (20, lambda vectors: vectors[:20], "20 photos vary in 19 directions at most. Give more than 20 photos"),
        (8, lambda vectors: vectors[:0], "0 photos vary in 0 directions"),
        (8, lambda vectors: vectors[0], "must be floating numbers"),
        (8, lambda vectors: (100 * vectors).astype(int), "must be floating numbers"),
        (8, lambda vectors: np.repeat(vectors[:5], 10, axis=0), "vary in 4 directions alone"),
        (8, lambda vectors: np.repeat(vectors[:5], 5, axis=0), "vary in 4 directions alone"),
        (8, lambda vectors: np.ones_like(vectors), "vary in 0 directions alone"),
    ],
)
def test_what_can_not_be_fitted_is_refused(dim, change, complaint):
    vectors = made_descriptors(60, 32)
    with pytest.raises(ValueError, match=complaint):
        fit_pca(vectors if change is None else change(vectors), dim, source="made")


def test_numbers_that_are_not_finite_are_named():
    vectors = made_descriptors(60, 32)
    vectors[[7, 9], 3] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 descriptors, such as row 7, hold numbers that aren't finite"):
        fit_pca(vectors, 4, source="made")
    pca = fit_pca(made_descriptors(60, 32), 4, source="made")
    with pytest.raises(ValueError, match=r"shape \(5, 31\), but the PCA was fitted on \(rows, 32\)"):
        pca.apply(vectors[:5, 1:])
    with pytest.raises(ValueError, match="images is 0"):
        fit_pca(vectors, 4, source="made", images=0)


@pytest.fixture
def photos(tmp_path):
    """40 photos, some in a subfolder, one of them broken."""
    folder = tmp_path / "town" / "train"
    (folder / "deep").mkdir(parents=True)
    for number in range(40):
        photo(number).save(folder / ("deep" if number % 3 else "") / f"{number:02d}.jpg")
    write_broken(folder, 0, "text")
    return folder


@pytest.fixture
def options(tiny_model, tiny_processor):
    return {"model": tiny_model, "processor": tiny_processor, "progress": False}


def reduced(photos, folder, options, **wanted):
    return reduce_checkpoint(photos, folder, Embedder(options["model"], options["processor"]), progress=False, **wanted)


def test_fitted_on_a_folder_of_descriptors(tmp_path, photos, options, tiny_model, tiny_processor):
    in_memory = embed_images(photos, **options)
    embed_images(photos, folder=tmp_path / "descriptors", **options)
    pca = fit_pca(Descriptors.load(tmp_path / "descriptors"), 8, source="town/train")
    np.testing.assert_array_equal(pca.components, fit_pca(in_memory, 8, source="town/train").components)
    assert (pca.images, len(pca.source.sha256), pca.weight_hash) == (40, 40, weight_hash(tiny_model))
    # Attached, the model gives what the PCA gives.
    attach_pca(tiny_model, pca)
    short = embed_images(photos, **options)
    np.testing.assert_allclose(short.vectors, pca.apply(in_memory.vectors), atol=1e-6)
    assert short.vectors.shape == (40, 8)
    assert short.weight_hash != in_memory.weight_hash
    assert np.linalg.norm(short.vectors - short.vectors[0], axis=1)[1:].min() > 1e-3


def test_the_hash_of_the_files_is_that_of_the_command_line(photos):
    files = sorted(photos.rglob("*.jpg"))
    source = PcaSource.of_files("town", files)
    command = 'sha256sum "$@" | cut -c-64 | LC_ALL=C sort | sha256sum | cut -c-64'
    if shutil.which("sha256sum"):
        result = subprocess.run(["sh", "-c", command, "sh", *files], capture_output=True, text=True, check=True)
        assert source.files_sha256 == result.stdout.strip()
    hashes = [hashlib.sha256(file.read_bytes()) for file in files]
    assert source.sha256 == tuple(each.hexdigest() for each in hashes)
    assert source.fingerprints[:, 0].tolist() == [file.stat().st_size for file in files]
    heads = [int.from_bytes(each.digest()[:8], "big", signed=True) for each in hashes]
    assert source.fingerprints[:, 1].tolist() == heads
    assert min(heads) < 0 < max(heads)
    # Neither names nor order count.
    moved = photos / "moved.jpg"
    files[0].rename(moved)
    assert PcaSource.of_files("town", [*files[:0:-1], moved]).files_sha256 == source.files_sha256


def test_files_that_are_gone_are_missed_unless_told_otherwise(photos, options):
    descriptors = embed_images(photos, **options)
    (photos / "00.jpg").unlink()
    with pytest.raises(ValueError, match=r"00\.jpg can't be read \(No such file or directory\)"):
        fit_pca(descriptors, 4, source="town")
    pca = fit_pca(descriptors, 4, source=PcaSource("town"))
    assert pca.to_config()["files_sha256"] is None
    assert pca.source.fingerprints.shape == (0, 2)
    with pytest.raises(ValueError, match="The source names 38 files, but there are 40 descriptors"):
        fit_pca(descriptors, 4, source=PcaSource.of_files("town", descriptors.paths[2:]))


def test_a_drawn_pca_knows_the_drawn_files_alone(photos, options, tiny_model):
    descriptors = embed_images(photos, **options)
    everything = PcaSource.of_files("town", descriptors.paths)
    for source in ("town", everything):
        pca = fit_pca(descriptors, 4, source=source, images=10, seed=5)
        assert len(pca.source.sha256) == pca.images == 10
        assert set(pca.source.sha256) < set(everything.sha256)
    attach_pca(tiny_model, pca)
    assert len(pca_overlap(tiny_model, descriptors.paths)) == 10


@pytest.mark.parametrize(("renormalise", "metric"), [(True, "inner_product"), (False, "l2")])
def test_a_checkpoint_is_reduced(tmp_path, photos, options, tiny_model, renormalise, metric):
    before = weight_hash(tiny_model)
    settings = PcaSettings(dim=6, images=30, seed=4, renormalise=renormalise)
    pca = reduced(photos, tmp_path / "short", options, settings=settings)
    assert (weight_hash(tiny_model), tiny_model.config.pca_source) == (before, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short", "town"]
    loaded = AutoModel.from_pretrained(tmp_path / "short")
    assert loaded.config.descriptor_dim == 6
    assert loaded.config.pca_source == json.loads((tmp_path / "short" / "config.json").read_text())["pca_source"]
    assert loaded.config.pca_source == {
        "name": "train",
        "images": pca.images,
        "files_sha256": pca.source.files_sha256,
        "seed": 4,
        "renormalise": renormalise,
        "whitening": 0.0,
        "variance_kept": pca.variance_kept,
    }
    assert pca.images in (29, 30)  # the broken one may be drawn
    assert 0.1 < pca.variance_kept < 1
    # What it is fitted on is what it was said to be, and what it gives goes into an index.
    processor = AutoImageProcessor.from_pretrained(tmp_path / "short")
    short = embed_images(photos, model=loaded, processor=processor, progress=False)
    full = embed_images(photos, **options)
    np.testing.assert_allclose(short.vectors, pca.apply(full.vectors), atol=1e-6)
    index = PlaceIndex.build(short)
    assert (index.dim, index.metric) == (6, metric)
    assert index.search(short, 1).paths[:, 0].tolist() == short.paths
    with pytest.raises(ValueError, match="can't be compared"):
        index.search(full, 1)


def test_a_cut_run_goes_on_where_it_was(tmp_path, photos, options, tiny_model, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    settings = PcaSettings(dim=6)
    with monkeypatch.context() as patch:
        patch.setattr(reduce, "fit_pca", fail)
        with pytest.raises(KeyboardInterrupt):
            reduced(photos, tmp_path / "short", options, settings=settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short.descriptors", "town"]
    with monkeypatch.context() as patch:
        patch.setattr(type(tiny_model), "forward", fail)  # nothing is left to embed
        reduced(photos, tmp_path / "short", options, settings=settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["short", "town"]


def test_what_can_not_be_reduced_is_refused_before_anything_is_embedded(tmp_path, photos, options, monkeypatch):
    model = options["model"]
    with pytest.raises(ValueError, match=r"41 photos vary in 40 directions at most\. Give more than 64 photos"):
        reduced(photos, tmp_path / "short", options, settings=PcaSettings(dim=64))
    with pytest.raises(ValueError, match="4096, but a PCA of 672 numbers gives 1 to 672"):
        reduced(photos, tmp_path / "short", options, settings=PUBLISHED_PCA)
    with pytest.raises(FileExistsError, match="isn't empty"):
        reduced(photos, photos, options, settings=PcaSettings(dim=4))
    with torch.device("meta"):
        teacher = CricaVprModel(CricaVprModel.config_class())
    with pytest.raises(TypeError, match="CricaVprModel takes no PCA"):
        reduced(photos, tmp_path / "short", options | {"model": teacher}, settings=PcaSettings(dim=4))
    pca = fit_pca(embed_images(photos, **options), 4, source="town")
    with pytest.raises(TypeError, match="CricaVprModel takes no PCA"):
        attach_pca(teacher, pca)
    attach_pca(model, pca)
    with pytest.raises(ValueError, match="ends in a PCA to 4 numbers already"):
        reduced(photos, tmp_path / "short", options, settings=PcaSettings(dim=4))
    fields = options["model"].config.to_dict() | {"pca_source": None, "descriptor_dim": None, "head_dim": 8}
    headed = D2VprModel(D2VprConfig.from_dict(fields))
    with pytest.raises(ValueError, match="ends in a learned head of 8 numbers"):
        reduced(photos, tmp_path / "short", options | {"model": headed}, settings=PcaSettings(dim=4))
    assert [path.name for path in tmp_path.iterdir()] == ["town"]


def test_a_pca_is_refused_by_another_model(photos, options, tiny_model):
    pca = fit_pca(embed_images(photos, **options), 4, source="town")
    with torch.no_grad():
        tiny_model.recovery.projection.bias[0] += 1
    with pytest.raises(ValueError, match=f"of the weights {pca.weight_hash[:8]}, but the model has the weights"):
        attach_pca(tiny_model, pca)
    assert tiny_model.config.pca_source is None


def test_photos_that_it_was_fitted_on_are_recognised(tmp_path, photos, options):
    reduced(photos, tmp_path / "short", options, settings=PcaSettings(dim=6), name="town/train")
    loaded = AutoModel.from_pretrained(tmp_path / "short")
    test = tmp_path / "test"
    test.mkdir()
    for number in range(40, 45):
        photo(number).save(test / f"{number}.jpg")
    others = sorted(test.iterdir())
    check_pca_source(loaded, others)
    # A copy under another name is the same photo; the same picture saved anew isn't recognised.
    copied = shutil.copy(photos / "00.jpg", test / "harmless.jpg")
    Image.open(photos / "03.jpg").save(test / "anew.jpg", quality=50)
    flipped = bytearray((photos / "06.jpg").read_bytes())
    flipped[-20] ^= 1
    (test / "of_the_same_size.jpg").write_bytes(flipped)
    (test / "link.jpg").symlink_to(photos / "deep" / "01.jpg")
    given = [*sorted(test.iterdir()), test / "gone.jpg", str(photos / "deep" / "02.jpg")]
    expected = [str(copied), str(test / "link.jpg"), str(photos / "deep" / "02.jpg")]
    assert pca_overlap(loaded, given) == expected
    with pytest.raises(ValueError, match=r"3 of the 11 test photos, such as .*harmless\.jpg, are among the 40 .*train"):
        check_pca_source(loaded, given)


def test_a_model_without_pca_overlaps_with_nothing(photos, tiny_model, caplog):
    files = sorted(photos.rglob("*.jpg"))
    assert pca_overlap(tiny_model, files) == []
    check_pca_source(tiny_model, files)
    check_pca_source(torch.nn.Identity(), files)
    assert not caplog.records


def test_unknown_files_are_told(photos, options, tiny_model, caplog):
    descriptors = embed_images(photos, **options)
    caplog.clear()
    attach_pca(tiny_model, fit_pca(descriptors.vectors, 4, source="a paper"))
    check_pca_source(tiny_model, descriptors.paths)
    assert [record.getMessage()[:45] for record in caplog.records] == ["The model's PCA was fitted on a paper, whose "]


def test_the_published_pca():
    assert (PUBLISHED_PCA.dim, PUBLISHED_PCA.images, PUBLISHED_PCA.renormalise) == (4096, 16_384, False)


def test_more_variance_is_kept_by_more_numbers():
    vectors = made_descriptors(100, 48)
    kept = [fit_pca(vectors, dim, source="made").variance_kept for dim in (1, 8, 48)]
    assert kept == sorted(kept)
    assert kept[-1] == pytest.approx(1)
    assert isinstance(fit_pca(vectors, 1, source="made"), Pca)
