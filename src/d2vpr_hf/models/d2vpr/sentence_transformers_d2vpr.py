"""Lets sentence-transformers open a checkpoint: the module that its modules.json names. It travels with the checkpoint.

The package itself never imports it, and needs no sentence-transformers.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from sentence_transformers.base.modules import InputModule

from .image_processing_d2vpr import D2VprImageProcessor
from .modeling_d2vpr import D2VprModel

# Arguments of `load` that say where on the Hub, and in which cache, the checkpoint lies.
HUB_ARGUMENTS = ("token", "revision", "local_files_only")


class D2VprModule(InputModule):
    """Image in, descriptor out: `SentenceTransformer(name, trust_remote_code=True).encode(images)`."""

    def __init__(self, model: D2VprModel, processor: D2VprImageProcessor) -> None:
        super().__init__()
        self.model = model
        self.processor = processor

    @property
    def modalities(self) -> list[str]:
        """What sentence-transformers may hand over."""
        return ["image"]

    def preprocess(self, inputs: Sequence[Any], **_: Any) -> dict[str, torch.Tensor]:
        """`pixel_values` of a list of images."""
        return dict(self.processor(list(inputs), return_tensors="pt"))

    def forward(self, features: dict[str, torch.Tensor], **_: Any) -> dict[str, torch.Tensor]:
        """The features, and (images, descriptor_dim) descriptors under the name that sentence-transformers reads."""
        pixels = features["pixel_values"].to(self.model.dtype)
        return features | {"sentence_embedding": self.model(pixels).pooler_output}

    def get_embedding_dimension(self) -> int:
        """Numbers in a descriptor."""
        return self.model.config.descriptor_dim

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        cache_folder: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """The module of a checkpoint folder or Hub repository."""
        where = {name: options[name] for name in HUB_ARGUMENTS if options.get(name) is not None}
        where |= {"subfolder": subfolder, "cache_dir": cache_folder}
        model = D2VprModel.from_pretrained(model_name_or_path, **where, **(model_kwargs or {}))
        processor = D2VprImageProcessor.from_pretrained(model_name_or_path, **where, **(processor_kwargs or {}))
        return cls(model, processor)

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        """Writes weights, configuration, processor and the code that loads them."""
        self.processor.save_pretrained(output_path)
        self.model.save_pretrained(output_path)
