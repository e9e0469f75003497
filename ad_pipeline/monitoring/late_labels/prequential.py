"""Matured prequential scores: an anchor is scored before anything of it is learnt, and judged late.

Log time runs in blocks. A block's anchors are scored by what was learnt of the examples emitted
before it (less a publication lag), then its examples are learnt; an anchor is judged by its final
label, and the anchors that are judged are the same for every arm. All arms go on from one
checkpoint: a learner shown the labels known when the stream begins. Test, then train, is no valid
protocol where labels are late (Grzenda, Gomes and Bifet, Delayed labelling evaluation for data
streams, Data Mining and Knowledge Discovery 34, 2020).

Two ways to begin. *matured*: the checkpoint has learnt what matured before the split, so that a gap
of window plus lateness lies between its anchors and the stream's, and what was emitted of the gap
is replayed first. *censored*, for windows too long for that: it has learnt every anchor with its
label as it was known at the split. Neither has seen a label from behind the split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.examples.strategies import among, rows_of_strategy
from ad_pipeline.learners.delayed.delay_models import (
    LATENESS,
    NEEDED_BY,
    REAL_NEGATIVE,
    MaturedLabels,
    TooFewLabels,
    fit_delay_models,
)
from ad_pipeline.learners.delayed.shown_examples import CONFIRMED_KINDS, POSITIVE_KINDS
from ad_pipeline.learners.ensemble.calibration import MINIMUM_POSITIVES, fit_kind
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.monitoring.late_labels.arms import Arm
from ad_pipeline.monitoring.late_labels.stream import LateStream
from ad_pipeline.settings import DelaySettings

DAILY = DelaySettings()

PRIOR_ANCHORS = 50.0
"""Of the overall rate, mixed into the base rate of each group."""


class BenchLearner(Protocol):
    """A learner of K arms side by side."""

    def learn(
        self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray, outcomes: np.ndarray
    ) -> Any:
        """Learn rows in order: labels 0 or 1 (n,), weights float64 (n,), the kernel's outcomes."""
        ...

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Return log odds, float64 (n, K), changing nothing."""
        ...


class Learners(Protocol):
    """Makes learners of one family, all with the same features and the same rates."""

    @property
    def name(self) -> str:
        """Of the family."""
        ...

    @property
    def side_by_side(self) -> int:
        """Arms that one learner takes."""
        ...

    def fresh(self, seed: int) -> BenchLearner:
        """Return an untrained learner with log loss."""
        ...

    def continued(self, pre_trained: BenchLearner, arms: Sequence[Arm], seed: int) -> BenchLearner:
        """Return a learner of the arms' objectives and rates, side by side.

        It goes on from a state, which stays as it is.
        """
        ...


@dataclass(frozen=True)
class Replay:
    """How a stream is replayed.

    Attributes
    ----------
    split_us : int
        Where the stream begins, microseconds.
    beginning : {'matured', 'censored'}
    block_us : int
        Microseconds between two published states.
    lag_us : int
        Microseconds until what was learnt is published.
    passes : int
        Over the rows before the split.
    kept_share : float
        Of the anchors that a seed learns, drawn by hash: seeds differ by what they leave out.
    delays : DelaySettings
        When models of delay are fitted, and on what.
    final_after_us : int or None
        Age at which models of delay take a label for final; None: window and lateness.
    judged_until_us : int or None
        Only labels that were final by then judge: what a choice made at that moment may read.
    """

    split_us: int
    beginning: Literal["matured", "censored"] = "matured"
    block_us: int = HOUR_US
    lag_us: int = 0
    passes: int = 1
    kept_share: float = 0.9
    delays: DelaySettings = DAILY
    final_after_us: int | None = None
    judged_until_us: int | None = None


@dataclass(frozen=True)
class ArmScores:
    """What an arm said.

    Attributes
    ----------
    log_odds : ndarray of shape (s,), float64
        Of the anchors of :func:`judged_anchors`, at serving time.
    gradient_examples : int
        Rows learnt from the split on.
    """

    log_odds: np.ndarray
    gradient_examples: int


def judged_anchors(stream: LateStream, replay: Replay) -> np.ndarray:
    """Return the places of the anchors that every arm is judged by, rising."""
    judged = (stream.served_us >= replay.split_us) & (stream.labels >= 0)
    if replay.judged_until_us is not None:
        judged &= stream.matured_us < replay.judged_until_us
    return np.flatnonzero(judged)


def kept_anchors(stream: LateStream, replay: Replay, seed: int) -> np.ndarray:
    """Return which anchors a seed learns, bool (n,): a window of their draws, moved by the seed."""
    moved = (stream.draws + seed * 0.6180339887498949) % 1.0
    return moved < replay.kept_share


def known_at_split(stream: LateStream, replay: Replay) -> tuple[np.ndarray, np.ndarray]:
    """Return places and labels, as known at the split, of the anchors to train beforehand on."""
    if replay.beginning == "matured":
        places = np.flatnonzero((stream.matured_us >= 0) & (stream.matured_us < replay.split_us))
        return places, stream.labels[places].astype(np.float64)
    places = np.flatnonzero(stream.served_us < replay.split_us)
    arrived_us = stream.arrived_us[places]
    return places, ((arrived_us >= 0) & (arrived_us < replay.split_us)).astype(np.float64)


def replayed_rows(stream: LateStream, replay: Replay) -> np.ndarray:
    """Return which emitted rows the stream's arms may be shown, bool (m,)."""
    if replay.beginning == "censored":
        return stream.emit_us >= replay.split_us
    matured_us = stream.matured_us[stream.anchor]
    return (matured_us < 0) | (matured_us >= replay.split_us)


def pre_train(stream: LateStream, replay: Replay, learners: Learners, seed: int) -> BenchLearner:
    """Return a learner that has seen what was known at the split, in order of serving."""
    learner = learners.fresh(seed)
    places, labels = known_at_split(stream, replay)
    kept = kept_anchors(stream, replay, seed)[places]
    places, labels = places[kept], labels[kept]
    ones = np.ones(len(places))
    for _ in range(replay.passes):
        learner.learn(stream.slots[places], labels, ones, np.zeros((len(places), 0)))
    return learner


def told_outcomes(stream: LateStream, replay: Replay) -> np.ndarray:
    """Return what every emitted row tells beside its label, float64 (m, N_OUTCOMES).

    Lateness and real-negative probabilities come from models fitted at the split and then every
    ``refit_every_hours``, each on labels that were final by then; before there are enough of them
    rows are as logged.
    """
    rows = stream.emitted
    outcomes = np.zeros((len(stream.emit_us), kernel.N_OUTCOMES))
    outcomes[:, kernel.LATE] = among(rows.kinds, ("delayed_positive",))
    outcomes[:, kernel.CONFIRMED] = among(rows.kinds, CONFIRMED_KINDS)
    outcomes[:, kernel.REAL_NEGATIVE] = 1.0
    outcomes[:, kernel.WAITED] = stream.goal.observation_us / DAY_US
    outcomes[:, kernel.DELAY] = (
        np.where(rows.arrived_us >= 0, rows.arrived_us - rows.anchor_us, 0) / DAY_US
    )
    every_us = replay.delays.refit_every_hours * HOUR_US
    for fitted_us in range(replay.split_us, stream.end_us, every_us):
        first, last = np.searchsorted(stream.emit_us, [fitted_us, fitted_us + every_us])
        if fitted_us == replay.split_us:
            first = 0  # what was emitted of the gap is replayed at the split
        try:
            models, _ = fit_delay_models(_final_labels(stream, replay, fitted_us), stream.slot_bits)
        except TooFewLabels:
            continue
        said = models.probabilities(stream.slots[stream.anchor[first:last]])
        outcomes[first:last, kernel.LATENESS] = said[LATENESS]
        outcomes[first:last, kernel.REAL_NEGATIVE] = said[REAL_NEGATIVE]
    return outcomes


def _final_labels(stream: LateStream, replay: Replay, now_us: int) -> MaturedLabels:
    final_us = replay.final_after_us or stream.horizon_us
    since_us = now_us - final_us - replay.delays.lookback_hours * HOUR_US
    places = np.flatnonzero((stream.anchor_us + final_us < now_us) & (stream.anchor_us >= since_us))
    arrived_us = stream.arrived_us[places]
    positive = (arrived_us >= 0) & (arrived_us <= stream.anchor_us[places] + final_us)
    window_us = np.maximum(
        stream.anchor_us[places] + stream.goal.observation_us, stream.served_us[places]
    )
    late = positive & (arrived_us > window_us)
    return MaturedLabels(stream.slots[places], positive, late, np.ones(len(places)))


def replay_arms(
    stream: LateStream,
    replay: Replay,
    learners: Learners,
    arms: Sequence[Arm],
    seed: int,
    pre_trained: BenchLearner,
    outcomes: np.ndarray,
) -> Iterator[tuple[Arm, ArmScores]]:
    """Replay arms that learn; those that are shown the same rows run side by side.

    Parameters
    ----------
    stream : LateStream
    replay : Replay
    learners : Learners
    arms : sequence of Arm
        That learn, and frozen ones.
    seed : int
    pre_trained : BenchLearner
        From :func:`pre_train` with the same seed.
    outcomes : ndarray of shape (m, N_OUTCOMES), float64
        From :func:`told_outcomes`.

    Yields
    ------
    tuple of Arm and ArmScores
    """
    kept = kept_anchors(stream, replay, seed)
    for group in _groups(arms, learners.side_by_side):
        rows = _shown_rows(stream, replay, group[0], kept, outcomes)
        learner = pre_trained
        if group[0].role != "frozen":
            learner = learners.continued(pre_trained, group, seed)
        scores = _scores(stream, replay, learner, rows)
        for place, arm in enumerate(group):
            yield arm, ArmScores(scores[:, place], len(rows.labels))


@dataclass(frozen=True)
class _Rows:
    """Rows in order of emission."""

    places: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    outcomes: np.ndarray
    at_us: np.ndarray


def _groups(arms: Sequence[Arm], most: int) -> Iterator[list[Arm]]:
    """Yield arms that are shown the same rows, at most so many together."""
    shown: dict[tuple[object, ...], list[Arm]] = {}
    for arm in arms:
        key = (arm.role, arm.objective.shown, arm.wait_us)
        shown.setdefault(key, []).append(arm)
    for group in shown.values():
        for first in range(0, len(group), most):
            yield group[first : first + most]


def shown_from(stream: LateStream, replay: Replay, arm: Arm) -> np.ndarray:
    """Return what an arm is shown from the split on, rising: emitted rows, or anchors of an oracle.

    Parameters
    ----------
    stream : LateStream
    replay : Replay
    arm : Arm
        That learns.
    """
    if arm.role == "oracle":
        known = stream.labels >= 0
        if replay.beginning == "censored":
            return np.flatnonzero(known & (stream.served_us >= replay.split_us))
        return np.flatnonzero(known & (stream.matured_us >= replay.split_us))
    goal = stream.goal
    if arm.wait_us is not None:
        goal = goal.model_copy(update={"observation_us": arm.wait_us})
    shown = rows_of_strategy(arm.objective.shown, goal, stream.emitted)
    shown &= ~among(stream.emitted.kinds, ("retraction",))
    return np.flatnonzero(shown & replayed_rows(stream, replay))


def _shown_rows(
    stream: LateStream, replay: Replay, arm: Arm, kept: np.ndarray, outcomes: np.ndarray
) -> _Rows:
    if not arm.learns:
        nothing = np.zeros(0, dtype=np.int64)
        none = np.zeros(0)
        return _Rows(nothing, none, none, np.zeros((0, kernel.N_OUTCOMES)), nothing)
    rows = shown_from(stream, replay, arm)
    if arm.role == "oracle":
        places = rows[kept[rows]]
        labels = stream.labels[places].astype(np.float64)
        told = np.zeros((len(places), kernel.N_OUTCOMES))
        return _Rows(places, labels, np.ones(len(places)), told, stream.served_us[places])
    rows = rows[kept[stream.anchor[rows]]]
    labels = among(stream.emitted.kinds[rows], POSITIVE_KINDS).astype(np.float64)
    return _Rows(
        stream.anchor[rows], labels, stream.weights[rows], outcomes[rows], stream.emit_us[rows]
    )


def _scores(stream: LateStream, replay: Replay, learner: BenchLearner, rows: _Rows) -> np.ndarray:
    """Return log odds of the judged anchors, float64 (s, K), learning the rows on the way."""
    judged = judged_anchors(stream, replay)
    served_us = stream.served_us[judged]
    found: list[np.ndarray] = []
    learnt = 0
    last_us = int(served_us[-1]) if len(judged) else replay.split_us
    for block_us in range(replay.split_us, last_us + 1, replay.block_us):
        emitted = int(np.searchsorted(rows.at_us, block_us - replay.lag_us))
        if emitted > learnt:
            new = slice(learnt, emitted)
            learner.learn(
                stream.slots[rows.places[new]],
                rows.labels[new],
                rows.weights[new],
                rows.outcomes[new],
            )
            learnt = emitted
        first, last = np.searchsorted(served_us, [block_us, block_us + replay.block_us])
        found.append(learner.logits(stream.slots[judged[first:last]]))
    return np.concatenate(found) if found else np.zeros((0, 1))


def base_rate_scores(stream: LateStream, replay: Replay) -> np.ndarray:
    """Return log odds of each judged anchor's group: the rate of labels matured by its block."""
    judged = judged_anchors(stream, replay)
    _, group = np.unique(stream.groups, return_inverse=True)
    places, labels = known_at_split(stream, replay)
    count = int(group.max(initial=-1)) + 1
    seen = np.bincount(group[places], minlength=count).astype(np.float64)
    hits = np.bincount(group[places], weights=labels, minlength=count)
    known = np.zeros(len(stream), dtype=bool)
    known[places] = True
    maturing = np.flatnonzero((stream.matured_us >= replay.split_us) & ~known)
    maturing = maturing[np.argsort(stream.matured_us[maturing], kind="stable")]
    served_us, matured_us = stream.served_us[judged], stream.matured_us[maturing]
    rates = np.empty(len(judged))
    counted = 0
    last_us = int(served_us[-1]) if len(judged) else replay.split_us
    for block_us in range(replay.split_us, last_us + 1, replay.block_us):
        until = int(np.searchsorted(matured_us, block_us))
        new = maturing[counted:until]
        np.add.at(seen, group[new], 1.0)
        np.add.at(hits, group[new], stream.labels[new])
        counted = until
        first, last = np.searchsorted(served_us, [block_us, block_us + replay.block_us])
        overall = (hits.sum() + 1.0) / (seen.sum() + 2.0)
        of_group = (hits + PRIOR_ANCHORS * overall) / (seen + PRIOR_ANCHORS)
        rates[first:last] = of_group[group[judged[first:last]]]
    return np.log(rates) - np.log1p(-rates)


def recalibrated_scores(stream: LateStream, replay: Replay, log_odds: np.ndarray) -> np.ndarray:
    """Return an arm's log odds behind a line fitted to the labels matured before each refit.

    Parameters
    ----------
    stream : LateStream
    replay : Replay
    log_odds : ndarray of shape (s,), float64
        Of the judged anchors.
    """
    judged = judged_anchors(stream, replay)
    served_us, matured_us = stream.served_us[judged], stream.matured_us[judged]
    labels = stream.labels[judged]
    every_us = replay.delays.refit_every_hours * HOUR_US
    lookback_us = replay.delays.lookback_hours * HOUR_US
    found = log_odds.copy()
    for fitted_us in range(replay.split_us, stream.end_us, every_us):
        known = (matured_us < fitted_us) & (matured_us >= fitted_us - lookback_us)
        positives = int(labels[known].sum())
        if min(positives, int(known.sum()) - positives) < MINIMUM_POSITIVES:
            continue
        line = fit_kind("platt", log_odds[known], labels[known])
        first, last = np.searchsorted(served_us, [fitted_us, fitted_us + every_us])
        found[first:last] = line.apply(log_odds[first:last])
    return found


def rests_on_models(arms: Sequence[Arm]) -> bool:
    """Tell whether any arm's loss reads a model of delay."""
    return any(arm.objective.loss in NEEDED_BY for arm in arms)
