"""Rows of numbers by slot: bags of slots as means, and the step that learns the rows they met.

It lies outside JAX for what it does is memory, not arithmetic: a batch meets some thousand slots,
and only those are touched. What the bags stand for belongs to :mod:`.content`, what their means are
for to :mod:`.encoder`. The wide & deep expert has a table too, laid out for requests of a bidder:
with wide weights, slots that are never stored, and prefetching; it is a room further on.

**Row-wise AdaGrad.** A slot keeps one sum of squares, to which a step adds the mean of its row's
squared gradients; gradients of a slot that a batch meets more than once are summed before its one
step, in the order in which the batch has them.

References
----------
Naumov et al., Deep Learning Recommendation Model for Personalization and Recommendation Systems,
arXiv 1906.00091, 2019, whose public code has the row-wise step. Duchi, Hazan and Singer, JMLR 2011.
"""

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from ad_pipeline.embeddings.sequences import NOTHING
from ad_pipeline.hashing import uniform

FIRST_SQUARES = 1.0
"""AdaGrad's sums begin here, so that a slot's first step is as large as its gradient says."""

FIRST_SCALE = 0.1
"""Rows that were not learnt are uniform in [-0.1, 0.1): little beside what is learnt."""


@dataclass(frozen=True)
class SlotTable:
    """2^bits rows; that of :data:`.sequences.NOTHING` stays 0.

    Attributes
    ----------
    rows : ndarray of shape (2**bits, w), float32
    squares : ndarray of shape (2**bits,), float32
    """

    rows: np.ndarray
    squares: np.ndarray

    @classmethod
    def first(cls, bits: int, width: int, seed: int, name: str) -> "SlotTable":
        """Return a table that has learnt nothing; its rows are drawn by hash of (seed, name)."""
        draws = uniform(seed, np.arange(width << bits, dtype=np.uint64), f"slot table, {name}")
        rows = ((2.0 * draws - 1.0) * FIRST_SCALE).astype(np.float32).reshape(-1, width)
        rows[NOTHING] = 0.0
        return cls(rows, np.zeros(len(rows), np.float32))

    def copy(self) -> "SlotTable":
        """Return a table that later steps of this one do not change."""
        return SlotTable(self.rows.copy(), self.squares.copy())

    def means(self, tokens: np.ndarray) -> np.ndarray:
        """Return the mean row of each bag's slots; 0 of an empty one.

        Parameters
        ----------
        tokens : ndarray of shape (..., T), uint32
            Below 2**bits; :data:`.sequences.NOTHING` pads.

        Returns
        -------
        ndarray of shape (..., w), float32

        Raises
        ------
        ValueError
            If a slot is out of range.
        """
        flat = self._bags(tokens)
        out = np.zeros((len(flat), self.rows.shape[1]), np.float32)
        _add_means(flat, self.rows, out)
        return out.reshape(*tokens.shape[:-1], out.shape[1])

    def step(self, tokens: np.ndarray, gradients: np.ndarray, rate: float) -> None:
        """Take one step of row-wise AdaGrad on every slot of some bags.

        Parameters
        ----------
        tokens : ndarray of shape (..., T), uint32
        gradients : ndarray of shape (..., w), float32
            Of the loss by what :meth:`means` returned; slots whose gradients are all 0 stay.
        rate : float
        """
        flat = self._bags(tokens)
        by_bag = np.ascontiguousarray(gradients, np.float32).reshape(len(flat), self.rows.shape[1])
        order = np.argsort(flat.reshape(-1), kind="stable")
        _step(
            flat, by_bag, order, self.rows, self.squares,
            np.float32(rate), np.float32(FIRST_SQUARES),
        )  # fmt: skip

    def _bags(self, tokens: np.ndarray) -> np.ndarray:
        if tokens.size and int(tokens.max()) >= len(self.rows):
            raise ValueError(
                f"slot {tokens.max()} is none of {len(self.rows)}; hash tokens with the bits of "
                "the settings"
            )
        bags = math.prod(tokens.shape[:-1])
        return np.ascontiguousarray(tokens, np.uint32).reshape(bags, tokens.shape[-1])


@njit(cache=True, nogil=True)
def _add_means(bags: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    for bag in range(bags.shape[0]):
        count = 0
        for place in range(bags.shape[1]):
            slot = bags[bag, place]
            if slot != NOTHING:
                count += 1
                for column in range(rows.shape[1]):
                    out[bag, column] += rows[slot, column]
        if count > 1:
            for column in range(rows.shape[1]):
                out[bag, column] /= np.float32(count)


@njit(cache=True, nogil=True)
def _step(
    bags: np.ndarray,
    gradients: np.ndarray,
    order: np.ndarray,
    rows: np.ndarray,
    squares: np.ndarray,
    rate: np.float32,
    first_squares: np.float32,
) -> None:
    places = bags.shape[1]
    shares = np.zeros(bags.shape[0], np.float32)
    for bag in range(bags.shape[0]):
        count = 0
        for place in range(places):
            count += bags[bag, place] != NOTHING
        if count:
            shares[bag] = np.float32(1.0) / np.float32(count)
    width = rows.shape[1]
    total = np.zeros(width, np.float32)
    at = 0
    while at < order.size:
        slot = bags[order[at] // places, order[at] % places]
        total[:] = np.float32(0.0)
        while at < order.size and bags[order[at] // places, order[at] % places] == slot:
            bag = order[at] // places
            for column in range(width):
                total[column] += shares[bag] * gradients[bag, column]
            at += 1
        squared = np.float32(0.0)
        for column in range(width):
            squared += total[column] * total[column]
        if slot == NOTHING or squared == np.float32(0.0):
            continue
        squares[slot] += squared / np.float32(width)
        slowed = rate / np.sqrt(squares[slot] + first_squares)
        for column in range(width):
            rows[slot, column] -= slowed * total[column]
