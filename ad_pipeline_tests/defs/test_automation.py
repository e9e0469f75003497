"""The named condition and the hourly schedule, evaluated as the daemon does, without a daemon.

The condition is tested on a small graph of the same shape (an hourly asset with a blocking check,
above an unpartitioned one), so that every case is a few events; then on the real graph.
"""

import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US, datetime_of, hour_key
from ad_pipeline.defs.automation import refresh_after_upstream, refresh_to_tell
from ad_pipeline_tests.defs.markets import TINY, Market

HOURLY = dg.HourlyPartitionsDefinition(
    "2026-03-02-00:00", end_date="2026-03-03-00:00", timezone="UTC"
)
FIRST, SECOND = "2026-03-02-00:00", "2026-03-02-01:00"


class Sound(dg.Config):
    """Whether the upstream asset of a run passes its check."""

    passes: bool = True


@dg.asset(partitions_def=HOURLY, backfill_policy=dg.BackfillPolicy.single_run())
def labels() -> None: ...


@dg.asset_check(asset=labels, blocking=True)
def labels_are_sound(config: Sound) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=config.passes)


@dg.asset(deps=[labels], automation_condition=refresh_after_upstream())
def mixture() -> None: ...


@dg.asset(deps=[labels], automation_condition=dg.AutomationCondition.eager())
def eager_mixture() -> None: ...


@dg.asset(deps=[labels], automation_condition=refresh_to_tell())
def notices() -> None: ...


SMALL = dg.Definitions(
    assets=[labels, mixture], asset_checks=[labels_are_sound], executor=dg.in_process_executor
)


class Daemon:
    """Evaluates conditions tick by tick, as the daemon would, and makes runs in between."""

    def __init__(self, definitions: dg.Definitions, instance: dg.DagsterInstance) -> None:
        self.definitions = definitions
        self.instance = instance
        self.cursor = None
        self.tick()

    def tick(self) -> set[str]:
        """Return the assets that are asked for now."""
        result = dg.evaluate_automation_conditions(
            self.definitions,
            instance=self.instance,
            cursor=self.cursor,
            evaluation_time=datetime(2026, 4, 1, tzinfo=UTC),
        )
        self.cursor = result.cursor
        return {found.key.to_user_string() for found in result.results if found.true_subset.size}

    def run(self, assets: Iterable[dg.AssetsDefinition], hour: str, passes: bool = True) -> None:
        """Materialize assets and evaluate the check, in one run."""
        config = dg.RunConfig({"labels_labels_are_sound": Sound(passes=passes)})
        dg.materialize(
            [*assets, labels_are_sound],
            instance=self.instance,
            partition_key=hour,
            run_config=config if labels in assets else None,
            selection=[asset.key for asset in assets],
            raise_on_error=False,
        )


@pytest.fixture
def daemon() -> Daemon:
    return Daemon(SMALL, dg.DagsterInstance.ephemeral())


def test_nothing_is_asked_for_before_anything_happened(daemon: Daemon):
    assert daemon.tick() == set()


def test_an_update_in_another_run_asks_for_a_refresh_once(daemon: Daemon):
    daemon.run([labels], FIRST)
    assert daemon.tick() == {"mixture"}
    assert daemon.tick() == set()
    daemon.run([labels], SECOND)
    assert daemon.tick() == {"mixture"}


def test_hours_yet_to_come_do_not_hold_a_refresh_back(daemon: Daemon):
    """Eager would wait for the 23 hours that are missing; an open log always has some."""
    eager = Daemon(
        dg.Definitions(assets=[labels, eager_mixture], asset_checks=[labels_are_sound]),
        dg.DagsterInstance.ephemeral(),
    )
    eager.run([labels], FIRST)
    assert eager.tick() == set()
    daemon.run([labels], FIRST)
    assert daemon.tick() == {"mixture"}


def test_an_update_in_the_same_run_asks_for_nothing(daemon: Daemon):
    daemon.run([labels, mixture], FIRST)
    assert daemon.tick() == set()


def test_a_failed_blocking_check_holds_the_refresh_back_until_it_passes(daemon: Daemon):
    daemon.run([labels], FIRST, passes=False)
    assert daemon.tick() == set()
    daemon.run([labels], FIRST, passes=True)
    assert daemon.tick() == {"mixture"}


def test_what_tells_people_refreshes_once_and_also_behind_a_failed_blocking_check():
    """The negative control is the test above: there the same failure holds the mixture back."""
    telling = Daemon(
        dg.Definitions(assets=[labels, notices], asset_checks=[labels_are_sound]),
        dg.DagsterInstance.ephemeral(),
    )
    telling.run([labels], FIRST, passes=False)
    assert telling.tick() == {"notices"}
    assert telling.tick() == set()
    telling.run([labels, notices], FIRST)
    assert telling.tick() == set()


@pytest.mark.parametrize("found", ["drift_verdicts", "parity_findings", "label_quality"])
def test_what_watching_finds_refreshes_the_alerts_and_nothing_that_serves(
    found: str, definitions: dg.Definitions, market: Market, tmp_path: Path
):
    home = shutil.copytree(market.dagster_home, tmp_path / "dagster_home")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        real = Daemon(definitions, instance)
        key = dg.AssetKey(["monitoring", found])
        hour = hour_key(market.end_us - HOUR_US)
        is_hourly = definitions.resolve_asset_graph().get(key).is_partitioned
        instance.report_runless_asset_event(
            dg.AssetMaterialization(key, partition=hour if is_hourly else None)
        )
        assert real.tick() == {"monitoring/alerts"}
        assert real.tick() == set()


def test_a_retrain_asks_for_a_new_bundle_its_replay_and_its_promotion_once(
    definitions: dg.Definitions, market: Market, tmp_path: Path
):
    """On the real graph, after a whole run, for which nothing is due: all in one run, in order."""
    home = shutil.copytree(market.dagster_home, tmp_path / "dagster_home")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        real = Daemon(definitions, instance)
        assert real.tick() == set()
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                ["learners", "batch_model"], partition=hour_key(market.end_us - HOUR_US)
            )
        )
        assert real.tick() == {
            "serving/bundle",
            "monitoring/candidate_replay",
            "serving/current",
            "monitoring/production",
            "monitoring/alerts",
        }
        assert real.tick() == set()


def ticked(definitions: dg.Definitions, scheduled: datetime) -> list[dg.RunRequest]:
    schedule = definitions.get_repository_def().get_schedule_def("hourly")
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance, scheduled_execution_time=scheduled)
        return list(schedule.evaluate_tick(context).run_requests or ())


def test_the_hourly_schedule_runs_the_hour_that_closed(definitions: dg.Definitions):
    scheduled = datetime_of(TINY.start_us + 5 * HOUR_US).replace(minute=10)
    asked = [request.partition_key for request in ticked(definitions, scheduled)]
    assert asked == [hour_key(TINY.start_us + 4 * HOUR_US)]


def test_after_the_end_of_a_log_the_schedule_goes_on_naming_its_last_hour_under_one_run_key(
    definitions: dg.Definitions,
):
    """The daemon starts one run a run key, so the last hour is run once."""
    end_us = TINY.start_us + 2 * DAY_US + 9 * HOUR_US
    keys = {
        request.run_key
        for hours in (0, 1, 24)
        for request in ticked(definitions, datetime_of(end_us + hours * HOUR_US))
    }
    assert keys == {hour_key(end_us - HOUR_US)}
