"""The main job as a stranger meets it: every asset for a range of log hours, in one command.

Everything real happens in another process, by the command that anyone can type: ``dagster asset
materialize``. This module only starts it, shows its progress and remembers how far it came. What a
dataset's hours are is for :mod:`ad_pipeline.datasets`; how far its log is read is for the ledger.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.datasets import Deployment

Say = Callable[[str], None]

INSTANCE_SETTINGS = Path(__file__).resolve().parent / "defs" / "dagster.yaml"

WHOLE_PATH = (
    'not (key:"monitoring/delay_benchmark" or key:"monitoring/delay_report" '
    'or key:"monitoring/rollback_drill")'
)
"""Every asset but three that nothing in the path needs: two about late labels, which replay much
(the benchmark takes half an hour, the report half a minute), and the drill, which people ask for.
"""

RECOVERED = 'key:"learners/quarantined_hours"+ or key:"learners/retrains"'
"""What is made again when an online model is taken back."""

_STEP_ENDED = re.compile(
    r"STEP_SUCCESS - Finished execution of step \"(?P<step>\w+)\" in (?P<took>.+)\."
)
_SAID = re.compile(r" - INFO - \S+ - \S+ - (?:\w+ - )?(?P<text>.+)$")
_CHECKED = re.compile(
    r"ASSET_CHECK_EVALUATION - Asset check '(?P<check>\w+)' on '(?P<asset>[\w/]+)' "
    r"(?P<verdict>passed|did not pass)\.(?: Description: '(?P<found>.*)')?"
)
_JUDGED = re.compile(r"bundle \w{12} (promoted|refused): .+")
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
        Of its last materialization, in the order in which they were reported.
    promotion : str
        What became of the candidate bundle, and why; '' if none was judged.
    """

    deployment: Deployment
    checks: tuple[CheckSeen, ...] = ()
    promotion: str = ""


def dagster_home(deployment: Deployment) -> Path:
    """Return a deployment's own Dagster home, with the project's settings of the instance in it."""
    home = deployment.home / "dagster_home"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(INSTANCE_SETTINGS, home / "dagster.yaml")
    return home


def run_log(
    deployment: Deployment, complete_us: int, say: Say, *, again: bool = False
) -> FinishedRun:
    """Run every asset for the hours of a log that are complete and were not run yet.

    Parameters
    ----------
    deployment : Deployment
    complete_us : int
        End of the last complete hour, microseconds: the ledger's watermark.
    say : callable
        Receives one line of progress at a time.
    again : bool
        Begin at the dataset's start, whatever was run before.

    Raises
    ------
    MainJobFailed
        If no hour is complete, or if a step or a blocking check fails.
    """
    dataset = deployment.dataset
    if complete_us <= dataset.start_us:
        patterns = [pattern for s in dataset.sources_of("impressions") for pattern in s.files]
        raise MainJobFailed(
            f"no hour of {dataset.name} is complete; put log files where {patterns} look (from "
            f"{dataset.path.parent}); `ad_pipeline check {dataset.path}` says what it finds there"
        )
    last_us = dataset.last_hour_end_us
    start_us = dataset.start_us if again else _ran_until(deployment)
    whole = last_us is not None and complete_us >= last_us
    if whole:
        say(f"{dataset.name}: the log has ended; its last label matures by {hour_key(complete_us)}")
    else:
        ends = "an open log" if last_us is None else f"a log up to {hour_key(dataset.end_us or 0)}"
        say(f"{dataset.name}: {ends}, so far complete up to {hour_key(complete_us)}")
    if start_us >= complete_us:
        say(f"  nothing is new since the last run, which went up to {hour_key(start_us)};")
        say("  --again runs all hours anew")
        return FinishedRun(deployment)
    if start_us > dataset.start_us:
        say(f"  going on at {hour_key(start_us)}, where the last run ended")
    finished = materialize(deployment, start_us, complete_us, say)
    _ran_file(deployment).write_text(json.dumps({"ran_until_us": complete_us}))
    return finished


def _ran_file(deployment: Deployment) -> Path:
    return deployment.home / "main_job.json"


def _ran_until(deployment: Deployment) -> int:
    """Return the end of the hours that a run went through to its end, microseconds.

    Sealed hours would not do: a run that failed on its way has sealed more than it learnt.
    """
    path = _ran_file(deployment)
    if not path.exists():
        return deployment.dataset.start_us
    return int(json.loads(path.read_text())["ran_until_us"])


def materialize(deployment: Deployment, start_us: int, end_us: int | None, say: Say) -> FinishedRun:
    """Materialize every asset for the log hours ``[start_us, end_us)``, as the CLI does.

    Raises
    ------
    MainJobFailed
        If a step or a blocking check fails.
    """
    if end_us is None:
        raise ValueError(f"dataset {deployment.dataset.name} is open: say up to which hour to run")
    span = f"{hour_key(start_us)}...{hour_key(end_us - HOUR_US)}"
    say(f"  dagster asset materialize --select '{WHOLE_PATH}' --partition-range {span}")
    command = [
        sys.executable, "-m", "dagster", "asset", "materialize", "--select", WHOLE_PATH,
        "-m", "ad_pipeline.definitions", "--partition-range", span,
    ]  # fmt: skip
    return run_command(deployment, command, say)


def recover(
    deployment: Deployment,
    start_us: int,
    end_us: int,
    hours_us: Mapping[str, int],
    cause: str,
    evidence: Mapping[str, str],
    accept: bool,
    say: Say,
) -> FinishedRun:
    """Run what the job ``recover_online_model`` runs, as the CLI does.

    Parameters
    ----------
    deployment : Deployment
    start_us, end_us : int
        Hours to run again, microseconds.
    hours_us : mapping of str to int
        Goal to the hour to leave out, microseconds.
    cause : str
    evidence : mapping of str to str
    accept : bool
        Learn the hours although their guard tripped.
    say : callable
        Receives one line of progress at a time.

    Raises
    ------
    MainJobFailed
        If a step or a blocking check fails.
    """
    span = f"{hour_key(start_us)}...{hour_key(end_us - HOUR_US)}"
    hours = {goal: hour_key(hour_us) for goal, hour_us in hours_us.items()}
    asked = {"hours": hours, "cause": cause, "evidence": json.dumps(evidence), "accept": accept}
    say(f"  the online model goes back to before {hour_key(start_us)}; {span} is run again")
    command = [
        sys.executable, "-m", "dagster", "asset", "materialize",
        "--select", f"({RECOVERED}) and {WHOLE_PATH}",
        "-m", "ad_pipeline.definitions", "--partition-range", span,
        "--config-json", json.dumps({"ops": {"quarantine": {"config": asked}}}),
    ]  # fmt: skip
    return run_command(deployment, command, say)


def run_command(deployment: Deployment, command: Sequence[str], say: Say) -> FinishedRun:
    """Run a command for a deployment and pass on what it says that people want to read.

    Raises
    ------
    MainJobFailed
        If it fails.
    """
    environment = os.environ | {
        "AD_PIPELINE_DATASET": str(deployment.dataset.path),
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
    promotion = ""
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
            if judged := _JUDGED.search(line):
                promotion = judged[0]
            if text := _told(line.rstrip()):
                say(f"  {time.monotonic() - started:6.1f} s  {text}")
    if process.returncode != 0:
        end = "\n".join(log.read_text().splitlines()[-40:])
        raise MainJobFailed(
            f"{' '.join(command)} ended with {process.returncode}; all of it is in {log}:\n{end}"
        )
    return FinishedRun(deployment, tuple(checks), promotion)


def _told(line: str) -> str:
    """Return the part of a log line that is worth a line of progress, or ''."""
    if ended := _STEP_ENDED.search(line):
        return f"{ended['step']} done in {ended['took']}"
    if _WRONG.search(line):
        return line[-300:]
    if said := _SAID.search(line):
        return said["text"]
    return line.removeprefix("progress: ") if line.startswith("progress: ") else ""
