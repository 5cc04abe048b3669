"""D²-VPR visual place recognition for the Hugging Face world.

Importing the package teaches transformers' Auto classes its models. Everything else loads when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from .models.cricavpr.configuration_cricavpr import CricaVprConfig
from .models.cricavpr.modeling_cricavpr import CricaVprModel
from .models.d2vpr.configuration_d2vpr import D2VprConfig
from .models.d2vpr.image_processing_d2vpr import D2VprImageProcessor
from .models.d2vpr.modeling_d2vpr import D2VprModel
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .evaluation.baselines import open_peer
    from .evaluation.compare import compare_models
    from .evaluation.cost import model_cost, time_model
    from .evaluation.run import (
        benchmark_protocol,
        dataset_protocol,
        evaluate_protocol,
        folder_protocol,
        with_distractors,
    )
    from .hub.push import push_export, push_metric, push_model
    from .hub.release import write_release
    from .models.convert import convert_checkpoint, convert_original_state_dict
    from .models.pretrained import pretrained_path
    from .panoramas.cut import cut_panoramas
    from .panoramas.training_views import cut_training_views, panorama_conflicts
    from .panoramas.views import cut_views
    from .photos.folder import read_photo_folder
    from .protocols.export import export_benchmark, push_benchmark
    from .protocols.places import read_training_places
    from .protocols.table import load_benchmark
    from .protocols.verify import verify_folder
    from .retrieval.embedder import Descriptors, embed_images
    from .retrieval.index import PlaceIndex
    from .retrieval.locate import locate
    from .retrieval.pca import attach_pca, fit_pca, reduce_checkpoint
    from .retrieval.update import index_photos
    from .town.make import make_town
    from .training.arguments import resolve_arguments
    from .training.data.batches import TrainingImages, training_loader
    from .training.data.sampler import PlaceSampler
    from .training.data.transform import TrainingTransform
    from .training.teachers import open_teacher
    from .training.trainer import train

AutoConfig.register("d2vpr", D2VprConfig, exist_ok=True)
AutoModel.register(D2VprConfig, D2VprModel, exist_ok=True)
AutoImageProcessor.register(D2VprConfig, image_processor_classes={"pil": D2VprImageProcessor}, exist_ok=True)
AutoConfig.register("cricavpr", CricaVprConfig, exist_ok=True)
AutoModel.register(CricaVprConfig, CricaVprModel, exist_ok=True)
AutoImageProcessor.register(CricaVprConfig, image_processor_classes={"pil": D2VprImageProcessor}, exist_ok=True)

LAZY = {
    "Descriptors": "retrieval.embedder",
    "PlaceIndex": "retrieval.index",
    "PlaceSampler": "training.data.sampler",
    "TrainingImages": "training.data.batches",
    "TrainingTransform": "training.data.transform",
    "attach_pca": "retrieval.pca",
    "benchmark_protocol": "evaluation.protocol",
    "compare_models": "evaluation.compare",
    "convert_checkpoint": "models.convert",
    "convert_original_state_dict": "models.convert",
    "cut_panoramas": "panoramas.cut",
    "cut_training_views": "panoramas.training_views",
    "cut_views": "panoramas.views",
    "dataset_protocol": "evaluation.protocol",
    "embed_images": "retrieval.embedder",
    "evaluate_protocol": "evaluation.run",
    "export_benchmark": "protocols.export",
    "fit_pca": "retrieval.pca",
    "folder_protocol": "evaluation.protocol",
    "index_photos": "retrieval.update",
    "load_benchmark": "protocols.table",
    "locate": "retrieval.locate",
    "make_town": "town.make",
    "model_cost": "evaluation.cost",
    "open_peer": "evaluation.baselines",
    "open_teacher": "training.teachers",
    "panorama_conflicts": "panoramas.training_views",
    "pretrained_path": "models.pretrained",
    "push_benchmark": "protocols.export",
    "push_export": "hub.push",
    "push_metric": "hub.push",
    "push_model": "hub.push",
    "read_photo_folder": "photos.folder",
    "read_training_places": "protocols.places",
    "reduce_checkpoint": "retrieval.pca",
    "resolve_arguments": "training.arguments",
    "time_model": "evaluation.cost",
    "train": "training.trainer",
    "training_loader": "training.data.batches",
    "verify_folder": "protocols.verify",
    "with_distractors": "evaluation.protocol",
    "write_release": "hub.release",
}

__all__ = [
    "CricaVprConfig",
    "CricaVprModel",
    "D2VprConfig",
    "D2VprImageProcessor",
    "D2VprModel",
    "Descriptors",
    "PlaceIndex",
    "PlaceSampler",
    "TrainingImages",
    "TrainingTransform",
    "attach_pca",
    "benchmark_protocol",
    "compare_models",
    "convert_checkpoint",
    "convert_original_state_dict",
    "cut_panoramas",
    "cut_training_views",
    "cut_views",
    "dataset_protocol",
    "embed_images",
    "evaluate_protocol",
    "export_benchmark",
    "fit_pca",
    "folder_protocol",
    "index_photos",
    "load_benchmark",
    "locate",
    "make_town",
    "model_cost",
    "open_peer",
    "open_teacher",
    "panorama_conflicts",
    "pretrained_path",
    "push_benchmark",
    "push_export",
    "push_metric",
    "push_model",
    "read_photo_folder",
    "read_training_places",
    "reduce_checkpoint",
    "resolve_arguments",
    "time_model",
    "train",
    "training_loader",
    "verify_folder",
    "with_distractors",
    "write_release",
]


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"d2vpr_hf has no {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f".{LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
