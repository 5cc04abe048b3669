"""Training images a second: the loader alone, the step alone, and both together, beside what the machine allows.

    python benchmarks/training_throughput.py
    python benchmarks/training_throughput.py --student full --rounds 5 --json

On a CPU loader and step share the cores, so that both together can reach 1 / (1 / loader + 1 / step) at best. On an
accelerator they don't, and the slower of the two is the bound. All three are measured in turns in one run, and the
medians compared, because machines get faster and slower while one looks.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator

from d2vpr_hf import D2VprConfig, D2VprImageProcessor, D2VprModel, make_town
from d2vpr_hf.protocols.places import read_training_places
from d2vpr_hf.training.arguments import FinetuneArguments
from d2vpr_hf.training.data.batches import TrainingBatch, TrainingImages, training_loader
from d2vpr_hf.training.data.sampler import PlaceSampler
from d2vpr_hf.training.data.transform import AUGMENTATIONS, TrainingTransform
from d2vpr_hf.training.schedule import freeze, make_optimizer
from d2vpr_hf.training.stages import Finetune, Student

SMALL = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 224}


def make_step(student: str, device: torch.device) -> Callable[[TrainingBatch], None]:
    """A step of stage 2 as the trainer makes it: forward, multi-similarity, backward, clipping, AdamW."""
    accelerator = Accelerator(cpu=device.type == "cpu")
    torch.manual_seed(0)
    small = {"backbone_config": SMALL, "recovery_layers": (1, 2, 4), "aggregator_dim": 96}
    model = D2VprModel(D2VprConfig(**small if student == "small" else {}))
    arguments = FinetuneArguments(data=["none"], model="none", trainable_blocks=-1)
    freeze(model, trainable_blocks=arguments.trainable_blocks, trainable_modules=None)
    wrapped = Student(model, None, needs_tokens=False).train()
    wrapped, optimizer = accelerator.prepare(wrapped, make_optimizer(arguments, wrapped))
    stage = Finetune(arguments, accelerator, wrapped)

    def step(batch: TrainingBatch) -> None:
        stage.backward(batch.to(device))
        accelerator.clip_grad_norm_(wrapped.parameters(), arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(options: argparse.Namespace) -> dict:
    device = torch.device(options.device)
    step = make_step(options.student, device)
    with tempfile.TemporaryDirectory() as work:
        places = options.steps * options.places
        make_town(
            work, places=places, views=options.images, layout="gsv", height=options.height, width=options.width,
            progress=False,
        )  # fmt: skip
        training = read_training_places(work)
        sampler = PlaceSampler(training.places, places_per_batch=options.places, images_per_place=options.images)
        transform = TrainingTransform(D2VprImageProcessor(), augmentation=options.augmentation)
        images, on_cuda = TrainingImages(training, transform), device.type == "cuda"
        loader = training_loader(images, sampler, workers=options.workers, pin_memory=on_cuda)
        ready = next(iter(loader))

        def load() -> None:
            for _ in loader:
                pass

        def compute() -> None:
            for _ in range(options.steps):
                step(ready)

        def train() -> None:
            for batch in loader:
                step(batch)

        parts = {"loader": load, "step": compute, "together": train}
        measured: dict[str, list[float]] = {name: [] for name in parts}
        for number in range(options.rounds + 1):
            for name, part in parts.items():
                sampler.set_epoch(number)
                started = time.perf_counter()
                part()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if number:  # the first round warms caches, threads and kernels up
                    measured[name].append(len(training) / (time.perf_counter() - started))
    medians = {name: statistics.median(rates) for name, rates in measured.items()}
    alone = medians["loader"], medians["step"]
    bound = 1 / sum(1 / rate for rate in alone) if device.type == "cpu" else min(alone)
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "torch": torch.__version__,
        },
        "settings": vars(options),
        "images_a_second": medians,
        "all_rounds": measured,
        "bound": bound,
        "reached": medians["together"] / bound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=("small", "full"), default="small", help="(default: small)")
    parser.add_argument("--places", type=int, default=8, help="places a step (default: 8)")
    parser.add_argument("--images", type=int, default=4, help="images of a place (default: 4)")
    parser.add_argument("--steps", type=int, default=8, help="steps a round (default: 8)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, whose median counts (default: 5)")
    parser.add_argument("--width", type=int, default=640, help="of the photos, in pixels (default: 640)")
    parser.add_argument("--height", type=int, default=480, help="of the photos, in pixels (default: 480)")
    parser.add_argument("--augmentation", choices=AUGMENTATIONS, default="randaugment", help="(default: randaugment)")
    parser.add_argument("--workers", type=int, default=2, help="processes that load (default: 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    machine = result["machine"]
    print(f"{machine['cores']} cores, {machine['threads']} threads, {machine['device']}, torch {machine['torch']}")
    print(
        f"{options.student} student, {options.places} places of {options.images} images a step, JPEGs of "
        f"{options.width}x{options.height} pixels, {options.rounds} rounds of {options.steps} steps, medians\n"
    )
    for name, rate in result["images_a_second"].items():
        print(f"{name:12}{rate:9.2f} images/s")
    print(f"\nloader and step allow {result['bound']:.2f} images/s; together they reach {result['reached']:.0%} of it")


if __name__ == "__main__":
    main()
