"""Models of how late labels come."""

import json

import dagster as dg

from ad_pipeline.clocks import timestamp
from ad_pipeline.defs.assets.learners.inputs import IMPRESSIONS, LOOKED_UP
from ad_pipeline.defs.assets.learners.orders import Asked, record_asked
from ad_pipeline.defs.hourly_metadata import describe_hour, describe_rows
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HOURLY, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, short
from ad_pipeline.learners.delayed.delay_model_hours import fit_hours
from ad_pipeline.learners.tables import DELAY_REFITS


@dg.multi_asset(
    name="delay_models",
    specs=[
        table_spec(DELAY_REFITS, kinds={"numba"}),
        dg.AssetSpec(
            ["learners", "delay_models"],
            group_name="learners",
            kinds={"numba"},
            partitions_def=HOURLY,
            deps=[
                dg.AssetDep(["learners", "delay_refits"]),
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
                IMPRESSIONS,
                *LOOKED_UP,
            ],
            description=(
                "The models of delay of each goal in force after this hour: how late positives "
                "come, and which observed negatives are real. Losses of delayed labels weigh "
                "examples by them; they are fitted anew on matured labels, and hours without a fit "
                "point at the models before. A fit beyond the schedule is recorded with its cause."
            ),
        ),
    ],
    backfill_policy=SINGLE_RUN,
)
def delay_models(context: dg.AssetExecutionContext, config: Asked, deployment: DeploymentResource):
    """Fit where a fit is due or asked for, else point at the models in force."""
    start_us, end_us = hours(context)
    record_asked(deployment, DELAY_REFITS, config, start_us, end_us)
    figures: dict[int, dict[str, float | int | str]] = {}
    for hour in fit_hours(deployment.warehouse, deployment.paths, start_us, end_us):
        shown = figures.setdefault(hour.hour_us, {})
        shown[label("cause", hour.goal)] = hour.cause
        shown[label("losses that read them", hour.goal)] = hour.objectives
        shown[label("models in force", hour.goal)] = short(hour.digest)
        if hour.facts is not None:
            shown |= {label(name, hour.goal): value for name, value in hour.facts.items()}
            context.log.info(
                f"models of delay of {hour.goal} after {timestamp(hour.hour_us)}: "
                f"{json.dumps(hour.facts)}"
            )
    for hour_us, shown in figures.items():
        describe_hour(context, ["learners", "delay_models"], hour_us, shown)
    describe_rows(context, deployment.warehouse, DELAY_REFITS, start_us, end_us)
    yield dg.MaterializeResult(asset_key=["learners", "delay_refits"])
    yield dg.MaterializeResult(asset_key=["learners", "delay_models"])
