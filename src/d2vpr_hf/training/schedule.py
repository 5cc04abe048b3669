"""How far a run goes, and with which learning rate at each step: plain functions, so that nothing needs restoring."""

import math
from dataclasses import dataclass

from .arguments import TrainingArguments


@dataclass(frozen=True)
class Schedule:
    """Steps of a run and their learning rates.

    Attributes:
        steps_per_epoch: steps of the optimiser in an epoch.
        steps: of the whole run.
        warmup_steps: in which the rate rises; may exceed the steps of the run, as in the published recipe.
        peak: the learning rate after the warm-up.
        falls: whether it falls along a cosine to a hundredth afterwards.
    """

    steps_per_epoch: int
    steps: int
    warmup_steps: float
    peak: float
    falls: bool

    @classmethod
    def of(cls, arguments: TrainingArguments, batches_per_epoch: int) -> "Schedule":
        """The schedule of a run whose sampler gives so many batches an epoch.

        Raises: ValueError if an epoch has fewer batches than one step takes.
        """
        steps_per_epoch = batches_per_epoch // arguments.gradient_accumulation_steps
        if not steps_per_epoch:
            raise ValueError(
                f"An epoch has {batches_per_epoch} batches, but gradient_accumulation_steps is "
                f"{arguments.gradient_accumulation_steps}. Give more places, or fewer places_per_batch."
            )
        steps = arguments.epochs * steps_per_epoch
        steps = min(steps, arguments.max_steps or steps)
        warmup = arguments.warmup_epochs * steps_per_epoch
        return cls(steps_per_epoch, steps, warmup, arguments.learning_rate, arguments.schedule == "cosine")

    def learning_rate(self, step: int) -> float:
        """Of the step with this number, the first of which is 0."""
        if step < self.warmup_steps:
            # Original: the rate rises by step + 1, so that the first step has one.
            return self.peak * min((step + 1) / self.warmup_steps, 1.0)
        if not self.falls:
            return self.peak
        share = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.peak * (0.01 + 0.99 * (1 + math.cos(math.pi * min(share, 1.0))) / 2)
