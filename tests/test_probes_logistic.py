"""Logistic regression: scikit-learn's own, its strength chosen without a look at the test pictures."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vit_hf.evaluation.probes import logistic
from vit_hf.evaluation.probes.features import Features


def noise(count: int, seed: int, *, classes: int = 4, width: int = 10) -> Features:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    vectors = (centres[labels] + 1.2 * generator.normal(size=(count, width))) * np.arange(1, width + 1) + 50
    return Features(vectors.astype(np.float32), labels)


def by_hand(train: Features, rows: np.ndarray, vectors: np.ndarray, c: float) -> np.ndarray:
    """Standardise, fit from a cold start to a tighter tolerance, predict."""
    x = train.vectors[rows].astype(np.float64)
    mean, std = x.mean(axis=0), x.std(axis=0)
    model = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit((x - mean) / std, train.labels[rows])
    return model.predict((vectors.astype(np.float64) - mean) / std)


def test_the_best_strength_on_held_out_pictures_is_taken_and_all_are_learned_from():
    train, test = noise(120, 0), noise(400, 1)
    found = logistic.probe_logistic(train, test)
    learn, held = logistic.hold_out(train.labels)
    scores = {c: (by_hand(train, learn, train.vectors[held], c) == train.labels[held]).mean() for c in logistic.GRID}
    assert found.validation == pytest.approx(scores)
    assert len(set(scores.values())) > 1
    assert found.c == min(c for c in scores if scores[c] == max(scores.values()))
    assert found.held_out == len(held)
    np.testing.assert_array_equal(found.predictions, by_hand(train, np.arange(120), test.vectors, found.c))
    assert (found.predictions == test.labels).mean() > 0.6
    assert found.converged


def test_of_equally_good_strengths_the_strongest_is_taken():
    train = Features(np.repeat(np.eye(3, dtype=np.float32), 20, axis=0), np.repeat(np.arange(3), 20))
    found = logistic.probe_logistic(train, train)
    assert set(found.validation.values()) == {1.0}
    assert found.c == min(logistic.GRID)


def test_given_parts_are_learned_from_and_chosen_on():
    train, test = noise(120, 0), noise(50, 1)
    parts = np.arange(90), np.arange(90, 120)
    found = logistic.probe_logistic(train, test, parts=parts)
    assert found.held_out == 30
    for c, score in found.validation.items():
        assert score == pytest.approx((by_hand(train, parts[0], train.vectors[90:], c) == train.labels[90:]).mean())


def test_a_fifth_of_each_class_is_held_out_always_the_same():
    labels = np.array([0] * 10 + [1] * 5 + [2])
    rest, held = logistic.hold_out(labels)
    assert np.bincount(labels[held], minlength=3).tolist() == [2, 1, 0]
    assert sorted([*rest, *held]) == list(range(16))
    assert all(np.array_equal(a, b) for a, b in zip((rest, held), logistic.hold_out(labels), strict=True))


def test_classes_that_nothing_is_learned_of_are_never_predicted():
    train, test = noise(60, 0, classes=3), noise(60, 1, classes=5)
    assert set(logistic.probe_logistic(train, test).predictions.tolist()) <= {0, 1, 2}


def test_one_class_is_an_error():
    train = Features(np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32), np.zeros(10, np.int64))
    with pytest.raises(ValueError, match="logistic regression on pictures of 1 class"):
        logistic.probe_logistic(train, train)


def test_a_solver_that_is_stopped_says_so(monkeypatch):
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 2)
    assert not logistic.probe_logistic(noise(100, 0), noise(20, 1)).converged
