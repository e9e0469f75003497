"""The mixture of experts and its calibration as arrays that a scorer maps into memory.

One compiled pass from the experts' logits to a probability: mix, calibrate by the overall map,
correct by the row's slice, and take the sigmoid. It runs the very loops that
:class:`.ensemble.Ensemble` runs, so it gives its bits, and parses nothing when it scores. Fitting
belongs to the ensemble.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numba import njit

from ad_pipeline.learners.ensemble.calibration import calibrate
from ad_pipeline.learners.ensemble.ensemble import VOTING, Ensemble, mix_experts, sigmoid

STAGES = ("mixed", "calibrated", "corrected", "probability")
"""What a row passes through, in order."""


@dataclass(frozen=True)
class ExportedMixture:
    """An ensemble as arrays.

    Attributes
    ----------
    experts : tuple of str
        That the mixture reads, in the order of its weights.
    sliced_by : str or None
        The text feature whose values have corrections.
    of_probabilities : bool
        Whether probabilities are averaged (voting), not logits.
    mixture : ndarray of shape (1 + experts,), float64
        Intercept, then weights.
    maps : ndarray of shape (1 + slices, 3), float64
        Slope, upper slope and shift of the overall map, then of each slice's correction.
    firsts : ndarray of shape (2 + slices,), int64
        Where each map's knots begin; a map without knots is a line or a beta map.
    table : ndarray of shape (2, knots), float64
        Knots, and the heights at them.
    slices : ndarray of shape (slices,), uint64
        Hashes of the slices' values, ascending.
    """

    experts: tuple[str, ...]
    sliced_by: str | None
    of_probabilities: bool
    mixture: np.ndarray
    maps: np.ndarray
    firsts: np.ndarray
    table: np.ndarray
    slices: np.ndarray

    @classmethod
    def of(cls, ensemble: Ensemble) -> Self:
        """Return an ensemble as arrays."""
        layer = ensemble.calibration
        every = [layer.overall, *(each.calibration for each in layer.corrections)]
        knots = [knot for each in every for knot in each.knots]
        heights = [height for each in every for height in each.heights]
        firsts = np.cumsum([0, *(len(each.knots) for each in every)])
        return cls(
            experts=ensemble.experts,
            sliced_by=ensemble.sliced_by,
            of_probabilities=ensemble.kind == VOTING,
            mixture=np.array([ensemble.intercept, *ensemble.weights], np.float64),
            maps=np.array([(each.slope, each.upper_slope, each.shift) for each in every]),
            firsts=firsts.astype(np.int64),
            table=np.array([knots, heights], np.float64).reshape(2, -1),
            slices=np.array([each.slice_hash for each in layer.corrections], np.uint64),
        )

    def stages(
        self, logits: Mapping[str, np.ndarray], slices: np.ndarray | None = None
    ) -> np.ndarray:
        """Return every step from the experts' logits to the probability.

        Parameters
        ----------
        logits : mapping of str to ndarray of shape (n,), float64
            By expert; those that the mixture does not read may be left out.
        slices : ndarray of shape (n,), uint64, optional
            Hash of each row's value of :attr:`sliced_by`.

        Returns
        -------
        ndarray of shape (n, 4), float64
            :data:`STAGES`: the mixed logit, the calibrated one, the one corrected for its slice,
            and the probability.

        Raises
        ------
        KeyError
            If an expert that the mixture reads is missing.
        ValueError
            If slices have corrections and are left out.
        """
        matrix = np.column_stack([logits[name] for name in self.experts])
        if slices is None:
            if len(self.slices):
                raise ValueError(f"this calibration differs by {self.sliced_by}: say it for a row")
            slices = np.zeros(len(matrix), np.uint64)
        out = np.empty((len(matrix), len(STAGES)))
        _stages(
            matrix, self.mixture, self.of_probabilities, self.maps, self.firsts, self.table,
            self.slices, np.ascontiguousarray(slices), out,
        )  # fmt: skip
        return out

    def apply(
        self, logits: Mapping[str, np.ndarray], slices: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the probability of every row, float64 (n,); see :meth:`stages`."""
        return np.ascontiguousarray(self.stages(logits, slices)[:, -1])

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the arrays, and the names as JSON."""
        names = ("mixture", "maps", "firsts", "table", "slices")
        return (
            {name: getattr(self, name) for name in names},
            {
                "experts": list(self.experts),
                "sliced_by": self.sliced_by,
                "of_probabilities": self.of_probabilities,
            },
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Self:
        """Return the mixture of :meth:`to_arrays`, without copying it."""
        return cls(
            experts=tuple(manifest["experts"]),
            sliced_by=manifest["sliced_by"],
            of_probabilities=manifest["of_probabilities"],
            mixture=np.asarray(arrays["mixture"]),
            maps=np.asarray(arrays["maps"]),
            firsts=np.asarray(arrays["firsts"]),
            table=np.asarray(arrays["table"]),
            slices=np.asarray(arrays["slices"]),
        )


@njit(cache=True, nogil=True)
def _stages(
    matrix: np.ndarray,
    mixture: np.ndarray,
    of_probabilities: bool,
    maps: np.ndarray,
    firsts: np.ndarray,
    table: np.ndarray,
    known: np.ndarray,
    slices: np.ndarray,
    out: np.ndarray,
) -> None:
    step = np.empty(1)
    after = np.empty(1)
    for row in range(matrix.shape[0]):
        mix_experts(matrix[row : row + 1], mixture[1:], mixture[0], of_probabilities, step)
        out[row, 0] = step[0]
        _mapped(0, maps, firsts, table, step, after)
        out[row, 1] = after[0]
        step[0] = after[0]
        place = np.searchsorted(known, slices[row])
        if place < known.size and known[place] == slices[row]:
            _mapped(place + 1, maps, firsts, table, after, step)
        out[row, 2] = step[0]
        sigmoid(step, after)
        out[row, 3] = after[0]


@njit(cache=True, nogil=True)
def _mapped(
    which: int,
    maps: np.ndarray,
    firsts: np.ndarray,
    table: np.ndarray,
    logits: np.ndarray,
    out: np.ndarray,
) -> None:
    start, end = firsts[which], firsts[which + 1]
    calibrate(
        logits, maps[which, 0], maps[which, 1], maps[which, 2],
        table[0, start:end], table[1, start:end], out,
    )  # fmt: skip
