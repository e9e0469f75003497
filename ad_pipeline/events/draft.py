"""Drafts a dataset file by looking at a log: what each column seems to be, and why it seems so.

A guess is written with its reason beside it, and with TODO where the log alone cannot tell. Whether
the draft is right is for :mod:`ad_pipeline.events.sample_check` and then for a person to say.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from ad_pipeline.clocks import DAY_US, HOUR_US, SECOND_US, timestamp
from ad_pipeline.datasets import CONTRACT, RESERVED, Dataset, Deployment, Goal, Source
from ad_pipeline.events.readers import LogFile, UnreadableLog, layouts, relation_of
from ad_pipeline.events.sample import Sampler, first_lines
from ad_pipeline.warehouse import one_row

EPOCH = "2014-01-01T00:00Z"
"""The made-up start of a log that only counts seconds."""

_NULL_TEXTS = ("null", "NULL", "NA", "N/A", "\\N", "None", "nan", "NaN", "(null)")
_DELIMITERS = ("\t", ",", ";", "|")
_DELIMITER_WORDS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe"}
_NAME = re.compile(r"[A-Za-z_][\w .:/()-]{0,60}")
_HASH = re.compile(r"[0-9a-f]{8,}")

_GOAL_WORDS = re.compile(
    r"^(is_?|has_?|was_?)?(click(ed)?|clk|install(ed)?|purchase[ds]?|conver(sion|ted)|open(ed)?|"
    r"label|target|y)$"
)
_CODE_WORDS = re.compile(
    r"(^c\d+$|id$|_?(type|code|pos|position|category|cat|region|city|zip|hour|weekday|day|month|"
    r"width|height|format|visibility|version|slot|exchange|os|model)\d*$|^cat)"
)
_CONTRACT_WORDS: dict[str, re.Pattern[str]] = {
    "user_id": re.compile(r"^(user_?id|uid|visitor_?id|cookie(_?id)?|ipinyouid|customer_?id)$"),
    "ad_id": re.compile(r"^(ad_?id|creative(_?id)?|item_?id|banner_?id)$"),
    "campaign_id": re.compile(r"^campaign(_?id)?$"),
    "advertiser_id": re.compile(r"^advertiser(_?id)?$"),
    "arm": re.compile(r"^(arm|variant|policy)$"),
    "propensity": re.compile(r"^propensity(_?score)?$"),
    "bid_price": re.compile(r"^bid_?(price|ding_?price)?$"),
    "paid_price": re.compile(r"^(pay|paid|paying|win|winning|clearing|market)_?price$|^cost$"),
}
_AFTERWARDS = re.compile(
    r"(click|conver|purchase|install|pay_?price|paid|win|bid_?price|cost|label)"
)
"""Names of what is known only after the ad was shown, or chosen by whoever bid: no features."""

_ALIKE = 0.4
"""Share of column names in common from which on files are taken for the same log."""

_MANY_FEATURES = 40
_SCANNED_BYTES = 50_000_000
"""Log files up to this size are read whole for the log's start and end."""

_ROWS_PER_VALUE = 20


@dataclass(frozen=True)
class Profile:
    """What a column of a sample looks like.

    Attributes
    ----------
    name : str
        As in the file.
    rows, nulls, different : int
    numbers, whole : float
        Share of the values that are numbers, and whole ones.
    low, high : float or None
        Of the numbers.
    shortest, longest : int
        Characters of a value.
    example : str
    """

    name: str
    rows: int
    nulls: int
    different: int
    numbers: float
    whole: float
    low: float | None
    high: float | None
    shortest: int
    longest: int
    example: str

    @property
    def filled(self) -> int:
        """Rows with a value."""
        return self.rows - self.nulls

    @property
    def is_binary(self) -> bool:
        """Whether its values are 0 and 1."""
        return self.different == 2 and self.whole == 1.0 and (self.low, self.high) == (0.0, 1.0)


@dataclass(frozen=True)
class Clock:
    """A column that holds times.

    Attributes
    ----------
    column : str
    sql : str
        Microseconds since the epoch.
    why : str
        What it looks like; with TODO if the zone or the epoch is a guess.
    rank : int
        Finer times come first: the smallest rank is the row's clock.
    """

    column: str
    sql: str
    why: str
    rank: int
    hour_only: bool = False


@dataclass
class Group:
    """Files with the same columns.

    Attributes
    ----------
    source : Source
        How they are read; its columns are not mapped yet.
    paths : list of Path
    relation : str
        DuckDB table with the sample's rows as text.
    """

    source: Source
    paths: list[Path]
    table: str
    whole: bool
    csv_lines: list[str]
    profiles: dict[str, Profile] = field(default_factory=dict)


def draft_dataset(files: Sequence[Path], name: str, folder: Path) -> str:
    """Return the text of a dataset file for some log files.

    Parameters
    ----------
    files : sequence of Path
    name : str
        Of the dataset.
    folder : Path
        Where the dataset file will lie: paths are written relative to it.

    Raises
    ------
    UnreadableLog
        If a file cannot be read, or nothing in the log looks like a time.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ad_pipeline-draft-") as scratch,
        duckdb.connect(":memory:") as connection,
    ):
        connection.execute("SET TimeZone = 'UTC'")
        groups = _groups(connection, Sampler(Path(scratch)), files, folder)
        for group in groups:
            group.profiles = {p.name: p for p in _profiles(connection, group.table)}
        groups.sort(key=lambda group: -sum(path.stat().st_size for path in group.paths))
        return "\n".join(_Draft(connection, groups, name, folder).lines()) + "\n"


def draft_name(files: Sequence[Path]) -> str:
    """Return a name for a log after the folder or the file it lies in."""
    first = files[0].resolve()
    word = first.parent.name if len(files) > 1 else first.name.split(".")[0]
    return re.sub(r"\W+", "_", word).strip("_").lower() or "log"


def _groups(
    connection: duckdb.DuckDBPyConnection, sampler: Sampler, files: Sequence[Path], folder: Path
) -> list[Group]:
    """Read a sample of all files into tables, one for each set of columns."""
    by_form: dict[tuple, list[Path]] = {}
    forms: dict[tuple, tuple[Source, list[str]]] = {}
    for path in files:
        source, lines = _form(path.resolve())
        form = (source.format, source.delimiter, source.header, source.names, source.quote)
        if source.format == "jsonl":
            form += (_json_keys(path),)
        by_form.setdefault(form, []).append(path.resolve())
        nulls = tuple(dict.fromkeys((*source.nulls, *forms.get(form, (source, []))[0].nulls)))
        forms[form] = (source.model_copy(update={"nulls": nulls}), lines)
    # Only names and paths of the deployment are asked for: there is no dataset file yet.
    deployment = Deployment(
        Dataset(
            name="draft",
            start_us=0,
            goals=(Goal(name="goal", window_us=HOUR_US),),
            path=folder / "dataset.yaml",
        ),
        folder / "home",
    )
    groups: list[Group] = []
    for form, paths in by_form.items():
        source, lines = forms[form]
        sample = sampler.sample(deployment, source, paths)
        by_disk = {file.disk_path: path for file, path in zip(sample.files, paths, strict=False)}
        for layout, files_alike in layouts(connection, source, sample.files):
            table = f"drafted_{len(groups)}"
            rows = relation_of(source, layout, [file.disk_path for file in files_alike])
            if layout.format == "jsonl":
                disks = [str(file.disk_path) for file in files_alike]
                # As text, which is what the reader takes from JSON lines.
                typed = f"read_json_auto({disks!r}, filename = true)"
                rows = f"(SELECT CAST(COLUMNS(*) AS VARCHAR) FROM {typed})"
            connection.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM {rows}")
            same = len(sample.files) == len(files_alike)
            groups.append(
                Group(
                    source=source,
                    paths=list(paths) if same else [by_disk[f.disk_path] for f in files_alike],
                    table=table,
                    whole=sample.is_whole,
                    csv_lines=lines,
                )
            )
    return groups


def _form(path: Path) -> tuple[Source, list[str]]:
    """Return how a file is written, as a source without columns, and the lines that say so."""
    bare = Source(table="impressions", files=(path.name,), columns={})
    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if is_parquet:
        return bare.model_copy(update={"format": "parquet"}), ["format: parquet"]
    lines = first_lines(path, 400)
    if not lines:
        raise UnreadableLog(f"{path} is empty; name files that hold rows")
    if lines[0].lstrip().startswith("{"):
        return bare.model_copy(update={"format": "jsonl"}), ["format: jsonl # a line is an object"]
    delimiter = max(_DELIMITERS, key=lambda mark: _steadiness(lines, mark))
    # Quotes that open fields close them too; others are text, as in user agents.
    opens = any(part.startswith('"') for line in lines for part in line.split(delimiter))
    quote = '"' if opens or not any('"' in line for line in lines) else ""
    fields = lines[0].split(delimiter)
    header = _is_header(fields, [line.split(delimiter) for line in lines[1:50]])
    values = {part for line in lines for part in line.split(delimiter)}
    nulls = tuple(text for text in _NULL_TEXTS if text in values)
    names = () if header else tuple(f"field_{place}" for place in range(1, len(fields) + 1))
    said = ["format: csv", f"delimiter: {_DELIMITER_WORDS[delimiter]}"]
    if quote == "":
        said.append("quote: none # quotes stand inside fields, not around them")
    if not header:
        said.append("header: false # the first line holds values, not names")
        said.append(f"names: [{', '.join(names)}] # TODO give the fields their names, if known")
    if nulls:
        said.append(f"nulls: [{', '.join(_yaml(text) for text in nulls)}] # taken to mean null")
    form = {
        "format": "csv", "delimiter": delimiter, "header": header, "names": names, "quote": quote,
        "nulls": nulls,
    }  # fmt: skip
    return bare.model_copy(update=form), said


def _json_keys(path: Path) -> frozenset[str]:
    """Return the keys of the first lines: files of other keys are another log."""
    return frozenset(key for line in first_lines(path, 400) for key in json.loads(line))


def _steadiness(lines: Sequence[str], mark: str) -> tuple[float, int]:
    """Return the share of lines with as many of a mark as the first one, and how many that are."""
    count = lines[0].count(mark)
    return (sum(line.count(mark) == count for line in lines) / len(lines) if count else 0.0, count)


def _is_header(fields: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether a first line holds names: distinct words that are no values further down."""
    filled = [name.strip().strip('"') for name in fields if name.strip()]
    named = all(_NAME.fullmatch(name) and not _HASH.fullmatch(name) for name in filled)
    below = {value for row in rows for value in row}
    return named and len(set(filled)) == len(filled) > 0 and not below & set(filled)


def _profiles(connection: duckdb.DuckDBPyConnection, table: str) -> Iterator[Profile]:
    names = [
        name
        for name, *_ in connection.execute(f"DESCRIBE {table}").fetchall()
        if name != "filename"
    ]
    for name in names:
        text = f"CAST({_quoted(name)} AS VARCHAR)"
        number = f"TRY_CAST({text} AS DOUBLE)"
        found = one_row(
            connection,
            f"""
            SELECT count(*), count(*) - count({text}), count(DISTINCT {text}),
                count({number}), count(*) FILTER (WHERE {number} = floor({number})),
                min({number}) FILTER (WHERE isfinite({number})),
                max({number}) FILTER (WHERE isfinite({number})),
                coalesce(min(length({text})), 0), coalesce(max(length({text})), 0),
                coalesce(any_value({text}), '')
            FROM {table}
            """,
        )
        rows, nulls, different, numbers, whole, low, high, shortest, longest, example = found
        filled = max(rows - nulls, 1)
        yield Profile(
            name, rows, nulls, different, numbers / filled, whole / filled, low, high, shortest,
            longest, example,
        )  # fmt: skip


class _Draft:
    """The text of a draft, put together from what the groups of files look like."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        groups: Sequence[Group],
        name: str,
        folder: Path,
    ) -> None:
        self.connection = connection
        self.main = groups[0]
        alike = [g for g in groups[1:] if _share_of_names(groups[0], g) >= _ALIKE]
        self.others = [g for g in groups[1:] if g not in alike]
        self._merge(alike)
        self.name = name
        self.folder = folder

    def lines(self) -> Iterator[str]:
        """Yield the lines of the dataset file."""
        main = self.main
        clock = self._row_clock(main)
        later = self._later_clock(main, clock)
        key, why_key, key_columns = self._key(main, clock)
        joined = self._engagement_groups(main, key, key_columns)
        flags = [p.name for p in main.profiles.values() if p.is_binary and _is_goal(p.name)]
        flags = [] if later else flags
        contract = self._contract_columns(main)
        used = {clock.column, *flags, *([later.column] if later else []), *contract.values()}
        chosen = self._features(main, used, key_columns)
        categorical = [*(c for c in contract if c in _TEXTS), *chosen["categorical"]]
        first_us, last_us, is_whole = self._span(main, clock)
        start_us, end_us = first_us - first_us % HOUR_US, last_us - last_us % HOUR_US + HOUR_US
        goals = self._goals(flags, later, joined, clock)

        rows = main.profiles[clock.column].rows
        yield f"# Drafted by `ad_pipeline init` from {rows:,} rows of the log."
        yield "# What is guessed says why; what is marked TODO the log alone cannot tell."
        yield f"name: {self.name}"
        sampled = "" if is_whole else " # TODO of a sample only: write the log's own"
        yield f"start: {timestamp(start_us)}{sampled}"
        yield f"end: {timestamp(end_us)}{sampled or ' # leave it out if the log goes on'}"
        if clock.hour_only:
            yield "whole_hours: true # only the hour of a row is known"
        yield ""
        yield "goals:"
        yield from goals
        yield ""
        yield "sources:"
        yield "  impressions: # a row of these files"
        yield f"    files: &files [{', '.join(self._globs(main))}]"
        yield from (f"    {line}" for line in main.csv_lines)
        yield "    columns:"
        yield f"      impression_id: {_yaml(key)} # {why_key}"
        yield f"      occurred_us: {_yaml(clock.sql)} # {clock.why}"
        yield f"      received_us: {_yaml(_received(clock))} # {_why_received(clock)}"
        for column, from_file in contract.items():
            yield f"      {column}: {_yaml(self._contract_sql(column, from_file))}{_money(column)}"
        for kind in ("categorical", "numeric"):
            for column, from_file in chosen[kind].items():
                sql = _column(from_file)
                sql = f"CAST({sql} AS DOUBLE)" if kind == "numeric" else sql
                yield f"      {column}: {_yaml(sql)}"
        yield "  engagements:"
        yield from self._engagements(main, key, clock, flags, later, joined)
        yield ""
        yield "features:"
        yield "  # Texts, and numbers that are few or are codes by their name."
        yield f"  categorical: [{', '.join(categorical)}]"
        if chosen["numeric"]:
            yield "  # Amounts: many different numbers."
            yield f"  numeric: [{', '.join(chosen['numeric'])}]"
        reasons: dict[str, list[str]] = {}
        for column, why in chosen["left_out"].items():
            reasons.setdefault(why, []).append(column)
        for why, columns in reasons.items():
            more = f" and {len(columns) - 5} more" if len(columns) > 5 else ""
            yield f"  # left out: {', '.join(columns[:5])}{more}: {why}"
        yield ""
        entities = self._entities(main, contract, chosen["categorical"])
        yield "# Columns whose values have rows enough for a rate of their own."
        yield f"entities: [{', '.join(entities)}]"

    def _merge(self, alike: Sequence[Group]) -> None:
        """Make one group of the main one and those that differ from it in a few columns."""
        main = self.main
        if not alike:
            return
        names = [n for n in main.profiles if all(n in group.profiles for group in alike)]
        listed = ", ".join(["filename", *map(_quoted, names)])
        parts = [f"SELECT {listed} FROM {group.table}" for group in (main, *alike)]
        self.connection.execute(f"CREATE TEMP TABLE merged AS {' UNION ALL '.join(parts)}")
        self.main = Group(
            source=main.source,
            paths=sorted(path for group in (main, *alike) for path in group.paths),
            table="merged",
            whole=main.whole,
            csv_lines=main.csv_lines,
            profiles={p.name: p for p in _profiles(self.connection, "merged")},
        )

    def _row_clock(self, group: Group) -> Clock:
        clocks = [c for p in group.profiles.values() for c in self._clocks(group, p)]
        if not clocks:
            raise UnreadableLog(
                f"nothing in {group.paths[0]} looks like a time; write the dataset file by hand, "
                "with occurred_us as microseconds since 1970"
            )
        # The earliest of equally fine ones: a conversion comes after its click.
        return min(clocks, key=lambda c: (c.rank, group.profiles[c.column].nulls, c.column))

    def _clocks(self, group: Group, profile: Profile) -> Iterator[Clock]:
        """Yield what a column may be as a time."""
        name = _column(profile.name)
        if profile.filled == 0 or profile.different < 2:
            return
        if profile.whole == 1.0:
            yield from self._number_clocks(group, profile, name)
            return
        zoned = re.search(r"(Z|[+-]\d\d(:?\d\d)?)$", profile.example.strip())
        parsed = f"epoch_us(CAST({name} AS TIMESTAMPTZ))"
        if not zoned:
            parsed = f"epoch_us(timezone('UTC', CAST({name} AS TIMESTAMP)))"
        utc = "epoch_us(timezone('UTC', strptime"
        for sql, why, rank in (
            (parsed, "its zone is in the text" if zoned else "TODO taken as UTC: no zone in it", 1),
            (f"{utc}({name}, '%d/%m/%Y %H:%M:%S')))", "day/month/year; TODO taken as UTC", 2),
            (f"{utc}({name}, '%m/%d/%Y %H:%M:%S')))", "month/day/year; TODO taken as UTC", 3),
            (f"epoch_us(strptime({name}, '%d/%b/%Y:%H:%M:%S %z'))", "its zone is in the text", 2),
        ):
            if sql != parsed and group.source.format == "parquet":
                continue  # its times have a type
            if profile.shortest >= 10 and self._plausible(group.table, profile.name, sql) > 0.98:
                yield Clock(profile.name, sql, f"{profile.example}: {why}", rank)
                return

    def _number_clocks(self, group: Group, profile: Profile, name: str) -> Iterator[Clock]:
        low, high = profile.low or 0.0, profile.high or 0.0
        for digits, form, hour_only in (
            (17, "%Y%m%d%H%M%S%g", False),
            (14, "%Y%m%d%H%M%S", False),
            (10, "%Y%m%d%H", True),
            (8, "%y%m%d%H", True),
        ):
            sql = f"epoch_us(timezone('UTC', strptime(CAST({name} AS VARCHAR), '{form}')))"
            if (
                profile.shortest == profile.longest == digits
                and self._plausible(group.table, profile.name, sql) > 0.98
            ):
                yield Clock(
                    profile.name, sql,
                    f"{profile.example} as {form}; TODO the zone, if it is not UTC",
                    3 if hour_only else 1, hour_only,
                )  # fmt: skip
                return
        for unit, least, most, factor in (
            ("seconds", 9.4e8, 4.1e9, "1000000 * "),
            ("milliseconds", 9.4e11, 4.1e12, "1000 * "),
            ("microseconds", 9.4e14, 4.1e15, ""),
        ):
            if (
                least <= low
                and high <= most
                and (_is_timely(profile.name) or profile.different > 50)
            ):
                yield Clock(
                    profile.name, f"{factor}CAST({name} AS BIGINT)", f"{unit} since 1970", 2
                )
                return
        # Seconds from the start of the log: counted up from about 0, and nearly as many as rows.
        counted = profile.nulls == 0 and 0 <= low < 100_000 and 3_600 <= high < 4e7
        if counted and (_is_timely(profile.name) or profile.different > profile.rows * 0.5):
            yield Clock(
                profile.name, _since_epoch(name),
                "seconds from the start of the log; TODO the day it starts on is made up", 4,
            )  # fmt: skip

    def _plausible(self, table: str, column: str, sql: str) -> float:
        """Return the share of values that an expression turns into a time of 1995 to 2100."""
        (share,) = one_row(
            self.connection,
            "SELECT coalesce(avg(CASE WHEN at_us BETWEEN 789e12 AND 4102e12 THEN 1 ELSE 0 END), 0) "
            f"FROM (SELECT TRY({sql}) AS at_us FROM {table} "
            f"WHERE {_quoted(column)} IS NOT NULL LIMIT 20000)",
        )
        return float(share)

    def _later_clock(self, group: Group, clock: Clock) -> Clock | None:
        """Return a second clock that is often null and never before the first: a conversion's."""
        for profile in group.profiles.values():
            if profile.name == clock.column or not 0 < profile.nulls < profile.rows:
                continue
            options = list(self._clocks(group, profile))
            if clock.rank == 4:
                options = [
                    Clock(profile.name, _since_epoch(_column(profile.name)), "seconds as well", 4)
                ]
            for option in options:
                share, delays = one_row(
                    self.connection,
                    f"SELECT avg(CASE WHEN late >= early THEN 1.0 ELSE 0.0 END), "
                    f"count(DISTINCT late - early) FROM (SELECT TRY({option.sql}) AS late, "
                    f"TRY({clock.sql}) AS early FROM {group.table} "
                    f"WHERE {_quoted(profile.name)} IS NOT NULL)",
                )
                if (
                    share is not None
                    and share > 0.999
                    and delays > 10
                    and profile.whole in {0.0, 1.0}
                ):
                    return option
        return None

    def _key(self, group: Group, clock: Clock) -> tuple[str, str, list[str]]:
        """Return the SQL of an id, why it is one, and the columns that it is made of."""
        rows = next(iter(group.profiles.values())).rows
        options = [
            p
            for p in group.profiles.values()
            if p.nulls == 0 and p.different >= 0.98 * rows and p.name != clock.column
            and not (p.numbers == 1.0 and p.whole < 1.0)
        ]  # fmt: skip
        options.sort(key=lambda p: (not p.name.lower().endswith("id"), p.different < rows))
        if options and (options[0].different == rows or options[0].name.lower().endswith("id")):
            best = options[0]
            return _column(best.name), f"{best.different:,} different in {rows:,} rows", [best.name]
        for profile in group.profiles.values():
            (different,) = one_row(
                self.connection,
                f"SELECT count(DISTINCT (filename, {_quoted(profile.name)})) FROM {group.table}",
            )
            if different == rows and profile.whole == 1.0 and profile.name != clock.column:
                return (
                    f"source_file || ':' || {_column(profile.name)}",
                    f"{profile.name} counts the rows of each file",
                    [profile.name],
                )
        return (
            "source_file || ':' || source_row",
            "no column tells rows apart: the place in the file does",
            [],
        )

    def _engagement_groups(
        self, main: Group, key_sql: str, key_columns: Sequence[str]
    ) -> list[tuple[Group, str, Clock]]:
        """Return the groups whose rows name rows of the main one: (group, column, its clock)."""
        if len(key_columns) != 1 or key_sql != _column(key_columns[0]):
            return []
        key = _quoted(key_columns[0])
        found = []
        for group in self.others:
            for profile in group.profiles.values():
                column = _quoted(profile.name)
                (share,) = one_row(
                    self.connection,
                    f"SELECT avg(CASE WHEN CAST({column} AS VARCHAR) IN (SELECT "
                    f"CAST({key} AS VARCHAR) FROM {main.table}) THEN 1 ELSE 0 END) "
                    f"FROM {group.table}",
                )
                if share is not None and share > 0.5 and profile.different > 10:
                    found.append((group, profile.name, self._row_clock(group)))
                    break
        return found

    def _contract_columns(self, group: Group) -> dict[str, str]:
        """Return contract column to the file's column that its name points to."""
        found: dict[str, str] = {}
        for column, words in _CONTRACT_WORDS.items():
            for profile in group.profiles.values():
                if not words.match(profile.name.lower()) or profile.filled == 0:
                    continue
                if CONTRACT["impressions"][column] != "VARCHAR" and profile.numbers < 1.0:
                    continue
                if (
                    column == "propensity"
                    and not 0 < (profile.low or 0) <= (profile.high or 0) <= 1
                ):
                    continue
                found[column] = profile.name
                break
        return found

    def _contract_sql(self, column: str, from_file: str) -> str:
        name = _column(from_file)
        if column not in {"bid_price", "paid_price"}:
            return name
        if self.main.profiles[from_file].whole == 1.0:
            return f"CAST({name} AS BIGINT)"
        return f"CAST(round(1000000 * CAST({name} AS DOUBLE)) AS BIGINT)"

    def _features(
        self, group: Group, used: set[str], key_columns: Sequence[str]
    ) -> dict[str, dict[str, str]]:
        """Return feature name to the file's column, by kind, and what is left out with why."""
        chosen: dict[str, dict[str, str]] = {"categorical": {}, "numeric": {}, "left_out": {}}
        for profile in group.profiles.values():
            if profile.name in used or profile.name in key_columns:
                continue
            feature = re.sub(r"\W+", "_", profile.name).strip("_")
            if not feature.isidentifier():
                feature = f"field_{feature}"
            taken = {*chosen["categorical"], *chosen["numeric"]}
            if feature in RESERVED or feature in CONTRACT["impressions"] or feature in taken:
                feature = f"log_{feature}"
            why = self._why_left_out(profile)
            if why:
                chosen["left_out"][profile.name] = why
            elif len(taken) >= _MANY_FEATURES:
                chosen["left_out"][profile.name] = f"more than {_MANY_FEATURES} features already"
            elif _is_amount(profile):
                chosen["numeric"][feature] = profile.name
            else:
                chosen["categorical"][feature] = profile.name
        return chosen

    def _why_left_out(self, profile: Profile) -> str:
        if profile.filled == 0:
            return "empty in every row"
        if profile.different == 1 and profile.nulls == 0:
            return f"the same in every row ({profile.example[:40]})"
        if _AFTERWARDS.search(profile.name.lower()):
            return "its name says that it is known only afterwards, or chosen by the bidder"
        if not _is_amount(profile) and profile.different > 0.9 * profile.filled > 100:
            return "nearly every row has its own value"
        return ""

    def _entities(
        self, group: Group, contract: dict[str, str], categorical: dict[str, str]
    ) -> list[str]:
        options = {
            name: group.profiles[column].different
            for name, column in (
                {c: f for c, f in contract.items() if c in _TEXTS} | categorical
            ).items()
            if 3
            <= group.profiles[column].different
            <= group.profiles[column].rows / _ROWS_PER_VALUE
        }
        first = [name for name in ("ad_id", "campaign_id") if name in options]
        rest = sorted((n for n in options if n not in first), key=lambda n: -options[n])
        return [*first, *rest][:3]

    def _span(self, group: Group, clock: Clock) -> tuple[int, int, bool]:
        """Return the first and the last time, and whether they are those of the whole log."""
        rows = [group.table]
        small = sum(path.stat().st_size for path in group.paths) <= _SCANNED_BYTES
        if not group.whole and small and group.source.format == "csv":
            files = [LogFile(path.name, path, 0) for path in group.paths]
            rows = [
                relation_of(group.source, layout, [file.disk_path for file in alike])
                for layout, alike in layouts(self.connection, group.source, files)
            ]
        spans = [
            one_row(
                self.connection,
                f"SELECT min(at_us), max(at_us) FROM (SELECT TRY({clock.sql}) AS at_us FROM {one})",
            )
            for one in rows
        ]
        whole = group.whole or rows != [group.table]
        return min(int(low) for low, _ in spans), max(int(high) for _, high in spans), whole

    def _goals(
        self,
        flags: Sequence[str],
        later: Clock | None,
        joined: Sequence[tuple[Group, str, Clock]],
        clock: Clock,
    ) -> Iterator[str]:
        if later:
            delay_us = self._delay(self.main.table, later.sql, clock.sql)
            yield "  conversion: # TODO its name"
            yield f"    window: {_window(delay_us)} # 99.9 % of the delays seen are shorter"
            yield "    lateness: 0h # the log has one clock"
            yield "    observation: 0m # TODO how long to wait before a row counts as negative"
        for flag in flags:
            yield f"  {_goal_name(flag)}:"
            yield "    window: 1h # the flag stands on the row, so every delay is zero here"
            yield "    lateness: 0h"
            yield "    observation: 0m"
        for group, _, _ in joined:
            yield f"  {_group_goal(group)}: # TODO its name"
            yield "    window: 24h # TODO how long after the impression one counts"
            yield "    lateness: 2h # TODO how late its rows may come"
            yield "    observation: 1h # TODO how long to wait before a row counts as negative"
        if not (later or flags or joined):
            yield "  click: # TODO nothing in the log looks like a click or a conversion"
            yield "    window: 1h"

    def _delay(self, table: str, late: str, early: str) -> int:
        (delay_us,) = one_row(
            self.connection,
            f"SELECT quantile_disc(TRY({late}) - TRY({early}), 0.999) FROM {table}",
        )
        return int(delay_us)

    def _engagements(
        self,
        main: Group,
        key: str,
        clock: Clock,
        flags: Sequence[str],
        later: Clock | None,
        joined: Sequence[tuple[Group, str, Clock]],
    ) -> Iterator[str]:
        rows = [(flag, f"CAST({_column(flag)} AS INTEGER) = 1", clock) for flag in flags]
        if later:
            rows = [("conversion", f"{_column(later.column)} IS NOT NULL", later)]
        if not rows and not joined:
            rows = [("click", "FALSE", clock)]
        for named, where, at in rows:
            goal = _goal_name(named)
            yield "    - files: *files"
            yield from (f"      {line.partition(' #')[0]}" for line in main.csv_lines)
            yield f"      where: {_yaml(where)}"
            yield "      columns:"
            yield f"        event_id: {_yaml(_text_after(key, goal))}"
            yield f"        impression_id: {_yaml(key)}"
            yield f"        goal: {_yaml(_literal(goal))}"
            yield f"        occurred_us: {_yaml(at.sql)}"
            yield f"        received_us: {_yaml(_received(at))}"
        for group, column, at in joined:
            goal = _group_goal(group)
            event_key, why, _ = self._key(group, at)
            yield f"    - files: [{', '.join(self._globs(group))}]"
            yield from (f"      {line}" for line in group.csv_lines)
            yield "      columns:"
            yield f"        event_id: {_yaml(event_key)} # {why}"
            yield f"        impression_id: {_column(column)} # its values are impressions' ids"
            yield f"        goal: {_yaml(_literal(goal))}"
            yield f"        occurred_us: {_yaml(at.sql)} # {at.why}"
            yield f"        received_us: {_yaml(_received(at))}"

    def _globs(self, group: Group) -> list[str]:
        folder = self.folder.resolve()
        return [
            _yaml(path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path))
            for path in group.paths
        ]


_TEXTS = frozenset({"user_id", "ad_id", "campaign_id", "advertiser_id"})
"""Contract columns that are features too."""


def _share_of_names(one: Group, other: Group) -> float:
    """Return how many of the column names of two groups are in both."""
    names, others = set(one.profiles), set(other.profiles)
    return len(names & others) / len(names | others)


def _is_goal(name: str) -> bool:
    return _GOAL_WORDS.match(name.lower()) is not None


def _goal_name(flag: str) -> str:
    word = re.sub(r"^(is|has|was)_?", "", re.sub(r"\W+", "_", flag.lower()))
    words = {"clk": "click", "clicked": "click", "converted": "conversion"}
    return words.get(word, word)


def _group_goal(group: Group) -> str:
    word = re.sub(r"\W+", "_", group.paths[0].name.split(".")[0].lower()).strip("_")
    return re.sub(r"_?\d+$", "", word).removesuffix("s") or "engagement"


def _is_timely(name: str) -> bool:
    return re.search(r"(time|date|hour|_at$|^at$|^ts$|_ts$|stamp)", name.lower()) is not None


def _is_amount(profile: Profile) -> bool:
    """Return whether numbers are amounts, not codes: fractions, or many and not named as a code."""
    if profile.numbers < 0.999 or profile.filled == 0:
        return False
    if _CODE_WORDS.search(profile.name.lower()):
        return False
    return profile.whole < 1.0 or (profile.different > 30 and profile.longest > profile.shortest)


def _since_epoch(name: str) -> str:
    return f"epoch_us(TIMESTAMPTZ '{EPOCH}') + {SECOND_US} * CAST({name} AS BIGINT)"


def _received(clock: Clock) -> str:
    return f"{clock.sql} + {HOUR_US - 1}" if clock.hour_only else clock.sql


def _why_received(clock: Clock) -> str:
    if clock.hour_only:
        return "only the hour is known: the row is known when it has ended"
    return "one clock only; TODO when your log had the row, if another column says so"


def _money(column: str) -> str:
    if column not in {"bid_price", "paid_price"}:
        return ""
    return " # TODO micro-currency for one impression: multiply as the log's unit asks"


def _window(delay_us: int) -> str:
    """Return a duration for the dataset file, rounded up to hours, or to days from three on."""
    if delay_us > 3 * DAY_US:
        return f"{-(-delay_us // DAY_US)}d"
    return f"{max(-(-delay_us // HOUR_US), 1)}h"


def _column(name: str) -> str:
    """Return a column's name as SQL, in quotes where it needs them."""
    try:
        tree = sqlglot.parse_one(name, read="duckdb")
    except SqlglotError:
        return _quoted(name)
    plain = isinstance(tree, exp.Column) and not tree.table and tree.name == name
    return name if plain and name.isidentifier() else _quoted(name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return f"'{text}'"


def _text_after(key: str, goal: str) -> str:
    return f"{key} || ':{goal}'"


def _yaml(text: str) -> str:
    """Return a YAML scalar: plain where that is safe, else in single quotes."""
    words = {"true", "false", "null", "yes", "no", "on", "off", "~"}
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text) and text.lower() not in words:
        return text
    return "'" + text.replace("'", "''") + "'"
