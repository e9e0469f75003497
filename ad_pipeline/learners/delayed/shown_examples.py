"""What each learner is shown of the emitted examples: which rows, how heavy, and what they tell.

Several learners (the configurations of a grid, wide & deep) read one stream, each by the strategy
of its objective: a row that is none of its own has the weight 0 there, and a row that is nobody's
is left out. The weight of a row is a product: of its kind (a setting), of what it stands for
(``examples.training_examples.weight``), and of its age. What the copies of an impression are, and
when they are emitted, is the label join's to say; how a weight acts on a gradient, the learners'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.datasets import Goal
from ad_pipeline.examples.strategies import KINDS, EmittedRows, among, rows_of_strategy
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.settings import Objective, StrategyName

POSITIVE_KINDS = ("immediate_positive", "delayed_positive", "confirmed_positive")
"""Kinds that teach the label 1; all others teach 0."""

CONFIRMED_KINDS = ("confirmed_negative", "confirmed_positive")


@dataclass(frozen=True)
class ShownExamples:
    """The rows that at least one learner is shown.

    Attributes
    ----------
    places : ndarray of shape (m,), int64
        Of the rows, rising.
    labels : ndarray of shape (m,), uint8
    weights : ndarray of shape (m, K) or (m, 1), float64
        By objective; one column if all of them are shown the same.
    outcomes : ndarray of shape (m, N_OUTCOMES) or (m, 0), float64
        The kernel's columns; none if no objective is of labels that come late. Lateness is 0 and
        the real-negative probability 1 until a model says otherwise: rows as logged.
    """

    places: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    outcomes: np.ndarray


def shown_examples(
    rows: pa.Table,
    goal: Goal,
    objectives: Sequence[Objective],
    kind_weights: Mapping[str, float],
    recency_half_life_hours: float | None = None,
) -> ShownExamples:
    """Return what learners are shown of emitted rows.

    Parameters
    ----------
    rows : pyarrow.Table
        Columns of ``learners.emitted_examples``, n rows of one goal.
    goal : Goal
    objectives : sequence of Objective
        Of the learners, K.
    kind_weights : mapping of str to float
        ``settings.online.kind_weights``.
    recency_half_life_hours : float, optional

    Raises
    ------
    ValueError
        If a kind is unknown, or the settings give it no weight.
    """
    emitted = EmittedRows.of(rows)
    of_kind = weights_of_kinds(emitted.kinds, kind_weights)
    of_kind *= rows.column("example_weight").to_numpy()
    of_kind *= recency_weights(
        rows.column("emit_us").to_numpy(), emitted.serving_us, recency_half_life_hours
    )
    names: list[StrategyName] = [each.shown for each in objectives]
    masks = {name: rows_of_strategy(name, goal, emitted) for name in names}
    columns = names[:1] if len(masks) == 1 else names
    weights = np.column_stack([np.where(masks[name], of_kind, 0.0) for name in columns])
    places = np.flatnonzero((weights > 0).any(axis=1))
    kinds = emitted.kinds[places]
    outcomes = np.zeros((len(places), 0))
    if any(each.comes_late for each in objectives):
        outcomes = np.zeros((len(places), kernel.N_OUTCOMES))
        outcomes[:, kernel.LATE] = among(kinds, ("delayed_positive",))
        outcomes[:, kernel.CONFIRMED] = among(kinds, CONFIRMED_KINDS)
        outcomes[:, kernel.REAL_NEGATIVE] = 1.0
        outcomes[:, kernel.WAITED] = goal.observation_us / DAY_US
        arrived_us, anchor_us = emitted.arrived_us[places], emitted.anchor_us[places]
        delays = np.where(arrived_us >= 0, arrived_us - anchor_us, 0)
        outcomes[:, kernel.DELAY] = delays / DAY_US
    labels = among(kinds, POSITIVE_KINDS).astype(np.uint8)
    return ShownExamples(places, labels, weights[places], outcomes)


def weights_of_kinds(kinds: np.ndarray, kind_weights: Mapping[str, float]) -> np.ndarray:
    """Return the setting's weight of each row's kind, float64 (n,).

    Parameters
    ----------
    kinds : ndarray of shape (n,), int8
        Places in :data:`ad_pipeline.examples.strategies.KINDS`.
    kind_weights : mapping of str to float

    Raises
    ------
    ValueError
        If the settings give a kind that is there no weight.
    """
    for name in (KINDS[place] for place in np.unique(kinds)):
        if name not in kind_weights:
            raise ValueError(f"settings.online.kind_weights has no {name!r}; write a weight, or 0")
    return np.array([kind_weights.get(name, 0.0) for name in KINDS])[kinds]


def recency_weights(
    emit_us: np.ndarray, serving_us: np.ndarray, half_life_hours: float | None
) -> np.ndarray:
    r"""Return the weight of each example by its age when it was emitted.

    .. math:: 2^{-(\text{emit} - \text{serving}) / \text{half-life}}

    An example that comes long after its impression speaks of a market that was. Late positives then
    weigh less than the negatives that they correct, so predictions fall below the observed rate by
    the weight that is lost: it buys freshness where the delay is short beside the half-life, and a
    calibration on matured rows has to follow.

    Parameters
    ----------
    emit_us : ndarray of shape (n,), int64
        When a learner may see the example, microseconds since the epoch.
    serving_us : ndarray of shape (n,), int64
        When the log had its impression, microseconds since the epoch.
    half_life_hours : float or None
        Hours; None: every weight is 1.

    Returns
    -------
    ndarray of shape (n,), float64
        In (0, 1].

    Raises
    ------
    ValueError
        If the half-life is not positive, or an example was emitted before its impression.
    """
    if half_life_hours is None:
        return np.ones(len(emit_us))
    if not half_life_hours > 0:
        raise ValueError(f"the half-life is {half_life_hours} h; write a positive number")
    age_us = np.asarray(emit_us, np.int64) - np.asarray(serving_us, np.int64)
    if (age_us < 0).any():
        raise ValueError(f"{int((age_us < 0).sum())} examples were emitted before their impression")
    return np.exp2(-age_us / (half_life_hours * HOUR_US))
