"""The few-shot probe: what the published evaluator computes, by its formula written out again and by direct solves."""

import numpy as np
import pytest

from vit_hf.evaluation.probes.features import Features
from vit_hf.evaluation.probes.fewshot import BIAS, L2, TINY, fit_least_squares, order_classes, probe_fewshot


def blobs(count: int, width: int, classes: int, *, seed: int = 0, spread: float = 5.0) -> Features:
    """Return noisy class centres; some classes are larger than others."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count) ** 2 // max(classes - 1, 1)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    vectors = centres[labels] * 3 + generator.normal(size=(count, width)) * spread + 5
    return Features(vectors.astype(np.float32), labels.astype(np.int64))


def published(train: Features, test: Features, classes: int, shots: int, seed: int) -> np.ndarray:
    """big_vision's evaluator, step by step in its order, from its text: the chosen rows, then the predicted classes."""
    rng = np.random.default_rng(seed)
    per_class = [rng.permutation(np.where(train.labels == c)[0]) for c in range(classes)]
    chosen = np.concatenate([indices[:shots] for indices in per_class])
    x, y = train.vectors[chosen].astype(np.float64), train.labels[chosen]
    mean, std = np.mean(x, axis=0, keepdims=True), np.std(x, axis=0, keepdims=True) + 1e-5
    x = np.concatenate([(x - mean) / std, np.full((len(x), 1), 100.0)], axis=1)
    targets = 2.0 * np.eye(classes)[y] - 1.0
    if x.shape[0] >= x.shape[1]:
        eigs, q = np.linalg.eigh(x.T @ x)
        left, right = q, q.T @ (x.T @ targets)
    else:
        eigs, q = np.linalg.eigh(x @ x.T)
        left, right = x.T @ q, q.T @ targets
    w = (left * (1.0 / (eigs + 2.0**10)).reshape(1, -1)) @ right
    z = np.concatenate([(test.vectors - mean) / std, np.full((len(test.vectors), 1), 100.0)], axis=1)
    return np.argmax(z @ w, axis=1)


def standardised(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    x = (vectors - vectors.mean(axis=0)) / (vectors.std(axis=0) + 1e-5)
    return np.column_stack([x, np.full(len(x), 100.0)])


# ---------------------------------------------------------------------------------------------- the solve
@pytest.mark.parametrize("count", [12, 31, 32, 33, 34, 200])  # 32 features and the bias
def test_the_weights_solve_the_normal_equations(count):
    train = blobs(count, 32, 6)
    x, y = standardised(train.vectors), 2 * np.eye(6)[train.labels] - 1
    direct = np.linalg.solve(x.T @ x + 2.0**10 * np.eye(33), x.T @ y)
    found = fit_least_squares(train.vectors, train.labels, 6)
    np.testing.assert_allclose(found.weights, direct, rtol=0, atol=1e-12)
    test = blobs(50, 32, 6, seed=1)
    scores = np.column_stack([(test.vectors - found.mean) / found.std, np.full(50, 100.0)]) @ direct
    np.testing.assert_allclose(found.scores(test.vectors), scores, rtol=0, atol=1e-11)


def test_the_weights_minimise_the_regularised_loss():
    train = blobs(40, 8, 3)
    x, y = standardised(train.vectors), 2 * np.eye(3)[train.labels] - 1
    found = fit_least_squares(train.vectors, train.labels, 3, l2=3.0)

    def loss(weights: np.ndarray) -> float:
        return float(((x @ weights - y) ** 2).sum() + 3.0 * (weights**2).sum())

    noise = np.random.default_rng(0)
    assert all(
        loss(found.weights) < loss(found.weights + noise.normal(size=found.weights.shape) * step)
        for step in (1e-1, 1e-3, 1e-5)
        for _ in range(10)
    )


def test_the_published_constants():
    assert (L2, BIAS, TINY) == (1024.0, 100.0, 1e-5)


def test_a_feature_that_never_changes_does_no_harm():
    train = blobs(30, 4, 3)
    train.vectors[:, 2] = 7
    assert np.isfinite(fit_least_squares(train.vectors, train.labels, 3).weights).all()


def test_no_pictures_to_learn_from_is_an_error():
    with pytest.raises(ValueError, match="no pictures to learn from; expected at least 1"):
        fit_least_squares(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 3)


# ---------------------------------------------------------------------------------------------- the evaluator
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shots", [1, 3, 25])
def test_samples_and_predictions_are_those_of_the_published_evaluator(shots, seed):
    train, test = blobs(300, 24, 10), blobs(400, 24, 10, seed=1)
    assert len(np.unique(train.labels)) < 10  # absent classes
    wanted = published(train, test, 10, shots, seed)
    rows = np.concatenate([order[:shots] for order in order_classes(train.labels, 10, seed)])
    found = fit_least_squares(train.vectors[rows], train.labels[rows], 10).predict(test.vectors)
    assert 0.2 < (wanted == test.labels).mean() < 1.0  # neither chance nor trivial
    np.testing.assert_array_equal(found, wanted)
    score = probe_fewshot(train, test, 10, shots=[shots], seeds=3)[0]
    assert score.top1[seed] == (wanted == test.labels).mean()


def test_each_class_gives_its_shots_or_all_it_has():
    labels = np.array([2, 0, 2, 2, 0, 4, 2])
    orders = order_classes(labels, 5, seed=7)
    assert [sorted(order.tolist()) for order in orders] == [[1, 4], [], [0, 2, 3, 6], [], [5]]
    features = Features(np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32), labels)
    scores = probe_fewshot(features, features, 5, shots=[1, 2, 10], seeds=1)
    assert [score.pictures for score in scores] == [3, 5, 7]
    assert [score.short_classes for score in scores] == [2, 3, 5]


def test_draws_of_more_shots_hold_those_of_fewer():
    labels = np.repeat(np.arange(4), 30)
    order = order_classes(labels, 4, seed=0)
    assert all(len(set(rows.tolist())) == 30 for rows in order)
    assert not np.array_equal(order[0], order_classes(labels, 4, seed=1)[0])


def test_mean_and_spread_are_those_of_the_seeds():
    train, test = blobs(300, 24, 10), blobs(400, 24, 10, seed=1)
    score = probe_fewshot(train, test, 10, shots=[2], seeds=4)[0]
    assert score.mean == pytest.approx(np.mean(score.top1), abs=1e-15)
    assert score.spread == pytest.approx(np.std(score.top1, ddof=1), abs=1e-15)
    assert len(set(score.top1)) > 1
    low, high = score.interval
    assert low < score.mean < high
    # of a mean of 400 values in [0, 1] with this spread; the bootstrap is another estimate of the same
    right = np.stack([published(train, test, 10, 2, seed) == test.labels for seed in range(4)]).mean(axis=0)
    assert high - low == pytest.approx(2 * 1.96 * right.std() / 20, rel=0.1)


def test_one_seed_has_no_spread():
    train = blobs(60, 4, 3)
    assert probe_fewshot(train, train, 3, shots=[1], seeds=1)[0].spread is None
