"""Calibration: a map from logits to logits, as simple as the data allow.

Identity, a shift, Platt's line, or an isotonic table that is interpolated between its knots.
Applied by one compiled loop over rows, so that one row gives the bits that it gives among many.
Fitting needs SciPy for the isotonic table only; applying needs neither SciPy nor scikit-learn.
Which rows are calibrated on is the caller's to say.

References
----------
Platt, Probabilistic Outputs for Support Vector Machines, 1999. Zadrozny and Elkan, Transforming
Classifier Scores into Accurate Multiclass Probability Estimates, KDD 2002.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numba import njit

from ad_pipeline.learners.logistic import fit_logistic
from ad_pipeline.learners.selection import Candidate, Fitted, Trial, choose

Kind = Literal["identity", "shift", "platt", "isotonic"]

PRIOR_SD = 0.5
"""Of a shift and of a slope around the identity. A calibration is a small correction; a prior this
wide only matters on a few dozen positives."""

MINIMUM_POSITIVES = 100
"""Fewer: identity. A shift alone costs half a nat out of sample: 0.1 % of 100 positives' loss."""

ISOTONIC_POSITIVES = 2_000
"""Fewer: no isotonic table among the candidates."""

STANDARD_ERRORS = 2.0
"""A simpler map is kept while it is not worse than the best by more than this many. Stricter than
for mixtures: what looks miscalibrated over a day is often that day."""

_POSITIVES_PER_BIN = 100


@dataclass(frozen=True)
class Calibration:
    """A monotone map of logits.

    Attributes
    ----------
    kind : str
    slope, shift : float
        The line; 1 and 0 unless ``shift`` or ``platt``.
    knots, heights : tuple of float
        The isotonic table, both ascending; empty unless ``isotonic``. Beyond its ends the end's
        correction goes on unchanged.
    """

    kind: Kind
    slope: float = 1.0
    shift: float = 0.0
    knots: tuple[float, ...] = ()
    heights: tuple[float, ...] = ()

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated logits, float64 (n,)."""
        out = np.empty(len(logits))
        _apply(
            np.ascontiguousarray(logits, dtype=np.float64),
            self.slope,
            self.shift,
            np.array(self.knots, dtype=np.float64),
            np.array(self.heights, dtype=np.float64),
            out,
        )
        return out

    def to_json(self) -> dict[str, Any]:
        """Return the map as JSON; Python's JSON keeps every bit of a float."""
        return {
            "kind": self.kind,
            "slope": self.slope,
            "shift": self.shift,
            "knots": list(self.knots),
            "heights": list(self.heights),
        }

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Self:
        """Return the map of :meth:`to_json`."""
        return cls(
            tree["kind"],
            tree["slope"],
            tree["shift"],
            tuple(tree["knots"]),
            tuple(tree["heights"]),
        )


IDENTITY = Calibration("identity")


def fit_calibration(
    logits: np.ndarray, labels: np.ndarray, hours: np.ndarray, folds: int
) -> tuple[Calibration, tuple[Trial, ...]]:
    """Choose a map by blocked cross-validation and fit it to all rows.

    Parameters
    ----------
    logits : ndarray of shape (n,), float64
    labels : ndarray of shape (n,), 0 or 1
    hours : ndarray of shape (n,), int64
        The hour of each row, for blocked folds.
    folds : int

    Returns
    -------
    calibration : Calibration
        Identity if there are fewer than :data:`MINIMUM_POSITIVES` positives.
    trials : tuple of Trial
        Empty in that case.
    """
    positives = int(labels.sum())
    if min(positives, len(labels) - positives) < MINIMUM_POSITIVES:
        return IDENTITY, ()
    kinds: list[Kind] = ["identity", "shift", "platt"]
    if positives >= ISOTONIC_POSITIVES:
        kinds.append("isotonic")
    chosen, trials = choose(
        [_candidate(kind) for kind in kinds], logits, labels, hours, folds, STANDARD_ERRORS
    )
    return fit_kind(_kind_of(chosen.name), logits, labels), trials


def fit_kind(kind: Kind, logits: np.ndarray, labels: np.ndarray) -> Calibration:
    """Fit one kind of map.

    Parameters
    ----------
    kind : str
    logits : ndarray of shape (n,), float64
    labels : ndarray of shape (n,), 0 or 1
    """
    if kind == "identity":
        return IDENTITY
    if kind == "isotonic":
        return _fit_isotonic(logits, labels)
    columns = np.column_stack((logits, np.ones(len(logits))))
    slope_sd = PRIOR_SD if kind == "platt" else 1e-9
    slope, shift = fit_logistic(
        columns,
        labels,
        prior_mean=np.array([1.0, 0.0]),
        prior_sd=np.array([slope_sd, PRIOR_SD]),
        non_negative=np.array([True, False]),
    ).tolist()
    return Calibration(kind, slope if kind == "platt" else 1.0, shift)


def _candidate(kind: Kind) -> Candidate:
    def fit(logits: np.ndarray, labels: np.ndarray) -> Fitted:
        return fit_kind(kind, logits, labels).apply

    return Candidate(kind, fit)


def _kind_of(name: str) -> Kind:
    for kind in ("identity", "shift", "platt", "isotonic"):
        if kind == name:
            return kind
    raise ValueError(f"no calibration {name!r}")


def _fit_isotonic(logits: np.ndarray, labels: np.ndarray) -> Calibration:
    from scipy.optimize import isotonic_regression

    positives = np.sort(logits[labels == 1])
    n_bins = max(2, len(positives) // _POSITIVES_PER_BIN)
    # Edges at quantiles of the positives: every bin's rate is known about equally well.
    edges = np.unique(positives[np.arange(1, n_bins) * len(positives) // n_bins])
    place = np.searchsorted(edges, logits, side="right")
    counts = np.bincount(place, minlength=len(edges) + 1).astype(np.float64)
    hits = np.bincount(place, weights=labels.astype(np.float64), minlength=len(edges) + 1)
    sums = np.bincount(place, weights=logits, minlength=len(edges) + 1)
    filled = counts > 0
    counts, hits, sums = counts[filled], hits[filled], sums[filled]
    rates = (hits + 0.5) / (counts + 1.0)  # no logit of 0 or 1
    heights = isotonic_regression(rates, weights=counts).x
    # Bins that were pooled share one height: one knot at their common mean, so that the table is
    # strictly increasing and no ranking is tied that was not.
    block = np.concatenate(([0], np.cumsum(np.diff(heights) > 0)))
    knots = np.bincount(block, weights=sums) / np.bincount(block, weights=counts)
    level = heights[np.concatenate(([0], np.flatnonzero(np.diff(heights) > 0) + 1))]
    return Calibration(
        "isotonic",
        knots=tuple(knots.tolist()),
        heights=tuple(np.log(level / (1.0 - level)).tolist()),
    )


@njit(cache=True, nogil=True)
def _apply(
    logits: np.ndarray,
    slope: float,
    shift: float,
    knots: np.ndarray,
    heights: np.ndarray,
    out: np.ndarray,
) -> None:
    last = knots.size - 1
    for row in range(logits.size):
        x = logits[row]
        if last < 0:
            out[row] = slope * x + shift
        elif x <= knots[0]:
            out[row] = x + (heights[0] - knots[0])
        elif x >= knots[last]:
            out[row] = x + (heights[last] - knots[last])
        else:
            low, high = 0, last
            while high - low > 1:
                middle = (low + high) // 2
                if knots[middle] <= x:
                    low = middle
                else:
                    high = middle
            share = (x - knots[low]) / (knots[high] - knots[low])
            out[row] = heights[low] + share * (heights[high] - heights[low])
