"""D²-VPR visual place recognition for the Hugging Face world.

Importing the package teaches transformers' Auto classes its models. Everything else loads when it is first asked for.
"""

from importlib import import_module
from typing import Any

from .models.auto_classes import teach_auto_classes
from .version import __version__ as __version__

# Every public name, and the module that it lives in.
_MODULES = {
    "CricaVprConfig": "models.cricavpr.configuration_cricavpr",
    "CricaVprModel": "models.cricavpr.modeling_cricavpr",
    "D2VprConfig": "models.d2vpr.configuration_d2vpr",
    "D2VprImageProcessor": "models.d2vpr.image_processing_d2vpr",
    "D2VprModel": "models.d2vpr.modeling_d2vpr",
    "Descriptors": "retrieval.embedder",
    "Embedder": "retrieval.embedder",
    "PlaceIndex": "retrieval.index",
    "named_protocol": "evaluation.protocol",
    "compare_models": "evaluation.compare",
    "convert_original_state_dict": "models.convert",
    "dataset_protocol": "evaluation.protocol",
    "embed_images": "retrieval.embedder",
    "evaluate_protocol": "evaluation.run",
    "export_model": "export.write",
    "fit_pca": "retrieval.pca",
    "folder_protocol": "evaluation.protocol",
    "index_photos": "retrieval.update",
    "load_protocol": "protocols.table",
    "locate": "retrieval.locate",
    "make_town": "town.make",
    "pretrained_path": "models.checkpoint",
    "push_model": "hub.push",
    "read_photo_folder": "photos.folder",
    "resolve_arguments": "training.arguments",
    "train": "training.trainer",
    "write_release": "hub.release",
}
__all__ = list(_MODULES)

teach_auto_classes()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"d2vpr_hf has no {name!r}; it has {', '.join(_MODULES)}.")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
