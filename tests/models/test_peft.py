"""What docs/training.md says of LoRA, where peft is installed: it is no dependency."""

import re
from pathlib import Path

import pytest
import torch

from d2vpr_hf.models.checkpoint import save_checkpoint
from d2vpr_hf.retrieval.embedder import weight_hash

pytest.importorskip("peft", reason="peft, which is no dependency, isn't installed")
GUIDE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.fixture
def trained(tmp_path, monkeypatch, tiny_model, tiny_processor):
    """What the guide's block leaves: the model that was trained, and the one that was opened again."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "d2vpr", tiny_model, tiny_processor)

    def run(block: str) -> dict:
        names = {}
        torch.manual_seed(0)
        exec(compile(block, "docs/training.md", "exec"), names)
        return names

    return run


def test_the_guide_is_right(trained, tiny_model):
    (block,) = [each for each in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "peft" in each]
    names, images = trained(block), torch.randn(3, 3, 56, 84)
    with torch.no_grad():
        before, after = tiny_model(images).pooler_output, names["model"](images).pooler_output
        assert torch.cosine_similarity(before, after).max() < 1 - 1e-7
        assert torch.equal(names["again"](images).pooler_output, after)
        merged = names["again"].merge_and_unload()
        merged.save_pretrained("mine")
        torch.testing.assert_close(type(tiny_model).from_pretrained("mine")(images).pooler_output, after)
    # Without the guide's loop over BatchNorm the two differ.
    lax = trained(block.replace("            module.eval()", "            pass"))
    with torch.no_grad():
        opened, kept = lax["again"](images).pooler_output, lax["model"](images).pooler_output
    assert (opened - kept).abs().max() > 1e-5


def test_the_hash_of_weights_sees_the_active_adapter(tiny_model):
    from peft import LoraConfig, get_peft_model

    plain = weight_hash(tiny_model)
    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "one")
    model.add_adapter("two", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    hashes = []
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        hashes.append(weight_hash(model))
    assert hashes[0] == hashes[2]
    assert len({plain, *hashes}) == 3


def test_gradient_checkpointing_reaches_adapters(tiny_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model(torch.randn(2, 3, 56, 56)).pooler_output.sum().backward()
    learning = [each for each in model.parameters() if each.requires_grad]
    assert learning
    assert all(each.grad is not None and each.grad.isfinite().all() for each in learning)
    counted = [each for name, each in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert {int(each) for each in counted} == {1}
