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

if TYPE_CHECKING:
    from .data.augmentation import TrainingTransform
    from .data.benchmark_tables import load_benchmark
    from .data.export import export_benchmark, push_benchmark
    from .data.folders import read_photo_folder
    from .data.made_town import make_town
    from .data.panorama_files import cut_panoramas
    from .data.panorama_places import cut_training_views, panorama_conflicts
    from .data.panoramas import cut_views
    from .data.place_sampler import PlaceSampler
    from .data.training_images import TrainingImages, training_loader
    from .data.training_places import read_training_places
    from .data.verify import verify_folder
    from .evaluation.comparison import compare_models
    from .evaluation.cost import model_cost, time_model
    from .evaluation.peers import open_peer
    from .evaluation.protocol import (
        benchmark_protocol,
        dataset_protocol,
        evaluate_protocol,
        folder_protocol,
        with_distractors,
    )
    from .hub.push import push_export, push_metric, push_model
    from .hub.release import write_release
    from .models.convert_original import convert_checkpoint, convert_original_state_dict
    from .pretrained import pretrained_path
    from .retrieval.embed import Descriptors, embed_images
    from .retrieval.index import PlaceIndex
    from .retrieval.index_photos import index_photos
    from .retrieval.locate import locate
    from .retrieval.reduce import attach_pca, fit_pca, reduce_checkpoint
    from .training.arguments import resolve_arguments
    from .training.teachers import open_teacher
    from .training.trainer import train

__version__ = "0.1.0"

AutoConfig.register("d2vpr", D2VprConfig, exist_ok=True)
AutoModel.register(D2VprConfig, D2VprModel, exist_ok=True)
AutoImageProcessor.register(D2VprConfig, image_processor_classes={"pil": D2VprImageProcessor}, exist_ok=True)
AutoConfig.register("cricavpr", CricaVprConfig, exist_ok=True)
AutoModel.register(CricaVprConfig, CricaVprModel, exist_ok=True)
AutoImageProcessor.register(CricaVprConfig, image_processor_classes={"pil": D2VprImageProcessor}, exist_ok=True)

LAZY = {
    "Descriptors": "retrieval.embed",
    "PlaceIndex": "retrieval.index",
    "PlaceSampler": "data.place_sampler",
    "TrainingImages": "data.training_images",
    "TrainingTransform": "data.augmentation",
    "attach_pca": "retrieval.reduce",
    "benchmark_protocol": "evaluation.protocol",
    "compare_models": "evaluation.comparison",
    "convert_checkpoint": "models.convert_original",
    "convert_original_state_dict": "models.convert_original",
    "cut_panoramas": "data.panorama_files",
    "cut_training_views": "data.panorama_places",
    "cut_views": "data.panoramas",
    "dataset_protocol": "evaluation.protocol",
    "embed_images": "retrieval.embed",
    "evaluate_protocol": "evaluation.protocol",
    "export_benchmark": "data.export",
    "fit_pca": "retrieval.reduce",
    "folder_protocol": "evaluation.protocol",
    "index_photos": "retrieval.index_photos",
    "load_benchmark": "data.benchmark_tables",
    "locate": "retrieval.locate",
    "make_town": "data.made_town",
    "model_cost": "evaluation.cost",
    "open_peer": "evaluation.peers",
    "open_teacher": "training.teachers",
    "panorama_conflicts": "data.panorama_places",
    "pretrained_path": "pretrained",
    "push_benchmark": "data.export",
    "push_export": "hub.push",
    "push_metric": "hub.push",
    "push_model": "hub.push",
    "read_photo_folder": "data.folders",
    "read_training_places": "data.training_places",
    "reduce_checkpoint": "retrieval.reduce",
    "resolve_arguments": "training.arguments",
    "time_model": "evaluation.cost",
    "train": "training.trainer",
    "training_loader": "data.training_images",
    "verify_folder": "data.verify",
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
