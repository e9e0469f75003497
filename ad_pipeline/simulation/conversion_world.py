"""Who advertises what in a simulated log of clicks, how long conversions take, what a click is.

Drawn once, from the seed. Campaigns are born and die while the log runs, and what products appeal
to drifts slowly, so that a model that stands still falls behind. How long a conversion takes
depends on the campaign, so that recent labels tell of some campaigns and not of others. Draws of
single clicks are in `conversions.py`.
"""

import math
from dataclasses import dataclass

import numpy as np

from ad_pipeline.simulation.conversion_spec import DAY_S, ConversionSpec

ADS_OF_A_CAMPAIGN = 4
PLACEMENTS_OF_A_PUBLISHER = 4
DEVICES, BROWSERS = 6, 10
LONGEST_LIFE_DAYS = 60.0
EVERGREEN = 6
"""Campaigns that run all along, so that no hour is without one."""
QUICK_SIGMA = 1.2
REFUND_SIGMA = 1.6
WEAR = 0.4
"""Log-odds that a campaign loses as it gets old."""
WEAR_DAYS = 10.0
DRIFT_DAYS = 80.0
"""Period of the appeal of products: longer than the log, so that it moves one way for weeks."""

_erf = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True)
class Clicks:
    """Some clicks in the order of their time, and what follows them; arrays of shape (n,).

    Attributes
    ----------
    clicked_s : ndarray, int64
        Seconds from the start of the log.
    campaign : ndarray, int64
    categories : dict of str to ndarray of int64
        Codes; -1 where the field is empty.
    numbers : tuple of 8 ndarrays of int64
        -1 where the field is empty.
    log_odds : ndarray, float64
        Of a conversion within the window.
    converted_s, refunded_s : ndarray, int64
        Seconds from the start of the log; -1 for never.
    net : ndarray, float64
        Probability that a conversion is not refunded within the window after it.
    """

    clicked_s: np.ndarray
    campaign: np.ndarray
    categories: dict[str, np.ndarray]
    numbers: tuple[np.ndarray, ...]
    log_odds: np.ndarray
    converted_s: np.ndarray
    refunded_s: np.ndarray
    net: np.ndarray

    def __len__(self) -> int:
        """Return the number of clicks."""
        return len(self.clicked_s)


@dataclass(frozen=True)
class ConversionWorld:
    """Everything that is the same all along.

    Attributes
    ----------
    birth_s, death_s : ndarray of shape (campaigns,), float64
        A campaign runs in [birth, death), seconds from the start of the log.
    weight : ndarray of shape (campaigns,), float64
        Share of the clicks while it runs, not normalized.
    advertiser, product : ndarray of shape (campaigns,), int64
    effect : ndarray of shape (campaigns,), float64
        Log-odds, advertiser included.
    price : ndarray of shape (campaigns,), float64
    quick_share : ndarray of shape (campaigns,), float64
    slow_scale_s : ndarray of shape (campaigns,), float64
    refund_rate : ndarray of shape (campaigns,), float64
        Within the window.
    ad_effect : ndarray of shape (campaigns * ADS_OF_A_CAMPAIGN,), float64
    publisher_cut : ndarray of shape (publishers,), float64
        Cumulated shares.
    publisher_effect : ndarray of shape (publishers,), float64
    appeal : ndarray of shape (products, countries), float64
    swing, phase : ndarray of shape (products,), float64
        Drift of a product's appeal: log-odds, and where in its period the log begins.
    device_effect : ndarray of shape (DEVICES,), float64
    """

    birth_s: np.ndarray
    death_s: np.ndarray
    weight: np.ndarray
    advertiser: np.ndarray
    product: np.ndarray
    effect: np.ndarray
    price: np.ndarray
    quick_share: np.ndarray
    slow_scale_s: np.ndarray
    refund_rate: np.ndarray
    ad_effect: np.ndarray
    publisher_cut: np.ndarray
    publisher_effect: np.ndarray
    appeal: np.ndarray
    swing: np.ndarray
    phase: np.ndarray
    device_effect: np.ndarray

    def running(self, from_s: float, to_s: float) -> np.ndarray:
        """Return the campaigns that run all through a span of time, int64, rising."""
        return np.flatnonzero((self.birth_s <= from_s) & (self.death_s >= to_s))

    def appeal_of(self, product: np.ndarray, country: np.ndarray, at_s: np.ndarray) -> np.ndarray:
        """Return what a product adds to the log-odds at a time, float64 (n,)."""
        turn = 2.0 * np.pi * (at_s / (DRIFT_DAYS * DAY_S) + self.phase[product])
        return self.appeal[product, country] + self.swing[product] * np.sin(turn)


def conversion_world(spec: ConversionSpec) -> ConversionWorld:
    """Draw the world of a spec; its rows do not matter."""
    rng = spec.stream("campaigns")
    mean_life = spec.life_days * math.exp(0.5 * 0.6**2)
    born = round(spec.campaigns_alive * (spec.days + LONGEST_LIFE_DAYS) / mean_life)
    count = EVERGREEN + max(born, 1)
    life = np.exp(rng.normal(math.log(spec.life_days), 0.6, count))
    life = np.clip(life, 1.0, LONGEST_LIFE_DAYS)
    birth = rng.uniform(-LONGEST_LIFE_DAYS, spec.days, count)
    birth[:EVERGREEN] = -10.0 * LONGEST_LIFE_DAYS
    life[:EVERGREEN] = 20.0 * LONGEST_LIFE_DAYS + spec.days
    advertiser = rng.integers(0, spec.advertisers, count)
    of_advertiser = rng.normal(0.0, 0.5, spec.advertisers)
    quick_log_odds = math.log(spec.quick_share / (1.0 - spec.quick_share))
    refunds = spec.refund_rate * np.exp(rng.normal(-0.02, 0.2, count))
    shares = np.arange(1, spec.publishers + 1) ** -1.0
    rng_context = spec.stream("context")
    return ConversionWorld(
        birth_s=birth * DAY_S,
        death_s=(birth + life) * DAY_S,
        weight=rng.permutation(np.arange(1, count + 1) ** -0.7),
        advertiser=advertiser,
        product=rng.integers(0, spec.products, spec.advertisers)[advertiser],
        effect=of_advertiser[advertiser] + rng.normal(0.0, 0.8, count),
        price=np.exp(rng.uniform(np.log(4.0), np.log(90.0), count)),
        quick_share=1.0 / (1.0 + np.exp(-rng.normal(quick_log_odds, 0.9, count))),
        slow_scale_s=spec.slow_scale_s * np.exp(rng.normal(0.0, 0.4, count)),
        refund_rate=np.minimum(refunds, 1.0 - spec.late_refund_rate),
        ad_effect=rng.normal(0.0, 0.3, count * ADS_OF_A_CAMPAIGN),
        publisher_cut=np.cumsum(shares / shares.sum()),
        publisher_effect=rng_context.normal(0.0, 0.5, spec.publishers),
        appeal=rng_context.normal(0.0, 0.25, (spec.products, spec.countries)),
        swing=np.full(spec.products, spec.drift),
        phase=rng_context.random(spec.products),
        device_effect=rng_context.normal(0.0, 0.3, DEVICES),
    )


def delay_cdf(
    spec: ConversionSpec, world: ConversionWorld, campaign: np.ndarray, delay_s: float
) -> np.ndarray:
    """Return P(delay <= delay_s | converts, campaign), float64 of the campaigns' shape."""
    if delay_s >= spec.window_s:
        return np.ones(len(campaign))
    quick = float(_normal_cdf(np.log(delay_s / spec.quick_median_s) / QUICK_SIGMA))
    scale = world.slow_scale_s[campaign]
    slow = _weibull_cdf(delay_s / scale, spec.slow_shape)
    slow /= _weibull_cdf(spec.window_s / scale, spec.slow_shape)
    share = world.quick_share[campaign]
    return share * quick + (1.0 - share) * slow


def draw_delays(
    spec: ConversionSpec, world: ConversionWorld, campaign: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw how long conversions take, int64 seconds in [1, window_s], one a click.

    Every click gets its draws, whether it converts or not, so that a rate moves no delay.
    """
    count = len(campaign)
    quick = rng.random(count) < world.quick_share[campaign]
    soon = spec.quick_median_s * np.exp(QUICK_SIGMA * rng.standard_normal(count))
    scale = world.slow_scale_s[campaign]
    reach = _weibull_cdf(spec.window_s / scale, spec.slow_shape)
    later = scale * (-np.log1p(-rng.random(count) * reach)) ** (1.0 / spec.slow_shape)
    return np.clip(np.where(quick, soon, later), 1.0, float(spec.window_s)).astype(np.int64)


def draw_refunds(
    spec: ConversionSpec, world: ConversionWorld, campaign: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw how long after its conversion each would be refunded, int64 seconds; -1 for never."""
    count = len(campaign)
    luck = rng.random(count)
    # Between 1 second and the window: a log-normal's quantile, cut off at the window.
    soon = spec.refund_median_s * np.exp(REFUND_SIGMA * rng.standard_normal(count))
    soon = np.clip(soon, 1.0, float(spec.window_s)).astype(np.int64)
    late = spec.window_s + rng.integers(1, 2 * DAY_S, count)
    in_window = luck < world.refund_rate[campaign]
    after = ~in_window & (luck > 1.0 - spec.late_refund_rate)
    return np.where(in_window, soon, np.where(after, late, -1))


def _weibull_cdf(scaled: np.ndarray, shape: float) -> np.ndarray:
    return -np.expm1(-(scaled**shape))


def _normal_cdf(z: float) -> float:
    return 0.5 * (1.0 + float(_erf(z / math.sqrt(2.0))))
