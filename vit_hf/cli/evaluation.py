"""`vit-hf evaluate`."""

import argparse
import json
import re
from typing import Any

from .words import Add, positive

_HEADLINES = (  # key in the results, words, how it is written
    ("top1", "top-1", "{:.2%}"),
    ("top5", "top-5", "{:.2%}"),
    ("balanced_accuracy", "balanced accuracy", "{:.2%}"),
    ("superclass_top1", "superclass top-1", "{:.2%}"),
    ("real_top1", "ReaL top-1", "{:.2%}"),
    ("loss", "cross-entropy (nats)", "{:.4f}"),
    ("brier", "Brier score (0 to 2)", "{:.4f}"),
    ("expected_calibration_error", "expected calibration error", "{:.2%}"),
    ("calibrated_error", "  after temperature scaling", "{:.2%}"),
    ("temperature", "  temperature", "{:.3f}"),
)


def add_commands(add: Add) -> None:
    """Add the command that scores a model."""
    evaluate = add("evaluate", _evaluate, "Score a model on a split, every picture once, or measure its scores anew.")
    evaluate.add_argument(
        "model", metavar="MODEL", help="model folder or Hub id; or predictions.parquet, or its folder: no model runs"
    )
    evaluate.add_argument("--data", metavar="SOURCE", help="data to score (default: what a run folder was trained on)")
    evaluate.add_argument("--split", metavar="NAME", help="split (default: test, else validation)")
    evaluate.add_argument("--output", metavar="DIR", help="new folder for results.json and predictions.parquet")
    evaluate.add_argument("--batch-size", type=positive, default=64, metavar="N", help="of a process (default: 64)")
    sizes = evaluate.add_mutually_exclusive_group()
    sizes.add_argument(
        "--image-size",
        type=_sizes,
        default=(),
        metavar="SIZE[,...]",
        help="pixels, N or HxW, positions resampled; the probabilities of several are averaged (default: the model's)",
    )
    sizes.add_argument(
        "--curve", type=_sizes, metavar="SIZE,...", help="accuracy at each of these sizes: sizes.json and sizes.png"
    )
    evaluate.add_argument(
        "--crops", type=int, choices=(1, 5), default=1, help="5: average over centre and corners (default: 1)"
    )
    evaluate.add_argument("--flip", action="store_true", help="average over each view and its mirror image")
    evaluate.add_argument("--real-labels", metavar="FILE", help="real.json, ImageNet's reassessed labels, for ReaL")
    evaluate.add_argument(
        "--on-bad-image",
        choices=("raise", "skip"),
        help="skip: leave out pictures that cannot be decoded, up to 1%% of them (default: as the run did, else raise)",
    )
    evaluate.add_argument("--json", action="store_true", help="print the results as JSON")


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Read `N` or `HxW`, several with commas between; an `argparse` type."""
    found = [re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", word) for word in text.split(",")]
    if None in found:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of sizes; expected N or HxW, with commas between")
    return tuple((int(size[1]), int(size[2] or size[1])) for size in found if size is not None)


def _evaluate(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..evaluation.run import evaluate
    from ..evaluation.sizes import evaluate_sizes
    from ..evaluation.views import Views, say_sizes

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shared = ("data", "split", "output", "batch_size", "real_labels", "on_bad_image")
    chosen: dict[str, Any] = {name: getattr(options, name) for name in shared}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def show(words: str, done: int, total: int | None) -> None:
            if words not in tasks:
                tasks[words] = progress.add_task(words)
            progress.update(tasks[words], completed=done, total=total)

        if options.curve:
            measured = evaluate_sizes(
                options.model,
                options.curve,
                **chosen,
                crops=options.crops,
                flip=options.flip,
                on_batch=lambda size, done, total: show(f"scoring at {say_sizes([size])}", done, total),
            )
        else:
            measured = evaluate(
                options.model,
                **chosen,
                views=Views(image_sizes=options.image_size, crops=options.crops, flip=options.flip),
                on_batch=lambda done, total: show("scoring", done, total),
            )
    if measured is None:  # another process says it
        return 0
    if options.json:
        print(json.dumps(measured, indent=2))
    else:
        Console().print(_curve_table(measured) if options.curve else _table(measured))
        if options.output:
            print(f"written: {options.output}")
    return 0


def _new_table(measured: dict[str, Any], views: str, *columns: str):
    from rich.markup import escape
    from rich.table import Table

    title = f"on {measured['n']:,} pictures of {escape(measured['data'])}, split {escape(measured['split'])}{views}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def _table(measured: dict[str, Any]):
    """Return the headline figures, each with its interval."""
    table = _new_table(measured, _say_views(measured["views"]), "measure", "value", "95% interval")
    values = {**measured["calibration"], **measured}
    for key, words, form in _HEADLINES:
        if values.get(key) is None:
            continue
        if key == "real_top1":
            words += f" ({measured['real_n']:,} pictures)"
        ends = measured["intervals"].get(key)
        table.add_row(words, form.format(values[key]), _say_interval(ends, form) if ends else "")
    if measured.get("left_out"):
        table.caption = f"{len(measured['left_out']):,} pictures that cannot be decoded are left out"
    return table


def _say_interval(ends: list[float], form: str) -> str:
    low, high = map(form.format, ends)
    return f"{low.removesuffix('%')} to {high}"


def _say_views(views: dict[str, Any] | None) -> str:
    from ..evaluation.views import say_sizes

    if views is None:
        return ""
    words = [f"at {say_sizes(views['image_sizes'])} pixels"]
    words += ["five crops"] * (views["crops"] == 5) + ["mirrored too"] * views["flip"]
    average = f" (mean of {views['count']} views)" if views["count"] > 1 else ""
    return f",\n{', '.join(words)}{average}"


def _curve_table(measured: dict[str, Any]):
    """Return accuracy by size, the model's own size marked."""
    from ..evaluation.views import say_sizes

    per_size = 5 * measured["flip"] + 5 if measured["crops"] == 5 else 1 + measured["flip"]
    views = f", mean of {per_size} views" if per_size > 1 else ""
    table = _new_table(measured, views, "image size", "tokens", "top-1", "95% interval", "loss (nats)", "pictures/s")
    for row in measured["sizes"]:
        own = " *" if row["image_size"] == measured["trained_size"] else ""
        table.add_row(
            say_sizes([row["image_size"]]) + own,
            f"{row['tokens']:,}",
            f"{row['top1']:.2%}",
            _say_interval(row["interval"], "{:.2%}"),
            f"{row['loss']:.4f}",
            f"{measured['n'] / max(row['seconds'], 0.1):,.0f}",
        )
    table.caption = "* the model's own size; elsewhere its positions are resampled"
    return table
