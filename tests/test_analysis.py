"""What is said of scores beside the scores: equal to other libraries' numbers and to counts by hand."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, confusion_matrix

from vit_hf.evaluation import analysis
from vit_hf.evaluation.analysis import analyse, bootstrap, calibrate
from vit_hf.evaluation.scoring import Scores

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


@pytest.fixture(scope="module")
def scores() -> Scores:
    """600 samples of 7 classes, the last class absent; right a little more often than not."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (600,), generator=generator)
    logits = torch.randn(600, 7, generator=generator)
    logits[torch.arange(600), labels] += 1.8
    return Scores(logits=2 * logits, labels=labels)


@pytest.fixture(scope="module")
def found(scores) -> dict:
    return analyse(scores, NAMES)


def columns(scores: Scores) -> np.ndarray:
    """Top-1, top-5 and loss of each sample, counted in another way than the package does."""
    order = np.argsort(-scores.logits.numpy(), axis=1)
    place = np.argmax(order == scores.labels.numpy()[:, None], axis=1)
    probabilities = scipy.special.softmax(scores.logits.double().numpy(), axis=1)
    return np.stack([place < 1, place < 5, -np.log(probabilities[np.arange(len(place)), scores.labels])], axis=1)


def test_intervals_are_those_of_scipys_bootstrap(scores, found):
    for place, name in enumerate(("top1", "top5", "loss")):
        values = columns(scores)[:, place]
        other = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=20_000, batch=500, method="percentile", random_state=1
        )
        tolerance = 0.1 * (other.confidence_interval.high - other.confidence_interval.low)  # 2,000 resamples of ours
        assert found["intervals"][name] == pytest.approx(list(other.confidence_interval), abs=tolerance)
        assert found["intervals"][name][0] < values.mean() < found["intervals"][name][1]


def test_the_95_percent_interval_of_an_accuracy_holds_the_truth_19_times_of_20():
    generator = np.random.default_rng(0)
    intervals = [bootstrap((generator.random((200, 1)) < 0.7).astype(float))[:, 0] for _ in range(200)]
    assert 0.90 <= np.mean([low <= 0.7 <= high for low, high in intervals]) <= 0.985


def test_the_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    values = np.random.default_rng(0).random((37, 2))
    whole = bootstrap(values)
    monkeypatch.setattr(analysis, "_DRAWS_AT_ONCE", 100)
    np.testing.assert_array_equal(bootstrap(values), whole)


def test_the_numbers_do_not_depend_on_how_many_samples_are_held_at_once(scores, found, monkeypatch):
    monkeypatch.setattr(analysis, "_SAMPLES_AT_ONCE", 7)
    assert analyse(scores, NAMES) == found


def test_bins_are_those_of_scikit_learn(scores, found):
    confidence = scipy.special.softmax(scores.logits.double().numpy(), axis=1).max(axis=1)
    correct = columns(scores)[:, 0]
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=15)
    bins = [row for row in found["calibration"]["bins"] if row[0]]
    np.testing.assert_allclose([row[1] for row in bins], mean_confidence, atol=1e-12)
    np.testing.assert_allclose([row[2] for row in bins], accuracy, atol=1e-12)
    assert sum(row[0] for row in bins) == 600
    error = sum(row[0] / 600 * abs(row[1] - row[2]) for row in bins)
    assert found["calibration"]["expected_calibration_error"] == pytest.approx(error, abs=1e-12)


def test_bins_take_their_upper_edge_and_empty_ones_have_no_means():
    found = calibrate(np.array([1 / 3, 1 / 3 + 1e-9, 1.0]), np.array([1.0, 0.0, 1.0]))
    assert [row[0] for row in found["bins"]] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found["bins"][4] == [1, pytest.approx(1 / 3), 1.0]
    assert found["bins"][0] == [0, None, None]
    assert found["expected_calibration_error"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)


def test_the_brier_score_is_that_of_scikit_learn(scores, found):
    probabilities = scipy.special.softmax(scores.logits.double().numpy(), axis=1)
    expected = brier_score_loss(scores.labels.numpy(), probabilities, labels=list(range(7)), scale_by_half=False)
    assert found["calibration"]["brier"] == pytest.approx(expected, abs=1e-12)


def test_classes_and_confusions_are_those_of_the_confusion_matrix(scores, found):
    matrix = confusion_matrix(scores.labels.numpy(), scores.logits.argmax(dim=1).numpy(), labels=list(range(7)))
    assert found["per_class"] == [[NAMES[i], int(matrix[i].sum()), int(matrix[i, i])] for i in range(6)]
    np.fill_diagonal(matrix, 0)
    counts = sorted(matrix.ravel().tolist(), reverse=True)[:10]
    assert [count for _, _, count in found["confusions"]] == counts
    assert all(matrix[NAMES.index(true), NAMES.index(other)] == count for true, other, count in found["confusions"])


def test_a_tie_with_the_true_class_is_a_mistake_for_the_class_that_ties():
    scores = Scores(logits=torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]]), labels=torch.tensor([0, 1]))
    found = analyse(scores, NAMES[:3])
    assert found["confusions"] == [["ant", "cat", 1]]
    assert found["per_class"] == [["ant", 1, 0], ["bee", 1, 1]]


def test_names_that_do_not_fit_the_logits_are_refused(scores):
    with pytest.raises(ValueError, match="3 label names for logits of 7 classes"):
        analyse(scores, NAMES[:3])
