"""Learners that the online learner is compared with: online gradient descent in its variants.

No code of the product and none of its tricks: one pass over slots of value 1, a weight that is
stored, a rate that is written out. What they are compared on stands in ``benchmarks/evidence``.

References
----------
McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013, sections 3 and 3.1, and
OGD-Count of its table 2.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit

Rate = Literal["per coordinate", "global gradients", "global rows"]
_RATES: tuple[Rate, ...] = ("per coordinate", "global gradients", "global rows")


@dataclass(frozen=True)
class GradientDescent:
    """Online gradient descent on log loss over slots, features of value 1.

    Attributes
    ----------
    alpha, beta : float
    rate : {'per coordinate', 'global gradients', 'global rows'}
        What divides alpha: ``beta + sqrt`` of the coordinate's sum of squared gradients, of all
        coordinates' sum, or of the number of rows. With the first, this is FTRL-Proximal without
        regularisation.
    at_least : int
        OGD-Count: a coordinate's weight stays 0 until the row that is its ``at_least``-th.
    """

    alpha: float
    beta: float = 1.0
    rate: Rate = "per coordinate"
    at_least: int = 1

    def learn(
        self, slots: np.ndarray, labels: np.ndarray, n_slots: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Learn rows in order, each once.

        Parameters
        ----------
        slots : ndarray of shape (n, F), uint32
            Distinct inside a row.
        labels : ndarray of shape (n,), 0 or 1
        n_slots : int

        Returns
        -------
        logits : ndarray of shape (n,), float64
            Each row's from before its own update.
        weights : ndarray of shape (n_slots,), float64
            At the end.
        """
        weights = np.zeros(n_slots)
        logits = np.empty(len(slots))
        _descend(
            weights, slots, labels.astype(np.float64), self.alpha, self.beta,
            _RATES.index(self.rate), self.at_least, logits,
        )  # fmt: skip
        return logits, weights


@njit(cache=True)
def _descend(
    weights: np.ndarray,
    slots: np.ndarray,
    labels: np.ndarray,
    alpha: float,
    beta: float,
    rate: int,
    at_least: int,
    logits: np.ndarray,
) -> None:
    seen = np.zeros(len(weights), dtype=np.int64)
    squares = np.zeros(len(weights))
    all_squares = 0.0
    for row in range(slots.shape[0]):
        logit = 0.0
        for slot in slots[row]:
            logit += weights[slot]
        logits[row] = logit
        gradient = 1.0 / (1.0 + np.exp(-logit)) - labels[row]
        for slot in slots[row]:
            seen[slot] += 1
            if seen[slot] >= at_least:
                squares[slot] += gradient * gradient
                all_squares += gradient * gradient
        for slot in slots[row]:
            if seen[slot] < at_least:
                continue
            if rate == 0:
                step = alpha / (beta + np.sqrt(squares[slot]))
            elif rate == 1:
                step = alpha / (beta + np.sqrt(all_squares))
            else:
                step = alpha / (beta + np.sqrt(row + 1.0))
            weights[slot] -= step * gradient
