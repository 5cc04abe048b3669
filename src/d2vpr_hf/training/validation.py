"""Recall of the student while it learns, by the evaluator that measures finished models."""

from typing import Any

import torch

from ..evaluation.protocol import Protocol, named_protocol
from ..evaluation.run import evaluate_protocol
from ..retrieval.embedder import Embedder

CUT_OFFS = (1, 5, 10)


class Validator:
    """Validation sets, read once.

    Args:
        entries: "PROTOCOL=FOLDER", as the arguments have them; the first set decides.
        k: the cut-off that decides.
        processor: the student's.

    Raises: ValueError if a set isn't as its protocol says, or has no positives.
    """

    def __init__(self, entries: list[str], *, k: int, processor: Any) -> None:
        self.k = k
        self.processor = processor
        self.protocols: dict[str, Protocol] = {}
        for entry in entries:
            name, _, folder = entry.partition("=")
            self.protocols[entry if name in self.protocols else name] = named_protocol(name, folder)

    def measure(self, model: torch.nn.Module) -> dict[str, dict[str, float]]:
        """{protocol: {"recall@1": fraction, ...}} of the model as it is now, "mAP" too where the protocol has it.

        The deciding set comes first. The model's modes and device stay as they are.
        """
        embedder = Embedder(model, self.processor, device=next(model.parameters()).device)
        found = {}
        for name, protocol in self.protocols.items():
            evaluation = evaluate_protocol(protocol, embedder, ks=[*CUT_OFFS, self.k], progress=False)
            found[name] = {f"recall@{k}": share for k, share in evaluation.recall.items()}
            if evaluation.mean_average_precision is not None:
                found[name]["mAP"] = evaluation.mean_average_precision
        return found
