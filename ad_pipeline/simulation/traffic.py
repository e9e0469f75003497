"""One hour of the exchange: who came, which ad won, what it cost, and the true log-odds.

Everything is a whole column at a time. What follows an impression (clicks, purchases, their
delays and retractions) is in `outcomes.py`; what goes wrong on the way to the log in `faults.py`.
"""

import math
from dataclasses import dataclass

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.simulation.identifiers import numbers_of_hour
from ad_pipeline.simulation.spec import MarketplaceSpec
from ad_pipeline.simulation.world import AD_SLOTS, PUBLISHER_SLOTS, USER_SLOTS, World, slot_table


@dataclass(frozen=True)
class Traffic:
    """Impressions of one hour in the order in which they occurred; arrays of shape (n,).

    Attributes
    ----------
    hour : int
        Hour of the world.
    number : int64
        Impression number, see `identifiers.numbers_of_hour`.
    occurred_us : int64
    user, ad, publisher, placement, device, size : integer codes
    category : int16
    campaign : int16
    ad_age_hours, floor_price, session_depth : float64
    explored : bool
        Arm "explore": the ad was drawn uniformly.
    propensity : float64
        Probability with which the exchange showed this ad to this request.
    """

    hour: int
    number: np.ndarray
    occurred_us: np.ndarray
    user: np.ndarray
    ad: np.ndarray
    publisher: np.ndarray
    placement: np.ndarray
    device: np.ndarray
    size: np.ndarray
    category: np.ndarray
    campaign: np.ndarray
    ad_age_hours: np.ndarray
    floor_price: np.ndarray
    session_depth: np.ndarray
    explored: np.ndarray
    propensity: np.ndarray

    def __len__(self) -> int:
        """Count the impressions."""
        return len(self.number)


def expected_impressions(spec: MarketplaceSpec, hour: int) -> float:
    """Give an hour its share of the daily cycle, lowest at 04:00, highest at 16:00 UTC."""
    cycle = 1.0 - 0.55 * math.cos(2 * math.pi * (hour % 24 - 4) / 24)
    return spec.impressions_per_day * cycle / 24


def draw_traffic(
    spec: MarketplaceSpec, world: World, hour: int, rows: int | None = None
) -> Traffic:
    """Draw the impressions of one hour.

    Parameters
    ----------
    spec : MarketplaceSpec
    world : World
    hour : int
    rows : int or None
        A fixed number of impressions in place of the hour's own.

    Returns
    -------
    Traffic
    """
    rng = spec.stream("traffic", hour)
    if rows is None:
        rows = int(rng.poisson(expected_impressions(spec, hour)))
    phase = int(spec.drifted(hour))
    occurred = np.sort(rng.integers(0, HOUR_US, rows)) + spec.hour_start_us(hour)
    user = world.users.slots[rng.integers(0, USER_SLOTS, rows)]
    segment = world.users.segment[user]
    # One 64-bit draw feeds five small choices.
    bits = rng.integers(0, 1 << 63, rows)
    publisher = world.publishers.slots[phase][segment, bits & (PUBLISHER_SLOTS - 1)]
    placement = world.publishers.placement_slots[publisher, (bits >> 10) & 63]
    size = world.size_slots[placement, (bits >> 16) & 63]
    other_device = ((bits >> 22) & 1023) < 123
    device = np.where(other_device, (bits >> 32) & 3, world.users.device[user]).astype(np.int16)
    ad_draw = bits >> 34

    active = world.active_ads(hour)
    campaign_of = world.ads.campaign[active]
    ad_slots, shares = slot_table(
        world.ads.weight[active] * world.campaigns.weight[:, campaign_of], AD_SLOTS
    )
    explored = rng.random(rows) < spec.explore_share
    chosen = np.where(
        explored, (ad_draw >> 12) % len(active), ad_slots[segment, ad_draw & (AD_SLOTS - 1)]
    )
    ad = active[chosen]
    propensity = (1.0 - spec.explore_share) * shares[segment, chosen]
    propensity += spec.explore_share / len(active)

    floor = world.publishers.floor[publisher] * np.exp(0.25 * rng.standard_normal(rows))
    return Traffic(
        hour=hour,
        number=numbers_of_hour(hour, rows),
        occurred_us=occurred,
        user=user,
        ad=ad,
        publisher=publisher,
        placement=placement,
        device=device,
        size=size,
        category=world.ads.category[ad],
        campaign=world.ads.campaign[ad],
        ad_age_hours=(occurred - spec.start_us) / HOUR_US - world.ads.birth_hour[ad],
        floor_price=np.rint(100.0 * floor) / 100.0,
        session_depth=1.0 + np.floor(2.2 * rng.standard_exponential(rows)),
        explored=explored,
        propensity=propensity,
    )


def click_log_odds(world: World, traffic: Traffic, drifted: bool) -> np.ndarray:
    """Compute the true log-odds of a click ever, up to the intercept; float64 of shape (n,)."""
    phase = int(drifted)
    t = traffic
    campaigns = world.campaigns
    met = world.category_order[phase][t.category]
    fatigue = campaigns.fatigue[t.campaign] * np.expm1(
        -t.ad_age_hours / campaigns.fatigue_hours[t.campaign]
    )
    score = fatigue + world.ads.click_effect[t.ad]
    score += (campaigns.click_effect[:, None] + world.category_effect[phase])[
        t.campaign, t.category
    ]
    score += world.publishers.category_effect[t.publisher, t.category]
    score += world.publishers.click_effect[t.publisher]
    score += (world.device_effect + world.placement_effect)[t.device, t.placement]
    score += world.hour_effect[t.device, t.hour % 24]
    score += world.size_effect[t.size]
    score += world.users.taste[t.user, met]
    score -= 0.22 * np.log(t.session_depth)
    score += 0.15 * np.log(t.floor_price + 0.1)
    return score


def purchase_log_odds(
    world: World, traffic: Traffic, rows: np.ndarray, drifted: bool
) -> np.ndarray:
    """Compute the true log-odds of a purchase ever, given a click, up to the intercept.

    Parameters
    ----------
    world : World
    traffic : Traffic
    rows : int64 array of shape (k,)
        Positions of the impressions asked about.
    drifted : bool

    Returns
    -------
    float64 array of shape (k,)
    """
    user = traffic.user[rows]
    category = traffic.category[rows]
    device = traffic.device[rows]
    met = world.category_order[int(drifted)][category]
    score = world.campaigns.purchase_effect[traffic.campaign[rows]].copy()
    score += world.ads.purchase_effect[traffic.ad[rows]]
    score += world.country_purchase_effect[world.users.country[user], category]
    score += np.array([0.3, -0.15, 0.05, -0.4])[device]
    score += 0.6 * world.users.taste[user, met]
    score += 0.2 * np.sin(2 * np.pi * (traffic.hour % 24 - 13) / 24)
    score -= 0.08 * np.minimum(traffic.session_depth[rows], 8.0)
    # Fresh offers sell on phones; on the other devices age does not matter.
    score -= np.where((device == 1) & (traffic.ad_age_hours[rows] > 24.0), 0.35, 0.0)
    return score


@dataclass(frozen=True)
class Intercepts:
    """What makes the mean rates of a world those of its spec; log-odds."""

    click: float
    purchase: float


def solve_intercepts(spec: MarketplaceSpec, world: World) -> Intercepts:
    """Find the intercepts for `spec.click_rate` and `spec.purchase_rate`.

    Six sampled hours from before the drift decide, each with the weight of its traffic.
    """
    last = max(min(24 * spec.drift_day, spec.hours), 1)
    # Spread over days and, by the step of 5, over hours of the day; the same with drift or without.
    hours = sorted({29 * index % last for index in range(6)})
    clicks, purchases, weights = [], [], []
    for hour in hours:
        traffic = draw_traffic(spec, world, hour, rows=4000)
        clicks.append(click_log_odds(world, traffic, drifted=False))
        purchases.append(purchase_log_odds(world, traffic, np.arange(4000), drifted=False))
        weights.append(np.full(4000, expected_impressions(spec, hour)))
    score, weight = np.concatenate(clicks), np.concatenate(weights)
    click = _intercept(score, weight, spec.click_rate)
    clicked = weight * logistic(score + click)
    return Intercepts(click, _intercept(np.concatenate(purchases), clicked, spec.purchase_rate))


def logistic(score: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-score)), float64."""
    return 1.0 / (1.0 + np.exp(-score))


def _intercept(score: np.ndarray, weight: np.ndarray, rate: float) -> float:
    low, high = -20.0, 20.0
    for _ in range(45):
        middle = 0.5 * (low + high)
        if np.average(logistic(score + middle), weights=weight) < rate:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
