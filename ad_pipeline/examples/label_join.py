"""Runs the label join: the SELECTs of the room ``examples``, goal by goal, for a range of hours.

What the rows mean stands in ``dbt_like_sql/examples``; this module knows only the order in which
goals, hours and tables depend on each other. Two things follow from that order. A goal comes after
the goal that anchors it. And the hours before a range must have been computed, since a chain's
anchors and the retractions of long-emitted positives are looked up in the tables themselves;
computing a range again gives the same rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import duckdb

from ad_pipeline.clocks import HOUR_US, hour_of, timestamp
from ad_pipeline.datasets import Dataset, Goal
from ad_pipeline.examples.strategies import PLACES, Emission, emission_of
from ad_pipeline.examples.subsampling import Draw, draw_of
from ad_pipeline.examples.tables import (
    LABEL_DELAYS,
    LABEL_STATES,
    LABELLED_IMPRESSIONS,
    TABLES,
    TRAINING_EXAMPLES,
)
from ad_pipeline.settings import StrategyName
from ad_pipeline.warehouse import Table, Warehouse, bound, select

CHUNK_HOURS = 24
"""Hours computed in one writer transaction: long enough that scanning a window of history for each
chunk does not dominate, short enough that readers wait for a second, not for the whole range."""


@dataclass(frozen=True)
class HourCounts:
    """Rows of one goal whose clock lies in one log hour.

    Attributes
    ----------
    goal : str
    hour_us : int
        Start of the hour, microseconds since the epoch.
    emitted : dict of str to int
        Training examples by kind; a kind that did not occur is absent.
    matured : int
        Labels that became final.
    matured_positives : int
        Those of them with label 1.
    states : dict of str to int
        Label states by name; a state that nothing entered is absent.
    delay_rows : int
        Places of the distributions of delays fitted for this hour; 0 in hours without a fit.
    median_delay_us : int or None
        Of all positives that such a fit read, microseconds.
    """

    goal: str
    hour_us: int
    emitted: dict[str, int]
    matured: int
    matured_positives: int
    states: dict[str, int]
    delay_rows: int
    median_delay_us: int | None


def join_labels(
    warehouse: Warehouse,
    dataset: Dataset,
    start_us: int,
    end_us: int,
    *,
    chunk_hours: int = CHUNK_HOURS,
) -> tuple[HourCounts, ...]:
    """Compute the tables of the room for the hours ``[start_us, end_us)``.

    Each goal of each chunk is one writer transaction, so an interrupted call leaves whole chunks
    behind, and running it again completes them.

    Parameters
    ----------
    warehouse : Warehouse
        With the events of all hours before ``end_us``, and this room's tables for all hours before
        ``start_us``.
    dataset : Dataset
    start_us, end_us : int
        Starts of hours, microseconds since the epoch.
    chunk_hours : int
        Hours per transaction; changes no row.

    Returns
    -------
    tuple of HourCounts
        One for each hour of the range and each goal, by hour, goals in chain order; hours without
        rows are there with zeros.

    Raises
    ------
    ValueError
        If a bound is not the start of an hour, or a goal's observation window is longer than its
        attribution window and lateness together.
    """
    for name, us in (("start_us", start_us), ("end_us", end_us)):
        if us != hour_of(us):
            raise ValueError(f"{name} is {timestamp(us)}; pass the start of an hour")
    goals = tuple(dataset.goals_in_chain_order())
    for goal in goals:
        if goal.observation_us > goal.window_us + goal.lateness_us:
            raise ValueError(
                f"goal {goal.name!r} waits {goal.observation_us} us for its first emission, past "
                f"its maturity; make observation at most window + lateness"
            )
    warehouse.create(TABLES)
    joins = [GoalJoin.of(dataset, goal) for goal in goals]
    for chunk_start_us in range(start_us, end_us, chunk_hours * HOUR_US):
        chunk_end_us = min(chunk_start_us + chunk_hours * HOUR_US, end_us)
        for join in joins:
            with warehouse.writer() as connection:
                for table in TABLES:
                    replace_goal(connection, table, join, chunk_start_us, chunk_end_us)
    return count_labels(warehouse, dataset, start_us, end_us)


@dataclass(frozen=True)
class GoalJoin:
    """All that the SELECTs of one goal depend on besides the hours.

    Attributes
    ----------
    goal : Goal
    anchor_observation_us : int
        Observation window of the goal that anchors it, microseconds; 0 on impressions.
    draw : Draw
        Which negatives are kept.
    emission : Emission
        What is emitted, for the strategies that the goal's learners are shown.
    """

    goal: Goal
    anchor_observation_us: int
    draw: Draw
    emission: Emission

    @classmethod
    def of(
        cls, dataset: Dataset, goal: Goal, strategies: Iterable[StrategyName] | None = None
    ) -> Self:
        """Return the join of a goal, for other strategies than its learners' if any are named."""
        observed = {other.name: other.observation_us for other in dataset.goals}
        settings = dataset.settings
        wanted = settings.strategies_of(goal.name) if strategies is None else strategies
        return cls(
            goal,
            observed.get(goal.anchor, 0),
            draw_of(settings, goal.name),
            emission_of(settings, goal, wanted),
        )

    def parameters(self, start_us: int, end_us: int) -> dict[str, Any]:
        """Return the SQL parameters for the hours ``[start_us, end_us)``, microseconds."""
        refit_us = self.emission["refit_us"]
        return {
            **self.draw,
            **self.emission,
            "goal": self.goal.name,
            "anchor_goal": self.goal.anchor,
            "anchor_observation_us": self.anchor_observation_us,
            "window_us": self.goal.window_us,
            "lateness_us": self.goal.lateness_us,
            "observation_us": self.goal.observation_us,
            "counting": self.goal.counting,
            "without_goal": self.goal.without or "",
            "fits_us": list(range(-(-start_us // refit_us) * refit_us, end_us, refit_us)),
            "start_us": start_us,
            "end_us": end_us,
        }


def replace_goal(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    join: GoalJoin,
    start_us: int,
    end_us: int,
    *,
    query: str | None = None,
) -> None:
    """Replace one goal's rows of some hours, inside the caller's transaction.

    Parameters
    ----------
    connection : DuckDBPyConnection
        From :meth:`Warehouse.writer`.
    table : Table
        One of :data:`TABLES`.
    join : GoalJoin
    start_us, end_us : int
        The hours ``[start_us, end_us)`` of the table's clock.
    query : str, optional
        SELECT in place of the table's own.
    """
    parameters = join.parameters(start_us, end_us)
    delete = (
        f"DELETE FROM {table.name} WHERE goal = $goal "
        f"AND {table.clock} >= $start_us AND {table.clock} < $end_us"
    )
    connection.execute(delete, bound(delete, parameters))
    insert = f"INSERT INTO {table.name} BY NAME {query or select(table.name)}"
    connection.execute(insert, bound(insert, parameters))


def count_labels(
    warehouse: Warehouse, dataset: Dataset, start_us: int, end_us: int
) -> tuple[HourCounts, ...]:
    """Count the rows of the room for the hours ``[start_us, end_us)``.

    Parameters
    ----------
    warehouse : Warehouse
    dataset : Dataset
    start_us, end_us : int
        Starts of hours, microseconds since the epoch.

    Returns
    -------
    tuple of HourCounts
        As from :func:`join_labels`.
    """
    span = {"start_us": start_us, "end_us": end_us}
    emitted: dict[tuple[int, str], dict[str, int]] = {}
    matured: dict[tuple[int, str], dict[str, int]] = {}
    states: dict[tuple[int, str], dict[str, int]] = {}
    with warehouse.reader() as connection:
        for counts, table, group in (
            (emitted, TRAINING_EXAMPLES, "kind"),
            (matured, LABELLED_IMPRESSIONS, "CAST(label AS VARCHAR)"),
            (states, LABEL_STATES, "state"),
        ):
            rows = connection.execute(
                f"SELECT {table.clock} - {table.clock} % {HOUR_US}, goal, {group}, count(*) "
                f"FROM {table.name} WHERE {table.clock} >= $start_us AND {table.clock} < $end_us "
                "GROUP BY ALL ORDER BY ALL",
                span,
            ).fetchall()
            for hour_us, goal, name, number in rows:
                counts.setdefault((hour_us, goal), {})[name] = number
        fitted = connection.execute(
            f"SELECT {LABEL_DELAYS.clock}, goal, count(*), "
            f"min(delay_us) FILTER (delay_group = '' AND place = {PLACES // 2}) "
            f"FROM {LABEL_DELAYS.name} WHERE {LABEL_DELAYS.clock} >= $start_us "
            f"AND {LABEL_DELAYS.clock} < $end_us GROUP BY ALL ORDER BY ALL",
            span,
        ).fetchall()
    delays = {(hour_us, goal): (rows, median_us) for hour_us, goal, rows, median_us in fitted}
    return tuple(
        HourCounts(
            goal=goal.name,
            hour_us=hour_us,
            emitted=emitted.get((hour_us, goal.name), {}),
            matured=sum(matured.get((hour_us, goal.name), {}).values()),
            matured_positives=matured.get((hour_us, goal.name), {}).get("1", 0),
            states=states.get((hour_us, goal.name), {}),
            delay_rows=delays.get((hour_us, goal.name), (0, None))[0],
            median_delay_us=delays.get((hour_us, goal.name), (0, None))[1],
        )
        for hour_us in range(start_us, end_us, HOUR_US)
        for goal in dataset.goals_in_chain_order()
    )
