"""How good and how sure a model is, and where it is wrong: figures with intervals, calibration, classes, confusions.

All of it is a function of logits and labels alone, in the split's order, and the resampling has a fixed seed, so that
anyone who has the predictions gets the same numbers. Only the temperature is fitted, and no figure is measured on the
samples it was fitted to.

Shapes: N samples, L classes, K classes that have samples, R resamples.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .bootstrap import on_grid, percentile_interval, resample_classes
from .calibration import BINS, bin_of, calibrate, calibrate_after_temperature, refit
from .intervals import balanced_interval, class_intervals, distance_interval, ratio, share_interval
from .metrics.samples import names_group, names_real, probability_figures, top_k_correct
from .scoring import Scores
from .superclasses import superclasses

CONFUSIONS = 10
_SAMPLES_AT_ONCE = 1_024  # of whose logits a copy is held

Columns = dict[str, np.ndarray]


def analyse(
    scores: Scores, label_names: Sequence[str], *, real_labels: Sequence[Sequence[int]] | None = None
) -> dict[str, Any]:
    """Return what results.json holds beside the scores.

    Args:
        scores: of a split, in its order.
        label_names: of the model's classes, in the order of the logits.
        real_labels: ImageNet's reassessed labels (see `read_real_labels`), N sets of class indices.

    Returns:
        balanced_accuracy: mean of the top-1 accuracies of the classes that the split has.
        superclass_top1: share of the samples whose named class lies in the superclass of the true one; only where the
            classes have superclasses (see `superclasses`).
        real_top1, real_n: share of the samples that have reassessed labels whose named class is one of them, and how
            many have; only with `real_labels`.
        intervals: [low, high] of top1, top5, loss, balanced_accuracy, brier, expected_calibration_error,
            calibrated_error, temperature, and of superclass_top1 and real_top1 where they are: 95%, by 2,000 bootstrap
            resamples of the samples, the same for all figures (see `bootstrap` and `intervals`). They say how much a
            figure would move with other test pictures of the same kind, nothing about other training seeds.
        calibration: `bins`, 15 of equal width of the confidence (the largest softmax probability), each [count, mean
            confidence, accuracy], a bin taking its upper edge and the means null where it is empty;
            `expected_calibration_error`, the mean distance of confidence and accuracy, weighted by count (Guo et al.
            2017); `brier`, the mean squared distance of the probabilities from the truth, summed over classes, from 0
            to 2 (Brier 1950); `temperature`, by which to divide the logits for the least cross-entropy, fitted to all
            samples; `calibrated_error` and `calibrated_bins`, the same after a temperature, each half of the samples
            with that of the other half (see `calibrate_after_temperature`).
        per_class: [name, n, correct, low, high] of each class that the split has, in the model's order, the last two
            the interval of its accuracy.
        confusions: the 10 most frequent mistakes, [true class, predicted class, count]; of equal counts the first in
            the model's order.

    Raises:
        ValueError: there are not as many names as classes, or logits, labels and `real_labels` do not fit.
    """
    classes = scores.logits.shape[1]
    if len(label_names) != classes:
        raise ValueError(f"{len(label_names)} label names for logits of {classes} classes; expected one a class")
    logits, labels = scores.logits, scores.labels.long()
    columns = _measure(logits, labels, superclasses(label_names), real_labels)
    rival = columns.pop("rival")
    before = calibrate(columns["confidence"], columns["top1"])
    after = calibrate_after_temperature(logits, labels)
    columns |= {name: after.pop(name) for name in ("slope", "curvature")}
    columns |= {"calibrated_confidence": after.pop("confidence")}

    count = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels, weights=columns["top1"], minlength=classes).astype(int)
    present = np.flatnonzero(count).tolist()
    intervals, per_class = _intervals(columns, labels.numpy(), classes=classes, temperature=after["temperature"])
    wrong = columns["top1"] == 0
    pairs = Counter(zip(labels.numpy()[wrong].tolist(), rival[wrong].astype(int).tolist(), strict=True))
    most = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]
    found: dict[str, Any] = {"balanced_accuracy": math.fsum(correct[present] / count[present]) / len(present)}
    if "superclass_top1" in columns:
        found["superclass_top1"] = float(columns["superclass_top1"].mean())
    if "real_top1" in columns:
        found["real_n"] = int(columns["real_n"].sum())
        found["real_top1"] = float(columns["real_top1"].sum() / found["real_n"])
    return {
        **found,
        "intervals": intervals,
        "calibration": {**before, "brier": math.fsum(columns["brier"]) / len(labels), **after},
        "per_class": [
            [label_names[place], int(count[place]), int(correct[place]), *interval]
            for place, interval in zip(present, per_class, strict=True)
        ],
        "confusions": [[label_names[true], label_names[predicted], n] for (true, predicted), n in most],
    }


def _measure(
    logits: torch.Tensor,
    labels: torch.Tensor,
    groups: Sequence[str] | None,
    real_labels: Sequence[Sequence[int]] | None,
) -> Columns:
    """Return the figures of each sample, each (N,) float64; shares as 0 and 1."""
    if real_labels is not None and len(real_labels) != len(labels):
        raise ValueError(f"{len(real_labels)} sets of real labels for {len(labels)} samples; expected one a sample")
    named = {f"top{k}": top_k_correct(logits, labels, k) for k in (1, 5)}
    named |= zip(("loss", "confidence", "brier"), probability_figures(logits, labels), strict=True)
    numbers = torch.tensor([sorted(set(groups)).index(name) for name in groups]) if groups is not None else None
    parts: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(labels), _SAMPLES_AT_ONCE):
        rows = slice(start, start + _SAMPLES_AT_ONCE)
        some, truth = logits[rows], labels[rows]
        found = {"rival": some.scatter(1, truth[:, None], -torch.inf).argmax(dim=1)}  # the strongest wrong class
        if numbers is not None:
            found["superclass_top1"] = names_group(some, truth, numbers)
        if real_labels is not None:
            hits = names_real(some, real_labels[rows])
            found |= {"real_top1": hits == 1, "real_n": hits >= 0}
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    named |= {name: torch.cat(values) for name, values in parts.items()}
    if "real_n" in named and not named["real_n"].any():
        raise ValueError("no sample has a real label; expected the labels of the split that was scored")
    return {name: values.double().numpy() for name, values in named.items()}


def _intervals(
    columns: Columns, labels: np.ndarray, *, classes: int, temperature: float
) -> tuple[dict[str, list[float]], list[list[float]]]:
    """Return the intervals of all figures by name, and of the accuracies of the K classes, from the same resamples.

    Args:
        columns: figures of each sample.
        labels: (N,), the true classes.
        classes: L.
        temperature: fitted to all samples.
    """
    n, right = len(labels), columns["top1"]
    plain = [name for name in columns if "confidence" not in name]
    gaps = [_by_bin(columns[name], right) for name in ("confidence", "calibrated_confidence")]  # 2 of (N, 15)
    values = np.concatenate([np.stack([columns[name] for name in plain], axis=1), *gaps], axis=1)
    means, *by_class = resample_classes(values, labels, right)
    of = {name: means[:, place] for place, name in enumerate(plain)}  # each (R,)
    found = {name: percentile_interval(of[name]).tolist() for name in ("loss", "brier")}
    for name, k in (("top1", 1), ("top5", 5), ("superclass_top1", 0)):
        if name in of:  # of k classes or fewer every sample is right, whatever the model
            found[name] = share_interval(of[name], float(columns[name].mean()), n) if classes > k else [1.0, 1.0]
    if "real_top1" in of:
        counted = int(columns["real_n"].sum())
        found["real_top1"] = share_interval(
            ratio(of["real_top1"], of["real_n"]), float(columns["real_top1"].sum() / counted), counted
        )
    by_bin = means[:, len(plain) :].reshape(-1, 2, BINS)
    for place, name in enumerate(("expected_calibration_error", "calibrated_error")):
        found[name] = distance_interval(by_bin[:, place], on_grid(gaps[place]).mean(axis=0))
    found["temperature"] = percentile_interval(refit(temperature, of["slope"], of["curvature"])).tolist()
    if classes == 1:
        return {**found, "balanced_accuracy": [1.0, 1.0]}, [[1.0, 1.0]]
    count = np.bincount(labels)
    correct = np.bincount(labels, weights=right)[count > 0]
    found["balanced_accuracy"] = balanced_interval(*by_class, correct=correct, count=count[count > 0])
    return found, class_intervals(*by_class, correct=correct, count=count[count > 0])


def _by_bin(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return each sample's distance of confidence and correctness in the column of its bin, (N, 15)."""
    gaps = np.zeros((len(right), BINS))
    gaps[np.arange(len(right)), bin_of(confidence)] = confidence - right
    return gaps
