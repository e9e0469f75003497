"""Computes the tables of the room ``events`` for a range of log hours, chunk by chunk.

The rules stand in ``dbt_like_sql/events``; here is only the order in which they run: land the rows
of the hours, find duplicates, let engagements meet their impressions, account for every row, write
it all in one transaction. What a chunk computes depends on the ledger, the files and the hours
before it, never on later hours or the clock on the wall; so any split of a range and any re-run
give the same tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US, hour_key, hour_of, timestamp
from ad_pipeline.datasets import Dataset, Deployment
from ad_pipeline.events.contract import LOG_TABLES, event_tables
from ad_pipeline.events.ledger import (
    LedgerEntry,
    Stamp,
    numbered_sources,
    read_ledger,
    register_files,
    verify,
    watermark_us,
)
from ad_pipeline.events.readers import LogFile, content_md5, land
from ad_pipeline.warehouse import Table, Warehouse, bound, replace_hours, rows_of, select

CHUNK_ROWS = 300_000
"""Log rows computed at a time: memory stays flat however long the range is."""


class PastWatermark(Exception):
    """Hours were asked for that the log may still add rows to."""


class EarlierHoursMissing(Exception):
    """Hours were asked for before the hours that they build on."""


@dataclass(frozen=True)
class HourAccount:
    """One row of ``events.accounting``; counts are rows.

    Attributes
    ----------
    table_name : str
    hour_us : int
        Start of the log hour, microseconds.
    rows_in, kept, duplicates, held, released, quarantined, late, outside_window : int
        As described in ``contract.ACCOUNTING``.
    """

    table_name: str
    hour_us: int
    rows_in: int
    kept: int
    duplicates: int
    held: int
    released: int
    quarantined: int
    late: int
    outside_window: int


@dataclass(frozen=True)
class Ingest:
    """What an ingest did.

    Attributes
    ----------
    accounts : tuple of HourAccount
        By hour and table, also for hours in which nothing came.
    new_files : tuple of LedgerEntry
        Log files registered on the way.
    empty_globs : tuple of str
        Sources whose globs match no file.
    """

    accounts: tuple[HourAccount, ...]
    new_files: tuple[LedgerEntry, ...]
    empty_globs: tuple[str, ...]


def ingest_hours(
    warehouse: Warehouse,
    deployment: Deployment,
    start_us: int,
    end_us: int,
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> Ingest:
    """Compute all event tables of the log hours ``[start_us, end_us)`` and seal them.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.
    chunk_rows : int
        About how many log rows a transaction covers; changes no row.

    Raises
    ------
    PastWatermark
        If the log may still add rows to one of the hours.
    EarlierHoursMissing
        If an hour between the dataset's start and the range is not sealed.
    """
    dataset = deployment.dataset
    if start_us % HOUR_US or end_us % HOUR_US or start_us >= end_us:
        raise ValueError(f"[{start_us}, {end_us}) are no whole hours")
    if start_us < dataset.start_us:
        raise ValueError(
            f"{hour_key(start_us)} lies before the start of dataset {dataset.name}, "
            f"{timestamp(dataset.start_us)}"
        )
    registration = register_files(warehouse, deployment)
    accounts: list[HourAccount] = []
    digests: dict[Stamp, str] = {}
    chunk_start = start_us
    while chunk_start < end_us:
        with warehouse.reader() as connection:
            complete_us = watermark_us(connection, dataset)
            if end_us > complete_us:
                raise PastWatermark(_past_watermark(deployment, end_us, complete_us))
            _require_earlier_hours(connection, deployment, chunk_start)
            entries = read_ledger(connection)
            chunk_end = _chunk_end(entries, deployment, chunk_start, end_us, chunk_rows)
            wanted = [e for e in entries if e.may_hold(chunk_start, chunk_end, dataset)]
            verify(deployment, wanted, digests)
            computed = _compute(connection, deployment, wanted, chunk_start, chunk_end)
        with warehouse.writer() as connection:
            if len(read_ledger(connection)) != len(entries):
                # A file was registered in the meantime, bound to the hours sealed by then: its rows
                # of this chunk were not read yet.
                continue
            _write(connection, deployment, computed, chunk_start, chunk_end)
        accounts += [HourAccount(**row) for row in computed["accounting"].to_pylist()]
        chunk_start = chunk_end
    return Ingest(tuple(accounts), registration.new, registration.empty_globs)


def _past_watermark(deployment: Deployment, end_us: int, complete_us: int) -> str:
    dataset = deployment.dataset
    asked = hour_key(end_us - HOUR_US)
    if complete_us <= dataset.start_us:
        found = "no impression's file says that any hour is complete"
        patterns = [pattern for s in dataset.sources_of("impressions") for pattern in s.files]
        return f"hour {asked} was asked for, but {found}; put log files where {patterns} look"
    return (
        f"hour {asked} was asked for, but the log is complete only up to "
        f"{hour_key(complete_us - HOUR_US)}: rows of later hours may still come; ask for earlier "
        "hours, or wait for the next log file"
    )


def _require_earlier_hours(
    connection: duckdb.DuckDBPyConnection, deployment: Deployment, start_us: int
) -> None:
    first_us = deployment.dataset.start_us
    sealed = {
        hour
        for (hour,) in connection.execute(
            "SELECT DISTINCT hour_us FROM events.accounting WHERE hour_us < $start_us",
            {"start_us": start_us},
        ).fetchall()
    }
    missing = [hour for hour in range(first_us, start_us, HOUR_US) if hour not in sealed]
    if missing:
        raise EarlierHoursMissing(
            f"hour {hour_key(start_us)} builds on the hours before it (duplicates, engagements "
            f"that wait), of which {len(missing)} are not ingested; start the range at "
            f"{hour_key(missing[0])}"
        )


def _chunk_end(
    entries: Sequence[LedgerEntry],
    deployment: Deployment,
    start_us: int,
    end_us: int,
    chunk_rows: int,
) -> int:
    """Return where a chunk of about ``chunk_rows`` ends, if each file's rows are spread evenly."""
    rows, hour = 0.0, start_us
    while hour < end_us:
        for entry in entries:
            if entry.may_hold(hour, hour + HOUR_US, deployment.dataset):
                base = max(entry.sealed_until_us, deployment.dataset.start_us)
                first = hour_of(max(entry.first_received_us or base, base))
                last = hour_of(max(entry.last_received_us or base, base))
                rows += entry.rows / ((last - first) // HOUR_US + 1)
        hour += HOUR_US
        if rows >= chunk_rows:
            break
    return hour


def _compute(
    connection: duckdb.DuckDBPyConnection,
    deployment: Deployment,
    wanted: Sequence[LedgerEntry],
    start_us: int,
    end_us: int,
) -> dict[str, pa.Table]:
    """Return the rows of each table for a chunk, by the table's short name."""
    dataset = deployment.dataset
    tables = event_tables(dataset)
    for short in _log_table_names():
        files = [
            (
                source,
                [
                    LogFile(e.path, deployment.on_disk(e.path), e.sealed_until_us)
                    for e in wanted
                    if (e.table_name, e.source) == (short, number)
                ],
            )
            for name, number, source in numbered_sources(dataset)
            if name == short
        ]
        land(connection, dataset, tables[short], files, start_us, end_us)
    parameters = {"start_us": start_us, "end_us": end_us, "horizon_us": dataset.horizon_us}

    def make(name: str, query: str, kind: str = "TABLE") -> None:
        connection.execute(
            f"CREATE OR REPLACE TEMP {kind} {name} AS {query}", bound(query, parameters)
        )

    for name, query in deduplication(dataset).items():
        make(name, query, "VIEW" if name == "landed_rows" else "TABLE")
    make_goals(connection, dataset)
    found: dict[str, pa.Table] = {}

    def compute(short: str, relation: str, query: str) -> None:
        columns = ", ".join(
            f'CAST("{c.name}" AS {c.type}) AS "{c.name}"' for c in tables[short].columns
        )
        text = f"SELECT {columns} FROM ({query}) AS computed"
        found[short] = rows_of(connection, text, parameters)
        connection.register(relation, found[short])

    for short in _log_table_names():
        if short == "engagements":  # they come after the impressions that they are matched with
            outcomes = _with_row_json(tables[short], select("events.engagement_outcomes"))
            make("engagement_outcomes", outcomes)
        compute(short, f"kept_{short}", select(f"events.{short}"))
    make("kept_rows", _kept_rows(), "VIEW")
    compute("held_engagements", "held_rows", select("events.held_engagements"))
    compute("quarantine", "refused_rows", select("events.quarantine"))
    compute("duplicates", "duplicate_rows", "SELECT * FROM repeated")
    _make_hours(connection, start_us, end_us)
    compute("accounting", "accounts", select("events.accounting"))
    return found


def _write(
    connection: duckdb.DuckDBPyConnection,
    deployment: Deployment,
    computed: dict[str, pa.Table],
    start_us: int,
    end_us: int,
) -> None:
    for short, table in event_tables(deployment.dataset).items():
        if short in computed:
            connection.register("computed", computed[short])
            replace_hours(connection, table, "SELECT * FROM computed", {}, start_us, end_us)
            connection.unregister("computed")


def _log_table_names() -> tuple[str, ...]:
    return tuple(table.name.removeprefix("events.") for table in LOG_TABLES)


def deduplication(dataset: Dataset) -> dict[str, str]:
    """Return the SELECTs that find duplicates among the landed rows, in the order they build up.

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    dict of str to str
        By the name under which the next ones and the SELECTs of ``dbt_like_sql/events`` read it.
        The last is ``repeated``: the rows of ``events.duplicates``.
    """
    tables = event_tables(dataset)
    return {
        "landed_rows": _landed_rows(tables),
        "seen_rows": _seen_rows(tables),
        "repeated_keys": _repeated_keys(),
        "landed_copies": _landed_copies(tables),
        "repeated": select("events.duplicates"),
    }


def _landed_rows(tables: dict[str, Table]) -> str:
    """Return the SELECT over what all landed tables share."""
    return " UNION ALL ".join(
        f"SELECT '{short}' AS table_name, {tables[short].key[0]} AS key, occurred_us, received_us, "
        "logged_us, landed_reason AS reason, landed_json AS row_json, landed_file AS file, "
        f"landed_id FROM landed_{short}"
        for short in _log_table_names()
    )


def _seen_rows(tables: dict[str, Table]) -> str:
    """Return the SELECT of rows of the horizon before, kept or not, whose key landed again.

    A kept engagement may have been read long before it entered, so its ``read_us`` counts; one that
    was held is found among the held ones too, which changes no order.
    """
    earlier = "received_us >= $start_us - $horizon_us AND received_us < $start_us"
    parts = []
    for short in _log_table_names():
        key = tables[short].key[0]
        read = "read_us" if short == "engagements" else "received_us"
        parts.append(
            f"SELECT '{short}' AS table_name, {key} AS key, {read} AS received_us, logged_us, "
            f"{content_md5(tables[short])} AS content_md5 FROM events.{short} WHERE {earlier} "
            f"AND {key} IN (SELECT {key} FROM landed_{short} WHERE landed_reason IS NULL)"
        )
    landed = "(table_name, key) IN (SELECT (table_name, key) FROM landed_rows WHERE reason IS NULL)"
    parts += [
        f"SELECT table_name, key, received_us, logged_us, content_md5 FROM events.duplicates "
        f"WHERE {earlier} AND {landed}",
        f"SELECT table_name, key, read_us, logged_us, content_md5 FROM events.quarantine "
        f"WHERE {earlier} AND content_md5 IS NOT NULL AND {landed}",
        "SELECT 'engagements', event_id, received_us, logged_us, content_md5 FROM "
        f"events.held_engagements WHERE {earlier} AND event_id IN (SELECT event_id FROM "
        "landed_engagements WHERE landed_reason IS NULL)",
    ]
    return " UNION ALL ".join(parts)


def _with_row_json(table: Table, outcomes: str) -> str:
    """Return the outcomes with the hash and the JSON of each row, for duplicates and quarantine."""
    mapped = ", ".join(
        f"'{c.name}', {'logged_us' if c.name == 'received_us' else c.name}"
        for c in table.columns
        if c.name not in {"logged_us", "read_us"}
    )
    return (
        f"SELECT *, {content_md5(table)} AS content_md5, CASE WHEN outcome <> 'kept' THEN "
        f"CAST(json_object({mapped}) AS VARCHAR) END AS row_json FROM ({outcomes})"
    )


def _repeated_keys() -> str:
    """Return the SELECT of keys that occur more than once in the hours and the horizon before."""
    landed = " UNION ALL ".join(
        f"SELECT table_name, key FROM landed_rows WHERE table_name = '{short}' AND reason IS NULL "
        "GROUP BY table_name, key HAVING count(*) > 1"
        for short in _log_table_names()
    )
    seen = "SELECT table_name, key FROM seen_rows"
    return f"SELECT DISTINCT table_name, key FROM ({landed} UNION ALL {seen})"


def _landed_copies(tables: dict[str, Table]) -> str:
    """Return the SELECT of landed rows whose key is repeated, with the hash of their content."""
    return " UNION ALL ".join(
        f"SELECT '{short}' AS table_name, {tables[short].key[0]} AS key, received_us, logged_us, "
        f"{content_md5(tables[short])} AS content_md5, landed_file AS file, landed_id "
        f"FROM landed_{short} WHERE landed_reason IS NULL AND {tables[short].key[0]} IN "
        f"(SELECT key FROM repeated_keys WHERE table_name = '{short}')"
        for short in _log_table_names()
    )


def _kept_rows() -> str:
    return " UNION ALL ".join(
        f"SELECT '{short}' AS table_name, received_us FROM kept_{short}"
        for short in _log_table_names()
    )


def make_goals(connection: duckdb.DuckDBPyConnection, dataset: Dataset) -> None:
    """Make the temporary table ``goals``: how late an engagement of each may still count."""
    connection.execute("CREATE OR REPLACE TEMP TABLE goals (goal VARCHAR, chain_window_us BIGINT)")
    connection.executemany(
        "INSERT INTO temp.goals VALUES ($goal, $window_us)",
        [{"goal": g.name, "window_us": dataset.chain_window_us(g.name)} for g in dataset.goals],
    )


def _make_hours(connection: duckdb.DuckDBPyConnection, start_us: int, end_us: int) -> None:
    """Make the grid of log tables and hours, so that hours without rows are accounted for too."""
    hours = range(start_us, end_us, HOUR_US)
    grid = pa.table(
        {
            "table_name": [short for short in _log_table_names() for _ in hours],
            "hour_us": [hour for _ in _log_table_names() for hour in hours],
        }
    )
    connection.register("grid", grid)
    connection.execute("CREATE OR REPLACE TEMP TABLE hours AS SELECT * FROM grid")
    connection.unregister("grid")
