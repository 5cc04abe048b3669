import pickle

import numpy as np
import pytest
import torch
from broken_photos import photo

from d2vpr_hf import D2VprImageProcessor
from d2vpr_hf.training.data.transform import AUGMENTATIONS, TrainingTransform

IMAGE = photo(1, 300, 400)
SETTINGS = (
    {},
    {"size": {"height": 56, "width": 84}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    {"size": {"height": 70, "width": 56}, "antialias": False, "do_normalize": False},
)


@pytest.mark.parametrize("settings", SETTINGS)
def test_without_augmentation_the_result_is_the_processors(settings):
    processor = D2VprImageProcessor(**settings)
    expected = processor(IMAGE, return_tensors="pt")["pixel_values"][0]
    found = TrainingTransform(processor, augmentation="none")(IMAGE, 7)
    assert torch.equal(found, expected)
    assert found.std() > 0.1


@pytest.mark.parametrize("settings", SETTINGS)
def test_augmented_images_are_resized_first_and_normalised_last(settings, monkeypatch):
    """With changes that change nothing the processor's result is left, up to rounding to 8 bits."""
    monkeypatch.setattr("d2vpr_hf.training.data.transform.revisit", lambda image, random: image)
    processor = D2VprImageProcessor(**settings)
    expected = processor(IMAGE, return_tensors="pt")["pixel_values"][0]
    found = TrainingTransform(processor, augmentation="revisit")(IMAGE, 7)
    if processor.antialias:
        assert torch.equal(found, expected)
    step = 1 / 255 / (min(processor.image_std) if processor.do_normalize else 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.51 * step)


@pytest.mark.parametrize("augmentation", ["randaugment", "revisit"])
def test_the_seed_alone_decides(augmentation, tiny_processor):
    transform = TrainingTransform(tiny_processor, augmentation=augmentation)
    np.random.seed(0)  # noqa: NPY002 - the states that must neither matter nor change
    torch.manual_seed(0)
    results = [transform(IMAGE, seed) for seed in range(8)]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.rand(5)
    np.random.rand(5)  # noqa: NPY002
    again = pickle.loads(pickle.dumps(transform))
    assert all(torch.equal(again(IMAGE, seed), each) for seed, each in enumerate(results))
    assert all(each.shape == (3, 56, 56) and each.dtype == torch.float32 for each in results)
    plain = TrainingTransform(tiny_processor, augmentation="none")(IMAGE, 0)
    assert len({each.sum().item() for each in [*results, plain]}) == 9
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    transform(IMAGE, 2**63 - 1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002


def test_operations_and_magnitude_tell(tiny_processor):
    def changes(**options):
        transform = TrainingTransform(tiny_processor, **options)
        return np.mean([(transform(IMAGE, seed) - plain).abs().mean() for seed in range(40)])

    plain = TrainingTransform(tiny_processor, augmentation="none")(IMAGE, 0)
    assert changes(magnitude=1) < changes() < changes(magnitude=30)
    assert changes(operations=1) < changes() < changes(operations=6)
    assert changes() == changes(operations=3, magnitude=15, augmentation="randaugment")


def test_wrong_settings_are_named(tiny_processor):
    with pytest.raises(ValueError, match=f"'flip', but must be one of {', '.join(AUGMENTATIONS)}"):
        TrainingTransform(tiny_processor, augmentation="flip")
    for options in ({"operations": 0}, {"magnitude": 31}, {"magnitude": -1}):
        with pytest.raises(ValueError, match=r"magnitude 0 to 30\. For images as they are choose augmentation='none'"):
            TrainingTransform(tiny_processor, **options)
