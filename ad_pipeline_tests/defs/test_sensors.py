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
    closed_hours,
    drift_actions,
    new_log_files,
    suspect_hours,
)
from ad_pipeline.events.contract import FIXED_TABLES
from ad_pipeline.monitoring.drift.actions import record_action
from ad_pipeline.monitoring.drift.causes import CAUSES, Seen, due_action
from ad_pipeline.monitoring.tables import TABLES
from ad_pipeline.settings import (
    DriftActionSettings,
    OnlineSettings,
    RateControlSettings,
    Settings,
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


def plant(market: Market, **actions: str) -> None:
    """Have the newest verdicts of some kinds say that they drifted, and what fits."""
    says = {str(kind): cause.says for kind, cause in CAUSES.items()}
    with Warehouse(market.deployment.warehouse).writer() as connection:
        for kind, fits in actions.items():
            connection.execute(
                "UPDATE monitoring.drift_verdicts SET drifted = true, cause = $cause, "
                "actions = $fits WHERE kind = $kind AND subject = "
                "(SELECT min(subject) FROM monitoring.drift_verdicts WHERE kind = $kind)",
                {"kind": kind, "fits": fits, "cause": says[kind]},
            )


@pytest.fixture
def judged(new_market: Market) -> Market:
    """Return a market of which only the tables that the sensor reads are there: nothing drifted."""
    warehouse = Warehouse(new_market.deployment.warehouse)
    last_us = new_market.end_us - HOUR_US
    warehouse.create([*FIXED_TABLES, *TABLES])
    with warehouse.writer() as connection:
        connection.execute(
            "INSERT INTO events.accounting BY NAME SELECT $hour_us AS hour_us", {"hour_us": last_us}
        )
        for kind in CAUSES:
            connection.execute(
                "INSERT INTO monitoring.drift_verdicts VALUES ($hour_us, $kind, 'click, batch', "
                "false, 0.01, 0.2, '', '', '{\"columns\": {}}')",
                {"hour_us": last_us, "kind": kind},
            )
    return new_market


@pytest.fixture
def drifted(judged: Market) -> Market:
    """Return the same with a newest verdict that the inputs shifted."""
    plant(judged, inputs="retrain")
    return judged


def test_nothing_materialized_asks_for_no_action(new_market: Market, tick: Tick):
    assert tick(drift_actions)[0] == []


def test_no_drift_asks_for_no_action(judged: Market, tick: Tick):
    requests, _, why = tick(drift_actions)
    assert requests == []
    assert why.startswith("no drift")


def test_a_verdict_asks_for_one_retrain_in_the_last_hour_with_its_evidence(
    drifted: Market, tick: Tick
):
    last_us = drifted.end_us - HOUR_US
    (request,), cursor, _ = tick(drift_actions)
    assert json.loads(cursor or "") == {"retrain": last_us}
    assert (request.job_name, request.run_key) == ("retrain", f"retrain-{last_us}")
    assert request.partition_key == hour_key(last_us)
    asked = request.run_config["ops"]["batch_learner"]["config"]
    assert asked["cause"] == "drift"
    (evidence,) = json.loads(asked["evidence"])
    assert (evidence["kind"], evidence["cause"]) == ("inputs", CAUSES["inputs"].says)
    assert evidence["evidence"] == {"columns": {}}
    requests, _, why = tick(drift_actions, cursor)
    assert requests == []
    assert "acted on" in why


@pytest.mark.parametrize(
    ("kind", "fits", "job", "step"),
    [
        ("calibration", "recalibrate", "recalibrate", None),
        ("label_delay", "refit_delays", "refit_delays", "delay_models"),
        ("new_categories", "retrain", "retrain", "batch_learner"),
    ],
)
def test_each_cause_starts_the_job_that_fits_it(
    judged: Market, tick: Tick, kind: str, fits: str, job: str, step: str | None
):
    plant(judged, **{kind: fits})
    (request,), _, _ = tick(drift_actions)
    assert request.job_name == job
    taken = request.run_config["ops"]["actions"]["config"]
    assert (taken["action"], taken["run_key"]) == (fits, request.run_key)
    assert set(request.run_config["ops"]) == {"actions"} | ({step} if step else set())


def test_the_rate_is_not_raised_where_nothing_would_lower_it_and_the_next_action_is_taken(
    judged: Market, tick: Tick
):
    plant(judged, concept="raise_rate,retrain")
    (request,), cursor, _ = tick(drift_actions)
    assert request.job_name == "retrain"
    assert "rate_control" in tick(drift_actions, cursor)[2]


def test_two_causes_are_answered_one_after_the_other(judged: Market, tick: Tick):
    plant(judged, inputs="retrain", calibration="recalibrate")
    (first,), cursor, _ = tick(drift_actions)
    (second,), cursor, _ = tick(drift_actions, cursor)
    assert {first.job_name, second.job_name} == {"retrain", "recalibrate"}
    assert tick(drift_actions, cursor)[0] == []


def test_a_season_is_only_told(judged: Market, tick: Tick):
    with Warehouse(judged.deployment.warehouse).writer() as connection:
        connection.execute(
            "UPDATE monitoring.drift_verdicts SET drifted = true, cause = $cause "
            "WHERE kind = 'season'",
            {"cause": CAUSES["season"].says},
        )
    requests, _, why = tick(drift_actions)
    assert requests == []
    assert why.startswith("no drift to act on")


def test_a_new_verdict_soon_after_an_action_waits_for_the_cooldown(drifted: Market, tick: Tick):
    retrained_us = drifted.end_us - 4 * HOUR_US
    with Warehouse(drifted.deployment.warehouse).writer() as connection:
        record_action(connection, "retrain", retrained_us, "drift", retrained_us, "key", "{}")
    requests, cursor, why = tick(drift_actions)
    assert requests == []
    assert cursor is None, "the verdict is not acted on, so it is looked at again"
    assert "cooling down" in why
    with Warehouse(drifted.deployment.warehouse).writer() as connection:
        connection.execute(f"UPDATE monitoring.actions SET hour_us = hour_us - {6 * HOUR_US}")
    assert len(tick(drift_actions)[0]) == 1


def test_the_run_that_is_asked_for_trains_a_model_and_records_why(
    own_market: Market, instance: dg.DagsterInstance, definitions: dg.Definitions, tick: Tick
):
    plant(own_market, inputs="retrain")
    (request,), _, _ = tick(drift_actions)
    ran = definitions.resolve_job_def("retrain").execute_in_process(
        instance=instance,
        partition_key=request.partition_key,
        run_config=request.run_config,
        tags=request.tags,
    )
    assert ran.success
    with Warehouse(own_market.deployment.warehouse).reader() as connection:
        asked = connection.execute("SELECT hour_us, cause FROM learners.retrains").fetchall()
        taken = connection.execute(
            "SELECT hour_us, action, cause LIKE 'the inputs shifted%', run_key, effect "
            "FROM monitoring.actions"
        ).fetchall()
    last_us = own_market.end_us - HOUR_US
    assert asked == [(last_us, "drift")]
    assert taken == [(last_us, "retrain", True, request.run_key, None)]
    shown = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization.metadata
        for event in ran.get_asset_materialization_events()
        if event.asset_key is not None
    }
    assert shown["learners/retrains"]["dagster/row_count"].value == 1
    metadata = shown["learners/batch_model"]
    assert metadata["click: cause"].value == "drift"
    assert "click: train rows" in metadata, "a model was trained"


SEEN = Seen(
    verdict_hour_us=100 * HOUR_US,
    asked={"retrain": [{"cause": "the inputs shifted"}]},
    last_us={},
)
SETTINGS = Settings()
HELD_BACK = Settings(drift_actions=DriftActionSettings(act=False))
CONTROLLED = Settings(online=OnlineSettings(rate_control=RateControlSettings()))
RAISED = replace(SEEN, asked={"raise_rate": [{"cause": "other outcomes"}]})


@pytest.mark.parametrize(
    ("seen", "acted_on_us", "settings", "due"),
    [
        (SEEN, {}, SETTINGS, "retrain"),
        (replace(SEEN, asked={}), {}, SETTINGS, None),
        (SEEN, {"retrain": 100 * HOUR_US}, SETTINGS, None),
        (SEEN, {"retrain": 99 * HOUR_US}, SETTINGS, "retrain"),
        (SEEN, {"recalibrate": 100 * HOUR_US}, SETTINGS, "retrain"),
        (replace(SEEN, last_us={"retrain": 95 * HOUR_US}), {}, SETTINGS, None),
        (replace(SEEN, last_us={"retrain": 94 * HOUR_US}), {}, SETTINGS, "retrain"),
        (replace(SEEN, last_us={"recalibrate": 100 * HOUR_US}), {}, SETTINGS, "retrain"),
        (SEEN, {}, HELD_BACK, None),
        (RAISED, {}, SETTINGS, None),
        (RAISED, {}, CONTROLLED, "raise_rate"),
    ],
)
def test_an_action_is_due_by_verdict_cursor_cooldown_and_what_the_settings_allow(
    seen: Seen, acted_on_us: dict[str, int], settings: Settings, due: str | None
):
    action, reason = due_action(seen, acted_on_us, settings)
    assert action == due
    assert reason


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
