"""Whether the impressions of the last hours come from the distribution of the hours before.

Three things make a naive comparison alarm on an unchanged log, and are removed first: the hour of
the day (:mod:`.reference`), sparse categories (folded to the reference's most frequent), and noise,
of a finite sample as of days that differ. A column drifts only if it moved far *and* it is beyond
doubt after all columns were looked at (:mod:`.statistics`). Identity columns always drift and are
left out. Drift of features is no proof that the model is worse: that is for :mod:`.losses`; what to
do about it is :mod:`.causes`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ad_pipeline.monitoring.drift.statistics import (
    benjamini_hochberg,
    block_p_value,
    distances_of_numbers,
    jensen_shannon,
    psi,
    psi_noise_limit,
    psi_terms,
    unseen_share,
)
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

FALSE_DISCOVERIES = 0.01
"""Share of false ones among the columns that are said to have drifted, at most (Benjamini and
Hochberg)."""

HEAVY_TAIL_SKEWNESS = 2.0

Kind = Literal["categorical", "numeric"]


@dataclass(frozen=True)
class Folded:
    """Both samples, comparable column by column.

    Attributes
    ----------
    reference, current : dict of str to ndarray
        Categorical columns: int32 places in ``categories``. Numeric columns: float64, NaN where
        null, heavy tails after log1p.
    kinds : dict of str to {'categorical', 'numeric'}
    categories : dict of str to tuple of str
        Of each categorical column: the reference's top K, other and null, by name.
    logged : tuple of str
        Numeric columns that were put through log1p.
    """

    reference: dict[str, NDArray[Any]]
    current: dict[str, NDArray[Any]]
    kinds: dict[str, Kind]
    categories: dict[str, tuple[str, ...]]
    logged: tuple[str, ...]

    def shown(self, side: Literal["reference", "current"], name: str) -> NDArray[Any]:
        """Return a column as people read it: texts of categories, numbers as they are."""
        values: NDArray[Any] = getattr(self, side)[name]
        if self.kinds[name] == "numeric":
            return values
        return np.array(self.categories[name], dtype=object)[values]


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
        return psi_terms(self.reference, self.current)


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
    kolmogorov_smirnov, wasserstein : float
        Of a numeric column, as folded; NaN of others. The second in standard deviations of the
        reference.
    jensen_shannon : float
        Of a categorical column, as folded; NaN of others.
    unseen, unseen_expected, unseen_p_value : float
        Share of the rows whose category the reference never saw, what an unchanged log would
        bring, and the chance of the difference; NaN, NaN and 1 of a numeric column.
    p_value, adjusted : float
        Of the index, by what whole periods differ by; the second for all columns looked at.
    drifted : bool
        The index reaches the threshold, exceeds the noise limit *and* survives the adjustment.
    """

    column: str
    kind: Kind
    psi: float
    noise_limit: float
    threshold: float
    reference_rows: int
    current_rows: int
    kolmogorov_smirnov: float
    wasserstein: float
    jensen_shannon: float
    unseen: float
    unseen_expected: float
    unseen_p_value: float
    p_value: float
    adjusted: float
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
    categories: dict[str, tuple[str, ...]] = {}
    logged: list[str] = []
    for name, kind in columns.items():
        before, after = reference.column(name), current.column(name)
        if kind == "categorical":
            top = _top_categories(before, settings.top_categories)
            categories[name] = tuple(sorted({*top, OTHER, NULL}))
            folded_reference[name] = _places(before, top, categories[name])
            folded_current[name] = _places(after, top, categories[name])
            continue
        numbers, later = _numbers(before), _numbers(after)
        if _heavy_tailed(numbers):
            logged.append(name)
            numbers, later = _signed_log1p(numbers), _signed_log1p(later)
        folded_reference[name], folded_current[name] = numbers, later
    return Folded(folded_reference, folded_current, dict(columns), categories, tuple(logged))


def drift_report(
    reference: pa.Table,
    current: pa.Table,
    columns: Mapping[str, Kind],
    settings: DriftSettings,
    periods: NDArray[np.int64] | None = None,
) -> DriftVerdict:
    """Compare two samples column by column; the verdict that gates Evidently and the actions.

    Parameters
    ----------
    reference, current : pyarrow.Table
        Samples (:func:`.reference.fixed_sample`) of matched hours.
    columns : mapping of str to {'categorical', 'numeric'}
    settings : DriftSettings
    periods : ndarray of shape (reference rows,), int64, optional
        From 0: the day or week back that each reference row is of
        (:meth:`.reference.Reference.periods_of`). None: rows count as independent draws.

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
    blocks = np.zeros(reference.num_rows, dtype=np.int64) if periods is None else periods
    folded = fold(reference, current, columns, settings)
    counted = {name: cells(folded, name) for name in columns}
    indices = {name: psi(each.reference, each.current) for name, each in counted.items()}
    chances = [
        block_p_value(_by_block(folded, name, blocks), each.current, indices[name])
        for name, each in counted.items()
    ]
    adjusted = benjamini_hochberg(chances)
    verdicts = sorted(
        (
            _column_drift(
                folded,
                counted[name],
                _unseen(reference.column(name), current.column(name))
                if columns[name] == "categorical"
                else (float("nan"), float("nan"), 1.0),
                name,
                (indices[name], chance, held),
                settings,
            )
            for name, chance, held in zip(columns, chances, adjusted.tolist(), strict=True)
        ),
        key=lambda verdict: (-verdict.psi, verdict.column),
    )
    count = sum(verdict.drifted for verdict in verdicts)
    return DriftVerdict(
        columns=tuple(verdicts),
        psi=verdicts[0].psi if verdicts else float("nan"),
        drifted=count >= settings.minimum_drifted_columns,
        share=count / len(verdicts) if verdicts else 0.0,
    )


def _column_drift(
    folded: Folded,
    counted: Cells,
    unseen: tuple[float, float, float],
    name: str,
    tested: tuple[float, float, float],
    settings: DriftSettings,
) -> ColumnDrift:
    index, p_value, adjusted = tested
    before, after = folded.reference[name], folded.current[name]
    limit = psi_noise_limit(len(counted.labels), len(before), len(after))
    gap = area = divergence = float("nan")
    if folded.kinds[name] == "numeric":
        known = before[~np.isnan(before)]
        gap, area = distances_of_numbers(known, after[~np.isnan(after)])
        area /= float(known.std()) if len(known) and known.std() > 0 else 1.0
    else:
        divergence = jensen_shannon(counted.reference, counted.current)
    return ColumnDrift(
        column=name,
        kind=folded.kinds[name],
        psi=index,
        noise_limit=limit,
        threshold=settings.psi_threshold,
        reference_rows=len(before),
        current_rows=len(after),
        kolmogorov_smirnov=gap,
        wasserstein=area,
        jensen_shannon=divergence,
        unseen=unseen[0],
        unseen_expected=unseen[1],
        unseen_p_value=unseen[2],
        p_value=p_value,
        adjusted=adjusted,
        drifted=(
            index >= settings.psi_threshold and index > limit and adjusted <= FALSE_DISCOVERIES
        ),
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
    if folded.kinds[name] == "numeric":
        return _quantile_cells(before, after, logged=name in folded.logged)
    names = folded.categories[name]
    reference, current = (np.bincount(side, minlength=len(names)) for side in (before, after))
    there = (reference + current) > 0
    return Cells(
        tuple(label for label, kept in zip(names, there, strict=True) if kept),
        reference[there],
        current[there],
    )


def _by_block(folded: Folded, name: str, blocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the reference by block in the cells of :func:`cells`, shape (blocks, cells)."""
    before, after = folded.reference[name], folded.current[name]
    if folded.kinds[name] == "numeric":
        edges = _edges(before)
        width = len(edges) + 2
        binned, later = (_bins(side, edges) for side in (before, after))
    else:
        width, binned, later = len(folded.categories[name]), before, after
    table = np.bincount(blocks * width + binned, minlength=(int(blocks.max()) + 1) * width)
    there = np.bincount(binned, minlength=width) + np.bincount(later, minlength=width) > 0
    return table.reshape(-1, width)[:, there]


def quantile_counts(
    before: NDArray[np.float64], blocks: NDArray[np.int64], after: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count numbers in bins of the earlier ones' deciles.

    Parameters
    ----------
    before, after : ndarray of float64
        Without NaN.
    blocks : ndarray of int64
        Block of each earlier number, from 0.

    Returns
    -------
    reference_blocks : ndarray of shape (blocks, bins), int64
    current : ndarray of shape (bins,), int64
    """
    edges = _edges(before)
    width = len(edges) + 1
    table = np.bincount(
        blocks * width + _bins(before, edges), minlength=(int(blocks.max()) + 1) * width
    )
    return table.reshape(-1, width), np.bincount(_bins(after, edges), minlength=width)


def _edges(before: NDArray[np.float64]) -> NDArray[np.float64]:
    known = before[~np.isnan(before)]
    inner = np.linspace(0, 1, QUANTILE_BINS + 1)[1:-1]
    # Repeated deciles (a column that is mostly 0) would make bins that nothing can fall into.
    # 'higher' takes a value that occurs, so a bin boundary never splits equal values.
    return np.unique(np.quantile(known, inner, method="higher")) if len(known) else np.empty(0)


def _bins(values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the bin of each number; nulls come last."""
    return np.where(
        np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="right")
    ).astype(np.int64)


def _quantile_cells(
    before: NDArray[np.float64], after: NDArray[np.float64], *, logged: bool
) -> Cells:
    """Count both sides in bins of the reference's deciles, and nulls in a cell of their own."""
    edges = _edges(before)
    reference_counts, current_counts = (
        np.bincount(_bins(side, edges), minlength=len(edges) + 2) for side in (before, after)
    )
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


def _top_categories(column: pa.ChunkedArray, most: int) -> list[str]:
    counted = column.cast(pa.string()).drop_null().value_counts()
    counts = counted.field("counts").to_numpy()
    # Only those that may be among the top become Python texts: a column may hold 100,000.
    least = np.partition(counts, -most)[-most] if len(counts) > most else 0
    near = np.flatnonzero(counts >= least)
    texts = counted.field("values").take(pa.array(near)).to_pylist()
    pairs = sorted(zip((-counts[near]).tolist(), texts, strict=True))
    return [text for _, text in pairs[:most]]


def _places(
    column: pa.ChunkedArray, top: Sequence[str], categories: Sequence[str]
) -> NDArray[np.int32]:
    """Return each row's place among the categories, of texts beside the top that of other."""
    place = {name: at for at, name in enumerate(categories)}
    texts = column.cast(pa.string())
    found = pc.call_function(
        "index_in", [texts], pc.SetLookupOptions(value_set=pa.array(top, pa.string()))
    ).fill_null(-1)
    of_top = np.array([*(place[name] for name in top), place[OTHER]], dtype=np.int32)
    # -1 takes the last one: what is not among the top.
    places = of_top[found.to_numpy()]
    places[texts.is_null().to_numpy()] = place[NULL]
    return places


def _unseen(before: pa.ChunkedArray, after: pa.ChunkedArray) -> tuple[float, float, float]:
    """Return :func:`.statistics.unseen_share` of a categorical column; a null is no category."""
    counted = before.cast(pa.string()).drop_null().value_counts()
    known = after.cast(pa.string()).drop_null()
    seen = pc.call_function(
        "is_in", [known], pc.SetLookupOptions(value_set=counted.field("values"))
    )
    unseen = len(known) - int(np.count_nonzero(seen.to_numpy()))
    return unseen_share(counted.field("counts").to_numpy(), unseen, len(known))


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


def columns_of(verdict: DriftVerdict, *, drifted: bool) -> Sequence[str]:
    """Return the names of the columns that drifted, or of those that did not."""
    return [column.column for column in verdict.columns if column.drifted == drifted]
