"""The chance that an engagement counts is that of the delays that are drawn."""

import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US, SECOND_US
from ad_pipeline.simulation.delays import (
    CLICK_CAP_US,
    FRAUD_REPORT,
    PURCHASE_CAP_US,
    PURCHASE_SIGMA,
    REFUND,
    RETRACTION_CAP_US,
    LogNormal,
    chance_in_window,
    click_delay_cdf,
    draw_click_delays,
    draw_ingestion,
    draw_lognormal,
    window_edges,
)
from ad_pipeline.simulation.spec import FaultRates

DRAWS = 400_000


def close(share: float, chance: float) -> bool:
    """Whether a share of `DRAWS` draws is within 4.5 standard errors of a chance."""
    return abs(share - chance) <= 4.5 * np.sqrt(chance * (1 - chance) / DRAWS)


@pytest.mark.parametrize("median_s", [6.0, 45.0])
def test_a_click_counts_as_often_as_computed(median_s: float) -> None:
    rng = np.random.default_rng(1)
    delay = draw_click_delays(rng, np.full(DRAWS, median_s * SECOND_US))
    report = draw_lognormal(
        rng, np.full(DRAWS, FRAUD_REPORT.median_us), FRAUD_REPORT.sigma, RETRACTION_CAP_US
    )
    edges = window_edges(HOUR_US)
    in_window, and_retracted = chance_in_window(
        click_delay_cdf(median_s * SECOND_US, edges), edges, 3 * HOUR_US, FRAUD_REPORT
    )
    inside = delay <= HOUR_US
    assert close(float(inside.mean()), in_window)
    assert close(float((inside & (delay + report <= 3 * HOUR_US)).mean()), and_retracted)
    assert delay.min() >= 1
    assert delay.max() <= CLICK_CAP_US


@pytest.mark.parametrize("median_h", [0.5, 4.5])
def test_a_purchase_counts_as_often_as_computed(median_h: float) -> None:
    rng = np.random.default_rng(2)
    median_us = median_h * HOUR_US
    delay = draw_lognormal(rng, np.full(DRAWS, median_us), PURCHASE_SIGMA, PURCHASE_CAP_US)
    refund = draw_lognormal(
        rng, np.full(DRAWS, float(REFUND.median_us)), REFUND.sigma, RETRACTION_CAP_US
    )
    window, maturity = 24 * HOUR_US, 26 * HOUR_US
    edges = window_edges(window)
    in_window, and_retracted = chance_in_window(
        LogNormal(median_us, PURCHASE_SIGMA).cdf(edges), edges, maturity, REFUND
    )
    inside = delay <= window
    assert close(float(inside.mean()), in_window)
    assert close(float((inside & (delay + refund <= maturity)).mean()), and_retracted)
    # The check would see a window that is ignored.
    assert not close(1.0, in_window)


def test_rows_reach_the_log_in_seconds_minutes_or_just_within_the_lateness() -> None:
    rates = FaultRates(minutes=0.01, late=0.002)
    delay = draw_ingestion(np.random.default_rng(3), DRAWS, rates, faults=True)
    assert np.quantile(delay, 0.95) < 2 * SECOND_US
    minutes = (delay > 60 * SECOND_US).mean()
    assert minutes == pytest.approx(rates.minutes + rates.late, rel=0.1)
    assert delay.min() > 0
    assert delay.max() < 2 * HOUR_US
