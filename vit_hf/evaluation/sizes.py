"""Accuracy against image size: one model at several sizes, its positions resampled, every picture once at each.

A Vision Transformer takes any image of whole patches once its positions are resampled (section 3.2 of the paper, for
fine-tuning); what that does without fine-tuning, at more and at fewer tokens than it was trained with, is measured here
(the "train-test resolution discrepancy" of Touvron et al., 2019).
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..configuration_vit_hf import VitHfConfig
from ..inspection.style import BLUE, LIGHT, Theme, add_legend, new_figure, save_figure, style_axes
from .output import check_output, published, write_json, write_scores
from .run import check_real_labels, find_scores, measure, new_accelerator, open_subject, predict_split
from .views import Views, check_size, say_sizes

OnBatch = Callable[[tuple[int, int], int, int | None], None]


def evaluate_sizes(
    model: str | Path,
    sizes: Sequence[tuple[int, int]],
    *,
    data: str | None = None,
    split: str | None = None,
    output: str | Path | None = None,
    batch_size: int = 64,
    crops: int = 1,
    flip: bool = False,
    real_labels: str | Path | None = None,
    on_bad_image: str | None = None,
    on_batch: OnBatch = lambda size, done, total: None,
) -> dict[str, Any] | None:
    """Score a split at each of several image sizes; arguments and errors beyond these as of `evaluate`.

    Args:
        model: folder or Hub id, or what `load_checkpoint` takes.
        sizes: (height, width) in pixels, each of whole patches; looked at before anything runs.
        data: what `load_source` takes.
        split: name of the split.
        output: new folder for sizes.json, sizes.png, and for each size a folder HxW that `evaluate` could have written.
        batch_size: pictures a process takes at once.
        crops: views at each size, 1 or 5.
        flip: show each view mirrored too.
        real_labels: file of ImageNet's reassessed labels, for the results of each size.
        on_bad_image: as of `evaluate`.
        on_batch: called on the main process after each batch with the size, pictures scored and their total.

    Returns:
        model, data, split, n, trained_size (the model's own, [height, width]), and `sizes`, a row each: image_size,
        tokens, top1 and its 95% interval, loss (nats), seconds (of decoding and scoring). None on other processes.

    Raises:
        ValueError: a size is named twice, or the patch size does not divide it; or earlier scores were named.
    """
    Views(image_sizes=tuple(sizes), crops=crops, flip=flip)  # raises for a size that is named twice
    folder = check_output(output)
    if not sizes:
        raise ValueError("there is no image size; expected at least one")
    if find_scores(model) is not None:
        raise ValueError(f"{model} holds scores and no model; expected a model to score at other image sizes")
    accelerator = new_accelerator()
    subject = open_subject(model, data=data, split=split, on_bad_image=on_bad_image)
    config = subject.model.config
    for size in sizes:
        check_size(config, size)
    check_real_labels(subject, real_labels)
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(published(folder)) if folder is not None and accelerator.is_main_process else None
        rows = []
        for size in sizes:
            started = time.perf_counter()
            predictions = predict_split(
                subject,
                Views(image_sizes=(size,), crops=crops, flip=flip),
                accelerator,
                batch_size=batch_size,
                on_batch=partial(on_batch, size),
            )
            if predictions is None:
                continue
            seconds = round(time.perf_counter() - started, 1)
            results = {**measure(predictions, real_labels), "model": str(model)}
            rows.append({**_row(config, size, results), "seconds": seconds})
            if made is not None:
                place = made / "{}x{}".format(*size)
                place.mkdir()
                write_scores(place, predictions, results)
        if not accelerator.is_main_process:
            return None
        about = {name: results[name] for name in ("model", "data", "split", "n")}
        curve = {**about, "trained_size": list(config.image_hw), "crops": crops, "flip": flip, "sizes": rows}
        if made is not None:
            write_json(made / "sizes.json", curve)
            save_figure(draw_accuracy_by_size(rows, trained_size=config.image_hw), made / "sizes.png")
    return curve


def _row(config: VitHfConfig, size: tuple[int, int], results: Mapping[str, Any]) -> dict[str, Any]:
    grid = [pixels // patch for pixels, patch in zip(size, config.patch_hw, strict=True)]
    return {
        "image_size": list(size),
        "tokens": config.num_prefix_tokens + math.prod(grid),
        "top1": results["top1"],
        "interval": results["intervals"]["top1"],
        "loss": results["loss"],
    }


def draw_accuracy_by_size(
    rows: Sequence[Mapping[str, Any]], *, trained_size: Sequence[int] | None = None, theme: Theme = LIGHT
) -> Figure:
    """Draw top-1 with its 95% interval over the image size.

    Args:
        rows: as `evaluate_sizes` returns them, at least one, in any order.
        trained_size: the model's own (height, width), which is marked.
        theme: colours.
    """
    rows = sorted(rows, key=lambda row: (_side(row["image_size"]), row["image_size"]))
    sides = [_side(row["image_size"]) for row in rows]
    figure = new_figure(4.2, 3.0, theme=theme)
    ax = figure.subplots()
    style_axes(ax, "image size (pixels)", "top-1 (%)", theme=theme)
    ax.grid(axis="y", color=theme.pale, linewidth=0.8)
    ax.set_axisbelow(True)
    top1 = [100 * row["top1"] for row in rows]
    low, high = ([100 * row["interval"][end] for row in rows] for end in (0, 1))
    ax.fill_between(sides, low, high, color=BLUE, alpha=0.25, linewidth=0, label="95% interval")
    ends = [[abs(value - edge) for value, edge in zip(top1, edges, strict=True)] for edges in (low, high)]
    ax.errorbar(sides, top1, ends, color=BLUE, marker="o", markersize=4, linewidth=1.5, elinewidth=1, capsize=2)
    if trained_size is not None:
        side = _side(trained_size)
        ax.axvline(side, color=theme.grey, linestyle="--", linewidth=1, label=f"trained at {say_sizes([trained_size])}")
    ticks: dict[float, list[str]] = {}
    for side, row in zip(sides, rows, strict=True):
        ticks.setdefault(side, []).append(say_sizes([row["image_size"]]))
    ax.set_xticks(list(ticks), ["\n".join(names) for names in ticks.values()])
    gaps = [right - left for left, right in itertools.pairwise(ticks)]
    if gaps and min(gaps) < 0.1 * (sides[-1] - sides[0]):
        ax.tick_params(axis="x", labelrotation=60)
    add_legend(ax, theme=theme)
    return figure


def _side(size: Sequence[int]) -> float:
    """Side in pixels of the square of as many pixels."""
    return math.sqrt(size[0] * size[1])
