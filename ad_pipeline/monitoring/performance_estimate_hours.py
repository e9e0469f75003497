"""Estimates of performance over log hours: read as of each hour's end, kept as rows, judged later.

An hour's estimate rests on what the log had by the hour's end: labels, delays, verdicts on drift,
and what became of earlier estimates. What it will be judged by comes a window and its lateness
later, in a row of that hour; no row is ever changed, and a range gives the same rows however it is
split. The estimate itself is :mod:`.performance_estimate`; what it reads, :mod:`.scored_anchors`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from ad_pipeline.clocks import HOUR_US, hour_key, hours_between
from ad_pipeline.datasets import Dataset, Goal
from ad_pipeline.monitoring.performance_estimate import (
    MEASURES,
    Anchors,
    Departure,
    PastErrors,
    Recalibration,
    departure,
    estimate,
    fit_reference,
    updated,
)
from ad_pipeline.monitoring.scored_anchors import Scored, horizon_us, scored_hours, waited_us
from ad_pipeline.monitoring.tables import PERFORMANCE_ESTIMATE, PERFORMANCE_REALISED, TABLES
from ad_pipeline.settings import PerformanceEstimateSettings
from ad_pipeline.warehouse import (
    Table,
    Warehouse,
    arrow_rows,
    replace_hours,
    rows_of,
    select,
)

VALID, WARMING_UP, WITHDRAWN = "valid", "warming up", "withdrawn"

KEPT = ("log_loss", "observed_over_predicted")
"""Measures whose intervals an estimate has to keep: the third follows from the first."""

Row = dict[str, Any]


@dataclass(frozen=True)
class EstimatedHours:
    """What was written of some hours.

    Attributes
    ----------
    estimates, realised : list of dict
        Rows of ``monitoring.performance_estimate`` and ``monitoring.performance_realised``.
    """

    estimates: list[Row]
    realised: list[Row]


def record_estimates(
    warehouse: Warehouse, dataset: Dataset, start_us: int, end_us: int
) -> EstimatedHours:
    """Estimate performance as of the end of each log hour, and judge earlier estimates.

    Parameters
    ----------
    warehouse : Warehouse
        With labels, delays and predictions of the hours, and this table's rows of those before.
    dataset : Dataset
    start_us, end_us : int
        Starts of hours, microseconds.

    Returns
    -------
    EstimatedHours
    """
    warehouse.create(TABLES)
    estimates: list[Row] = []
    realised: list[Row] = []
    for goal in dataset.goals_in_chain_order():
        with warehouse.reader() as connection:
            before = _Before.read(connection, dataset, goal, start_us)
            alarms = _alarms(connection, dataset, goal, list(hours_between(start_us, end_us)))
        for hour_us, expert, scored in scored_hours(warehouse, dataset, goal, start_us, end_us):
            judged = before.judged(expert, scored, hour_us)
            if judged is not None:
                realised.append(judged)
            subjects = (goal.name, f"{goal.name}, {expert}")
            against = [row for row in alarms.get(hour_us, ()) if row["subject"] in subjects]
            estimates.append(before.estimated(expert, scored, hour_us, against))
    for rows in (estimates, realised):
        rows.sort(key=lambda row: row["hour_us"])
    with warehouse.writer() as connection:
        for table, rows in ((PERFORMANCE_ESTIMATE, estimates), (PERFORMANCE_REALISED, realised)):
            connection.register("found", arrow_rows(table, rows))
            replace_hours(connection, table, "SELECT * FROM found", {}, start_us, end_us)
            connection.unregister("found")
    return EstimatedHours(estimates, realised)


def past_errors(warehouse: Warehouse, dataset: Dataset) -> dict[tuple[str, str], PastErrors]:
    """Return how the estimates did whose labels matured up to the newest hour that was judged.

    Parameters
    ----------
    warehouse : Warehouse
    dataset : Dataset

    Returns
    -------
    dict of (goal, expert) to PastErrors
    """
    warehouse.create(TABLES)
    found: dict[tuple[str, str], PastErrors] = {}
    with warehouse.reader() as connection:
        for goal in dataset.goals_in_chain_order():
            newest = connection.execute(
                f"SELECT expert, max(hour_us) FROM {PERFORMANCE_REALISED.name} "
                "WHERE goal = $goal GROUP BY expert ORDER BY expert",
                {"goal": goal.name},
            ).fetchall()
            for expert, hour_us in newest:
                before = _Before.read(connection, dataset, goal, hour_us + HOUR_US)
                found[goal.name, expert] = before.past(expert, hour_us)
    return found


def rows_up_to(warehouse: Warehouse, hours: int, end_us: int) -> EstimatedHours:
    """Return the rows of the last hours before a moment, in order.

    Parameters
    ----------
    warehouse : Warehouse
    hours : int
    end_us : int
        Microseconds.
    """

    def rows(table: Table) -> list[Row]:
        return rows_of(
            connection,
            f"SELECT * FROM {table.name} WHERE hour_us >= $from_us AND hour_us < $end_us "
            "ORDER BY hour_us, goal, expert",
            {"from_us": end_us - hours * HOUR_US, "end_us": end_us},
        ).to_pylist()

    with warehouse.reader() as connection:
        return EstimatedHours(rows(PERFORMANCE_ESTIMATE), rows(PERFORMANCE_REALISED))


@dataclass
class _Before:
    """What was said of a goal before an hour; hours of one run are added as they come."""

    goal: Goal
    settings: PerformanceEstimateSettings
    estimates: dict[tuple[str, int], Row]
    realised: dict[tuple[str, int], Row]

    @classmethod
    def read(
        cls, connection: duckdb.DuckDBPyConnection, dataset: Dataset, goal: Goal, start_us: int
    ) -> "_Before":
        """Read the rows that hours from a start can ask for."""
        settings = dataset.settings.performance_estimate
        reach_us = settings.past_hours * HOUR_US + horizon_us(goal)

        def rows(table: Table, key: str) -> dict[tuple[str, int], Row]:
            found = rows_of(
                connection,
                f"SELECT * FROM {table.name} WHERE goal = $goal AND hour_us >= $from_us "
                "AND hour_us < $start_us",
                {"goal": goal.name, "from_us": start_us - reach_us, "start_us": start_us},
            )
            return {(row["expert"], row[key]): row for row in found.to_pylist()}

        return cls(
            goal,
            settings,
            rows(PERFORMANCE_ESTIMATE, "hour_us"),
            rows(PERFORMANCE_REALISED, "estimate_hour_us"),
        )

    def judged(self, expert: str, scored: Scored, hour_us: int) -> Row | None:
        """Return what became of the estimate whose last label matured in an hour, if it had any."""
        about_us = hour_us - horizon_us(self.goal)
        said = self.estimates.get((expert, about_us))
        if said is None:
            return None
        cohort = scored.anchors.where(
            scored.between(said["start_us"], about_us + HOUR_US)
            & (scored.serving_us < about_us + HOUR_US)
            & scored.anchors.final
        )
        if not len(cohort):
            return None
        # Once nothing waits, the estimate is the realised value.
        values = estimate(cohort, Recalibration.as_served())
        row: Row = {
            "hour_us": hour_us,
            "goal": self.goal.name,
            "expert": expert,
            "estimate_hour_us": about_us,
            "rows": len(cohort),
            "positives": int(cohort.engaged.sum()),
        }
        for name in MEASURES:
            row[name] = values[name].value
            row[f"{name}_deviation"] = _deviation(values[name].value, said, name)
        row["kept"] = (
            all(said[f"{name}_low"] <= row[name] <= said[f"{name}_high"] for name in KEPT)
            if said["state"] == VALID
            else None
        )
        self.realised[expert, about_us] = row
        return row

    def past(self, expert: str, hour_us: int) -> PastErrors:
        """Return how earlier estimates did: cohorts that share no anchor, newest first."""
        newest_us = hour_us - horizon_us(self.goal)
        every_us = self.settings.cohort_hours * HOUR_US
        oldest_us = newest_us - self.settings.past_hours * HOUR_US
        rows = [
            row
            for about_us in range(newest_us, oldest_us, -every_us)
            if (row := self.realised.get((expert, about_us))) is not None
            and row["kept"] is not None
        ]
        deviations = {
            name: np.array([row[f"{name}_deviation"] for row in rows], dtype=np.float64)
            for name in MEASURES
        }
        return PastErrors(
            {name: each[np.isfinite(each)] for name, each in deviations.items()},
            sum(not row["kept"] for row in rows),
        )

    def estimated(
        self, expert: str, scored: Scored, hour_us: int, alarms: Sequence[Mapping[str, Any]]
    ) -> Row:
        """Return the estimate as of the end of an hour."""
        settings = self.settings
        end_us = hour_us + HOUR_US
        start_us = end_us - settings.cohort_hours * HOUR_US
        in_cohort = scored.between(start_us, end_us)
        cohort = scored.anchors.where(in_cohort)
        row: Row = {
            "hour_us": hour_us,
            "goal": self.goal.name,
            "expert": expert,
            "start_us": start_us,
            "rows": len(cohort),
            "final_share": float(cohort.final.mean()) if len(cohort) else float("nan"),
            "observed": int(cohort.engaged.sum()),
            "expected": float("nan"),
            "state": WARMING_UP,
            "reason": "",
            "departure": float("nan"),
            "level_shift": float("nan"),
            "slope_shift": float("nan"),
        }
        row |= {f"{name}{part}": None for name in MEASURES for part in _PARTS}
        before = scored.anchors.final & ~in_cohort
        row["reason"] = self._lacking(scored, before, cohort, end_us)
        if not row["reason"]:
            served = Recalibration.as_served().probabilities(cohort.logits)
            row["expected"] = float((served * cohort.due()).sum())
            reference = fit_reference(
                scored.anchors.where(before),
                (scored.anchor_us[before] - start_us) // (settings.cohort_hours * HOUR_US),
                settings.least_wander,
            )
            found = min(
                departure(reference, cohort),
                departure(reference, scored.anchors.where(~scored.anchors.final)),
                key=lambda one: one.p_value,
            )
            row |= {
                "departure": found.p_value,
                "level_shift": found.level,
                "slope_shift": found.slope,
            }
            past = self.past(expert, hour_us)
            row["reason"] = self._against(expert, hour_us, found, past, alarms)
            row["state"] = WITHDRAWN if row["reason"] else VALID
            if row["state"] == VALID:
                values = estimate(cohort, updated(reference, cohort), past, settings.level)
                row |= {
                    f"{name}{part}": getattr(value, attribute)
                    for name, value in values.items()
                    for part, attribute in _PARTS.items()
                }
        self.estimates[expert, hour_us] = row
        return row

    def _lacking(
        self, scored: Scored, before: NDArray[np.bool_], cohort: Anchors, end_us: int
    ) -> str:
        """Return what an estimate cannot be made without; '' if all of it is there."""
        settings = self.settings
        positives = int(scored.anchors.engaged[before].sum())
        reference_end_us = end_us - waited_us(self.goal, settings)
        spanned = max(0, (reference_end_us - int(scored.anchor_us[0])) // HOUR_US + 1)
        if not len(cohort):
            return "no scored anchor in its hours"
        if not cohort.delays:
            return "no label's delay is known yet"
        if positives < settings.least_positives:
            return (
                f"{positives} final positives before its hours, {settings.least_positives} needed"
            )
        if spanned <= settings.reference_hours - settings.cohort_hours:
            return (
                f"final labels of {spanned} scored hours before its own, "
                f"{settings.reference_hours} wanted"
            )
        return ""

    def _against(
        self,
        expert: str,
        hour_us: int,
        found: Departure,
        past: PastErrors,
        alarms: Sequence[Mapping[str, Any]],
    ) -> str:
        """Return what speaks against an estimate; '' if nothing does."""
        settings = self.settings
        reasons = [f"{one['kind']} of {one['subject']} has drifted" for one in alarms]
        if found.p_value < settings.alarm_p_value:
            reasons.append(
                f"labels so far ask for log odds {found.level:+.2f} and a slope "
                f"{found.slope:+.2f} beyond the earlier ones (p {found.p_value:.1g})"
            )
        elif rang := self._rang(expert, hour_us):
            reasons.append(
                f"labels of the cohort of {hour_key(rang)} departed from the earlier ones"
            )
        if past.p_value(settings.level) < settings.alarm_p_value:
            reasons.append(
                f"{past.missed} of the last {past.judged} estimates missed their interval"
            )
        return "; ".join(reasons)

    def _rang(self, expert: str, hour_us: int) -> int | None:
        """Return the last hour whose cohort departed and shares anchors with this one's."""
        for back in range(1, self.settings.cohort_hours):
            row = self.estimates.get((expert, hour_us - back * HOUR_US))
            departed = None if row is None else row["departure"]
            if departed is not None and departed < self.settings.alarm_p_value:
                return hour_us - back * HOUR_US
        return None


_PARTS = {"": "value", "_low": "low", "_high": "high", "_error": "error"}


def _deviation(realised: float, said: Row, name: str) -> float:
    value, error = said[name], said[f"{name}_error"]
    return float("nan") if value is None or not error else (realised - value) / error


def _alarms(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, goal: Goal, hours_us: Sequence[int]
) -> dict[int, list[Row]]:
    """Return the verdicts on drift that stand against scores of a goal, by hour."""
    parameters = {
        "goal": goal.name,
        "hours_us": list(hours_us),
        "lasting_us": dataset.settings.drift.current_hours * HOUR_US,
    }
    found: dict[int, list[Row]] = {}
    for row in rows_of(connection, select("monitoring.calibration_alarms"), parameters).to_pylist():
        found.setdefault(row["asked_us"], []).append(row)
    return found
