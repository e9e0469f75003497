"""Statistics of drift: equal to scipy's, honest about blocks, and corrected for many columns."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import false_discovery_control, ks_2samp, wasserstein_distance

from ad_pipeline.monitoring.drift import statistics

NUMBERS = st.lists(st.integers(-50, 50).map(lambda k: k / 4), min_size=1, max_size=60)
COUNTS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=20)


@given(NUMBERS, NUMBERS)
def test_distances_of_numbers_are_those_of_scipy(before: list[float], after: list[float]):
    gap, area = statistics.distances_of_numbers(before, after)
    expected, _ = ks_2samp(before, after)
    assert gap == pytest.approx(expected, abs=1e-12)
    assert area == pytest.approx(wasserstein_distance(before, after), abs=1e-9)


@given(COUNTS)
def test_the_distance_of_categories_is_that_of_scipy(counts: list[tuple[int, int]]):
    before, after = (np.array(side) for side in zip(*counts, strict=True))
    found = statistics.jensen_shannon(before, after)
    if not before.sum() or not after.sum():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(jensenshannon(before, after, base=2), abs=1e-7)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_adjusted_p_values_are_those_of_scipy(p_values: list[float]):
    expected = false_discovery_control(p_values, method="bh")
    assert statistics.benjamini_hochberg(p_values) == pytest.approx(expected)


def test_a_side_without_rows_has_no_distance():
    assert np.isnan(statistics.distances_of_numbers([], [1.0])).all()


def days(seed: int, spread: float, count: int = 8) -> np.ndarray:
    """Return rows by day and cell, of days that differ by a spread in log odds."""
    generator = np.random.default_rng(seed)
    shares = np.exp(generator.normal(0, spread, (count, 12)))
    shares /= shares.sum(axis=1, keepdims=True)
    return np.array([generator.multinomial(2_500, each) for each in shares])


def p_value(table: np.ndarray) -> float:
    index = statistics.psi(table[:-1].sum(axis=0), table[-1])
    return statistics.block_p_value(table[:-1], table[-1], index)


def as_if_independent(table: np.ndarray) -> float:
    pooled = table[:-1].sum(axis=0, keepdims=True)
    return statistics.block_p_value(
        pooled, table[-1], statistics.psi(pooled.sum(axis=0), table[-1])
    )


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_an_unchanged_column_is_doubted_as_often_as_is_said_however_much_days_differ(
    spread: float,
):
    below = [p_value(days(seed, spread)) <= 0.05 for seed in range(600)]
    assert np.mean(below) <= 0.075


def test_rows_taken_for_independent_would_accuse_most_unchanged_columns():
    """The planted fault: the same days without their blocks."""
    accused = [as_if_independent(days(seed, 0.3)) <= 0.05 for seed in range(100)]
    assert np.mean(accused) > 0.9


def test_a_day_beyond_what_days_differ_by_is_found():
    found = []
    for seed in range(40):
        table = days(seed, 0.1)
        table[-1] = np.random.default_rng(seed).multinomial(2_500, np.arange(1, 13) / 78)
        found.append(p_value(table) <= 0.01)
    assert np.mean(found) > 0.95


def test_as_many_unseen_categories_as_good_and_turing_expect_are_no_news():
    generator = np.random.default_rng(1)
    chances = []
    for _ in range(200):
        before, after = generator.zipf(1.4, 5_000), generator.zipf(1.4, 5_000)
        _, counts = np.unique(before, return_counts=True)
        unseen = int((~np.isin(after, before)).sum())
        chances.append(statistics.unseen_share(counts, unseen, 5_000)[2])
    assert np.mean(np.array(chances) < 0.01) <= 0.03


def test_rows_of_a_category_that_was_never_there_are_news():
    share, expected, chance = statistics.unseen_share(np.array([500, 300, 200]), 60, 1_000)
    assert (share, expected) == (0.06, 0.0)
    assert chance < 1e-6
