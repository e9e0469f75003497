"""The wide & deep expert over log hours: when it is continued, on what, and what it said.

A continuation after hour H learns all examples that were emitted since the one before, up to the
end of H; its model is in force from hour H + 1 until the next one. So an hour is scored before any
of it is learnt, and the model after an hour is a function of the log up to there and of the
settings: a run that begins anywhere first catches up on hours that have no model, from the nearest
one that has, and ends in the same bytes. Learning itself is :mod:`.wide_deep`. Without JAX nothing
is learnt, which each hour says; scoring needs none.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import (
    CorruptCheckpoint,
    MissingCheckpoint,
    is_pointed,
    point,
    read_checkpoint,
    resolve,
    unswept,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US, hour_key, hour_of, hours_between
from ad_pipeline.datasets import Deployment, Goal
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.learners import scored_hours
from ad_pipeline.learners.deep.deep_scores import logits
from ad_pipeline.learners.deep.embedding_table import EmbeddingTable
from ad_pipeline.learners.deep.exported_deep import ExportedDeep, slots_of_fields
from ad_pipeline.learners.deep.wide_deep import DeepExtraMissing, WideDeep
from ad_pipeline.learners.delayed.shown_hours import ShownRows, encoded_slots, shown_rows
from ad_pipeline.learners.online.online_checkpoints import learnt_hours, must_continue
from ad_pipeline.learners.online.quarantine import (
    Decision,
    decisions,
    left_out_parts,
    without_parts,
)
from ad_pipeline.learners.scored_hours import Score, ScoredHour
from ad_pipeline.learners.tables import DEEP_PREDICTIONS, TABLES
from ad_pipeline.settings import DeepSettings
from ad_pipeline.warehouse import Table, Warehouse, rows_of, select
from ad_pipeline.xla import is_installed

NAME = "deep"
KIND = "learners.deep_model"
CODE_VERSION = 1
"""Raise when the same log and settings would give other weights."""

CHUNK_HOURS = 24
CANARIES = 8

NOT_ASKED_FOR = "settings.deep is null: there is no wide & deep expert"


@dataclass(frozen=True)
class ContinuedHour:
    """Which model of a goal is in force after an hour.

    Attributes
    ----------
    goal : str
    hour_us : int
        Start of the hour.
    digest : str or None
        Its checkpoint; None while there is no model.
    cause : str
        Why it was continued in this hour, or "unchanged", or why there is none.
    learnt : int
        Examples that this hour's continuation learnt.
    """

    goal: str
    hour_us: int
    digest: str | None
    cause: str
    learnt: int


def pointer(goal: str, hour_us: int) -> str:
    """Return the name of the model that is in force after an hour."""
    return f"{KIND}/{goal}/{hour_key(hour_us)}"


def digest_after(deployment: Deployment, goal: str, hour_us: int) -> str | None:
    """Return the checkpoint of the model in force after an hour.

    None if there is none yet, and always if the settings have no wide & deep expert.
    """
    if deployment.dataset.settings.deep is None:
        return None
    name = pointer(goal, hour_us)
    if not is_pointed(deployment.checkpoints, name):
        return None
    return resolve(deployment.checkpoints, name)


def missing_extra(deployment: Deployment) -> str:
    """Return what keeps an expert that the settings ask for from learning; "" if nothing does."""
    if deployment.dataset.settings.deep is None or is_installed():
        return ""
    return str(DeepExtraMissing())


@dataclass(frozen=True)
class TrainedDeep:
    """A model as its checkpoint has it, which scores by the learner's own table; without JAX.

    Attributes
    ----------
    table : EmbeddingTable
    exported : ExportedDeep
        Of the same checkpoint.
    """

    table: EmbeddingTable
    exported: ExportedDeep

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return log odds, float64 (n,), of rows, uint32 (n, F): those of the learner."""
        own = self.exported
        checked = slots_of_fields(slots, own.fields, own.slot_bits)
        of_table = checked >> np.uint32(own.slot_bits - own.bits)
        return logits(self.table.gather, of_table, own.layers, own.loss, own.horizon_days)


def open_deep(deployment: Deployment, digest: str) -> TrainedDeep:
    """Read a model, every byte verified, and prove it by its canaries; JAX is not needed.

    Raises
    ------
    CorruptCheckpoint
        If bytes differ from the manifest, or a canary row scores otherwise than in the learner.
    """
    checkpoint = read_checkpoint(deployment.checkpoints, digest)
    exported = ExportedDeep.from_state(checkpoint.arrays, checkpoint.manifest["expert"])
    scored = exported.logits(np.asarray(checkpoint.arrays["canary_slots"]))
    if not np.array_equal(scored, checkpoint.arrays["canary_logits"]):
        raise CorruptCheckpoint(
            f"{checkpoint.path}: canary rows score {scored.tolist()}, the checkpoint says "
            f"{checkpoint.arrays['canary_logits'].tolist()}; it was written by other code"
        )
    settings = DeepSettings(**checkpoint.manifest["expert"]["settings"])
    table = EmbeddingTable(
        settings.bits, settings.embedding, settings.embedding_rate, exported.unlearnt
    )
    table.fill(checkpoint.arrays)
    return TrainedDeep(table, exported)


def continue_hours(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> Iterator[ContinuedHour]:
    """Continue the models where that is due, and point every hour at the one in force after it.

    Parameters
    ----------
    warehouse : Warehouse
        With the training examples of the hours, and of those before that have no model.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    ContinuedHour
        One per hour and goal, in order, after its checkpoint is durable.

    Raises
    ------
    OtherLearner
        If the checkpoint to continue from is of other features, parameters or code.
    """
    dataset = deployment.dataset
    warehouse.create(TABLES)
    settings = dataset.settings.deep
    idle = NOT_ASKED_FOR if settings is None else missing_extra(deployment)
    if settings is None or idle:
        for hour_us in hours_between(start_us, end_us):
            for goal in dataset.goals_in_chain_order():
                yield ContinuedHour(goal.name, hour_us, None, idle, 0)
        return
    contract = FeatureContract.from_dataset(dataset)
    models = [
        _Model.before(deployment, contract, goal, settings, start_us)
        for goal in dataset.goals_in_chain_order()
    ]
    begin_us = min(start_us, *(model.learnt_until_us for model in models))
    for chunk_us in range(begin_us, end_us, CHUNK_HOURS * HOUR_US):
        chunk_end_us = min(chunk_us + CHUNK_HOURS * HOUR_US, end_us)
        emitted, decided = _read_chunk(warehouse, models, chunk_us, chunk_end_us)
        for hour_us in hours_between(chunk_us, chunk_end_us):
            for model, rows in zip(models, emitted, strict=True):
                done = model.run(hour_us, rows, decided.get((model.goal.name, hour_us)))
                if hour_us >= start_us:
                    yield done


def score_hours(
    warehouse: Warehouse, deployment: Deployment, start_us: int, end_us: int
) -> Iterator[ScoredHour]:
    """Score every impression by the model in force before the hour in which it was served.

    Parameters
    ----------
    warehouse : Warehouse
        With the events of the hours.
    deployment : Deployment
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    ScoredHour
        One per hour, after its rows are in the warehouse.
    """
    expert = _ScoredByDeep(deployment, FeatureContract.from_dataset(deployment.dataset))
    return scored_hours.score_hours(warehouse, deployment, expert, start_us, end_us)


@dataclass
class _Model:
    """One goal's learner on its way through a range of hours.

    ``pending`` are the rows emitted since ``learnt_until_us`` that the next continuation learns.
    """

    deployment: Deployment
    contract: FeatureContract
    goal: Goal
    settings: DeepSettings
    learner: WideDeep
    digest: str | None
    learnt_until_us: int
    pending: list[ShownRows] = field(default_factory=list)

    @classmethod
    def before(
        cls,
        deployment: Deployment,
        contract: FeatureContract,
        goal: Goal,
        settings: DeepSettings,
        start_us: int,
    ) -> "_Model":
        """Restore the newest model of the hours before ``start_us``; else a new one."""
        own = settings.of_goal(goal.name)
        earlier = [us for us in learnt_hours(deployment, goal.name, KIND) if us < start_us]
        if not earlier:
            fields, seed = len(contract.token_names), deployment.dataset.settings.seed
            learner = WideDeep(own, fields, contract.bits, goal.horizon_days, seed)
            first_us = hour_of(deployment.dataset.start_us)
            return cls(deployment, contract, goal, own, learner, None, first_us)
        digest = resolve(deployment.checkpoints, pointer(goal.name, earlier[-1]))
        checkpoint = read_checkpoint(deployment.checkpoints, digest)
        manifest = checkpoint.manifest
        identity = _identity(contract, own)
        must_continue(manifest, goal.name, identity, earlier[-1] + HOUR_US, NAME)
        learner = WideDeep.restore(checkpoint.arrays, manifest["expert"])
        learner.settings = own  # what may differ is not the learner's: see _identity
        position = manifest["stream_position"]
        return cls(deployment, contract, goal, own, learner, digest, position["emitted_before_us"])

    def run(self, hour_us: int, rows: ShownRows, decision: Decision | None) -> ContinuedHour:
        """Take in an hour of a chunk's rows, and learn what is pending where that is due."""
        learnt, cause = 0, "unchanged" if self.digest else "no model yet"
        if hour_us < self.learnt_until_us:  # read for another goal
            return ContinuedHour(self.goal.name, hour_us, self.digest, cause, learnt)
        first, last = np.searchsorted(rows.emit_us, [hour_us, hour_us + HOUR_US])
        if decision != "left_out" and last > first:
            self.pending.append(_taken(rows, slice(int(first), int(last))))
        if (hour_us + HOUR_US) % (self.settings.every_hours * HOUR_US) == 0:
            learnt = sum(len(part.labels) for part in self.pending)
            cause = "continued" if learnt else f"{cause}: no examples"
        with unswept(self.deployment.checkpoints):
            if learnt:
                self.digest = self._continued(hour_us)
            if self.digest is not None:
                name = pointer(self.goal.name, hour_us)
                point(self.deployment.checkpoints, name, self.digest)
        return ContinuedHour(self.goal.name, hour_us, self.digest, cause, learnt)

    def _continued(self, hour_us: int) -> str:
        """Learn what is pending, in one piece, and return the checkpoint that it leaves."""
        slots, labels, weights, outcomes = (
            np.concatenate([getattr(part, name) for part in self.pending])
            for name in ("slots", "labels", "weights", "outcomes")
        )
        self.learner.learn(slots, labels, weights[:, 0], outcomes)
        self.pending.clear()
        self.learnt_until_us = hour_us + HOUR_US
        arrays, expert = self.learner.state()
        canaries = slots[:CANARIES]
        return write_checkpoint(
            self.deployment.checkpoints,
            KIND,
            arrays | {"canary_slots": canaries, "canary_logits": self.learner.logits(canaries)},
            {
                "goal": self.goal.name,
                "hour_us": hour_us,
                "parent": self.digest,
                "stream_position": {
                    "emitted_before_us": self.learnt_until_us,
                    "examples": self.learner.rows,
                },
                "label_watermark_us": self.learnt_until_us,
                "settings": self.deployment.dataset.settings.digest(),
                **_identity(self.contract, self.settings),
                "expert": expert,
            },
        ).digest


@dataclass
class _ScoredByDeep:
    deployment: Deployment
    contract: FeatureContract
    name: str = NAME
    table: Table = DEEP_PREDICTIONS
    opened: dict[str, tuple[str, ExportedDeep]] = field(default_factory=dict)

    def digest_after(self, goal: str, hour_us: int) -> str | None:
        digest = digest_after(self.deployment, goal, hour_us)
        if digest is not None or self.deployment.dataset.settings.deep is None:
            return digest
        earlier = [us for us in learnt_hours(self.deployment, goal, KIND) if us < hour_us]
        if earlier and not missing_extra(self.deployment):
            # Or the scores that the hours have would be replaced by none.
            raise MissingCheckpoint(
                f"the deep model of {goal} after {hour_key(hour_us)} is not kept any more "
                f"(settings.checkpoints); materialize learners/deep_model from "
                f"{hour_key(earlier[-1] + HOUR_US)} with learners/deep_predictions"
            )
        return None

    def prepared(self, served: pa.Table, start_us: int, end_us: int) -> Score:
        slots = encoded_slots(self.deployment, self.contract, served)

        def score(goal: str, digest: str, rows: slice) -> np.ndarray:
            # One a goal: each hour may have another, as large as what has been learnt.
            if goal not in self.opened or self.opened[goal][0] != digest:
                self.opened[goal] = digest, open_deep(self.deployment, digest).exported
            return self.opened[goal][1].logits(slots[rows])

        return score


def _identity(contract: FeatureContract, settings: DeepSettings) -> dict[str, Any]:
    """Return what a chain of continuations has in common; how often they come is not in it."""
    return {
        "contract": contract.digest,
        "learner": settings.model_dump(mode="json", exclude={"every_hours", "by_goal"}),
        "code_version": CODE_VERSION,
    }


def _read_chunk(
    warehouse: Warehouse, models: list[_Model], start_us: int, end_us: int
) -> tuple[list[ShownRows], dict[tuple[str, int], Decision]]:
    query, span = select("learners.emitted_examples"), {"start_us": start_us, "end_us": end_us}
    with warehouse.reader() as connection:
        emitted = [
            without_parts(
                rows_of(connection, query, span | {"goal": model.goal.name}),
                left_out_parts(connection, model.goal.name, start_us, end_us),
            )
            for model in models
        ]
        decided = decisions(connection, start_us, end_us)
    shown = [
        shown_rows(model.deployment, model.contract, model.goal, [model.settings], rows)
        for model, rows in zip(models, emitted, strict=True)
    ]
    return shown, decided


def _taken(rows: ShownRows, places: slice) -> ShownRows:
    return ShownRows(
        slots=rows.slots[places],
        labels=rows.labels[places],
        weights=rows.weights[places],
        outcomes=rows.outcomes[places],
        emit_us=rows.emit_us[places],
        kinds=rows.kinds.slice(places.start, places.stop - places.start),
    )
