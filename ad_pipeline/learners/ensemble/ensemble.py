"""The ensemble: experts mixed in logit space on matured predictions, then calibrated.

Its inputs are the logits that each expert gave *at serving time*, never a re-score. Without data
that say otherwise it is the average of the logits: log loss is convex in the logit, so the average
loses at most the mean of what the experts lose. Another mixture, or one expert alone, is taken
where the data show that it is better, and an expert that tells nothing beside the others is in no
mixture. Between maturities the newest rows may overrule that choice, by the loss of
:mod:`.provisional`. What can be applied needs NumPy and Numba only.

Voting is soft: the mean of the probabilities (the linear opinion pool). A hard vote, "above one
half or not", means nothing for events as rare as clicks: all experts vote no. The vote of a
majority at every threshold at once is the median of the probabilities, and of two experts that is
their mean.

References
----------
Wolpert, Stacked generalization, Neural Networks 5, 1992. Breiman, Stacked regressions, Machine
Learning 24, 1996 (non-negative weights). Genest and Zidek, Combining Probability Distributions,
Statistical Science 1, 1986 (linear and logarithmic pools).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numba import njit

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.ensemble.calibration_layer import CalibrationLayer, Slices, fit_layer
from ad_pipeline.learners.ensemble.logistic import clustered_errors, fit_logistic, row_losses
from ad_pipeline.learners.ensemble.provisional import (
    ENOUGH_POSITIVES,
    STANDARD_ERRORS,
    ProvisionalRows,
    corrected_losses,
)
from ad_pipeline.learners.ensemble.selection import (
    MINIMUM_HOURS,
    Candidate,
    Fitted,
    Trial,
    challenge,
    choose,
    out_of_fold,
)
from ad_pipeline.settings import EnsembleSettings

STACKING_PRIOR_SD = 0.3
"""Of stacked weights around the average, and of the intercept around 0."""

MINIMUM_POSITIVES = 100
"""An expert whose predictions meet fewer positives before the test range is left out."""

ENOUGH_FIT_POSITIVES = 400
"""With fewer positives that all experts scored in the fit range, as while an expert is young, the
mixture is chosen and fitted on the calibration range too. What the calibration is then fitted to is
cross-fitted."""

FREE_SD = 10.0
"""Prior of weights that are fitted freely: it only keeps the answer finite."""

CONTRIBUTION_ERRORS = 1.5
"""An expert is in no mixture unless its weight beside the others, fitted freely, is above 0 by more
than this many standard errors (clustered by hour).

Weights tell more than losses: averaging with noise halves the logits, which helps an expert that is
too sure of itself and so hides the harm. In twelve simulated markets with about 600 positives of
purchases to choose on, 0, 0.5, 1, 1.5 and 2 lost 0.28, 0.24, 0.03, 0.00 and 0.00 % of log loss to
noise in the batch expert's place and gained 0.61, 0.61, 0.60, 0.60 and 0.48 % on the online expert
with the true one; no such rule lost 0.79 % and gained 0.73 %. On 240 of these positives 1 and 1.5
lost 0.18 and 0.04 % and gained 0.41 and 0.26 %."""

AVERAGE, VOTING, STACKED = "average", "voting", "stacked"


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
        An expert's name, ``"average"``, ``"voting"`` or ``"stacked"``.
    experts : tuple of str
        Those that the mixture reads, in the order of ``weights``.
    weights : tuple of float
        Of the logits; of the probabilities if ``kind`` is ``"voting"``, and then they sum to 1.
    intercept : float
    calibration : CalibrationLayer
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
    calibration: CalibrationLayer
    ranges: dict[str, list[int]]
    facts: dict[str, Any]

    def mix(self, logits: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the logit before calibration, float64 (n,)."""
        return self._mixture.apply(_matrix(logits, self.experts))

    def centre(self, logits: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the logit of the experts by their shares alone, float64 (n,).

        Without the intercept and whatever the weights sum to: what the experts stand around.
        """
        shares = tuple(self.shares[name] for name in self.experts)
        pool = _Mixture(shares, 0.0, self._mixture.of_probabilities)
        return pool.apply(_matrix(logits, self.experts))

    @property
    def shares(self) -> dict[str, float]:
        """The weights as shares of 1, by expert; even if all are 0."""
        total = sum(self.weights)
        if total <= 0:
            return dict.fromkeys(self.experts, 1 / len(self.experts))
        return {
            name: weight / total for name, weight in zip(self.experts, self.weights, strict=True)
        }

    @property
    def _mixture(self) -> "_Mixture":
        return _Mixture(self.weights, self.intercept, self.kind == VOTING)

    @property
    def sliced_by(self) -> str | None:
        """The text feature by which the calibration differs; None if it does not."""
        return self.calibration.column

    def apply(
        self, logits: Mapping[str, np.ndarray], slices: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the probability of every row; one row gives the bits it gives among many.

        Parameters
        ----------
        logits : mapping of str to ndarray of shape (n,), float64
            By expert; those that the mixture does not read may be left out.
        slices : ndarray of shape (n,), uint64, optional
            Hash of each row's value of :attr:`sliced_by`; not looked at without one.

        Returns
        -------
        ndarray of shape (n,), float64
            NaN where a logit is.

        Raises
        ------
        KeyError
            If an expert that the mixture reads is missing.
        ValueError
            If the calibration differs by slice and the slices are left out.
        """
        return _probabilities(self.calibration.apply(self.mix(logits), slices))

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
            calibration=CalibrationLayer.from_json(tree["calibration"]),
            ranges=dict(tree["ranges"]),
            facts=dict(tree["facts"]),
        )


class Mixing(Protocol):
    """What gives probabilities out of experts' logits: an ensemble, or its exported arrays."""

    @property
    def experts(self) -> tuple[str, ...]:
        """Those that it reads."""
        ...

    def apply(
        self, logits: Mapping[str, np.ndarray], slices: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the probability of every row; see :meth:`Ensemble.apply`."""
        ...


def mixed_probabilities(
    ensemble: Mixing | None,
    logits: Mapping[str, np.ndarray],
    alone: str,
    slices: np.ndarray | None = None,
) -> np.ndarray:
    """Return an ensemble's probabilities, or one expert's own where there is no mixture to apply.

    Parameters
    ----------
    ensemble : Ensemble, ExportedMixture or None
        None before enough rows have matured to fit one.
    logits : mapping of str to ndarray of shape (n,), float64
        By expert.
    alone : str
        The expert that speaks, not calibrated, if there is no ensemble or it reads an expert that
        has no logits.
    slices : ndarray of shape (n,), uint64, optional
        As for :meth:`Ensemble.apply`.

    Returns
    -------
    ndarray of shape (n,), float64
    """
    if ensemble is not None and set(ensemble.experts) <= set(logits):
        return ensemble.apply(logits, slices)
    return _probabilities(logits[alone])


def fit_ensemble(
    logits: Mapping[str, np.ndarray],
    labels: np.ndarray,
    hours: np.ndarray,
    settings: EnsembleSettings,
    provisional: ProvisionalRows | None = None,
    slices: Slices | None = None,
) -> Ensemble:
    """Choose and fit a mixture on the fit range, then a calibration on the calibration range.

    Candidates, from the one that needs least data: the average of the logits, the best expert
    alone, the average of the probabilities, and a stack (non-negative weights and an intercept,
    shrunk towards the average). Rows that an expert did not score (NaN: it did not exist yet) are
    left out of the comparison; an expert with fewer than :data:`MINIMUM_POSITIVES` positives before
    the test range is left out instead. One that adds nothing to the others
    (:data:`CONTRIBUTION_ERRORS`) is in none of the mixtures. With few positives in the fit range
    all of this reads the calibration range too (:data:`ENOUGH_FIT_POSITIVES`).

    ``settings.mixture`` other than ``"auto"`` names the mixture; then nothing is chosen, and no
    expert is left out but those that have not scored enough.

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
    slices : Slices of n rows, optional
        By which the calibration may differ.

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
    both = labels[fitting].sum() < ENOUGH_FIT_POSITIVES
    mixing = fitting | calibrating if both else fitting
    asked = settings.mixture
    given = matrix[mixing], labels[mixing], hour[mixing]
    mixed, silent = _contributing(*given, experts) if asked == "auto" else (experts, {})
    fitted = _fit_mixtures(*given, experts, mixed, settings.folds)
    mixtures, kind = fitted.mixtures, fitted.chosen
    if asked in mixtures:
        kind = asked
    compared = None
    if provisional is not None:
        kind, compared = _compare_on_provisional(
            mixtures, kind, experts, provisional, is_open=asked == "auto"
        )
    mixture = mixtures[kind]
    everyone = range(len(experts))
    read = [place for place in everyone if mixture.weights[place] != 0.0] or list(everyone)
    used = tuple(experts[place] for place in read)
    if both and kind == STACKED:
        # Its own fit rows: the calibration must not learn how well it fits what it has seen.
        crossed = out_of_fold(fitted.stacked, *given, settings.folds)[calibrating[mixing]]
    else:
        crossed = mixture.apply(matrix[calibrating])
    calibration, calibration_trials = fit_layer(
        crossed,
        labels[calibrating],
        hour[calibrating],
        (ranges.calibration.start_us, ranges.calibration.end_us),
        settings.folds,
        None if slices is None else slices.rows(calibrating),
    )
    facts = {
        "rows": {"fit": int(fitting.sum()), "calibration": int(calibrating.sum())},
        "positives": {
            "fit": int(labels[fitting].sum()),
            "calibration": int(labels[calibrating].sum()),
        },
        "mixed_on": ["fit", "calibration"] if both else ["fit"],
        "asked_for": asked,
        "left_out": left_out | silent,
        "mixtures": [_trial_json(trial) for trial in fitted.trials],
        "provisional": compared,
        "calibrations": {
            name: [_trial_json(trial) for trial in trials]
            for name, trials in calibration_trials.items()
        },
    }
    weights = tuple(mixture.weights[place] for place in read)
    return Ensemble(kind, used, weights, mixture.intercept, calibration, ranges.to_json(), facts)


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


def _contributing(
    matrix: np.ndarray, labels: np.ndarray, hours: np.ndarray, experts: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the experts that tell something beside the others, and why the rest do not.

    The least one goes first, since what it told may then be told by another. With too few hours, or
    one class alone, nothing can be said against anybody.
    """
    kept, silent = list(range(len(experts))), dict[str, str]()
    if len(np.unique(hours)) < MINIMUM_HOURS or not 0 < labels.sum() < len(labels):
        return experts, silent
    while len(kept) > 1:
        columns = np.column_stack((matrix[:, kept], np.ones(len(matrix))))
        free = np.zeros(len(kept) + 1)
        found = fit_logistic(columns, labels, free, free + FREE_SD, free.astype(bool))
        errors = clustered_errors(columns, labels, found, hours)
        place = int(np.argmin(found[:-1] / errors[:-1]))
        if found[place] > CONTRIBUTION_ERRORS * errors[place]:
            break
        others = " and ".join(experts[other] for other in kept if other != kept[place])
        silent[experts[kept.pop(place)]] = (
            f"adds nothing to {others}: weight {found[place]:.3f} ± {errors[place]:.3f}"
        )
    return tuple(experts[place] for place in kept), silent


@dataclass(frozen=True)
class _Mixture:
    """Weights of all experts, of their logits or of their probabilities, and an intercept."""

    weights: tuple[float, ...]
    intercept: float = 0.0
    of_probabilities: bool = False

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        """Return the logit of every row, float64 (n,)."""
        out = np.empty(len(matrix))
        weights = np.array(self.weights, dtype=np.float64)
        mix_experts(
            np.ascontiguousarray(matrix), weights, self.intercept, self.of_probabilities, out
        )
        return out


@dataclass(frozen=True)
class _Mixtures:
    """Every mixture, fitted; the kind that was chosen and how; the stack, for fitting it anew."""

    mixtures: dict[str, _Mixture]
    chosen: str
    trials: tuple[Trial, ...]
    stacked: Candidate


def _fit_mixtures(
    matrix: np.ndarray,
    labels: np.ndarray,
    hours: np.ndarray,
    experts: tuple[str, ...],
    mixed: tuple[str, ...],
    folds: int,
) -> _Mixtures:
    """Fit every expert alone and the mixtures of those in `mixed`, and choose among them."""
    width = len(experts)
    places = [experts.index(name) for name in mixed]
    even = np.zeros(width)
    even[places] = 1.0 / len(mixed)

    def stack(inputs: np.ndarray, targets: np.ndarray) -> Fitted:
        return _stack(inputs, targets, even, places).apply

    stacked = Candidate(STACKED, stack)
    mixtures = {
        expert: _Mixture(tuple(float(other == place) for other in range(width)))
        for place, expert in enumerate(experts)
    }
    if len(mixed) == 1:
        return _Mixtures(mixtures, mixed[0], (), stacked)
    mixtures[AVERAGE] = _Mixture(tuple(even.tolist()))
    mixtures[VOTING] = _Mixture(tuple(even.tolist()), of_probabilities=True)

    def fixed(kind: str) -> Candidate:
        return Candidate(kind, lambda _inputs, _labels: mixtures[kind].apply)

    best = min(mixed, key=lambda name: row_losses(matrix[:, experts.index(name)], labels).sum())
    candidates = [fixed(AVERAGE), fixed(best), fixed(VOTING), stacked]
    chosen, trials = choose(candidates, matrix, labels, hours, folds)
    mixtures[STACKED] = _stack(matrix, labels, even, places)
    return _Mixtures(mixtures, chosen.name, trials, stacked)


def _compare_on_provisional(
    mixtures: Mapping[str, _Mixture],
    chosen: str,
    experts: tuple[str, ...],
    rows: ProvisionalRows,
    is_open: bool,
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
    elif not is_open:
        not_compared = "settings.ensemble.mixture names the mixture"
    elif observed < ENOUGH_POSITIVES:
        not_compared = f"{observed} observed positives, {ENOUGH_POSITIVES} needed"
    elif n_hours < MINIMUM_HOURS:
        not_compared = f"{n_hours} hours, {MINIMUM_HOURS} needed"
    else:
        # A vote that was not chosen differs little from the average, and each further challenger
        # is one more that can look better by chance.
        kinds = [kind for kind in mixtures if kind in (chosen, AVERAGE, STACKED, *experts)]
        losses = np.array(
            [
                corrected_losses(mixtures[kind].apply(matrix[usable]), corrected[usable])
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
    matrix: np.ndarray, labels: np.ndarray, towards: np.ndarray, places: list[int]
) -> _Mixture:
    """Fit the weights of the experts at some places; the others have none."""
    found = fit_logistic(
        np.column_stack((matrix[:, places], np.ones(len(matrix)))),
        labels,
        prior_mean=np.append(towards[places], 0.0),
        prior_sd=np.full(len(places) + 1, STACKING_PRIOR_SD),
        non_negative=np.append(np.ones(len(places), dtype=bool), False),
    )
    weights = np.zeros(len(towards))
    weights[places] = found[:-1]
    return _Mixture(tuple(weights.tolist()), float(found[-1]))


def _matrix(logits: Mapping[str, np.ndarray], experts: tuple[str, ...]) -> np.ndarray:
    return np.column_stack([np.asarray(logits[name], dtype=np.float64) for name in experts])


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
def mix_experts(
    matrix: np.ndarray,
    weights: np.ndarray,
    intercept: float,
    of_probabilities: bool,
    out: np.ndarray,
) -> None:
    """Write the mixed logit of every row; ``matrix`` holds logits and is (n, experts).

    The intercept plus the weighted sum of the logits, or, ``of_probabilities``, plus the log odds
    of the weighted mean of the probabilities.
    """
    for row in range(matrix.shape[0]):
        if of_probabilities:
            out[row] = intercept + _pooled(matrix[row], weights)
        else:
            logit = intercept
            for expert in range(weights.size):
                logit += weights[expert] * matrix[row, expert]
            out[row] = logit


@njit(cache=True, nogil=True)
def _pooled(logits: np.ndarray, weights: np.ndarray) -> float:
    # The largest exponents are taken out of the sums, so that neither underflows to 0.
    most = -np.inf
    least = np.inf
    for expert in range(weights.size):
        if weights[expert] > 0.0:
            most = max(most, logits[expert])
            least = min(least, logits[expert])
    up = min(0.0, most)
    down = min(0.0, -least)
    hit = 0.0
    miss = 0.0
    for expert in range(weights.size):
        if weights[expert] > 0.0:
            x = logits[expert]
            share = weights[expert] / (1.0 + np.exp(-abs(x)))
            hit += share * np.exp(min(0.0, x) - up)
            miss += share * np.exp(min(0.0, -x) - down)
    return (up - down) + (np.log(hit) - np.log(miss))


def _probabilities(logits: np.ndarray) -> np.ndarray:
    out = np.empty(len(logits))
    sigmoid(logits, out)
    return out


@njit(cache=True, nogil=True)
def sigmoid(logits: np.ndarray, out: np.ndarray) -> None:
    """Write the probability of every logit, without overflow on either side."""
    for row in range(logits.size):
        x = logits[row]
        if x >= 0:
            out[row] = 1.0 / (1.0 + np.exp(-x))
        else:
            odds = np.exp(x)
            out[row] = odds / (1.0 + odds)
