"""A goal of a deployment's log as a stream for the benchmark: a sample of its anchors, joined anew.

The learners of a deployment are shown the rows of their own strategies only; here the label join
runs once more for all of them, over a sample of the impressions, in memory. What the warehouse
holds stays as it is. Features are those that were served. How rows become a stream is
:mod:`.stream`.
"""

import duckdb
import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import hour_of
from ad_pipeline.datasets import Dataset, Deployment, Goal
from ad_pipeline.events.contract import event_tables
from ad_pipeline.events.ledger import sealed_until
from ad_pipeline.examples.label_join import GoalJoin
from ad_pipeline.examples.strategies import emission_of
from ad_pipeline.examples.subsampling import draw_of, kept_below
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract, slots
from ad_pipeline.hashing import hash_strings, seed_of, uniform
from ad_pipeline.monitoring.late_labels.arms import WAITS_US
from ad_pipeline.monitoring.late_labels.stream import (
    UNKNOWN,
    LateStream,
    declare_examples,
    join_in_memory,
    join_of,
    joined_rows,
)
from ad_pipeline.warehouse import Warehouse, one_row, rows_of, select

PURPOSE = "monitoring.delay_benchmark"

CHUNK_ROWS = 50_000


class NothingToReplay(ValueError):
    """The log has no anchors of the goal."""


def log_stream(
    warehouse: Warehouse, deployment: Deployment, goal: Goal, most_anchors: int | None
) -> LateStream:
    """Return the stream of one goal.

    Parameters
    ----------
    warehouse : Warehouse
        With the events of all sealed hours; examples are joined here.
    deployment : Deployment
    goal : Goal
    most_anchors : int or None
        About so many are kept, by hash of the impression; None keeps all.

    Raises
    ------
    NothingToReplay
        If the goal has no anchors.
    """
    dataset = deployment.dataset
    warehouse.create(tuple(event_tables(dataset).values()))
    with warehouse.reader() as connection:
        end_us = sealed_until(connection)
        if not end_us:
            raise NothingToReplay(f"no hour of {dataset.name} is sealed; materialize its events")
        share = _share(connection, goal, most_anchors)
        first_us = rows_of(
            connection,
            "SELECT ad_id, min(received_us) AS first_us FROM events.impressions "
            "WHERE ad_id IS NOT NULL GROUP BY ad_id",
        )
        connection.execute("ATTACH ':memory:' AS sampled")
        connection.execute("USE sampled")
        _sample(connection, dataset, share)
        declare_examples(connection)
        start_us = hour_of(dataset.start_us)
        for join in _joins(dataset, goal):
            join_in_memory(connection, join, start_us, end_us)
        connection.register("first_seen", first_us)
        anchors = rows_of(connection, select("monitoring.late_anchors"), {"goal": goal.name})
        if not anchors.num_rows:
            raise NothingToReplay(f"{dataset.name} has no anchor of goal {goal.name!r} yet")
        places = anchors.select(["impression_id"]).append_column(
            "place", pa.array(np.arange(anchors.num_rows))
        )
        joined = joined_rows(connection, goal, places)
    return LateStream(
        goal=goal,
        slots=_slots(deployment, anchors),
        slot_bits=dataset.settings.online.bits,
        served_us=anchors.column("serving_us").to_numpy(),
        anchor_us=anchors.column("anchor_us").to_numpy(),
        groups=_codes(anchors, dataset.settings.delays.group_by),
        ad_age_us=anchors.column("ad_age_us").fill_null(UNKNOWN).to_numpy(),
        draws=uniform(dataset.settings.seed, anchors.column("impression_id"), PURPOSE),
        end_us=end_us,
        **joined,
    )


def _share(connection: duckdb.DuckDBPyConnection, goal: Goal, most: int | None) -> float:
    """Return the share of impressions that gives about so many anchors."""
    if most is None:
        return 1.0
    query = "SELECT count(*) FROM examples.labelled_impressions WHERE goal = $goal"
    (anchors,) = one_row(connection, query, {"goal": goal.name})
    return min(1.0, most / max(anchors, 1))


def _sample(connection: duckdb.DuckDBPyConnection, dataset: Dataset, share: float) -> None:
    """Copy a share of the impressions, and what came of them."""
    connection.execute("CREATE SCHEMA events")
    parameters = {"draw": f"{dataset.settings.seed} {PURPOSE} ", "kept_below": kept_below(share)}
    connection.execute(
        "CREATE TABLE events.impressions AS SELECT * FROM warehouse.events.impressions "
        "WHERE md5($draw || impression_id) < $kept_below",
        parameters,
    )
    connection.execute(
        "CREATE TABLE events.engagements AS SELECT * FROM warehouse.events.engagements "
        "SEMI JOIN events.impressions USING (impression_id)"
    )
    connection.execute(
        "CREATE TABLE events.retractions AS SELECT * FROM warehouse.events.retractions"
    )


def _joins(dataset: Dataset, goal: Goal) -> list[GoalJoin]:
    """Return the joins to run, in order: those of the goals that anchor it, then its own."""
    goals = {each.name: each for each in dataset.goals}
    chain = [goal]
    while chain[0].anchor in goals:
        chain.insert(0, goals[chain[0].anchor])
    whole = dataset.settings.model_copy(update={"examples": type(dataset.settings.examples)()})
    joins: list[GoalJoin] = []
    for place, each in enumerate(chain):
        above_us = chain[place - 1].observation_us if place else 0
        if each is goal:
            joins.append(join_of(goal, dataset.settings, WAITS_US, above_us))
        else:
            emission = emission_of(whole, each, ("windowed",))
            joins.append(GoalJoin(each, above_us, draw_of(whole, each.name), emission))
    return joins


def _slots(deployment: Deployment, anchors: pa.Table) -> np.ndarray:
    contract = FeatureContract.from_dataset(deployment.dataset)
    return np.concatenate(
        [
            slots(contract, *read_as_served(deployment, contract, anchors.slice(first, CHUNK_ROWS)))
            for first in range(0, anchors.num_rows, CHUNK_ROWS)
        ]
    )


def _codes(anchors: pa.Table, column: str | None) -> np.ndarray:
    if column is None:
        return np.zeros(anchors.num_rows, dtype=np.int64)
    hashed = hash_strings(anchors.column(column), seed_of(PURPOSE))
    return np.unique(hashed, return_inverse=True)[1].astype(np.int64)
