"""Loss and calibration before labels have matured."""

from collections import Counter

import dagster as dg

from ad_pipeline.clocks import hours_between
from ad_pipeline.defs.assets.events import HOURLY_TABLES
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, PREVIOUS_HOUR, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, picture
from ad_pipeline.monitoring.performance_estimate import MEASURES
from ad_pipeline.monitoring.performance_estimate_hours import (
    WITHDRAWN,
    Row,
    record_estimates,
    rows_up_to,
)
from ad_pipeline.monitoring.performance_estimate_plots import DRAWN_HOURS, estimate_picture
from ad_pipeline.monitoring.tables import PERFORMANCE_ESTIMATE, PERFORMANCE_REALISED

ESTIMATE = PERFORMANCE_ESTIMATE.name.split(".")
REALISED = PERFORMANCE_REALISED.name.split(".")


@dg.multi_asset(
    name="performance_estimate",
    specs=[
        table_spec(
            PERFORMANCE_ESTIMATE,
            deps=[
                dg.AssetDep(["examples", "label_states"], partition_mapping=HORIZON),
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=HORIZON),
                dg.AssetDep(["examples", "label_delays"], partition_mapping=SAME_HOUR),
                *(
                    dg.AssetDep(table.name.split("."), partition_mapping=HORIZON)
                    for table in HOURLY_TABLES
                    if table.name
                    in ("events.impressions", "events.engagements", "events.retractions")
                ),
                dg.AssetDep(["learners", "online_predictions"], partition_mapping=HORIZON),
                dg.AssetDep(["learners", "batch_predictions"], partition_mapping=HORIZON),
                dg.AssetDep(["learners", "deep_predictions"], partition_mapping=HORIZON),
                # Of the run before: an hour is withdrawn by verdicts that were there before it.
                ["monitoring", "drift_verdicts"],
                dg.AssetDep(ESTIMATE, partition_mapping=PREVIOUS_HOUR),
            ],
        ),
        table_spec(
            PERFORMANCE_REALISED,
            deps=[
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=HORIZON),
                dg.AssetDep(ESTIMATE, partition_mapping=PREVIOUS_HOUR),
            ],
        ),
    ],
    backfill_policy=SINGLE_RUN,
)
def performance_estimate(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Estimate loss and calibration of each hour's scores, and judge the estimates of earlier."""
    start_us, end_us = hours(context)
    found = record_estimates(deployment.warehouse, deployment.dataset, start_us, end_us)
    for row in found.estimates:
        if row["state"] == WITHDRAWN:
            context.log.warning(f"estimate of {row['goal']}, {row['expert']}: {row['reason']}")
    drawn = rows_up_to(deployment.warehouse, DRAWN_HOURS, end_us)
    for key, rows in ((ESTIMATE, found.estimates), (REALISED, found.realised)):
        written = Counter(row["hour_us"] for row in rows)
        figures: dict[int, dict[str, float | int | str | dg.MetadataValue]] = {
            hour_us: {"dagster/row_count": written[hour_us]}
            for hour_us in hours_between(start_us, end_us)
        }
        for row in rows:
            figures[row["hour_us"]] |= _figures(row)
        if key == ESTIMATE:
            for goal in sorted({row["goal"] for row in drawn.estimates}):
                figures[max(figures)][label("picture", goal)] = picture(
                    estimate_picture(_of(drawn.estimates, goal), _of(drawn.realised, goal))
                )
        for hour_us, shown in figures.items():
            describe_hour(context, key, hour_us, shown)
        yield dg.MaterializeResult(asset_key=key)


def _of(rows: list[Row], goal: str) -> list[Row]:
    return [row for row in rows if row["goal"] == goal]


def _figures(row: Row) -> dict[str, float | str]:
    """Return what the asset's page shows of one row."""
    names = (*MEASURES, "state", "reason")
    return {
        label(name, row["goal"], row["expert"]): row[name]
        for name in names
        if row.get(name) not in (None, "")
    }
