"""Each sensor, tick by tick, on the log files and the warehouse of a real market.

What a sensor asks for is run here too where that is a matter of seconds; the daemon that does it
all by itself is in ``test_daemon.py``.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import dagster as dg
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US, hour_key
from ad_pipeline.defs import sensors
from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.sensors import (
    DriftSeen,
    closed_hours,
    drift_retrain,
    new_log_files,
    suspect_hours,
)
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market, write_days
from ad_pipeline_tests.defs.runs import run_here

Tick = Callable[..., tuple[list[dg.RunRequest], str | None, str]]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as found:
        yield found


@pytest.fixture
def tick(definitions: dg.Definitions, instance: dg.DagsterInstance) -> Tick:
    """Return a tick: what it asks for, the cursor it leaves, and why it skipped."""

    def evaluated(
        sensor: dg.SensorDefinition, cursor: str | None = None
    ) -> tuple[list[dg.RunRequest], str | None, str]:
        context = dg.build_sensor_context(
            instance=instance,
            cursor=cursor,
            repository_def=definitions.get_repository_def(),
            resources={"deployment": DeploymentResource()},
        )
        found = sensor.evaluate_tick(context)
        return list(found.run_requests or ()), found.cursor, found.skip_message or ""

    return evaluated


def test_an_empty_log_folder_asks_for_nothing(new_market: Market, tick: Tick):
    assert tick(new_log_files)[0] == []


def test_new_log_files_are_asked_for_once(new_market: Market, tick: Tick):
    write_days(new_market, range(1))
    (request,), cursor, _ = tick(new_log_files)
    assert request.run_key == cursor
    assert tick(new_log_files, cursor)[0] == []


def test_another_log_file_asks_again_under_another_run_key(new_market: Market, tick: Tick):
    write_days(new_market, range(1))
    (first,), cursor, _ = tick(new_log_files)
    write_days(new_market, range(1, 2))
    (second,), _, _ = tick(new_log_files, cursor)
    assert second.run_key != first.run_key


def test_a_log_file_that_is_still_being_written_is_not_seen(new_market: Market, tick: Tick):
    write_days(new_market, range(1))
    _, cursor, _ = tick(new_log_files)
    folder = new_market.deployment.logs / "impressions"
    (folder / ".day=1.parquet").write_bytes(b"half of it")
    assert tick(new_log_files, cursor)[0] == []


def test_nothing_is_asked_for_before_a_file_is_registered(new_market: Market, tick: Tick):
    write_days(new_market, range(1))
    requests, _, why = tick(closed_hours)
    assert requests == []
    assert "registered" in why


def test_the_hours_of_a_registered_day_are_asked_for_as_one_range(
    new_market: Market, instance: dg.DagsterInstance, definitions: dg.Definitions, tick: Tick
):
    write_days(new_market, range(1))
    assert run_here(definitions, ["events/files"], instance=instance).success
    (request,), _, _ = tick(closed_hours)
    first, last = hour_key(new_market.start_us), hour_key(new_market.start_us + 23 * HOUR_US)
    assert request.tags[sensors.RANGE_START_TAG] == first
    assert request.tags[sensors.RANGE_END_TAG] == last
    assert request.run_key
    assert first in request.run_key
    assert last in request.run_key


def test_sealed_hours_are_not_asked_for_again(own_market: Market, tick: Tick):
    requests, _, why = tick(closed_hours)
    assert requests == []
    assert "learnt" in why


def test_hours_that_a_failed_run_sealed_but_did_not_learn_are_asked_for_again(
    own_market: Market, instance: dg.DagsterInstance, definitions: dg.Definitions, tick: Tick
):
    """Three times; then somebody has to look."""
    last_us = own_market.end_us - HOUR_US
    folder = own_market.deployment.checkpoints / "pointers" / "learners.online_model"
    name = hour_key(last_us).replace(":", "")
    for path in folder.glob(f"*/{name}.json"):
        path.unlink()
    keys = []
    for _ in range(sensors.ATTEMPTS):
        (request,), _, _ = tick(closed_hours)
        assert request.tags[sensors.RANGE_START_TAG] == hour_key(last_us)
        keys.append(request.run_key)
        run = going_on(definitions, instance, request.tags)
        instance.report_run_failed(run)
    assert len(set(keys)) == sensors.ATTEMPTS
    requests, _, why = tick(closed_hours)
    assert requests == []
    assert "failed 3 times" in why


def test_hours_after_the_sealed_ones_are_asked_for(own_market: Market, tick: Tick):
    """As if the first day alone had been run."""
    served_us = own_market.start_us + DAY_US
    with Warehouse(own_market.deployment.warehouse).writer() as connection:
        connection.execute(f"DELETE FROM events.accounting WHERE hour_us >= {served_us}")
    (request,), _, _ = tick(closed_hours)
    assert request.tags[sensors.RANGE_START_TAG] == hour_key(served_us)
    assert request.tags[sensors.RANGE_END_TAG] == hour_key(own_market.end_us - HOUR_US)


def test_a_run_at_its_hours_is_waited_for(
    new_market: Market, instance: dg.DagsterInstance, definitions: dg.Definitions, tick: Tick
):
    write_days(new_market, range(1))
    assert run_here(definitions, ["events/files"], instance=instance).success
    run = going_on(definitions, instance)
    requests, _, why = tick(closed_hours)
    assert requests == []
    assert run.run_id in why
    instance.report_run_failed(run)
    assert tick(closed_hours)[0]


def test_a_run_whose_last_words_lie_in_the_future_is_waited_for(
    new_market: Market,
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    tick: Tick,
    monkeypatch: pytest.MonkeyPatch,
):
    """The wall clock was set back during the run; one that fell silent is still given up."""
    write_days(new_market, range(1))
    assert run_here(definitions, ["events/files"], instance=instance).success
    run = going_on(definitions, instance)
    now = time.time()
    monkeypatch.setattr(sensors.time, "time", lambda: now - 24 * 3600)
    requests, _, why = tick(closed_hours)
    assert requests == []
    assert run.run_id in why
    monkeypatch.setattr(sensors.time, "time", lambda: now + 2 * sensors.QUIET_SECONDS)
    assert tick(closed_hours)[0]


def trip(market: Market, hours_back: int) -> int:
    """Let the guard of clicks have tripped so many hours before the last one it judged."""
    with Warehouse(market.deployment.warehouse).writer() as connection:
        judged = connection.execute(
            "SELECT hour_us FROM learners.hour_guards WHERE goal = 'click' AND state = 'passed' "
            "ORDER BY hour_us DESC"
        ).fetchall()
        (hour_us,) = judged[hours_back]
        connection.execute(
            "UPDATE learners.hour_guards SET state = 'tripped' "
            "WHERE goal = 'click' AND hour_us >= $hour_us",
            {"hour_us": hour_us},
        )
    return hour_us


def test_hours_that_surprised_nobody_ask_for_no_recovery(own_market: Market, tick: Tick):
    requests, _, why = tick(suspect_hours)
    assert requests == []
    assert "no hour is suspect" in why


def test_the_first_suspect_hour_is_left_out_and_all_hours_since_are_run_again(
    own_market: Market, tick: Tick
):
    hour_us = trip(own_market, 3)
    (request,), _, _ = tick(suspect_hours)
    assert request.tags[sensors.RANGE_START_TAG] == hour_key(hour_us)
    assert request.tags[sensors.RANGE_END_TAG] == hour_key(own_market.end_us - HOUR_US)
    config = request.run_config["ops"]["quarantine"]["config"]
    assert config["hours"] == {"click": hour_key(hour_us)}
    assert config["cause"] == "guard"


def test_a_recovery_waits_for_a_run_at_its_hours_and_is_tried_three_times(
    own_market: Market, instance: dg.DagsterInstance, definitions: dg.Definitions, tick: Tick
):
    trip(own_market, 0)
    run = going_on(definitions, instance)
    assert run.run_id in tick(suspect_hours)[2]
    instance.report_run_failed(run)
    for _ in range(sensors.ATTEMPTS):
        (request,), _, _ = tick(suspect_hours)
        instance.report_run_failed(going_on(definitions, instance, request.tags))
    requests, _, why = tick(suspect_hours)
    assert requests == []
    assert "failed 3 times" in why


@pytest.mark.slow
def test_what_the_sensor_asks_for_takes_the_model_back_and_passes_its_check(
    own_market: Market, instance: dg.DagsterInstance, definitions: dg.Definitions, tick: Tick
):
    hour_us = trip(own_market, 3)
    (request,), _, _ = tick(suspect_hours)
    job = definitions.resolve_job_def("recover_online_model")
    ran = job.execute_in_process(
        run_config=dict(request.run_config), tags=dict(request.tags), instance=instance
    )
    assert ran.success
    with Warehouse(own_market.deployment.warehouse).reader() as connection:
        rows = connection.execute(
            "SELECT goal, hour_us, succeeded, seconds > 0 FROM learners.recoveries"
        ).fetchall()
        states = connection.execute(
            "SELECT state FROM learners.hour_guards WHERE goal = 'click' AND hour_us >= $us "
            "ORDER BY hour_us",
            {"us": hour_us},
        ).fetchall()
    assert rows == [("click", hour_us, True, True)]
    assert states[0] == ("left_out",)
    assert ("tripped",) not in states
    assert "no hour is suspect" in tick(suspect_hours)[2]


def test_a_busy_warehouse_is_no_error(
    own_market: Market, monkeypatch: pytest.MonkeyPatch, tick: Tick
):
    monkeypatch.setattr(sensors, "PATIENCE_SECONDS", 0.2)
    with Warehouse(own_market.deployment.warehouse).writer():
        requests, _, why = tick(closed_hours)
    assert requests == []
    assert why


@pytest.fixture
def drifted(own_market: Market) -> Market:
    """Return a market whose newest verdict names two columns."""
    with Warehouse(own_market.deployment.warehouse).writer() as connection:
        connection.execute(
            "UPDATE monitoring.drift SET drifted = true "
            "WHERE column_name IN ('publisher_id', 'device')"
        )
    return own_market


def test_nothing_materialized_asks_for_no_retrain(new_market: Market, tick: Tick):
    assert tick(drift_retrain)[0] == []


def test_no_drift_asks_for_no_retrain(own_market: Market, tick: Tick):
    requests, _, why = tick(drift_retrain)
    assert requests == []
    assert why.startswith("no drift")


def test_a_verdict_asks_for_one_retrain_in_the_last_hour_with_its_evidence(
    drifted: Market, tick: Tick
):
    verdict_end_us = drifted.start_us + 2 * DAY_US
    (request,), cursor, _ = tick(drift_retrain)
    assert cursor == str(verdict_end_us)
    assert request.run_key == f"drift-{verdict_end_us}"
    assert request.partition_key == hour_key(drifted.end_us - HOUR_US)
    asked = request.run_config["ops"]["batch_learner"]["config"]
    assert asked["cause"] == "drift"
    assert json.loads(asked["evidence"]) == {
        "verdict_end_us": verdict_end_us,
        "columns": ["device", "publisher_id"],
    }
    requests, _, why = tick(drift_retrain, cursor)
    assert requests == []
    assert "acted on" in why


def test_a_new_verdict_soon_after_a_retrain_waits_for_the_cooldown(drifted: Market, tick: Tick):
    retrained_us = drifted.end_us - 3 * HOUR_US
    with Warehouse(drifted.deployment.warehouse).writer() as connection:
        connection.execute(
            f"INSERT INTO learners.retrains VALUES ({retrained_us}, 'drift', '{{}}')"
        )
    requests, cursor, why = tick(drift_retrain)
    assert requests == []
    assert cursor is None, "the verdict is not acted on, so it is looked at again"
    assert "cooling down" in why
    with Warehouse(drifted.deployment.warehouse).writer() as connection:
        connection.execute(f"UPDATE learners.retrains SET hour_us = hour_us - {6 * HOUR_US}")
    assert len(tick(drift_retrain)[0]) == 1


def test_the_run_that_is_asked_for_trains_a_model_and_records_why(
    drifted: Market, instance: dg.DagsterInstance, definitions: dg.Definitions, tick: Tick
):
    (request,), _, _ = tick(drift_retrain)
    ran = definitions.resolve_job_def("retrain").execute_in_process(
        instance=instance,
        partition_key=request.partition_key,
        run_config=request.run_config,
        tags=request.tags,
    )
    assert ran.success
    with Warehouse(drifted.deployment.warehouse).reader() as connection:
        asked = connection.execute("SELECT hour_us, cause FROM learners.retrains").fetchall()
    assert asked == [(drifted.end_us - HOUR_US, "drift")]
    shown = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization.metadata
        for event in ran.get_asset_materialization_events()
        if event.asset_key is not None
    }
    assert shown["learners/retrains"]["dagster/row_count"].value == 1
    metadata = shown["learners/batch_model"]
    assert metadata["click: cause"].value == "drift"
    assert "click: train rows" in metadata, "a model was trained"


SEEN = DriftSeen(
    verdict_end_us=100 * HOUR_US,
    columns=("device",),
    last_hour_us=99 * HOUR_US,
    last_retrain_us=None,
)


@pytest.mark.parametrize(
    ("seen", "acted_on_us", "due"),
    [
        (SEEN, 0, True),
        (replace(SEEN, columns=()), 0, False),
        (SEEN, 100 * HOUR_US, False),
        (SEEN, 99 * HOUR_US, True),
        (replace(SEEN, last_retrain_us=94 * HOUR_US), 0, False),
        (replace(SEEN, last_retrain_us=93 * HOUR_US), 0, True),
        (replace(SEEN, last_retrain_us=99 * HOUR_US), 0, False),
    ],
)
def test_a_retrain_is_due_for_a_new_drift_outside_the_cooldown(
    seen: DriftSeen, acted_on_us: int, due: bool
):
    assert sensors.retrain_due(seen, acted_on_us, cooldown_hours=6)[0] is due


def going_on(
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    tags: Mapping[str, str] | None = None,
) -> dg.DagsterRun:
    """Return a run of the main job that has just started."""
    run = instance.create_run_for_job(
        definitions.resolve_job_def("main"), status=dg.DagsterRunStatus.STARTED, tags=tags
    )
    instance.report_engine_event("at work", run)
    return run
