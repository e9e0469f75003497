"""Turns log files into rows of the contract: one SELECT for files that look alike.

A row of a file either fits the contract or carries the reason why it does not; nothing is dropped
here and nothing fails for the sake of one row. CSV columns are read as text, JSON lines by the keys
that the mapping names, so that no type is guessed from the first rows. Which rows are duplicates or
wait for their impression is decided in ``ingest.py`` and ``dbt_like_sql/events``.

Clocks are int64 microseconds, so a dataset file writes

* ``occurred_us`` or ``occurred_ms * 1000`` for integer epochs,
* ``epoch_us(CAST(ts AS TIMESTAMPTZ))`` for ISO text with a zone and for zoned timestamps,
* ``epoch_us(strptime(ts, '%d/%m/%Y %H:%M:%S'))`` for other text, which is then taken as UTC.
"""

import csv
import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import sqlglot
from sqlglot import exp

from ad_pipeline.datasets import REQUIRED, SOURCE_FILE, Dataset, Source, error_at, parse_expression
from ad_pipeline.warehouse import Table

LATEST_CLOCK_US = 7_258_118_400_000_000
"""2200-01-01: a clock past it was written in nanoseconds or by a broken machine."""

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
    columns : tuple of (name, DuckDB type)
        Empty for JSON lines, whose keys may differ from line to line.
    """

    format: Literal["parquet", "csv", "jsonl"]
    delimiter: str
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
        rows = _mapped_rows(connection, dataset, table, source, layout, group)
        sound = "received_us >= occurred_us AND received_us - $horizon_us <= occurred_us"
        counted = connection.execute(
            f"""
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
            """,
            {"start_us": dataset.start_us, "horizon_us": dataset.horizon_us},
        ).fetchall()
        found |= {path: FileStatistics(*numbers) for path, *numbers in counted}
        for path, _ in _rejected(connection, layout, group):
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
            rows = _mapped_rows(connection, dataset, table, source, layout, group)
            log_start = f"greatest({group[0].sealed_until_us}, {dataset.start_us})"
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
                    "'unreadable line' AS landed_reason, to_json($line::VARCHAR) AS landed_json, "
                    "$file AS landed_file",
                    [{"at": base_us, "line": line, "file": path} for path, line in unreadable],
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


def _layout_of(connection: duckdb.DuckDBPyConnection, source: Source, path: Path) -> Layout | None:
    format_ = format_of(source, path)
    if format_ == "jsonl":
        return Layout("jsonl", "", ())
    try:
        if format_ == "parquet":
            described = connection.execute(
                "DESCRIBE SELECT * FROM read_parquet($path)", {"path": str(path)}
            ).fetchall()
            return Layout("parquet", "", tuple((name, type_) for name, type_, *_ in described))
        header = connection.execute(f"SELECT line FROM {_lines_of([path])} LIMIT 1").fetchone()
    except duckdb.Error as error:
        raise UnreadableLog(
            f"{path} is no readable {format_} file ({str(error).splitlines()[0]}); mend it, or "
            "take it out of the globs in the dataset file"
        ) from error
    if header is None or header[0] is None:
        return None
    line = header[0].lstrip("\ufeff").rstrip("\r")
    delimiter = max(_DELIMITERS, key=line.count)
    names = [
        name.strip() or f"column{place}"
        for place, name in enumerate(next(csv.reader([line], delimiter=delimiter)))
    ]
    twice = {name for name in names if [n.lower() for n in names].count(name.lower()) > 1}
    if twice:
        raise UnreadableLog(f"{path} has two columns named {sorted(twice)}; rename one of them")
    return Layout("csv", delimiter, tuple((name, "VARCHAR") for name in names))


def _lines_of(paths: Iterable[Path]) -> str:
    """Return the SQL that reads text files line by line as ``line`` and ``filename``."""
    return (
        f"read_csv({_sql_list(paths)}, columns = {{'line': 'VARCHAR'}}, header = false, "
        f"delim = '{_NEVER_IN_JSON}', quote = '', escape = '', auto_detect = false, "
        "store_rejects = true, rejects_limit = 0, filename = true)"
    )


def _relation(layout: Layout, paths: Sequence[Path]) -> str:
    if layout.format == "parquet":
        return f"read_parquet({_sql_list(paths)}, filename = true)"
    if layout.format == "jsonl":
        return _lines_of(paths)
    columns = ", ".join(f"{_sql_text(name)}: {_sql_text(type_)}" for name, type_ in layout.columns)
    return (
        f"read_csv({_sql_list(paths)}, columns = {{{columns}}}, header = true, "
        f"delim = {_sql_text(layout.delimiter)}, quote = '\"', escape = '\"', auto_detect = false, "
        "store_rejects = true, rejects_limit = 0, filename = true)"
    )


def _rejected(
    connection: duckdb.DuckDBPyConnection, layout: Layout, group: Sequence[LogFile]
) -> list[tuple[str, str]]:
    """Return (ledger name, text) of each line that the last read could not take apart."""
    if layout.format == "parquet":
        return []
    names = {str(file.disk_path): file.path for file in group}
    found = connection.execute(
        """
        SELECT scans.file_path, any_value(errors.csv_line ORDER BY errors.error_message)
        FROM temp.reject_errors AS errors
        INNER JOIN temp.reject_scans AS scans
            ON scans.scan_id = errors.scan_id AND scans.file_id = errors.file_id
        GROUP BY scans.file_path, errors.scan_id, errors.line
        ORDER BY scans.file_path, errors.line
        """
    ).fetchall()
    _forget_rejects(connection)
    return [(names[path], line or "") for path, line in found]


def _forget_rejects(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("DROP TABLE IF EXISTS temp.reject_errors")
    connection.execute("DROP TABLE IF EXISTS temp.reject_scans")


def _mapped_rows(
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
    names = _Names(dataset, source, layout)
    raws = {name: names.bound(text, ("columns", name)) for name, text in source.columns.items()}
    conditions = {} if source.where is None else {"": names.bound(source.where, ("where",))}
    relation = _relation(layout, [file.disk_path for file in group])
    inner = (
        f"FROM {relation} AS source "
        "INNER JOIN temp.log_files AS log ON log.disk_path = source.filename"
    )
    if layout.format == "jsonl":
        paths = ", ".join(_sql_text(f'$."{key}"') for key in names.keys) or "'$'"
        inner = (
            "FROM (SELECT line, filename, CASE WHEN json_valid(line) THEN "
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
                f"the expression gives {types[name]} where {type_} is wanted",
                "write epoch_us(CAST(... AS TIMESTAMPTZ)) for a timestamp"
                if type_ == "BIGINT"
                else f"write an expression of type {type_}",
            )
        values.append(f'{value} AS "{name}"')
        if is_wrong:
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
        f'"{c.name}"'
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


@dataclass(frozen=True)
class _Bound:
    """An expression over the columns of ``source``; a plain one is just a column or literal."""

    sql: str
    is_plain: bool


class _Names:
    """Binds the plain names in a source's expressions to the columns of its files."""

    def __init__(self, dataset: Dataset, source: Source, layout: Layout) -> None:
        self.dataset = dataset
        self.source = source
        self.layout = layout
        self.keys: list[str] = []

    def bound(self, text: str, location: Sequence[str]) -> _Bound:
        """Return an expression with its columns bound."""
        tree = parse_expression(text)
        bound = tree.transform(lambda node: self._bind(node, location))
        return _Bound(
            bound.sql("duckdb", comments=False), isinstance(tree, exp.Column | exp.Literal)
        )

    def _bind(self, node: exp.Expr, location: Sequence[str]) -> exp.Expr:
        if not isinstance(node, exp.Column):
            return node
        name = node.name
        if name == SOURCE_FILE:
            return sqlglot.parse_one("parse_filename(source.filename)", read="duckdb")
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
            f"the files have no column {name!r}",
            remedy,
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
    return "[" + ", ".join(_sql_text(str(path)) for path in paths) + "]"
