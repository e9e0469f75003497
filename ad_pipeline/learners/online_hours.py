"""The online learner over log hours: read, score, learn, and leave a checkpoint for each hour.

Each hour continues from the checkpoint of the hour before and names it as its parent; a range is
the same hours one after the other, with the state kept in memory between them. What one hour does
is :func:`ad_pipeline.learners.online.online_hour`; arithmetic belongs to the kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import (
    Checkpoint,
    CorruptCheckpoint,
    is_pointed,
    point,
    read_checkpoint,
    resolve,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US, MINUTE_US, hour_key, hour_of, hours_between, timestamp
from ad_pipeline.datasets import Deployment
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract, slots
from ad_pipeline.learners.online import (
    Examples,
    HourScores,
    OnlineExpert,
    labels_and_weights,
    new_expert,
    online_hour,
    restore_expert,
)
from ad_pipeline.learners.tables import ONLINE_PREDICTIONS, TABLES
from ad_pipeline.warehouse import Warehouse, replace_hours, rows_of, select

KIND = "learners.online_model"
CODE_VERSION = 2
"""Raise when the same log and settings would give other weights."""

CHUNK_HOURS = 24
CANARIES = 8


@dataclass(frozen=True)
class LearnedHour:
    """What one hour did to the online model of one goal.

    Attributes
    ----------
    goal : str
    hour_us : int
        Start of the hour.
    digest : str
        Checkpoint that the hour left.
    scored : int
        Impressions scored.
    learned : dict of str to int
        Examples by kind, those of weight 0 included.
    touched_slots, nonzero_weights : int
    mean_probability : float
        Of the hour's scores; NaN without impressions.
    """

    goal: str
    hour_us: int
    digest: str
    scored: int
    learned: dict[str, int]
    touched_slots: int
    nonzero_weights: int
    mean_probability: float


def pointer(goal: str, hour_us: int) -> str:
    """Return the name of the checkpoint that an hour left for a goal."""
    return f"{KIND}/{goal}/{hour_key(hour_us)}"


def open_expert(root: Path, digest: str) -> OnlineExpert:
    """Restore an online model and prove it by its canaries.

    Parameters
    ----------
    root : Path
        Root of the checkpoints.
    digest : str

    Raises
    ------
    CorruptCheckpoint
        If bytes differ from the manifest, or a canary row scores otherwise than at writing.
    """
    checkpoint = read_checkpoint(root, digest)
    arrays = {
        name: array for name, array in checkpoint.arrays.items() if not name.startswith("canary_")
    }
    expert = restore_expert(arrays, checkpoint.manifest["expert"])
    scored = expert.logits(np.asarray(checkpoint.arrays["canary_slots"]))
    if not np.array_equal(scored, checkpoint.arrays["canary_logits"]):
        raise CorruptCheckpoint(
            f"{checkpoint.path}: canary rows score {scored.tolist()}, the checkpoint says "
            f"{checkpoint.arrays['canary_logits'].tolist()}; it was written by other code"
        )
    return expert


def learn_hours(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> Iterator[LearnedHour]:
    """Score and learn the log hours ``[start_us, end_us)``, in order.

    Parameters
    ----------
    warehouse : Warehouse
        With the events and training examples of the hours.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    LearnedHour
        One per hour and goal, after its checkpoint and predictions are durable.

    Raises
    ------
    MissingCheckpoint
        If the hour before the range has left no checkpoint and is inside the log.
    """
    dataset = deployment.dataset
    contract = FeatureContract.from_dataset(dataset)
    warehouse.create(TABLES)
    models = {
        goal.name: _Model.before(deployment, contract, goal.name, start_us)
        for goal in dataset.goals_in_chain_order()
    }
    for chunk_us in range(start_us, end_us, CHUNK_HOURS * HOUR_US):
        chunk_end_us = min(chunk_us + CHUNK_HOURS * HOUR_US, end_us)
        served, emitted = _read_chunk(warehouse, list(models), chunk_us, chunk_end_us)
        served_slots = _encoded_slots(deployment, contract, served)
        served_us = _moments(served, "received_us")
        examples = {goal: _examples(deployment, contract, rows) for goal, rows in emitted.items()}
        predictions: list[pa.Table] = []
        learned: list[LearnedHour] = []
        for hour_us in hours_between(chunk_us, chunk_end_us):
            rows = _hour_rows(served_us, hour_us)
            for goal, model in models.items():
                emission = _hour_rows(examples[goal].emit_us, hour_us)
                scores, hour = model.run(
                    hour_us,
                    served_slots[rows],
                    served_us[rows],
                    _sliced(examples[goal], emission),
                    emitted[goal].column("kind").slice(emission.start, _length(emission)),
                )
                predictions.append(_prediction_rows(served, rows, goal, scores, hour_us, model))
                model.settle(hour.digest)
                learned.append(hour)
        with warehouse.writer() as connection:
            connection.register("scored", pa.concat_tables(predictions))
            replace_hours(
                connection, ONLINE_PREDICTIONS, "SELECT * FROM scored", {}, chunk_us, chunk_end_us
            )
        for hour in learned:
            point(deployment.checkpoints, pointer(hour.goal, hour.hour_us), hour.digest)
        yield from learned


@dataclass
class _Model:
    """One goal's learner on its way through a range of hours."""

    deployment: Deployment
    contract: FeatureContract
    goal: str
    expert: OnlineExpert
    parent: str | None
    examples_learned: int

    @classmethod
    def before(
        cls, deployment: Deployment, contract: FeatureContract, goal: str, start_us: int
    ) -> "_Model":
        """Restore what the hour before ``start_us`` left; a new model at the log's start."""
        previous = pointer(goal, start_us - HOUR_US)
        at_start = start_us <= hour_of(deployment.dataset.start_us)
        if at_start and not is_pointed(deployment.checkpoints, previous):
            expert = new_expert(deployment.dataset.settings.online)
            return cls(deployment, contract, goal, expert, None, 0)
        digest = resolve(deployment.checkpoints, previous)
        manifest = read_checkpoint(deployment.checkpoints, digest, verify=False).manifest
        if manifest["contract"] != contract.digest:
            raise ValueError(
                f"the online model of {goal} before {timestamp(start_us)} was trained on other "
                "features; run from the log's start, or undo the change of the dataset file"
            )
        expert = open_expert(deployment.checkpoints, digest)
        return cls(
            deployment, contract, goal, expert, digest, manifest["stream_position"]["examples"]
        )

    def run(
        self,
        hour_us: int,
        served_slots: np.ndarray,
        served_us: np.ndarray,
        examples: Examples,
        kinds: pa.ChunkedArray,
    ) -> tuple[HourScores, LearnedHour]:
        settings = self.deployment.dataset.settings.online
        scores = online_hour(
            self.expert,
            served_slots,
            served_us,
            examples,
            settings.micro_batch_minutes * MINUTE_US,
            hour_us,
        )
        self.examples_learned += len(examples.emit_us)
        checkpoint = self._checkpoint(hour_us, served_slots[:CANARIES])
        linear = self.expert.linear_weights()
        arrays = checkpoint.arrays
        learned = LearnedHour(
            goal=self.goal,
            hour_us=hour_us,
            digest=checkpoint.digest,
            scored=len(served_us),
            learned={item["values"]: item["counts"] for item in kinds.value_counts().to_pylist()},
            touched_slots=len(arrays["slots"]) if "slots" in arrays else 0,
            nonzero_weights=0 if linear is None else int(np.count_nonzero(linear.weights)),
            mean_probability=(
                float(np.mean(1 / (1 + np.exp(-scores.logits)))) if len(served_us) else float("nan")
            ),
        )
        return scores, learned

    def settle(self, digest: str) -> None:
        """Take the hour's checkpoint as the parent of the next."""
        self.parent = digest

    def _checkpoint(self, hour_us: int, canary_slots: np.ndarray) -> Checkpoint:
        arrays, expert = self.expert.state()
        return write_checkpoint(
            self.deployment.checkpoints,
            KIND,
            arrays
            | {"canary_slots": canary_slots, "canary_logits": self.expert.logits(canary_slots)},
            {
                "goal": self.goal,
                "hour_us": hour_us,
                "parent": self.parent,
                "stream_position": {
                    "emitted_before_us": hour_us + HOUR_US,
                    "examples": self.examples_learned,
                },
                "label_watermark_us": hour_us + HOUR_US,
                "settings": self.deployment.dataset.settings.digest(),
                "contract": self.contract.digest,
                "code_version": CODE_VERSION,
                "expert": expert,
            },
        )


def _read_chunk(
    warehouse: Warehouse, goals: list[str], start_us: int, end_us: int
) -> tuple[pa.Table, dict[str, pa.Table]]:
    served_query = select("features.impressions_received")
    emitted_query = select("learners.emitted_examples")
    span = {"start_us": start_us, "end_us": end_us}
    with warehouse.reader() as connection:
        served = rows_of(connection, served_query, span)
        emitted = {
            goal: rows_of(connection, emitted_query, span | {"goal": goal}) for goal in goals
        }
    return served, emitted


def _encoded_slots(deployment: Deployment, contract: FeatureContract, rows: pa.Table) -> np.ndarray:
    read, counts = read_as_served(deployment, contract, rows)
    return slots(contract, read, counts)


def _examples(deployment: Deployment, contract: FeatureContract, rows: pa.Table) -> Examples:
    labels, weights = labels_and_weights(
        rows.column("kind").to_pylist(), deployment.dataset.settings.online.kind_weights
    )
    return Examples(
        slots=_encoded_slots(deployment, contract, rows),
        labels=labels,
        weights=weights,
        emit_us=_moments(rows, "emit_us"),
    )


def _sliced(examples: Examples, rows: slice) -> Examples:
    return Examples(
        examples.slots[rows], examples.labels[rows], examples.weights[rows], examples.emit_us[rows]
    )


def _prediction_rows(
    served: pa.Table, rows: slice, goal: str, scores: HourScores, hour_us: int, model: _Model
) -> pa.Table:
    """Lay an hour's scores into the table's columns; the hash is that of the hour's parent."""
    count = _length(rows)
    part = served.slice(rows.start, count)
    return pa.table(
        {
            "goal": pa.repeat(goal, count),
            "impression_id": part.column("impression_id"),
            "expert": pa.repeat("online", count),
            "logit": pa.array(scores.logits),
            "model_hash": pa.repeat(model.parent or "", count),
            "micro_batch": pa.array(scores.micro_batch),
            "serving_us": part.column("received_us"),
        }
    )


def _moments(rows: pa.Table, name: str) -> np.ndarray:
    return rows.column(name).to_numpy()


def _hour_rows(moments: np.ndarray, hour_us: int) -> slice:
    start, end = np.searchsorted(moments, [hour_us, hour_us + HOUR_US])
    return slice(int(start), int(end))


def _length(rows: slice) -> int:
    return rows.stop - rows.start
