"""Charts of an evaluation: how far probabilities can be believed, what is taken for what, which classes are told well.

Numbers in, figures out; where the numbers come from is the caller's matter. Each figure is one panel of phone width.

Shapes: K rows of a confusion matrix, classes or groups of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .style import (
    BLUE,
    COLORMAP,
    DARK,
    FONT_SIZE,
    GREEN,
    LIGHT,
    VERMILION,
    Theme,
    add_colorbar,
    add_legend,
    new_figure,
    shortened,
    style_axes,
)

NUMBERED = 12
"""Up to so many rows a confusion matrix shows its numbers; with more it is a picture."""
_WIDTH = 4.2  # inches
_NAMES = 1.35  # inches, of the names beside rows
_ROW = 0.24  # inches, of a class in a chart of classes
_MANY = 10  # samples, below which the accuracy of a bin is drawn pale


# ---------------------------------------------------------------------------------------------- calibration
def draw_reliability(
    bins: Sequence[Sequence[Any]], calibrated: Sequence[Sequence[Any]] | None = None, *, theme: Theme = LIGHT
) -> Figure:
    """Draw accuracy against confidence, a bar a bin, and below it how many samples each bin holds.

    A bar that ends under the diagonal belongs to predictions that are surer than right; one of fewer than ten samples
    is pale.

    Args:
        bins: of equal width over [0, 1], each [count, mean confidence, accuracy], the means None in an empty bin.
        calibrated: the same after a temperature, drawn as points; bins of fewer than ten samples are left out.
        theme: light or dark.

    Raises:
        ValueError: no bins, or all of them are empty.
    """
    total = sum(count for count, _, _ in bins)
    if not total:
        raise ValueError(f"the {len(bins)} bins hold no samples; expected at least one")
    figure = new_figure(_WIDTH, 4.7, theme=theme)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    width = 1 / len(bins)
    for place, (count, confidence, accuracy) in enumerate(bins):
        middle = (place + 0.5) * width
        lower.bar(middle, count / total, width * 0.86, color=theme.grey)
        if count:
            upper.bar(middle, accuracy, width * 0.86, color=BLUE, alpha=1.0 if count >= _MANY else 0.35)
            upper.plot([middle - 0.43 * width, middle + 0.43 * width], [confidence] * 2, color=VERMILION, linewidth=2)
    upper.plot([0, 1], [0, 1], "--", color=theme.grey, linewidth=1)
    handles = [
        Patch(color=BLUE, label="named rightly"),
        Line2D([], [], color=VERMILION, linewidth=2, label="mean confidence"),
    ]
    points = [(mean, accuracy) for count, mean, accuracy in calibrated or () if count >= _MANY]
    if points:
        style: dict[str, Any] = {"color": GREEN, "markeredgecolor": theme.paper, "markersize": 6, "linestyle": "none"}
        upper.plot(*zip(*points, strict=True), "D", **style)
        handles.append(Line2D([], [], marker="D", label="with the temperature", **style))
    style_axes(upper, "", "named rightly (%)", theme=theme)
    style_axes(lower, "confidence (%)", "pictures (%)", theme=theme)
    add_legend(upper, theme=theme, handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2)
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol="", decimals=0))
    lower.yaxis.set_major_locator(MaxNLocator(3))
    _grid(upper, theme)
    return figure


# ---------------------------------------------------------------------------------------------- confusion
def draw_confusion(
    mistakes: np.ndarray,
    pictures: Sequence[int] | np.ndarray,
    blocks: Sequence[tuple[str, int]],
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw what is taken for what; only mistakes are coloured, by their share of the row's pictures, on a root scale.

    Up to 12 rows the counts are written into the cells, on the diagonal those of the pictures named rightly. With more
    it is a picture: blocks of neighbouring rows are numbered, named on the left, and framed.

    Args:
        mistakes: (K, K), whole numbers: pictures of row i taken for column j. The diagonal counts mistakes within a
            row that is a group of classes; it is 0 where rows are classes.
        pictures: K, how many pictures each row has.
        blocks: name and number of rows of each block, from the top; [(name, 1), ...] names every row.
        theme: light or dark.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    count = len(mistakes)
    if mistakes.shape != (count, count) or len(pictures) != count or sum(size for _, size in blocks) != count:
        raise ValueError(
            f"mistakes have shape {mistakes.shape}, pictures {len(pictures)} rows, blocks "
            f"{sum(size for _, size in blocks)}; expected (K, K), K and K"
        )
    shares = mistakes / np.maximum(np.asarray(pictures), 1)[:, None]  # (K, K)
    figure = new_figure(_WIDTH, _WIDTH + 0.35, theme=theme)
    ax = figure.subplots()
    image = ax.imshow(
        np.ma.masked_equal(shares, 0),
        cmap=_rising(theme),
        norm=PowerNorm(0.5, vmin=0, vmax=max(float(shares.max()), 1e-9)),
        interpolation="nearest",
    )
    edges = np.cumsum([0, *(size for _, size in blocks)]) - 0.5
    middles = (edges[:-1] + edges[1:]) / 2
    numbered, single = count <= NUMBERED, all(size == 1 for _, size in blocks)
    style_axes(ax, "taken for", "true class", theme=theme)
    size = min(FONT_SIZE - 1, 165 * min(length for _, length in blocks) / count)  # points; lines must not touch
    names = [shortened(name, _NAMES * (FONT_SIZE / size)) for name, _ in blocks]
    if numbered:
        ax.set_xticks(middles, [shortened(name, 0.9) for name, _ in blocks], fontsize=size, parse_math=False)
        if max(map(len, names)) > 2:
            ax.tick_params(axis="x", rotation=90)
    else:
        step = 1 if len(blocks) <= 10 else 2 if len(blocks) <= 20 else 5
        shown = range(step - 1 if step > 1 else 0, len(blocks), step)
        ax.set_xticks(middles[list(shown)], [str(place + 1) for place in shown], fontsize=FONT_SIZE - 2)
        names = [f"{name}  {place:\u2007>2}" for place, name in enumerate(names, 1)]  # padded as wide as a digit
    ax.set_yticks(middles, names, fontsize=size, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(theme.pale)
    lines = edges[1:-1] if not single or numbered else edges[:0]
    for edge in lines:
        ax.axhline(edge, color=theme.pale, linewidth=0.8)
        ax.axvline(edge, color=theme.pale, linewidth=0.8)
    for start, (_, length) in zip(edges[:-1], blocks, strict=True):
        frame: dict[str, Any] = {"facecolor": "none", "edgecolor": theme.grey, "linewidth": 0.8, "zorder": 3}
        if single and not mistakes.diagonal().any():  # each a class with itself
            frame = {"facecolor": theme.pale, "linewidth": 0}
        ax.add_patch(Rectangle((start, start), length, length, **frame))
    if numbered:
        _write_counts(ax, mistakes, pictures, shares, image, theme)
    add_colorbar(figure, image, ax, "share of the row's pictures (%)", theme=theme, orientation="horizontal",
                 fraction=0.05, pad=0.02, aspect=30, format=PercentFormatter(1, symbol="", decimals=None),
                 ticks=_round_shares(float(shares.max())))  # fmt: skip
    figure.draw_without_rendering()  # lays it out, so that the height can be made to fit a square of the width left
    figure.set_size_inches(_WIDTH, figure.get_tightbbox().height + 0.12)
    return figure


def _write_counts(ax: Axes, mistakes: np.ndarray, pictures: Sequence[int] | np.ndarray, shares: np.ndarray, image: Any,
                  theme: Theme) -> None:  # fmt: skip
    """Write the count into each cell that has one, in a colour that stands out from the cell's."""
    right = np.asarray(pictures) - mistakes.sum(axis=1)  # (K,)
    for row, column in np.ndindex(mistakes.shape):
        number = int(right[row] if row == column else mistakes[row, column])
        if number or row == column:
            red, green, blue, _ = image.cmap(image.norm(shares[row, column]))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            ink = theme.ink if row == column else LIGHT.ink if bright else DARK.ink
            size = FONT_SIZE - 1 if number < 1000 else FONT_SIZE - 3
            ax.text(column, row, str(number), ha="center", va="center", fontsize=size, color=ink)


def _rising(theme: Theme) -> Colormap:
    """Return viridis, faint where it begins, towards what stands out most from the paper; nothing at all is paper."""
    ends = (0.9, 0.1) if theme.paper == LIGHT.paper else (0.25, 1.0)
    colours = matplotlib.colormaps[COLORMAP](np.linspace(*ends, 128))
    share = np.minimum(np.linspace(0.25, 1.75, 128), 1)[:, None]  # of the colour, the rest is paper
    colours[:, :3] = share * colours[:, :3] + (1 - share) * np.array(to_rgb(theme.paper))
    return LinearSegmentedColormap.from_list("rising", colours, N=128).with_extremes(bad=theme.paper)


def _round_shares(largest: float) -> list[float]:
    """Return a few round shares up to the largest, spread out on a root scale."""
    if largest <= 0:
        return []
    top = 10.0 ** math.floor(math.log10(largest))
    top *= max(factor for factor in (1, 2, 5) if factor * top <= largest * (1 + 1e-9))
    return [top / 25, top / 5, top] if round(top / 5, 12) else [top]


# ---------------------------------------------------------------------------------------------- classes
def draw_classes(rows: Sequence[Sequence[Any]], *, theme: Theme = LIGHT) -> Figure:
    """Draw how often pictures of each class are named rightly, a dot a class with its interval, in the order given.

    Args:
        rows: [name, number of pictures, number named rightly, low, high]; the interval in fractions, or None.
        theme: light or dark.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("there are no classes to draw; expected at least one")
    figure = new_figure(_WIDTH, _ROW * len(rows) + 0.7, theme=theme)
    ax = figure.subplots()
    for place, (_, n, correct, low, high) in enumerate(rows):
        ax.plot([0, 100], [place, place], color=theme.pale, linewidth=1, zorder=0)
        if low is not None:
            ax.plot([100 * low, 100 * high], [place, place], color=BLUE, linewidth=2.2, solid_capstyle="round")
        ax.plot(100 * correct / n, place, "o", color=BLUE, markeredgecolor=theme.paper, markersize=7)
    style_axes(ax, "named rightly (%)", "", theme=theme)
    names = [shortened(row[0], _NAMES) for row in rows]
    ax.set_yticks(range(len(rows)), names, fontsize=FONT_SIZE - 1, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set(xlim=(-2, 102), ylim=(len(rows) - 0.4, -0.6))
    return figure


# ---------------------------------------------------------------------------------------------- speed
def draw_speed(rows: Sequence[Mapping[str, Any]], *, theme: Theme = LIGHT) -> Figure:
    """Draw pictures a second over the epochs of a run.

    Args:
        rows: as in `metrics.jsonl`, with "epoch" and "images_per_second"; others are passed over.
        theme: light or dark.

    Raises:
        ValueError: fewer than two rows record it.
    """
    recorded = [row for row in rows if row.get("images_per_second") is not None and row.get("epoch") is not None]
    speed = {row["epoch"]: row["images_per_second"] for row in recorded}
    if len(speed) < 2:
        raise ValueError(f"{len(speed)} of {len(rows)} rows hold images_per_second at an epoch; expected at least two")
    epochs = sorted(speed)
    figure = new_figure(_WIDTH, 2.4, theme=theme)
    ax = figure.subplots()
    ax.plot(epochs, [speed[epoch] for epoch in epochs], color=BLUE, marker="o" if len(epochs) <= 20 else None,
            markersize=3.5)  # fmt: skip
    style_axes(ax, "epoch", "pictures a second", theme=theme)
    ax.set_ylim(0, 1.12 * max(speed.values()))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    _grid(ax, theme)
    return figure


def _grid(ax: Axes, theme: Theme) -> None:
    ax.grid(axis="y", color=theme.pale)
    ax.set_axisbelow(True)


__all__ = ["NUMBERED", "draw_classes", "draw_confusion", "draw_reliability", "draw_speed"]
