"""What happened, read from log files: the ledger, and the event tables of each log hour."""

import dagster as dg

from ad_pipeline.clocks import duration, timestamp
from ad_pipeline.datasets import CONTRACT
from ad_pipeline.defs.hourly_metadata import describe_hour, describe_rows
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import DATASET, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label
from ad_pipeline.defs.shown import table as shown_table
from ad_pipeline.events.contract import (
    ACCOUNTING,
    DUPLICATES,
    FILES,
    HELD_ENGAGEMENTS,
    QUARANTINE,
    event_tables,
)
from ad_pipeline.events.ingest import ingest_hours
from ad_pipeline.events.ledger import register_files

MAPPED = {source.table for source in DATASET.sources}
HOURLY_TABLES = [
    table
    for name, table in event_tables(DATASET).items()
    if table.clock is not None and (name in MAPPED or name not in CONTRACT)
]
"""What the dataset maps, and the books kept about it. A table without a source exists in the
warehouse, empty, but is no asset: an hour of each asset costs Dagster 10 ms."""


@dg.multi_asset(
    name="log_files", specs=[table_spec(FILES, kinds={"file"})], backfill_policy=SINGLE_RUN
)
def log_files(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Enter new log files into the ledger, each once, with its checksum and sealed hours."""
    registration = register_files(deployment.warehouse, deployment.paths)
    for pattern in registration.empty_globs:
        context.log.info(f"no file matches {pattern}")
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(registration.entries),
            "files new in this run": len(registration.new),
            "rows in all files": sum(entry.rows for entry in registration.entries),
            "new files": shown_table(
                ("file", "table", "rows", "of log hours sealed until"),
                [
                    (
                        entry.path,
                        entry.table_name,
                        f"{entry.rows:,}",
                        timestamp(entry.sealed_until_us) if entry.sealed_until_us else "none",
                    )
                    for entry in registration.new[:50]
                ],
            ),
        }
    )


@dg.multi_asset(
    name="events",
    specs=[table_spec(table, deps=[["events", "files"]], kinds={"sql"}) for table in HOURLY_TABLES],
    backfill_policy=SINGLE_RUN,
)
def events(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Read, check, de-duplicate and seal the log hours of this run.

    All event tables of an hour are one transaction: an hour is sealed for every table or for none.
    """
    start_us, end_us = hours(context)
    ingest = ingest_hours(deployment.warehouse, deployment.paths, start_us, end_us)
    totals: dict[str, int] = {}
    accounts: dict[int, dict[str, int]] = {}
    for account in ingest.accounts:
        table = account.table_name
        totals[table] = totals.get(table, 0) + account.kept
        of_hour = accounts.setdefault(account.hour_us, {"dagster/row_count": 0})
        of_hour["dagster/row_count"] += 1
        if table not in MAPPED:
            continue
        for name in ("kept", "duplicates", "held", "quarantined", "late"):
            of_hour[label(name, table)] = getattr(account, name)
        describe_hour(
            context,
            ["events", table],
            account.hour_us,
            {
                "dagster/row_count": account.kept,
                "rows read": account.rows_in,
                "duplicates dropped": account.duplicates,
                "quarantined": account.quarantined,
                "late": account.late,
            },
        )
    for hour_us, figures in accounts.items():
        describe_hour(context, ACCOUNTING.name.split("."), hour_us, figures)
    for table in (HELD_ENGAGEMENTS, QUARANTINE, DUPLICATES):
        describe_rows(context, deployment.warehouse, table, start_us, end_us)
    kept = ", ".join(f"{table} {rows:,}" for table, rows in totals.items() if rows)
    context.log.info(f"read {duration(end_us - start_us)} of log: {kept}")
    for table in HOURLY_TABLES:
        yield dg.MaterializeResult(asset_key=table.name.split("."))
