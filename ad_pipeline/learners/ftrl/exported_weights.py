"""A linear expert's weights as a bidder keeps them: without their zeros, exact or in 16 bits.

A bitmap says which slots have a weight, a rank directory how many weights stand before each word
of it, and the weights follow each other in order of slot; all three are plain arrays that a scorer
maps into memory. A lookup is a bit test and a population count. The exact form scores to the bit
what the dense weights score; the fixed-point form rounds at random, by a hash of (seed, goal,
slot), so that the same export gives the same bytes. Training, and what an exported slot stands
for, do not belong here.

References
----------
McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013, sections 3.1 (models whose
coefficients are sparse) and 5.1 (q2.13 encoding with randomised rounding).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from ad_pipeline.hashing import uniform
from ad_pipeline.learners.ftrl.ftrl_expert import LinearWeights, link
from ad_pipeline.learners.ftrl.slot_memory import WIDTH, sum_lanes
from ad_pipeline.settings import DelayedLoss, LinkedLoss

WeightFormat = Literal["exact", "q2.13"]
EXACT: WeightFormat = "exact"
FIXED_POINT: WeightFormat = "q2.13"

FRACTION_BITS = 13
STEP = 2.0**-FRACTION_BITS
"""Distance of two neighbouring fixed-point weights, and more than any of them is off."""

LIMIT = 4.0
"""Fixed-point weights lie in ``[-LIMIT, LIMIT)``: two bits before the point, and the sign."""

_WORD = 64
_SECOND = "second_"


class WeightsOutOfRange(ValueError):
    """A weight does not fit into q2.13.

    It is not saturated: a cut weight shifts every score of its slot by an amount that nothing
    bounds, which is what the format promises against. A weight of 4 multiplies odds by 55; where
    one is learnt, look at it first.
    """


@dataclass(frozen=True)
class SlotHistory:
    """How often, and when last, the slots of some weights were learnt.

    Attributes
    ----------
    n : ndarray of shape (coordinates,), float64
        Sum of squared gradients, in order of slot: what slows a slot's learning rate.
    last_update_hours : ndarray of shape (coordinates,), int32
        Hour of the last update, in hours since the epoch; -1 where that is not known.
    """

    n: np.ndarray
    last_update_hours: np.ndarray


@dataclass(frozen=True)
class ExportSize:
    """What an export of some weights costs.

    Attributes
    ----------
    slots, coordinates : int
        Of the dense weights; of those that are not 0.
    dense_bytes, exact_bytes : int
        With the zeros, and without.
    fixed_point_bytes : int
        In 16 bits, at most: weights below :data:`STEP` may round to 0 and leave.
    """

    slots: int
    coordinates: int
    dense_bytes: int
    exact_bytes: int
    fixed_point_bytes: int

    def to_json(self) -> dict[str, int]:
        """Return the sizes by name."""
        return dict(vars(self))


def export_size(linear: LinearWeights) -> ExportSize:
    """Return the exported coordinates and bytes of a linear expert, without exporting it.

    Parameters
    ----------
    linear : LinearWeights
    """
    coordinates = int(np.count_nonzero(linear.weights))
    words = -(-len(linear.weights) // _WORD)
    directory = words * (np.dtype(np.uint64).itemsize + np.dtype(np.uint32).itemsize)
    return ExportSize(
        slots=len(linear.weights),
        coordinates=coordinates,
        dense_bytes=linear.weights.nbytes,
        exact_bytes=directory + (coordinates + 1) * linear.weights.itemsize,
        fixed_point_bytes=directory + (coordinates + 1) * np.dtype(np.int16).itemsize,
    )


@dataclass(frozen=True)
class ExportedWeights:
    """Weights of a linear expert without the zeros; see the module.

    Attributes
    ----------
    present : ndarray of shape (ceil(slots / 64),), uint64
        Bit ``slot % 64`` of word ``slot // 64``: the slot has a weight.
    rank : ndarray of the same shape, uint32
        Weights before the word.
    values : ndarray of shape (coordinates + 1,), float32, float64 or int16
        In order of slot, then a 0 that stands behind the last, so that a lookup needs no branch.
        int16 is in units of :data:`STEP`.
    intercept : float
    loss : str
        What they were trained for, with its link: a score is a log odds only under ``logistic``.
    seed : int or None
        Of the rounding; None if nothing was rounded.
    size : ExportSize
        Of the dense weights that these come from.
    partner : ExportedWeights or None
        The second head of a loss that has two.
    horizon_days : float
        Window and lateness of the goal, for a loss whose link reads them.
    """

    present: np.ndarray
    rank: np.ndarray
    values: np.ndarray
    intercept: float
    loss: LinkedLoss | DelayedLoss
    seed: int | None
    size: ExportSize
    partner: "ExportedWeights | None" = None
    horizon_days: float = 0.0

    @classmethod
    def exact(cls, linear: LinearWeights) -> Self:
        """Return the weights in their own dtype.

        Raises
        ------
        ValueError
            If a weight is not finite.
        """
        _check_finite(linear.weights)
        partner = None if linear.partner is None else cls.exact(linear.partner)
        return cls._of(linear.weights, linear, None, partner)

    @classmethod
    def fixed_point(cls, linear: LinearWeights, seed: int, goal: str) -> Self:
        """Return the weights in 16 bits, each rounded up or down so that its mean is itself.

        A weight ``w`` becomes ``floor(w / STEP + u) * STEP`` with ``u`` uniform in ``[0, 1)``; one
        that is a multiple of :data:`STEP` stays as it is, one below it may become 0 and is then
        left out.

        Parameters
        ----------
        linear : LinearWeights
        seed : int
            The deployment's seed.
        goal : str
            Goals round independently.

        Raises
        ------
        WeightsOutOfRange
            If a weight rounds to one outside ``[-LIMIT, LIMIT)``.
        ValueError
            If a weight is not finite.
        """
        _check_finite(linear.weights)
        slots = np.flatnonzero(linear.weights)
        scaled = linear.weights[slots].astype(np.float64) / STEP
        below = np.floor(scaled)
        # Compared, not added: the sum would round, and could lift a multiple of the step.
        up = uniform(seed, slots.astype(np.uint64), f"{FIXED_POINT} weights of {goal}")
        rounded = below + (up < scaled - below)
        outside = (rounded < -LIMIT / STEP) | (rounded >= LIMIT / STEP)
        if outside.any():
            weights = linear.weights[slots[outside]]
            raise WeightsOutOfRange(
                f"{len(weights)} of {len(slots)} weights of {goal} lie outside "
                f"[{-LIMIT}, {LIMIT}), the largest by size is {weights[np.abs(weights).argmax()]}; "
                f"write {EXACT!r} as settings.export.weights, or look why they are so large"
            )
        dense = np.zeros(len(linear.weights), np.int16)
        dense[slots] = rounded.astype(np.int16)
        partner = None
        if linear.partner is not None:
            partner = cls.fixed_point(linear.partner, seed, f"{goal}, second head")
        return cls._of(dense, linear, seed, partner)

    @classmethod
    def _of(
        cls, dense: np.ndarray, source: LinearWeights, seed: int | None, partner: Self | None
    ) -> Self:
        kept = dense != 0
        words = -(-len(dense) // _WORD)
        padded = np.zeros(words * _WORD, np.bool_)
        padded[: len(dense)] = kept
        present = np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)
        counts = np.bitwise_count(present).astype(np.uint32)
        rank = np.zeros(words, np.uint32)
        np.cumsum(counts[:-1], out=rank[1:])
        values = np.append(dense[kept], np.zeros(1, dense.dtype))
        return cls(
            present=present,
            rank=rank,
            values=values,
            intercept=source.intercept,
            loss=source.loss,
            seed=seed,
            size=export_size(source),
            partner=partner,
            horizon_days=source.horizon_days,
        )

    @property
    def format(self) -> WeightFormat:
        """How the values are kept."""
        return FIXED_POINT if self.values.dtype == np.int16 else EXACT

    @property
    def n_slots(self) -> int:
        """Length of the dense weights."""
        return self.size.slots

    @property
    def coordinates(self) -> int:
        """Number of slots that have a weight."""
        return len(self.values) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.present.nbytes + self.rank.nbytes + self.values.nbytes

    @property
    def slots(self) -> np.ndarray:
        """The slots that have a weight, ascending, uint32 of shape (coordinates,)."""
        bits = np.unpackbits(self.present.astype("<u8").view(np.uint8), bitorder="little")
        return np.flatnonzero(bits).astype(np.uint32)

    @property
    def kept(self) -> np.ndarray:
        """The weights of :attr:`slots`: float64 for fixed point, else in their own dtype."""
        values = np.asarray(self.values[:-1])
        return values * STEP if self.format == FIXED_POINT else values

    def dense(self) -> LinearWeights:
        """Return every slot's weight, the zeros too."""
        kept = self.kept
        weights = np.zeros(self.n_slots, kept.dtype)
        weights[self.slots] = kept
        partner = None if self.partner is None else self.partner.dense()
        return LinearWeights(weights, self.intercept, self.loss, partner, self.horizon_days)

    def of_slots(self, slots: np.ndarray) -> np.ndarray:
        """Return the weight of each slot, float64 of the shape of ``slots``; 0 where none is."""
        flat = np.ascontiguousarray(slots, np.uint32).reshape(-1, 1)
        out = np.empty(len(flat))
        _scores(self.present, self.rank, self.values, self._unit, flat, out, 0.0)
        return out.reshape(slots.shape)

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return the log odds of rows: under the link, the sum of weights in the kernel's order.

        Parameters
        ----------
        slots : ndarray of shape (n, F), uint32, C-contiguous
            Below ``n_slots``: nothing is checked here.

        Returns
        -------
        ndarray of shape (n,), float64
            The bits of :meth:`LinearWeights.logits` of :meth:`dense`.
        """
        out = np.empty(len(slots))
        _scores(self.present, self.rank, self.values, self._unit, slots, out, self.intercept)
        partner = None if self.partner is None else self.partner.logits(slots)
        link(self.loss, out, partner, self.horizon_days)
        return out

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the three arrays by name, and those of a second head."""
        arrays = {"present": self.present, "rank": self.rank, "values": self.values}
        if self.partner is not None:
            second = self.partner.to_arrays().items()
            arrays |= {f"{_SECOND}{name}": array for name, array in second}
        return arrays

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_arrays` needs beside the arrays, and what they cost."""
        return {
            "format": self.format,
            "intercept": self.intercept,
            "loss": self.loss,
            "seed": self.seed,
            "coordinates": self.coordinates,
            "bytes": self.nbytes,
            "source": self.size.to_json(),
            "partner": None if self.partner is None else self.partner.to_json(),
            "horizon_days": self.horizon_days,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Self:
        """Return the weights of :meth:`to_arrays` and :meth:`to_json`, without copying them."""
        partner = None
        if manifest["partner"] is not None:
            second = {
                name.removeprefix(_SECOND): array
                for name, array in arrays.items()
                if name.startswith(_SECOND)
            }
            partner = cls.from_arrays(second, manifest["partner"])
        return cls(
            present=np.asarray(arrays["present"]),
            rank=np.asarray(arrays["rank"]),
            values=np.asarray(arrays["values"]),
            intercept=manifest["intercept"],
            loss=manifest["loss"],
            seed=manifest["seed"],
            size=ExportSize(**manifest["source"]),
            partner=partner,
            horizon_days=manifest["horizon_days"],
        )

    @property
    def _unit(self) -> float:
        return STEP if self.format == FIXED_POINT else 1.0


def exported(linear: LinearWeights, form: WeightFormat, seed: int, goal: str) -> ExportedWeights:
    """Return the weights in a format; see :class:`ExportedWeights`."""
    if form == FIXED_POINT:
        return ExportedWeights.fixed_point(linear, seed, goal)
    return ExportedWeights.exact(linear)


def _check_finite(weights: np.ndarray) -> None:
    wrong = int(np.count_nonzero(~np.isfinite(weights)))
    if wrong:
        raise ValueError(f"{wrong} weights are not finite; the state they come from is damaged")


def _typed_population_count(_typing: Any, word: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(word), generate


_population_count = cast("Callable[[np.uint64], np.uint64]", intrinsic(_typed_population_count))
"""Number of set bits; for compiled code only."""


@njit(cache=True, nogil=True)
def _scores(
    present: np.ndarray,
    rank: np.ndarray,
    values: np.ndarray,
    unit: float,
    slots: np.ndarray,
    out: np.ndarray,
    intercept: float,
) -> None:
    one = np.uint64(1)
    width = slots.shape[1]
    padded = (width + WIDTH - 1) // WIDTH * WIDTH
    terms = np.zeros(padded)
    score = np.empty(1)
    for row in range(slots.shape[0]):
        for feature in range(width):
            slot = np.uint64(slots[row, feature])
            word, bit = slot >> np.uint64(6), slot & np.uint64(63)
            bits = present[word]
            before = _population_count(bits & ((one << bit) - one))
            # Read whether the slot has a weight or not: a branch here is guessed wrong too often.
            weight = np.float64(values[np.uint64(rank[word]) + before])
            if not (bits >> bit) & one:
                weight = 0.0
            terms[feature] = weight * unit
        sum_lanes(terms, padded, score, (0.0,))
        out[row] = intercept + score[0]
