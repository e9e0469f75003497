"""Labels, before anything learns them."""

import dagster as dg

from ad_pipeline.clocks import hours_between
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, PREVIOUS_HOUR, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label
from ad_pipeline.monitoring.label_quality import ALL, SUSPECT
from ad_pipeline.monitoring.label_quality_hours import described, record_label_quality
from ad_pipeline.monitoring.tables import LABEL_QUALITY


@dg.multi_asset(
    name="label_quality",
    specs=[
        table_spec(
            LABEL_QUALITY,
            deps=[
                dg.AssetDep(["examples", "label_states"], partition_mapping=HORIZON),
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["events", "engagements"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["events", "impressions"], partition_mapping=HORIZON),
                dg.AssetDep(["monitoring", "label_quality"], partition_mapping=PREVIOUS_HOUR),
            ],
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def label_quality(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Say of each hour's labels, before anything learns them, whether they are as expected."""
    start_us, end_us = hours(context)
    figures: dict[int, dict[str, float | int | str]] = {
        hour_us: {"dagster/row_count": 0, "suspect parts": 0}
        for hour_us in hours_between(start_us, end_us)
    }
    for row in record_label_quality(deployment.warehouse, deployment.paths, start_us, end_us):
        shown = figures[row["hour_us"]]
        shown["dagster/row_count"] = int(shown["dagster/row_count"]) + 1
        if row["verdict"] in SUSPECT:
            shown["suspect parts"] = int(shown["suspect parts"]) + 1
            context.log.warning(described(row))
        if row["slice_of"] == ALL:
            goal = row["goal"]
            shown[label("verdict", goal)] = row["verdict"]
            shown[label("positives", goal)] = row["positives"]
            shown[label("positives due", goal)] = row["expected"]
            shown[label("share that came late", goal)] = row["late_share"]
            shown[label("retraction rate", goal)] = row["retraction_rate"]
            shown[label("coverage", goal)] = row["coverage"]
    for hour_us, shown in figures.items():
        describe_hour(context, ["monitoring", "label_quality"], hour_us, shown)
    return dg.MaterializeResult()
