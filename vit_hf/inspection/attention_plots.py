"""Figures of attention over one picture: the last step, the rollout, and each head of the last step.

What the maps are stands in `attention`; here they are only drawn.

Shapes: h x w patch grid, A heads.
"""

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from .attention import enlarged, lay_over
from .style import COLORMAP, FONT_SIZE, LIGHT, Theme, new_figure, shortened

_WIDTH, _MARGIN, _TITLE = 4.2, 0.1, 0.22  # inches; the title stands above each picture
_TALLEST = 3.0  # inches of a picture


def draw_attention(
    view: Image.Image,
    last: torch.Tensor,
    rolled: torch.Tensor,
    *,
    answer: tuple[str, float] | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw a picture as the model sees it, the attention of the last step over it, and the rollout over it.

    Args:
        view: the picture, as `model_view` gives it.
        last: (h, w), float, summing to 1: `attention_map` of it.
        rolled: (h, w), likewise, with method "rollout".
        answer: class and its probability in [0, 1], as the model says; for the legend.
        theme: light or dark.
    """
    figure, axes = _panels(view, 4, columns=2, theme=theme)
    pictures = {
        "as the model sees it": enlarged(view),
        "last step": lay_over(view, last),
        "rollout of all blocks": lay_over(view, rolled),
    }
    for ax, (name, picture) in zip(axes, pictures.items(), strict=False):
        _draw(ax, picture, name, theme)
    legend = axes[3]
    legend.set_axis_off()
    legend.set(xlim=(0, 1), ylim=(0, 1))
    lines = [
        *([shortened(f"predicted {answer[0]}", _WIDTH / 2 - 2 * _MARGIN), f"  with {answer[1]:.1%}"] if answer else []),
        "weight of a patch:",
        f"  last step {_range(last)}",
        f"  rollout {_range(rolled)}",
        f"  even {_percent(1 / last.numel())}",
    ]
    legend.text(0, 0.62, "\n".join(lines), fontsize=FONT_SIZE - 1, color=theme.ink, va="center", parse_math=False)
    bar = legend.inset_axes((0, 0.12, 1, 0.08))
    bar.imshow(matplotlib.colormaps[COLORMAP](np.linspace(0, 1, 256))[None], aspect="auto", extent=(0, 1, 0, 1))
    bar.set(yticks=[], xticks=[0, 1], xticklabels=["lowest", "highest"])
    bar.tick_params(labelsize=FONT_SIZE - 1, colors=theme.grey, labelcolor=theme.ink, length=2)
    lowest, highest = bar.get_xticklabels()
    lowest.set_horizontalalignment("left")
    highest.set_horizontalalignment("right")
    bar.spines[:].set_visible(False)
    return figure


def draw_heads(view: Image.Image, maps: torch.Tensor, *, theme: Theme = LIGHT) -> Figure:
    """Draw the last step's attention of each head over the picture; each stretched from its own lowest to highest.

    Args:
        view: the picture, as `model_view` gives it.
        maps: (A, h, w), float: `AttentionMaps.heads` of it.
        theme: light or dark.
    """
    columns = min(4, len(maps))
    figure, axes = _panels(view, len(maps), columns=columns, theme=theme)
    for number, (ax, weights) in enumerate(zip(axes, maps, strict=True), start=1):
        _draw(ax, lay_over(view, weights), f"head {number}", theme)
    return figure


def _panels(view: Image.Image, count: int, *, columns: int, theme: Theme) -> tuple[Figure, list[Axes]]:
    """Lay out equal places for a picture of the view's proportions, row by row."""
    ratio = view.height / view.width
    place = (_WIDTH - (columns + 1) * _MARGIN) / columns
    tall = min(place * ratio, _TALLEST)
    rows = -(-count // columns)
    height = rows * (tall + _TITLE) + (rows + 1) * _MARGIN
    figure = new_figure(_WIDTH, height, theme=theme)
    figure.set_layout_engine("none")
    axes = []
    for index in range(count):
        row, column = divmod(index, columns)
        left, top = _MARGIN + column * (place + _MARGIN), _MARGIN + row * (tall + _TITLE + _MARGIN) + _TITLE
        box = (left / _WIDTH, 1 - (top + tall) / height, place / _WIDTH, tall / height)
        axes.append(figure.add_axes(box))
    return figure, axes


def _draw(ax: Axes, picture: Image.Image, name: str, theme: Theme) -> None:
    ax.imshow(np.asarray(picture))
    ax.set_anchor("NW")
    ax.set_title(name, fontsize=FONT_SIZE - 1, color=theme.ink, loc="left", pad=3)
    ax.set_axis_off()


def _range(weights: torch.Tensor) -> str:
    return f"{_percent(weights.min().item())} to {_percent(weights.max().item())}"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.1 else f"{share:.2%}"


__all__ = ["draw_attention", "draw_heads"]
