"""A model of a log of late labels: a made world with the log's own rates, delays and ads.

What another loss would have done cannot be read off a log: nobody knows its true rates, and one log
has one history. So worlds are drawn that have the log's base rate, its distribution of delays, its
ads' lives, the spread of their rates and the traffic of each, and the truth is known in them. **A
world is a model of the log and not the log.** It leaves out: all features but the ad; hours of the
day and drift; delays that differ by ad or depend on its rate; ads with much and ads with little
traffic; goals that hang on goals; retractions, and rows that come late themselves; the thinning of
negatives. What it keeps is what the losses differ by: how many labels are on their way, and how
much of an ad's life is over before they come.

Drawing it is all that is done here; learning from it is :mod:`.what_if`.

Time is the log's own. Delays, lives, windows and the hours between two fits stay as they are, since
the losses differ by their ratios; what is scaled down is the traffic, by having fewer ads live at a
time, each with as many anchors an hour as in the log. (Thinning the traffic of each ad instead
would make an ad's life shorter in anchors, and every learner slower against it.)
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US
from ad_pipeline.datasets import Goal
from ad_pipeline.monitoring.delay_report.report import DelayFacts, age_edges
from ad_pipeline.monitoring.late_labels.stream import WorldRows
from ad_pipeline.settings import DelaySettings

EPOCH_US = 20_454 * DAY_US
"""When made worlds begin, or at the next hour of a fit: the first of 2026. No figure depends on
it."""

PLACES = 1_024
"""Mid-quantiles that a distribution is kept as: a place drawn at random is a draw from it."""

LEAST_LIVE = 8
"""Ads live at a time, if the log has as many: fewer would leave a world to the luck of a few."""

LIVES_REPLAYED = 3.0
"""Mean ad lives that the replay lasts: most ads of it are born and die in it."""

SHORTEST, LONGEST = (2.0, 1.0 * DAY_US), (30.0, 10.0 * DAY_US)
"""Bounds of that, each in horizons and in microseconds, the larger of the two: where ads live much
longer than labels take, their end does not matter and is not waited for."""

BLOCKS = (500, 2_000)
"""Published states of a world: no more than the second; no more than the first where a tenth of the
median delay is still longer than a block then, since more could show nothing."""

WARM_UP_LIVES = 5.0
"""Mean ad lives before a world begins, so that it begins with ads of all ages."""


@dataclass(frozen=True)
class LogModel:
    """The parameters of a log that worlds are drawn by.

    Attributes
    ----------
    goal : Goal
        Anchored on impressions, its window the whole horizon of the log's goal: delays run until
        the arrival.
    rate : float
        Mean of the ads' rates, p.
    variation : float
        Standard deviation of the ads' rates over p.
    delays_us : ndarray of shape (m,), int64
        Equally likely delays of positives, rising.
    lives_us : ndarray of shape (l,), int64
        Equally likely lives of ads, rising; empty: they do not end.
    live : float
        Ads live at a time.
    anchors_per_hour : float
        Of a live ad.
    """

    goal: Goal
    rate: float
    variation: float
    delays_us: np.ndarray
    lives_us: np.ndarray
    live: float
    anchors_per_hour: float

    @property
    def median_delay_us(self) -> float:
        """Median delay, microseconds."""
        return float(np.median(self.delays_us))

    @property
    def median_life_us(self) -> float:
        """Median ad life, microseconds; NaN where ads do not end."""
        return float(np.median(self.lives_us)) if len(self.lives_us) else float("nan")

    @property
    def mean_life_us(self) -> float:
        """Mean ad life, microseconds; infinite where ads do not end."""
        return float(np.mean(self.lives_us)) if len(self.lives_us) else float("inf")

    @property
    def lateness(self) -> float:
        """c: share of the positives that come after the observation window."""
        return float(np.mean(self.delays_us > self.goal.observation_us))

    @property
    def horizon_days(self) -> float:
        """Window and lateness of the log's goal, days."""
        return self.goal.window_us / DAY_US

    @property
    def edges_us(self) -> np.ndarray:
        """Ad ages at which buckets end, int64."""
        return age_edges(self.median_delay_us, self.median_life_us)


@dataclass(frozen=True)
class Plan:
    """How much of a world is drawn, and when what happens in it.

    Attributes
    ----------
    anchors : int
    live : int
        Ads live at a time.
    start_us, split_us, end_us : int
        When the world begins, an hour in which delays are fitted; when its replay does; the end of
        its traffic, an hour. By the split delays have been fitted, and all that is on its way was
        served under that fit.
    block_us : int
        Between two published states.
    """

    anchors: int
    live: int
    start_us: int
    split_us: int
    end_us: int
    block_us: int

    @property
    def span_us(self) -> int:
        """How long there is traffic, microseconds."""
        return self.end_us - self.start_us


@dataclass(frozen=True)
class MadeWorld:
    """A world, and what nobody knows of a log.

    Attributes
    ----------
    rows : WorldRows
    rates : ndarray of shape (n,), float64
        True probability of each anchor.
    ages_us : ndarray of shape (n,), int64
        Of the ad, since its birth.
    """

    rows: WorldRows
    rates: np.ndarray
    ages_us: np.ndarray


def model_of(facts: DelayFacts) -> LogModel | None:
    """Return the model of a log, None where there is nothing to model: no positive has come.

    Parameters
    ----------
    facts : DelayFacts
    """
    rate = facts.delays.rate.value
    if not 0.0 < rate < 1.0:
        return None
    goal = facts.goal
    horizon_us = goal.window_us + goal.lateness_us
    ads = facts.ads
    lives_us = np.zeros(0, dtype=np.int64)
    if ads is not None and ads.life is not None:
        fallen = 1.0 - ads.life.survival(ads.life.times_us)
        # What outlives all that has been seen is taken to end with the log: it is at least so long.
        reached = np.append(ads.life.times_us, max(ads.log_us, 1))
        lives_us = reached[np.searchsorted(fallen, _mid_quantiles(), side="left")]
    hours = max(facts.now_us - facts.start_us, HOUR_US) / HOUR_US
    return LogModel(
        goal=goal.model_copy(
            update={
                "anchor": "impression",
                "window_us": horizon_us,
                "lateness_us": 0,
                "counting": "first",
            }
        ),
        rate=rate,
        variation=0.0 if ads is None or math.isnan(ads.variation) else ads.variation,
        delays_us=facts.delays.drawn_us(_mid_quantiles()),
        lives_us=np.maximum(lives_us, MINUTE_US),
        live=1.0 if ads is None else max(ads.live, 1.0),
        anchors_per_hour=facts.anchors / hours if ads is None else ads.anchors_per_hour,
    )


def plan_of(model: LogModel, delays: DelaySettings, anchors: int, micro_batch_us: int) -> Plan:
    """Return how a world of a model is laid out.

    A learner is shown nothing sound before delays have been fitted once, which takes a horizon and
    the next hour of a fit, and what is on its way at the split must have been served since then:
    matched negatives of before were emitted at once. So the replay begins two horizons and a fit
    after the start.

    Blocks, after each of which a state is published and scores, are the deployment's micro-batches:
    that is how often it moves on. Each costs the same however few rows it has, so they are longer
    where that shows nothing: where labels take much longer than a block (:data:`BLOCKS`).

    Parameters
    ----------
    model : LogModel
    delays : DelaySettings
        When delays are fitted.
    anchors : int
        At most so many; fewer if the log's own traffic is less: scaled down, never up.
    micro_batch_us : int
    """
    horizon_us = model.goal.window_us
    refit_us = delays.refit_every_hours * HOUR_US
    first_fit_us = -(-(horizon_us * 5 // 4 + HOUR_US) // refit_us) * refit_us
    start_us = -(-EPOCH_US // refit_us) * refit_us
    split_us = _whole_hours(first_fit_us + horizon_us + 1)
    least_us, most_us = (max(h * horizon_us, us) for h, us in (SHORTEST, LONGEST))
    replayed_us = min(max(LIVES_REPLAYED * model.mean_life_us, least_us), most_us)
    span_us = split_us + _whole_hours(replayed_us)
    hours = span_us / HOUR_US
    wanted = anchors / hours / max(model.anchors_per_hour, 1e-9)
    live = max(min(round(model.live), max(round(wanted), LEAST_LIVE)), 1)
    drawn = min(anchors, max(round(live * model.anchors_per_hour * hours), 1))
    coarse_us, fine_us = (span_us / blocks for blocks in BLOCKS)
    block_us = max(fine_us, min(coarse_us, model.median_delay_us / 10.0), micro_batch_us)
    block_us = math.ceil(block_us / MINUTE_US) * MINUTE_US
    return Plan(drawn, live, start_us, start_us + split_us, start_us + span_us, block_us)


def drawn_world(model: LogModel, plan: Plan, seed: int, number: int) -> MadeWorld:
    """Draw one world.

    Parameters
    ----------
    model : LogModel
    plan : Plan
    seed : int
        Of the deployment.
    number : int
        Of the world: each has draws of its own.
    """
    rng = _generator(seed, number)
    served_us = np.sort(rng.integers(0, plan.span_us, plan.anchors))
    place = rng.integers(0, plan.live, plan.anchors)
    ads, born_us = _ads_of(model, plan, served_us, place, rng)
    _, ads = np.unique(ads, return_inverse=True)
    count = int(ads.max(initial=-1)) + 1
    rates = _rates(model, count, rng)[ads]
    converts = rng.random(plan.anchors) < rates
    delay_us = model.delays_us[rng.integers(0, len(model.delays_us), plan.anchors)]
    arrived_us = np.where(converts, plan.start_us + served_us + delay_us, -1)
    bits = max(12, (count + 1).bit_length() + 2)
    slots = np.zeros((plan.anchors, 2), dtype=np.uint32)
    slots[:, 1] = ads + 1  # slot 0 is the same in every row: the bias
    rows = WorldRows(slots, bits, plan.start_us + served_us, arrived_us, ads, ads)
    return MadeWorld(rows, rates, served_us - born_us)


def _ads_of(
    model: LogModel, plan: Plan, served_us: np.ndarray, place: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return each anchor's ad and when that was born: in every place one ad follows another."""
    if not len(model.lives_us):
        return place, np.full(len(served_us), -max(plan.span_us, 10 * model.goal.window_us))
    mean_us = model.mean_life_us
    warm_up_us = round(WARM_UP_LIVES * mean_us)
    ads = np.empty(len(served_us), dtype=np.int64)
    born_us = np.empty(len(served_us), dtype=np.int64)
    used = 0
    for number in range(plan.live):
        ends = np.array([-warm_up_us - round(rng.random() * mean_us)])
        while ends[-1] < plan.span_us:
            more = int((plan.span_us - ends[-1]) / mean_us) + 16
            drawn = model.lives_us[rng.integers(0, len(model.lives_us), more)]
            ends = np.concatenate((ends, ends[-1] + np.cumsum(drawn)))
        rows = np.flatnonzero(place == number)
        ended = np.searchsorted(ends, served_us[rows], side="right")
        ads[rows] = used + ended
        born_us[rows] = ends[ended - 1]
        used += len(ends)
    return ads, born_us


def _rates(model: LogModel, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the rates of ads: a beta distribution with the model's mean and spread."""
    p = model.rate
    # A beta distribution spreads by less than sqrt((1 - p) / p) of its mean.
    variation = min(model.variation, 0.9 * math.sqrt((1.0 - p) / p))
    if variation < 1e-3:
        return np.full(count, p)
    strength = (1.0 - p) / (p * variation**2) - 1.0
    return np.clip(rng.beta(p * strength, (1.0 - p) * strength, count), 1e-9, 1.0 - 1e-9)


def _generator(seed: int, number: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}/delay report/{number}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def _mid_quantiles() -> np.ndarray:
    return (np.arange(PLACES) + 0.5) / PLACES


def _whole_hours(us: float) -> int:
    return math.ceil(us / HOUR_US) * HOUR_US
