"""A market small enough to run the whole path in half a minute, and the commands to run it.

Everything goes through ``dagster asset materialize`` in another process, as for any user: the
partitions of a dataset are read when the definitions are imported, so one process serves one
dataset. What the runs must leave behind is for the tests to say.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ad_pipeline.clocks import DAY_US, HOUR_US, hour_key, timestamp
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.main_job import WHOLE_PATH, dagster_home
from ad_pipeline.simulation.driver import DrivenDay, drive_day
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec

TINY = MarketplaceSpec(
    seed=2,
    days=2,
    impressions_per_day=8_000,
    users=300,
    advertisers=4,
    campaigns=8,
    ads=40,
    publishers=8,
    segments=3,
    click_rate=0.3,
    purchase_rate=0.4,
    purchase_window_us=6 * HOUR_US,
)
"""Two days without drift; rates far above real ones, so that few rows hold enough labels."""

SETTINGS: dict[str, Any] = {
    "online": {"bits": 14, "micro_batch_minutes": 20},
    "batch": {
        "retrain_every_hours": 12,
        "minimum_positives": 30,
        "rounds": 20,
        "minimum_leaf_rows": 20,
    },
    # Two hundred purchases are too few to calibrate on: so few are left to it that it stays out.
    "ensemble": {"fit_share": 0.7, "calibration_share": 0.05},
    "evaluation": {"replicates": 50},
    "promotion": {"margin": 0.5},
    "drift": {"psi_threshold": 5.0},
    "delay_report": {"anchors": 2_000, "worlds": 2},
}
"""What a small market needs to get through every branch: a batch model, a fit, a promotion.

Its ads are few and age fast, which is no drift worth an alarm here."""

MODULE = "ad_pipeline.definitions"


@dataclass(frozen=True)
class Market:
    """One deployment of a simulated exchange.

    Attributes
    ----------
    spec : MarketplaceSpec
    dataset_file : Path
    root : Path
        ``AD_PIPELINE_HOME``.
    """

    spec: MarketplaceSpec
    dataset_file: Path
    root: Path

    @property
    def deployment(self) -> Deployment:
        """The deployment, its dataset file read anew."""
        dataset = load_dataset(self.dataset_file)
        return Deployment(dataset, (self.root / dataset.name).resolve())

    @property
    def dagster_home(self) -> Path:
        """The deployment's Dagster instance."""
        return self.deployment.home / "dagster_home"

    @property
    def start_us(self) -> int:
        """Start of the first log hour."""
        return self.spec.start_us

    @property
    def end_us(self) -> int:
        """End of the hour in which the last label matures."""
        end_us = self.deployment.dataset.last_hour_end_us
        if end_us is None:
            raise ValueError("a market's log is closed")
        return end_us

    def environment(self) -> dict[str, str]:
        """Return the environment of every process that works on this market."""
        return os.environ | {
            "AD_PIPELINE_DATASET": str(self.dataset_file),
            "AD_PIPELINE_HOME": str(self.root),
            "DAGSTER_HOME": str(dagster_home(self.deployment)),
            "PYTHONWARNINGS": "ignore",
        }

    def copied_to(self, root: Path, *without: str) -> "Market":
        """Return the same market in another home, with all that it holds so far but some names."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns(*without))
        return Market(self.spec, self.dataset_file, root)


def make_market(
    folder: Path,
    spec: MarketplaceSpec = TINY,
    settings: Mapping[str, Any] | None = None,
    purchase_observation: str | None = None,
) -> Market:
    """Write the dataset file of a market and return the market, with no log yet.

    Parameters
    ----------
    folder : Path
        Gets ``dataset.yaml`` and ``home``.
    spec : MarketplaceSpec
    settings : mapping, optional
        Laid over :data:`SETTINGS`, group by group.
    purchase_observation : str, optional
        As in ``1h``; an hour less than the window if left out.
    """
    written = yaml.safe_load((DATA_FOLDER / "marketplace" / "dataset.yaml").read_text())
    end_us = spec.start_us + spec.days * DAY_US
    written |= {"name": "market", "start": timestamp(spec.start_us), "end": timestamp(end_us)}
    # Most purchases come before a negative is learnt: two days are too short to unlearn the others.
    hours = spec.purchase_window_us // HOUR_US
    written["goals"]["purchase"] |= {
        "window": f"{hours}h",
        "observation": purchase_observation or f"{hours - 1}h",
    }
    laid_over = settings or {}
    written["settings"] = {
        group: {**SETTINGS.get(group, {}), **laid_over.get(group, {})}
        for group in [*SETTINGS, *laid_over]
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return Market(spec, path, folder / "home")


def write_days(market: Market, days: range) -> None:
    """Write some days of the market's logs, and their truth."""
    deployment = market.deployment
    simulate_days(market.spec, deployment.logs, deployment.truth, days)


def drive(market: Market, day: int) -> DrivenDay:
    """Serve a day through ``serving/current`` and write its logs, as a bidder would."""
    deployment = market.deployment
    return drive_day(market.spec, day, deployment.serving, deployment.logs, deployment.truth)


def run(
    market: Market,
    start_us: int,
    end_us: int,
    select: str = WHOLE_PATH,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Materialize assets for the log hours ``[start_us, end_us)``.

    Parameters
    ----------
    market : Market
    start_us, end_us : int
        Starts of hours, microseconds.
    select : str
        Dagster's asset selection.
    check : bool
        Whether a run that fails is an error here.

    Raises
    ------
    AssertionError
        If the command failed and ``check`` is set; the message holds the end of its log.
    """
    return in_a_process(market, materialize(start_us, end_us, select), check=check)


def materialize(start_us: int, end_us: int, select: str = WHOLE_PATH) -> list[str]:
    """Return what follows ``python -m`` to materialize assets for the log hours of a range."""
    span = f"{hour_key(start_us)}...{hour_key(end_us - HOUR_US)}"
    return [
        "dagster", "asset", "materialize", "-m", MODULE, "--select", select,
        "--partition-range", span,
    ]  # fmt: skip


def in_a_process(
    market: Market, command: Sequence[str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m ...`` in the market's environment; stdout holds both streams.

    Raises
    ------
    AssertionError
        If it failed and ``check`` is set; the message holds the end of its log.
    """
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        env=market.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and ran.returncode != 0:
        end = "\n".join(ran.stdout.splitlines()[-60:])
        raise AssertionError(f"{' '.join(command)} ended with {ran.returncode}:\n{end}")
    return ran
