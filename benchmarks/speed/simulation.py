"""How fast the simulated exchange writes its logs, as whole processes.

Each run is a fresh Python that imports, simulates, writes six days with their tail and truth, and
ends: what a user waits for. Memory is shown for two days and for six, since it must not grow.

    python -m benchmarks.speed.simulation [--json] [--runs 5] [--days 6]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ad_pipeline.simulation.log_files import TABLES
from ad_pipeline.simulation.marketplace import simulate_days
from ad_pipeline.simulation.spec import MarketplaceSpec
from benchmarks.figures import Figure, print_figures

REACH = 200_000


def write_days(target: Path, days: int) -> dict[str, int]:
    """Simulate the first days of the default world in this process.

    Parameters
    ----------
    target : Path
        Folder to write into.
    days : int

    Returns
    -------
    dict of str to int
        Rows by table, and "peak_rss_kb" and "cpu_ms" of this process.
    """
    summary = simulate_days(MarketplaceSpec(), target / "logs", target / "truth", range(days))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_ms = round(1000 * (usage.ru_utime + usage.ru_stime))
    return {**summary.rows, "peak_rss_kb": usage.ru_maxrss, "cpu_ms": cpu_ms}


def timed_run(days: int) -> tuple[float, dict[str, int]]:
    """Run `write_days` in a fresh process.

    Returns
    -------
    seconds : float
        Wall time from before the process starts to after it ends.
    counts : dict of str to int
        See `write_days`.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __spec__.name, "--write", folder, "--days", str(days)]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return time.perf_counter() - start, json.loads(done.stdout)


def measure(days: int, runs: int) -> list[Figure]:
    """Measure whole processes that simulate some days, and one that simulates a third of them.

    Parameters
    ----------
    days : int
    runs : int
        Medians are taken.
    """
    done = [timed_run(days) for _ in range(runs)]
    seconds = statistics.median(wall for wall, _ in done)
    cpu_seconds = statistics.median(counts["cpu_ms"] for _, counts in done) / 1000
    counts = done[0][1]
    fewer = max(days // 3, 1)
    _, short = timed_run(fewer)
    log_rows = sum(rows for name, rows in counts.items() if name in TABLES)
    return [
        Figure(
            "impressions_per_s",
            counts["impressions"] / seconds,
            f"{counts['impressions']:,} impressions, {days} days, whole process ({seconds:.2f} s)",
            REACH,
            "higher",
            f"{counts['impressions'] / cpu_seconds:,.0f} a second of CPU time",
        ),
        Figure("log_rows_per_s", log_rows / seconds, "rows of all log tables a second"),
        Figure(
            "impressions_per_cpu_s",
            counts["impressions"] / cpu_seconds,
            "impressions a second of CPU time",
        ),
        Figure(
            "peak_rss_mb",
            counts["peak_rss_kb"] / 1024,
            f"peak memory of {days} days, MB",
            better="lower",
        ),
        Figure(
            "peak_rss_mb_fewer_days",
            short["peak_rss_kb"] / 1024,
            f"peak memory of {fewer} days, MB: it must not grow with the days",
            better="lower",
        ),
    ]


def main() -> None:
    """Print the figures, then one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--days", type=int, default=MarketplaceSpec().days)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write is not None:
        sys.stdout.write(json.dumps(write_days(arguments.write, arguments.days)))
        return
    print_figures(measure(arguments.days, arguments.runs), as_json=arguments.json)


if __name__ == "__main__":
    main()
