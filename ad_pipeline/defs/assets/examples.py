"""The label join as assets: what a learner may see when, and what each label turned out to be."""

import dagster as dg

from ad_pipeline.clocks import MINUTE_US, hours_between
from ad_pipeline.defs.assets.events import HOURLY_TABLES
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import column_lineage, table_spec, upstream_tables
from ad_pipeline.defs.partitions import HORIZON, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label
from ad_pipeline.events.contract import event_tables
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.examples.tables import TABLES
from ad_pipeline.warehouse import Table

ROOM = {table.name for table in TABLES}


def _spec(table: Table) -> dg.AssetSpec:
    """Describe a table; its upstream tables are those that its SELECT reads."""
    hourly_events = {upstream.name for upstream in HOURLY_TABLES}
    read = [
        name
        for name in upstream_tables(table.name)
        if name != table.name and name in ROOM | hourly_events
    ]
    return table_spec(
        table,
        # Tables of this room are made together, goal by goal: only the events lie further back.
        deps=[
            dg.AssetDep(name.split("."))
            if name in ROOM
            else dg.AssetDep(name.split("."), partition_mapping=HORIZON)
            for name in read
        ],
        kinds={"sql"},
    )


@dg.multi_asset(
    name="examples", specs=[_spec(table) for table in TABLES], backfill_policy=SINGLE_RUN
)
def examples(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Join labels for the log hours of this run, goal by goal in the order of their chains."""
    start_us, end_us = hours(context)
    dataset = deployment.dataset
    counts = join_labels(deployment.warehouse, dataset, start_us, end_us)
    context.log.info(f"joined {sum(count.matured for count in counts):,} matured labels")
    for hour_us in hours_between(start_us, end_us):
        of_hour = [count for count in counts if count.hour_us == hour_us]
        emitted: dict[str, int] = {"dagster/row_count": 0}
        matured: dict[str, int | float] = {"dagster/row_count": 0}
        states: dict[str, int] = {"dagster/row_count": 0}
        delays: dict[str, int | float] = {"dagster/row_count": 0}
        for count in of_hour:
            emitted["dagster/row_count"] += sum(count.emitted.values())
            emitted |= {label(kind, count.goal): rows for kind, rows in count.emitted.items()}
            matured["dagster/row_count"] += count.matured
            matured[label("matured labels", count.goal)] = count.matured
            matured[label("positive labels", count.goal)] = count.matured_positives
            if count.matured:
                matured[label("rate of positives", count.goal)] = (
                    count.matured_positives / count.matured
                )
            delays["dagster/row_count"] += count.delay_rows
            if count.median_delay_us is not None:
                delays[label("median delay, minutes", count.goal)] = (
                    count.median_delay_us / MINUTE_US
                )
            states["dagster/row_count"] += sum(count.states.values())
            states |= {label(state, count.goal): rows for state, rows in count.states.items()}
        for name, figures in (
            ("training_examples", emitted),
            ("labelled_impressions", matured),
            ("label_delays", delays),
            ("label_states", states),
        ):
            describe_hour(context, ["examples", name], hour_us, figures)
    sources = [*event_tables(dataset).values(), *TABLES]
    for table in TABLES:
        yield dg.MaterializeResult(
            asset_key=table.name.split("."),
            metadata={"dagster/column_lineage": column_lineage(table, sources)},
        )
