"""Both stages of training in one straight script, from the package's parts and accelerate: to be read and changed.

    python examples/train_minimal.py
    accelerate launch examples/train_minimal.py --data GSV-Cities --teacher facebook/dinov2-base --image-size 224

In stage 1 a small student learns to give its teacher's descriptors, in stage 2 descriptors of one place come together
and of others apart. Without --data it draws a town, and the teacher is the model that comes with the package.
`d2vpr train` does the same and more: it goes on after a stop, validates, takes larger batches than fit into memory.
"""

import argparse
import logging
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup

import d2vpr_hf
from d2vpr_hf.protocols.places import read_training_places
from d2vpr_hf.training.data.batches import TrainingImages, training_loader
from d2vpr_hf.training.data.sampler import PlaceSampler
from d2vpr_hf.training.data.transform import TrainingTransform
from d2vpr_hf.training.losses import DistillationLoss, MultiSimilarity, gather
from d2vpr_hf.training.schedule import freeze
from d2vpr_hf.training.stages import Student
from d2vpr_hf.training.teachers import open_teacher

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger("train_minimal")

STUDENT = {
    "backbone_config": {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "mlp_ratio": 2},
    "recovery_layers": [1, 2, 3, 4],
    "aggregator_dim": 96,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of training photos (default: draw a town)")
    parser.add_argument("--teacher", default=str(d2vpr_hf.pretrained_path("d2vpr-small")), help="folder or Hub name")
    parser.add_argument("--output", type=Path, default=Path("runs/minimal"), help="gets town and checkpoint")
    parser.add_argument("--places", type=int, default=200, help="of the town")
    parser.add_argument("--image-size", type=int, default=56, help="pixels a side, a multiple of 14")
    parser.add_argument("--places-per-batch", type=int, default=16, help="of one process")
    parser.add_argument("--epochs", type=int, default=8, help="of each stage")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode and augment")
    return parser.parse_args()


def make_loader(options: argparse.Namespace, accelerator: Accelerator, processor) -> tuple[PlaceSampler, DataLoader]:
    """Batches of places, four photos each. Each process draws its own, so accelerate must not split them once more."""
    places = read_training_places(options.data)
    sampler = PlaceSampler(
        places.places,
        places_per_batch=options.places_per_batch,
        images_per_place=4,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        conflicts=places.conflicts,
    )
    images = TrainingImages(places, TrainingTransform(processor, augmentation="revisit"))
    return sampler, training_loader(images, sampler, workers=options.workers)


def recall(options: argparse.Namespace, model, processor) -> str:
    """On a town that nothing was trained on."""
    protocol = d2vpr_hf.named_protocol("folders", options.output / "unseen")
    result = d2vpr_hf.evaluate_protocol(protocol, d2vpr_hf.Embedder(model, processor), progress=False)
    return f"recall@1 {100 * result.recall[1]:.1f} %"


def main() -> None:
    options = parse()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    set_seed(0)
    if accelerator.is_main_process:
        size = {"height": 84, "width": 112, "easy_queries": 0}
        d2vpr_hf.make_town(options.output / "unseen", 20, views=3, seed=70_001, layout="plain", queries=40, **size)
        if options.data is None:
            d2vpr_hf.make_town(options.output / "town", options.places, views=4, seed=70_000, layout="gsv", **size)
    accelerator.wait_for_everyone()
    options.data = options.data or options.output / "town"

    # A new student with random weights; `D2VprModel.from_dinov2(...)` starts from DINOv2's, as the paper does.
    model = d2vpr_hf.D2VprModel(d2vpr_hf.D2VprConfig(**STUDENT))
    processor = d2vpr_hf.D2VprImageProcessor(size={"height": options.image_size, "width": options.image_size})
    freeze(model, trainable_blocks=-1, trainable_modules=None)  # trains all that a loss reaches
    teacher = open_teacher(options.teacher, device=accelerator.device)
    distillation, places_apart = DistillationLoss(region_weight=1.0), MultiSimilarity(alpha=10.0, base=0.5)
    sampler, loader = make_loader(options, accelerator, processor)

    for stage, learning_rate in (("distill", 2e-3), ("finetune", 1e-3)):
        # The student and the projection to its teacher's width, which is dropped afterwards.
        student = Student(model, teacher.width, needs_tokens=False)
        trained = [each for each in student.parameters() if each.requires_grad]
        student, optimizer = accelerator.prepare(student, torch.optim.AdamW(trained, lr=learning_rate))
        steps = options.epochs * sampler.steps_per_epoch
        schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
        for epoch in range(options.epochs):
            sampler.set_epoch(epoch)
            student.train()
            total = 0.0
            for batch in loader:
                batch = batch.to(accelerator.device)
                output = student(batch.pixel_values)
                if stage == "distill":
                    loss = distillation(output.regional, teacher.teach(batch.pixel_values)).loss
                else:  # over the photos of all processes
                    loss = places_apart(gather(output.descriptors), gather(batch.places)).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                total += loss.item()
            if accelerator.is_main_process:
                logger.info(f"{stage}, epoch {epoch + 1}: loss {total / sampler.steps_per_epoch:.4f}")
        if accelerator.is_main_process:
            logger.info(f"after {stage}: {recall(options, model.eval(), processor)}")
        accelerator.wait_for_everyone()

    if accelerator.is_main_process:
        model.save_pretrained(options.output / "checkpoint")
        processor.save_pretrained(options.output / "checkpoint")


# Worker processes import this file too, and must not train.
if __name__ == "__main__":
    main()
