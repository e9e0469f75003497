"""The main job as a stranger meets it: both datasets, from log files to a verified bundle.

Everything real happens in other processes, by the commands that anyone can type: ``dagster asset
materialize`` for ranges of log hours, ``ad_pipeline drive`` for the bidder. This module only
orders them, shows their progress and prints what they left in the warehouse.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ad_pipeline.clocks import DAY_US, HOUR_US, hour_key
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.simulation.driver import drive_day
from ad_pipeline.simulation.marketplace import Progress, simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec

Say = Callable[[str], None]

INSTANCE_SETTINGS = Path(__file__).resolve().parents[1] / "defs" / "dagster.yaml"

_STEP_ENDED = re.compile(
    r"STEP_SUCCESS - Finished execution of step \"(?P<step>\w+)\" in (?P<took>.+)\."
)
_SAID = re.compile(r" - INFO - \S+ - \S+ - (?:\w+ - )?(?P<text>.+)$")
_CHECKED = re.compile(
    r"ASSET_CHECK_EVALUATION - Asset check '(?P<check>\w+)' on '(?P<asset>[\w/]+)' "
    r"(?P<verdict>passed|did not pass)\.(?: Description: '(?P<found>.*)')?"
)
_WRONG = re.compile(r"(STEP_FAILURE|RUN_FAILURE|Error: |Traceback|Failed asset check)")


class MainJobFailed(RuntimeError):
    """A command of the main job failed; the message holds the end of its log."""


@dataclass(frozen=True)
class CheckSeen:
    """One asset check as a run reported it.

    Attributes
    ----------
    asset, check : str
    passed : bool
    found : str
        What it found, for people.
    """

    asset: str
    check: str
    passed: bool
    found: str


@dataclass(frozen=True)
class FinishedRun:
    """A dataset that went through the main job.

    Attributes
    ----------
    deployment : Deployment
    checks : tuple of CheckSeen
        Of its last materialization.
    """

    deployment: Deployment
    checks: tuple[CheckSeen, ...]


def run_open_bandit(home: Path, say: Say) -> FinishedRun:
    """Run the whole path on the real log, in one range.

    Parameters
    ----------
    home : Path
        Folder of all deployments.
    say : callable
        Receives one line of progress at a time.
    """
    deployment = _deployment("open_bandit", home)
    dataset = deployment.dataset
    say("open_bandit: a real log of 60,000 impressions, six files, one week")
    checks = _materialize(deployment, dataset.start_us, dataset.last_hour_end_us, say)
    return FinishedRun(deployment, checks)


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
    deployment = _deployment("marketplace", home)
    served_day = spec.days - 1
    say(f"marketplace: the first {served_day} of {spec.days} days of a simulated exchange")
    simulate(deployment, spec, range(served_day), say)
    learnt_us = spec.start_us + served_day * DAY_US
    _materialize(deployment, deployment.dataset.start_us, learnt_us, say)
    say(f"  ad_pipeline drive --day {served_day}: a bidder serves the last day by serving/current")
    _run(
        deployment,
        [
            *(sys.executable, "-m", "ad_pipeline.cli", "drive"),
            *("--day", str(served_day), "--seed", str(spec.seed)),
            *([] if spec.drift else ["--no-drift"]),
        ],
        say,
    )
    checks = _materialize(deployment, learnt_us, deployment.dataset.last_hour_end_us, say)
    return FinishedRun(deployment, checks)


def simulate(deployment: Deployment, spec: MarketplaceSpec, days: range, say: Say) -> None:
    """Write days of a simulated exchange's logs, and their truth, into a deployment's folders."""
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


def _deployment(name: str, home: Path) -> Deployment:
    dataset = load_dataset(DATA_FOLDER / name / "dataset.yaml")
    return Deployment(dataset, (home / name).resolve())


def dagster_home(deployment: Deployment) -> Path:
    """Return a deployment's own Dagster home, with the project's settings of the instance in it."""
    home = deployment.home / "dagster_home"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(INSTANCE_SETTINGS, home / "dagster.yaml")
    return home


def _materialize(
    deployment: Deployment, start_us: int, end_us: int | None, say: Say
) -> tuple[CheckSeen, ...]:
    """Materialize every asset for the log hours ``[start_us, end_us)``, as the CLI does."""
    if end_us is None:
        raise ValueError(f"dataset {deployment.dataset.name} is open: say up to which hour to run")
    span = f"{hour_key(start_us)}...{hour_key(end_us - HOUR_US)}"
    say(f"  dagster asset materialize --select '*' --partition-range {span}")
    command = [
        sys.executable, "-m", "dagster", "asset", "materialize", "--select", "*",
        "-m", "ad_pipeline.definitions", "--partition-range", span,
    ]  # fmt: skip
    return _run(deployment, command, say)


def _run(deployment: Deployment, command: Sequence[str], say: Say) -> tuple[CheckSeen, ...]:
    """Run a command for a deployment and pass on what it says that people want to read.

    Returns
    -------
    tuple of CheckSeen
        In the order in which they were reported.

    Raises
    ------
    MainJobFailed
        If it fails.
    """
    environment = os.environ | {
        "AD_PIPELINE_DATASET": deployment.dataset.name,
        "AD_PIPELINE_HOME": str(deployment.home.parent),
        "DAGSTER_HOME": str(dagster_home(deployment)),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }
    log = deployment.home / "main_job.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    checks: list[CheckSeen] = []
    with (
        log.open("a") as kept,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        for line in process.stdout or ():
            kept.write(line)
            if seen := _CHECKED.search(line):
                passed = seen["verdict"] == "passed"
                checks.append(CheckSeen(seen["asset"], seen["check"], passed, seen["found"] or ""))
            if text := _told(line.rstrip()):
                say(f"  {time.monotonic() - started:6.1f} s  {text}")
    if process.returncode != 0:
        end = "\n".join(log.read_text().splitlines()[-40:])
        raise MainJobFailed(
            f"{' '.join(command)} ended with {process.returncode}; all of it is in {log}:\n{end}"
        )
    return tuple(checks)


def _told(line: str) -> str:
    """Return the part of a log line that is worth a line of progress, or ''."""
    if ended := _STEP_ENDED.search(line):
        return f"{ended['step']} done in {ended['took']}"
    if _WRONG.search(line):
        return line[-300:]
    if said := _SAID.search(line):
        return said["text"]
    return line.removeprefix("progress: ") if line.startswith("progress: ") else ""
