"""The two samples that a drift verdict compares: the log's last hours, and the same hours before.

Reading only: what drift is and when it alarms is :mod:`ad_pipeline.monitoring.drift`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US, hour_of, hours_between
from ad_pipeline.datasets import Dataset
from ad_pipeline.events.contract import event_tables
from ad_pipeline.monitoring.drift import (
    DriftVerdict,
    Kind,
    Reference,
    drift_columns,
    drift_report,
    fixed_sample,
    matched_reference,
)
from ad_pipeline.warehouse import Warehouse, one_row, rows_of, select

THINNED_TO = 4
"""Rows read per row sampled: SQL thins by a stable hash, the sample is drawn from that."""


@dataclass(frozen=True)
class LogComparison:
    """The log's last hours beside earlier ones.

    Attributes
    ----------
    start_us, end_us : int
        The hours under test, microseconds.
    reference : Reference
    before, now : pyarrow.Table
        Samples of the same size and columns.
    columns : dict of str to {'categorical', 'numeric'}
    verdict : DriftVerdict
    """

    start_us: int
    end_us: int
    reference: Reference
    before: pa.Table
    now: pa.Table
    columns: dict[str, Kind]
    verdict: DriftVerdict


def compare_log(warehouse: Warehouse, dataset: Dataset) -> LogComparison | None:
    """Compare the last hours that have impressions with their counterparts; None without any.

    Parameters
    ----------
    warehouse : Warehouse
    dataset : Dataset
    """
    settings = dataset.settings.drift
    types = {column.name: column.type for column in event_tables(dataset)["impressions"].columns}
    columns = drift_columns(types)
    with warehouse.reader() as connection:
        (last_us,) = one_row(connection, "SELECT max(received_us) FROM events.impressions")
        if last_us is None:
            return None
        end_us = hour_of(last_us) + HOUR_US
        if dataset.end_us is not None:
            # Late rows that trickle in after the end are no hour of traffic.
            end_us = min(end_us, dataset.end_us)
        start_us = max(end_us - settings.current_hours * HOUR_US, hour_of(dataset.start_us))
        reference = matched_reference(start_us, end_us, hour_of(dataset.start_us))
        if not reference.hours_us:
            return None
        now = _sampled(connection, tuple(hours_between(start_us, end_us)), dataset)
        before = _sampled(connection, reference.hours_us, dataset)
    verdict = drift_report(before, now, columns, settings)
    return LogComparison(start_us, end_us, reference, before, now, columns, verdict)


def _sampled(
    connection: duckdb.DuckDBPyConnection, hours_us: Sequence[int], dataset: Dataset
) -> pa.Table:
    """Draw a fixed sample from some hours, reading a few times its rows whatever the log's size."""
    size = dataset.settings.drift.sample_rows
    parameters = {
        "hours_us": list(hours_us),
        "start_us": hours_us[0],
        "end_us": hours_us[-1] + HOUR_US,
    }
    (rows,) = one_row(connection, select("monitoring.impressions_in_hours"), parameters)
    query = select("monitoring.drift_sample")
    one_in = max(1, rows // (THINNED_TO * size))
    table = rows_of(connection, query, parameters | {"one_in": one_in})
    return fixed_sample(table, size, dataset.settings.seed)
