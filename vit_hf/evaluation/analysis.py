"""How sure a score is, and where it comes from: intervals, calibration, classes and confusions.

All of it is a function of logits and labels alone, and the resampling has a fixed seed, so that anyone who has the
predictions gets the same numbers. Nothing is fitted: on the test split that would flatter the model.

Shapes: N samples, L classes, R resamples.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .metrics import top_k_correct
from .scoring import Scores

RESAMPLES, CONFIDENCE, BINS, CONFUSIONS = 2_000, 0.95, 15, 10
_SEED = 0
_SAMPLES_AT_ONCE = 4_096  # whose probabilities are held in float64
_DRAWS_AT_ONCE = 1_000_000


def analyse(scores: Scores, label_names: Sequence[str]) -> dict[str, Any]:
    """Return what results.json holds beside the scores.

    Args:
        scores: of a split.
        label_names: of the model's classes, in the order of the logits.

    Returns:
        intervals: of top1, top5 (fractions) and loss (nats), [low, high]: the 95% percentile interval of 2,000
            bootstrap resamples of the split's samples (Efron 1979; NumPy's default generator, seed 0). It says how much
            the score would move with other test pictures of the same kind, nothing about other training seeds.
        calibration: `bins`, 15 of equal width of the confidence (the largest softmax probability), each [count, mean
            confidence, accuracy], a bin taking its upper edge and the means null where it is empty;
            `expected_calibration_error`, the mean distance of confidence and accuracy, weighted by count (Guo et al.
            2017); `brier`, the mean squared distance of the probabilities from the truth, summed over classes, from 0
            to 2 (Brier 1950).
        per_class: [name, n, correct] of each class that the split has, in the model's order.
        confusions: the 10 most frequent mistakes, [true class, predicted class, count]; of equal counts the first in
            the model's order.

    Raises:
        ValueError: there are not as many names as classes, or logits and labels do not fit.
    """
    classes = scores.logits.shape[1]
    if len(label_names) != classes:
        raise ValueError(f"{len(label_names)} label names for logits of {classes} classes; expected one a class")
    top1, top5 = (top_k_correct(scores.logits, scores.labels, k).double() for k in (1, 5))
    split = (tensor.split(_SAMPLES_AT_ONCE) for tensor in (scores.logits, scores.labels))
    parts = [_measure(*part) for part in zip(*split, strict=True)]
    loss, confidence, brier, rival = (torch.cat(column) for column in zip(*parts, strict=True))  # each (N,)
    values = torch.stack([top1, top5, loss], dim=1).numpy()  # (N, 3)
    intervals = bootstrap(values)
    count = torch.bincount(scores.labels, minlength=classes).tolist()
    correct = torch.bincount(scores.labels, weights=top1, minlength=classes).tolist()
    wrong = top1 == 0
    pairs = Counter(zip(scores.labels[wrong].tolist(), rival[wrong].tolist(), strict=True))
    most = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]
    return {
        "intervals": {name: intervals[:, place].tolist() for place, name in enumerate(("top1", "top5", "loss"))},
        "calibration": {**calibrate(confidence.numpy(), top1.numpy()), "brier": brier.mean().item()},
        "per_class": [[label_names[i], count[i], int(correct[i])] for i in range(classes) if count[i]],
        "confusions": [[label_names[true], label_names[predicted], n] for (true, predicted), n in most],
    }


def _measure(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return cross-entropy, confidence, squared distance and the strongest wrong class of (B, L), each (B,)."""
    log_probabilities = logits.double().log_softmax(dim=1)  # (B, L)
    probabilities = log_probabilities.exp()
    of_truth = labels[:, None]
    truth = probabilities.gather(1, of_truth)[:, 0]  # (B,)
    brier = probabilities.square().sum(dim=1) - truth.square() + (1 - truth).square()
    rival = logits.scatter(1, of_truth, -torch.inf).argmax(dim=1)
    return -log_probabilities.gather(1, of_truth)[:, 0], probabilities.amax(dim=1), brier, rival


def bootstrap(values: np.ndarray) -> np.ndarray:
    """Return the percentile interval of the mean of each column over resampled rows.

    Args:
        values: (N, columns), float64.

    Returns:
        (2, columns): low and high.
    """
    generator, n = np.random.default_rng(_SEED), len(values)
    at_once = max(_DRAWS_AT_ONCE // n, 1)
    means = np.concatenate(
        [
            values[generator.integers(n, size=(min(at_once, RESAMPLES - start), n))].mean(axis=1)
            for start in range(0, RESAMPLES, at_once)
        ]
    )  # (R, columns)
    return np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)


def calibrate(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Return `bins` and `expected_calibration_error` as `analyse` does.

    Args:
        confidence: (N,), float64 in [0, 1].
        correct: (N,), float64, 1 where the prediction is right.
    """
    edges = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(edges[1:-1], confidence)  # (N,): the bin whose lower edge is below, its upper one not
    counts = np.bincount(place, minlength=BINS)
    sums = [np.bincount(place, weights=column, minlength=BINS) for column in (confidence, correct)]
    bins = [[int(n), *(float(total[bin] / n) if n else None for total in sums)] for bin, n in enumerate(counts)]
    return {
        "expected_calibration_error": float(np.abs(sums[0] - sums[1]).sum() / len(confidence)),
        "bins": bins,
    }
