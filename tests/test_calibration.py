"""Bins of confidence and the temperature: scikit-learn's bins, SciPy's optimum, and nothing scored with its own fit."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from sklearn.calibration import calibration_curve

from vit_hf.evaluation import calibration
from vit_hf.evaluation.calibration import calibrate, calibrate_after_temperature, fit_temperature, halves, refit


def samples(n: int, classes: int, temperature: float, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that have to be divided by the temperature to be the truth, and labels drawn from that."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator)
    labels = logits.double().softmax(dim=1).multinomial(1, generator=generator)[:, 0]
    return logits * temperature, labels


def loss(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    scaled = scipy.special.log_softmax(logits.double().numpy() / temperature, axis=1)
    return -scaled[np.arange(len(labels)), labels.numpy()].mean()


# ---------------------------------------------------------------------------------------------- bins
def test_bins_take_their_upper_edge_and_empty_ones_have_no_means():
    found = calibrate(np.array([1 / 3, 1 / 3 + 1e-9, 1.0]), np.array([1.0, 0.0, 1.0]))
    assert [row[0] for row in found["bins"]] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found["bins"][4] == [1, pytest.approx(1 / 3), 1.0]
    assert found["bins"][0] == [0, None, None]
    assert found["expected_calibration_error"] == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)


def test_a_confidence_that_rounding_moves_over_an_edge_stays_in_its_bin():
    edges = np.arange(1, 15) / 15
    for moved in (edges, np.nextafter(edges, 0), np.nextafter(edges, 1), edges + 1e-15):
        assert [row[0] for row in calibrate(moved, np.ones(14))["bins"]] == [1] * 14 + [0]


def test_bins_and_error_of_random_confidences_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    confidence = generator.random(5_000)
    correct = (generator.random(5_000) < confidence**2).astype(float)
    found = calibrate(confidence, correct)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15)
    np.testing.assert_allclose(np.array(found["bins"])[:, 1:].astype(float), np.stack([mean, accuracy], axis=1))
    weights = np.histogram(confidence, bins=15, range=(0, 1))[0] / 5_000
    assert found["expected_calibration_error"] == pytest.approx((weights * abs(mean - accuracy)).sum(), abs=1e-12)


# ---------------------------------------------------------------------------------------------- temperature
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("truth", [0.05, 0.5, 1.0, 3.0, 40.0])
def test_the_temperature_is_the_optimum_that_scipy_finds(truth, classes):
    logits, labels = samples(400, classes, truth)
    found = fit_temperature(logits, labels)
    other = scipy.optimize.minimize_scalar(
        lambda log: loss(logits, labels, math.exp(log)), bounds=(-5, 5), method="bounded", options={"xatol": 1e-10}
    )
    assert math.log(found) == pytest.approx(other.x, abs=1e-6)  # SciPy compares losses, flat to 1e-8 there
    assert loss(logits, labels, found) <= other.fun + 1e-15
    slope = (loss(logits, labels, found * 1.001) - loss(logits, labels, found / 1.001)) / 0.002
    assert slope == pytest.approx(0, abs=1e-6)


def test_a_known_temperature_is_found_again():
    logits, labels = samples(40_000, 10, 1.7)
    assert fit_temperature(logits, labels) == pytest.approx(1.7, rel=0.02)  # its error over 40,000 samples is 0.8%


@pytest.mark.parametrize("start", [0.01, 0.3, 5.0, 100.0])
def test_the_temperature_does_not_depend_on_where_the_search_begins(start):
    logits, labels = samples(300, 10, 2.0)
    assert fit_temperature(logits, labels, start=start) == pytest.approx(fit_temperature(logits, labels), rel=1e-12)


def test_few_passes_over_the_logits_are_enough(monkeypatch):
    logits, labels = samples(300, 10, 2.0)
    passes, derivatives = [], calibration._derivatives
    monkeypatch.setattr(calibration, "_derivatives", lambda *args: passes.append(args) or derivatives(*args))
    fit_temperature(logits, labels)
    assert len(passes) <= 6
    passes.clear()
    fit_temperature(torch.eye(4), torch.arange(4))  # always right: the best is at 0
    assert len(passes) <= 6


def test_a_model_that_is_always_right_is_at_the_lower_bound_and_one_always_most_wrong_at_the_upper():
    logits = torch.randn(50, 6)
    assert fit_temperature(logits, logits.argmax(dim=1)) == 0.01
    assert fit_temperature(logits, logits.argmin(dim=1)) == 100.0


def test_one_mistake_by_a_hair_has_a_temperature_within_the_bounds():
    logits = torch.tensor([[1.0, 0.0]] * 40 + [[0.0, 0.004]])
    labels = torch.zeros(41, dtype=torch.int64)
    found = fit_temperature(logits, labels)
    assert 0.01 < found < 0.2
    other = scipy.optimize.minimize_scalar(
        lambda log: loss(logits, labels, math.exp(log)), bounds=(-4.6, 0), method="bounded", options={"xatol": 1e-10}
    )
    assert math.log(found) == pytest.approx(other.x, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e6, 1e30])
def test_logits_of_any_size_have_a_temperature(scale):
    logits, labels = samples(100, 5, 1.0)
    assert fit_temperature(logits * scale, labels) == (0.01 if scale < 1 else 100.0)


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.full((6, 3), 0.3), torch.arange(6) % 3),
        (torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)),
        (torch.empty(0, 3), torch.empty(0, dtype=torch.int64)),
    ],
    ids=["constant", "one class", "no samples"],
)
def test_where_no_temperature_changes_anything_it_is_one(logits, labels):
    assert fit_temperature(logits, labels) == 1.0


def test_one_step_from_the_fit_is_close_to_the_fit_of_a_resample():
    logits, labels = samples(1_000, 10, 1.5)
    fitted = calibrate_after_temperature(logits, labels)
    generator, steps, exact = np.random.default_rng(0), [], []
    for _ in range(20):
        drawn = generator.integers(1_000, size=1_000)
        means = [fitted[name][drawn].mean(keepdims=True) for name in ("slope", "curvature")]
        steps.append(refit(fitted["temperature"], *means)[0])
        exact.append(fit_temperature(logits[drawn], labels[drawn]))
    moved = np.abs(np.log(np.array(exact) / fitted["temperature"]))
    assert moved.max() > 0.02
    assert np.abs(np.log(np.array(steps) / exact)).max() < 0.15 * moved.max()


# ---------------------------------------------------------------------------------------------- after the temperature
def test_each_half_has_half_of_every_class_and_depends_on_labels_alone():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 0, 0, 1, 2, 3])
    first = halves(labels)
    # by class: 0 in rows 1, 3, 6, 7; 1 in 2, 8; 2 in 0, 4, 5, 9; 3 in 10; every second of them, from the first
    assert first.nonzero()[:, 0].tolist() == [0, 1, 2, 5, 6, 10]
    labels = torch.randint(7, (1_000,))
    sides = [torch.bincount(labels[side], minlength=7) for side in (halves(labels), ~halves(labels))]
    assert (sides[0] - sides[1]).abs().max() <= 1


def test_the_error_after_the_temperature_is_of_halves_scaled_by_the_other_half():
    logits, labels = samples(500, 6, 3.0)
    first, found = halves(labels).numpy(), calibrate_after_temperature(logits, labels)
    confidence, correct = np.empty(500), logits.argmax(dim=1).numpy() == labels.numpy()
    for half in (first, ~first):
        log = scipy.optimize.minimize_scalar(
            lambda log, other=~half: loss(logits[other], labels[other], math.exp(log)),
            bounds=(-5, 5),
            method="bounded",
            options={"xatol": 1e-10},
        ).x
        confidence[half] = scipy.special.softmax(logits[half].double().numpy() / math.exp(log), axis=1).max(axis=1)
    np.testing.assert_allclose(found["confidence"], confidence, atol=1e-6)
    expected = calibrate(confidence, correct.astype(float))
    assert found["calibrated_error"] == pytest.approx(expected["expected_calibration_error"], abs=1e-5)
    assert [row[0] for row in found["calibrated_bins"]] == [row[0] for row in expected["bins"]]


def test_a_sure_model_is_mended_and_labels_of_one_half_do_not_touch_its_own_confidences():
    logits, labels = samples(4_000, 10, 3.0)
    before = calibrate(
        logits.double().softmax(dim=1).amax(dim=1).numpy(), (logits.argmax(dim=1) == labels).double().numpy()
    )
    after = calibrate_after_temperature(logits, labels)
    assert before["expected_calibration_error"] > 0.2
    assert after["calibrated_error"] < 0.03
    first = halves(labels)
    logits[first] *= 7  # the fit of the first half changes, and with it only the confidences of the second
    other = calibrate_after_temperature(logits, labels)
    scaled = logits[first].double().numpy() / 3
    np.testing.assert_allclose(
        other["confidence"][first.numpy()], scipy.special.softmax(scaled, axis=1).max(axis=1), atol=0.05
    )


def test_a_single_sample_is_left_as_it_is():
    found = calibrate_after_temperature(torch.tensor([[0.0, 2.0]]), torch.tensor([0]))
    assert found["temperature"] == 100.0
    assert found["calibrated_error"] == pytest.approx(1 / (1 + math.exp(-2 / 100)), abs=1e-12)
