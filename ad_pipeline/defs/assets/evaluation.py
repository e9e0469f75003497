"""How good the forecasts were, by hour and on held-out hours, and how the ensemble fares."""

import math

import dagster as dg

from ad_pipeline.clocks import hours_between, timestamp
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.hourly_metadata import describe_hour
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, picture, rounded
from ad_pipeline.evaluation.ages import EVENT
from ad_pipeline.evaluation.ensemble_of_log import write_ensemble_hours
from ad_pipeline.evaluation.held_out import ENSEMBLE
from ad_pipeline.evaluation.learner_of_log import draw_learner
from ad_pipeline.evaluation.printed import report_markdown
from ad_pipeline.evaluation.progressive_hours import measure_hours
from ad_pipeline.evaluation.report_of_log import write_report
from ad_pipeline.evaluation.tables import (
    ENSEMBLE_HOURS,
    EXPERT_SPREAD,
    LOSS_BY_AGE,
    PROGRESSIVE_METRICS,
    REPORT,
)
from ad_pipeline.learners.ensemble.ensembles import held_out_forecasts

PLOTTED = ("log_loss", "normalized_entropy", "calibration_ratio")
"""Measures that Dagster gets as numbers; all of them stand in the tables."""

SPREAD_PLOTTED = ("ambiguity", "logit_variance", "bias")
"""The same, of how experts stand apart and how far off their mixture is."""

SCORED = [
    dg.AssetDep(["learners", "online_predictions"], partition_mapping=HORIZON),
    dg.AssetDep(["learners", "batch_predictions"], partition_mapping=HORIZON),
    dg.AssetDep(["learners", "deep_predictions"], partition_mapping=HORIZON),
    dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
]


@dg.multi_asset(
    name="progressive_metrics",
    specs=[table_spec(PROGRESSIVE_METRICS, deps=SCORED), table_spec(EXPERT_SPREAD, deps=SCORED)],
    backfill_policy=SINGLE_RUN,
)
def progressive_metrics(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Measure the experts' serving-time scores in the hour in which their labels matured."""
    start_us, end_us = hours(context)
    measured = measure_hours(deployment.warehouse, deployment.dataset, start_us, end_us)
    for table, records, names in (
        (PROGRESSIVE_METRICS, measured.progressive, (*PLOTTED, "positives")),
        (EXPERT_SPREAD, measured.spread, SPREAD_PLOTTED),
    ):
        by_hour: dict[int, dict[str, float | int]] = {
            hour_us: {"dagster/row_count": 0} for hour_us in hours_between(start_us, end_us)
        }
        for record in records.to_pylist():
            figures = by_hour[record["hour_us"]]
            figures["dagster/row_count"] += 1
            of = (record["goal"], record["expert"]) if "expert" in record else (record["goal"],)
            for name in names:
                if record[name] is not None:
                    figures[label(name, *of)] = record[name]
        key = table.name.split(".")
        for hour_us, figures in by_hour.items():
            describe_hour(context, key, hour_us, figures)
        yield dg.MaterializeResult(asset_key=key)


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


@dg.multi_asset(
    name="ensemble_over_time",
    specs=[
        table_spec(table, deps=[["learners", "ensemble"]], kinds={"matplotlib"})._replace(
            automation_condition=refresh_after_upstream()
        )
        for table in (ENSEMBLE_HOURS, LOSS_BY_AGE)
    ],
    backfill_policy=SINGLE_RUN,
)
def ensemble_over_time(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Measure the ensemble's variance and bias by hour, and the loss by age, on unseen hours."""
    warehouse, paths = deployment.warehouse, deployment.paths
    written = write_ensemble_hours(warehouse, paths, held_out_forecasts(warehouse, paths))
    of_hours: dict[str, float | int | str | dg.MetadataValue] = {
        "ensemble over time": picture(written.picture)
    }
    for goal, found in written.pooled.items():
        figures = {
            "ambiguity": found.ambiguity,
            "logit_variance": found.logit_variance,
            "bias": found.bias,
            "bias_reach": found.bias_reach,
        }
        of_hours |= {
            label(name, goal): rounded(value)
            for name, value in figures.items()
            if math.isfinite(value)
        }
    of_hours["dagster/row_count"] = written.hours.num_rows
    of_ages: dict[str, float | int | str | dg.MetadataValue] = {}
    for record in written.ages.to_pylist():
        if (
            record["forecast"] == ENSEMBLE
            and record["age_of"] == EVENT
            and not record["from_hours"]
        ):
            name = f"loss of the last {record['to_hours']} hours against those before"
            if record["against_rest"] is not None:
                of_ages[label(name, record["goal"])] = rounded(record["against_rest"])
    of_ages["dagster/row_count"] = written.ages.num_rows
    context.log.info(f"ensemble over time of {len(written.pooled)} goals")
    yield dg.MaterializeResult(asset_key=ENSEMBLE_HOURS.name.split("."), metadata=of_hours)
    yield dg.MaterializeResult(asset_key=LOSS_BY_AGE.name.split("."), metadata=of_ages)


@dg.asset(
    key=["evaluation", "online_learner_over_time"],
    group_name="evaluation",
    kinds={"matplotlib"},
    backfill_policy=SINGLE_RUN,
    deps=[["learners", "grid_selection"], ["learners", "rate_moves"]],
    automation_condition=refresh_after_upstream(),
    description=(
        "A picture of the online learner over time: the loss of every configuration of the grid "
        "against the one that served, with its interval, and every move of a learning rate."
    ),
)
def online_learner_over_time(deployment: DeploymentResource) -> dg.MaterializeResult:
    """Draw which configuration served and how the rates moved."""
    drawn = draw_learner(deployment.warehouse, deployment.paths)
    return dg.MaterializeResult(
        metadata={
            "online learner over time": picture(drawn.picture),
            "hours judged": drawn.hours,
            "switches of the configuration": drawn.switches,
            "moves of a rate": drawn.moves,
        }
    )
