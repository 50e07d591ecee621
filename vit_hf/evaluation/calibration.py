"""Whether a model is as sure as it is right: bins of confidence, and the temperature that would mend it.

After Guo et al. 2017, "On calibration of modern neural networks" (arXiv 1706.04599). Dividing all logits by one number,
the temperature T, changes how sure a model is but no prediction. The best T, by cross-entropy, is found here in float64
by Newton's method over log T: with b = 1 / T the loss is convex in b, its slope g = E[z] - z_true and its curvature
h = Var[z] under the softmax of b z, means over samples. (That paper and much code use L-BFGS or a fixed number of
gradient steps, which stop short of the optimum by amounts that differ from library to library.)

The error after the temperature is not measured on the samples that T was fitted to, which would flatter the model: one
half of the samples is divided by the T of the other half, both ways. The halves take turns along the samples sorted by
class (within a class in their order), so that each has half of every class.

Shapes: N samples, L classes.
"""

import math
from typing import Any

import numpy as np
import torch

BINS = 15
LOWEST, HIGHEST = 0.01, 100.0
"""Bounds of T: a model that is always right (or always most wrong) would have it at 0 (or without end)."""
_VALUES_AT_ONCE = 2**18  # logits that are held in float64
_EDGE = 1e-12  # a confidence so close above the edge of a bin is taken for the edge, on every machine


def calibrate(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Return the bins of a reliability diagram and the expected calibration error.

    Args:
        confidence: (N,), float64 in [0, 1].
        correct: (N,), float64, 1 where the prediction is right.

    Returns:
        `bins`, 15 of equal width, each [count, mean confidence, accuracy], a bin taking its upper edge and the means
        None where it is empty; `expected_calibration_error`, the mean distance of the two weighted by count.
    """
    place = bin_of(confidence)
    bins: list[list[Any]] = []
    gaps = []
    for number in range(BINS):
        sums = [math.fsum(column[place == number]) for column in (confidence, correct)]
        count = int((place == number).sum())
        bins.append([count, *(total / count if count else None for total in sums)])
        gaps.append(abs(sums[0] - sums[1]))
    return {"expected_calibration_error": math.fsum(gaps) / len(confidence), "bins": bins}


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Return the number of the bin of each confidence, (N,) from 0 to 14; a bin takes its upper edge."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1] + _EDGE, confidence)


# ---------------------------------------------------------------------------------------------- temperature
def calibrate_after_temperature(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Fit the temperature, and measure the calibration that it gives on samples it was not fitted to.

    Args:
        logits: (N, L), finite.
        labels: (N,), int64.

    Returns:
        temperature: fitted to all samples, what a user of the model would divide its logits by.
        calibrated_error, calibrated_bins: as of `calibrate`, each half of the samples with the T of the other.
        confidence: (N,), float64, of each sample with the temperature of the other half.
        slope, curvature: (N,), float64, of each sample's loss by 1 / T at the temperature of all, for `refit`.
    """
    temperature = fit_temperature(logits, labels)
    first = halves(labels)
    other = [fit_temperature(logits[half], labels[half], start=temperature) for half in (~first, first)]
    per_sample = torch.where(first, other[0], other[1]).double()  # (N,)
    confidence = confidence_at(logits, per_sample)
    slope, curvature = _derivatives(logits, labels, temperature)
    correct = (logits >= logits.gather(1, labels[:, None])).sum(dim=1) == 1  # as of top-1: a tie is wrong
    found = calibrate(confidence, correct.double().numpy())
    return {
        "temperature": temperature,
        "calibrated_error": found["expected_calibration_error"],
        "calibrated_bins": found["bins"],
        "confidence": confidence,
        "slope": slope,
        "curvature": curvature,
    }


def halves(labels: torch.Tensor) -> torch.Tensor:
    """Return which samples are the first half, (N,) bool: every second one of the samples sorted by class."""
    first = torch.zeros(len(labels), dtype=torch.bool)
    first[labels.argsort(stable=True)[::2]] = True
    return first


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, *, start: float = 1.0) -> float:
    """Return the temperature that makes the mean cross-entropy of logits / T least, between 0.01 and 100.

    Args:
        logits: (N, L), finite; N may be 0.
        labels: (N,), int64.
        start: where to begin; what is found does not depend on it beyond 1e-12.

    Returns:
        T. It is at a bound where the best lies there or beyond: at 0.01 for a model that is always right. It is `start`
        where no temperature changes anything: without samples, with one class, or where all logits of a sample are
        equal.
    """
    low, high = -math.log(HIGHEST), -math.log(LOWEST)  # of u = -log T; below the best u the slope is negative
    u, before, tried = -math.log(start), math.inf, set()
    for _ in range(200):
        slope, curvature = (math.fsum(values) for values in _derivatives(logits, labels, math.exp(-u)))
        end = high if slope < 0 else low
        if slope == 0 or u == end:
            break
        low, high = (u, high) if slope < 0 else (low, u)
        step = -slope / (curvature * math.exp(u)) if curvature > 0 else math.copysign(math.inf, -slope)
        if abs(step) < 1e-7:  # what is left after it is about its square
            u = min(max(u + step, low), high)
            break
        if low < u + step < high and abs(step) < 0.75 * before:
            u, before = u + step, abs(step)
        elif end not in tried:  # it leaves the bounds, or crawls: look at the end, then halve
            tried.add(end)
            u, before = end, math.inf
        else:
            u, before = (low + high) / 2, math.inf
    found = math.exp(-u)
    return next((bound for bound in (LOWEST, HIGHEST) if math.isclose(found, bound, rel_tol=1e-12)), found)


def refit(temperature: float, slope: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Return the temperature after one step of Newton's method from the one fitted to all, for each resample.

    Args:
        temperature: fitted to all samples.
        slope: (R,), float64, the mean slope of a resample, by 1 / T.
        curvature: (R,), likewise.

    Returns:
        (R,), within the bounds of T. One step is within about the square of what it moves, so within 1e-4 of the exact
        optimum where that is within 1% of T.
    """
    steps = np.divide(slope * temperature, curvature, out=np.zeros_like(slope), where=curvature > 0)
    return np.clip(temperature * np.exp(np.clip(steps, -10, 10)), LOWEST, HIGHEST)


def confidence_at(logits: torch.Tensor, temperatures: torch.Tensor) -> np.ndarray:
    """Return the largest probability of each sample, (N,) float64, with a temperature a sample (N,)."""
    parts = [np.empty(0)]
    for rows in _pieces(logits):
        scaled = (logits[rows].double() - logits[rows].amax(dim=1, keepdim=True)) / temperatures[rows, None]
        parts.append(scaled.exp().sum(dim=1).reciprocal().numpy())
    return np.concatenate(parts)


def _derivatives(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Return slope and curvature of each sample's cross-entropy by 1 / T, each (N,) float64."""
    slopes, curvatures = [np.empty(0)], [np.empty(0)]
    for rows in _pieces(logits):
        z = logits[rows].double()
        z -= z.amax(dim=1, keepdim=True)  # (B, L), at most 0
        weights = (z / temperature).exp_()
        total = weights.sum(dim=1)
        weights *= z
        mean = weights.sum(dim=1) / total
        weights *= z
        square = weights.sum(dim=1) / total
        slopes.append((mean - z.gather(1, labels[rows, None])[:, 0]).numpy())
        curvatures.append((square - mean.square()).clamp_min_(0).numpy())
    return np.concatenate(slopes), np.concatenate(curvatures)


def _pieces(logits: torch.Tensor) -> list[slice]:
    at_once = max(_VALUES_AT_ONCE // logits.shape[1], 1)
    return [slice(start, start + at_once) for start in range(0, len(logits), at_once)]
