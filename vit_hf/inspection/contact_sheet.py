"""Sheets of small pictures with a few words below each, for finding by eye what numbers only suspect."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .style import FONT_SIZE, LIGHT, Theme, new_figure, shortened

LARGEST = 24
"""Cells of a sheet."""
_WIDTH, _LINE, _MARGIN = 4.2, 0.15, 0.1  # inches
_PIXELATED_BELOW, _LARGEST_SIDE = 96, 300  # pixels


@dataclass(frozen=True)
class Cell:
    """One picture, or several side by side, and the lines below."""

    pictures: tuple[Image.Image, ...]
    lines: tuple[str, ...]


def draw_contact_sheet(cells: Sequence[Cell], *, columns: int = 3, theme: Theme = LIGHT) -> Figure:
    """Draw cells row by row; the pictures keep their shape, small ones show their pixels, lines too long are cut.

    Args:
        cells: 1 to 24, RGB pictures, as many pictures and lines in each.
        columns: cells a row.
        theme: light or dark.

    Raises:
        ValueError: no cells, or more than 24.
    """
    if not 1 <= len(cells) <= LARGEST:
        raise ValueError(f"there are {len(cells)} cells for a sheet; expected 1 to {LARGEST}")
    abreast, lines = len(cells[0].pictures), len(cells[0].lines)
    width = _WIDTH / columns
    side = (width - _MARGIN) / abreast  # inches of a picture
    height = side + lines * _LINE + 2 * _MARGIN
    rows = math.ceil(len(cells) / columns)
    figure = new_figure(_WIDTH, rows * height, theme=theme)
    figure.set_layout_engine("none")
    for place, cell in enumerate(cells):
        row, column = divmod(place, columns)
        left, top = column * width + _MARGIN / 2, (rows - row) * height - _MARGIN
        for number, picture in enumerate(cell.pictures):
            box = (left + number * side, top - side, side - 0.03, side)
            ax = figure.add_axes((box[0] / _WIDTH, box[1] / (rows * height), box[2] / _WIDTH, box[3] / (rows * height)))
            if max(picture.size) > _LARGEST_SIDE:
                picture = picture.copy()
                picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
            ax.imshow(
                np.asarray(picture), interpolation="nearest" if max(picture.size) <= _PIXELATED_BELOW else "antialiased"
            )
            ax.set_axis_off()
        for number, line in enumerate(cell.lines):
            y = (top - side - 0.03 - number * _LINE) / (rows * height)
            # Shortened for the module's font size, drawn a little smaller; hinting may widen it.
            text = shortened(line, 0.95 * (width - _MARGIN) * FONT_SIZE / (FONT_SIZE - 2))
            figure.text(left / _WIDTH, y, text, va="top", fontsize=FONT_SIZE - 2, color=theme.ink, parse_math=False)
    return figure
