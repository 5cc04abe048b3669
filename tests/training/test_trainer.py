"""A whole run: its folder, its checkpoint, and going on after it was stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
import torch
from fresh_process import LIMIT_S
from made_training import STUDENT, TEACHER, arguments, losses
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from d2vpr_hf import embed_images, load_protocol
from d2vpr_hf.cli.main import main
from d2vpr_hf.training.arguments import resolve_arguments
from d2vpr_hf.training.run import RunFolder
from d2vpr_hf.training.trainer import TrainingStopped, train

ROOT = Path(__file__).parents[2]


def cli(keys: dict) -> list[str]:
    """The command that runs the same arguments in a process of its own."""
    words = []
    for name, value in keys.items():
        entries = value if isinstance(value, list) else [value]
        texts = [json.dumps(entry) if isinstance(entry, dict) else str(entry) for entry in entries]
        words += [f"--{name}", *texts] if texts else []
    return [sys.executable, "-m", "d2vpr_hf.cli.main", "train", *words]


def given(settings) -> dict:
    """The arguments without what is nothing."""
    return {name: value for name, value in settings.to_dict().items() if value is not None and value != []}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(training_town, validation_town, tmp_path):
    """kill -9 in the middle of an epoch; batches, augmentation, dropout, losses, recall and weights are the same."""
    keys = {
        "save_every": 2,
        "epochs": 4,
        "workers": 1,
        "descriptor_chunk": 3,
        "validation": [f"folders={validation_town}"],
        "validate_every": 4,
    }
    unbroken = train(arguments(training_town, tmp_path / "unbroken", **keys))
    expected = RunFolder(tmp_path / "unbroken").records()
    assert unbroken.steps == 12

    settings = arguments(training_town, tmp_path / "killed", **keys)
    folder = RunFolder(tmp_path / "killed")
    process = subprocess.Popen(cli(given(settings)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(losses(folder.records())) < 5:
        time.sleep(0.005)
    started = psutil.Process(process.pid).children(recursive=True)
    assert started, "no worker was there to be left behind"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(started, timeout=LIMIT_S)[1] == []
    reached = folder.records()[-1]["step"]
    assert reached < 12, "killed too late to say anything"
    assert folder.states()
    assert not folder.checkpoint.exists()

    resumed = train(arguments(training_town, tmp_path / "killed", **keys, resume=True))
    found = folder.records()
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    torch.testing.assert_close(torch.tensor(losses(found)), torch.tensor(losses(expected)), rtol=1e-6, atol=0)
    assert len(set(losses(expected))) == 12
    assert [each.get("validation") for each in found] == [each.get("validation") for each in expected]
    assert (resumed.best_step, resumed.best_recall) == (unbroken.best_step, unbroken.best_recall)
    one, other = weights(unbroken.checkpoint), weights(resumed.checkpoint)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_run_leaves_what_it_was_and_what_it_found(training_town, validation_town, tmp_path):
    teacher = train(arguments(training_town, tmp_path / "teacher", model_config=TEACHER, trainable_blocks=-1, epochs=1))
    keys = {
        "stage": "distill",
        "teacher": str(teacher.checkpoint),
        "trainable_blocks": -1,
        "validation": [f"folders={validation_town}"],
        "tracker": "tensorboard",
        "save_every": 2,
        "epochs": 3,
        "learning_rate": 1e-3,
    }
    result = train(arguments(training_town, tmp_path / "run", **keys))
    root = tmp_path / "run"
    assert json.loads((root / "arguments.json").read_text())["teacher"] == str(teacher.checkpoint)
    assert json.loads((root / "versions.json").read_text())["torch"] == version("torch")
    records = RunFolder(root).records()
    assert losses(records)[-1] < losses(records)[0]
    assert {"learning_rate", "images_per_s", "descriptor_loss", "epoch"} <= records[0].keys()
    validations = [record for record in records if "validation" in record]
    assert len(validations) == 3
    assert result.best_recall == max(each["validation"]["folders"]["recall@5"] for each in validations)
    assert all((root / name).read_bytes().startswith(b"\x89PNG") for name in ("loss.png", "recall.png"))
    assert list(root.glob("tracker/**/events.out.tfevents*"))
    assert [path.name for path in RunFolder(root).states()] == ["step-00000008", "step-00000009"]

    model, processor = (
        AutoModel.from_pretrained(result.checkpoint),
        AutoImageProcessor.from_pretrained(result.checkpoint),
    )
    assert dict(processor.size) == {"height": 56, "width": 56}
    photos = sorted((training_town / "Images").rglob("*.jpg"))[:3]
    vectors = embed_images(photos, model=model, processor=processor, progress=False).vectors
    assert vectors.shape == (3, model.config.descriptor_dim)
    (stage,) = json.loads((result.checkpoint / "training.json").read_text())["stages"]
    assert stage["stage"] == "distill"
    assert stage["teacher"]["mode"] == "batch_independent"
    assert stage["data"]["places"] == 12
    assert stage["best"]["step"] == result.best_step

    second = train(arguments(training_town, tmp_path / "second", model=str(result.checkpoint), epochs=1, head_dim=16))
    stages = json.loads((second.checkpoint / "training.json").read_text())["stages"]
    assert [each["stage"] for each in stages] == ["distill", "finetune"]
    assert AutoModel.from_pretrained(second.checkpoint).config.descriptor_dim == 16


def test_a_nested_head_is_trained_and_goes_on_at_full_length(training_town, tmp_path):
    first = train(arguments(training_town, tmp_path / "first", epochs=1, nested_dims=[8, 16]))
    short = AutoModel.from_pretrained(first.checkpoint, descriptor_dim=8)
    assert (short.config.head_dim, short.config.nested_dims, short.config.descriptor_dim) == (16, (16, 8), 8)
    short.save_pretrained(tmp_path / "short")
    keys = {"model": str(tmp_path / "short"), "epochs": 1}
    second = AutoModel.from_pretrained(train(arguments(training_town, tmp_path / "second", **keys)).checkpoint)
    assert (second.config.nested_dims, second.config.descriptor_dim) == ((16, 8), 16)
    assert not torch.equal(second.head.weight[8:], short.head.weight[8:])
    plain = train(arguments(training_town, tmp_path / "plain", epochs=1, head_dim=16))
    assert AutoModel.from_pretrained(plain.checkpoint).config.nested_dims is None
    assert losses(RunFolder(tmp_path / "plain").records()) != losses(RunFolder(tmp_path / "first").records())
    # A head that was trained whole can be nested later; one of another length can't.
    keys["model"] = str(plain.checkpoint)
    third = train(arguments(training_town, tmp_path / "third", nested_dims=[16, 4], **keys))
    assert AutoModel.from_pretrained(third.checkpoint, descriptor_dim=4).config.descriptor_dim == 4
    with pytest.raises(ValueError, match=r"head_dim is 32, but .* has a head of 16"):
        train(arguments(training_town, tmp_path / "fourth", nested_dims=[32, 8], **keys))


def test_frozen_blocks_stay_as_they_are(training_town, tmp_path):
    start = train(arguments(training_town, tmp_path / "start", epochs=1, trainable_blocks=-1))
    before = weights(start.checkpoint)
    for mode, moves in (("eval", False), ("train", True)):
        keys = {"model": str(start.checkpoint), "frozen_batchnorm": mode, "epochs": 1}
        after = weights(train(arguments(training_town, tmp_path / mode, **keys)).checkpoint)
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        first = {name for name in before if name.startswith("backbone.encoder.layer.0.")}
        statistics = {name for name in first if "running" in name or "batches" in name}
        assert statistics
        assert changed & first == (statistics if moves else set())
        assert "aggregator.position.0.weight" in changed


def test_training_stops_before_a_loss_that_is_no_number(training_town, tmp_path, monkeypatch):
    from d2vpr_hf.training.stages import Finetune

    whole, calls = Finetune.backward_whole, []

    def poisoned(self, batch, target):
        calls.append(1)
        if len(calls) == 4:
            batch.pixel_values[0, 0, 0, 0] = float("nan")
        return whole(self, batch, target)

    monkeypatch.setattr(Finetune, "backward_whole", poisoned)
    with pytest.raises(TrainingStopped) as stopped:
        train(arguments(training_town, tmp_path / "run", save_every=2))
    assert "step 4" in str(stopped.value)
    assert ".jpg" in str(stopped.value)
    assert str(tmp_path / "run/states/step-00000002") in str(stopped.value)
    (record,) = (tmp_path / "run").glob("stopped-at-step-4-*.json")
    assert len(json.loads(record.read_text())["photos"]) == 8
    assert not (tmp_path / "run/checkpoint").exists()


def test_an_unreadable_photo_is_replaced_counted_and_logged(training_town, tmp_path, caplog):
    town = tmp_path / "town"
    shutil.copytree(training_town, town)
    broken = sorted((town / "Images").rglob("*.jpg"))[0]
    broken.write_bytes(b"no photo")
    with caplog.at_level("WARNING", logger="d2vpr_hf.training"):
        result = train(arguments(town, tmp_path / "run", images_per_place=3, epochs=1))
    assert result.replaced == 1
    assert any(broken.name in record.getMessage() for record in caplog.records)
    assert RunFolder(tmp_path / "run").records()[-1]["replaced"] == 1


def test_patience_ends_a_run(training_town, validation_town, tmp_path):
    keys = {"validation": [f"folders={validation_town}"], "patience": 2, "validate_every": 1, "epochs": 9}
    result = train(arguments(training_town, tmp_path / "run", **keys, learning_rate=1e-9))
    assert result.steps == 3  # the first validation is the best, and two are not better
    assert result.best_step == 1


def test_torch_has_its_threads_back(training_town, tmp_path):
    """A run's threads are its own: the number decides the last bits of what is computed afterwards."""
    before = torch.get_num_threads()
    train(arguments(training_town, tmp_path / "run", epochs=1, threads=before + 1))
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="places"):
        train(arguments(training_town, tmp_path / "bad", places_per_batch=99, threads=before + 1))
    assert torch.get_num_threads() == before


def test_accumulated_batches_make_one_step(training_town, tmp_path):
    result = train(arguments(training_town, tmp_path / "run", gradient_accumulation_steps=3))
    assert result.steps == 2
    assert {record["epoch"] for record in RunFolder(tmp_path / "run").records()} == {1.0, 2.0}


def test_a_rate_that_drops_by_layer_is_kept_when_a_run_goes_on(training_town, tmp_path):
    keys = {"layer_rate_decay": 0.5, "trainable_blocks": -1, "save_every": 1, "keep_states": 9}
    unbroken = train(arguments(training_town, tmp_path / "run", **keys))
    stage = json.loads((unbroken.checkpoint / "training.json").read_text())["stages"][-1]
    assert stage["arguments"]["layer_rate_decay"] == 0.5
    plain = train(arguments(training_town, tmp_path / "plain", **keys | {"layer_rate_decay": 1.0}))
    expected, folder = weights(unbroken.checkpoint), RunFolder(tmp_path / "run")
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in weights(plain.checkpoint).items())

    shutil.rmtree(folder.checkpoint)
    for state in folder.states()[2:]:
        shutil.rmtree(state)
    with pytest.raises(ValueError, match=r"layer_rate_decay is 1\.0, but the run in"):
        train(arguments(training_town, tmp_path / "run", **keys | {"layer_rate_decay": 1.0}, resume=True))
    resumed = train(arguments(training_town, tmp_path / "run", **keys, resume=True))
    for name, tensor in weights(resumed.checkpoint).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


def test_what_costs_less_memory_gives_the_same(training_town, tmp_path):
    """Gradient checkpointing: the same losses, and the same running statistics of BatchNorm."""
    common = {"trainable_blocks": -1, "epochs": 1, "model_config": {**STUDENT, "dropout": 0.0}}
    plain = train(arguments(training_town, tmp_path / "plain", **common))
    saving = train(arguments(training_town, tmp_path / "saving", **common, gradient_checkpointing=True))
    one, other = (losses(RunFolder(tmp_path / name).records()) for name in ("plain", "saving"))
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-5, atol=0)
    for name, tensor in weights(plain.checkpoint).items():
        torch.testing.assert_close(weights(saving.checkpoint)[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_bfloat16_trains(training_town, tmp_path):
    result = train(arguments(training_town, tmp_path / "run", mixed_precision="bf16", epochs=1))
    assert weights(result.checkpoint)["recovery.norm.weight"].dtype == torch.float32
    assert all(0 < loss < 10 for loss in losses(RunFolder(tmp_path / "run").records()))


def test_folders_in_use_and_other_arguments_are_refused(training_town, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="no training run wrote"):
        train(arguments(training_town, tmp_path / "mine"))
    with pytest.raises(FileNotFoundError, match="no training run to go on with"):
        train(arguments(training_town, tmp_path / "new", resume=True))
    train(arguments(training_town, tmp_path / "run", epochs=1))
    with pytest.raises(FileExistsError, match="--resume"):
        train(arguments(training_town, tmp_path / "run", epochs=1))
    with pytest.raises(ValueError, match=r"learning_rate is 0\.5"):
        train(arguments(training_town, tmp_path / "run", epochs=1, resume=True, learning_rate=0.5))
    again = train(arguments(training_town, tmp_path / "run", epochs=1, resume=True, log_every=7))
    assert again.steps == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone_config": {"hidden_sise": 32}}, "'hidden_sise'. Did you mean hidden_size"),
        ({"agregator_dim": 96}, "'agregator_dim'. Did you mean aggregator_dim"),
        ({"backbone_config": {"num_hidden_layers": 2}}, r"blocks \[4, 8, 12\], but the backbone has blocks 1 to 2"),
        ({"model_type": "resnet"}, "'resnet', but there are d2vpr and cricavpr"),
    ],
)
def test_a_configuration_that_makes_no_model_is_named(training_town, tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        train(arguments(training_town, tmp_path / "run", model_config=config))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_a_run_only_began_is_free(training_town, tmp_path):
    settings = arguments(training_town, tmp_path / "run", epochs=1)
    RunFolder(tmp_path / "run").begin(settings)
    assert train(settings).steps == 3


def test_a_script_that_its_workers_would_run_again_is_told_so(training_town, tmp_path):
    keys = given(arguments(training_town, tmp_path / "run", workers=1))
    script = tmp_path / "script.py"
    script.write_text(f"import d2vpr_hf\nd2vpr_hf.train(d2vpr_hf.resolve_arguments({keys!r}))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode != 0
    assert 'Put the call under `if __name__ == "__main__":`' in done.stderr
    guarded = script.read_text().replace("d2vpr_hf.train(", 'if __name__ == "__main__": d2vpr_hf.train(')
    script.write_text(guarded)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_dataset_trains_without_folders(training_town, tmp_path):
    dataset = load_protocol("gsv-cities", training_town, cache_dir=tmp_path / "cache")["train"]
    result = train(arguments("none", tmp_path / "run", data=[], epochs=1), places=dataset)
    (stage,) = json.loads((result.checkpoint / "training.json").read_text())["stages"]
    assert stage["data"]["places"] == 12
    assert stage["data"]["sources"] == [stage["data"]["name"]]
    with pytest.raises(ValueError, match="data is missing"):
        train(arguments("none", tmp_path / "other", data=[]))


def test_a_failed_start_leaves_no_folder(training_town, tmp_path):
    with pytest.raises(ValueError, match="places"):
        train(arguments(training_town, tmp_path / "run", places_per_batch=99))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="sync_batchnorm"):
        train(arguments(training_town, tmp_path / "run", sync_batchnorm=True))


def test_a_run_of_version_0_1_goes_on(tmp_path, monkeypatch, capsys):
    """By the command alone; a key that came after it had its default's effect, and any other value is refused."""
    shutil.copytree(ROOT / "tests" / "recorded" / "run_0_1_0", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    folder = RunFolder("run")
    expected = losses(folder.records())
    asked = json.loads(Path("run/arguments.json").read_text())
    assert asked.pop("teacher_sees") == "augmented"
    Path("run/arguments.json").write_text(json.dumps(asked))
    changed = ["--stage", "finetune", *cli(given(resolve_arguments(asked)))[4:], "--resume", "--teacher_sees", "plain"]
    assert main(["train", *changed]) == 2
    assert "teacher_sees is 'plain', but the run in run has 'augmented'" in capsys.readouterr().err
    (Path("run/states") / ".step-00000005.tmp").mkdir()
    assert main(["train", "--resume", "--output", "run"]) == 0
    assert "the weights of step 6 of 6" in capsys.readouterr().out
    assert losses(folder.records()) == pytest.approx(expected, rel=1e-5)
    assert sorted(path.name for path in Path("run/states").iterdir()) == ["step-00000004", "step-00000006"]
