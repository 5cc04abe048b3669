"""Photos in, pixel values out: what stands between a file's pixels and the model."""

from numbers import Real

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

logger = logging.get_logger(__name__)

PATCH_SIZE = 14
MOST_PIXELS = 14 * 512
EXIF_ORIENTATION = 0x0112
# {EXIF orientation: what turns it upright}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
STRIP_PIXELS = 2**22
SAMPLED_PIXELS = 2**20
# Of means, standard deviations and the factor of rescaling; no standard deviation is below its reciprocal.
LARGEST_STATISTIC = 1e6
INTEGER_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
TORCH_RESAMPLING = {
    PILImageResampling.NEAREST: "nearest-exact",
    PILImageResampling.BILINEAR: "bilinear",
    PILImageResampling.BICUBIC: "bicubic",
}


class D2VprImageProcessorKwargs(ImagesKwargs, total=False):
    """
    antialias (`bool`, *optional*, defaults to `True`):
        Whether shrinking averages over the pixels that a new pixel covers.
    """

    antialias: bool | None


def to_rgb(image: Image.Image) -> Image.Image:
    """The photo upright and in 8-bit RGB, whatever its mode.

    EXIF orientation is applied. Alpha (of a palette or one colour too) is laid over white, as viewers show it. Levels
    are scaled by the mode and the range of nearly all pixels: 16-bit grey keeps its upper 8 bits, where PIL's own
    conversion would clip it to white, and fractions from 0 to 1 fill the 8 bits.

    Returns: an image of mode RGB; the same object where nothing has to change.
    """
    image = upright(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    divisor, (width, height) = _divisor(image), image.size
    rows = max(1, STRIP_PIXELS // width)
    if height <= rows:
        return _strip_to_rgb(image, divisor)
    rgb = Image.new("RGB", image.size)
    for top in range(0, height, rows):  # in strips, so that a large photo isn't copied several times over
        strip = image.crop((0, top, width, min(top + rows, height)))
        rgb.paste(_strip_to_rgb(strip, divisor), (0, top))
    return rgb


def upright(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """The image turned by its EXIF orientation, or by the one given; upright as it is where EXIF is damaged."""
    if orientation is None:
        image.load()  # damaged pixels don't mean damaged EXIF
        try:
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
        except Exception:  # Pillow raises whatever it stumbles over
            orientation = 1
    if not isinstance(orientation, int) or orientation not in TURNS:
        return image
    turned = image.transpose(TURNS[orientation])
    # Without the orientation, which would turn it again.
    turned.info = {name: value for name, value in turned.info.items() if name == "transparency"}
    return turned


def _divisor(image: Image.Image) -> float:
    """By what to divide the levels of an integer or float image, so that they fit into 8 bits."""
    if image.mode not in (*INTEGER_MODES, "F"):
        return 1
    if image.mode.startswith("I;16"):
        return 256
    width, height = image.size
    step = max(1, round((width * height / SAMPLED_PIXELS) ** 0.5))
    # The range of nearly all: one pixel, such as a hot one, mustn't change the others.
    highest = np.nanpercentile(np.nan_to_num(np.asarray(image)[::step, ::step]), 99.5)
    if image.mode == "F":
        return 1 / 255 if highest <= 1 else 1
    # Mode I has room for 32 bits, but holds what the file held: 8 bits or 16.
    return 1 if highest <= 255 else 256


def _strip_to_rgb(image: Image.Image, divisor: float) -> Image.Image:
    if image.mode in (*INTEGER_MODES, "F"):
        pixels = np.nan_to_num(np.asarray(image))
        levels = pixels * np.float32(1 / divisor) if image.mode == "F" else pixels // divisor
        return Image.fromarray(levels.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


class D2VprImageProcessor(PilBackend):
    """Squashes photos to one size and normalises them by ImageNet's statistics.

    `processor(images, return_tensors="pt")` takes a photo or a list of them (PIL images of any mode; arrays
    (height, width, channels) or (channels, height, width)) and returns `pixel_values` alone, (images, 3, height, width)
    float32, so that `model(**processor(images, return_tensors="pt"))` always works.

    Args (all in the saved configuration):
        size: {"height": pixels, "width": pixels}, both multiples of 14; 224 x 224 by default.
        resample: PIL's number of the filter; 2 (bilinear) by default.
        antialias: whether shrinking averages over the pixels that a new pixel covers (the default) or reads its
            filter's nearest ones alone, as tensors were resized before torchvision 0.17.
        do_resize, do_rescale, do_normalize, image_mean, image_std: as in every image processor.

    Raises: ValueError if size isn't a multiple of 14 pixels, or has other keys than height and width.
    Source: the original squashes to 224 x 224, bilinear, with ImageNet's mean and standard deviation.
    """

    _auto_class = "AutoImageProcessor"
    valid_kwargs = D2VprImageProcessorKwargs

    do_convert_rgb = True
    do_resize = True
    size = {"height": 224, "width": 224}  # noqa: RUF012
    resample = PILImageResampling.BILINEAR
    antialias = True
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    def _set_attributes(self, **kwargs) -> None:
        if shadowed := [name for name in kwargs if callable(getattr(type(self), name, None))]:
            raise ValueError(
                f"preprocessor_config.json sets {', '.join(shadowed)}, which is the name of a method of the processor. "
                "Take it out."
            )
        super()._set_attributes(**kwargs)
        for name in ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"):
            if type(value := getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {value!r}, but must be true or false.")
        self._check_size(self.size)
        for name in ("image_mean", "image_std"):
            self._check_statistics(name, getattr(self, name))
        self._check_statistics("rescale_factor", self.rescale_factor)
        if type(self.antialias) is not bool or self.resample not in list(PILImageResampling):
            raise ValueError(
                f"resample is {self.resample!r} and antialias {self.antialias!r}, but must be the number of one of "
                "PIL's filters, 0 to 5, and true or false."
            )

    def _validate_preprocess_kwargs(self, **kwargs) -> None:
        super()._validate_preprocess_kwargs(**{name: value for name, value in kwargs.items() if name != "antialias"})
        if kwargs["do_resize"]:
            self._check_size(kwargs["size"])
        if kwargs["do_normalize"]:
            for name in ("image_mean", "image_std"):
                self._check_statistics(name, kwargs[name])
        if not kwargs["antialias"] and kwargs["resample"] not in TORCH_RESAMPLING:
            names = ", ".join(f"{int(filter)} ({mode})" for filter, mode in TORCH_RESAMPLING.items())
            raise ValueError(
                f"resample is {kwargs['resample']!r} with antialias=False, which is there for {names} alone. "
                "Choose one of these, or antialias=True."
            )

    def to_dict(self) -> dict:
        """The saved configuration."""
        saved = super().to_dict()
        auto_map = saved.get("auto_map", {})
        if isinstance(auto_map.get("AutoImageProcessor"), str):
            # Named by backend: from a bare string transformers' pipeline derives a video processor, which isn't there,
            # and asks for trust in its code.
            saved["auto_map"] = {"AutoImageProcessor": {"pil": auto_map["AutoImageProcessor"]}}
        return saved

    @staticmethod
    def _check_size(size: SizeDict) -> None:
        for side in (size.height, size.width):
            if type(side) is not int or not 0 < side <= MOST_PIXELS or side % PATCH_SIZE:
                given = {name: value for name, value in dict(size).items() if value is not None}
                raise ValueError(
                    f"size is {given}, but must hold height and width in pixels, both integers up to {MOST_PIXELS:,} "
                    f'and multiples of {PATCH_SIZE}, such as {{"height": 224, "width": 224}}.'
                )

    @staticmethod
    def _check_statistics(name: str, values: object) -> None:
        found = values if isinstance(values, (list, tuple)) else [values]
        smallest = 1 / LARGEST_STATISTIC if name == "image_std" else 0
        if len(found) not in (1, 3) or not all(
            isinstance(value, Real) and smallest <= abs(value) <= LARGEST_STATISTIC for value in found
        ):
            raise ValueError(
                f"{name} is {values!r}, but photos are RGB: give three numbers, or one for all, none of them NaN or "
                f"beyond {LARGEST_STATISTIC:,.0f}, and no standard deviation 0 or below {1 / LARGEST_STATISTIC:.6f}."
            )

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list[ImageInput]:
        # A grey photo is often an array (height, width), which transformers doesn't take for an image.
        if isinstance(images, (list, tuple)):
            images = [with_channel_axis(image) for image in images]
        return super()._prepare_images_structure(with_channel_axis(images), expected_ndims)

    def process_image(
        self,
        image: Image.Image | np.ndarray | torch.Tensor,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> Image.Image | np.ndarray:
        """The photo as a PIL image, or as a (channels, height, width) array where its numbers are not whole."""
        if isinstance(image, torch.Tensor):
            image = image.cpu().numpy()
        if isinstance(image, np.ndarray) and image.dtype == np.uint16:
            image = (image // 256).astype(np.uint8)
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            if image.ndim == 3:
                layout = input_data_format or infer_channel_dimension_format(image, num_channels=(1, 3, 4))
                image = image if layout == ChannelDimension.LAST else np.moveaxis(image, 0, -1)
                image = image[..., 0] if image.shape[-1] == 1 else image
            image = Image.fromarray(np.ascontiguousarray(image))
        if isinstance(image, Image.Image):
            return to_rgb(image) if do_convert_rgb else image
        array = super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format, **kwargs)
        return np.repeat(array, 3, axis=0) if len(array) == 1 else array

    def _preprocess(
        self,
        images: list[Image.Image | np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: PILImageResampling,
        antialias: bool,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        return_tensors: str | None,
        do_center_crop: bool | None = None,
        do_pad: bool | None = None,
        **kwargs,
    ) -> BatchFeature:
        if do_center_crop or do_pad:
            raise ValueError("This processor squashes to `size`; it knows neither do_center_crop nor do_pad.")
        if do_resize:
            shape = (size.height, size.width)
            images = [self._squash(image, shape, resample, antialias) for image in images]
        fractions = [image for image in images if isinstance(image, np.ndarray) and image.dtype.kind == "f"]
        if do_rescale and any(image.size and 0 < image.max() <= 1 for image in fractions):
            logger.warning_once(
                "Images hold fractions from 0 to 1, but are divided by 255 all the same, as other processors do. "
                "Pass do_rescale=False, or 8-bit images."
            )
        pixels = [to_channels_first(image).astype(np.float32) for image in images]
        # One multiplication and one addition a pixel instead of one pass for each of scale, mean and deviation.
        factor = rescale_factor if do_rescale else 1.0
        if do_normalize:
            deviation = np.asarray(image_std, np.float32)[:, None, None]
            mean = np.asarray(image_mean, np.float32)[:, None, None]
            pixels = [image * (factor / deviation) - mean / deviation for image in pixels]
        elif do_rescale:
            pixels = [image * np.float32(factor) for image in pixels]
        return BatchFeature(data={"pixel_values": pixels}, tensor_type=return_tensors)

    def _squash(
        self, image: Image.Image | np.ndarray, shape: tuple[int, int], resample: PILImageResampling, antialias: bool
    ) -> Image.Image | np.ndarray:
        """The photo at `shape` (height, width) pixels."""
        if antialias and isinstance(image, Image.Image):
            return image.resize(shape[::-1], resample=resample)
        if resample not in TORCH_RESAMPLING:
            raise ValueError(f"resample {resample!r} is not there for arrays of fractions. Give 8-bit images.")
        mode = TORCH_RESAMPLING[resample]
        smooth = {"antialias": antialias, "align_corners": False} if mode != "nearest-exact" else {}
        pixels = torch.from_numpy(np.ascontiguousarray(to_channels_first(image), dtype=np.float32))
        return torch.nn.functional.interpolate(pixels[None], shape, mode=mode, **smooth)[0].numpy()


def with_channel_axis(image: ImageInput) -> ImageInput:
    """An array (height, width) as (height, width, 1); anything else as it is."""
    return image[..., None] if isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 2 else image


def to_channels_first(image: Image.Image | np.ndarray) -> np.ndarray:
    """(channels, height, width) of a PIL image or of an array that has this layout already."""
    if isinstance(image, np.ndarray):
        return image
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


__all__ = ["D2VprImageProcessor"]
