"""What was asked of the learners beyond their schedule, by log hour: rows of tables.

An order is kept before it is carried out, under the hour after which it holds, so that a re-run of
the hours reads it here and gives the same models. Who orders is the business of sensors and people.
"""

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa

from ad_pipeline.warehouse import Table, arrow_rows, rows_of


def record_orders(
    connection: duckdb.DuckDBPyConnection, table: Table, hours_us: Sequence[int], **said: Any
) -> None:
    """Keep an order for some hours, in place of what was ordered for them before.

    Parameters
    ----------
    connection : DuckDBPyConnection
        From :meth:`Warehouse.writer`.
    table : Table
        Keyed by ``hour_us``.
    hours_us : sequence of int
        Starts of log hours, microseconds.
    **said
        The table's other columns, the same in every row.
    """
    rows = arrow_rows(table, [{"hour_us": hour_us, **said} for hour_us in hours_us])
    connection.register("asked", rows)
    connection.execute(f"DELETE FROM {table.name} WHERE hour_us IN (SELECT hour_us FROM asked)")
    connection.execute(f"INSERT INTO {table.name} BY NAME SELECT * FROM asked")
    connection.unregister("asked")


def orders(
    connection: duckdb.DuckDBPyConnection, table: Table, start_us: int, end_us: int
) -> dict[int, dict[str, Any]]:
    """Return what was ordered for the hours ``[start_us, end_us)``, by hour."""
    found: pa.Table = rows_of(
        connection,
        f"SELECT * FROM {table.name} WHERE hour_us >= $start_us AND hour_us < $end_us",
        {"start_us": start_us, "end_us": end_us},
    )
    return {row["hour_us"]: row for row in found.to_pylist()}
