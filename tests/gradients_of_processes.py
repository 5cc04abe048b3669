"""Run by several processes: the gradients that stage 2 gives them together, saved by the first one.

torchrun --nproc_per_node 2 gradients_of_processes.py OUT [CHUNK [DIM ...]]

The first DIM is that of a head, the others are nested in it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from made_training import student
from safetensors.torch import save_file

from d2vpr_hf.models.d2vpr import aggregator_d2vpr
from d2vpr_hf.models.d2vpr.regions_d2vpr import RegionPoints, region_points
from d2vpr_hf.training.arguments import FinetuneArguments
from d2vpr_hf.training.data.batches import TrainingBatch
from d2vpr_hf.training.schedule import freeze
from d2vpr_hf.training.stages import Finetune, Student

PLACES, IMAGES = 16, 2


def whole_batch() -> TrainingBatch:
    generator = torch.Generator().manual_seed(5)
    places = torch.arange(PLACES).repeat_interleave(IMAGES)
    # Photos of a place resemble each other, so that some pairs are easy and some hard.
    shared = torch.randn(PLACES, 3, 56, 56, generator=generator)[places]
    pixels = shared + 0.7 * torch.randn(len(places), 3, 56, 56, generator=generator)
    return TrainingBatch(pixels, places, places.tolist())


def part(batch: TrainingBatch, rank: int, processes: int) -> TrainingBatch:
    rows = slice(len(batch) // processes * rank, len(batch) // processes * (rank + 1))
    return TrainingBatch(batch.pixel_values[rows], batch.places[rows], batch.rows[rows])


@contextmanager
def in_float64() -> Iterator[None]:
    """Within, what asks for float32 gets float64. Sums in another order differ by rounding, which float32 shows where
    a gradient is a small difference of large numbers; in float64 nothing but a mistake is left to be seen.
    """

    def points(*words: object) -> RegionPoints:
        made = region_points.__wrapped__(*words)
        return RegionPoints(*(each.double() if each.is_floating_point() else each for each in made))

    # Made anew: what is kept of earlier passes is float32, and what is made here must not be kept for later ones.
    anew = {name: getattr(aggregator_d2vpr, name).__wrapped__ for name in ("global_box", "neighbours")}
    with (
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.multiple(aggregator_d2vpr, region_points=points, **anew),
    ):
        yield


def gradients(chunk: int | None, nested_dims: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """Of every trained parameter, with BatchNorm in evaluation mode and without dropout."""
    accelerator = Accelerator(cpu=True)
    nested = nested_dims if len(nested_dims) > 1 else None
    model = student(head_dim=max(nested_dims, default=None), nested_dims=nested).double()
    freeze(model, trainable_blocks=2, trainable_modules=None)
    wrapped = accelerator.prepare(Student(model, None, needs_tokens=False)).eval()
    settings = FinetuneArguments(data=["none"], model="none", descriptor_chunk=chunk)
    stage = Finetune(settings, accelerator, wrapped, nested_dims=nested_dims)
    batch = part(whole_batch(), accelerator.process_index, accelerator.num_processes)
    with in_float64():
        stage.backward(replace(batch, pixel_values=batch.pixel_values.double()))
    return {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


if __name__ == "__main__":
    torch.set_num_threads(1)
    chunk, *dims = map(int, sys.argv[2:] or [0])
    found = gradients(chunk or None, tuple(dims))
    if Accelerator(cpu=True).is_main_process:
        save_file(found, Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
