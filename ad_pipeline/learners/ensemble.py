"""The ensemble: experts mixed in logit space on matured predictions, then calibrated.

Its inputs are the logits that each expert gave *at serving time*, never a re-score. Without data
that say otherwise it is the average of the logits: log loss is convex in the logit, so the average
loses at most the mean of what the experts lose. Another mixture, or one expert alone, is taken
where the data show that it is better. Between maturities the newest rows may overrule that choice,
by the loss of :mod:`.provisional`. What can be applied needs NumPy and Numba only.

References
----------
Wolpert, Stacked generalization, Neural Networks 5, 1992. Breiman, Stacked regressions, Machine
Learning 24, 1996 (non-negative weights).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numba import njit

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.calibration import Calibration, fit_calibration
from ad_pipeline.learners.logistic import fit_logistic, row_losses
from ad_pipeline.learners.provisional import (
    ENOUGH_POSITIVES,
    STANDARD_ERRORS,
    ProvisionalRows,
    corrected_losses,
)
from ad_pipeline.learners.selection import (
    MINIMUM_HOURS,
    Candidate,
    Fitted,
    Trial,
    challenge,
    choose,
)
from ad_pipeline.settings import EnsembleSettings

STACKING_PRIOR_SD = 0.3
"""Of stacked weights around the average, and of the intercept around 0."""

MINIMUM_POSITIVES = 100
"""An expert whose predictions meet fewer positives before the test range is left out."""


@dataclass(frozen=True)
class Range:
    """Hours of maturity, ``[start_us, end_us)``, microseconds since the epoch."""

    start_us: int
    end_us: int

    def holds(self, matured_us: np.ndarray) -> np.ndarray:
        """Return which rows matured in the range, bool (n,)."""
        return (matured_us >= self.start_us) & (matured_us < self.end_us)


@dataclass(frozen=True)
class Ranges:
    """Three disjoint ranges of maturity, one behind the other; the test range fits nothing."""

    fit: Range
    calibration: Range
    test: Range

    def to_json(self) -> dict[str, list[int]]:
        """Return the bounds by name."""
        return {
            name: [part.start_us, part.end_us]
            for name, part in (
                ("fit", self.fit),
                ("calibration", self.calibration),
                ("test", self.test),
            )
        }


def split_ranges(hours: np.ndarray, settings: EnsembleSettings) -> Ranges:
    """Split matured hours by the shares of the settings.

    Parameters
    ----------
    hours : ndarray of shape (n,), int64
        ``matured_us`` of the rows, microseconds; only the set of their hours matters.
    settings : EnsembleSettings

    Raises
    ------
    ValueError
        If there are fewer than three hours, or the shares leave nothing to test on.
    """
    distinct = np.unique(hours - hours % HOUR_US)
    if len(distinct) < 3:
        raise ValueError(f"{len(distinct)} matured hours cannot be split into three ranges")
    if settings.fit_share + settings.calibration_share >= 1:
        raise ValueError(
            "settings.ensemble.fit_share and calibration_share leave no hours for the test range; "
            "lower one of them"
        )
    first = min(max(1, round(len(distinct) * settings.fit_share)), len(distinct) - 2)
    both = settings.fit_share + settings.calibration_share
    second = min(max(first + 1, round(len(distinct) * both)), len(distinct) - 1)
    bounds = [int(distinct[0]), int(distinct[first]), int(distinct[second])]
    end = int(distinct[-1]) + HOUR_US
    return Ranges(Range(bounds[0], bounds[1]), Range(bounds[1], bounds[2]), Range(bounds[2], end))


@dataclass(frozen=True)
class Ensemble:
    """A mixture of experts and its calibration.

    Attributes
    ----------
    kind : str
        An expert's name, ``"average"`` or ``"stacked"``.
    experts : tuple of str
        Those that the mixture reads, in the order of ``weights``.
    weights : tuple of float
    intercept : float
    calibration : Calibration
    ranges : dict
        Bounds of the fit, calibration and test ranges, microseconds.
    facts : dict
        For people: rows and positives by range, trials of mixtures and calibrations, experts left
        out and why, what the provisional rows said.
    """

    kind: str
    experts: tuple[str, ...]
    weights: tuple[float, ...]
    intercept: float
    calibration: Calibration
    ranges: dict[str, list[int]]
    facts: dict[str, Any]

    def mix(self, logits: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the logit before calibration, float64 (n,)."""
        return _mixed(_matrix(logits, self.experts), self.weights, self.intercept)

    def apply(self, logits: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the probability of every row; one row gives the bits it gives among many.

        Parameters
        ----------
        logits : mapping of str to ndarray of shape (n,), float64
            By expert; those that the mixture does not read may be left out.

        Returns
        -------
        ndarray of shape (n,), float64
            NaN where a logit is.

        Raises
        ------
        KeyError
            If an expert that the mixture reads is missing.
        """
        return _probabilities(self.calibration.apply(self.mix(logits)))

    def to_json(self) -> dict[str, Any]:
        """Return the ensemble as JSON for a bundle's manifest."""
        return {
            "kind": self.kind,
            "experts": list(self.experts),
            "weights": list(self.weights),
            "intercept": self.intercept,
            "calibration": self.calibration.to_json(),
            "ranges": self.ranges,
            "facts": self.facts,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Return the ensemble of :meth:`to_json`."""
        return cls(
            kind=tree["kind"],
            experts=tuple(tree["experts"]),
            weights=tuple(tree["weights"]),
            intercept=tree["intercept"],
            calibration=Calibration.from_json(tree["calibration"]),
            ranges=dict(tree["ranges"]),
            facts=dict(tree["facts"]),
        )


def mixed_probabilities(
    ensemble: Ensemble | None, logits: Mapping[str, np.ndarray], alone: str
) -> np.ndarray:
    """Return an ensemble's probabilities, or one expert's own where there is no mixture to apply.

    Parameters
    ----------
    ensemble : Ensemble or None
        None before enough rows have matured to fit one.
    logits : mapping of str to ndarray of shape (n,), float64
        By expert.
    alone : str
        The expert that speaks, not calibrated, if there is no ensemble or it reads an expert that
        has no logits.

    Returns
    -------
    ndarray of shape (n,), float64
    """
    if ensemble is not None and set(ensemble.experts) <= set(logits):
        return ensemble.apply(logits)
    return _probabilities(logits[alone])


def fit_ensemble(
    logits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    hours: np.ndarray,
    settings: EnsembleSettings,
    provisional: ProvisionalRows | None = None,
) -> Ensemble:
    """Choose and fit a mixture on the fit range, then a calibration on the calibration range.

    Candidates, from the one that needs least data: the average of the logits, the best expert
    alone, and a stack (non-negative weights and an intercept, shrunk towards the average). Rows
    that an expert did not score (NaN: it did not exist yet) are left out of the comparison; an
    expert with fewer than :data:`MINIMUM_POSITIVES` positives before the test range is left out
    instead.

    With provisional rows, the fitted mixtures and every expert alone are compared on them too, by
    corrected loss, paired by serving hour: one that is measurably better there replaces the choice,
    and is what is calibrated. Nothing is fitted to them.

    Parameters
    ----------
    logits : mapping of str to ndarray of shape (n,), float64
        By expert, given at serving time; NaN where the expert gave none.
    labels : ndarray of shape (n,), 0 or 1
        Matured.
    hours : ndarray of shape (n,), int64
        ``matured_us`` of each row, microseconds.
    settings : EnsembleSettings
    provisional : ProvisionalRows, optional
        Rows that have not matured, so none of those above; None compares nothing.

    Raises
    ------
    KeyError
        If the provisional rows lack an expert.
    ValueError
        If no expert scored any row, or :func:`split_ranges` refuses.
    """
    ranges = split_ranges(hours, settings)
    in_fit = ranges.fit.holds(hours)
    before_test = in_fit | ranges.calibration.holds(hours)
    experts, left_out = _usable_experts(logits, labels, before_test)
    matrix = _matrix(logits, experts)
    scored = np.isfinite(matrix).all(axis=1)
    fitting, calibrating = in_fit & scored, ranges.calibration.holds(hours) & scored
    hour = hours - hours % HOUR_US
    mixtures, kind, trials = _fit_mixtures(
        matrix[fitting], labels[fitting], hour[fitting], experts, settings.folds
    )
    compared = None
    if provisional is not None:
        kind, compared = _compare_on_provisional(mixtures, kind, experts, provisional)
    weights, intercept = mixtures[kind]
    everyone = range(len(experts))
    read = [place for place in everyone if weights[place] != 0.0] or list(everyone)
    used = tuple(experts[place] for place in read)
    chosen = tuple(weights[place] for place in read)
    calibration, calibration_trials = fit_calibration(
        _mixed(matrix[calibrating][:, read], chosen, intercept),
        labels[calibrating],
        hour[calibrating],
        settings.folds,
    )
    facts = {
        "rows": {"fit": int(fitting.sum()), "calibration": int(calibrating.sum())},
        "positives": {
            "fit": int(labels[fitting].sum()),
            "calibration": int(labels[calibrating].sum()),
        },
        "left_out": left_out,
        "mixtures": [_trial_json(trial) for trial in trials],
        "provisional": compared,
        "calibrations": [_trial_json(trial) for trial in calibration_trials],
    }
    return Ensemble(kind, used, chosen, intercept, calibration, ranges.to_json(), facts)


def _usable_experts(
    logits: Mapping[str, np.ndarray], labels: np.ndarray, before_test: np.ndarray
) -> tuple[tuple[str, ...], dict[str, str]]:
    met = {
        name: int(labels[before_test & np.isfinite(values)].sum())
        for name, values in sorted(logits.items())
    }
    most = max(met.values(), default=0)
    # With few positives all round, the expert that scored most of them is still the ensemble.
    usable = tuple(name for name in met if met[name] >= min(MINIMUM_POSITIVES, max(most, 1)))
    if not usable:
        usable = tuple(name for name in met if np.isfinite(logits[name]).any())[:1]
    if not usable:
        raise ValueError("no expert scored any matured row; run the online model's hours first")
    left_out = {
        name: f"scored {met[name]} positives before the test range, {MINIMUM_POSITIVES} needed"
        for name in met
        if name not in usable
    }
    return usable, left_out


_Mixture = tuple[tuple[float, ...], float]
"""Weights of the experts, and an intercept."""


def _fit_mixtures(
    matrix: np.ndarray,
    labels: np.ndarray,
    hours: np.ndarray,
    experts: tuple[str, ...],
    folds: int,
) -> tuple[dict[str, _Mixture], str, tuple[Trial, ...]]:
    """Return every mixture by kind, fitted; the chosen one's kind; and how it was chosen."""
    losses = [float(row_losses(matrix[:, k], labels).sum()) for k in range(len(experts))]
    best = int(np.argmin(losses))
    width = range(len(experts))
    mixtures: dict[str, _Mixture] = {
        expert: (tuple(float(k == place) for k in width), 0.0)
        for place, expert in enumerate(experts)
    }
    if len(experts) == 1:
        return mixtures, experts[0], ()
    even = np.full(len(experts), 1.0 / len(experts))
    mixtures["average"] = (tuple(even.tolist()), 0.0)

    def fixed(kind: str) -> Callable[[np.ndarray, np.ndarray], Fitted]:
        return lambda _inputs, _labels: lambda rows: _mixed(rows, *mixtures[kind])

    def stacked(inputs: np.ndarray, targets: np.ndarray) -> Fitted:
        weights, intercept = _stack(inputs, targets, even)
        return lambda rows: _mixed(rows, weights, intercept)

    candidates = [
        Candidate("average", fixed("average")),
        Candidate(experts[best], fixed(experts[best])),
        Candidate("stacked", stacked),
    ]
    chosen, trials = choose(candidates, matrix, labels, hours, folds)
    mixtures["stacked"] = _stack(matrix, labels, even)
    return mixtures, chosen.name, trials


def _compare_on_provisional(
    mixtures: Mapping[str, _Mixture],
    chosen: str,
    experts: tuple[str, ...],
    rows: ProvisionalRows,
) -> tuple[str, dict[str, Any]]:
    """Return the kind that the provisional rows leave or put in place, and the facts as JSON."""
    matrix = _matrix(rows.logits, experts)
    corrected = rows.corrected_labels()
    usable = np.isfinite(matrix).all(axis=1) & np.isfinite(corrected)
    hours = (rows.serving_us - rows.serving_us % HOUR_US)[usable]
    observed, n_hours = int(rows.labels[usable].sum()), len(np.unique(hours))
    final, trials, not_compared = chosen, (), ""
    if len(mixtures) == 1:
        not_compared = "there is one expert"
    elif observed < ENOUGH_POSITIVES:
        not_compared = f"{observed} observed positives, {ENOUGH_POSITIVES} needed"
    elif n_hours < MINIMUM_HOURS:
        not_compared = f"{n_hours} hours, {MINIMUM_HOURS} needed"
    else:
        kinds = list(mixtures)
        losses = np.array(
            [
                corrected_losses(_mixed(matrix[usable], *mixtures[kind]), corrected[usable])
                for kind in kinds
            ]
        )
        place, trials = challenge(kinds, kinds.index(chosen), losses, hours, STANDARD_ERRORS)
        final = kinds[place]
    return final, {
        "now_us": rows.now_us,
        "rows": len(hours),
        "rows_left_out": len(usable) - len(hours),
        "hours": n_hours,
        "observed_positives": observed,
        "corrected_positives": float(corrected[usable].sum()),
        "chosen_before": chosen,
        "chosen": final,
        "changed": final != chosen,
        "not_compared": not_compared,
        "mixtures": [_trial_json(trial) for trial in trials],
    }


def _stack(
    matrix: np.ndarray, labels: np.ndarray, towards: np.ndarray
) -> tuple[tuple[float, ...], float]:
    width = matrix.shape[1]
    found = fit_logistic(
        np.column_stack((matrix, np.ones(len(matrix)))),
        labels,
        prior_mean=np.append(towards, 0.0),
        prior_sd=np.full(width + 1, STACKING_PRIOR_SD),
        non_negative=np.append(np.ones(width, dtype=bool), False),
    ).tolist()
    return tuple(found[:width]), found[width]


def _matrix(logits: Mapping[str, np.ndarray], experts: tuple[str, ...]) -> np.ndarray:
    return np.column_stack([np.asarray(logits[name], dtype=np.float64) for name in experts])


def _mixed(matrix: np.ndarray, weights: tuple[float, ...], intercept: float) -> np.ndarray:
    out = np.empty(len(matrix))
    _mix(np.ascontiguousarray(matrix), np.array(weights, dtype=np.float64), intercept, out)
    return out


def _trial_json(trial: Trial) -> dict[str, Any]:
    def plain(number: float) -> float | None:
        return number if np.isfinite(number) else None

    return {
        "name": trial.name,
        "log_loss": plain(trial.log_loss),
        "excess": plain(trial.excess),
        "excess_error": plain(trial.excess_error),
    }


@njit(cache=True, nogil=True)
def _mix(matrix: np.ndarray, weights: np.ndarray, intercept: float, out: np.ndarray) -> None:
    for row in range(matrix.shape[0]):
        logit = intercept
        for expert in range(weights.size):
            logit += weights[expert] * matrix[row, expert]
        out[row] = logit


def _probabilities(logits: np.ndarray) -> np.ndarray:
    out = np.empty(len(logits))
    _sigmoid(logits, out)
    return out


@njit(cache=True, nogil=True)
def _sigmoid(logits: np.ndarray, out: np.ndarray) -> None:
    for row in range(logits.size):
        x = logits[row]
        if x >= 0:
            out[row] = 1.0 / (1.0 + np.exp(-x))
        else:
            odds = np.exp(x)
            out[row] = odds / (1.0 + odds)
