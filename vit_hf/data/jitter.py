"""Colour jitter, and the three changes of DeiT III, of a batch.

Jitter is that of torchvision.transforms.v2.ColorJitter on uint8 tensors, without hue. The three changes, one for each
picture and each as likely, are greyscale, solarisation and Gaussian blur (arXiv 2204.07118), with the strengths of
facebookresearch/deit `augment.py`: pixels from 128 on are inverted, the blur's standard deviation is uniform in 0.1 to
2 pixels. Its kernel reaches four of the largest, as far as a picture allows.

Shapes: B pictures, C channels, H x W pixels.
"""

from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from . import colours
from .draws import integers, uniforms
from .host import change_rows, to_device

BLUR = (0.1, 2.0)
THRESHOLD = 128
_BRIGHTNESS, _CONTRAST = 0, 1


def draw_color_jitter(keys: ArrayLike, share: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draw what `color_jitter` takes: (B, 3) factors, uniform in 1 - share (but 0 at least) to 1 + share, and orders.

    Args:
        keys: (B,) int64.
        share: largest relative change, from 0 on.
    """
    numbers = uniforms(keys, "colour jitter", 6)
    low, high = max(0.0, 1 - share), 1 + share
    return low + (high - low) * numbers[:, :3], numbers[:, 3:].argsort(axis=1)


def color_jitter(pixels: torch.Tensor, factors: NDArray[np.float64], order: NDArray[np.int64]) -> torch.Tensor:
    """Change brightness, contrast and saturation of each picture.

    Args:
        pixels: (B, C, H, W) uint8.
        factors: (B, 3) of brightness, contrast and saturation.
        order: (B, 3), which of the three (0, 1, 2) comes first, second and third.

    Returns:
        (B, C, H, W) uint8.
    """
    own = np.take_along_axis(factors, order, axis=1)
    rest = np.where(order == _BRIGHTNESS, 0, 1 - own)
    weights = to_device(np.stack([own, rest]).astype(np.float32), pixels.device)  # (2, B, 3)
    from_mean = to_device(order == _CONTRAST, pixels.device)
    for place in range(3):
        pixels = colours.blend(pixels, weights[0, :, place], weights[1, :, place], from_mean[:, place])
    return pixels


def draw_three_augment(keys: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw what `three_augment` takes: (B,) kinds, 0 to 2, and (B,) standard deviations of a blur."""
    numbers = uniforms(keys, "three augment", 2)
    return integers(numbers[:, 0], 3), BLUR[0] + (BLUR[1] - BLUR[0]) * numbers[:, 1]


def three_augment(pixels: torch.Tensor, kinds: NDArray[np.int64], sigmas: NDArray[np.float64]) -> torch.Tensor:
    """Do one of three changes to each picture, in place.

    Args:
        pixels: (B, C, H, W) uint8.
        kinds: (B,), 0 for greyscale, 1 for solarisation, 2 for blur.
        sigmas: (B,) standard deviation of the blur in pixels.
    """
    for kind, change in enumerate((colours.greyscale, _solarized)):
        change_rows(pixels, np.flatnonzero(kinds == kind), change)
    blurred = np.flatnonzero(kinds == 2)
    taps = min(17, 2 * min(pixels.shape[-2:]) - 1)
    kernels = colours.gaussian_kernels(taps, torch.from_numpy(sigmas[blurred].astype(np.float32))).numpy()
    blur = partial(colours.gaussian_blur, kernels=to_device(kernels, pixels.device))
    return change_rows(pixels, blurred, blur)


def _solarized(pixels: torch.Tensor) -> torch.Tensor:
    return colours.solarize(pixels, torch.full((1,), THRESHOLD, dtype=torch.uint8, device=pixels.device))
