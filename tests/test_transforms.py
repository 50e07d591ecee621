"""Transforms: with nothing on, training sees what evaluation sees; each augmentation does what its field says."""

import PIL.Image
import pytest
import torch

from vit_hf import VitHfImageProcessor
from vit_hf.data.transforms import Augmentation, TrainTransform, build_mixing


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


def draws(transform: TrainTransform, image: PIL.Image.Image, count: int) -> torch.Tensor:
    return torch.stack([transform(image) for _ in range(count)])


# ---------------------------------------------------------------------------------------------- as in evaluation
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
@pytest.mark.parametrize("mean_and_std", [(0.5, 0.5), (0.45, 0.22)])
def test_without_augmentation_or_resize_it_equals_the_image_processor(mode, mean_and_std):
    mean, std = mean_and_std
    processor = VitHfImageProcessor(size={"height": 32, "width": 24}, image_mean=[mean] * 3, image_std=[std] * 3)
    image = noise(32, 24, mode)
    found = TrainTransform(Augmentation(), processor)(image)
    assert found.dtype == torch.float32
    # The processor scales and normalises in one step, the transform in two: a few float32 roundings apart.
    torch.testing.assert_close(found, processor(image, return_tensors="pt")["pixel_values"][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("source", [(50, 37), (16, 20)])
def test_with_a_resize_it_equals_the_image_processor_to_one_level(resample, source):
    processor = VitHfImageProcessor(size={"height": 32, "width": 24}, resample=resample)
    image = noise(*source)
    found = TrainTransform(Augmentation(), processor)(image)
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    # Pillow and torchvision both round to 8 bits, not always to the same side: one level is 2 / 255.
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / 255 + 1e-6)
    assert (found - expected).abs().mean() < 0.2 / 255


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


def test_the_same_seed_draws_the_same_picture():
    transform = TrainTransform(Augmentation(crop="padded", flip=True, erasing=0.5, randaugment_ops=2), plain(16, 16))
    image = noise(16, 16)
    torch.manual_seed(1)
    first = draws(transform, image, 5)
    torch.manual_seed(1)
    assert torch.equal(draws(transform, image, 5), first)


# ---------------------------------------------------------------------------------------------- each augmentation
def test_half_of_the_pictures_are_mirrored():
    image = gradient(4, 6)
    upright = TrainTransform(Augmentation(), plain(4, 6))(image)
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
    still = TrainTransform(Augmentation(), plain(32, 32))(image)

    def change(magnitude):
        augmentation = Augmentation(randaugment_ops=2, randaugment_magnitude=magnitude)
        return (draws(TrainTransform(augmentation, plain(32, 32)), image, 200) - still).abs().mean()

    assert change(30) > change(5) > 0


# ---------------------------------------------------------------------------------------------- mixing
@pytest.mark.parametrize(
    "fields", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 0.8, "cutmix_alpha": 1}]
)
def test_mixed_labels_are_probabilities_of_the_classes_in_the_pair(fields):
    mixing = build_mixing(Augmentation(**fields), num_classes=5)
    pixels, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    for _ in range(20):
        mixed, probabilities = mixing(pixels, labels)
        assert mixed.shape == pixels.shape
        assert probabilities.shape == (6, 5)
        assert probabilities.dtype == torch.float32
        assert probabilities.min() >= 0
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(6))
        partner = labels.roll(1)
        others = probabilities.scatter(1, torch.stack([labels, partner], dim=1), 0.0)
        assert others.abs().max() == 0


def test_mixup_mixes_pixels_by_the_share_in_the_labels():
    mixing = build_mixing(Augmentation(mixup_alpha=1.0), num_classes=4)
    pixels, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    mixed, probabilities = mixing(pixels, labels)
    share = probabilities[torch.arange(4), labels].view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, share * pixels + (1 - share) * pixels.roll(1, 0))


def test_cutmix_shares_labels_by_the_area_that_is_pasted():
    mixing = build_mixing(Augmentation(cutmix_alpha=1.0), num_classes=4)
    pixels, labels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16), torch.arange(4)
    for _ in range(10):
        mixed, probabilities = mixing(pixels.clone(), labels)
        kept = (mixed == pixels).float().mean(dim=(1, 2, 3))
        torch.testing.assert_close(probabilities[torch.arange(4), labels], kept)


def test_with_both_alphas_each_batch_draws_one_of_the_two():
    mixing = build_mixing(Augmentation(mixup_alpha=1.0, cutmix_alpha=1.0), num_classes=2)
    pixels = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    blended = [bool(((out := mixing(pixels, torch.arange(2))[0]) > 0).any() and (out % 1 > 0).any()) for _ in range(60)]
    assert 10 < sum(blended) < 50


def test_no_mixing_without_an_alpha():
    assert build_mixing(Augmentation(), num_classes=3) is None


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
    ],
)
def test_an_impossible_value_names_field_and_expectation(field, value, expected):
    with pytest.raises(ValueError, match=rf"augmentation\.{field} is .*{expected}"):
        Augmentation(**{field: value})
