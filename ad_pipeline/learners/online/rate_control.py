r"""Learning rates that follow the stream: raised after an abrupt change, lowered in calm, frozen.

After each micro-batch a configuration is told how surprised it was: with p the probability it gave
before learning a row, l the row's loss, and what it expected of that loss under its own p,

.. math:: \text{surprise} = \sum (l - E_p[l]) \,/\, \sqrt{\sum \mathrm{Var}_p[l]}.

A learner that knows the stream is surprised by about 0, give or take 1; one whose labels come in
twice (a negative, then a late positive) by a constant. What matters is a rise, and Page and
Hinkley's test, River's, looks for one. Four moves follow from it:

- **raise**: the test rings. What was learnt so far counts less, so that new rows move the weights;
- **slow**: no ring for long. The clock that forgets runs at half speed;
- **freeze**: the loss of a micro-batch explodes, to a multiple of what it used to be. Rows are
  scored, not learnt, until it comes down;
- **thaw**: it came down; or it did not for so long that it is the world, and the rate is raised.

What a move does to the state is :class:`.ftrl_expert.FTRLExpert`'s. Each move carries its evidence.
Whole hours that should not have been learnt are the guard's (:mod:`.guard`), afterwards.

References
----------
Page, Continuous inspection schemes, Biometrika 41, 1954. Gama et al., A survey on concept drift
adaptation, ACM Computing Surveys 46, 2014, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ad_pipeline.settings import RateControlSettings

MOST_REMEMBERED = 288
"""Micro-batches that the test looks back on: two days of ten minutes."""

_SLOWED = 2
"""In calm, one of so many microseconds passes for the clock that forgets."""


@dataclass(frozen=True)
class Surprise:
    """How a micro-batch compared with what a configuration expected of it.

    Attributes
    ----------
    rows : int
    loss, expected_loss : float
        Means over rows by weight, nats.
    surprise : float
        Their difference in standard deviations of it.
    """

    rows: int
    loss: float
    expected_loss: float
    surprise: float


@dataclass(frozen=True)
class Move:
    """What was done to the rate of a configuration, and why.

    Attributes
    ----------
    configuration : int
    kind : str
        ``raise``, ``slow``, ``freeze`` or ``thaw``; ``order`` of one from outside.
    doublings : int
        By which the rate was raised; 0 for other moves.
    evidence : dict
        Numbers that it rests on.
    """

    configuration: int
    kind: str
    doublings: int
    evidence: dict[str, float | int]


def surprise_of(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Surprise | None:
    """Return how surprising some rows were, None if nothing of weight is among them.

    Parameters
    ----------
    logits : ndarray of shape (n,), float64
        Given before the rows were learnt.
    labels : ndarray of shape (n,), 0 or 1
    weights : ndarray of shape (n,), float64
    """
    told = weights > 0
    if not told.any():
        return None
    scores, targets, weight = logits[told], labels[told].astype(np.float64), weights[told]
    p = 1.0 / (1.0 + np.exp(-scores))
    losses = np.logaddexp(0.0, scores) - targets * scores
    expected = np.logaddexp(0.0, scores) - p * scores
    variance = np.square(weight * scores) * p * (1.0 - p)
    total = float(weight.sum())
    spread = float(np.sqrt(variance.sum()))
    gap = float((weight * (losses - expected)).sum())
    return Surprise(
        rows=int(told.sum()),
        loss=float((weight * losses).sum()) / total,
        expected_loss=float((weight * expected).sum()) / total,
        surprise=gap / spread if spread > 0.0 else 0.0,
    )


@dataclass
class _Followed:
    """What is remembered of one configuration; plain JSON."""

    surprises: list[float] = field(default_factory=list)
    usual_loss: float | None = None
    calm: int = 0
    frozen_for: int = 0

    def rings(self, settings: RateControlSettings) -> bool:
        from river.drift import PageHinkley

        test = PageHinkley(
            min_instances=settings.warm_up_micro_batches,
            delta=settings.tolerated_surprise,
            threshold=settings.threshold,
            alpha=1.0,
            mode="up",
        )
        for surprise in self.surprises:
            test.update(surprise)
        return bool(test.drift_detected)


class RateControl:
    """Watches every configuration of a grid, each by itself.

    Parameters
    ----------
    settings : RateControlSettings
    width : int
        Configurations.
    """

    def __init__(self, settings: RateControlSettings, width: int) -> None:
        self._settings = settings
        self._followed = [_Followed() for _ in range(width)]

    def elapsed_us(self, microseconds: int) -> list[int]:
        """Return how much time passes for each configuration's clock: half of it in calm."""
        slow = self._settings.calm_micro_batches
        return [
            microseconds // _SLOWED if one.calm >= slow else microseconds for one in self._followed
        ]

    def observe(
        self, logits: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> tuple[list[Surprise | None], list[Move]]:
        """Take in a micro-batch that was scored, and learnt unless frozen.

        Parameters
        ----------
        logits : ndarray of shape (n, K), float64
            Given before each row was learnt.
        labels : ndarray of shape (n,), 0 or 1
        weights : ndarray of shape (n,), (n, 1) or (n, K), float64

        Returns
        -------
        surprises : list of Surprise or None
            By configuration.
        moves : list of Move
            To be made before the next micro-batch.
        """
        each = weights.reshape(len(labels), -1)
        surprises = [
            surprise_of(logits[:, place], labels, each[:, place if each.shape[1] > 1 else 0])
            for place in range(len(self._followed))
        ]
        moves = [
            move
            for place, surprise in enumerate(surprises)
            if surprise is not None and surprise.rows >= self._settings.minimum_rows
            for move in self._follow(place, surprise)
        ]
        return surprises, moves

    def _follow(self, place: int, seen: Surprise) -> list[Move]:
        settings, one = self._settings, self._followed[place]
        evidence: dict[str, float | int] = {
            "rows": seen.rows,
            "loss": seen.loss,
            "expected_loss": seen.expected_loss,
            "surprise": seen.surprise,
            "usual_loss": seen.loss if one.usual_loss is None else one.usual_loss,
        }
        known = len(one.surprises) >= settings.warm_up_micro_batches
        explodes = (
            one.usual_loss is not None
            and seen.loss > settings.explosion * one.usual_loss
            and seen.surprise > settings.threshold
        )
        if one.frozen_for:
            if explodes and one.frozen_for < settings.longest_freeze_micro_batches:
                one.frozen_for += 1
                return []
            one.frozen_for, one.surprises, one.calm = 0, [], 0
            if not explodes:
                return [Move(place, "thaw", 0, evidence)]
            one.usual_loss = seen.loss
            return [
                Move(place, "thaw", 0, evidence),
                Move(place, "raise", settings.doublings, evidence),
            ]
        if known and explodes:
            one.frozen_for = 1
            return [Move(place, "freeze", 0, evidence)]
        one.surprises = [*one.surprises, seen.surprise][-MOST_REMEMBERED:]
        share = 1.0 / settings.warm_up_micro_batches
        usual = seen.loss if one.usual_loss is None else one.usual_loss
        one.usual_loss = usual + share * (seen.loss - usual)
        if one.rings(settings):
            one.surprises, one.calm = [], 0
            return [Move(place, "raise", settings.doublings, evidence)]
        one.calm += 1
        if one.calm == settings.calm_micro_batches:
            return [Move(place, "slow", 0, evidence)]
        return []

    def to_json(self) -> list[dict[str, Any]]:
        """Return what is remembered, for a checkpoint's manifest."""
        return [vars(one).copy() for one in self._followed]

    @classmethod
    def from_json(cls, settings: RateControlSettings, tree: Sequence[dict[str, Any]]) -> Self:
        """Return the control of :meth:`to_json`."""
        control = cls(settings, len(tree))
        control._followed = [_Followed(**one) for one in tree]
        return control
