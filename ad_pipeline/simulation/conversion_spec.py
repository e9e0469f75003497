"""The knobs of a simulated log of clicks and their late conversions.

Two public logs lend it their sizes, rates and delays; nothing else of them is here. What the world
looks like is in `conversion_world.py`, how a click becomes a row in `conversions.py`, how a row is
written in `conversion_files.py`.

References
----------
Chapelle, Modeling delayed feedback in display advertising, KDD 2014, section 2: 35 % of the
conversions within an hour, half within a day, 13 % after two weeks. Luo et al., Modeling cascaded
delay feedback for online net conversion rate prediction, WWW 2026 (arXiv 2601.19965): 25 days, a
conversion rate of 0.09 with a median delay of 3.9 h, 2.0 refunds on 3.7 conversions with a median
delay of 0.1 h, windows of three days each.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ad_pipeline.simulation.streams import random_stream

LogFormat = Literal["criteo", "cascade"]

DAY_S = 86_400


@dataclass(frozen=True)
class ConversionSpec:
    """One simulated log of clicks; the same spec writes the same bytes.

    Attributes
    ----------
    seed : int
        Every random choice is a function of (seed, purpose, day).
    rows : int
        Clicks, exactly.
    days : int
        Over which they happen.
    window_s : int
        Seconds after a click within which it may convert; none converts later.
    recorded_days : float or None
        When the log was written down, days from its start: what happens later is not in it. None:
        when everything had happened.
    base_rate : float
        Mean probability of a conversion over the whole log; the intercept is solved for it.
    campaigns_alive : int
        Campaigns that run at one time, on average.
    life_days : float
        Median life of a campaign.
    publishers, advertisers, products, countries : int
        Sizes of the world; publishers and campaigns are drawn by Zipf's law.
    drift : float
        Log-odds by which the appeal of a product swings, over months.
    quick_share : float
        Of the conversions of the median campaign, those made at once.
    quick_median_s : float
        Median of their delay, seconds.
    slow_scale_s, slow_shape : float
        Weibull distribution of the others' delay, cut off at the window.
    refund_rate : float
        Of the conversions, those refunded within `window_s`; 0 for a log that knows no refunds.
    late_refund_rate : float
        Those refunded after it.
    refund_median_s : float
        Median time from conversion to refund, seconds.
    """

    seed: int = 20140101
    rows: int = 500_000
    days: int = 60
    window_s: int = 30 * DAY_S
    recorded_days: float | None = None
    base_rate: float = 0.227
    campaigns_alive: int = 80
    life_days: float = 12.0
    publishers: int = 4_000
    advertisers: int = 120
    products: int = 24
    countries: int = 40
    drift: float = 0.4
    quick_share: float = 0.4
    quick_median_s: float = 12 * 60.0
    slow_scale_s: float = 10.0 * DAY_S
    slow_shape: float = 0.8
    refund_rate: float = 0.0
    late_refund_rate: float = 0.0
    refund_median_s: float = 0.1 * 3600

    def __post_init__(self) -> None:
        """Refuse a log that cannot be simulated.

        Raises
        ------
        ValueError
            If there is no row, day or campaign, a share is none, or the log is written down before
            its last click.
        """
        if min(self.rows, self.days, self.campaigns_alive, self.window_s) < 1:
            raise ValueError("rows, days, campaigns_alive and window_s must be at least 1")
        if not 0 < self.base_rate < 1 or not 0 < self.quick_share < 1:
            raise ValueError("base_rate and quick_share must lie between 0 and 1")
        if self.refund_rate + self.late_refund_rate > 1:
            raise ValueError("refund_rate and late_refund_rate must sum to at most 1")
        if self.recorded_days is not None and self.recorded_days < self.days:
            raise ValueError(
                f"recorded_days is {self.recorded_days}: take at least the {self.days} days of "
                "clicks"
            )

    def stream(self, purpose: str, day: int = -1) -> np.random.Generator:
        """Return the random numbers of one purpose on one day, or once."""
        return random_stream(self.seed, f"conversions, {purpose}", day)


def spec_like(log_format: LogFormat) -> ConversionSpec:
    """Return the world whose sizes, rates and delays are like those of a public log."""
    if log_format == "criteo":
        return ConversionSpec()
    return ConversionSpec(
        seed=20250501,
        days=25,
        window_s=3 * DAY_S,
        base_rate=0.091,
        quick_share=0.27,
        slow_scale_s=0.55 * DAY_S,
        refund_rate=0.54,
        late_refund_rate=0.02,
    )
