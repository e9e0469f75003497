"""Made logs of impressions whose labels come late: rates, delays and the life of an ad are known.

Ads come and go, each with a rate of its own; a positive's label arrives after a delay that is drawn
from a mixture of exponentials, cut off at the attribution window, so that the true rate of a row is
the probability of its final label. What is learnt from such a log, and how it is scored, is the
harness of ``ad_pipeline/monitoring/late_labels``; what is claimed of it stands in
``benchmarks/evidence/delayed_labels.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Goal
from ad_pipeline.evaluation import metrics
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.monitoring.late_labels.arms import ORACLE, Arm
from ad_pipeline.monitoring.late_labels.prequential import (
    ArmScores,
    Learners,
    Replay,
    judged_anchors,
    pre_train,
    replay_arms,
    told_outcomes,
)
from ad_pipeline.monitoring.late_labels.runs import Bench, KeptRuns
from ad_pipeline.monitoring.late_labels.stream import LateStream, WorldRows, stream_of_world
from ad_pipeline.settings import DelaySettings, Settings

BITS = 17
"""2^17 slots, in every family of learners."""

OTHER_DRAW, EXACT_MODELS = "oracle, another draw", "es_dfm, exact models"

START_US = 490_000 * HOUR_US


@dataclass(frozen=True)
class Field:
    """A categorical feature beside the ad.

    Attributes
    ----------
    values : int
        Zipf distributed: the k-th is drawn in proportion to 1 / k.
    spread : float
        Standard deviation of its values' effects on the log odds.
    drift : float
        Standard deviation of what a day adds to each effect: a random walk in steps of an hour.
    """

    values: int
    spread: float
    drift: float = 0.0


@dataclass(frozen=True)
class World:
    """A made log.

    Attributes
    ----------
    rate : float
        Mean probability of a positive.
    rows_an_hour : int
        Evenly spaced.
    before_hours, judged_hours : int
        Served before the split, and from it on; the log goes on until all labels are final.
    ads : int
        Live at any time; a row's is drawn uniformly.
    life_hours : int
        Of an ad, from its first impression to its last.
    ad_spread : float
        Standard deviation of ads' effects on the log odds.
    fields : tuple of Field
        The first is the campaign, whose delays are longer or shorter than those of others.
    delays : tuple of (float, float)
        Share of the positives, and mean delay in hours, of each part of the mixture.
    delay_spread : float
        Standard deviation of the logarithm of a campaign's factor on its delays.
    window_hours, observation_minutes : int
        Attribution and observation window.
    """

    rate: float
    rows_an_hour: int
    before_hours: int
    judged_hours: int
    ads: int
    life_hours: int
    ad_spread: float
    delays: tuple[tuple[float, float], ...]
    window_hours: int
    observation_minutes: int
    fields: tuple[Field, ...] = ()
    delay_spread: float = 0.0

    @property
    def goal(self) -> Goal:
        """The goal of the log, anchored on impressions."""
        return Goal(
            name="conversion",
            window_us=self.window_hours * HOUR_US,
            observation_us=self.observation_minutes * HOUR_US // 60,
        )

    @property
    def split_us(self) -> int:
        """Where the stream begins."""
        return START_US + self.before_hours * HOUR_US

    @property
    def end_us(self) -> int:
        """Where the log ends: every label is final."""
        return self.split_us + (self.judged_hours + self.window_hours + 1) * HOUR_US


@dataclass(frozen=True)
class MadeLog:
    """Rows of a world, n of them, and what nobody can see of a log.

    Attributes
    ----------
    rows : WorldRows
    truth : ndarray of shape (n,), float64
        Probability that the final label is 1.
    lateness : ndarray of shape (n,), float64
        Probability that a positive comes after the observation window.
    """

    rows: WorldRows
    truth: np.ndarray
    lateness: np.ndarray


def made_log(world: World, seed: int) -> MadeLog:
    """Draw a log.

    Parameters
    ----------
    world : World
    seed : int
        Same seed, same log.

    Raises
    ------
    ValueError
        If it has more features than slots.
    """
    rng = np.random.default_rng([seed, 1])
    hours = world.before_hours + world.judged_hours
    count = hours * world.rows_an_hour
    place = np.arange(count)
    served_us = START_US + place * (HOUR_US // world.rows_an_hour)
    ads = _ads(world, count, rng)
    effects = rng.normal(0, world.ad_spread, int(ads.max()) + 1)[ads]
    codes = [ads]
    for field in world.fields:
        weights = 1 / np.arange(1, field.values + 1)
        drawn = rng.choice(field.values, count, p=weights / weights.sum())
        steps = rng.normal(0, field.drift / np.sqrt(24), (hours, field.values))
        steps[0] = rng.normal(0, field.spread, field.values)
        effects += np.cumsum(steps, axis=0)[place // world.rows_an_hour, drawn]
        codes.append(drawn)
    truth = metrics.probabilities_of(effects + _intercept(effects, world.rate))
    campaigns = codes[1] if world.fields else np.zeros(count, np.int64)
    factors = np.exp(rng.normal(0, world.delay_spread, int(campaigns.max()) + 1))[campaigns]
    delay_us = _delay_hours(world, factors, rng) * HOUR_US
    positive = rng.random(count) < truth
    rows = WorldRows(
        slots=_slots(codes),
        slot_bits=BITS,
        served_us=served_us,
        arrived_us=np.where(positive, served_us + delay_us.astype(np.int64), -1),
        ads=ads,
        groups=campaigns,
    )
    return MadeLog(rows, truth, _lateness(world, factors))


def _ads(world: World, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the ad of each row: places for ads, each taken by one after the other."""
    life = world.life_hours * world.rows_an_hour
    taken = rng.integers(0, world.ads, count)
    turn = (np.arange(count) + rng.integers(0, life, world.ads)[taken]) // life
    return taken * (count // life + 2) + turn


def _intercept(effects: np.ndarray, rate: float) -> float:
    """Return what makes the mean probability the rate."""
    from scipy.optimize import root_scalar

    found = root_scalar(
        lambda at: metrics.probabilities_of(effects + at).mean() - rate, bracket=(-30, 30)
    )
    return float(found.root)


def _delay_hours(world: World, factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return delays below the window, float64 (n,)."""
    shares, means = np.array(world.delays).T
    mean = means[rng.choice(len(means), len(factors), p=shares)] * factors
    # The inverse of an exponential's distribution function, given that it is below the window.
    return -mean * np.log1p(rng.random(len(factors)) * np.expm1(-world.window_hours / mean))


def _lateness(world: World, factors: np.ndarray) -> np.ndarray:
    """Return the probability of a delay beyond the observation window, float64 (n,)."""
    found = np.zeros(len(factors))
    for share, mean in world.delays:
        scale = mean * factors
        within = np.expm1(-world.observation_minutes / 60 / scale)
        found += share * (1 - within / np.expm1(-world.window_hours / scale))
    return found


def _slots(codes: Sequence[np.ndarray]) -> np.ndarray:
    """Return slots, uint32 (n, 1 + F): one that all rows have, and one a feature.

    They are numbered, not hashed: nothing collides.
    """
    columns, taken = [np.zeros(len(codes[0]), np.int64)], 1
    for code in codes:
        columns.append(taken + code)
        taken += int(code.max()) + 1
    if taken > 1 << BITS:
        raise ValueError(f"the world has {taken} features, more than 2^{BITS}")
    return np.column_stack(columns).astype(np.uint32)


@dataclass(frozen=True)
class Scored:
    """What arms said of the rows that all of them are judged by, s of them.

    Attributes
    ----------
    stream : LateStream
    replay : Replay
    labels : ndarray of shape (s,), int8
    truth : ndarray of shape (s,), float64
    ad_age : ndarray of shape (s,), float64
        As a share of an ad's life.
    arms : dict of str to ArmScores
    """

    stream: LateStream
    replay: Replay
    labels: np.ndarray
    truth: np.ndarray
    ad_age: np.ndarray
    arms: dict[str, ArmScores]

    def probabilities(self, arm: str) -> np.ndarray:
        """Return what an arm said, float64 (s,)."""
        return metrics.probabilities_of(self.arms[arm].log_odds)


def replay_of(world: World, block_us: int) -> Replay:
    """Return how a world is replayed: models of delay are fitted daily, on two windows and a day.

    Parameters
    ----------
    world : World
    block_us : int
        Microseconds between two published states.
    """
    return Replay(world.split_us, block_us=block_us, delays=_delays(world))


def _delays(world: World) -> DelaySettings:
    return DelaySettings(
        refit_every_hours=min(24, max(1, world.window_hours // 4)),
        lookback_hours=2 * world.window_hours + 24,
        group_by="campaign_id" if world.delay_spread else None,
    )


def stream_of(world: World, log: MadeLog) -> LateStream:
    """Return a made log as every strategy shows it."""
    settings = Settings(delays=_delays(world))
    return stream_of_world(log.rows, world.goal, world.end_us, settings)


def scored(
    world: World,
    seed: int,
    learners: Learners,
    arms: Sequence[Arm],
    block_us: int,
    *,
    tuned: bool = False,
) -> Scored:
    """Make a log, replay arms over it, and return what they said.

    Parameters
    ----------
    world : World
    seed : int
        Of the log, and of what its learners leave out.
    learners : Learners
    arms : sequence of Arm
        With the oracle if `tuned`.
    block_us : int
        Microseconds between two published states.
    tuned : bool
        Whether each arm's rate is chosen before the split, from factors that are the same for all;
        else all have their family's. Two arms are then there once more: the oracle as
        :data:`OTHER_DRAW`, with another tenth of the anchors left out, and ES-DFM as
        :data:`EXACT_MODELS`, with the true lateness and real-negative probabilities.
    """
    log = made_log(world, seed)
    stream, replay = stream_of(world, log), replay_of(world, block_us)
    with TemporaryDirectory() as folder:
        kept = KeptRuns(Path(folder))
        if not tuned:
            kept.keep_rates(learners.name, {arm.name: 1.0 for arm in arms})
        bench = Bench(stream, replay, learners, kept)
        bench.run(arms, [seed], _quietly)
        said = {arm.name: bench.scores(arm, seed) for arm in arms}
        if tuned:
            named = {arm.name: arm for arm in arms}
            bench.run([named[ORACLE]], [seed + 1], _quietly)
            said[OTHER_DRAW] = bench.scores(named[ORACLE], seed + 1)
            rate = kept.rates(learners.name)["es_dfm"]
            es_dfm = replace(named["es_dfm"], rate=rate)
            said[EXACT_MODELS] = _with_exact_models(bench, log, es_dfm, seed)
    judged = judged_anchors(stream, replay)
    return Scored(
        stream=stream,
        replay=replay,
        labels=stream.labels[judged],
        truth=log.truth[judged],
        ad_age=stream.ad_age_us[judged] / (world.life_hours * HOUR_US),
        arms=said,
    )


def _with_exact_models(bench: Bench, log: MadeLog, arm: Arm, seed: int) -> ArmScores:
    """Replay an arm whose rows are told what no model of delay can know."""
    stream = bench.stream
    outcomes = told_outcomes(stream, bench.replay)
    truth, lateness = log.truth[stream.anchor], log.lateness[stream.anchor]
    outcomes[:, kernel.LATENESS] = lateness
    outcomes[:, kernel.REAL_NEGATIVE] = (1 - truth) / (1 - truth + truth * lateness)
    checkpoint = pre_train(stream, bench.replay, bench.learners, seed)
    ((_, scores),) = replay_arms(
        stream, bench.replay, bench.learners, [arm], seed, checkpoint, outcomes
    )
    return scores


def _quietly(_: str) -> None:
    pass
