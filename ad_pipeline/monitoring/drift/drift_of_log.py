"""The two samples that a drift verdict compares: the log's last hours, and the same hours before.

Reading them, and keeping the verdict: what drift is and when it alarms is
:mod:`.inputs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US, hour_of, hours_between, timestamp
from ad_pipeline.datasets import Dataset, Deployment
from ad_pipeline.events.contract import event_tables
from ad_pipeline.monitoring.drift.drift_plots import drift_picture
from ad_pipeline.monitoring.drift.evidently_page import evidently_report
from ad_pipeline.monitoring.drift.inputs import (
    DriftVerdict,
    Kind,
    drift_columns,
    drift_report,
    fold,
)
from ad_pipeline.monitoring.drift.reference import Reference, fixed_sample, matched_reference
from ad_pipeline.monitoring.tables import DRIFT, TABLES, drift_rows
from ad_pipeline.warehouse import Warehouse, one_row, rows_of, select

DRAWN = "drift.html"
"""Evidently's picture of the two samples, in the deployment's folder of reports."""

PICTURE = "drift.png"
"""Our own, beside it."""

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

    @property
    def in_words(self) -> str:
        """Which hours were compared with which."""
        periods = len(self.reference.hours_us) * HOUR_US // (self.end_us - self.start_us)
        unit = self.reference.rule.removeprefix("hour of ")
        return (
            f"{timestamp(self.start_us)} to {timestamp(self.end_us)} against the same hours of "
            f"{periods} earlier {unit}{'s' * (periods != 1)}"
        )


@dataclass(frozen=True)
class RecordedDrift:
    """A comparison whose verdict is in the warehouse.

    Attributes
    ----------
    compared : LogComparison
    evidently : dict of str to float
        Evidently's index by column; empty if it was not asked.
    picture : bytes
        PNG of the verdict, as it is in the reports folder.
    """

    compared: LogComparison
    evidently: dict[str, float]
    picture: bytes


def record_drift(warehouse: Warehouse, deployment: Deployment) -> RecordedDrift | None:
    """Compare the log's last hours with those before, keep the verdict, and draw what is found.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment

    Returns
    -------
    RecordedDrift or None
        None while the log has no earlier hours to compare with.
    """
    warehouse.create(TABLES)
    compared = compare_log(warehouse, deployment.dataset)
    if compared is None:
        return None
    verdict = compared.verdict
    found = drift_rows(verdict, compared.reference, compared.start_us, compared.end_us)
    with warehouse.writer() as connection:
        connection.register("found", found)
        connection.execute(
            f"DELETE FROM {DRIFT.name} WHERE current_start_us = $start_us "
            "AND current_end_us = $end_us",
            {"start_us": compared.start_us, "end_us": compared.end_us},
        )
        connection.execute(f"INSERT INTO {DRIFT.name} BY NAME SELECT * FROM found")
    report = deployment.reports / DRAWN
    numbers: dict[str, float] = {}
    # The index decides in a fraction of a second whether Evidently's ten are worth drawing.
    if verdict.drifted or not report.exists():
        numbers = evidently_report(
            compared.before,
            compared.now,
            compared.columns,
            deployment.dataset.settings.drift,
            report,
        )
    picture = drift_picture(
        verdict,
        fold(
            compared.before,
            compared.now,
            compared.columns,
            deployment.dataset.settings.drift,
        ),
        title=f"{deployment.dataset.name}: {compared.in_words}",
    )
    deployment.reports.mkdir(parents=True, exist_ok=True)
    (deployment.reports / PICTURE).write_bytes(picture)
    return RecordedDrift(compared, numbers, picture)


def compare_log(warehouse: Warehouse, dataset: Dataset) -> LogComparison | None:
    """Compare the last hours that have impressions with their counterparts; None without any.

    Parameters
    ----------
    warehouse : Warehouse
    dataset : Dataset
    """
    with warehouse.reader() as connection:
        span = _hours_under_test(connection, dataset)
        if span is None:
            return None
        reference = matched_reference(*span, hour_of(dataset.start_us))
        return _compared(connection, dataset, span, reference)


def compare_with_hours_before(warehouse: Warehouse, dataset: Dataset) -> DriftVerdict | None:
    """Compare the same hours with as many just before them, of another time of the week.

    Where this drifts and :func:`compare_log` does not, the week goes its way. None unless the
    latter is matched by hour of week: without an earlier week a season looks like any change.

    Parameters
    ----------
    warehouse : Warehouse
    dataset : Dataset
    """
    with warehouse.reader() as connection:
        span = _hours_under_test(connection, dataset)
        if span is None or matched_reference(*span, hour_of(dataset.start_us)).rule != (
            "hour of week"
        ):
            return None
        start_us, end_us = span
        before = tuple(hours_between(2 * start_us - end_us, start_us))
        compared = _compared(connection, dataset, span, Reference("hour of day", before))
        return None if compared is None else compared.verdict


def _hours_under_test(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset
) -> tuple[int, int] | None:
    (last_us,) = one_row(connection, "SELECT max(received_us) FROM events.impressions")
    if last_us is None:
        return None
    end_us = hour_of(last_us) + HOUR_US
    if dataset.end_us is not None:
        # Late rows that trickle in after the end are no hour of traffic.
        end_us = min(end_us, dataset.end_us)
    hours = dataset.settings.drift.current_hours
    return max(end_us - hours * HOUR_US, hour_of(dataset.start_us)), end_us


def _compared(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    span: tuple[int, int],
    reference: Reference,
) -> LogComparison | None:
    if not reference.hours_us:
        return None
    types = {column.name: column.type for column in event_tables(dataset)["impressions"].columns}
    columns = drift_columns(types)
    now = _sampled(connection, tuple(hours_between(*span)), dataset)
    before = _sampled(connection, reference.hours_us, dataset)
    periods = reference.periods_of(before.column("received_us").to_numpy(), span[1])
    verdict = drift_report(before, now, columns, dataset.settings.drift, periods)
    return LogComparison(*span, reference, before, now, columns, verdict)


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
