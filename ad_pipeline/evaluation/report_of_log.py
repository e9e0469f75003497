"""The report of a deployment: held-out forecasts measured and drawn, the progressive metrics drawn.

Which forecasts are held out is chosen in ``learners``; how they are measured is
:mod:`ad_pipeline.evaluation.held_out`, how they are drawn :mod:`ad_pipeline.evaluation.plots`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from ad_pipeline.datasets import Deployment
from ad_pipeline.evaluation.held_out import HeldOut, held_out_rows
from ad_pipeline.evaluation.plots import calibration_plot, metrics_over_time
from ad_pipeline.evaluation.tables import PROGRESSIVE_METRICS, REPORT, TABLES
from ad_pipeline.warehouse import Warehouse, arrow_rows, rows_of


@dataclass(frozen=True)
class WrittenReport:
    """What a report holds.

    Attributes
    ----------
    rows : pyarrow.Table
        Of ``evaluation.report``; none while no goal has an ensemble.
    calibration : dict of str to bytes
        By goal, a PNG.
    metrics : bytes
        The progressive metrics over time, a PNG.
    ranges : dict of str to (int, int)
        By goal, the hours of maturity ``[start_us, end_us)`` that no fit has seen, microseconds.
    """

    rows: pa.Table
    calibration: dict[str, bytes]
    metrics: bytes
    ranges: dict[str, tuple[int, int]]


def write_report(
    warehouse: Warehouse, deployment: Deployment, held_out: Iterable[HeldOut]
) -> WrittenReport:
    """Replace ``evaluation.report`` and the pictures in the deployment's folder of reports.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    held_out : iterable of HeldOut
        Of each goal that has an ensemble. With none the earlier rows stay.
    """
    name = deployment.dataset.name
    warehouse.create(TABLES)
    with warehouse.reader() as connection:
        progressive = rows_of(
            connection, f"SELECT * FROM {PROGRESSIVE_METRICS.name} ORDER BY hour_us, goal, expert"
        )
    deployment.reports.mkdir(parents=True, exist_ok=True)
    truth = deployment.truth if deployment.truth.is_dir() else None
    parts: list[pa.Table] = []
    calibration: dict[str, bytes] = {}
    ranges: dict[str, tuple[int, int]] = {}
    for found in held_out:
        parts.append(held_out_rows(found, deployment.dataset.settings, truth))
        picture = calibration_plot(found.labels, found.probabilities, title=f"{name}: {found.goal}")
        (deployment.reports / f"calibration_{found.goal}.png").write_bytes(picture)
        calibration[found.goal] = picture
        ranges[found.goal] = (found.start_us, found.end_us)
    metrics = metrics_over_time(progressive, title=name)
    (deployment.reports / "metrics.png").write_bytes(metrics)
    rows = pa.concat_tables(parts) if parts else arrow_rows(REPORT, [])
    if parts:
        with warehouse.writer() as connection:
            connection.register("measured", rows)
            connection.execute(f"DELETE FROM {REPORT.name}")
            connection.execute(f"INSERT INTO {REPORT.name} BY NAME SELECT * FROM measured")
    return WrittenReport(rows, calibration, metrics, ranges)
