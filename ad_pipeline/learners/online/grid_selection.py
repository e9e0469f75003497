r"""Which configuration of the grid serves: judged each hour on matured labels, with modesty.

Progressive validation: a configuration is judged by the scores it gave at serving time, on labels
that have matured since, never by what it would say now. Beside the sum of the losses stand sums
under Poisson(1) weights, replicates of an online bootstrap (Oza and Russell): each row's weight in
a replicate is a hash of the row, so a re-run gives the same replicates and configurations are
compared on the same ones. Summed over the hours looked back, the replicates of the *difference*
from the configuration that serves make its interval.

A configuration replaces the one that serves only if the whole interval says that it is better;
among several, the one with the lowest loss. Comparing K - 1 challengers each hour makes a false
switch likelier than the level says, so the level is divided among the challengers (Bonferroni).
What is learnt, and the tables, belong to :mod:`.online_hours`; this module is arithmetic.

References
----------
Blum, Kalai and Langford, Beating the hold-out, COLT 1999 (progressive validation). Oza and Russell,
Online bagging and boosting, AISTATS 2001. McMahan et al., KDD 2013, section 5.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ad_pipeline.learners.ensemble.logistic import row_losses
from ad_pipeline.settings import Configuration

REPLICATES = 100

MINIMUM_POSITIVES = 100
"""Over the hours looked back; fewer cannot tell configurations apart."""


@dataclass(frozen=True)
class HourLosses:
    """The losses of the rows that matured in one hour.

    Attributes
    ----------
    rows, positives : int
    losses : ndarray of shape (K,), float64
        Sums over rows, nats.
    excess : ndarray of shape (K, replicates), float64
        Weighted sums of the loss less that of configuration 0, nats.
    """

    rows: int
    positives: int
    losses: np.ndarray
    excess: np.ndarray


@dataclass(frozen=True)
class Judged:
    """A configuration beside the one that served.

    Attributes
    ----------
    excess, low, high : float
        Mean loss above that of the one that served, with its interval, nats; NaN if there was
        nothing to compare.
    reason : str
    """

    excess: float
    low: float
    high: float
    reason: str


def configuration_names(configurations: Sequence[Configuration]) -> list[str]:
    """Return for people what each configuration has that the first has not."""
    first = configurations[0].model_dump()
    names = ["the settings"]
    for each in configurations[1:]:
        changed = [
            f"{key} {value}" for key, value in each.model_dump().items() if value != first[key]
        ]
        names.append(", ".join(changed) or "the settings again")
    return names


def poisson_weights(draws: np.ndarray, replicates: int = REPLICATES) -> np.ndarray:
    """Return weights of mean and variance 1, one a row and replicate.

    Parameters
    ----------
    draws : ndarray of shape (n,), uint64
        A hash of each row.
    replicates : int

    Returns
    -------
    ndarray of shape (n, replicates), uint8
    """
    # The quantiles of Poisson(1) as thresholds on 32 bits; beyond 8 lies 1e-6 of it.
    mass = np.exp(-1.0) / np.cumprod(np.concatenate(([1.0], np.arange(1.0, 9.0))))
    thresholds = (np.cumsum(mass) * 2.0**32).astype(np.uint64)
    with np.errstate(over="ignore"):
        steps = np.arange(1, replicates + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = draws[:, np.newaxis] + steps
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.searchsorted(thresholds, mixed >> np.uint64(32), side="right").astype(np.uint8)


def hour_losses(logits: np.ndarray, labels: np.ndarray, draws: np.ndarray) -> HourLosses:
    """Return the losses of the rows of one hour.

    Parameters
    ----------
    logits : ndarray of shape (n, K), float64
        Given at serving time.
    labels : ndarray of shape (n,), 0 or 1
        Matured.
    draws : ndarray of shape (n,), uint64
        A hash of each row: it makes the replicates.
    """
    count = logits.shape[1]
    nothing = np.zeros((count, REPLICATES if count > 1 else 0))
    if not len(labels):
        return HourLosses(0, 0, np.zeros(count), nothing)
    losses = np.column_stack([row_losses(logits[:, k], labels) for k in range(count)])
    if count == 1:  # nothing to compare with, so nothing to draw
        return HourLosses(len(labels), int(labels.sum()), losses[:, 0].sum(keepdims=True), nothing)
    excess = losses - losses[:, :1]
    weights = poisson_weights(draws).astype(np.float64)
    return HourLosses(len(labels), int(labels.sum()), losses.sum(axis=0), excess.T @ weights)


def choose_configuration(
    hours: Sequence[HourLosses], serving: int, level: float
) -> tuple[int, list[Judged]]:
    """Return the configuration that serves next.

    Parameters
    ----------
    hours : sequence of HourLosses
        Those looked back, of the same grid.
    serving : int
        The configuration that serves now.
    level : float
        Of the interval, over all challengers together.

    Returns
    -------
    chosen : int
    judged : list of Judged
        Of every configuration, in the order of the grid.
    """
    rows = sum(hour.rows for hour in hours)
    positives = sum(hour.positives for hour in hours)
    count = len(hours[0].losses) if hours else 1
    if count == 1:
        return serving, [Judged(np.nan, np.nan, np.nan, "the only one")]
    few = f"{positives} positives have matured, {MINIMUM_POSITIVES} needed"
    if min(positives, rows - positives) < MINIMUM_POSITIVES:
        return serving, [Judged(np.nan, np.nan, np.nan, few)] * count
    losses = np.sum([hour.losses for hour in hours], axis=0) / rows
    replicates = np.sum([hour.excess for hour in hours], axis=0) / rows
    tail = (1.0 - level) / 2.0 / (count - 1)
    against = replicates - replicates[serving]
    # Few replicates have no far quantiles: the spread of all of them, taken as normal, has.
    spread = against.std(axis=1, ddof=1) * _normal_quantile(1.0 - tail)
    excess = losses - losses[serving]
    better = excess + spread < 0.0
    chosen = int(np.argmin(np.where(better, losses, np.inf))) if better.any() else serving
    judged = []
    for place in range(count):
        if place == serving:
            reason = "goes on" if chosen == serving else "another is better beyond its interval"
        elif place == chosen:
            reason = "better than the one that served, beyond its interval"
        else:
            reason = "another is better still" if better[place] else "not better beyond doubt"
        low, high = excess[place] - spread[place], excess[place] + spread[place]
        judged.append(Judged(float(excess[place]), float(low), float(high), reason))
    return chosen, judged


def _normal_quantile(share: float) -> float:
    return NormalDist().inv_cdf(share)
