"""Says what is wrong with a dataset file and its log before anything runs, from a sample of it.

The sample goes through the readers that the pipeline uses, so that what is refused here would be
refused there, and for the same reason. Time and memory do not grow with the log. Nothing is written
but a scratch folder; what a whole log amounts to is for the ledger and the accounting to say.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
from sqlglot import exp

from ad_pipeline.clocks import HOUR_US, duration, timestamp
from ad_pipeline.datasets import (
    REQUIRED,
    Dataset,
    DatasetError,
    Deployment,
    Source,
    load_dataset,
    parse_expression,
)
from ad_pipeline.events.contract import event_tables
from ad_pipeline.events.ingest import CHUNK_ROWS
from ad_pipeline.events.ledger import numbered_sources
from ad_pipeline.events.readers import (
    LATEST_CLOCK_US,
    UnreadableLog,
    land,
    layouts,
    mapped_rows,
)
from ad_pipeline.events.sample import Sample, Sampler
from ad_pipeline.warehouse import one_row

Level = Literal["ok", "warning", "error"]

REFUSED_IS_AN_ERROR = 0.05
"""Share of rows refused for one reason from which on the mapping is taken to be wrong."""

REPEATED_IS_AN_ERROR = 0.2
"""Share of rows that share their key: a log delivered at least once has a few percent of them."""

ORPHANS_ARE_AN_ERROR = 0.5
"""Share of engagements without an impression, where the sample is the whole log."""

OUTSIDE_IS_AN_ERROR = 0.5
"""Share of impressions received before the start or after the end."""

SECONDS_AN_ASSET_HOUR = 0.02
"""Dagster's own time for one partition of one asset, measured (docs/adr/0004)."""

MANY_HOURS = 3_000

_ALL_DIFFERENT = 0.9
_FEW_VALUES = 12
_ENOUGH_ROWS = 500
_ASSETS = 14

_UNZONED = "text without a zone, taken as UTC"

_REMEDIES: Mapping[str, str] = {
    "unreadable line": "they have another number of fields than the first line: look at one, and "
    "write 'delimiter:', 'quote: none' or 'header: false' if the file is written that way",
    "line too long": "a line this long is no row: is a line's end missing, or a quotation mark?",
    "text too long": "take the column out, or cut it: left(x, 200)",
    "no time zone": "say whose time it is: epoch_us(timezone('Europe/Berlin', CAST(x AS "
    "TIMESTAMP))), with 'UTC' if it is that",
    "wrong type": "mend the expression, or list the text under 'nulls:' if it means null",
    "missing": "map the column to what every row has; source_file || ':' || source_row is an id "
    "for rows that have none",
    "clock out of range": "write microseconds since 1970 in UTC: multiply seconds by 1000000, "
    "milliseconds by 1000",
    "not finite": "write CASE WHEN isfinite(x) THEN x END",
    "propensity": "write the probability with which the ad was chosen, above 0 and at most 1",
    "unknown goal": "write one of the goals of this file, or add a goal",
    "received before it occurred": "received_us is when your log had the row: with one clock only, "
    "write the expression of occurred_us",
    "too late": "these rows come longer after they occurred than any window + lateness: write a "
    "longer lateness, or received_us as it was",
}
"""What to do about the reader's reasons, by how the reason begins."""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    level : {'ok', 'warning', 'error'}
    subject : str
        Table, column or key of the dataset file.
    text : str
        What was found, with an example.
    remedy : str
        What to do; '' where nothing is to be done.
    """

    level: Level
    subject: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """Return the finding as one line."""
        arrow = f" -> {self.remedy}" if self.remedy else ""
        return f"{self.level:<8}{self.subject}: {self.text}{arrow}"


def check_dataset(path: Path, home: Path) -> tuple[Finding, ...]:
    """Read a dataset file and a sample of its log and say what is wrong.

    Parameters
    ----------
    path : Path
        The dataset file.
    home : Path
        ``AD_PIPELINE_HOME``, for globs that begin with ``{home}/``.

    Returns
    -------
    tuple of Finding
    """
    try:
        dataset = load_dataset(path)
    except DatasetError as error:
        return (Finding("error", f"{error.key} (line {error.line})", error.problem, error.remedy),)
    deployment = Deployment(dataset, (home / dataset.name).resolve())
    found = [Finding("ok", "dataset file", f"{path}: {_in_words(dataset)}")]
    with (
        tempfile.TemporaryDirectory(prefix="ad_pipeline-sample-") as scratch,
        duckdb.connect(":memory:") as connection,
    ):
        connection.execute("SET TimeZone = 'UTC'")
        samples, problems = _take(deployment, Sampler(Path(scratch)))
        found += problems
        landed = []
        for table in dict.fromkeys(table for table, _ in samples):
            of_table = [sample for (name, _), sample in samples.items() if name == table]
            problems = _land(connection, dataset, table, of_table)
            found += problems
            if not any(finding.level == "error" for finding in problems):
                landed.append(table)
                found += _table_findings(connection, dataset, table, of_table)
        if "impressions" in landed:
            found += _feature_findings(connection, dataset)
            found += _estimate(connection, dataset, samples)
        if {"impressions", "engagements"} <= set(landed):
            whole = all(
                sample.is_whole
                for (table, _), (_, sample) in samples.items()
                if table in {"impressions", "engagements"}
            )
            found += _label_findings(connection, dataset, whole)
    return tuple(found)


Samples = dict[tuple[str, int], tuple[Source, Sample]]


def _in_words(dataset: Dataset) -> str:
    end = "open" if dataset.end_us is None else timestamp(dataset.end_us)
    goals = ", ".join(
        f"{goal.name} within {duration(goal.window_us)} of the "
        f"{dataset.row if goal.anchor == 'impression' else goal.anchor}"
        for goal in dataset.goals
    )
    return f"{timestamp(dataset.start_us)} to {end}; {goals}"


def _take(deployment: Deployment, sampler: Sampler) -> tuple[Samples, list[Finding]]:
    """Take the samples; a glob without a file and a file without a format are findings."""
    found: list[Finding] = []
    samples: Samples = {}
    for table, number, source in numbered_sources(deployment.dataset):
        paths = deployment.log_files(source)
        subject = f"sources.{table}.files"
        if not paths:
            # Other tables may come later: an exchange without decisions has served nothing yet. A
            # table may have a source for each form of a log, of which a user has one.
            needed = table in {"impressions", "engagements"} and not any(
                deployment.log_files(other) for other in deployment.dataset.sources_of(table)
            )
            level: Level = "error" if needed else "warning"
            found.append(
                Finding(
                    level,
                    subject,
                    f"no file matches {', '.join(source.files)}",
                    _where_files_may_be(deployment, source),
                )
            )
            continue
        try:
            sample = sampler.sample(deployment, source, paths)
        except UnreadableLog as error:
            problem, _, remedy = str(error).rpartition("; ")
            found.append(Finding("error", subject, problem, remedy))
            continue
        samples[table, number] = (source, sample)
    return samples, found


def _where_files_may_be(deployment: Deployment, source: Source) -> str:
    folder = deployment.dataset.path.parent
    if source.files[0].startswith("{home}/"):
        return f"{{home}} is {deployment.home}: have the log written there"
    seen = sorted(
        path.name for path in folder.iterdir() if path.name not in {"dataset.yaml", "README.md"}
    )
    listed = ", ".join(seen[:8]) or "nothing else"
    return (
        f"globs are relative to {folder}, where there is {listed}: put the files there, or write "
        "another glob"
    )


def _land(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    table: str,
    samples: Sequence[tuple[Source, Sample]],
) -> list[Finding]:
    """Fill ``landed_<table>``, and ``sampled_<table>_<n>`` with the files' own columns as well."""
    # From 1970, so that rows before the start are seen too.
    since_1970 = dataset.model_copy(update={"start_us": 0})
    contract = event_tables(dataset)[table]
    subject = f"sources.{table}"
    try:
        files = [(source, sample.files) for source, sample in samples]
        land(connection, since_1970, contract, files, 0, LATEST_CLOCK_US + HOUR_US)
        number = 0
        for source, sample in samples:
            for layout, group in layouts(connection, source, sample.files):
                rows = mapped_rows(connection, since_1970, contract, source, layout, group)
                connection.execute(f"CREATE TEMP TABLE sampled_{table}_{number} AS {rows}")
                number += 1
    except DatasetError as error:
        return [Finding("error", f"{error.key} (line {error.line})", error.problem, error.remedy)]
    except UnreadableLog as error:
        problem, _, remedy = str(error).rpartition("; ")
        return [Finding("error", subject, problem, remedy)]
    return []


def _table_findings(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    table: str,
    samples: Sequence[tuple[Source, Sample]],
) -> Iterator[Finding]:
    rows, refused = one_row(
        connection, f"SELECT count(*), count(landed_reason) FROM landed_{table}"
    )
    files = sum(len(sample.files) for _, sample in samples)
    of_files = sum(sample.of_files for _, sample in samples)
    whole = all(sample.is_whole for _, sample in samples)
    size = sum(sample.of_bytes for _, sample in samples) / 1e6
    extent = "all rows" if whole else "a sample"
    if rows == 0:
        level: Level = "error" if table == "impressions" else "warning"
        yield Finding(
            level,
            table,
            f"no row in {files} files ({size:.1f} MB)",
            "look at 'where', at 'header', and whether the files are the right ones",
        )
        return
    yield Finding(
        "ok",
        table,
        f"{rows:,} rows, {extent} of {of_files} files of {size:.1f} MB; {refused:,} refused",
    )
    yield from _refused(connection, dataset, table, rows)
    yield from _clock_findings(connection, dataset, table, rows, whole)
    yield from _zone_findings(connection, table, samples)
    yield from _repeated_keys(connection, table, rows)


def _refused(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, table: str, rows: int
) -> Iterator[Finding]:
    for reason, count, example, file in connection.execute(
        "SELECT landed_reason, count(*), any_value(landed_json ORDER BY landed_id), "
        f"any_value(landed_file ORDER BY landed_id) FROM landed_{table} "
        "WHERE landed_reason IS NOT NULL GROUP BY landed_reason ORDER BY count(*) DESC, 1"
    ).fetchall():
        remedy = next(text for start, text in _REMEDIES.items() if reason.startswith(start))
        if reason == "unknown goal":
            goals = [
                str(goal)
                for (goal,) in connection.execute(
                    f"SELECT DISTINCT goal FROM landed_{table} WHERE landed_reason = $reason "
                    "ORDER BY goal LIMIT 5",
                    {"reason": reason},
                ).fetchall()
            ]
            remedy = f"the log says {', '.join(goals)}: {remedy} ({', '.join(dataset.goal_names)})"
        serious = count / rows >= REFUSED_IS_AN_ERROR
        yield Finding(
            "error" if serious else "warning",
            _column_of(table, reason),
            f"{reason}: {_share(count, rows)} would be quarantined, first of {file}: "
            f"{_shortened(example)}",
            remedy,
        )


def _column_of(table: str, reason: str) -> str:
    """Return the column that a reason is about, as a place of the dataset file."""
    for start in ("wrong type: ", "no time zone: ", "text too long: ", "missing ", "not finite: "):
        if reason.startswith(start):
            return f"{table}.{reason.removeprefix(start)}"
    if reason == "clock out of range":
        return f"{table}.received_us"
    return f"{table}.goal" if reason == "unknown goal" else table


def _clock_findings(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, table: str, rows: int, whole: bool
) -> Iterator[Finding]:
    occurred_us, received_us = one_row(
        connection, f"SELECT median(occurred_us), median(logged_us) FROM landed_{table}"
    )
    for name, median_us in (("occurred_us", occurred_us), ("received_us", received_us)):
        unit = _unit(median_us)
        if unit is not None:
            yield Finding(
                "error",
                f"{table}.{name}",
                f"half the rows are at {median_us:.0f} or earlier: "
                f"{_as_moment(median_us)}, {unit[0]}",
                unit[1],
            )
            return
    if received_us is None:
        return
    main = table == "impressions"
    # Engagements of the last impressions come after the end; those hours are run too.
    end_us = dataset.end_us if main else dataset.last_hour_end_us
    first_us, last_us, before, after, hour_only = one_row(
        connection,
        f"""
        SELECT min(logged_us), max(logged_us), count(*) FILTER (WHERE logged_us < $start_us),
            count(*) FILTER (WHERE logged_us >= $end_us),
            bool_and(occurred_us % {HOUR_US} = 0 AND logged_us = occurred_us)
        FROM landed_{table} WHERE logged_us IS NOT NULL
        """,
        {"start_us": dataset.start_us, "end_us": LATEST_CLOCK_US if end_us is None else end_us},
    )
    span = f"{_as_moment(first_us)} to {_as_moment(last_us)}"
    yield Finding("ok", f"{table}.received_us", f"{span}{'' if whole else ' in the sample'}")
    for count, when, remedy in (
        (before, "before the start and left out", "write an earlier 'start:' if they belong to it"),
        (after, "after the end", "write a later 'end:' if they belong to the log"),
    ):
        if count:
            serious = main and count / rows >= OUTSIDE_IS_AN_ERROR
            yield Finding(
                "error" if serious else "warning",
                f"{table}.received_us",
                f"{_share(count, rows)} received {when}",
                remedy,
            )
    if main and whole and dataset.end_us is not None and last_us < dataset.end_us - HOUR_US:
        ends_us = last_us - last_us % HOUR_US + HOUR_US
        yield Finding(
            "warning",
            "end",
            f"the last impression is of {_as_moment(last_us)}: until one of the "
            "last hour comes, the log is not taken to have ended",
            f"write 'end: {timestamp(ends_us)}' if nothing more comes",
        )
    if main and hour_only and rows >= _ENOUGH_ROWS:
        yield Finding(
            "warning",
            f"{table}.received_us",
            "every row is received on a whole hour: only the hour "
            "is known, and a row would be known when its hour begins",
            "add 3599999999 to received_us, in engagements too: known when its hour has ended",
        )


def _unit(median_us: float | None) -> tuple[str, str] | None:
    """Return what a clock that is not in microseconds looks like, and what to write."""
    if median_us is None or 1e14 <= median_us <= LATEST_CLOCK_US:
        return None
    if median_us > LATEST_CLOCK_US:
        return "which looks like nanoseconds", "divide it: CAST(x AS BIGINT) // 1000"
    if median_us >= 1e11:
        return "which looks like milliseconds", "write 1000 * CAST(x AS BIGINT)"
    if median_us >= 1e8:
        return "which looks like seconds", "write 1000000 * CAST(x AS BIGINT)"
    return (
        "which looks like seconds from the start of the log",
        "write epoch_us(TIMESTAMPTZ '2014-01-01T00:00Z') + 1000000 * CAST(x AS BIGINT)",
    )


def _zone_findings(
    connection: duckdb.DuckDBPyConnection, table: str, samples: Sequence[tuple[Source, Sample]]
) -> Iterator[Finding]:
    """Say which zone the text of each clock is taken to be of, by an example."""
    for number, (source, _) in enumerate(samples):
        if number and source.columns["occurred_us"] == samples[0][0].columns["occurred_us"]:
            continue
        text = source.columns["occurred_us"]
        tree = parse_expression(text)
        columns = sorted({node.name for node in tree.find_all(exp.Column)})
        at_us, raw = _example(connection, table, number, columns)
        if not raw or at_us is None:
            continue
        named = re.search(r"timezone\('([^']+)'", text) or re.search(
            r"(?i)time zone '([^']+)'", text
        )
        if named:
            how = f"times of {named[1]}"
        elif "strptime" in text.lower():
            how = "text with a zone" if "%z" in text else _UNZONED
        elif any(
            cast.this.find(exp.Column) and cast.to.sql().upper().startswith("TIMESTAMP")
            for cast in tree.find_all(exp.Cast)
        ):
            how = "text with a zone"
        else:
            how = "numbers, counted in UTC"
        shown = ", ".join(f"{name} = {value}" for name, value in raw.items())
        yield Finding(
            "warning" if how == _UNZONED else "ok",
            f"{table}.occurred_us",
            f"{how}: {shown} is {_as_moment(at_us)}",
            "right if it is UTC; local time needs epoch_us(timezone('Europe/Berlin', <timestamp>))"
            if how == _UNZONED
            else "",
        )


def _example(
    connection: duckdb.DuckDBPyConnection, table: str, number: int, columns: Sequence[str]
) -> tuple[int | None, dict[str, str]]:
    """Return the time of the first row of a sample that has one, and columns as its file says."""
    parts = ", ".join(
        f"json_extract_string(to_json(landed_source), {_json_path(name)})" for name in columns
    )
    found = connection.execute(
        f"SELECT occurred_us{', ' + parts if parts else ''} FROM sampled_{table}_{number} "
        "WHERE occurred_us IS NOT NULL LIMIT 1"
    ).fetchone()
    if found is None:
        return None, {}
    named = zip(columns, found[1:], strict=True)
    return found[0], {name: value for name, value in named if value is not None}


def _repeated_keys(
    connection: duckdb.DuckDBPyConnection, table: str, rows: int
) -> Iterator[Finding]:
    key = REQUIRED[table][0]
    total, keys = one_row(
        connection,
        f'SELECT count("{key}"), count(DISTINCT "{key}") FROM landed_{table} '
        "WHERE landed_reason IS NULL",
    )
    repeated = total - keys
    if not repeated:
        return
    example, times = one_row(
        connection,
        f'SELECT "{key}", count(*) FROM landed_{table} WHERE landed_reason IS NULL '
        "GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 1",
    )
    serious = repeated / rows >= REPEATED_IS_AN_ERROR
    yield Finding(
        "error" if serious else "warning",
        f"{table}.{key}",
        f"{_share(repeated, rows)} repeat a key and would be dropped as duplicates: "
        f"{example} stands there {times} times",
        "write an id that tells rows apart, or source_file || ':' || source_row if there is none"
        if serious
        else "right if those rows were delivered twice",
    )


def _feature_findings(connection: duckdb.DuckDBPyConnection, dataset: Dataset) -> Iterator[Finding]:
    features = dataset.features
    rows, _ = one_row(
        connection,
        "SELECT count(*), 0 FROM landed_impressions WHERE landed_reason IS NULL",
    )
    if rows == 0:
        return
    columns = tuple(dict.fromkeys((*features.categorical, *features.numeric, *dataset.entities)))
    sound = 0
    for name in columns:
        nulls, different, whole_numbers = one_row(
            connection,
            f'SELECT count(*) - count("{name}"), count(DISTINCT "{name}"), '
            + (
                f'coalesce(bool_and("{name}" = floor("{name}")), FALSE) '
                if name in features.numeric
                else "FALSE "
            )
            + "FROM landed_impressions WHERE landed_reason IS NULL",
        )
        found = list(_one_feature(dataset, name, rows, nulls, different, whole_numbers))
        sound += not found
        for finding in found:
            yield finding if not nulls else _with_null_row(connection, dataset, finding, name)
    yield Finding("ok", "features", f"{sound} of {len(columns)} features and entities look sound")


def _one_feature(
    dataset: Dataset, name: str, rows: int, nulls: int, different: int, whole_numbers: bool
) -> Iterator[Finding]:
    subject = f"impressions.{name}"
    numeric = name in dataset.features.numeric
    if nulls == rows:
        yield Finding(
            "error",
            subject,
            "null in every row",
            "mend the expression, or take it out of features and entities",
        )
    elif different == 1 and nulls == 0 and rows >= _ENOUGH_ROWS:
        yield Finding(
            "warning",
            subject,
            "the same in every row: nothing can be learnt from it",
            "take it out, unless the whole log differs",
        )
    elif nulls / rows >= 0.5:
        yield Finding(
            "warning",
            subject,
            f"null in {_share(nulls, rows)}",
            "right if it is rarely known; else mend the expression",
        )
    elif numeric and whole_numbers and different <= _FEW_VALUES and rows >= _ENOUGH_ROWS:
        yield Finding(
            "warning",
            subject,
            f"a number of only {different} whole values",
            "list it as categorical if they are codes and not amounts",
        )
    elif not numeric and different >= _ALL_DIFFERENT * (rows - nulls) and rows >= _ENOUGH_ROWS:
        yield Finding(
            "warning",
            subject,
            f"{different:,} different values in {rows:,} rows: an id",
            "take it out: nothing can be learnt from a value seen once",
        )


def _with_null_row(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, finding: Finding, name: str
) -> Finding:
    """Return the finding with a row in which the column is null, as the file has it."""
    tree = parse_expression(dataset.sources_of("impressions")[0].columns[name])
    used = sorted({node.name for node in tree.find_all(exp.Column)})
    fields = ", ".join(
        f"json_extract_string(to_json(landed_source), {_json_path(column)})" for column in used
    )
    found = connection.execute(
        f"SELECT landed_file{', ' + fields if fields else ''} FROM sampled_impressions_0 "
        f'WHERE "{name}" IS NULL AND landed_wrong IS NULL LIMIT 1'
    ).fetchone()
    if found is None:
        return finding
    shown = ", ".join(f"{column} = {value}" for column, value in zip(used, found[1:], strict=True))
    example = f"{finding.text}, first in {found[0]}: {_shortened(shown)}"
    return Finding(finding.level, finding.subject, example, finding.remedy)


def _label_findings(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, whole: bool
) -> Iterator[Finding]:
    """Say how often each goal is reached, and which engagements find no impression."""
    connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE matched AS
        SELECT e.goal, e.event_id, e.impression_id, e.occurred_us - i.occurred_us AS delay_us,
            i.impression_id IS NOT NULL AS has_impression
        FROM landed_engagements AS e
        LEFT JOIN (
            SELECT impression_id, min(occurred_us) AS occurred_us
            FROM landed_impressions WHERE landed_reason IS NULL GROUP BY impression_id
        ) AS i ON i.impression_id = e.impression_id
        WHERE e.landed_reason IS NULL
        """
    )
    (impressions,) = one_row(
        connection,
        "SELECT count(DISTINCT impression_id) FROM landed_impressions WHERE landed_reason IS NULL",
    )
    for goal in dataset.goals:
        window_us = dataset.chain_window_us(goal.name)
        events, known, early, outside, reached, median_us = one_row(
            connection,
            """
            SELECT count(*), count(*) FILTER (WHERE has_impression),
                count(*) FILTER (WHERE delay_us < 0),
                count(*) FILTER (WHERE delay_us > $window_us),
                count(DISTINCT impression_id) FILTER (WHERE delay_us BETWEEN 0 AND $window_us),
                median(delay_us)
            FROM matched WHERE goal = $goal
            """,
            {"goal": goal.name, "window_us": window_us},
        )
        subject = f"goals.{goal.name}"
        if events == 0:
            yield Finding(
                "warning",
                subject,
                "no engagement of it in the sample",
                f"look at 'where' and 'goal' of sources.engagements: goal: \"'{goal.name}'\"",
            )
            continue
        orphans = events - known
        if orphans and not whole:
            yield Finding(
                "ok",
                subject,
                f"{events:,} engagements, {known:,} of them on impressions "
                "of the sample; the sample is too small to miss the others",
            )
        elif orphans:
            serious = orphans / events >= ORPHANS_ARE_AN_ERROR
            (example,) = one_row(
                connection,
                "SELECT min(impression_id) FROM matched WHERE NOT has_impression AND goal = $goal",
                {"goal": goal.name},
            )
            yield Finding(
                "error" if serious else "warning",
                subject,
                f"{_share(orphans, events, 'engagements')} name an impression that is not in the "
                f"log, such as {example}",
                "map impression_id of both tables to the same id"
                if serious
                else "they would be held, then quarantined",
            )
        if not known:
            continue
        if early:
            serious = early / known >= REFUSED_IS_AN_ERROR
            yield Finding(
                "error" if serious else "warning",
                subject,
                f"{_share(early, known, 'engagements')} come before their impression",
                "the two clocks are of different zones or units: compare occurred_us of "
                "both tables",
            )
        if outside:
            serious = outside / known >= 0.5
            yield Finding(
                "error" if serious else "warning",
                subject,
                f"{_share(outside, known, 'engagements')} come after the window of "
                f"{duration(window_us)} and make no label",
                "right if they shall not count; else write a longer 'window:'",
            )
        rate = reached / impressions if impressions else 0.0
        odd = rate > 0.5 and goal.anchor == "impression"
        delay = "every one at once" if not median_us else f"half within {_about(median_us)}"
        # Middles of files hold engagements and impressions of different hours.
        counted = "" if whole else ", at least: the sample has gaps"
        yield Finding(
            "warning" if odd else "ok",
            subject,
            f"{reached:,} of {impressions:,} rows reach it ({100 * rate:.3g} %{counted}), {delay}",
            "more than half: is 'where' the wrong way round?" if odd else "",
        )


def _estimate(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, samples: Samples
) -> Iterator[Finding]:
    """Say what a run of the whole log amounts to."""
    last_us, rows = one_row(
        connection,
        "SELECT max(logged_us), count(*) FROM landed_impressions WHERE logged_us IS NOT NULL",
    )
    if not rows:
        return
    of_table = [sample for (table, _), (_, sample) in samples.items() if table == "impressions"]
    taken = sum(sample.bytes for sample in of_table)
    size = sum(sample.of_bytes for sample in of_table)
    all_rows = rows * size / max(taken, 1)
    end_us = dataset.last_hour_end_us
    if end_us is None:
        end_us = last_us + dataset.maturity_us
    hours = max((end_us - dataset.start_us) // HOUR_US, 1)
    seconds = hours * _ASSETS * SECONDS_AN_ASSET_HOUR
    yield Finding(
        "ok" if hours <= MANY_HOURS else "warning",
        "run",
        f"about {all_rows:,.0f} rows in {hours:,} log hours, which are the partitions of each "
        "hourly asset, until the last label matures; Dagster's own time for them is about "
        f"{_about(seconds * 1e6)}",
        ""
        if hours <= MANY_HOURS
        else "a shorter window, or 'start' and 'end' nearer to each other",
    )
    # Rows of a file that spans many hours are read again for every chunk of those hours.
    passes = all_rows / CHUNK_ROWS
    files = sum(sample.of_files for sample in of_table)
    if passes >= 10 and files < passes:
        yield Finding(
            "warning",
            "run",
            f"{files} files for about {all_rows:,.0f} rows: each chunk of "
            f"{CHUNK_ROWS:,} rows reads every file with rows of its hours, about "
            f"{passes / files:.0f} times each",
            "split the files by day or hour, or write them as Parquet, sorted by time",
        )


def _as_moment(us: float) -> str:
    """Return a moment for people, or the bare number where no calendar reaches."""
    return timestamp(int(us)) if 0 <= us <= LATEST_CLOCK_US else f"{us:.0f} microseconds"


def _about(us: float) -> str:
    for unit, size in (("days", 86_400e6), ("hours", 3_600e6), ("minutes", 60e6)):
        if us >= 2 * size:
            return f"{us / size:.0f} {unit}"
    return f"{us / 1e6:.3g} seconds"


def _share(count: int, rows: int, what: str = "rows") -> str:
    return f"{count:,} of {rows:,} {what} ({100 * count / rows:.3g} %)"


def _shortened(text: object, most: int = 220) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[:most] + " ..."


def _json_path(name: str) -> str:
    return "'$.\"" + name.replace("'", "''") + "\"'"
