"""Find pictures that a data set holds twice, exactly or nearly, as test pictures that were also trained on.

Exact: the decoded RGB pixels and the size are equal, known by a hash. Near: of two pictures scaled to 32 x 32 pixels,
the second also mirrored left to right, both of these hold:

1. The layout is alike: the means over 8 x 8 fields, less each colour's own mean, correlate by more than `LAYOUT`. What
   is brighter, duller or of another tint stays alike.
2. The details are alike: the grey values, each less the mean of its 5 x 5 surroundings and divided by their spread,
   correlate by more than `DETAILS` at some shift of up to 2 pixels. Dividing makes a faint texture count as much as a
   hard edge; without it any two horizons are alike.

The first is one product of matrices, over blocks, so that memory stays small; the second is asked only of pairs that
pass it. Both grow with the square of the number of pictures. The thresholds were set on CIFAR-100, see `DETAILS`.

It finds what was re-encoded, scaled, shifted a little, mirrored or recoloured, not what was cropped or turned by more,
and it cannot tell two copies from two products of one shape. Barz and Denzler (2020, "Do we train on test data?",
arXiv 1902.00423) looked for CIFAR's duplicates with a trained network and by eye.

Shapes: N pictures, P pairs.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import PIL.Image
from scipy.ndimage import uniform_filter

SIDE, FIELDS, SHIFT = 32, 8, 2
LAYOUT, DETAILS = 0.85, 0.7
"""Of 1,000 CIFAR-100 pictures changed and found again: 100% as JPEG of quality 75, 95.7% of quality 30, 100% mirrored,
darker (0.6 times) or with half the contrast, 98.8% brighter (1.4 times), 98.6% with pale colours, 98.1% shifted by
(1, 1) and 78.9% by (2, 0), 100% enlarged, 62% halved; but 43% with a border of 1 pixel of 32 cut off, 0.3% with 2. Of
132 pairs looked at, found among all 60,000 at 0.7 to 0.9, about one in ten shows two things of one make, such as two
cans. Thresholds and figures are of the same pictures."""
_FLAT = 4.0  # levels of 255: a layout with less contrast than this is that of no picture
_NOISE = 8.0  # levels of 255 that are added to the spread, so that noise in flat areas stays small
_BLOCK, _PAIRS_AT_ONCE = 1_024, 2_048
CANDIDATES, FOUND = 200, 1
"""Pairs a picture, of one layout and of one layout and details, beyond which the pictures are of one kind, such as
digits: alike without being copies."""


class NearPair(NamedTuple):
    """Two pictures that are nearly the same."""

    first: int
    second: int
    similarity: float
    """Correlation of the details, from `DETAILS` to 1."""
    mirrored: bool
    """Whether the second is the first, mirrored."""


class TooManyAlikeError(ValueError):
    """The pictures are too much alike to look for near-duplicates by their layout."""


def digest(picture: PIL.Image.Image) -> bytes:
    """Return a hash of size and pixels of an RGB picture, 16 bytes."""
    size = f"{picture.width}x{picture.height}:".encode()
    return hashlib.blake2b(size + picture.tobytes(), digest_size=16).digest()


def shrink(picture: PIL.Image.Image) -> np.ndarray:
    """Return an RGB picture scaled to 32 x 32, whatever its shape: (32, 32, 3) uint8."""
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(picture)


def find_exact(digests: Iterable[bytes]) -> list[list[int]]:
    """Return the groups of two and more equal pictures, each in order, by their places."""
    groups: dict[bytes, list[int]] = {}
    for place, key in enumerate(digests):
        groups.setdefault(key, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def find_near(pictures: np.ndarray, on_block: Callable[[int, int], None] = lambda done, total: None) -> list[NearPair]:
    """Return the pairs of near-duplicates, the most similar first; equal pictures are pairs, too.

    Args:
        pictures: (N, 32, 32, 3), uint8, as of `shrink`.
        on_block: called with the pictures done and N.

    Raises:
        TooManyAlikeError: more than 200 pairs a picture have one layout, or more than 1 is found.
    """
    even, odd, usable = _layouts(pictures)
    details = _details(pictures)
    found: list[NearPair] = []
    candidates, total = 0, len(pictures)
    for start in range(0, total, _BLOCK):
        for other in range(start, total, 4 * _BLOCK):
            pairs, mirrored = _same_layout(even, odd, start, other)
            keep = usable[pairs].all(axis=1)
            pairs, mirrored = pairs[keep], mirrored[keep]
            candidates += len(pairs)
            found += _same_details(details, pairs, mirrored)
        if candidates > CANDIDATES * total or len(found) > FOUND * total:
            raise TooManyAlikeError(
                f"{candidates:,} pairs have one layout and {len(found):,} the same details, too, among the first "
                f"{min(start + _BLOCK, total):,} of {total:,} pictures: pictures of one kind, such as digits, are "
                "alike without being copies, and this search cannot tell"
            )
        on_block(min(start + _BLOCK, total), total)
    return sorted(found, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _layouts(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the parts of each layout that mirroring keeps and that it negates, (N, 96) each, and whether it has any.

    With layouts e + o, of length 1, the correlation of two is e.e' + o.o', and that with the mirrored one e.e' - o.o'.
    """
    n, step = len(pictures), SIDE // FIELDS
    fields = pictures.reshape(n, FIELDS, step, FIELDS, step, 3).mean(axis=(2, 4), dtype=np.float32)  # (N, 8, 8, 3)
    fields -= fields.mean(axis=(1, 2), keepdims=True)
    length = np.sqrt(np.square(fields).sum(axis=(1, 2, 3)))  # (N,)
    fields /= np.maximum(length, 1e-6)[:, None, None, None]
    left, right = fields[:, :, : FIELDS // 2], fields[:, :, : FIELDS // 2 - 1 : -1]  # (N, 8, 4, 3)
    even, odd = ((left + sign * right).reshape(n, -1) / np.float32(2**0.5) for sign in (1, -1))
    return even, odd, length / np.sqrt(fields[0].size) >= _FLAT


def _details(pictures: np.ndarray) -> np.ndarray:
    """Return the local contrast of the grey values, (N, 32, 32) float32, of mean 0 and length 1."""
    details = np.empty(pictures.shape[:3], np.float32)
    for start in range(0, len(pictures), _PAIRS_AT_ONCE):
        grey = pictures[start : start + _PAIRS_AT_ONCE].mean(axis=-1, dtype=np.float32)
        mean = uniform_filter(grey, size=(0, 5, 5), mode="nearest")
        spread = np.sqrt(np.maximum(uniform_filter(grey * grey, size=(0, 5, 5), mode="nearest") - mean * mean, 0))
        local = (grey - mean) / (spread + _NOISE)
        local -= local.mean(axis=(1, 2), keepdims=True)
        length = np.sqrt(np.square(local).sum(axis=(1, 2), keepdims=True))
        details[start : start + _PAIRS_AT_ONCE] = local / np.maximum(length, 1e-6)
    return details


def _same_layout(even: np.ndarray, odd: np.ndarray, start: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    """Compare one block of pictures with a wider one; return pairs (P, 2), the first below the second, and mirrored."""
    rows, columns = slice(start, start + _BLOCK), slice(other, other + 4 * _BLOCK)
    kept, turned = even[rows] @ even[columns].T, odd[rows] @ odd[columns].T
    first, second = np.nonzero(kept + np.abs(turned) > LAYOUT)
    mirrored = turned[first, second] < 0
    pairs = np.stack([first + start, second + other], axis=1)
    below = pairs[:, 0] < pairs[:, 1]
    return pairs[below], mirrored[below]


def _same_details(details: np.ndarray, pairs: np.ndarray, mirrored: np.ndarray) -> list[NearPair]:
    found = []
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        some, turn = pairs[start : start + _PAIRS_AT_ONCE], mirrored[start : start + _PAIRS_AT_ONCE]
        first, second = details[some[:, 0]], details[some[:, 1]]  # (P, 32, 32)
        second[turn] = second[turn][:, :, ::-1]
        best = _best_correlation(first, second)
        for place in np.flatnonzero(best > DETAILS):
            here, there = some[place].tolist()
            found.append(NearPair(here, there, float(min(best[place], 1)), bool(turn[place])))
    return found


def _best_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the largest correlation of (P, 32, 32) pairs over shifts of up to 2 pixels, (P,)."""
    best = np.full(len(first), -1, np.float32)
    for down in range(-SHIFT, SHIFT + 1):
        for right in range(-SHIFT, SHIFT + 1):
            here = first[:, max(down, 0) : SIDE + min(down, 0), max(right, 0) : SIDE + min(right, 0)]
            there = second[:, max(-down, 0) : SIDE + min(-down, 0), max(-right, 0) : SIDE + min(-right, 0)]
            np.maximum(best, np.einsum("phw,phw->p", here, there), out=best)
    return best


__all__ = ["NearPair", "TooManyAlikeError", "digest", "find_exact", "find_near", "shrink"]
