"""A market's whole life by ``dagster asset materialize``: what the event log says of it is true."""

import math
import re
from collections.abc import Iterator

import dagster as dg
import duckdb
import pytest

from ad_pipeline.checkpoints import is_pointed, resolve
from ad_pipeline.clocks import DAY_US, HOUR_US, hour_key, hour_start, hours_between
from ad_pipeline.learners.online.online_hours import pointer
from ad_pipeline.serving.bundle import open_bundle
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.serving.promotion import history
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.graph_shape import assets_of
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.defs.runs import BESIDE_THE_PATH
from ad_pipeline_tests.strangers.runs import checks_not_passed


@pytest.fixture
def connection(market: Market) -> Iterator[duckdb.DuckDBPyConnection]:
    with Warehouse(market.deployment.warehouse).reader() as opened:
        yield opened


def figures_by_hour(instance: dg.DagsterInstance, asset: str) -> dict[int, dict]:
    """Return the metadata that the newest materialization of each hour shows, by hour."""
    found: dict[int, dict] = {}
    records = instance.fetch_materializations(dg.AssetKey(asset.split("/")), limit=5000).records
    for record in records:  # newest first
        materialization = record.asset_materialization
        assert materialization is not None
        assert materialization.partition is not None
        hour_us = hour_start(materialization.partition)
        metadata = {name: value.value for name, value in materialization.metadata.items()}
        found.setdefault(hour_us, metadata)
    return found


def latest(instance: dg.DagsterInstance, asset: str) -> dict:
    event = instance.get_latest_materialization_event(dg.AssetKey(asset.split("/")))
    assert event is not None
    assert event.asset_materialization is not None
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def rows_by_hour(connection: duckdb.DuckDBPyConnection, table: str, clock: str) -> dict[int, int]:
    return dict(
        connection.execute(
            f"SELECT {clock} - {clock} % {HOUR_US}, count(*) FROM {table} GROUP BY ALL"
        ).fetchall()
    )


def test_one_command_runs_what_is_new_and_says_what_it_found(market: Market):
    """``ad_pipeline run`` on the first day's log, and again when the second one's has come."""
    first, second = (
        (market.dataset_file.parent / f"{day}_run.txt").read_text() for day in ("first", "second")
    )
    served = hour_key(market.start_us + DAY_US)
    assert f"complete up to {served}" in first
    assert f"going on at {served}" in second
    assert "the log has ended" in second
    span = f"{served}...{hour_key(market.end_us - HOUR_US)}"
    assert f"--partition-range {span}" in second
    for said in (first, second):
        assert re.search(r"bundle \w{12} (promoted|refused): \w", said)
        assert all(f"\n{goal}: " in said for goal in market.deployment.dataset.goal_names)
        assert len(checks_not_passed(said)) < 5


def test_every_asset_was_materialized_for_every_hour(
    market: Market, instance: dg.DagsterInstance, definitions: dg.Definitions
):
    hours = {hour_key(hour) for hour in hours_between(market.start_us, market.end_us)}
    for asset in assets_of(definitions):
        key = dg.AssetKey(list(asset.key))
        if asset.name in BESIDE_THE_PATH:
            assert instance.get_latest_materialization_event(key) is None
        elif asset.hourly:
            assert set(instance.get_materialized_partitions(key)) == hours, asset.name
        else:
            assert instance.get_latest_materialization_event(key) is not None, asset.name


@pytest.mark.parametrize(
    ("asset", "clock"),
    [
        ("events/impressions", "received_us"),
        ("events/engagements", "received_us"),
        ("events/decisions", "received_us"),
        ("events/duplicates", "received_us"),
        ("events/held_engagements", "received_us"),
        ("examples/training_examples", "emit_us"),
        ("examples/labelled_impressions", "matured_us"),
        ("learners/online_predictions", "serving_us"),
        ("learners/batch_predictions", "serving_us"),
        ("features/inverse_dictionary", "first_hour_us"),
    ],
)
def test_row_counts_in_the_event_log_are_those_of_the_warehouse(
    instance: dg.DagsterInstance, connection: duckdb.DuckDBPyConnection, asset: str, clock: str
):
    shown = {
        hour_us: metadata["dagster/row_count"]
        for hour_us, metadata in figures_by_hour(instance, asset).items()
        if metadata.get("dagster/row_count")
    }
    stored = rows_by_hour(connection, asset.replace("/", "."), clock)
    assert shown == stored
    assert len(set(stored.values())) > 1, "hours differ, so a flat line would be wrong"


@pytest.mark.parametrize(
    ("asset", "figure"),
    [
        ("evaluation/progressive_metrics", "click, online: log loss"),
        ("evaluation/progressive_metrics", "purchase, online: log loss"),
        ("evaluation/progressive_metrics", "click, batch: normalized entropy"),
        ("examples/labelled_impressions", "click: rate of positives"),
        ("learners/online_model", "click: weights that are not zero"),
        ("learners/grid_predictions", "purchase: mean probability"),
        ("features/rates", "impressions counted"),
    ],
)
def test_figures_differ_by_hour_so_that_they_plot_over_time(
    instance: dg.DagsterInstance, asset: str, figure: str
):
    values = [
        metadata[figure]
        for metadata in figures_by_hour(instance, asset).values()
        if figure in metadata
    ]
    assert len(values) > 20
    assert all(isinstance(value, float | int) and math.isfinite(value) for value in values)
    assert len(set(values)) > 0.8 * len(values)


def test_the_progressive_log_loss_in_the_event_log_is_the_one_in_the_warehouse(
    instance: dg.DagsterInstance, connection: duckdb.DuckDBPyConnection
):
    stored = dict(
        connection.execute(
            "SELECT hour_us, log_loss FROM evaluation.progressive_metrics "
            "WHERE goal = 'click' AND expert = 'online' AND log_loss IS NOT NULL"
        ).fetchall()
    )
    shown = {
        hour_us: metadata["click, online: log loss"]
        for hour_us, metadata in figures_by_hour(instance, "evaluation/progressive_metrics").items()
        if "click, online: log loss" in metadata
    }
    assert shown == pytest.approx(stored, rel=1e-5)


def test_column_lineage_names_the_events_that_a_label_rests_on(instance: dg.DagsterInstance):
    lineage = latest(instance, "examples/labelled_impressions")["dagster/column_lineage"]
    assert isinstance(lineage, dg.TableColumnLineage)
    from_events = {
        (dep.asset_key.to_user_string(), dep.column_name)
        for deps in lineage.deps_by_column.values()
        for dep in deps
    }
    assert ("events/impressions", "impression_id") in from_events
    assert any(asset == "events/engagements" for asset, _ in from_events)


@pytest.mark.parametrize("name", ["training_examples", "labelled_impressions", "label_states"])
def test_each_table_of_the_label_join_shows_where_its_columns_come_from(
    instance: dg.DagsterInstance, connection: duckdb.DuckDBPyConnection, name: str
):
    lineage = latest(instance, f"examples/{name}")["dagster/column_lineage"]
    columns = [
        column
        for (column,) in connection.execute(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_catalog = 'warehouse' AND table_schema = 'examples' "
            "AND table_name = $name",
            {"name": name},
        ).fetchall()
    ]
    assert columns
    assert set(columns) == set(lineage.deps_by_column)
    assert sum(bool(deps) for deps in lineage.deps_by_column.values()) >= len(columns) / 2


def test_every_impression_was_scored_for_every_goal_by_the_online_expert(
    market: Market, connection: duckdb.DuckDBPyConnection
):
    goals = len(market.deployment.dataset.goals)
    impressions, scored, pairs = connection.execute(
        "SELECT (SELECT count(*) FROM events.impressions), count(*), "
        "count(DISTINCT (goal, impression_id)) "
        "FROM learners.predictions WHERE expert = 'online' AND impression_id IN "
        "(SELECT impression_id FROM events.impressions)"
    ).fetchall()[0]
    assert impressions > 10_000
    assert scored == pairs == goals * impressions


def test_an_impression_was_scored_by_the_model_of_an_earlier_hour(
    market: Market, connection: duckdb.DuckDBPyConnection
):
    """The parent of the hour's checkpoint, which the hour before left, stands with each score."""
    found = connection.execute(
        f"SELECT DISTINCT goal, serving_us - serving_us % {HOUR_US}, model_hash "
        "FROM learners.online_predictions ORDER BY ALL"
    ).fetchall()
    assert len(found) > 2 * 40
    checkpoints, compared = market.deployment.checkpoints, 0
    for goal, hour_us, model_hash in found:
        before = pointer(goal, hour_us - HOUR_US)
        if is_pointed(checkpoints, before):
            assert model_hash == resolve(checkpoints, before), (goal, hour_key(hour_us))
            compared += 1
        else:  # not kept any more, or the log's first hour
            assert (model_hash == "") == (hour_us == market.start_us), (goal, hour_key(hour_us))
    assert compared > 20


def test_every_matured_anchor_is_labelled_once(connection: duckdb.DuckDBPyConnection):
    """The market has ended and its last label matured, so every anchor has its label."""
    labels, impressions, labelled = connection.execute(
        "SELECT count(*), (SELECT count(*) FROM events.impressions), count(DISTINCT impression_id) "
        "FROM examples.labelled_impressions WHERE goal = 'click'"
    ).fetchall()[0]
    assert labels == labelled == impressions
    repeated = connection.execute(
        "SELECT count(*) FROM (SELECT impression_id FROM examples.labelled_impressions "
        "WHERE goal = 'purchase' GROUP BY ALL HAVING count(*) > 1)"
    ).fetchall()[0][0]
    assert repeated == 0
    # A click is an anchor of purchase when it counted, whether or not it was retracted later.
    missing = connection.execute(
        "SELECT count(*) FROM examples.labelled_impressions AS clicks "
        "WHERE clicks.goal = 'click' AND clicks.label = 1 AND NOT EXISTS ("
        "SELECT 1 FROM examples.labelled_impressions AS purchases "
        "WHERE purchases.goal = 'purchase' "
        "AND purchases.impression_id = clicks.impression_id)"
    ).fetchall()[0][0]
    assert missing == 0


def test_the_bundle_serves_and_was_promoted_twice(market: Market):
    deployment = market.deployment
    pointer_now = read_pointer(deployment.serving, CURRENT)
    moves = history(deployment.serving)
    assert [move.action for move in moves] == ["promote", "promote"]
    assert pointer_now is not None
    assert pointer_now.digest == moves[-1].digest
    assert pointer_now.digest != moves[0].digest
    assert {goal.goal for goal in open_bundle(deployment.bundles, pointer_now.digest).goals} == {
        "click",
        "purchase",
    }


def test_the_second_day_was_served_by_the_first_bundle(
    market: Market, connection: duckdb.DuckDBPyConnection
):
    first = history(market.deployment.serving)[0].digest
    bundles = connection.execute(
        "SELECT bundle_hash, count(*), min(occurred_us) FROM events.decisions GROUP BY ALL"
    ).fetchall()
    assert [bundle for bundle, _, _ in bundles] == [first]
    assert bundles[0][1] > 5_000
    assert bundles[0][2] >= market.start_us + DAY_US


def evaluations_of(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey
) -> list[dg.AssetCheckEvaluation]:
    """Return what a check found, newest first."""
    history = instance.event_log_storage.get_asset_check_execution_history(check, limit=10)
    found = []
    for record in history:
        event = record.event.dagster_event if record.event is not None else None
        assert event is not None
        found.append(event.asset_check_evaluation_data)
    return found


def test_every_check_was_evaluated_in_both_runs_and_passed_in_the_last(
    instance: dg.DagsterInstance, definitions: dg.Definitions
):
    found = {
        key.name: evaluations_of(instance, key)
        for key in definitions.resolve_asset_graph().asset_check_keys
        if key.asset_key.to_user_string() not in BESIDE_THE_PATH
    }
    assert len(found) >= 20
    assert {name for name, evaluations in found.items() if len(evaluations) != 2} == set()
    newest = {name: evaluations[0] for name, evaluations in found.items()}
    assert {name: said.description for name, said in newest.items() if not said.passed} == {}


def test_without_decisions_production_parity_is_not_passed(
    instance: dg.DagsterInstance, definitions: dg.Definitions
):
    """After the first day nobody had served anything: that was said, and not counted as passed."""
    checks = [
        key
        for key in definitions.resolve_asset_graph().asset_check_keys
        if key.asset_key.path == ["monitoring", "parity"]
    ]
    assert len(checks) == 2
    for check in checks:
        newest, first = evaluations_of(instance, check)
        assert (first.passed, first.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert first.description == "no decisions yet"
        assert newest.passed


def test_pictures_and_drift_report_are_files_named_in_the_metadata(
    market: Market, instance: dg.DagsterInstance
):
    reports = market.deployment.reports
    assert {"metrics.png", "calibration_click.png", "drift.html", "drift.png"} <= {
        path.name for path in reports.iterdir()
    }
    assert latest(instance, "evaluation/report")["folder of pictures"] == str(reports)
    drift = latest(instance, "monitoring/drift")
    assert drift["Evidently's report"] == str(reports / "drift.html")
    assert drift["the picture as a file"] == str(reports / "drift.png")
