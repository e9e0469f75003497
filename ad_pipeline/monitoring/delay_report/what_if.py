"""What each way of learning would have done here: replays of made worlds with a log's parameters.

Worlds are drawn by :mod:`.log_model`, which says what they leave out; every arm goes through the
matured prequential replay of :mod:`..late_labels.prequential`, on the same rows from the same
checkpoint, with a linear learner that knows the ad and nothing else. Since the truth of a world is known, an arm is
judged by it and not by labels: by its expected log loss, and by what it predicts over what is true,
overall and by the age of the ad. That takes the luck of the judging labels out; the luck of the
labels it learnt from stays, and is what the intervals are: several worlds, each with draws of its
own, with Student's t over them.

Nothing is decided here; :mod:`.recommendation` does that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ad_pipeline.clocks import HOUR_US, MINUTE_US, hour_of
from ad_pipeline.evaluation.metrics import CLIP, probabilities_of
from ad_pipeline.evaluation.survival import Estimate
from ad_pipeline.learners.delayed.losses import COEFFICIENTS
from ad_pipeline.learners.ftrl.ftrl_kernel import N_OUTCOMES
from ad_pipeline.monitoring.delay_report.log_model import LogModel, Plan, drawn_world, plan_of
from ad_pipeline.monitoring.delay_report.value import ValueFunction, valued
from ad_pipeline.monitoring.late_labels.arms import (
    CANDIDATES,
    CLIPPED,
    CONTROLS,
    ORACLE,
    VANILLA,
    Arm,
    waiting_arms,
)
from ad_pipeline.monitoring.late_labels.linear import LinearLearners
from ad_pipeline.monitoring.late_labels.prequential import (
    BenchLearner,
    Replay,
    base_rate_scores,
    judged_anchors,
    pre_train,
    recalibrated_scores,
    replay_arms,
    told_outcomes,
)
from ad_pipeline.monitoring.late_labels.stream import stream_of_world
from ad_pipeline.settings import Configuration, Objective, OnlineSettings, Settings

CONFIGURED = "as configured"
"""Name of the arm of a configured objective that no other arm has."""

LEAST_SHARE = 0.01
"""Of the judged anchors that a bucket of ad ages must hold to be told."""

LEARNT_SIDE_BY_SIDE = 16

RATES = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Factors on the deployment's learning rate, of which each world has the oracle's best. A world is
short: with too low a rate whoever shows rows twice would win by being faster alone."""

PAIRS_OF_RATE = 500_000
"""Rows by which a learner is told the base rate: one of 0.001 is then met within 5 %."""


@dataclass(frozen=True)
class WhatIf:
    """What arms said in made worlds, against the truth; W worlds, A arms, B buckets of ad age.

    Attributes
    ----------
    model : LogModel
    plan : Plan
    arms : tuple of Arm
    loss : ndarray of shape (W, A), float64
        Mean expected log loss of the judged anchors, nats.
    least_loss : ndarray of shape (W,), float64
        The same of the truth.
    predicted : ndarray of shape (W, A, B), float64
        Sums of probabilities.
    true : ndarray of shape (W, B), float64
        Sums of true probabilities.
    anchors : ndarray of shape (W, B), int64
    worth : ndarray of shape (W, A), float64, or None
        Mean value of an anchor, micro-currency; None without a value function.
    most_worth : ndarray of shape (W,), float64, or None
        The same of the truth.
    level : float
        Of the intervals.
    """

    model: LogModel
    plan: Plan
    arms: tuple[Arm, ...]
    loss: np.ndarray
    least_loss: np.ndarray
    predicted: np.ndarray
    true: np.ndarray
    anchors: np.ndarray
    worth: np.ndarray | None
    most_worth: np.ndarray | None
    level: float

    @property
    def edges_us(self) -> np.ndarray:
        """Ad ages at which buckets end."""
        return self.model.edges_us

    @property
    def told(self) -> np.ndarray:
        """Which buckets hold enough anchors to be told, bool (B,)."""
        counts = self.anchors.sum(axis=0)
        return counts >= LEAST_SHARE * counts.sum()

    def place(self, name: str) -> int:
        """Return the place of an arm."""
        return [arm.name for arm in self.arms].index(name)

    def loss_against(self, name: str, other: str) -> Estimate:
        """Return the log loss of an arm over that of another, less 1: paired by world."""
        return self.over_worlds(
            self.loss[:, self.place(name)] / self.loss[:, self.place(other)] - 1.0
        )

    def calibration(self, name: str) -> Estimate:
        """Return predicted over true of an arm, on all judged anchors."""
        return self.over_worlds(
            self.predicted[:, self.place(name)].sum(axis=1) / self.true.sum(axis=1)
        )

    def calibration_by_age(self, name: str) -> list[Estimate]:
        """Return the same in every bucket; NaN where too few anchors are."""
        told = self.told
        ratios = self.predicted[:, self.place(name)] / np.maximum(self.true, 1e-300)
        return [
            self.over_worlds(ratios[:, bucket]) if told[bucket] else Estimate(float("nan"))
            for bucket in range(len(told))
        ]

    def worst_bucket(self, name: str) -> tuple[int, Estimate]:
        """Return the bucket in which an arm is farthest off, by the logarithm, and its ratio.

        The bucket is -1 if none holds enough anchors.
        """
        found = self.calibration_by_age(name)
        off = [abs(np.log(max(each.value, 1e-9))) for each in found]
        if np.isnan(off).all():
            return -1, Estimate(float("nan"))
        worst = int(np.nanargmax(off))
        return worst, found[worst]

    def miscalibration(self, name: str) -> np.ndarray:
        """Return by how much an arm is off by ad age, against the oracle, float64 (W,).

        The mean of |log| of what it predicts over what the oracle does, over the buckets, each for
        its anchors. Against the oracle, because what a learner of so few labels does not know is
        no fault of how it is shown them.
        """
        told = self.told
        weights = self.anchors[:, told] / self.anchors[:, told].sum(axis=1, keepdims=True)
        own, oracle = (self.predicted[:, self.place(each)][:, told] for each in (name, ORACLE))
        return (weights * np.abs(np.log(own / oracle))).sum(axis=1)

    def miscalibration_against(self, name: str, other: str) -> Estimate:
        """Return the difference of two arms' :meth:`miscalibration`, paired by world."""
        return self.over_worlds(self.miscalibration(name) - self.miscalibration(other))

    def off_at_some_age(self, name: str, factor: float) -> bool:
        """Tell whether an arm is off by more than a factor in a bucket, the whole interval.

        Against the oracle, as :meth:`miscalibration`.
        """
        told = self.told
        own, oracle = (self.predicted[:, self.place(each)][:, told] for each in (name, ORACLE))
        ratios = [self.over_worlds(column) for column in (own / oracle).T]
        return any(each.low > factor or each.high < 1.0 / factor for each in ratios)

    def worth_against(self, name: str, other: str) -> Estimate | None:
        """Return what an anchor is worth less under an arm than under another, micro-currency."""
        if self.worth is None:
            return None
        return self.over_worlds(self.worth[:, self.place(other)] - self.worth[:, self.place(name)])

    def over_worlds(self, values: np.ndarray) -> Estimate:
        """Return the mean over worlds with Student's t interval; no bounds with one world."""
        from scipy.special import stdtrit

        worlds = len(values)
        mean = float(values.mean())
        if worlds < 2:
            return Estimate(mean)
        quantile = float(stdtrit(worlds - 1, (1.0 + self.level) / 2.0))
        reach = quantile * float(values.std(ddof=1)) / np.sqrt(worlds)
        return Estimate(mean, mean - reach, mean + reach)


@dataclass(frozen=True)
class LearnersOfKnownRate(LinearLearners):
    """Makes FTRL learners whose bias has learnt a base rate, as any that has run for long.

    A world is too short to learn a rate of 0.005 from nothing: it would show how a learner begins,
    and not how it treats late labels.

    Attributes
    ----------
    rate : float
        It is shown as rows of the bias alone, a positive of weight p and a negative of weight
        1 - p in turn, so that no luck is in it.
    """

    rate: float = 0.5

    def fresh(self, seed: int) -> BenchLearner:
        """Return a learner with log loss that knows the rate, and no ad."""
        learner = super().fresh(seed)
        labels = np.tile([1.0, 0.0], PAIRS_OF_RATE)
        weights = np.tile([self.rate, 1.0 - self.rate], PAIRS_OF_RATE)
        bias = np.zeros((len(labels), 1), dtype=np.uint32)
        learner.learn(bias, labels, weights, np.zeros((len(labels), N_OUTCOMES)))
        return learner


def objective_of(online: OnlineSettings) -> Objective:
    """Return the objective that the online learner of a goal has, of its first configuration."""
    return Objective(loss=online.loss, strategy=online.strategy, non_negative=online.non_negative)


def arms_of_report(model: LogModel, configured: Objective) -> tuple[Arm, ...]:
    """Return the arms that are replayed: controls, losses with one head, and what is configured.

    Losses with two heads are replayed only where one is configured: their second head begins
    untrained, which a replay as short as this one would hold against them.
    """
    single = tuple(arm for arm in CANDIDATES if arm.objective.loss in COEFFICIENTS)
    arms = (*CONTROLS, *waiting_arms(model.goal, ()), *single, CLIPPED)
    if arm_of(arms, configured) is None:
        arms = (
            *arms,
            Arm(
                CONFIGURED,
                f"loss {configured.loss} on stream {configured.shown}",
                objective=configured,
            ),
        )
    return arms


def arm_of(arms: Sequence[Arm], objective: Objective) -> Arm | None:
    """Return the arm that learns by an objective on the stream that it is shown."""
    for arm in arms:
        own = arm.objective
        if (
            arm.role == "learner"
            and arm.wait_us is None
            and (own.loss, own.shown, own.non_negative)
            == (objective.loss, objective.shown, objective.non_negative)
        ):
            return arm
    return None


def what_if(
    model: LogModel,
    settings: Settings,
    online: OnlineSettings,
    value: ValueFunction | None = None,
    arms: Sequence[Arm] | None = None,
) -> WhatIf:
    """Replay arms in worlds of a model.

    Parameters
    ----------
    model : LogModel
    settings : Settings
        Of the deployment: seed, delays, and how much is drawn.
    online : OnlineSettings
        Of the goal: rates and penalties of the learner, and the length of a micro-batch.
    value : ValueFunction, optional
    arms : sequence of Arm, optional
        Those of :func:`arms_of_report` if left out; the oracle must be among them, and what is
        recalibrated with the arm that it is.

    Returns
    -------
    WhatIf
    """
    report = settings.delay_report
    if arms is None:
        arms = arms_of_report(model, objective_of(online))
    plan = plan_of(
        model,
        settings.delays,
        report.anchors // report.worlds,
        online.micro_batch_minutes * MINUTE_US,
    )
    judged = [
        _judged_world(model, plan, settings, online, arms, value, number)
        for number in range(report.worlds)
    ]
    return WhatIf(
        model=model,
        plan=plan,
        arms=tuple(arms),
        loss=np.array([world.loss for world in judged]),
        least_loss=np.array([world.least_loss for world in judged]),
        predicted=np.array([world.predicted for world in judged]),
        true=np.array([world.true for world in judged]),
        anchors=np.array([world.anchors for world in judged]),
        worth=None if value is None else np.array([world.worth for world in judged]),
        most_worth=None if value is None else np.array([world.most_worth for world in judged]),
        level=settings.evaluation.level,
    )


@dataclass(frozen=True)
class _Judged:
    """One world's part of a :class:`WhatIf`."""

    loss: list[float]
    least_loss: float
    predicted: list[np.ndarray]
    true: np.ndarray
    anchors: np.ndarray
    worth: list[float]
    most_worth: float


def _judged_world(
    model: LogModel,
    plan: Plan,
    settings: Settings,
    online: OnlineSettings,
    arms: Sequence[Arm],
    value: ValueFunction | None,
    number: int,
) -> _Judged:
    made = drawn_world(model, plan, settings.seed, number)
    horizon_us = model.goal.window_us
    # All ads of a world have one distribution of delays: groups would only have noisier ones.
    delays = settings.delays.model_copy(update={"group_by": None})
    stream = stream_of_world(
        made.rows,
        model.goal,
        hour_of(plan.end_us + horizon_us) + HOUR_US,
        Settings(seed=settings.seed, delays=delays),
    )
    replay = Replay(split_us=plan.split_us, block_us=plan.block_us, kept_share=1.0, delays=delays)
    learners = LearnersOfKnownRate(
        _configuration(online),
        made.rows.slot_bits,
        model.horizon_days,
        LEARNT_SIDE_BY_SIDE,
        rate=model.rate,
    )
    pre_trained = pre_train(stream, replay, learners, 0)
    outcomes = told_outcomes(stream, replay)
    judged = judged_anchors(stream, replay)
    true = made.rates[judged]
    oracle = next(arm for arm in arms if arm.role == "oracle")
    by_rate = replay_arms(
        stream,
        replay,
        learners,
        [replace(oracle, rate=rate) for rate in RATES],
        0,
        pre_trained,
        outcomes,
    )
    best, _ = min(
        by_rate, key=lambda each: _expected_loss(true, probabilities_of(each[1].log_odds))
    )
    learning = [
        replace(arm, rate=best.rate) for arm in arms if arm.role in ("learner", "oracle", "frozen")
    ]
    said = {
        arm.name: scores.log_odds
        for arm, scores in replay_arms(stream, replay, learners, learning, 0, pre_trained, outcomes)
    }
    for arm in arms:
        if arm.role == "base_rate":
            said[arm.name] = base_rate_scores(stream, replay)
        elif arm.role == "recalibrated":
            said[arm.name] = recalibrated_scores(stream, replay, said[VANILLA])
    bucket = np.searchsorted(model.edges_us, made.ages_us[judged], side="right")
    buckets = len(model.edges_us) + 1
    loss: list[float] = []
    predicted: list[np.ndarray] = []
    worth: list[float] = []
    for arm in arms:
        probabilities = probabilities_of(said[arm.name])
        loss.append(_expected_loss(true, probabilities))
        predicted.append(np.bincount(bucket, probabilities, buckets))
        if value is not None:
            worth.append(float(valued(value, probabilities, true).mean()))
    return _Judged(
        loss=loss,
        least_loss=_expected_loss(true, true),
        predicted=predicted,
        true=np.bincount(bucket, true, buckets),
        anchors=np.bincount(bucket, minlength=buckets),
        worth=worth,
        most_worth=float("nan") if value is None else float(valued(value, true, true).mean()),
    )


def _configuration(online: OnlineSettings) -> Configuration:
    """Return the rates and penalties of the deployment's learner, or the default ones.

    Without what a replay has no use for: no clock moves in it, all slots are there from the start,
    and the objective is each arm's own.
    """
    if online.estimator != "ftrl":
        return Configuration()
    return Configuration(
        alpha=online.alpha,
        beta=online.beta,
        l1=online.l1,
        l2=online.l2,
        schedule=online.schedule,
        forgetting=online.forgetting,
        momentum=online.momentum,
    )


def _expected_loss(true: np.ndarray, predicted: np.ndarray) -> float:
    p = np.clip(predicted, CLIP, 1.0 - CLIP)
    return float(-(true * np.log(p) + (1.0 - true) * np.log1p(-p)).mean())
