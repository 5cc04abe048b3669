"""In which precision a teacher runs: the lowest that leaves its descriptors as they are, for all that matters."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from .teachers import Teacher

# The largest error, as a share of the mean distance between different photos' descriptors.
LARGEST_ERROR = 0.05
# From the fewest digits on: bfloat16 has 8 significant bits, float16 has 11.
_CANDIDATES = ("bfloat16", "float16")
# A first run that takes so many times as long as float32 settles it; else a second one counts, if it is faster.
_HOPELESS = 2.0
# Descriptors that are nearer to each other than float32's rounding are of equal images.
_EQUAL = 1e-5


@dataclass(frozen=True)
class PrecisionChoice:
    """In which precision a teacher runs, with all that was measured.

    Attributes:
        dtype: "float32", "bfloat16" or "float16".
        reason: for the log.
        device: where it was measured, such as "cpu".
        images: in the batch.
        mean_distance: between different images' descriptors (of unit length) in float32; None for a single image.
        errors: by precision, the mean distance between an image's descriptors in it and in float32, as a share of
            `mean_distance`; inf where a descriptor isn't finite. Empty where nothing could be measured.
        seconds: by precision, for the batch; the faster of two runs, or of one that was more than twice as slow as
            float32. Empty where nothing could be measured.
    """

    dtype: str
    reason: str
    device: str
    images: int
    mean_distance: float | None
    errors: dict[str, float]
    seconds: dict[str, float]


def choose_precision(
    teacher: "Teacher", pixel_values: torch.Tensor, *, images_per_place: int | None = None
) -> PrecisionChoice:
    """The lowest precision whose error stays below 5 % of the mean distance between different images' descriptors.

    The batch is run in float32, bfloat16 and float16. A half precision that isn't faster than float32 is passed over,
    which a CPU decides by its instructions: with AVX-512 BF16 bfloat16 pays and float16 doesn't, and without it neither
    does. Whatever is chosen, normalisations and the pooling of regions stay float32.

    Args:
        teacher: stays as it is; `teach` runs in another precision once its `dtype` says so.
        pixel_values: (images, 3, height, width) of different photos, as training has them.
        images_per_place: as for `Teacher.teach`.

    Returns: float32, with the reason, where a single image or equal ones leave nothing to compare with.
    """
    pixel_values = pixel_values.to(teacher.device)
    exact, seconds = _timed(teacher, pixel_values, images_per_place, "float32", float("inf"))
    distance = float(torch.pdist(exact).mean()) if len(exact) > 1 else None
    measured = {"device": pixel_values.device.type, "images": len(exact), "mean_distance": distance}
    if distance is None or not distance > _EQUAL:
        what = "one image" if distance is None else f"{len(exact)} images with equal descriptors"
        reason = f"float32: a batch of {what} has no distance between different photos to measure errors by"
        return PrecisionChoice("float32", reason, errors={}, seconds={}, **measured)
    errors, times = {"float32": 0.0}, {"float32": seconds}
    for dtype in _CANDIDATES:
        found, times[dtype] = _timed(teacher, pixel_values, images_per_place, dtype, _HOPELESS * seconds)
        errors[dtype] = relative_error(found, exact)
    exact_enough = [dtype for dtype in _CANDIDATES if errors[dtype] < LARGEST_ERROR]
    faster = [dtype for dtype in exact_enough if times[dtype] < seconds]
    if faster:
        gain = seconds / times[faster[0]]
        reason = f"{faster[0]}: error {errors[faster[0]]:.2%} of the mean distance, {gain:.1f} times float32's speed"
    elif exact_enough:
        reason = "float32: " + ", ".join(
            f"{dtype} takes {times[dtype] / seconds:.1f} times as long" for dtype in exact_enough
        )
    else:
        reason = "float32: " + ", ".join(f"the error in {dtype} is {errors[dtype]:.1%}" for dtype in _CANDIDATES)
    return PrecisionChoice(faster[0] if faster else "float32", reason, errors=errors, seconds=times, **measured)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean distance of descriptors to their exact values, as a share of the mean distance between the exact ones.

    Args:
        found, exact: (images, dim) of unit length.

    Returns: inf where one isn't finite, or where the exact ones are equal or a single one.
    """
    distance = float(torch.pdist(exact).mean())
    error = float((found - exact).norm(dim=1).mean())
    return error / distance if distance > _EQUAL and error < float("inf") else float("inf")


def unit_descriptors(regional_descriptors: torch.Tensor) -> torch.Tensor:
    """(images, 14 * width) of unit length, in float32, of (images, 14, width)."""
    return F.normalize(regional_descriptors.flatten(1).float(), dim=1)


def _timed(
    teacher: "Teacher", pixel_values: torch.Tensor, images_per_place: int | None, dtype: str, hopeless: float
) -> tuple[torch.Tensor, float]:
    """Descriptors (images, 14 * width) of unit length, and the seconds of the faster of two runs.

    There is no second run if the first takes more than `hopeless` seconds.
    """
    fastest = float("inf")
    for _ in range(2):
        _wait_for(pixel_values.device)
        start = time.perf_counter()
        output = teacher.describe(pixel_values, images_per_place, dtype)
        _wait_for(pixel_values.device)
        fastest = min(fastest, time.perf_counter() - start)
        if fastest > hopeless:
            break
    return unit_descriptors(output.regional_descriptors), fastest


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
