"""The experts, what they said when it counted, and the ensemble that mixes them."""

import json

import dagster as dg
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US, hours_between, timestamp
from ad_pipeline.defs.automation import refresh_after_upstream
from ad_pipeline.defs.hourly_metadata import describe_hour, rows_by_hour
from ad_pipeline.defs.lineage import column_schema, table_spec
from ad_pipeline.defs.partitions import HORIZON, HOURLY, PREVIOUS_HOUR, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, rounded, short, whole
from ad_pipeline.learners.batch_hours import score_hours, train_hours
from ad_pipeline.learners.ensembles import fit_ensembles
from ad_pipeline.learners.online_hours import learn_hours
from ad_pipeline.learners.predictions import unite_predictions
from ad_pipeline.learners.tables import BATCH_PREDICTIONS, ONLINE_PREDICTIONS, RETRAINS, TABLES

RATES = dg.AssetDep(["features", "rates"], partition_mapping=HORIZON)
IMPRESSIONS = dg.AssetDep(["events", "impressions"], partition_mapping=HORIZON)


@dg.multi_asset(
    name="online_learner",
    specs=[
        dg.AssetSpec(
            ["learners", "online_model"],
            deps=[
                dg.AssetDep(["learners", "online_model"], partition_mapping=PREVIOUS_HOUR),
                dg.AssetDep(["examples", "training_examples"], partition_mapping=SAME_HOUR),
                IMPRESSIONS,
                RATES,
            ],
            group_name="learners",
            kinds={"numba"},
            partitions_def=HOURLY,
            description=(
                "The FTRL-Proximal model of each goal as this hour left it: a checkpoint that "
                "continues from the previous hour's, learnt from the examples emitted in the hour."
            ),
        ),
        table_spec(
            ONLINE_PREDICTIONS,
            deps=[
                dg.AssetDep(["learners", "online_model"], partition_mapping=PREVIOUS_HOUR),
                dg.AssetDep(["examples", "training_examples"], partition_mapping=SAME_HOUR),
                IMPRESSIONS,
                RATES,
            ],
            kinds={"numba"},
        ),
    ],
    backfill_policy=SINGLE_RUN,
)
def online_learner(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Score each hour's impressions, then learn its examples, micro-batch by micro-batch."""
    start_us, end_us = hours(context)
    models: dict[int, dict[str, float | int | str]] = {}
    checkpoints: dict[int, dict[str, str]] = {}
    scored: dict[int, dict[str, float | int | str]] = {}
    for hour in learn_hours(deployment.warehouse, deployment.paths, start_us, end_us):
        models.setdefault(hour.hour_us, {}).update(
            {
                **{label(f"learnt {kind}", hour.goal): rows for kind, rows in hour.learned.items()},
                label("weights that are not zero", hour.goal): hour.nonzero_weights,
                label("slots touched so far", hour.goal): hour.touched_slots,
                label("checkpoint", hour.goal): short(hour.digest),
            }
        )
        checkpoints.setdefault(hour.hour_us, {})[hour.goal] = hour.digest
        figures = scored.setdefault(hour.hour_us, {"dagster/row_count": 0})
        figures["dagster/row_count"] = int(figures["dagster/row_count"]) + hour.scored
        figures[label("mean probability", hour.goal)] = hour.mean_probability
        if hour.hour_us % (24 * HOUR_US) == 0:
            context.log.info(f"online learner of {hour.goal}: {timestamp(hour.hour_us)} learnt")
    for hour_us in models:
        shown = models[hour_us] | {"whole digests": whole(checkpoints[hour_us])}
        describe_hour(context, ["learners", "online_model"], hour_us, shown)
        describe_hour(context, ["learners", "online_predictions"], hour_us, scored[hour_us])
    yield dg.MaterializeResult(asset_key=["learners", "online_model"])
    yield dg.MaterializeResult(asset_key=["learners", "online_predictions"])


class Retrain(dg.Config):
    """Why to train anew in the hours of this run, beyond the regular schedule."""

    cause: str = ""
    evidence: str = "{}"


@dg.multi_asset(
    name="batch_learner",
    specs=[
        table_spec(RETRAINS, kinds={"lightgbm"}),
        dg.AssetSpec(
            ["learners", "batch_model"],
            deps=[
                dg.AssetDep(["learners", "retrains"]),
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["learners", "online_predictions"], partition_mapping=HORIZON),
                IMPRESSIONS,
                RATES,
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
def batch_learner(
    context: dg.AssetExecutionContext, config: Retrain, deployment: DeploymentResource
):
    """Train where a retrain is due, else point at the model in force; record who asked."""
    start_us, end_us = hours(context)
    warehouse = deployment.warehouse
    warehouse.create(TABLES)
    if config.cause:
        asked = pa.table(
            {
                "hour_us": list(hours_between(start_us, end_us)),
                "cause": [config.cause] * ((end_us - start_us) // HOUR_US),
                "evidence": [config.evidence] * ((end_us - start_us) // HOUR_US),
            }
        )
        with warehouse.writer() as connection:
            connection.register("asked", asked)
            connection.execute(
                f"DELETE FROM {RETRAINS.name} WHERE hour_us IN (SELECT hour_us FROM asked)"
            )
            connection.execute(f"INSERT INTO {RETRAINS.name} BY NAME SELECT * FROM asked")
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
    asked_for = dict(rows_by_hour(warehouse, RETRAINS, start_us, end_us))
    for hour_us, shown in figures.items():
        shown_last = {"whole digests": whole(models[hour_us])}
        describe_hour(context, ["learners", "batch_model"], hour_us, shown | shown_last)
        rows = {"dagster/row_count": asked_for.get(hour_us, 0)}
        describe_hour(context, ["learners", "retrains"], hour_us, rows)
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
                RATES,
            ],
            kinds={"lightgbm"},
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def batch_predictions(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Score each hour's impressions by the model that was in force before the hour."""
    start_us, end_us = hours(context)
    for hour in score_hours(deployment.warehouse, deployment.paths, start_us, end_us):
        describe_hour(
            context,
            ["learners", "batch_predictions"],
            hour.hour_us,
            {
                "dagster/row_count": hour.rows,
                **{
                    label("mean probability", goal): mean
                    for goal, mean in hour.mean_probabilities.items()
                },
            },
        )
    return dg.MaterializeResult()


@dg.asset(
    key=["learners", "predictions"],
    group_name="learners",
    kinds={"duckdb", "sql"},
    backfill_policy=SINGLE_RUN,
    deps=[["learners", "online_predictions"], ["learners", "batch_predictions"]],
    metadata={"dagster/column_schema": column_schema(ONLINE_PREDICTIONS)},  # of both tables
    description=(
        "Every expert's score of every impression at serving time, as one view. Mixing, "
        "calibration and progressive metrics read scores given then, never those of a "
        "newer model."
    ),
)
def predictions(deployment: DeploymentResource) -> dg.MaterializeResult:
    """Create the view over both tables."""
    rows = unite_predictions(deployment.warehouse)
    return dg.MaterializeResult(
        metadata={label("rows", expert): count for expert, count in rows.items()}
        | {"dagster/row_count": sum(rows.values())}
    )


@dg.asset(
    key=["learners", "ensemble"],
    group_name="learners",
    kinds={"numpy"},
    backfill_policy=SINGLE_RUN,
    deps=[
        ["learners", "predictions"],
        ["examples", "labelled_impressions"],
        ["examples", "training_examples"],
    ],
    automation_condition=refresh_after_upstream(),
    description=(
        "How the experts of each goal are mixed and calibrated, chosen on matured rows. The hours "
        "of fit, calibration and test do not overlap in maturity and are named in the metadata. "
        "Rows that have not matured may replace the mixture, on their delay-corrected loss."
    ),
)
def ensemble(
    context: dg.AssetExecutionContext, deployment: DeploymentResource
) -> dg.MaterializeResult:
    """Choose and fit the mixture of each goal."""
    metadata: dict[str, float | int | str | dg.MetadataValue] = {}
    digests: dict[str, str | None] = {}
    for fitted in fit_ensembles(deployment.warehouse, deployment.paths):
        context.log.info(f"ensemble of {fitted.goal}: {fitted.description}")
        digests[fitted.goal] = fitted.digest
        metadata |= {
            label(name, fitted.goal): rounded(value) if isinstance(value, float) else value
            for name, value in fitted.figures.items()
        }
        metadata[label("checkpoint", fitted.goal)] = short(fitted.digest)
    return dg.MaterializeResult(metadata=metadata | {"whole digests": whole(digests)})
