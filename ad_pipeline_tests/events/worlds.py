"""A small deployment to read logs in, and the oracle that says what must come of them.

The oracle looks at one row at a time and knows the whole log; the SQL works on hours and on what
earlier hours left behind. An error is unlikely to be in both.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.clocks import HOUR_US, hour_of
from ad_pipeline.datasets import Deployment, load_dataset
from ad_pipeline.events.contract import event_tables
from ad_pipeline.warehouse import Warehouse

START_US = 1_772_409_600_000_000
HOURS = 8
END_US = START_US + HOURS * HOUR_US
LAST_US = END_US + 3 * HOUR_US
"""End of the last hour that anything happens in: end + horizon."""

HORIZON_US = 3 * HOUR_US
CHAIN_WINDOWS_US = {"click": HOUR_US, "buy": 3 * HOUR_US}

DATASET = """
name: small
start: 2026-03-02T00:00Z
end: 2026-03-02T08:00Z
whole_hours: true
goals:
  click: {window: 1h, lateness: 1h}
  buy: {anchor: click, window: 2h, lateness: 1h}
sources:
  impressions:
    files: "{home}/logs/impressions/*"
    columns:
      impression_id: impression_id
      arm: arm
      colour: colour
      size: size
      propensity: propensity
      bid_price: bid_price
      occurred_us: occurred_us
      received_us: received_us
  engagements:
    files: "{home}/logs/engagements/*"
    columns:
      event_id: event_id
      impression_id: impression_id
      goal: goal
      value: value
      occurred_us: occurred_us
      received_us: received_us
  retractions:
    files: "{home}/logs/retractions/*"
    columns:
      event_id: event_id
      engagement_event_id: engagement_event_id
      reason: reason
      occurred_us: occurred_us
      received_us: received_us
features:
  categorical: [colour]
  numeric: [size]
"""

COLUMNS: Mapping[str, Mapping[str, pa.DataType]] = {
    "impressions": {
        "impression_id": pa.string(),
        "arm": pa.string(),
        "colour": pa.string(),
        "size": pa.float64(),
        "propensity": pa.float64(),
        "bid_price": pa.int64(),
        "occurred_us": pa.int64(),
        "received_us": pa.int64(),
    },
    "engagements": {
        "event_id": pa.string(),
        "impression_id": pa.string(),
        "goal": pa.string(),
        "value": pa.int64(),
        "occurred_us": pa.int64(),
        "received_us": pa.int64(),
    },
    "retractions": {
        "event_id": pa.string(),
        "engagement_event_id": pa.string(),
        "reason": pa.string(),
        "occurred_us": pa.int64(),
        "received_us": pa.int64(),
    },
}


Row = dict[str, Any]


def deployment_in(folder: Path, text: str = DATASET) -> Deployment:
    """Return a deployment whose dataset file and home lie in a folder."""
    path = folder / "dataset.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return Deployment(load_dataset(path), folder / "home")


def warehouse_of(deployment: Deployment) -> Warehouse:
    """Return the deployment's warehouse."""
    return Warehouse(deployment.warehouse, wait_seconds=20)


def write_rows(deployment: Deployment, table: str, name: str, rows: Sequence[Row]) -> Path:
    """Write rows as a Parquet log file; columns that a row lacks are null."""
    path = deployment.logs / table / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema(list(COLUMNS[table].items()))
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), path)
    return path


def close_log(deployment: Deployment) -> None:
    """Write the impression that says that the log is complete up to its last hour."""
    write_rows(
        deployment,
        "impressions",
        "zz_last",
        [impression("last", END_US - HOUR_US)],
    )


def impression(
    key: str | None, occurred_us: int, received_us: int | None = None, **more: Any
) -> Row:
    """Return an impression; received when it occurred, if not said otherwise."""
    received_us = occurred_us if received_us is None else received_us
    return {"impression_id": key, "occurred_us": occurred_us, "received_us": received_us} | more


def engagement(
    key: str | None,
    of: str,
    occurred_us: int,
    received_us: int | None = None,
    goal: str = "click",
    **more: Any,
) -> Row:
    """Return an engagement; received when it occurred, if not said otherwise."""
    return {
        "event_id": key,
        "impression_id": of,
        "goal": goal,
        "occurred_us": occurred_us,
        "received_us": occurred_us if received_us is None else received_us,
    } | more


Tables = dict[str, Counter[tuple[Any, ...]]]

SHOWN = {
    "impressions": "impression_id, bid_price, occurred_us, received_us, logged_us",
    "engagements": "event_id, impression_id, goal, value, occurred_us, received_us, logged_us, "
    "read_us",
    "held_engagements": "event_id, impression_id, goal, value, occurred_us, received_us, "
    "logged_us, due_us, file, content_md5",
    "duplicates": "table_name, key, received_us, logged_us, since_us, same_content, content_md5, "
    "copy",
    "quarantine": "table_name, key, reason, file, occurred_us, received_us, logged_us, read_us",
    "accounting": "table_name, hour_us, rows_in, kept, duplicates, held, released, quarantined, "
    "late, outside_window",
}
"""Columns that the oracle speaks about."""


def contents(warehouse: Warehouse) -> Tables:
    """Return the rows of every table the oracle speaks about, as multisets."""
    with warehouse.reader() as connection:
        return {
            table: Counter(
                connection.execute(
                    f"SELECT {columns} FROM events.{table} "
                    + (
                        "WHERE table_name IN ('impressions', 'engagements')"
                        * (table == "accounting")
                    )
                ).fetchall()
            )
            for table, columns in SHOWN.items()
        }


@dataclass(frozen=True)
class LoggedRow:
    """A row, its file's name in the ledger, and the hours sealed when the file appeared."""

    row: Row
    file: str
    sealed_until_us: int = 0

    @property
    def read_us(self) -> int:
        received = self.row["received_us"]
        return max(START_US, self.sealed_until_us, 0 if received is None else received)


def expected(
    deployment: Deployment,
    impressions: Iterable[LoggedRow],
    engagements: Iterable[LoggedRow],
    end_us: int = LAST_US,
) -> Tables:
    """Say what the tables must hold once all hours before ``end_us`` are ingested."""
    tables: Tables = {table: Counter() for table in SHOWN}
    accounts: dict[tuple[str, int], Counter[str]] = {
        (table, hour): Counter()
        for table in ("impressions", "engagements")
        for hour in range(START_US, end_us, HOUR_US)
    }

    def count(table: str, at_us: int, **changes: int) -> None:
        accounts[table, hour_of(at_us)].update(changes)

    def refuse(table: str, logged: LoggedRow, reason: str, at_us: int) -> None:
        row = logged.row
        key = row["impression_id" if table == "impressions" else "event_id"]
        tables["quarantine"][
            table,
            key,
            reason,
            logged.file,
            row["occurred_us"],
            at_us,
            row["received_us"],
            logged.read_us,
        ] += 1
        count(table, at_us, quarantined=1)

    unique: dict[str, list[LoggedRow]] = {"impressions": [], "engagements": []}
    for table, rows in (("impressions", impressions), ("engagements", engagements)):
        by_key: defaultdict[str, list[tuple[int, Any, str, str, LoggedRow]]] = defaultdict(list)
        for logged in rows:
            received = logged.row["received_us"]
            if logged.read_us >= end_us or (received is not None and received < START_US):
                continue
            late = received is not None and logged.read_us > received
            count(table, logged.read_us, rows_in=1, late=int(late))
            reason = broken(table, logged)
            if reason:
                refuse(table, logged, reason, logged.read_us)
                continue
            key = logged.row["impression_id" if table == "impressions" else "event_id"]
            md5 = content_hash(deployment, table, logged.row)
            by_key[key].append((logged.read_us, received, md5, logged.file, logged))
        for key, copies in by_key.items():
            copies.sort(key=lambda copy: copy[:4])
            places: Counter[int] = Counter()
            before: tuple[int, str] | None = None
            for read_us, received, md5, _, logged in copies:
                if before is not None and read_us - before[0] <= HORIZON_US:
                    places[read_us] += 1
                    tables["duplicates"][
                        table,
                        key,
                        read_us,
                        received,
                        before[0],
                        md5 == before[1],
                        md5,
                        places[read_us],
                    ] += 1
                    count(table, read_us, duplicates=1)
                else:
                    unique[table].append(logged)
                before = (read_us, md5)

    first: dict[str, tuple[int, int]] = {}
    for logged in unique["impressions"]:
        row = logged.row
        tables["impressions"][
            row["impression_id"],
            row.get("bid_price"),
            row["occurred_us"],
            logged.read_us,
            row["received_us"],
        ] += 1
        count("impressions", logged.read_us, kept=1)
        seen = (logged.read_us, row["occurred_us"])
        first[row["impression_id"]] = min(seen, first.get(row["impression_id"], seen))

    for logged in unique["engagements"]:
        row, read_us = logged.row, logged.read_us
        due_us = row["occurred_us"] + HORIZON_US
        came = first.get(row["impression_id"])
        met = came is not None and came[0] <= due_us
        settled_us = max(read_us, came[0]) if came is not None and met else due_us
        if hour_of(settled_us) > hour_of(read_us):
            tables["held_engagements"][
                row["event_id"], row["impression_id"], row["goal"], row.get("value"),
                row["occurred_us"], read_us, row["received_us"], due_us, logged.file,
                content_hash(deployment, "engagements", row),
            ] += 1  # fmt: skip
            for hour in range(hour_of(read_us), min(hour_of(settled_us), end_us), HOUR_US):
                count("engagements", hour, held=1)
        if settled_us >= end_us:
            continue
        if came is None or not met:
            refuse("engagements", logged, "orphan", due_us)
        elif row["occurred_us"] < came[1]:
            refuse("engagements", logged, "before its impression", settled_us)
        else:
            tables["engagements"][
                row["event_id"], row["impression_id"], row["goal"], row.get("value"),
                row["occurred_us"], settled_us, row["received_us"], read_us,
            ] += 1  # fmt: skip
            outside = row["occurred_us"] - came[1] > CHAIN_WINDOWS_US[row["goal"]]
            released = hour_of(settled_us) > hour_of(read_us)
            count(
                "engagements",
                settled_us,
                kept=1,
                released=int(released),
                outside_window=int(outside),
            )
    names = SHOWN["accounting"].split(", ")[2:]
    for (table, hour), counts in accounts.items():
        tables["accounting"][(table, hour, *(counts[name] for name in names))] += 1
    return tables


def broken(table: str, logged: LoggedRow) -> str | None:
    """Return the rule of the contract that a row breaks, the first in the contract's order."""
    row = logged.row
    required = (
        ("impression_id",) if table == "impressions" else ("event_id", "impression_id", "goal")
    )
    for column in (*required, "occurred_us", "received_us"):
        if row[column] in (None, ""):
            return f"missing {column}"
    if table == "engagements" and row["goal"] not in CHAIN_WINDOWS_US:
        return "unknown goal"
    if row["received_us"] < row["occurred_us"]:
        return "received before it occurred"
    if logged.read_us - HORIZON_US > row["occurred_us"]:
        return "too late"
    return None


def content_hash(deployment: Deployment, table: str, row: Row) -> str:
    """Return the MD5 of a row's contract columns without its times of receipt."""
    names = event_tables(deployment.dataset)[table].column_names
    parts = [
        chr(30) if row.get(name) is None else str(row[name])
        for name in names
        if name not in {"received_us", "logged_us", "read_us"}
    ]
    return hashlib.md5(chr(31).join(parts).encode(), usedforsecurity=False).hexdigest()
