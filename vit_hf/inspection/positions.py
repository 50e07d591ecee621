"""How alike the position embeddings of the patches are (ViT paper, arXiv 2010.11929, figure 7, centre).

Neighbours that are alike, and rows and columns that stand out, show that a model has learned (or was given) where
patches lie. Only the patches' own embeddings count: rows before the grid, of class token and registers, are left out.

Shapes: h x w patch grid, D width.
"""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from ..modeling_vit_hf import VitHfPreTrainedModel
from .style import COLORMAP, LIGHT, Theme, add_colorbar, new_figure, style_axes

_MOST = 7  # rows and columns drawn of a larger grid, as many as in the paper
_GAP = 0.12  # between two small grids, of their larger side


@torch.no_grad()
def position_similarity(model: VitHfPreTrainedModel) -> torch.Tensor:
    """Return the cosine similarity of each patch's position embedding with that of every patch.

    Args:
        model: any model of the family; learned or sine-cosine positions.

    Returns:
        (h, w, h, w), float32 on the CPU, in [-1, 1]: [i, j] compares the patch in row i, column j with all others. An
        embedding of zeros is like none, itself included: 0.
    """
    config = model.config
    positions = model.encoder.embeddings.position_embeddings.detach().float().cpu()
    patches = F.normalize(positions[0, config.num_prefix_positions :], dim=-1)  # (h*w, D)
    similarity = (patches @ patches.T).clamp(-1, 1)  # (h*w, h*w)
    return similarity.view(*config.grid_hw, *config.grid_hw)


def sampled(size: int, most: int = _MOST) -> list[int]:
    """Return which of `size` rows are drawn: all of up to `most` + 1, else `most`, the outermost among them."""
    count = size if size <= most + 1 else most
    return [round(place) for place in np.linspace(0, size - 1, count)]


def draw_position_similarity(model: VitHfPreTrainedModel, *, theme: Theme = LIGHT) -> Figure:
    """Draw a grid of grids: in row i and column j, how alike all patches' positions are to that of patch (i, j).

    Of a large grid seven rows and columns are drawn, the outermost among them. All small grids share one scale, in
    true proportions.
    """
    similarity = position_similarity(model).numpy()
    (h, w), (patch_h, patch_w) = model.config.grid_hw, model.config.patch_hw
    rows, columns = sampled(h), sampled(w)
    tile_h, tile_w = h * patch_h, w * patch_w  # pixels of the picture
    gap = _GAP * max(tile_h, tile_w)
    lowest = min(np.floor(similarity.min() * 5) / 5, 0.8)  # the scale's lower end, a fifth at or below the least
    total_h, total_w = len(rows) * (tile_h + gap) - gap, len(columns) * (tile_w + gap) - gap
    width = 4.2
    figure = new_figure(width, min(max(2.9 * total_h / total_w, 1.4), 6.0) + 0.55, theme=theme)
    ax = figure.subplots()
    image = None
    for place_y, row in enumerate(rows):
        for place_x, column in enumerate(columns):
            x, y = place_x * (tile_w + gap), place_y * (tile_h + gap)
            image = ax.imshow(
                similarity[row, column],
                extent=(x, x + tile_w, y + tile_h, y),
                interpolation="nearest",
                cmap=COLORMAP,
                vmin=lowest,
                vmax=1,
            )
    ax.set(xlim=(0, total_w), ylim=(total_h, 0))
    ax.set_xticks([place * (tile_w + gap) + tile_w / 2 for place in range(len(columns))], [str(c + 1) for c in columns])
    ax.set_yticks([place * (tile_h + gap) + tile_h / 2 for place in range(len(rows))], [str(r + 1) for r in rows])
    style_axes(ax, "patch column", "patch row", theme=theme)
    ax.spines[:].set_visible(False)
    add_colorbar(figure, image, ax, "cosine similarity", theme=theme)
    return figure


__all__ = ["draw_position_similarity", "position_similarity", "sampled"]
