"""Photos of any mode and size become the pixel values that the model expects."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

from d2vpr_hf import D2VprImageProcessor
from d2vpr_hf.models.d2vpr.image_processing_d2vpr import to_rgb

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    return small.resize((120, 90), Image.Resampling.BICUBIC)


def normalised(pixels):
    """(height, width, 3) levels of 0 to 255 as (3, height, width) float values."""
    return ((np.asarray(pixels, np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


def test_default_is_a_squash_to_224_px(photo):
    processed = D2VprImageProcessor()(photo, return_tensors="pt")
    assert list(processed) == ["pixel_values"]
    assert processed.pixel_values.shape == (1, 3, 224, 224)
    assert processed.pixel_values.dtype == torch.float32
    expected = normalised(photo.resize((224, 224), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(processed.pixel_values[0].numpy(), expected, atol=1e-5)


def test_without_antialias_shrinking_reads_the_nearest_pixels_alone(photo):
    large = photo.resize((1200, 900), Image.Resampling.NEAREST)
    processor = D2VprImageProcessor(antialias=False, size={"height": 42, "width": 56})
    pixels = torch.from_numpy(np.asarray(large, np.float32)).permute(2, 0, 1)[None]
    plain = torch.nn.functional.interpolate(pixels, (42, 56), mode="bilinear", align_corners=False)[0]
    expected = normalised(plain.permute(1, 2, 0).numpy())
    found = processor(large, return_tensors="np").pixel_values[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    smooth = processor(large, antialias=True, return_tensors="np").pixel_values[0]
    assert np.abs(found - smooth).max() > 0.05


def test_resample_is_obeyed(photo):
    bilinear = D2VprImageProcessor()(photo, return_tensors="np").pixel_values
    bicubic = D2VprImageProcessor(resample=3)(photo, return_tensors="np").pixel_values
    assert np.abs(bilinear - bicubic).max() > 0.01
    with pytest.raises(ValueError, match="antialias=False"):
        D2VprImageProcessor(antialias=False, resample=1)(photo)


@pytest.mark.parametrize(
    "size", [{"height": 42, "width": 42}, {"height": 322, "width": 224}, {"height": 14, "width": 70}]
)
def test_any_multiple_of_14(photo, size):
    pixels = D2VprImageProcessor(size=size)(photo, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, size["height"], size["width"])


@pytest.mark.parametrize("size", [{"height": 225, "width": 224}, {"shortest_edge": 224}, 100])
def test_other_sizes_are_refused(photo, size):
    with pytest.raises(ValueError, match="multiples of 14"):
        D2VprImageProcessor(size=size)
    with pytest.raises(ValueError, match="multiples of 14"):
        D2VprImageProcessor()(photo, size=size)


def test_batch_in_batch_out(photo):
    processor = D2VprImageProcessor()
    array = np.asarray(photo)
    forms = [photo, array, torch.from_numpy(array.copy()), torch.from_numpy(array.copy()).permute(2, 0, 1)]
    pixels = processor(forms, return_tensors="pt").pixel_values
    assert pixels.shape == (4, 3, 224, 224)
    assert all(torch.equal(pixels[0], other) for other in pixels[1:])
    fractions = processor([array / np.float32(255)], do_rescale=False, return_tensors="pt").pixel_values
    # PIL rounds 8-bit pixels once along each side, to one level together at most.
    assert (fractions[0] - pixels[0]).abs().max() < 1.01 / 255 / STD.min()
    grey = photo.convert("L")
    expected = processor(grey, return_tensors="pt").pixel_values
    for form in (np.asarray(grey), [np.asarray(grey)], np.asarray(grey)[None], torch.from_numpy(np.array(grey))):
        assert torch.equal(processor(form, return_tensors="pt").pixel_values, expected)


def test_what_it_cannot_do_it_refuses(photo):
    with pytest.raises(ValueError, match="do_center_crop"):
        D2VprImageProcessor()(photo, do_center_crop=True)


def test_saved_and_loaded(tmp_path, photo):
    processor = D2VprImageProcessor(size={"height": 42, "width": 56}, resample=3, antialias=False)
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, D2VprImageProcessor)
    assert (loaded.resample, loaded.antialias) == (3, False)
    same = processor(photo, return_tensors="pt").pixel_values
    assert torch.equal(loaded(photo, return_tensors="pt").pixel_values, same)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "YCbCr", "LAB", "HSV", "1", "LA", "RGBA", "PA"])
def test_every_mode_becomes_rgb(photo, mode):
    converted = photo.convert("P").convert("PA") if mode == "PA" else photo.convert(mode)
    rgb = to_rgb(converted)
    assert rgb.mode == "RGB"
    assert rgb.size == photo.size
    expected = converted.convert("RGB") if mode != "PA" else photo.convert("P").convert("RGB")
    assert np.abs(np.asarray(rgb, int) - np.asarray(expected, int)).max() <= 1


def test_transparency_shows_white(photo):
    seen = photo.convert("RGBA")
    seen.putalpha(Image.new("L", photo.size, 0))
    assert np.asarray(to_rgb(seen)).min() == 255
    palette = photo.convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_grey_keeps_its_upper_bits(dtype):
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    mode = "I;16" if dtype == "<u2" else "I;16B"
    image = Image.frombytes(mode, (16, 16), levels.astype(dtype).tobytes())
    np.testing.assert_array_equal(np.asarray(to_rgb(image))[..., 0], levels // 256)
    wide = Image.fromarray(levels.astype(np.int32))
    assert wide.mode == "I"
    np.testing.assert_array_equal(np.asarray(to_rgb(wide))[..., 0], levels // 256)
    np.testing.assert_array_equal(
        np.asarray(to_rgb(Image.fromarray((levels // 256).astype(np.int32))))[..., 0], levels // 256
    )


def test_fractions_become_levels():
    image = Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))
    assert image.mode == "F"
    np.testing.assert_allclose(np.asarray(to_rgb(image))[..., 0].ravel(), np.linspace(0, 255, 64), atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    np.testing.assert_array_equal(np.asarray(to_rgb(turned)), np.asarray(ImageOps.exif_transpose(turned)))
    if orientation >= 5:
        assert to_rgb(turned).size == photo.size[::-1]


def test_one_pixel_does_not_change_the_scale_of_the_others():
    levels = np.full((40, 40), 100, np.int32)
    levels[3, 5] = 40_000
    assert np.median(np.asarray(to_rgb(Image.fromarray(levels)))) == 100
    fractions = np.full((40, 40), 0.5, np.float32)
    fractions[3, 5] = 1.01
    assert np.median(np.asarray(to_rgb(Image.fromarray(fractions)))) == 127


def test_a_transparent_colour_shows_white(photo, tmp_path):
    colour = photo.getpixel((0, 0))
    photo.save(tmp_path / "seen.png", transparency=colour)
    image = Image.open(tmp_path / "seen.png")
    assert image.mode == "RGB"
    assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(to_rgb(image)).tobytes() == to_rgb(image).tobytes()


def test_strips_show_what_the_whole_shows(photo, monkeypatch):
    images = [photo.convert(mode) for mode in ("LA", "RGBA", "CMYK", "P")]
    images.append(Image.fromarray(np.linspace(0, 1, 4000, dtype=np.float32).reshape(50, 80)))
    whole = [to_rgb(image).tobytes() for image in images]
    monkeypatch.setattr("d2vpr_hf.models.d2vpr.image_processing_d2vpr.STRIP_PIXELS", 300)
    assert [to_rgb(image).tobytes() for image in images] == whole


def test_damaged_exif_means_upright(photo, tmp_path):
    processor = D2VprImageProcessor()
    photo.save(tmp_path / "photo.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(9))
    image = Image.open(tmp_path / "photo.png")
    assert to_rgb(image).tobytes() == photo.tobytes()
    assert torch.equal(
        processor(Image.open(tmp_path / "photo.png"), return_tensors="pt").pixel_values,
        processor(photo, return_tensors="pt").pixel_values,
    )


def test_fractions_that_are_scaled_twice_are_said(photo, monkeypatch):
    processor, said = D2VprImageProcessor(), []
    monkeypatch.setattr("d2vpr_hf.models.d2vpr.image_processing_d2vpr.logger.warning_once", said.append)
    fractions = np.asarray(photo, np.float32) / 255
    processor(fractions, return_tensors="pt", do_rescale=False)
    processor(photo, return_tensors="pt")
    assert not said
    processor(fractions, return_tensors="pt")
    assert "Pass do_rescale=False" in said[0]
