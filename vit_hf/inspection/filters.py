"""The patch projection's filters by their principal components (ViT paper, arXiv 2010.11929, figure 7, left).

The projection turns a patch into D numbers, each the product of the patch with one filter. The principal components of
these D filters (the mean filter taken away, as principal component analysis has it) are what patches are mostly
compared with: in a trained model they look like a basis for the fine structure within a patch.

Shapes: C channels, p x q pixels of a patch (height, width), D filters, n components.
"""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..modeling_vit_hf import VitHfPreTrainedModel
from .style import FONT_SIZE, LIGHT, Theme, new_figure

SHOWN = 28  # components of the paper's figure, 4 rows of 7
_COLUMNS = 7
_WIDTH = 4.2  # inches


@dataclass(frozen=True)
class FilterComponents:
    """Principal components of the filters, the one that tells most about them first."""

    components: torch.Tensor
    """(n, C, p, q), float64, each of length 1; the sign is such that the largest weight is positive."""
    shares: torch.Tensor
    """(n,), float64 in [0, 1]: share of the filters' variance along each; all of them together sum to 1."""
    filters: int
    """How many filters there are: the model's width D."""


@torch.no_grad()
def filter_components(model: VitHfPreTrainedModel, count: int = SHOWN) -> FilterComponents:
    """Return the first principal components of the patch projection's filters.

    Args:
        model: any model of the family without a ResNet stem.
        count: components wanted; fewer come where a patch has fewer numbers, or the model fewer filters.

    Raises:
        ValueError: a hybrid, whose projection sees features instead of pixels.
    """
    patches = model.encoder.embeddings.patch_embeddings
    if patches.stem is not None:
        raise ValueError(
            "a hybrid has no pixel filters to show: its patch projection sees the "
            f"{patches.projection.in_channels:,} feature maps of the ResNet stem; expected a model without one"
        )
    weight = patches.projection.weight.detach().to("cpu", torch.float64)  # (D, C, p, q)
    filters = weight.flatten(1)  # (D, C*p*q)
    centred = filters - filters.mean(dim=0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)  # (k,), (k, C*p*q)
    variance = lengths.square()
    shares = variance / variance.sum().clamp(min=torch.finfo(variance.dtype).tiny)
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))  # (k, 1)
    components = (directions * largest.sign()).unflatten(1, weight.shape[1:])  # (k, C, p, q)
    return FilterComponents(components[:count], shares[:count], filters=weight.shape[0])


def component_tiles(components: torch.Tensor) -> np.ndarray:
    """Turn components into pictures, each stretched alike: weight 0 is mid-grey, its own largest |weight| full colour.

    Args:
        components: (n, C, p, q), float. Three channels are red, green and blue; one is grey; of any other number each
            channel is grey, side by side.

    Returns:
        (n, p, q, 3), float in [0, 1]; (n, p, C*q, 3) where channels lie side by side.
    """
    largest = components.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(components.dtype).tiny)
    tiles = 0.5 + 0.5 * components / largest  # (n, C, p, q)
    if tiles.shape[1] != 3:
        tiles = tiles.permute(0, 2, 1, 3).flatten(2)[:, None].expand(-1, 3, -1, -1)  # (n, 3, p, C*q)
    return tiles.permute(0, 2, 3, 1).numpy()


def draw_filters(model: VitHfPreTrainedModel, *, theme: Theme = LIGHT) -> Figure:
    """Draw the first 28 principal components in the patch's true proportions, with the share of variance of each.

    Raises:
        ValueError: a hybrid; see `filter_components`.
    """
    found = filter_components(model)
    tiles = component_tiles(found.components)
    patch_h, patch_w = model.config.patch_hw
    across = tiles.shape[2] / found.components.shape[3]  # channels side by side
    columns = min(_COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    gap = 0.12  # of a tile's width
    tile_w = (_WIDTH - 0.3) / (columns * (1 + gap))
    tile_h = min(tile_w * patch_h / (patch_w * across), 2.0)
    tile_w = tile_h * patch_w * across / patch_h
    pitch_h = tile_h + 0.2  # the share stands below
    bottom, top = 0.62, 0.1
    height = rows * pitch_h + bottom + top
    figure = new_figure(_WIDTH, height, theme=theme)
    figure.set_layout_engine("none")
    left = (_WIDTH - columns * tile_w * (1 + gap) + tile_w * gap) / 2
    ax = figure.add_axes((0, 0, 1, 1))  # its unit is the inch
    ax.set_axis_off()
    for index, (tile, share) in enumerate(zip(tiles, found.shares, strict=True)):
        row, column = divmod(index, columns)
        x, y = left + column * tile_w * (1 + gap), height - top - row * pitch_h - tile_h
        ax.imshow(tile, interpolation="nearest", extent=(x, x + tile_w, y, y + tile_h), aspect="auto")
        ax.add_patch(Rectangle((x, y), tile_w, tile_h, fill=False, edgecolor=theme.grey, linewidth=0.4))
        words = f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"
        place = (x + tile_w / 2, y - 0.03)
        ax.text(*place, words, fontsize=FONT_SIZE - 2, color=theme.ink, ha="center", va="top")
    ax.set(xlim=(0, _WIDTH), ylim=(0, height))
    together = f"{len(tiles)} principal components of {found.filters:,} filters of {patch_h} x {patch_w} px, with"
    lines = (
        together,
        f"their shares of the variance: {found.shares.sum():.1%} together.",
        "Grey: weight 0. Full colour: the largest weight of each.",
    )
    figure.text(0.03, 0.04 / height, "\n".join(lines), fontsize=FONT_SIZE - 1, color=theme.ink, va="bottom")
    return figure


__all__ = ["FilterComponents", "component_tiles", "draw_filters", "filter_components"]
