"""Where the losses of late labels have their zero, on streams given by their masses.

A stream is what it holds per anchor and not a draw, so a formula is tested and no learner: p is the
rate, c the share of positives that come after the window, d = p c. Beside our losses stand the
variants that public code uses instead; whoever tests ours has them to fail the same test. Both the
study of late labels and the tests of the losses read this; draws and learners stay there.

References
----------
The public code of ES-DFM, DEFER, DEFUSE and NetCVR; the papers stand in
:mod:`ad_pipeline.learners.delayed.losses`.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from ad_pipeline.learners.delayed import losses
from ad_pipeline.learners.delayed.losses import COEFFICIENTS, Coefficients, Event
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.monitoring.late_labels.arms import Arm
from ad_pipeline.monitoring.late_labels.prequential import Learners
from ad_pipeline.settings import STRATEGY_OF_LOSS, DelayedLoss, Objective, StrategyName

RATES, LATENESS = (0.01, 0.05, 0.227, 0.5), (0.2, 0.6)
GRID = [(p, c) for p in RATES for c in LATENESS]

Kind = tuple[int, int, int]
"""positive, late, confirmed"""
NEGATIVE, IN_TIME, LATE, REAL, REPEATED = (0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1), (1, 0, 1)

WITHIN = 0.02
"""Relative error that a fixed point may have."""


def masses(shown: StrategyName, p: float, c: float) -> dict[Kind, float]:
    """Return how much of each kind a stream holds per anchor."""
    d = p * c
    streams: dict[StrategyName, dict[Kind, float]] = {
        "immediate": {NEGATIVE: 1, LATE: p},
        "immediate_confirmed": {NEGATIVE: 1, LATE: p, REAL: 1 - p},
        "windowed": {NEGATIVE: 1 - p + d, IN_TIME: p - d, LATE: d},
        "windowed_confirmed": {NEGATIVE: 1 - p + d, IN_TIME: p - d, LATE: d, REAL: 1 - p},
        "two_copies": {
            NEGATIVE: 1 - p + d, IN_TIME: p - d, LATE: d, REAL: 1 - p, REPEATED: p - d,
        },
        "wait_observation": {NEGATIVE: 1 - p + d, IN_TIME: p - d},
        "wait_maturity": {REAL: 1 - p, REPEATED: p},
        "matched": {NEGATIVE: 1, LATE: p},
    }  # fmt: skip
    return streams[shown]


def real_negative(p: float, c: float) -> float:
    """Return P(y = 0 | not positive by the window)."""
    return (1 - p) / (1 - p + p * c)


def sigmoid(score: float) -> float:
    """Return the logistic function; 0 where it would underflow."""
    return 1 / (1 + math.exp(-score)) if score > -700 else 0.0


def expected_slope(
    score: float,
    coefficients: Coefficients,
    stream: Mapping[Kind, float],
    lateness: float,
    negative: float,
) -> float:
    """Return E[dloss/ds] per anchor of a stream at a score, with both models of delay given."""
    f, q = sigmoid(score), sigmoid(-score)
    total = 0.0
    for (positive, late, _), mass in stream.items():
        a, b = coefficients(Event(f, q, float(positive), float(late), lateness, negative))
        total += mass * losses.slope_of(a, b, f, q)
    return total


def fixed_point(
    coefficients: Coefficients,
    shown: StrategyName,
    p: float,
    c: float,
    *,
    lateness: float | None = None,
    negative: float | None = None,
) -> float:
    """Return f where the expected slope is 0, by bisection.

    Parameters
    ----------
    coefficients : callable
    shown : str
        The stream.
    p, c : float
    lateness, negative : float, optional
        What the models of delay say; the truth if left out.

    Raises
    ------
    ValueError
        If there is none between log odds of -15 and 8: the loss runs away.
    """
    from scipy.optimize import root_scalar

    stream = masses(shown, p, c)
    found = root_scalar(
        lambda s: expected_slope(
            s,
            coefficients,
            stream,
            c if lateness is None else lateness,
            real_negative(p, c) if negative is None else negative,
        ),
        bracket=(-15, 8),
        xtol=1e-12,
    )
    return sigmoid(float(found.root))


def rate_of(loss: DelayedLoss, p: float, c: float) -> float:
    """Return the rate that a loss says at its fixed point on its own stream."""
    shown = STRATEGY_OF_LOSS[loss]
    if loss == "bi_defuse":
        return sum(
            fixed_point(head, shown, p, c) for head in (losses.in_window, losses.out_of_window)
        )
    found = fixed_point(COEFFICIENTS[loss], shown, p, c)
    if loss == "fake_negative_calibrated":
        return sigmoid(losses.calibrated_log_odds(math.log(found / (1 - found))))
    return 2 * found if loss == "fake_negative_calibrated_rn" else found


def largest_error(rate: Callable[[float, float], float]) -> float:
    """Return the largest relative error of a rate found from p and c over :data:`GRID`.

    It is infinite where there is none to find.
    """
    errors = []
    for p, c in GRID:
        try:
            errors.append(abs(rate(p, c) / p - 1))
        except ValueError:
            errors.append(math.inf)
    return max(errors)


# --- what public code does instead ---------------------------------------------------------------


def defuse_as_coded(event: Event) -> tuple[float, float]:
    """Weigh as ychen216/DEFUSE and NetCVR: every positive by (1 + d) + 1, of any kind."""
    d, hidden = event.f * event.lateness, 1 - event.real_negative
    positive, negative = event.positive, 1 - event.positive
    return positive * (2 + d) + negative * hidden * d, negative * (1 - hidden) * (1 + d)


def defer_as_coded(event: Event) -> tuple[float, float]:
    """Weigh as the baseline of ychen216/DEFUSE: 2 (2 - c) for 2 / (2 - c), and c / 2 for d / 2."""
    c, positive = event.lateness, event.positive
    negative = (1 - positive) * event.q / (event.q + 0.5 * c)
    return positive * 2 * (2 - c), negative


def defer_clamped_from_below(event: Event) -> tuple[float, float]:
    """Weigh as NetCVR: p / (p - d / 2) with an independent estimate of d, here above 2 p."""
    d = 0.5
    positive, negative = event.positive, 1 - event.positive
    return positive * max(event.f / (event.f - d / 2), 1e-6), negative * event.q / (event.q + d / 2)


def elapsed_over_a_quarter(event: Event) -> tuple[float, float]:
    """Weigh as a public "FNW": negatives by e / (e + 0.25), here an hour after serving."""
    return event.positive * (1 + event.f), (1 - event.positive) * 1 / (1 + 0.25)


def fixed_decay(event: Event) -> tuple[float, float]:
    """Weigh as another: negatives by 1 - exp(-t / 20), here a minute after serving."""
    return event.positive * (1 + event.f), (1 - event.positive) * (1 - math.exp(-1 / 20))


DEFECTS: dict[str, tuple[Coefficients, StrategyName]] = {
    "DEFUSE as coded": (defuse_as_coded, "windowed"),
    "DEFER as coded": (defer_as_coded, "two_copies"),
    "DEFER clamped from below": (defer_clamped_from_below, "two_copies"),
    "FNW with e / (e + 0.25)": (elapsed_over_a_quarter, "immediate"),
    "FNW with 1 - exp(-t / 20)": (fixed_decay, "immediate"),
    "log loss, immediate": (losses.log_loss, "immediate"),
    "log loss, windowed": (losses.log_loss, "windowed"),
    "ES-DFM, windowed_confirmed": (losses.es_dfm, "windowed_confirmed"),
    "DEFER, windowed": (losses.defer, "windowed"),
    "FNW, immediate_confirmed": (losses.fake_negative_weighted, "immediate_confirmed"),
    "FSIW, windowed": (losses.fsiw, "windowed"),
    "ULC, windowed": (losses.ulc, "windowed"),
}
"""Variants of public code, then right losses on streams that they do not correct."""


# --- bursts --------------------------------------------------------------------------------------


def largest_logit(learners: Learners, objective: Objective, *, in_bursts: bool) -> float:
    """Return the largest logit of a learner of 10,500 rows three times, 500 of them positive.

    Parameters
    ----------
    learners : Learners
        Of rows with one slot.
    objective : Objective
    in_bursts : bool
        Positives come after the negatives, as from a log that stood still; else evenly among them.
    """
    negatives, positives = 10_000, 500
    labels = np.repeat([0.0, 1.0], [negatives, positives])
    if not in_bursts:
        labels = np.tile(np.repeat([0.0, 1.0], [negatives // positives, 1]), positives)
    learner = learners.continued(learners.fresh(0), [Arm("bursts", "", objective=objective)], 0)
    largest = -math.inf
    for _ in range(3):
        for part in (slice(0, negatives), slice(negatives, None)):
            slots = np.zeros((len(labels[part]), 1), np.uint32)
            told = np.zeros((len(slots), kernel.N_OUTCOMES))
            learner.learn(slots, labels[part], np.ones(len(slots)), told)
            largest = max(largest, float(learner.logits(slots[:1]).max()))
    return largest
