"""What is pushed comes back: the same descriptors and the same recall, in a process that has never seen the package."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from fresh_process import hub_environment, run_python
from made_evaluation import made_evaluation
from PIL import Image

from d2vpr_hf import (
    CricaVprConfig,
    CricaVprModel,
    D2VprModel,
    evaluate_protocol,
    fit_pca,
    make_town,
    named_protocol,
    push_model,
)
from d2vpr_hf.hub.push import push_metric
from d2vpr_hf.models.checkpoint import save_checkpoint
from d2vpr_hf.retrieval.embedder import Embedder, weight_hash
from d2vpr_hf.retrieval.pca import attach_pca

USAGE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    """Six places, three photos of each, and nine queries."""
    folder = tmp_path_factory.mktemp("town") / "town"
    return make_town(folder, places=6, views=3, queries=9, easy_queries=0, height=80, width=112)


@pytest.fixture
def trained(tiny_model, tiny_processor, town):
    """A small model after some steps towards telling the town's places apart."""
    photos = sorted(town.database.iterdir())
    places = torch.arange(len(photos)) // 3
    pixels = tiny_processor([Image.open(path) for path in photos], return_tensors="pt")["pixel_values"]
    before = weight_hash(tiny_model)
    optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=3e-3)
    tiny_model.train()
    same = (places[:, None] == places).float().fill_diagonal_(0)
    losses = []
    for _ in range(6):
        descriptors = tiny_model(pixels).pooler_output
        similarity = (descriptors @ descriptors.T / 0.05).fill_diagonal_(-1e9)
        losses.append(-(similarity.log_softmax(dim=1) * same).sum() / same.sum())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert weight_hash(tiny_model) != before
    return tiny_model.eval()


FRESH = """
import json
import torch
from pathlib import Path
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, pipeline

torch.set_grad_enabled(False)
model = AutoModel.from_pretrained("me/d2vpr-town", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("me/d2vpr-town", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)

def described(photos):
    pixels = processor([Image.open(path) for path in photos], return_tensors="pt")
    return model(**pixels).pooler_output

asked = json.load(open("asked.json"))
database, queries = described(asked["database"]), described(asked["queries"])
torch.save((database, queries), "found.pt")
ranking = (queries @ database.T).argsort(dim=1, descending=True, stable=True)
pairs = list(zip(ranking.tolist(), asked["positives"]))
hits = [[bool(set(row[:k]) & set(right)) for row, right in pairs] for k in asked["ks"]]
extractor = pipeline("image-feature-extraction", model="me/d2vpr-town", pool=True, trust_remote_code=True)
one = extractor(asked["queries"][0], return_tensors=True)
torch.testing.assert_close(one, queries[:1], rtol=0, atol=1e-6)
print(json.dumps([sum(each) / len(each) for each in hits]))
"""


def test_a_trained_model_comes_back_bit_for_bit_with_its_recall(hub, tmp_path, town, trained, tiny_processor):
    protocol = named_protocol("folders", town.database.parent)
    ks = (1, 2, 5)
    evaluation = evaluate_protocol(protocol, Embedder(trained, tiny_processor), ks=ks, progress=False)
    assert 0 < evaluation.recall[1] < evaluation.recall[5] < 1  # a constant descriptor gets no such curve
    push_model(trained, tiny_processor, "me/d2vpr-town", evaluations=[evaluation], training=TRAINING)

    photos = {"database": protocol.database.paths, "queries": protocol.queries.paths}
    asked = {side: [str(path) for path in paths] for side, paths in photos.items()}
    asked |= {"positives": [rows.tolist() for rows in protocol.positives], "ks": ks}
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    environment = hub_environment(hub.url, tmp_path / "home", HF_TOKEN="")
    run = run_python(FRESH, tmp_path, environment, package=False)
    assert json.loads(run.stdout.splitlines()[-1]) == [evaluation.recall[k] for k in ks]
    for side, found in zip(("database", "queries"), torch.load(tmp_path / "found.pt"), strict=True):
        pixels = tiny_processor([Image.open(path) for path in asked[side]], return_tensors="pt")
        with torch.no_grad():
            assert torch.equal(trained(**pixels).pooler_output, found)

    files = hub.repositories["me/d2vpr-town"]
    checkpoint = {path.name for path in save_checkpoint(tmp_path / "saved", trained, tiny_processor).iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_d2vpr.py"} < checkpoint
    assert set(files) == checkpoint | {
        ".gitattributes",
        "README.md",
        "config_sentence_transformers.json",
        "evaluations/cost.json",
        "evaluations/folders.json",
        "modules.json",
        "sentence_transformers_d2vpr.py",
        "training.json",
    }
    assert hub.stored["me/d2vpr-town"].messages[1:] == ["Push a D2-VPR model with its records and card"]
    assert json.loads(files["training.json"]) == TRAINING
    assert json.loads(files["evaluations/folders.json"])["recall"]["recall@1"] == evaluation.recall[1]
    assert str(tmp_path).encode() not in b"".join(files.values())
    card = files["README.md"].decode()
    assert f"| folders | 18 | 9 | {100 * evaluation.recall[1]:.1f} ({evaluation.hits[1]}) |" in card
    assert "base_model:\n- facebook/dinov2-small\n" in card


TRAINING = {"stages": [{"stage": "distill", "base_model": "facebook/dinov2-small", "arguments": {"steps": 6}}]}


def test_the_lines_of_the_card_run_as_they_stand(hub, tmp_path, tiny_model, tiny_processor):
    push_model(tiny_model, tiny_processor, "me/d2vpr-tiny")
    alone, packaged = USAGE.findall(hub.repositories["me/d2vpr-tiny"]["README.md"].decode())
    assert len([line for line in alone.splitlines() if line]) == 5
    (tmp_path / "my_photos").mkdir()
    photo = Image.effect_noise((80, 60), 90).convert("RGB")
    for path in ("photo.jpg", "my_photos/1.jpg", "my_photos/2.jpg"):
        photo.save(tmp_path / path)
    environment = hub_environment(hub.url, tmp_path / "home")
    check = "\nimport torch\ntorch.save(descriptor.detach(), 'found.pt')"
    run_python(alone + check, tmp_path, environment, package=False)
    with torch.no_grad():
        expected = tiny_model(**tiny_processor(Image.open(tmp_path / "photo.jpg"), return_tensors="pt")).pooler_output
    assert torch.equal(torch.load(tmp_path / "found.pt"), expected)
    # From the cache, and without a question for the code that is trusted already.
    run = run_python(packaged, tmp_path, environment | {"HF_HUB_OFFLINE": "1"})
    assert run.stdout.splitlines()[-1] == "(2, 672) 0"


def test_a_pca_travels_with_what_it_was_fitted_on(hub, tiny_model, tiny_processor, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 672)).astype(np.float32)
    from d2vpr_hf.retrieval.pca import PcaSource

    attach_pca(tiny_model, fit_pca(vectors, 8, source=PcaSource("pitts30k/images/train"), whitening=0.5))
    push_model(tiny_model, tiny_processor, "me/d2vpr-8")
    files = hub.repositories["me/d2vpr-8"]
    assert json.loads(files["config.json"])["pca_source"]["name"] == "pitts30k/images/train"
    assert json.loads(files["config_sentence_transformers.json"])["similarity_fn_name"] == "euclidean"
    assert json.loads(files["config.json"])["pca_source"]["whitening"] == 0.5
    assert "a PCA to 8 numbers" in files["README.md"].decode()
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes(files[name])
    again = D2VprModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again.reduction.components, tiny_model.reduction.components)
    assert weight_hash(again) == weight_hash(tiny_model)


def test_the_training_record_of_the_folder_goes_along_while_it_is_true(hub, tmp_path, tiny_model, tiny_processor):
    folder = save_checkpoint(tmp_path / "run", tiny_model, tiny_processor)
    (folder / "training.json").write_text(json.dumps(TRAINING))
    model = D2VprModel.from_pretrained(folder)
    push_model(model, tiny_processor, "me/d2vpr-a")
    assert json.loads(hub.repositories["me/d2vpr-a"]["training.json"]) == TRAINING
    # Weights that were changed since have another history.
    with torch.no_grad():
        model.recovery.norm.weight.mul_(2)
    push_model(model, tiny_processor, "me/d2vpr-a")
    assert "training.json" not in hub.repositories["me/d2vpr-a"]
    assert "distill" not in hub.repositories["me/d2vpr-a"]["README.md"].decode()


def test_a_converted_model_is_for_its_owner_to_share(hub, tiny_model, tiny_processor):
    tiny_model.config.converted_from = {"file": "original.pth", "sha256": "f" * 64}
    with pytest.raises(
        PermissionError, match=r"converted from original.pth \(SHA-256 ffffffff\).* allow_converted=True"
    ):
        push_model(tiny_model, tiny_processor, "me/converted")
    assert hub.requests == []
    push_model(tiny_model, tiny_processor, "me/converted", allow_converted=True)
    assert "license: other" in hub.repositories["me/converted"]["README.md"].decode()


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(hub, tiny_model, tiny_processor):
    small = {"hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 1, "image_size": 56}
    teacher = CricaVprModel(CricaVprConfig(backbone_config=small))
    with pytest.raises(TypeError, match="CricaVprModel isn't a D2-VPR model"):
        push_model(teacher, tiny_processor, "me/teacher")
    with pytest.raises(ValueError, match="is of the weights aaaaaaaa"):
        push_model(tiny_model, tiny_processor, "me/tiny", evaluations=[made_evaluation()])
    with pytest.raises(ValueError, match="evaluate looks for a file of the Space's name"):
        push_metric("me/recall")
    assert hub.requests == []


def test_a_push_does_not_bury_another_model(hub, tiny_model, tiny_processor):
    hub.create("me/bert")
    hub.commit("me/bert", "main", {"config.json": b'{"model_type": "bert"}', "pytorch_model.bin": b"0"})
    with pytest.raises(FileExistsError, match="me/bert holds something else"):
        push_model(tiny_model, tiny_processor, "me/bert")
    assert set(hub.repositories["me/bert"]) == {"config.json", "pytorch_model.bin"}
    hub.create("me/broken")
    hub.commit("me/broken", "main", {"config.json": b"{"})
    with pytest.raises(FileExistsError, match="me/broken holds something else"):
        push_model(tiny_model, tiny_processor, "me/broken")


def test_a_second_push_replaces_results_and_shards(hub, tiny_model, tiny_processor):
    evaluation = dataclasses.replace(made_evaluation(), weight_hash=weight_hash(tiny_model))
    push_model(tiny_model, tiny_processor, "me/tiny", evaluations=[evaluation])
    files = hub.repositories["me/tiny"]
    shards = {f"model-0000{part}-of-00002.safetensors": bytes([part]) for part in (1, 2)}
    hub.commit("me/tiny", "main", files | shards | {"model.safetensors.index.json": b"{}", "photo.png": b"mine"})
    push = push_model(tiny_model, tiny_processor, "me/tiny")
    assert push.replaced == sorted([*shards, "model.safetensors.index.json", "evaluations/made.json"])
    assert set(hub.repositories["me/tiny"]) == {*files, "photo.png"} - {"evaluations/made.json"}


METRIC = """
import evaluate

recall = evaluate.load("me/recall_at_k")
print(recall.compute(predictions=[[3, 1, 2], [0, 2, 1]], references=[[3], [1, 7]], k=[1, 3]))
"""


def test_the_metric_is_loaded_from_its_space(hub, tmp_path):
    push = push_metric("me/recall_at_k")
    assert push.files == ["README.md", "app.py", "recall_at_k.py", "requirements.txt"]
    assert hub.stored["me/recall_at_k"].type == "spaces"
    assert push_metric("me/recall_at_k").commit == push.commit
    environment = hub_environment(hub.url, tmp_path / "home")
    run = run_python(METRIC, tmp_path, environment, package=False)
    assert run.stdout.splitlines()[-1] == (
        "{'recall@1': 0.5, 'recall@3': 1.0, 'queries': 2, 'queries_without_positives': 0}"
    )
    assert hub.asked("GET", "/spaces/me/recall_at_k/resolve/") + hub.asked("HEAD", "/spaces/me/recall_at_k/") > 0
