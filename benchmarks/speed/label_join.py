"""The label join with de-duplication, from log files to label tables, against the bare SQL.

Both sides read the same Parquet log (with duplicates) and run the same SELECT texts, those of
``deduplication`` and ``dbt_like_sql``, each in a fresh process with DuckDB's own defaults for
threads and memory. The bare side is DuckDB alone: one ``COPY (the SELECT) TO`` Parquet for each
table over the whole log at once. Ours is what a run calls, ``ingest_hours`` and ``join_labels``:
beside the SELECTs it hashes the files, checks every row against the contract, accounts for every
row by hour, and replaces hours in the warehouse in transactions.

    python -m benchmarks.speed.label_join [--json] [--runs 3] [--rows 10000000]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import yaml

from ad_pipeline.clocks import DAY_US, HOUR_US, timestamp
from ad_pipeline.datasets import Dataset, Deployment, load_dataset
from ad_pipeline.events.contract import LOG_TABLES, event_tables
from ad_pipeline.events.ingest import deduplication, ingest_hours, make_goals
from ad_pipeline.examples.label_join import GoalJoin, join_labels
from ad_pipeline.examples.tables import TABLES
from ad_pipeline.simulation.spec import START_US
from ad_pipeline.warehouse import Warehouse, bound, one_row, select
from benchmarks.figures import Figure, print_figures

ROWS = 10_000_000
ENGAGED_ONE_IN = 33
"""300 k engagements of 10 M impressions."""
REPEATED_ONE_IN = 250
"""Impressions and engagements that come twice: the simulator's 0.4 %."""
DAYS = 2
REACH = 1.5

GOAL = {"anchor": "impression", "window": "1h", "lateness": "2h", "observation": "10m"}
COLUMNS = {
    "impressions": ("impression_id", "user_id", "ad_id", "occurred_us", "received_us"),
    "engagements": (
        "event_id", "impression_id", "goal", "value", "occurred_us", "received_us",
    ),
}  # fmt: skip

Seconds = dict[str, float]


@dataclass(frozen=True)
class Content:
    """What a table holds, whatever the order of its rows.

    Attributes
    ----------
    rows : int
    hashed : int
        XOR of the hashes of the rows.
    """

    rows: int
    hashed: int


@dataclass(frozen=True)
class Side:
    """What one side took and wrote.

    Attributes
    ----------
    seconds : dict of str to float
        By step.
    content : dict of str to Content
        By table; looking at it is not timed.
    peak_mb : float
        The most memory that the process held while it was timed.
    """

    seconds: Seconds
    content: dict[str, Content]
    peak_mb: float


def write_log(folder: Path, rows: int, days: int) -> Path:
    """Write a log with duplicates as one Parquet file a day and table, and its dataset file.

    Parameters
    ----------
    folder : Path
        Gets ``dataset.yaml`` and ``logs``.
    rows : int
        Distinct impressions in all.
    days : int

    Returns
    -------
    Path
        The dataset file.
    """
    end_us = START_US + days * DAY_US
    written = {
        "name": "join",
        "start": timestamp(START_US),
        "end": timestamp(end_us),
        "whole_hours": True,
        "goals": {"click": GOAL},
        "sources": {
            table: {
                "files": f"{folder}/logs/{table}/*.parquet",
                "columns": {column: column for column in columns},
            }
            for table, columns in COLUMNS.items()
        },
        "features": {"categorical": ["user_id", "ad_id"]},
        "entities": ["ad_id"],
    }
    for table in COLUMNS:
        (folder / "logs" / table).mkdir(parents=True, exist_ok=True)
    (folder / "dataset.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
    step_us = days * DAY_US // rows
    served = f"{START_US} + number * {step_us}"
    impression = "'i' || lpad(CAST(hash(number) AS VARCHAR), 20, '0')"
    # Clicks come within an hour; half of the copies are received with the first row, half later.
    clicked = f"{served} + 1000000 + hash(number * 13) % 3000000000"
    again = "(number % 2) * 60000000"
    queries = {
        "impressions": (
            f"SELECT {impression} AS impression_id, 'u' || hash(number * 3) % 200000 AS user_id, "
            f"'a' || hash(number * 7) % 700 AS ad_id, {served} AS occurred_us, "
            f"{served} + hash(number * 11) % 2000000 + {{later}} AS received_us"
        ),
        "engagements": (
            f"SELECT 'e' || number AS event_id, {impression} AS impression_id, 'click' AS goal, "
            f"1 AS value, {clicked} AS occurred_us, {clicked} + 3000000 + {{later}} AS received_us"
        ),
    }
    every = {"impressions": 1, "engagements": ENGAGED_ONE_IN}
    with duckdb.connect(":memory:") as connection:
        for day in range(days):
            first, last = rows * day // days, rows * (day + 1) // days
            for table, query in queries.items():
                once = f"range({first}, {last}, {every[table]})"
                copies = f"range({first}, {last}, {every[table] * REPEATED_ONE_IN})"
                connection.execute(
                    f"COPY ({query.format(later=0)} FROM {once} AS numbers(number) UNION ALL "
                    f"{query.format(later=again)} FROM {copies} AS numbers(number)) "
                    f"TO '{folder}/logs/{table}/day={day}.parquet'"
                )
    return folder / "dataset.yaml"


def ours(folder: Path) -> Side:
    """Run the product's own calls on a log that it has not seen."""
    dataset = load_dataset(folder / "dataset.yaml")
    start_us, end_us = _hours(dataset)
    took: Seconds = {}
    with tempfile.TemporaryDirectory(dir=folder) as home:
        deployment = Deployment(dataset, Path(home).resolve())
        warehouse = Warehouse(deployment.warehouse)
        _time(took, "events", lambda: ingest_hours(warehouse, deployment, start_us, end_us))
        _time(took, "examples", lambda: join_labels(warehouse, dataset, start_us, end_us))
        peak_mb = _peak_mb()
        with warehouse.reader() as connection:
            return Side(took, _content(connection), peak_mb)


def bare(folder: Path) -> Side:
    """Run the same SELECTs as one COPY a table, by DuckDB alone.

    Small results that several SELECTs read become temporary tables, each written table is read
    back from its Parquet file by the next: the bare side computes nothing twice. The step "scan" is
    a bare read of the log.
    """
    dataset = load_dataset(folder / "dataset.yaml")
    parameters = GoalJoin.of(dataset, dataset.goals[0]).parameters(*_hours(dataset))
    parameters["horizon_us"] = dataset.horizon_us
    took: Seconds = {}
    with (
        tempfile.TemporaryDirectory(dir=folder) as target,
        duckdb.connect(":memory:", config={"temp_directory": f"{target}/spill"}) as connection,
    ):

        def run(statement: str) -> None:
            connection.execute(statement, bound(statement, parameters))

        def copy(name: str, query: str) -> None:
            """Write a table, and let its name mean the file from now on."""
            run(f"COPY ({query}) TO '{target}/{name}.parquet'")
            connection.execute(f"DROP TABLE {name}")
            connection.execute(f"CREATE VIEW {name} AS FROM '{target}/{name}.parquet'")

        _prepare(connection, folder, dataset)

        def deduplicate() -> None:
            for name, query in deduplication(dataset).items():
                run(f"CREATE TEMP {'VIEW' if name == 'landed_rows' else 'TABLE'} {name} AS {query}")
            copy("events.impressions", select("events.impressions"))
            connection.execute("CREATE TEMP VIEW kept_impressions AS FROM events.impressions")
            run("CREATE TEMP TABLE no_impressions AS FROM events.impressions LIMIT 0")
            outcomes = select("events.engagement_outcomes")
            # All impressions are those kept just now: there are none of earlier hours.
            earlier = outcomes.replace("FROM events.impressions", "FROM no_impressions")
            run(f"CREATE TEMP TABLE engagement_outcomes AS {earlier}")
            copy("events.engagements", select("events.engagements"))

        _time(took, "events", deduplicate)
        started = time.perf_counter()
        for table in TABLES:
            _time(took, table.name, lambda table=table: copy(table.name, select(table.name)))
        took["examples"] = time.perf_counter() - started
        _time(took, "scan", lambda: _scan(connection, folder))
        peak_mb = _peak_mb()
        return Side(took, _content(connection), peak_mb)


def _prepare(connection: duckdb.DuckDBPyConnection, folder: Path, dataset: Dataset) -> None:
    """Declare the tables that the SELECTs name: the log as views, everything else empty."""
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("CREATE SCHEMA events; CREATE SCHEMA examples")
    tables = event_tables(dataset)
    for table in (*tables.values(), *TABLES):
        columns = ", ".join(f'"{c.name}" {c.type}' for c in table.columns)
        connection.execute(f"CREATE TABLE {table.name} ({columns})")
    for table in LOG_TABLES:
        short = table.name.removeprefix("events.")
        given = COLUMNS.get(short, ())
        columns = ", ".join(
            f'CAST("{c.name}" AS {c.type}) AS "{c.name}"'
            if c.name in given
            else f"{'received_us' if c.name == 'logged_us' and given else 'NULL'}::{c.type} "
            f'AS "{c.name}"'
            for c in tables[short].columns
            if c.name != "read_us"
        )
        rows = (
            f"read_parquet('{folder}/logs/{short}/*.parquet', filename = true, "
            "file_row_number = true, hive_partitioning = false)"
            if given
            else "(SELECT '' AS filename, 0 AS file_row_number WHERE false)"
        )
        connection.execute(
            f"CREATE TEMP VIEW landed_{short} AS SELECT {columns}, "
            "NULL::VARCHAR AS landed_reason, NULL::VARCHAR AS landed_json, "
            "filename AS landed_file, CAST(hash(filename, file_row_number) >> 1 AS BIGINT) "
            f"AS landed_id FROM {rows}"
        )
    make_goals(connection, dataset)


def _scan(connection: duckdb.DuckDBPyConnection, folder: Path) -> None:
    for table in COLUMNS:
        connection.execute(
            f"SELECT bit_xor(hash(log)) FROM read_parquet('{folder}/logs/{table}/*.parquet') AS log"
        ).fetchall()


def _content(connection: duckdb.DuckDBPyConnection) -> dict[str, Content]:
    """Return what the tables hold that both sides write; of the events the columns of the log."""
    events = {f"events.{short}": columns for short, columns in COLUMNS.items()}
    labels = {table.name: table.column_names for table in TABLES}
    found: dict[str, Content] = {}
    for name, columns in (events | labels).items():
        listed = ", ".join(f'"{column}"' for column in columns)
        rows, hashed = one_row(connection, f"SELECT count(*), bit_xor(hash({listed})) FROM {name}")
        found[name] = Content(int(rows), int(hashed))
    return found


def require_same_rows(one: Side, other: Side) -> None:
    """Refuse to compare sides that did not write the same.

    Raises
    ------
    ValueError
        If a table differs; the message names it.
    """
    differing = [name for name in one.content if one.content[name] != other.content.get(name)]
    if differing:
        raise ValueError(
            "the two sides wrote other rows, so their times say nothing: "
            + "; ".join(f"{n}: {one.content[n]} and {other.content.get(n)}" for n in differing)
        )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _hours(dataset: Dataset) -> tuple[int, int]:
    if dataset.last_hour_end_us is None:
        raise ValueError("the benchmark's log is closed")
    return dataset.start_us, dataset.last_hour_end_us


def _time(took: Seconds, name: str, step: Callable[[], object]) -> None:
    started = time.perf_counter()
    step()
    took[name] = time.perf_counter() - started


SIDES = {"ours": ours, "bare": bare}


def in_fresh_process(side: str, folder: Path) -> Side:
    """Run one side in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--side", side, "--log", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    content = {name: Content(**table) for name, table in found["content"].items()}
    return Side(found["seconds"], content, found["peak_mb"])


def measure(rows: int, runs: int, days: int = DAYS) -> list[Figure]:
    """Measure both sides, turn about.

    Parameters
    ----------
    rows : int
        Distinct impressions.
    runs : int
        Of each side; medians are taken.
    days : int
        Days of log that they lie in. Memory is also measured on the first half of as many days.
    """
    with tempfile.TemporaryDirectory() as scratch:
        log, half = Path(scratch) / "log", Path(scratch) / "half"
        write_log(log, rows, days)
        write_log(half, rows // 2, max(days // 2, 1))
        sides = [
            (in_fresh_process("ours", log), in_fresh_process("bare", log)) for _ in range(runs)
        ]
        short = in_fresh_process("ours", half)
    for run in sides:
        require_same_rows(*run)

    def median(place: int, *steps: str) -> float:
        return statistics.median(sum(run[place].seconds[step] for step in steps) for run in sides)

    whole = ("events", "examples")
    hours = days * DAY_US // HOUR_US
    return [
        Figure(
            "join_ratio",
            median(0, *whole) / median(1, *whole),
            f"{rows:,} impressions of {hours} h, {rows // ENGAGED_ONE_IN:,} engagements, "
            f"1 in {REPEATED_ONE_IN} twice: log files to label tables, over bare COPYs",
            REACH,
            "lower",
            f"1 is DuckDB alone ({median(1, *whole):.1f} s); reading the log once is "
            f"{median(1, 'scan'):.2f} s",
        ),
        Figure("join_seconds", median(0, *whole), "log files to label tables, s"),
        Figure("join_copy_seconds", median(1, *whole), "the same SELECTs as COPYs, s"),
        Figure(
            "join_labels_ratio",
            median(0, "examples") / median(1, "examples"),
            f"of it: the three label tables ({median(0, 'examples'):.1f} s)",
            better="lower",
        ),
        Figure(
            "join_events_ratio",
            median(0, "events") / median(1, "events"),
            f"of it: files, contract, duplicates, accounts ({median(0, 'events'):.1f} s)",
            better="lower",
        ),
        Figure(
            "join_peak_mb",
            max(run[0].peak_mb for run in sides),
            f"peak memory, MB; DuckDB alone {max(run[1].peak_mb for run in sides):,.0f}",
            better="lower",
        ),
        Figure(
            "join_peak_mb_half",
            short.peak_mb,
            "peak memory of half the log (half the days, as many rows an hour), MB",
            better="lower",
        ),
    ]


def main() -> None:
    """Print the figures, then one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS, help="distinct impressions")
    parser.add_argument("--side", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is None:
        print_figures(measure(arguments.rows, arguments.runs), as_json=arguments.json)
        return
    sys.stdout.write(json.dumps(asdict(SIDES[arguments.side](arguments.log))))


if __name__ == "__main__":
    main()
