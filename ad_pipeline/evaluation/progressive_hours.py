"""Progressive metrics over log hours: read the scored rows, measure them, keep the measures.

What is measured, and why a row counts in the hour in which its label matured, is
:mod:`ad_pipeline.evaluation.progressive`.
"""

import pyarrow as pa

from ad_pipeline.datasets import Dataset
from ad_pipeline.evaluation.progressive import progressive_metrics
from ad_pipeline.evaluation.tables import PROGRESSIVE_METRICS, TABLES
from ad_pipeline.warehouse import Warehouse, replace_hours, rows_of, select


def measure_hours(warehouse: Warehouse, dataset: Dataset, start_us: int, end_us: int) -> pa.Table:
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
    pyarrow.Table
        The rows of ``evaluation.progressive_metrics`` that were written.
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
    measured = progressive_metrics(rows, start_us, end_us, end_us)
    with warehouse.writer() as connection:
        connection.register("measured", measured)
        replace_hours(
            connection, PROGRESSIVE_METRICS, "SELECT * FROM measured", {}, start_us, end_us
        )
    return measured
