"""The batch expert."""

import json

import dagster as dg

from ad_pipeline.clocks import timestamp
from ad_pipeline.defs.assets.learners.inputs import IMPRESSIONS, LEFT_OUT, LOOKED_UP
from ad_pipeline.defs.assets.learners.orders import Asked, record_asked
from ad_pipeline.defs.hourly_metadata import (
    describe_hour,
    describe_rows,
    describe_scored,
)
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, HOURLY, PREVIOUS_HOUR, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, short, whole
from ad_pipeline.learners.batch.batch_hours import score_hours, train_hours
from ad_pipeline.learners.tables import BATCH_PREDICTIONS, RETRAINS


@dg.multi_asset(
    name="batch_learner",
    specs=[
        table_spec(RETRAINS, kinds={"lightgbm"}),
        dg.AssetSpec(
            ["learners", "batch_model"],
            deps=[
                dg.AssetDep(["learners", "retrains"]),
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["examples", "label_states"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["learners", "online_predictions"], partition_mapping=HORIZON),
                *LEFT_OUT,
                IMPRESSIONS,
                *LOOKED_UP,
            ],
            group_name="learners",
            kinds={"lightgbm"},
            partitions_def=HOURLY,
            description=(
                "The LightGBM model of each goal in force after this hour. It is trained on "
                "matured rows with the online expert's serving-time logit among its features. "
                "Hours without a retrain point at the previous model; one beyond the schedule is "
                "recorded with its cause."
            ),
        ),
    ],
    backfill_policy=SINGLE_RUN,
)
def batch_learner(context: dg.AssetExecutionContext, config: Asked, deployment: DeploymentResource):
    """Train where a retrain is due, else point at the model in force; record who asked."""
    start_us, end_us = hours(context)
    warehouse = deployment.warehouse
    record_asked(deployment, RETRAINS, config, start_us, end_us)
    figures: dict[int, dict[str, float | int | str | bool]] = {}
    models: dict[int, dict[str, str | None]] = {}
    for hour in train_hours(warehouse, deployment.paths, start_us, end_us):
        shown = figures.setdefault(hour.hour_us, {})
        shown |= {
            label("cause", hour.goal): hour.cause,
            label("model in force", hour.goal): short(hour.digest),
        }
        models.setdefault(hour.hour_us, {})[hour.goal] = hour.digest
        if hour.trained is not None:
            shown |= {label(name, hour.goal): value for name, value in hour.trained.items()}
            context.log.info(
                f"LightGBM of {hour.goal} after {timestamp(hour.hour_us)} ({hour.cause}): "
                f"{json.dumps(hour.trained)}"
            )
    for hour_us, shown in figures.items():
        shown_last = {"whole digests": whole(models[hour_us])}
        describe_hour(context, ["learners", "batch_model"], hour_us, shown | shown_last)
    describe_rows(context, deployment.warehouse, RETRAINS, start_us, end_us)
    yield dg.MaterializeResult(asset_key=["learners", "retrains"])
    yield dg.MaterializeResult(asset_key=["learners", "batch_model"])


@dg.multi_asset(
    name="batch_predictions",
    specs=[
        table_spec(
            BATCH_PREDICTIONS,
            deps=[
                dg.AssetDep(["learners", "batch_model"], partition_mapping=PREVIOUS_HOUR),
                dg.AssetDep(["learners", "online_predictions"], partition_mapping=SAME_HOUR),
                IMPRESSIONS,
                *LOOKED_UP,
            ],
            kinds={"lightgbm"},
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def batch_predictions(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Score each hour's impressions by the model that was in force before the hour."""
    start_us, end_us = hours(context)
    scored = score_hours(deployment.warehouse, deployment.paths, start_us, end_us)
    describe_scored(context, BATCH_PREDICTIONS, scored)
    return dg.MaterializeResult()
