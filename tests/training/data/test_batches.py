import pickle

import numpy as np
import pytest
import torch
from broken_photos import photo

from d2vpr_hf.photos.images import UnreadableImage
from d2vpr_hf.protocols.places import TrainingPlaces, read_training_places
from d2vpr_hf.training.data.batches import TrainingBatch, TrainingImages, training_loader
from d2vpr_hf.training.data.sampler import PlaceSampler
from d2vpr_hf.training.data.transform import TrainingTransform

# Rows 4 and 5 are all of place 2; of place 0 row 1 is broken, of place 1 none.
PLACES = np.array([0, 0, 0, 1, 2, 2])
BROKEN = {1, 4, 5}


def open_or_fail(row):
    if row in BROKEN:
        raise UnreadableImage(f"photo {row}", "cut short")
    return photo(row)


def broken_images(seed_sum):
    places = TrainingPlaces("made", PLACES, [f"photo {row}" for row in range(6)], open_or_fail)
    return TrainingImages(places, seed_sum)


def summed(image, seed):
    return torch.full((3, 2, 2), float(np.asarray(image).mean() + seed % 7))


def test_a_good_image_stays():
    image = broken_images(summed)[3, 5]
    assert (image.place, image.row, image.replaced) == (1, 3, [])
    assert torch.equal(image.pixels, summed(photo(3), 5))


def test_a_broken_image_is_replaced_by_another_of_its_place():
    images, used = broken_images(summed), set()
    for seed in range(20):
        image = images[1, seed]
        assert (image.place, image.replaced) == (0, [("photo 1", "cut short")])
        assert torch.equal(image.pixels, summed(photo(image.row), seed))
        assert images[1, seed].row == image.row
        used.add(image.row)
    assert used == {0, 2}


def test_a_broken_place_is_replaced_by_another_with_its_own_label():
    images, used = broken_images(summed), set()
    for seed in range(30):
        image = images[4, seed]
        assert image.place == PLACES[image.row] != 2
        assert [path for path, _ in image.replaced[:2]] == ["photo 4", "photo 5"]
        used.add(image.row)
    assert used == {0, 2, 3}


def test_a_set_without_a_usable_image_says_so():
    def gone(row):
        raise UnreadableImage(f"photo {row}", "no such file")

    images = TrainingImages(TrainingPlaces("lost", np.arange(500) // 2, [""] * 500, gone), summed)
    with pytest.raises(ValueError, match=r"lost: 200 images in a row can't be used, such as photo 8: no such file\."):
        images[8, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five places of three photos, one of them broken."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(15):
        (root / f"place{number % 5}").mkdir(exist_ok=True)
        photo(number).save(root / f"place{number % 5}" / f"{number}.png")
    (root / "place3" / "8.png").write_bytes(b"")
    return root


def test_batches_are_the_same_whatever_the_workers(folder, tiny_processor):
    places = read_training_places(folder)
    sampler = PlaceSampler(places.places, places_per_batch=2, images_per_place=3)
    images = TrainingImages(places, TrainingTransform(tiny_processor, augmentation="revisit"))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaders = [training_loader(images, sampler, workers=workers) for workers in (0, 2)]
    seen, replaced = [], []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        here, elsewhere = ([*loader] for loader in loaders)
        assert len(here) == len(elsewhere) == 2
        for first, second, step in zip(here, elsewhere, sampler, strict=True):
            assert torch.equal(first.pixel_values, second.pixel_values)
            assert torch.equal(first.places, second.places)
            assert (first.rows, first.replaced) == (second.rows, second.replaced)
            assert first.pixel_values.shape == (6, 3, 56, 56)
            assert len(first) == 6
            assert first.places.tolist() == places.places[first.rows].tolist()
            assert sum(one != other for one, (other, _) in zip(first.rows, step, strict=True)) == len(first.replaced)
            seen.append(first.pixel_values)
            replaced += first.replaced
    assert set(replaced) == {(f"{folder}/place3/8.png", "empty file")}
    assert min((one - other).abs().mean() for number, one in enumerate(seen) for other in seen[:number]) > 0.1
    assert torch.equal(before, torch.get_rng_state())


def test_workers_take_one_thread_give_way_and_live_on(folder):
    import os

    places = read_training_places(folder)
    sampler = PlaceSampler(places.places, places_per_batch=1, images_per_place=1)
    loader = training_loader(TrainingImages(places, _Where()), sampler, workers=1)
    first, second = (torch.cat([batch.pixel_values for batch in loader]) for _ in range(2))
    # Filled with: threads, niceness, process.
    assert first.shape == (5, 3, 1, 1)
    assert torch.equal(first, second)
    assert (first[:, 0] == 1).all()
    assert (first[:, 1] == os.nice(0) + 10).all()
    assert (first[:, 2] != os.getpid()).all()


class _Where:
    def __call__(self, image, seed):
        import os

        return torch.tensor([float(torch.get_num_threads()), float(os.nice(0)), float(os.getpid())])[:, None, None]


def test_a_batch_travels_and_moves():
    batch = TrainingBatch(torch.rand(2, 3, 4, 4), torch.tensor([5, 5]), [7, 8], [("photo 1", "cut short")])
    for copy in (pickle.loads(pickle.dumps(batch)), batch.to("cpu")):
        assert torch.equal(copy.pixel_values, batch.pixel_values)
        assert torch.equal(copy.places, batch.places)
        assert (copy.rows, copy.replaced) == ([7, 8], [("photo 1", "cut short")])
    moved = batch.to("meta")
    assert {moved.pixel_values.device.type, moved.places.device.type} == {"meta"}
    assert moved.rows == [7, 8]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU's driver, and none is here")
def test_a_batch_is_pinned():
    batch = TrainingBatch(torch.rand(2, 3, 4, 4), torch.tensor([5, 5]), [7, 8])
    pinned = batch.pin_memory()
    assert pinned.pixel_values.is_pinned()
    assert pinned.places.is_pinned()
    assert torch.equal(pinned.pixel_values, batch.pixel_values)


def test_wrong_numbers_are_named():
    with pytest.raises(ValueError, match="num_workers"):
        training_loader(broken_images(summed), None, workers=-1)
