"""The one style of all plots: colours, letters, axes, and files that appear whole or not at all.

The colours are those of Okabe and Ito (2008, "Color Universal Design"), which people without full colour vision tell
apart; what matters is told apart by dash, marker or place too. Values over an area are drawn in viridis, whose
lightness rises evenly. A theme is light or dark, for pages that follow the reader's. Figures are made without pyplot,
so there is no display, no global state and nothing to close.
"""

import io
import os
import uuid
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

BLUE, SKY, VERMILION, GREEN, ORANGE, PURPLE = "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
COLORMAP = "viridis"
SUFFIXES = (".png", ".pdf", ".svg")
FONT_SIZE = 9  # points
DPI = 150


@dataclass(frozen=True)
class Theme:
    """Colours of what is no data."""

    paper: str
    """Behind everything."""
    ink: str
    """Words and numbers."""
    grey: str
    """Axes."""
    pale: str
    """Grids and empty bars."""


LIGHT = Theme(paper="#FFFFFF", ink="#222222", grey="#6E6E6E", pale="#ECECEC")
DARK = Theme(paper="#16181D", ink="#E6E6E6", grey="#A3A3A3", pale="#32363D")


def new_figure(width: float, height: float, *, theme: Theme = LIGHT) -> Figure:
    """Return an empty figure, width x height in inches, whose axes are laid out so that no words overlap."""
    return Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")


def style_axes(ax: Axes, x_name: str, y_name: str = "", *, theme: Theme = LIGHT) -> None:
    """Name the axes, with their units, and take away what shows no data."""
    ax.set_facecolor(theme.paper)
    ax.set_xlabel(x_name, fontsize=FONT_SIZE, color=theme.ink)
    ax.set_ylabel(y_name, fontsize=FONT_SIZE, color=theme.ink)
    ax.tick_params(labelsize=FONT_SIZE - 1, colors=theme.grey, labelcolor=theme.ink, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(theme.grey)


def add_legend(ax: Axes, *, theme: Theme = LIGHT, **options) -> None:
    """Add a legend without a frame; options as of matplotlib's `legend`."""
    ax.legend(fontsize=FONT_SIZE - 1, frameon=False, labelcolor=theme.ink, **options)


def add_colorbar(figure: Figure, mappable, ax: Axes, name: str, *, theme: Theme = LIGHT, **options) -> None:
    """Add the scale of colours beside an axes, named with its unit; options as of matplotlib's `colorbar`."""
    bar = figure.colorbar(mappable, ax=ax, **options)
    bar.set_label(name, fontsize=FONT_SIZE, color=theme.ink)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1, colors=theme.grey, labelcolor=theme.ink, length=3)
    bar.outline.set_edgecolor(theme.grey)  # type: ignore[operator]


def shortened(text: str, inches: float, *, weight: str = "normal") -> str:
    """Return text on one line, cut with an ellipsis to a width in inches at the font size of this module.

    Characters that the font of the plots does not have, such as those of other scripts, stand as empty squares.
    """
    known = _drawable()
    line = "".join(char if ord(char) in known else "□" for char in " ".join(str(text).split())[:200])
    font = FontProperties(weight=weight, size=FONT_SIZE)

    def width(shown: str) -> float:
        return text_to_path.get_text_width_height_descent(shown, font, ismath=False)[0] / 72

    if width(line) <= inches:
        return line
    kept = bisect_right(range(len(line)), inches, key=lambda length: width(line[:length] + "…")) - 1
    return line[: max(kept, 0)].rstrip(" ,") + "…"


@cache
def _drawable() -> frozenset[int]:
    """Return the code points that the font of the plots can draw."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def check_picture_name(path: str | os.PathLike) -> Path:
    """Return where a picture is to be drawn; ValueError for another suffix, FileNotFoundError without its folder."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot draw to {target.name!r}; expected a name that ends in {', '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} of {target.name} does not exist; create it first")
    return target


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[tuple[IO[bytes], str]]:
    """Give an open file and the format for `path`; the file takes its name when the block ends without an error."""
    target = check_picture_name(path)
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file, target.suffix.lower()[1:]
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure to a PNG, PDF or SVG file in an existing folder, by its suffix; whole or not at all."""
    with written_whole(path) as (file, kind):
        figure.savefig(file, format=kind, dpi=DPI)


def to_png(figure: Figure, *, dpi: int = DPI) -> bytes:
    """Return a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
