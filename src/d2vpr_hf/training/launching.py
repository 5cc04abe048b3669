"""Processes, threads and memory of a run, and whether its launcher started what it was asked for."""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration

from ..cores import available_cores
from .arguments import TrainingArguments
from .run import TRACKER, RunFolder

CPU_LAUNCH = (
    "accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no "
    "examples/train.py"
)


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Stops a run whose launcher was asked for several processes and started one.

    `accelerate launch --num_processes 2` without a GPU does that: it names a meeting point, but no number of processes.

    Raises: RuntimeError naming the form that starts several processes on a CPU.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in environment
    if launched and {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys() and "WORLD_SIZE" not in environment:
        raise RuntimeError(
            "The launcher was asked for several processes, but started one alone, as `accelerate launch "
            f"--num_processes N` does without a GPU. For several on a CPU use `{CPU_LAUNCH}` (the trainer stays on the "
            "CPU where there is no GPU), or --num_processes 1 for one."
        )


def make_accelerator(arguments: TrainingArguments, folder: RunFolder) -> Accelerator:
    """The accelerator of one run, as its launcher and arguments ask.

    Raises: RuntimeError if the launcher started fewer processes than asked for. ValueError for sync_batchnorm without
        CUDA.
    """
    check_launcher()
    on_cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if arguments.sync_batchnorm and not torch.cuda.is_available():
        raise ValueError(
            "sync_batchnorm is on, but there is no CUDA device, and torch synchronises BatchNorm on CUDA alone. Leave "
            "it out: each process then normalises by its own batch."
        )
    # One process may make several runs, each with a precision of its own.
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_steps=arguments.gradient_accumulation_steps,
        log_with=None if arguments.tracker == "none" else arguments.tracker,
        project_config=ProjectConfiguration(project_dir=str(folder.root), logging_dir=str(folder.root / TRACKER)),
    )


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """Within, torch has so many threads on the CPU; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_each(processes: int) -> int:
    """Threads of each of the processes that share this machine's cores; `accelerate launch` leaves each of them one."""
    return max(1, available_cores() // processes)


# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_GROWS_BY = 256 << 20


def keep_freed_memory() -> bool:
    """Lets this process keep what it frees, up to 2 GiB at a time, for what it allocates next.

    Otherwise glibc returns each large tensor of a step to the system, which hands it out again page by page, zeroed:
    on a CPU that is up to a third of a small model's training time. It holds until the process ends.

    Returns: whether the C library knows how; those of other systems do without.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: _GROWS_BY}
    return mallopt is not None and all(mallopt(name, value) for name, value in settings.items())
