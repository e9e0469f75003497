"""Random sparse click streams for the tests of this room."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stream:
    """Hashed rows with labels of a known logistic truth.

    Attributes
    ----------
    slots : ndarray of shape (n, F), uint32
    values : ndarray of shape (n, F), float64
    labels : ndarray of shape (n,), uint8
    truth : ndarray of shape (n,), float64
        The true probability.
    """

    slots: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    truth: np.ndarray


def sparse_stream(
    seed: int, rows: int, width: int, bits: int, rate: float = 0.2, spread: float = 0.4
) -> Stream:
    """Draw Zipf-like slots, distinct inside a row, normal values, and logistic labels."""
    generator = np.random.default_rng(seed)
    size = (1 << bits) // width
    within = np.minimum(generator.zipf(1.3, (rows, width)) - 1, size - 1)
    slots = (np.arange(width) * size + within).astype(np.uint32)
    values = np.round(generator.normal(1.0, 0.5, (rows, width)), 3)
    weights = generator.normal(0.0, spread, 1 << bits)
    logits = np.log(rate / (1 - rate)) + (weights[slots] * values).sum(axis=1)
    truth = 1 / (1 + np.exp(-logits))
    labels = (generator.random(rows) < truth).astype(np.uint8)
    return Stream(slots, values, labels, truth)
