"""Intervals over seeds are those of the textbooks, and refuse what they cannot say."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.seed_intervals import mean_over_seeds, share


def test_the_mean_has_students_interval():
    values = [0.1, 0.3, 0.2, 0.5, 0.4]
    found = mean_over_seeds(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((0.3, low, high))


def test_it_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(5).normal(1.0, 2.0, (2000, 6))
    estimates = [mean_over_seeds(row.tolist()) for row in draws]
    covered = np.mean([found.low <= 1.0 <= found.high for found in estimates])
    assert 0.935 < covered < 0.965


def test_one_seed_gives_no_bounds_and_no_verdict():
    found = mean_over_seeds([0.2])
    assert math.isnan(found.low)
    assert not found.excludes_zero


def test_a_seed_without_a_figure_is_an_error():
    with pytest.raises(ValueError, match="not every seed gave a figure"):
        mean_over_seeds([0.1, float("nan")])


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (1, 20), (19, 20), (20, 20)])
def test_a_share_has_the_interval_of_clopper_and_pearson(hits: int, trials: int):
    found = share(hits, trials)
    exact = stats.binomtest(hits, trials).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


def test_more_hits_than_trials_are_refused():
    with pytest.raises(ValueError, match="21 hits in 20 trials"):
        share(21, 20)
