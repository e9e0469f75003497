"""Which hours and parts are left out because of their labels, before anything learns them.

What the labels look like was said by ``monitoring.label_quality``. A goal whose labels are suspect
as a whole is halted: its hours are scored and not learnt, until enough calm hours have passed or a
person accepts an hour. A suspect part, such as one advertiser, is left out of its hour, and the
others are learnt. Both become decisions in the tables that hold those of the guard and of people,
whose own decisions are never touched; how learners obey them is :mod:`.quarantine`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ad_pipeline.clocks import HOUR_US, hours_between
from ad_pipeline.datasets import Deployment
from ad_pipeline.learners.online.quarantine import LABELS, replace_rows
from ad_pipeline.learners.tables import QUARANTINED_HOURS, QUARANTINED_SLICES, TABLES
from ad_pipeline.settings import LabelQualitySettings
from ad_pipeline.warehouse import Warehouse, arrow_rows, replace_hours, rows_of, select

UNDECIDED = ("too few", "warming up", None)
"""Verdicts that neither halt a goal nor let it go on; None: nobody judged the hour."""
HALTS = ("stalled", "jumped", "late")


@dataclass(frozen=True)
class LabelDecisions:
    """What was decided about some hours because of their labels.

    Attributes
    ----------
    hours : list of dict
        Rows of ``learners.quarantined_hours``.
    slices : list of dict
        Rows of ``learners.quarantined_slices``.
    """

    hours: list[dict[str, Any]]
    slices: list[dict[str, Any]]


def leave_out_by_labels(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> LabelDecisions:
    """Decide about the log hours ``[start_us, end_us)`` by their labels, and keep the decisions.

    Without ``settings.label_quality.act`` nothing is left out, and what was is taken back.

    Parameters
    ----------
    warehouse : Warehouse
        With ``monitoring.label_quality`` of the hours, if the settings act.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.
    """
    settings = deployment.dataset.settings.label_quality
    warehouse.create(TABLES)
    decided = LabelDecisions([], [])
    if settings.act:
        decided = _decided(warehouse, deployment, settings, start_us, end_us)
    with warehouse.writer() as connection:
        connection.execute(
            f"DELETE FROM {QUARANTINED_HOURS.name} WHERE cause = $cause "
            "AND hour_us >= $start_us AND hour_us < $end_us",
            {"cause": LABELS, "start_us": start_us, "end_us": end_us},
        )
        replace_rows(connection, QUARANTINED_HOURS, arrow_rows(QUARANTINED_HOURS, decided.hours))
        connection.register("anomalous", arrow_rows(QUARANTINED_SLICES, decided.slices))
        query = "SELECT * FROM anomalous"
        replace_hours(connection, QUARANTINED_SLICES, query, {}, start_us, end_us)
    return decided


def _decided(
    warehouse: Warehouse,
    deployment: Deployment,
    settings: LabelQualitySettings,
    start_us: int,
    end_us: int,
) -> LabelDecisions:
    # A person's word holds until the reference has hours of the new world.
    before_us = settings.reference_hours * HOUR_US
    span = {"start_us": start_us - before_us, "end_us": end_us}
    with warehouse.reader() as connection:
        verdicts = rows_of(connection, select("learners.label_verdicts"), span).to_pylist()
        earlier = rows_of(
            connection,
            f"SELECT * FROM {QUARANTINED_HOURS.name} "
            "WHERE hour_us >= $start_us AND hour_us < $end_us",
            span,
        ).to_pylist()
    by_others = {(row["goal"], row["hour_us"]) for row in earlier if row["cause"] != LABELS}
    hours: list[dict[str, Any]] = []
    slices: list[dict[str, Any]] = []
    for goal in deployment.dataset.goal_names:
        said = {
            row["hour_us"]: row
            for row in verdicts
            if row["goal"] == goal and row["slice_of"] == "all"
        }
        accepted_us = [
            row["hour_us"] for row in earlier if row["goal"] == goal and row["state"] == "accepted"
        ]
        released = {
            hour_us
            for hour_us in hours_between(start_us, end_us)
            if any(us <= hour_us <= us + settings.reference_hours * HOUR_US for us in accepted_us)
        }
        hours += [
            _halted_hour(goal, hour_us, said.get(hour_us))
            for hour_us in hours_between(start_us, end_us)
            if hour_us not in released
            and (goal, hour_us) not in by_others
            and _is_halted(hour_us, said, settings)
        ]
        slices += [
            {name: row[name] for name in QUARANTINED_SLICES.column_names}
            for row in verdicts
            if row["goal"] == goal
            and row["slice_of"] != "all"
            and row["hour_us"] >= start_us
            and row["hour_us"] not in released
        ]
    return LabelDecisions(hours, slices)


def _is_halted(
    hour_us: int, said: Mapping[int, Mapping[str, Any]], settings: LabelQualitySettings
) -> bool:
    """Tell whether a goal does not learn an hour: it is suspect, or too few since were calm.

    By what was said of the last hours only, so that the same hours are left out however a range is
    split.
    """
    calm = 0
    for us in range(hour_us, hour_us - settings.reference_hours * HOUR_US, -HOUR_US):
        verdict = said[us]["verdict"] if us in said else None
        if verdict in HALTS:
            return True
        if us < hour_us:
            calm = calm + 1 if verdict not in UNDECIDED else 0
        if calm == settings.calm_hours:
            return False
    return False


def _halted_hour(goal: str, hour_us: int, said: Mapping[str, Any] | None) -> dict[str, Any]:
    evidence = {} if said is None else {"verdict": said["verdict"], "reason": said["reason"]}
    return {
        "goal": goal,
        "hour_us": hour_us,
        "state": "left_out",
        "cause": LABELS,
        "evidence": json.dumps(evidence, sort_keys=True),
    }
