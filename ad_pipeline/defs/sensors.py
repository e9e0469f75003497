"""Reactions to the outside world: new log files, closed hours, a drift verdict, people to tell.

A tick lists files or asks the warehouse one small question; it reads no log. What a tick decides is
a pure function of what it saw and of its cursor, and stands apart from the sensor so that it can be
tested without Dagster. Reactions inside the graph are conditions, in ``automation.py``.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

import dagster as dg

from ad_pipeline.checkpoints import is_pointed
from ad_pipeline.clocks import HOUR_US, hour_key, hour_of, timestamp
from ad_pipeline.datasets import Deployment
from ad_pipeline.defs.jobs import (
    ledger,
    main,
    raise_rate,
    recalibrate,
    recover_online_model,
    refit_delays,
    retrain,
)
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.events.ledger import sealed_until, watermark_us
from ad_pipeline.learners.online.online_hours import pointer as online_model
from ad_pipeline.learners.online.recovery import GUARD, replay_range, suspects
from ad_pipeline.monitoring.alerts.alerts_of_log import NoAlertsYet, read_alerts
from ad_pipeline.monitoring.alerts.delivery import channels_of, deliver
from ad_pipeline.monitoring.drift.actions import seen_by_sensor
from ad_pipeline.monitoring.drift.causes import Action, Seen, due_action
from ad_pipeline.settings import DriftActionSettings
from ad_pipeline.warehouse import Warehouse, WarehouseBusy

PATIENCE_SECONDS = 2.0
"""A tick does not queue behind a run for the warehouse: the next tick asks again."""

ATTEMPTS = 3
"""Runs of one range that may fail before somebody has to look."""

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"

SUSPECTS_TAG = "ad_pipeline/suspects"

DRIFT = "drift"
"""Cause that the tables of orders name when this sensor ordered."""

GOING_ON = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
QUIET_SECONDS = 3600.0
"""A run that has said nothing for so long died with its machine: nobody marked it as ended."""


JOB_OF: Mapping[Action, Any] = {
    "retrain": retrain,
    "raise_rate": raise_rate,
    "recalibrate": recalibrate,
    "refit_delays": refit_delays,
}
"""What carries out each action; what asks for it is data, in ``monitoring.drift.causes``."""


def listing_digest(deployment: Deployment) -> str:
    """Return a digest of the log folders as a file listing shows them: names, sizes, times."""
    found = sorted(
        (str(path), path.stat().st_size, path.stat().st_mtime_ns)
        for source in deployment.dataset.sources
        for path in deployment.log_files(source)
    )
    return hashlib.sha256(json.dumps(found).encode()).hexdigest() if found else ""


def closed_range(start_us: int, learnt_us: int, complete_us: int) -> tuple[int, int] | None:
    """Return the hours ``[start, end)`` that are complete and not learnt yet, or None.

    Parameters
    ----------
    start_us : int
        Start of the dataset.
    learnt_us : int
        End of the last hour learnt; 0 before the first.
    complete_us : int
        The watermark.
    """
    first = max(hour_of(start_us), learnt_us)
    return (first, complete_us) if complete_us > first else None


def learnt_until(deployment: Deployment, sealed_us: int) -> int:
    """Return the end of the last sealed hour that left an online model of every goal, microseconds.

    A run seals its hours before it learns them; one that failed in between left hours that are
    sealed and not learnt, and they are to be run again.
    """
    end_us = sealed_us
    first_us = hour_of(deployment.dataset.start_us)
    while end_us > first_us and not all(
        is_pointed(deployment.checkpoints, online_model(goal, end_us - HOUR_US))
        for goal in deployment.dataset.goal_names
    ):
        end_us -= HOUR_US
    return end_us


def run_over_hours(instance: dg.DagsterInstance) -> str | None:
    """Return the id of a run over log hours that is going on, or None.

    Every hour continues from the one before, and a run seals its hours before it learns them: what
    comes next must not start while sealed hours are being learnt.
    """
    for record in instance.get_run_records(dg.RunsFilter(statuses=GOING_ON)):
        run = record.dagster_run
        if run.job_name == ledger.name:
            continue
        said = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
        if not said or time.time() - said[0].timestamp < QUIET_SECONDS:
            return run.run_id
    return None


@dg.sensor(
    job=ledger,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks for new log files and enters them into the ledger.",
)
def new_log_files(
    context: dg.SensorEvaluationContext, deployment: DeploymentResource
) -> dg.SensorResult | dg.SkipReason:
    """Start the ledger job when the listing of the log folders changed."""
    digest = listing_digest(deployment.paths)
    if digest == (context.cursor or ""):
        return dg.SkipReason("no new log file")
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=digest)], cursor=digest)


@dg.sensor(
    job=main,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Runs the main job for log hours that have become complete.",
)
def closed_hours(
    context: dg.SensorEvaluationContext, deployment: DeploymentResource
) -> dg.RunRequest | dg.SkipReason:
    """Start the main job for the hours between the last one learnt and the watermark."""
    if going_on := run_over_hours(context.instance):
        return dg.SkipReason(f"run {going_on} is still at its hours")
    paths = deployment.paths
    if not paths.warehouse.exists():
        return dg.SkipReason("no log file is registered yet")
    try:
        with Warehouse(paths.warehouse, wait_seconds=PATIENCE_SECONDS).reader() as connection:
            complete_us = watermark_us(connection, paths.dataset)
            sealed_us = sealed_until(connection)
    except WarehouseBusy as busy:
        return dg.SkipReason(str(busy))
    learnt_us = learnt_until(paths, sealed_us)
    due = closed_range(paths.dataset.start_us, learnt_us, complete_us)
    if due is None:
        return dg.SkipReason(f"every sealed hour is learnt, up to {timestamp(sealed_us)}")
    first, last = hour_key(due[0]), hour_key(due[1] - HOUR_US)
    tags = {RANGE_START_TAG: first, RANGE_END_TAG: last}
    failed = dg.RunsFilter(tags=tags, statuses=[dg.DagsterRunStatus.FAILURE])
    attempts = context.instance.get_runs_count(failed)
    if attempts >= ATTEMPTS:
        return dg.SkipReason(f"{first}...{last} failed {attempts} times: see why, then start it")
    return dg.RunRequest(run_key=f"{first}...{last}, attempt {attempts + 1}", tags=tags)


def action_config(
    action: Action, settings: DriftActionSettings, seen: Seen, taken: dict[str, str | int]
) -> dict[str, Any]:
    """Return the run configuration of an action's job.

    Parameters
    ----------
    action : str
    settings : DriftActionSettings
    seen : Seen
    taken : dict
        Configuration of the step that records it.
    """
    ops: dict[str, Any] = {"actions": {"config": taken}}
    asked = {"cause": DRIFT, "evidence": taken["evidence"]}
    if action == "retrain":
        ops["batch_learner"] = {"config": asked}
    elif action == "refit_delays":
        ops["delay_models"] = {"config": asked}
    elif action == "raise_rate":
        goals = sorted({one["subject"].split(", ")[0] for one in seen.asked[action]})
        doublings = settings.raise_rate_doublings
        ops["rate_order"] = {"config": asked | {"goals": goals, "doublings": doublings}}
    return {"ops": ops}


@dg.sensor(
    jobs=list(JOB_OF.values()),
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Does what fits the newest drift verdicts: retrains LightGBM, raises the online rate, "
        "calibrates anew or fits the models of delay; one at a time, each with its cooldown."
    ),
)
def drift_actions(
    context: dg.SensorEvaluationContext, deployment: DeploymentResource
) -> dg.SensorResult | dg.SkipReason:
    """Turn the newest drift verdicts into the run that fits, once for each action."""
    if going_on := run_over_hours(context.instance):
        return dg.SkipReason(f"run {going_on} is still at its hours")
    paths = deployment.paths
    if not paths.warehouse.exists():
        return dg.SkipReason("nothing was materialized yet")
    try:
        with Warehouse(paths.warehouse, wait_seconds=PATIENCE_SECONDS).reader() as connection:
            seen = seen_by_sensor(connection)
            last_hour_us = 0 if seen is None else sealed_until(connection) - HOUR_US
    except WarehouseBusy as busy:
        return dg.SkipReason(str(busy))
    if seen is None:
        return dg.SkipReason("no drift verdict yet")
    acted_on: dict[str, int] = json.loads(context.cursor) if context.cursor else {}
    settings = paths.dataset.settings
    action, reason = due_action(seen, acted_on, settings)
    if action is None:
        return dg.SkipReason(reason)
    run_key = f"{action}-{seen.verdict_hour_us}"
    taken: dict[str, str | int] = {
        "action": action,
        "hour_us": last_hour_us,
        "cause": reason,
        "verdict_hour_us": seen.verdict_hour_us,
        "run_key": run_key,
        "evidence": json.dumps(list(seen.asked[action]), sort_keys=True),
    }
    request = dg.RunRequest(
        run_key=run_key,
        job_name=JOB_OF[action].name,
        # The mixture is of no hour: it is fitted on whatever has matured.
        partition_key=None if action == "recalibrate" else hour_key(last_hour_us),
        run_config=action_config(action, settings.drift_actions, seen, taken),
        tags={"ad_pipeline/cause": reason},
    )
    cursor = json.dumps(acted_on | {action: seen.verdict_hour_us}, sort_keys=True)
    return dg.SensorResult(run_requests=[request], cursor=cursor)


@dg.sensor(
    job=recover_online_model,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Takes the online model back when its guard tripped, and has the hours since learnt again "
        "without the suspect one. After a few in a row it leaves the decision to a person."
    ),
)
def suspect_hours(
    context: dg.SensorEvaluationContext, deployment: DeploymentResource
) -> dg.RunRequest | dg.SkipReason:
    """Start a recovery for the first hour of each goal that failed labels_are_as_expected."""
    if going_on := run_over_hours(context.instance):
        return dg.SkipReason(f"run {going_on} is still at its hours")
    paths = deployment.paths
    if not paths.warehouse.exists():
        return dg.SkipReason("nothing was materialized yet")
    warehouse = Warehouse(paths.warehouse, wait_seconds=PATIENCE_SECONDS)
    try:
        found = suspects(warehouse, paths)
        if not found.automatic:
            return dg.SkipReason(found.described() or "no hour is suspect")
        start_us, end_us = replay_range(warehouse, paths, found.automatic)
    except WarehouseBusy as busy:
        return dg.SkipReason(str(busy))
    hours = {goal: hour_key(us) for goal, us in found.automatic.items()}
    asked = json.dumps(hours, sort_keys=True)
    tags = {SUSPECTS_TAG: asked}
    failed = dg.RunsFilter(tags=tags, statuses=[dg.DagsterRunStatus.FAILURE])
    attempts = context.instance.get_runs_count(failed)
    if attempts >= ATTEMPTS:
        return dg.SkipReason(f"recovery of {asked} failed {attempts} times: see why, then start it")
    evidence = json.dumps({goal: found.reasons[goal] for goal in hours}, sort_keys=True)
    config = {"hours": hours, "cause": GUARD, "evidence": evidence}
    return dg.RunRequest(
        run_key=f"{asked}, attempt {attempts + 1}",
        run_config={"ops": {"quarantine": {"config": config}}},
        tags=tags
        | {RANGE_START_TAG: hour_key(start_us), RANGE_END_TAG: hour_key(end_us - HOUR_US)},
    )


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Tells a log and, if its address is set, a webhook what began and what ended of "
        "monitoring/alerts: each once, and again at the next tick if it was not taken."
    ),
)
def deliver_alerts(
    context: dg.SensorEvaluationContext, deployment: DeploymentResource
) -> dg.SensorResult | dg.SkipReason:
    """Read monitoring.alerts, tell every channel what it was not told, and remember it."""
    paths = deployment.paths
    if not paths.warehouse.exists():
        return dg.SkipReason("nothing was materialized yet")
    warehouse = Warehouse(paths.warehouse, wait_seconds=PATIENCE_SECONDS)
    try:
        found = read_alerts(warehouse)
    except (WarehouseBusy, NoAlertsYet) as later:
        return dg.SkipReason(str(later))
    # After the warehouse is closed: an endpoint that hangs must hold nobody up.
    done = deliver(found, context.cursor, channels_of(paths))
    return dg.SensorResult(
        skip_reason=dg.SkipReason(done.in_words or "everything was told already"),
        cursor=done.cursor,
    )
