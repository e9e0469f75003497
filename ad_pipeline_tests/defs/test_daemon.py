"""The real daemon on a market whose log files arrive while it runs, and no run started by hand.

What a tick decides is tested without a daemon in ``test_sensors.py``. Here the whole chain of
reactions runs: ledger, main job, drift verdict, retrain, and what automation refreshes after it.
Everything is read from the event log and the warehouse; nothing is mocked.
"""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US, hour_key
from ad_pipeline.monitoring.drift.drift_of_log import DRAWN
from ad_pipeline.serving.pointers import CURRENT, read_pointer
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.warehouse import Warehouse, rows_of
from ad_pipeline_tests.defs.live import started
from ad_pipeline_tests.defs.markets import TINY, Market, make_market

PATIENCE_SECONDS = 600.0
"""For one reaction: ticks are 30 seconds apart, and a run takes most of a minute."""

ALARM = {"drift": {"psi_threshold": 1.5}, "batch": {"retrain_every_hours": 1_000}}
"""Between what young ads do to a market of two days (1.1) and the planted publishers (2.2). After
the first model nothing but drift asks for another."""

REFRESHED = (
    ("serving", "bundle"),
    ("monitoring", "candidate_replay"),
    ("serving", "current"),
)
"""What lies behind a retrained model, in order."""


@dataclass(frozen=True)
class Daemon:
    """A market with a live daemon.

    Attributes
    ----------
    market : Market
    instance : DagsterInstance
        Where the daemon writes its event log.
    process : Popen
    log : Path
        What the daemon printed.
    """

    market: Market
    instance: dg.DagsterInstance
    process: subprocess.Popen[bytes]
    log: Path

    def runs(self, job: str) -> list[dg.DagsterRun]:
        """Return the runs of a job, the oldest first."""
        return list(reversed(self.instance.get_runs(dg.RunsFilter(job_name=job))))

    def succeeded(self, job: str, number: int) -> bool:
        """Return whether a job has so many runs behind it, all of them well."""
        runs = self.runs(job)
        failed = [run for run in runs if run.status is dg.DagsterRunStatus.FAILURE]
        assert not failed, f"{job} failed:\n{self.failure(failed[0])}"
        return sum(run.status is dg.DagsterRunStatus.SUCCESS for run in runs) >= number

    def failure(self, run: dg.DagsterRun) -> str:
        """Return what went wrong in a run."""
        records = self.instance.all_logs(
            run.run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE}
        )
        return "\n".join(f"{record.dagster_event}" for record in records)[-4000:]

    def newest(self, key: tuple[str, ...]) -> dg.EventLogRecord | None:
        """Return the newest materialization of an asset, of whatever partition."""
        records = self.instance.fetch_materializations(dg.AssetKey(list(key)), limit=1).records
        return records[0] if records else None

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return a query's rows from the market's warehouse."""
        with Warehouse(self.market.deployment.warehouse).reader() as connection:
            return rows_of(connection, query).to_pylist()

    def waits_for(self, what: str, came: Callable[[], bool]) -> None:
        """Wait until something came about.

        Raises
        ------
        AssertionError
            After :data:`PATIENCE_SECONDS`, or when the daemon ended; with the end of its log.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not came():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                told = "\n".join(self.log.read_text().splitlines()[-60:])
                why = "the daemon ended" if ended else f"{PATIENCE_SECONDS:g} s went by"
                raise AssertionError(f"{why} before {what}:\n{told}")
            time.sleep(1.0)

    def is_idle(self) -> bool:
        """Return whether no run waits or works."""
        return not self.instance.get_runs(
            dg.RunsFilter(
                statuses=[
                    dg.DagsterRunStatus.QUEUED,
                    dg.DagsterRunStatus.NOT_STARTED,
                    dg.DagsterRunStatus.STARTING,
                    dg.DagsterRunStatus.STARTED,
                ]
            )
        )


@contextmanager
def daemon_of(market: Market, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """Run ``dagster-daemon`` for a market; it and all that it started are gone afterwards."""
    environment = market.environment()
    market.deployment.logs.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("DAGSTER_HOME", environment["DAGSTER_HOME"])
    log = market.root / "daemon.log"
    # The instance first: two processes that make its databases at the same time break them.
    with (
        dg.DagsterInstance.get() as instance,
        started(["dagster._daemon", "run"], environment, log) as process,
    ):
        yield Daemon(market, instance, process, log)


def deliver(market: Market, staged: Path, name: str) -> None:
    """Put one day's files into the log folder, impressions last: they move the watermark."""
    for path in sorted(
        staged.glob(f"*/{name}"), key=lambda path: path.parent.name == "impressions"
    ):
        arrived = market.deployment.logs / path.relative_to(staged)
        arrived.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, arrived)


def learns(daemon: Daemon, staged: Path, day: int) -> None:
    """Deliver a day, the last one with the labels that come after it, and wait until it is learnt.

    The daemon is left with the chain of reactions that follows.
    """
    if day == daemon.market.spec.days - 1:
        deliver(daemon.market, staged, "tail.parquet")
    deliver(daemon.market, staged, f"day={day}.parquet")
    daemon.waits_for(f"day {day} was learnt", lambda: daemon.succeeded("main", day + 1))


def staged_market(folder: Path, *, days: int, drift: bool) -> tuple[Market, Path]:
    """Return a market without logs, and the folder in which its days of logs lie ready."""
    spec = replace(TINY, days=days, drift=drift, drift_day=1)
    market = make_market(folder / "market", spec, ALARM)
    simulate_days(spec, folder / "staged", folder / "truth", range(days))
    return market, folder / "staged"


def check_that_the_days_were_learnt(daemon: Daemon) -> None:
    """Every hour went through, each file was entered once, and each day was one range."""
    market = daemon.market
    spans = [
        (
            run.tags["dagster/asset_partition_range_start"],
            run.tags["dagster/asset_partition_range_end"],
        )
        for run in daemon.runs("main")
    ]
    starts = [market.start_us + day * DAY_US for day in range(market.spec.days)]
    assert spans == [
        (hour_key(start_us), hour_key(end_us - HOUR_US))
        for start_us, end_us in zip(starts, [*starts[1:], market.end_us], strict=True)
    ]
    by_sensor = {run.tags.get("dagster/sensor_name") for run in daemon.runs("main")}
    assert by_sensor == {"closed_hours"}
    assert {run.tags.get("dagster/sensor_name") for run in daemon.runs("ledger")} == {
        "new_log_files"
    }
    files = len(list(market.deployment.logs.glob("*/*.parquet")))
    assert daemon.rows("SELECT count(*) AS n FROM events.files") == [{"n": files}]
    hours = (market.end_us - market.start_us) // HOUR_US
    assert daemon.rows("SELECT count(DISTINCT hour_us) AS n FROM events.accounting") == [
        {"n": hours}
    ]
    learnt = daemon.instance.get_materialized_partitions(dg.AssetKey(["learners", "online_model"]))
    assert len(learnt) == hours


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_drift_in_the_log_files_leads_untouched_to_a_report_a_retrain_and_a_promoted_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market, staged = staged_market(tmp_path, days=3, drift=True)
    began = time.time()
    with daemon_of(market, monkeypatch) as daemon:
        learns(daemon, staged, 0)
        learns(daemon, staged, 1)
        daemon.waits_for("drift led to a retrain", lambda: daemon.succeeded("retrain", 1))
        (run,) = daemon.runs("retrain")
        assert run.tags["dagster/sensor_name"] == "drift_actions"
        assert "the inputs shifted" in run.tags["ad_pipeline/cause"]
        last_us = market.start_us + 2 * DAY_US - HOUR_US
        assert run.tags["dagster/partition"] == hour_key(last_us)
        (retrain,) = daemon.rows("SELECT * FROM learners.retrains")
        assert (retrain["hour_us"], retrain["cause"]) == (last_us, "drift")
        assert list(json.loads(retrain["evidence"])[0]["evidence"]["columns"]) == ["publisher_id"]
        assert (market.deployment.reports / DRAWN).stat().st_mtime > began

        trained = daemon.newest(("learners", "batch_model"))
        assert trained is not None
        assert trained.run_id == run.run_id
        assert trained.asset_materialization is not None
        metadata = trained.asset_materialization.metadata
        assert metadata["click: cause"].value == "drift"
        (model,) = re.findall("click . `([0-9a-f]{64})`", str(metadata["whole digests"].value))

        def refreshed() -> bool:
            found = [daemon.newest(key) for key in REFRESHED]
            return all(
                record is not None and record.storage_id > trained.storage_id for record in found
            )

        daemon.waits_for("automation refreshed what lies behind", refreshed)
        daemon.waits_for("all was quiet", daemon.is_idle)
        order = [record.storage_id for key in REFRESHED if (record := daemon.newest(key))]
        assert order == sorted(order)
        newest = daemon.newest(("serving", "bundle"))
        assert newest is not None
        by_automation = daemon.instance.get_run_by_id(newest.run_id)
        assert by_automation is not None
        assert by_automation.tags["dagster/sensor_name"] == "automation"
        # The verdict was acted on: the ticks that followed asked for nothing more.
        assert len(daemon.runs("retrain")) == 1
        # Nothing has matured since, and what was not shown to be sound does not serve.
        assert model not in served_manifest(market)

        learns(daemon, staged, 2)
        check_that_the_days_were_learnt(daemon)
        assert model in served_manifest(market)


def served_manifest(market: Market) -> str:
    """Return the manifest of the bundle that the pointer names."""
    deployment = market.deployment
    current = read_pointer(deployment.serving, CURRENT)
    assert current is not None
    return (deployment.bundles / "objects" / current.digest / "manifest.json").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_without_drift_the_same_days_start_no_retrain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    market, staged = staged_market(tmp_path, days=2, drift=False)
    with daemon_of(market, monkeypatch) as daemon:
        learns(daemon, staged, 0)
        learns(daemon, staged, 1)
        check_that_the_days_were_learnt(daemon)
        daemon.waits_for(
            "a verdict",
            lambda: daemon.rows("SELECT count(*) AS n FROM monitoring.drift")[0]["n"] > 0,
        )
        asked = time.time()

        def the_sensor_has_looked() -> bool:
            ticks = [
                tick
                for state in daemon.instance.all_instigator_state()
                if state.instigator_name == "drift_actions"
                for tick in daemon.instance.get_ticks(
                    state.instigator_origin_id, state.selector_id, limit=1
                )
            ]
            return (
                bool(ticks) and ticks[0].timestamp > asked and "no drift" in str(ticks[0].tick_data)
            )

        daemon.waits_for("the drift sensor looked at the verdict", the_sensor_has_looked)
        assert daemon.runs("retrain") == []
        assert daemon.rows("SELECT count(*) AS n FROM learners.retrains") == [{"n": 0}]
