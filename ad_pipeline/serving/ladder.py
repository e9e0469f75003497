"""The fallback ladder: what answers a request that lost its inputs, and when.

Four rungs. ``full``: the mixture, to the bit as it was without a ladder. ``no_aggregates``: the
mixture over counts that are nothing, whose logit a line corrects that was fitted under exactly
these inputs; to a model, nothing counted means that everything is new. ``simple``: the rate of the
value of the best column that is there. ``prior``: the base rate. The last three stand in a bundle
as defaults, fitted on matured rows when it is built.

A row's rung follows from what is logged of it, its columns and its counts, and from nothing else:
so logged features give the logged score again, and a score does not depend on its company. One
compiled loop chooses and one answers, for a scorer, candidate replay and parity alike. Reading the
matured rows belongs to :mod:`ad_pipeline.features.as_served`, telling people to :mod:`.scorer` and
:mod:`.explanation`. When each rung is better than the one above was measured:
``docs/adr/0013-fallback-ladder.md``.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numba import njit

from ad_pipeline.checkpoints import read_checkpoint, write_checkpoint
from ad_pipeline.evaluation.metrics import log_loss
from ad_pipeline.features.encoding import FeatureContract, LookedUp, ReadColumns
from ad_pipeline.hashing import hashes_of_missing
from ad_pipeline.learners.ensemble.calibration import fit_kind
from ad_pipeline.learners.ensemble.ensemble import sigmoid

KIND = "serving.ladder"

FULL, NO_AGGREGATES, SIMPLE, PRIOR = range(4)
RUNGS = ("full", "no_aggregates", "simple", "prior")
"""From the one that knows most; a rung's number is its place."""

MEANS = {
    NO_AGGREGATES: "no counts; the mixture without them, re-calibrated",
    SIMPLE: "too few columns; the rate of the best one that is there",
    PRIOR: "too few columns, none with a rate; the base rate",
}
"""What each rung below the first says of itself."""

MINIMUM_POSITIVES = 30
"""Matured positives, and negatives, below which a goal has no ladder: neither has it a base rate
that is worth answering."""

USUAL_SHARE = 0.9
"""Of the matured rows that have a value: from there on a column is missed when it is null."""

_STRENGTHS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Expected positives' worth of the base rate mixed into the rate of a value; each column takes the
one that predicts best."""

_NEAREST = 1e-12
"""To 0 and 1 that a probability may come before it is taken for log odds."""


@dataclass(frozen=True)
class Ladder:
    """What stands in for one goal's score.

    Attributes
    ----------
    contract : FeatureContract
    usual : tuple of str
        Columns that matured rows have; one that is often null is missed by nobody.
    least : int
        Of the usual columns, those without which the mixture does not answer.
    prior : float
        Mean label of the matured rows.
    slope, shift : float or None
        Of the line on the mixture's log odds without counts; None of a contract without entities.
    columns : tuple of str
        Text columns whose values have rates, the one that predicts best first.
    firsts : ndarray of shape (columns + 1,), int64
        Where each column's values begin.
    hashes : ndarray of shape (values,), uint64
        Hashes of the values as ``ReadColumns`` has them, ascending in each column.
    rates : ndarray of shape (values,), float64
        Of a value that is not among them: the prior.
    """

    contract: FeatureContract
    usual: tuple[str, ...]
    least: int
    prior: float
    slope: float | None
    shift: float | None
    columns: tuple[str, ...]
    firsts: np.ndarray
    hashes: np.ndarray
    rates: np.ndarray

    def rungs(self, read: ReadColumns, looked_up: LookedUp) -> np.ndarray:
        """Return the rung that answers each row, uint8 (n,): its place in :data:`RUNGS`."""
        rungs = np.empty(len(read), np.uint8)
        _choose(
            read.hashes, read.numbers, looked_up.totals, self.slope is None, self._missing,
            self._usual_texts, self._usual_numbers, self._ranked, self.least, rungs,
        )  # fmt: skip
        return rungs

    def answers(self, rungs: np.ndarray, read: ReadColumns, mixed: np.ndarray) -> np.ndarray:
        """Return the probability of every row.

        Parameters
        ----------
        rungs : ndarray of shape (n,), uint8
            From :meth:`rungs`.
        read : ReadColumns of n rows
        mixed : ndarray of shape (n,), float64
            The mixture's probabilities; those of full rows are returned as they are.

        Returns
        -------
        ndarray of shape (n,), float64
        """
        if not np.count_nonzero(rungs):
            return mixed
        answered = np.empty(len(mixed))
        _answer(
            rungs, read.hashes, np.ascontiguousarray(mixed), self._missing, self._ranked,
            self.firsts, self.hashes, self.rates, self.prior,
            1.0 if self.slope is None else self.slope, self.shift or 0.0, answered,
        )  # fmt: skip
        return answered

    @cached_property
    def _missing(self) -> np.ndarray:
        return hashes_of_missing(self.contract.text_seeds)

    @cached_property
    def _usual_texts(self) -> np.ndarray:
        texts = self.contract.text_columns
        return np.array([texts.index(name) for name in self.usual if name in texts], np.int64)

    @cached_property
    def _usual_numbers(self) -> np.ndarray:
        numeric = self.contract.numeric
        return np.array([numeric.index(name) for name in self.usual if name in numeric], np.int64)

    @cached_property
    def _ranked(self) -> np.ndarray:
        return np.array([self.contract.text_columns.index(name) for name in self.columns], np.int64)

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the arrays, and the rest as JSON."""
        return (
            {"firsts": self.firsts, "hashes": self.hashes, "rates": self.rates},
            {
                "usual": list(self.usual),
                "least": self.least,
                "prior": self.prior,
                "slope": self.slope,
                "shift": self.shift,
                "columns": list(self.columns),
            },
        )

    @classmethod
    def from_arrays(
        cls, contract: FeatureContract, arrays: Mapping[str, np.ndarray], tree: Mapping[str, Any]
    ) -> Self:
        """Return the ladder of :meth:`to_arrays`, without copying it."""
        return cls(
            contract=contract,
            usual=tuple(tree["usual"]),
            least=tree["least"],
            prior=tree["prior"],
            slope=tree["slope"],
            shift=tree["shift"],
            columns=tuple(tree["columns"]),
            firsts=np.asarray(arrays["firsts"]),
            hashes=np.asarray(arrays["hashes"]),
            rates=np.asarray(arrays["rates"]),
        )


def fit_ladder(
    contract: FeatureContract,
    read: ReadColumns,
    labels: np.ndarray,
    uncounted: np.ndarray,
    least_share: float,
) -> Ladder | None:
    """Fit what stands in for one goal's score.

    Parameters
    ----------
    contract : FeatureContract
    read : ReadColumns of n rows
        Matured rows of the goal, in order of maturity.
    labels : ndarray of shape (n,), 0 or 1
    uncounted : ndarray of shape (n,), float64
        The mixture's probabilities of these rows with their counts taken away.
    least_share : float
        Of the usual columns, below which the mixture does not answer.

    Returns
    -------
    Ladder or None
        None with fewer than :data:`MINIMUM_POSITIVES` labels of either kind.

    Notes
    -----
    Columns are ranked by log loss on the newer half of the rows, under rates of the older half;
    one that does no better there than the base rate is left out. The rates kept are of all rows.
    """
    positives = int(labels.sum())
    if min(positives, len(labels) - positives) < MINIMUM_POSITIVES:
        return None
    targets = np.asarray(labels, np.float64)
    line = None
    if contract.entities:
        line = fit_kind("platt", _log_odds(uncounted), targets)
    there = np.column_stack(
        (read.hashes != hashes_of_missing(contract.text_seeds), ~np.isnan(read.numbers))
    )
    usual = tuple(
        name
        for name, share in zip(contract.columns, there.mean(axis=0).tolist(), strict=True)
        if share >= USUAL_SHARE
    )
    ranked = sorted(
        (loss, place, strength)
        for place in range(len(contract.text_columns))
        for loss, strength in [_held_out_loss(read.hashes[:, place], targets)]
        if strength is not None
    )
    tables = [_rates(read.hashes[:, place], targets, strength) for _, place, strength in ranked]
    return Ladder(
        contract=contract,
        usual=usual,
        least=math.ceil(least_share * len(usual)),
        prior=float(targets.mean()),
        slope=None if line is None else line.slope,
        shift=None if line is None else line.shift,
        columns=tuple(contract.text_columns[place] for _, place, _ in ranked),
        firsts=np.cumsum([0, *(len(hashes) for hashes, _ in tables)]).astype(np.int64),
        hashes=np.concatenate([np.zeros(0, np.uint64), *(hashes for hashes, _ in tables)]),
        rates=np.concatenate([np.zeros(0), *(rates for _, rates in tables)]),
    )


def write_ladder(root: Path, goal: str, ladder: Ladder) -> str:
    """Write a ladder as a checkpoint, so that a bundle can be held against it; return its digest.

    Parameters
    ----------
    root : Path
        Root of the checkpoints.
    goal : str
    ladder : Ladder
    """
    arrays, tree = ladder.to_arrays()
    contract = json.loads(ladder.contract.to_json())
    manifest = {"goal": goal, "contract": contract, "ladder": tree}
    return write_checkpoint(root, KIND, arrays, manifest).digest


def read_ladder(root: Path, digest: str) -> Ladder:
    """Return the ladder of a checkpoint, every byte verified.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        If it is not there or not intact.
    """
    checkpoint = read_checkpoint(root, digest)
    contract = FeatureContract.from_json(json.dumps(checkpoint.manifest["contract"]))
    return Ladder.from_arrays(contract, checkpoint.arrays, checkpoint.manifest["ladder"])


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    within = np.clip(probabilities, _NEAREST, 1.0 - _NEAREST)
    return np.log(within) - np.log1p(-within)


def _rates(hashes: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, ...]:
    """Return the distinct values of a column, ascending, and the shrunken rate of each.

    The strength is in expected positives, so that one suits goals of any base rate.
    """
    values, place = np.unique(hashes, return_inverse=True)
    rows = np.bincount(place).astype(np.float64)
    positives = np.bincount(place, weights=labels)
    return values, (positives + strength) / (rows + strength / labels.mean())


def _held_out_loss(hashes: np.ndarray, labels: np.ndarray) -> tuple[float, float | None]:
    """Return the least log loss on the newer half under rates of the older one, and its strength.

    The strength is None if no rate does better than the base rate.
    """
    half = len(labels) // 2
    older, newer = labels[:half], labels[half:]
    if not 0 < older.sum() < half:
        return math.inf, None
    best, chosen = log_loss(newer, np.full(len(newer), older.mean())), None
    for strength in _STRENGTHS:
        values, rates = _rates(hashes[:half], older, strength)
        place = np.minimum(np.searchsorted(values, hashes[half:]), len(values) - 1)
        known = values[place] == hashes[half:]
        loss = log_loss(newer, np.where(known, rates[place], older.mean()))
        if loss < best:
            best, chosen = loss, strength
    return best, chosen


@njit(cache=True, nogil=True)
def _choose(
    hashes: np.ndarray,
    numbers: np.ndarray,
    totals: np.ndarray,
    never_counted: bool,
    missing: np.ndarray,
    texts: np.ndarray,
    numeric: np.ndarray,
    ranked: np.ndarray,
    least: int,
    rungs: np.ndarray,
) -> None:
    for row in range(rungs.size):
        there = 0
        for place in texts:
            if hashes[row, place] != missing[place]:
                there += 1
        for place in numeric:
            if not np.isnan(numbers[row, place]):
                there += 1
        if there >= least:
            counted = never_counted
            for cell in range(totals.shape[1]):
                counted = counted or totals[row, cell] != 0
            rungs[row] = FULL if counted else NO_AGGREGATES
            continue
        rungs[row] = PRIOR
        for place in ranked:
            if hashes[row, place] != missing[place]:
                rungs[row] = SIMPLE
                break


@njit(cache=True, nogil=True)
def _answer(
    rungs: np.ndarray,
    hashes: np.ndarray,
    mixed: np.ndarray,
    missing: np.ndarray,
    ranked: np.ndarray,
    firsts: np.ndarray,
    known: np.ndarray,
    rates: np.ndarray,
    prior: float,
    slope: float,
    shift: float,
    answered: np.ndarray,
) -> None:
    logit = np.empty(1)
    probability = np.empty(1)
    for row in range(rungs.size):
        if rungs[row] == FULL:
            answered[row] = mixed[row]
        elif rungs[row] == NO_AGGREGATES:
            within = min(max(mixed[row], _NEAREST), 1.0 - _NEAREST)
            logit[0] = slope * (np.log(within) - np.log1p(-within)) + shift
            sigmoid(logit, probability)
            answered[row] = probability[0]
        else:
            answered[row] = prior
            for rank in range(ranked.size):
                value = hashes[row, ranked[rank]]
                if value != missing[ranked[rank]]:
                    values = known[firsts[rank] : firsts[rank + 1]]
                    place = np.searchsorted(values, value)
                    if place < values.size and values[place] == value:
                        answered[row] = rates[firsts[rank] + place]
                    break
