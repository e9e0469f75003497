"""Choosing among candidates on data: blocked folds over hours, and modesty: the simpler wins ties.

Rows of one hour share users, campaigns and weather, so folds and standard errors are over hours,
never over rows. What the candidates are belongs to the modules that fit them.

References
----------
Breiman, Friedman, Olshen, Stone, Classification and Regression Trees, 1984, 3.4.3 (the rule, with
one standard error).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Fitted = Callable[[np.ndarray], np.ndarray]
"""From the inputs of rows to their logits."""

STANDARD_ERRORS = 1.0
"""A simpler candidate is kept while it is not worse than the best by more than this many.

For mixtures, in 240 simulated pairs of experts (four kinds, 1,000 and 4,000 positives, 30 seeds;
the scenes of ``test_ensemble.py``): 0, 0.5, 1 and 1.5 lost more than 0.1 % of log loss to the
better expert of hindsight in 9, 8, 7 and 6 % of them, and gained 0.07, 0.07, 0.06 and 0.05 % on
average."""

MINIMUM_HOURS = 4
"""With fewer hours a standard error over hours means nothing, and the simplest is kept."""


@dataclass(frozen=True)
class Candidate:
    """Something that can be fitted to rows.

    Attributes
    ----------
    name : str
    fit : callable
        ``fit(inputs, labels)`` returns a :data:`Fitted`.
    """

    name: str
    fit: Callable[[np.ndarray, np.ndarray], Fitted]


@dataclass(frozen=True)
class Trial:
    """How a candidate did on hours it was not fitted to.

    Attributes
    ----------
    name : str
    log_loss : float
        Mean over rows, nats; NaN if nothing could be tried.
    excess : float
        Mean log loss above the best candidate's, or the incumbent's of :func:`challenge`.
    excess_error : float
        Standard error of that difference, paired, over hours.
    """

    name: str
    log_loss: float
    excess: float
    excess_error: float


def choose(
    candidates: Sequence[Candidate],
    inputs: np.ndarray,
    labels: np.ndarray,
    hours: np.ndarray,
    folds: int,
    standard_errors: float = STANDARD_ERRORS,
) -> tuple[Candidate, tuple[Trial, ...]]:
    """Return the simplest candidate that is not measurably worse than the best.

    Parameters
    ----------
    candidates : sequence of Candidate
        From the simplest to the most complex.
    inputs : ndarray of shape (n, …)
    labels : ndarray of shape (n,), 0 or 1
    hours : ndarray of shape (n,), int64
        The hour of each row; folds are runs of neighbouring hours.
    folds : int
    standard_errors : float

    Returns
    -------
    chosen : Candidate
        Not fitted: fit it to all rows.
    trials : tuple of Trial
        In the order of the candidates.
    """
    distinct, hour = np.unique(hours, return_inverse=True)
    if len(distinct) < MINIMUM_HOURS or len(candidates) == 1 or not 0 < labels.sum() < len(labels):
        return candidates[0], _untried([c.name for c in candidates])
    signs = np.where(labels == 1, -1.0, 1.0)
    by_hour = np.array(
        [
            np.bincount(
                hour,
                weights=np.logaddexp(0.0, signs * out_of_fold(each, inputs, labels, hours, folds)),
                minlength=len(distinct),
            )
            for each in candidates
        ]
    )
    totals = by_hour.sum(axis=1)
    best = int(np.argmin(totals))
    trials, errors = _against(by_hour, best, [c.name for c in candidates], len(labels))
    kept = [
        place
        for place in range(len(candidates))
        if totals[place] - totals[best] <= standard_errors * errors[place]
    ]
    return candidates[kept[0]], trials


def out_of_fold(
    candidate: Candidate, inputs: np.ndarray, labels: np.ndarray, hours: np.ndarray, folds: int
) -> np.ndarray:
    """Return what a candidate says of each row when it was fitted to the other folds only.

    Parameters
    ----------
    candidate : Candidate
    inputs : ndarray of shape (n, …)
    labels : ndarray of shape (n,), 0 or 1
    hours : ndarray of shape (n,), int64
        The hour of each row; folds are runs of neighbouring hours, as for :func:`choose`.
    folds : int

    Returns
    -------
    ndarray of shape (n,), float64
        Logits. With one hour there is no other fold, and all rows are fitted to all.
    """
    distinct, hour = np.unique(hours, return_inverse=True)
    fold = (np.arange(len(distinct)) * min(folds, len(distinct)) // max(len(distinct), 1))[hour]
    logits = np.empty(len(labels))
    for held in np.unique(fold):
        out = fold == held
        fitting = ~out if len(distinct) > 1 else out
        logits[out] = candidate.fit(inputs[fitting], labels[fitting])(inputs[out])
    return logits


def challenge(
    names: Sequence[str],
    incumbent: int,
    losses: np.ndarray,
    hours: np.ndarray,
    standard_errors: float,
) -> tuple[int, tuple[Trial, ...]]:
    """Return the best of some fitted candidates, or the incumbent unless it is measurably worse.

    Parameters
    ----------
    names : sequence of str, of length k
    incumbent : int
        Place of the one that was chosen before.
    losses : ndarray of shape (k, n), float64
        Of every row under every candidate, nats.
    hours : ndarray of shape (n,), int64
        The hour of each row.
    standard_errors : float

    Returns
    -------
    place : int
        The lowest loss among those that beat the incumbent by more than ``standard_errors`` of the
        paired difference; the incumbent if none does, or there are too few hours to tell.
    trials : tuple of Trial
        In the order of the names.
    """
    distinct, hour = np.unique(hours, return_inverse=True)
    if len(distinct) < MINIMUM_HOURS:
        return incumbent, _untried(names)
    by_hour = np.array(
        [np.bincount(hour, weights=each, minlength=len(distinct)) for each in losses]
    )
    totals = by_hour.sum(axis=1)
    trials, errors = _against(by_hour, incumbent, names, len(hours))
    better = totals[incumbent] - totals > standard_errors * errors
    place = int(np.argmin(np.where(better, totals, np.inf))) if better.any() else incumbent
    return place, trials


def _against(
    by_hour: np.ndarray, reference: int, names: Sequence[str], rows: int
) -> tuple[tuple[Trial, ...], np.ndarray]:
    """Compare summed losses, (k, hours), with those of one candidate, paired by hour."""
    totals = by_hour.sum(axis=1)
    differences = by_hour - by_hour[reference]
    # Of a sum over hours; neighbouring hours are taken as independent.
    errors = np.sqrt(by_hour.shape[1] * differences.var(axis=1, ddof=1))
    trials = tuple(
        Trial(
            name,
            float(totals[place] / rows),
            float((totals[place] - totals[reference]) / rows),
            float(errors[place] / rows),
        )
        for place, name in enumerate(names)
    )
    return trials, errors


def _untried(names: Sequence[str]) -> tuple[Trial, ...]:
    return tuple(Trial(name, float("nan"), 0.0, float("nan")) for name in names)
