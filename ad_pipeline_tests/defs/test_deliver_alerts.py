"""The sensor that tells people: once each, whatever else the warehouse holds, and quickly."""

import json

import dagster as dg
import pytest

from ad_pipeline.defs.resources import DeploymentResource
from ad_pipeline.defs.sensors import deliver_alerts
from ad_pipeline.monitoring.tables import ALERTS
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market

PAST_EVENTS = 1_000_000


def put(market: Market, *subjects: str) -> None:
    """Let some alerts be what is wrong now, in a warehouse with a long past."""
    warehouse = Warehouse(market.deployment.warehouse)
    warehouse.create([ALERTS])
    with warehouse.writer() as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS events")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS events.impressions AS SELECT range AS received_us, "
            f"md5(range::VARCHAR) AS impression_id FROM range({PAST_EVENTS})"
        )
        connection.execute("DELETE FROM monitoring.alerts")
        for subject in subjects:
            connection.execute(
                "INSERT INTO monitoring.alerts VALUES ($key, 'warn', 'drifted_columns', $subject, "
                "'index 0.4', 0, 'look', 1)",
                {"key": f"warn/drifted_columns/{subject}", "subject": subject},
            )


def tick(cursor: str | None = None) -> tuple[str, str | None]:
    """Return what the sensor said, and its cursor."""
    context = dg.build_sensor_context(cursor=cursor, resources={"deployment": DeploymentResource()})
    found = deliver_alerts.evaluate_tick(context)
    assert found.run_requests in (None, [])
    return found.skip_message or "", found.cursor


def test_before_anything_was_materialized_nobody_is_told(new_market: Market):
    assert "nothing was materialized" in tick()[0]


def test_each_alert_and_its_end_are_in_the_log_once(
    new_market: Market, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("AD_PIPELINE_WEBHOOK", raising=False)
    put(new_market, "publisher_id", "ad_id")
    said, cursor = tick()
    assert said == "2 messages to the log"
    assert tick(cursor)[0] == "everything was told already"
    put(new_market, "ad_id")
    said, cursor = tick(cursor)
    assert said == "1 messages to the log"
    lines = (new_market.deployment.reports / "alerts.jsonl").read_text().splitlines()
    told = [(json.loads(line)["event"], json.loads(line)["subject"]) for line in lines]
    assert told == [("begins", "ad_id"), ("begins", "publisher_id"), ("ends", "publisher_id")]


def test_a_webhook_that_is_down_fails_no_tick_and_is_told_later(
    new_market: Market, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AD_PIPELINE_WEBHOOK", "http://127.0.0.1:9/hook")
    put(new_market, "ad_id")
    said, cursor = tick()
    assert "webhook not told, next tick again" in said
    assert json.loads(cursor or "{}") == {"log": ["warn/drifted_columns/ad_id"], "webhook": []}
