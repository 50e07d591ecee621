"""Rectangles have the distribution of torchvision's RandomErasing; the noise is normal and its own at every pixel."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from vit_hf.data import draws
from vit_hf.data.draws import sample_keys
from vit_hf.data.erasing import _mixed_tensor, erase, erasing_boxes


def keys_of(count: int) -> np.ndarray:
    rows = np.arange(count)
    return sample_keys(0, 0 * rows, rows, 0 * rows)


@pytest.mark.parametrize("size", [(224, 224), (32, 32), (20, 60)])
def test_rectangles_have_the_distribution_of_torchvision(size):
    reference = v2.RandomErasing(1.0, value=0)
    torch.manual_seed(0)
    params = [reference.make_params([torch.empty(3, *size)]) for _ in range(2500)]
    theirs = np.array([[found[name] for name in "ijhw"] for found in params if found["v"] is not None])
    ours = erasing_boxes(size, keys_of(25_000), 1.0)
    missed = (ours[:, 2] == 0).mean()
    assert abs(missed - (1 - len(theirs) / 2500)) < 5 * max(missed, 1e-3) ** 0.5 / 2500**0.5
    ours = ours[ours[:, 2] > 0]
    for measure in (
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: np.log(boxes[:, 3] / boxes[:, 2]),
        lambda boxes: boxes[:, 3],
        lambda boxes: boxes[:, 0] / (size[0] - boxes[:, 2]),
        lambda boxes: boxes[:, 1] / (size[1] - boxes[:, 3]),
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001


def test_rectangles_come_with_their_probability():
    found = erasing_boxes((32, 32), keys_of(20_000), 0.25)[:, 2] > 0
    assert abs(found.mean() - 0.25) < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    assert not erasing_boxes((32, 32), keys_of(100), 0.0).any()


def test_exactly_the_rectangles_change():
    keys = keys_of(200)
    boxes = erasing_boxes((20, 30), keys, 0.5)
    found = erase(torch.full((200, 3, 20, 30), 9.0), boxes, keys)
    for picture, (top, left, tall, wide) in zip(found, boxes.tolist(), strict=True):
        inside = torch.zeros(20, 30, dtype=torch.bool)
        inside[top : top + tall, left : left + wide] = True
        assert torch.equal(picture != 9, inside.expand(3, -1, -1))


def erased(count: int, size: tuple[int, int]) -> torch.Tensor:
    boxes = np.tile([0, 0, *size], (count, 1))
    return erase(torch.zeros(count, 3, *size), boxes, keys_of(count))


def test_the_noise_is_normal_and_independent_between_neighbours():
    noise = erased(20, (32, 32)).double()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.001
    assert 3.5 < noise.abs().max() < 4.4
    assert noise.var().item() == pytest.approx(1, abs=5 * (2 / noise.numel()) ** 0.5)
    for first, second in (
        (noise[..., 1:], noise[..., :-1]),
        (noise[..., 1:, :], noise[..., :-1, :]),
        (noise[:, 0], noise[:, 1]),
        (noise[:, 1], noise[:, 2]),
        (noise[:, 0], noise[:, 2]),
        (noise[1:], noise[:-1]),
    ):
        pairs = torch.stack([first.flatten(), second.flatten()])
        for numbers in (pairs, pairs.abs()):  # the size of a number tells nothing of the next one's either
            assert abs(torch.corrcoef(numbers)[0, 1]) < 5 / pairs.shape[1] ** 0.5


def test_the_noise_is_a_quantile_by_bits_of_splitmix_of_key_and_place():
    """Other noise here means that a run that goes on from a checkpoint sees other pictures than it would have."""
    keys, noise = keys_of(3), erased(3, (4, 5)).flatten(2)
    for key, numbers in zip(keys.tolist(), noise, strict=True):
        start = splitmix_hash(key)
        for place in (0, 7, 19):
            bits = splitmix_hash(start + (place + 1) * 0x9E3779B97F4A7C15)
            for channel, shift in enumerate((48, 32, 16)):
                expected = NormalDist().inv_cdf(((bits >> shift & 0xFFFF) + 0.5) / 2**16)
                # the table is stretched to variance 1
                assert numbers[channel, place].item() == pytest.approx(expected, rel=1e-4)


def splitmix_hash(z: int) -> int:
    """Return the hash of SplitMix64 (doi 10.1145/2660193.2660195) in Python's integers."""
    z &= 2**64 - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return z ^ (z >> 31)


def test_the_noise_of_a_pixel_does_not_depend_on_the_rectangle_nor_on_the_batch():
    keys, whole = keys_of(20), erased(20, (16, 16))
    boxes = erasing_boxes((16, 16), keys, 1.0)
    part = erase(torch.zeros(20, 3, 16, 16), boxes, keys)
    assert torch.equal(part[part != 0], whole[part != 0])
    alone = erase(torch.zeros(1, 3, 16, 16), boxes[7:8], keys[7:8])
    assert torch.equal(alone[0], part[7])


@pytest.mark.parametrize(("count", "channels", "size"), [(40, 3, (16, 20)), (9, 3, (150, 170)), (5, 4, (40, 30))])
def test_where_places_cannot_be_counted_the_noise_is_the_same(monkeypatch, count, channels, size):
    """Other devices get it by way of a mask. A stand-in for the type of the device takes that way on a CPU."""
    keys = keys_of(count)
    boxes = erasing_boxes(size, keys, 0.7)
    expected = erase(torch.zeros(count, channels, *size), boxes, keys)
    monkeypatch.setattr("vit_hf.data.erasing._erase_places", None)
    monkeypatch.setattr("vit_hf.data.erasing._COUNTS_PLACES", ())
    assert torch.equal(erase(torch.zeros(count, channels, *size), boxes, keys), expected)


def test_the_hash_on_tensors_is_that_of_the_draws():
    bits = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 1000)
    expected = draws.mixed(bits.astype(np.uint64)).astype(np.int64)
    assert np.array_equal(_mixed_tensor(torch.from_numpy(bits)).numpy(), expected)
