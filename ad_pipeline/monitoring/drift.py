"""Whether the impressions of the last hours come from the distribution of the hours before.

Two steps. A population stability index (PSI) of every column, in numpy, costs a fraction of a
second and decides; Evidently's report costs ten and is for people, so it runs on the same folded
columns and only beside a verdict or on request. Three things make a naive comparison alarm on an
unchanged log, and are removed first: the hour of the day (the reference is matched by hour of the
week, or of the day while the log is shorter), sparse categories (folded to the reference's most
frequent), and the noise of a finite sample (an index below what noise alone yields is no drift).
Identity columns always drift and are left out. Drift of features is no proof that the model is
worse: that is for :mod:`ad_pipeline.evaluation.progressive`; reacting is for ``defs``.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtri

from ad_pipeline.clocks import DAY_US, HOUR_US, hours_between
from ad_pipeline.hashing import uniform
from ad_pipeline.settings import DriftSettings

IDENTITY_COLUMNS = frozenset(
    {
        "impression_id",
        "request_id",
        "user_id",
        "ad_id",
        "campaign_id",
        "event_id",
        "engagement_event_id",
    }
)
"""Columns whose values come and go by nature, or by our own hand: that ads are born and die, and
campaigns with them, is no drift of the world."""

OTHER = "__other__"
NULL = "__null__"

QUANTILE_BINS = 10
NOISE_LEVEL = 0.001
"""Chance that noise alone lifts one unchanged column above its noise limit."""

HEAVY_TAIL_SKEWNESS = 2.0

_EVIDENTLY_SWITCHES = {"DO_NOT_TRACK": "1", "EVIDENTLY_DISABLE_TELEMETRY": "1"}

Kind = Literal["categorical", "numeric"]
Rule = Literal["hour of week", "hour of day", "none"]


@dataclass(frozen=True)
class Reference:
    """The hours that stand for 'as usual'.

    Attributes
    ----------
    rule : {'hour of week', 'hour of day', 'none'}
        How they match the current hours; 'none' when the log covers neither.
    hours_us : tuple of int
        Starts of the hours, rising; each current hour has as many counterparts as any other.
    """

    rule: Rule
    hours_us: tuple[int, ...]

    @property
    def start_us(self) -> int | None:
        """Start of the first hour, or None without any."""
        return self.hours_us[0] if self.hours_us else None

    @property
    def end_us(self) -> int | None:
        """End of the last hour (excluded), or None without any."""
        return self.hours_us[-1] + HOUR_US if self.hours_us else None


@dataclass(frozen=True)
class Folded:
    """Both samples, comparable column by column.

    Attributes
    ----------
    reference, current : dict of str to ndarray
        Categorical columns: object arrays of texts, at most top K + 2 distinct. Numeric columns:
        float64, NaN where null, heavy tails after log1p.
    kinds : dict of str to {'categorical', 'numeric'}
    logged : tuple of str
        Numeric columns that were put through log1p.
    """

    reference: dict[str, NDArray[Any]]
    current: dict[str, NDArray[Any]]
    kinds: dict[str, Kind]
    logged: tuple[str, ...]


@dataclass(frozen=True)
class Cells:
    """Both samples of one column as histograms over the same cells.

    Attributes
    ----------
    labels : tuple of str
        What each cell holds, for people: a category, or a range of numbers.
    reference, current : ndarray of shape (cells,), int64
    """

    labels: tuple[str, ...]
    reference: NDArray[np.int64]
    current: NDArray[np.int64]

    @property
    def contributions(self) -> NDArray[np.float64]:
        """What each cell adds to the index, shape (cells,); their sum is :func:`psi`."""
        return _psi_terms(self.reference, self.current)


@dataclass(frozen=True)
class ColumnDrift:
    """The verdict on one column.

    Attributes
    ----------
    column : str
    kind : {'categorical', 'numeric'}
    psi : float
    noise_limit : float
        What an unchanged column stays below in all but one of 1,000 samples of this size.
    threshold : float
        Index from which a change is worth an alarm.
    reference_rows, current_rows : int
    drifted : bool
        The index reaches the threshold *and* exceeds the noise limit.
    """

    column: str
    kind: Kind
    psi: float
    noise_limit: float
    threshold: float
    reference_rows: int
    current_rows: int
    drifted: bool


@dataclass(frozen=True)
class DriftVerdict:
    """The verdict on all columns.

    Attributes
    ----------
    columns : tuple of ColumnDrift
        Highest index first.
    psi : float
        Highest index; NaN without columns.
    drifted : bool
        At least ``minimum_drifted_columns`` columns drifted.
    share : float
        Share of the columns that drifted.
    """

    columns: tuple[ColumnDrift, ...]
    psi: float
    drifted: bool
    share: float


def matched_reference(
    current_start_us: int,
    current_end_us: int,
    log_start_us: int,
    *,
    weeks: int = 2,
    days: int = 7,
) -> Reference:
    """Choose the reference hours: same hours of earlier weeks, else same hours of earlier days.

    Parameters
    ----------
    current_start_us, current_end_us : int
        The hours under test, microseconds since the epoch.
    log_start_us : int
        Start of the log's first whole hour.
    weeks, days : int
        How far back at most.

    Returns
    -------
    Reference
        None of its hours lies in or after the current range, and every current hour has equally
        many, so that the mix of hours is the same on both sides.
    """
    current = list(hours_between(current_start_us, current_end_us))
    rules: tuple[tuple[Rule, int, int], ...] = (
        ("hour of week", 7 * DAY_US, weeks),
        ("hour of day", DAY_US, days),
    )
    for rule, period_us, most in rules:
        counterparts = [
            [
                hour - back * period_us
                for back in range(1, most + max(1, len(current)) + 1)
                if log_start_us <= hour - back * period_us < current[0]
            ][:most]
            for hour in current
        ]
        common = min(map(len, counterparts), default=0)
        if common:
            chosen = {hour for earlier in counterparts for hour in earlier[:common]}
            return Reference(rule, tuple(sorted(chosen)))
    return Reference("none", ())


def drift_columns(types: Mapping[str, str]) -> dict[str, Kind]:
    """Choose the columns to watch from a table's columns and DuckDB types.

    Identity columns and clocks (``…_us``) are left out; texts and booleans are categorical, numbers
    numeric.

    Parameters
    ----------
    types : mapping of str to str
        Column name to DuckDB type, such as ``{"ad_id": "VARCHAR"}``.

    Returns
    -------
    dict of str to {'categorical', 'numeric'}
    """
    return {
        name: "categorical" if type_ in ("VARCHAR", "BOOLEAN") else "numeric"
        for name, type_ in types.items()
        if name not in IDENTITY_COLUMNS and not name.endswith("_us")
    }


def fixed_sample(rows: pa.Table, size: int, seed: int) -> pa.Table:
    """Draw at most ``size`` rows by hash of their impression, the same from any order of rows.

    Parameters
    ----------
    rows : pyarrow.Table
        With a column ``impression_id``.
    size, seed : int

    Returns
    -------
    pyarrow.Table
        In order of the hash.
    """
    draws = uniform(seed, rows.column("impression_id"), "drift sample")
    return rows.take(pa.array(np.argsort(draws, kind="stable")[:size]))


def fold(
    reference: pa.Table, current: pa.Table, columns: Mapping[str, Kind], settings: DriftSettings
) -> Folded:
    """Make two samples comparable: top categories of the reference, log1p on heavy tails.

    Parameters
    ----------
    reference, current : pyarrow.Table
    columns : mapping of str to {'categorical', 'numeric'}
        From :func:`drift_columns`.
    settings : DriftSettings
        ``top_categories`` is used.

    Returns
    -------
    Folded
        Everything is decided by the reference alone: its top categories (ties by name) and its
        skewness. A category not among them is ``__other__``, a null ``__null__``.
    """
    folded_reference: dict[str, NDArray[Any]] = {}
    folded_current: dict[str, NDArray[Any]] = {}
    logged: list[str] = []
    for name, kind in columns.items():
        before, after = reference.column(name), current.column(name)
        if kind == "categorical":
            top = _top_categories(before, settings.top_categories)
            folded_reference[name] = _folded_texts(before, top)
            folded_current[name] = _folded_texts(after, top)
            continue
        numbers, later = _numbers(before), _numbers(after)
        if _heavy_tailed(numbers):
            logged.append(name)
            numbers, later = _signed_log1p(numbers), _signed_log1p(later)
        folded_reference[name], folded_current[name] = numbers, later
    return Folded(folded_reference, folded_current, dict(columns), tuple(logged))


def psi(reference_counts: ArrayLike, current_counts: ArrayLike) -> float:
    """Return the population stability index of two histograms over the same cells.

    ``sum((q - p) log(q / p))``, the symmetrised Kullback-Leibler divergence, with half a row added
    to every cell (Jeffreys' prior), so that a cell empty on one side counts by how surprising its
    rows are instead of by an arbitrary floor.

    Parameters
    ----------
    reference_counts, current_counts : array_like of int64, shape (cells,)

    Returns
    -------
    float
        0 or more; NaN if either side has no rows.

    Raises
    ------
    ValueError
        If the shapes differ or a count is negative.
    """
    before = np.asarray(reference_counts, dtype=np.float64)
    after = np.asarray(current_counts, dtype=np.float64)
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"histograms of {before.shape} and {after.shape} cells do not compare")
    if (before < 0).any() or (after < 0).any():
        raise ValueError("a histogram holds a negative count")
    if not before.sum() or not after.sum():
        return float("nan")
    return float(_psi_terms(before, after).sum())


def psi_noise_limit(
    cells: int, reference_rows: int, current_rows: int, level: float = NOISE_LEVEL
) -> float:
    """Return what the index of an unchanged column exceeds with chance ``level``.

    Under no change the index times ``1 / (1/n + 1/m)`` is about chi-squared with ``cells - 1``
    degrees of freedom (Yurdakul and Naranjo, Journal of Risk Model Validation 2020).
    """
    if cells < 2 or not reference_rows or not current_rows:
        return 0.0
    return float(chdtri(cells - 1, level)) * (1 / reference_rows + 1 / current_rows)


def drift_report(
    reference: pa.Table, current: pa.Table, columns: Mapping[str, Kind], settings: DriftSettings
) -> DriftVerdict:
    """Compare two samples column by column; the verdict that gates Evidently and the retrain.

    Parameters
    ----------
    reference, current : pyarrow.Table
        Samples (:func:`fixed_sample`) of matched hours.
    columns : mapping of str to {'categorical', 'numeric'}
    settings : DriftSettings

    Returns
    -------
    DriftVerdict

    Raises
    ------
    ValueError
        If either sample is empty: no data is no verdict.
    """
    if not reference.num_rows or not current.num_rows:
        raise ValueError(
            f"{reference.num_rows} reference and {current.num_rows} current rows give no verdict"
        )
    folded = fold(reference, current, columns, settings)
    verdicts = sorted(
        (_column_drift(folded, name, settings) for name in folded.kinds),
        key=lambda verdict: (-verdict.psi, verdict.column),
    )
    count = sum(verdict.drifted for verdict in verdicts)
    return DriftVerdict(
        columns=tuple(verdicts),
        psi=verdicts[0].psi if verdicts else float("nan"),
        drifted=count >= settings.minimum_drifted_columns,
        share=count / len(verdicts) if verdicts else 0.0,
    )


def evidently_report(
    reference: pa.Table,
    current: pa.Table,
    columns: Mapping[str, Kind],
    settings: DriftSettings,
    path_html: Path,
) -> dict[str, float]:
    """Write Evidently's drift report of the folded columns and return its numbers.

    One PSI per column instead of the drift preset, which computes every column three times and
    whose default on categories alarms with the number of rows. Evidently's PSI cuts numbers into
    equal-width bins and drops nulls, so its values differ from ours, which decide.

    Parameters
    ----------
    reference, current, columns, settings
        As for :func:`drift_report`.
    path_html : Path
        Replaced whole: a reader sees the old report or the new one.

    Returns
    -------
    dict of str to float
        Column to Evidently's PSI. A column without a value on either side is left out.
    """
    # Read at import: set before it, and only if the operator has not.
    for switch, value in _EVIDENTLY_SWITCHES.items():
        os.environ.setdefault(switch, value)
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    folded = fold(reference, current, columns, settings)
    shown = [name for name in folded.kinds if _has_values(folded, name)]
    definition = DataDefinition(
        numerical_columns=[name for name in shown if folded.kinds[name] == "numeric"],
        categorical_columns=[name for name in shown if folded.kinds[name] == "categorical"],
    )
    report = Report(
        [ValueDrift(column=name, method="psi", threshold=settings.psi_threshold) for name in shown]
    )
    run = report.run(
        current_data=Dataset.from_pandas(
            pd.DataFrame({name: folded.current[name] for name in shown}), data_definition=definition
        ),
        reference_data=Dataset.from_pandas(
            pd.DataFrame({name: folded.reference[name] for name in shown}),
            data_definition=definition,
        ),
    )
    path_html.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path_html.parent, prefix=".report-") as folder:
        unfinished = Path(folder) / path_html.name
        run.save_html(str(unfinished))
        unfinished.replace(path_html)
    return {metric["config"]["column"]: float(metric["value"]) for metric in run.dict()["metrics"]}


def _column_drift(folded: Folded, name: str, settings: DriftSettings) -> ColumnDrift:
    before, after = folded.reference[name], folded.current[name]
    counted = cells(folded, name)
    index = psi(counted.reference, counted.current)
    limit = psi_noise_limit(len(counted.labels), len(before), len(after))
    return ColumnDrift(
        column=name,
        kind=folded.kinds[name],
        psi=index,
        noise_limit=limit,
        threshold=settings.psi_threshold,
        reference_rows=len(before),
        current_rows=len(after),
        drifted=index >= settings.psi_threshold and index > limit,
    )


def cells(folded: Folded, name: str) -> Cells:
    """Count both samples of a column in the cells that the index compares.

    Parameters
    ----------
    folded : Folded
    name : str
        One of its columns.

    Returns
    -------
    Cells
        Categories by name; or bins of the reference's deciles in order, with a cell for nulls.
        Cells that neither sample falls into are left out.
    """
    before, after = folded.reference[name], folded.current[name]
    if folded.kinds[name] == "categorical":
        return _category_cells(before, after)
    return _quantile_cells(before, after, logged=name in folded.logged)


def _psi_terms(reference_counts: NDArray[Any], current_counts: NDArray[Any]) -> NDArray[np.float64]:
    p = (reference_counts + 0.5) / (reference_counts + 0.5).sum()
    q = (current_counts + 0.5) / (current_counts + 0.5).sum()
    return (q - p) * np.log(q / p)


def _category_cells(before: NDArray[Any], after: NDArray[Any]) -> Cells:
    names, codes = np.unique(np.concatenate([before, after]), return_inverse=True)
    return Cells(
        tuple(map(str, names)),
        np.bincount(codes[: len(before)], minlength=len(names)),
        np.bincount(codes[len(before) :], minlength=len(names)),
    )


def _quantile_cells(
    before: NDArray[np.float64], after: NDArray[np.float64], *, logged: bool
) -> Cells:
    """Count both sides in bins of the reference's deciles, and nulls in a cell of their own."""
    known = before[~np.isnan(before)]
    inner = np.linspace(0, 1, QUANTILE_BINS + 1)[1:-1]
    # Repeated deciles (a column that is mostly 0) would make bins that nothing can fall into.
    # 'higher' takes a value that occurs, so a bin boundary never splits equal values.
    edges = np.unique(np.quantile(known, inner, method="higher")) if len(known) else np.empty(0)

    def counts(values: NDArray[np.float64]) -> NDArray[np.int64]:
        present = values[~np.isnan(values)]
        bins = np.searchsorted(edges, present, side="right")
        return np.append(np.bincount(bins, minlength=len(edges) + 1), len(values) - len(present))

    reference_counts, current_counts = counts(before), counts(after)
    occupied = (reference_counts + current_counts) > 0
    shown = [f"{edge:.4g}" for edge in (_signed_expm1(edges) if logged else edges)]
    labels = [
        *([f"< {shown[0]}"] if shown else ["any number"]),
        *(f"{low} to < {high}" for low, high in pairwise(shown)),
        *([f">= {shown[-1]}"] if shown else []),
        NULL,
    ]
    return Cells(
        tuple(label for label, kept in zip(labels, occupied, strict=True) if kept),
        reference_counts[occupied],
        current_counts[occupied],
    )


def _top_categories(column: pa.ChunkedArray, most: int) -> pa.Array:
    counted = column.cast(pa.string()).drop_null().value_counts()
    pairs = [(entry["values"], entry["counts"]) for entry in counted.to_pylist()]
    pairs.sort(key=lambda pair: (-pair[1], pair[0]))
    return pa.array([text for text, _ in pairs[:most]], pa.string())


def _folded_texts(column: pa.ChunkedArray, top: pa.Array) -> NDArray[Any]:
    texts = column.cast(pa.string())
    named = pc.call_function("is_in", [texts], pc.SetLookupOptions(value_set=top))
    folded = texts.to_numpy(zero_copy_only=False).astype(object)
    folded[~named.to_numpy(zero_copy_only=False)] = OTHER
    folded[texts.is_null().to_numpy(zero_copy_only=False)] = NULL
    return folded


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)


def _heavy_tailed(numbers: NDArray[np.float64]) -> bool:
    """Whether the moment skewness says that equal-width bins would see only the tail."""
    known = numbers[np.isfinite(numbers)]
    if len(known) < 3 or not known.std() > 0:
        return False
    return float((((known - known.mean()) / known.std()) ** 3).mean()) > HEAVY_TAIL_SKEWNESS


def _signed_log1p(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(numbers) * np.log1p(np.abs(numbers))


def _signed_expm1(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sign(numbers) * np.expm1(np.abs(numbers))


def _has_values(folded: Folded, name: str) -> bool:
    if folded.kinds[name] == "categorical":
        return True
    return all(bool((~np.isnan(side[name])).any()) for side in (folded.reference, folded.current))


def columns_of(verdict: DriftVerdict, *, drifted: bool) -> Sequence[str]:
    """Return the names of the columns that drifted, or of those that did not."""
    return [column.column for column in verdict.columns if column.drifted == drifted]
