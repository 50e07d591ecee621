"""Boxes cut out of pictures at random and resized, a batch at a time, each picture by its own box.

Boxes are those of torchvision's `RandomResizedCrop` (Szegedy et al. 2015). Resampling follows Pillow (`Resample.c`) and
torch's kernels of 8-bit pictures: a filter whose support grows where the picture shrinks, columns first, rounded to 8
bits, then rows, rounded again. It is a product with one matrix of weights a side and picture, which a batch does at
once. Weights are multiples of a power of two, as torch's are, so that every product and sum is an integer that
float32 holds: the result is exact, and the same alone, in any batch and on any device.

Shapes: B pictures, C channels, h x w pixels of the whole picture, H x W of the result, T taps of a filter.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .draws import integers, uniforms
from .host import exact_products, to_device

TRIES = 10
ASPECT = (3 / 4, 4 / 3)
NEAREST, LANCZOS, BILINEAR, BICUBIC = 0, 1, 2, 3  # Pillow's codes, which image processors use
_SUPPORT = {LANCZOS: 3.0, BILINEAR: 1.0, BICUBIC: 2.0}


def inception_boxes(size: tuple[int, int], keys: ArrayLike, area: tuple[float, float]) -> NDArray[np.int64]:
    """Draw a box for each key: area and logarithm of the aspect ratio uniform, then the place.

    Up to ten tries; where none fits, the largest central box whose aspect ratio is within the bounds.

    Args:
        size: (height, width) of the pictures.
        keys: (B,) int64.
        area: smallest and largest share of the picture.

    Returns:
        (B, 4) int64: top, left, height, width, within the picture.
    """
    height, width = size
    numbers = uniforms(keys, "crop", 2 * TRIES + 2)
    areas = height * width * (area[0] + (area[1] - area[0]) * numbers[:, :TRIES])  # (B, tries)
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    aspects = np.exp(low + (high - low) * numbers[:, TRIES : 2 * TRIES])
    widths, heights = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.argmax(axis=1)[:, None]
    tall, wide = (np.take_along_axis(sides, first, axis=1)[:, 0].astype(np.int64) for sides in (heights, widths))
    central_height = min(height, round(width / ASPECT[0]))
    central_width = min(width, round(height * ASPECT[1]))
    found = fits.any(axis=1)
    tall, wide = np.where(found, tall, central_height), np.where(found, wide, central_width)
    top, left = integers(numbers[:, -2], height - tall + 1), integers(numbers[:, -1], width - wide + 1)
    top, left = np.where(found, top, (height - tall) // 2), np.where(found, left, (width - wide) // 2)
    return np.stack([top, left, tall, wide], axis=1)


def _filtered(offsets: NDArray[np.float64], resample: int) -> NDArray[np.float64]:
    """Return the value of a filter of Pillow at offsets in pixels."""
    x = np.abs(offsets)
    if resample == BILINEAR:
        return np.maximum(1.0 - x, 0.0)
    if resample == BICUBIC:  # Keys 1981 with a = -0.5
        near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def side_weights(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], *, source: int, target: int, resample: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what each pixel of one side takes from the pixels of the whole picture.

    Args:
        starts, lengths: (B,), the box along this side.
        source, target: pixels of the whole picture and of the result.
        resample: Pillow's code of the filter.

    Returns:
        Whole numbers (B, target, source), float32, and (B,) by what they are to be divided, a power of two.
    """
    scale = (lengths / target)[:, None, None]  # (B, 1, 1)
    centres = (np.arange(target)[:, None] + 0.5) * scale  # (B, target, 1), within the box
    if resample == NEAREST:
        first = np.minimum(np.floor(centres), lengths[:, None, None] - 1).astype(np.int64)
        places, weights = first, np.ones_like(centres)
    else:
        stretch = np.maximum(scale, 1.0)
        support = _SUPPORT[resample] * stretch
        first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
        end = np.minimum((centres + support + 0.5).astype(np.int64), lengths[:, None, None])
        places = first + np.arange(int((end - first).max()))  # (B, target, T)
        weights = np.where(places < end, _filtered((places - centres + 0.5) / stretch, resample), 0.0)
        weights /= weights.sum(axis=2, keepdims=True)
    # As many bits as torch takes (15 with the sign), but no more than float32 can add up: 255 * 2**16 < 2**24.
    bits = np.minimum(14 - np.floor(np.log2(weights.max(axis=(1, 2)) * (1 + 2.0**-16))), _most_bits(resample))
    unit = np.exp2(bits)
    whole = np.floor(np.abs(weights) * unit[:, None, None] + 0.5) * np.sign(weights)
    found = np.zeros((len(starts), target, source), np.float32)
    columns = np.minimum(places + starts[:, None, None], source - 1)  # taps past the end weigh nothing
    rows = np.arange(len(starts) * target)[:, None]
    np.add.at(found.reshape(-1, source), (rows, columns.reshape(len(rows), -1)), whole.reshape(len(rows), -1))
    return found, unit.astype(np.float32)


def _most_bits(resample: int) -> int:
    return 16 if resample in (NEAREST, BILINEAR) else 15  # others have negative weights: absolute sums up to 1.5


def cut_and_resize(
    pixels: torch.Tensor,
    boxes: NDArray[np.int64],
    size: tuple[int, int],
    *,
    resample: int,
    mirrored: NDArray[np.bool_] | None = None,
) -> torch.Tensor:
    """Cut a box out of each picture, resize it and mirror it left and right.

    Args:
        pixels: (B, C, h, w) uint8.
        boxes: (B, 4) top, left, height, width, within the pictures.
        size: (H, W).
        resample: Pillow's code of the filter.
        mirrored: (B,), whether to mirror; none by default.

    Returns:
        (B, C, H, W) uint8, float32 numbers that are whole.
    """
    batch, channels, height, width = pixels.shape
    options = {"resample": resample}
    rows, rows_unit = side_weights(boxes[:, 0], boxes[:, 2], source=height, target=size[0], **options)
    columns, columns_unit = side_weights(boxes[:, 1], boxes[:, 3], source=width, target=size[1], **options)
    if mirrored is not None:
        columns = np.where(mirrored[:, None, None], columns[:, ::-1], columns)
    down, across = to_device(rows, pixels.device), to_device(columns, pixels.device)
    units = [to_device((1 / unit).reshape(-1, 1, 1), pixels.device) for unit in (columns_unit, rows_unit)]
    with exact_products(pixels.device):
        found = pixels.reshape(batch, channels * height, width).float() @ across.transpose(1, 2)  # (B, C*h, W)
        found = _rounded(found, units[0]).reshape(batch, channels, height, size[1])
        found = down[:, None] @ found  # (B, C, H, W)
        found = _rounded(found.flatten(1, 2), units[1])
    return found.reshape(batch, channels, *size)


def _rounded(sums: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Divide whole sums by a power of two, round halves up and keep to 0..255, in place."""
    return sums.mul_(unit).add_(0.5).floor_().clamp_(0, 255)
