"""Images a second, from files to an index, beside what the machine allows.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --images 400 --batch-sizes 8 32 --repeats 5 --json

On a CPU decoding and the model share the cores, so that files to index can reach 1 / (1 / decode + 1 / model) at
best. On an accelerator they don't, and the slower of the two is the bound. All parts are measured in turns in one run,
and the medians compared, because machines get faster and slower while one looks.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from d2vpr_hf import D2VprConfig, D2VprImageProcessor, D2VprModel, PlaceIndex, embed_images, make_town
from d2vpr_hf.photos.folder import list_images
from d2vpr_hf.photos.images import open_image


def write_photos(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Photos of a made town, enlarged to the size of street photos and repeated with shifts to fill the count."""
    town = make_town(folder / "town", places=6, views=4, queries=0, easy_queries=0)
    drawn = [Image.open(path).resize((width, height), Image.Resampling.BICUBIC) for path in list_images(town.database)]
    (folder / "photos").mkdir()
    for number in range(count):
        pixels = np.roll(np.asarray(drawn[number % len(drawn)]), 40 * (number // len(drawn)), axis=1)
        Image.fromarray(pixels).save(folder / "photos" / f"{number:05}.jpg", quality=90)
    return list_images(folder / "photos")


def images_a_second(count: int, work: Callable[[], None], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - started)


def measure(options: argparse.Namespace) -> dict:
    device, workers = torch.device(options.device), options.workers
    model = D2VprModel(D2VprConfig()).eval().to(device)
    processor = D2VprImageProcessor()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        photos = write_photos(folder, options.images, options.width, options.height)
        size_bytes = statistics.median(path.stat().st_size for path in photos)
        batch = torch.stack(
            [processor(open_image(path), return_tensors="pt")["pixel_values"][0] for path in photos[:64]]
        )
        pool = ThreadPoolExecutor(workers)

        def decode() -> None:
            for _ in pool.map(lambda path: processor(open_image(path), return_tensors="pt"), photos):
                pass

        def compute(batch_size: int) -> None:
            ready = batch[torch.arange(batch_size) % len(batch)]
            with torch.inference_mode():
                for _ in range(max(1, options.images // batch_size)):
                    model(ready.to(device)).pooler_output.cpu()

        def embed(batch_size: int) -> None:
            embed_images(
                photos, model=model, processor=processor, batch_size=batch_size, workers=workers, progress=False
            )

        runs = iter(range(10**6))

        def index(batch_size: int) -> None:
            place = folder / f"run{next(runs)}"
            descriptors = embed_images(
                photos,
                model=model,
                processor=processor,
                batch_size=batch_size,
                workers=workers,
                folder=place / "rows",
                progress=False,
            )
            PlaceIndex.build(descriptors).save(place / "index")

        parts: dict[str, tuple[int, Callable[[], None]]] = {"decode and process": (len(photos), decode)}
        for size in options.batch_sizes:
            parts[f"model, batch {size}"] = (max(1, options.images // size) * size, lambda size=size: compute(size))
            parts[f"files to descriptors, batch {size}"] = (len(photos), lambda size=size: embed(size))
            parts[f"files to index, batch {size}"] = (len(photos), lambda size=size: index(size))
        measured: dict[str, list[float]] = {name: [] for name in parts}
        for repeat in range(options.repeats + 1):
            for name, (count, part) in parts.items():
                rate = images_a_second(count, part, device)
                if repeat:  # the first round warms caches, threads and kernels up
                    measured[name].append(rate)
        pool.shutdown()
    medians = {name: statistics.median(rates) for name, rates in measured.items()}
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "torch": torch.__version__,
        },
        "photos": {"count": options.images, "width": options.width, "height": options.height, "bytes": size_bytes},
        "repeats": options.repeats,
        "images_a_second": medians,
        "all_runs": measured,
        "bounds": {size: bounds(medians, size, device) for size in options.batch_sizes},
    }


def bounds(medians: dict[str, float], size: int, device: torch.device) -> dict[str, float]:
    """What decoding and model allow together, and how much of it is reached."""
    decode, model = medians["decode and process"], medians[f"model, batch {size}"]
    bound = 1 / (1 / decode + 1 / model) if device.type == "cpu" else min(decode, model)
    descriptors, index = (medians[f"files to {what}, batch {size}"] for what in ("descriptors", "index"))
    return {"bound": bound, "descriptors": descriptors / bound, "index": index / bound}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=192, help="photos a round (default: 192)")
    parser.add_argument("--width", type=int, default=640, help="of the photos, in pixels (default: 640)")
    parser.add_argument("--height", type=int, default=480, help="of the photos, in pixels (default: 480)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32], help="images at a time (default: 32)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, whose median counts (default: 3)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--workers", type=int, default=min(16, cores), help="decoding threads (default: one a core)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    machine, photos = result["machine"], result["photos"]
    print(f"{machine['cores']} cores, {machine['threads']} threads, {machine['device']}, torch {machine['torch']}")
    print(
        f"{photos['count']} JPEGs of {photos['width']}x{photos['height']} pixels, {result['repeats']} rounds, medians\n"
    )
    for name, rate in result["images_a_second"].items():
        print(f"{name:36}{rate:9.2f} images/s")
    for size, bound in result["bounds"].items():
        print(
            f"\nbatch {size}: decoding and model allow {bound['bound']:.2f} images/s; "
            f"descriptors reach {100 * bound['descriptors']:.0f} % of it, the index {100 * bound['index']:.0f} %"
        )


if __name__ == "__main__":
    main()
