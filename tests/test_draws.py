"""Draws by address: reproducible, uniform, and unrelated between purposes, rows, places and neighbouring keys."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from vit_hf.data.draws import Uniforms, integers, normals, sample_keys, uniforms

MASK = 2**64 - 1
COUNT = 40_000
RECORDED_KEYS = [377866937942489978, 6963071100663170411, 2122784384996989783]
RECORDED_UNIFORMS = [0.8198000960151787, 0.6055907849071758]


def splitmix(state: int) -> int:
    """Return the number after a state of SplitMix64, in Python's integers (doi 10.1145/2660193.2660195, figure 17)."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def start(*address) -> int:
    return int.from_bytes(hashlib.blake2b(repr(address).encode(), digest_size=8).digest(), "little")


def keys_of(count: int, seed: int = 0) -> np.ndarray:
    return sample_keys(seed, np.zeros(count, int), np.arange(count), np.zeros(count, int))


# ---------------------------------------------------------------------------------------------- keys
def test_keys_are_a_chain_of_splitmix_over_the_address():
    epochs, rows, copies = [0, 3, 299], [0, 49_999, 1_281_166], [0, 2, 1]
    found = sample_keys(7, epochs, rows, copies)
    assert found.dtype == np.int64
    for key, address in zip(found.tolist(), zip(epochs, rows, copies, strict=True), strict=True):
        bits = start("augment", 7)
        for number in address:
            bits = splitmix((bits + number) & MASK)
        assert key == bits >> 1


def test_keys_stay_as_they_were_recorded():
    """Another number here means that a run that goes on from a checkpoint sees other pictures than it would have."""
    assert sample_keys(0, [0, 0, 1], [0, 1, 0], [0, 0, 0]).tolist() == RECORDED_KEYS
    assert uniforms(RECORDED_KEYS[:1], "flip", 2)[0].tolist() == RECORDED_UNIFORMS


def test_keys_of_different_addresses_differ():
    epochs, rows, copies = (numbers.ravel() for numbers in np.meshgrid(range(20), range(2000), range(3)))
    found = sample_keys(0, epochs, rows, copies)
    assert len(np.unique(found)) == 120_000
    assert found.min() >= 0
    assert not np.isin(sample_keys(1, epochs, rows, copies), found).any()
    # Moving a number from one place of the address to another gives another key.
    assert len({*sample_keys(0, [5, 3, 3], [3, 5, 3], [3, 3, 5]).tolist()}) == 3


def test_a_key_does_not_depend_on_the_rest_of_the_batch():
    rows = np.arange(100)
    together = sample_keys(3, rows % 7, rows, rows % 2)
    alone = [sample_keys(3, [row % 7], [row], [row % 2])[0] for row in rows.tolist()]
    assert together.tolist() == alone


def test_a_bit_of_the_address_changes_about_half_of_the_key():
    rows = np.arange(2000) << 17
    base = sample_keys(0, 0 * rows, rows, 0 * rows)
    for bit in range(17):
        changed = sample_keys(0, 0 * rows, rows ^ (1 << bit), 0 * rows) ^ base
        flips = changed[:, None] >> np.arange(63) & 1
        assert np.abs(flips.mean(axis=0) - 0.5).max() < 5 * 0.5 / len(rows) ** 0.5


# ---------------------------------------------------------------------------------------------- numbers
def test_uniforms_are_those_of_splitmix_from_a_start_of_the_key_and_the_purpose():
    key = 123_456_789_012_345_678
    state = splitmix((key ^ start("crop")) - 0x9E3779B97F4A7C15 & MASK)  # the hash alone, without a step
    found = uniforms([key], "crop", 6)[0]
    for place in range(6):
        assert found[place] == (splitmix((state + place * 0x9E3779B97F4A7C15) & MASK) >> 11) / 2**53


def test_numbers_drawn_one_by_one_are_the_same():
    keys = keys_of(200).tolist()
    found = [[Uniforms(key, "crop")[place] for place in range(22)] for key in keys]
    assert found == uniforms(keys, "crop", 22).tolist()


def test_more_numbers_leave_the_first_as_they_are():
    assert np.array_equal(uniforms(keys_of(50), "crop", 9)[:, :4], uniforms(keys_of(50), "crop", 4))


@pytest.mark.parametrize("place", [0, 1, 21])
def test_numbers_of_consecutive_rows_are_uniform(place):
    found = uniforms(keys_of(COUNT), "crop", 22)[:, place]
    assert found.min() >= 0
    assert found.max() < 1
    assert stats.kstest(found, "uniform").pvalue > 0.001
    assert stats.chisquare(np.bincount((found * 256).astype(int), minlength=256)).pvalue > 0.001
    low = (found * 2**53).astype(np.int64) & 255  # the lowest bits too
    assert stats.chisquare(np.bincount(low, minlength=256)).pvalue > 0.001


def test_raw_neighbouring_keys_give_unrelated_numbers():
    found = uniforms(np.arange(COUNT), "crop", 3)
    assert stats.kstest(found[:, 0], "uniform").pvalue > 0.001
    independent(found[:-1, 0], found[1:, 0])
    independent(found[:, 0], found[:, 1])


def independent(first: np.ndarray, second: np.ndarray) -> None:
    """Check that pairs fill 16 x 16 cells evenly."""
    cells = (first * 16).astype(int) * 16 + (second * 16).astype(int)
    assert stats.chisquare(np.bincount(cells, minlength=256)).pvalue > 0.001


def test_purposes_places_epochs_copies_and_seeds_are_independent():
    keys, rows = keys_of(COUNT), np.arange(COUNT)
    base = uniforms(keys, "crop", 3)
    independent(base[:, 0], uniforms(keys, "flip", 1)[:, 0])
    independent(base[:, 0], base[:, 1])
    independent(base[:, 1], base[:, 2])
    independent(base[:-1, 0], base[1:, 0])
    independent(base[:, 0], uniforms(sample_keys(0, 0 * rows + 1, rows, 0 * rows), "crop", 1)[:, 0])
    independent(base[:, 0], uniforms(sample_keys(0, 0 * rows, rows, 0 * rows + 1), "crop", 1)[:, 0])
    independent(base[:, 0], uniforms(keys_of(COUNT, seed=1), "crop", 1)[:, 0])


def test_normals_are_normal_and_finite():
    found = normals(keys_of(COUNT), "strength", 2)
    assert np.isfinite(found).all()
    assert stats.kstest(found[:, 0], "norm").pvalue > 0.001
    assert abs(np.corrcoef(found.T)[0, 1]) < 5 / COUNT**0.5


def test_integers_are_even_and_stay_below_their_count():
    found = integers(uniforms(keys_of(COUNT), "place", 1)[:, 0], 7)
    assert stats.chisquare(np.bincount(found, minlength=7)).pvalue > 0.001
    assert integers(np.array([0.0, 1 - 2.0**-53]), 7).tolist() == [0, 6]
    assert integers(np.array([1 - 2.0**-53] * 2), np.array([1, 2**40])).tolist() == [0, 2**40 - 1]
