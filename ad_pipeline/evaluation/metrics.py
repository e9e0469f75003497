"""Measures of a probability forecast, as published, in numpy alone.

One module holds them all so that every figure of the project means the same thing: the same clip,
the same tie rule, the same answer when a sample holds one class. Intervals around them are in
:mod:`ad_pipeline.evaluation.intervals`; reading tables, plotting and choosing models do not belong
here.

A measure that a sample cannot define is NaN, never an exception and never a made-up number:
everything on no rows (or no weight); normalized entropy, RCE, ROC-AUC on one class alone; PR-AUC
and the calibration ratio without a positive. Log loss and calibration error need only rows.

Published definitions and where ours differ
-------------------------------------------
Normalized entropy (He et al., ADKDD 2014, equation 1) is the mean log loss divided by the entropy
of the *empirical* click rate of the same rows, not of the model's mean prediction and not of a
training set's rate. It is below 1 when the model tells more than that rate.

Relative cross entropy is ``100 * (CE(rate) - CE(model)) / CE(rate)`` with ``CE(rate)`` the cross
entropy of a forecast that always says the mean label, which is that same entropy; so
``RCE = 100 * (1 - NE)`` exactly. The code published as twitter/the-algorithm-ml
(``metrics/rce.py``) clips predictions to [1e-7, 1 - 1e-7] as we do, then also adds 1e-7 inside each
logarithm (a Keras habit), for the reference too, and offers label smoothing, off by default, which
moves the labels and the reference. We neither add nor smooth: on rates above 1 % and predictions
above 1e-4 the two agree to better than 0.1 of a point; a tiny prediction differs, by up to
log 2 of loss at the clip.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLIP = 1e-7
"""Probabilities enter a logarithm no closer than this to 0 or 1 (as RCE was published)."""

CALIBRATION_BINS = 20

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """All measures of one forecast on one set of rows.

    Attributes
    ----------
    rows, positives : int
        Rows, and rows with label 1 (unweighted).
    base_rate : float
        Weighted mean label.
    log_loss : float
        Nats a row.
    normalized_entropy : float
        Log loss over the entropy of ``base_rate``; 1 is as good as knowing that rate.
    rce : float
        Relative cross entropy, per cent; ``100 * (1 - normalized_entropy)``.
    roc_auc : float
    pr_auc : float
        Average precision (a step sum; not the trapezoid, which is optimistic).
    calibration_ratio : float
        Sum of probabilities over sum of labels (PCOC); 1 is calibrated in the large.
    expected_calibration_error : float
        Over 20 bins of equal mass.
    """

    rows: int
    positives: int
    base_rate: float
    log_loss: float
    normalized_entropy: float
    rce: float
    roc_auc: float
    pr_auc: float
    calibration_ratio: float
    expected_calibration_error: float


METRICS = (
    "log_loss",
    "normalized_entropy",
    "rce",
    "roc_auc",
    "pr_auc",
    "calibration_ratio",
    "expected_calibration_error",
)
"""Names of the measures in :class:`Summary` that have intervals, in order of display."""


def probabilities_of(logits: ArrayLike) -> Floats:
    """Return the logistic function of logits without overflow.

    Parameters
    ----------
    logits : array_like of float64, shape (n,)

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    values = np.asarray(logits, dtype=np.float64)
    decay = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, decay) / (1.0 + decay)


def logits_of(probabilities: ArrayLike) -> Floats:
    """Return the log odds of probabilities, clipped to [1e-7, 1 - 1e-7] first."""
    clipped = np.clip(np.asarray(probabilities, dtype=np.float64), CLIP, 1.0 - CLIP)
    return np.log(clipped) - np.log1p(-clipped)


def row_losses(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """Return the log loss of every row, in nats.

    Parameters
    ----------
    labels : array_like of {0, 1}, shape (n,)
    probabilities : array_like of float64, shape (n,)

    Returns
    -------
    ndarray of float64, shape (n,)

    Raises
    ------
    ValueError
        If shapes differ, a label is neither 0 nor 1, or a probability is outside [0, 1] or NaN.
    """
    y, p, _ = _checked(labels, probabilities, None)
    return _row_losses(y, p)


def log_loss(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Return the mean log loss in nats, probabilities clipped to [1e-7, 1 - 1e-7].

    scikit-learn's ``log_loss`` clips at the spacing of the dtype (2.2e-16) instead: equal unless a
    forecast says less than 1e-7 or more than 1 - 1e-7.

    Parameters
    ----------
    labels : array_like of {0, 1}, shape (n,)
    probabilities : array_like of float64, shape (n,)
    weights : array_like of float64, shape (n,), optional
        Not negative.

    Returns
    -------
    float
        NaN on no rows.

    Raises
    ------
    ValueError
        If shapes differ, a label is neither 0 nor 1, or a probability is outside [0, 1] or NaN.
    """
    y, p, w = _checked(labels, probabilities, weights)
    return _mean(_row_losses(y, p), w)


def entropy(rate: float) -> float:
    """Return the entropy of a click rate in nats; 0 at 0 and 1."""
    if not 0.0 < rate < 1.0:
        return 0.0 if rate in (0.0, 1.0) else float("nan")
    return float(-rate * np.log(rate) - (1.0 - rate) * np.log1p(-rate))


def normalized_entropy(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Return log loss over the entropy of the empirical rate (He et al., ADKDD 2014, eq. 1).

    Parameters and errors as for :func:`log_loss`. NaN on one class alone, where the entropy is 0.
    """
    y, p, w = _checked(labels, probabilities, weights)
    return _normalized(_mean(_row_losses(y, p), w), _mean(y, w))


def rce(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the relative cross entropy in per cent (see the module for the published variants).

    Parameters and errors as for :func:`log_loss`. NaN on one class alone.
    """
    return 100.0 * (1.0 - normalized_entropy(labels, probabilities, weights))


def roc_auc(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the chance that a positive outranks a negative, a tie counting one half exactly.

    Parameters and errors as for :func:`log_loss`. NaN on one class alone.
    """
    y, p, w = _checked(labels, probabilities, weights)
    positive, total = _by_score(y, p, w)
    return _roc_auc(positive, total)


def pr_auc(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the average precision: the sum of (recall step x precision) over distinct scores.

    This is scikit-learn's ``average_precision_score``. It is not the area by trapezoids, which
    interpolates between points of the curve that no threshold attains and reads too high (Davis and
    Goadrich, ICML 2006); published es_dfm-style PR-AUCs are trapezoids.

    Parameters and errors as for :func:`log_loss`. NaN without a positive.
    """
    y, p, w = _checked(labels, probabilities, weights)
    positive, total = _by_score(y, p, w)
    return _average_precision(positive, total)


def calibration_ratio(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Return the sum of probabilities over the sum of labels (predicted over observed, PCOC).

    Parameters and errors as for :func:`log_loss`. NaN without a positive.
    """
    y, p, w = _checked(labels, probabilities, weights)
    return _ratio(_sum(p, w), _sum(y, w))


def expected_calibration_error(
    labels: ArrayLike,
    probabilities: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    bins: int = CALIBRATION_BINS,
) -> float:
    """Return the mean gap between mean probability and mean label over bins of equal mass.

    Bins of equal width would put nearly every ad impression into the first; bins of equal mass do
    not (Nixon et al., CVPR-W 2019). Equal probabilities share a bin, so the order of rows does not
    matter. The measure is biased upwards by noise: a perfect forecast scores above 0, about
    ``sqrt(2 bins p (1 - p) / (pi n))``.

    Parameters
    ----------
    labels, probabilities, weights
        As for :func:`log_loss`.
    bins : int
        Bins of equal weight.

    Returns
    -------
    float
        In [0, 1]; NaN on no rows.

    Raises
    ------
    ValueError
        As for :func:`log_loss`.
    """
    y, p, w = _checked(labels, probabilities, weights)
    bin_of = equal_mass_bins(p, w, bins=bins)
    gap = np.bincount(bin_of, _weighted(p - y, w), minlength=bins)
    return _ratio(float(np.abs(gap).sum()), float(len(y)) if w is None else float(w.sum()))


def equal_mass_bins(
    probabilities: Floats, weights: Floats | None = None, *, bins: int = CALIBRATION_BINS
) -> NDArray[np.int64]:
    """Return the bin of every row such that bins hold equal weight, ties kept together.

    Parameters
    ----------
    probabilities : ndarray of float64, shape (n,)
    weights : ndarray of float64, shape (n,), optional
    bins : int

    Returns
    -------
    ndarray of int64, shape (n,)
        In [0, bins), growing with the probability; a bin may be empty when ties are many.
    """
    _, inverse = np.unique(probabilities, return_inverse=True)
    mass = np.bincount(inverse, weights).astype(np.float64)
    total = mass.sum()
    if not total > 0:
        return np.zeros(len(probabilities), dtype=np.int64)
    middle = (np.cumsum(mass) - mass / 2) / total
    return np.minimum((middle * bins).astype(np.int64), bins - 1)[inverse]


def summarize(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> Summary:
    """Return every measure of one forecast.

    Parameters
    ----------
    labels : array_like of {0, 1}, shape (n,)
    probabilities : array_like of float64, shape (n,)
    weights : array_like of float64, shape (n,), optional

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        As for :func:`log_loss`.
    """
    y, p, w = _checked(labels, probabilities, weights)
    base_rate = _mean(y, w)
    loss = _mean(_row_losses(y, p), w)
    relative = _normalized(loss, base_rate)
    positive, total = _by_score(y, p, w)
    return Summary(
        rows=len(y),
        positives=int(np.count_nonzero(y)),
        base_rate=base_rate,
        log_loss=loss,
        normalized_entropy=relative,
        rce=100.0 * (1.0 - relative),
        roc_auc=_roc_auc(positive, total),
        pr_auc=_average_precision(positive, total),
        calibration_ratio=_ratio(_sum(p, w), _sum(y, w)),
        expected_calibration_error=expected_calibration_error(y, p, w),
    )


def _checked(
    labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats | None]:
    y = np.asarray(labels, dtype=np.float64)
    p = np.asarray(probabilities, dtype=np.float64)
    if y.ndim != 1 or y.shape != p.shape:
        raise ValueError(f"labels {y.shape} and probabilities {p.shape} must be of one shape (n,)")
    if not np.all((y == 0.0) | (y == 1.0)):
        raise ValueError("labels must be 0 or 1")
    if not np.all((p >= 0.0) & (p <= 1.0)):
        raise ValueError("probabilities must lie in [0, 1] and not be NaN; these may be logits")
    if weights is None:
        return y, p, None
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != y.shape:
        raise ValueError(f"weights {w.shape} must have the labels' shape {y.shape}")
    if not np.all((w >= 0.0) & np.isfinite(w)):
        raise ValueError("weights must be finite and not negative")
    return y, p, w


def _row_losses(y: Floats, p: Floats) -> Floats:
    clipped = np.clip(p, CLIP, 1.0 - CLIP)
    return -np.where(y == 1.0, np.log(clipped), np.log1p(-clipped))


def _weighted(values: Floats, w: Floats | None) -> Floats:
    return values if w is None else values * w


def _sum(values: Floats, w: Floats | None) -> float:
    return float(_weighted(values, w).sum())


def _mean(values: Floats, w: Floats | None) -> float:
    return _ratio(_sum(values, w), float(len(values)) if w is None else float(w.sum()))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else float("nan")


def _normalized(loss: float, rate: float) -> float:
    return _ratio(loss, entropy(rate))


def _by_score(y: Floats, p: Floats, w: Floats | None) -> tuple[Floats, Floats]:
    """Return the positive and the total weight of every distinct score, from high to low."""
    order = np.argsort(p, kind="stable")[::-1]
    ranked = p[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], len(ranked) > 0))
    weight = np.ones(len(p)) if w is None else w[order]
    positive = np.cumsum(y[order] * weight)[ends]
    total = np.cumsum(weight)[ends]
    return np.diff(positive, prepend=0.0), np.diff(total, prepend=0.0)


def _roc_auc(positive: Floats, total: Floats) -> float:
    negative = total - positive
    outranked = negative.sum() - np.cumsum(negative)
    pairs = float(positive.sum() * negative.sum())
    return _ratio(float((positive * (outranked + negative / 2)).sum()), pairs)


def _average_precision(positive: Floats, total: Floats) -> float:
    above = np.cumsum(total)
    precision = np.divide(np.cumsum(positive), above, out=np.zeros_like(above), where=above > 0)
    return _ratio(float((positive * precision).sum()), float(positive.sum()))
