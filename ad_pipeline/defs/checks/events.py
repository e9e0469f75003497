"""Checks of what was read: nothing lost, and not too much refused."""

import dagster as dg

from ad_pipeline.defs.check_results import found
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import rounded
from ad_pipeline.defs.shown import table as shown_table
from ad_pipeline.events.accounting import accounting_gaps
from ad_pipeline.warehouse import one_row

IMPRESSIONS = ["events", "impressions"]
"""What every later asset reads: a gap in the accounts, shown there, blocks all of them."""
QUARANTINE = ["events", "quarantine"]
QUARANTINED_SHARE = 0.01
"""Share of refused rows from which someone should look: an order above the simulator's 0.1 %."""


@dg.multi_asset_check(
    name="events_checks",
    specs=[
        dg.AssetCheckSpec(
            "every_row_is_accounted_for",
            asset=IMPRESSIONS,
            blocking=True,
            description="Rows in = kept + duplicates + held + quarantined, in each hour and table.",
        ),
        dg.AssetCheckSpec(
            "few_rows_are_quarantined",
            asset=QUARANTINE,
            description="Less than 1 % of the log's rows break the contract.",
        ),
    ],
)
def events_checks(deployment: DeploymentResource):
    """Hold the tables of the room against each other."""
    with deployment.warehouse.reader() as connection:
        gaps = accounting_gaps(connection)
        rows_in, quarantined = one_row(
            connection,
            "SELECT coalesce(sum(rows_in), 0), coalesce(sum(quarantined), 0) "
            "FROM events.accounting",
        )
        reasons = connection.execute(
            "SELECT table_name, reason, count(*) FROM events.quarantine "
            "GROUP BY ALL ORDER BY 3 DESC, 1, 2 LIMIT 10"
        ).fetchall()
    yield found(
        "every_row_is_accounted_for",
        IMPRESSIONS,
        not gaps,
        f"all {rows_in:,} rows read are kept, duplicates, held or quarantined"
        if not gaps
        else f"the accounts have {len(gaps)} gaps, first: {gaps[0]}",
        warns=False,
        **{"rows read": int(rows_in), "gaps": len(gaps)},
    )
    share = quarantined / rows_in if rows_in else 0.0
    yield found(
        "few_rows_are_quarantined",
        QUARANTINE,
        share < QUARANTINED_SHARE,
        f"{quarantined:,} of {rows_in:,} rows ({share:.3%}) were refused",
        warns=True,
        **{
            "share refused": rounded(share),
            "commonest reasons": shown_table(
                ("table", "reason", "rows"),
                [(table, reason, f"{rows:,}") for table, reason, rows in reasons],
            ),
        },
    )
