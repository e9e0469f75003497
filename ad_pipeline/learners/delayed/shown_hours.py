"""The examples that learners are shown of some log hours, with their slots and what was foretold.

What turns rows of the warehouse into arrays that a learner takes, once for the online learner and
for wide & deep: they read one stream. Which rows are whose, and how heavy, is
:mod:`.shown_examples`; what becomes of them belongs to each learner.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ad_pipeline.datasets import Deployment, Goal
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.dropout import read_to_learn
from ad_pipeline.features.encoding import FeatureContract, slots
from ad_pipeline.learners.delayed.delay_model_hours import foretell, rest_on_models
from ad_pipeline.learners.delayed.shown_examples import shown_examples
from ad_pipeline.settings import Objective


@dataclass(frozen=True)
class ShownRows:
    """Emitted rows that at least one of some learners is shown, in the order of the log.

    Attributes
    ----------
    slots : ndarray of shape (n, F), uint32
    labels : ndarray of shape (n,), uint8
    weights : ndarray of shape (n, K) or (n, 1), float64
        By objective; one column if all of them are shown the same.
    outcomes : ndarray of shape (n, N_OUTCOMES) or (n, 0), float64
        With what the models of delay in force said.
    emit_us : ndarray of shape (n,), int64
        Rising, microseconds.
    kinds : ChunkedArray of n strings
    """

    slots: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    outcomes: np.ndarray
    emit_us: np.ndarray
    kinds: pa.ChunkedArray


def encoded_slots(deployment: Deployment, contract: FeatureContract, rows: pa.Table) -> np.ndarray:
    """Return the slots of impressions' rows as they were served, uint32 (n, F)."""
    read, looked_up = read_as_served(deployment, contract, rows)
    return slots(contract, read, looked_up)


def shown_rows(
    deployment: Deployment,
    contract: FeatureContract,
    goal: Goal,
    objectives: Sequence[Objective],
    rows: pa.Table,
) -> ShownRows:
    """Return what learners with some objectives are shown of emitted rows.

    Parameters
    ----------
    deployment : Deployment
    contract : FeatureContract
    goal : Goal
    objectives : sequence of Objective
        K of them.
    rows : pyarrow.Table
        Columns of ``learners.emitted_examples``, of this goal, in its order.

    Raises
    ------
    ValueError
        If a kind is unknown, or the settings give it no weight.
    """
    settings = deployment.dataset.settings.online
    shown = shown_examples(
        rows, goal, objectives, settings.kind_weights, settings.recency_half_life_hours
    )
    rows = rows.take(pa.array(shown.places))
    emit_us = rows.column("emit_us").to_numpy()
    learnt = slots(contract, *read_to_learn(deployment, contract, rows))
    if rest_on_models(objectives):
        # Models of delay were fitted to impressions that lost nothing.
        drops = deployment.dataset.settings.feature_dropout is not None
        whole = encoded_slots(deployment, contract, rows) if drops else learnt
        foretell(deployment, goal.name, whole, emit_us, shown.outcomes)
    return ShownRows(
        slots=learnt,
        labels=shown.labels,
        weights=shown.weights,
        outcomes=shown.outcomes,
        emit_us=emit_us,
        kinds=rows.column("kind"),
    )
