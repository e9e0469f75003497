"""The verdicts on a log as of its last hour: every kind of drift, read off the tables.

All windows are bounded and all rows are thinned to a size, so that a verdict costs the same
whatever the log's age; nothing is remembered between two of them, so that a re-run says the same.
What a verdict means is :mod:`.causes`.
"""

import json
from collections.abc import Iterator
from itertools import pairwise

import duckdb
import numpy as np

from ad_pipeline.clocks import DAY_US, HOUR_US, timestamp
from ad_pipeline.datasets import Dataset, Deployment, Goal
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.monitoring.drift.causes import DriftFound, explained
from ad_pipeline.monitoring.drift.drift_of_log import compare_with_hours_before
from ad_pipeline.monitoring.drift.verdicts import delay_verdict, input_verdicts, loss_verdicts
from ad_pipeline.monitoring.tables import DRIFT_VERDICTS, TABLES
from ad_pipeline.warehouse import Warehouse, arrow_rows, one_row, rows_of, select

LEAST_DELAYS = 200
"""Positives on either side below which nothing is said of delays."""


def record_verdicts(warehouse: Warehouse, deployment: Deployment) -> tuple[int, list[DriftFound]]:
    """Judge the log as of its last sealed hour and keep the verdicts.

    Parameters
    ----------
    warehouse : Warehouse
        With the newest ``monitoring.drift``, matured labels and predictions.
    deployment : Deployment

    Returns
    -------
    hour_us : int
        Last sealed log hour.
    found : list of DriftFound
    """
    warehouse.create(TABLES)
    with warehouse.reader() as connection:
        end_us = sealed_until(connection)
    hour_us = end_us - HOUR_US
    found = judge_log(warehouse, deployment.dataset, end_us)
    rows = arrow_rows(
        DRIFT_VERDICTS,
        [
            {
                "hour_us": hour_us,
                "kind": one.kind,
                "subject": one.subject,
                "drifted": one.drifted,
                "value": one.value,
                "threshold": one.threshold,
                "cause": one.cause.says if one.drifted else "",
                "actions": ",".join(one.actions),
                "evidence": json.dumps(dict(one.evidence), sort_keys=True),
            }
            for one in found
        ],
    )
    with warehouse.writer() as connection:
        connection.register("found", rows)
        connection.execute(
            f"DELETE FROM {DRIFT_VERDICTS.name} WHERE hour_us = $hour_us", {"hour_us": hour_us}
        )
        connection.execute(f"INSERT INTO {DRIFT_VERDICTS.name} BY NAME SELECT * FROM found")
    return hour_us, found


def judge_log(warehouse: Warehouse, dataset: Dataset, end_us: int) -> list[DriftFound]:
    """Return the verdict on every kind of drift of which the log can tell something yet.

    Parameters
    ----------
    warehouse : Warehouse
    dataset : Dataset
    end_us : int
        End of the last hour to look at; of labels, what matured before it.
    """
    found = _of_inputs(warehouse, dataset)
    with warehouse.reader() as connection:
        for goal in dataset.goals_in_chain_order():
            found += _of_losses(connection, dataset, goal, end_us)
            found += _of_delays(connection, dataset, goal, end_us)
            found += _of_grid(connection, dataset, goal, end_us)
    return explained(found)


def _of_inputs(warehouse: Warehouse, dataset: Dataset) -> list[DriftFound]:
    settings = dataset.settings
    with warehouse.reader() as connection:
        columns = rows_of(
            connection,
            "SELECT * FROM monitoring.drift WHERE current_end_us = "
            "(SELECT max(current_end_us) FROM monitoring.drift)",
        ).to_pylist()
    found = input_verdicts(columns, settings)
    recent = compare_with_hours_before(warehouse, dataset) if found else None
    if recent is not None:
        names = [column.column for column in recent.columns if column.drifted]
        found.append(
            DriftFound(
                "season",
                "",
                recent.drifted and not found[0].drifted,
                recent.psi,
                settings.drift.psi_threshold,
                {"columns": names, "reference": "hours before"},
            )
        )
    return found


def _of_losses(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, goal: Goal, end_us: int
) -> Iterator[DriftFound]:
    settings = dataset.settings.drift_actions
    span = _span(connection, dataset, goal, end_us, settings.maximum_rows)
    for expert in ("online", "batch", "deep"):
        rows = rows_of(
            connection,
            select("monitoring.matured_scores"),
            {**span, "expert": expert, "horizon_us": dataset.maturity_us},
        )
        yield from loss_verdicts(
            f"{goal.name}, {expert}",
            rows.column("matured_us").to_numpy(),
            rows.column("label").to_numpy(),
            rows.column("logit").to_numpy(),
            end_us,
            dataset.settings,
        )


def _of_delays(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, goal: Goal, end_us: int
) -> Iterator[DriftFound]:
    settings = dataset.settings.drift_actions
    span = _span(connection, dataset, goal, end_us, settings.maximum_rows)
    rows = rows_of(connection, select("monitoring.matured_delays"), span)
    if not rows.num_rows:
        return
    cut_us = end_us - dataset.settings.drift.current_hours * HOUR_US
    matured_us = rows.column("matured_us").to_numpy()
    delays = rows.column("delay_us").to_numpy().astype(np.float64)
    now = matured_us >= cut_us
    if min(int(now.sum()), int((~now).sum())) < LEAST_DELAYS:
        return
    yield delay_verdict(
        goal.name, delays[~now], (cut_us - 1 - matured_us[~now]) // DAY_US, delays[now],
        settings.delay_index,
    )  # fmt: skip


def _of_grid(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, goal: Goal, end_us: int
) -> Iterator[DriftFound]:
    if len(dataset.settings.online.of_goal(goal.name).configurations()) < 2:
        return
    chosen = connection.execute(
        "SELECT hour_us, name FROM learners.grid_selection WHERE goal = $goal AND chosen "
        "AND hour_us >= $start_us AND hour_us < $end_us ORDER BY hour_us",
        {
            "goal": goal.name,
            "start_us": end_us - dataset.settings.drift.current_hours * HOUR_US,
            "end_us": end_us,
        },
    ).fetchall()
    changes = [
        {"hour": timestamp(hour_us), "from": before, "to": name}
        for (_, before), (hour_us, name) in pairwise(chosen)
        if name != before
    ]
    yield DriftFound(
        "grid", goal.name, bool(changes), float(len(changes)), 1.0, {"changes": changes}
    )


def _span(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, goal: Goal, end_us: int, most: int
) -> dict[str, int | str]:
    hours = dataset.settings.drift_actions.lookback_hours
    span = {"goal": goal.name, "start_us": end_us - hours * HOUR_US, "end_us": end_us}
    (matured,) = one_row(connection, select("monitoring.matured_rows"), span)
    return span | {"one_in": max(1, -(-matured // most))}
