"""What is said of scores beside the scores: equal to other libraries' numbers and to counts by hand."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, confusion_matrix

from vit_hf.evaluation import analysis, bootstrap, calibration
from vit_hf.evaluation.analysis import analyse
from vit_hf.evaluation.intervals import distance_interval
from vit_hf.evaluation.metrics import (
    BalancedAccuracy,
    Brier,
    CalibratedError,
    ExpectedCalibrationError,
    RealTop1,
    SuperclassTop1,
    load_metrics,
    samples,
)
from vit_hf.evaluation.scoring import Scores
from vit_hf.evaluation.superclasses import CIFAR100

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


def test_the_interval_of_balanced_accuracy_is_that_of_resampling_by_hand(scores, found):
    labels, right = scores.labels.numpy(), columns(scores)[:, 0]
    generator, shares = np.random.default_rng(5), []
    for _ in range(4_000):
        drawn = generator.integers(600, size=600)
        shares.append(np.mean([right[drawn][labels[drawn] == label].mean() for label in np.unique(labels[drawn])]))
    low, high = np.quantile(shares, [0.025, 0.975])
    assert found["intervals"]["balanced_accuracy"] == pytest.approx([low, high], abs=0.1 * (high - low))


def test_the_interval_of_the_temperature_is_that_of_fitting_each_resample(scores, found):
    generator, fits = np.random.default_rng(2), []
    for _ in range(300):
        drawn = torch.from_numpy(generator.integers(600, size=600))
        fits.append(calibration.fit_temperature(scores.logits[drawn], scores.labels[drawn]))
    low, high = np.quantile(fits, [0.025, 0.975])
    assert found["intervals"]["temperature"] == pytest.approx([low, high], abs=0.2 * (high - low))  # of 300 fits


def test_the_intervals_of_the_calibration_errors_are_those_of_their_own_gaps(scores, found):
    after = calibration.calibrate_after_temperature(scores.logits, scores.labels)["confidence"]
    before = scipy.special.softmax(scores.logits.double().numpy(), axis=1).max(axis=1)
    right = columns(scores)[:, 0]
    for name, confidence in (("expected_calibration_error", before), ("calibrated_error", after)):
        gaps = np.zeros((600, 15))
        gaps[np.arange(600), np.ceil(confidence * 15).astype(int) - 1] = confidence - right
        expected = distance_interval(bootstrap.resample_means(gaps), gaps.mean(axis=0))
        assert found["intervals"][name] == pytest.approx(expected, abs=1e-9)


def test_the_interval_of_a_class_is_that_of_a_binomial_share(scores, found):
    """The samples of a class are resampled too, so their number moves a little: 100 of 600 gives or takes 9."""
    for _, n, correct, low, high in found["per_class"]:
        expected = scipy.stats.binom(n, correct / n).ppf([0.025, 0.975]) / n
        assert [low, high] == pytest.approx(list(expected), abs=0.02)


def test_the_numbers_do_not_depend_on_how_many_samples_are_held_at_once(scores, found, monkeypatch):
    monkeypatch.setattr(analysis, "_SAMPLES_AT_ONCE", 7)
    monkeypatch.setattr(samples, "_SAMPLES_AT_ONCE", 11)
    monkeypatch.setattr(calibration, "_VALUES_AT_ONCE", 100)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 7_001)
    assert analyse(scores, NAMES) == found


def test_the_order_of_the_samples_changes_only_what_is_drawn_and_halved_by_it(scores, found):
    order = torch.randperm(600, generator=torch.Generator().manual_seed(3))
    other = analyse(Scores(scores.logits[order], scores.labels[order]), NAMES)
    for key in ("balanced_accuracy", "confusions"):
        assert other[key] == found[key]
    for key in ("bins", "expected_calibration_error", "brier", "temperature"):
        assert other["calibration"][key] == found["calibration"][key]
    assert [row[:3] for row in other["per_class"]] == [row[:3] for row in found["per_class"]]
    assert other["intervals"]["loss"] == pytest.approx(found["intervals"]["loss"], rel=0.02)


AGAIN = """
import json, torch
from vit_hf.evaluation.analysis import analyse
from vit_hf.evaluation.intervals import distance_interval
from vit_hf.evaluation.scoring import Scores

torch.set_num_threads(4)
generator = torch.Generator().manual_seed(0)
labels = torch.randint(6, (600,), generator=generator)
logits = torch.randn(600, 7, generator=generator)
logits[torch.arange(600), labels] += 1.8
print(json.dumps(analyse(Scores(logits=2 * logits, labels=labels), "ant bee cat dog eel fox gnu".split())))
"""


def test_the_number_of_threads_changes_no_bit(scores, found):
    torch.set_num_threads(3)
    try:
        assert analyse(scores, NAMES) == found
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
def test_another_process_with_other_threads_gives_the_same_bits(found, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "4")
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == found


def test_all_is_plain_json_without_nan(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found["intervals"]) == {
        *("top1", "top5", "loss", "balanced_accuracy", "brier"),
        *("expected_calibration_error", "calibrated_error", "temperature"),
    }
    assert all(low < high for low, high in found["intervals"].values())


def test_every_figure_lies_in_its_interval(scores, found):
    figures = {**scores.measure(), **found, **found["calibration"]}
    for name, (low, high) in found["intervals"].items():
        assert low <= figures[name] <= high, name


# ---------------------------------------------------------------------------------------------- the single figures
def test_balanced_accuracy_is_that_of_scikit_learn(scores, found):
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(scores.labels.numpy(), scores.logits.argmax(dim=1).numpy())
    assert found["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)


def test_the_metrics_say_what_the_analysis_says(scores, found):
    metrics = load_metrics((BalancedAccuracy, Brier, ExpectedCalibrationError, CalibratedError))
    said = metrics.compute(predictions=scores.logits, references=scores.labels)
    figures = {**found, **found["calibration"]}
    assert said == {name: figures[name] for name in said}


def test_superclasses_are_counted_where_the_classes_have_them():
    names = [name for group in CIFAR100.values() for name in group][::-1]
    group = {name: place for place, (_, members) in enumerate(CIFAR100.items()) for name in members}
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(100, (400,), generator=generator)
    logits = torch.randn(400, 100, generator=generator)
    logits[torch.arange(400), labels] += 1.5
    found = analyse(Scores(logits, labels), names)
    named = logits.argmax(dim=1).tolist()
    hits = [group[names[a]] == group[names[b]] for a, b in zip(named, labels.tolist(), strict=True)]
    assert found["superclass_top1"] == sum(hits) / 400 > Scores(logits, labels).measure()["top1"]
    low, high = found["intervals"]["superclass_top1"]
    assert low < sum(hits) / 400 < high
    metric = SuperclassTop1(names)
    assert metric.compute(predictions=logits, references=labels) == {"superclass_top1": found["superclass_top1"]}


def test_real_labels_are_counted_where_they_are_given(scores):
    real = [[label, (label + 1) % 7] if row % 3 else [] for row, label in enumerate(scores.labels.tolist())]
    found = analyse(scores, NAMES, real_labels=real)
    named = scores.logits.argmax(dim=1).tolist()
    hits = [name in entry for name, entry in zip(named, real, strict=True) if entry]
    assert (found["real_top1"], found["real_n"]) == (sum(hits) / 400, 400)
    other = scipy.stats.bootstrap((hits,), np.mean, n_resamples=9_999, method="percentile", random_state=1)
    expected = list(other.confidence_interval)
    assert found["intervals"]["real_top1"] == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))
    assert RealTop1().compute(predictions=scores.logits, real_labels=real) == {
        name: found[name] for name in ("real_top1", "real_n")
    }
    without = analyse(scores, NAMES)
    assert found == {**without, **{k: found[k] for k in ("real_top1", "real_n")}, "intervals": found["intervals"]}
    assert {k: v for k, v in found["intervals"].items() if k != "real_top1"} == without["intervals"]


def test_real_labels_that_do_not_fit_are_refused(scores):
    with pytest.raises(ValueError, match="2 sets of real labels for 600 samples"):
        analyse(scores, NAMES, real_labels=[[0], [1]])
    with pytest.raises(ValueError, match="no sample has a real label"):
        analyse(scores, NAMES, real_labels=[[]] * 600)


# ---------------------------------------------------------------------------------------------- odd sizes
def test_with_one_class_every_share_is_certain():
    found = analyse(Scores(torch.randn(3, 1), torch.zeros(3, dtype=torch.int64)), ["all"])
    assert found["balanced_accuracy"] == 1
    assert found["per_class"] == [["all", 3, 3, 1.0, 1.0]]
    assert {name: found["intervals"][name] for name in ("top1", "top5", "balanced_accuracy", "temperature")} == {
        "top1": [1.0, 1.0],
        "top5": [1.0, 1.0],
        "balanced_accuracy": [1.0, 1.0],
        "temperature": [1.0, 1.0],
    }


@pytest.mark.parametrize(("label", "expected"), [(1, [0.025, 1.0]), (0, [0.0, 0.975])])
def test_a_single_sample_has_the_exact_interval(label, expected):
    found = analyse(Scores(torch.tensor([[0.1, 0.9, 0.2]]), torch.tensor([label])), NAMES[:3])
    for name in ("top1", "balanced_accuracy"):
        assert found["intervals"][name] == pytest.approx(expected)
    assert found["per_class"] == [[NAMES[label], 1, label, *found["intervals"]["top1"]]]
    assert found["intervals"]["top5"] == [1.0, 1.0]
    loss = found["intervals"]["loss"]
    assert (
        loss[0]
        == loss[1]
        == pytest.approx(-math.log(math.exp([0.1, 0.9][label]) / sum(map(math.exp, (0.1, 0.9, 0.2)))))
    )


def test_a_model_that_is_always_right_is_not_certain():
    labels = torch.arange(60) % 6
    found = analyse(Scores(9 * torch.eye(7)[labels], labels), NAMES)
    assert found["intervals"]["top1"] == [pytest.approx(0.025 ** (1 / 60)), 1.0]
    assert found["intervals"]["balanced_accuracy"] == [pytest.approx(0.025 ** (1 / 60)), 1.0]
    assert found["per_class"][0] == ["ant", 10, 10, pytest.approx(0.025 ** (1 / 10)), 1.0]
    assert found["calibration"]["temperature"] == 0.01
    assert found["confusions"] == []


def test_logits_that_are_all_alike_have_no_temperature():
    found = analyse(Scores(torch.zeros(20, 4), torch.arange(20) % 4), NAMES[:4])
    assert found["calibration"]["temperature"] == 1
    assert found["balanced_accuracy"] == 0
    assert found["calibration"]["bins"][3] == [20, 0.25, 0.0]


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


def test_the_brier_score_is_that_of_scikit_learn(scores, found):
    probabilities = scipy.special.softmax(scores.logits.double().numpy(), axis=1)
    of_classes = [brier_score_loss(scores.labels.numpy() == place, probabilities[:, place]) for place in range(6)]
    expected = sum(of_classes) + np.square(probabilities[:, 6]).mean()  # the absent class is never the true one
    assert found["calibration"]["brier"] == pytest.approx(expected, abs=1e-12)


def test_classes_and_confusions_are_those_of_the_confusion_matrix(scores, found):
    matrix = confusion_matrix(scores.labels.numpy(), scores.logits.argmax(dim=1).numpy(), labels=list(range(7)))
    assert [row[:3] for row in found["per_class"]] == [[NAMES[i], matrix[i].sum(), matrix[i, i]] for i in range(6)]
    np.fill_diagonal(matrix, 0)
    counts = sorted(matrix.ravel().tolist(), reverse=True)[:10]
    assert [count for _, _, count in found["confusions"]] == counts
    assert all(matrix[NAMES.index(true), NAMES.index(other)] == count for true, other, count in found["confusions"])


def test_a_tie_with_the_true_class_is_a_mistake_for_the_class_that_ties():
    scores = Scores(logits=torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]]), labels=torch.tensor([0, 1]))
    found = analyse(scores, NAMES[:3])
    assert found["confusions"] == [["ant", "cat", 1]]
    assert [row[:3] for row in found["per_class"]] == [["ant", 1, 0], ["bee", 1, 1]]


def test_names_that_do_not_fit_the_logits_are_refused(scores):
    with pytest.raises(ValueError, match="3 label names for logits of 7 classes"):
        analyse(scores, NAMES[:3])
