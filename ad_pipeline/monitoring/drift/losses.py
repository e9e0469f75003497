r"""Whether what is being predicted has changed: River's detector on matured loss and calibration.

Two questions, kept apart because their remedies differ. **Calibration**: do as many positives come
as were predicted? Per group of rows, :math:`\sum (y - p) / \sqrt{\sum p (1 - p)}`. **Concept**: are
the scores wrong in a way that no shift of all of them repairs? The rows' log odds are first shifted
so that the predicted positives are those that came; with the shifted p, log odds z, and loss l,

.. math:: \sum (l - E_p[l]) \,/\, \sqrt{\mathrm{Var}} = -\sum z (y - p) \,/\, \sqrt{\mathrm{Var}},

which rises when high scores hold less than they say. Both are about 0, give or take 1, under a
model that is right, and about a constant under one that is wrong as it always was. Page and
Hinkley's test, River's, looks for a rise of their absolute value: scores that get better ring no
bell. Series are divided by their own spread where that is more than 1, since hours of a market
differ by more than draws do.

A detector has no state of its own: it is replayed over a bounded window of the tables, so that a
re-run of the hour comes to the same verdict.

References
----------
Page, Continuous inspection schemes, Biometrika 41, 1954. Montiel et al., River: machine learning
for streaming data in Python, JMLR 22, 2021.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.settings import DriftActionSettings

LEAST_INFORMATION = 20.0
"""Sum of p (1 - p) that a point of a series has at least: hours are put together until then."""

_NEWTON_STEPS = 12
_SPREAD_OF_MAD = 1.4826
"""Median absolute deviation to standard deviation, of a normal distribution."""


@dataclass(frozen=True)
class Deviations:
    """How far scores were off, point by point in time.

    Attributes
    ----------
    until_us : ndarray of shape (points,), int64
        End of the last hour of each point.
    calibration, concept : ndarray of shape (points,), float64
        Standard deviations.
    ratio : ndarray of shape (points,), float64
        Observed over predicted positives.
    """

    until_us: NDArray[np.int64]
    calibration: NDArray[np.float64]
    concept: NDArray[np.float64]
    ratio: NDArray[np.float64]


@dataclass(frozen=True)
class Ring:
    """What the detector found in a series.

    Attributes
    ----------
    change : float
        Mean absolute value of the points of the last ``recent_hours`` less that of those before,
        standard deviations; 0 where either is missing.
    rang_us : int or None
        End of the hours after which it rang last; None if it never did.
    """

    change: float
    rang_us: int | None


def deviations(
    matured_us: NDArray[np.int64], labels: NDArray[np.int8], logits: NDArray[np.float64]
) -> Deviations:
    """Return how far scores were off by the hour in which labels matured.

    Parameters
    ----------
    matured_us : ndarray of shape (n,), int64
        Rising.
    labels : ndarray of shape (n,), 0 or 1
    logits : ndarray of shape (n,), float64
        As served.
    """
    hours_us = np.asarray(matured_us) // HOUR_US * HOUR_US
    starts = np.flatnonzero(np.diff(hours_us, prepend=-1))
    p = 1.0 / (1.0 + np.exp(-logits))
    information = np.add.reduceat(p * (1 - p), starts) if len(starts) else np.empty(0)
    until, calibration, concept, ratio = [], [], [], []
    first, gathered = 0, 0.0
    for place, start in enumerate(starts.tolist()):
        end = int(starts[place + 1]) if place + 1 < len(starts) else len(hours_us)
        gathered += float(information[place])
        if gathered < LEAST_INFORMATION:
            continue
        rows = slice(first, end)
        until.append(int(hours_us[start]) + HOUR_US)
        observed, predicted = float(labels[rows].sum()), float(p[rows].sum())
        calibration.append((observed - predicted) / np.sqrt(gathered))
        ratio.append(observed / predicted)
        concept.append(_loss_beyond_a_shift(labels[rows], logits[rows]))
        first, gathered = end, 0.0
    return Deviations(
        np.array(until, dtype=np.int64), np.array(calibration), np.array(concept), np.array(ratio)
    )


def page_hinkley(
    until_us: NDArray[np.int64],
    series: NDArray[np.float64],
    settings: DriftActionSettings,
    recent_hours: int,
) -> Ring:
    """Replay River's Page-Hinkley test over a series.

    Parameters
    ----------
    until_us : ndarray of shape (points,), int64
    series : ndarray of shape (points,), float64
    settings : DriftActionSettings
        ``warm_up_hours``, ``tolerated_deviation`` and ``loss_threshold`` are used.
    recent_hours : int
        Of ``change`` alone; the test knows no window.

    Returns
    -------
    Ring
        Without points nothing rings.
    """
    from river.drift import PageHinkley

    test = PageHinkley(
        min_instances=settings.warm_up_hours,
        delta=settings.tolerated_deviation,
        threshold=settings.loss_threshold,
        alpha=1.0,
        mode="up",
    )
    rang_us, values = None, np.abs(scaled(series))
    for moment, value in zip(until_us.tolist(), values.tolist(), strict=True):
        test.update(value)
        if test.drift_detected:
            rang_us = moment
    recent = until_us > until_us.max(initial=0) - recent_hours * HOUR_US
    if not recent.any() or recent.all():
        return Ring(0.0, rang_us)
    return Ring(float(values[recent].mean() - values[~recent].mean()), rang_us)


def scaled(series: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a series divided by its spread, if that is more than 1 (median absolute deviation).

    Of differences between neighbours, so that a change in the middle does not hide itself.
    """
    values = np.asarray(series, dtype=np.float64)
    if len(values) < 3:
        return values
    steps = np.diff(values)
    spread = _SPREAD_OF_MAD * float(np.median(np.abs(steps - np.median(steps)))) / np.sqrt(2)
    return values / max(spread, 1.0)


def _loss_beyond_a_shift(labels: NDArray[np.int8], logits: NDArray[np.float64]) -> float:
    observed = float(labels.sum())
    if not 0 < observed < len(labels):
        return 0.0
    shift = 0.0
    for _ in range(_NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-(logits + shift)))
        step = (observed - float(p.sum())) / float((p * (1 - p)).sum())
        # Far from the answer the tangent points beyond it.
        shift += min(max(step, -1.0), 1.0)
    z = logits + shift
    p = 1.0 / (1.0 + np.exp(-z))
    weight = p * (1 - p)
    # The shift was fitted to the same rows: what varies is z about its weighted mean.
    centred = z - float((weight * z).sum() / weight.sum())
    variance = float((weight * np.square(centred)).sum())
    return float(-(centred * (labels - p)).sum() / np.sqrt(variance)) if variance > 0 else 0.0
