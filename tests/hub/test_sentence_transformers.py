"""What docs/hub.md says of sentence-transformers, where that is installed: it isn't a dependency."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fresh_process import hub_environment, run_python
from PIL import Image

from d2vpr_hf import push_model

pytestmark = pytest.mark.skipif(
    find_spec("sentence_transformers") is None,
    reason="sentence-transformers, which isn't a dependency, is not installed",
)
GUIDE = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")

CHECKS = """
import numpy as np
import torch

expected = torch.load("expected.pt").numpy()
assert np.array_equal(descriptors, expected), abs(descriptors - expected).max()
images = [Image.open("photo.jpg"), Image.open("other.jpg")]
assert np.array_equal(model.encode(images[0]), model.encode("photo.jpg"))
assert abs(model.encode(images, batch_size=1) - model.encode(images)).max() < 1e-6
assert abs(model.encode(images)[0] - model.encode(images)[1]).max() > 1e-3
assert model.encode(images, convert_to_tensor=True).shape == (2, 672)
assert model.encode(images, precision="binary").shape == (2, 84)
assert model.similarity_fn_name == "cosine"
assert abs(np.linalg.norm(model.encode(images, truncate_dim=48, normalize_embeddings=True), axis=1) - 1).max() < 1e-6
try:
    model.encode("a text")
    raise SystemExit("a text was taken")
except ValueError as error:
    assert "Modality 'text' is not supported" in str(error), error
model.save_pretrained("again")
assert np.array_equal(SentenceTransformer("again", trust_remote_code=True).encode(images), model.encode(images))
try:
    SentenceTransformer("me/d2vpr-town")
    raise SystemExit("opened without trust")
except ValueError as error:
    assert "trust" in str(error), error
print("as the guide says")
"""


@pytest.mark.parametrize("package", [True, False])
def test_the_guide_is_right(hub, tmp_path, tiny_model, tiny_processor, package):
    push_model(tiny_model, tiny_processor, "me/d2vpr-town")
    for name in ("photo.jpg", "other.jpg"):
        Image.effect_noise((80, 60), 90).convert("RGB").save(tmp_path / name)
    pixels = tiny_processor([Image.open(tmp_path / "photo.jpg")] * 2, return_tensors="pt")
    with torch.no_grad():
        torch.save(tiny_model(**pixels).pooler_output, tmp_path / "expected.pt")
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    (block,) = [each for each in blocks if "SentenceTransformer(" in each]
    environment = hub_environment(hub.url, tmp_path / "home")
    run = run_python(block + CHECKS, tmp_path, environment, package=package)
    assert run.stdout.splitlines()[-1] == "as the guide says"
