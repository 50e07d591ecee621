"""Few-shot linear probe: L2-regularised least squares on frozen features, onto targets of -1 and 1.

Follows big_vision's `evaluators/fewshot_lsr.py`, the evaluator of the ViT paper's few-shot figures (section 4.1), with
the settings of `configs/common_fewshot.py`: features standardised by mean and standard deviation + 1e-5 of the chosen
pictures, a constant feature of 100 for the bias, which is regularised like the rest, L2 strength 2**10, and shots
drawn for each class in turn by NumPy's generator. It differs in precision: float64 here, float32 there.

Shapes: N pictures to learn from, M to test on, W width of a feature, E = W + 1, L classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..bootstrap import percentile_interval, resample_means
from .features import Features

SHOTS, SEEDS, L2 = (1, 5, 10, 25), 3, 2.0**10
BIAS, TINY = 100.0, 1e-5


@dataclass(frozen=True)
class LeastSquares:
    """A linear classifier of features."""

    mean: np.ndarray
    """(W,), float64."""
    std: np.ndarray
    """(W,), float64; 1e-5 more than the standard deviation."""
    weights: np.ndarray
    """(E, L), float64; the last row is the bias's."""

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """Return scores (M, L) of features (M, W), float64."""
        return _extend(vectors, self.mean, self.std) @ self.weights

    def predict(self, vectors: np.ndarray) -> np.ndarray:
        """Return classes (M,), int64, of features (M, W); of equal scores the first class."""
        return self.scores(vectors).argmax(axis=1)


@dataclass(frozen=True)
class ShotScore:
    """Accuracy with so many pictures a class, over several draws of them."""

    shots: int
    pictures: int
    """N: fewer than shots times classes where a class has fewer."""
    short_classes: int
    """Classes that had fewer pictures than shots, absent ones included."""
    top1: tuple[float, ...]
    """Accuracy of each seed, 0, 1, ..., fractions."""
    mean: float
    spread: float | None
    """Standard deviation over the seeds (of a sample: divided by seeds - 1); None with one seed."""
    interval: tuple[float, float]
    """95% bootstrap interval of the mean over the test pictures; the draws of shots are held fixed."""


def order_classes(labels: np.ndarray, num_classes: int, seed: int) -> list[np.ndarray]:
    """Return for each class its rows in the order in which they are taken; k shots are the first k.

    Args:
        labels: (n,), int, of all pictures that may be drawn.
        num_classes: L; a class may have no picture.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == index)) for index in range(num_classes)]


def fit_least_squares(vectors: np.ndarray, labels: np.ndarray, num_classes: int, *, l2: float = L2) -> LeastSquares:
    """Fit by the eigenvalues of the smaller of the two Gram matrices.

    Args:
        vectors: (N, W), float.
        labels: (N,), int in [0, L).
        num_classes: L.
        l2: strength of the regularisation, positive.

    Raises:
        ValueError: no pictures.
    """
    if not len(vectors):
        raise ValueError("there are no pictures to learn from; expected at least 1; check the training split")
    vectors = vectors.astype(np.float64)
    mean, std = vectors.mean(axis=0), vectors.std(axis=0) + TINY
    x = _extend(vectors, mean, std)  # (N, E)
    y = np.where(labels[:, None] == np.arange(num_classes), 1.0, -1.0)  # (N, L)
    if x.shape[0] >= x.shape[1]:  # (x'x + l2)^-1 x'y
        values, q = np.linalg.eigh(x.T @ x)  # (E,), (E, E)
        weights = (q / (values + l2)) @ (q.T @ (x.T @ y))
    else:  # x' (xx' + l2)^-1 y
        values, q = np.linalg.eigh(x @ x.T)  # (N,), (N, N)
        weights = x.T @ ((q / (values + l2)) @ (q.T @ y))
    return LeastSquares(mean=mean, std=std, weights=weights)


def probe_fewshot(
    train: Features,
    test: Features,
    num_classes: int,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
) -> list[ShotScore]:
    """Score the probe for each number of shots, with seeds 0, 1, ..., `seeds` - 1.

    Args:
        train: features to draw from.
        test: features to score.
        num_classes: L.
        shots: pictures a class.
        seeds: draws.
    """
    orders = [order_classes(train.labels, num_classes, seed) for seed in range(seeds)]
    sizes = np.bincount(train.labels, minlength=num_classes)
    scores = []
    for count in shots:
        right = []
        for order in orders:
            rows = np.concatenate([chosen[:count] for chosen in order])
            fitted = fit_least_squares(train.vectors[rows], train.labels[rows], num_classes)
            right.append(fitted.predict(test.vectors) == test.labels)
        correct = np.stack(right, axis=1).astype(np.float64)  # (M, seeds)
        top1 = correct.mean(axis=0)
        low, high = percentile_interval(resample_means(correct.mean(axis=1, keepdims=True))[:, 0])
        scores.append(
            ShotScore(
                shots=count,
                pictures=int(np.minimum(sizes, count).sum()),
                short_classes=int((sizes < count).sum()),
                top1=tuple(top1.tolist()),
                mean=float(top1.mean()),
                spread=float(top1.std(ddof=1)) if seeds > 1 else None,
                interval=(float(low), float(high)),
            )
        )
    return scores


def _extend(vectors: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Standardise features (N, W) and add the constant one: (N, E), float64."""
    return np.pad((vectors - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS)
