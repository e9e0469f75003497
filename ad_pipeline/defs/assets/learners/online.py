"""The online learner: orders of its rate, what it leaves out, its hours, grid and recovery."""

import json
from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from ad_pipeline.clocks import HOUR_US, hour_key, hour_start, hours_between, timestamp
from ad_pipeline.defs.assets.learners.inputs import IMPRESSIONS, LEFT_OUT, LOOKED_UP
from ad_pipeline.defs.assets.learners.orders import Asked
from ad_pipeline.defs.hourly_metadata import (
    describe_hour,
    describe_rows,
    rows_by_hour,
)
from ad_pipeline.defs.lineage import table_spec
from ad_pipeline.defs.partitions import HORIZON, HOURLY, PREVIOUS_HOUR, SAME_HOUR, SINGLE_RUN, hours
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.shown import label, short, whole
from ad_pipeline.learners.online.grid_hours import select_hours
from ad_pipeline.learners.online.grid_selection import configuration_names
from ad_pipeline.learners.online.label_breaker import leave_out_by_labels
from ad_pipeline.learners.online.online_hours import LearnedHour, learn_hours
from ad_pipeline.learners.online.recovery import begin, finish
from ad_pipeline.learners.orders import record_orders
from ad_pipeline.learners.tables import (
    GRID_PREDICTIONS,
    GRID_SELECTION,
    HOUR_GUARDS,
    ONLINE_PREDICTIONS,
    QUARANTINED_HOURS,
    QUARANTINED_SLICES,
    RATE_MOVES,
    RATE_ORDERS,
    RECOVERIES,
    TABLES,
)

LABELS_JUDGED = [dg.AssetDep(["monitoring", "label_quality"], partition_mapping=SAME_HOUR)]
LEARNT_FROM = [
    dg.AssetDep(["learners", "online_model"], partition_mapping=PREVIOUS_HOUR),
    dg.AssetDep(["learners", "delay_models"], partition_mapping=PREVIOUS_HOUR),
    *LEFT_OUT,
    dg.AssetDep(["learners", "rate_orders"], partition_mapping=PREVIOUS_HOUR),
    dg.AssetDep(["examples", "training_examples"], partition_mapping=SAME_HOUR),
    IMPRESSIONS,
    *LOOKED_UP,
]


class RateOrder(Asked):
    """By how much to raise the online rate after the hours of this run, and whose."""

    goals: list[str] = Field(default_factory=list, description="Empty: every goal.")
    doublings: int = Field(default=1, description="By which the rate is raised.")


class Quarantine(dg.Config):
    """Hours to leave out of the online model, or to accept, before the hours of this run."""

    hours: dict[str, str] = Field(
        default_factory=dict, description="Goal to its hour, such as click: '2026-03-02-07:00'."
    )
    accept: bool = Field(default=False, description="Learn them although their guard tripped.")
    cause: str = Field(default="a person", description="Who decides, and why.")
    evidence: str = Field(default="{}", description="What the decision rests on, JSON.")


@dg.multi_asset(
    name="rate_order",
    specs=[table_spec(RATE_ORDERS)],
    backfill_policy=SINGLE_RUN,
)
def rate_order(
    context: dg.AssetExecutionContext, config: RateOrder, deployment: DeploymentResource
):
    """Order that the online rate be raised after the hours of this run; mostly nothing."""
    start_us, end_us = hours(context)
    dataset = deployment.paths.dataset
    deployment.warehouse.create(TABLES)
    if config.cause:
        if dataset.settings.online.rate_control is None:
            raise dg.Failure(
                "learners.rate_orders: settings.online.rate_control is not set, and nothing else "
                "would lower the rate again; write rate_control: {} or retrain instead"
            )
        for goal in config.goals:
            dataset.goal(goal)
        with deployment.warehouse.writer() as connection:
            record_orders(
                connection,
                RATE_ORDERS,
                list(hours_between(start_us, end_us)),
                goals=",".join(config.goals or dataset.goal_names),
                doublings=config.doublings,
                cause=config.cause,
                evidence=config.evidence,
            )
    describe_rows(context, deployment.warehouse, RATE_ORDERS, start_us, end_us)
    return dg.MaterializeResult()


@dg.multi_asset(
    name="quarantine",
    specs=[
        table_spec(QUARANTINED_HOURS, deps=LABELS_JUDGED),
        table_spec(QUARANTINED_SLICES, deps=LABELS_JUDGED),
    ],
    backfill_policy=SINGLE_RUN,
)
def quarantine(
    context: dg.AssetExecutionContext, config: Quarantine, deployment: DeploymentResource
):
    """Decide about suspect hours and take the online model back to before them; mostly nothing.

    The hours of this run are learnt next, by the step of the online learner. Those whose labels are
    suspect are left out before that, if the settings say so.
    """
    start_us, end_us = hours(context)
    warehouse = deployment.warehouse
    warehouse.create(TABLES)
    if config.hours:
        begun = begin(
            warehouse,
            deployment.paths,
            {goal: hour_start(key) for goal, key in config.hours.items()},
            config.cause,
            json.loads(config.evidence),
            "accepted" if config.accept else "left_out",
            (start_us, end_us),
        )
        for one in begun:
            context.log.info(
                f"online model of {one.goal} taken back to before {timestamp(one.start_us)}"
            )
    left_out = leave_out_by_labels(warehouse, deployment.paths, start_us, end_us)
    for row in (*left_out.hours, *left_out.slices):
        whose = f", {row['slice_of']} {row['part']}" if "part" in row else ""
        context.log.warning(
            f"{row['goal']} in {hour_key(row['hour_us'])}{whose} is not learnt: "
            f"{row.get('reason') or row['evidence']}"
        )
    for decisions in (QUARANTINED_HOURS, QUARANTINED_SLICES):
        describe_rows(context, warehouse, decisions, start_us, end_us)
    yield dg.MaterializeResult(asset_key=["learners", "quarantined_hours"])
    yield dg.MaterializeResult(asset_key=["learners", "quarantined_slices"])


@dg.multi_asset(
    name="online_learner",
    specs=[
        dg.AssetSpec(
            ["learners", "online_model"],
            deps=LEARNT_FROM,
            group_name="learners",
            kinds={"numba"},
            partitions_def=HOURLY,
            description=(
                "The FTRL-Proximal model of each goal as this hour left it: a checkpoint that "
                "continues from the previous hour's, learnt from the examples emitted in the hour."
            ),
        ),
        table_spec(GRID_PREDICTIONS, deps=LEARNT_FROM, kinds={"numba"}),
        table_spec(RATE_MOVES, deps=LEARNT_FROM, kinds={"river"}),
        table_spec(HOUR_GUARDS, deps=LEARNT_FROM, kinds={"numba"}),
    ],
    backfill_policy=SINGLE_RUN,
)
def online_learner(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Score each hour's impressions, then learn its examples, micro-batch by micro-batch."""
    start_us, end_us = hours(context)
    models: dict[int, dict[str, float | int | str]] = {}
    checkpoints: dict[int, dict[str, str]] = {}
    scored: dict[int, dict[str, float | int | str]] = {}
    moved: dict[int, dict[str, float | int | str]] = {}
    guarded: dict[int, dict[str, float | int | str]] = {}
    online = deployment.paths.dataset.settings.online
    names_of = {
        goal: configuration_names(online.of_goal(goal).configurations())
        for goal in deployment.paths.dataset.goal_names
    }
    for hour in learn_hours(deployment.warehouse, deployment.paths, start_us, end_us):
        names = names_of[hour.goal]
        models.setdefault(hour.hour_us, {}).update(
            {
                **{label(f"learnt {kind}", hour.goal): rows for kind, rows in hour.learned.items()},
                **_by_configuration(
                    "weights that are not zero", hour.goal, names, hour.nonzero_weights
                ),
                **_lanes_shown(hour),
                label("slots touched so far", hour.goal): hour.touched_slots,
                label("checkpoint", hour.goal): short(hour.digest),
            }
        )
        checkpoints.setdefault(hour.hour_us, {})[hour.goal] = hour.digest
        figures = scored.setdefault(hour.hour_us, {"dagster/row_count": 0})
        figures["dagster/row_count"] = int(figures["dagster/row_count"]) + hour.scored
        figures[label("mean probability", hour.goal)] = hour.mean_probability
        shown = moved.setdefault(hour.hour_us, {"dagster/row_count": 0})
        shown["dagster/row_count"] = int(shown["dagster/row_count"]) + len(hour.moves)
        shown |= _by_configuration("doublings of the rate", hour.goal, names, hour.rates)
        seen = guarded.setdefault(hour.hour_us, {"dagster/row_count": 0})
        seen["dagster/row_count"] = int(seen["dagster/row_count"]) + 1
        seen[label("verdict", hour.goal)] = hour.judged.verdict.state
        seen[label("surprise", hour.goal)] = hour.judged.evidence.surprise
        for made in hour.moves:
            context.log.info(f"{hour.goal}, {timestamp(hour.hour_us)}: {made.move}")
        if hour.hour_us % (24 * HOUR_US) == 0:
            context.log.info(f"online learner of {hour.goal}: {timestamp(hour.hour_us)} learnt")
    for hour_us in models:
        shown = models[hour_us] | {"whole digests": whole(checkpoints[hour_us])}
        describe_hour(context, ["learners", "online_model"], hour_us, shown)
        describe_hour(context, ["learners", "grid_predictions"], hour_us, scored[hour_us])
        describe_hour(context, ["learners", "rate_moves"], hour_us, moved[hour_us])
        describe_hour(context, ["learners", "hour_guards"], hour_us, guarded[hour_us])
    yield dg.MaterializeResult(asset_key=["learners", "online_model"])
    yield dg.MaterializeResult(asset_key=["learners", "grid_predictions"])
    yield dg.MaterializeResult(asset_key=["learners", "rate_moves"])
    yield dg.MaterializeResult(asset_key=["learners", "hour_guards"])


def _lanes_shown(hour: LearnedHour) -> dict[str, float | int | str]:
    """Return who went first and what waits, nothing for a learner that learns all at once."""
    lanes = hour.lanes
    if lanes is None:
        return {}
    return {
        **{label(f"learnt from {lane}", hour.goal): rows for lane, rows in lanes["learnt"].items()},
        label("engagements that wait", hour.goal): lanes["waiting_engagements"],
        label("negatives that wait", hour.goal): lanes["waiting_negatives"],
        label("hours that the oldest waits", hour.goal): lanes["oldest_waiting_us"] / HOUR_US,
    }


def _by_configuration(
    what: str, goal: str, names: list[str], values: Sequence[float]
) -> dict[str, float]:
    """Return a figure of each configuration under its label; one alone needs no name."""
    if len(names) == 1:
        return {label(what, goal): value for value in values}
    return {
        label(f"{what}, {name}", goal): value for name, value in zip(names, values, strict=False)
    }


@dg.multi_asset(
    name="grid_selection",
    specs=[
        table_spec(
            GRID_SELECTION,
            deps=[
                dg.AssetDep(["learners", "grid_selection"], partition_mapping=PREVIOUS_HOUR),
                dg.AssetDep(["learners", "grid_predictions"], partition_mapping=HORIZON),
                dg.AssetDep(["examples", "labelled_impressions"], partition_mapping=SAME_HOUR),
            ],
            kinds={"numpy"},
        ),
        table_spec(
            ONLINE_PREDICTIONS,
            deps=[
                dg.AssetDep(["learners", "grid_selection"], partition_mapping=PREVIOUS_HOUR),
                dg.AssetDep(["learners", "grid_predictions"], partition_mapping=HORIZON),
            ],
            kinds={"duckdb", "sql"},
        ),
    ],
    backfill_policy=SINGLE_RUN,
)
def grid_selection(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Judge the grid on the labels that matured in each hour; the best serves from the next on."""
    start_us, end_us = hours(context)
    judged: dict[int, dict[str, float | int | str]] = {}
    for hour in select_hours(deployment.warehouse, deployment.paths, start_us, end_us):
        figures = judged.setdefault(hour.hour_us, {"dagster/row_count": 0})
        figures["dagster/row_count"] = int(figures["dagster/row_count"]) + len(hour.judged)
        figures[label("configuration", hour.goal)] = hour.chosen
        figures[label("what it is", hour.goal)] = hour.names[hour.chosen]
        for name, one in zip(hour.names, hour.judged, strict=True):
            figures[label(f"excess log loss, {name}", hour.goal)] = one.excess
        if hour.chosen != hour.serving:
            context.log.info(
                f"{hour.goal} after {timestamp(hour.hour_us)}: {hour.names[hour.chosen]} serves "
                f"instead of {hour.names[hour.serving]}"
            )
    predicted = dict(rows_by_hour(deployment.warehouse, ONLINE_PREDICTIONS, start_us, end_us))
    for hour_us, figures in judged.items():
        describe_hour(context, ["learners", "grid_selection"], hour_us, figures)
        rows = {"dagster/row_count": predicted.get(hour_us, 0)}
        describe_hour(context, ["learners", "online_predictions"], hour_us, rows)
    yield dg.MaterializeResult(asset_key=["learners", "grid_selection"])
    yield dg.MaterializeResult(asset_key=["learners", "online_predictions"])


@dg.multi_asset(
    name="recovery",
    specs=[
        table_spec(
            RECOVERIES,
            deps=[
                dg.AssetDep(["learners", "quarantined_hours"], partition_mapping=SAME_HOUR),
                dg.AssetDep(["learners", "hour_guards"], partition_mapping=SAME_HOUR),
            ],
        )
    ],
    backfill_policy=SINGLE_RUN,
)
def recovery(context: dg.AssetExecutionContext, deployment: DeploymentResource):
    """Say of each roll-back whose hours were run again what came of it, and how long it took."""
    start_us, end_us = hours(context)
    recovered: dict[int, dict[str, float | int | str]] = {
        hour_us: {"dagster/row_count": 0} for hour_us in hours_between(start_us, end_us)
    }
    for one in finish(deployment.warehouse, deployment.paths, _recovery_seconds(context)):
        goal = one.rolled_back.goal
        context.log.info(f"recovery of {goal}: {one.outcome}")
        figures: dict[str, float | int | str] = {
            label("hours run again", goal): one.rolled_back.hours,
            label("examples left out", goal): one.left_out_examples,
            label("succeeded", goal): int(one.succeeded),
            label("outcome", goal): one.outcome,
        }
        if one.seconds is not None:
            figures[label("seconds", goal)] = one.seconds
        if start_us <= one.rolled_back.hour_us < end_us:
            shown = recovered[one.rolled_back.hour_us]
            shown |= figures | {"dagster/row_count": int(shown["dagster/row_count"]) + 1}
    for hour_us, shown in recovered.items():
        describe_hour(context, ["learners", "recoveries"], hour_us, shown)
    return dg.MaterializeResult()


def _recovery_seconds(context: dg.AssetExecutionContext) -> float | None:
    """Return the time from the quarantine to the last online model, as Dagster measured it.

    None if this run decided nothing: then it ended what another one began.
    """
    asked: Any = context.run.run_config
    if not asked.get("ops", {}).get("quarantine", {}).get("config", {}).get("hours"):
        return None
    steps = {
        step.step_key: step
        for step in context.instance.get_run_step_stats(
            context.run.run_id, ["quarantine", "online_learner"]
        )
    }
    began, ended = steps["quarantine"].start_time, steps["online_learner"].end_time
    return None if began is None or ended is None else ended - began
