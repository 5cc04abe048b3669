"""Changes to training images, the same for the same seed: the field's RandAugment, and what a second visit changes."""

from typing import Literal

import numpy as np
import torch
from PIL import Image

from ...models.d2vpr.image_processing_d2vpr import D2VprImageProcessor
from ...photos.revisit import revisit
from .rand_augment import BINS, rand_augment

AUGMENTATIONS = ("randaugment", "revisit", "none")


class TrainingTransform:
    """From an image to what the model takes, augmented in between.

    The image is resized by the processor first, which makes what follows cheap, then augmented, then rescaled and
    normalised by the processor. With "none" the result is the processor's own.

    Args:
        processor: the model's image processor, whose settings hold.
        augmentation: "randaugment" (see `rand_augment`), "revisit" (see `revisit`) or "none".
        operations: of RandAugment, one after the other.
        magnitude: of RandAugment's operations, 0 to 30.

    Raises: ValueError if the augmentation is unknown or a number is out of range.
    """

    def __init__(
        self,
        processor: D2VprImageProcessor,
        *,
        augmentation: Literal["randaugment", "revisit", "none"] = "randaugment",
        operations: int = 3,
        magnitude: int = 15,
    ) -> None:
        if augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation is {augmentation!r}, but must be one of {', '.join(AUGMENTATIONS)}.")
        if operations < 1 or not 0 <= magnitude < BINS:
            raise ValueError(
                f"operations is {operations} and magnitude {magnitude}, but there must be 1 or more operations, of "
                f"magnitude 0 to {BINS - 1}. For images as they are choose augmentation='none'."
            )
        self.processor, self.augmentation = processor, augmentation
        self.operations, self.magnitude = operations, magnitude

    def __call__(self, image: Image.Image, seed: int) -> torch.Tensor:
        """(3, height, width) float32 pixel values of an RGB image; the same seed gives the same ones."""
        if self.augmentation == "none":
            return self.processor(image, return_tensors="pt")["pixel_values"][0]
        random = np.random.default_rng(seed)
        image = self._resized(image)
        if self.augmentation == "randaugment":
            image = rand_augment(image, random, operations=self.operations, magnitude=self.magnitude)
        else:
            image = revisit(image, random)
        return self.processor(image, do_resize=False, return_tensors="pt")["pixel_values"][0]

    def _resized(self, image: Image.Image) -> Image.Image:
        pixels = self.processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0]
        # Fractions arise only without antialiasing.
        return Image.fromarray(pixels.transpose(1, 2, 0).round().clip(0, 255).astype(np.uint8))
