"""Why served values are not the recomputed ones: hypotheses, each tested on the rows that differ.

A cause is never read off a symptom. Under every hypothesis the differing values are computed anew
(as of an earlier and a later hour, as float32, cut to a whole number, out of another column, as the
default), and the one that gives the largest share of them, bit for bit, is named with that share.
Below a share that the settings state nothing is named: "unexplained" is an answer. What differs is
established by :mod:`ad_pipeline.monitoring.parity.comparison`; where the values of other hours come
from is the caller's business.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.monitoring.parity.comparison import OFFENDERS, agreement
from ad_pipeline.settings import ParitySettings

Cause = Literal[
    "stale aggregate",
    "null burst",
    "swapped column",
    "renamed column",
    "type change",
    "float truncation",
    "default on timeout",
    "leaked backfill",
    "version skew",
    "logged otherwise than scored",
    "no longer within its objective",
    "unexplained",
]

ACT: Mapping[Cause, str] = {
    "stale aggregate": "let the scorer refresh its snapshot hourly (Scorer.refresh) and drop any "
    "cache in front of it; see features/rates for a late hour",
    "null burst": "ask the sender of the requests why the column is null; until then score with "
    "a bundle trained without it",
    "swapped column": "correct the mapping of columns in the caller of the scorer",
    "renamed column": "send the column under the contract's name, or train with the new one",
    "type change": "send texts as texts and numbers as numbers, as the feature contract says",
    "float truncation": "carry the number as float64 from request to log; look for int() or "
    "float32 on its way",
    "default on timeout": "raise the time-out of the feature store or let the scorer say the "
    "fallback; what it served meanwhile were defaults",
    "leaked backfill": "do not train on these rows: the values were written after the fact; "
    "rebuild the store's hour as of its time",
    "version skew": "restart the scorers that still hold the other version (ad_pipeline status "
    "names the one that should serve)",
    "logged otherwise than scored": "let the scorer's own to_table() write the log; the values in "
    "it are not those that were scored",
    "no longer within its objective": "see the measure in monitoring.serving_objectives, and the "
    "objective under settings: parity",
    "unexplained": "look at the example keys in events.decisions beside events.impressions",
}
"""What to do about each cause."""

MOST_TESTED = 20_000
"""Rows on which hypotheses are tested: more would not change which one wins."""

MODAL_ROWS = 20
"""Rows from which on one value in nearly all of them is taken for a default."""

CountsAt = Callable[[int, np.ndarray], Mapping[str, np.ndarray] | None]
"""From hours' distance to the named snapshot and rows to counts by name; None without such one."""

CountsAsLogged = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""From rows to the named snapshot's counts, by name, of the entities that the log has there."""


@dataclass(frozen=True)
class Explanation:
    """The hypothesis that explains most of what differs.

    Attributes
    ----------
    cause : str
    evidence : str
        What was assumed, for people.
    explained : float
        Share of the tested rows that it gives bit for bit; 0 when nothing does.
    """

    cause: Cause
    evidence: str
    explained: float


@dataclass(frozen=True)
class Finding:
    """Something that differs, or left its objective, in one hour.

    Attributes
    ----------
    comparison : str
        features, scores or objectives.
    name : str
        Feature, goal or measure.
    rows, offending : int
        Compared, and not equal.
    explanation : Explanation
    example_keys : tuple of str
    severe : bool
    """

    comparison: str
    name: str
    rows: int
    offending: int
    explanation: Explanation
    example_keys: tuple[str, ...]
    severe: bool


@dataclass(frozen=True)
class Sides:
    """The features of the same n decisions, as logged and as recomputed.

    Attributes
    ----------
    keys : Arrow array of shape (n,)
    logged, recomputed : dict of str to Arrow array of shape (n,)
        A name that one side lacks is not in it.
    counts : tuple of str
        Those of the names that come out of a snapshot.
    """

    keys: pa.Array
    logged: Mapping[str, pa.Array]
    recomputed: Mapping[str, pa.Array]
    counts: tuple[str, ...]

    def offending(self, name: str) -> np.ndarray:
        """Return the rows in which a feature differs, int64, in order of row."""
        nothing = pa.nulls(len(self.keys))
        ours = self.logged.get(name, nothing)
        theirs = self.recomputed.get(name, nothing)
        present = _valid(ours) | _valid(theirs)
        return np.flatnonzero(present & ~agreement(ours, theirs))


@dataclass(frozen=True)
class _Tested:
    """A hypothesis and which of a feature's offending rows it gives."""

    cause: Cause
    evidence: str
    gives: np.ndarray


def feature_findings(
    sides: Sides,
    counts_at: CountsAt,
    counts_as_logged: CountsAsLogged,
    settings: ParitySettings,
) -> list[Finding]:
    """Return a finding for each feature that differs, with its cause.

    Parameters
    ----------
    sides : Sides
    counts_at : callable
        Counts as another hour's snapshot has them.
    counts_as_logged : callable
        Counts of the entities as logged: where such a column differs, its counts may follow it.
    settings : ParitySettings

    Returns
    -------
    list of Finding
        By name. Where two hypotheses explain a count equally well, the one that explains more of
        all counts together wins, since one look-up gave them all.
    """
    offending = {
        name: rows
        for name in sorted(sides.logged.keys() | sides.recomputed.keys())
        if len(rows := sides.offending(name))
    }
    tested = {
        name: list(_of_column(sides, name, rows[:MOST_TESTED])) for name, rows in offending.items()
    }
    for name, found in _of_counts(sides, offending, counts_at, settings).items():
        tested[name] += found
    for name, found in _of_entities(sides, offending, tested, counts_as_logged, settings):
        tested[name].insert(0, found)  # one fault for both is likelier than two that agree
    pooled = _pooled(sides, tested)
    return [
        Finding(
            comparison="features",
            name=name,
            rows=len(sides.keys),
            offending=len(rows),
            explanation=_best(tested[name], pooled if name in sides.counts else {}, settings),
            example_keys=_examples(sides.keys, rows),
            severe=len(rows) >= settings.severe_share * len(sides.keys),
        )
        for name, rows in offending.items()
    ]


def score_finding(
    goal: str,
    keys: pa.Array,
    logged: pa.Array,
    given_again: pa.Array,
    otherwise: Mapping[str, pa.Array],
    from_recomputed: pa.Array,
    settings: ParitySettings,
    of_hours: Mapping[int, pa.Array] = MappingProxyType({}),
) -> Finding | None:
    """Return what is wrong with the scores of a goal, None if they are given again.

    Parameters
    ----------
    goal : str
    keys, logged, given_again : Arrow arrays of shape (n,)
        Logged scores, and those that the named bundle gives for the logged features.
    otherwise : mapping of str to Arrow array of shape (n,)
        Scores of the deployment's other bundles, by digest.
    from_recomputed : Arrow array of shape (n,)
        The named bundle's scores for the recomputed features; null without an impression.
    settings : ParitySettings
    of_hours : mapping of int to Arrow array of shape (n,)
        Its scores by users' vectors of so many hours after those that are named.
    """
    wrong = np.flatnonzero(~agreement(logged, given_again))
    if not len(wrong):
        return None
    places = wrong[:MOST_TESTED]
    ours, theirs = logged.take(pa.array(places)), given_again.take(pa.array(places))

    def tested(cause: Cause, evidence: str, values: pa.Array) -> _Tested:
        return _Tested(cause, evidence, agreement(ours, values.take(pa.array(places))))

    hypotheses = [_Tested("null burst", "no score was logged", ~_valid(ours))]
    if not pa.types.is_null(ours.type):
        hypotheses += [
            *(
                tested("version skew", f"bundle {digest[:12]} gives them", values)
                for digest, values in otherwise.items()
            ),
            *(
                tested(*_of_another_hour("user vectors", hour), values)
                for hour, values in of_hours.items()
            ),
            tested(
                "logged otherwise than scored",
                "the features of our own log give them, the logged ones do not",
                from_recomputed,
            ),
            *(each for each in _of_number(ours, theirs) if each.cause == "float truncation"),
        ]
    return Finding(
        comparison="scores",
        name=goal,
        rows=len(keys),
        offending=len(wrong),
        explanation=_best(hypotheses, {}, settings),
        example_keys=_examples(keys, wrong),
        severe=True,
    )


def _of_column(sides: Sides, name: str, rows: np.ndarray) -> Iterator[_Tested]:
    """Test what needs no other hour: the log's own columns and ways to write a value."""
    places = pa.array(rows)

    def at(side: Mapping[str, pa.Array], of: str) -> pa.Array:
        return side[of].take(places) if of in side else pa.nulls(len(rows))

    ours, theirs = at(sides.logged, name), at(sides.recomputed, name)
    if name not in sides.recomputed:
        for other in sides.recomputed:
            if other not in sides.logged:
                gives = agreement(ours, at(sides.recomputed, other))
                yield _Tested("renamed column", f"it holds {other}", gives)
        return
    for other in sides.logged.keys() - sides.recomputed.keys():
        gives = agreement(at(sides.logged, other), theirs)
        yield _Tested("renamed column", f"logged as {other}", gives & ~_valid(ours))
    yield _Tested("null burst", "null in the log, a value in ours", ~_valid(ours) & _valid(theirs))
    if _valid(ours).any():
        yield from _of_number(ours, theirs)
        yield from _of_default(ours)
        if name not in sides.counts:
            for other in sides.recomputed.keys() - {name, *sides.counts}:
                gives = agreement(ours, at(sides.recomputed, other))
                yield _Tested("swapped column", f"the value of {other}", gives)


def _of_number(ours: pa.Array, theirs: pa.Array) -> Iterator[_Tested]:
    """Test what becomes of a number on its way: another type, fewer bits, no fraction."""
    if pa.types.is_null(theirs.type):
        return
    is_number = pa.types.is_float64(ours.type), pa.types.is_float64(theirs.type)
    if is_number == (False, True):
        texts = [text.strip('"') if text else "" for text in ours.to_pylist()]
        read = pa.array([float(text) if _reads(text) else None for text in texts], pa.float64())
        yield _Tested("type change", "the number as a text", agreement(read, theirs))
    elif is_number == (True, False):
        read = pa.array([None if x is None else f"{x:.17g}" for x in ours.to_pylist()], pa.string())
        yield _Tested("type change", "the text as a number", agreement(read, theirs))
    elif is_number == (True, True):
        exact = _float64(theirs)
        with np.errstate(over="ignore", invalid="ignore"):
            single = exact.astype(np.float32).astype(np.float64)
        for evidence, values in (
            ("the value as float32", single),
            ("the value cut to a whole number", np.trunc(exact)),
            ("the value rounded to a whole number", np.rint(exact)),
        ):
            yield _Tested("float truncation", evidence, agreement(ours, pa.array(values)))


def _of_default(ours: pa.Array) -> Iterator[_Tested]:
    """Test the neutral value, and the one value that stands in nearly all of many rows."""
    counted = sorted(
        (each for each in ours.drop_null().value_counts().to_pylist()),
        key=lambda each: -each["counts"],
    )
    neutral = 0.0 if pa.types.is_float64(ours.type) else ""
    values = {neutral} | ({counted[0]["values"]} if len(ours) >= MODAL_ROWS else set())
    for value in sorted(values, key=lambda each: each != neutral):
        gives = agreement(ours, pa.array([value] * len(ours), ours.type))
        yield _Tested("default on timeout", f"{value!r} for all of them", gives)


def _of_counts(
    sides: Sides, offending: Mapping[str, np.ndarray], counts_at: CountsAt, settings: ParitySettings
) -> dict[str, list[_Tested]]:
    """Test other hours' snapshots on every count that differs."""
    names = [name for name in offending if name in sides.counts]
    found: dict[str, list[_Tested]] = {name: [] for name in names}
    if not names:
        return found
    rows = np.unique(np.concatenate([offending[name][:MOST_TESTED] for name in names]))
    for hour in tested_hours(settings):
        counts = counts_at(hour, rows)
        if counts is None:
            continue
        cause, evidence = _of_another_hour("counts", hour)
        for name in names:
            places = offending[name][:MOST_TESTED]
            values = counts[name][np.searchsorted(rows, places)].astype(np.float64)
            ours = sides.logged.get(name)
            if ours is not None:
                gives = agreement(ours.take(pa.array(places)), pa.array(values))
                found[name].append(_Tested(cause, evidence, gives))
    return found


def tested_hours(settings: ParitySettings) -> tuple[int, ...]:
    """Return the hours' distances, before and after what is named, that are tried as a cause."""
    before = (-lag for lag in range(1, settings.stale_hours + 1))
    return (*before, *range(1, settings.leaked_hours + 1))


def _of_another_hour(what: str, hour: int) -> tuple[Cause, str]:
    late = "before" if hour < 0 else "after"
    cause: Cause = "stale aggregate" if hour < 0 else "leaked backfill"
    return cause, f"the {what} of {abs(hour)} h {late} those it names"


def _of_entities(
    sides: Sides,
    offending: Mapping[str, np.ndarray],
    tested: Mapping[str, list[_Tested]],
    counts_as_logged: CountsAsLogged,
    settings: ParitySettings,
) -> Iterator[tuple[str, _Tested]]:
    """Test whether the counts of an entity whose column differs were looked up by that column.

    They then have its cause.
    """
    of_entity = {
        name: entity
        for name in offending
        if name in sides.counts and (entity := name.rsplit(".", 2)[0]) in offending
    }
    if not of_entity:
        return
    rows = np.unique(np.concatenate([offending[name][:MOST_TESTED] for name in of_entity]))
    counts = counts_as_logged(rows)
    for name, entity in of_entity.items():
        places = offending[name][:MOST_TESTED]
        ours = sides.logged.get(name, pa.nulls(len(sides.keys))).take(pa.array(places))
        values = counts[name][np.searchsorted(rows, places)].astype(np.float64)
        cause = _best(tested[entity], {}, settings).cause
        gives = agreement(ours, pa.array(values))
        # The same words for every entity: causes of counts are weighed over all of them.
        yield name, _Tested(cause, "the counts of its entity as logged", gives)


def _pooled(sides: Sides, tested: Mapping[str, list[_Tested]]) -> dict[tuple[str, str], float]:
    """Return each hypothesis' share of the differing counts of all names together."""
    given: dict[tuple[str, str], int] = {}
    total = 0
    for name, hypotheses in tested.items():
        if name in sides.counts:
            total += max((len(each.gives) for each in hypotheses), default=0)
            for each in hypotheses:
                which = (each.cause, each.evidence)
                given[which] = given.get(which, 0) + int(each.gives.sum())
    return {which: rows / total for which, rows in given.items()} if total else {}


def _best(
    tested: list[_Tested], pooled: Mapping[tuple[str, str], float], settings: ParitySettings
) -> Explanation:
    """Return the hypothesis of the largest share; the first one tested, when two are equal."""

    def rank(each: _Tested) -> tuple[float, float]:
        return float(each.gives.mean()), pooled.get((each.cause, each.evidence), 0.0)

    best = max(tested, key=rank, default=None)
    if best is None or rank(best)[0] < settings.explained_share:
        nearest = "" if best is None else f"; nearest: {best.cause}, {best.evidence}"
        share = 0.0 if best is None else rank(best)[0]
        return Explanation("unexplained", f"no hypothesis gives the values{nearest}", share)
    return Explanation(best.cause, best.evidence, rank(best)[0])


def late_snapshot(named_us: int, due_us: int) -> str:
    """Say which snapshot was named and which one was due; both as starts of their last hours."""
    return (
        f"the log names the snapshot of {timestamp(named_us)}, "
        f"{(due_us - named_us) // HOUR_US} h before the one due"
    )


def _examples(keys: pa.Array, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(keys.take(pa.array(rows)).sort()[:OFFENDERS].to_pylist())


def _valid(values: pa.Array) -> np.ndarray:
    return values.is_valid().to_numpy(zero_copy_only=False)


def _float64(values: pa.Array) -> np.ndarray:
    return pc.fill_null(values, math.nan).to_numpy(zero_copy_only=False)


def _reads(text: str) -> bool:
    """Tell whether a text is a plain decimal number."""
    digits = text.lstrip("+-").replace(".", "", 1).replace("e-", "", 1).replace("e+", "", 1)
    return digits.isascii() and digits.isdigit()
