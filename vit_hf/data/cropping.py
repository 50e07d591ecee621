"""Boxes cut out of pictures at random and resized, a batch at a time, each picture by its own box.

Boxes are those of torchvision's `RandomResizedCrop` (Szegedy et al. 2015). Resampling follows Pillow (`Resample.c`) and
torch's kernels of 8-bit pictures: a filter whose support grows where the picture shrinks, columns first, rounded to 8
bits, then rows, rounded again. It is a product with one matrix of weights a side and picture, which a batch does at
once. Weights are multiples of a power of two, as torch's are, so that every product and sum is an integer that
float32 holds: the result is exact, and the same alone, in any batch and on any device.

Shapes: B pictures, C channels, h x w pixels of the whole picture, H x W of the result, T taps of a filter.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from .draws import Uniforms, integers, uniforms
from .host import exact_products, to_bytes, to_device

TRIES = 10
ASPECT = (3 / 4, 4 / 3)
NEAREST, LANCZOS, BILINEAR, BICUBIC = 0, 1, 2, 3  # Pillow's codes, which image processors use
INTERPOLATION = {
    NEAREST: InterpolationMode.NEAREST_EXACT,
    BILINEAR: InterpolationMode.BILINEAR,
    BICUBIC: InterpolationMode.BICUBIC,
    LANCZOS: InterpolationMode.LANCZOS,  # not for tensors in torchvision 0.26
}
_SUPPORT = {LANCZOS: 3.0, BILINEAR: 1.0, BICUBIC: 2.0}
_MOST_BYTES = 2**26  # of a table of the weights of all boxes
_LARGE = 64 * 64  # pixels of a picture from which on a CPU does better without full matrices


def draw_sides(
    size: tuple[int, int], numbers: NDArray[np.float64], area: tuple[float, float], aspect: tuple[float, float]
) -> NDArray[np.float64]:
    """Draw rectangles, `TRIES` for each picture: area and logarithm of the aspect ratio uniform.

    Args:
        size: (height, width) of the pictures.
        numbers: (B, at least 2 * TRIES), uniform.
        area: smallest and largest share of the picture.
        aspect: smallest and largest width over height.

    Returns:
        (2, B, TRIES), whole: heights and widths, which may be larger than the picture.
    """
    areas = size[0] * size[1] * (area[0] + (area[1] - area[0]) * numbers[:, :TRIES])  # (B, tries)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    aspects = np.exp(low + (high - low) * numbers[:, TRIES : 2 * TRIES])
    return np.rint(np.stack([np.sqrt(areas / aspects), np.sqrt(areas * aspects)]))


def first_that_fits(sides: NDArray[np.float64], fits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return heights and widths (2, B) of the first try that `fits` (B, tries); of the first one where none does."""
    first = np.broadcast_to(fits.argmax(axis=1)[:, None], (2, len(fits), 1))
    return np.take_along_axis(sides, first, axis=2)[..., 0].astype(np.int64)


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
    sides = draw_sides(size, numbers, area, ASPECT)
    tall_fits, wide_fits = (sides > 0) & (sides <= np.array(size)[:, None, None])
    fits = tall_fits & wide_fits
    tall, wide = first_that_fits(sides, fits)
    central_height = min(height, round(width / ASPECT[0]))
    central_width = min(width, round(height * ASPECT[1]))
    found = fits.any(axis=1)
    tall, wide = np.where(found, tall, central_height), np.where(found, wide, central_width)
    top, left = integers(numbers[:, -2], height - tall + 1), integers(numbers[:, -1], width - wide + 1)
    top, left = np.where(found, top, (height - tall) // 2), np.where(found, left, (width - wide) // 2)
    return np.stack([top, left, tall, wide], axis=1)


def inception_box(size: tuple[int, int], key: int, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """Draw the box of one key, the very one of `inception_boxes`, in a tenth of the time: the first try mostly fits."""
    height, width = size
    numbers, (low, high) = Uniforms(key, "crop"), map(math.log, ASPECT)
    for number in range(TRIES):
        pixels = height * width * (area[0] + (area[1] - area[0]) * numbers[number])
        aspect = np.exp(low + (high - low) * numbers[TRIES + number])
        tall, wide = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            rooms = enumerate((height - tall + 1, width - wide + 1), start=2 * TRIES)
            top, left = (min(int(numbers[place] * room), room - 1) for place, room in rooms)
            return top, left, tall, wide
    top, left, tall, wide = inception_boxes(size, [key], area)[0].tolist()
    return top, left, tall, wide


def _filtered(offsets: NDArray[np.float64], resample: int) -> NDArray[np.float64]:
    """Return the value of a filter of Pillow at offsets in pixels."""
    x = np.abs(offsets)
    if resample == BILINEAR:
        return np.maximum(1.0 - x, 0.0)
    if resample == BICUBIC:  # Keys 1981 with a = -0.5
        near, far = (1.5 * x - 2.5) * x * x + 1.0, ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        return np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _taps(
    starts: NDArray[np.int64], lengths: NDArray[np.int64], *, source: int, target: int, resample: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return what each pixel of one side takes from the pixels of the whole picture.

    Args:
        starts, lengths: (B,), the box along this side.
        source, target: pixels of the whole picture and of the result.
        resample: Pillow's code of the filter.

    Returns:
        Places (B, target, T), different ones and all in the picture, and weights (B, target, T), float32.
    """
    scale, lengths = (lengths / target)[:, None, None], lengths[:, None, None]  # (B, 1, 1)
    if resample == NEAREST:  # rounded to float32 where torch does: it decides in the middle between two pixels
        middles = ((np.arange(target)[:, None] + 0.5) * scale.astype(np.float32)).astype(np.float32)
        places = np.minimum(np.floor(middles), lengths - 1).astype(np.int64) + starts[:, None, None]
        return places, np.ones(places.shape, np.float32)
    centres = (np.arange(target)[:, None] + 0.5) * scale  # (B, target, 1), within the box
    stretch = np.maximum(scale, 1.0)
    support = _SUPPORT[resample] * stretch
    first = np.maximum((centres - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centres + support + 0.5).astype(np.int64), lengths)
    count = int((end - first).max())
    places = np.minimum(first + starts[:, None, None], source - count) + np.arange(count)
    within = places - starts[:, None, None]
    weights = _filtered((within - centres + 0.5) / stretch, resample) * ((within >= first) & (within < end))
    weights /= weights.sum(axis=2, keepdims=True)
    # As many bits as torch takes (15 with the sign), but no more than float32 can add up: 255 * 2**16 < 2**24. The
    # absolute values of a filter with negative parts add up to less than 1.6. So torch has more bits, and the result
    # can be a level off, where a picture shrinks more than fourfold, or 1.8-fold with such a filter.
    most = 16 if resample == BILINEAR else 15
    bits = np.minimum(14 - np.floor(np.log2(weights.max(axis=(1, 2), keepdims=True) * (1 + 2.0**-16))), most)
    unit = np.exp2(bits)
    return places, (np.floor(np.abs(weights) * unit + 0.5) / unit * np.sign(weights)).astype(np.float32)


def _matrices(
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    source: int,
    target: int,
    resample: int,
    device: torch.device,
    mirrored: NDArray[np.bool_] | None = None,
) -> torch.Tensor:
    """Return the weights of `_taps` among all pixels of a side, (B, target, source) float32 on the device."""
    mirrored = np.zeros(len(starts), bool) if mirrored is None else mirrored
    if source * (source + 1) * target * source * 4 <= _MOST_BYTES:
        table = _all_matrices(source, target, resample, device)
        numbers = _number_of_box(starts, lengths, source) + mirrored * (len(table) // 2)
        return table.index_select(0, to_device(numbers, device))
    places, weights = _taps(starts, lengths, source=source, target=target, resample=resample)
    places, weights = (np.where(mirrored[:, None, None], part[:, ::-1], part) for part in (places, weights))
    found = torch.zeros(len(starts), target, source, device=device)
    return found.scatter_(2, to_device(places, device), to_device(weights, device))


def _number_of_box(starts: NDArray[np.int64], lengths: NDArray[np.int64], source: int) -> NDArray[np.int64]:
    """Count the boxes of a side: those of length 1 from left to right, then those of length 2, and so on."""
    before = lengths - 1
    return before * source - before * (before - 1) // 2 + starts


@lru_cache(maxsize=4)
def _all_matrices(source: int, target: int, resample: int, device: torch.device) -> torch.Tensor:
    """Return the weights of every box of a small side, in the order of `_number_of_box`, then mirrored."""
    boxes = [(start, length) for length in range(1, source + 1) for start in range(source - length + 1)]
    starts, lengths = np.array(boxes).T
    found = torch.zeros(len(boxes), target, source)
    for length in range(1, source + 1):  # a filter has as many taps as the longest of its boxes needs
        rows = np.flatnonzero(lengths == length)
        places, weights = _taps(starts[rows], lengths[rows], source=source, target=target, resample=resample)
        found[rows] = found[rows].scatter_(2, torch.from_numpy(places), torch.from_numpy(weights))
    return torch.cat([found, found.flip(1)]).to(device)


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
        (B, C, H, W) uint8.
    """
    batch, channels, height, width = pixels.shape
    if pixels.device.type == "cpu" and height * width > _LARGE and resample != LANCZOS:
        return _one_by_one(pixels, boxes, size, resample, mirrored)
    rows = _matrices(boxes[:, 0], boxes[:, 2], height, size[0], resample, pixels.device)  # (B, H, h)
    columns = _matrices(boxes[:, 1], boxes[:, 3], width, size[1], resample, pixels.device, mirrored)  # (B, W, w)
    half = torch.full((1, 1, 1), 0.5, device=pixels.device)  # to round halves up
    with exact_products(pixels.device):
        found = pixels.reshape(batch, channels * height, width).float()
        found = torch.baddbmm(half, found, columns.transpose(1, 2))  # (B, C * h, W)
        found = _in_range(found, resample).floor_().view(batch, channels, height, size[1])
        found = found.transpose(1, 2).reshape(batch, height, channels * size[1])
        found = torch.baddbmm(half, rows, found)  # (B, H, C * W)
    found = to_bytes(_in_range(found, resample))
    return found.view(batch, size[0], channels, size[1]).transpose(1, 2).contiguous()


def resize(pixels: torch.Tensor, size: tuple[int, int], *, resample: int) -> torch.Tensor:
    """Resize whole pictures, (B, C, h, w) uint8 to (B, C, H, W) uint8, by torch's own kernel where there is one."""
    if pixels.device.type == "cpu" and resample != LANCZOS:
        return functional.resize(pixels, list(size), INTERPOLATION[resample], antialias=True)
    boxes = np.tile([0, 0, *pixels.shape[2:]], (len(pixels), 1))
    return cut_and_resize(pixels, boxes, size, resample=resample)


def _in_range(values: torch.Tensor, resample: int) -> torch.Tensor:
    """Keep values to 0..255, which only filters with negative parts leave."""
    return values if resample in (NEAREST, BILINEAR) else values.clamp_(0, 255.5)


def _one_by_one(
    pixels: torch.Tensor,
    boxes: NDArray[np.int64],
    size: tuple[int, int],
    resample: int,
    mirrored: NDArray[np.bool_] | None,
) -> torch.Tensor:
    """Do as `cut_and_resize`, with torch's kernel of 8-bit pictures, which reads no more than the taps."""
    found = torch.empty(*pixels.shape[:2], *size, dtype=torch.uint8)
    for number, (picture, box) in enumerate(zip(pixels, boxes.tolist(), strict=True)):
        cut = functional.resized_crop(picture, *box, list(size), INTERPOLATION[resample], antialias=True)
        found[number] = cut.flip(-1) if mirrored is not None and mirrored[number] else cut
    return found
