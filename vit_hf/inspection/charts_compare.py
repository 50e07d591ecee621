"""Charts of two models side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .style import BLUE, FONT_SIZE, LIGHT, VERMILION, Theme, add_legend, new_figure, shortened, style_axes

CLASSES = 10
_WIDTH, _NAMES, _ROW = 4.2, 1.3, 0.24  # inches: of the figure, of the names, of a class


def draw_class_differences(
    per_class: Sequence[Mapping[str, Any]], *, level: float = 0.05, theme: Theme = LIGHT
) -> Figure:
    """Draw by how much the accuracy of classes differs between two models, the largest gains and losses.

    A class whose difference is shown, after the correction for many classes, has a full bar, any other a pale one; to
    the right stand the samples that only A and only B has right.

    Args:
        per_class: mappings with name, n, only_a, only_b (samples) and p_holm, as of `vit_hf.evaluation.paired.compare`.
            Up to 10 classes that gained and 10 that lost are drawn; of equal differences the first ones.
        level: below which p_holm shows a difference.
        theme: light or dark.

    Raises:
        ValueError: no classes.
    """
    if not per_class:
        raise ValueError("there are no classes to draw; expected at least one")
    change = {place: (row["only_b"] - row["only_a"]) / row["n"] for place, row in enumerate(per_class)}
    ordered = sorted(change, key=lambda place: -change[place])
    gained = [place for place in ordered if change[place] > 0][:CLASSES]
    lost = [place for place in ordered if change[place] < 0][-CLASSES:]
    rows = gained + lost or ordered[:CLASSES]
    tall = max(len(rows), 4)
    figure = new_figure(_WIDTH, 1.25 + _ROW * tall, theme=theme)
    ax = figure.subplots()
    reach = max(max(abs(change[place]) for place in rows) * 100, 1)
    for height, place in enumerate(rows):
        row, points = per_class[place], 100 * change[place]
        colour = BLUE if points > 0 else VERMILION
        ax.barh(height, points, 0.7, color=colour, alpha=1 if row["p_holm"] < level else 0.45)
        counts = f"{row['only_a']} : {row['only_b']}"
        style: dict[str, Any] = {"va": "center", "fontsize": FONT_SIZE - 1, "color": theme.ink}
        ax.text(1.02, height, counts, transform=ax.get_yaxis_transform(), **style)
    style = {"va": "bottom", "fontsize": FONT_SIZE - 1, "color": theme.ink}
    ax.text(1.02, -0.6, "only right\nin A : B", transform=ax.get_yaxis_transform(), **style)
    ax.axvline(0, color=theme.grey, linewidth=1)
    style_axes(ax, "accuracy, B - A (points)", theme=theme)
    names = [shortened(per_class[place]["name"], _NAMES) for place in rows]
    ax.set_yticks(range(len(rows)), names, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(-1.08 * reach, 1.08 * reach), ylim=(len(rows) - 0.4, -0.6))
    ax.grid(axis="x", color=theme.pale)
    ax.set_axisbelow(True)
    handles = [
        Patch(color=theme.grey, label=f"shown (p < {level:g})"),
        Patch(color=theme.grey, alpha=0.45, label="not shown"),
    ]
    add_legend(ax, theme=theme, handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.45 / (_ROW * tall)),
               ncols=2)  # fmt: skip
    return figure
