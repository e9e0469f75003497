"""Whether two ways of computing the same thing agree: features rate by rate, scores bit by bit.

Pure comparisons of tables: candidate replay and production parity both call them with the rows they
have made, and neither stands in for the other. The words are those of Chronon's online-offline
consistency job, the sides are fixed here: a *mismatch* where both sides have a value and differ,
*missing* where only the recomputation has one, *extra* where only the log has one. No tolerance:
two code paths that agree to six digits are two code paths. Nothing logged is a state of its own and
never counts as passed. Fetching bundles, snapshots or decisions does not belong here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

State = Literal["no decisions yet", "passed", "failed"]

OFFENDERS = 5
"""Keys named in a result, so that someone can look at the rows."""

_SEPARATOR = "\x1f"

Places = NDArray[np.int64] | None
"""Rows of a side in the order of all keys, -1 for nowhere; None where that is its own order."""


@dataclass(frozen=True)
class Rates:
    """Agreement of one feature, or of one goal's scores.

    Attributes
    ----------
    name : str
    rows : int
        Rows in which at least one side has a value.
    equal, mismatches, missing, extra : int
        They add up to ``rows``.
    first_offending : tuple of str
        The first keys, in order of key, that are not equal.
    smape : float
        Symmetric mean absolute percentage error, mean of 2 |a - b| / (|a| + |b|), over the rows
        with a finite number on both sides, in [0, 2]; NaN where there is none.
    """

    name: str
    rows: int
    equal: int
    mismatches: int
    missing: int
    extra: int
    first_offending: tuple[str, ...]
    smape: float = math.nan

    @property
    def mismatch_rate(self) -> float:
        """Mismatches a row; 0 without rows."""
        return self.mismatches / self.rows if self.rows else 0.0

    @property
    def missing_rate(self) -> float:
        """Rows that only the recomputation has, a row; 0 without rows."""
        return self.missing / self.rows if self.rows else 0.0

    @property
    def extra_rate(self) -> float:
        """Rows that only the log has, a row; 0 without rows."""
        return self.extra / self.rows if self.rows else 0.0


@dataclass(frozen=True)
class Parity:
    """The result of one comparison.

    Attributes
    ----------
    state : {'no decisions yet', 'passed', 'failed'}
    logged_rows, recomputed_rows : int
    rates : tuple of Rates
        Per feature or goal, by name.
    largest_difference : float
        Between numbers that mismatch; 0 when none does, infinity against a NaN.
    """

    state: State
    logged_rows: int
    recomputed_rows: int
    rates: tuple[Rates, ...]
    largest_difference: float

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it agreed."""
        return self.state == "passed"

    @property
    def first_offending(self) -> tuple[str, ...]:
        """Keys of all names together, each once, in order of name and key."""
        return tuple(dict.fromkeys(key for rate in self.rates for key in rate.first_offending))


class RepeatedKey(ValueError):
    """A key occurs twice on one side, so rows cannot be paired."""


def compare_features(logged: pa.Table, recomputed: pa.Table, key: str = "request_id") -> Parity:
    """Compare features as logged with features as recomputed, one column a feature.

    Parameters
    ----------
    logged, recomputed : pyarrow.Table
        ``key`` and one column per feature, texts or numbers; a null is 'no value'. A feature column
        on one side only is missing or extra in every row that has a value.
    key : str
        Column that identifies a row.

    Returns
    -------
    Parity
        Numbers are compared as float64 bit for bit, two NaNs being equal; a number and a text
        mismatch, whatever they look like. A key on one side only makes its values missing or
        extra. A table agrees with itself, and is not read then.

    Raises
    ------
    RepeatedKey
        If a key occurs twice on one side.
    """
    if not logged.num_rows:
        return _nothing_logged(recomputed.num_rows)
    keys, at_logged, at_recomputed = _paired(logged, recomputed, (key,))
    ours, theirs = (dict(zip(t.column_names, t.columns, strict=True)) for t in (logged, recomputed))
    names = sorted((ours.keys() | theirs.keys()) - {key})
    if logged is recomputed:
        compared = [_agreed(name, ours[name]) for name in names]
        return _parity(compared, logged.num_rows, recomputed.num_rows, rows_agree=True)
    compared = [
        _compare(
            name,
            keys,
            _values(ours.get(name), logged.num_rows, at_logged),
            _values(theirs.get(name), recomputed.num_rows, at_recomputed),
        )
        for name in names
    ]
    # A row without any value on either side still has to be there on both.
    rows_agree = all(at is None or bool((at >= 0).all()) for at in (at_logged, at_recomputed))
    return _parity(compared, logged.num_rows, recomputed.num_rows, rows_agree=rows_agree)


def compare_scores(
    logged: pa.Table, recomputed: pa.Table, key: Sequence[str] = ("request_id", "goal")
) -> Parity:
    """Compare scores as logged with scores as recomputed, bit for bit, per goal.

    Parameters
    ----------
    logged, recomputed : pyarrow.Table
        Columns of ``key``, ``goal`` among them, and ``probability`` (float64).
    key : sequence of str
        Columns that identify a row.

    Returns
    -------
    Parity
        One :class:`Rates` per goal. Two NaNs are equal; 0.0 and -0.0 are not.

    Raises
    ------
    RepeatedKey
        If a key occurs twice on one side.
    """
    if not logged.num_rows:
        return _nothing_logged(recomputed.num_rows)
    goals = sorted(
        set(logged.column("goal").to_pylist()) | set(recomputed.column("goal").to_pylist())
    )
    compared = []
    for goal in goals:
        ours = _of_goal(logged, goal)
        theirs = _of_goal(recomputed, goal)
        keys, at_ours, at_theirs = _paired(ours, theirs, key)
        # A null score is a key that is there without a value: count it as a row of that side.
        compared.append(
            _compare(
                goal,
                keys,
                _values(ours.column("probability"), ours.num_rows, at_ours),
                _values(theirs.column("probability"), theirs.num_rows, at_theirs),
                all_rows=True,
            )
        )
    return _parity(compared, logged.num_rows, recomputed.num_rows, rows_agree=True)


def compare_score_columns(
    keys: pa.Array, logged: Mapping[str, pa.Array], recomputed: Mapping[str, pa.Array]
) -> Parity:
    """Compare scores of the same n decisions, one column a goal; see :func:`compare_scores`.

    Parameters
    ----------
    keys : Arrow array of texts, shape (n,)
    logged, recomputed : mapping of str to Arrow array of shape (n,)
        By goal. What is not float64 is no probability, and null.

    Raises
    ------
    RepeatedKey
        If a key occurs twice.
    """
    n = len(keys)
    if not n:
        return _nothing_logged(0)
    check_identify(keys, ("request_id",))

    def of(side: Mapping[str, pa.Array], goal: str) -> pa.Array:
        scores = side.get(goal)
        is_there = scores is not None and pa.types.is_float64(scores.type)
        return scores if is_there else pa.nulls(n, pa.float64())

    compared: list[tuple[Rates, float]] = []
    for goal in sorted(logged.keys() | recomputed.keys()):
        rates, gap = _compare(goal, keys, of(logged, goal), of(recomputed, goal), all_rows=True)
        offending = tuple(f"{key} {goal}" for key in rates.first_offending)
        compared.append((replace(rates, first_offending=offending), gap))
    return _parity(compared, n * len(logged), n * len(recomputed), rows_agree=True)


def _nothing_logged(recomputed_rows: int) -> Parity:
    return Parity("no decisions yet", 0, recomputed_rows, (), 0.0)


def _parity(
    compared: Sequence[tuple[Rates, float]],
    logged_rows: int,
    recomputed_rows: int,
    *,
    rows_agree: bool,
) -> Parity:
    rates = tuple(rate for rate, _ in compared)
    agreed = rows_agree and bool(rates) and all(rate.equal == rate.rows for rate in rates)
    return Parity(
        state="passed" if agreed else "failed",
        logged_rows=logged_rows,
        recomputed_rows=recomputed_rows,
        rates=rates,
        largest_difference=max((difference for _, difference in compared), default=0.0),
    )


def _of_goal(table: pa.Table, goal: str) -> pa.Table:
    return table.filter(pc.call_function("equal", [table.column("goal"), pa.scalar(goal)]))


def _keys(table: pa.Table, names: Sequence[str]) -> pa.Array:
    parts = [table.column(name).cast(pa.string()) for name in names]
    joined = (
        pc.call_function("binary_join_element_wise", [*parts, _SEPARATOR])
        if len(parts) > 1
        else parts[0]
    )
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def check_identify(keys: pa.Array, names: Sequence[str]) -> None:
    """Refuse keys that do not identify a row each.

    Parameters
    ----------
    keys : Arrow array of texts, shape (n,)
    names : sequence of str
        Of the columns that they were made of, for the message.

    Raises
    ------
    RepeatedKey
        If a key occurs twice, or is null.
    """
    if len(keys.unique()) != len(keys) or keys.null_count:
        counted = [e for e in keys.value_counts().to_pylist() if e["counts"] > 1]
        first = counted[0]["values"] if counted else None
        raise RepeatedKey(f"{', '.join(names)} must identify a row; {first!r} does not")


def _paired(
    logged: pa.Table, recomputed: pa.Table, names: Sequence[str]
) -> tuple[pa.Array, Places, Places]:
    """Return all keys and where each stands on both sides."""
    ours, theirs = _keys(logged, names), _keys(recomputed, names)
    check_identify(ours, names)
    if ours.equals(theirs):
        return ours, None, None
    check_identify(theirs, names)
    keys = pa.concat_arrays([ours, theirs]).unique().sort()

    def places_in(side: pa.Array) -> NDArray[np.int64]:
        found = pc.call_function("index_in", [keys], pc.SetLookupOptions(value_set=side))
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    return keys, places_in(ours), places_in(theirs)


def _values(column: pa.ChunkedArray | None, rows: int, at: Places) -> pa.Array:
    """Return a side's column, null where the side has none, in the order of all keys."""
    if column is None or not rows:
        return pa.nulls(rows if at is None else len(at))
    taken = column if at is None else column.take(pa.array(at, mask=at < 0))
    values = taken.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if _is_number(values.type):
        return values.cast(pa.float64())
    return values if pa.types.is_null(values.type) else values.cast(pa.string())


def _agreed(name: str, values: pa.Array | pa.ChunkedArray) -> tuple[Rates, float]:
    """Return what :func:`_compare` gives of a column and itself."""
    rows = len(values) - values.null_count
    smape = 0.0 if rows and _is_number(values.type) else math.nan
    return Rates(name, rows, rows, 0, 0, 0, (), smape), 0.0


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)


def _compare(
    name: str,
    keys: pa.Array,
    logged: pa.Array,
    recomputed: pa.Array,
    *,
    all_rows: bool = False,
) -> tuple[Rates, float]:
    if _is_one(logged, recomputed):
        return _agreed(name, logged)
    has_logged = logged.is_valid().to_numpy(zero_copy_only=False)
    has_recomputed = recomputed.is_valid().to_numpy(zero_copy_only=False)
    both = has_logged & has_recomputed
    same, difference = _same(logged, recomputed, both)
    present = np.ones(len(keys), dtype=bool) if all_rows else has_logged | has_recomputed
    equal = both & same
    offending = keys.take(pa.array(np.flatnonzero(present & ~equal))).sort()[:OFFENDERS]
    missing = int((has_recomputed & ~has_logged).sum())
    # With ``all_rows``, a null on both sides is a row without a score: nothing that agrees.
    extra = int((has_logged & ~has_recomputed).sum())
    neither = int((present & ~has_logged & ~has_recomputed).sum())
    return (
        Rates(
            name=name,
            rows=int(present.sum()),
            equal=int(equal.sum()),
            mismatches=int((both & ~same).sum()) + neither,
            missing=missing,
            extra=extra,
            first_offending=tuple(key.replace(_SEPARATOR, " ") for key in offending.to_pylist()),
            smape=_smape(logged, recomputed, both, equal),
        ),
        difference,
    )


def _is_one(logged: pa.Array, recomputed: pa.Array) -> bool:
    """Return whether both sides have every value, and the same: then nothing is to be told."""
    if not len(logged) or logged.null_count or recomputed.null_count:
        return False
    if _is_number(logged.type) and _is_number(recomputed.type):
        ours, theirs = logged.to_numpy(), recomputed.to_numpy()
        return np.array_equal(ours.view(np.int64), theirs.view(np.int64))
    return logged.type == recomputed.type and logged.equals(recomputed)


def _smape(
    logged: pa.Array,
    recomputed: pa.Array,
    both: NDArray[np.bool_],
    equal: NDArray[np.bool_],
) -> float:
    if not (_is_number(logged.type) and _is_number(recomputed.type) and both.any()):
        return math.nan
    if equal[both].all():
        return 0.0
    ours = logged.to_numpy(zero_copy_only=False)[both]
    theirs = recomputed.to_numpy(zero_copy_only=False)[both]
    finite = np.isfinite(ours) & np.isfinite(theirs)
    if not finite.any():
        return math.nan
    size = np.abs(ours[finite]) + np.abs(theirs[finite])
    gap = 2 * np.abs(ours[finite] - theirs[finite])
    return float(np.divide(gap, size, out=np.zeros_like(gap), where=size > 0).mean())


def _same(
    logged: pa.Array, recomputed: pa.Array, both: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], float]:
    """Return which rows agree (where both have a value) and the largest numeric difference."""
    same = np.zeros(len(both), dtype=bool)
    if not both.any():
        return same, 0.0
    if _is_number(logged.type) != _is_number(recomputed.type):
        return same, 0.0
    if not _is_number(logged.type):
        equal = pc.call_function("equal", [logged, recomputed]).fill_null(False)
        return equal.to_numpy(zero_copy_only=False), 0.0
    ours = logged.to_numpy(zero_copy_only=False)[both]
    theirs = recomputed.to_numpy(zero_copy_only=False)[both]
    not_numbers = np.isnan(ours) & np.isnan(theirs)
    agree = (ours.view(np.int64) == theirs.view(np.int64)) | not_numbers
    same[both] = agree
    if agree.all():
        return same, 0.0
    with np.errstate(invalid="ignore"):
        gaps = np.abs(ours[~agree] - theirs[~agree])
    return same, float(np.nan_to_num(gaps, nan=np.inf, posinf=np.inf).max())


def agreement(logged: pa.Array, recomputed: pa.Array) -> NDArray[np.bool_]:
    """Return in which rows both sides have the same value, bit for bit, bool of shape (n,).

    Parameters
    ----------
    logged, recomputed : Arrow arrays of shape (n,)
        float64, texts or nulls. Two nulls are no value, and do not agree.
    """
    both = logged.is_valid().to_numpy(zero_copy_only=False) & recomputed.is_valid().to_numpy(
        zero_copy_only=False
    )
    same, _ = _same(logged, recomputed, both)
    return both & same
