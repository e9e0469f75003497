"""What Dagster costs: a materialization of every asset, less the same work as library calls.

Both sides start from the same log files of a simulated exchange and each is one fresh process with
a home of its own: ``dagster asset materialize --select '*' --partition-range`` for the first hours
of the log, and :mod:`benchmarks.library_path` for the same hours. What is between their walls is
counted as Dagster's: the definitions, the planning of partitions, the event log, and the asset
checks, which the library calls leave out.

    python -m benchmarks.speed.pipeline [--json] [--runs 1] [--rows 2000000] [--hours 48]
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from ad_pipeline.clocks import DAY_US, HOUR_US, hour_key, timestamp
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.main_job import materialize
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from benchmarks.figures import Figure, print_figures
from benchmarks.library_path import quiet

ROWS = 2_000_000
HOURS = 48
FIXED_SECONDS = 15.0
ASSET_HOUR_SECONDS = 0.1
REACH = 1.0

_MADE = re.compile(r"ASSET_MATERIALIZATION - Materialized value (?P<asset>[\w ]+)\.")


@dataclass(frozen=True)
class Run:
    """One materialization and the same work as library calls.

    Attributes
    ----------
    dagster_s, library_s : float
        Walls of the two processes, seconds.
    hourly, unpartitioned : int
        Assets by kind.
    """

    dagster_s: float
    library_s: float
    hourly: int
    unpartitioned: int

    @property
    def overhead_s(self) -> float:
        """What Dagster took, seconds."""
        return self.dagster_s - self.library_s


def write_market(folder: Path, rows: int, hours: int) -> Deployment:
    """Write the log of a simulated exchange and the dataset file that reads it.

    Parameters
    ----------
    folder : Path
    rows : int
        Impressions expected in the hours.
    hours : int

    Returns
    -------
    Deployment
        With its logs; nothing is computed yet.
    """
    days = -(-hours // 24)
    spec = MarketplaceSpec(days=days, impressions_per_day=max(rows * 24 // hours, 1))
    written = yaml.safe_load((DATA_FOLDER / "marketplace" / "dataset.yaml").read_text())
    written |= {
        "name": "market",
        "start": timestamp(spec.start_us),
        "end": timestamp(spec.start_us + days * DAY_US),
    }
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    deployment = Deployment(load_dataset(path), (folder / "log" / "market").resolve())
    simulate_days(spec, deployment.logs, deployment.truth, range(days))
    return deployment


def measured(source: Deployment, hours: int, say: Callable[[str], None]) -> Run:
    """Run both sides on copies of a log.

    Parameters
    ----------
    source : Deployment
        From :func:`write_market`.
    hours : int
        First hours of the log to compute.
    say : callable
    """
    start_us = source.dataset.start_us
    end_us = start_us + hours * HOUR_US
    by_dagster, by_calls = (_copied(source, name) for name in ("dagster", "library"))
    dagster_s = _seconds(lambda: materialize(by_dagster, start_us, end_us, say))
    command = [
        *(sys.executable, "-m", "benchmarks.library_path"),
        *(str(source.dataset.path), str(by_calls.home.parent)),
        *("--start", hour_key(start_us), "--end", hour_key(end_us - HOUR_US)),
    ]
    library_s = _seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    made = Counter(
        found["asset"] for found in _MADE.finditer((by_dagster.home / "main_job.log").read_text())
    )
    hourly = sum(times == hours for times in made.values())
    for deployment in (by_dagster, by_calls):
        shutil.rmtree(deployment.home.parent)
    return Run(dagster_s, library_s, hourly, len(made) - hourly)


def measure(rows: int, hours: int, runs: int, say: Callable[[str], None] = quiet) -> list[Figure]:
    """Measure both sides, turn about, and return the figures of the run with the median overhead.

    Parameters
    ----------
    rows, hours
        As for :func:`write_market`.
    runs : int
    say : callable
    """
    with tempfile.TemporaryDirectory() as folder:
        source = write_market(Path(folder), rows, hours)
        done = [measured(source, hours, say) for _ in range(runs)]
    overhead_s = statistics.median(run.overhead_s for run in done)
    dagster_s = statistics.median(run.dagster_s for run in done)
    library_s = statistics.median(run.library_s for run in done)
    asset_hours = done[0].hourly * hours
    allowed_s = FIXED_SECONDS + ASSET_HOUR_SECONDS * asset_hours
    return [
        Figure(
            "pipeline_overhead_share",
            overhead_s / allowed_s,
            f"Dagster's overhead on {rows:,} impressions, {hours} h, over {FIXED_SECONDS:g} s + "
            f"{ASSET_HOUR_SECONDS:g} s per asset and hour ({allowed_s:.0f} s)",
            REACH,
            "lower",
            f"0 is the library calls alone ({library_s:.1f} s)",
        ),
        Figure("pipeline_dagster_seconds", dagster_s, "dagster asset materialize, s"),
        Figure("pipeline_library_seconds", library_s, "the same work as library calls, s"),
        Figure("pipeline_overhead_seconds", overhead_s, "between them, checks included, s"),
        Figure(
            "pipeline_asset_hour_ms",
            1000 * overhead_s / asset_hours,
            f"overhead per asset and hour, ms ({done[0].hourly} hourly assets, {hours} hours)",
            better="lower",
        ),
        Figure("pipeline_assets", done[0].hourly + done[0].unpartitioned, "assets materialized"),
    ]


def _copied(source: Deployment, name: str) -> Deployment:
    """Return a deployment in another home that has the same log and nothing else."""
    home = source.home.parents[1] / name / source.home.name
    for part in (source.logs, source.truth):
        shutil.copytree(part, home / part.name)
    return Deployment(source.dataset, home)


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> None:
    """Print the figures, then one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--runs", type=int, default=1, help="of each side; medians are taken")
    parser.add_argument("--rows", type=int, default=ROWS, help="impressions in the hours")
    parser.add_argument("--hours", type=int, default=HOURS)
    arguments = parser.parse_args()
    say = quiet if arguments.json else _tell
    figures = measure(arguments.rows, arguments.hours, arguments.runs, say)
    print_figures(figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
