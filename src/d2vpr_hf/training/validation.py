"""Recall of the student while it learns, by the evaluator that measures finished models."""

from dataclasses import dataclass
from typing import Any

import torch

from ..evaluation.protocol import Protocol, benchmark_protocol
from ..evaluation.run import evaluate_protocol
from ..retrieval.embedder import Embedder

CUT_OFFS = (1, 5, 10)


@dataclass(frozen=True)
class Validation:
    """What one look at the validation sets found.

    Attributes:
        recalls: {protocol: {"recall@1": fraction, ...}}, the deciding set first; "mAP" too where the protocol has it.
        skipped: photos that could not be read.
    """

    recalls: dict[str, dict[str, float]]
    skipped: int

    def deciding(self, k: int) -> float:
        """recall@k of the first set."""
        return next(iter(self.recalls.values()))[f"recall@{k}"]


class Validator:
    """Validation sets, read once.

    Args:
        entries: "PROTOCOL=FOLDER", as the arguments have them.
        k: the cut-off that decides.
        processor: the student's.

    Raises: ValueError if a set isn't as its protocol says, or has no positives.
    """

    def __init__(self, entries: list[str], *, k: int, processor: Any, batch_size: int = 32) -> None:
        self.k = k
        self.processor = processor
        self.batch_size = batch_size
        self.protocols: dict[str, Protocol] = {}
        for entry in entries:
            name, _, folder = entry.partition("=")
            self.protocols[entry if name in self.protocols else name] = benchmark_protocol(name, folder)

    def measure(self, model: torch.nn.Module) -> Validation:
        """Recall of the model as it is now; its modes and device stay as they are."""
        recalls, skipped = {}, 0
        for name, protocol in self.protocols.items():
            device = next(model.parameters()).device
            embedder = Embedder(model, self.processor, batch_size=self.batch_size, device=device)
            evaluation = evaluate_protocol(protocol, embedder, ks=[*CUT_OFFS, self.k], progress=False)
            recalls[name] = {f"recall@{k}": share for k, share in evaluation.recall.items()}
            if evaluation.mean_average_precision is not None:
                recalls[name]["mAP"] = evaluation.mean_average_precision
            skipped += sum(len(photos) for photos in evaluation.skipped.values())
        return Validation(recalls, skipped)
