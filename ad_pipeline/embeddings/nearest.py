"""The k most similar users among some, by one kernel whose answer depends on the vectors alone.

A library's product of matrices is fast, but the last bits of a similarity then depend on the
library, its threads and which rows it multiplies together, and with them the order of near ties.
The kernel here adds up a similarity dimension by dimension, a candidate a lane of the processor, so
that every pair has the same bits in any company and on any machine; ties go to the lower position.
An update of a graph can therefore equal its rebuild. On the few hundred candidates of a cluster it
is also sooner done than FAISS (ADR 0014).

Which users are compared with which is the caller's affair.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit

NOBODY = -1

_LANES = 256
"""Candidates whose sums are in the core's first cache together."""

_CANDIDATES = 8_192
"""Vectors of candidates in memory at once."""

Units = Callable[[np.ndarray], np.ndarray]
"""Told positions (m,) int64, returns their vectors (m, d) float32, of length 1 or 0."""


@dataclass(frozen=True)
class Nearest:
    """The most similar users of some.

    Attributes
    ----------
    similarities : ndarray of shape (q, k), float32
        Cosines, descending; minus infinity where there is nobody.
    positions : ndarray of shape (q, k), int64
        Ties ascend; :data:`NOBODY` where there is nobody.
    compared : int
        Similarities that were computed.
    """

    similarities: np.ndarray
    positions: np.ndarray
    compared: int


def nearest(
    queries: np.ndarray,
    asking: np.ndarray,
    probed: np.ndarray,
    groups: Iterable[tuple[int, np.ndarray]],
    units: Units,
    k: int,
) -> Nearest:
    """Find the k users most similar to each of some, in the groups that each probes.

    Parameters
    ----------
    queries : ndarray of shape (q, d), float32
        Vectors of those who ask, of length 1 or 0.
    asking : ndarray of shape (q,), int64
        Their positions: none is a neighbour of itself.
    probed : ndarray of shape (q, p), unsigned
        Groups that each is compared with, in any order, each once.
    groups : iterable of (int, ndarray of int64)
        Groups and the positions of their users; no user is in two of them.
    units : callable
        Vectors of those users.
    k : int

    Returns
    -------
    Nearest
    """
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    positions = np.full((len(queries), k), NOBODY, np.int64)
    sizes = np.zeros(len(queries), np.int64)
    compared = 0
    for numbers, ends, others in _batched(groups):
        compared += _search(
            np.ascontiguousarray(queries),
            asking,
            probed,
            np.array(numbers),
            np.array(ends),
            units(others),
            others,
            similarities,
            positions,
            sizes,
        )
    return Nearest(similarities, positions, compared)


def _batched(
    groups: Iterable[tuple[int, np.ndarray]],
) -> Iterable[tuple[list[int], list[int], np.ndarray]]:
    """Yield groups, or parts of a large one, together: numbers, ends, and all their positions."""
    numbers: list[int] = []
    ends: list[int] = []
    parts: list[np.ndarray] = []
    for number, others in groups:
        for start in range(0, len(others), _CANDIDATES):
            part = others[start : start + _CANDIDATES]
            if ends and ends[-1] + len(part) > _CANDIDATES:
                yield numbers, ends, np.concatenate(parts)
                numbers, ends, parts = [], [], []
            numbers.append(number)
            ends.append((ends[-1] if ends else 0) + len(part))
            parts.append(part)
    if parts:
        yield numbers, ends, np.concatenate(parts)


@njit(cache=True)
def _search(
    queries: np.ndarray,
    asking: np.ndarray,
    probed: np.ndarray,
    numbers: np.ndarray,
    ends: np.ndarray,
    vectors: np.ndarray,
    others: np.ndarray,
    similarities: np.ndarray,
    positions: np.ndarray,
    sizes: np.ndarray,
) -> int:
    """Sort the users of groups into the lists of those who probe them; return the pairs."""
    dimension = queries.shape[1]
    sums = np.empty(_LANES, np.float32)
    lanes = np.empty((dimension, _LANES), np.float32)
    k = similarities.shape[1]
    compared = 0
    first = 0
    for group in range(numbers.size):
        for start in range(first, ends[group], _LANES):
            count = min(_LANES, ends[group] - start)
            for i in range(count):
                for t in range(dimension):
                    lanes[t, i] = vectors[start + i, t]
            part = sums[:count]
            for row in range(queries.shape[0]):
                is_probed = False
                for place in range(probed.shape[1]):
                    is_probed = is_probed or probed[row, place] == numbers[group]
                if not is_probed:
                    continue
                compared += count
                part[:] = 0
                # By dimension, then by lane: the order of each lane's sum is fixed.
                for t in range(dimension):
                    x = queries[row, t]
                    lane = lanes[t, :count]
                    for i in range(count):
                        part[i] += x * lane[i]
                size = sizes[row]
                for i in range(count):
                    other = others[start + i]
                    if (size < k or part[i] >= similarities[row, k - 1]) and other != asking[row]:
                        size = _sort_in(part[i], other, similarities[row], positions[row], size)
                sizes[row] = size
        first = ends[group]
    return compared


@njit(cache=True)
def _sort_in(
    value: np.float32, position: int, values: np.ndarray, positions: np.ndarray, size: int
) -> int:
    """Put one into a list of the best, ties by position; return how many are in it."""
    i = size
    while i > 0 and (
        values[i - 1] < value or (values[i - 1] == value and positions[i - 1] > position)
    ):
        if i < values.size:
            values[i] = values[i - 1]
            positions[i] = positions[i - 1]
        i -= 1
    if i < values.size:
        values[i] = value
        positions[i] = position
        return min(size + 1, values.size)
    return size
