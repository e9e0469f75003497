"""Simulated clicks over slots, for studies of a learner alone: no log, no join, no hashing.

A row has one token in each field; tokens of a field follow a bounded Zipf law, so that a few are
everywhere and most are seen once or never. A logistic truth is drawn over the tokens and known. The
shapes that studies share stand here with the reason for each number; what is measured on them
stands in ``benchmarks/evidence``.
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Shape:
    """What a stream looks like.

    Attributes
    ----------
    vocabularies : tuple of int
        Tokens of each field.
    exponent : float
        Of the Zipf law: the chance of the r-th token is proportional to ``r**-exponent``.
    rate : float
        Click rate of a row whose tokens all have coefficient 0.
    spread : float
        Standard deviation of the coefficients that are not 0, in log odds.
    relevant : float
        Share of the tokens that have a coefficient; that of all others is 0.
    fading : float
        How much less the tokens of a larger field tell: their spread is multiplied by ``(size /
        smallest size)**-fading``.
    intercept : bool
        Whether a slot of its own stands in every row. Without it, `rate` is one half.
    """

    vocabularies: tuple[int, ...]
    exponent: float = 1.1
    rate: float = 0.05
    spread: float = 0.5
    relevant: float = 1.0
    fading: float = 0.0
    intercept: bool = True

    @property
    def n_slots(self) -> int:
        """Slots in use: one a token, and one for the intercept, used or not."""
        return sum(self.vocabularies) + 1


LONG_TAILED = (10, 20, 50, 200, 1_000, 5_000, 20_000, 100_000, 1_000_000, 1_000_000)
"""From a banner's position to a user: nearly two thirds of the tokens seen in 300,000 rows are seen
once, and every row has some of them."""

FADING = Shape(LONG_TAILED, spread=1.0, relevant=0.3, fading=0.105)
"""A user tells 0.3 of what a position tells, as where coarse fields carry most of the signal."""

EVEN = Shape(LONG_TAILED, spread=1.0, relevant=0.3)
"""Every token tells as much as any other, however rare: the hardest case for leaving rare ones
out, and the one in which rates of their own are worth most."""

UNIFORM = Shape((1_000,) * 10, exponent=0.0, rate=0.5, spread=1.0, relevant=0.3, intercept=False)
"""No slot is more frequent than another, there is none for the intercept even: nothing for rates of
their own to adapt to."""


@dataclass(frozen=True)
class Clicks:
    """Rows of a stream.

    Attributes
    ----------
    slots : ndarray of shape (n, F + 1), uint32
        The last column is the intercept; without one, the shape is (n, F).
    labels : ndarray of shape (n,), uint8
    truth : ndarray of shape (n,), float64
        True log odds.
    """

    slots: np.ndarray
    labels: np.ndarray
    truth: np.ndarray

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.slots)

    @property
    def bits(self) -> int:
        """Fewest bits that hold every slot of these rows."""
        return int(self.slots.max()).bit_length()

    def compact(self) -> "Clicks":
        """Return the same rows over as many slots as they have tokens, one each."""
        slots = np.unique(self.slots, return_inverse=True)[1]
        return replace(self, slots=slots.reshape(self.slots.shape).astype(np.uint32))


def coefficients(shape: Shape, seed: int) -> np.ndarray:
    """Draw the truth: log odds by slot, float64 of shape (n_slots,); the intercept is the last."""
    rng = np.random.default_rng([seed, 1])
    sizes = np.array(shape.vocabularies, dtype=np.float64)
    by_field = shape.spread * (sizes / sizes.min()) ** -shape.fading
    drawn = rng.normal(0.0, 1.0, shape.n_slots)
    drawn[:-1] *= np.repeat(by_field, shape.vocabularies)
    drawn[rng.random(shape.n_slots) >= shape.relevant] = 0.0
    drawn[-1] = np.log(shape.rate / (1.0 - shape.rate))
    return drawn


def clicks(
    shape: Shape, seed: int, rows: int, part: int = 0, truth: np.ndarray | None = None
) -> Clicks:
    """Draw rows of a stream.

    Parameters
    ----------
    shape : Shape
    seed : int
    rows : int
    part : int
        Parts of one seed have other rows of the same truth.
    truth : ndarray of shape (n_slots,), optional
        Log odds by slot; those of :func:`coefficients` by default.

    Returns
    -------
    Clicks
    """
    rng = np.random.default_rng([seed, 2, part])
    by_slot = coefficients(shape, seed) if truth is None else truth
    slots = np.empty((rows, len(shape.vocabularies) + shape.intercept), dtype=np.uint32)
    first = 0
    for field, size in enumerate(shape.vocabularies):
        chances = np.cumsum(np.arange(1, size + 1, dtype=np.float64) ** -shape.exponent)
        ranks = np.searchsorted(chances, rng.random(rows) * chances[-1], side="right")
        slots[:, field] = first + np.minimum(ranks, size - 1)
        first += size
    if shape.intercept:
        slots[:, -1] = first
    log_odds = by_slot[slots].sum(axis=1)
    labels = rng.random(rows) < 1.0 / (1.0 + np.exp(-log_odds))
    return Clicks(slots, labels.astype(np.uint8), log_odds)
