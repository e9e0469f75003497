"""FTRL-Proximal over hashed slots, compiled, and the linear score that a bundle needs.

The arithmetic of the online learner and nothing else: no hashing, no River protocol, no files. It
imports only NumPy and Numba, so that a scorer can use :func:`linear_logits` without the training
stack.

State is one array of shape ``(2**bits, 2)``, float32 or float64, holding ``(z, sqrt(n))`` of a slot
side by side: one cache line a slot instead of two. The weight is derived, never stored, so it
cannot fall out of step with z. Arithmetic is float64 whatever the state's dtype; a logit is summed
in feature order, and neither ``fastmath`` nor threads are used: the same rows give the same bytes.
What takes time is memory, so the slots of a row are fetched a few rows before they are needed.

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
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FloatArray = np.ndarray
"""Arrays of float32 or float64; each docstring says which."""

NO_VALUES: np.ndarray = np.empty((0, 0), dtype=np.float64)
"""Pass as ``values`` when every feature has the value 1."""


ROWS_AHEAD = 3
"""Rows between the one whose slots are fetched into the cache and the one that is learnt."""


def _typed_prefetch(_typing: Any, state: Any, slot: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, arguments[0])
        row_bytes = cgutils.unpack_tuple(builder, array.strides, kind.ndim)[0]
        place = builder.zext(arguments[1], row_bytes.type)
        address = builder.add(
            builder.ptrtoint(array.data, row_bytes.type), builder.mul(place, row_bytes)
        )
        pointer = builder.inttoptr(address, cgutils.voidptr_t)
        flag = ir.IntType(32)
        fetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer.type, flag, flag, flag]),
            "llvm.prefetch.p0",
        )
        # To be written (1), and soon used again (3), by data instructions (1).
        builder.call(fetch, [pointer, flag(1), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(state, slot), generate


prefetch = cast("Callable[[np.ndarray, int], None]", intrinsic(_typed_prefetch))
"""Ask the processor to fetch ``state[slot]`` without waiting for it; for compiled code only."""


@njit(cache=True, nogil=True, error_model="numpy")
def _fetch_row(state: FloatArray, slots: np.ndarray, row: int) -> None:
    if row < slots.shape[0]:
        for feature in range(slots.shape[1]):
            prefetch(state, slots[row, feature])


@njit(cache=True, nogil=True, error_model="numpy")
def _weight(z: float, sqrt_n: float, alpha: float, beta: float, l1: float, l2: float) -> float:
    if abs(z) <= l1:
        return 0.0
    return alpha * (math.copysign(l1, z) - z) / (beta + sqrt_n + alpha * l2)


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
    per_alpha = 1.0 / alpha
    # A row is gathered, computed and scattered in loops of their own: those that compute touch
    # only these few short arrays, and the compiler makes vector instructions of them.
    z = np.empty(width)
    sqrt_n = np.empty(width)
    given = np.ones(width)
    row_weights = np.empty(width, dtype=state.dtype)
    next_z = np.empty(width)
    next_sqrt_n = np.empty(width)
    for row in range(n_rows):
        _fetch_row(state, slots, row + ROWS_AHEAD)
        for feature in range(width):
            slot = slots[row, feature]
            z[feature] = state[slot, 0]
            sqrt_n[feature] = state[slot, 1]
            if valued:
                given[feature] = values[row, feature]
        for feature in range(width):
            # Storing rounds to the state's dtype, as exported weights are rounded.
            row_weights[feature] = _weight(z[feature], sqrt_n[feature], alpha, beta, l1, l2)
        logit = 0.0
        for feature in range(width):
            logit += np.float64(row_weights[feature]) * given[feature]
        out_logits[row] = logit
        example_weight = np.float64(weights[row])
        if example_weight == 0.0:
            continue
        slope = example_weight * (1.0 / (1.0 + math.exp(-logit)) - np.float64(labels[row]))
        for feature in range(width):
            gradient = slope * given[feature]
            next_sqrt_n[feature] = math.sqrt(sqrt_n[feature] ** 2 + gradient * gradient)
            sigma = (next_sqrt_n[feature] - sqrt_n[feature]) * per_alpha
            next_z[feature] = z[feature] + (gradient - sigma * np.float64(row_weights[feature]))
        for feature in range(width):
            gradient = slope * given[feature]
            if gradient == 0.0:
                continue
            slot = slots[row, feature]
            if state[slot, 0] != z[feature] or state[slot, 1] != sqrt_n[feature]:
                # Another feature of this row has been here since: a visit of its own.
                before = np.float64(state[slot, 1])
                next_sqrt_n[feature] = math.sqrt(before**2 + gradient * gradient)
                sigma = (next_sqrt_n[feature] - before) * per_alpha
                next_z[feature] = np.float64(state[slot, 0]) + (
                    gradient - sigma * np.float64(row_weights[feature])
                )
            state[slot, 0] = next_z[feature]
            state[slot, 1] = next_sqrt_n[feature]


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
    z = np.empty(width)
    sqrt_n = np.empty(width)
    row_weights = np.empty(width, dtype=state.dtype)
    for row in range(n_rows):
        _fetch_row(state, slots, row + ROWS_AHEAD)
        for feature in range(width):
            slot = slots[row, feature]
            z[feature] = state[slot, 0]
            sqrt_n[feature] = state[slot, 1]
        for feature in range(width):
            row_weights[feature] = _weight(z[feature], sqrt_n[feature], alpha, beta, l1, l2)
        logit = 0.0
        for feature in range(width):
            if valued:
                logit += np.float64(row_weights[feature]) * np.float64(values[row, feature])
            else:
                logit += np.float64(row_weights[feature])
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
