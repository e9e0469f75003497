"""Whether the labels of an hour are what the hours before let expect.

Judged by what was emitted in the hour, so that it is known before anything learns it. How many
positives are due follows from the anchors of this and past hours and from how long labels took in
the reference: nothing is said against an hour because its traffic was small or labels are slow.
Rates vary from hour to hour beyond chance, and neighbouring hours together: the expectation is a
negative binomial whose spread comes from the reference, never below a floor. A verdict needs a
large effect as well as certainty, at a level shared by all slices and tests of the hour
(Bonferroni). Reading and writing rows is :mod:`.label_quality_hours`; what is left out because of
a verdict is for ``learners`` to decide.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np

from ad_pipeline.settings import LabelQualitySettings

ALL = "all"
"""The slice of all anchors of a goal."""

TESTS = 5
"""Of a slice in an hour: stalled, jumped, late, too late, retracted."""

VerdictName = Literal[
    "as expected", "stalled", "jumped", "late", "retracted a lot", "too few", "warming up"
]

NOT_COMPARED_WITH: tuple[VerdictName, ...] = ("stalled", "jumped", "late")
"""Verdicts of labels that say nothing about later ones."""

SUSPECT: tuple[VerdictName, ...] = (*NOT_COMPARED_WITH, "retracted a lot")
"""Verdicts that people are told of."""

Part = tuple[str, str]
"""Column of an impression and its value; (ALL, "") for all anchors."""


@dataclass(frozen=True)
class Series:
    """What became known of some anchors' labels, by hour.

    Attributes
    ----------
    known, firsts : ndarray of shape (T,), float64
        Anchors that became known, and that had their first emission.
    positives, late : ndarray of shape (T, L), float64
        Emitted positives by whole hours since their anchor's first emission; of them those after
        the observation window.
    too_late, retracted : ndarray of shape (T,), float64
    """

    known: np.ndarray
    firsts: np.ndarray
    positives: np.ndarray
    late: np.ndarray
    too_late: np.ndarray
    retracted: np.ndarray

    @classmethod
    def empty(cls, hours: int, lags: int) -> Self:
        """Return a series of zeros."""
        shapes = {"positives": (hours, lags), "late": (hours, lags)}
        return cls(**{f.name: np.zeros(shapes.get(f.name, (hours,))) for f in fields(cls)})

    def between(self, first: int, last: int) -> Self:
        """Return the hours ``[first, last)``."""
        return type(self)(**{f.name: getattr(self, f.name)[first:last] for f in fields(self)})

    def without(self, other: "Series", hours: slice | list[int] = slice(None)) -> Self:
        """Return the series less another in some hours."""
        left = {}
        for field in fields(self):
            left[field.name] = getattr(self, field.name).copy()
            left[field.name][hours] -= getattr(other, field.name)[hours]
        return type(self)(**left)


@dataclass(frozen=True)
class Expectation:
    """How many events an hour should have had.

    Attributes
    ----------
    mean : float
    relative_variance : float
        Of what the mean is off by, beyond chance: of the hour itself and of the reference.
    """

    mean: float
    relative_variance: float

    def at_most(self, count: float) -> float:
        """Return the probability of so few events."""
        from scipy.special import betainc

        shape, success = self._parameters
        return float(betainc(shape, math.floor(count) + 1, success)) if count >= 0 else 0.0

    def at_least(self, count: float) -> float:
        """Return the probability of so many events."""
        from scipy.special import betaincc

        shape, success = self._parameters
        return float(betaincc(shape, math.ceil(count), success)) if count > 0 else 1.0

    def bounds(self, level: float) -> tuple[float, float]:
        """Return the counts beyond which lies at most the level, on either side."""
        return self._quantile(level), self._quantile(1 - level)

    def _quantile(self, share: float) -> float:
        """Return the least count that so large a share does not exceed."""
        from scipy.special import nbdtrik

        count = math.ceil(max(float(nbdtrik(share, *self._parameters)), 0.0))
        # The inverse stops a rounding error above or below a whole number.
        return float(count - 1 if self.at_most(count - 1) >= share else count)

    @property
    def _parameters(self) -> tuple[float, float]:
        shape = 1.0 / self.relative_variance
        return shape, shape / (shape + max(self.mean, 1e-9))


@dataclass(frozen=True)
class JudgedLabels:
    """What one hour's labels of a part look like.

    Attributes
    ----------
    anchors, positives, late, too_late, retracted : int
    positives_due, late_due, retracted_due : float
        Expected; NaN while warming up.
    low, high : float
        Of the positives, at the level of the test.
    retraction_rate, coverage : float
        Retractions over the positives of a horizon; share of its anchors whose state is known.
    verdict : str
    reason : str
    """

    anchors: int
    positives: int
    late: int
    too_late: int
    retracted: int
    positives_due: float
    late_due: float
    retracted_due: float
    low: float
    high: float
    retraction_rate: float
    coverage: float
    verdict: VerdictName
    reason: str


def expectation(
    observed: np.ndarray, exposure: np.ndarray, now: float, settings: LabelQualitySettings
) -> Expectation:
    """Return how many events an hour of some exposure should have, by reference hours.

    Parameters
    ----------
    observed : ndarray of shape (n,), float64
        Events of the reference hours.
    exposure : ndarray of shape (n,), float64
        How many there would have been at the rate of all anchors.
    now : float
        The same of the hour itself.
    settings : LabelQualitySettings
    """
    # One event at the rate of all: a part without a history is taken for an average one.
    level = (observed.sum() + 1.0) / (exposure.sum() + 1.0)
    due = level * exposure
    squares = (due**2).sum()
    excess = ((observed - due) ** 2 - due).sum() / squares if squares > 0 else 0.0
    spread = max(settings.least_spread**2, excess)
    of_mean = min(settings.correlated_hours / max(len(observed), 1), 1.0)
    return Expectation(level * now, spread * (1.0 + of_mean) + 1.0 / (observed.sum() + 1.0))


def judge_hour(
    series: Mapping[Part, Series],
    hour: int,
    suspects: Mapping[int, frozenset[Part]],
    horizon_hours: int,
    settings: LabelQualitySettings,
) -> dict[Part, JudgedLabels]:
    """Judge the labels of an hour, of all anchors and of each part.

    Parameters
    ----------
    series : mapping of Part to Series
        With (ALL, "") among them; hours up to ``hour`` at least.
    hour : int
        Place of the hour in the series.
    suspects : mapping of int to frozenset of Part
        Place of an earlier hour to the parts that were suspect in it.
    horizon_hours : int
        Of the goal: window and lateness.
    settings : LabelQualitySettings
    """
    everything = (ALL, "")
    recent = {
        place: parts
        for place, parts in suspects.items()
        if hour - settings.excluded_hours <= place < hour
    }
    first = max(0, hour - settings.reference_hours)
    left_out = {place for place, parts in recent.items() if everything in parts}
    clean = series[everything]
    for part in {part for parts in recent.values() for part in parts if part in series}:
        if part != everything:
            own = [p for p, parts in recent.items() if part in parts and p not in left_out]
            clean = clean.without(series[part], own)
    reference = [p for p in range(first, hour) if p not in left_out and clean.firsts[p] > 0]
    if len(reference) < settings.warm_up_hours:
        reason = f"{len(reference)} hours to compare with"
        return {
            part: _warming_up(_Counted.of(one, hour, horizon_hours), reason)
            for part, one in series.items()
        }
    rates = _Rates.of(clean, reference, horizon_hours)
    level = settings.false_alarms_per_day / 24.0 / (TESTS * len(series))
    judged: dict[Part, JudgedLabels] = {}
    for part, one in series.items():
        if part != everything:
            own = [p for p in reference if part not in recent.get(p, ())]
            judged[part] = _judged(one, hour, own, rates, level, settings)
    whole = _judged(clean, hour, reference, rates, level, settings)
    for column in dict.fromkeys(part[0] for part in judged):
        bad = [p for p in judged if p[0] == column and judged[p].verdict in NOT_COMPARED_WITH]
        share = sum(judged[part].positives_due for part in bad) / max(whole.positives_due, 1e-9)
        if bad and share <= settings.largest_share:
            rest = series[everything]
            for part in bad:
                rest = rest.without(series[part])
            whole = _judged(rest, hour, reference, rates, level, settings)
            break
    return {everything: whole} | judged


@dataclass(frozen=True)
class _Counted:
    """One hour's counts of a part, and what it had within a horizon."""

    anchors: int
    positives: int
    late: int
    too_late: int
    retracted: int
    retraction_rate: float
    coverage: float

    @classmethod
    def of(cls, one: Series, hour: int, horizon_hours: int) -> Self:
        span = slice(max(0, hour - horizon_hours), hour + 1)
        recent, known = one.positives[span].sum(), one.known[span].sum()
        return cls(
            anchors=int(one.firsts[hour]),
            positives=int(one.positives[hour].sum()),
            late=int(one.late[hour].sum()),
            too_late=int(one.too_late[hour]),
            retracted=int(one.retracted[hour]),
            retraction_rate=float(one.retracted[hour] / recent) if recent else float("nan"),
            coverage=float(min(one.firsts[span].sum() / known, 1.0)) if known else float("nan"),
        )


@dataclass(frozen=True)
class _Rates:
    """How events follow from anchors and from positives, over all anchors of the reference.

    ``positives`` and ``late`` are events an anchor by lag, (L,); the others events a positive of
    the last ``horizon`` hours.
    """

    positives: np.ndarray
    late: np.ndarray
    too_late: float
    retracted: float
    horizon: int

    @classmethod
    def of(cls, clean: Series, reference: list[int], horizon_hours: int) -> Self:
        hours = np.array(reference)
        lags = np.arange(clean.positives.shape[1])
        places = hours[:, np.newaxis] - lags
        exposed = np.where(places >= 0, clean.firsts[np.maximum(places, 0)], 0.0).sum(axis=0)
        of_lag = np.maximum(exposed, 1.0)
        recent = _trailing(clean.positives.sum(axis=1), horizon_hours)[hours].sum()
        return cls(
            clean.positives[hours].sum(axis=0) / of_lag,
            clean.late[hours].sum(axis=0) / of_lag,
            float(clean.too_late[hours].sum() / max(recent, 1.0)),
            float(clean.retracted[hours].sum() / max(recent, 1.0)),
            horizon_hours,
        )


def _trailing(counts: np.ndarray, hours: int) -> np.ndarray:
    """Return the sum of each hour and of so many before it."""
    total = np.cumsum(counts)
    return total - np.concatenate([np.zeros(min(hours + 1, len(total))), total[: -hours - 1]])


def _judged(
    one: Series,
    hour: int,
    reference: list[int],
    rates: _Rates,
    level: float,
    settings: LabelQualitySettings,
) -> JudgedLabels:
    """Judge one part by its own reference hours."""
    counted = _Counted.of(one, hour, rates.horizon)
    if len(reference) < settings.warm_up_hours:
        return _warming_up(counted, f"{len(reference)} hours to compare with")
    total = one.positives.sum(axis=1)
    recent = _trailing(total, rates.horizon)

    def due(events: np.ndarray, exposure: np.ndarray) -> Expectation:
        return expectation(events[reference], exposure[reference], float(exposure[hour]), settings)

    positives = due(total, np.convolve(one.firsts, rates.positives)[: len(total)])
    late = due(one.late.sum(axis=1), np.convolve(one.firsts, rates.late)[: len(total)])
    too_late = due(one.too_late, recent * rates.too_late)
    retracted = due(one.retracted, recent * rates.retracted)
    low, high = positives.bounds(level)

    def surged(count: int, expected: Expectation, factor: float) -> bool:
        least = Expectation(max(expected.mean, 1.0), expected.relative_variance)
        return (
            count >= settings.minimum_observed
            and count >= factor * least.mean
            and least.at_least(count) < level
        )

    came_late = surged(counted.late, late, settings.late_factor)
    is_late = came_late or surged(counted.too_late, too_late, settings.late_factor)
    in_time = counted.positives - counted.late
    verdict: VerdictName
    if surged(counted.positives, positives, settings.jump_factor):
        usual = max(positives.mean - late.mean, 1.0)
        verdict = "late" if came_late and in_time < settings.jump_factor * usual else "jumped"
    elif (
        positives.mean >= settings.minimum_expected
        and counted.positives <= settings.stall_share * positives.mean
        and positives.at_most(counted.positives) < level
    ):
        verdict = "stalled"
    elif is_late:
        verdict = "late"
    elif surged(counted.retracted, retracted, settings.retraction_factor):
        verdict = "retracted a lot"
    elif positives.mean < settings.minimum_expected:
        verdict = "too few"
    else:
        verdict = "as expected"
    reason = (
        f"{counted.positives} positives of {counted.anchors} anchors where {positives.mean:.1f} "
        f"were due ({low:.0f} to {high:.0f}), {counted.late} of them late ({late.mean:.1f} due), "
        f"{counted.too_late} too late, {counted.retracted} retracted ({retracted.mean:.1f} due)"
    )
    return JudgedLabels(
        anchors=counted.anchors,
        positives=counted.positives,
        late=counted.late,
        too_late=counted.too_late,
        retracted=counted.retracted,
        positives_due=positives.mean,
        late_due=late.mean,
        retracted_due=retracted.mean,
        low=low,
        high=high,
        retraction_rate=counted.retraction_rate,
        coverage=counted.coverage,
        verdict=verdict,
        reason=reason,
    )


def _warming_up(counted: _Counted, reason: str) -> JudgedLabels:
    unknown = float("nan")
    return JudgedLabels(
        anchors=counted.anchors,
        positives=counted.positives,
        late=counted.late,
        too_late=counted.too_late,
        retracted=counted.retracted,
        positives_due=unknown,
        late_due=unknown,
        retracted_due=unknown,
        low=unknown,
        high=unknown,
        retraction_rate=counted.retraction_rate,
        coverage=counted.coverage,
        verdict="warming up",
        reason=reason,
    )
