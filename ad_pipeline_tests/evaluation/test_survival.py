"""The product-limit estimator against lifelines, and what it says of anchors that never convert."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lifelines import KaplanMeierFitter

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation.survival import DelayDistribution, SurvivalCurve

Rows = list[tuple[int, bool]]

CASES: dict[str, Rows] = {
    "ties of events and censorings": [(3, True), (3, False), (3, True), (5, False), (5, True)],
    "all censored": [(2, False), (7, False), (7, False)],
    "nothing censored": [(1, True), (2, True), (2, True), (9, True)],
    "events at the left end": [(0, True), (0, True), (0, False), (4, True), (6, False)],
    "the last one is censored": [(1, True), (2, True), (8, False)],
    "one row": [(5, True)],
}


def split(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.array([duration for duration, _ in rows], dtype=np.int64),
        np.array([event for _, event in rows], dtype=bool),
    )


def assert_as_lifelines(rows: Rows, level: float = 0.95) -> None:
    durations, events = split(rows)
    reference = KaplanMeierFitter(alpha=1 - level).fit(durations, events)
    at = reference.timeline.astype(np.int64)
    curve = SurvivalCurve.of(durations, events, level)
    said = curve.survival(at)
    assert said == pytest.approx(reference.survival_function_.to_numpy()[:, 0], abs=1e-12)
    low, high = curve.survival_interval(at)
    # At S = 0 Greenwood's variance is infinite: lifelines says [0, 0], we say that it is not known.
    known = said > 1e-12
    assert np.isnan([low[~known], high[~known]]).all()
    bounds = reference.confidence_interval_.to_numpy()[known]
    assert np.column_stack([low[known], high[known]]) == pytest.approx(bounds, abs=1e-9)


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_curve_and_interval_are_those_of_lifelines(rows: Rows) -> None:
    assert_as_lifelines(rows)


@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60),
    level=st.sampled_from([0.8, 0.95, 0.99]),
)
def test_curve_and_interval_of_any_rows_are_those_of_lifelines(rows: Rows, level: float) -> None:
    assert_as_lifelines(rows, level)


def test_a_thousand_microsecond_durations_are_those_of_lifelines() -> None:
    rng = np.random.default_rng(1)
    durations = rng.integers(0, 26 * HOUR_US, 1_000)
    assert_as_lifelines(
        list(zip(durations.tolist(), (rng.random(1_000) < 0.3).tolist(), strict=True))
    )


def test_to_take_the_censored_for_events_is_found() -> None:
    """The planted fault: what has not come yet counted as if it had."""
    durations, events = split(CASES["ties of events and censorings"])
    honest = SurvivalCurve.of(durations, events)
    planted = SurvivalCurve.of(durations, np.ones_like(events))
    assert honest.survival([4]) != planted.survival([4])


def test_to_count_censorings_before_the_events_of_their_moment_is_found() -> None:
    durations, events = split([(3, True), (3, False), (5, False)])
    honest = SurvivalCurve.of(durations, events)
    planted = SurvivalCurve.of(durations * 2 - ~events * 1, events)
    assert honest.survival([3])[0] == pytest.approx(2 / 3)
    assert planted.survival([6])[0] == pytest.approx(1 / 2)


def test_a_curve_that_does_not_fall_so_far_has_no_median() -> None:
    median = SurvivalCurve.of([1, 2, 3, 4], [True, False, False, False]).quantile_us(0.5)
    assert np.isnan([median.value, median.high]).all()
    even = SurvivalCurve.of(np.arange(1, 9), np.ones(8, dtype=bool)).quantile_us(0.5)
    assert even.value == 4
    assert even.low < 4 < even.high


def test_the_mean_is_the_area_under_the_curve() -> None:
    durations, events = split([(1, True), (2, True), (3, False), (10, True)])
    curve = SurvivalCurve.of(durations, events)
    assert curve.mean_us(10) == pytest.approx(1 + 0.75 + 8 * 0.5)
    assert curve.mean_us(2) == pytest.approx(1 + 0.75)
    assert SurvivalCurve.of(np.array([4, 6]), [True, True]).mean_us(100) == pytest.approx(5)


@pytest.mark.parametrize(
    ("durations", "events", "message"),
    [
        ([1, 2], [True], "one shape"),
        ([1.5], [True], "whole microseconds"),
        ([-1], [True], "none can be negative"),
    ],
)
def test_durations_that_cannot_be_are_refused(durations, events, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SurvivalCurve.of(durations, events)


# --- most never convert --------------------------------------------------------------------------

HORIZON_US = 24 * HOUR_US


def cohort(
    rate: float, rows: int, seed: int, now_us: int = 30 * HOUR_US
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return durations, events, and whether each row converts in the end.

    Anchors over the hours up to ``now_us``, delays exponential with a mean of six hours and cut off
    at the horizon: 2 % of the positives come then.
    """
    rng = np.random.default_rng(seed)
    age_us = rng.integers(0, now_us, rows)
    converts = rng.random(rows) < rate
    delay_us = np.minimum(rng.exponential(6 * HOUR_US, rows), HORIZON_US).astype(np.int64)
    events = converts & (delay_us <= age_us)
    return np.where(events, delay_us, np.minimum(age_us, HORIZON_US)), events, converts


def delays(durations_us: np.ndarray, events: np.ndarray) -> DelayDistribution:
    return DelayDistribution(SurvivalCurve.of(durations_us, events), HORIZON_US)


@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_rate_and_delays_are_found_although_half_of_the_anchors_are_still_waiting(
    rate: float,
) -> None:
    durations, events, converts = cohort(rate, 100_000, seed=2)
    found = delays(durations, events)
    assert found.rate.low < rate < found.rate.high
    assert found.rate.low < converts.mean() < found.rate.high
    for hours in (1, 6, 20):
        share = found.share_within(hours * HOUR_US)
        assert share.low < -np.expm1(-hours / 6) < share.high
    assert found.mean_us == pytest.approx(6 * HOUR_US * -np.expm1(-4), rel=0.03)
    # What counts them as negatives, or leaves them out, is far off.
    assert events.mean() < 0.93 * found.rate.low
    waiting = ~events & (durations < HORIZON_US)
    assert events[~waiting].mean() > 1.1 * found.rate.high


def test_the_interval_of_the_delays_is_the_binomial_one_when_nothing_is_censored() -> None:
    rng = np.random.default_rng(3)
    converts = rng.random(200_000) < 0.01
    delay = rng.integers(1, HORIZON_US, 200_000)
    found = delays(np.where(converts, delay, HORIZON_US), converts)
    low, high = found.cdf_interval([HORIZON_US // 2])
    g = found.cdf([HORIZON_US // 2])[0]
    assert g == pytest.approx((delay[converts] <= HORIZON_US // 2).mean(), abs=1e-9)
    width = 2 * 1.96 * np.sqrt(g * (1 - g) / converts.sum())
    assert (high - low)[0] == pytest.approx(width, rel=0.03)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = {"rate": 0, "share": 0, "to come": 0}
    worlds = 200
    for seed in range(worlds):
        durations, events, converts = cohort(0.2, 2_000, seed)
        found = delays(durations, events)
        held["rate"] += found.rate.low < 0.2 < found.rate.high
        share = found.share_within(3 * HOUR_US)
        held["share"] += share.low < -np.expm1(-0.5) < share.high
        waiting = ~events & (durations < HORIZON_US)
        later = found.expected_to_come(durations[waiting])
        held["to come"] += later.low <= (converts & waiting).sum() <= later.high
    assert all(0.9 * worlds <= count <= 0.99 * worlds for count in held.values()), held


def test_what_is_still_to_come_is_bayes_rule() -> None:
    durations, events, _ = cohort(0.3, 20_000, seed=4)
    found = delays(durations, events)
    ages = np.array([0, HOUR_US, 10 * HOUR_US, HORIZON_US, 2 * HORIZON_US])
    p, g = found.rate.value, found.cdf(ages)
    assert found.to_come(ages) == pytest.approx(p * (1 - g) / (1 - p * g))
    assert found.to_come(ages)[-1] == 0.0
    assert found.expected_to_come(ages).value == pytest.approx(found.to_come(ages).sum())
    assert found.expected_to_come([]).value == 0.0


def test_delays_drawn_from_the_distribution_have_it() -> None:
    durations, events, _ = cohort(0.3, 20_000, seed=5)
    found = delays(durations, events)
    drawn = found.drawn_us(np.random.default_rng(6).random(50_000))
    for quantile in (0.1, 0.5, 0.9):
        wanted = found.quantile_us(quantile).value
        assert np.quantile(drawn, quantile) == pytest.approx(wanted, rel=0.05)
    assert set(drawn) <= set(durations[events])


def test_without_a_positive_nothing_is_claimed() -> None:
    found = delays(np.array([5, 7]), np.array([False, False]))
    assert np.isnan([found.rate.value, found.mean_us, found.quantile_us(0.5).value]).all()
    assert np.isnan(found.cdf([3])).all()
    assert found.expected_to_come([1, 2]).value == 0.0


def test_where_everybody_converts_the_delays_are_the_durations() -> None:
    durations = np.arange(1, 101) * HOUR_US // 10
    found = delays(durations, np.ones(100, dtype=bool))
    assert found.rate.value == 1.0
    median = found.quantile_us(0.5)
    assert (median.low, median.value, median.high) == pytest.approx(
        (4.1 * HOUR_US, 5.0 * HOUR_US, 6.1 * HOUR_US), rel=0.05
    )
