"""The wide & deep expert."""

import dagster as dg

from ad_pipeline.clocks import HOUR_US, timestamp
from ad_pipeline.defs.assets.learners.inputs import IMPRESSIONS, LEFT_OUT, LOOKED_UP
from ad_pipeline.defs.hourly_metadata import describe_hour, describe_scored
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HOURLY, PREVIOUS_HOUR, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, short, whole
from ad_pipeline.learners.deep import deep_hours
from ad_pipeline.learners.tables import DEEP_PREDICTIONS


@dg.asset(
    key=["learners", "deep_model"],
    group_name="learners",
    kinds={"jax"},
    partitions_def=HOURLY,
    backfill_policy=SINGLE_RUN,
    deps=[
        dg.AssetDep(["learners", "deep_model"], partition_mapping=PREVIOUS_HOUR),
        dg.AssetDep(["learners", "delay_models"], partition_mapping=PREVIOUS_HOUR),
        *LEFT_OUT,
        dg.AssetDep(["examples", "training_examples"], partition_mapping=SAME_HOUR),
        IMPRESSIONS,
        *LOOKED_UP,
    ],
    description=(
        "The wide & deep model of each goal in force after this hour: it continues on the examples "
        "emitted since the continuation before. Hours without one point at the model before; "
        "without settings.deep, or without the extra `deep`, there is none, which the metadata say."
    ),
)
def deep_model(
    context: dg.AssetExecutionContext, deployment: DeploymentResource
) -> dg.MaterializeResult:
    """Continue the models where that is due, else point at those in force, or say why not."""
    start_us, end_us = hours(context)
    missing = deep_hours.missing_extra(deployment.paths)
    if missing:
        context.log.warning(f"no wide & deep expert: {missing}")
    figures: dict[int, dict[str, float | int | str]] = {}
    models: dict[int, dict[str, str | None]] = {}
    for hour in deep_hours.continue_hours(deployment.warehouse, deployment.paths, start_us, end_us):
        shown = figures.setdefault(hour.hour_us, {})
        shown |= {
            label("cause", hour.goal): hour.cause,
            label("examples learnt", hour.goal): hour.learnt,
            label("model in force", hour.goal): short(hour.digest),
        }
        models.setdefault(hour.hour_us, {})[hour.goal] = hour.digest
        if hour.learnt and hour.hour_us % (24 * HOUR_US) == 0:
            context.log.info(f"wide & deep of {hour.goal}: {timestamp(hour.hour_us)} learnt")
    for hour_us, shown in figures.items():
        shown_last = {"whole digests": whole(models[hour_us])}
        describe_hour(context, ["learners", "deep_model"], hour_us, shown | shown_last)
    return dg.MaterializeResult()


@dg.multi_asset(
    name="deep_predictions",
    specs=[
        table_spec(
            DEEP_PREDICTIONS,
            deps=[
                dg.AssetDep(["learners", "deep_model"], partition_mapping=PREVIOUS_HOUR),
                IMPRESSIONS,
                *LOOKED_UP,
            ],
            kinds={"numba"},
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def deep_predictions(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Score each hour's impressions by the wide & deep model in force before the hour."""
    start_us, end_us = hours(context)
    scored = deep_hours.score_hours(deployment.warehouse, deployment.paths, start_us, end_us)
    describe_scored(context, DEEP_PREDICTIONS, scored)
    return dg.MaterializeResult()
