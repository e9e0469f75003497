"""The quality of labels over log hours: counted in the warehouse, judged in order, kept as rows.

An hour is judged by rows of hours up to it, and by what was said of the hours before: a range gives
the same rows however it is split. The judgement is :mod:`.label_quality`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US, hour_key, hour_of
from ad_pipeline.datasets import Deployment, Goal
from ad_pipeline.monitoring.label_quality import (
    ALL,
    NOT_COMPARED_WITH,
    SUSPECT,
    JudgedLabels,
    Part,
    Series,
    judge_hour,
)
from ad_pipeline.monitoring.tables import LABEL_QUALITY, TABLES
from ad_pipeline.settings import LabelQualitySettings
from ad_pipeline.warehouse import Warehouse, arrow_rows, replace_hours, rows_of, select

COUNTED_AS = {
    "pending": ("known",),
    "provisional_negative": ("firsts",),
    "immediate_positive": ("firsts", "positives"),
    "delayed_positive": ("positives", "late"),
    "retracted": ("retracted",),
    "too_late": ("too_late",),
}
"""States of ``monitoring.label_counts``, and what of a :class:`Series` they add to."""


def record_label_quality(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> list[dict[str, Any]]:
    """Judge the labels of the log hours ``[start_us, end_us)``, and keep what was found.

    Parameters
    ----------
    warehouse : Warehouse
        With the events and label states of the hours.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.

    Returns
    -------
    list of dict
        The rows of ``monitoring.label_quality``.
    """
    warehouse.create(TABLES)
    rows = [
        row
        for goal in deployment.dataset.goals_in_chain_order()
        for row in _judged_hours(warehouse, deployment, goal, start_us, end_us)
    ]
    rows.sort(key=lambda row: row["hour_us"])
    with warehouse.writer() as connection:
        connection.register("judged", arrow_rows(LABEL_QUALITY, rows))
        query = "SELECT * FROM judged"
        replace_hours(connection, LABEL_QUALITY, query, {}, start_us, end_us)
    return rows


def suspect_labels(warehouse: Warehouse, since_us: int = 0) -> list[dict[str, Any]]:
    """Return the rows of ``monitoring.label_quality`` that people should look at, oldest first.

    Parameters
    ----------
    warehouse : Warehouse
    since_us : int
        From which hour on, microseconds.
    """
    warehouse.create(TABLES)
    with warehouse.reader() as connection:
        return rows_of(
            connection,
            f"SELECT * FROM {LABEL_QUALITY.name} WHERE hour_us >= $since_us "
            "AND list_contains($suspect, verdict) ORDER BY hour_us, goal, slice_of, part",
            {"since_us": since_us, "suspect": list(SUSPECT)},
        ).to_pylist()


def described(row: Mapping[str, Any]) -> str:
    """Return what is wrong with the labels of a row, and the line to act."""
    whose = "" if row["slice_of"] == ALL else f" of {row['slice_of']} {row['part']}"
    hour = hour_key(row["hour_us"])
    return (
        f"{row['goal']}{whose} in {hour}: {row['verdict']}, {row['reason']}; leave the hour out by "
        f"`ad_pipeline recover --goal {row['goal']} --hour {hour}`, or let it be learnt by "
        "--accept; settings.label_quality.act leaves such labels out by itself"
    )


def _judged_hours(
    warehouse: Warehouse, deployment: Deployment, goal: Goal, start_us: int, end_us: int
) -> Iterator[dict[str, Any]]:
    settings = deployment.dataset.settings.label_quality
    horizon_hours = -(-(goal.window_us + goal.lateness_us) // HOUR_US)
    reach = settings.reference_hours + 2 * horizon_hours + 2
    first_us = max(hour_of(deployment.dataset.start_us), start_us - reach * HOUR_US)
    hours = (end_us - first_us) // HOUR_US
    with warehouse.reader() as connection:
        suspects = _said_before(connection, goal.name, first_us, start_us)
        series = _series(connection, goal, settings, first_us, end_us)
    for hour in range((start_us - first_us) // HOUR_US, hours):
        begin = max(0, hour - reach)
        # Only what the hour can be judged by: whoever judges it alone reads no more.
        judged = judge_hour(
            {
                part: one.between(begin, hour + 1)
                for part, one in _largest(series, begin, hour, settings).items()
            },
            hour - begin,
            {place - begin: parts for place, parts in suspects.items() if place >= begin},
            horizon_hours,
            settings,
        )
        suspects[hour] = frozenset(
            part for part, one in judged.items() if one.verdict in NOT_COMPARED_WITH
        )
        for part, one in judged.items():
            yield _row(first_us + hour * HOUR_US, goal.name, part, one)


def _said_before(
    connection: duckdb.DuckDBPyConnection, goal: str, first_us: int, start_us: int
) -> dict[int, frozenset[Part]]:
    """Return the parts that were suspect in the hours before, by place of the hour."""
    found = connection.execute(
        f"SELECT hour_us, slice_of, part FROM {LABEL_QUALITY.name} WHERE goal = $goal "
        "AND hour_us >= $first_us AND hour_us < $start_us AND list_contains($verdicts, verdict)",
        {
            "goal": goal,
            "first_us": first_us,
            "start_us": start_us,
            "verdicts": list(NOT_COMPARED_WITH),
        },
    ).fetchall()
    said: dict[int, set[Part]] = {}
    for hour_us, slice_of, part in found:
        said.setdefault((hour_us - first_us) // HOUR_US, set()).add((slice_of, part))
    return {place: frozenset(parts) for place, parts in said.items()}


def _series(
    connection: duckdb.DuckDBPyConnection,
    goal: Goal,
    settings: LabelQualitySettings,
    first_us: int,
    end_us: int,
) -> dict[Part, Series]:
    """Return the counts of all anchors and of every part, by hour since ``first_us``."""
    hours = (end_us - first_us) // HOUR_US
    lags = -(-(goal.window_us + goal.lateness_us) // HOUR_US) + 2
    series = {(ALL, ""): Series.empty(hours, lags)}
    parameters = {
        "goal": goal.name,
        "start_us": first_us,
        "end_us": end_us,
        "window_us": goal.window_us,
        "horizon_us": goal.window_us + goal.lateness_us,
    }
    for column in ("", *settings.slices):
        part = "NULL" if not column else '"' + column.replace('"', '""') + '"'
        connection.execute(
            "CREATE OR REPLACE TEMP VIEW sliced AS SELECT impression_id, received_us, "
            f"CAST({part} AS VARCHAR) AS part FROM events.impressions"
        )
        counted = rows_of(connection, select("monitoring.label_counts"), parameters)
        _add(series, column, counted, first_us, goal.observation_us > 0)
    return series


def _add(
    series: dict[Part, Series], column: str, counted: pa.Table, first_us: int, observed: bool
) -> None:
    """Add the counts of a column's parts; "" is no column, and all anchors are one part."""
    everything = series[(ALL, "")]
    hours, lags = everything.positives.shape
    for row in counted.to_pylist():
        if column and row["part"] is None:
            continue
        key = (column, row["part"]) if column else (ALL, "")
        if key not in series:
            series[key] = Series.empty(hours, lags)
        place = (row["hour_us"] - first_us) // HOUR_US
        lag = min(row["lag_hours"], lags - 1)
        for name in COUNTED_AS[row["state"]]:
            if name in ("positives", "late"):
                # Without a window to observe, no label is later than it.
                if observed or name == "positives":
                    getattr(series[key], name)[place, lag] += row["rows"]
            else:
                getattr(series[key], name)[place] += row["rows"]


def _largest(
    series: Mapping[Part, Series], begin: int, hour: int, settings: LabelQualitySettings
) -> dict[Part, Series]:
    """Return all anchors and the parts with most of them since a moment, by name."""
    chosen = {(ALL, ""): series[(ALL, "")]}
    for column in settings.slices:
        sizes = {
            part: float(one.firsts[begin : hour + 1].sum())
            for part, one in series.items()
            if part[0] == column
        }
        largest = sorted(sizes, key=lambda part: (-sizes[part], part))[: settings.largest_parts]
        chosen |= {part: series[part] for part in sorted(largest) if sizes[part] > 0}
    return chosen


def _row(hour_us: int, goal: str, part: Part, one: JudgedLabels) -> dict[str, Any]:
    return {
        "hour_us": hour_us,
        "goal": goal,
        "slice_of": part[0],
        "part": part[1],
        "anchors": one.anchors,
        "positives": one.positives,
        "rate": _over(one.positives, one.anchors),
        "expected": one.positives_due,
        "expected_rate": _over(one.positives_due, one.anchors),
        "low": one.low,
        "high": one.high,
        "late": one.late,
        "expected_late": one.late_due,
        "late_share": _over(one.late, one.positives),
        "too_late": one.too_late,
        "retracted": one.retracted,
        "expected_retracted": one.retracted_due,
        "retraction_rate": one.retraction_rate,
        "coverage": one.coverage,
        "verdict": one.verdict,
        "reason": one.reason,
    }


def _over(part: float, whole: float) -> float:
    return float(np.divide(part, whole)) if whole else float("nan")
