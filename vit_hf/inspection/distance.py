"""How far the heads look: mean attention distance by depth (ViT paper, arXiv 2010.11929, figures 7, right, and 11).

The distance of a head is that in pixels between the centre of the patch that asks and the centre of the patch that is
looked at, averaged over the latter by the attention weights and over the former evenly. Class, distillation and
register tokens lie nowhere: they do not ask, and what a patch gives to them is left out, the rest made to sum to 1. It
is the analogue of the receptive field of a convolution. The paper averages over 128 pictures.

Shapes: B batch, C channels, H x W pixels, h x w patch grid, N tokens (prefix P, then h*w patches), A heads.
"""

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..configuration_vit_hf import VitHfConfig
from ..modeling_vit_hf import VitHfPreTrainedModel
from .style import BLUE, LIGHT, SKY, VERMILION, Theme, add_legend, new_figure, style_axes

_MEMORY = 2**28  # bytes of attention weights that are held at once


def patch_distances(config: VitHfConfig) -> torch.Tensor:
    """Return the distances in pixels between the centres of the patches, (h*w, h*w), float32, row by row."""
    (h, w), (patch_h, patch_w) = config.grid_hw, config.patch_hw
    rows, columns = torch.meshgrid(torch.arange(h) * patch_h, torch.arange(w) * patch_w, indexing="ij")  # (h, w)
    centres = torch.stack([rows.flatten(), columns.flatten()], dim=1).double()  # (h*w, 2)
    return (centres[:, None] - centres[None]).square().sum(dim=-1).sqrt().float()


def mean_distance(attention: torch.Tensor, config: VitHfConfig) -> torch.Tensor:
    """Return the mean distance in pixels of one block's attention.

    Args:
        attention: (B, A, N, N), float, rows summing to 1: row i tells how token i draws on all tokens.
        config: of the model, for grid, patch size and prefix tokens.

    Returns:
        (B, A), float32. A patch that gives nothing to patches is left out; NaN where all do.
    """
    prefix = config.num_prefix_tokens
    weights = attention[..., prefix:, prefix:].float()  # (B, A, h*w, h*w)
    given = weights.sum(dim=-1)  # (B, A, h*w)
    distances = (weights * patch_distances(config).to(weights.device)).sum(dim=-1) / given  # NaN where nothing is given
    return distances.nanmean(dim=-1)


@torch.no_grad()
def attention_distance(model: VitHfPreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return how far each head of each block looks, in pixels of the picture that the model sees.

    Args:
        model: in evaluation mode; any pooling and attention backend.
        pixel_values: (B, C, H, W), float, as the image processor gives it; taken in parts that need at most 256 MiB
            for attention weights (or one picture).

    Returns:
        (B, layers, A), float32 on the CPU, from 0 to the picture's diagonal; NaN as of `mean_distance`.
    """
    config, encoder = model.config, model.encoder
    tokens = config.num_prefix_tokens + config.grid_hw[0] * config.grid_hw[1]
    one = 4 * config.num_hidden_layers * config.num_attention_heads * tokens**2
    parts = []
    for part in pixel_values.split(max(1, _MEMORY // one)):
        outputs = encoder(part.to(model.device), output_attentions=True, return_dict=True)
        parts.append(torch.stack([mean_distance(block, config) for block in outputs.attentions], dim=1).cpu())
    return torch.cat(parts)


def draw_attention_distance(model: VitHfPreTrainedModel, distances: torch.Tensor, *, theme: Theme = LIGHT) -> Figure:
    """Draw the mean attention distance by depth, one dot a head.

    Args:
        model: the one that was measured, for the distance of attention that is even over the patches.
        distances: (B, layers, A), float, pixels, as `attention_distance` gives it; averaged over the pictures, NaN left
            out; a head that has nothing else has no dot.
        theme: light or dark.
    """
    heads = distances.float().nanmean(dim=0)  # (layers, A)
    even = patch_distances(model.config).mean().item()
    blocks = range(1, len(heads) + 1)
    figure = new_figure(4.2, 3.3, theme=theme)
    ax = figure.subplots()
    ax.axhline(even, color=theme.grey, linestyle=":", linewidth=1.2, label=f"even attention ({even:.1f} px)")
    places = [block for block in blocks for _ in range(heads.shape[1])]
    ax.scatter(
        places,
        heads.flatten(),
        s=18,
        color=SKY,
        edgecolors=BLUE,
        linewidths=0.6,
        label="one head",
        zorder=3,
        clip_on=False,
    )
    ax.plot(blocks, heads.nanmean(dim=1), "-", color=VERMILION, linewidth=1.2, label="mean of the heads")
    style_axes(ax, "block (depth)", "mean attention distance (px)", theme=theme)
    highest = max(even, heads.nan_to_num(nan=0.0).max().item(), 0.8)  # a single patch has no distances
    ax.set_ylim(0, 1.25 * highest)  # the legend stands above
    ax.set_xlim(0.5, len(heads) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    ax.grid(axis="y", color=theme.pale)
    ax.set_axisbelow(True)
    add_legend(ax, theme=theme, loc="upper left", ncols=2)
    return figure


__all__ = ["attention_distance", "draw_attention_distance", "mean_distance", "patch_distances"]
