"""Moves of pixels, a batch at a time, each picture by its own: shifts, mirrors and affine maps.

Affine maps equal torchvision.transforms.v2.functional.affine and rotate on uint8 tensors: the matrices are its own,
worked out on the host, and the places are its float32 steps. Nothing waits for the device.

Shapes: B pictures, C channels, H x W pixels, h x w of a picture that a window is cut from.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .draws import uniforms
from .host import to_bytes, to_device

_LARGE = 48 * 48  # pixels of a picture; numpy moves 224 x 224 of them in 0.6 of torch's time


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


@dataclass(frozen=True)
class Affine:
    """Moves of B pictures."""

    size: tuple[int, int]
    """(H, W)."""
    angles: NDArray[np.float64]
    """(B,) degrees, clockwise."""
    shifts: NDArray[np.float64]
    """(B, 2) whole pixels right and down."""
    scales: NDArray[np.float64]
    """(B,)."""

    def matrices(self) -> NDArray[np.float32]:
        """Return (B, 6) float32; see `inverse_matrix`."""
        moves = zip(self.angles.tolist(), self.shifts.tolist(), self.scales.tolist(), strict=True)
        found = [inverse_matrix(self.size, angle=angle, translation=(x, y), scale=s) for angle, (x, y), s in moves]
        return np.array(found, np.float32)


def draw_affine(
    keys: ArrayLike, size: tuple[int, int], *, rotation: float, translation: float, scaling: float
) -> Affine:
    """Draw what `v2.RandomAffine` does: all uniform and on their own, shifts rounded to whole pixels.

    Args:
        keys: (B,) int64.
        size: (H, W).
        rotation: largest angle in degrees.
        translation: largest shift as a share of the side.
        scaling: largest change of size.
    """
    numbers = 2 * uniforms(keys, "affine", 4) - 1  # in [-1, 1)
    shifts = np.rint(numbers[:, 1:3] * (translation * size[1], translation * size[0]))
    return Affine(size, numbers[:, 0] * rotation, shifts, 1 + numbers[:, 3] * scaling)


def _grid(matrices: torch.Tensor, height: int, width: int) -> list[torch.Tensor]:
    """Return the columns and rows (B, H, W) that pixels come from, float32, -1 and 1 at the edges of the picture."""
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=matrices.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=matrices.device)[:, None]
    found = []
    for rows, half in zip(matrices.view(-1, 2, 3).unbind(1), (width / 2, height / 2), strict=True):
        m = (rows / half)[:, :, None, None]  # (B, 3, 1, 1)
        found.append((x * m[:, 0]).add(y * m[:, 1]).add_(m[:, 2]))
    return found


def nearest_places(matrices: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the number of the pixel that each one comes from, (B, H * W) int64; H * W for one outside.

    Args:
        matrices: (B, 6) float32; see `inverse_matrix`.
        size: (H, W).
    """
    height, width = size
    columns, rows = _grid(matrices, height, width)
    columns = columns.add_(1).mul_(width / 2).sub_(0.5).round_()  # 0 at the centre of the first pixel
    rows = rows.add_(1).mul_(height / 2).sub_(0.5).round_()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return torch.where(inside, rows.mul_(width).add_(columns), float(height * width)).long().flatten(1)


def moved(pixels: torch.Tensor, places: torch.Tensor, fill: int) -> torch.Tensor:
    """Return pictures whose pixels come from other places.

    Args:
        pixels: (B, C, H, W) uint8.
        places: (B, H * W); see `nearest_places`. A CPU takes int32, too.
        fill: 0 to 255, for what comes from outside.
    """
    batch, channels, _, _ = pixels.shape
    framed = torch.nn.functional.pad(pixels.reshape(batch, channels, -1), (0, 1), value=fill)
    if pixels.device.type == "cpu" and places.shape[1] > _LARGE:
        found = [picture.take(numbers, axis=1) for picture, numbers in zip(framed.numpy(), places.numpy(), strict=True)]
        return torch.from_numpy(np.stack(found)).view_as(pixels)
    return framed.gather(2, places[:, None].expand(-1, channels, -1)).view_as(pixels)


def bilinear_affine(pixels: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Move the pixels of each picture, each mixed from the four nearest places, with black outside.

    At the edge that is torchvision's result without a fill; with the fill 0, it darkens the pixels there twice.

    Args:
        pixels: (B, C, H, W) uint8.
        matrices: (B, 6) float32; see `inverse_matrix`.

    Returns:
        (B, C, H, W) uint8.
    """
    height, width = pixels.shape[-2:]
    grid = torch.stack(_grid(matrices, height, width), dim=-1)  # (B, H, W, 2)
    found = torch.nn.functional.grid_sample(pixels.float(), grid, padding_mode="zeros", align_corners=False)
    return to_bytes(found.round_())


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
