"""Moves of pixels, a batch at a time, each picture by its own: shifts, mirrors and affine maps.

Affine maps equal torchvision.transforms.v2.functional.affine and rotate on uint8 tensors: the matrices are its own,
worked out on the host, and the places are its float32 steps. Nothing waits for the device.

Shapes: B pictures, C channels, H x W pixels, h x w of a picture that a window is cut from.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from .host import to_device


def inverse_matrix(
    size: tuple[int, int],
    *,
    angle: float = 0.0,
    translation: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    shear: tuple[float, float] = (0.0, 0.0),
    about_corner: bool = False,
) -> tuple[float, ...]:
    """Return where each pixel comes from: x' = m0 x + m1 y + m2 and y' = m3 x + m4 y + m5 from the picture's centre.

    Args:
        size: (height, width).
        angle: degrees, clockwise.
        translation: pixels right and down.
        scale: above 0.
        shear: tangents of the angles along x and y, of which at most one is not 0.
        about_corner: keep the upper left corner in its place instead of the centre.
    """
    centre_x, centre_y = (-size[1] / 2, -size[0] / 2) if about_corner else (0.0, 0.0)
    rotation, shear_y = math.radians(angle), math.atan(shear[1])
    a, c = math.cos(rotation - shear_y) / math.cos(shear_y), math.sin(rotation - shear_y) / math.cos(shear_y)
    b, d = -(a * shear[0] + math.sin(rotation)), math.cos(rotation) - c * shear[0]
    m0, m1, m3, m4 = d / scale, -b / scale, -c / scale, a / scale
    x, y = centre_x + translation[0], centre_y + translation[1]
    return m0, m1, centre_x - m0 * x - m1 * y, m3, m4, centre_y - m3 * x - m4 * y


def _sources(matrices: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places (B, H, W) that pixels come from, float32 columns and rows, whole at the centre of a pixel."""
    device = matrices.device
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=device)[:, None]
    halves = (width / 2, height / 2)
    found = []
    for rows, half in zip(matrices.view(-1, 2, 3).unbind(1), halves, strict=True):
        m = (rows / half)[:, :, None, None]  # (B, 3, 1, 1)
        place = torch.addcmul(x * m[:, 0], y, m[:, 1]).add_(m[:, 2])
        found.append(place.add_(1).mul_(half).sub_(0.5))
    return found[0], found[1]


def nearest_affine(pixels: torch.Tensor, matrices: torch.Tensor, fill: int) -> torch.Tensor:
    """Move the pixels of each picture, each from the nearest place.

    Args:
        pixels: (B, C, H, W) uint8.
        matrices: (B, 6) float32; see `inverse_matrix`.
        fill: 0 to 255, for what comes from outside.

    Returns:
        (B, C, H, W) uint8.
    """
    batch, channels, height, width = pixels.shape
    columns, rows = (places.round_() for places in _sources(matrices, height, width))
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = torch.where(inside, rows.mul_(width).add_(columns), float(height * width)).long()
    framed = torch.nn.functional.pad(pixels.reshape(batch, channels, -1), (0, 1), value=fill)
    places = places.view(batch, 1, -1).expand(-1, channels, -1)
    return framed.gather(2, places).view_as(pixels)


def bilinear_affine(pixels: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Move the pixels of each picture, each mixed from the four nearest places, with black outside.

    Args:
        pixels: (B, C, H, W) uint8.
        matrices: (B, 6) float32; see `inverse_matrix`.

    Returns:
        (B, C, H, W) uint8.
    """
    height, width = pixels.shape[-2:]
    columns, rows = _sources(matrices, height, width)
    grid = torch.stack([(columns + 0.5) * (2 / width) - 1, (rows + 0.5) * (2 / height) - 1], dim=-1)  # (B, H, W, 2)
    found = torch.nn.functional.grid_sample(pixels.float(), grid, padding_mode="zeros", align_corners=False)
    return found.round_().to(torch.uint8)


def windows(pixels: torch.Tensor, tops: NDArray[np.int64], lefts: NDArray[np.int64], size: tuple[int, int]):
    """Cut a window of one size out of each picture.

    Args:
        pixels: (B, C, h, w).
        tops, lefts: (B,), within the picture.
        size: (H, W).

    Returns:
        (B, C, H, W).
    """
    views = pixels.unfold(2, size[0], 1).unfold(3, size[1], 1)  # (B, C, h - H + 1, w - W + 1, H, W)
    number = torch.arange(len(pixels), device=pixels.device)
    return views[number, :, to_device(tops, pixels.device), to_device(lefts, pixels.device)]
