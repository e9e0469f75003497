"""What was done about drift, and what loss did since: rows of ``monitoring.actions``.

An action is kept with its evidence by the run that carries it out. Its effect is measured by a
later run, once the rows served since have matured: loss per row after less before, each hour's loss
taken beside the least that its share of positives allows, so that a quieter market is no success.
It is a comparison of before and after, not proof; what an action gains against doing nothing is
measured where both can be had, on made streams (``docs/evidence.md``).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import Dataset
from ad_pipeline.evaluation.intervals import reach_of_sum
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.monitoring.drift.causes import Action, Seen
from ad_pipeline.monitoring.tables import ACTIONS, DRIFT_VERDICTS, TABLES
from ad_pipeline.warehouse import Warehouse, arrow_rows, one_row, rows_of, select

EXPERT_OF: Mapping[Action, str] = {
    "retrain": "batch",
    "raise_rate": "online",
    "refit_delays": "online",
}
"""Whose serving-time scores tell what an action did. Calibration is none: what the tables keep is
the experts' scores before mixing."""

LEAST_ROWS = 100
"""Matured rows on either side below which nothing is measured."""


@dataclass(frozen=True)
class Effect:
    """What loss did after an action.

    Attributes
    ----------
    rows : int
        Matured, served after it.
    change, low, high : float
        Loss per row after less before, nats, and its 95 % interval over hours.
    """

    rows: int
    change: float
    low: float
    high: float


def record_action(
    connection: duckdb.DuckDBPyConnection,
    action: str,
    hour_us: int,
    cause: str,
    verdict_hour_us: int,
    run_key: str,
    evidence: str,
) -> None:
    """Keep an action; a re-run of it replaces it, effect and all.

    Parameters
    ----------
    connection : DuckDBPyConnection
        From :meth:`Warehouse.writer`.
    action, cause : str
    hour_us : int
        Log hour after which it is taken.
    verdict_hour_us : int
        Hour of the verdict that it follows.
    run_key : str
    evidence : str
        JSON.
    """
    rows = arrow_rows(
        ACTIONS,
        [
            {
                "hour_us": hour_us,
                "action": action,
                "cause": cause,
                "verdict_hour_us": verdict_hour_us,
                "run_key": run_key,
                "evidence": evidence,
                "measured_hour_us": None,
                "rows": None,
                "effect": None,
                "effect_low": None,
                "effect_high": None,
            }
        ],
    )
    _replace(connection, rows)


def measure_effects(warehouse: Warehouse, dataset: Dataset) -> dict[tuple[int, str], Effect]:
    """Measure the actions of which everything served since has matured, each once.

    Parameters
    ----------
    warehouse : Warehouse
    dataset : Dataset

    Returns
    -------
    dict
        From hour and action to what was measured in this call.
    """
    warehouse.create(TABLES)
    reach_us = dataset.settings.drift_actions.effect_hours * HOUR_US
    with warehouse.reader() as connection:
        end_us = sealed_until(connection)
        due = rows_of(
            connection,
            f"SELECT * FROM {ACTIONS.name} WHERE measured_hour_us IS NULL "
            "AND hour_us <= $last_us AND list_contains($measurable, action) ORDER BY hour_us",
            {
                "last_us": end_us - HOUR_US - reach_us - dataset.maturity_us,
                "measurable": list(EXPERT_OF),
            },
        ).to_pylist()
        found = {
            (row["hour_us"], row["action"]): _effect(
                connection, dataset, row["action"], row["hour_us"] + HOUR_US, reach_us
            )
            for row in due
        }
    for row in due:
        effect = found[row["hour_us"], row["action"]]
        row |= {
            "measured_hour_us": end_us - HOUR_US,
            "rows": effect.rows,
            "effect": effect.change,
            "effect_low": effect.low,
            "effect_high": effect.high,
        }
    if due:
        with warehouse.writer() as connection:
            _replace(connection, arrow_rows(ACTIONS, due))
    return found


def change_of_loss(
    served_us: NDArray[np.int64],
    labels: NDArray[np.int8],
    logits: NDArray[np.float64],
    action_us: int,
) -> Effect:
    """Compare the loss of rows served before and after a moment, hours as blocks.

    Parameters
    ----------
    served_us : ndarray of shape (n,), int64
    labels : ndarray of shape (n,), 0 or 1
    logits : ndarray of shape (n,), float64
    action_us : int

    Returns
    -------
    Effect
        NaN where either side has too few rows.
    """
    hours, block = np.unique(served_us // HOUR_US, return_inverse=True)
    rows = np.bincount(block, minlength=len(hours)).astype(np.float64)
    shares = np.bincount(block, labels, len(hours)) / np.maximum(rows, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        least = -np.nan_to_num(shares * np.log(shares) + (1 - shares) * np.log1p(-shares))
    losses = np.bincount(block, np.logaddexp(0, logits) - labels * logits, len(hours))
    excess = losses - rows * least
    after = hours * HOUR_US >= action_us
    counts = [float(rows[side].sum()) for side in (after, ~after)]
    if min(counts) < LEAST_ROWS:
        return Effect(int(counts[0]), float("nan"), float("nan"), float("nan"))
    means = [float(excess[side].sum()) / n for side, n in zip((after, ~after), counts, strict=True)]
    parts = np.where(
        after, (excess - rows * means[0]) / counts[0], -(excess - rows * means[1]) / counts[1]
    )
    change, reach = means[0] - means[1], reach_of_sum(parts)
    return Effect(int(counts[0]), change, change - reach, change + reach)


def seen_by_sensor(connection: duckdb.DuckDBPyConnection) -> Seen | None:
    """Return the newest verdicts that ask for something and when what was done last.

    One question of each table, answered by its newest rows: a tick is as cheap after a million
    events as after one. None before the first verdict.
    """
    if not _exist(connection):
        return None
    (hour_us,) = one_row(connection, f"SELECT max(hour_us) FROM {DRIFT_VERDICTS.name}")
    if hour_us is None:
        return None
    verdicts = rows_of(
        connection,
        f"SELECT kind, subject, cause, actions, evidence FROM {DRIFT_VERDICTS.name} "
        "WHERE hour_us = $hour_us AND drifted AND actions <> '' ORDER BY kind, subject",
        {"hour_us": hour_us},
    ).to_pylist()
    asked: dict[Action, list[dict[str, Any]]] = {}
    for verdict in verdicts:
        for action in verdict.pop("actions").split(","):
            asked.setdefault(action, []).append(
                verdict | {"evidence": json.loads(verdict["evidence"])}
            )
    last_us = dict(
        connection.execute(
            f"SELECT action, max(hour_us) FROM {ACTIONS.name} GROUP BY action"
        ).fetchall()
    )
    return Seen(hour_us, asked, last_us)


def _exist(connection: duckdb.DuckDBPyConnection) -> bool:
    (tables,) = one_row(
        connection,
        "SELECT count(*) FROM information_schema.tables WHERE table_catalog = 'warehouse' "
        "AND table_schema || '.' || table_name IN ($verdicts, $actions)",
        {"verdicts": DRIFT_VERDICTS.name, "actions": ACTIONS.name},
    )
    return tables == 2


def _effect(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    action: Action,
    action_us: int,
    reach_us: int,
) -> Effect:
    settings = dataset.settings.drift_actions
    parts = []
    for goal in dataset.goals_in_chain_order():
        span = {
            "goal": goal.name,
            "start_us": action_us - reach_us,
            "end_us": action_us + reach_us + dataset.maturity_us,
        }
        (matured,) = one_row(connection, select("monitoring.matured_rows"), span)
        thinned = span | {
            "expert": EXPERT_OF[action],
            "horizon_us": dataset.maturity_us,
            "one_in": max(1, -(-matured // settings.maximum_rows)),
        }
        parts.append(rows_of(connection, select("monitoring.matured_scores"), thinned))
    rows = pa.concat_tables(parts)
    served_us = rows.column("serving_us").to_numpy()
    near = (served_us >= action_us - reach_us) & (served_us < action_us + reach_us)
    return change_of_loss(
        served_us[near],
        rows.column("label").to_numpy()[near],
        rows.column("logit").to_numpy()[near],
        action_us,
    )


def _replace(connection: duckdb.DuckDBPyConnection, rows: pa.Table) -> None:
    connection.register("placed", rows)
    connection.execute(
        f"DELETE FROM {ACTIONS.name} "
        "WHERE (hour_us, action) IN (SELECT (hour_us, action) FROM placed)"
    )
    connection.execute(f"INSERT INTO {ACTIONS.name} BY NAME SELECT * FROM placed")
    connection.unregister("placed")
