"""Pictures of what a model predicts and how it learned, written to PNG, PDF or SVG.

One style for both: the colours of Okabe and Ito (2008, "Color Universal Design"), told apart by lightness or dash too;
axes named with their units. Figures are made without pyplot, so there is no display, no global state and nothing to
close. A file appears whole or not at all: it is written beside its place and then renamed.
"""

import math
import os
import uuid
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageOps

BLUE, SKY, VERMILION, GREEN = "#0072B2", "#56B4E9", "#D55E00", "#009E73"
INK, GREY, PALE = "#222222", "#6E6E6E", "#ECECEC"
SUFFIXES = (".png", ".pdf", ".svg")
IMAGES_PER_PAGE = 16
_DPI = 150
_FONT_SIZE = 9  # points
_PIXELATED_BELOW = 96  # pixels: up to here the picture is drawn with its pixels visible
_LARGEST_SIDE = 600  # pixels of a picture in the file; larger images are scaled down

# Inches, of one cell of `plot_predictions`: a picture, and its bars to the right.
_PICTURE, _BARS, _GAP, _MARGIN, _BAR_PITCH, _AXIS, _TITLE = 1.9, 2.9, 0.2, 0.3, 0.36, 0.42, 0.24
_PERCENT = 0.62  # of the line above a bar, kept for the number at its end


# ---------------------------------------------------------------------------------------------- files
@contextmanager
def _written_whole(path: str | os.PathLike) -> Iterator[tuple[IO[bytes], str]]:
    """Give an open file and the format for `path`; the file takes its name when the block ends without an error."""
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"cannot draw to {target.name!r}; expected a name that ends in {', '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} of {target.name} does not exist; create it first")
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file, target.suffix.lower()[1:]
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _style(ax: Axes, x_name: str, y_name: str = "") -> None:
    """Name the axes and take away what shows no data."""
    ax.set_xlabel(x_name, fontsize=_FONT_SIZE, color=INK)
    ax.set_ylabel(y_name, fontsize=_FONT_SIZE, color=INK)
    ax.tick_params(labelsize=_FONT_SIZE - 1, colors=GREY, labelcolor=INK, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)


# ---------------------------------------------------------------------------------------------- predictions
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
    if len(pages) > 1 and Path(path).suffix.lower() in (".png", ".svg"):
        raise ValueError(
            f"{len(images)} images do not fit one page of {IMAGES_PER_PAGE}; give a .pdf path, which has pages, or "
            "draw them in several calls"
        )
    with _written_whole(path) as (file, kind):
        if kind == "pdf":
            with PdfPages(file) as document:
                for page in pages:
                    document.savefig(_page(page), dpi=_DPI)
        else:
            _page(pages[0]).savefig(file, format=kind, dpi=_DPI)


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
        line = _shortened(title, cell_width - _MARGIN, weight="bold")
        above = (top + 0.07) / height
        figure.text(left / width, above, line, fontsize=_FONT_SIZE, fontweight="bold", color=INK, parse_math=False)
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
    ax.spines[:].set(color=GREY, linewidth=0.5)


def _draw_bars(ax: Axes, classes: Sequence[tuple[str, float]]) -> None:
    """Draw one bar a class, its name and percentage above it, the highest at the top."""
    ordered = sorted(classes, key=lambda pair: -pair[1])
    percents = [100 * min(max(float(probability), 0.0), 1.0) for _, probability in ordered]
    places = [row + 0.72 for row in range(len(ordered))]  # each row: text above, bar below
    ax.barh(places, 100, height=0.3, color=PALE)
    ax.barh(places, percents, height=0.3, color=[BLUE, *[SKY] * (len(ordered) - 1)])
    for row, ((name, _), percent) in enumerate(zip(ordered, percents, strict=True)):
        weight = "bold" if row == 0 else "normal"
        style: dict[str, Any] = {"va": "bottom", "fontsize": _FONT_SIZE, "fontweight": weight, "color": INK}
        # A dollar sign in a class name is no formula.
        ax.text(0, row + 0.5, _shortened(name, _BARS - _PERCENT, weight=weight), parse_math=False, **style)
        ax.text(100, row + 0.5, f"{percent:.1f}%", ha="right", **style)
    ax.set(xlim=(0, 100), ylim=(len(ordered), 0), yticks=[], xticks=[0, 25, 50, 75, 100])
    _style(ax, "probability (%)")
    ax.spines["left"].set_visible(False)


def _shortened(text: str, inches: float, *, weight: str) -> str:
    """Return text on one line, cut with an ellipsis to a width in inches at the font size of this module."""
    line = " ".join(str(text).split())[:200]
    font = FontProperties(weight=weight, size=_FONT_SIZE)

    def width(shown: str) -> float:
        return text_to_path.get_text_width_height_descent(shown, font, ismath=False)[0] / 72

    if width(line) <= inches:
        return line
    kept = bisect_right(range(len(line)), inches, key=lambda length: width(line[:length] + "…")) - 1
    return line[: max(kept, 0)].rstrip(" ,") + "…"


# ---------------------------------------------------------------------------------------------- learning curves
def plot_learning_curves(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Draw loss, accuracy and learning rate over the epochs of a run.

    Args:
        rows: one mapping per evaluation, as in `metrics.jsonl`: "epoch", and of "train_loss", "validation_loss" (mean
            loss a sample, nats), "top1", "top5" (fractions in [0, 1]) and "learning_rate" what there is. Values
            that are missing or None are passed over, NaN and infinity leave a gap, and a panel with no values is left
            out. Rows without an epoch are skipped; of rows of one epoch the last counts (a run that was resumed).
        path: a file in an existing folder; its suffix, .png, .pdf or .svg, is the format.

    Raises:
        ValueError: no row holds anything to draw, or an unknown suffix.
        FileNotFoundError: the folder does not exist.
    """
    curves = _curves(rows)
    panels: list[tuple[str, dict[str, tuple[str, str, str]]]] = [
        ("loss (nats)", {"train_loss": ("training", BLUE, "-"), "validation_loss": ("validation", VERMILION, "--")}),
        ("accuracy (%)", {"top1": ("top-1", VERMILION, "-"), "top5": ("top-5", GREEN, "--")}),
        ("learning rate", {"learning_rate": ("", BLUE, "-")}),
    ]
    panels = [(name, lines) for name, lines in panels if any(key in curves for key in lines)]
    if not panels:
        raise ValueError(
            f"none of the {len(rows)} rows holds an epoch with a loss, accuracy or learning rate; expected the rows of "
            "a run's metrics.jsonl, with the key epoch and for example train_loss or top1"
        )
    figure = Figure(figsize=(4.2 * len(panels), 3.3), facecolor="white", layout="constrained")
    for ax, (name, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key, (label, colour, dash) in lines.items():
            if key in curves:
                _draw_curve(ax, curves[key], key=key, label=label, colour=colour, dash=dash)
        _style(ax, "epoch", name)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        ax.grid(axis="y", color=PALE)
        ax.set_axisbelow(True)
        if name == "learning rate":
            ax.set_ylim(bottom=0)
            ax.ticklabel_format(axis="y", scilimits=(-2, 3))
            ax.yaxis.get_offset_text().set_size(_FONT_SIZE - 1)
        else:
            ax.legend(fontsize=_FONT_SIZE - 1, frameon=False, labelcolor=INK)
    with _written_whole(path) as (file, kind):
        figure.savefig(file, format=kind, dpi=_DPI)


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


__all__ = ["plot_learning_curves", "plot_predictions"]
