"""Random numbers with an address: every one is a function of a key, a purpose and a place, and of nothing else.

A generator with a state gives numbers that depend on all that was drawn before. Here a number is a hash of where it
stands (a counter-based generator, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so a sample
gets the same numbers in any batch, worker, process and run. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood 2014, doi 10.1145/2660193.2660195), its numbers those of SplitMix64 itself: the hash of a start plus a multiple of
the golden ratio.

Shapes: B samples.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ALL = 2**64 - 1
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a hash of each number, any shape: one bit more or less in changes about half of the bits that come out."""
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))


@lru_cache(maxsize=1024)
def _start(*address: int | str) -> np.uint64:
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def sample_keys(seed: int, epochs: ArrayLike, rows: ArrayLike, copies: ArrayLike) -> NDArray[np.int64]:
    """Return the key of each sample, (B,) int64 of 63 bits: equal addresses have equal keys, others unrelated ones.

    Args:
        seed: of the run, any integer.
        epochs, rows, copies: (B,) integers from 0: which pass over the split, which row of it, which copy of the row in
            the step.
    """
    bits = np.broadcast_to(_start("augment", seed), np.shape(rows))
    for numbers in (epochs, rows, copies):
        bits = mixed(bits + GOLDEN + np.asarray(numbers, np.int64).astype(np.uint64))
    return (bits >> np.uint64(1)).astype(np.int64)


def uniforms(keys: ArrayLike, purpose: str, count: int) -> NDArray:
    """Return numbers (B, count) float64 in [0, 1), multiples of 2**-53.

    Args:
        keys: (B,) int64.
        purpose: what they are for; two purposes get unrelated numbers.
        count: numbers a sample; the first ones do not depend on how many follow.
    """
    starts = mixed(np.asarray(keys, np.int64).astype(np.uint64) ^ _start(purpose))
    places = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return (mixed(starts[:, None] + places) >> np.uint64(11)) * 2.0**-53  # (B, count)


class Uniforms:
    """The numbers of one sample, one by one: those of `uniforms`, a tenth of its time for a few of them.

    Args:
        key: of the sample.
        purpose: what they are for.
    """

    def __init__(self, key: int, purpose: str):
        self._start = _mixed_int(key ^ int(_start(purpose)))

    def __getitem__(self, place: int) -> float:
        """Return the number in a column of `uniforms`."""
        return (_mixed_int(self._start + (place + 1) * int(GOLDEN) & _ALL) >> 11) * 2.0**-53


def _mixed_int(bits: int) -> int:
    """Do as `mixed`, with one number of 64 bits."""
    bits = (bits ^ bits >> 30) * int(_FIRST) & _ALL
    bits = (bits ^ bits >> 27) * int(_SECOND) & _ALL
    return bits ^ bits >> 31


def normals(keys: ArrayLike, purpose: str, count: int) -> NDArray:
    """Return standard normal numbers (B, count) float64, |z| < 8.3; arguments as of `uniforms`."""
    return ndtri(uniforms(keys, purpose, count) + 2.0**-54)  # never 0 nor 1


def integers(numbers: NDArray, count: int | NDArray) -> NDArray[np.int64]:
    """Turn uniform numbers into integers 0 to count - 1, each as likely (to 2**-53 a count)."""
    return np.minimum(numbers * count, count - 1).astype(np.int64)
