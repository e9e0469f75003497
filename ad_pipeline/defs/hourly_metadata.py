"""Metadata that differs by hour, though a range of partitions is done in one step.

A ``MaterializeResult`` puts the same metadata on every partition of a range, and Dagster would plot
a flat line. What the figures mean stands with the asset that reports them.
"""

import math
from collections.abc import Iterable, Iterator, Mapping

import dagster as dg

from ad_pipeline.clocks import hour_key, hours_between
from ad_pipeline.defs.shown import label, rounded
from ad_pipeline.learners.scored_hours import ScoredHour
from ad_pipeline.warehouse import Table, Warehouse

Figures = Mapping[str, float | int | str | bool | dg.MetadataValue]


def describe_hour(
    context: dg.AssetExecutionContext, key: list[str], hour_us: int, figures: Figures
) -> None:
    """Attach figures to one hour of an asset, rounded; those that are not finite are left out.

    Parameters
    ----------
    context : AssetExecutionContext
        Of the step that materializes the asset.
    key : list of str
        The asset.
    hour_us : int
        Start of the hour, microseconds.
    figures : mapping
        Label (:func:`ad_pipeline.defs.shown.label`) to value. Dagster plots numbers over the
        partitions.
    """
    context.add_asset_metadata(
        {
            name: rounded(value) if isinstance(value, float) else value
            for name, value in figures.items()
            if not isinstance(value, float) or math.isfinite(value)
        },
        asset_key=dg.AssetKey(key),
        partition_key=hour_key(hour_us),
    )


def rows_by_hour(
    warehouse: Warehouse, table: Table, start_us: int, end_us: int
) -> Iterator[tuple[int, int]]:
    """Yield ``(hour_us, rows)`` of a table for each hour of the range that has rows."""
    clock = table.clock
    with warehouse.reader() as connection:
        yield from connection.execute(
            f"SELECT {clock} - {clock} % 3600000000, count(*) FROM {table.name} "
            f"WHERE {clock} >= $start_us AND {clock} < $end_us GROUP BY ALL ORDER BY ALL",
            {"start_us": start_us, "end_us": end_us},
        ).fetchall()


def describe_rows(
    context: dg.AssetExecutionContext,
    warehouse: Warehouse,
    table: Table,
    start_us: int,
    end_us: int,
) -> None:
    """Attach the number of its rows to each hour of the asset that a table is."""
    written = dict(rows_by_hour(warehouse, table, start_us, end_us))
    for hour_us in hours_between(start_us, end_us):
        rows = {"dagster/row_count": written.get(hour_us, 0)}
        describe_hour(context, table.name.split("."), hour_us, rows)


def describe_scored(
    context: dg.AssetExecutionContext, table: Table, scored: Iterable[ScoredHour]
) -> None:
    """Attach the number of scores and their mean to each hour of the asset that a table is."""
    for hour in scored:
        means = {
            label("mean probability", goal): mean for goal, mean in hour.mean_probabilities.items()
        }
        shown = {"dagster/row_count": hour.rows, **means}
        describe_hour(context, table.name.split("."), hour.hour_us, shown)
