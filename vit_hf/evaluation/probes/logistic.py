"""Logistic regression on frozen features, by scikit-learn, its strength chosen on pictures held out of training.

Features are standardised by the mean and standard deviation of the pictures that are learned from. C, the inverse of
the L2 strength, is the one of `GRID` with the highest accuracy on the held-out pictures, the smallest of equally good
ones; then all pictures are learned from. The solver is L-BFGS on the multinomial loss, from the strongest
regularisation to the weakest, each start from the solution before.

Shapes: N pictures to learn from, M to test on, W width of a feature.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ...data.sources import split_off
from .features import Features

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
MAX_ITERATIONS = 1_000


@dataclass(frozen=True)
class LogisticResult:
    """What was chosen, and what it says of the test pictures."""

    c: float
    held_out: int
    """Pictures that C was chosen on."""
    validation: dict[float, float]
    """Accuracy on them for each C, fractions."""
    converged: bool
    """Whether the last fit ended before MAX_ITERATIONS."""
    predictions: np.ndarray
    """(M,), int64."""


def hold_out(labels: np.ndarray, fraction: float = HELD_OUT) -> tuple[np.ndarray, np.ndarray]:
    """Divide rows in two, stratified by label, always the same way; returns (rest, held out), sorted.

    Raises:
        ValueError: no class has two pictures.
    """
    rows = Dataset.from_dict({"row": np.arange(len(labels)), "label": labels})
    rest, held = split_off(rows, "label", fraction, seed=0)
    return np.asarray(rest["row"]), np.asarray(held["row"])


def probe_logistic(
    train: Features, test: Features, *, parts: tuple[np.ndarray, np.ndarray] | None = None
) -> LogisticResult:
    """Choose C, learn from all of `train`, and classify `test`.

    Args:
        train: N features.
        test: M features.
        parts: rows of `train` to learn from and to choose C on; None for `hold_out`.

    Raises:
        ValueError: the pictures to learn from have fewer than two classes.
    """
    learn, held = hold_out(train.labels) if parts is None else parts
    classes = np.unique(train.labels[learn])
    if len(classes) < 2:
        raise ValueError(
            f"logistic regression on pictures of {len(classes)} class(es); expected at least 2; check the labels of "
            "the training split"
        )
    validation = {}
    for c, model in _path(train.vectors[learn], train.labels[learn], GRID):
        validation[c] = float((model.predict(train.vectors[held]) == train.labels[held]).mean())
    best = max(GRID, key=lambda c: (validation[c], -c))
    ((_, model),) = _path(train.vectors, train.labels, (best,))
    return LogisticResult(
        c=best,
        held_out=len(held),
        validation=validation,
        converged=bool(model[-1].n_iter_.max() < MAX_ITERATIONS),
        predictions=model.predict(test.vectors).astype(np.int64),
    )


def _path(vectors: np.ndarray, labels: np.ndarray, grid: tuple[float, ...]):
    """Yield each C of the grid, in its order, with the pipeline fitted for it; it is the same object each time."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True))
    for c in grid:
        model.set_params(logisticregression__C=c)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the result tells
            model.fit(vectors.astype(np.float64), labels)
        yield c, model
