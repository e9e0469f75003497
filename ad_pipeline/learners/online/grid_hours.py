"""The selection of the grid over log hours: read, judge, choose, and say what was served.

Hour by hour: the rows that matured in it are judged by :mod:`.grid_selection`; what was chosen
serves from the next hour on; and the scores of the configuration that had been chosen by the hour
before become ``learners.online_predictions``. Scores are read, never computed.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ad_pipeline import hashing
from ad_pipeline.clocks import HOUR_US, hours_between
from ad_pipeline.datasets import Deployment
from ad_pipeline.learners.online.grid_selection import (
    HourLosses,
    Judged,
    choose_configuration,
    configuration_names,
    hour_losses,
)
from ad_pipeline.learners.tables import GRID_SELECTION, ONLINE_PREDICTIONS, TABLES
from ad_pipeline.warehouse import Warehouse, arrow_rows, replace_hours, rows_of, select

if TYPE_CHECKING:
    import duckdb

CHUNK_HOURS = 24
_PURPOSE = "learners.grid_selection"


@dataclass(frozen=True)
class SelectedHour:
    """What was judged after one hour of one goal, and what its impressions were served by.

    Attributes
    ----------
    goal : str
    hour_us : int
        Start of the hour.
    serving : int
        Configuration that served in the hour.
    chosen : int
        Configuration that serves from the next hour on.
    names : list of str
        Of the configurations, for people.
    judged : list of Judged
        By configuration.
    losses : HourLosses
        Of the rows that matured in the hour.
    """

    goal: str
    hour_us: int
    serving: int
    chosen: int
    names: list[str]
    judged: list[Judged]
    losses: HourLosses


def select_hours(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> Iterator[SelectedHour]:
    """Choose the configuration of each goal after each of the hours ``[start_us, end_us)``.

    Parameters
    ----------
    warehouse : Warehouse
        With the grid's predictions of the hours and the labels that matured in them.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    SelectedHour
        One per hour and goal, after its rows are durable.
    """
    warehouse.create(TABLES)
    goals = {
        goal.name: _Selection.before(warehouse, deployment, goal.name, start_us)
        for goal in deployment.dataset.goals_in_chain_order()
    }
    for chunk_us in range(start_us, end_us, CHUNK_HOURS * HOUR_US):
        chunk_end_us = min(chunk_us + CHUNK_HOURS * HOUR_US, end_us)
        selected = [
            hour
            for selection in goals.values()
            for hour in selection.run(warehouse, chunk_us, chunk_end_us)
        ]
        with warehouse.writer() as connection:
            connection.register("judged", _rows(selected))
            replace_hours(
                connection, GRID_SELECTION, "SELECT * FROM judged", {}, chunk_us, chunk_end_us
            )
            replace_hours(
                connection,
                ONLINE_PREDICTIONS,
                select("learners.online_predictions"),
                {"start_us": chunk_us, "end_us": chunk_end_us, "hour_us": HOUR_US},
                chunk_us,
                chunk_end_us,
            )
        yield from selected


def chosen_configurations(
    warehouse: Warehouse, deployment: Deployment, from_us: int
) -> dict[str, int]:
    """Return the configuration of every goal that serves from an hour on; 0 before any was chosen.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    from_us : int
        Start of the hour, microseconds.
    """
    with warehouse.reader() as connection:
        return {
            goal.name: _chosen(connection, goal.name, from_us)
            for goal in deployment.dataset.goals_in_chain_order()
        }


def _chosen(connection: "duckdb.DuckDBPyConnection", goal: str, from_us: int) -> int:
    found = connection.execute(
        "SELECT configuration FROM learners.grid_selection WHERE goal = $goal AND chosen "
        "AND hour_us < $from_us ORDER BY hour_us DESC LIMIT 1",
        {"goal": goal, "from_us": from_us},
    ).fetchall()
    return int(found[0][0]) if found else 0


@dataclass
class _Selection:
    """One goal's selection on its way through a range of hours."""

    deployment: Deployment
    goal: str
    serving: int
    looked_back: deque[HourLosses]

    @classmethod
    def before(
        cls, warehouse: Warehouse, deployment: Deployment, goal: str, start_us: int
    ) -> "_Selection":
        """Read what was judged in the hours before the range."""
        hours = deployment.dataset.settings.online.selection_lookback_hours
        with warehouse.reader() as connection:
            rows = rows_of(
                connection,
                select("learners.grid_history"),
                {"goal": goal, "start_us": start_us - hours * HOUR_US, "end_us": start_us},
            ).to_pylist()
            serving = _chosen(connection, goal, start_us)
        looked_back: deque[HourLosses] = deque(maxlen=hours)
        for hour_us in sorted({row["hour_us"] for row in rows}):
            grid = [row for row in rows if row["hour_us"] == hour_us]
            looked_back.append(
                HourLosses(
                    grid[0]["rows"],
                    grid[0]["positives"],
                    np.array([row["loss"] for row in grid]),
                    np.array([row["excess_losses"] for row in grid]),
                )
            )
        return cls(deployment, goal, serving, looked_back)

    def run(self, warehouse: Warehouse, start_us: int, end_us: int) -> Iterator[SelectedHour]:
        dataset = self.deployment.dataset
        settings = dataset.settings.online
        names = configuration_names(settings.of_goal(self.goal).configurations())
        with warehouse.reader() as connection:
            rows = rows_of(
                connection,
                select("learners.matured_grid_scores"),
                {
                    "goal": self.goal,
                    "start_us": start_us,
                    "end_us": end_us,
                    "horizon_us": dataset.maturity_us,
                },
            )
        matured_us = rows.column("matured_us").to_numpy()
        labels = rows.column("label").to_numpy()
        logits = _matrix(rows.column("logits"), len(names))
        seed = hashing.seed_of(f"{_PURPOSE}/{dataset.settings.seed}")
        draws = hashing.hash_strings(rows.column("impression_id"), seed)
        for hour_us in hours_between(start_us, end_us):
            first, last = np.searchsorted(matured_us, [hour_us, hour_us + HOUR_US])
            losses = hour_losses(logits[first:last], labels[first:last], draws[first:last])
            self.looked_back.append(losses)
            serving = self.serving
            self.serving, judged = choose_configuration(
                list(self.looked_back), serving, settings.selection_level
            )
            yield SelectedHour(self.goal, hour_us, serving, self.serving, names, judged, losses)


def _matrix(lists: pa.ChunkedArray, width: int) -> np.ndarray:
    """Return lists of numbers as rows, float64 (n, width)."""
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in lists.chunks]
    return np.concatenate(flat or [np.empty(0)]).reshape(-1, width)


def _rows(selected: list[SelectedHour]) -> pa.Table:
    """Lay what was judged into the table's columns."""
    rows = [
        {
            "goal": hour.goal,
            "hour_us": hour.hour_us,
            "configuration": place,
            "name": name,
            "chosen": place == hour.chosen,
            "rows": hour.losses.rows,
            "positives": hour.losses.positives,
            "loss": float(hour.losses.losses[place]),
            "excess_losses": hour.losses.excess[place].tolist(),
            "excess": hour.judged[place].excess,
            "excess_low": hour.judged[place].low,
            "excess_high": hour.judged[place].high,
            "reason": hour.judged[place].reason,
        }
        for hour in selected
        for place, name in enumerate(hour.names)
    ]
    return arrow_rows(GRID_SELECTION, rows)
