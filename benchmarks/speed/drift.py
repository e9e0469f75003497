"""What drift costs: the statistics, Evidently's page behind them, a verdict as a log grows, a tick.

Statistics and page are of a made log of Criteo's shape, 13 numbers and 26 categories, 100,000 rows
on either side. Growth is the whole path from a warehouse: one week of impressions against ten,
sampled, compared and judged, in turns, and the quotient of the medians. A tick is what the sensor
``drift_actions`` asks the warehouse, with a million events behind it.

    python -m benchmarks.speed.drift [--json] [--runs 3] [--rows 100000]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import DATA_FOLDER, Dataset, load_dataset
from ad_pipeline.events.contract import event_tables
from ad_pipeline.monitoring.drift.actions import seen_by_sensor
from ad_pipeline.monitoring.drift.causes import due_action
from ad_pipeline.monitoring.drift.drift_of_log import compare_log
from ad_pipeline.monitoring.drift.evidently_page import evidently_report
from ad_pipeline.monitoring.drift.inputs import Kind, drift_report
from ad_pipeline.monitoring.tables import TABLES
from ad_pipeline.settings import DriftSettings, Settings
from ad_pipeline.simulation.streams import random_stream
from ad_pipeline.warehouse import Warehouse
from benchmarks.figures import Figure, print_figures

ROWS = 100_000
NUMBERS, CATEGORIES = 13, 26
WEEKS, LONGER = 3, 10
"""Weeks of log that are compared, and times as many: both have two earlier weeks to match."""

ROWS_PER_HOUR = 300
EVENTS = 1_000_000


def made_rows(seed: int, rows: int) -> tuple[pa.Table, dict[str, Kind]]:
    """Return rows of Criteo's shape: skewed numbers with nulls, categories with a long tail."""
    stream = random_stream(seed, "drift rows")
    columns: dict[str, pa.Array] = {}
    for place in range(NUMBERS):
        numbers = np.floor(np.exp(stream.normal(place / 4, 1.5, rows)))
        columns[f"i{place}"] = pa.array(numbers, mask=stream.random(rows) < 0.1)
    for place in range(CATEGORIES):
        names = stream.zipf(1.3, rows) % (10 * 2 ** (place % 14))
        columns[f"c{place}"] = pa.array(np.char.add("v", names.astype(str)))
    kinds: dict[str, Kind] = {
        name: "numeric" if name.startswith("i") else "categorical" for name in columns
    }
    return pa.table(columns), kinds


def seconds(work: Callable[[], object], runs: int) -> float:
    """Return the median time of some runs."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def log_of(warehouse: Warehouse, dataset: Dataset, weeks: int) -> None:
    """Fill ``events.impressions`` with some weeks of made traffic."""
    table = event_tables(dataset)["impressions"]
    warehouse.create([table])
    of_type = {
        "VARCHAR": "'v' || CAST(hash(k, {place}) % 40 AS VARCHAR)",
        "BOOLEAN": "hash(k, {place}) % 2 = 0",
        "DOUBLE": "CAST(hash(k, {place}) % 1000 AS DOUBLE)",
    }
    made = {
        column.name: of_type.get(column.type, "CAST(hash(k, {place}) % 1000 AS BIGINT)").format(
            place=place
        )
        for place, column in enumerate(table.columns)
    }
    step_us = HOUR_US // ROWS_PER_HOUR
    moment = f"CAST({dataset.start_us} AS BIGINT) + k * {step_us}"
    made |= {"impression_id": "'i' || CAST(k AS VARCHAR)"}
    made |= {column.name: moment for column in table.columns if column.is_moment}
    selected = ", ".join(f'{text} AS "{name}"' for name, text in made.items())
    rows = weeks * 7 * 24 * ROWS_PER_HOUR
    with warehouse.writer() as connection:
        connection.execute(
            f"INSERT INTO {table.name} BY NAME SELECT {selected} FROM range({rows}) AS r(k)"
        )


def history(runs: int) -> tuple[float, float]:
    """Return what a verdict takes on a log of some weeks, and on one of many times as many."""
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    dataset = dataset.model_copy(update={"end_us": None})
    weeks = (WEEKS, WEEKS * LONGER)
    with tempfile.TemporaryDirectory(prefix="speed-drift-") as folder:
        logs = [Warehouse(Path(folder) / f"{each}.duckdb") for each in weeks]
        for log, length in zip(logs, weeks, strict=True):
            log_of(log, dataset, length)
            compare_log(log, dataset)
        took: list[list[float]] = [[], []]
        for _ in range(runs):
            for place, log in enumerate(logs):
                took[place].append(seconds(lambda log=log: compare_log(log, dataset), 1))
    return statistics.median(took[0]), statistics.median(took[1])


def tick(runs: int) -> float:
    """Return what the sensor's question takes behind a million verdicts and actions."""
    with tempfile.TemporaryDirectory(prefix="speed-drift-") as folder:
        warehouse = Warehouse(Path(folder) / "warehouse.duckdb")
        warehouse.create(TABLES)
        with warehouse.writer() as connection:
            connection.execute(
                "INSERT INTO monitoring.drift_verdicts SELECT "
                f"(k // 10) * {HOUR_US}, 'inputs', CAST(k % 10 AS VARCHAR), k % 10 = 0, 0.3, 0.2, "
                f"'the inputs shifted', 'retrain', '{{}}' FROM range({EVENTS}) AS r(k)"
            )
            connection.execute(
                "INSERT INTO monitoring.actions SELECT "
                f"k * {HOUR_US}, 'retrain', '', 0, '', '{{}}', NULL, NULL, NULL, NULL, NULL "
                f"FROM range({EVENTS}) AS r(k)"
            )

        def asked() -> None:
            with warehouse.reader() as connection:
                seen = seen_by_sensor(connection)
            if seen is None or not seen.asked:
                raise RuntimeError("the tick saw no verdict: nothing was measured")
            due_action(seen, {}, Settings())

        asked()
        return seconds(asked, max(runs, 5))


def figures(rows: int, runs: int) -> list[Figure]:
    """Measure everything once."""
    (before, kinds), (now, _) = made_rows(1, rows), made_rows(2, rows)
    settings = DriftSettings()
    periods = np.arange(rows) % 7
    drift_report(before, now, kinds, settings, periods)
    cheap = seconds(lambda: drift_report(before, now, kinds, settings, periods), runs)
    with tempfile.TemporaryDirectory(prefix="speed-drift-") as folder:
        page = Path(folder) / "drift.html"
        drawn = seconds(lambda: evidently_report(before, now, kinds, settings, page), 1)
    short, long = history(max(runs, 5))
    return [
        Figure("drift_100k_s", cheap, f"statistics of {rows:,} rows x 39 columns", 2.0, "lower"),
        Figure("report_100k_s", drawn, "Evidently's page of the same", 30.0, "lower"),
        Figure("drift_history_ratio", long / short, "of ten times the log", 1.1, "lower"),
        Figure("drift_log_s", short, f"sample and compare a log of {WEEKS} weeks"),
        Figure("sensor_tick_s", tick(runs), f"what a tick asks, {EVENTS:,} events", 1.0, "lower"),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS)
    asked = parser.parse_args()
    print_figures(figures(asked.rows, asked.runs), as_json=asked.json)


if __name__ == "__main__":
    main()
