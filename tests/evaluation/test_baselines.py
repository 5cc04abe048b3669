import numpy as np
import pytest
import tiny_teachers
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.utils.generic import ModelOutput

from d2vpr_hf.evaluation.baselines import (
    HUB_PEERS,
    HubEntry,
    SquashProcessor,
    TransformersPeer,
    hub_peer,
    open_peer,
    peer_embedder,
    random_weights,
    transformers_peer,
)
from d2vpr_hf.evaluation.query_methods import query_views
from d2vpr_hf.retrieval.embedder import Embedder, weight_hash

HUBCONF = """
import torch

class Descriptor(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(float(scale)))

    def forward(self, images):
        return self.scale * images.mean(dim=(2, 3)), "attention"

def get_model(scale):
    return Descriptor(scale)
"""


class Headless(torch.nn.Module):
    def forward(self, pixel_values):
        return ModelOutput(last_hidden_state=pixel_values)


def photos(count=3, width=40, height=30):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture
def dinov2():
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    return Dinov2Model(config).eval()


def embed(peer, images):
    embedder = peer if isinstance(peer, Embedder) else peer_embedder(peer, workers=1)
    return embedder.embed(images, progress=False)


def test_a_model_of_transformers_by_its_folder(dinov2, tmp_path):
    dinov2.save_pretrained(tmp_path)
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    peer = open_peer(f"hf:{tmp_path}")
    found = embed(peer, photos())
    assert found.model_name == str(tmp_path)
    pixels = torch.cat([peer.processor(each, return_tensors="pt")["pixel_values"] for each in photos()])
    assert pixels.shape == (3, 3, 28, 28)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(dinov2(pixels).pooler_output, dim=-1)
    np.testing.assert_allclose(found.vectors, expected.numpy(), atol=1e-6)
    assert np.linalg.norm(found.vectors[0] - found.vectors[1]) > 1e-3
    averaged = embed(transformers_peer(str(tmp_path), pooling="mean"), photos())
    with torch.no_grad():
        mean = torch.nn.functional.normalize(dinov2(pixels).last_hidden_state.mean(dim=1), dim=-1)
    np.testing.assert_allclose(averaged.vectors, mean.numpy(), atol=1e-6)
    # The same weights pooled otherwise give other descriptors, which must never be taken for these.
    assert averaged.weight_hash != found.weight_hash
    crops = query_views("five_crops", peer.processor, peer.model)
    shapes = {tuple(crop(photos()[0], return_tensors="pt")["pixel_values"].shape) for crop in crops}
    assert shapes == {(1, 3, 28, 28)}


def test_pooled_outputs_of_other_families_become_rows():
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPConfig(
        text_config=small | {"vocab_size": 20, "eos_token_id": 3, "bos_token_id": 2},
        vision_config=small | {"image_size": 28, "patch_size": 14},
        projection_dim=12,
    )
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    for model, pooling, dim in (
        (CLIPModel(clip), "pooler", 12),
        (CLIPModel(clip), "mean", 16),
        (ResNetModel(resnet), "pooler", 16),
        (ResNetModel(resnet), "mean", 16),
    ):
        found = embed(TransformersPeer("peer", model.eval(), SquashProcessor(28, 28), pooling), photos())
        assert found.vectors.shape == (3, dim)
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    headless = TransformersPeer("headless", Headless(), SquashProcessor(28, 28), "pooler")
    with pytest.raises(ValueError, match=r"headless gives last_hidden_state.*pooling='mean'"):
        headless.encode(torch.zeros(1, 3, 28, 28))


def test_a_torch_hub_model_gives_its_first_output(tmp_path):
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    entry = HubEntry(str(tmp_path), "get_model", {"scale": 3}, side=16)
    peer = hub_peer("colours", entry, source="local")
    found = embed(peer, photos())
    assert found.model_name == "colours"
    pixels = peer.processor(photos()[1], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    np.testing.assert_allclose(found.vectors[1], 3 * pixels.mean(dim=(2, 3)).numpy()[0], atol=1e-6)
    assert peer_embedder(hub_peer("other", entry, source="local")).weight_hash != found.weight_hash
    native = hub_peer("native", HubEntry(str(tmp_path), "get_model", {"scale": 1}), source="local")
    assert native.processor(photos()[0], return_tensors="pt")["pixel_values"].shape == (1, 3, 30, 40)


def test_a_peer_needs_no_weights(tmp_path):
    class Remote:
        name = "a service"
        processor = SquashProcessor(8, 8)

        def encode(self, images):
            return images.flatten(1)[:, :5]

    found = embed(Remote(), photos())
    assert found.vectors.shape == (3, 5)
    assert found.model_name == "a service"
    newer = Remote()
    newer.version = "2"
    assert embed(newer, photos()).weight_hash != found.weight_hash


def test_a_network_is_pooled_as_a_teacher_s_map_is_by_gem():
    peer = open_peer("tiny_teachers:patch_map@28")
    found = embed(peer, photos())
    assert found.model_name == "patch-map GeM 28 px"
    pixels = torch.cat([peer.processor(each, return_tensors="pt")["pixel_values"] for each in photos()])
    assert pixels.shape == (3, 3, 28, 28)
    with torch.no_grad():
        local = tiny_teachers.patch_map().project(pixels).clamp(min=1e-6).double()
    # The third root of the mean of third powers over the four cells.
    expected = torch.nn.functional.normalize((local**3).mean(dim=(2, 3)) ** (1 / 3), dim=-1)
    np.testing.assert_allclose(found.vectors, expected.numpy(), atol=1e-5)
    assert np.linalg.norm(found.vectors[0] - found.vectors[1]) > 1e-3
    assert dict(open_peer("tiny_teachers:colours").processor.size) == {"height": 224, "width": 224}
    assert embed(open_peer("tiny_teachers:colours@28"), photos()).vectors.shape == (3, 3)
    with pytest.raises(ValueError, match=r"The peer tiny_teachers:colour can't be opened.*Did you mean colours"):
        open_peer("tiny_teachers:colour")
    with pytest.raises(ValueError, match="a peer needs the attributes name"):
        open_peer("tiny_teachers:nothing")
    with pytest.raises(ValueError, match="isn't a known peer"):
        open_peer("tiny_teachers:colours@0")


def test_the_thumbnail_is_grey_of_mean_0_and_length_1():
    images = [*photos(), Image.new("RGB", (40, 30), (9, 99, 9))]
    found = embed(open_peer("thumbnail"), images).vectors
    assert found.shape == (4, 256)
    small = np.asarray(images[1].convert("L").resize((16, 16), Image.Resampling.BOX), np.float64).ravel()
    expected = (small - small.mean()) / np.linalg.norm(small - small.mean())
    np.testing.assert_allclose(found[1], expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    # One grey has nothing to compare: it is like no other photo, and no comparison stops at it.
    np.testing.assert_allclose(found[:3] @ found[3], 0, atol=1e-6)


def test_random_weights_are_the_same_every_time_and_others_than_the_model_s(tiny_model, tmp_path):
    before, state = weight_hash(tiny_model), torch.random.get_rng_state()
    first, again = random_weights(tiny_model), random_weights(tiny_model)
    assert weight_hash(first) == weight_hash(again) != before
    assert weight_hash(random_weights(tiny_model, seed=1)) != weight_hash(first)
    assert weight_hash(tiny_model) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.config.to_dict() == tiny_model.config.to_dict()
    torch.manual_seed(0)
    assert weight_hash(type(tiny_model)(tiny_model.config)) == weight_hash(first)


def test_unknown_and_untrusted_peers_are_refused():
    with pytest.raises(ValueError, match=r"'sald' isn't a known peer.*salad.*hf:NAME"):
        open_peer("sald")
    for name in HUB_PEERS:
        with pytest.raises(ValueError, match="trust-remote-code"):
            open_peer(name)
