"""How good the forecasts were: progressive metrics by hour, and the report on held-out hours."""

import dagster as dg

from ad_pipeline.clocks import hours_between, timestamp
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, picture, rounded
from ad_pipeline.evaluation.printed import report_markdown
from ad_pipeline.evaluation.progressive_hours import measure_hours
from ad_pipeline.evaluation.report_of_log import write_report
from ad_pipeline.evaluation.tables import PROGRESSIVE_METRICS, REPORT
from ad_pipeline.learners.ensembles import held_out_forecasts

PLOTTED = ("log_loss", "normalized_entropy", "calibration_ratio")
"""Measures that Dagster gets as numbers; all of them stand in the tables."""


@dg.multi_asset(
    name="progressive_metrics",
    specs=[
        table_spec(
            PROGRESSIVE_METRICS,
            deps=[
                dg.AssetDep(["learners", "online_predictions"], partition_mapping=HORIZON),
                dg.AssetDep(["learners", "batch_predictions"], partition_mapping=HORIZON),
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
            ],
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def progressive_metrics(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Measure each expert's serving-time scores in the hour in which their labels matured."""
    start_us, end_us = hours(context)
    records = measure_hours(deployment.warehouse, deployment.dataset, start_us, end_us)
    by_hour: dict[int, dict[str, float | int]] = {
        hour_us: {"dagster/row_count": 0} for hour_us in hours_between(start_us, end_us)
    }
    for record in records.to_pylist():
        figures = by_hour[record["hour_us"]]
        figures["dagster/row_count"] += 1
        for name in (*PLOTTED, "positives"):
            if record[name] is not None:
                figures[label(name, record["goal"], record["expert"])] = record[name]
    for hour_us, figures in by_hour.items():
        describe_hour(context, ["evaluation", "progressive_metrics"], hour_us, figures)
    return dg.MaterializeResult()


@dg.multi_asset(
    name="report",
    specs=[
        table_spec(
            REPORT,
            deps=[["learners", "ensemble"], ["evaluation", "progressive_metrics"]],
            kinds={"matplotlib"},
        )._replace(automation_condition=refresh_after_upstream())
    ],
    backfill_policy=SINGLE_RUN,
)
def report(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Measure base rate, experts and ensemble on matured hours that no fit has seen."""
    paths = deployment.paths
    warehouse = deployment.warehouse
    written = write_report(warehouse, paths, held_out_forecasts(warehouse, paths))
    records = written.rows.to_pylist()
    # Dagster shows them in this order: first what people come for.
    metadata: dict[str, float | int | str | dg.MetadataValue] = {}
    if records:
        metadata["figures with intervals"] = dg.MetadataValue.md(report_markdown(records))
    metadata["metrics over time"] = picture(written.metrics)
    for goal, drawn in written.calibration.items():
        metadata[label("calibration", goal)] = picture(drawn)
    for goal, (start_us, end_us) in written.ranges.items():
        metadata[label("test hours", goal)] = (
            f"{timestamp(start_us)} to {timestamp(end_us)} by maturity"
        )
    for record in records:
        if record["metric"] in PLOTTED and record["value"] is not None:
            name = label(record["metric"], record["goal"], record["expert"])
            metadata[name] = rounded(record["value"])
    metadata["folder of pictures"] = dg.MetadataValue.path(str(paths.reports))
    metadata["dagster/row_count"] = len(records)
    context.log.info(f"report of {len(written.ranges)} goals, pictures in {paths.reports}")
    return dg.MaterializeResult(metadata=metadata)
