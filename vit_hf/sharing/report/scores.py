"""The measured part of a report: scores, learning curves, calibration, confusions, classes."""

import math
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from matplotlib.figure import Figure

from ...evaluation.superclasses import superclasses
from ...inspection.charts import NUMBERED, draw_classes, draw_confusion, draw_reliability
from ...inspection.plots import draw_learning_curves
from ...inspection.style import DARK, LIGHT, Theme, to_png
from ..card.results import percent
from .confusion import Group, add_up, confusion_counts, cut_into_groups, group_known, order_classes, top_confusions
from .material import Material
from .page import Child, Pictures, Section, details, facts, section, table, tag, word

DPI = 200
_ALL_NAMED = 30  # up to so many classes each row of the confusion matrix has its name
_ALL_DRAWN = 250  # up to so many classes each has a row of its own in the matrix
_BLOCKS, _GROUPS = 14, 20  # groups found among classes that have rows of their own, and among those that have not
_PAIRS, _ENDS, _ALL_CLASSES = 12, 10, 20

Draw = Callable[[Theme], Figure]


def plot(pictures: Pictures, name: str, draw: Draw, *, alt: str, caption: Sequence[Child]) -> Element:
    """Draw a figure in both themes; returns how it is shown."""
    light, dark = (to_png(draw(theme), dpi=DPI) for theme in (LIGHT, DARK))
    return pictures.plot(name, light, dark, alt=alt, caption=caption)


def missing(words: str) -> Element:
    """Return the sentence that stands where something was not recorded."""
    return tag("p", words, class_="missing")


def number(value: float) -> str:
    """Return a measured number with four decimals."""
    return f"{value:.4f}"


def between(interval: Sequence[float] | None, form: Callable[[float], str]) -> str | None:
    """Return the interval in words; None where resampling moves nothing, or none was recorded."""
    return f"{form(interval[0])} to {form(interval[1])}" if interval and interval[0] < interval[1] else None


# ---------------------------------------------------------------------------------------------- the scores
_TILES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("top5", "top-5 accuracy", percent),
    ("balanced_accuracy", "balanced accuracy", percent),
    ("superclass_top1", "superclass accuracy", percent),
    ("real_top1", "top-1 on reassessed labels", percent),
    ("loss", "cross-entropy", number),
)


def scores_section(material: Material, about: Element) -> Section:
    """Return the scores, each with its interval, and what they are of."""
    measured = material.measured
    if measured is None:
        return section("scores", "Scores", missing("Scores: not recorded."), about)
    intervals = measured.get("intervals", {})
    if "top1" not in measured:
        what = str(measured.get("error", "mean absolute error of hidden pixels"))
        end = "" if what.endswith("normalised") else ", in normalised units"
        big = tag("div", tag("div", number(measured["loss"]), class_="big"),
                  tag("div", word(what), end, class_="label"))  # fmt: skip
        return section("scores", "Scores", tag("div", big, class_="hero"), about)
    top1, interval = measured["top1"], intervals.get("top1")
    right = round(top1 * measured["n"])
    words = between(interval, percent)
    big = tag("div", tag("div", percent(top1), class_="big"), tag("div", "top-1 accuracy", class_="label"))
    said = f"{right:,} of {measured['n']:,} pictures named rightly."
    said += f" 95% interval: {words}." if words else " No interval was recorded." if interval is None else ""
    strip = tag("div", tag("p", said), _strip(top1, interval),
                tag("div", tag("span", "0%"), tag("span", "100%"), class_="ends", aria_hidden="true"))  # fmt: skip
    tiles = tag("ul", class_="tiles")
    classes = len(material.label_names)
    for key, name, form in _TILES:
        if measured.get(key) is not None and not (key == "top5" and classes <= 5):
            unit = tag("span", " nats", class_="unit") if key == "loss" else None
            within = between(intervals.get(key), form)
            listed = (tag("span", name, class_="label"), tag("b", form(measured[key]), unit))
            tiles.append(tag("li", *listed, tag("small", within) if within else None))
    note = tag("p", "Intervals hold 95% of the scores of resampled sets of the same pictures: how far another such set "
               "would move the score. They say nothing about other training seeds.", class_="note")  # fmt: skip
    return section("scores", "Scores", tag("div", big, strip, class_="hero"), tiles, note, about)


def _strip(value: float, interval: Sequence[float] | None) -> Element:
    """Draw a score and its interval on a line from 0 to 100%."""
    line = tag("div", class_="interval", aria_hidden="true")
    if interval:
        low, high = interval
        line.append(tag("div", class_="range", style=f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"))
    line.append(tag("div", class_="point", style=f"left:{100 * value:.2f}%"))
    return line


# ---------------------------------------------------------------------------------------------- learning curves
_CURVES = {
    "loss (nats)": ("loss", "Training loss includes augmentation and label smoothing where the recipe has them, so it "
                    "may lie above that of validation. A validation curve that turns upwards is overfitting."),
    "accuracy (%)": ("accuracy", "On the pictures held out for validation. The test pictures were scored once, at the "
                     "end."),
    "learning rate": ("learning_rate", "The step size: warm-up, then decay. Read it beside the loss."),
}  # fmt: skip
_KEYS = {"loss": ("train_loss", "validation_loss"), "accuracy": ("top1", "top5"), "learning_rate": ("learning_rate",)}
_WORDS = {"train_loss": "training loss", "validation_loss": "validation loss", "top1": "top-1", "top5": "top-5",
          "learning_rate": "learning rate"}  # fmt: skip


def learning_section(material: Material, pictures: Pictures) -> Section:
    """Return loss, accuracy and learning rate over the epochs."""
    rows = [row for row in material.curves if row.get("epoch") is not None]
    drawable = any(isinstance(row.get(key), int | float) and math.isfinite(row[key])
                   for row in rows for keys in _KEYS.values() for key in keys)  # fmt: skip
    if not drawable:
        return section("learning", "Learning curves", missing("Learning curves: not recorded."))
    side = tag("div", class_="side trio")
    options = {"loss": "error of hidden patches"} if material.run.is_masked else {}
    light, dark = (draw_learning_curves(rows, theme=theme, **options) for theme in (LIGHT, DARK))
    for title, figure in light.items():
        name, caption = _CURVES[title]
        both = to_png(figure, dpi=DPI), to_png(dark[title], dpi=DPI)
        side.append(pictures.plot(f"learning_{name}", *both, alt=_say_curves(rows, _KEYS[name]), caption=[caption]))
    return section("learning", "Learning curves", side)


def _say_curves(rows: list[dict[str, Any]], keys: Sequence[str]) -> str:
    said = []
    for key in keys:
        found = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
        if found:
            (first, start), (last, end) = found[0], found[-1]
            form = percent if key.startswith("top") else number if "loss" in key else "{:.3g}".format
            said.append(f"{_WORDS[key]} {form(start)} at epoch {first:.4g}, {form(end)} at epoch {last:.4g}")
    return "; ".join(said) + "."


# ---------------------------------------------------------------------------------------------- calibration
def calibration_section(material: Material, pictures: Pictures) -> Section:
    """Return how far the stated probabilities can be believed."""
    title, found = "Calibration", (material.measured or {}).get("calibration")
    if not found or not sum(count for count, _, _ in found["bins"]):
        return section("calibration", title, missing("Calibration: not recorded."))
    bins = found["bins"]
    total = sum(count for count, _, _ in bins)
    confidence, accuracy = (sum(row[0] * (row[place] or 0) for row in bins) / total for place in (1, 2))
    error = number(found["expected_calibration_error"])
    figure = plot(
        pictures, "reliability", lambda theme: draw_reliability(bins, found.get("calibrated_bins"), theme=theme),
        alt=f"Reliability diagram of {total:,} pictures: mean confidence {percent(confidence)}, named rightly "
            f"{percent(accuracy)}, expected calibration error {error}.",
        caption=["Each bar holds the pictures whose named class got about that probability. Below the dashed line: "
                 "surer than right. Above it: less sure than right. Grey bars tell how many pictures a bar stands for; "
                 "pale ones stand for fewer than ten."],
    )  # fmt: skip
    surer = confidence > accuracy
    said = (
        f"The named class has a mean probability of {percent(confidence)} and is right in {percent(accuracy)}: on the "
        f"whole the model is {'surer than it is right' if surer else 'less sure than it is right'}."
    )
    pairs: list[tuple[str, Child]] = []
    intervals = (material.measured or {}).get("intervals", {})
    for key, name, form in (
        ("expected_calibration_error", "calibration error", number),
        ("temperature", "best temperature", "{:.3f}".format),
        ("calibrated_error", "error with it", number),
        ("brier", "Brier score", number),
    ):
        if found.get(key) is not None:
            within = between(intervals.get(key), form)
            pairs.append((name, form(found[key]) + (f" (95% interval {within})" if within else "")))
    listed = [
        [f"{place / len(bins):.0%} to {(place + 1) / len(bins):.0%}", f"{count:,}", percent(mean), percent(share)]
        for place, (count, mean, share) in enumerate(bins)
        if count
    ]
    head = ["confidence", "pictures", "mean confidence", "named rightly"]
    numbers = details("The bins in numbers", table(head, listed, caption="Bins with pictures"))
    return section("calibration", title, tag("div", figure, tag("div", tag("p", said), facts(pairs), numbers),
                                             class_="side"))  # fmt: skip


# ---------------------------------------------------------------------------------------------- confusions
def confusion_section(material: Material, pictures: Pictures) -> Section:
    """Return what is taken for what: the matrix, and the most frequent mistakes in a table."""
    title, names = "What is taken for what", material.label_names
    if material.predictions is None:
        pairs = (material.measured or {}).get("confusions")
        if not pairs:
            return section("confusions", title, missing("Confusions: not recorded."))
        rows = [[word(true), word(taken), f"{count:,}"] for true, taken, count in pairs]
        found = table(["class", "taken for", "pictures"], rows, caption="The most frequent mistakes", words=2)
        return section("confusions", title, missing("The confusion matrix: no predictions were recorded."), found)
    counts = confusion_counts(material.predictions.scores)
    wrong = int(counts.sum() - np.trace(counts))
    top = top_confusions(counts, _PAIRS)
    if top:
        rows = [[word(names[true]), word(names[taken]), f"{count:,} of {n:,}"] for true, taken, count, n in top]
        found = table(["class", "taken for", "pictures"], rows, caption="The most frequent mistakes", words=2)
    else:
        found = tag("p", "No picture was taken for another class.")
    most = f" Most often {names[top[0][0]]} was taken for {names[top[0][1]]}: {top[0][2]:,} times." if top else ""
    alt = f"Confusion matrix of {len(names):,} classes and {counts.sum():,} pictures, {wrong:,} of them named wrongly."
    figure, groups = _draw_matrix(counts, names, pictures, alt + most)
    listed = None
    if groups:
        members = [
            [str(place), word(group.name), _listing([names[index] for index in group.members])]
            for place, group in enumerate(groups, 1)
        ]
        head = ["no.", "group", "classes"]
        groups_table = table(head, members, caption="From the top of the matrix", words=3)
        listed = details("The groups and their classes", groups_table)
    return section("confusions", title, tag("div", figure, tag("div", found), class_="side"), listed)


def _listing(names: Sequence[str]) -> Element:
    """Return names, separated by commas."""
    whole = tag("span")
    for place, name in enumerate(names):
        if place:
            whole[-1].tail = ", "
        whole.append(word(name))
    return whole


def _draw_matrix(counts: np.ndarray, names: Sequence[str], pictures: Pictures, alt: str) -> tuple[Element, list[Group]]:
    """Choose the form of the matrix by the number of classes; returns it and the groups that its blocks are."""
    groups: list[Group] = []
    if len(names) <= _ALL_NAMED:
        order = list(range(len(names))) if len(names) <= NUMBERED else order_classes(counts)
        blocks = [(names[index], 1) for index in order]
        mistakes, right = _arranged(counts, order)
        caption = "Rows are the true class, columns what it was taken for. "
        caption += "Numbers are pictures; " if len(names) <= NUMBERED else "Confused classes lie together; "
        caption += "only mistakes are coloured, the stronger the larger their share of the row."
    else:
        known = superclasses(names)
        if known is not None:
            groups = group_known(known, counts)
            kind = "Groups are the superclasses of the data"
        else:
            groups = cut_into_groups(
                counts, order_classes(counts), _BLOCKS if len(names) <= _ALL_DRAWN else _GROUPS, names
            )
            kind = "Groups are found from the mistakes, and named by their most confused members"
        order = [index for group in groups for index in group.members]
        if len(names) <= _ALL_DRAWN:
            blocks = [(group.name, len(group.members)) for group in groups]
            mistakes, right = _arranged(counts, order)
            caption = (
                "Each point is a pair of classes: row the true one, column what it was taken for, mistakes only. "
                f"{kind}; the frames on the diagonal hold mistakes within a group, points outside are mistakes across."
            )
        else:
            blocks = [(group.name, 1) for group in groups]
            whole = add_up(counts, groups)
            inside = [int(np.trace(counts[np.ix_(group.members, group.members)])) for group in groups]
            mistakes, right = whole - np.diag(inside), whole.sum(axis=1)
            caption = (
                f"{len(names):,} classes in {len(groups)} groups; a cell is the share of a group's pictures that were "
                f"taken for a class of the column's group. {kind}; the diagonal holds mistakes within a group."
            )
    figure = plot(pictures, "confusion", lambda theme: draw_confusion(mistakes, right, blocks, theme=theme),
                  alt=alt, caption=[caption])  # fmt: skip
    return figure, groups


def _arranged(counts: np.ndarray, order: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return mistakes and pictures of classes in an order."""
    part = counts[np.ix_(order, order)]
    return part - np.diag(np.diag(part)), part.sum(axis=1)


# ---------------------------------------------------------------------------------------------- classes
def classes_section(material: Material, pictures: Pictures) -> Section:
    """Return the classes that are told worst and best, and all of them in a table."""
    title, found = "Class by class", (material.measured or {}).get("per_class")
    if not found:
        return section("classes", title, missing("Scores by class: not recorded."))
    rows = [[*row[:3], *(row[3:5] if len(row) >= 5 else (None, None))] for row in found]
    ranked = sorted(rows, key=lambda row: (row[2] / row[1], -row[1]))
    side = tag("div", class_="side")
    if len(ranked) <= _ALL_CLASSES:
        parts = {"classes": ("all classes, the worst first", ranked)}
    else:
        parts = {"worst_classes": (f"the {_ENDS} worst classes", ranked[:_ENDS]),
                 "best_classes": (f"the {_ENDS} best classes", ranked[: -_ENDS - 1 : -1])}  # fmt: skip
    for name, (what, part) in parts.items():
        side.append(_draw_part(name, what, part, pictures))
    unseen = len(material.label_names) - len(rows)
    note = tag("p", f"{unseen:,} of the classes have no picture in the split.", class_="note") if unseen > 0 else None
    listed = [[word(name), f"{correct:,}", f"{n:,}", percent(correct / n), between((low, high), percent) or "-"
               if low is not None else "-"] for name, n, correct, low, high in ranked]  # fmt: skip
    head = ["class", "right", "of", "share", "95% interval"]
    whole = details(f"All {len(rows):,} classes in numbers", table(head, listed, caption="The worst first"))
    return section("classes", title, side, note, whole)


def _draw_part(name: str, what: str, part: list[list[Any]], pictures: Pictures) -> Element:
    (worst, n, correct, *_) = part[0]
    caption = f"{what[0].upper()}{what[1:]}: the share of a class's pictures that is named rightly"
    caption += ", with its 95% interval." if part[0][3] is not None else "."
    if name != "best_classes":
        caption += " Where intervals overlap, the order is chance."
    return plot(pictures, name, lambda theme: draw_classes(part, theme=theme),
                alt=f"Share named rightly, {what}; first {worst} with {correct:,} of {n:,} ({percent(correct / n)}).",
                caption=[caption])  # fmt: skip
