"""Progressive measures over log hours: read the scored rows, measure them, keep the measures.

What is measured, and why a row counts in the hour in which its label matured, is
:mod:`ad_pipeline.evaluation.progressive`.
"""

from dataclasses import dataclass

import pyarrow as pa

from ad_pipeline.datasets import Dataset
from ad_pipeline.evaluation.progressive import experts_of, progressive_metrics
from ad_pipeline.evaluation.spread import spread_of_even_mixture
from ad_pipeline.evaluation.tables import EXPERT_SPREAD, PROGRESSIVE_METRICS, TABLES
from ad_pipeline.warehouse import Warehouse, arrow_rows, replace_hours, rows_of, select


@dataclass(frozen=True)
class MeasuredHours:
    """What was written of some hours.

    Attributes
    ----------
    progressive : pyarrow.Table
        Rows of ``evaluation.progressive_metrics``.
    spread : pyarrow.Table
        Rows of ``evaluation.expert_spread``.
    """

    progressive: pa.Table
    spread: pa.Table


def measure_hours(
    warehouse: Warehouse, dataset: Dataset, start_us: int, end_us: int
) -> MeasuredHours:
    """Measure every expert on the labels that matured in the log hours ``[start_us, end_us)``.

    Parameters
    ----------
    warehouse : Warehouse
        With final labels and predictions of the hours.
    dataset : Dataset
    start_us, end_us : int
        Starts of hours, microseconds.

    Returns
    -------
    MeasuredHours
    """
    warehouse.create(TABLES)
    query = select("evaluation.scored_rows")
    parameters = {
        "goals": list(dataset.goal_names),
        "start_us": start_us,
        "end_us": end_us,
        "horizon_us": dataset.maturity_us,
    }
    with warehouse.reader() as connection:
        rows = rows_of(connection, query, parameters)
    experts = experts_of(dataset.settings)
    measured = progressive_metrics(rows, start_us, end_us, end_us, experts)
    spread = arrow_rows(
        EXPERT_SPREAD, spread_of_even_mixture(rows, experts, dataset.settings.evaluation.level)
    )
    with warehouse.writer() as connection:
        for table, records in ((PROGRESSIVE_METRICS, measured), (EXPERT_SPREAD, spread)):
            connection.register("measured", records)
            replace_hours(connection, table, "SELECT * FROM measured", {}, start_us, end_us)
            connection.unregister("measured")
    return MeasuredHours(measured, spread)
