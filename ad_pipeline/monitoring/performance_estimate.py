r"""Loss and calibration of scores whose labels are still on their way, and when to say nothing.

A label takes hours or weeks; scores are used now. What is known of an anchor at age a is whether it
was engaged so far. Of a positive, the label has arrived by then with probability F(a), the share of
``examples.label_delays`` that is not longer. So an anchor that waits is positive with

.. math:: w = p (1 - F) / (1 - p F),

and its loss is w times that of a positive and 1 - w times that of a negative; an engaged anchor
counts as positive, a final label as it is. With every label final this is the realised loss, and
with none it is what the scores expect of themselves.

Scores are not believed as they are, since a loss expected by an overconfident score is too low:
:math:`\operatorname{logit} p = s + l + k (s - c)` with a level l and a slope k. Both are fitted to
the final labels before the cohort (the *reference*), are believed to wander from one cohort to the
next by as much as they did in the reference, and are updated by what the cohort's own labels say so
far. The likelihood is Chapelle's with a known delay: p of an engaged anchor, 1 - p F of a waiting
one. An interval holds the labels that are to come, the doubt about level and slope, that about F,
which was read off so many positives, and is widened by how far off the estimates were whose labels
have matured.

**Blind spot.** None of this sees that the same inputs lead to other outcomes before the first
labels do; estimates of performance without labels never do. What can be done is to test the labels
that have come (Rao's score test of level and slope against the reference), to ask the verdicts on
drift and the estimates' own past, and to withdraw: an estimate that may be wrong is not given. An
engagement that will be retracted counts as positive until it is.

Here are pure functions of arrays; reading a log is :mod:`.performance_estimate_hours`.

References
----------
Chapelle, Modeling delayed feedback in display advertising, KDD 2014, section 4. Rao, Large sample
tests of statistical hypotheses, Proc. Camb. Phil. Soc. 44, 1948. DerSimonian and Laird,
Meta-analysis in clinical trials, Controlled Clinical Trials 7, 1986 (the wander).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ad_pipeline.evaluation.metrics import logits_of, probabilities_of

Floats = NDArray[np.float64]

MEASURES = ("log_loss", "normalized_entropy", "observed_over_predicted")
"""What is estimated: nats a row; those over the entropy of the cohort's rate; positives over
predicted ones."""

PRIOR_ESTIMATES = 10.0
"""Estimates that an interval's width is worth before any was judged by its labels."""

_WEAK_PRECISION = 1.0
"""Of level and slope before anything is known: they lie within two of 0."""

_LEAST_INFORMATION = 1e-9

_STEPS = 30
_LONGEST_STEP = 1.0
_TINY = 1e-12 * np.eye(2)
"""Without a label that could have come there is no information, and its inverse is not needed."""


@dataclass(frozen=True)
class Delays:
    """How long labels of positives take.

    Attributes
    ----------
    places_us : ndarray of shape (m,), int64
        Equally likely delays, rising, microseconds.
    positives : int
        Labels that they were read off.
    """

    places_us: NDArray[np.int64]
    positives: int

    def arrived_by(self, ages_us: NDArray[np.int64]) -> Floats:
        """Return F(age), float64 of the shape of the ages."""
        return np.searchsorted(self.places_us, ages_us, side="right") / len(self.places_us)


@dataclass(frozen=True)
class Anchors:
    """Scored anchors of one goal, and what is known of their labels at a moment.

    Attributes
    ----------
    logits : ndarray of shape (n,), float64
        As served.
    engaged : ndarray of shape (n,), bool
        An engagement that counts has been received; of a final label, whether it is positive.
    final : ndarray of shape (n,), bool
        The label can change no more.
    ages_us : ndarray of shape (n,), int64
        Time since the anchor.
    group : ndarray of shape (n,), int64
        Place of the anchor's distribution in ``delays``.
    delays : sequence of Delays
    """

    logits: Floats
    engaged: NDArray[np.bool_]
    final: NDArray[np.bool_]
    ages_us: NDArray[np.int64]
    group: NDArray[np.int64]
    delays: Sequence[Delays]

    def __len__(self) -> int:
        """Return the number of anchors."""
        return len(self.logits)

    def where(self, chosen: NDArray[np.bool_]) -> "Anchors":
        """Return some of the anchors."""
        return Anchors(
            self.logits[chosen],
            self.engaged[chosen],
            self.final[chosen],
            self.ages_us[chosen],
            self.group[chosen],
            self.delays,
        )

    def due(self) -> Floats:
        """Return F at each anchor's age, 1 where the label is final, float64 (n,)."""
        due = np.ones(len(self))
        for number, delays in enumerate(self.delays):
            waiting = (self.group == number) & ~self.final
            due[waiting] = delays.arrived_by(self.ages_us[waiting])
        return due

    def delay_covariance(self, effects: Floats) -> Floats:
        """Return how uncertain sums are because F is, float64 (k, k).

        Parameters
        ----------
        effects : ndarray of shape (n, k), float64
            How a sum changes with an anchor's F; what is said of final labels is left out.
        """
        covariance = np.zeros((effects.shape[1],) * 2)
        for number, delays in enumerate(self.delays):
            rows = np.flatnonzero((self.group == number) & ~self.final)
            order = rows[np.argsort(self.ages_us[rows], kind="stable")]
            # A delay is in F of all anchors that are at least as old.
            reached = np.searchsorted(self.ages_us[order], delays.places_us, side="left")
            total = np.zeros((len(order) + 1, effects.shape[1]))
            np.cumsum(effects[order], axis=0, out=total[1:])
            of_delay = total[-1] - total[reached]
            centred = of_delay - of_delay.mean(axis=0)
            covariance += centred.T @ centred / len(delays.places_us) / max(delays.positives, 1)
        return covariance


@dataclass(frozen=True)
class Recalibration:
    """How a goal's log odds are read: ``logit p = s + level + slope * (s - centre)``.

    Attributes
    ----------
    centre : float
        Log odds at which the slope turns.
    shift : ndarray of shape (2,), float64
        Level and slope; both 0 for scores that are right.
    covariance : ndarray of shape (2, 2), float64
    """

    centre: float
    shift: Floats
    covariance: Floats

    @classmethod
    def as_served(cls) -> Self:
        """Return the scores themselves, beyond doubt."""
        return cls(0.0, np.zeros(2), np.zeros((2, 2)))

    def design(self, logits: Floats) -> Floats:
        """Return what level and slope are multiplied by, float64 (n, 2)."""
        return np.column_stack((np.ones(len(logits)), logits - self.centre))

    def probabilities(self, logits: Floats) -> Floats:
        """Return the recalibrated probabilities, float64 (n,)."""
        return _certain(probabilities_of(logits + self.design(logits) @ self.shift))


@dataclass(frozen=True)
class Bounded:
    """An estimate with its interval.

    Attributes
    ----------
    value, low, high : float
    error : float
        Standard error before it was widened by the errors of past estimates.
    """

    value: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Departure:
    """How far labels so far are from what the reference expects of them.

    Attributes
    ----------
    level, slope : float
        One step of Newton's towards what the labels say.
    p_value : float
        Chance of labels at least as far off without a change.
    """

    level: float
    slope: float
    p_value: float


@dataclass(frozen=True)
class PastErrors:
    """How estimates whose labels have matured did.

    Attributes
    ----------
    deviations : mapping of str to ndarray of float64
        By measure: realised less estimated value, in standard errors before widening.
    missed : int
        Of them, with log loss or calibration outside its interval.
    """

    deviations: dict[str, Floats]
    missed: int

    @property
    def judged(self) -> int:
        """Estimates that have been judged."""
        return len(self.deviations["log_loss"])

    def reach(self, measure: str, level: float) -> float:
        """Return the standard errors that an interval reaches to either side.

        Student's t, the squared errors of the past beside a prior of as many right ones as
        :data:`PRIOR_ESTIMATES`: intervals become wider than the model says, never narrower.
        """
        from scipy.special import stdtrit

        squares = self.deviations[measure] ** 2
        freedom = PRIOR_ESTIMATES + len(squares)
        inflation = np.sqrt(max(1.0, (PRIOR_ESTIMATES + squares.sum()) / freedom))
        return float(inflation * stdtrit(freedom, (1 + level) / 2))

    def p_value(self, level: float) -> float:
        """Return the chance of so many misses of intervals that keep their level.

        Of two intervals, either is missed twice as often as one, at most.
        """
        from scipy.special import bdtrc

        if not self.missed:
            return 1.0
        return float(bdtrc(self.missed - 1, self.judged, min(1.0, 2 * (1 - level))))


NO_PAST = PastErrors({measure: np.empty(0) for measure in MEASURES}, 0)


def positive_probability(p: Floats, due: Floats) -> Floats:
    """Return the probability that anchors without an engagement so far are positive.

    Parameters
    ----------
    p : ndarray of shape (n,), float64
        Of a positive label, before anything was seen of it.
    due : ndarray of shape (n,), float64
        F: that its label would have arrived.
    """
    return p * (1.0 - due) / (1.0 - p * due)


def fit_reference(
    anchors: Anchors, cohorts: NDArray[np.int64], least_wander: float
) -> Recalibration:
    """Fit level and slope to final labels, and to how far they wander between cohorts.

    Parameters
    ----------
    anchors : Anchors
        With final labels.
    cohorts : ndarray of shape (n,), int64
        Rising: which earlier cohort an anchor is of.
    least_wander : float
        Standard deviation of level and slope between cohorts at least: a few are too few to believe
        that they vary less.

    Returns
    -------
    Recalibration
        Of the next cohort: its covariance holds the wander.
    """
    p = _certain(probabilities_of(anchors.logits))
    weight = p * (1.0 - p)
    centre = float(np.average(anchors.logits, weights=weight))
    prior = Recalibration(centre, np.zeros(2), np.eye(2) / _WEAK_PRECISION)
    fitted = updated(prior, anchors)
    design = fitted.design(anchors.logits)
    p = fitted.probabilities(anchors.logits)
    starts = np.flatnonzero(np.diff(cohorts, prepend=cohorts[0] - 1))
    scores = np.add.reduceat(design * (anchors.engaged - p)[:, None], starts)
    information = np.add.reduceat(design**2 * (p * (1.0 - p))[:, None], starts)
    # Moments: a score's variance is its information and, for the wander, that squared.
    # Where all scores are the same, nothing is known of the slope.
    told = np.maximum(information, _LEAST_INFORMATION)
    beyond = (scores**2 / told).sum(axis=0) - (len(starts) - 1)
    wander = np.maximum(beyond / told.sum(axis=0), least_wander**2)
    covariance = fitted.covariance + np.diag(wander) * (1.0 + 1.0 / len(starts))
    return Recalibration(centre, fitted.shift, covariance)


def updated(prior: Recalibration, anchors: Anchors) -> Recalibration:
    """Return level and slope once the labels so far of some anchors are seen.

    The mode of the posterior, by Fisher's scoring, and the curvature there.

    Parameters
    ----------
    prior : Recalibration
        With a covariance that can be inverted.
    anchors : Anchors
    """
    precision = np.linalg.inv(prior.covariance)
    due = anchors.due()
    doubt = anchors.delay_covariance(_effects_of_due(prior, anchors, due))
    shift, total = prior.shift, precision
    for _ in range(_STEPS):
        score, information = _score(replace(prior, shift=shift), anchors, due)
        # Of a score, as much as is not F's own error.
        kept = np.linalg.solve(information + doubt + _TINY, information).T
        total = kept @ information + precision
        step = np.linalg.solve(total, kept @ score - precision @ (shift - prior.shift))
        longest = float(np.abs(step).max())
        shift = shift + step * min(1.0, _LONGEST_STEP / max(longest, _LONGEST_STEP))
        if longest < 1e-9:
            break
    return Recalibration(prior.centre, shift, np.linalg.inv(total).astype(np.float64))


def departure(reference: Recalibration, anchors: Anchors) -> Departure:
    """Test the labels so far of some anchors against what the reference expects of them.

    Parameters
    ----------
    reference : Recalibration
        From other anchors.
    anchors : Anchors
    """
    from scipy.special import chdtrc

    due = anchors.due()
    score, information = _score(reference, anchors, due)
    variance = (
        information
        + information @ reference.covariance @ information
        + anchors.delay_covariance(_effects_of_due(reference, anchors, due))
    )
    # Labels that could not have come yet, and scores that are all the same, say nothing.
    level, slope = np.linalg.pinv(information, rcond=1e-10, hermitian=True) @ score
    statistic = score @ np.linalg.pinv(variance, rcond=1e-10, hermitian=True) @ score
    return Departure(float(level), float(slope), float(chdtrc(2.0, statistic)))


def estimate(
    anchors: Anchors, belief: Recalibration, past: PastErrors = NO_PAST, level: float = 0.95
) -> dict[str, Bounded]:
    """Estimate every measure of the served scores.

    Parameters
    ----------
    anchors : Anchors
        At least one.
    belief : Recalibration
        What the scores are taken to mean, from :func:`updated`.
    past : PastErrors
    level : float
        Of the intervals.

    Returns
    -------
    dict of str to Bounded
        By :data:`MEASURES`; NaN where the labels cannot define one.
    """
    due = anchors.due()
    # As a loss takes them: clipped.
    logits = logits_of(probabilities_of(anchors.logits))
    served = probabilities_of(logits)
    p = belief.probabilities(anchors.logits)
    waiting = ~anchors.final & ~anchors.engaged
    positive = np.where(waiting, positive_probability(p, due), anchors.engaged.astype(np.float64))
    rows, rate = len(anchors), float(positive.mean())
    loss = float((positive * -np.log(served) + (1 - positive) * -np.log1p(-served)).mean())
    odds = np.log(rate) - np.log1p(-rate) if 0 < rate < 1 else np.nan
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)) if 0 < rate < 1 else np.nan
    values = (loss, loss / entropy, positive.sum() / served.sum())
    # How each measure moves with the label of an anchor.
    moved = np.column_stack(
        (
            -logits / rows,
            (-logits + values[1] * odds) / (rows * entropy),
            np.full(rows, 1.0 / served.sum()),
        )
    )
    moved[~waiting] = 0.0
    by_logit = (1.0 - due) / (1.0 - p * due) ** 2 * p * (1.0 - p)
    by_due = -p * (1.0 - p) / (1.0 - p * due) ** 2
    of_belief = (moved * by_logit[:, None]).T @ belief.design(anchors.logits)
    variance = (
        (moved**2 * (positive * (1.0 - positive))[:, None]).sum(axis=0)
        + np.einsum("kj,jl,kl->k", of_belief, belief.covariance, of_belief)
        + np.diag(anchors.delay_covariance(moved * by_due[:, None]))
    )
    found = {}
    for measure, value, error in zip(MEASURES, values, np.sqrt(variance), strict=True):
        reach = past.reach(measure, level) * error
        found[measure] = Bounded(
            float(value), float(value - reach), float(value + reach), float(error)
        )
    return found


def _score(belief: Recalibration, anchors: Anchors, due: Floats) -> tuple[Floats, Floats]:
    """Return the slope of the log likelihood and Fisher's information, (2,) and (2, 2)."""
    p = belief.probabilities(anchors.logits)
    design = belief.design(anchors.logits)
    silent = (1.0 - p) / (1.0 - p * due)
    score = design.T @ ((anchors.engaged - p * due) * silent)
    information = (design * (p * due * (1.0 - p) * silent)[:, None]).T @ design
    return score, information


def _effects_of_due(belief: Recalibration, anchors: Anchors, due: Floats) -> Floats:
    """Return how the score moves with each anchor's F, on average, (n, 2)."""
    p = belief.probabilities(anchors.logits)
    return belief.design(anchors.logits) * (-p * (1.0 - p) / (1.0 - p * due))[:, None]


def _certain(p: Floats) -> Floats:
    """Keep probabilities from 0 and 1, where nothing could change a belief."""
    return np.clip(p, 1e-9, 1.0 - 1e-9)
