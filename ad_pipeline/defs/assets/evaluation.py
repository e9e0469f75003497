"""How good the forecasts were: progressive metrics by hour, and the report on held-out hours."""

import base64

import dagster as dg
import pyarrow as pa

from ad_pipeline.clocks import hours_between, timestamp
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.evaluation.held_out import held_out_rows
from ad_pipeline.evaluation.plots import calibration_plot, metrics_over_time
from ad_pipeline.evaluation.printed import report_lines
from ad_pipeline.evaluation.progressive import progressive_metrics as measured
from ad_pipeline.evaluation.tables import PROGRESSIVE_METRICS, REPORT, TABLES
from ad_pipeline.learners.ensembles import held_out_forecasts
from ad_pipeline.warehouse import replace_hours, rows_of, select

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
    dataset = deployment.dataset
    warehouse = deployment.warehouse
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
    records = measured(rows, start_us, end_us, end_us)
    with warehouse.writer() as connection:
        connection.register("measured", records)
        replace_hours(
            connection, PROGRESSIVE_METRICS, "SELECT * FROM measured", {}, start_us, end_us
        )
    by_hour: dict[int, dict[str, float | int]] = {
        hour_us: {"dagster/row_count": 0} for hour_us in hours_between(start_us, end_us)
    }
    for record in records.to_pylist():
        figures = by_hour[record["hour_us"]]
        figures["dagster/row_count"] += 1
        for name in (*PLOTTED, "positives"):
            if record[name] is not None:
                figures[f"{record['goal']}/{record['expert']}/{name}"] = record[name]
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
    warehouse.create(TABLES)
    with warehouse.reader() as connection:
        progressive = rows_of(
            connection, f"SELECT * FROM {PROGRESSIVE_METRICS.name} ORDER BY hour_us, goal, expert"
        )
    rows: list[pa.Table] = []
    metadata: dict[str, float | int | str | dg.MetadataValue] = {}
    paths.reports.mkdir(parents=True, exist_ok=True)
    truth = paths.truth if paths.truth.is_dir() else None
    for held_out in held_out_forecasts(warehouse, paths):
        rows.append(held_out_rows(held_out, paths.dataset.settings, truth))
        picture = calibration_plot(
            held_out.labels, held_out.probabilities, title=f"{paths.dataset.name}: {held_out.goal}"
        )
        (paths.reports / f"calibration_{held_out.goal}.png").write_bytes(picture)
        metadata[f"{held_out.goal}/calibration"] = _picture(picture)
        metadata[f"{held_out.goal}/test_range"] = (
            f"{timestamp(held_out.start_us)} to {timestamp(held_out.end_us)} by maturity"
        )
    picture = metrics_over_time(progressive, title=paths.dataset.name)
    (paths.reports / "metrics.png").write_bytes(picture)
    metadata["metrics"] = _picture(picture)
    metadata["pictures"] = dg.MetadataValue.path(str(paths.reports))
    if rows:
        table = pa.concat_tables(rows)
        with warehouse.writer() as connection:
            connection.register("measured", table)
            connection.execute(f"DELETE FROM {REPORT.name}")
            connection.execute(f"INSERT INTO {REPORT.name} BY NAME SELECT * FROM measured")
        records = table.to_pylist()
        lines = "\n".join(report_lines(records))
        metadata["result"] = dg.MetadataValue.md(f"```\n{lines}\n```")
        for record in records:
            if record["metric"] in PLOTTED and record["value"] is not None:
                name = f"{record['goal']}/{record['expert']}/{record['metric']}"
                metadata[name] = record["value"]
        metadata["dagster/row_count"] = table.num_rows
    context.log.info(f"report of {len(rows)} goals, pictures in {paths.reports}")
    return dg.MaterializeResult(metadata=metadata)


def _picture(png: bytes) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"![](data:image/png;base64,{base64.b64encode(png).decode()})")
