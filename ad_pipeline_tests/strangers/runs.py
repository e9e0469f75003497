"""The shipped dataset files, made small by a stated edit, and the one command that runs them.

What a run must leave behind is for the tests to say.
"""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ad_pipeline.clocks import HOUR_US, microseconds, timestamp
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline_tests.strangers.logs import Planted, write_avazu, write_criteo, write_ipinyou

SMALL = """
settings: # a small log: few labels, so smaller steps between retrains and fewer rows a leaf
  online: {bits: 16}
  batch: {retrain_every_hours: 12, minimum_positives: 50, rounds: 30, minimum_leaf_rows: 20}
  evaluation: {replicates: 50}
  promotion: {margin: 0.5}
  drift: {psi_threshold: 5.0}
"""


@dataclass(frozen=True)
class Stranger:
    """A log of another shape, ready to run.

    Attributes
    ----------
    dataset_file : Path
    log : Path
        Its only log file.
    root : Path
        ``AD_PIPELINE_HOME``.
    planted : Planted
    goal : str
    """

    dataset_file: Path
    log: Path
    root: Path
    planted: Planted
    goal: str

    @property
    def deployment(self) -> Deployment:
        """The deployment, its dataset file read anew."""
        dataset = load_dataset(self.dataset_file)
        return Deployment(dataset, (self.root / dataset.name).resolve())


def criteo(folder: Path, *, rows: int = 12_000, hours: int = 36) -> Stranger:
    """Write a small conversion log and its dataset file: another end and a window of 6 hours."""
    path = shrunk(
        "criteo_conversions",
        folder,
        ("end: 2014-03-02T00:00Z", f"end: {_moment('2014-01-01', hours)}"),
        ("window: 30d", "window: 6h"),
        ("lateness: 0h", "lateness: 1h"),  # conversions just outside the window are seen
    )
    log = folder / "data.txt"
    planted = write_criteo(log, rows=rows, hours=hours, window_hours=6)
    return Stranger(path, log, folder / "home", planted, "conversion")


def avazu(folder: Path, *, rows: int = 12_000, hours: int = 36) -> Stranger:
    """Write a small display log and its dataset file: another end."""
    path = shrunk(
        "avazu_clicks",
        folder,
        ("end: 2014-10-31T00:00Z", f"end: {_moment('2014-10-21', hours)}"),
    )
    start_us = load_dataset(path).start_us
    planted = write_avazu(folder / "train.gz", rows=rows, start_us=start_us, hours=hours)
    return Stranger(path, folder / "train.gz", folder / "home", planted, "click")


def ipinyou(folder: Path, *, rows: int = 12_000, hours: int = 36) -> Stranger:
    """Write a small bid log and its dataset file: another end."""
    path = shrunk(
        "ipinyou_bids",
        folder,
        ("end: 2013-06-15T16:00Z", f"end: {_moment('2013-06-05', hours + 16)}"),
    )
    log = folder / "1458" / "train.log.txt"
    planted = write_ipinyou(log, rows=rows, start_us=load_dataset(path).start_us, hours=hours)
    return Stranger(path, log, folder / "home", planted, "click")


def shrunk(name: str, folder: Path, *edits: tuple[str, str]) -> Path:
    """Copy a shipped dataset file with some texts replaced, each of which it holds exactly once."""
    text = (DATA_FOLDER / name / "dataset.yaml").read_text()
    for shipped, small in edits:
        if text.count(shipped) != 1:
            raise ValueError(f"{name} holds {shipped!r} {text.count(shipped)} times, not once")
        text = text.replace(shipped, small)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.yaml"
    path.write_text(text + SMALL)
    return path


def command(
    root: Path, arguments: Sequence[str], *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``ad_pipeline ...`` in a process of its own, as a user would; stdout has both streams.

    Raises
    ------
    AssertionError
        If it failed and ``check`` is set; the message holds the end of what it said.
    """
    ran = subprocess.run(
        [sys.executable, "-m", "ad_pipeline.cli", *arguments],
        env=os.environ | {"AD_PIPELINE_HOME": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and ran.returncode != 0:
        end = "\n".join(ran.stdout.splitlines()[-60:])
        raise AssertionError(f"{' '.join(arguments)} ended with {ran.returncode}:\n{end}")
    return ran


def checks_not_passed(said: str) -> set[str]:
    """Return the names of the checks that a run says did not pass.

    Raises
    ------
    AssertionError
        If it evaluated fewer than 20, or its count is not that of the names.
    """
    counted = re.search(r"checks: (\d+) of (\d+) passed", said)
    failed = set(re.findall(r"not passed: [\w/]+: (\w+):", said))
    if counted is None or int(counted[2]) < 20 or int(counted[2]) - int(counted[1]) != len(failed):
        raise AssertionError(f"{counted and counted[0]}, not passed: {sorted(failed)}")
    return failed


def _moment(day: str, hours: int) -> str:
    """Return the moment some hours after a day began, as a dataset file writes it."""
    start_us = microseconds(datetime.fromisoformat(f"{day}T00:00+00:00"))
    return timestamp(start_us + hours * HOUR_US)
