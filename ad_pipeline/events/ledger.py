"""The file ledger: which log files there are, what they hold, and which hours they came late for.

A file is entered once. From then on its bytes must stay as they were, since hours computed from
them would otherwise not come out the same again. How its rows are read belongs to ``readers.py``.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from ad_pipeline.clocks import HOUR_US, hour_of
from ad_pipeline.datasets import Dataset, Deployment, Source, claim_home
from ad_pipeline.events.contract import LOG_TABLES, event_tables
from ad_pipeline.events.readers import LogFile, check_compressed, statistics
from ad_pipeline.warehouse import Warehouse, one_row


class ChangedLogFile(Exception):
    """A registered log file has other bytes than when it was registered; the message names it."""


class MissingLogFile(Exception):
    """A registered log file is gone; the message names it."""


@dataclass(frozen=True)
class LedgerEntry:
    """A row of ``events.files``; see its columns in ``contract.FILES``."""

    table_name: str
    source: int
    path: str
    sha256: str
    bytes: int
    sealed_until_us: int
    rows: int
    rows_before_start: int
    rows_without_clock: int
    first_received_us: int | None
    last_received_us: int | None
    last_sound_us: int | None

    def may_hold(self, start_us: int, end_us: int, dataset: Dataset) -> bool:
        """Return whether rows of the file may fall into the hours ``[start_us, end_us)``."""
        log_start = max(self.sealed_until_us, dataset.start_us)
        if self.rows_without_clock and start_us <= log_start < end_us:
            return True
        if self.first_received_us is None or self.last_received_us is None:
            return False
        first = max(self.first_received_us, log_start)
        last = max(self.last_received_us, log_start)
        return first < end_us and last >= start_us


Stamp = tuple[Path, int, int, int, int]
"""A file's path, inode, size, and times of its last write and change, nanoseconds."""


@dataclass(frozen=True)
class Registration:
    """What a look at the log folders found.

    Attributes
    ----------
    entries : tuple of LedgerEntry
        The whole ledger.
    new : tuple of LedgerEntry
        Those entered just now.
    empty_globs : tuple of str
        ``table: glob`` of each source pattern set that matches no file.
    """

    entries: tuple[LedgerEntry, ...]
    new: tuple[LedgerEntry, ...]
    empty_globs: tuple[str, ...]


def register_files(warehouse: Warehouse, deployment: Deployment) -> Registration:
    """Enter new log files into ``events.files``, once each.

    A file's ``sealed_until_us`` is the end of the last hour of its table that stands in
    ``events.accounting`` at this moment.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment

    Raises
    ------
    ChangedLogFile
        If a registered file has another size. Equal size and other bytes are found by
        :func:`verify`, before the file is read again.
    MissingLogFile
        If a registered file is gone.
    HomeTaken
        If the deployment's folder belongs to another dataset.
    UnreadableLog
        If a new file cannot be read to its end; then none of the new files is entered.
    """
    claim_home(deployment)
    dataset = deployment.dataset
    tables = event_tables(dataset)
    warehouse.create(tuple(tables.values()))
    with warehouse.reader() as connection:
        known = read_ledger(connection)
    for entry in known:
        path = deployment.on_disk(entry.path)
        if not path.is_file():
            raise MissingLogFile(_gone(entry, path))
        if path.stat().st_size != entry.bytes:
            raise ChangedLogFile(_changed(entry, path))
    known_keys = {(entry.table_name, entry.source, entry.path) for entry in known}
    digests: dict[Path, str] = {}
    new: list[LedgerEntry] = []
    empty: list[str] = []
    # Statistics are plain reads of the files: no lock is held for them.
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table, number, source in numbered_sources(dataset):
            paths = deployment.log_files(source)
            if not paths:
                empty.append(f"{source.table}: {', '.join(source.files)}")
            fresh = [
                path
                for path in paths
                if (source.table, number, deployment.log_path(path)) not in known_keys
            ]
            files = [LogFile(deployment.log_path(path), path, 0) for path in fresh]
            for path in fresh:
                if path not in digests:
                    digests[path] = sha256_of(path)
                    check_compressed(path)
            found = statistics(connection, dataset, tables[table], source, files)
            new += [
                LedgerEntry(
                    table_name=source.table,
                    source=number,
                    path=file.path,
                    sha256=digests[file.disk_path],
                    bytes=file.disk_path.stat().st_size,
                    sealed_until_us=0,
                    rows=found[file.path].rows,
                    rows_before_start=found[file.path].rows_before_start,
                    rows_without_clock=found[file.path].rows_without_clock,
                    first_received_us=found[file.path].first_received_us,
                    last_received_us=found[file.path].last_received_us,
                    last_sound_us=found[file.path].last_sound_us,
                )
                for file in files
            ]
    entries = known
    if new:
        with warehouse.writer() as connection:
            _enter(connection, new)
            entries = read_ledger(connection)
    entered = {(entry.table_name, entry.source, entry.path) for entry in new}
    return Registration(
        entries=entries,
        new=tuple(e for e in entries if (e.table_name, e.source, e.path) in entered),
        empty_globs=tuple(empty),
    )


def read_ledger(connection: duckdb.DuckDBPyConnection) -> tuple[LedgerEntry, ...]:
    """Return every entry, in the order of table, source and path."""
    columns = ", ".join(LedgerEntry.__dataclass_fields__)
    rows = connection.execute(
        f"SELECT {columns} FROM events.files ORDER BY table_name, source, path"
    ).fetchall()
    return tuple(LedgerEntry(*row) for row in rows)


def numbered_sources(dataset: Dataset) -> tuple[tuple[str, int, Source], ...]:
    """Return (table, place among the table's sources, source) for every source."""
    return tuple(
        (short, number, source)
        for short in (table.name.removeprefix("events.") for table in LOG_TABLES)
        for number, source in enumerate(dataset.sources_of(short))
    )


def verify(
    deployment: Deployment, entries: Iterable[LedgerEntry], digests: dict[Stamp, str]
) -> None:
    """Check that files still have the bytes that were registered.

    Parameters
    ----------
    deployment : Deployment
    entries : iterable of LedgerEntry
    digests : dict of Stamp to str
        What was hashed before, which is not hashed again; gets what is hashed now. A caller that
        reads a long range chunk by chunk keeps one for all of them: else each chunk would hash
        its files from end to end.

    Raises
    ------
    ChangedLogFile
        If one has not.
    MissingLogFile
        If one is gone.
    """
    for entry in entries:
        path = deployment.on_disk(entry.path)
        if not path.is_file():
            raise MissingLogFile(_gone(entry, path))
        stamp = stamp_of(path)
        if stamp not in digests:
            digests[stamp] = sha256_of(path)
        if digests[stamp] != entry.sha256:
            raise ChangedLogFile(_changed(entry, path))


def stamp_of(path: Path) -> Stamp:
    """Return what cannot stay the same when a file is written to or replaced."""
    found = path.stat()
    return path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def watermark_us(connection: duckdb.DuckDBPyConnection, dataset: Dataset) -> int:
    """Return the hour up to which the log is complete, microseconds; 0 if nothing is known.

    A log with an ``end`` is complete once an impression of its last hour was received: then
    nothing is waited for, and the hours until the last label matures are complete too. Before that,
    and in a log without end, it is complete up to the hour of the latest impression, since later
    ones may still be added to that hour, or up to its end if files hold whole hours.

    Parameters
    ----------
    connection : DuckDBPyConnection
        With ``events.files``.
    dataset : Dataset
    """
    (latest_us,) = one_row(
        connection, "SELECT max(last_sound_us) FROM events.files WHERE table_name = 'impressions'"
    )
    if latest_us is None:
        return 0
    if dataset.end_us is not None and latest_us >= dataset.end_us - HOUR_US:
        return dataset.last_hour_end_us or 0
    return hour_of(latest_us) + (HOUR_US if dataset.whole_hours else 0)


def sealed_until(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the end of the last hour in ``events.accounting``, microseconds; 0 if none."""
    (hour_us,) = one_row(connection, "SELECT max(hour_us) FROM events.accounting")
    return 0 if hour_us is None else hour_us + HOUR_US


def _enter(connection: duckdb.DuckDBPyConnection, new: Sequence[LedgerEntry]) -> None:
    """Insert entries that no other process entered since, bound to what is sealed right now."""
    sealed = dict(
        connection.execute(
            "SELECT table_name, max(hour_us) FROM events.accounting GROUP BY table_name"
        ).fetchall()
    )
    known = {(e.table_name, e.source, e.path) for e in read_ledger(connection)}
    columns = tuple(LedgerEntry.__dataclass_fields__)
    marks = ", ".join(f"${column}" for column in columns)
    rows = []
    for entry in new:
        if (entry.table_name, entry.source, entry.path) in known:
            continue
        last = sealed.get(entry.table_name)
        row = {column: getattr(entry, column) for column in columns}
        row["sealed_until_us"] = 0 if last is None else last + HOUR_US
        rows.append(row)
    if rows:
        connection.executemany(
            f"INSERT INTO events.files ({', '.join(columns)}) VALUES ({marks})", rows
        )


def _gone(entry: LedgerEntry, path: Path) -> str:
    return (
        f"{path}, registered as {entry.path} for {entry.table_name}, is gone; put it back: hours "
        "read from it could not be computed again"
    )


def _changed(entry: LedgerEntry, path: Path) -> str:
    return (
        f"{path} is not the file it was when {entry.path} was registered for {entry.table_name} "
        f"(SHA-256 {entry.sha256[:12]}..., {entry.bytes} bytes); logs are append-only: put the old "
        "bytes back and write new rows to a new file"
    )
