"""FTRL-Proximal over hashed slots, compiled, and the linear score that a bundle needs.

The arithmetic of the online learner and nothing else: no hashing, no River protocol, no files. It
imports only NumPy and Numba, so that a scorer can use :func:`linear_logits` without the training
stack.

State is one array of shape ``(2**bits, 2)``, float32 or float64, holding ``(z, sqrt(n))`` of a slot
side by side: one cache line a slot instead of two. The weight is derived, never stored, so it
cannot fall out of step with z. Arithmetic is float64 whatever the state's dtype; a logit is summed
in feature order, and neither ``fastmath`` nor threads are used: the same rows give the same bytes.

**Two features of a row in one slot.** Their values add in the logit, as the hashing trick says.
In the update each is a visit of its own, and all visits see the weight that made the prediction:
z receives the same gradient sum as Algorithm 1 on the added value, n receives the sum of the
squared gradients (Algorithm 1 on the added value would take the square of the sum). Finding such
pairs would cost a comparison of every pair of features of every row, to change the step of slots
that are already in collision.

References
----------
McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013, Algorithm 1.
"""

import math

import numpy as np
from numba import njit

FloatArray = np.ndarray
"""Arrays of float32 or float64; each docstring says which."""

NO_VALUES: np.ndarray = np.empty((0, 0), dtype=np.float64)
"""Pass as ``values`` when every feature has the value 1."""


@njit(cache=True, nogil=True, error_model="numpy")
def _weight(z: float, sqrt_n: float, alpha: float, beta: float, l1: float, l2: float) -> float:
    if abs(z) <= l1:
        return 0.0
    return (math.copysign(l1, z) - z) / ((beta + sqrt_n) / alpha + l2)


@njit(cache=True, nogil=True, error_model="numpy")
def learn(
    state: FloatArray,
    slots: np.ndarray,
    values: FloatArray,
    labels: np.ndarray,
    weights: FloatArray,
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
    out_logits: FloatArray,
) -> None:
    """Predict, then learn, row by row in the given order.

    Parameters
    ----------
    state : ndarray of shape (2**bits, 2), float32 or float64
        ``(z, sqrt(n))`` by slot; updated in place.
    slots : ndarray of shape (n, F), uint32
        Must be below ``2**bits``: nothing is checked here.
    values : ndarray of shape (n, F), or (0, 0) when every value is 1
    labels : ndarray of shape (n,), 0 or 1
    weights : ndarray of shape (n,)
        Factor on the row's gradient; 0 predicts the row without learning it.
    alpha, beta, l1, l2 : float
        Learning rate, its smoothing, and the two regularisations of the paper.
    out_logits : ndarray of shape (n,), float64
        Receives each row's logit from before its own update.
    """
    n_rows, width = slots.shape
    valued = values.shape[0] > 0
    row_weights = np.empty(width, dtype=state.dtype)
    for row in range(n_rows):
        logit = 0.0
        for feature in range(width):
            slot = slots[row, feature]
            # Storing rounds to the state's dtype, as exported weights are rounded.
            row_weights[feature] = _weight(state[slot, 0], state[slot, 1], alpha, beta, l1, l2)
            if valued:
                logit += np.float64(row_weights[feature]) * np.float64(values[row, feature])
            else:
                logit += np.float64(row_weights[feature])
        out_logits[row] = logit
        example_weight = np.float64(weights[row])
        if example_weight == 0.0:
            continue
        slope = example_weight * (1.0 / (1.0 + math.exp(-logit)) - np.float64(labels[row]))
        for feature in range(width):
            gradient = slope
            if valued:
                gradient *= np.float64(values[row, feature])
            if gradient == 0.0:
                continue
            slot = slots[row, feature]
            before = np.float64(state[slot, 1])
            after = math.sqrt(before * before + gradient * gradient)
            sigma = (after - before) / alpha
            state[slot, 0] += gradient - sigma * np.float64(row_weights[feature])
            state[slot, 1] = after


@njit(cache=True, nogil=True, error_model="numpy")
def predict(
    state: FloatArray,
    slots: np.ndarray,
    values: FloatArray,
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
    out: FloatArray,
) -> None:
    """Write the logit of every row; see :func:`learn` for the arguments."""
    n_rows, width = slots.shape
    valued = values.shape[0] > 0
    rounded = np.empty(1, dtype=state.dtype)
    for row in range(n_rows):
        logit = 0.0
        for feature in range(width):
            slot = slots[row, feature]
            rounded[0] = _weight(state[slot, 0], state[slot, 1], alpha, beta, l1, l2)
            if valued:
                logit += np.float64(rounded[0]) * np.float64(values[row, feature])
            else:
                logit += np.float64(rounded[0])
        out[row] = logit


@njit(cache=True, nogil=True, error_model="numpy")
def weights(state: FloatArray, alpha: float, beta: float, l1: float, l2: float) -> FloatArray:
    """Return the weight of every slot, in the state's dtype; exactly 0 where ``|z| <= l1``.

    Returns
    -------
    ndarray of shape (2**bits,)
    """
    dense = np.empty(state.shape[0], dtype=state.dtype)
    for slot in range(state.shape[0]):
        dense[slot] = _weight(state[slot, 0], state[slot, 1], alpha, beta, l1, l2)
    return dense


@njit(cache=True, nogil=True)
def linear_logits(
    weights: FloatArray, slots: np.ndarray, out: FloatArray, intercept: float = 0.0
) -> None:
    """Write ``intercept`` plus the sum of each row's weights, in feature order.

    Parameters
    ----------
    weights : ndarray of shape (2**bits,), float32 or float64
    slots : ndarray of shape (n, F), uint32
        Must be below ``2**bits``: nothing is checked here.
    out : ndarray of shape (n,), float64
    intercept : float
        0 for FTRL; River's GLMs have one.
    """
    n_rows, width = slots.shape
    for row in range(n_rows):
        logit = intercept
        for feature in range(width):
            logit += np.float64(weights[slots[row, feature]])
        out[row] = logit


def checked_slots(slots: np.ndarray, n_slots: int) -> np.ndarray:
    """Return slots as the kernels need them, since an out-of-range slot would corrupt memory.

    Parameters
    ----------
    slots : ndarray of shape (n, F), any unsigned integer dtype up to uint32
    n_slots : int
        Length of the state.

    Raises
    ------
    ValueError
        If the array is not two-dimensional, is not of unsigned integers, or holds a slot that is
        not below ``n_slots``.
    """
    if slots.ndim != 2 or slots.dtype.kind != "u":
        raise ValueError(
            f"slots must be a (rows, features) array of uint32, not {slots.dtype} of shape "
            f"{slots.shape}"
        )
    if slots.size and int(slots.max()) >= n_slots:
        raise ValueError(
            f"slot {int(slots.max())} does not fit into {n_slots} slots; hash with the same number "
            "of bits as the learner"
        )
    return np.ascontiguousarray(slots, dtype=np.uint32)
