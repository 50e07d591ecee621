"""Resampling of samples (Efron 1979): the same draws for everybody, and sums that no order of adding changes.

A resample of N samples is N draws with replacement. The draws come from the raw words of NumPy's PCG64 generator, whose
stream NumPy guarantees (NEP 19), which it does not for its integers in a range: of every 64-bit word the halves u give
the samples floor(u N / 2**32), each sample as likely as any other but for N / 2**32. So they depend on N and the seed
alone, and two models that were scored on the same N samples are resampled alike.

The values are rounded to a grid so fine that all sums of a resample are exact in float64 (for 50,000 samples to 1e-11
of the largest): neither the number of threads nor the library that multiplies matrices changes a bit of a mean.

Shapes: N samples, R resamples.
"""

from collections.abc import Iterator

import numpy as np

RESAMPLES, CONFIDENCE, SEED = 2_000, 0.95, 0
_DRAWS_AT_ONCE = 4_000_000


def resample_counts(n: int, *, resamples: int = RESAMPLES, seed: int = SEED) -> Iterator[np.ndarray]:
    """Yield how often each sample is drawn, some resamples at a time, so that memory stays bounded.

    Args:
        n: N, at least 1, below 2**32.
        resamples: R.
        seed: of the draws.

    Yields:
        (r, N), float64, whole numbers; rows add up to N, and all r to R.

    Raises:
        ValueError: no samples.
    """
    if not 1 <= n < 2**32:
        raise ValueError(f"there are {n} samples to resample; expected at least 1 and fewer than 2**32")
    generator, words = np.random.PCG64(seed), (n + 1) // 2
    at_once = max(_DRAWS_AT_ONCE // n, 1)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        raw = generator.random_raw(rows * words).reshape(rows, words)
        halves = np.concatenate([raw & np.uint64(2**32 - 1), raw >> np.uint64(32)], axis=1)[:, :n]
        drawn = (halves * np.uint64(n) >> np.uint64(32)).astype(np.int64)  # (r, N)
        drawn += np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def on_grid(values: np.ndarray) -> np.ndarray:
    """Round each column so that N of its values, in any choice, add up without rounding.

    Args:
        values: (N, columns), float64, finite.
    """
    exponent = np.frexp(np.abs(values).max(axis=0))[1] + (len(values) - 1).bit_length() - 53
    return np.ldexp(np.rint(np.ldexp(values, -exponent)), exponent)


def resample_means(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Return the mean of each column in each resample of the rows, all columns in the same resamples.

    Args:
        values: (N, columns), float64, finite; a row a sample.
        resamples: R.
        seed: of the draws.

    Returns:
        (R, columns), float64.

    Raises:
        ValueError: not a matrix, no rows, or values that are not finite.
    """
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"the values have shape {values.shape} or are not all finite; expected finite (N, columns)")
    counts = resample_counts(len(values), resamples=resamples, seed=seed)
    first = next(counts)  # raises where there are no rows
    values = on_grid(values)
    return np.concatenate([first @ values, *(count @ values for count in counts)]) / len(values)


def resample_classes(
    values: np.ndarray, labels: np.ndarray, right: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `resample_means` does, and from the same resamples the samples of each class and the right ones.

    Args:
        values: (N, columns), as of `resample_means`.
        labels: (N,), integer, of K different classes.
        right: (N,), 1 where a sample counts as right, else 0.
        resamples: R.
        seed: of the draws.

    Returns:
        (R, columns), float64, the means; (R, K), int32, how many samples of each class were drawn, the classes in
        ascending order; (R, K), int32, how many of them are right.
    """
    order = np.argsort(labels, kind="stable")
    hits = order[right[order] == 1]
    present, starts = np.unique(labels[order], return_index=True)
    hit, hit_starts = np.unique(labels[hits], return_index=True)
    places = np.searchsorted(present, hit)
    grid, means, drawn, drawn_right = on_grid(values), [], [], []
    for counts in resample_counts(len(values), resamples=resamples, seed=seed):  # (r, N)
        means.append(counts @ grid / len(values))
        drawn.append(np.add.reduceat(counts[:, order], starts, axis=1).astype(np.int32))
        drawn_right.append(np.zeros_like(drawn[-1]))
        if len(hits):
            drawn_right[-1][:, places] = np.add.reduceat(counts[:, hits], hit_starts, axis=1)
    return np.concatenate(means), np.concatenate(drawn), np.concatenate(drawn_right)


def percentile_interval(estimates: np.ndarray, *, confidence: float = CONFIDENCE) -> np.ndarray:
    """Return the interval that holds the middle share of the resamples.

    Args:
        estimates: (R, ...), a figure of each resample; NaN where a resample has none, which then does not count.
        confidence: the share.

    Returns:
        (2, ...): low and high.
    """
    quantile = np.nanquantile if np.isnan(estimates).any() else np.quantile
    return quantile(estimates, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "SEED",
    "on_grid",
    "percentile_interval",
    "resample_classes",
    "resample_counts",
    "resample_means",
]
