"""A tiny random model, by which the tests are fast, and the full-size ones by rule."""

import pytest
import torch
from huggingface_hub import constants
from loopback_hub import LoopbackHub

from d2vpr_hf import D2VprConfig, D2VprImageProcessor, D2VprModel

TINY_STUDENT = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 56}


@pytest.fixture
def tiny_config() -> D2VprConfig:
    return D2VprConfig(backbone_config=TINY_STUDENT, recovery_layers=(1, 2, 4), aggregator_dim=48)


@pytest.fixture
def tiny_model(tiny_config) -> D2VprModel:
    """A model in which every weight does something: a new one's adapters and offsets start at zero."""
    torch.manual_seed(0)
    model = D2VprModel(tiny_config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def tiny_processor() -> D2VprImageProcessor:
    return D2VprImageProcessor(size={"height": 56, "width": 56})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running Hub, to which this process is logged in as me."""
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", "hf_x")
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        yield hub
        # Whatever a test does, the client must send what the Hub would take.
        assert hub.problems == hub.expected_problems
