"""The library calls that the benchmarks and studies run are the main job that Dagster runs."""

import shutil
from pathlib import Path

import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.datasets import Deployment
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.left_behind import differences, left_behind
from ad_pipeline_tests.defs.markets import Market, drive, make_market, run, write_days
from benchmarks.library_path import finish, run_hours


def fill(deployment: Deployment, start_us: int, end_us: int) -> list[str]:
    """Run the whole path and return the steps that it told of."""
    steps: list[str] = []
    run_hours(deployment, start_us, end_us, steps.append)
    finish(deployment, steps.append, continued_from_us=start_us - HOUR_US)
    return steps


def copy_logs(source: Deployment, target: Deployment) -> None:
    """Copy what a driver and its scorer leave: logs, the truth, the scorer's reports."""
    for name in ("logs", "truth", "serving/scorers"):
        if (source.home / name).exists():
            shutil.copytree(source.home / name, target.home / name, dirs_exist_ok=True)


ALERTS = "table monitoring.alerts differs"
"""They tell of failed checks, which only Dagster runs."""


@pytest.mark.slow
def test_library_calls_leave_what_a_dagster_run_leaves(tmp_path: Path):
    """Day 0 is learnt and promoted, day 1 served by that bundle, then learnt with its tail."""
    by_dagster = make_market(tmp_path / "market")
    by_calls = Market(by_dagster.spec, by_dagster.dataset_file, tmp_path / "calls")
    served_us = by_dagster.start_us + DAY_US
    write_days(by_dagster, range(1))
    copy_logs(by_dagster.deployment, by_calls.deployment)
    for start_us, end_us in (
        (by_dagster.start_us, served_us),
        (served_us, by_dagster.end_us),
    ):
        run(by_dagster, start_us, end_us)
        steps = fill(by_calls.deployment, start_us, end_us)
        assert {"events", "online_learner", "current"} <= set(steps)
        expected, found = left_behind(by_dagster.deployment), left_behind(by_calls.deployment)
        assert len(expected) > 200
        assert [each for each in differences(expected, found) if each != ALERTS] == []
        if start_us == by_dagster.start_us:
            drive(by_dagster, 1)
            copy_logs(by_dagster.deployment, by_calls.deployment)

    # Planted fault: the comparison sees one label turned round.
    with Warehouse(by_calls.deployment.warehouse).writer() as connection:
        connection.execute(
            "UPDATE examples.labelled_impressions SET label = 1 - label WHERE impression_id = "
            "(SELECT min(impression_id) FROM examples.labelled_impressions) AND goal = 'click'"
        )
    turned = left_behind(by_calls.deployment)
    planted = "table examples.labelled_impressions differs"
    assert [each for each in differences(expected, turned) if each != ALERTS] == [planted]
