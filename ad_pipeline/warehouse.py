"""The DuckDB file of a deployment: who may open it when, and how a partition is replaced.

DuckDB lets one process write and then shuts out every other, readers too. Runs that the UI, the
sensors and the command line start are separate processes, so contention is normal here: readers
share and writers exclude by an OS file lock that dies with its process, and waiters queue with a
deadline and an error that names the holder. Compute inside ``reader()``, write inside ``writer()``,
and keep the second short. What the tables mean belongs to the rooms; their SELECTs stand in
``dbt_like_sql/``. Reading a table's lineage for the UI belongs to ``defs``.
"""

import errno
import fcntl
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

SQL_FOLDER = Path(__file__).resolve().parents[1] / "dbt_like_sql"

DURATIONS = frozenset({"delay_us", "wait_us", "horizon_us"})
"""Microsecond columns that are spans, not moments."""

_POLL_SECONDS = 0.02


class WarehouseBusy(TimeoutError):
    """The warehouse stayed in use until the waiter's deadline; the message names the holder."""


class UnreadableWarehouse(Exception):
    """The file is damaged, is no warehouse, or may not be read; the message names it."""


class WarehouseMismatch(Exception):
    """A table on disk has other columns than the code or the dataset file declares."""


@dataclass(frozen=True)
class Column:
    """A column: its name, DuckDB type and what it means (units in the text)."""

    name: str
    type: str
    description: str

    @property
    def is_moment(self) -> bool:
        """Whether it holds microseconds since the epoch."""
        return self.type == "BIGINT" and self.name.endswith("_us") and self.name not in DURATIONS


@dataclass(frozen=True)
class Table:
    """A table: ``room.name``, its columns, its key, and the clock that makes its partitions.

    Attributes
    ----------
    name : str
        ``room.table``; the same words name the asset, the schema and the SQL file.
    columns : tuple of Column
    key : tuple of str
        Columns that identify a row.
    clock : str or None
        Microsecond column whose hour is the partition; None for an unpartitioned table.
    description : str
        Grain and meaning, for people.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    clock: str | None
    description: str

    def with_columns(self, *columns: Column) -> "Table":
        """Return the same table with further columns."""
        return replace(self, columns=self.columns + columns)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)


class Warehouse:
    """The DuckDB file, opened for reading by many or for writing by one.

    Parameters
    ----------
    path : Path
        The database file; made on first write.
    wait_seconds : float
        How long to queue for it before :class:`WarehouseBusy`.
    """

    def __init__(self, path: Path, *, wait_seconds: float = 600.0) -> None:
        self.path = path
        self.wait_seconds = wait_seconds

    @contextmanager
    def reader(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open the warehouse read-only, beside other readers.

        Yields
        ------
        DuckDBPyConnection
            An in-memory connection in which ``room.table`` means the warehouse's table and
            temporary tables may be made.

        Raises
        ------
        FileNotFoundError
            If there is no warehouse yet.
        WarehouseBusy
            If a writer holds it past the deadline.
        UnreadableWarehouse
            If the file is damaged, is no warehouse, or may not be read.
        """
        with self._lock(fcntl.LOCK_SH):
            if not self.path.exists():
                raise FileNotFoundError(
                    f"{self.path} does not exist yet; materialize the events first"
                )
            with self._attached("READ_ONLY") as connection:
                yield connection

    @contextmanager
    def writer(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open the warehouse alone, inside one transaction that commits on success.

        Yields
        ------
        DuckDBPyConnection
            As from :meth:`reader`, writable.

        Raises
        ------
        WarehouseBusy
            If anyone holds it past the deadline.
        UnreadableWarehouse
            As for :meth:`reader`.
        """
        with self._lock(fcntl.LOCK_EX):
            self._make_file()
            with self._attached("READ_WRITE") as connection:
                connection.execute("BEGIN TRANSACTION")
                yield connection
                connection.execute("COMMIT")

    def create(self, tables: Sequence[Table]) -> None:
        """Create what is missing of the tables, and a ``_readable`` view of each.

        Raises
        ------
        WarehouseMismatch
            If a table exists with other columns.
        """
        if self.path.exists():
            with self.reader() as connection:
                if all(_exists_as_declared(connection, table) for table in tables):
                    return
        with self.writer() as connection:
            for table in tables:
                if _exists_as_declared(connection, table):
                    continue
                schema = table.name.partition(".")[0]
                columns = ", ".join(f'"{c.name}" {c.type}' for c in table.columns)
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
                connection.execute(f"CREATE TABLE {table.name} ({columns})")
                connection.execute(
                    f"COMMENT ON TABLE {table.name} IS {_literal(table.description)}"
                )
                connection.execute(_readable_view(table))

    def _make_file(self) -> None:
        """Make the database file if there is none; the caller holds the lock alone.

        DuckDB writes a new file's headers one after the other, and refuses for ever a file that was
        killed between them. So it gets its name when it is whole.
        """
        if self.path.exists():
            return
        scratch = self.path.with_name(f".{self.path.name}.writing")
        scratch.unlink(missing_ok=True)
        duckdb.connect(str(scratch)).close()
        scratch.rename(self.path)

    @contextmanager
    def _attached(self, mode: str) -> Iterator[duckdb.DuckDBPyConnection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        spill = self.path.with_suffix(".spill")
        with duckdb.connect(":memory:", config={"temp_directory": str(spill)}) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            try:
                connection.execute(f"ATTACH {_literal(str(self.path))} AS warehouse ({mode})")
            except duckdb.Error as error:
                if "lock on file" in str(error):
                    raise WarehouseBusy(
                        f"{self.path} is open in another program that does not queue; close it "
                        f"there: {error}"
                    ) from error
                raise self._unreadable(error) from error
            connection.execute("USE warehouse")
            try:
                yield connection
            except duckdb.Error as error:
                # A block is read, and its check sum compared, when a query needs it.
                if str(error).startswith("Corrupt database file"):
                    raise self._unreadable(error) from error
                raise

    def _unreadable(self, error: duckdb.Error) -> UnreadableWarehouse:
        return UnreadableWarehouse(
            f"{self.path} cannot be read as a warehouse ({str(error).splitlines()[0]}); put a copy "
            "of it back or see to its permissions, or move it away and materialize all hours "
            "again: everything in it is computed from the log files"
        )

    @contextmanager
    def _lock(self, mode: int) -> Iterator[None]:
        """Hold the lock file, shared or alone.

        Everyone passes a turnstile first, so that a waiting writer is not starved by readers that
        keep coming.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.wait_seconds
        with _opened(self.path.with_suffix(".lock")) as lock:
            with _opened(self.path.with_suffix(".turnstile")) as turnstile:
                self._acquire(turnstile, fcntl.LOCK_EX, deadline)
                self._acquire(lock, mode, deadline)
            note = self._holders_folder() / f"{os.getpid()}-{lock}.json"
            note.parent.mkdir(exist_ok=True)
            note.write_text(
                json.dumps({"pid": os.getpid(), "command": " ".join(sys.argv)[:500] or "python"})
            )
            try:
                yield
            finally:
                note.unlink(missing_ok=True)

    def _acquire(self, descriptor: int, mode: int, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                if time.monotonic() >= deadline:
                    raise WarehouseBusy(
                        f"{self.path} was in use for {self.wait_seconds:g} s by "
                        f"{self._holders() or 'an unknown process'}; wait for it or stop it"
                    ) from error
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _holders_folder(self) -> Path:
        return self.path.with_suffix(".holders")

    def _holders(self) -> str:
        """Name the live processes that hold the lock, for the error message."""
        notes = [
            json.loads(path.read_text() or "{}") for path in self._holders_folder().glob("*.json")
        ]
        return "; ".join(
            f"process {note['pid']} ({note['command']})"
            for note in notes
            if note and Path(f"/proc/{note['pid']}").exists()
        )


def select(name: str) -> str:
    """Return the SELECT of ``dbt_like_sql/<room>/<table>.sql``.

    Parameters
    ----------
    name : str
        ``room.table``.
    """
    room, _, table = name.partition(".")
    return (SQL_FOLDER / room / f"{table}.sql").read_text().rstrip().rstrip(";")


def bound(query: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the parameters that a query names as ``$name``; DuckDB refuses the others."""
    named = set(re.findall(r"\$([A-Za-z_]\w*)", query))
    return {name: value for name, value in parameters.items() if name in named}


def rows_of(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    parameters: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Return a query's rows as an Arrow table.

    Parameters
    ----------
    connection : DuckDBPyConnection
    query : str
        One SELECT.
    parameters : mapping, optional
        Values for the query's ``$names``; those it does not name are left out.

    Returns
    -------
    pyarrow.Table
    """
    # What an earlier execute() left unread would make sql() refuse.
    connection.complete()
    return connection.sql(query, params=bound(query, parameters or {})).to_arrow_table()


def batches_of(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    parameters: Mapping[str, Any] | None = None,
    *,
    rows: int,
) -> pa.RecordBatchReader:
    """Return a query's rows a batch at a time, while it runs; as :func:`rows_of` otherwise.

    Parameters
    ----------
    rows : int
        Of a batch, about.
    """
    connection.complete()
    return connection.sql(query, params=bound(query, parameters or {})).to_arrow_reader(rows)


_ARROW_TYPES = {
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "SMALLINT": pa.int16(),
    "TINYINT": pa.int8(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
    "BOOLEAN": pa.bool_(),
    "DOUBLE[]": pa.list_(pa.float64()),
}


def arrow_rows(table: Table, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Return records as an Arrow table with a table's columns and types, NaN as null.

    Parameters
    ----------
    table : Table
    rows : iterable of mapping
        Column name to value.

    Returns
    -------
    pyarrow.Table
        May be empty; the columns are there all the same.

    Raises
    ------
    ValueError
        If a record has a column that the table does not declare, or lacks one.
    """
    records = list(rows)
    for record in records:
        if set(record) != set(table.column_names):
            raise ValueError(
                f"{table.name} has columns {table.column_names}, a row has {tuple(record)}"
            )
    schema = pa.schema([(column.name, _ARROW_TYPES[column.type]) for column in table.columns])
    return pa.Table.from_pylist(
        [{name: _null_if_nan(value) for name, value in record.items()} for record in records],
        schema=schema,
    )


def _null_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def one_row(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Return the only row of a query such as an aggregate.

    All of the result is fetched: an unfinished one would keep the connection from the next query.

    Raises
    ------
    ValueError
        If there is another number of rows than one.
    """
    rows = connection.execute(query, bound(query, parameters or {})).fetchall()
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows where one was expected: {query}")
    return rows[0]


def replace_hours(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    query: str,
    parameters: Mapping[str, Any],
    start_us: int,
    end_us: int,
) -> int:
    """Replace the rows of some hours by a query's rows, inside the caller's transaction.

    Parameters
    ----------
    connection : DuckDBPyConnection
        From :meth:`Warehouse.writer`.
    table : Table
        With a clock.
    query : str
        SELECT whose columns carry the table's names.
    parameters : mapping
        Values for the query's ``$names``.
    start_us, end_us : int
        The hours ``[start_us, end_us)`` of the table's clock.

    Returns
    -------
    int
        Rows inserted.
    """
    connection.execute(
        f"DELETE FROM {table.name} WHERE {table.clock} >= $start_us AND {table.clock} < $end_us",
        {"start_us": start_us, "end_us": end_us},
    )
    return int(one_row(connection, f"INSERT INTO {table.name} BY NAME {query}", parameters)[0])


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _exists_as_declared(connection: duckdb.DuckDBPyConnection, table: Table) -> bool:
    schema, _, name = table.name.partition(".")
    found = connection.execute(
        "SELECT column_name, data_type FROM information_schema.columns "
        "WHERE table_catalog = 'warehouse' AND table_schema = $schema AND table_name = $name "
        "ORDER BY ordinal_position",
        {"schema": schema, "name": name},
    ).fetchall()
    declared = [(column.name, column.type) for column in table.columns]
    if found and found != declared:
        raise WarehouseMismatch(
            f"{table.name} in the warehouse has columns {found}, but {declared} are declared; "
            "point AD_PIPELINE_HOME at a new folder, or undo the change of the dataset file"
        )
    return bool(found)


def _readable_view(table: Table) -> str:
    moments = [column.name for column in table.columns if column.is_moment]
    replaced = ", ".join(f"make_timestamptz({name}) AS {name}" for name in moments)
    columns = f"* REPLACE ({replaced})" if replaced else "*"
    return f"CREATE OR REPLACE VIEW {table.name}_readable AS SELECT {columns} FROM {table.name}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
