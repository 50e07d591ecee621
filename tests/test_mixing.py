"""Mixing and masking: drawn by address, equal to torchvision's on a pair, and masks of the promised size and shape."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from vit_hf.data import mixing
from vit_hf.data.mixing import PairMixing, PatchMasking
from vit_hf.data.transforms import Augmentation

CLASSES = 5


def mixer(mixup: float = 0.0, cutmix: float = 0.0, seed: int = 0) -> PairMixing:
    return PairMixing(Augmentation(mixup_alpha=mixup, cutmix_alpha=cutmix), num_classes=CLASSES, seed=seed)


def batch(count: int, height: int = 8, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3, height, width), torch.randint(CLASSES, (count,))


# ---------------------------------------------------------------------------------------------- as torchvision does
@pytest.mark.parametrize("position", [0, 2, 40])
def test_mixup_of_a_pair_equals_torchvision_at_the_same_weight(position):
    ours = mixer(mixup=0.8)
    draws = ours.draw([position, position + 1], 8, 12)
    theirs = v2.MixUp(alpha=0.8, num_classes=CLASSES)
    theirs.make_params = lambda flat_inputs: {"lam": draws["mix_blend"][0].item()}
    pixels, labels = batch(2)
    for found, expected in zip(ours.apply(pixels.clone(), labels, draws), theirs(pixels, labels), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.03, 0.5, 0.77, 1.0])
@pytest.mark.parametrize(("y", "x"), [(0, 0), (7, 11), (4, 6), (1, 9)])
def test_cutmix_of_a_pair_equals_torchvision_at_the_same_weight_and_centre(monkeypatch, weight, y, x):
    monkeypatch.setattr(mixing, "betaincinv", lambda a, b, numbers: np.full_like(numbers, weight))
    monkeypatch.setattr(mixing, "integers", lambda numbers, count: np.array([{1: 0, 8: y, 12: x}[count]]))
    ours = mixer(cutmix=1.0)
    draws = ours.draw([0, 1], 8, 12)
    theirs = v2.CutMix(alpha=1.0, num_classes=CLASSES)
    theirs._dist = SimpleNamespace(sample=lambda shape: torch.tensor(weight, dtype=torch.float64))
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.tensor([{8: y, 12: x}[high]]))
    pixels, labels = torch.randn(2, 3, 8, 12), torch.tensor([1, 4])
    found, expected = ours.apply(pixels.clone(), labels, draws), theirs(pixels, labels)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------- draws
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_probabilities_of_the_two_classes_of_the_pair(mixup, cutmix):
    ours = mixer(mixup, cutmix)
    pixels, labels = batch(64)
    _, targets = ours.apply(pixels.clone(), labels, ours.draw(list(range(64)), 8, 12))
    assert targets.shape == (64, CLASSES)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(64), atol=1e-6, rtol=0)
    assert targets.min() >= 0
    for place, target in enumerate(targets):
        pair = {labels[place].item(), labels[place ^ 1].item()}
        assert set(target.nonzero().flatten().tolist()) <= pair


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize(("start", "end"), [(0, 2), (4, 10), (6, 16), (0, 16)])
def test_any_even_slice_of_a_batch_mixes_as_the_whole_batch_does(mixup, cutmix, start, end):
    ours = mixer(mixup, cutmix)
    pixels, labels = batch(16)
    positions = list(range(100, 116))
    whole = ours.apply(pixels.clone(), labels, ours.draw(positions, 8, 12))
    cut = slice(start, end)
    for draws in (
        ours.draw(positions[cut], 8, 12),
        {name: drawn[cut] for name, drawn in ours.draw(positions, 8, 12).items()},
    ):
        part = ours.apply(pixels[cut].clone(), labels[cut], draws)
        assert torch.equal(part[0], whole[0][cut])
        assert torch.equal(part[1], whole[1][cut])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_pair_by_pair_on_a_cpu_equals_all_at_once_on_other_devices(mixup, cutmix):
    ours = mixer(mixup, cutmix)
    pixels, labels = batch(32, 16, 24)
    draws = ours.draw(list(range(32)), 16, 24)
    assert torch.equal(ours._mixed(pixels, draws), ours.apply(pixels.clone(), labels, draws)[0])


def test_draws_depend_on_seed_and_pair_only():
    positions = list(range(32))
    first = mixer(0.8, 1.0).draw(positions, 8, 12)
    torch.manual_seed(5)
    np.random.seed(5)
    again = mixer(0.8, 1.0).draw(positions, 8, 12)
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = mixer(0.8, 1.0, seed=1).draw(positions, 8, 12)
    assert not torch.equal(first["mix_share"], other["mix_share"])
    assert len(set(first["mix_share"].tolist())) > 12  # 16 pairs, boxes of equal area may occur


@pytest.mark.parametrize("positions", [[1, 2], [0], [0, 1, 2], [0, 2], [1, 0], [0, 1, 3, 4]])
def test_positions_that_are_no_whole_pairs_are_refused(positions):
    with pytest.raises(ValueError, match=r"take pictures in pairs, found positions .* give an even batch"):
        mixer(0.8).draw(positions, 8, 8)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_the_weight_of_mixup_has_the_beta_distribution(alpha):
    weights = mixer(mixup=alpha).draw(list(range(6000)), 8, 8)["mix_blend"][::2].numpy()
    assert stats.kstest(weights, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert stats.kstest(weights, stats.beta(2 * alpha + 0.5, 2 * alpha + 0.5).cdf).pvalue < 1e-6  # it can tell


def test_mixup_blends_the_whole_picture_and_cutmix_blends_nothing():
    mixup, cutmix = mixer(mixup=1.0).draw(list(range(64)), 8, 12), mixer(cutmix=1.0).draw(list(range(64)), 8, 12)
    assert mixup["mix_box"].eq(0).all()
    assert torch.equal(mixup["mix_blend"], mixup["mix_share"])
    assert cutmix["mix_blend"].eq(1).all()
    pixels, labels = batch(64)
    mixed, _ = mixer(cutmix=1.0).apply(pixels.clone(), labels, cutmix)
    partner = pixels[torch.arange(64) ^ 1]
    assert torch.logical_or(mixed == pixels, mixed == partner).all()


def test_the_share_of_a_label_is_the_area_of_its_own_pixels():
    ours, count = mixer(cutmix=1.0), 400
    draws = ours.draw(list(range(count)), 16, 24)
    pixels = (torch.arange(count) % 2).float().view(-1, 1, 1, 1).expand(-1, 3, 16, 24)  # a pair is 0s and 1s
    mixed, _ = ours.apply(pixels.clone(), torch.zeros(count, dtype=torch.int64), draws)
    own = (mixed == pixels)[:, 0].float().mean(dim=(1, 2))
    torch.testing.assert_close(draws["mix_share"], own, atol=1e-6, rtol=0)


def test_boxes_lie_within_the_picture_and_are_cut_at_its_edges():
    top, left, bottom, right = mixer(cutmix=1.0).draw(list(range(4000)), 16, 24)["mix_box"][::2].unbind(1)
    for low, high, side in ((top, bottom, 16), (left, right, 24)):
        assert low.min() == 0
        assert high.max() == side
        assert (low <= high).all()
        assert (low == 0).float().mean() < 0.9


def test_a_box_away_from_the_edges_has_the_area_and_shape_that_the_weight_asks_for():
    for weight in np.linspace(0.05, 0.95, 19):
        box = mixing.cutmix_boxes(np.array([weight]), np.array([100]), np.array([150]), 200, 300)[0]
        top, left, bottom, right = box.tolist()
        assert 0 <= math.sqrt(1 - weight) * 200 - (bottom - top) < 2  # sides are whole and even
        assert 0 <= math.sqrt(1 - weight) * 300 - (right - left) < 2
        assert (top + bottom, left + right) == (200, 300)


def test_with_both_kinds_each_is_taken_for_about_half_of_the_pairs():
    draws = mixer(0.8, 1.0).draw(list(range(4000)), 32, 32)
    share = draws["mix_blend"][::2].eq(1).float().mean().item()  # CutMix blends nothing
    assert stats.binomtest(round(share * 2000), 2000, 0.5).pvalue > 0.01


# ---------------------------------------------------------------------------------------------- masks
def masks(count: int = 200, *, ratio=0.6, size=8, patch_hw=(4, 4), seed=0, hw=(32, 32), start=0) -> torch.Tensor:
    masking = PatchMasking(ratio=ratio, mask_patch_size=size, patch_hw=patch_hw, seed=seed)
    return masking.draw(list(range(start, start + count)), *hw)["bool_masked_pos"]


@pytest.mark.parametrize(
    ("ratio", "size", "patch_hw", "hw"),
    [
        (0.6, 32, (16, 16), (224, 224)),
        (0.5, 8, (4, 8), (16, 24)),
        (0.25, 4, (4, 4), (16, 24)),
        (0.9, 8, (2, 4), (8, 32)),
    ],
)
def test_exactly_the_share_of_squares_is_hidden_rounded_up(ratio, size, patch_hw, hw):
    found = masks(20, ratio=ratio, size=size, patch_hw=patch_hw, hw=hw)
    assert found.dtype == torch.bool
    assert found.shape == (20, (hw[0] // patch_hw[0]) * (hw[1] // patch_hw[1]))
    squares = hw[0] // size * (hw[1] // size)
    patches_a_square = size // patch_hw[0] * (size // patch_hw[1])
    hidden = -(-squares * round(100 * ratio) // 100) * patches_a_square
    assert found.sum(dim=1).tolist() == [hidden] * 20


@pytest.mark.parametrize(("patch_hw", "hw"), [((4, 4), (32, 32)), ((4, 8), (16, 24)), ((8, 2), (24, 16))])
def test_hidden_patches_form_whole_squares_of_the_mask_size(patch_hw, hw):
    size = 8
    found = masks(patch_hw=patch_hw, hw=hw, size=size).unflatten(1, (hw[0] // patch_hw[0], hw[1] // patch_hw[1]))
    pixels = found.repeat_interleave(patch_hw[0], 1).repeat_interleave(patch_hw[1], 2)  # (B, H, W)
    squares = pixels.unflatten(2, (-1, size)).unflatten(1, (-1, size)).float().mean(dim=(2, 4))  # (B, rows, columns)
    assert set(squares.unique().tolist()) == {0.0, 1.0}


def test_each_square_is_hidden_about_as_often_as_the_ratio_says():
    share = masks(3000, ratio=0.5, size=8).float().mean(dim=0)
    assert (share - 0.5).abs().max() < 5 * math.sqrt(0.25 / 3000)  # five standard deviations


def test_a_mask_depends_on_seed_and_position_only():
    whole = masks(50)
    torch.manual_seed(3)
    assert torch.equal(masks(20, start=30), whole[30:])
    assert not torch.equal(masks(50, seed=1), whole)
    assert len({tuple(row.tolist()) for row in whole}) > 40


@pytest.mark.parametrize(
    ("size", "patch_hw", "hw"),
    [(8, (4, 4), (30, 32)), (8, (4, 4), (32, 36)), (8, (3, 4), (32, 32)), (8, (4, 16), (32, 32))],
)
def test_sizes_that_do_not_divide_are_refused_with_all_numbers(size, patch_hw, hw):
    expected = f"mask_patch_size is {size}; expected a divisor of the image size {hw[0]}x{hw[1]} and a multiple of the "
    with pytest.raises(ValueError, match=f"{expected}patch size {patch_hw[0]}x{patch_hw[1]}"):
        masks(2, size=size, patch_hw=patch_hw, hw=hw)
