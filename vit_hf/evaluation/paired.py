"""Compare two classifiers on the same samples, from what each said of every one of them; nothing is run again.

That both were tested on the same pictures is what makes the comparison sharp: what is hard for both cancels, and only
the samples on which they differ say anything. Top-1 is tested exactly (McNemar 1947): of the samples that one model has
right and the other wrong, each side has as many as the other but for chance; the two-sided p-value is that of a fair
coin. The intervals of the differences resample the samples, both models alike (`bootstrap`). All of it says how the
result would move with other test pictures of the same kind, nothing about other training seeds.

Differences are B - A, so that swapping the two turns the sign of every number and changes nothing else. The classes are
tested one by one in the same way, and their p-values corrected for being many (Holm 1979): the chance to name even one
class wrongly at the 5% level is at most 5%.

Shapes: N samples, L classes, R resamples.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from .bootstrap import percentile_interval, resample_counts, resample_means
from .metrics import top_k_correct
from .predictions import PREDICTIONS, Predictions, read_predictions

LEVEL, SAMPLES = 0.05, 20
_SAMPLES_AT_ONCE = 4_096  # whose probabilities are held in float64
_STREAMED = "streaming"


def find_predictions(path: str | Path) -> Predictions:
    """Read the predictions of a run folder, of a folder of `vit-hf evaluate --output`, or of a file."""
    path = Path(path)
    return read_predictions(path / PREDICTIONS if path.is_dir() else path)


def compare(a: Predictions, b: Predictions) -> dict[str, Any]:
    """Compare two models that were scored on the same samples.

    Args:
        a, b: of one split; the classes may stand in another order, they are matched by name.

    Returns:
        data, split, n; `matched_by` "fingerprint" or "labels" (where a split was streamed, so that only the labels tell
        that the samples are the same).
        scores: of top1, top5, balanced_accuracy (mean accuracy of the classes that there are; fractions) and loss
            (nats): a, b, difference, interval ([low, high] of the difference, 95%).
        mcnemar: both_right, only_a, only_b, both_wrong (samples), p.
        agreement: share of the samples for which both predict the same class.
        errors: a, b, both (samples), overlap (both / either; null without errors), same_class (both, with one mistake).
        per_class: name, n, a, b (right), only_a, only_b, p, p_holm, of each class that there is.
        samples: the 20 for which the two give the true class the most different probabilities, by the difference of
            their losses: row, label, difference, and of a and b: predicted, probability, probability_of_label.

    Raises:
        ValueError: not the same samples or classes.
    """
    first, second = _common_numbers(a, b)
    _check_same_samples(a, b, first.labels, second.labels)
    right_a, right_b = first.values["top1"] == 1, second.values["top1"] == 1
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return {
        "data": a.data,
        "split": a.split,
        "n": len(first.labels),
        "matched_by": "labels" if _STREAMED in (a.sha256, b.sha256) else "fingerprint",
        "scores": _compare_scores(first, second),
        "mcnemar": {
            "both_right": int((right_a & right_b).sum()),
            "only_a": only_a,
            "only_b": only_b,
            "both_wrong": int((~right_a & ~right_b).sum()),
            "p": mcnemar(only_a, only_b),
        },
        "agreement": float((first.predicted == second.predicted).mean()),
        "errors": _compare_errors(first, second),
        "per_class": _compare_classes(first, second),
        "samples": _most_different(first, second, a.scores.rows),
    }


def verdict(comparison: dict[str, Any]) -> str:
    """Say what the comparison shows of top-1, and no more.

    Args:
        comparison: as `compare` returns it.
    """
    top1, p, n = comparison["scores"]["top1"], comparison["mcnemar"]["p"], comparison["n"]
    low, high = (f"{100 * bound:+.2f}" for bound in top1["interval"])
    numbers = f"{100 * top1['difference']:+.2f} points of top-1, 95% interval {low} to {high}, McNemar p = {p:.2g}"
    if comparison["mcnemar"]["only_a"] + comparison["mcnemar"]["only_b"] == 0:
        return f"A and B are right on the same {comparison['mcnemar']['both_right']:,} of {n:,} samples."
    if p >= LEVEL:
        return f"No difference is shown at the 5% level ({numbers}); that is no proof of there being none."
    better = "B" if top1["difference"] > 0 else "A"
    return f"{better} is right more often on pictures like these ({numbers}); other training seeds may differ."


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p-value that as many samples are right with one model only as with the other."""
    discordant = only_a + only_b
    return float(binomtest(min(only_a, only_b), discordant).pvalue) if discordant else 1.0


def holm(p_values: list[float]) -> list[float]:
    """Return p-values corrected for the number of tests (Holm 1979), in the order given."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


@dataclass(frozen=True)
class _Said:
    """What one model said of each sample, (N,) each, in numbers of the classes that both models share."""

    names: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    """The class with the highest score; of equal ones the model's first."""
    rivals: np.ndarray
    """The class with the highest score of those that are not the label; without a second class the label."""
    confidence: np.ndarray
    """Probability of the predicted class."""
    values: dict[str, np.ndarray]
    """top1, top5 (0 or 1), loss (nats), float64."""


def _common_numbers(a: Predictions, b: Predictions) -> tuple[_Said, _Said]:
    """Number the classes of both in one order; ValueError if they are not the same classes."""
    names = a.label_names
    if names != b.label_names:
        names = tuple(sorted(a.label_names))
        if names != tuple(sorted(b.label_names)):
            missing = [sorted(set(x.label_names) - set(y.label_names))[:3] for x, y in ((a, b), (b, a))]
            raise ValueError(
                f"A has {len(a.label_names)} classes and B {len(b.label_names)}, not the same: only in A "
                f"{missing[0] or 'none'}, only in B {missing[1] or 'none'}; expected two models of the same classes"
            )
        if len(set(names)) < len(names):
            raise ValueError(
                "A and B have their classes in different orders, and two classes of one name, which cannot be matched; "
                "expected names that differ: train both models on data with such names"
            )
    return _say(a, names), _say(b, names)


def _say(predictions: Predictions, names: tuple[str, ...]) -> _Said:
    """Compute each sample's values in the model's own order of the classes, which another order would round anew."""
    scores, own = predictions.scores, predictions.label_names
    place = {name: number for number, name in enumerate(names)}
    numbers = np.arange(len(own)) if own == names else np.array([place[name] for name in own])  # (L,)
    columns: dict[str, list[torch.Tensor]] = {}
    for logits, labels in zip(
        scores.logits.split(_SAMPLES_AT_ONCE), scores.labels.split(_SAMPLES_AT_ONCE), strict=True
    ):
        log_probabilities = logits.double().log_softmax(dim=1)  # (B, L)
        found = {
            "top1": top_k_correct(logits, labels, 1).double(),
            "top5": top_k_correct(logits, labels, 5).double(),
            "loss": -log_probabilities.gather(1, labels[:, None])[:, 0],
            "predicted": logits.argmax(dim=1),
            "rivals": logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1),
            "confidence": log_probabilities.amax(dim=1).exp(),
        }
        for name, column in found.items():
            columns.setdefault(name, []).append(column)
    whole = {name: torch.cat(parts).numpy() for name, parts in columns.items()}
    return _Said(
        names=names,
        labels=numbers[scores.labels.numpy()],
        predicted=numbers[whole.pop("predicted")],
        rivals=numbers[whole.pop("rivals")],
        confidence=whole.pop("confidence"),
        values=whole,
    )


def _check_same_samples(a: Predictions, b: Predictions, labels_a: np.ndarray, labels_b: np.ndarray) -> None:
    """Raise ValueError unless both were scored on the same samples, as far as fingerprints and labels tell."""
    what = [f"{side.data}, split {side.split}, {len(side.scores.labels):,} samples" for side in (a, b)]
    remedy = "expected both on the same samples: score one of them again with vit-hf evaluate --data --split --output"
    if len(labels_a) != len(labels_b):
        raise ValueError(f"A was scored on {what[0]}, B on {what[1]}; {remedy}")
    if _STREAMED not in (a.sha256, b.sha256) and a.sha256 != b.sha256:
        raise ValueError(
            f"A was scored on {what[0]} (fingerprint {a.sha256[:12]}), B on {what[1]} ({b.sha256[:12]}): not the same "
            f"pictures and labels; {remedy}"
        )
    if a.scores.left_out != b.scores.left_out:
        raise ValueError(
            f"A leaves out the rows {list(a.scores.left_out)} that could not be decoded, B {list(b.scores.left_out)}; "
            f"{remedy}"
        )
    wrong = np.flatnonzero(labels_a != labels_b)
    if len(wrong):
        raise ValueError(f"A and B differ in the labels of {len(wrong):,} samples, first in row {wrong[0]}; {remedy}")


def _compare_scores(first: _Said, second: _Said) -> dict[str, dict[str, Any]]:
    differences = {name: second.values[name] - first.values[name] for name in ("top1", "top5", "loss")}
    means = resample_means(np.stack(list(differences.values()), axis=1))  # (R, 3)
    scores = {
        name: {
            "a": float(first.values[name].mean()),
            "b": float(second.values[name].mean()),
            "difference": float(differences[name].mean()),
            "interval": _interval(column),
        }
        for name, column in zip(differences, means.T, strict=True)
    }
    _, place, count = np.unique(first.labels, return_inverse=True, return_counts=True)
    right_a, right_b = (np.bincount(place, weights=said.values["top1"]) for said in (first, second))  # (classes,)
    scores["balanced_accuracy"] = {
        "a": float((right_a / count).mean()),
        "b": float((right_b / count).mean()),
        "difference": float(((right_b - right_a) / count).mean()),
        "interval": _interval(_balanced_means(differences["top1"], place)),
    }
    return scores


def _compare_errors(first: _Said, second: _Said) -> dict[str, Any]:
    wrong_a, wrong_b = first.values["top1"] == 0, second.values["top1"] == 0
    both, either = int((wrong_a & wrong_b).sum()), int((wrong_a | wrong_b).sum())
    return {
        "a": int(wrong_a.sum()),
        "b": int(wrong_b.sum()),
        "both": both,
        "overlap": both / either if either else None,
        "same_class": int((wrong_a & wrong_b & (first.rivals == second.rivals)).sum()),
    }


def _compare_classes(first: _Said, second: _Said) -> list[dict[str, Any]]:
    present, place, count = np.unique(first.labels, return_inverse=True, return_counts=True)
    right_a, right_b = first.values["top1"], second.values["top1"]
    columns = (count, *(np.bincount(place, weights=side) for side in (right_a, right_b)))
    sides = (np.bincount(place, weights=side) for side in (right_a * (1 - right_b), right_b * (1 - right_a)))
    n, a, b, only_a, only_b = (column.astype(int).tolist() for column in (*columns, *sides))
    p = [mcnemar(*pair) for pair in zip(only_a, only_b, strict=True)]
    names = [first.names[label] for label in present]
    keys = ("name", "n", "a", "b", "only_a", "only_b", "p", "p_holm")
    rows = zip(names, n, a, b, only_a, only_b, p, holm(p), strict=True)
    return [dict(zip(keys, row, strict=True)) for row in rows]


def _interval(differences: np.ndarray) -> list[float]:
    """Return the 95% interval of (R,) differences, such that that of their negatives is exactly its mirror image."""
    low, high = percentile_interval(differences)[0], -percentile_interval(-differences)[0]
    return [float(low) + 0.0, float(high) + 0.0]  # no -0.0


def _balanced_means(differences: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the mean over classes of each class's mean in each resample, (R,); a class not drawn does not count.

    Args:
        differences: (N,), whole numbers as float64.
        classes: (N,), from 0 on, none left out.
    """
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], np.arange(classes.max() + 1))
    means = []
    for counts in resample_counts(len(differences)):  # (r, N)
        counts = counts[:, order]
        drawn = np.add.reduceat(counts, starts, axis=1)  # (r, classes)
        sums = np.add.reduceat(counts * differences[order], starts, axis=1)
        means.append((sums / np.maximum(drawn, 1)).sum(axis=1) / (drawn > 0).sum(axis=1))
    return np.concatenate(means)


def _most_different(first: _Said, second: _Said, numbers: torch.Tensor) -> list[dict[str, Any]]:
    difference = second.values["loss"] - first.values["loss"]
    rows = np.argsort(-np.abs(difference), kind="stable")[:SAMPLES]

    def side(said: _Said, row: int) -> dict[str, Any]:
        return {
            "predicted": said.names[said.predicted[row]],
            "probability": float(said.confidence[row]),
            "probability_of_label": float(np.exp(-said.values["loss"][row])),
        }

    return [
        {
            "row": int(numbers[row]),
            "label": first.names[first.labels[row]],
            "difference": float(difference[row]),
            "a": side(first, row),
            "b": side(second, row),
        }
        for row in rows
        if difference[row] != 0
    ]
