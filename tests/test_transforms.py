"""Transforms: with nothing on, training sees what evaluation sees; each augmentation does what its field says."""

import random

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision.transforms.v2 import functional

from vit_hf import VitHfImageProcessor
from vit_hf.data.draws import sample_keys
from vit_hf.data.transforms import CROPS, Augmentation, TrainTransform


def noise(height: int, width: int, mode: str = "RGB") -> PIL.Image.Image:
    pixels = torch.randint(256, (height, width, 3), dtype=torch.uint8)
    return PIL.Image.fromarray(pixels.numpy()).convert(mode)


def plain(height: int, width: int, **options) -> VitHfImageProcessor:
    """Return a processor of that size that leaves the pixels as they are: 0 to 255."""
    options = {"do_rescale": False, "do_normalize": False, **options}
    return VitHfImageProcessor(size={"height": height, "width": width}, **options)


def gradient(height: int, width: int) -> PIL.Image.Image:
    """Return a picture whose red is the row and whose green is the column, both from 1; blue is 255."""
    rows = torch.arange(1, height + 1)[:, None].expand(height, width)
    columns = torch.arange(1, width + 1)[None].expand(height, width)
    pixels = torch.stack([rows, columns, torch.full((height, width), 255)], dim=-1)
    return PIL.Image.fromarray(pixels.to(torch.uint8).numpy())


def keys_of(count: int, seed: int = 0) -> np.ndarray:
    rows = np.arange(count)
    return sample_keys(seed, 0 * rows, rows, 0 * rows)


def whole(image: PIL.Image.Image) -> torch.Tensor:
    """Return the picture as (C, h, w) uint8."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def draws(transform: TrainTransform, image: PIL.Image.Image, count: int) -> torch.Tensor:
    """Return as many versions of a picture, (count, C, H, W), cut and resized with the rest of the batch."""
    return transform.batch(whole(image).expand(count, -1, -1, -1), keys_of(count), cut=False)


def by_the_picture(transform: TrainTransform, image: PIL.Image.Image, count: int = 1) -> torch.Tensor:
    """Return the same versions by way of `picture`."""
    keys = keys_of(count)
    return transform.batch(torch.stack([transform.picture(image, int(key)) for key in keys]), keys, cut=True)


# ---------------------------------------------------------------------------------------------- as in evaluation
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_mean": [0.45, 0.5, 0.4], "image_std": [0.22] * 3},
        {"do_rescale": False},
        {"do_normalize": False},
        {"do_normalize": False, "do_rescale": False},
    ],
)
def test_without_augmentation_it_equals_the_image_processor_bit_for_bit(mode, options):
    processor = VitHfImageProcessor(size={"height": 32, "width": 24}, **options)
    image = noise(32, 24, mode)
    found = by_the_picture(TrainTransform(Augmentation(), processor), image)[0]
    assert found.dtype == torch.float32
    assert torch.equal(found, processor(image, return_tensors="pt")["pixel_values"][0].float())


def test_a_large_batch_normalised_by_pieces_equals_the_image_processor_bit_for_bit():
    processor = VitHfImageProcessor(size={"height": 200, "width": 210})
    pixels = torch.randint(256, (7, 3, 200, 210), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = TrainTransform(Augmentation(), processor).batch(pixels, np.arange(7), cut=True)
    assert torch.equal(found, processor(list(pixels), return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize("source", [(50, 37), (16, 20)])
@pytest.mark.parametrize("way", [by_the_picture, draws])
def test_with_a_resize_it_equals_the_image_processor_bit_for_bit(resample, source, way):
    processor = VitHfImageProcessor(size={"height": 32, "width": 24}, resample=resample)
    image = noise(*source)
    found = way(TrainTransform(Augmentation(), processor), image, 1)[0]
    assert torch.equal(found, processor(image, return_tensors="pt")["pixel_values"][0])


def test_everything_on_keeps_shape_type_and_range():
    everything = Augmentation(
        crop="inception", flip=True, rotation=20.0, translation=0.1, scaling=0.1, randaugment_ops=2, color_jitter=0.4
    )
    transform = TrainTransform(everything, VitHfImageProcessor(size={"height": 16, "width": 24}))
    pixels = draws(transform, noise(20, 20), 50)
    assert pixels.shape == (50, 3, 16, 24)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    assert torch.isfinite(draws(TrainTransform(Augmentation(erasing=1.0), plain(16, 24)), noise(16, 24), 20)).all()


# ---------------------------------------------------------------------------------------------- each augmentation
def test_half_of_the_pictures_are_mirrored():
    image = gradient(4, 6)
    upright = draws(TrainTransform(Augmentation(), plain(4, 6)), image, 1)[0]
    pixels = draws(TrainTransform(Augmentation(flip=True), plain(4, 6)), image, 2000)
    mirrored = (pixels == upright.flip(-1)).flatten(1).all(dim=1)
    assert ((pixels == upright).flatten(1).all(dim=1) ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.056  # five standard deviations


def test_padded_crops_reach_every_shift_equally_and_pad_with_black():
    pixels = draws(TrainTransform(Augmentation(crop="padded", crop_padding=2), plain(6, 8)), gradient(6, 8), 2000)
    shifts = (pixels[:, :2, 3, 4] - torch.tensor([4.0, 5.0])).int()  # the centre shows its own row and column if still
    found, counts = shifts.unique(dim=0, return_counts=True)
    assert found.tolist() == [[row, column] for row in range(-2, 3) for column in range(-2, 3)]
    assert counts.min() > 36  # of 80 on average; five standard deviations
    corner = pixels[(shifts == torch.tensor([-2, -2])).all(dim=1)][0]
    assert corner[:, :2].abs().sum() == corner[:, :, :2].abs().sum() == 0


def test_inception_crops_keep_within_the_area_and_the_aspect_ratio():
    height, width = 120, 100
    augmentation = Augmentation(crop="inception", crop_area=(0.2, 0.6))
    pixels = draws(TrainTransform(augmentation, plain(16, 16, resample=0)), gradient(height, width), 300)
    tall = (pixels[:, 0].amax((1, 2)) - pixels[:, 0].amin((1, 2))) * 16 / 15  # first to last sample of 16
    wide = (pixels[:, 1].amax((1, 2)) - pixels[:, 1].amin((1, 2))) * 16 / 15
    area, aspect = tall * wide / (height * width), wide / tall
    assert area.min() > 0.2 * 0.93  # sides are whole pixels, and read from 16 samples
    assert area.max() < 0.6 * 1.07
    assert aspect.min() > 3 / 4 * 0.93
    assert aspect.max() < 4 / 3 * 1.07
    assert area.std() > 0.08  # uniform over 0.4: 0.115


def test_erasing_happens_as_often_as_it_should():
    image = PIL.Image.new("RGB", (16, 16), "white")
    pixels = draws(TrainTransform(Augmentation(erasing=0.25), plain(16, 16)), image, 2000)
    erased = (pixels != 255).flatten(1).any(dim=1).float().mean()
    assert abs(erased - 0.25) < 0.049  # five standard deviations


@pytest.mark.parametrize(
    ("field", "value"), [("rotation", 30.0), ("translation", 0.3), ("scaling", 0.3), ("color_jitter", 0.4)]
)
def test_each_continuous_change_varies_the_picture(field, value):
    pixels = draws(TrainTransform(Augmentation(**{field: value}), plain(16, 16)), noise(16, 16), 10)
    assert len(pixels.flatten(1).unique(dim=0)) == 10


def test_translation_keeps_within_its_share():
    image = PIL.Image.new("RGB", (20, 20), "black")
    image.putpixel((10, 10), (255, 255, 255))
    pixels = draws(TrainTransform(Augmentation(translation=0.1), plain(20, 20)), image, 200)[:, 0]
    places = pixels.flatten(1).argmax(dim=1)
    offsets = torch.stack([places // 20, places % 20]) - 10
    assert sorted(offsets.unique().tolist()) == [-2, -1, 0, 1, 2]


def test_randaugment_varies_the_picture_and_its_strength_counts():
    image = noise(32, 32)
    still = draws(TrainTransform(Augmentation(), plain(32, 32)), image, 1)[0]

    def change(magnitude):
        augmentation = Augmentation(randaugment_ops=2, randaugment_magnitude=magnitude)
        return (draws(TrainTransform(augmentation, plain(32, 32)), image, 200) - still).abs().mean()

    assert change(30) > change(5) > 0


def test_random_crops_reach_every_place_of_the_resized_picture_equally():
    augmentation = Augmentation(crop="random", resize=(8, 11))
    pixels = draws(TrainTransform(augmentation, plain(6, 8, resample=0)), gradient(16, 22), 2400)
    corners = pixels[:, :2, 0, 0].int() // 2  # the picture is halved: nearest pixels are 2 apart
    found, counts = corners.unique(dim=0, return_counts=True)
    assert found.tolist() == [[row, column] for row in range(1, 4) for column in range(1, 5)]
    assert counts.min() > 132  # of 200 on average; five standard deviations


def test_a_random_crop_resizes_as_the_image_processor():
    image, size = noise(50, 37), {"height": 32, "width": 24}
    for resample in (2, 3):
        transform = TrainTransform(Augmentation(crop="random", resize=(32, 24)), plain(32, 24, resample=resample))
        found = draws(transform, image, 1)[0]
        expected = VitHfImageProcessor(size=size, resample=resample, do_rescale=False, do_normalize=False)
        expected = expected(image, return_tensors="pt")["pixel_values"][0].float()
        torch.testing.assert_close(found, expected, rtol=0, atol=1.01)  # rounded to 8 bits by Pillow or by torchvision


def test_a_random_crop_larger_than_the_resized_picture_is_an_error():
    with pytest.raises(ValueError, match=r"augmentation\.resize is \(32, 20\); expected at least the 32x24 pixels"):
        TrainTransform(Augmentation(crop="random", resize=(32, 20)), plain(32, 24))


def test_three_augment_draws_greyscale_solarisation_and_blur_equally():
    image = noise(24, 24)
    still = draws(TrainTransform(Augmentation(), plain(24, 24)), image, 1)[0]
    pixels = draws(TrainTransform(Augmentation(three_augment=True), plain(24, 24)), image, 600)
    grey = (pixels[:, :1] == pixels).flatten(1).all(dim=1)
    inverted = (pixels == torch.where(still < 128, still, 255 - still)).flatten(1).all(dim=1)
    blurred = ~grey & ~inverted
    assert torch.equal(pixels[grey][0], functional.rgb_to_grayscale(whole(image), 3).float())
    for kind in (grey, inverted, blurred):
        assert abs(int(kind.sum()) - 200) < 58  # five standard deviations
    spread = pixels[blurred].std(dim=(1, 2, 3))
    assert spread.max() <= still.std() * 1.01
    assert spread.min() < still.std() / 3  # a blur of 2 pixels leaves a seventh of white noise


@pytest.mark.parametrize("size", [(4, 4), (5, 9)])
def test_three_augment_takes_the_smallest_pictures(size):
    pixels = draws(TrainTransform(Augmentation(three_augment=True), plain(*size)), noise(*size), 20)
    assert pixels.shape == (20, 3, *size)


def test_colour_jitter_keeps_within_its_share():
    image = PIL.Image.new("RGB", (4, 4), (100, 100, 100))  # one grey: neither contrast nor saturation can change it
    pixels = draws(TrainTransform(Augmentation(color_jitter=0.3), plain(4, 4)), image, 400)
    assert pixels.min() >= 69
    assert pixels.max() <= 131
    assert pixels.min() < 72
    assert pixels.max() > 128


def test_what_is_erased_becomes_normal_noise_of_the_normalised_pixels():
    processor = VitHfImageProcessor(size={"height": 32, "width": 32})
    image = PIL.Image.new("RGB", (32, 32), "white")  # 1.0 after normalisation
    pixels = draws(TrainTransform(Augmentation(erasing=1.0), processor), image, 50)
    noise_values = pixels[pixels != 1.0]
    assert len(noise_values) > 5000
    assert abs(noise_values.mean()) < 5 / len(noise_values) ** 0.5
    assert abs(noise_values.std() - 1) < 5 / (2 * len(noise_values)) ** 0.5


EVERYTHING = {
    **{"flip": True, "rotation": 5.0, "translation": 0.1, "scaling": 0.1, "color_jitter": 0.3, "three_augment": True},
    **{"randaugment_ops": 2, "randaugment_std": 3.0, "randaugment_probability": 0.8, "erasing": 0.5},
}


def everything(crop: str, height: int, width: int) -> Augmentation:
    return Augmentation(crop=crop, resize=(height + 3, width + 6) if crop == "random" else None, **EVERYTHING)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(20, 18), (16, 12), (24, 32)])
def test_a_picture_comes_out_the_same_alone_and_in_any_batch(crop, size):
    transform, keys = TrainTransform(everything(crop, *size), plain(*size)), keys_of(48)
    pixels = torch.randint(256, (48, 3, 20, 18), dtype=torch.uint8)
    together = transform.batch(pixels, keys, cut=False)
    alone = [transform.batch(pixels[i : i + 1], keys[i : i + 1], cut=False) for i in range(48)]
    assert torch.equal(together, torch.cat(alone))
    order = torch.randperm(48)
    assert torch.equal(transform.batch(pixels[order], keys[order.numpy()], cut=False), together[order])


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(20, 18), (16, 12), (24, 32)])
def test_cutting_by_the_picture_and_by_the_batch_is_the_same_to_one_level(crop, size):
    shifts = {name: EVERYTHING[name] for name in ("flip",)}
    resize = (size[0] + 3, size[1] + 6) if crop == "random" else None
    transform = TrainTransform(Augmentation(crop=crop, resize=resize, **shifts), plain(*size))
    image = noise(20, 18)
    # Pillow and torch both round to 8 bits, not always to the same side.
    torch.testing.assert_close(by_the_picture(transform, image, 60), draws(transform, image, 60), rtol=0, atol=1.01)


def test_no_randomness_but_that_of_the_keys():
    transform, image, found = TrainTransform(everything("inception", 16, 16), plain(16, 16)), noise(30, 30), []
    for other in (0, 1):
        random.seed(other)
        np.random.seed(other)
        torch.manual_seed(other)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        found.append(draws(transform, image, 20))
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert torch.equal(*found)
    assert len(found[0].flatten(1).unique(dim=0)) == 20


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("size", [(20, 18), (24, 32)])
def test_nothing_waits_for_the_device(crop, size):
    """On a device without values whatever needs one, such as `item`, `nonzero` or a mask as an index, raises."""
    transform = TrainTransform(everything(crop, *size), plain(*size))
    found = transform.batch(torch.empty(32, 3, 20, 18, dtype=torch.uint8, device="meta"), keys_of(32), cut=False)
    assert found.device.type == "meta"
    assert found.shape == (32, 3, *size)


def test_the_pixels_that_come_in_stay_as_they_are():
    pixels = torch.randint(256, (30, 3, 16, 16), dtype=torch.uint8)
    for augmentation in (Augmentation(), *(everything(crop, 16, 16) for crop in CROPS)):
        before = pixels.clone()
        TrainTransform(augmentation, plain(16, 16)).batch(pixels, keys_of(30), cut=False)
        assert torch.equal(pixels, before)


# ---------------------------------------------------------------------------------------------- checks
@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("crop", "centre", "expected one of inception, padded, random, none"),
        ("crop_area", (0.0, 1.0), "expected 0 < smallest <= largest <= 1"),
        ("crop_area", (0.5, 0.2), "expected 0 < smallest <= largest <= 1"),
        ("crop_area", (0.5, 1.2), "expected 0 < smallest <= largest <= 1"),
        ("crop_padding", -1, "expected 0 or more"),
        ("rotation", -5.0, "expected 0 or more"),
        ("rotation", float("nan"), "expected 0 or more"),
        ("translation", 1.0, "expected 0 <= share < 1"),
        ("scaling", -0.1, "expected 0 <= share < 1"),
        ("randaugment_ops", -1, "expected 0 or more"),
        ("randaugment_magnitude", 31, "expected 0 to 30"),
        ("color_jitter", float("inf"), "expected 0 or more"),
        ("erasing", 1.5, r"expected a probability in \[0, 1\]"),
        ("mixup_alpha", -0.1, "expected 0 or more"),
        ("cutmix_alpha", float("nan"), "expected 0 or more"),
        ("randaugment_std", -1.0, "expected 0 or more"),
        ("randaugment_std", float("inf"), "expected 0 or more"),
        ("randaugment_probability", 1.1, r"expected a probability in \[0, 1\]"),
        ("repeats", 0, "expected 1 or more"),
        ("resize", (20, 20), "augmentation.crop 'none'; expected a size .* with crop \"random\""),
        ("mask_ratio", 1.0, "expected 0 < share < 1"),
        ("mask_patch_size", 0, "expected 1 or more"),
    ],
)
def test_an_impossible_value_names_field_and_expectation(field, value, expected):
    with pytest.raises(ValueError, match=rf"augmentation\.{field} is .*{expected}"):
        Augmentation(**{field: value})


def test_a_random_crop_needs_a_size_of_whole_pixels():
    with pytest.raises(ValueError, match=r"augmentation\.resize is None and augmentation\.crop 'random'; expected a"):
        Augmentation(crop="random")
    with pytest.raises(ValueError, match=r"augmentation\.resize is \(20, 0\); expected two sizes of 1 pixel or more"):
        Augmentation(crop="random", resize=(20, 0))
