r"""Losses of labels that come late, as what one event adds to the gradient of a logit.

Every correction of a stream of copies weighs the two halves of the log loss. With s a logit, f =
σ(s), and an event of some kind,

    loss = -a log f - b log(1 - f),   slope = dloss/ds = b f - a (1 - f),

and a loss is what it says of a and b by kind of event. Both may depend on f itself and on what
other models say, always as numbers: nothing is differentiated through a weight, else the weights
would be lowered instead of the loss. This module holds those formulas, once, in arithmetic that
plain floats, NumPy arrays, JAX tracers and Numba's compiled code all run; 1 - f comes as σ(-s), so
that nothing cancels at large logits. Which events a learner is shown is
``ad_pipeline/examples/strategies.py``, which stream belongs to which loss ``STRATEGY_OF_LOSS``.
Steps, states and links to other heads belong to the learners.

Symbols: p = P(y = 1 | x); w the observation window; c = P(arrives after w | y = 1, x), the
*lateness*; d = p c, estimated as f c, so that d <= f whatever c is; r = P(y = 0 | not positive by
w, x), the *real-negative* probability. Under exact c and r the fixed points, where E[slope] = 0,
are p but for the losses that say otherwise; masses are per anchor.

==============================  ======================================  ==========================
loss                            stream: mass of positives / negatives   reference
==============================  ======================================  ==========================
positive_unlabelled             p / 1                                   Ktena et al. 2019, 3.2
fake_negative_weighted          p / 1                                   the same, 3.3
fake_negative_calibrated        p / 1: f = p / (1 + p), then f/(1-f)    the same, 3.3
fake_negative_weighted_rn       p / 2 - p                               Gu et al. 2021 (public code)
fake_negative_calibrated_rn     p / 2 - p: f = p / 2, then 2 f          Gu et al. 2021 (public code)
es_dfm                          p / 1 - p + d                           Yang et al. 2021, eq. 15
es_dfm_rn                       p / 2 (1 - p) + d                       Gu et al. 2021 (public code)
defer                           2 p - d / 2 (1 - p) + d                 Gu et al. 2021, eq. 9
defuse                          p / 1 - p + d, by kind                  Chen et al. 2022 (DEFUSE)
bi_defuse                       two heads, p = F_in + F_late            Chen et al. 2022 (Bi-DEFUSE)
fsiw                            p - d / 1 - p + d                       Yasui et al. 2020
ulc                             p - d / 1 - p + d                       Wang et al. 2023, eq. 6
hazard                          p / 1 at every age of an ad             docs/adr/0010
delayed_feedback                censored likelihood, two heads          Chapelle 2014, eq. 6 to 9
==============================  ======================================  ==========================

References
----------
Chapelle, Modeling Delayed Feedback in Display Advertising, KDD 2014. Ktena et al., Addressing
Delayed Feedback for Continuous Training with Neural Networks in CTR Prediction, RecSys 2019. Yasui
et al., A Feedback Shift Correction in Predicting Conversion Rates under Delayed Feedback, WWW 2020.
Yang et al., Capturing Delayed Feedback in Conversion Rate Prediction via Elapsed-Time Sampling,
AAAI 2021. Gu et al., Real Negatives Matter: Continuous Training with Real Negatives for Delayed
Feedback Modeling, KDD 2021. Chen et al., Asymptotically Unbiased Estimation for Delayed Feedback
Modeling via Label Correction, WWW 2022. Wang et al., Unbiased Delayed Feedback Label Correction for
Conversion Rate Prediction, KDD 2023. Kiryo et al., Positive-Unlabeled Learning with Non-Negative
Risk Estimator, NeurIPS 2017.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from ad_pipeline.settings import DelayedLoss, StrategyName

CERTAIN = 1e-6
"""Probabilities of other models are held this far from 0 and 1."""

LARGEST_WEIGHT = 20.0
"""Of an inverse probability: fsiw's 1 / (1 - c) has no bound of its own."""

RATES_PER_DAY = (1e-6, 100.0)
"""Hazards of ``delayed_feedback`` are held within: from a label in millennia to one in minutes."""

CAP = 1e-3
"""Calibrated probabilities stay so far below 1: f / (1 - f) exceeds it where f > 1/2, by noise or
where labels have not arrived. A negative there then costs 7 nats, and not the 46 of public code."""

ACCOUNT_EVENTS = 1000.0
"""Events that the non-negative clip looks back on, exponentially weighted."""


class Event(NamedTuple):
    """What a coefficient may depend on: floats, or arrays of one shape.

    Attributes
    ----------
    f, q : float
        σ(s) and σ(-s) of the score, detached.
    positive, late : float
        1 if the row says so, else 0: that the label is 1; that it is so by an arrival after the
        first emission.
    lateness, real_negative : float
        c and r of the row, by the models in force.
    """

    f: Any
    q: Any
    positive: Any
    late: Any
    lateness: Any
    real_negative: Any


Coefficients = Callable[[Event], tuple[Any, Any]]
"""From an event to a and b."""


@register_jitable
def log_loss(event):
    """Return a and b of the plain log loss."""
    return event.positive, 1.0 - event.positive


@register_jitable
def positive_unlabelled(event):
    """Return a positive's -log f + log(1 - f): it takes back the negative that stood for it."""
    return event.positive, 1.0 - 2.0 * event.positive


@register_jitable
def fake_negative_weighted(event):
    """Return the importance weights 1 + f and (1 - f)(1 + f): PU's slope times 1 - f^2."""
    weight = 1.0 + event.f
    return event.positive * weight, (1.0 - event.positive) * event.q * weight


@register_jitable
def fake_negative_weighted_rn(event):
    """Return the same where real negatives come a second time."""
    return 2.0 * event.positive, (1.0 - event.positive) * 2.0 * event.q / (1.0 + event.q)


@register_jitable
def es_dfm(event):
    """Return 1 + d for positives, (1 + d) r for observed negatives."""
    weight = 1.0 + event.f * event.lateness
    return event.positive * weight, (1.0 - event.positive) * weight * event.real_negative


@register_jitable
def es_dfm_rn(event):
    """Return the same where real negatives come a second time."""
    negatives = 2.0 * event.q + event.f * event.lateness
    weight = event.f + negatives
    return event.positive * weight, (1.0 - event.positive) * weight * event.q / negatives


@register_jitable
def defer(event):
    """Return p / (p - d/2) and (1 - p) / (1 - p + d/2): each anchor is there twice."""
    half = 0.5 * event.lateness
    return (
        event.positive / (1.0 - half),
        (1.0 - event.positive) * event.q / (event.q + half * event.f),
    )


@register_jitable
def defuse(event):
    """Return weights by kind: a late positive's is 1, and observed negatives hide positives."""
    d = event.f * event.lateness
    hidden = 1.0 - event.real_negative
    negative = 1.0 - event.positive
    a = event.positive * (1.0 + d * (1.0 - event.late)) + negative * hidden * d
    return a, negative * event.real_negative * (1.0 + d)


@register_jitable
def in_window(event):
    """Return Bi-DEFUSE's first head: log loss of what is known when the window is over."""
    return event.positive * (1.0 - event.late), 1.0 - event.positive


@register_jitable
def out_of_window(event):
    """Return Bi-DEFUSE's second head: late positives against everything, weighted by itself."""
    squared = event.f * event.f
    first = 1.0 - event.late
    return event.late + first * squared, first * event.q * (1.0 + event.f)


@register_jitable
def fsiw(event):
    """Return 1 / P(arrived by w | y = 1) for positives, r for observed negatives."""
    arrived, least = 1.0 - event.lateness, 1.0 / LARGEST_WEIGHT
    larger = 0.5 * (arrived + least + abs(arrived - least))
    return event.positive / larger, (1.0 - event.positive) * event.real_negative


@register_jitable
def ulc(event):
    """Return the log loss of a corrected label: of an observed negative, 1 - r."""
    negative = 1.0 - event.positive
    return event.positive + negative * (1.0 - event.real_negative), negative * event.real_negative


COEFFICIENTS: dict[DelayedLoss, Coefficients] = {
    "positive_unlabelled": positive_unlabelled,
    "fake_negative_weighted": fake_negative_weighted,
    "fake_negative_weighted_rn": fake_negative_weighted_rn,
    "fake_negative_calibrated": log_loss,
    "fake_negative_calibrated_rn": log_loss,
    "es_dfm": es_dfm,
    "es_dfm_rn": es_dfm_rn,
    "defer": defer,
    "defuse": defuse,
    "fsiw": fsiw,
    "ulc": ulc,
    "hazard": fake_negative_weighted,
}
"""Of the losses with one head."""

TWO_HEADED: tuple[DelayedLoss, ...] = ("bi_defuse", "delayed_feedback")


@register_jitable
def slope_of(a, b, f, q):
    """Return dloss/ds of an event's a and b."""
    return b * f - a * q


class Censored(NamedTuple):
    """What an event tells of a delay: floats, or arrays of one shape.

    Attributes
    ----------
    positive, late, confirmed : float
        1 if the row says so, else 0; confirmed: that it tells of maturity.
    waited, delay, horizon : float
        Days: w, the positive's h (0 without one), and H = window + lateness.
    """

    positive: Any
    late: Any
    confirmed: Any
    waited: Any
    delay: Any
    horizon: Any


@register_jitable
def delayed_feedback_slopes(f, q, rate, told, unseen_wait, unseen_horizon):
    r"""Return the slopes of Chapelle's likelihood by the logit and by the log of the hazard.

    An anchor converts with probability f after an exponential delay of hazard λ. What an event adds
    is the log-likelihood of what it tells beyond what the anchor's earlier event told, so that the
    copies of one anchor sum to its likelihood, once (with S(t) = 1 - f + f e^{-λ t}):

        positive by the window       -log f - log λ + λ h
        nothing by the window        -log S(w)
        positive, after the window   -log f - log λ + λ h + log S(w)
        nothing by maturity          -log S(H) + log S(w)

    Parameters
    ----------
    f, q : float
        σ(s) and σ(-s) of the first head.
    rate : float
        λ per day, within :data:`RATES_PER_DAY`.
    told : Censored
    unseen_wait, unseen_horizon : float
        e^{-λ w} and e^{-λ H}: whoever calls knows which exponential its numbers take.

    Returns
    -------
    by_score, by_log_rate : float
    """
    first = 1.0 - told.positive
    # Of -log S(t): by s, f q (1 - e^{-λt}) / S; by log λ, f λ t e^{-λt} / S.
    by_wait = q + f * unseen_wait
    wait_by_score = f * q * (1.0 - unseen_wait) / by_wait
    wait_by_rate = f * rate * told.waited * unseen_wait / by_wait
    by_horizon = q + f * unseen_horizon
    horizon_by_score = f * q * (1.0 - unseen_horizon) / by_horizon
    horizon_by_rate = f * rate * told.horizon * unseen_horizon / by_horizon
    # A second event takes back what the first one told.
    second = told.late + told.confirmed
    sign = first * (1.0 - told.confirmed) - second
    by_score = -told.positive * q + first * told.confirmed * horizon_by_score + sign * wait_by_score
    by_rate = (
        told.positive * (rate * told.delay - 1.0)
        + first * told.confirmed * horizon_by_rate
        + sign * wait_by_rate
    )
    return by_score, by_rate


def stream_log_odds(log_odds: np.ndarray, shown: StrategyName) -> np.ndarray:
    """Return the log odds of a positive among the rows that a strategy shows, of each rate p.

    In a stream with one negative for every anchor it is log p, since b = p / (1 + p); in the others
    it is that of p, or near it where positives rarely come after the window.

    Parameters
    ----------
    log_odds : ndarray of shape (n,), float64
        Of p.
    shown : str
    """
    at_once = shown in ("immediate", "immediate_confirmed", "matched")
    return -np.logaddexp(0.0, -log_odds) if at_once else log_odds


@register_jitable
def calibrated_log_odds(log_p):
    """Return the log odds of a probability given by its logarithm, held below 1 by :data:`CAP`.

    Fake-negative calibration is p = f / (1 - f) = e^s, so its logarithm is the score itself (Ktena
    et al., section 3.3); where f > 1/2 that is no probability, and public code that does not cap it
    pays 46 nats for one negative.
    """
    capped = min(log_p, math.log1p(-CAP))
    return capped - math.log(-math.expm1(capped))
