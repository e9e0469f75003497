"""The main job on the simulated exchange: learn, promote, serve a day by the bundle, learn that.

Everything real happens in other processes, by the commands that anyone can type: ``dagster asset
materialize`` for ranges of log hours, ``ad_pipeline drive`` for the bidder. This module only
orders them; what is not about the simulated world is in :mod:`ad_pipeline.main_job`.
"""

import sys
from pathlib import Path

from ad_pipeline.clocks import DAY_US
from ad_pipeline.datasets import DATA_FOLDER, Deployment, claim_home, load_dataset
from ad_pipeline.main_job import FinishedRun, Say, materialize, run_command
from ad_pipeline.simulation.driver import drive_day
from ad_pipeline.simulation.marketplace import Progress, simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec


def run_marketplace(home: Path, say: Say, spec: MarketplaceSpec) -> FinishedRun:
    """Simulate, learn, promote, serve the last day through the bundle, learn that, promote again.

    Parameters
    ----------
    home : Path
        Folder of all deployments.
    say : callable
        Receives one line of progress at a time.
    spec : MarketplaceSpec
        The default one but for its seed and drift: the driver's command line carries no more.
    """
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    deployment = Deployment(dataset, (home / dataset.name).resolve())
    served_day = spec.days - 1
    say(f"marketplace: the first {served_day} of {spec.days} days of a simulated exchange")
    simulate(deployment, spec, range(served_day), say)
    learnt_us = spec.start_us + served_day * DAY_US
    materialize(deployment, deployment.dataset.start_us, learnt_us, say)
    say(f"  ad_pipeline drive --day {served_day}: a bidder serves the last day by serving/current")
    run_command(
        deployment,
        [
            *(sys.executable, "-m", "ad_pipeline.cli", "drive"),
            *("--day", str(served_day), "--seed", str(spec.seed)),
            *([] if spec.drift else ["--no-drift"]),
        ],
        say,
    )
    return materialize(deployment, learnt_us, deployment.dataset.last_hour_end_us, say)


def simulate(deployment: Deployment, spec: MarketplaceSpec, days: range, say: Say) -> None:
    """Write days of a simulated exchange's logs, and their truth, into a deployment's folders."""
    claim_home(deployment)
    summary = simulate_days(
        spec, deployment.logs, deployment.truth, days, progress=_hours_told(say)
    )
    say(", ".join(f"{name} {rows:,}" for name, rows in summary.rows.items() if name != "truth"))


def drive(deployment: Deployment, spec: MarketplaceSpec, day: int, say: Say) -> None:
    """Serve one simulated day through ``serving/current`` and write its logs."""
    driven = drive_day(
        spec,
        day,
        deployment.serving,
        deployment.logs,
        deployment.truth,
        progress=_hours_told(say),
    )
    say(f"progress: {driven.decisions:,} decisions, {driven.rows['impressions']:,} impressions")


def _hours_told(say: Say) -> Progress:
    """Say every twelfth hour, and the last."""

    def tell(done: int, total: int) -> None:
        if done % 12 == 0 or done == total:
            say(f"progress: {done} of {total} hours")

    return tell
