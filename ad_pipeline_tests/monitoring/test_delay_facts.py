"""What the delay report reads off a log, against planted rates, delays, lives and scores."""

from dataclasses import replace

import numpy as np
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US
from ad_pipeline.datasets import Goal
from ad_pipeline.monitoring.delay_report.log_model import drawn_world, model_of, plan_of
from ad_pipeline.monitoring.delay_report.report import (
    AgeBucket,
    DelayFacts,
    KnownAnchors,
    SeenAds,
    by_ad_age,
    delay_facts,
    rate_variation,
    ratio_by_blocks,
)
from ad_pipeline.monitoring.delay_report.value import SecondPriceMarket, value_function, valued
from ad_pipeline.settings import DelayReportSettings, DelaySettings
from ad_pipeline_tests.monitoring.made_logs import stable_ads

RATE, MEAN_DELAY_US = 0.2, 3 * HOUR_US
GOAL = Goal(name="click", window_us=DAY_US, observation_us=HOUR_US)
SPAN_US = 2 * DAY_US
SETTINGS = DelayReportSettings()


def known_log(
    rows: int = 60_000, lives_us: int = 6 * HOUR_US, seed: int = 3
) -> tuple[KnownAnchors, SeenAds]:
    """Two days of a log as known at its end: exponential delays, ads that follow one another."""
    rng = np.random.default_rng(seed)
    served_us = np.sort(rng.integers(0, SPAN_US, rows))
    arrives_us = served_us + rng.exponential(MEAN_DELAY_US, rows).astype(np.int64)
    counts = (rng.random(rows) < RATE) & (arrives_us - served_us <= GOAL.window_us)
    known = counts & (arrives_us < SPAN_US)
    ads = served_us // lives_us
    anchors = KnownAnchors(
        goal=GOAL,
        now_us=SPAN_US,
        anchor_us=served_us,
        serving_us=served_us,
        arrived_us=np.where(known, arrives_us, -1),
        matured=served_us + GOAL.window_us < SPAN_US,
        groups=ads % 2,
        group_names=("even", "odd"),
        ads=ads,
    )
    count = int(ads.max()) + 1
    first_us = np.array([served_us[ads == ad].min() for ad in range(count)])
    last_us = np.array([served_us[ads == ad].max() for ad in range(count)])
    return anchors, SeenAds(first_us, last_us, np.bincount(ads), 0, SPAN_US)


@pytest.fixture(scope="module")
def facts() -> DelayFacts:
    settings = DelayReportSettings(retired_after_hours=2)
    return delay_facts(*known_log(), settings, 0)


def test_an_anchor_without_a_label_is_waited_for_and_is_no_negative(facts: DelayFacts) -> None:
    true = RATE * (1 - np.exp(-DAY_US / MEAN_DELAY_US))
    rate = facts.delays.rate
    assert rate.low < true < rate.high
    # The naive share, which takes waiting anchors for negatives, is found wrong.
    assert facts.rate_so_far < rate.low
    assert facts.median_us.value == pytest.approx(np.log(2) * MEAN_DELAY_US, rel=0.05)
    assert facts.lateness.low < np.exp(-HOUR_US / MEAN_DELAY_US) < facts.lateness.high


def test_what_is_in_flight_and_what_of_it_still_comes_are_two_shares(facts: DelayFacts) -> None:
    anchors, _ = known_log()
    assert facts.in_flight == pytest.approx(0.5, abs=0.02)
    rng = np.random.default_rng(3)
    served_us = np.sort(rng.integers(0, SPAN_US, 60_000))
    arrives_us = served_us + rng.exponential(MEAN_DELAY_US, 60_000).astype(np.int64)
    counts = (rng.random(60_000) < RATE) & (arrives_us - served_us <= GOAL.window_us)
    still = int((counts & (arrives_us >= SPAN_US)).sum())
    assert facts.to_come.low < still < facts.to_come.high
    assert facts.share_to_come.value < facts.in_flight
    assert (anchors.arrived_us < SPAN_US).all()


def test_delay_against_ad_life_is_told_and_of_ads_born_before_the_log_nothing(
    facts: DelayFacts,
) -> None:
    assert facts.ads is not None
    assert facts.ads.median_life_us.value == pytest.approx(6 * HOUR_US, rel=0.02)
    assert facts.median_of_life == pytest.approx(np.log(2) * 3 / 6, rel=0.1)
    anchors, ads = known_log()
    assert not ads.born(2 * HOUR_US)[0]
    assert ads.born(2 * HOUR_US)[1:].all()
    ages_us = ads.ages_us(anchors.ads, anchors.serving_us, 2 * HOUR_US)
    assert (ages_us[anchors.ads == 0] == -1).all()
    assert (ages_us[anchors.ads > 0] >= 0).all()


def test_a_log_without_ads_or_without_a_positive_has_no_figures_of_them() -> None:
    anchors, _ = known_log(rows=500)
    assert np.isnan(delay_facts(anchors, None, SETTINGS, 0).median_of_life)
    nothing = KnownAnchors(**{**vars(anchors), "arrived_us": np.full(500, -1)})
    found = delay_facts(nothing, None, SETTINGS, 0)
    assert np.isnan(found.delays.rate.value)
    assert model_of(found) is None


def scored(young_factor: float, rows: int = 20_000, seed: int = 5) -> list[AgeBucket]:
    """Scores of ads of all ages whose young ones are off by a factor."""
    rng = np.random.default_rng(seed)
    ages_us = np.where(rng.random(rows) < 0.1, -1, rng.integers(0, 10 * HOUR_US, rows))
    true = rng.uniform(0.05, 0.2, rows)
    said = np.where((ages_us >= 0) & (ages_us < HOUR_US), true / young_factor, true)
    labels = (rng.random(rows) < true).astype(np.int8)
    serving_us = rng.integers(0, 100 * HOUR_US, rows)
    return by_ad_age(labels, said, ages_us, serving_us, np.array([HOUR_US, 4 * HOUR_US]))


def test_scores_that_fit_at_every_age_are_calibrated() -> None:
    found = scored(1.0)
    ages = [bucket.in_words for bucket in found]
    assert ages == ["under 1 h", "1 h to 4 h", "from 4 h on", "not known"]
    assert not any(bucket.miscalibrated(SETTINGS) for bucket in found)


@pytest.mark.parametrize("factor", [1.6, 1 / 1.6])
def test_scores_off_for_young_ads_alone_are_found_there_alone(factor: float) -> None:
    """Planted fault: half as much again, or as little, as young ads convert."""
    found = scored(factor)
    assert [bucket.miscalibrated(SETTINGS) for bucket in found] == [True, False, False, False]
    assert found[0].observed_over_predicted.value == pytest.approx(factor, rel=0.1)


def test_a_bucket_of_few_positives_is_not_judged() -> None:
    found = scored(3.0, rows=600)[0]
    assert max(found.positives, found.predicted) < SETTINGS.minimum_positives
    assert not found.miscalibrated(SETTINGS)


def test_the_interval_of_a_ratio_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        blocks = np.repeat(np.arange(40), 50)
        estimate = ratio_by_blocks((rng.random(2_000) < 0.3) * 1.0, np.ones(2_000), blocks)
        held += estimate.low < 0.3 < estimate.high
    assert held / 300 == pytest.approx(0.95, abs=0.04)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_the_spread_of_ad_rates_is_told_without_that_of_chance(spread: float) -> None:
    rng = np.random.default_rng(2)
    rates = np.clip(rng.normal(0.1, 0.1 * spread, 2_000), 0.001, 1)
    anchors = rng.integers(20, 60, 2_000)
    assert rate_variation(anchors, rng.binomial(anchors, rates)) == pytest.approx(spread, abs=0.08)


def test_a_made_world_has_the_rate_the_delays_and_the_lives_of_its_model() -> None:
    # Without a spread of rates: of so few ads their mean is a matter of luck.
    model = replace(stable_ads(0.2), variation=0.0)
    plan = plan_of(model, DelaySettings(), 40_000, 10 * MINUTE_US)
    world = drawn_world(model, plan, 1, 0)
    came = world.rows.arrived_us >= 0
    assert (world.rates == 0.2).all()
    assert came.mean() == pytest.approx(0.2, abs=0.01)
    delays_us = (world.rows.arrived_us - world.rows.served_us)[came]
    assert np.median(delays_us) == pytest.approx(model.median_delay_us, rel=0.05)
    assert (world.ages_us >= 0).all()
    assert (np.diff(world.rows.served_us) >= 0).all()
    again = drawn_world(model, plan, 1, 0)
    assert np.array_equal(again.rows.arrived_us, world.rows.arrived_us)
    assert not np.array_equal(drawn_world(model, plan, 1, 1).rows.arrived_us, world.rows.arrived_us)


def test_a_log_becomes_a_model_with_its_own_figures(facts: DelayFacts) -> None:
    model = model_of(facts)
    assert model is not None
    assert model.rate == facts.delays.rate.value
    assert model.median_delay_us == pytest.approx(facts.median_us.value, rel=0.02)
    assert model.lateness == pytest.approx(facts.lateness.value, abs=0.01)


def test_in_a_second_price_market_the_truth_is_worth_most_and_either_error_costs() -> None:
    true = np.full(3, 0.1)
    market = SecondPriceMarket(median_price_micro=90_000.0)
    below, right, above = market(np.array([0.05, 0.1, 0.2]), true)
    assert right > max(below, above)
    drawn = np.exp(np.random.default_rng(1).normal(np.log(90_000.0), 1.0, 400_000))
    bid = 1_000_000.0 * 0.2
    simulated = np.where(drawn < bid, 1_000_000.0 * 0.1 - drawn, 0.0).mean()
    assert above == pytest.approx(simulated, rel=0.1)


@pytest.mark.parametrize("path", ["no_such_module:f", "math:no_such_function", "math:pi"])
def test_a_value_function_that_is_none_is_refused_by_name(path: str) -> None:
    with pytest.raises(ValueError, match=r"settings\.delay_report\.value_function"):
        value_function(path)


def test_a_value_function_that_gives_no_number_each_is_refused() -> None:
    said = np.full(4, 0.1)
    assert valued(lambda predicted, true: predicted - true, said, said).tolist() == [0.0] * 4
    for broken in (
        lambda predicted, true: (predicted - true)[:1],
        lambda predicted, true: predicted * np.nan,
    ):
        with pytest.raises(ValueError, match="one finite number each"):
            valued(broken, said, said)
