"""Reactions to the outside world: new log files, closed hours, a drift verdict, people to tell.

A tick lists files or asks the warehouse one small question; it reads no log. What a tick decides is
a pure function of what it saw and of its cursor, and stands apart from the sensor so that it can be
tested without Dagster. Reactions inside the graph are conditions, in ``automation.py``.
"""

import hashlib
import json
import time
from dataclasses import dataclass

import dagster as dg
import duckdb

from ad_pipeline.checkpoints import is_pointed
from ad_pipeline.clocks import HOUR_US, hour_key, hour_of, timestamp
from ad_pipeline.datasets import Deployment
from ad_pipeline.defs.jobs import ledger, main, recover_online_model, retrain
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.events.ledger import sealed_until, watermark_us
from ad_pipeline.learners.online.online_hours import pointer as online_model
from ad_pipeline.learners.online.recovery import GUARD, replay_range, suspects
from ad_pipeline.monitoring.alerts.alerts_of_log import NoAlertsYet, read_alerts
from ad_pipeline.monitoring.alerts.delivery import channels_of, deliver
from ad_pipeline.warehouse import Warehouse, WarehouseBusy, one_row

PATIENCE_SECONDS = 2.0
"""A tick does not queue behind a run for the warehouse: the next tick asks again."""

ATTEMPTS = 3
"""Runs of one range that may fail before somebody has to look."""

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"

SUSPECTS_TAG = "ad_pipeline/suspects"

GOING_ON = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
QUIET_SECONDS = 3600.0
"""A run that has said nothing for so long died with its machine: nobody marked it as ended."""


@dataclass(frozen=True)
class DriftSeen:
    """What the drift sensor sees.

    Attributes
    ----------
    verdict_end_us : int
        End of the hours of the newest verdict.
    columns : tuple of str
        Those that drifted; empty if none did.
    last_hour_us : int
        Last log hour learnt.
    last_retrain_us : int or None
        Last hour of a retrain that was asked for.
    """

    verdict_end_us: int
    columns: tuple[str, ...]
    last_hour_us: int
    last_retrain_us: int | None


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


def retrain_due(seen: DriftSeen, acted_on_us: int, cooldown_hours: int) -> tuple[bool, str]:
    """Decide whether a drift verdict starts a retrain.

    Parameters
    ----------
    seen : DriftSeen
    acted_on_us : int
        End of the hours of the last verdict that was acted on; 0 for none.
    cooldown_hours : int
        Log hours between two such retrains.

    Returns
    -------
    due : bool
    reason : str
        For people.
    """
    if not seen.columns:
        return False, f"no drift in the hours before {timestamp(seen.verdict_end_us)}"
    if seen.verdict_end_us <= acted_on_us:
        return False, f"the verdict up to {timestamp(seen.verdict_end_us)} was acted on already"
    if seen.last_retrain_us is not None:
        ready_us = seen.last_retrain_us + cooldown_hours * HOUR_US
        if seen.last_hour_us < ready_us:
            return False, f"cooling down until log hour {timestamp(ready_us)}"
    return True, f"{', '.join(seen.columns)} drifted before {timestamp(seen.verdict_end_us)}"


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


@dg.sensor(
    job=retrain,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Retrains LightGBM when the inputs drifted; cools down between two retrains.",
)
def drift_retrain(
    context: dg.SensorEvaluationContext, deployment: DeploymentResource
) -> dg.SensorResult | dg.SkipReason:
    """Turn the newest drift verdict into a retrain run, once."""
    if going_on := run_over_hours(context.instance):
        return dg.SkipReason(f"run {going_on} is still at its hours")
    paths = deployment.paths
    if not paths.warehouse.exists():
        return dg.SkipReason("nothing was materialized yet")
    try:
        with Warehouse(paths.warehouse, wait_seconds=PATIENCE_SECONDS).reader() as connection:
            seen = _seen(connection)
    except WarehouseBusy as busy:
        return dg.SkipReason(str(busy))
    if seen is None:
        return dg.SkipReason("no drift verdict yet")
    cooldown = paths.dataset.settings.drift.retrain_cooldown_hours
    due, reason = retrain_due(seen, int(context.cursor or 0), cooldown)
    if not due:
        return dg.SkipReason(reason)
    evidence = json.dumps({"verdict_end_us": seen.verdict_end_us, "columns": list(seen.columns)})
    request = dg.RunRequest(
        run_key=f"drift-{seen.verdict_end_us}",
        partition_key=hour_key(seen.last_hour_us),
        run_config=dg.RunConfig(
            ops={"batch_learner": {"config": {"cause": "drift", "evidence": evidence}}}
        ),
        tags={"ad_pipeline/cause": reason},
    )
    return dg.SensorResult(run_requests=[request], cursor=str(seen.verdict_end_us))


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


def _seen(connection: duckdb.DuckDBPyConnection) -> DriftSeen | None:
    tables = {
        f"{schema}.{name}"
        for schema, name in connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_catalog = 'warehouse'"
        ).fetchall()
    }
    if not {"monitoring.drift", "learners.retrains", "learners.online_predictions"} <= tables:
        return None
    verdict_end_us, columns = one_row(
        connection,
        "SELECT max(current_end_us), list(column_name ORDER BY column_name) FILTER (drifted) "
        "FROM monitoring.drift "
        "WHERE current_end_us = (SELECT max(current_end_us) FROM monitoring.drift)",
    )
    (asked_us,) = one_row(connection, "SELECT max(hour_us) FROM learners.retrains")
    if verdict_end_us is None:
        return None
    last_hour_us = sealed_until(connection) - HOUR_US
    return DriftSeen(verdict_end_us, tuple(columns or ()), last_hour_us, asked_us)
