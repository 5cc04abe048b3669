"""How the teacher behaves, on a tiny random one; its exactness stands in test_exactness.py."""

import warnings

import pytest
import torch
from transformers import AutoModel

from d2vpr_hf import CricaVprConfig, CricaVprModel
from d2vpr_hf.models.cricavpr.modeling_cricavpr import region_members

TINY = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56}


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    config = CricaVprConfig(backbone_config=TINY, adapter_ratio=1 / 3, cross_image_encoder=False)
    return CricaVprModel(config).eval()


def test_without_encoder_descriptors_stand_alone(teacher):
    images = torch.randn(3, 3, 224, 168)
    with torch.no_grad():
        output = teacher(images)
        alone = torch.cat([teacher(image[None]).pooler_output for image in images])
    assert output.pooler_output.shape == (3, 14 * 48)
    assert output.region_features.shape == (3, 13, 48)
    assert output.last_hidden_state.shape == (3, 1 + 16 * 12, 48)
    torch.testing.assert_close(output.pooler_output, alone, rtol=0, atol=1e-6)
    assert torch.pdist(output.pooler_output).min() > 1e-3


def test_with_encoder_the_model_warns_once():
    model = CricaVprModel(CricaVprConfig(backbone_config=TINY, adapter_ratio=1 / 3)).eval()
    images = torch.randn(2, 3, 168, 168)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        together, alone = model(images).pooler_output, model(images[:1]).pooler_output
    assert len(caught) == 1
    assert (together[:1] - alone).abs().max() > 1e-5


def test_groups_attend_as_if_each_were_a_batch():
    torch.manual_seed(0)
    model = CricaVprModel(CricaVprConfig(backbone_config=TINY, adapter_ratio=1 / 3)).eval()
    images = torch.randn(6, 3, 168, 168)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the encoder's warning has its own test
        whole = model(images).pooler_output
        for size in (1, 2, 3):
            grouped = model(images, images_per_group=size).pooler_output
            each = torch.cat([model(group).pooler_output for group in images.split(size)])
            torch.testing.assert_close(grouped, each, rtol=0, atol=1e-6)
            assert (grouped - whole).abs().max() > 1e-5
        assert torch.equal(model(images, images_per_group=6).pooler_output, whole)
        for size in (0, 4, 12):
            with pytest.raises(ValueError, match=f"images_per_group is {size}, but the batch has 6 images"):
                model(images, images_per_group=size)


def test_groups_need_an_encoder(teacher):
    with pytest.raises(ValueError, match="images_per_group is 2, but this model has no cross-image encoder"):
        teacher(torch.zeros(2, 3, 168, 168), images_per_group=2)


def test_regional_descriptors_are_the_descriptor_before_its_division_by_length(teacher):
    images = torch.randn(2, 3, 168, 224)
    with torch.no_grad():
        output = teacher(images)
    regional = output.regional_descriptors
    assert regional.shape == (2, 14, 48)
    assert regional.dtype == torch.float32
    torch.testing.assert_close(torch.nn.functional.normalize(regional.flatten(1), dim=1), output.pooler_output)
    assert torch.equal(regional[:, 0], output.last_hidden_state[:, 0])
    assert torch.equal(regional[:, 1:], output.region_features)
    assert output[0] is output.last_hidden_state
    assert output[1] is output.pooler_output


def test_regions_are_means_of_the_cut_tokens():
    members = region_members((23, 16), "original", torch.device("cpu"))
    torch.testing.assert_close(members.sum(dim=1), torch.ones(13))
    covered = [(row > 0).reshape(23, 16).nonzero() for row in members]
    corners = [tuple(cells.amin(0).tolist() + (cells.amax(0) + 1).tolist()) for cells in covered]
    # The original's slices :8 and 8:, and :5, 5:11 and 11:, whatever the grid.
    assert corners[:4] == [(0, 0, 8, 8), (0, 8, 8, 16), (8, 0, 23, 8), (8, 8, 23, 16)]
    assert corners[4:7] == [(0, 0, 5, 5), (0, 5, 5, 11), (0, 11, 5, 16)]
    assert corners[-1] == (11, 11, 23, 16)
    dense = region_members((23, 23), "dense", torch.device("cpu"))
    assert (dense[4] > 0).sum() == 7 * 7


def test_too_small_an_image_is_refused(teacher):
    with pytest.raises(ValueError, match="too few for regions cut at patches"):
        teacher(torch.zeros(1, 3, 154, 224))
    teacher.config.region_sampling = "dense"
    assert teacher(torch.zeros(1, 3, 154, 224)).pooler_output.isfinite().all()


def test_saved_and_loaded_to_the_bit(tmp_path, teacher):
    teacher.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, CricaVprModel)
    image = torch.randn(1, 3, 224, 224)
    assert torch.equal(loaded(image).pooler_output, teacher(image).pooler_output)
