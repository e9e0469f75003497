"""Which hours the online model leaves out, and what its guard has seen so far: rows of tables.

The judgement itself is :mod:`.guard`; the decision to leave an hour out comes from
:mod:`.recovery`, from :mod:`.label_breaker`, or from a person. Parts of hours are left out here, by
whoever reads examples to learn them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import duckdb
import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.online.guard import COMPARED_WITH, Evidence, Verdict
from ad_pipeline.learners.tables import HOUR_GUARDS, QUARANTINED_HOURS
from ad_pipeline.warehouse import Table, rows_of, select

Decision = Literal["left_out", "accepted"]

LABELS = "label quality"
"""The cause of a decision that rests on an hour's labels, made before the hour is learnt."""


@dataclass(frozen=True)
class JudgedHour:
    """What the guard saw of one hour and goal.

    Attributes
    ----------
    goal : str
    hour_us : int
        Start of the hour, microseconds.
    evidence : Evidence
    verdict : Verdict
    """

    goal: str
    hour_us: int
    evidence: Evidence
    verdict: Verdict


def decide(
    connection: duckdb.DuckDBPyConnection,
    hours_us: Mapping[str, int],
    state: Decision,
    cause: str,
    evidence: Mapping[str, Any],
) -> None:
    """Keep the decision to leave an hour out, or to accept it; a later one replaces it.

    Parameters
    ----------
    connection : DuckDBPyConnection
        From :meth:`Warehouse.writer`.
    hours_us : mapping of str to int
        Goal to start of its hour, microseconds.
    state : {"left_out", "accepted"}
    cause : str
        Who decided.
    evidence : mapping
        What it rests on, JSON-serialisable.
    """
    replace_rows(
        connection,
        QUARANTINED_HOURS,
        pa.table(
            {
                "goal": list(hours_us),
                "hour_us": list(hours_us.values()),
                "state": [state] * len(hours_us),
                "cause": [cause] * len(hours_us),
                "evidence": [json.dumps(dict(evidence), sort_keys=True)] * len(hours_us),
            }
        ),
    )


def replace_rows(connection: duckdb.DuckDBPyConnection, table: Table, rows: pa.Table) -> None:
    """Put rows of goals and hours into a table in place of those it has of the same."""
    connection.register("placed", rows)
    connection.execute(
        f"DELETE FROM {table.name} WHERE (goal, hour_us) IN (SELECT (goal, hour_us) FROM placed)"
    )
    connection.execute(f"INSERT INTO {table.name} BY NAME SELECT * FROM placed")
    connection.unregister("placed")


def decisions(
    connection: duckdb.DuckDBPyConnection, start_us: int, end_us: int
) -> dict[tuple[str, int], Decision]:
    """Return what was decided about the hours ``[start_us, end_us)``, by goal and hour."""
    found = connection.execute(
        f"SELECT goal, hour_us, state FROM {QUARANTINED_HOURS.name} "
        "WHERE hour_us >= $start_us AND hour_us < $end_us",
        {"start_us": start_us, "end_us": end_us},
    ).fetchall()
    return {(goal, hour_us): state for goal, hour_us, state in found}


@dataclass(frozen=True)
class LeftOutPart:
    """A part of an hour that no learner is shown.

    Attributes
    ----------
    hour_us : int
        Start of the hour, microseconds.
    slice_of, part : str
        Column of an impression, and its value.
    """

    hour_us: int
    slice_of: str
    part: str


def left_out_parts(
    connection: duckdb.DuckDBPyConnection, goal: str, start_us: int, end_us: int
) -> list[LeftOutPart]:
    """Return the parts of the hours ``[start_us, end_us)`` of a goal that are left out."""
    span = {"goal": goal, "start_us": start_us, "end_us": end_us}
    found = rows_of(connection, select("learners.slices_left_out"), span).to_pylist()
    return [LeftOutPart(**row) for row in found]


def without_parts(emitted: pa.Table, parts: Sequence[LeftOutPart]) -> pa.Table:
    """Return emitted examples but for those of the parts that are left out.

    Parameters
    ----------
    emitted : pyarrow.Table
        Columns of ``learners.emitted_examples``.
    parts : sequence of LeftOutPart
        Of the same goal.
    """
    if not parts:
        return emitted
    emit_us = emitted.column("emit_us").to_numpy()
    kept = np.ones(emitted.num_rows, bool)
    for one in parts:
        in_hour = (emit_us >= one.hour_us) & (emit_us < one.hour_us + HOUR_US)
        kept &= ~(in_hour & _is_of(emitted, one.slice_of, one.part))
    return emitted.filter(pa.array(kept))


def without_suspect_labels(
    connection: duckdb.DuckDBPyConnection, goal: str, matured: pa.Table
) -> pa.Table:
    """Return matured rows but for those of which a label was left out when it became known.

    Parameters
    ----------
    connection : DuckDBPyConnection
    goal : str
    matured : pyarrow.Table
        Columns of ``learners.matured_examples``, of the goal.
    """
    found = rows_of(
        connection, select("learners.anchors_left_out"), {"goal": goal, "cause": LABELS}
    )
    if not found.num_rows:
        return matured
    kept = np.ones(matured.num_rows, bool)
    impressions = matured.column("impression_id").to_pylist()
    for row in (
        found.group_by(["slice_of", "part"]).aggregate([("impression_id", "list")]).to_pylist()
    ):
        anchors = set(row["impression_id_list"])
        suspect = np.array([one in anchors for one in impressions], bool)
        if row["slice_of"]:
            suspect = suspect & _is_of(matured, row["slice_of"], row["part"])
        kept &= ~suspect
    return matured.filter(pa.array(kept))


def _is_of(rows: pa.Table, column: str, part: str) -> np.ndarray:
    """Tell which rows have a value, as text, in a column, bool (n,)."""
    values = rows.column(column).cast(pa.string()).to_numpy()
    return np.asarray(values == part, bool)


def recent_evidence(
    connection: duckdb.DuckDBPyConnection, goal: str, start_us: int, recent_hours: int
) -> list[JudgedHour]:
    """Return what an hour of a goal is compared with, oldest first.

    Parameters
    ----------
    connection : DuckDBPyConnection
    goal : str
    start_us : int
        Start of the hour, microseconds.
    recent_hours : int
        How far back.
    """
    rows = rows_of(
        connection,
        f"SELECT * FROM {HOUR_GUARDS.name} WHERE goal = $goal AND hour_us >= $oldest_us "
        "AND hour_us < $start_us AND list_contains($states, state) ORDER BY hour_us",
        {
            "goal": goal,
            "oldest_us": start_us - recent_hours * HOUR_US,
            "start_us": start_us,
            "states": list(COMPARED_WITH),
        },
    )
    names = [field.name for field in fields(Evidence)]
    return [
        JudgedHour(
            goal,
            row["hour_us"],
            Evidence(**{name: row[name] for name in names}),
            Verdict(row["state"], row["reason"]),
        )
        for row in rows.to_pylist()
    ]


def guard_rows(judged: Sequence[JudgedHour]) -> pa.Table:
    """Return judged hours as rows of ``learners.hour_guards``."""
    kinds = {"VARCHAR": pa.string(), "BIGINT": pa.int64(), "DOUBLE": pa.float64()}
    schema = pa.schema([(column.name, kinds[column.type]) for column in HOUR_GUARDS.columns])
    return pa.Table.from_pylist(
        [
            {"goal": hour.goal, "hour_us": hour.hour_us}
            | asdict(hour.verdict)
            | asdict(hour.evidence)
            for hour in judged
        ],
        schema,
    )
