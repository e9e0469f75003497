"""The knobs of the simulated exchange.

Every rate of every deliberate imperfection stands here, so that a test can ask for it by name.
What the world looks like (users, ads, tastes) is in `world.py`, how long things take in
`delays.py`.
"""

from dataclasses import dataclass, field

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.simulation.streams import random_stream

START_US = 1_772_409_600_000_000
"""2026-03-02T00:00:00Z, a Monday."""


@dataclass(frozen=True)
class FaultRates:
    """How often the log misbehaves; every rate is a share of the table's rows.

    Attributes
    ----------
    duplicate : float
        Rows sent twice. Half of them again with the same `received_us`, half later.
    changed_duplicate : float
        Share of the later copies whose content differs from the first one.
    planted_duplicate_hours : float
        Once a day one impression and one engagement come again this many hours later.
    bad_row : float
        Extra rows that break the contract (no key, unknown goal, engagement before its
        impression, received before it occurred), in impressions and in engagements, each as a
        share of the impressions.
    orphan : float
        Extra engagements, as a share of the impressions, whose impression never appears.
    minutes : float
        Rows that take 1 to 15 minutes to reach the log.
    late : float
        Rows that take 15 to 115 minutes (the allowed lateness is 120).
    """

    duplicate: float = 0.004
    changed_duplicate: float = 0.1
    planted_duplicate_hours: float = 20.0
    bad_row: float = 0.0005
    orphan: float = 0.0003
    minutes: float = 0.01
    late: float = 0.002


@dataclass(frozen=True)
class MarketplaceSpec:
    """One simulated exchange; the same spec writes the same bytes.

    Attributes
    ----------
    seed : int
        Every random choice is a function of (seed, purpose, hour).
    days : int
        Length of the world. Ads are born and die over it; the tail follows its last day.
    start_us : int
        Start of day 0, UTC microseconds, on an hour.
    impressions_per_day : int
        Expected impressions a day; each hour's number is Poisson around the daily cycle.
    drift : bool
        Whether the planted drift happens. Nothing before `drift_day` depends on it.
    drift_day : int
        From the start of this day new publishers appear, shares move, and the most and the
        least appealing category swap their appeal.
    faults : bool
        Whether the log misbehaves by `fault_rates`. Retractions are part of the world and stay.
    fault_rates : FaultRates
    users, advertisers, campaigns, ads, publishers, new_publishers, segments : int
        Sizes of the world; `new_publishers` come on top of `publishers`, with the drift.
    click_rate, purchase_rate : float
        Intercepts are solved so that clicks per impression and purchases per click meet these
        means, whatever their delay, before the drift.
    click_window_us, purchase_window_us, lateness_us : int
        The contract that the true labels follow, microseconds.
    fraud_rate, refund_rate : float
        Mean share of clicks, of purchases, that are retracted at some time.
    explore_share : float
        Share of requests that get a uniformly drawn ad (arm "explore").
    lost_auctions : float
        Lost auctions written, per impression.
    organic_views : float
        Views of organic content, per impression.
    viewed_ads : float
        Share of impressions that also leave a user activity "ad_view".
    """

    seed: int = 20260302
    days: int = 6
    start_us: int = START_US
    impressions_per_day: int = 190_000
    drift: bool = True
    drift_day: int = 5
    faults: bool = True
    fault_rates: FaultRates = field(default_factory=FaultRates)
    users: int = 40_000
    advertisers: int = 15
    campaigns: int = 40
    ads: int = 700
    publishers: int = 60
    new_publishers: int = 8
    segments: int = 8
    click_rate: float = 0.033
    purchase_rate: float = 0.19
    click_window_us: int = HOUR_US
    purchase_window_us: int = 24 * HOUR_US
    lateness_us: int = 2 * HOUR_US
    fraud_rate: float = 0.015
    refund_rate: float = 0.02
    explore_share: float = 0.1
    lost_auctions: float = 0.05
    organic_views: float = 0.2
    viewed_ads: float = 0.05

    def __post_init__(self) -> None:
        """Refuse a world that cannot be simulated.

        Raises
        ------
        ValueError
            When a size is not positive or `start_us` is not on an hour.
        """
        if self.days < 1 or self.impressions_per_day < 1:
            raise ValueError("days and impressions_per_day must be at least 1")
        if self.users > 999_999 or self.ads > 9_999:
            raise ValueError("identifiers hold 999,999 users and 9,999 ads: take fewer")
        if self.lateness_us < 2 * HOUR_US:
            raise ValueError("rows take up to 115 minutes to the log: take lateness_us >= 2 hours")
        if self.start_us % HOUR_US:
            raise ValueError(f"start_us={self.start_us} is not on an hour: floor it to one")

    @property
    def hours(self) -> int:
        """Hours in which impressions occur."""
        return 24 * self.days

    def hour_start_us(self, hour: int) -> int:
        """Start of hour `hour` of the world, UTC microseconds."""
        return self.start_us + hour * HOUR_US

    def drifted(self, hour: int) -> bool:
        """Whether the planted drift holds in hour `hour`."""
        return self.drift and hour >= 24 * self.drift_day

    def stream(self, purpose: str, hour: int = -1) -> np.random.Generator:
        """Random numbers of one purpose in one hour.

        Parameters
        ----------
        purpose : str
            A new purpose gets a new stream, so adding one moves no other number.
        hour : int
            Hour of the world, or -1 for what is drawn once.

        Returns
        -------
        numpy.random.Generator
        """
        return random_stream(self.seed, purpose, hour)
