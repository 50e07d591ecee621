"""Resampling and its intervals: the draws by their formula, sums without rounding, and how often the truth is held."""

import math

import numpy as np
import pytest
import scipy.stats

from vit_hf.evaluation import bootstrap
from vit_hf.evaluation.bootstrap import (
    on_grid,
    percentile_interval,
    resample_classes,
    resample_counts,
    resample_means,
)
from vit_hf.evaluation.intervals import balanced_interval, class_intervals, distance_interval, share_interval


def counts(n: int, **options) -> np.ndarray:
    return np.concatenate(list(resample_counts(n, **options)))


# ---------------------------------------------------------------------------------------------- draws
def test_the_draws_are_those_of_pcg64_by_whole_numbers():
    """PCG XSL RR 128/64 from the state of NumPy's seed 0, its step written out (O'Neill 2014)."""
    start = np.random.PCG64(0).state["state"]
    state, increment = start["state"], start["inc"]
    words = []
    for _ in range(6):
        state = (state * 0x2360ED051FC65DA44385DF649FCCF645 + increment) % 2**128
        folded, turn = (state >> 64) ^ (state % 2**64), state >> 122
        words.append((folded >> turn | folded << (64 - turn)) % 2**64)
    expected = np.zeros((2, 5))
    for resample in range(2):
        own = words[3 * resample : 3 * resample + 3]
        halves = [word % 2**32 for word in own] + [word >> 32 for word in own]
        for half in halves[:5]:
            expected[resample, half * 5 >> 32] += 1
    np.testing.assert_array_equal(counts(5, resamples=2), expected)


@pytest.mark.parametrize("n", [1, 2, 37, 1000])
def test_each_resample_draws_as_many_samples_as_there_are(n):
    drawn = counts(n, resamples=50)
    assert drawn.shape == (50, n)
    assert (drawn.sum(axis=1) == n).all()


def test_each_sample_is_drawn_as_often_as_any_other_and_apart_from_its_neighbours():
    drawn = counts(40, resamples=20_000)
    total = drawn.sum(axis=0)  # each binomial with mean 20,000: chi-squared with 39 degrees
    assert scipy.stats.chisquare(total).pvalue > 0.001
    assert drawn.var(axis=0) == pytest.approx(np.full(40, 39 / 40), abs=0.05)
    correlation = np.corrcoef(drawn.T)[~np.eye(40, dtype=bool)]
    assert correlation.mean() == pytest.approx(-1 / 39, abs=0.002)
    assert np.abs(correlation + 1 / 39).max() < 5 / math.sqrt(20_000)


def test_the_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    values = np.random.default_rng(0).random((37, 2))
    whole = resample_means(values)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 100)
    np.testing.assert_array_equal(resample_means(values), whole)


def test_another_seed_draws_others():
    assert (counts(30, resamples=5) != counts(30, resamples=5, seed=1)).any()


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="there are 0 samples to resample"):
        resample_means(np.empty((0, 2)))
    with pytest.raises(ValueError, match=r"shape \(3,\) or are not all finite"):
        resample_means(np.ones(3))
    with pytest.raises(ValueError, match="not all finite"):
        resample_means(np.array([[1.0, np.nan]]))


# ---------------------------------------------------------------------------------------------- sums
def test_means_are_exact_whatever_the_order_of_adding():
    values = np.random.default_rng(0).lognormal(sigma=4, size=(501, 3)) * [1, 1e-200, -1e200]
    grid, drawn = on_grid(values), counts(501, resamples=20)
    for column in range(3):
        exact = [math.fsum(np.repeat(grid[:, column], row.astype(int))) / 501 for row in drawn]
        np.testing.assert_array_equal(resample_means(values, resamples=20)[:, column], exact)
    assert (np.abs(grid - values).max(axis=0) <= np.abs(values).max(axis=0) * 512 * 2.0**-52).all()


def test_shares_and_zeros_are_on_the_grid():
    values = np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.5, 0.25, 0.0]])
    np.testing.assert_array_equal(on_grid(values), values)


def test_classes_are_counted_in_the_same_resamples():
    generator = np.random.default_rng(1)
    labels, right = generator.choice([2, 5, 9], size=80), (generator.random(80) < 0.6).astype(float)
    right[labels == 2] = 0
    values = np.stack([right, labels == 2], axis=1).astype(float)
    means, size, named = resample_classes(values, labels, right, resamples=30)
    np.testing.assert_array_equal(means, resample_means(values, resamples=30))
    for row, drawn in enumerate(counts(80, resamples=30)):
        assert size[row].tolist() == [drawn[labels == label].sum() for label in (2, 5, 9)]
        assert named[row].tolist() == [drawn[(labels == label) & (right == 1)].sum() for label in (2, 5, 9)]


def test_resamples_without_a_figure_do_not_count():
    found = percentile_interval(np.array([[1.0, 2.0], [np.nan, 2.0], [3.0, 2.0]]))
    np.testing.assert_allclose(found, [[1.05, 2.0], [2.95, 2.0]])


# ---------------------------------------------------------------------------------------------- intervals
@pytest.mark.parametrize("n", [1, 10, 359])
@pytest.mark.parametrize("share", [0, 1])
def test_at_the_edge_the_interval_is_that_of_clopper_and_pearson(share, n):
    expected = scipy.stats.binomtest(share * n, n).proportion_ci(method="exact")
    assert share_interval(np.full(5, float(share)), share, n) == pytest.approx([expected.low, expected.high])


def test_the_interval_of_a_class_that_is_all_right_is_exact_and_of_another_that_of_its_resamples():
    size, right = np.array([[2, 4], [0, 6], [3, 5]]), np.array([[2, 1], [0, 3], [3, 2]])
    first, second = class_intervals(size, right, correct=np.array([2.0, 2.0]), count=np.array([2, 5]))
    assert first == [pytest.approx(0.025 ** (1 / 2)), 1.0]
    assert second == pytest.approx(list(np.quantile([1 / 4, 3 / 6, 2 / 5], [0.025, 0.975])))


def test_a_class_missing_in_a_resample_does_not_count_in_its_balanced_accuracy():
    size, right = np.array([[2, 4], [0, 6]]), np.array([[1, 1], [0, 3]])
    found = balanced_interval(size, right, correct=np.array([1.0, 2.0]), count=np.array([2, 5]))
    assert found == pytest.approx(list(np.quantile([(1 / 2 + 1 / 4) / 2, 3 / 6], [0.025, 0.975])))


def test_no_accuracies_that_may_well_show_no_mistake_have_a_lower_mean_than_the_balanced_interval():
    """Searched: the mean accuracy is made least under the condition that no mistake has a chance of 2.5%."""
    count = np.array([3, 5, 20])
    low, _ = balanced_interval(np.ones((1, 3)), np.ones((1, 3)), correct=count, count=count)
    shares = np.exp(-np.linspace(0, -math.log(0.025), 400))
    first, second = np.meshgrid(shares ** (1 / 3), shares ** (1 / 5))
    left = np.clip(0.025 / (first**3 * second**5), None, 1) ** (1 / 20)
    allowed = first**3 * second**5 >= 0.025
    assert low <= ((first + second + left) / 3)[allowed].min()


def held(n: int, share: float, sets: int, seed: int) -> tuple[float, float]:
    """How often the interval of an accuracy holds the truth, and how often the percentiles alone."""
    right = (np.random.default_rng(seed).random((n, sets)) < share).astype(float)
    estimates = resample_means(right)
    plain = percentile_interval(estimates)
    ours = np.array([share_interval(estimates[:, i], right[:, i].mean(), n) for i in range(sets)]).T
    return tuple(((low <= share) & (share <= high)).mean() for low, high in (ours, plain))


def test_the_95_percent_interval_of_an_accuracy_holds_the_truth_19_times_of_20():
    ours, plain = held(200, 0.7, 400, seed=0)
    assert ours == plain
    assert 0.92 <= ours <= 0.98  # 0.95, its binomial error over 400 sets 0.011


def test_near_the_edge_only_the_exact_interval_holds_the_truth():
    ours, plain = held(200, 0.99, 400, seed=0)
    assert plain < 0.90  # 0.99 ** 200 = 13% of the sets have no mistake
    assert ours >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "share", "least"),
    [(200, 0.5, 0.93), (200, 0.9, 0.92), (200, 0.99, 0.97), (10_000, 0.9, 0.93), (50, 0.9, 0.93), (10, 0.9, 0.95)],
)
def test_the_coverage_of_accuracies_over_many_sets(n, share, least):
    ours, _ = held(n, share, 400 if n > 1_000 else 4_000, seed=1)
    assert least <= ours


# ---------------------------------------------------------------------------------------------- calibration error
def gaps_of(generator: np.random.Generator, n: int, slope: float) -> np.ndarray:
    """Distance of confidence and correctness of n samples in the columns of their bins; calibrated where slope is 1."""
    confidence = 0.3 + 0.7 * generator.beta(4, 1.2, n)
    right = generator.random(n) < confidence**slope
    gaps = np.zeros((n, 15))
    gaps[np.arange(n), np.minimum((confidence * 15).astype(int), 14)] = confidence - right
    return gaps


def held_errors(n: int, slope: float, sets: int) -> tuple[float, float, float]:
    """How often the interval of a calibration error holds the truth, percentiles hold it, and it holds the figure."""
    generator = np.random.default_rng(0)
    truth = np.abs(gaps_of(generator, 2_000_000, slope).mean(axis=0)).sum() if slope != 1 else 0.0
    hits = []
    for _ in range(sets):
        gaps = gaps_of(generator, n, slope)
        estimates, found = resample_means(gaps, resamples=500), gaps.mean(axis=0)
        low, high = distance_interval(estimates, found)
        plain = percentile_interval(np.abs(estimates).sum(axis=1))
        hits.append((low <= truth <= high, plain[0] <= truth <= plain[1], low <= np.abs(found).sum() <= high))
    return tuple(np.mean(hits, axis=0))


def test_the_interval_of_a_calibration_error_holds_the_truth_where_percentiles_never_do():
    ours, plain, figure = held_errors(400, 1.0, 60)
    assert plain == 0  # noise only adds to an error of 0
    assert ours >= 0.9
    assert figure == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "slope", "least"), [(359, 1.0, 0.93), (1_000, 1.6, 0.92), (359, 1.6, 0.89), (1_000, 1.1, 0.93)]
)
def test_the_coverage_of_calibration_errors_over_many_sets(n, slope, least):
    ours, _, figure = held_errors(n, slope, 400)
    assert ours >= least
    assert figure == 1


def test_a_gap_without_noise_is_its_own_interval():
    gaps = np.array([0.25, -0.25])
    assert distance_interval(np.tile(gaps, (50, 1)), gaps) == pytest.approx([0.5, 0.5])
    assert distance_interval(np.zeros((50, 2)), np.zeros(2)) == [0.0, 0.0]
