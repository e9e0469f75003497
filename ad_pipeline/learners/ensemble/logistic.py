"""Small penalised logistic regressions: what mixing and calibration are fitted with.

Newton's method over a handful of parameters, its sums in row order on one thread: the same rows
give the same bits, which a general optimiser on a threaded BLAS does not promise. Not for features
by the thousand; those are the learners'.
"""

import itertools

import numpy as np
from numba import njit

_MAXIMUM_STEPS = 60
_TOLERANCE = 1e-9


def fit_logistic(
    columns: np.ndarray,
    labels: np.ndarray,
    prior_mean: np.ndarray,
    prior_sd: np.ndarray,
    non_negative: np.ndarray,
    lowest: float = 0.0,
) -> np.ndarray:
    """Return the coefficients with the greatest posterior density.

    Parameters
    ----------
    columns : ndarray of shape (n, k), float64
        A constant column is the intercept. Few: the cost is 2^(bounded columns) fits.
    labels : ndarray of shape (n,), 0 or 1
    prior_mean, prior_sd : ndarray of shape (k,), float64
        Independent normal priors; they keep the answer finite on separable or one-class rows.
    non_negative : ndarray of shape (k,), bool
        Coefficients that may not fall below `lowest`.
    lowest : float

    Returns
    -------
    ndarray of shape (k,), float64
    """
    columns = np.ascontiguousarray(columns, dtype=np.float64)
    targets = np.ascontiguousarray(labels, dtype=np.float64)
    precision = 1.0 / np.square(prior_sd)
    bounded = np.flatnonzero(non_negative).tolist()
    best, best_loss = np.zeros(len(prior_mean)), np.inf
    # Every set of coefficients held at the bound: the problem is convex, so the best feasible
    # answer over the sets is the constrained optimum, and no active-set bookkeeping can cycle.
    for size in range(len(bounded) + 1):
        for held in itertools.combinations(bounded, size):
            free = np.ones(len(prior_mean), dtype=np.bool_)
            free[list(held)] = False
            found, loss = _newton(columns, targets, prior_mean, precision, free, lowest)
            if (found[bounded] >= lowest).all() and loss < best_loss:
                best, best_loss = found, loss
        if size == 0 and best_loss < np.inf:
            break  # the unconstrained optimum is feasible
    return best


def clustered_errors(
    columns: np.ndarray, labels: np.ndarray, coefficients: np.ndarray, clusters: np.ndarray
) -> np.ndarray:
    """Return standard errors of coefficients that were fitted without a prior to speak of.

    Rows of a cluster may depend on each other (Liang and Zeger, Biometrika 73, 1986). Few clusters
    can by chance agree with each other, so that the errors of independent rows are the least.

    Parameters
    ----------
    columns : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), 0 or 1
    coefficients : ndarray of shape (k,), float64
    clusters : ndarray of shape (n,), int64
        Equal values are one cluster.

    Returns
    -------
    ndarray of shape (k,), float64
        Enormous, not infinite, where the columns do not determine a coefficient.
    """
    columns = np.ascontiguousarray(columns, dtype=np.float64)
    targets = np.ascontiguousarray(labels, dtype=np.float64)
    width = columns.shape[1]
    nothing = np.zeros(width)
    # A trace of precision keeps the inverse of collinear columns finite.
    _, _, curvature = _derivatives(columns, targets, coefficients, nothing, nothing + 1e-4)
    inverse = np.linalg.inv(curvature)
    distinct, cluster = np.unique(clusters, return_inverse=True)
    residuals = targets - 1.0 / (1.0 + np.exp(-(columns * coefficients).sum(axis=1)))
    scores = np.column_stack(
        [
            np.bincount(cluster, weights=columns[:, place] * residuals, minlength=len(distinct))
            for place in range(width)
        ]
    )
    small_sample = len(distinct) / max(len(distinct) - 1, 1)
    sandwich = small_sample * inverse @ (scores.T @ scores) @ inverse
    return np.sqrt(np.maximum(np.diag(inverse), np.diag(sandwich)))


def row_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the log loss of every row in nats, float64 (n,)."""
    return np.logaddexp(0.0, np.where(labels == 1, -logits, logits))


def _newton(
    columns: np.ndarray,
    targets: np.ndarray,
    mean: np.ndarray,
    precision: np.ndarray,
    free: np.ndarray,
    held_at: float,
) -> tuple[np.ndarray, float]:
    at = np.where(free, mean, held_at)
    loss, gradient, curvature = _derivatives(columns, targets, at, mean, precision)
    for _ in range(_MAXIMUM_STEPS):
        if not free.any():
            break
        step = np.zeros_like(at)
        step[free] = np.linalg.solve(curvature[np.ix_(free, free)], gradient[free])
        scale = 1.0
        tried = at - step
        tried_loss, tried_gradient, tried_curvature = _derivatives(
            columns, targets, tried, mean, precision
        )
        while tried_loss > loss and scale > 1e-6:
            scale /= 2
            tried = at - scale * step
            tried_loss, tried_gradient, tried_curvature = _derivatives(
                columns, targets, tried, mean, precision
            )
        if tried_loss > loss:
            break  # no descent left within rounding
        at, loss = tried, tried_loss
        gradient, curvature = tried_gradient, tried_curvature
        if np.abs(scale * step).max() < _TOLERANCE:
            break
    return at, loss


@njit(cache=True, nogil=True)
def _derivatives(
    columns: np.ndarray,
    targets: np.ndarray,
    at: np.ndarray,
    mean: np.ndarray,
    precision: np.ndarray,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Penalised negative log likelihood, its gradient and its Hessian."""
    n_rows, width = columns.shape
    loss = 0.0
    gradient = np.zeros(width)
    curvature = np.zeros((width, width))
    for row in range(n_rows):
        score = 0.0
        for j in range(width):
            score += at[j] * columns[row, j]
        decay = np.exp(-abs(score))
        p = 1.0 / (1.0 + decay) if score >= 0 else decay / (1.0 + decay)
        loss += np.log1p(decay) + max(score, 0.0) - targets[row] * score
        slope = p - targets[row]
        spread = p * (1.0 - p)
        for j in range(width):
            gradient[j] += slope * columns[row, j]
            for k in range(j + 1):
                curvature[j, k] += spread * columns[row, j] * columns[row, k]
    for j in range(width):
        away = at[j] - mean[j]
        loss += 0.5 * precision[j] * away * away
        gradient[j] += precision[j] * away
        curvature[j, j] += precision[j]
        for k in range(j):
            curvature[k, j] = curvature[j, k]
    return loss, gradient, curvature
