"""The logged decisions of each hour beside the impressions they led to, out of the warehouse.

Long texts are neither sorted nor joined there: decisions are read as they lie, an hour is put in
order when it is its turn, and the columns of the impressions are laid beside it. What is made of
an hour stands in :mod:`.recheck`.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.clocks import HOUR_US, hour_of, hours_between
from ad_pipeline.monitoring.parity.comparison import check_identify
from ad_pipeline.warehouse import Warehouse, rows_of, select

KEY = "request_id"

READ_TOGETHER = 200_000
"""Decisions that are held at a time, unless one hour has more.

Where it was measured: 0.53 GB for 200,000 decisions in all, 0.59 for 340,000, 0.76 for a million.
"""


def decisions_by_hour(
    warehouse: Warehouse, start_us: int, end_us: int
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the decisions of each log hour of ``[start_us, end_us)``, by arrival and key.

    Hours are read together as far as they fit: every reading looks through all impressions. Whoever
    holds an hour holds all that were read with it.

    Raises
    ------
    RepeatedKey
        If a request led to two impressions.
    """
    span = {"start_us": hour_of(start_us), "end_us": end_us}
    with warehouse.reader() as connection:
        counted = rows_of(connection, select("monitoring.decisions_by_hour"), span)
    rows_in = dict(zip(*(column.to_pylist() for column in counted.columns), strict=True))
    for hours in _read_together(rows_in, list(hours_between(start_us, end_us))):
        yield from _read(warehouse, {hour_us: rows_in.get(hour_us, 0) for hour_us in hours})


def _read(warehouse: Warehouse, rows_in: Mapping[int, int]) -> Iterator[tuple[int, pa.Table]]:
    """Yield the decisions of adjoining hours of so many rows, read at once."""
    span = {"start_us": min(rows_in), "end_us": max(rows_in) + HOUR_US}
    with warehouse.reader() as connection:
        decisions = rows_of(connection, select("monitoring.decisions_to_check"), span)
        impressions = rows_of(connection, select("monitoring.impressions_to_check"), span)
    places = _order(decisions)
    first = 0
    for hour_us, rows in rows_in.items():
        of_hour = (
            decisions.slice(first, rows)
            if places is None
            else decisions.take(places.slice(first, rows))
        )
        yield hour_us, _beside_impressions(of_hour, impressions, first)
        first += rows


def _order(decisions: pa.Table) -> pa.Array | None:
    """Return the rows of decisions by arrival and key; None if they lie so, as they mostly do."""
    keys = decisions.column(KEY)
    steps = np.diff(decisions.column("received_us").to_numpy())
    tied = np.flatnonzero(steps == 0)
    before, after = keys.take(pa.array(tied)), keys.take(pa.array(tied + 1))
    are_tied_in_order = pc.call_function("less", [before, after]).fill_null(False)
    if (steps >= 0).all() and are_tied_in_order.to_numpy().all():
        return None
    by_arrival = [("received_us", "ascending"), (KEY, "ascending")]
    return pc.call_function("sort_indices", [decisions], pc.SortOptions(sort_keys=by_arrival))


def _beside_impressions(of_hour: pa.Table, impressions: pa.Table, first: int) -> pa.Table:
    """Lay the columns of the impressions from a row on beside those of an hour's decisions."""
    beside = impressions.slice(first, of_hour.num_rows)
    if not beside.column(KEY).equals(of_hour.column(KEY)):
        check_identify(impressions.column(KEY).combine_chunks(), (KEY,))
    for name in beside.column_names:
        if name != KEY:
            of_hour = of_hour.append_column(name, beside.column(name))
    return of_hour


def _read_together(decisions: Mapping[int, int], hours: Sequence[int]) -> list[list[int]]:
    """Return the hours in groups of at most :data:`READ_TOGETHER` decisions, or of one hour."""
    groups: list[list[int]] = []
    rows = 0
    for hour_us in hours:
        rows += decisions.get(hour_us, 0)
        if not groups or rows > READ_TOGETHER:
            groups.append([])
            rows = decisions.get(hour_us, 0)
        groups[-1].append(hour_us)
    return groups
