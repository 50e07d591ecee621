"""Patches as a model cuts them: the tensors, and the picture with its cuts (ViT paper, arXiv 2010.11929, figure 1).

The convolution of the patch projection and a matrix product over these patches are the same map; nothing overlaps,
nothing is left out, and the order is row by row.

Shapes: B batch, C channels, H x W pixels, h x w patch grid, p x q pixels of a patch (height, width).
"""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image

from ..configuration_vit_hf import VitHfConfig
from .positions import sampled
from .style import FONT_SIZE, LIGHT, Theme, new_figure, style_axes

_WIDTH = 4.2  # inches
_SIDE = 900  # pixels that the drawn picture's longer side is brought to, by whole pixels
_MOST_TICKS = 16
_SMALLEST = 5.0  # points; where numbers would have to be smaller, most are left out


def cut_patches(pixel_values: torch.Tensor, patch_hw: tuple[int, int]) -> torch.Tensor:
    """Cut images into patches, in the order of the model's tokens.

    Args:
        pixel_values: (B, C, H, W), any dtype that torch's `unfold` takes.
        patch_hw: (height, width) of a patch in pixels, such as `config.patch_hw`.

    Returns:
        (B, h*w, C, p, q), same dtype: row by row, from the upper left.

    Raises:
        ValueError: the sizes do not divide.
    """
    (height, width), (p, q) = pixel_values.shape[-2:], patch_hw
    if height % p or width % q:
        raise ValueError(
            f"{height} x {width} pixels do not divide into patches of {p} x {q}; resize with the model's processor"
        )
    columns = F.unfold(pixel_values, kernel_size=(p, q), stride=(p, q))  # (B, C*p*q, h*w)
    return columns.transpose(1, 2).unflatten(2, (pixel_values.shape[1], p, q))


def draw_patches(view: Image.Image, config: VitHfConfig, *, theme: Theme = LIGHT) -> Figure:
    """Draw the picture cut into its patches, numbered row by row from 1 as the paper's figure 1 numbers them.

    Where patches are too many for numbers, only the first and the last of some rows have theirs.

    Args:
        view: the picture as the model sees it, of the model's image size; as `model_view` gives it.
        config: of the model.
        theme: light or dark.

    Raises:
        ValueError: the sizes do not divide.
    """
    (p, q), (h, w) = config.patch_hw, (view.height // config.patch_hw[0], view.width // config.patch_hw[1])
    pixels = torch.from_numpy(np.array(view.convert("RGB"))).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
    times = max(1, round(_SIDE / max(view.size)))
    tiles = cut_patches(pixels, (p, q))[0].permute(0, 2, 3, 1).numpy() / 255  # (h*w, p, q, 3)
    tiles = tiles.repeat(times, axis=1).repeat(times, axis=2)
    gap = max(1, round(0.04 * times * (p + q) / 2))
    paper = np.array(to_rgb(theme.paper))
    framed = np.tile(paper, (h, w, p * times + gap, q * times + gap, 1))
    framed[:, :, gap:, gap:] = tiles.reshape(h, w, p * times, q * times, 3)
    sheet = framed.transpose(0, 2, 1, 3, 4).reshape(h * (p * times + gap), w * (q * times + gap), 3)
    inside = _WIDTH - 0.65
    figure = new_figure(_WIDTH, min(inside * sheet.shape[0] / sheet.shape[1], 6.0) + 0.85, theme=theme)
    ax = figure.subplots()
    ax.imshow(sheet, extent=(0.5, w + 0.5, h + 0.5, 0.5), aspect=sheet.shape[0] * w / (sheet.shape[1] * h))
    columns, rows = (range(size) if size <= _MOST_TICKS else sampled(size) for size in (w, h))
    ax.set_xticks([column + 1 for column in columns])
    ax.set_yticks([row + 1 for row in rows])
    style_axes(ax, "patch column", "patch row", theme=theme)
    ax.spines[:].set_visible(False)
    _number(ax, h, w, inside * min(1.0, 6.0 * sheet.shape[1] / (inside * sheet.shape[0])) / w)
    before = config.num_prefix_tokens
    tokens = f"{h * w} patches of {p} x {q} px, row by row" + (f", after {before} other" if before else "")
    tokens += f" token{'s' if before > 1 else ''}" if before else ""
    stem = "\nthe ResNet stem sees across the cuts" if config.resnet_stem_layers is not None else ""
    figure.suptitle(tokens + stem, x=0.02, ha="left", fontsize=FONT_SIZE - 1, color=theme.ink)
    return figure


def _number(ax: Axes, h: int, w: int, tile: float) -> None:
    """Write the patches' numbers: all where tiles are that wide (inches), else the first and the last of some rows."""
    size = 0.4 * tile * 72 / (0.62 * len(str(h * w)))  # points at which the longest takes 2/5 of the tile
    outline = [withStroke(linewidth=1.2, foreground="black")]
    for row in range(h) if size >= _SMALLEST else sampled(h):
        for column in range(w) if size >= _SMALLEST else sorted({0, w - 1}):
            last = size < _SMALLEST and column > 0  # it reaches into the tiles to its left
            ax.text(
                column + (1.42 if last else 0.58),
                row + 0.62,
                str(row * w + column + 1),
                fontsize=min(FONT_SIZE - 1.0, max(size, 7.0)),
                color="white",
                ha="right" if last else "left",
                va="top",
                path_effects=outline,
            )


__all__ = ["cut_patches", "draw_patches"]
