"""Pictures of what a model predicts and how it learned, written to PNG, PDF or SVG."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

from .style import (
    BLUE,
    DPI,
    FONT_SIZE,
    GREEN,
    LIGHT,
    SKY,
    VERMILION,
    Theme,
    add_legend,
    new_figure,
    save_figure,
    shortened,
    style_axes,
    written_whole,
)

IMAGES_PER_PAGE = 16
_PIXELATED_BELOW = 96  # pixels: up to here the picture is drawn with its pixels visible
_LARGEST_SIDE = 600  # pixels of a picture in the file; larger images are scaled down

# Inches, of one cell of `plot_predictions`: a picture, and its bars to the right.
_PICTURE, _BARS, _GAP, _MARGIN, _BAR_PITCH, _AXIS, _TITLE = 1.9, 2.9, 0.2, 0.3, 0.36, 0.42, 0.24
_PERCENT = 0.62  # of the line above a bar, kept for the number at its end


# ---------------------------------------------------------------------------------------------- predictions
def check_pages(count: int, path: str | os.PathLike) -> None:
    """Raise ValueError for more images than the one page of a PNG or SVG takes."""
    if count > IMAGES_PER_PAGE and Path(path).suffix.lower() in (".png", ".svg"):
        raise ValueError(
            f"{count} images do not fit one page of {IMAGES_PER_PAGE}; give a .pdf path, which has pages, or draw them "
            "in several calls"
        )


def plot_predictions(
    images: Sequence[Image.Image],
    predictions: Sequence[Sequence[tuple[str, float]]],
    path: str | os.PathLike,
    titles: Sequence[str] | None = None,
) -> None:
    """Draw images, each beside the bars of its most probable classes.

    Args:
        images: PIL images of any mode and size, upright after their EXIF orientation. Transparency shows white; small
            ones are drawn with visible pixels.
        predictions: for each image, (class name, probability in [0, 1]) of the classes to show; drawn from the highest
            down. Names too long for their line are cut.
        path: a file in an existing folder; its suffix, .png, .pdf or .svg, is the format.
        titles: a line above each image, such as its file name or true class.

    Up to 16 images make one page. More go to further pages of a PDF; the other formats have one page only.

    Raises:
        ValueError: nothing to draw, lists of different lengths, numbers that are no probabilities, more than 16 images
            for a PNG or SVG, or an unknown suffix.
        FileNotFoundError: the folder does not exist.
    """
    _check_predictions(images, predictions, titles)
    cells = list(zip(images, predictions, titles or [""] * len(images), strict=True))
    pages = [cells[start : start + IMAGES_PER_PAGE] for start in range(0, len(cells), IMAGES_PER_PAGE)]
    check_pages(len(images), path)
    with written_whole(path) as (file, kind):
        if kind == "pdf":
            with PdfPages(file) as document:
                for page in pages:
                    document.savefig(_page(page), dpi=DPI)
        else:
            _page(pages[0]).savefig(file, format=kind, dpi=DPI)


def _check_predictions(images: Sequence, predictions: Sequence[Sequence[tuple[str, float]]], titles: Any) -> None:
    lengths = {"images": len(images), "predictions": len(predictions)}
    if titles is not None:
        lengths["titles"] = len(titles)
    if len(set(lengths.values())) > 1 or not images:
        found = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"there are {found}; expected at least one image, and as many of the others")
    for index, classes in enumerate(predictions):
        if not classes:
            raise ValueError(f"image {index} has no predictions; expected (class name, probability) pairs")
        for name, probability in classes:
            if not -1e-4 <= probability <= 1 + 1e-4:  # rounding of half precision aside; NaN fails too
                raise ValueError(
                    f"image {index} has {probability} for class {name!r}; expected a probability in [0, 1]: apply "
                    "softmax to logits, and do not give percent"
                )


def _page(cells: Sequence[tuple[Image.Image, Sequence[tuple[str, float]], str]]) -> Figure:
    """Lay out up to 16 cells in one to four columns; sizes in inches, so that all bars of a page are alike."""
    pictures = [_picture(image) for image, _, _ in cells]
    narrowest = min(picture.width / picture.height for picture in pictures)
    picture_width = _PICTURE * min(max(narrowest, 1.0), 1.6)
    bars_height = _BAR_PITCH * max(len(classes) for _, classes, _ in cells)
    content = max(_PICTURE, bars_height + _AXIS)
    cell_width = picture_width + _GAP + _BARS + _MARGIN
    cell_height = content + _MARGIN + (_TITLE if any(title for _, _, title in cells) else 0)
    columns = next(columns for columns, most in enumerate((1, 8, 12, IMAGES_PER_PAGE), 1) if len(cells) <= most)
    width, height = columns * cell_width + _MARGIN, math.ceil(len(cells) / columns) * cell_height + _MARGIN
    figure = Figure(figsize=(width, height), facecolor="white")
    for index, (picture, (_, classes, title)) in enumerate(zip(pictures, cells, strict=True)):
        row, column = divmod(index, columns)
        left, bottom = _MARGIN + column * cell_width, height - (row + 1) * cell_height
        # The top of the picture is the top of the first bar's name.
        top = bottom + content
        box = (left / width, (top - _PICTURE) / height, picture_width / width, _PICTURE / height)
        _draw_picture(figure.add_axes(box), picture)
        line = shortened(title, cell_width - _MARGIN, weight="bold")
        above = (top + 0.07) / height
        figure.text(left / width, above, line, fontsize=FONT_SIZE, fontweight="bold", color=LIGHT.ink, parse_math=False)
        own_height = _BAR_PITCH * len(classes)
        box = ((left + picture_width + _GAP) / width, (top - own_height) / height, _BARS / width, own_height / height)
        _draw_bars(figure.add_axes(box), classes)
    return figure


def _picture(image: Image.Image) -> Image.Image:
    """Return an image ready to draw: upright, RGB on white or grey, not larger than needed."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 bits and more: the range that is there becomes black to white
        values = np.asarray(image, dtype=np.float64)
        low, high = values.min(), values.max()
        image = Image.fromarray((255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if max(image.size) > _LARGEST_SIDE:
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    return image


def _draw_picture(ax: Axes, picture: Image.Image) -> None:
    small = max(picture.size) <= _PIXELATED_BELOW
    ax.imshow(np.asarray(picture), interpolation="nearest" if small else None)
    ax.set_anchor("NW")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set(color=LIGHT.grey, linewidth=0.5)


def _draw_bars(ax: Axes, classes: Sequence[tuple[str, float]]) -> None:
    """Draw one bar a class, its name and percentage above it, the highest at the top."""
    ordered = sorted(classes, key=lambda pair: -pair[1])
    percents = [100 * min(max(float(probability), 0.0), 1.0) for _, probability in ordered]
    places = [row + 0.72 for row in range(len(ordered))]  # each row: text above, bar below
    ax.barh(places, 100, height=0.3, color=LIGHT.pale)
    ax.barh(places, percents, height=0.3, color=[BLUE, *[SKY] * (len(ordered) - 1)])
    for row, ((name, _), percent) in enumerate(zip(ordered, percents, strict=True)):
        weight = "bold" if row == 0 else "normal"
        style: dict[str, Any] = {"va": "bottom", "fontsize": FONT_SIZE, "fontweight": weight, "color": LIGHT.ink}
        # A dollar sign in a class name is no formula.
        ax.text(0, row + 0.5, shortened(name, _BARS - _PERCENT, weight=weight), parse_math=False, **style)
        ax.text(100, row + 0.5, f"{percent:.1f}%", ha="right", **style)
    ax.set(xlim=(0, 100), ylim=(len(ordered), 0), yticks=[], xticks=[0, 25, 50, 75, 100])
    style_axes(ax, "probability (%)")
    ax.spines["left"].set_visible(False)


# ---------------------------------------------------------------------------------------------- learning curves
def plot_learning_curves(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *, loss: str = "loss (nats)"
) -> None:
    """Draw loss, accuracy and learning rate over the epochs of a run, side by side, into one file.

    Args:
        rows: as `draw_learning_curves` takes them.
        path: a file in an existing folder; its suffix, .png, .pdf or .svg, is the format.
        loss: what the loss is, with its unit.

    Raises:
        ValueError: no row holds anything to draw, or an unknown suffix.
        FileNotFoundError: the folder does not exist.
    """
    curves = _curves(rows)
    panels = _panels(curves, len(rows))
    figure = new_figure(4.2 * len(panels), 3.3)
    for ax, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(ax, name, curves, LIGHT, loss)
    save_figure(figure, path)


def draw_learning_curves(
    rows: Sequence[Mapping[str, Any]], *, theme: Theme = LIGHT, loss: str = "loss (nats)"
) -> dict[str, Figure]:
    """Draw the same as figures of their own, by the name of what they show: "loss (nats)", "accuracy (%)", ...

    Args:
        rows: one mapping per evaluation, as in `metrics.jsonl`: "epoch", and of "train_loss", "validation_loss" (mean
            loss a sample, nats), "top1", "top5" (fractions in [0, 1]) and "learning_rate" what there is. Values
            that are missing or None are passed over, NaN and infinity leave a gap, and a panel with no values is left
            out. Rows without an epoch are skipped; of rows of one epoch the last counts (a run that was resumed).
        theme: light or dark.
        loss: what stands at the axis of "loss (nats)" where it is another loss.

    Raises:
        ValueError: no row holds anything to draw.
    """
    curves, figures = _curves(rows), {}
    for name in _panels(curves, len(rows)):
        figures[name] = new_figure(4.2, 3.3, theme=theme)
        _draw_panel(figures[name].subplots(), name, curves, theme, loss)
    return figures


_PANELS: dict[str, dict[str, tuple[str, str, str]]] = {
    "loss (nats)": {"train_loss": ("training", BLUE, "-"), "validation_loss": ("validation", VERMILION, "--")},
    "accuracy (%)": {"top1": ("top-1", VERMILION, "-"), "top5": ("top-5", GREEN, "--")},
    "learning rate": {"learning_rate": ("", BLUE, "-")},
}


def _panels(curves: Mapping[str, Any], count: int) -> list[str]:
    """Return the names of the panels that have something to show; ValueError if there are none."""
    panels = [name for name, lines in _PANELS.items() if any(key in curves for key in lines)]
    if not panels:
        raise ValueError(
            f"none of the {count} rows holds an epoch with a loss, accuracy or learning rate; expected the rows of "
            "a run's metrics.jsonl, with the key epoch and for example train_loss or top1"
        )
    return panels


def _draw_panel(ax: Axes, name: str, curves: Mapping[str, Mapping[float, float]], theme: Theme, loss: str) -> None:
    for key, (label, colour, dash) in _PANELS[name].items():
        if key in curves:
            _draw_curve(ax, curves[key], key=key, label=label, colour=colour, dash=dash)
    style_axes(ax, "epoch", loss if name == "loss (nats)" else name, theme=theme)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    ax.grid(axis="y", color=theme.pale)
    ax.set_axisbelow(True)
    if name == "learning rate":
        ax.set_ylim(bottom=0)
        ax.ticklabel_format(axis="y", scilimits=(-2, 3))
        ax.yaxis.get_offset_text().set(size=FONT_SIZE - 1, color=theme.ink)
    else:
        add_legend(ax, theme=theme)


def _curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """Return value by epoch, in order, of each key that has a finite one; what is not finite becomes NaN, a gap."""
    by_epoch = {row["epoch"]: row for row in rows if row.get("epoch") is not None}
    curves = {}
    for key in ("train_loss", "validation_loss", "top1", "top5", "learning_rate"):
        found = {epoch: by_epoch[epoch].get(key) for epoch in sorted(by_epoch)}
        values = {epoch: float(value) for epoch, value in found.items() if value is not None}
        if any(map(math.isfinite, values.values())):
            curves[key] = {epoch: value if math.isfinite(value) else math.nan for epoch, value in values.items()}
    return curves


def _draw_curve(ax: Axes, curve: Mapping[float, float], *, key: str, label: str, colour: str, dash: str) -> None:
    """Draw one line; accuracies in percent, with the best named in the legend."""
    if key in ("top1", "top5"):
        curve = {epoch: 100 * value for epoch, value in curve.items()}
        best = max((epoch for epoch in curve if math.isfinite(curve[epoch])), key=curve.__getitem__)
        label = f"{label} (best {curve[best]:.1f}%, epoch {round(best, 1):g})"
    marker = "o" if len(curve) <= 20 else None
    ax.plot(list(curve), list(curve.values()), dash, color=colour, label=label, marker=marker, markersize=3.5)


__all__ = ["draw_learning_curves", "plot_learning_curves", "plot_predictions"]
