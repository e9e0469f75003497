"""What follows an hour's impressions: clicks, purchases, retractions, and the truth about them.

The label drawn here and the probability computed here answer the same question, the contract of
a goal: was there an engagement within the window whose retraction, if any, reached the log only
after the label had matured? Everything that an impression ever causes is drawn in the hour of the
impression, so no state passes from hour to hour.
"""

from dataclasses import dataclass

import numpy as np

from ad_pipeline.clocks import SECOND_US
from ad_pipeline.simulation.delays import (
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
from ad_pipeline.simulation.identifiers import tagged
from ad_pipeline.simulation.rows import Rows, stacked, take
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.simulation.traffic import (
    Intercepts,
    Traffic,
    click_log_odds,
    logistic,
    purchase_log_odds,
)
from ad_pipeline.simulation.world import CLICK_MEDIAN_SECONDS, World

GOALS = ("click", "purchase", "hover")
"""Goals by code; no dataset knows the last one, which only bad rows carry."""
REASONS = ("fraud", "refund")
CLICK, PURCHASE, UNKNOWN_GOAL = range(3)
CLICK_TAG, PURCHASE_TAG = 1, 2


@dataclass(frozen=True)
class LabelChances:
    """Chances that an engagement counts, by what its delay depends on.

    Attributes
    ----------
    click, click_retracted : float64 arrays of shape (placements,)
        P(click within its window | click ever), and that a fraud report, if there is one,
        is in time on top.
    purchase, purchase_retracted : float64 arrays of shape (campaigns,)
    """

    click: np.ndarray
    click_retracted: np.ndarray
    purchase: np.ndarray
    purchase_retracted: np.ndarray


def label_chances(spec: MarketplaceSpec, world: World) -> LabelChances:
    """Integrate the delays over the windows of a spec."""
    edges = window_edges(spec.click_window_us)
    maturity = spec.click_window_us + spec.lateness_us
    clicks = [
        chance_in_window(click_delay_cdf(median * SECOND_US, edges), edges, maturity, FRAUD_REPORT)
        for median in CLICK_MEDIAN_SECONDS
    ]
    edges = window_edges(spec.purchase_window_us)
    maturity = spec.purchase_window_us + spec.lateness_us
    purchases = [
        chance_in_window(LogNormal(median, PURCHASE_SIGMA).cdf(edges), edges, maturity, REFUND)
        for median in world.campaigns.purchase_median_us
    ]
    (click, click_retracted), (purchase, purchase_retracted) = (
        np.array(pairs).T for pairs in (clicks, purchases)
    )
    return LabelChances(click, click_retracted, purchase, purchase_retracted)


@dataclass(frozen=True)
class Outcomes:
    """What the impressions of one hour cause.

    Attributes
    ----------
    clicked : int64 array of shape (k,)
        Positions of the impressions with a click, in the order of the impressions.
    click_us : int64 array of shape (k,)
        When the clicks occurred.
    engagements, retractions : Rows
        On their way to the log, without faults.
    click_probability : float64 array of shape (n,)
        P(final label = 1) of each impression.
    click_label : int8 array of shape (n,)
    purchase_probability : float64 array of shape (k,)
        P(final label = 1) of each click, within its window or not.
    purchase_label : int8 array of shape (k,)
    """

    clicked: np.ndarray
    click_us: np.ndarray
    engagements: Rows
    retractions: Rows
    click_probability: np.ndarray
    click_label: np.ndarray
    purchase_probability: np.ndarray
    purchase_label: np.ndarray


def draw_outcomes(
    spec: MarketplaceSpec,
    world: World,
    intercepts: Intercepts,
    chances: LabelChances,
    traffic: Traffic,
) -> Outcomes:
    """Draw everything that one hour's impressions cause, however late it happens.

    Parameters
    ----------
    spec : MarketplaceSpec
    world : World
    intercepts : Intercepts
    chances : LabelChances
    traffic : Traffic

    Returns
    -------
    Outcomes
    """
    hour, drifted = traffic.hour, spec.drifted(traffic.hour)

    ever = logistic(click_log_odds(world, traffic, drifted) + intercepts.click)
    clicked = np.flatnonzero(spec.stream("clicks", hour).random(len(traffic)) < ever)
    fraud_rate = world.publishers.fraud_rate[traffic.publisher]
    counted = chances.click[traffic.placement]
    counted = counted - fraud_rate * chances.click_retracted[traffic.placement]

    rng = spec.stream("click delays", hour)
    median = CLICK_MEDIAN_SECONDS[traffic.placement[clicked]] * SECOND_US
    click_delay = draw_click_delays(rng, median)
    click_us = traffic.occurred_us[clicked] + click_delay
    clicks = _engagements(spec, rng, traffic, clicked, CLICK, click_us)
    frauds, fraud_delay = _retracted(spec.stream("frauds", hour), fraud_rate[clicked], FRAUD_REPORT)
    maturity = spec.click_window_us + spec.lateness_us
    click_ok = click_delay <= spec.click_window_us
    click_ok &= ~frauds | (click_delay + fraud_delay > maturity)
    click_label = np.zeros(len(traffic), dtype=np.int8)
    click_label[clicked] = click_ok

    wants = logistic(purchase_log_odds(world, traffic, clicked, drifted) + intercepts.purchase)
    campaign = traffic.campaign[clicked]
    rng = spec.stream("purchases", hour)
    buys = rng.random(len(clicked)) < wants
    delay = draw_lognormal(
        rng, world.campaigns.purchase_median_us[campaign], PURCHASE_SIGMA, PURCHASE_CAP_US
    )
    basket = world.campaigns.basket_micro[campaign] * np.exp(0.5 * rng.standard_normal(len(delay)))
    refund_rate = world.campaigns.refund_rate[campaign]
    refunds, refund_delay = _retracted(spec.stream("refunds", hour), refund_rate, REFUND)
    maturity = spec.purchase_window_us + spec.lateness_us
    purchase_ok = buys & (delay <= spec.purchase_window_us)
    purchase_ok &= ~refunds | (delay + refund_delay > maturity)
    bought = np.flatnonzero(buys)
    purchases = _engagements(
        spec,
        rng,
        traffic,
        clicked[bought],
        PURCHASE,
        (click_us + delay)[bought],
        np.rint(basket[bought]).astype(np.int64),
    )
    kept = chances.purchase[campaign] - refund_rate * chances.purchase_retracted[campaign]
    rng = spec.stream("retraction clocks", hour)
    refunded = refunds[bought]
    return Outcomes(
        clicked=clicked,
        click_us=click_us,
        engagements=stacked([clicks, purchases]),
        retractions=stacked(
            [
                _retractions(rng, take(clicks, frauds), fraud_delay[frauds], 0),
                _retractions(rng, take(purchases, refunded), refund_delay[bought][refunded], 1),
            ]
        ),
        click_probability=ever * counted,
        click_label=click_label,
        purchase_probability=wants * kept,
        purchase_label=purchase_ok.astype(np.int8),
    )


def _engagements(
    spec: MarketplaceSpec,
    rng: np.random.Generator,
    traffic: Traffic,
    positions: np.ndarray,
    goal: int,
    occurred_us: np.ndarray,
    value: np.ndarray | None = None,
) -> Rows:
    rows = len(positions)
    number = traffic.number[positions]
    ingestion = draw_ingestion(rng, rows, spec.fault_rates, spec.faults)
    return {
        "event": tagged(CLICK_TAG if goal == CLICK else PURCHASE_TAG, number),
        "impression": number,
        "goal": np.full(rows, goal, dtype=np.int16),
        "value": np.zeros(rows, dtype=np.int64) if value is None else value,
        "occurred_us": occurred_us,
        "received_us": occurred_us + ingestion,
    }


def _retracted(
    rng: np.random.Generator, rate: np.ndarray, delay: LogNormal
) -> tuple[np.ndarray, np.ndarray]:
    """Which engagements are retracted, and the delay from each one to its retraction's arrival."""
    hit = rng.random(len(rate)) < rate
    median = np.full(len(rate), float(delay.median_us))
    return hit, draw_lognormal(rng, median, delay.sigma, RETRACTION_CAP_US)


def _retractions(
    rng: np.random.Generator, engagements: Rows, delay_us: np.ndarray, reason: int
) -> Rows:
    received = engagements["occurred_us"] + delay_us
    # The delay drawn is the one to the arrival, which decides the label; the retraction itself
    # happened shortly before, though never before its engagement.
    shortly = rng.integers(50_000, 2 * SECOND_US, len(delay_us))
    return {
        "event": engagements["event"],
        "engagement": engagements["event"],
        "reason": np.full(len(delay_us), reason, dtype=np.int16),
        "occurred_us": np.maximum(received - shortly, engagements["occurred_us"]),
        "received_us": received,
    }
