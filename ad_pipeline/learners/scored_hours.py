"""Scores of experts whose models are in force for whole hours: read, score, keep the scores.

An impression is scored by the model that the hour *before* it left in force; an hour without a
model has no scores. What a model is and how it scores belongs to the expert; the online expert,
which learns within an hour, scores on its own way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US, hours_between
from ad_pipeline.datasets import Deployment
from ad_pipeline.learners.tables import TABLES
from ad_pipeline.warehouse import Table, Warehouse, replace_hours, rows_of, select

CHUNK_HOURS = 24

Score = Callable[[str, str, slice], np.ndarray]
"""From a goal, the checkpoint of its model and places of rows to their logits, float64."""


@dataclass(frozen=True)
class ScoredHour:
    """What the models of an expert scored of one hour.

    Attributes
    ----------
    hour_us : int
    rows : int
    mean_probabilities : dict of str to float
        By goal.
    """

    hour_us: int
    rows: int
    mean_probabilities: dict[str, float]


class ScoredBy(Protocol):
    """An expert whose models are in force for whole hours."""

    @property
    def name(self) -> str:
        """As the predictions name it."""
        ...

    @property
    def table(self) -> Table:
        """Where its predictions are kept."""
        ...

    def digest_after(self, goal: str, hour_us: int) -> str | None:
        """Return the checkpoint of the model in force after an hour, None if there is none."""
        ...

    def prepared(self, served: pa.Table, start_us: int, end_us: int) -> Score:
        """Return what scores impressions, the rows of ``features.impressions_received``."""
        ...


def score_hours(
    warehouse: Warehouse, deployment: Deployment, expert: ScoredBy, start_us: int, end_us: int
) -> Iterator[ScoredHour]:
    """Score every impression by the model in force before the hour in which it was served.

    Parameters
    ----------
    warehouse : Warehouse
        With the events of the hours.
    deployment : Deployment
    expert : ScoredBy
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    ScoredHour
        One per hour, after its rows are in the warehouse.
    """
    dataset = deployment.dataset
    warehouse.create(TABLES)
    for chunk_us in range(start_us, end_us, CHUNK_HOURS * HOUR_US):
        chunk_end_us = min(chunk_us + CHUNK_HOURS * HOUR_US, end_us)
        span = {"start_us": chunk_us, "end_us": chunk_end_us}
        in_force = {
            (goal.name, hour_us): digest
            for goal in dataset.goals
            for hour_us in hours_between(chunk_us, chunk_end_us)
            if (digest := expert.digest_after(goal.name, hour_us - HOUR_US)) is not None
        }
        served_query = select("features.impressions_received")
        with warehouse.reader() as connection:
            served = rows_of(connection, served_query, span)
        rows: list[pa.Table] = []
        means: dict[int, dict[str, float]] = {}
        if in_force and served.num_rows:
            score = expert.prepared(served, chunk_us, chunk_end_us)
            served_us = served.column("received_us").to_numpy()
            for (goal, hour_us), digest in in_force.items():
                first, last = np.searchsorted(served_us, [hour_us, hour_us + HOUR_US])
                logits = score(goal, digest, slice(int(first), int(last)))
                if len(logits):
                    mean = float(np.mean(1 / (1 + np.exp(-logits))))
                    means.setdefault(hour_us, {})[goal] = mean
                part = served.slice(first, last - first)
                rows.append(_prediction_rows(part, goal, expert.name, logits, digest))
        with warehouse.writer() as connection:
            scored = pa.concat_tables(rows) if rows else _no_predictions()
            connection.register("scored", scored)
            query = "SELECT * FROM scored"
            replace_hours(connection, expert.table, query, {}, chunk_us, chunk_end_us)
        hour_of_row = scored.column("serving_us").to_numpy() // HOUR_US * HOUR_US
        for hour_us in hours_between(chunk_us, chunk_end_us):
            yield ScoredHour(
                hour_us, int(np.count_nonzero(hour_of_row == hour_us)), means.get(hour_us, {})
            )


def _prediction_rows(
    served: pa.Table, goal: str, expert: str, logits: np.ndarray, digest: str
) -> pa.Table:
    count = len(logits)
    return pa.table(
        {
            "goal": pa.repeat(goal, count),
            "impression_id": served.column("impression_id"),
            "expert": pa.repeat(expert, count),
            "logit": pa.array(logits),
            "model_hash": pa.repeat(digest, count),
            "micro_batch": pa.repeat(pa.scalar(0, pa.int16()), count),
            "serving_us": served.column("received_us"),
        }
    )


def _no_predictions() -> pa.Table:
    empty = pa.table(
        {"impression_id": pa.array([], pa.string()), "received_us": pa.array([], pa.int64())}
    )
    return _prediction_rows(empty, "", "", np.empty(0), "")
