"""Tests of the image processor: against stock transformers, Pillow and values worked out by hand."""

import ast
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps
from torchvision.transforms.v2 import functional as tvf
from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.models.vit.image_processing_vit import ViTImageProcessor

from vit_hf import image_processing_vit_hf as module
from vit_hf.image_processing_vit_hf import VitHfImageProcessor, VitHfImageProcessorPil, refuse_shared_tags, to_rgb

BOTH = pytest.mark.parametrize("processor_class", [VitHfImageProcessor, VitHfImageProcessorPil])
AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_vit_hf.VitHfImageProcessor",
        "pil": "image_processing_vit_hf.VitHfImageProcessorPil",
    }
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Random uint8 values."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def flat(mode: str, colour, size=(2, 2)) -> Image.Image:
    return Image.new(mode, size, colour)


def pixel_values(processor, images, **kwargs) -> torch.Tensor:
    return processor(images, return_tensors="pt", **kwargs).pixel_values


def unscaled(processor, images, **kwargs) -> torch.Tensor:
    """The picture after geometry, in 0..255."""
    return pixel_values(processor, images, do_rescale=False, do_normalize=False, **kwargs).float()


# ---- Plain RGB: stock transformers, and Pillow and torchvision by hand ----


@pytest.mark.parametrize("height_width", [(224, 224), (300, 410), (20, 30), (1, 1), (1, 3000), (3000, 1)])
@pytest.mark.parametrize(
    ("ours", "stock"), [(VitHfImageProcessor, ViTImageProcessor), (VitHfImageProcessorPil, ViTImageProcessorPil)]
)
def test_plain_rgb_equals_the_stock_vit_processor(ours, stock, height_width):
    image = Image.fromarray(noise(*height_width, 3))
    values = pixel_values(ours(), image)
    assert values.shape == (1, 3, 224, 224)
    assert values.dtype == torch.float32
    assert torch.equal(values, pixel_values(stock(), image))


def test_pil_backend_equals_pillow_by_hand():
    image = Image.fromarray(noise(300, 410, 3))
    by_hand = (np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)) / 255 - 0.5) / 0.5
    values = pixel_values(VitHfImageProcessorPil(), image)[0].numpy()
    np.testing.assert_allclose(values, by_hand.transpose(2, 0, 1), atol=1e-6)  # float32 against float64


def test_torchvision_backend_equals_torchvision_by_hand():
    image = noise(3, 300, 410)
    resized = tvf.resize(torch.from_numpy(image), [224, 224], antialias=True)
    values = pixel_values(VitHfImageProcessor(), image)[0]
    torch.testing.assert_close(values, resized / 127.5 - 1, atol=1e-6, rtol=0)  # another order of float32 operations


@BOTH
def test_centre_crop_takes_the_middle(processor_class):
    image = noise(3, 40, 50)
    cropped = unscaled(processor_class(do_resize=False, do_center_crop=True, crop_size=(20, 30)), image)
    assert torch.equal(cropped[0], torch.from_numpy(image[:, 10:30, 10:40]).float())


@BOTH
def test_processing_twice_gives_the_same_bits(processor_class):
    images = [Image.fromarray(noise(90, 70, 3, seed=seed)) for seed in range(2)]
    assert torch.equal(pixel_values(processor_class(), images), pixel_values(processor_class(), images))


# ---- The two backends ----


def test_backends_agree_exactly_without_a_resize():
    images = [Image.fromarray(noise(31, 17, channels)) for channels in (2, 3, 4)] + [noise(31, 17)]
    a, b = VitHfImageProcessor(do_resize=False), VitHfImageProcessorPil(do_resize=False)
    assert torch.equal(unscaled(a, images), unscaled(b, images))
    # One backend fuses rescale and normalise, the other does not: 1 ulp of float32 at 1.
    torch.testing.assert_close(pixel_values(a, images), pixel_values(b, images), atol=1.2e-7, rtol=0)


@pytest.mark.parametrize("height_width", [(300, 200), (300, 500), (97, 643), (50, 40)])
def test_backends_agree_within_one_level_after_a_resize(height_width):
    image = noise(*height_width, 3)
    difference = unscaled(VitHfImageProcessor(), image) - unscaled(VitHfImageProcessorPil(), image)
    # Both round to 8 bits after each of two passes, with weights of a different fixed-point precision: measured 1.
    assert difference.abs().max() <= 1


def test_backends_agree_on_floats_after_a_resize():
    image = (noise(3, 300, 200) / 255).astype(np.float32)
    values = [pixel_values(c(), image) for c in (VitHfImageProcessor, VitHfImageProcessorPil)]
    torch.testing.assert_close(*values, atol=1e-4, rtol=0)  # no rounding to 8 bits; measured 3e-5 on values up to 1


def test_backends_pad_a_small_image_alike_when_cropping():
    image = noise(3, 5, 12)
    settings = {"do_resize": False, "do_center_crop": True, "crop_size": (8, 9)}
    a, b = (unscaled(c(**settings), image)[0] for c in (VitHfImageProcessor, VitHfImageProcessorPil))
    assert torch.equal(a, b)
    assert torch.equal(a[:, 1:6], torch.from_numpy(image[:, :, 1:10]).float())


# ---- Conventions of other libraries: where a crop begins, resizing without antialiasing ----


@BOTH
@pytest.mark.parametrize("margin", [(0, 0), (1, 3), (5, 7), (4, 2), (9, 1)])
def test_crop_rounding_round_crops_as_torchvision_does(processor_class, margin):
    image = noise(3, 16 + margin[0], 24 + margin[1])
    settings = {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 16, "width": 24}}
    expected = tvf.center_crop(torch.from_numpy(image), [16, 24]).float()
    assert torch.equal(unscaled(processor_class(**settings, crop_rounding="round"), image)[0], expected)
    floored = image[:, margin[0] // 2 : margin[0] // 2 + 16, margin[1] // 2 : margin[1] // 2 + 24]
    assert np.array_equal(unscaled(processor_class(**settings), image)[0].numpy(), floored)


@BOTH
def test_crop_rounding_and_antialias_hold_for_one_call_where_they_are_given(processor_class):
    image = Image.fromarray(noise(57, 71, 3))
    settings = {"size": {"height": 41, "width": 43}, "do_center_crop": True, "crop_size": {"height": 14, "width": 16}}
    plain = processor_class(**settings)
    before = plain.to_dict()
    for change in ({"antialias": False}, {"crop_rounding": "round"}, {"antialias": False, "crop_rounding": "round"}):
        expected = pixel_values(processor_class(**settings, **change), image)
        assert torch.equal(pixel_values(plain, image, **change), expected)
        assert not torch.equal(pixel_values(plain, image), expected)
    with pytest.raises(ValueError, match="crop_rounding is 'up'; expected 'floor' or 'round'"):
        plain(image, crop_rounding="up")
    assert plain.to_dict() == before


@BOTH
def test_crop_rounding_is_saved_pads_what_is_too_small_and_refuses_other_words(processor_class, tmp_path):
    settings = {"do_resize": False, "do_center_crop": True, "crop_size": (8, 9)}
    processor = processor_class(**settings, crop_rounding="round", antialias=False)
    processor.save_pretrained(tmp_path)
    loaded = processor_class.from_pretrained(tmp_path)
    assert (loaded.crop_rounding, loaded.antialias) == ("round", False)
    image = noise(3, 5, 12)
    assert torch.equal(unscaled(loaded, image), unscaled(processor_class(**settings), image))
    with pytest.raises(ValueError, match="crop_rounding is 'up'; expected 'floor' or 'round'"):
        processor_class(crop_rounding="up")


def bilinear_without_antialiasing(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, C) as tf.image.resize does by default: half-pixel centres, the nearest four, no rounding."""

    def axis(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = (np.arange(target) + 0.5) * size / target - 0.5
        low = np.floor(centre)
        return np.clip(low, 0, size - 1).astype(int), np.clip(low + 1, 0, size - 1).astype(int), centre - low

    (top, bottom, y), (left, right, x) = axis(image.shape[0], height), axis(image.shape[1], width)
    y, x, image = y[:, None, None], x[None, :, None], image.astype(np.float64)
    upper = image[top][:, left] * (1 - x) + image[top][:, right] * x
    return upper * (1 - y) + (image[bottom][:, left] * (1 - x) + image[bottom][:, right] * x) * y


@BOTH
@pytest.mark.parametrize("height_width", [(300, 410), (20, 30), (224, 97), (1, 3)])
def test_without_antialiasing_a_resize_reads_the_nearest_four_pixels_unrounded(processor_class, height_width):
    image = noise(*height_width, 3)
    expected = bilinear_without_antialiasing(image, 224, 224).transpose(2, 0, 1)
    found = unscaled(processor_class(antialias=False), Image.fromarray(image))[0].numpy()
    # Positions in float32 are off by 410 * 6e-8, times steps of up to 255 in noise. TensorFlow 2.21's tf.image.resize
    # itself was within 4e-5 on three ImageNet pictures.
    np.testing.assert_allclose(found, expected, atol=0.02, rtol=0)
    if height_width[0] > 224:
        assert np.abs(unscaled(processor_class(), Image.fromarray(image))[0].numpy() - expected).max() > 20


@BOTH
def test_another_image_size_keeps_the_proportion_of_resize_and_crop(processor_class):
    crop = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    processor = processor_class(size={"shortest_edge": 256}, **crop)
    assert processor.image_hw == (224, 224)
    processor.set_image_size(112, 112)
    assert (processor.image_hw, processor.size.shortest_edge) == ((112, 112), 128)
    assert pixel_values(processor, noise(300, 200, 3)).shape[-2:] == (112, 112)
    straight = processor_class()
    straight.set_image_size(32, 48)
    assert straight.image_hw == (32, 48)
    assert pixel_values(straight, noise(300, 200, 3)).shape[-2:] == (32, 48)
    with pytest.raises(ValueError, match="expected height and width, or a central crop with both"):
        processor_class(size={"shortest_edge": 256}).image_hw  # noqa: B018


def test_lanczos_without_antialiasing_is_refused():
    with pytest.raises(ValueError, match="always antialiases"):
        VitHfImageProcessorPil(antialias=False, resample=Image.Resampling.LANCZOS)(noise(30, 30, 3))


# ---- Pillow modes ----

OVER_WHITE = (182, 217, 255)  # (100, 175, 255) at alpha 120 of 255, rounded
MODES = {
    "1": (1, (255, 255, 255)),
    "L": (77, (77, 77, 77)),
    "RGB": ((10, 20, 30), (10, 20, 30)),
    "RGBX": ((10, 20, 30, 0), (10, 20, 30)),
    "LA": ((100, 120), (182, 182, 182)),
    "RGBA": ((100, 175, 255, 120), OVER_WHITE),
    "CMYK": ((0, 255, 255, 0), (255, 0, 0)),
    "HSV": ((0, 255, 255), (255, 0, 0)),
    "YCbCr": ((76, 85, 255), (254, 0, 0)),  # JPEG's YCbCr of pure red
    "I": (77 * 257, (77, 77, 77)),
    "I;16": (77 * 257, (77, 77, 77)),
    "I;16L": (77 * 257 + 128, (77, 77, 77)),
    "I;16B": (77 * 257 + 129, (78, 78, 78)),
    "I;16N": (65535, (255, 255, 255)),
    "F": (0.2, (51, 51, 51)),
}


@BOTH
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_the_expected_rgb(mode, processor_class):
    colour, expected = MODES[mode]
    image = flat(mode, colour)
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size, rgb.getpixel((1, 1))) == ("RGB", (2, 2), expected)
    assert unscaled(processor_class(do_resize=False), image)[0, :, 1, 1].tolist() == list(expected)


def test_no_mode_of_pillow_is_without_a_rule():
    tested = {*MODES, "RGBa", "La", "LAB", "P", "PA"}  # those by the tests below
    assert set(Image.MODES) <= tested
    for mode in Image.MODES:
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_alpha_is_composited_over_white(mode):
    straight = flat(mode.upper(), (100, 120) if mode == "La" else (100, 175, 255, 120))
    difference = np.asarray(to_rgb(straight.convert(mode)), int) - np.asarray(to_rgb(straight), int)
    assert np.abs(difference).max() <= 1  # multiplying by alpha and back rounds to 8 bits


def test_lab_becomes_the_rgb_it_was_made_from():
    image = Image.fromarray(np.repeat(np.repeat(np.array([[[128, 128, 128], [120, 90, 60]]], np.uint8), 4, 0), 4, 1))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.buildTransform(*profiles, "RGB", "LAB").apply(image)
    assert lab.mode == "LAB"
    difference = np.asarray(to_rgb(lab), int) - np.asarray(image, int)
    assert np.abs(difference).max() <= 3  # 8-bit LAB is coarser than 8-bit RGB


@pytest.mark.parametrize("mode", ["P", "PA"])
def test_palette_is_looked_up(mode):
    image = flat("RGB", (200, 10, 30)).quantize(4).convert(mode)
    assert to_rgb(image).getpixel((0, 0)) == (200, 10, 30)


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16"])
def test_colour_marked_transparent_becomes_white(mode, tmp_path):
    image = flat("RGB", (50, 50, 50)).quantize(2) if mode == "P" else flat(mode, (5, 6, 7) if mode == "RGB" else 5)
    image.info["transparency"] = (5, 6, 7) if mode == "RGB" else image.getpixel((0, 0))
    image.save(tmp_path / "a.png", transparency=image.info["transparency"])
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == mode
        assert to_rgb(stored).getpixel((0, 0)) == (255, 255, 255)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [flat("RGB", colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
        assert to_rgb(animation).getpixel((0, 0)) == (255, 0, 0)


@BOTH
def test_path_follows_the_same_rules(processor_class, tmp_path):
    image = Image.fromarray(noise(6, 5, 4))
    image.save(tmp_path / "a.png")
    processor = processor_class()
    expected = pixel_values(processor, image)
    assert torch.equal(pixel_values(processor, str(tmp_path / "a.png")), expected)
    assert torch.equal(pixel_values(processor, [tmp_path / "a.png"]), expected)


# ---- EXIF ----

UPRIGHT = {  # what the EXIF standard says brings stored rows and columns upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def with_exif(
    folder: Path, exif, suffix: str = "png", array: np.ndarray | None = None, *, lossless: bool = False
) -> Path:
    path = folder / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" and lossless else {}
    Image.fromarray(noise(3, 5, 3) if array is None else array).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = with_exif(tmp_path, exif, suffix, lossless=True)
    with Image.open(path) as image:
        rgb = to_rgb(image)
    np.testing.assert_array_equal(rgb, UPRIGHT[orientation](noise(3, 5, 3)))
    np.testing.assert_array_equal(to_rgb(rgb), rgb)
    with Image.open(path) as image:
        np.testing.assert_array_equal(rgb, ImageOps.exif_transpose(image))


def test_rotated_jpeg_has_its_known_corner_at_the_top_left(tmp_path):
    array = np.zeros((32, 64, 3), np.uint8)
    array[16:, :16] = (255, 0, 0)  # bottom left as stored; orientation 6 turns it clockwise to the top left
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(with_exif(tmp_path, exif, "jpg", array)) as image:
        rgb = to_rgb(image)
    assert rgb.size == (32, 64)
    assert rgb.getpixel((2, 2))[0] > 240
    assert rgb.getpixel((29, 2))[0] < 15


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_a_jpeg_is_that_of_pillow(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = with_exif(tmp_path, exif, "jpg", noise(40, 24, 3))
    with Image.open(path) as image:
        rgb = to_rgb(image)
    with Image.open(path) as image:
        np.testing.assert_array_equal(rgb, ImageOps.exif_transpose(image))


def test_orientation_in_xmp_is_applied(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    Image.fromarray(noise(3, 5, 3)).save(tmp_path / "a.webp", lossless=True, xmp=xmp)
    with Image.open(tmp_path / "a.webp") as image:
        np.testing.assert_array_equal(to_rgb(image), UPRIGHT[6](noise(3, 5, 3)))


@pytest.mark.parametrize("big", [False, True], ids=["EXIF", "BigTIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tags_that_share_their_bytes_are_not_read(order, big):
    """2,000 tags of 100 kB in 100 kB: Pillow would keep 200 MB."""
    entry, counted = (order + "HHQQ", order + "Q") if big else (order + "HHII", order + "H")
    start = 16 if big else 8
    place = start + struct.calcsize(counted) + 2_000 * struct.calcsize(entry) + 8
    tags = b"".join(struct.pack(entry, 1_000 + number, 7, 100_000, place) for number in range(2_000))
    head = struct.pack(order + "2sHHHQ", b"", 43, 8, 0, 16) if big else struct.pack(order + "2sHI", b"", 42, 8)
    block = (b"II" if order == "<" else b"MM") + head[2:] + struct.pack(counted, 2_000) + tags + bytes(8 + 100_000)
    with pytest.raises(ValueError, match=r"tags claim 200,000,000 bytes of \d+"):
        refuse_shared_tags(block)
    image = Image.new("RGB", (4, 3), "red")
    image.info["exif"] = b"Exif\0\0" + block
    with pytest.warns(UserWarning, match=r"EXIF data cannot be read \(tags claim 200,000,000 bytes"):
        assert to_rgb(image).size == (4, 3)


@pytest.mark.parametrize(
    "block", [b"", b"II", b"MM\0*\xff\xff\xff\xff" + bytes(20), b"II*\0\x08\0\0\0\xff\xff" + bytes(20)]
)
def test_a_block_without_such_tags_is_left_to_pillow(block):
    refuse_shared_tags(block)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_broken_exif_warns_and_keeps_the_image(suffix, tmp_path):
    array = np.full((8, 8, 3), 90, np.uint8)
    with Image.open(with_exif(tmp_path, b"Exif\0\0garbage that is no TIFF", suffix, array)) as image:
        with pytest.warns(UserWarning, match="EXIF data cannot be read .* used as it lies: rewrite or strip"):
            rgb = to_rgb(image)
        np.testing.assert_array_equal(rgb, array)


def test_exif_orientation_out_of_range_warns(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 9
    with (
        Image.open(with_exif(tmp_path, exif)) as image,
        pytest.warns(UserWarning, match="orientation is 9, expected 1..8"),
    ):
        np.testing.assert_array_equal(to_rgb(image), noise(3, 5, 3))


# ---- Arrays and tensors ----


@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("layout", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_array_of_any_layout_equals_the_pil_image(channels, layout, as_type):
    array = noise(channels, 9, 7)
    pil = Image.fromarray(array[0] if channels == 1 else array.transpose(1, 2, 0))
    rgb = to_rgb(as_type(array.transpose(layout).copy()))
    assert rgb.dtype == torch.uint8
    np.testing.assert_array_equal(rgb.permute(1, 2, 0), to_rgb(pil))


@pytest.mark.parametrize("as_type", [np.asarray, torch.from_numpy])
def test_array_without_a_channel_dimension_is_grey(as_type):
    array = noise(9, 7)
    np.testing.assert_array_equal(to_rgb(as_type(array)), np.stack([array] * 3))


def test_every_colour_and_alpha_is_composited_as_pillow_does():
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    array = np.stack([value, value, value, alpha])
    pil = Image.alpha_composite(Image.new("RGBA", (256, 256), "white"), Image.fromarray(array.transpose(1, 2, 0)))
    by_pillow = np.asarray(pil.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(to_rgb(array), by_pillow)
    # Floats are not rounded: half a level.
    np.testing.assert_allclose(to_rgb((array / 255).astype(np.float32)), by_pillow, atol=0.5001)


def test_only_end_of_three_is_the_channel_axis():
    assert to_rgb(noise(1, 30, 3)).shape == (3, 1, 30)
    assert to_rgb(noise(3, 30, 1)).shape == (3, 30, 1)
    assert to_rgb(noise(1, 1, 3)).shape == (3, 1, 1)


def test_ambiguous_layout_warns_and_is_taken_as_channels_first():
    array = noise(3, 5, 3)
    with pytest.warns(UserWarning, match=r"shape \(3, 5, 3\) fits both layouts .* pass input_data_format"):
        rgb = to_rgb(array)
    np.testing.assert_array_equal(rgb, array)


@BOTH
def test_input_data_format_decides_the_layout(processor_class):
    array = noise(3, 5, 3)
    values = unscaled(processor_class(do_resize=False), array, input_data_format="channels_last")
    np.testing.assert_array_equal(values[0], array.transpose(2, 0, 1))


def test_sixteen_bits_are_scaled_and_not_clipped():
    array = np.array([[0, 128, 129, 257 * 77, 65535]], np.uint16)
    expected = [0, 0, 1, 77, 255]
    for image in (array, array.astype(">u2"), torch.from_numpy(array)):
        assert to_rgb(image)[0, 0].tolist() == expected
    assert np.asarray(to_rgb(Image.fromarray(array)))[0, :, 0].tolist() == expected


def test_booleans_are_black_and_white():
    array = np.array([[True, False]] * 5)
    assert to_rgb(array)[0, 0].tolist() == [255, 0]
    assert to_rgb(Image.fromarray(array)).getpixel((0, 0)) == (255, 255, 255)


def test_read_only_and_reversed_arrays_are_accepted():
    array = noise(9, 7, 3)
    array.flags.writeable = False
    np.testing.assert_array_equal(to_rgb(array[::-1, :, ::-1]), array[::-1, :, ::-1].transpose(2, 0, 1))


@BOTH
def test_input_is_not_changed(processor_class):
    tensor = torch.from_numpy(noise(3, 9, 7)).float()
    image = Image.fromarray(noise(9, 7, 4))
    image.info["note"] = "kept"
    tensor_before, image_before = tensor.clone(), image.copy()
    processor_class()([tensor, image])
    assert torch.equal(tensor, tensor_before)
    assert image == image_before
    assert image.info == {"note": "kept"}


# ---- Floats ----


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("top", [1, 255])
def test_floats_of_either_range_equal_the_picture_as_uint8(top, dtype, processor_class):
    array = noise(3, 224, 224)
    values = pixel_values(processor_class(), array.astype(dtype) / 255 * top)
    torch.testing.assert_close(values, pixel_values(processor_class(), array), atol=1e-6, rtol=0)  # float32 rounding


@BOTH
def test_resized_floats_are_within_a_level_of_the_picture_as_uint8(processor_class):
    array = noise(3, 300, 200)
    difference = pixel_values(processor_class(), array / 255) - pixel_values(processor_class(), array)
    assert difference.abs().max() * 127.5 < 1.01  # uint8 is rounded in each of two passes, floats are not


@BOTH
def test_bicubic_floats_stay_in_the_range_of_the_picture(processor_class):
    values = pixel_values(processor_class(resample=3), noise(3, 100, 90) / 255)
    assert (values.min(), values.max()) == (-1, 1)


@BOTH
def test_floats_in_0_1_stay_so_without_rescale(processor_class):
    array = (noise(3, 20, 30) / 255).astype(np.float32)
    values = pixel_values(processor_class(do_resize=False, do_rescale=False), array)
    torch.testing.assert_close(values[0], torch.from_numpy(array) * 2 - 1, atol=1e-6, rtol=0)  # through 255 and back


def test_bfloat16_tensor_is_accepted():
    rgb = to_rgb(torch.full((3, 9, 7), 0.5, dtype=torch.bfloat16))
    assert rgb.dtype == torch.float32
    assert rgb.unique().tolist() == [127.5]


def test_float_just_above_one_warns():
    with pytest.warns(UserWarning, match=r"largest value of 1.0000\d+, just above 1, .* clip it"):
        to_rgb(np.full((3, 9, 7), 1.00001))


# ---- Errors ----

ERRORS = {
    "five channels": (noise(5, 8, 8), r"5 channels \(shape \(5, 8, 8\)\); expected 1, 2, 3 or 4: select three bands"),
    "five channels last": (noise(8, 8, 5), r"5 channels \(shape \(8, 8, 5\)\)"),
    "no rows": (noise(0, 8, 3), r"no pixels \(shape \(0, 8, 3\)\)"),
    "no columns": (torch.zeros(3, 8, 0), r"no pixels \(shape \(3, 8, 0\)\)"),
    "empty PIL": (Image.new("RGB", (0, 5)), r"no pixels \(width x height \(0, 5\)\)"),
    "batch of five channels": (noise(2, 5, 8, 8), r"5 channels \(shape \(5, 8, 8\)\)"),
    "video": (noise(1, 2, 3, 8, 8), r"shape \(1, 2, 3, 8, 8\); expected \(H, W\)"),
    "vector": (noise(8), r"shape \(8,\); expected \(H, W\)"),
    "negative": (np.full((3, 8, 8), -0.5), r"float values in \[-0.5, -0.5\] .*expected floats in .*normalisation"),
    "above 255": (np.full((3, 8, 8), 300.0), r"float values in \[300, 300\]"),
    "NaN": (np.full((3, 8, 8), np.nan), r"192 NaN or Inf values"),
    "Inf": (torch.full((3, 8, 8), float("inf")), r"192 NaN or Inf values"),
    "F out of range": (flat("F", -3.0), r"float values in \[-3, -3\]"),
    "I out of range": (flat("I", 70000), r"mode I has values in \[70000, 70000\]; expected 16 bits"),
    "int64": (torch.ones(3, 8, 8, dtype=torch.int64), r"dtype torch.int64; expected uint8"),
    "int32 array": (np.ones((3, 8, 8), np.int32), r"dtype int32; expected uint8"),
    "complex": (np.ones((3, 8, 8), complex), r"dtype complex128; expected uint8"),
    "no images": ([], r"no images in the input; expected at least one"),
    "empty batch": (noise(0, 3, 8, 8), r"no images in the input"),
}


@BOTH
@pytest.mark.parametrize("name", ERRORS)
def test_bad_image_raises_what_was_found_and_expected(name, processor_class):
    image, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        processor_class()(image)


@BOTH
def test_other_objects_are_refused(processor_class):
    with pytest.raises(TypeError, match="image is a int; expected a PIL image, a numpy array or a torch tensor"):
        processor_class()([[1, 2], [3, 4]])


# ---- Batches ----


@BOTH
def test_batch_equals_its_images_one_by_one(processor_class):
    batch = torch.from_numpy(noise(3, 3, 40, 50))
    processor = processor_class()
    one_by_one = torch.cat([pixel_values(processor, image) for image in batch])
    for together in (batch, batch.permute(0, 2, 3, 1).numpy(), list(batch), [[batch[0]], [batch[1], batch[2]]]):
        assert torch.equal(pixel_values(processor, together), one_by_one)


@BOTH
def test_images_of_different_kinds_share_a_batch(processor_class):
    array = noise(12, 10, 3)
    images = [Image.fromarray(array), array, torch.from_numpy(array), array / 255, noise(5, 4), flat("LA", (3, 4))]
    values = pixel_values(processor_class(size=(12, 10)), images)
    assert values.shape == (6, 3, 12, 10)
    for other in values[1:4]:
        torch.testing.assert_close(other, values[0], atol=1e-6, rtol=0)  # float32 rounding of the float array


# ---- Saving and loading ----


@BOTH
def test_saved_json_names_both_classes_and_the_code_lies_beside(processor_class, tmp_path):
    processor_class(image_mean=(0.1, 0.2, 0.3)).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["auto_map"] == AUTO_MAP
    assert settings["image_processor_type"] == "VitHfImageProcessor"
    assert settings["image_mean"] == [0.1, 0.2, 0.3]
    assert (tmp_path / "image_processing_vit_hf.py").read_bytes() == Path(module.__file__).read_bytes()
    assert processor_class.from_pretrained(tmp_path).to_dict() == processor_class(image_mean=(0.1, 0.2, 0.3)).to_dict()


class SubclassedProcessor(VitHfImageProcessor):
    size = {"height": 8, "width": 8}  # noqa: RUF012


def test_subclass_elsewhere_is_saved_under_its_own_name(tmp_path):
    SubclassedProcessor().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["auto_map"] == {"AutoImageProcessor": "test_image_processing.SubclassedProcessor"}


class _SomeConfig(PreTrainedConfig):
    model_type = "config_of_the_image_processing_tests"


@BOTH
def test_auto_class_loads_the_registered_backend_without_remote_code(processor_class, tmp_path, monkeypatch):
    monkeypatch.setattr(IMAGE_PROCESSOR_MAPPING, "_extra_content", dict(IMAGE_PROCESSOR_MAPPING._extra_content))
    classes = {"torchvision": VitHfImageProcessor, "pil": VitHfImageProcessorPil}
    AutoImageProcessor.register(_SomeConfig, image_processor_classes=classes)
    processor_class(size=(32, 48)).save_pretrained(tmp_path)
    for backend, expected in classes.items():
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is expected
        assert dict(loaded.size) == {"height": 32, "width": 48}


FRESH_PROCESS = """
import json
import numpy as np
from PIL import Image
from transformers import AutoImageProcessor

found = []
image = Image.fromarray(np.load("image.npy"))
for source in ("saved", "again"):
    for choice in ({}, {"backend": "torchvision"}, {"backend": "pil"}, {"use_fast": True}, {"use_fast": False}):
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True, **choice)
        values = processor(image, return_tensors="np").pixel_values
        found.append([type(processor).__name__, list(values.shape), float(values.sum(dtype="float64"))])
    processor.save_pretrained("again")
with open("again/preprocessor_config.json") as file:
    print(json.dumps([found, json.load(file)["auto_map"]]))
"""


def test_fresh_process_without_the_package_loads_both_backends_offline(tmp_path, run_without_package):
    array = noise(9, 7, 4)
    np.save(tmp_path / "image.npy", array)
    VitHfImageProcessorPil(size=(6, 5)).save_pretrained(tmp_path / "saved")
    printed = run_without_package(FRESH_PROCESS, tmp_path)
    found, auto_map = json.loads(printed)
    torchvision, pil = VitHfImageProcessor, VitHfImageProcessorPil
    expected = []
    for processor_class in [torchvision, torchvision, pil, torchvision, pil] * 2:
        values = pixel_values(processor_class(size=(6, 5)), Image.fromarray(array))
        expected.append([processor_class.__name__, [1, 3, 6, 5], values.double().sum().item()])
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    assert [row[2] for row in found] == pytest.approx([row[2] for row in expected], abs=1e-9)
    assert auto_map == AUTO_MAP


def test_shipped_file_imports_only_what_a_clean_process_has():
    tree = ast.parse(Path(module.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert (node.level, node.module) == (1, "files_vit_hf") or node.level == 0
            names |= {node.module} if node.level == 0 else set()
    third_party = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert third_party <= {"torch", "torchvision", "transformers", "numpy", "PIL"}
    documented = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    lines = [line for node in documented for line in (ast.get_docstring(node) or "").splitlines()]
    assert not [line for line in lines if line.split()[:1] in (["import"], ["from"])]  # a scan by pattern reads these
