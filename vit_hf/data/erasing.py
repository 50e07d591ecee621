"""Random erasing (arXiv 1708.04896) of a batch: a rectangle of a picture becomes normal noise.

Rectangles are those of torchvision's `RandomErasing` and of the paper: area uniform in 2 to 33% of the picture,
logarithm of the aspect ratio uniform in 0.3 to 3.3, up to ten tries, and none if none is smaller than the picture.
The noise of a pixel is a hash of the picture's key and of the pixel's place, of which each channel has 16 bits.

Shapes: B pictures, C channels (4 at most), H x W pixels.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from .cropping import TRIES, draw_sides, first_that_fits
from .draws import GOLDEN, integers, mixed, uniforms
from .host import to_device

AREA = (0.02, 0.33)
ASPECT = (0.3, 3.3)
_CHUNK = 2**13  # pixels whose noise a CPU draws at a time, to stay in its cache
_COUNTS_PLACES = ("cpu",)  # devices that noise is drawn for the rectangles alone on


def erasing_boxes(size: tuple[int, int], keys: ArrayLike, probability: float) -> NDArray[np.int64]:
    """Draw the rectangle of each picture, (B, 4) int64: top, left, height, width; zeros for none.

    Args:
        size: (H, W).
        keys: (B,) int64.
        probability: with which a picture has one.
    """
    height, width = size
    numbers = uniforms(keys, "erasing", 2 * TRIES + 3)
    sides = draw_sides(size, numbers, AREA, ASPECT)[::-1]  # torchvision's aspect here is height over width
    tall_fits, wide_fits = sides < np.array(size)[:, None, None]
    fits = tall_fits & wide_fits
    tall, wide = first_that_fits(sides, fits)
    erased = fits.any(axis=1) & (numbers[:, -3] < probability)
    tall, wide = np.where(erased, tall, 0), np.where(erased, wide, 0)
    top, left = integers(numbers[:, -2], height - tall + 1), integers(numbers[:, -1], width - wide + 1)
    return np.where(erased[:, None], np.stack([top, left, tall, wide], axis=1), 0)


def erase(pixels: torch.Tensor, boxes: NDArray[np.int64], keys: ArrayLike) -> torch.Tensor:
    """Fill the rectangles with noise, in place.

    Args:
        pixels: (B, C, H, W) float32, normalised.
        boxes: (B, 4); see `erasing_boxes`.
        keys: (B,) int64, of the noise.
    """
    rows = np.flatnonzero(boxes[:, 2] * boxes[:, 3])
    if not len(rows):
        return pixels
    starts = np.asarray(keys, np.int64)[rows]
    if pixels.device.type in _COUNTS_PLACES:
        return _erase_places(pixels, rows, boxes[rows], starts)
    device, (channels, height, width) = pixels.device, pixels.shape[1:]
    top, left, tall, wide = to_device(boxes[rows].T.reshape(4, -1, 1, 1, 1), device)
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)  # (erased, 1, H, W)
    counters = torch.arange(height * width, device=device).view(1, height, width)
    noise = _noise(_mixed_tensor(to_device(starts, device)).view(-1, 1, 1), counters, channels).movedim(0, 1)
    places = to_device(rows, device)
    return pixels.index_copy_(0, places, torch.where(inside, noise, pixels.index_select(0, places)))


def _erase_places(
    pixels: torch.Tensor, rows: NDArray[np.int64], boxes: NDArray[np.int64], starts: NDArray[np.int64]
) -> torch.Tensor:
    """Do as `erase`, and draw no more noise than there is room for; by numpy, whose hash takes half of the time."""
    channels, _, width = pixels.shape[1:]
    counts, shared, quantiles = boxes[:, 2] * boxes[:, 3], pixels.numpy(), _quantiles(pixels.device).numpy()
    hashed = mixed(starts.astype(np.uint64))
    groups = (counts.cumsum() - counts) // _CHUNK
    for some in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(groups)) + 1):  # boxes of a group
        top, left, tall, wide = boxes[some].T
        of_line = np.repeat(np.arange(len(some)), tall)  # (lines of all boxes,): the box that it is in
        y = np.arange(len(of_line)) + np.repeat(top - (tall.cumsum() - tall), tall)
        lengths = wide[of_line]
        first = y * width + left[of_line] - (lengths.cumsum() - lengths)
        counters = np.repeat(first, lengths) + np.arange(counts[some].sum())  # (pixels,)
        bits = mixed(np.repeat(hashed[some], counts[some]) + (counters + 1).astype(np.uint64) * GOLDEN)
        levels = np.stack([(bits >> np.uint64(by)).astype(np.uint16) for by in _shifts(channels)])  # (C, pixels)
        parts = np.split(quantiles.take(levels), counts[some].cumsum()[:-1], axis=1)  # each (C, pixels)
        for row, (top, left, tall, wide), noise in zip(rows[some], boxes[some].tolist(), parts, strict=True):
            shared[row, :, top : top + tall, left : left + wide] = noise.reshape(channels, tall, wide)
    return pixels


def _shifts(channels: int) -> range:
    """Return by how many bits a channel's 16 are moved down."""
    return range(48, 48 - 16 * channels, -16)


def _noise(starts: torch.Tensor, counters: torch.Tensor, channels: int) -> torch.Tensor:
    """Return a normal number, float32, for each channel, start and counter: a quantile by 16 bits of SplitMix64.

    Those are the same on every device, which a logarithm and a cosine (Box and Muller) are not.
    """
    bits = _mixed_tensor(starts + (counters + 1) * _GOLDEN)
    levels = torch.stack([(bits >> by) & (_LEVELS - 1) for by in _shifts(channels)])
    return _quantiles(bits.device).index_select(0, levels.view(-1)).view_as(levels)


@lru_cache(maxsize=4)
def _quantiles(device: torch.device) -> torch.Tensor:
    """Return the normal quantiles of the middles of 65,536 equal shares, float32, within 4.33; their variance is 1."""
    found = ndtri((np.arange(_LEVELS) + 0.5) / _LEVELS)
    return torch.from_numpy((found / found.std()).astype(np.float32)).to(device)


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


_LEVELS = 1 << 16
_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mixed_tensor(bits: torch.Tensor) -> torch.Tensor:
    """Return the hash of `vit_hf.data.draws`, on int64 whose products wrap and whose shifts keep the sign."""
    bits = (bits ^ ((bits >> 30) & ((1 << 34) - 1))) * _FIRST
    bits = (bits ^ ((bits >> 27) & ((1 << 37) - 1))) * _SECOND
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))
