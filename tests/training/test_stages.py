"""What a stage makes of a batch: the same gradients whatever the number of processes or the size of the chunks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from gradients_of_processes import gradients, part, whole_batch
from made_training import student, teacher
from safetensors.torch import load_file

from d2vpr_hf.training.arguments import DistillArguments, FinetuneArguments
from d2vpr_hf.training.stages import Distill, Finetune, Student
from d2vpr_hf.training.targets import Targets, TeacherTargets
from d2vpr_hf.training.teachers import PlaceTeacher, Teacher

TESTS = Path(__file__).parents[1]


def relative_errors(
    found: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    without_effect: tuple[str, ...] = ("k_proj.bias",),
) -> dict[str, float]:
    """Of each parameter's gradient, the length of the difference over its own length.

    Some biases have no effect: softmax takes no notice of a key's, which shifts all of a query's scores alike, nor
    does BatchNorm, in training, of that of the convolution before it. Their gradient is nothing but rounding, and is
    compared with the gradient of the weight beside it.
    """
    assert found.keys() == expected.keys()
    lengths = {name: each.norm() for name, each in expected.items()}
    for name in [name for name in lengths if name.endswith(without_effect)]:
        lengths[name] = lengths[name.replace("bias", "weight")]
    assert all(length > 0 for length in lengths.values())
    return {name: float((found[name] - each).norm() / lengths[name]) for name, each in expected.items()}


def run_processes(out: Path, *words: str) -> dict[str, torch.Tensor]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(TESTS / "gradients_of_processes.py"), str(out), *words]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


@pytest.fixture(scope="module")
def of_one_process() -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in gradients(None).items()}


@pytest.mark.parametrize("chunk", [(), ("5",)])
def test_two_processes_have_the_gradients_of_one(tmp_path, of_one_process, chunk):
    errors = relative_errors(run_processes(tmp_path / "gradients.safetensors", *chunk), of_one_process)
    assert len(errors) > 50
    assert max(errors.values()) < 1e-9


@pytest.mark.parametrize("chunk", [1, 5, 31])
def test_chunks_have_the_gradients_of_the_whole(of_one_process, chunk):
    assert max(relative_errors(gradients(chunk), of_one_process).values()) < 1e-9


NESTED = (16, 6, 3)


@pytest.fixture(scope="module")
def of_a_nested_head() -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in gradients(None, NESTED).items()}


def test_processes_and_chunks_have_the_same_gradients_with_a_nested_head(tmp_path, of_a_nested_head):
    found = run_processes(tmp_path / "gradients.safetensors", "5", *map(str, NESTED))
    assert "head.weight" in {name.removeprefix("model.") for name in found}
    assert max(relative_errors(found, of_a_nested_head).values()) < 1e-9
    assert max(relative_errors(gradients(5, NESTED), of_a_nested_head).values()) < 1e-9
    # The parts have a say: without them the gradients are others.
    assert relative_errors(gradients(None, (16,)), of_a_nested_head)["head.weight"] > 1e-3


def test_a_nested_loss_is_the_mean_of_the_losses_of_each_prefix():
    arguments = FinetuneArguments(data=["none"], model="none")
    random = torch.Generator().manual_seed(2)
    places = torch.arange(4).repeat_interleave(3)
    # Photos of a place are alike: the whole tells most places apart, three numbers don't.
    whole = torch.randn(4, 16, generator=random)[places] + 0.3 * torch.randn(12, 16, generator=random)
    whole = torch.nn.functional.normalize(whole, dim=1)
    stage = Finetune(arguments, Accelerator(cpu=True), torch.nn.Identity(), nested_dims=NESTED)
    alone = Finetune(arguments, Accelerator(cpu=True), torch.nn.Identity())
    each = [alone.compare(torch.nn.functional.normalize(whole[:, :dim], dim=1), places) for dim in NESTED]
    found = stage.compare(whole, places)
    for name in ("loss", "mined_share"):
        torch.testing.assert_close(found[name], torch.stack([part[name] for part in each]).mean())
    assert len({float(part["loss"]) for part in each}) == 3
    assert len({float(part["mined_share"]) for part in each}) > 1


def test_a_half_of_the_batch_has_other_gradients(of_one_process):
    """What the tests above would miss if the loss never saw the other half."""
    accelerator = Accelerator(cpu=True)
    model = student()
    stage = Finetune(
        FinetuneArguments(data=["none"], model="none"), accelerator, Student(model, None, needs_tokens=False).eval()
    )
    stage.backward(part(whole_batch(), 0, 2))
    found = {name: each.grad.double() for name, each in model.named_parameters() if name in of_one_process}
    errors = relative_errors(found, of_one_process)
    assert min(error for name, error in errors.items() if not name.endswith("k_proj.bias")) > 1e-3


def stage_of(kind: str, chunk: int | None, weight: float, model: torch.nn.Module, **keys) -> Distill | Finetune:
    accelerator = Accelerator(cpu=True)
    network = PlaceTeacher(teacher())
    followed = Teacher(network, name="tiny", mode="batch_independent", version_hash="", dtype="float32")
    torch.manual_seed(3)
    wrapped = Student(model, followed.width, needs_tokens=keys.get("token_weight", 0) > 0)
    common = {"data": ["none"], "model": "none", "teacher": "tiny", **keys}
    if kind == "distill":
        return Distill(DistillArguments(**common), accelerator, wrapped, Targets([TeacherTargets(followed)]))
    settings = FinetuneArguments(**common, descriptor_chunk=chunk, distillation_weight=weight)
    return Finetune(settings, accelerator, wrapped, Targets([TeacherTargets(followed)]))


def test_chunks_replay_dropout_and_leave_running_statistics_to_the_second_pass():
    """In training, with the teacher's term kept: one chunk of the whole size equals no chunks at all."""
    found = []
    for chunk in (None, 16):
        model = student(dropout=0.5).train()
        stage = stage_of("finetune", chunk, 0.5, model, token_weight=0.3)
        torch.manual_seed(7)
        batch = part(whole_batch(), 0, 2)
        figures = (
            stage.backward_whole(batch, stage.following.target(batch))
            if chunk is None
            else (stage.backward_in_chunks(batch, stage.following.target(batch)))
        )
        gradient = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        found.append((figures, gradient, dict(model.named_buffers())))
    (figures, gradient, buffers), (chunked_figures, chunked_gradient, chunked_buffers) = found
    for name in ("loss", "distillation_loss"):
        torch.testing.assert_close(chunked_figures[name], figures[name], rtol=1e-6, atol=0)
    errors = relative_errors(chunked_gradient, gradient, without_effect=("k_proj.bias", "conv.bias"))
    assert max(errors.values()) < 1e-5
    for name, buffer in buffers.items():
        torch.testing.assert_close(chunked_buffers[name], buffer, rtol=0, atol=0)
    tracked = [name for name in buffers if name.endswith("num_batches_tracked")]
    assert tracked
    assert all(buffers[name] == 1 for name in tracked)


def test_distilling_brings_the_student_nearer_to_its_teacher():
    model = student()
    stage = stage_of("distill", None, 0.0, model, region_weight=1.0, token_weight=1.0)
    batch = part(whole_batch(), 0, 4)
    optimizer = torch.optim.AdamW(stage.student.parameters(), lr=3e-3)
    history = []
    for _ in range(12):
        figures = stage.backward(batch)
        assert {"loss", "descriptor_loss", "region_loss", "token_loss"} == figures.keys()
        history.append(float(figures["loss"]))
        optimizer.step()
        optimizer.zero_grad()
    assert history[-1] < 0.7 * history[0]
    assert all(each.grad is None for each in stage.following.targets.teachers[0].parameters())


def test_keeping_the_teacher_changes_the_gradients():
    gradient = []
    for weight in (0.1, 1.0):
        model = student().eval()
        stage = stage_of("finetune", None, weight, model)
        figures = stage.backward(part(whole_batch(), 0, 2))
        assert figures["distillation_loss"] > 0.01
        assert 0 < figures["mined_share"] <= 1
        gradient.append(model.recovery.projection.weight.grad)
    assert (gradient[0] - gradient[1]).norm() > 1e-3 * gradient[0].norm()
