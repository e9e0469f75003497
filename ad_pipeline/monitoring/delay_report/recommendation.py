"""Which loss to learn late labels with, what another one would cost, and why, in words.

A rule over the replays of :mod:`.what_if`: of the losses that are not shown to be worse than the
best one, in log loss or in calibration by the age of the ad, the simplest. The plain log loss is
simpler than one that weighs rows, and that is simpler than one that rests on a model of delay which
has to be fitted and watched. So where weighting changes nothing, as at a base rate of half a per
cent, nothing is what is recommended. Arms that only wait are shown and never recommended: made
worlds do not drift, and drift is what waiting costs.

Drawing, and what stands around these sentences on a page, is :mod:`.delay_page`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ad_pipeline.evaluation.survival import Estimate
from ad_pipeline.learners.delayed.delay_models import NEEDED_BY
from ad_pipeline.monitoring.delay_report.report import AgeBucket, DelayFacts, ages_in_words
from ad_pipeline.monitoring.delay_report.what_if import WhatIf, arm_of
from ad_pipeline.monitoring.late_labels.arms import ORACLE, VANILLA, Arm
from ad_pipeline.settings import DelayReportSettings, Objective

WEIGHTED = "fake_negative_weighted"
"""The loss that says what weighting does: the one of Ktena et al. (RecSys 2019) for any stream."""

CHANGES_NOTHING = 0.01
"""Of log loss and of mean prediction: what a loss changes by less is not worth its code."""

PER_ANCHORS = 1_000
"""Money is told for so many anchors, as prices of impressions are."""

RESTS_ON_DELAYS = NEEDED_BY | {"hazard"}
"""Losses that need something fitted to delays: a model, or the distribution that matched negatives
are emitted by."""

_WAITING = ("wait_observation", "wait_maturity")


@dataclass(frozen=True)
class Cost:
    """What one way of learning would do here, beside the recommended one.

    Attributes
    ----------
    arm : Arm
    log_loss : Estimate
        Relative to that of the recommended one: 0.01 is one per cent worse.
    calibration : Estimate
        Predicted over true, of all anchors.
    by_age : tuple of Estimate
        The same by bucket of ad ages; NaN where too few anchors are.
    worst_bucket : int
        Place of the bucket that is farthest off, -1 without any.
    miscalibration : float
        Mean |log| by bucket of what it predicts over what the oracle does.
    money : Estimate or None
        What :data:`PER_ANCHORS` anchors are worth less than under the recommended one,
        micro-currency; None without a value function.
    tolerated : bool
        Not shown to be worse than the best one.
    """

    arm: Arm
    log_loss: Estimate
    calibration: Estimate
    by_age: tuple[Estimate, ...]
    worst_bucket: int
    miscalibration: float
    money: Estimate | None
    tolerated: bool


@dataclass(frozen=True)
class Recommendation:
    """Which loss, what is configured instead, and what weighting changes.

    Attributes
    ----------
    arm, configured : Arm
    costs : tuple of Cost
        Of every arm, in the order in which they were replayed.
    weighting_log_loss, weighting_prediction : Estimate
        Change of log loss, and of the mean prediction, from the plain loss to
        :data:`WEIGHTED`, relative.
    """

    arm: Arm
    configured: Arm
    costs: tuple[Cost, ...]
    weighting_log_loss: Estimate
    weighting_prediction: Estimate

    @property
    def weighting_changes_nothing(self) -> bool:
        """Whether both changes are within :data:`CHANGES_NOTHING`, whole intervals."""
        return all(
            max(abs(bound) for bound in (change.value, change.low, change.high)) < CHANGES_NOTHING
            for change in self._changes
        )

    @property
    def weighting_changes_something(self) -> bool:
        """Whether either is a change beyond noise; neither of the two: too little was replayed."""
        return not self.weighting_changes_nothing and any(
            change.low > 0 or change.high < 0 for change in self._changes
        )

    @property
    def _changes(self) -> tuple[Estimate, Estimate]:
        return self.weighting_log_loss, self.weighting_prediction

    def cost(self, name: str) -> Cost:
        """Return what is said of an arm."""
        return next(cost for cost in self.costs if cost.arm.name == name)

    @property
    def worst(self) -> Cost:
        """The recommendable loss that would cost most log loss."""
        return max(
            (cost for cost in self.costs if recommendable(cost.arm)),
            key=lambda cost: cost.log_loss.value,
        )


@dataclass(frozen=True)
class GoalReport:
    """What the report says of one goal.

    Attributes
    ----------
    facts : DelayFacts
    served : dict of str to list of AgeBucket
        By expert: how serving-time scores fit final labels, by the age of the ad.
    replayed : WhatIf or None
    found : Recommendation or None
        Both None while no positive has come: there is nothing to model.
    """

    facts: DelayFacts
    served: dict[str, list[AgeBucket]]
    replayed: WhatIf | None
    found: Recommendation | None


def recommendable(arm: Arm) -> bool:
    """Tell whether an arm is a loss on a stream that learns at once."""
    if arm.role != "learner" or arm.wait_us is not None:
        return False
    return arm.objective.comes_late or arm.objective.shown not in _WAITING


def simplicity(arm: Arm) -> int:
    """Return 0 for the plain log loss, 1 for weights, 2 for what rests on fitted delays."""
    if arm.objective.loss in RESTS_ON_DELAYS:
        return 2
    return int(arm.objective.comes_late)


def recommended(
    replayed: WhatIf, configured: Objective, settings: DelayReportSettings
) -> Recommendation:
    """Return the simplest loss that is not shown to be worse than the best one.

    Parameters
    ----------
    replayed : WhatIf
        With the arms of :func:`.what_if.arms_of_report`.
    configured : Objective
        Of the goal's online learner.
    settings : DelayReportSettings
        What may be tolerated.

    Raises
    ------
    LookupError
        If what is configured was not replayed.
    """
    own = arm_of(replayed.arms, configured)
    if own is None:
        raise LookupError(
            f"loss {configured.loss!r} on stream {configured.shown!r} was not replayed; "
            "replay the arms of arms_of_report"
        )
    candidates = [arm for arm in replayed.arms if recommendable(arm)]
    tolerated = set(_tolerated(replayed, candidates, settings))
    chosen = min(
        (arm for arm in candidates if arm.name in tolerated),
        # What is configured stays unless something simpler or better is there.
        key=lambda arm: (simplicity(arm), arm.name != own.name, _mean_loss(replayed, arm)),
    )
    ratio = replayed.predicted.sum(axis=2)
    weighted, plain = (ratio[:, replayed.place(name)] for name in (WEIGHTED, VANILLA))
    return Recommendation(
        arm=chosen,
        configured=own,
        costs=tuple(_costs(replayed, chosen.name, tolerated)),
        weighting_log_loss=replayed.loss_against(WEIGHTED, VANILLA),
        weighting_prediction=replayed.over_worlds(weighted / plain - 1.0),
    )


def _tolerated(
    replayed: WhatIf, candidates: Sequence[Arm], settings: DelayReportSettings
) -> Iterator[str]:
    """Yield who is not shown to be worse: by more than is tolerated, the whole interval.

    In log loss against the lowest one, in calibration by age against the best calibrated. What is
    off at some ad age by so much that the check of served scores would warn is out, unless all are.
    The one of lowest log loss is always among the others, so that there is a choice.
    """
    candidates = [
        arm
        for arm in candidates
        if not replayed.off_at_some_age(arm.name, settings.calibrated_factor)
    ] or candidates
    best = min(candidates, key=lambda arm: _mean_loss(replayed, arm)).name
    fairest = min(candidates, key=lambda arm: replayed.miscalibration(arm.name).mean()).name
    for arm in candidates:
        loss = replayed.loss_against(arm.name, best)
        off = replayed.miscalibration_against(arm.name, fairest)
        if arm.name == best or (
            _surely_at_most(loss, settings.tolerated_loss)
            and _surely_at_most(off, settings.tolerated_miscalibration)
        ):
            yield arm.name


def _surely_at_most(difference: Estimate, tolerated: float) -> bool:
    low = difference.value if np.isnan(difference.low) else difference.low
    return low <= tolerated


def _mean_loss(replayed: WhatIf, arm: Arm) -> float:
    return float(replayed.loss[:, replayed.place(arm.name)].mean())


def _costs(replayed: WhatIf, chosen: str, tolerated: set[str]) -> Iterator[Cost]:
    for arm in replayed.arms:
        worth = replayed.worth_against(arm.name, chosen)
        yield Cost(
            arm=arm,
            log_loss=replayed.loss_against(arm.name, chosen),
            calibration=replayed.calibration(arm.name),
            by_age=tuple(replayed.calibration_by_age(arm.name)),
            worst_bucket=replayed.worst_bucket(arm.name)[0],
            miscalibration=float(replayed.miscalibration(arm.name).mean()),
            money=None
            if worth is None
            else Estimate(*(PER_ANCHORS * x for x in (worth.value, worth.low, worth.high))),
            tolerated=arm.name in tolerated,
        )


def sentences(found: Recommendation, replayed: WhatIf) -> Iterator[str]:
    """Say what was found: what to use, what weighting changes, what is configured, what is worst.

    Parameters
    ----------
    found : Recommendation
    replayed : WhatIf
        That it was found in.
    """
    yield f"Recommended: {found.arm.name} ({found.arm.says})."
    loss, prediction = found.weighting_log_loss, found.weighting_prediction
    figures = (
        f"log loss {_change(loss)}, mean prediction {_change(prediction)} against the plain log "
        f"loss at a base rate of {replayed.model.rate:.3g}"
    )
    if found.weighting_changes_nothing:
        yield (
            f"Weighting changes nothing here: {WEIGHTED} changes less than "
            f"{CHANGES_NOTHING:.0%} ({figures})."
        )
    elif found.weighting_changes_something:
        yield f"Weighting changes something here: {WEIGHTED} changes {figures}."
    else:
        yield (
            f"Too little was replayed to tell what weighting changes: {WEIGHTED}, {figures}; "
            "raise settings.delay_report.anchors."
        )
    if found.configured.name == found.arm.name:
        yield "That is what is configured."
    else:
        yield f"Configured is {_costs_in_words(found.cost(found.configured.name), replayed)}"
    if found.worst.arm.name not in (found.arm.name, found.configured.name):
        yield f"The worst choice is {_costs_in_words(found.worst, replayed)}"
    yield (
        f"Replayed in {len(replayed.loss)} made worlds of {replayed.plan.anchors:,} anchors each; "
        f"the oracle, told every label at once, predicts "
        f"{replayed.calibration(ORACLE).value:.3f} of what is true."
    )


def bucket_in_words(edges_us: np.ndarray, bucket: int) -> str:
    """Return the ad ages of a bucket for people."""
    bounds = [0.0, *edges_us.tolist(), float("inf")]
    return ages_in_words(bounds[bucket], bounds[bucket + 1])


def _costs_in_words(cost: Cost, replayed: WhatIf) -> str:
    text = (
        f"{cost.arm.name}: log loss {_change(cost.log_loss)} against the recommended one, predicts "
        f"{cost.calibration.value:.2f} of what is true"
    )
    if cost.worst_bucket >= 0:
        ages = bucket_in_words(replayed.edges_us, cost.worst_bucket)
        text += f", and {cost.by_age[cost.worst_bucket].value:.2f} at ad ages {ages}"
    if cost.money is not None:
        text += f"; {cost.money.value / 1e6:+,.3f} of currency lost in {PER_ANCHORS:,} anchors"
    return text + "."


def _change(change: Estimate) -> str:
    bounds = "" if np.isnan(change.low) else f" [{change.low:+.2%}, {change.high:+.2%}]"
    return f"{change.value:+.2%}{bounds}"
