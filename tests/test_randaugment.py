"""RandAugment of a batch: every operation, strength and sign is torchvision's; the draws have its distribution."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data import auto_augment
from torchvision.transforms import v2

from vit_hf.data.draws import sample_keys
from vit_hf.data.randaugment import FILL, OPERATIONS, Operations, draw_operations, randaugment, strengths

LEVELS = 31
SIGNED = {*OPERATIONS[1:10]}  # shears, shifts, rotation, brightness, colour, contrast, sharpness


def keys_of(count: int) -> np.ndarray:
    rows = np.arange(count)
    return sample_keys(0, 0 * rows, rows, 0 * rows)


def pictures(height: int, width: int) -> torch.Tensor:
    """Return noise, a gradient, a grey one, one of a single colour, and one with a channel without contrast."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(256, (5, 3, height, width), dtype=torch.uint8, generator=generator)
    found[1] = (torch.arange(height)[:, None] * 5 + torch.arange(width) * 3).to(torch.uint8)
    found[2] = found[2, :1] // 4 + 60
    found[3] = torch.tensor([200, 100, 7], dtype=torch.uint8)[:, None, None]
    found[4, 1] = 77
    return found


def torchvisions(picture: torch.Tensor, name: str, level: int, negative: bool) -> torch.Tensor:
    """Return what v2.RandAugment does to a uint8 tensor, by its own table of strengths."""
    table, signed = v2.RandAugment._AUGMENTATION_SPACE[name]
    strengths = table(LEVELS, *picture.shape[-2:])
    strength = 0.0 if strengths is None else float(strengths[level])
    transform = v2.RandAugment(fill=[FILL] * 3)
    strength = -strength if signed and negative else strength
    nearest = v2.InterpolationMode.NEAREST
    return transform._apply_image_or_video_transform(picture, name, strength, nearest, transform._fill)


# ---------------------------------------------------------------------------------------------- operations
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(32, 32), (17, 23), (64, 48)])
def test_every_strength_and_sign_equals_torchvision_on_tensors_bit_for_bit(name, size):
    samples = pictures(*size)
    levels, negative = (part.ravel() for part in np.meshgrid(range(LEVELS), [False, True]))
    for picture in samples:
        kinds = np.full((len(levels), 1), OPERATIONS.index(name))
        operations = Operations(kinds, levels[:, None], negative[:, None])
        found = randaugment(picture.repeat(len(levels), 1, 1, 1), operations)
        for place, (level, sign) in enumerate(zip(levels.tolist(), negative.tolist(), strict=True)):
            assert torch.equal(found[place], torchvisions(picture, name, level, sign)), (level, sign)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(224, 224), (384, 384), (300, 260)])
def test_large_pictures_equal_torchvision_too(name, size):
    picture = pictures(*size)[:1]
    for level in range(0, LEVELS, 3):
        for negative in (False, True):
            operations = Operations(*(np.array([[x]]) for x in (OPERATIONS.index(name), level, negative)))
            found = randaugment(picture.clone(), operations)
            assert torch.equal(found[0], torchvisions(picture[0], name, level, negative)), (level, negative)


def test_the_strengths_are_torchvisions():
    for size in ((32, 32), (224, 160)):
        for name, (table, signed) in v2.RandAugment._AUGMENTATION_SPACE.items():
            assert signed == (name in SIGNED)
            expected = table(LEVELS, *size)
            if expected is not None:
                expected = expected.int() if name.startswith("Translate") else expected
                assert strengths(name, size) == tuple(expected.tolist())


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 3)])
def test_the_smallest_pictures_equal_torchvision(size):
    picture = pictures(*size)[:1]
    for kind, name in enumerate(OPERATIONS):
        operations = Operations(*(np.array([[x]]) for x in (kind, 20, True)))
        assert torch.equal(randaugment(picture.clone(), operations)[0], torchvisions(picture[0], name, 20, True)), name


@pytest.mark.parametrize("size", [(16, 20), (150, 160)])
def test_operations_follow_one_another_picture_by_picture(size):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (60, 3, *size), dtype=torch.uint8, generator=generator)
    operations = draw_operations(keys_of(60), count=3, level=20, std=4.0, probability=0.8)
    found = randaugment(pixels.clone(), operations)
    for place, picture in enumerate(pixels):
        for kind, level, negative in zip(
            operations.kinds[place].tolist(),
            operations.levels[place].tolist(),
            operations.negative[place].tolist(),
            strict=True,
        ):
            picture = torchvisions(picture, OPERATIONS[kind], level, negative)
        assert torch.equal(found[place], picture)


# ---------------------------------------------------------------------------------------------- draws
class Recorded(v2.RandAugment):
    """torchvision's transform, which notes down what it does instead of doing it."""

    def _apply_image_or_video_transform(self, image, transform_id, magnitude, interpolation, fill):
        self.seen.append((transform_id, magnitude))
        return image


def test_operations_and_signs_come_as_often_as_in_torchvision():
    recorded = Recorded(2, 21)
    recorded.seen = []
    torch.manual_seed(0)
    for _ in range(4000):
        recorded(torch.zeros(3, 32, 32, dtype=torch.uint8))
    count = 20_000
    operations = draw_operations(keys_of(count), count=2, level=21, std=0.0, probability=1.0)
    assert (operations.levels == 21).all()

    def ours(column: int) -> Counter:
        found = Counter()
        for kind, negative in zip(operations.kinds[:, column], operations.negative[:, column], strict=True):
            found[OPERATIONS[kind], bool(negative and OPERATIONS[kind] in SIGNED)] += 1
        return found

    theirs = [Counter((name, strength < 0) for name, strength in recorded.seen[column::2]) for column in (0, 1)]
    for column in (0, 1):
        found = ours(column)
        kinds = sorted(found)
        assert kinds == sorted(theirs[column])
        table = [[found[kind] for kind in kinds], [theirs[column][kind] for kind in kinds]]
        assert stats.chi2_contingency(table).pvalue > 0.001
    assert abs(operations.negative.mean() - 0.5) < 5 * 0.5 / operations.negative.size**0.5
    pairs = np.bincount(operations.kinds[:, 0] * 14 + operations.kinds[:, 1], minlength=196)
    assert stats.chisquare(pairs).pvalue > 0.001  # the two of a picture have nothing to do with each other


def levels_of(count: int, **options) -> np.ndarray:
    return draw_operations(keys_of(count), count=1, **options).levels[:, 0]


def test_the_strength_is_normal_rounded_and_clipped():
    found, count = levels_of(20_000, level=15, std=2.0, probability=1.0), 20_000
    edges = np.arange(8.5, 22)  # whole levels from 9 to 21
    expected = stats.norm(15, 2).cdf(np.append(edges[1:-1], np.inf)) - stats.norm(15, 2).cdf(
        np.append(-np.inf, edges[1:-1])
    )
    seen = np.histogram(np.clip(found, 9, 21), bins=edges)[0]
    assert stats.chisquare(seen, expected * count).pvalue > 0.001
    clipped = levels_of(20_000, level=29, std=3.0, probability=1.0)
    assert clipped.max() == 30
    assert abs((clipped == 30).mean() - stats.norm(29, 3).sf(29.5)) < 5 * 0.5 / count**0.5
    assert levels_of(2000, level=0, std=3.0, probability=1.0).min() == 0


def test_operations_are_left_out_with_their_probability():
    kinds = draw_operations(keys_of(20_000), count=1, level=9, std=0.0, probability=0.3).kinds
    expected = np.array([0.7 + 0.3 / 14, *[0.3 / 14] * 13]) * 20_000  # left out is as Identity
    assert stats.chisquare(np.bincount(kinds[:, 0], minlength=14), expected).pvalue > 0.001
    assert not draw_operations(keys_of(99), count=2, level=9, std=0.0, probability=0.0).kinds.any()


def test_a_level_of_timm_is_three_of_torchvision():
    """The strengths that can be read off both libraries: timm's at level 9 are torchvision's at 27."""

    def ours(name: str) -> float:
        return strengths(name, (224, 224))[27]

    timm_level = 9.0
    shear, rotation = (abs(auto_augment.LEVEL_TO_ARG[name](timm_level, {})[0]) for name in ("ShearX", "Rotate"))
    assert ours("ShearX") == ours("ShearY") == pytest.approx(shear)
    assert ours("Rotate") == pytest.approx(rotation)
    for name in ("Color", "Contrast", "Brightness", "Sharpness"):
        factor = auto_augment.LEVEL_TO_ARG[f"{name}Increasing"](timm_level, {})[0]
        assert ours(name) == pytest.approx(abs(factor - 1))
    threshold = auto_augment.LEVEL_TO_ARG["SolarizeIncreasing"](timm_level, {})[0]
    assert abs(ours("Solarize") * 255 - threshold) < 1
