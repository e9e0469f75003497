"""The calibration layer: one map for all rows, and corrections of it for slices that need one.

A slice is the rows that share a value of one text feature: a publisher, a country. Its correction
is a map of its own on top of the overall one, so that a slice without one, or one that nobody has
seen before, has the overall map. Corrections are shifts whose prior spread is estimated from all
slices together (empirical Bayes): where slices differ by no more than chance it is 0 and there are
none. They are taken only if they are measurably better than the overall map alone on hours that
neither was fitted to; then a slice may have a map of another kind by the same rule. All maps are
strictly increasing, so that no order within a slice changes; between slices it may.

A layer names the hours of maturity that it was fitted on, and its version is the SHA-256 of all it
says. Single maps are :mod:`.calibration`; which rows are fitted on is the caller's to say.

References
----------
DerSimonian and Laird, Meta-analysis in clinical trials, Controlled Clinical Trials 7, 1986 (the
variance between slices, by moments). Efron and Morris, Stein's estimation rule and its competitors,
JASA 68, 1973.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ad_pipeline.checkpoints import CorruptCheckpoint
from ad_pipeline.learners.ensemble.calibration import (
    IDENTITY,
    MINIMUM_POSITIVES,
    PRIOR_SD,
    STANDARD_ERRORS,
    Calibration,
    Kind,
    fit_calibration,
    fit_kind,
    kind_of,
    kinds_for,
)
from ad_pipeline.learners.ensemble.selection import Candidate, Fitted, Trial, choose

SLICE_POSITIVES = 30
"""Fewer: no correction. The shared prior makes few positives harmless, but every correction is
carried along by whoever scores."""

OVERALL, BY_SLICE = "overall", "by slice"


@dataclass(frozen=True)
class Slices:
    """The slice of each row.

    Attributes
    ----------
    column : str
        The text feature whose values are the slices.
    hashes : ndarray of shape (n,), uint64
        Of the values, as the feature contract hashes them.
    names : mapping of int to str
        Value of each hash, for people; one that is not there has no name.
    """

    column: str
    hashes: np.ndarray
    names: Mapping[int, str]

    def rows(self, which: np.ndarray) -> "Slices":
        """Return the slices of some rows, given as a mask or as places."""
        return Slices(self.column, self.hashes[which], self.names)


@dataclass(frozen=True)
class Correction:
    """What a slice has on top of the overall map.

    Attributes
    ----------
    slice_hash : int
    name : str
        The slice's value, for people.
    calibration : Calibration
        From the logits of the overall map.
    rows, positives : int
        Of the slice, that it was fitted on.
    """

    slice_hash: int
    name: str
    calibration: Calibration
    rows: int
    positives: int


@dataclass(frozen=True)
class CalibrationLayer:
    """A strictly increasing map of logits for each slice.

    Attributes
    ----------
    overall : Calibration
    matured_us : tuple of int
        Hours of maturity ``[start, end)`` of the rows it was fitted on, microseconds.
    rows, positives : int
        That it was fitted on.
    column : str or None
        Of the slices; None if there is one map for all rows.
    corrections : tuple of Correction
        Ascending by hash.
    """

    overall: Calibration
    matured_us: tuple[int, int]
    rows: int
    positives: int
    column: str | None = None
    corrections: tuple[Correction, ...] = ()

    def apply(self, logits: np.ndarray, slices: np.ndarray | None = None) -> np.ndarray:
        """Return calibrated logits; one row gives the bits that it gives among many.

        Parameters
        ----------
        logits : ndarray of shape (n,), float64
        slices : ndarray of shape (n,), uint64, optional
            Hash of each row's slice. May be left out if no slice has a correction.

        Returns
        -------
        ndarray of shape (n,), float64
            NaN where the logit is.

        Raises
        ------
        ValueError
            If slices are left out and some have corrections.
        """
        calibrated = self.overall.apply(logits)
        if not self.corrections:
            return calibrated
        if slices is None:
            raise ValueError(f"this calibration differs by {self.column}: say it for every row")
        known = np.array([each.slice_hash for each in self.corrections], dtype=np.uint64)
        place = np.minimum(np.searchsorted(known, slices), len(known) - 1)
        place = np.where(known[place] == slices, place, -1)
        for at in np.unique(place[place >= 0]).tolist():
            rows = place == at
            calibrated[rows] = self.corrections[at].calibration.apply(calibrated[rows])
        return calibrated

    @property
    def version(self) -> str:
        """SHA-256 of the layer's canonical JSON, hexadecimal."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def description(self) -> str:
        """What it is, for people."""
        if self.column is None:
            return self.overall.kind
        return f"{self.overall.kind}, {len(self.corrections)} values of {self.column} corrected"

    def to_json(self) -> dict[str, Any]:
        """Return the layer as JSON with its version; Python's JSON keeps every bit of a float."""
        return self._content() | {"version": self.version}

    def _content(self) -> dict[str, Any]:
        return {
            "overall": self.overall.to_json(),
            "matured_us": list(self.matured_us),
            "rows": self.rows,
            "positives": self.positives,
            "column": self.column,
            "corrections": [
                {
                    "slice_hash": each.slice_hash,
                    "name": each.name,
                    "calibration": each.calibration.to_json(),
                    "rows": each.rows,
                    "positives": each.positives,
                }
                for each in self.corrections
            ],
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Return the layer of :meth:`to_json`.

        Raises
        ------
        CorruptCheckpoint
            If it does not say what its version was made of.
        """
        start_us, end_us = tree["matured_us"]
        layer = cls(
            overall=Calibration.from_json(tree["overall"]),
            matured_us=(start_us, end_us),
            rows=tree["rows"],
            positives=tree["positives"],
            column=tree["column"],
            corrections=tuple(
                Correction(
                    each["slice_hash"],
                    each["name"],
                    Calibration.from_json(each["calibration"]),
                    each["rows"],
                    each["positives"],
                )
                for each in tree["corrections"]
            ),
        )
        if layer.version != tree["version"]:
            raise CorruptCheckpoint(
                f"a calibration says it is version {tree['version']}, its content is version "
                f"{layer.version}; restore what holds it or materialize it again"
            )
        return layer


def fit_layer(
    logits: np.ndarray,
    labels: np.ndarray,
    hours: np.ndarray,
    matured_us: tuple[int, int],
    folds: int,
    slices: Slices | None = None,
) -> tuple[CalibrationLayer, dict[str, tuple[Trial, ...]]]:
    """Choose and fit the overall map, then the corrections of the slices.

    Parameters
    ----------
    logits : ndarray of shape (n,), float64
    labels : ndarray of shape (n,), 0 or 1
        Matured.
    hours : ndarray of shape (n,), int64
        The hour of each row, for blocked folds.
    matured_us : tuple of int
        The hours of maturity that the rows were taken from, microseconds.
    folds : int
    slices : Slices of n rows, optional

    Returns
    -------
    layer : CalibrationLayer
    trials : dict of str to tuple of Trial
        How the overall map was chosen, under ``"overall"``; whether by slice, under ``"by slice"``;
        and under the name of each slice whose map is not a shift. Empty where nothing was tried.
    """
    overall, trials = fit_calibration(logits, labels, hours, folds)
    told: dict[str, tuple[Trial, ...]] = {OVERALL: trials}
    layer = CalibrationLayer(overall, matured_us, len(labels), int(labels.sum()))
    if slices is None:
        return layer, told
    corrections, told[BY_SLICE], others = _corrections(
        overall.kind, logits, labels, hours, folds, slices
    )
    sliced = CalibrationLayer(
        overall, matured_us, layer.rows, layer.positives, slices.column, corrections
    )
    return sliced, told | others


def _corrections(
    kind: Kind,
    logits: np.ndarray,
    labels: np.ndarray,
    hours: np.ndarray,
    folds: int,
    slices: Slices,
) -> tuple[tuple[Correction, ...], tuple[Trial, ...], dict[str, tuple[Trial, ...]]]:
    """Return the corrections that the data ask for, and what was tried to find that out."""
    distinct, place = np.unique(slices.hashes, return_inverse=True)
    positives = np.bincount(place, weights=labels, minlength=len(distinct)).astype(np.int64)
    rows = np.bincount(place, minlength=len(distinct))
    enough = np.minimum(positives, rows - positives) >= SLICE_POSITIVES
    if not enough.any():
        return (), (), {}
    # Slices too small for a correction share the place behind the last one.
    places = np.where(enough, np.cumsum(enough) - 1, enough.sum())[place]
    inputs = np.column_stack((logits, places.astype(np.float64)))
    number = int(enough.sum())

    def overall(given: np.ndarray, targets: np.ndarray) -> Fitted:
        found = fit_kind(kind, given[:, 0], targets)
        return lambda rows: found.apply(rows[:, 0])

    def by_slice(given: np.ndarray, targets: np.ndarray) -> Fitted:
        found = fit_kind(kind, given[:, 0], targets)
        corrected, at = found.apply(given[:, 0]), given[:, 1].astype(np.int64)
        spread_sd = _spread_sd(corrected, targets, at, number)
        shifts = _shifts(corrected, targets, at, number, spread_sd)
        added = np.append([shift.shift for shift in shifts], 0.0)
        return lambda rows: found.apply(rows[:, 0]) + added[rows[:, 1].astype(np.int64)]

    chosen, trials = choose(
        [Candidate(OVERALL, overall), Candidate(BY_SLICE, by_slice)],
        inputs,
        labels,
        hours,
        folds,
        STANDARD_ERRORS,
    )
    if chosen.name == OVERALL:
        return (), trials, {}
    calibrated = fit_kind(kind, logits, labels).apply(logits)
    spread_sd = _spread_sd(calibrated, labels, places, number)
    if spread_sd == 0.0:
        return (), trials, {}
    shifts = _shifts(calibrated, labels, places, number, spread_sd)
    corrections: list[Correction] = []
    others: dict[str, tuple[Trial, ...]] = {}
    for at, slice_hash in enumerate(distinct[enough].tolist()):
        of_slice = places == at
        name = slices.names.get(slice_hash, "")
        correction = shifts[at]
        if positives[enough][at] >= MINIMUM_POSITIVES:
            correction, tried = _of_another_kind(
                correction,
                spread_sd,
                calibrated[of_slice],
                labels[of_slice],
                hours[of_slice],
                folds,
            )
            if correction.kind != "shift":
                others[name or str(slice_hash)] = tried
        counts = int(of_slice.sum()), int(labels[of_slice].sum())
        corrections.append(Correction(slice_hash, name, correction, *counts))
    return tuple(corrections), trials, others


def _shifts(
    calibrated: np.ndarray,
    labels: np.ndarray,
    places: np.ndarray,
    number: int,
    spread_sd: float,
) -> list[Calibration]:
    """Return the shift of each slice, shrunk by how far the slices differ; 0 where they do not."""
    if spread_sd == 0.0:
        return [IDENTITY] * number
    return [
        fit_kind("shift", calibrated[places == at], labels[places == at], spread_sd)
        for at in range(number)
    ]


def _spread_sd(
    calibrated: np.ndarray, labels: np.ndarray, places: np.ndarray, number: int
) -> float:
    """Return the standard deviation of the slices' shifts, by moments, at most :data:`PRIOR_SD`.

    With score S and information I of a slice's shift at 0, E[S^2 / I] = 1 + variance * I.
    """
    p = 1.0 / (1.0 + np.exp(-calibrated))
    score = np.bincount(places, weights=labels - p, minlength=number + 1)[:number]
    information = np.bincount(places, weights=p * (1.0 - p), minlength=number + 1)[:number]
    informed = information > 0
    score, information = score[informed], information[informed]
    if not len(score):
        return 0.0
    excess = float((score * score / information).sum()) - len(score)
    return min(PRIOR_SD, max(0.0, excess / float(information.sum())) ** 0.5)


def _of_another_kind(
    shift: Calibration,
    shift_sd: float,
    calibrated: np.ndarray,
    labels: np.ndarray,
    hours: np.ndarray,
    folds: int,
) -> tuple[Calibration, tuple[Trial, ...]]:
    """Return a slice's shift, or the map that is measurably better on its own rows."""

    def shifted(given: np.ndarray, targets: np.ndarray) -> Fitted:
        return fit_kind("shift", given, targets, shift_sd).apply

    def of_kind(kind: Kind) -> Candidate:
        return Candidate(kind, lambda given, targets: fit_kind(kind, given, targets).apply)

    kinds = kinds_for(int(labels.sum()))[2:]  # a shrunk line and a shift are what it has
    candidates = [Candidate("shift", shifted), *map(of_kind, kinds)]
    chosen, trials = choose(candidates, calibrated, labels, hours, folds, STANDARD_ERRORS)
    if chosen.name == "shift":
        return shift, trials
    return fit_kind(kind_of(chosen.name), calibrated, labels), trials
