"""The batch learner over log hours: when a model is trained, on what, and what it said.

A retrain after hour H reads what had matured by the end of H; the model is in force from hour H + 1
until the next one. Training itself is :mod:`.batch_model`; which events ask for a retrain
beyond the schedule is the business of sensors and people, who record it in ``learners.retrains``.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import (
    is_pointed,
    point,
    read_checkpoint,
    resolve,
    unswept,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US, hour_key, hour_of, hours_between
from ad_pipeline.datasets import Deployment, Goal
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.dropout import read_to_learn
from ad_pipeline.features.encoding import FeatureContract, category_hashes, dense
from ad_pipeline.hashing import uniform
from ad_pipeline.learners import scored_hours
from ad_pipeline.learners.batch.batch_model import (
    BatchModel,
    TooFewPositives,
    train_batch_model,
    training_slices,
)
from ad_pipeline.learners.online.quarantine import without_suspect_labels
from ad_pipeline.learners.orders import orders
from ad_pipeline.learners.scored_hours import Score, ScoredHour
from ad_pipeline.learners.tables import BATCH_PREDICTIONS, RETRAINS, TABLES
from ad_pipeline.warehouse import Table, Warehouse, rows_of, select

KIND = "learners.batch_model"
CODE_VERSION = 1
"""Raise when the same rows and settings would give another model."""


@dataclass(frozen=True)
class TrainedHour:
    """Which model of a goal is in force after an hour.

    Attributes
    ----------
    goal : str
    hour_us : int
    digest : str or None
        Its checkpoint; None while there is no model.
    cause : str
        Why it was trained in this hour, or "unchanged", or why there is none.
    trained : dict or None
        Facts about the training, if there was one.
    """

    goal: str
    hour_us: int
    digest: str | None
    cause: str
    trained: dict[str, Any] | None


def pointer(goal: str, hour_us: int) -> str:
    """Return the name of the model that is in force after an hour."""
    return f"{KIND}/{goal}/{hour_key(hour_us)}"


def digest_after(deployment: Deployment, goal: str, hour_us: int) -> str | None:
    """Return the checkpoint of the model in force after an hour, None if there is none yet."""
    name = pointer(goal, hour_us)
    return (
        resolve(deployment.checkpoints, name) if is_pointed(deployment.checkpoints, name) else None
    )


def open_batch_model(deployment: Deployment, digest: str) -> BatchModel:
    """Read a batch model, every byte verified."""
    checkpoint = read_checkpoint(deployment.checkpoints, digest)
    return BatchModel.from_checkpoint(
        checkpoint.arrays, checkpoint.manifest["model"], checkpoint.files
    )


def train_hours(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> Iterator[TrainedHour]:
    """Train where a retrain is due, and point every hour at the model in force after it.

    Parameters
    ----------
    warehouse : Warehouse
        With matured labels and online predictions of the hours before ``end_us``.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    TrainedHour
        One per hour and goal, in order.
    """
    dataset = deployment.dataset
    warehouse.create(TABLES)
    contract = FeatureContract.from_dataset(dataset)
    with warehouse.reader() as connection:
        asked = orders(connection, RETRAINS, start_us, end_us)
    causes = {hour_us: order["cause"] for hour_us, order in asked.items()}
    every_us = dataset.settings.batch.retrain_every_hours * HOUR_US
    for hour_us in hours_between(start_us, end_us):
        if (hour_us + HOUR_US - hour_of(dataset.start_us)) % every_us == 0:
            causes.setdefault(hour_us, "schedule")
        for goal in dataset.goals_in_chain_order():
            digest = digest_after(deployment, goal.name, hour_us - HOUR_US)
            cause, trained = "unchanged" if digest else "no model yet", None
            if hour_us in causes:
                cause = causes[hour_us]
                model = train_after(warehouse, deployment, contract, goal, hour_us)
                if isinstance(model, TooFewPositives):
                    cause = f"{cause}: {model}"
                else:
                    digest = _write_and_point(deployment, contract, goal, hour_us, digest, model)
                    trained = {
                        name: value
                        for name, value in model.training.items()
                        if isinstance(value, int | float)
                    }
            if digest is not None:
                point(deployment.checkpoints, pointer(goal.name, hour_us), digest)
            yield TrainedHour(goal.name, hour_us, digest, cause, trained)


def score_hours(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> Iterator[ScoredHour]:
    """Score every impression by the model in force before the hour in which it was served.

    Parameters
    ----------
    warehouse : Warehouse
        With events and online predictions of the hours.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    ScoredHour
        One per hour, after its rows are in the warehouse.
    """
    expert = _ScoredByBatch(warehouse, deployment, FeatureContract.from_dataset(deployment.dataset))
    return scored_hours.score_hours(warehouse, deployment, expert, start_us, end_us)


@dataclass
class _ScoredByBatch:
    warehouse: Warehouse
    deployment: Deployment
    contract: FeatureContract
    name: str = "batch"
    table: Table = BATCH_PREDICTIONS
    opened: dict[str, BatchModel] = field(default_factory=dict)

    def digest_after(self, goal: str, hour_us: int) -> str | None:
        return digest_after(self.deployment, goal, hour_us)

    def prepared(self, served: pa.Table, start_us: int, end_us: int) -> Score:
        with self.warehouse.reader() as connection:
            online = {
                goal: _online_logits(connection, goal, start_us, end_us)
                for goal in self.deployment.dataset.goal_names
            }
        read, looked_up = read_as_served(self.deployment, self.contract, served)
        matrix = dense(self.contract, read, looked_up)
        categories = category_hashes(self.contract, read)

        def score(goal: str, digest: str, rows: slice) -> np.ndarray:
            if digest not in self.opened:
                self.opened[digest] = open_batch_model(self.deployment, digest)
            model = self.opened[digest]
            return model.predict_logits(matrix[rows], categories[rows], online[goal][rows])

        return score


def train_after(
    warehouse: Warehouse,
    deployment: Deployment,
    contract: FeatureContract,
    goal: Goal,
    hour_us: int,
) -> BatchModel | TooFewPositives:
    """Train a goal's model on what had matured by the end of an hour; nothing is kept.

    Parameters
    ----------
    warehouse : Warehouse
        With matured labels and online predictions of the hours that are looked back on.
    deployment : Deployment
    contract : FeatureContract
    goal : Goal
    hour_us : int
        Start of the hour, microseconds.

    Returns
    -------
    BatchModel or TooFewPositives
        The latter says how many positives there were and how many are needed.
    """
    settings = deployment.dataset.settings.batch
    query = select("learners.matured_examples")
    parameters = {
        "goal": goal.name,
        "start_us": hour_us + HOUR_US - settings.lookback_hours * HOUR_US,
        "end_us": hour_us + HOUR_US,
    }
    with warehouse.reader() as connection:
        rows = rows_of(connection, query, parameters)
        rows = without_suspect_labels(connection, goal.name, rows)
    rows = _thinned(rows, settings.maximum_rows, deployment.dataset.settings.seed)
    matured_us = rows.column("matured_us").to_numpy()
    train, valid = training_slices(matured_us, settings.validation_share, goal.window_us)
    read, looked_up = read_to_learn(deployment, contract, rows)
    return train_batch_model(
        dense(contract, read, looked_up),
        category_hashes(contract, read),
        rows.column("online_logit").to_numpy(),
        rows.column("label").to_numpy(),
        train,
        valid,
        contract.dense_names,
        contract.categorical,
        settings,
        deployment.dataset.settings.seed,
    )


def _thinned(rows: pa.Table, most: int, seed: int) -> pa.Table:
    """Keep about ``most`` rows, each by the hash of its impression, so that memory stays flat."""
    if rows.num_rows <= most:
        return rows
    draws = uniform(seed, rows.column("impression_id"), KIND)
    return rows.filter(pa.array(draws < most / rows.num_rows))


def _write_and_point(
    deployment: Deployment,
    contract: FeatureContract,
    goal: Goal,
    hour_us: int,
    parent: str | None,
    model: BatchModel,
) -> str:
    arrays, described, files = model.to_checkpoint()
    with unswept(deployment.checkpoints):
        digest = write_checkpoint(
            deployment.checkpoints,
            KIND,
            arrays,
            {
                "goal": goal.name,
                "hour_us": hour_us,
                "parent": parent,
                "label_watermark_us": hour_us + HOUR_US,
                "settings": deployment.dataset.settings.digest(),
                "contract": contract.digest,
                "code_version": CODE_VERSION,
                "model": json.loads(json.dumps(described)),
            },
            files,
        ).digest
        point(deployment.checkpoints, pointer(goal.name, hour_us), digest)
    return digest


def _online_logits(connection: Any, goal: str, start_us: int, end_us: int) -> np.ndarray:
    """Return the online logits of a goal, in the order of ``features.impressions_received``."""
    found = rows_of(
        connection,
        "SELECT logit FROM learners.online_predictions WHERE goal = $goal "
        "AND serving_us >= $start_us AND serving_us < $end_us ORDER BY serving_us, impression_id",
        {"goal": goal, "start_us": start_us, "end_us": end_us},
    )
    return found.column("logit").to_numpy()
