"""The online learner over log hours: read, score, learn, and leave a checkpoint for each hour.

Each hour continues from the checkpoint of the hour before and names it as its parent; a range is
the same hours one after the other, with the state kept in memory between them. What one hour does
is :func:`ad_pipeline.learners.online.step.online_hour`; arithmetic belongs to the kernel.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import (
    Checkpoint,
    CorruptCheckpoint,
    point,
    read_checkpoint,
    unswept,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US, MINUTE_US, hours_between
from ad_pipeline.datasets import Deployment, Goal
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.learners.delayed.losses import stream_log_odds
from ad_pipeline.learners.delayed.shown_hours import encoded_slots, shown_rows
from ad_pipeline.learners.online.controlled_expert import ControlledExpert, MadeMove
from ad_pipeline.learners.online.guard import (
    COMPARED_WITH,
    Evidence,
    Verdict,
    evidence_of,
    judge,
    sampled,
)
from ad_pipeline.learners.online.lanes import ENGAGEMENT_KINDS, LaneRows, Lanes, is_waiting_array
from ad_pipeline.learners.online.online_checkpoints import (
    KIND,
    digest_before,
    learner_of,
    must_continue,
    pointer,
)
from ad_pipeline.learners.online.quarantine import (
    Decision,
    JudgedHour,
    decisions,
    guard_rows,
    left_out_parts,
    recent_evidence,
    without_parts,
)
from ad_pipeline.learners.online.step import (
    Examples,
    HourScores,
    OnlineExpert,
    Position,
    new_expert,
    online_hour,
    restore_expert,
)
from ad_pipeline.learners.online.within_hour import WithinHour, digest_of
from ad_pipeline.learners.orders import orders
from ad_pipeline.learners.tables import (
    GRID_PREDICTIONS,
    HOUR_GUARDS,
    RATE_MOVES,
    RATE_ORDERS,
    TABLES,
)
from ad_pipeline.warehouse import Warehouse, arrow_rows, replace_hours, rows_of, select

CODE_VERSION = 4
"""Raise when the same log and settings would give other weights."""

UPDATED = "last_update_hours"
"""Array of checkpoints: log hour in which each touched slot was last learnt, hours since 1970."""

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
        Examples that were emitted in the hour and that some configuration is shown, by kind.
    lanes : dict or None
        Who went before whom, what was learnt by lane and what waits: see :meth:`Lanes.described`.
        None where no slice has a capacity: then all of ``learned`` was.
    touched_slots : int
    nonzero_weights : list of int
        By configuration.
    mean_probability : float
        Of the hour's scores under configuration 0; NaN without impressions.
    judged : JudgedHour
        What the guard saw of its labels.
    moves : list of MadeMove
        What the rate control did; empty without one.
    rates : list of float
        By configuration, doublings of the rate so far; empty without rate control.
    """

    goal: str
    hour_us: int
    digest: str
    scored: int
    learned: dict[str, int]
    lanes: dict[str, Any] | None
    touched_slots: int
    nonzero_weights: list[int]
    mean_probability: float
    judged: JudgedHour
    moves: list[MadeMove]
    rates: list[float]


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
    expert = restore_expert(_of_expert(checkpoint.arrays), checkpoint.manifest["expert"])
    scored = expert.logits(np.asarray(checkpoint.arrays["canary_slots"]))
    if not np.array_equal(scored, checkpoint.arrays["canary_logits"]):
        raise CorruptCheckpoint(
            f"{checkpoint.path}: canary rows score {scored.tolist()}, the checkpoint says "
            f"{checkpoint.arrays['canary_logits'].tolist()}; it was written by other code"
        )
    return expert


def _of_expert(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint that are the expert's own."""
    return {
        name: array
        for name, array in arrays.items()
        if not (name.startswith("canary_") or name == UPDATED or is_waiting_array(name))
    }


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
        If the hour before the range has left no checkpoint and is inside the log; the message names
        the hour to run from.
    OtherLearner
        If that checkpoint is of other features, parameters or code.
    """
    dataset = deployment.dataset
    contract = FeatureContract.from_dataset(dataset)
    warehouse.create(TABLES)
    models = {
        goal.name: _Model.before(warehouse, deployment, contract, goal.name, start_us)
        for goal in dataset.goals_in_chain_order()
    }
    # Whoever wants to lose no more than a few slices wants to lose no hour of a chunk either.
    chunk_hours = CHUNK_HOURS if dataset.settings.online.checkpoint_micro_batches is None else 1
    for chunk_us in range(start_us, end_us, chunk_hours * HOUR_US):
        chunk_end_us = min(chunk_us + chunk_hours * HOUR_US, end_us)
        served, emitted, decided = _read_chunk(warehouse, list(models), chunk_us, chunk_end_us)
        with warehouse.reader() as connection:
            # An order holds after its hour: the next one begins with the raised rate.
            raised = orders(connection, RATE_ORDERS, chunk_us - HOUR_US, chunk_end_us - HOUR_US)
        served_slots = encoded_slots(deployment, contract, served)
        served_us = _moments(served, "received_us")
        shown = {
            goal.name: _examples(deployment, contract, goal, emitted[goal.name])
            for goal in dataset.goals
        }
        with unswept(deployment.checkpoints):
            predictions: list[pa.Table] = []
            learned: list[LearnedHour] = []
            for hour_us in hours_between(chunk_us, chunk_end_us):
                rows = _hour_rows(served_us, hour_us)
                for goal, model in models.items():
                    examples, kinds = shown[goal]
                    emission = _hour_rows(examples.emit_us, hour_us)
                    order = raised.get(hour_us - HOUR_US)
                    if order is not None and goal in order["goals"].split(","):
                        model.raise_rates(order["doublings"])
                    scores, hour = model.run(
                        hour_us,
                        served_slots[rows],
                        served_us[rows],
                        examples.taken(emission),
                        kinds.slice(emission.start, _length(emission)),
                        decided.get((goal, hour_us)),
                    )
                    predictions.append(_prediction_rows(served, rows, goal, scores, hour_us, model))
                    model.settle(hour)
                    learned.append(hour)
            with warehouse.writer() as connection:
                connection.register("scored", pa.concat_tables(predictions))
                connection.register("judged", guard_rows([hour.judged for hour in learned]))
                connection.register("moved", _move_rows(learned))
                for table, rows in (
                    (GRID_PREDICTIONS, "scored"),
                    (HOUR_GUARDS, "judged"),
                    (RATE_MOVES, "moved"),
                ):
                    query = f"SELECT * FROM {rows}"
                    replace_hours(connection, table, query, {}, chunk_us, chunk_end_us)
            # Dropped before the pointers move: after them nothing would look for it again.
            for model in models.values():
                model.drop_within_hour()
            for hour in learned:
                point(deployment.checkpoints, pointer(hour.goal, hour.hour_us), hour.digest)
        yield from learned


@dataclass
class _Model:
    """One goal's learner on its way through a range of hours.

    ``updated_hours`` is int32 (2**bits,), hours since 1970; 0 for slots never learnt.
    """

    deployment: Deployment
    contract: FeatureContract
    goal: str
    expert: OnlineExpert
    parent: str | None
    examples_learned: int
    updated_hours: np.ndarray
    recent: list[JudgedHour]
    lanes: Lanes
    within_hour: WithinHour | None = None

    @classmethod
    def before(
        cls,
        warehouse: Warehouse,
        deployment: Deployment,
        contract: FeatureContract,
        goal: str,
        start_us: int,
    ) -> "_Model":
        """Restore what the hour before ``start_us`` left; a new model at the log's start."""
        settings = deployment.dataset.settings
        with warehouse.reader() as connection:
            recent = recent_evidence(connection, goal, start_us, settings.guard.recent_hours)
        never = np.zeros(1 << contract.bits, dtype=np.int32)
        digest = digest_before(deployment, goal, start_us)
        if digest is None:
            horizon_days = deployment.dataset.goal(goal).horizon_days
            expert = new_expert(settings.online.of_goal(goal), horizon_days)
            lanes = Lanes.restore({}, settings.online.micro_batch_capacity)
            return cls(deployment, contract, goal, expert, None, 0, never, recent, lanes)
        checkpoint = read_checkpoint(deployment.checkpoints, digest, verify=False)
        manifest = checkpoint.manifest
        must_continue(manifest, goal, _identity(deployment, contract, goal), start_us)
        expert = open_expert(deployment.checkpoints, digest)
        if UPDATED in checkpoint.arrays:
            never[checkpoint.arrays["slots"]] = checkpoint.arrays[UPDATED]
        learned = manifest["stream_position"]["examples"]
        lanes = Lanes.restore(checkpoint.arrays, settings.online.micro_batch_capacity)
        return cls(deployment, contract, goal, expert, digest, learned, never, recent, lanes)

    def run(
        self,
        hour_us: int,
        served_slots: np.ndarray,
        served_us: np.ndarray,
        examples: LaneRows,
        kinds: pa.ChunkedArray,
        decision: Decision | None,
    ) -> tuple[HourScores, LearnedHour]:
        settings = self.deployment.dataset.settings.online
        evidence = self._evidence(examples)
        if decision == "left_out":
            examples, kinds = examples.taken(slice(0, 0)), kinds.slice(0, 0)
        begin, after_slice = self._open(hour_us, served_slots, served_us, examples)
        scores = online_hour(
            self.expert,
            served_slots,
            served_us,
            examples,
            settings.micro_batch_minutes * MINUTE_US,
            hour_us,
            begin,
            after_slice,
            lambda emitted: self._chosen(examples.taken(emitted), hour_us),
        )
        self.examples_learned += len(examples)
        controlled = self.expert if isinstance(self.expert, ControlledExpert) else None
        moves = [] if controlled is None else controlled.take_moves()
        lanes = self.lanes.reported(hour_us + HOUR_US)
        checkpoint = self._checkpoint(hour_us, served_slots[:CANARIES], lanes)
        linear = [
            np.zeros(0) if found is None else found.weights
            for found in map(self.expert.linear_weights, range(self.expert.width))
        ]
        arrays = checkpoint.arrays
        learned = LearnedHour(
            goal=self.goal,
            hour_us=hour_us,
            digest=checkpoint.digest,
            scored=len(served_us),
            learned={item["values"]: item["counts"] for item in kinds.value_counts().to_pylist()},
            lanes=lanes,
            touched_slots=len(arrays["slots"]) if "slots" in arrays else 0,
            nonzero_weights=[int(np.count_nonzero(weights)) for weights in linear],
            mean_probability=(
                float(np.mean(1 / (1 + np.exp(-scores.logits[:, 0]))))
                if len(served_us)
                else float("nan")
            ),
            judged=self._judged(hour_us, evidence, linear, decision),
            moves=moves,
            rates=[] if controlled is None else controlled.rates(),
        )
        return scores, learned

    def raise_rates(self, doublings: int) -> None:
        """Carry out an order; of a learner without rate control nobody would lower the rate."""
        if isinstance(self.expert, ControlledExpert):
            self.expert.raise_rates(doublings)

    def _chosen(self, emitted: LaneRows, hour_us: int) -> LaneRows:
        """Return what a slice learns of the examples emitted in it and of those that wait."""
        batch = self.lanes.next_batch(emitted)
        self.updated_hours[batch.slots[batch.teach].ravel()] = hour_us // HOUR_US
        return batch

    def settle(self, hour: LearnedHour) -> None:
        """Take the hour's checkpoint as the parent of the next, and its labels to compare with."""
        self.parent = hour.digest
        if hour.judged.verdict.state in COMPARED_WITH:
            self.recent.append(hour.judged)

    def drop_within_hour(self) -> None:
        """Remove the checkpoint inside the hour that is whole now."""
        if self.within_hour is not None:
            self.within_hour.drop()

    def _evidence(self, examples: Examples) -> Evidence:
        """Score a sample of the hour's examples by the model as it begins the hour.

        By configuration 0: labels that cannot be surprise all of them. What it expects of a stream
        with fake negatives is their share of positives, not the final one.
        """
        weights = examples.first_weights
        counting = np.flatnonzero(weights > 0)
        rows = counting[sampled(len(counting))]
        logits = self.expert.logits(examples.slots[rows])[:, 0]
        settings = self.deployment.dataset.settings.online.of_goal(self.goal)
        if settings.comes_late:
            logits = stream_log_odds(logits, settings.shown)
        return evidence_of(logits, examples.labels[rows], weights[rows], len(counting))

    def _judged(
        self,
        hour_us: int,
        evidence: Evidence,
        weights: list[np.ndarray],
        decision: Decision | None,
    ) -> JudgedHour:
        settings = self.deployment.dataset.settings.guard
        largest = max(float(np.abs(each).max(initial=0.0)) for each in weights)
        evidence = replace(evidence, largest_weight=largest)
        oldest_us = hour_us - settings.recent_hours * HOUR_US
        self.recent = [hour for hour in self.recent if hour.hour_us >= oldest_us]
        verdict = judge(evidence, [hour.evidence for hour in self.recent], settings)
        if decision is not None:
            verdict = Verdict(decision, verdict.reason)
        return JudgedHour(self.goal, hour_us, evidence, verdict)

    def _open(
        self, hour_us: int, served_slots: np.ndarray, served_us: np.ndarray, examples: Examples
    ) -> tuple[Position | None, Callable[[Position], None] | None]:
        """Return where to begin in the hour, the expert being there, and what keeps positions."""
        settings = self.deployment.dataset.settings.online
        every = settings.checkpoint_micro_batches
        if every is None:
            return None, None
        read = [served_slots, served_us, *(getattr(examples, f.name) for f in fields(examples))]
        within_hour = self.within_hour = WithinHour(
            self.deployment.checkpoints,
            self.goal,
            _identity(self.deployment, self.contract, self.goal)
            | {
                "hour_us": hour_us,
                "parent": self.parent,
                "micro_batch_minutes": settings.micro_batch_minutes,
                "micro_batch_capacity": settings.micro_batch_capacity,
                "input": digest_of(read),
            },
        )

        def keep(position: Position) -> None:
            if position.next_slice % every == 0:
                within_hour.keep(position, *self._state())

        resumed = within_hour.resume()
        if resumed is None:
            return None, keep
        self.expert = restore_expert(_of_expert(resumed.arrays), resumed.manifest)
        self.lanes = Lanes.restore(resumed.arrays, settings.micro_batch_capacity)
        if UPDATED in resumed.arrays:
            self.updated_hours[resumed.arrays["slots"]] = resumed.arrays[UPDATED]
        return resumed.position, keep

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays of all that the next slice needs, and the expert's manifest."""
        arrays, expert = self.expert.state()
        if "slots" in arrays:
            arrays[UPDATED] = self.updated_hours[arrays["slots"]]
        return arrays | self.lanes.state(), expert

    def _checkpoint(
        self, hour_us: int, canary_slots: np.ndarray, lanes: dict[str, Any] | None
    ) -> Checkpoint:
        arrays, expert = self._state()
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
                **_identity(self.deployment, self.contract, self.goal),
                "expert": expert,
                "lanes": lanes,
            },
        )


def _identity(deployment: Deployment, contract: FeatureContract, goal: str) -> dict[str, Any]:
    """Return what a chain of hours has in common, from its first to its last."""
    return {
        "contract": contract.digest,
        "learner": learner_of(deployment.dataset.settings.online.of_goal(goal)),
        "code_version": CODE_VERSION,
    }


def _read_chunk(
    warehouse: Warehouse, goals: list[str], start_us: int, end_us: int
) -> tuple[pa.Table, dict[str, pa.Table], dict[tuple[str, int], Decision]]:
    served_query = select("features.impressions_received")
    emitted_query = select("learners.emitted_examples")
    span = {"start_us": start_us, "end_us": end_us}
    with warehouse.reader() as connection:
        served = rows_of(connection, served_query, span)
        emitted = {
            goal: without_parts(
                rows_of(connection, emitted_query, span | {"goal": goal}),
                left_out_parts(connection, goal, start_us, end_us),
            )
            for goal in goals
        }
        decided = decisions(connection, start_us, end_us)
    return served, emitted, decided


def _examples(
    deployment: Deployment, contract: FeatureContract, goal: Goal, rows: pa.Table
) -> tuple[LaneRows, pa.ChunkedArray]:
    """Return what the configurations of a goal are shown of emitted rows, and the rows' kinds."""
    objectives = deployment.dataset.settings.online.of_goal(goal.name).configurations()
    shown = shown_rows(deployment, contract, goal, objectives, rows)
    examples = LaneRows(
        slots=shown.slots,
        labels=shown.labels,
        weights=shown.weights,
        emit_us=shown.emit_us,
        is_engagement=np.array(
            [kind in ENGAGEMENT_KINDS for kind in shown.kinds.to_pylist()], bool
        ),
        outcomes=shown.outcomes,
    )
    return examples, shown.kinds


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
            "logits": _lists(scores.logits),
            "model_hash": pa.repeat(model.parent or "", count),
            "micro_batch": pa.array(scores.micro_batch),
            "serving_us": part.column("received_us"),
        }
    )


def _move_rows(learned: list[LearnedHour]) -> pa.Table:
    """Lay the moves of the rates into the table's columns."""
    rows = [
        {
            "goal": hour.goal,
            "hour_us": hour.hour_us,
            "micro_batch": made.micro_batch,
            "configuration": made.move.configuration,
            "move": made.move.kind,
            "doublings": made.move.doublings,
            "evidence": json.dumps(made.move.evidence, sort_keys=True),
        }
        for hour in learned
        for made in hour.moves
    ]
    return arrow_rows(RATE_MOVES, rows)


def _lists(rows: np.ndarray) -> pa.ListArray:
    """Return rows of numbers, (n, K), as lists of K."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1)))


def _moments(rows: pa.Table, name: str) -> np.ndarray:
    return rows.column(name).to_numpy()


def _hour_rows(moments: np.ndarray, hour_us: int) -> slice:
    start, end = np.searchsorted(moments, [hour_us, hour_us + HOUR_US])
    return slice(int(start), int(end))


def _length(rows: slice) -> int:
    return rows.stop - rows.start
