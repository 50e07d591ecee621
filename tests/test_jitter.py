"""Colour jitter, DeiT III's three changes and affine maps: torchvision's operations and distributions."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from vit_hf.data.draws import sample_keys
from vit_hf.data.geometry import bilinear_affine, draw_affine
from vit_hf.data.jitter import color_jitter, draw_color_jitter, draw_three_augment, three_augment


def keys_of(count: int) -> np.ndarray:
    rows = np.arange(count)
    return sample_keys(0, 0 * rows, rows, 0 * rows)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


# ---------------------------------------------------------------------------------------------- colour jitter
def test_jitter_equals_torchvision_in_the_order_drawn():
    pixels, (factors, order) = noise(60, 20, 17), draw_color_jitter(keys_of(60), 0.4)
    pixels[0] = pixels[0, :1]
    found = color_jitter(pixels, factors, order)
    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    for place, picture in enumerate(pixels):
        for kind in order[place].tolist():
            picture = changes[kind](picture, float(factors[place, kind]))
        assert torch.equal(found[place], picture)


@pytest.mark.parametrize("share", [0.4, 1.5])
def test_jitter_is_drawn_as_in_torchvision(share):
    reference = v2.ColorJitter(share, share, share)
    torch.manual_seed(0)
    params = [reference.make_params([]) for _ in range(2000)]
    names = ("brightness_factor", "contrast_factor", "saturation_factor")
    theirs = np.array([[found[name] for name in names] for found in params])
    factors, order = draw_color_jitter(keys_of(20_000), share)
    for kind in range(3):
        assert stats.ks_2samp(factors[:, kind], theirs[:, kind]).pvalue > 0.001
    assert np.abs(np.corrcoef(factors.T) - np.eye(3)).max() < 5 / 20_000**0.5
    assert stats.chisquare(np.unique(order, axis=0, return_counts=True)[1]).pvalue > 0.001
    assert len(np.unique(order, axis=0)) == 6
    assert stats.kruskal(*(factors[order[:, 0] == kind, 0] for kind in range(3))).pvalue > 0.001  # whatever the factors
    assert factors.min() - max(0.0, 1 - share) < 0.001
    assert 1 + share - factors.max() < 0.001


# ---------------------------------------------------------------------------------------------- DeiT III
@pytest.mark.parametrize("size", [(24, 30), (5, 9), (9, 4)])
def test_each_of_the_three_changes_equals_torchvision(size):
    pixels = noise(45, *size)
    kinds, sigmas = draw_three_augment(keys_of(45))
    found = three_augment(pixels.clone(), kinds, sigmas)
    taps = min(17, 2 * min(size) - 1)
    changes = (
        lambda picture, _: functional.rgb_to_grayscale(picture, 3),
        lambda picture, _: functional.solarize(picture, 128),
        lambda picture, sigma: functional.gaussian_blur(picture, [taps, taps], [sigma]),
    )
    for place, picture in enumerate(pixels):
        expected = changes[kinds[place]](picture, float(sigmas[place]))
        # The blur adds up side by side instead of all at once: rounded to the other side now and then.
        difference = (found[place].int() - expected.int()).abs()
        assert difference.max() <= (kinds[place] == 2)
        assert (difference > 0).float().mean() < 0.01


def test_the_three_changes_come_equally_often_and_the_blur_is_uniform():
    kinds, sigmas = draw_three_augment(keys_of(20_000))
    assert stats.chisquare(np.bincount(kinds, minlength=3)).pvalue > 0.001
    assert stats.kstest(sigmas, stats.uniform(0.1, 1.9).cdf).pvalue > 0.001
    assert stats.ks_2samp(sigmas[kinds == 2], sigmas[kinds == 0]).pvalue > 0.001


# ---------------------------------------------------------------------------------------------- affine maps
@pytest.mark.parametrize("size", [(32, 32), (17, 23), (64, 48)])
def test_affine_maps_equal_torchvision_bit_for_bit(size):
    pixels = noise(60, *size)
    moves = draw_affine(keys_of(60), size, rotation=40.0, translation=0.2, scaling=0.3)
    found = bilinear_affine(pixels, torch.from_numpy(moves.matrices()))
    for place, picture in enumerate(pixels):
        angle, shift, scale = moves.angles[place], moves.shifts[place].tolist(), moves.scales[place]
        options = {"shear": [0.0, 0.0], "interpolation": InterpolationMode.BILINEAR, "fill": None}
        expected = functional.affine(picture, float(angle), shift, float(scale), **options)
        assert torch.equal(found[place], expected)


def test_affine_maps_are_drawn_as_in_torchvision():
    size, share, change = (20, 40), 0.1, 0.2
    reference = v2.RandomAffine(10.0, (share, share), (1 - change, 1 + change))
    torch.manual_seed(0)
    params = [reference.make_params([torch.empty(3, *size)]) for _ in range(2500)]
    ours = draw_affine(keys_of(25_000), size, rotation=10.0, translation=share, scaling=change)
    assert stats.ks_2samp(ours.angles, [found["angle"] for found in params]).pvalue > 0.001
    assert stats.ks_2samp(ours.scales, [found["scale"] for found in params]).pvalue > 0.001
    for side in (0, 1):
        theirs = np.array([found["translate"][side] for found in params])
        places = range(-4 + 2 * side, 5 - 2 * side)  # whole pixels, half as often at the ends
        table = [[(shifts == place).sum() for place in places] for shifts in (ours.shifts[:, side], theirs)]
        assert np.sum(table) == 27_500
        assert stats.chi2_contingency(table).pvalue > 0.001
    found = np.stack([ours.angles, ours.scales, *ours.shifts.T])
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 5 / 25_000**0.5
