"""Turns log files into rows of the contract: one SELECT for files that look alike.

A row of a file either fits the contract or carries the reason why it does not; nothing is dropped
here and nothing fails for the sake of one row. CSV columns are read as text, JSON lines by the keys
that the mapping names, so that no type is guessed from the first rows. Which rows are duplicates or
wait for their impression is decided in ``ingest.py`` and ``dbt_like_sql/events``.

Clocks are int64 microseconds, so a dataset file writes

* ``occurred_us`` or ``occurred_ms * 1000`` for integer epochs,
* ``epoch_us(CAST(ts AS TIMESTAMPTZ))`` for ISO text with a zone and for zoned timestamps: a row
  whose text has no zone is refused,
* ``epoch_us(ts AT TIME ZONE 'UTC')`` for Parquet timestamps without a zone,
* ``epoch_us(strptime(ts, '%d/%m/%Y %H:%M:%S'))`` for other text, which is then taken as UTC,
* ``epoch_us(timezone('Asia/Shanghai', strptime(ts, '%Y%m%d%H%M%S%g')))`` for text of another zone,
* ``epoch_us(TIMESTAMPTZ '2014-01-01T00:00Z') + 1000000 * CAST(s AS BIGINT)`` for seconds from a
  moment.
"""

import csv
import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import exp

from ad_pipeline.datasets import (
    CLOCKS,
    REQUIRED,
    SOURCE_FILE,
    SOURCE_ROW,
    Dataset,
    Source,
    error_at,
    parse_expression,
)
from ad_pipeline.warehouse import Table

LATEST_CLOCK_US = 7_258_118_400_000_000
"""2200-01-01: a clock past it was written in nanoseconds or by a broken machine."""

LONGEST_TEXT = 65_536
"""Bytes of the longest text that a row may hold; ids and categories are far shorter. A row with a
longer one is refused, and of a refused row's own text no more is kept than this."""

_ZONED = r":\d{2}(\.\d+)?\s*(Z|[+-]\d{1,2}(:?\d{2}){0,2}|[A-Za-z][A-Za-z0-9_/+-]*)\s*$"
"""What the text of a moment ends with if it names its zone: a time of day, then the zone."""

_WITHOUT_ZONE = frozenset({"TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE"})

_INTEGERS = frozenset(
    [
        "TINYINT",
        "SMALLINT",
        "INTEGER",
        "BIGINT",
        "HUGEINT",
        "UTINYINT",
        "USMALLINT",
        "UINTEGER",
        "UBIGINT",
        "UHUGEINT",
    ]
)
_ENDINGS: dict[str, Literal["parquet", "csv", "jsonl"]] = {
    "parquet": "parquet",
    "csv": "csv",
    "tsv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
}
_COMPRESSED = frozenset({"gz", "zst"})
_DELIMITERS = (",", "\t", ";", "|")

# A character that JSON refuses inside a line: with it as the delimiter a line is one field.
_NEVER_IN_JSON = chr(1)

_CHUNK_BYTES = 1 << 20


class UnreadableLog(Exception):
    """A log file cannot be read as a whole; the message names it and says what to do."""


@dataclass(frozen=True)
class LogFile:
    """A registered file of a source.

    Attributes
    ----------
    path : str
        Name in the ledger.
    disk_path : Path
    sealed_until_us : int
        Rows received before it count as received then, microseconds; 0 if the log was read whole.
    """

    path: str
    disk_path: Path
    sealed_until_us: int


@dataclass(frozen=True)
class Layout:
    """What files must share to be read by one SELECT.

    Attributes
    ----------
    format : {'parquet', 'csv', 'jsonl'}
    delimiter : str
        Of a CSV, else empty.
    header : bool
        Whether the first line is a header, as CSV files may have one.
    columns : tuple of (name, DuckDB type)
        Empty for JSON lines, whose keys may differ from line to line.
    """

    format: Literal["parquet", "csv", "jsonl"]
    delimiter: str
    header: bool
    columns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FileStatistics:
    """What the ledger wants to know of one file; counts are rows, clocks microseconds."""

    rows: int
    rows_before_start: int
    rows_without_clock: int
    first_received_us: int | None
    last_received_us: int | None
    last_sound_us: int | None


def statistics(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    table: Table,
    source: Source,
    files: Sequence[LogFile],
) -> dict[str, FileStatistics]:
    """Return the row counts and the span of the clocks of each file, by ledger name."""
    found = {file.path: FileStatistics(0, 0, 0, None, None, None) for file in files}
    for layout, group in layouts(connection, source, files):
        with _blaming(connection, layout, group):
            rows = mapped_rows(connection, dataset, table, source, layout, group)
        sound = "received_us >= occurred_us AND received_us - $horizon_us <= occurred_us"
        query = f"""
            SELECT
                landed_file,
                count(*),
                count(*) FILTER (WHERE received_us < $start_us),
                count(*) FILTER (WHERE received_us IS NULL),
                min(received_us) FILTER (WHERE received_us >= $start_us),
                max(received_us),
                max(received_us) FILTER (WHERE {sound})
            FROM ({rows}) AS mapped
            GROUP BY landed_file
            """
        clocks = {"start_us": dataset.start_us, "horizon_us": dataset.horizon_us}
        with _blaming(connection, layout, group):
            counted = connection.execute(query, clocks).fetchall()
        found |= {path: FileStatistics(*numbers) for path, *numbers in counted}
        for path, _, _ in _rejected(connection, layout, group):
            was = found[path]
            found[path] = FileStatistics(
                was.rows + 1,
                was.rows_before_start,
                was.rows_without_clock + 1,
                was.first_received_us,
                was.last_received_us,
                was.last_sound_us,
            )
    return found


def land(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    table: Table,
    files: Iterable[tuple[Source, Sequence[LogFile]]],
    start_us: int,
    end_us: int,
) -> None:
    """Fill the temporary table ``landed_<table>`` with the rows received in some hours.

    Its columns are the table's (``received_us`` already bumped for late files), ``landed_reason``
    (null for a row that fits the contract), ``landed_json`` (of the others), ``landed_file`` and
    ``landed_id`` (null for an unreadable line).

    Parameters
    ----------
    connection : DuckDBPyConnection
    dataset : Dataset
    table : Table
        A log table of ``contract.event_tables``.
    files : iterable of (Source, sequence of LogFile)
        Files that may hold rows of these hours.
    start_us, end_us : int
        Hours ``[start_us, end_us)``, microseconds.
    """
    name = f"temp.landed_{table.name.removeprefix('events.')}"
    columns = ", ".join(f'"{c.name}" {c.type}' for c in table.columns if c.name != "read_us")
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {name.removeprefix('temp.')} ({columns}, landed_reason "
        "VARCHAR, landed_json VARCHAR, landed_file VARCHAR, landed_id BIGINT)"
    )
    clocks = {"start_us": start_us, "end_us": end_us}
    landed = 0
    for source, chosen in files:
        for layout, group in layouts(connection, source, chosen):
            with _blaming(connection, layout, group):
                rows = mapped_rows(connection, dataset, table, source, layout, group)
            log_start = f"greatest({group[0].sealed_until_us}, {dataset.start_us})"
            with _blaming(connection, layout, group):
                inserted = connection.execute(
                    f"INSERT INTO {name} BY NAME "
                    f"SELECT *, {landed} + row_number() OVER () AS landed_id "
                    f"FROM ({_landed(table, dataset, rows, log_start, layout)})",
                    clocks,
                ).fetchone()
            landed += int(inserted[0]) if inserted else 0
            unreadable = _rejected(connection, layout, group)
            base_us = max(group[0].sealed_until_us, dataset.start_us)
            if start_us <= base_us < end_us and unreadable:
                connection.executemany(
                    f"INSERT INTO {name} BY NAME SELECT $at AS received_us, "
                    "$reason AS landed_reason, to_json($line::VARCHAR) AS landed_json, "
                    "$file AS landed_file",
                    [
                        {"at": base_us, "reason": reason, "line": line, "file": path}
                        for path, line, reason in unreadable
                    ],
                )


def content_md5(table: Table) -> str:
    """Return the SQL of a row's content hash: every column but the times of receipt.

    The same text over landed and over committed rows, since both have the table's types. It is
    computed for rows that may be duplicates only: over all rows it would double an hour's cost.
    """
    parts = ", ".join(
        f'coalesce(CAST("{column.name}" AS VARCHAR), chr(30))'
        for column in table.columns
        if column.name not in {"received_us", "logged_us", "read_us"}
    )
    return f"md5(concat_ws(chr(31), {parts}))"


def format_of(source: Source, path: Path) -> Literal["parquet", "csv", "jsonl"]:
    """Return a file's format, by the source's ``format`` or the file's ending.

    Raises
    ------
    UnreadableLog
        If neither tells.
    """
    if source.format is not None:
        return source.format
    endings = [ending for ending in path.name.lower().split(".")[1:] if ending not in _COMPRESSED]
    if not endings or endings[-1] not in _ENDINGS:
        raise UnreadableLog(
            f"{path} ends in none of {', '.join(sorted(_ENDINGS))} (with .gz or .zst behind it or "
            f"not); write 'format:' for the source of {source.table} in the dataset file"
        )
    return _ENDINGS[endings[-1]]


def layouts(
    connection: duckdb.DuckDBPyConnection, source: Source, files: Iterable[LogFile]
) -> Iterator[tuple[Layout, list[LogFile]]]:
    """Group files by what one SELECT can read: same columns and same late bound.

    Files without a single line are left out.
    """
    groups: dict[tuple[Layout, int], list[LogFile]] = {}
    for file in files:
        layout = _layout_of(connection, source, file.disk_path)
        if layout is not None:
            groups.setdefault((layout, file.sealed_until_us), []).append(file)
    for (layout, _), group in groups.items():
        yield layout, group


@contextmanager
def _blaming(
    connection: duckdb.DuckDBPyConnection, layout: Layout, group: Sequence[LogFile]
) -> Iterator[None]:
    """Name the file at fault when reading a group fails for what stands in a file.

    DuckDB's own message often names none, and files are read many at a time.
    """
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        for file in group:
            problem = _unreadable(connection, layout, file.disk_path)
            if problem is not None:
                raise _unreadable_log(file.disk_path, layout.format, problem) from error
        raise


def _unreadable(
    connection: duckdb.DuckDBPyConnection, layout: Layout, path: Path
) -> duckdb.Error | None:
    """Return what keeps a file from being read to its end, or None."""
    # A count may be taken from the footer; a hash needs every value.
    everything = (
        f"SELECT max(hash(COLUMNS(*))) FROM read_parquet({_sql_list([path])})"
        if layout.format == "parquet"
        else f"SELECT max(hash(line)) FROM {_lines_of([path])}"
    )
    try:
        connection.execute(everything).fetchall()
    except duckdb.Error as error:
        return error
    finally:
        _forget_rejects(connection)
    return None


def _unreadable_log(path: Path, format_: str, problem: Exception) -> UnreadableLog:
    return UnreadableLog(
        f"{path} is no readable {format_} file ({str(problem).splitlines()[0]}); mend it, or "
        "take it out of the globs in the dataset file"
    )


def check_compressed(path: Path) -> None:
    """Read a compressed file to its end, since DuckDB takes a damaged one as it comes.

    It neither compares the check sum of a gzip file nor misses the end of a Zstandard one.

    Raises
    ------
    UnreadableLog
        If the file is cut off or has other bytes than were compressed.
    """
    codec = {"gz": "gzip", "zst": "zstd"}.get(path.name.lower().rpartition(".")[2])
    if codec is None:
        return
    try:
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, codec) as stream:
            while stream.read(_CHUNK_BYTES):
                pass
    except OSError as error:
        raise _unreadable_log(path, codec, error) from error


def _layout_of(connection: duckdb.DuckDBPyConnection, source: Source, path: Path) -> Layout | None:
    format_ = format_of(source, path)
    if format_ == "jsonl":
        _refuse_csv_form(source, path, "jsonl")
        return Layout("jsonl", "", False, ())
    try:
        if format_ == "parquet":
            described = connection.execute(
                "DESCRIBE SELECT * FROM read_parquet($path)", {"path": str(path)}
            ).fetchall()
            _refuse_csv_form(source, path, "parquet")
            columns = tuple((name, type_) for name, type_, *_ in described)
            return Layout("parquet", "", False, columns)
        header = connection.execute(f"SELECT line FROM {_lines_of([path])} LIMIT 1").fetchone()
    except duckdb.Error as error:
        raise _unreadable_log(path, format_, error) from error
    if header is None or header[0] is None:
        return None
    line = header[0].lstrip("\ufeff").rstrip("\r")
    delimiter = source.delimiter or max(_DELIMITERS, key=line.count)
    fields = next(csv.reader([line], delimiter=delimiter, **_quoting(source)), [])
    names = [
        (name.strip() if source.header else "") or f"column{place}"
        for place, name in enumerate(fields)
    ]
    if source.names:
        if len(source.names) != len(names):
            raise UnreadableLog(
                f"{path} has {len(names)} fields in its first line, 'names' lists "
                f"{len(source.names)}; name every field of the source of {source.table}"
                + _maybe_another_delimiter(source, line, delimiter)
            )
        names = list(source.names)
    twice = {name for name in names if [n.lower() for n in names].count(name.lower()) > 1}
    if twice:
        raise UnreadableLog(
            f"{path} has two columns named {sorted(twice)}; list 'names:' of all its columns for "
            f"the source of {source.table}, or write 'header: false' if its first line is a row"
        )
    return Layout("csv", delimiter, source.header, tuple((name, "VARCHAR") for name in names))


def _refuse_csv_form(source: Source, path: Path, format_: str) -> None:
    """Refuse what only a CSV can have, where the format was told from the file's ending."""
    if source.delimiter or source.names or source.nulls or not source.header or source.quote != '"':
        raise UnreadableLog(
            f"{path} is read as {format_}, but its source of {source.table} says how a CSV is "
            "written (delimiter, header, names, quote or nulls); leave that out, or write "
            "'format: csv'"
        )


def _quoting(source: Source) -> dict[str, Any]:
    """Return the arguments of ``csv.reader`` for a source's quotation marks."""
    return {"quotechar": source.quote} if source.quote else {"quoting": csv.QUOTE_NONE}


def _maybe_another_delimiter(source: Source, line: str, delimiter: str) -> str:
    for other in _DELIMITERS:
        if other != delimiter and line.count(other) + 1 == len(source.names):
            return f", or write 'delimiter: {other!r}'"
    return ""


def _lines_of(paths: Iterable[Path]) -> str:
    """Return the SQL that reads text files line by line as ``line`` and ``filename``."""
    return (
        f"read_csv({_sql_list(paths)}, columns = {{'line': 'VARCHAR'}}, header = false, "
        f"delim = '{_NEVER_IN_JSON}', quote = '', escape = '', auto_detect = false, "
        "store_rejects = true, rejects_limit = 0, filename = true)"
    )


def relation_of(
    source: Source, layout: Layout, paths: Sequence[Path], *, numbered: bool = False
) -> str:
    """Return the SQL that reads files; numbered ones have each row's place in its file as well."""
    if numbered and layout.format == "parquet":
        return (
            "(SELECT * EXCLUDE (file_row_number), file_row_number + 1 AS source_row FROM "
            f"read_parquet({_sql_list(paths)}, filename = true, file_row_number = true))"
        )
    if numbered:
        # DuckDB numbers rows in the order of the file, and the files one after the other.
        return (
            "("
            + " UNION ALL ".join(
                f"SELECT *, row_number() OVER () AS {SOURCE_ROW} "
                f"FROM {relation_of(source, layout, [path])}"
                for path in paths
            )
            + ")"
        )
    if layout.format == "parquet":
        return f"read_parquet({_sql_list(paths)}, filename = true)"
    if layout.format == "jsonl":
        return _lines_of(paths)
    columns = ", ".join(f"{_sql_text(name)}: {_sql_text(type_)}" for name, type_ in layout.columns)
    return (
        f"read_csv({_sql_list(paths)}, columns = {{{columns}}}, header = {layout.header}, "
        f"delim = {_sql_text(layout.delimiter)}, quote = {_sql_text(source.quote)}, "
        f"escape = {_sql_text(source.quote)}, nullstr = {_sql_texts(('', *source.nulls))}, "
        "auto_detect = false, store_rejects = true, rejects_limit = 0, filename = true)"
    )


def _rejected(
    connection: duckdb.DuckDBPyConnection, layout: Layout, group: Sequence[LogFile]
) -> list[tuple[str, str, str]]:
    """Return (ledger name, text, reason) of each line that the last read could not take apart.

    DuckDB keeps the beginning of such a line only.
    """
    if layout.format == "parquet":
        return []
    names = {str(file.disk_path): file.path for file in group}
    found = connection.execute(
        """
        SELECT
            scans.file_path,
            any_value(errors.csv_line ORDER BY errors.error_message),
            CASE WHEN bool_or(errors.error_type = 'LINE SIZE OVER MAXIMUM') THEN 'line too long'
                ELSE 'unreadable line' END
        FROM temp.reject_errors AS errors
        INNER JOIN temp.reject_scans AS scans
            ON scans.scan_id = errors.scan_id AND scans.file_id = errors.file_id
        GROUP BY scans.file_path, errors.scan_id, errors.line
        ORDER BY scans.file_path, errors.line
        """
    ).fetchall()
    _forget_rejects(connection)
    return [(names[path], line or "", reason) for path, line, reason in found]


def _forget_rejects(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("DROP TABLE IF EXISTS temp.reject_errors")
    connection.execute("DROP TABLE IF EXISTS temp.reject_scans")


def mapped_rows(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    table: Table,
    source: Source,
    layout: Layout,
    group: Sequence[LogFile],
) -> str:
    """Return the SELECT of a group's rows as typed columns.

    Its columns are the table's own (null where the text does not fit), ``landed_wrong`` (what does
    not), ``landed_source`` (the row as JSON), ``landed_has_clock`` and ``landed_file``.
    """
    _forget_rejects(connection)
    connection.execute("CREATE OR REPLACE TEMP TABLE log_files (disk_path VARCHAR, file VARCHAR)")
    connection.executemany(
        "INSERT INTO temp.log_files VALUES ($disk, $file)",
        [{"disk": str(file.disk_path), "file": file.path} for file in group],
    )
    names = _Names(dataset, source, layout, group[0].disk_path)
    raws = {name: names.bound(text, ("columns", name)) for name, text in source.columns.items()}
    conditions = {} if source.where is None else {"": names.bound(source.where, ("where",))}
    relation = relation_of(
        source, layout, [file.disk_path for file in group], numbered=names.numbers_rows
    )
    inner = (
        f"FROM {relation} AS source "
        "INNER JOIN temp.log_files AS log ON log.disk_path = source.filename"
    )
    if layout.format == "jsonl":
        paths = ", ".join(_sql_text(f'$."{key}"') for key in names.keys) or "'$'"
        inner = (
            "FROM (SELECT *, CASE WHEN json_valid(line) THEN "
            f"json_extract_string(line, [{paths}]) END AS parts FROM {relation} "
            "WHERE line IS NOT NULL) AS source "
            "INNER JOIN temp.log_files AS log ON log.disk_path = source.filename"
        )
        source_json = "source.line"
    else:
        # A struct costs nothing until it is turned into JSON, which is done for refused rows only.
        pairs = ", ".join(
            f'"{_doubled(name)}" := source."{_doubled(name)}"' for name, _ in layout.columns
        )
        source_json = f"struct_pack({pairs})"
    types = _types(connection, names, raws | conditions, inner)
    raws = _asking_for_zones(connection, raws, inner)
    own = {column.name: column.type for column in table.columns}
    values: list[str] = []
    wrong: list[str] = []
    if layout.format == "jsonl":
        wrong.append("WHEN source.parts IS NULL THEN 'unreadable line'")
    for name, type_ in own.items():
        if name in {"logged_us", "read_us"}:
            continue
        if name not in raws:
            values.append(f'CAST(NULL AS {type_}) AS "{name}"')
            continue
        value, is_wrong = _typed(raws[name], types[name], type_)
        if value is None:
            raise error_at(
                dataset,
                ("sources", source.table, "columns", name),
                f"the expression gives {types[name]} of {group[0].disk_path} where {type_} is "
                "wanted",
                "write epoch_us(CAST(... AS TIMESTAMPTZ)) for a timestamp"
                if name in CLOCKS
                else f"write an expression of type {type_}",
            )
        values.append(f'{value} AS "{name}"')
        if is_wrong:
            wrong += [
                f"WHEN ({is_wrong}) AND {_lacks_zone(text)} THEN 'no time zone: {name}'"
                for text in raws[name].moments
            ]
            wrong.append(f"WHEN {is_wrong} THEN 'wrong type: {name}'")
    condition = "TRUE"
    for bound in conditions.values():
        where = bound.sql
        condition = f"(TRY({where}) OR {_raises(where)})"
        if layout.format == "jsonl":
            condition = f"(source.parts IS NULL OR {condition})"
        wrong.append(f"WHEN {_raises(where)} THEN 'wrong type: where'")
    reason = f"CASE {' '.join(wrong)} END" if wrong else "CAST(NULL AS VARCHAR)"
    clock = f'CASE WHEN "received_us" BETWEEN 0 AND {LATEST_CLOCK_US} THEN "received_us" END'
    return (
        f"SELECT * REPLACE ({clock} AS received_us), "
        '"received_us" IS NOT NULL AS landed_has_clock FROM ('
        f"SELECT {', '.join(values)}, {reason} AS landed_wrong, {source_json} AS landed_source, "
        f"log.file AS landed_file "
        f"{inner} WHERE {condition})"
    )


def _landed(table: Table, dataset: Dataset, rows: str, log_start: str, layout: Layout) -> str:
    """Return the SELECT that bumps late rows, says what each breaks, and cuts out the hours."""
    short = table.name.removeprefix("events.")
    as_json = "landed_source"
    if layout.format != "jsonl":
        as_json = "CAST(to_json(landed_source) AS VARCHAR)"
    # As it is kept of an unreadable line: the beginning, as one JSON text.
    as_json = (
        f"CASE WHEN strlen({as_json}) <= {LONGEST_TEXT} THEN {as_json} "
        f"ELSE CAST(to_json({_beginning(as_json)}) AS VARCHAR) END"
    )
    reasons = ["WHEN landed_wrong IS NOT NULL THEN landed_wrong"]
    for name in REQUIRED[short]:
        missing = f'"{name}" IS NULL'
        if name == "received_us":
            reasons.append(
                "WHEN landed_has_clock AND received_us IS NULL THEN 'clock out of range'"
            )
            missing = "logged_us IS NULL"
        elif name != "occurred_us":
            missing = f"({missing} OR \"{name}\" = '')"
        reasons.append(f"WHEN {missing} THEN 'missing {name}'")
    reasons += [
        f"WHEN strlen(\"{c.name}\") > {LONGEST_TEXT} THEN 'text too long: {c.name}'"
        for c in table.columns
        if c.type == "VARCHAR"
    ]
    reasons += [
        f"WHEN isinf(\"{c.name}\") THEN 'not finite: {c.name}'"
        for c in table.columns
        if c.type == "DOUBLE"
    ]
    if short == "impressions":
        reasons.append("WHEN propensity <= 0 OR propensity > 1 THEN 'propensity outside (0, 1]'")
    if short == "engagements":
        goals = ", ".join(_sql_text(name) for name in dataset.goal_names)
        reasons.append(f"WHEN goal NOT IN ({goals}) THEN 'unknown goal'")
    reasons += [
        "WHEN logged_us < occurred_us THEN 'received before it occurred'",
        f"WHEN landed_us - {dataset.horizon_us} > occurred_us THEN 'too late'",
    ]
    own = [
        f'CASE WHEN landed_reason IS NULL THEN "{c.name}" ELSE {_beginning(c.name)} END '
        f'AS "{c.name}"'
        if c.type == "VARCHAR"
        else f'"{c.name}"'
        for c in table.columns
        if c.name not in {"received_us", "read_us", "logged_us"}
    ]
    return f"""
        SELECT
            {", ".join(own)},
            landed_us AS received_us,
            logged_us,
            landed_reason,
            CASE WHEN landed_reason IS NOT NULL THEN {as_json} END AS landed_json,
            landed_file
        FROM (
            SELECT *, CASE {" ".join(reasons)} END AS landed_reason
            FROM (
                SELECT
                    *,
                    received_us AS logged_us,
                    greatest({log_start}, coalesce(received_us, 0)) AS landed_us
                FROM ({rows}) AS mapped
                WHERE coalesce(received_us, {dataset.start_us}) >= {dataset.start_us}
            ) AS bumped
            WHERE landed_us >= $start_us AND landed_us < $end_us
        ) AS judged
    """


def _beginning(text: str) -> str:
    """Return the SQL of a text's beginning, of at most ``LONGEST_TEXT`` bytes."""
    return f"left({text}, {LONGEST_TEXT // 4})"


@dataclass(frozen=True)
class _Bound:
    """An expression over the columns of ``source``.

    Attributes
    ----------
    tree : Expr
    moments : tuple of str
        SQL of the texts in it that are cast to zoned timestamps.
    """

    tree: exp.Expr
    moments: tuple[str, ...] = ()

    @property
    def sql(self) -> str:
        return self.tree.sql("duckdb", comments=False)

    @property
    def is_plain(self) -> bool:
        """Whether it is just a column or literal."""
        return isinstance(self.tree, exp.Column | exp.Literal)


class _Names:
    """Binds the plain names in a source's expressions to the columns of its files."""

    def __init__(self, dataset: Dataset, source: Source, layout: Layout, path: Path) -> None:
        self.dataset = dataset
        self.source = source
        self.layout = layout
        self.path = path
        self.keys: list[str] = []
        self.numbers_rows = False

    def bound(self, text: str, location: Sequence[str]) -> _Bound:
        """Return an expression with its columns bound."""
        tree = parse_expression(text)
        if location[-1] in CLOCKS:
            self._refuse_clocks_without_zone(tree, location)
        return _Bound(tree.transform(lambda node: self._bind(node, location)))

    def _refuse_clocks_without_zone(self, tree: exp.Expr, location: Sequence[str]) -> None:
        """Refuse a clock made of a typed timestamp that does not say in which zone it is."""
        types = {name.lower(): type_ for name, type_ in self.layout.columns}
        for column in tree.find_all(exp.Column):
            type_ = types.get(column.name.lower())
            if type_ not in _WITHOUT_ZONE or _is_given_a_zone(column):
                continue
            raise error_at(
                self.dataset,
                ("sources", self.source.table, *location),
                f"column {column.name!r} of {self.path} is a {type_}, which has no time zone",
                f"write epoch_us({column.sql('duckdb')} AT TIME ZONE 'UTC'), or the zone in which "
                "the log was written",
            )

    def _bind(self, node: exp.Expr, location: Sequence[str]) -> exp.Expr:
        if not isinstance(node, exp.Column):
            return node
        name = node.name
        if name == SOURCE_FILE:
            return sqlglot.parse_one("parse_filename(source.filename)", read="duckdb")
        if name == SOURCE_ROW:
            self.numbers_rows = True
            return sqlglot.parse_one("source.source_row", read="duckdb")
        if self.layout.format == "jsonl":
            if name not in self.keys:
                self.keys.append(name)
            place = self.keys.index(name) + 1
            return sqlglot.parse_one(f"list_extract(source.parts, {place})", read="duckdb")
        known = [column for column, _ in self.layout.columns]
        for column in known:
            if column.lower() == name.lower():
                return exp.column(exp.to_identifier(column, quoted=True), table="source")
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"write {near[0]!r}" if near else f"write one of {', '.join(known[:20])}"
        raise error_at(
            self.dataset,
            ("sources", self.source.table, *location),
            f"{self.path} has no column {name!r}",
            remedy,
        )


def _is_given_a_zone(column: exp.Column) -> bool:
    """Return whether a timestamp is put into a zone, or turned into text to be parsed again."""
    node = column.parent
    while node is not None:
        if isinstance(node, exp.AtTimeZone) or (
            isinstance(node, exp.Anonymous) and node.name.lower() == "timezone"
        ):
            return True
        if isinstance(node, exp.Cast) and node.to.this in exp.DataType.TEXT_TYPES:
            return True
        node = node.parent
    return False


def _asking_for_zones(
    connection: duckdb.DuckDBPyConnection, raws: dict[str, _Bound], inner: str
) -> dict[str, _Bound]:
    """Let casts from text to a zoned timestamp raise where the text names no zone.

    DuckDB would take such a moment for one in the session's zone.
    """

    def is_zoned_cast(node: exp.Expr) -> bool:
        return isinstance(node, exp.Cast) and node.to.this == exp.DataType.Type.TIMESTAMPTZ

    found = {
        name: [node.this.sql("duckdb") for node in raw.tree.walk() if is_zoned_cast(node)]
        for name, raw in raws.items()
    }
    listed = sorted({text for texts in found.values() for text in texts})
    if not listed:
        return raws
    described = connection.execute(f"DESCRIBE SELECT {', '.join(listed)} {inner}").fetchall()
    moments = {text for text, row in zip(listed, described, strict=True) if row[1] == "VARCHAR"}

    def ask(node: exp.Expr) -> exp.Expr:
        if not is_zoned_cast(node) or node.this.sql("duckdb") not in moments:
            return node
        text = node.this.sql("duckdb")
        asked = node.copy()
        asked.set(
            "this",
            sqlglot.parse_one(
                f"CASE WHEN regexp_matches({text}, {_sql_text(_ZONED)}) THEN {text} "
                f"ELSE {text} || ' without a zone' END",
                read="duckdb",
            ),
        )
        return asked

    return {
        name: _Bound(raw.tree.transform(ask), tuple(t for t in found[name] if t in moments))
        for name, raw in raws.items()
    }


def _lacks_zone(text: str) -> str:
    """Return the SQL of whether a text would be a moment if only it named its zone."""
    return (
        f"(NOT regexp_matches({text}, {_sql_text(_ZONED)}) "
        f"AND TRY(CAST({text} AS TIMESTAMPTZ)) IS NOT NULL)"
    )


def _types(
    connection: duckdb.DuckDBPyConnection, names: _Names, raws: dict[str, _Bound], inner: str
) -> dict[str, str]:
    """Return the DuckDB type of each raw expression; the one named '' is the condition."""
    listed = ", ".join(f'{raw.sql} AS "{name or "where"}"' for name, raw in raws.items())
    try:
        described = connection.execute(f"DESCRIBE SELECT {listed} {inner}").fetchall()
    except (duckdb.BinderException, duckdb.CatalogException) as error:
        for name, raw in raws.items():
            try:
                connection.execute(f"DESCRIBE SELECT {raw.sql} AS v {inner}")
            except (duckdb.BinderException, duckdb.CatalogException) as narrower:
                raise error_at(
                    names.dataset,
                    ("sources", names.source.table, *(("columns", name) if name else ("where",))),
                    str(narrower).splitlines()[0],
                    "mend the expression; columns of CSV and JSON files are text: write for "
                    "example CAST(price AS DOUBLE)",
                ) from error
        raise
    return dict(zip(raws, (row[1] for row in described), strict=True))


def _typed(raw: "_Bound", given: str, wanted: str) -> tuple[str | None, str | None]:
    """Return the SQL of a raw expression as a wanted type, and of whether it does not fit.

    Text that is no number, a fraction where a whole number is wanted and an expression that raises
    do not fit. NaN is how some tools write "missing", and becomes null; infinity is left for the
    caller to refuse.
    """
    value = raw.sql if raw.is_plain else f"TRY({raw.sql})"
    base = given.partition("(")[0]
    wrong: list[str] = [] if raw.is_plain else [_raises(raw.sql)]
    if wanted == "VARCHAR":
        return (value if given == "VARCHAR" else f"CAST({value} AS VARCHAR)"), _any(wrong)
    if given == wanted and wanted != "DOUBLE":
        return value, _any(wrong)
    if given == '"NULL"':
        return f"CAST(NULL AS {wanted})", None
    text = given == "VARCHAR"
    number = base in _INTEGERS or base in {"DOUBLE", "FLOAT", "DECIMAL"}
    if not (text or number or (wanted == "BOOLEAN" and given == "BOOLEAN")):
        return None, None
    if text:
        value = f"NULLIF({value}, '')"
    cast = f"TRY_CAST({value} AS {wanted})"
    if not (given == "DOUBLE" and wanted == "DOUBLE"):
        wrong.append(f"({value} IS NOT NULL AND {cast} IS NULL)")
    if wanted == "DOUBLE":
        return f"CASE WHEN NOT isnan({cast}) THEN {cast} END", _any(wrong)
    if wanted == "BIGINT" and base not in _INTEGERS:
        wrong.append(f"TRY_CAST({value} AS DOUBLE) <> CAST({cast} AS DOUBLE)")
    return cast, _any(wrong)


def _raises(expression: str) -> str:
    """Return the SQL of whether an expression raises an error on a row."""
    return f"(TRY(({expression}) IS NULL) IS NULL)"


def _any(conditions: Sequence[str]) -> str | None:
    return " OR ".join(conditions) if conditions else None


def _sql_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _doubled(name: str) -> str:
    return name.replace('"', '""')


def _sql_list(paths: Iterable[Path]) -> str:
    return _sql_texts(str(path) for path in paths)


def _sql_texts(texts: Iterable[str]) -> str:
    return "[" + ", ".join(_sql_text(text) for text in texts) + "]"
