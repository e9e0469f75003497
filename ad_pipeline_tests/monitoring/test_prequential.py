"""Nothing of an anchor is learnt before it is scored, and all arms are judged by the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from ad_pipeline.clocks import HOUR_US, MINUTE_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.monitoring.late_labels.arms import (
    BASE_RATE,
    ORACLE,
    PRE_TRAINED,
    VANILLA,
    VANILLA_IMMEDIATE,
    Arm,
    arms_named,
    arms_of,
    waiting_arms,
)
from ad_pipeline.monitoring.late_labels.measures import JudgedRows, leaks, measure_arms
from ad_pipeline.monitoring.late_labels.prequential import (
    BenchLearner,
    Replay,
    base_rate_scores,
    judged_anchors,
    kept_anchors,
    known_at_split,
    pre_train,
    recalibrated_scores,
    replay_arms,
    replayed_rows,
    shown_from,
    told_outcomes,
)
from ad_pipeline.monitoring.late_labels.stream import LateStream
from ad_pipeline_tests.monitoring.late_worlds import (
    GOAL,
    linear,
    small_replay,
    small_stream,
)


@pytest.fixture(scope="module")
def stream() -> LateStream:
    return small_stream()


@dataclass
class Spy:
    """Learns nothing, and notes how many rows were learnt before each score."""

    learnt: list[int] = field(default_factory=list)
    scored: list[tuple[int, int]] = field(default_factory=list)

    def learn(
        self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray, outcomes: np.ndarray
    ) -> None:
        self.learnt.append(len(slots))

    def logits(self, slots: np.ndarray) -> np.ndarray:
        self.scored.append((sum(self.learnt), len(slots)))
        return np.zeros((len(slots), 1))


@dataclass
class Spies:
    """A family of :class:`Spy` learners."""

    made: list[Spy] = field(default_factory=list)
    name: str = "spies"
    side_by_side: int = 1

    def fresh(self, seed: int) -> BenchLearner:
        return Spy()

    def continued(self, pre_trained: BenchLearner, arms: Sequence[Arm], seed: int) -> BenchLearner:
        self.made.append(Spy())
        return self.made[-1]


@pytest.mark.parametrize("lag_us", [0, 25 * MINUTE_US])
@pytest.mark.parametrize("name", [VANILLA, ORACLE, "es_dfm"])
def test_a_block_is_scored_by_what_was_emitted_before_it_less_the_lag(
    stream: LateStream, name: str, lag_us: int
) -> None:
    replay = small_replay(stream, lag_us=lag_us, kept_share=1.0)
    (arm,) = arms_named(arms_of(GOAL), [name])
    spies = Spies()
    outcomes = np.zeros((len(stream.emit_us), 5))
    list(replay_arms(stream, replay, spies, [arm], 0, Spy(), outcomes))
    rows = shown_from(stream, replay, arm)
    at_us = stream.served_us[rows] if arm.role == "oracle" else stream.emit_us[rows]
    served_us = stream.served_us[judged_anchors(stream, replay)]
    blocks = replay.split_us + replay.block_us * np.arange(len(spies.made[0].scored))
    for block_us, (learnt, scored) in zip(blocks.tolist(), spies.made[0].scored, strict=True):
        assert learnt == (at_us < block_us - lag_us).sum()
        inside = (served_us >= block_us) & (served_us < block_us + replay.block_us)
        assert scored == inside.sum()


def test_every_arm_gives_one_score_for_each_judged_anchor(stream: LateStream) -> None:
    replay = small_replay(stream)
    learners = linear(stream)
    arms = [arm for arm in arms_of(GOAL) if arm.learns or arm.role == "frozen"]
    pre_trained = pre_train(stream, replay, learners, 0)
    outcomes = told_outcomes(stream, replay)
    found = {
        arm.name: scores
        for arm, scores in replay_arms(stream, replay, learners, arms, 0, pre_trained, outcomes)
    }
    assert set(found) == {arm.name for arm in arms}
    judged = judged_anchors(stream, replay)
    assert {scores.log_odds.shape for scores in found.values()} == {(len(judged),)}
    assert found[PRE_TRAINED].gradient_examples == 0
    said = {name: metrics.probabilities_of(each.log_odds).sum() for name, each in found.items()}
    positives = stream.labels[judged].sum()
    assert said[ORACLE] / positives == pytest.approx(1.0, abs=0.05)
    # A negative and a positive of every positive: p / (1 + p).
    assert said[VANILLA_IMMEDIATE] / positives == pytest.approx(0.77, abs=0.05)
    assert said["fake_negative_weighted"] / positives == pytest.approx(1.0, abs=0.07)


@pytest.mark.parametrize("beginning", ["matured", "censored"])
def test_the_checkpoint_knows_no_label_from_behind_the_split(
    stream: LateStream, beginning: str
) -> None:
    replay = small_replay(stream, beginning=beginning)
    places, labels = known_at_split(stream, replay)
    assert (stream.served_us[places] < replay.split_us).all()
    positives = places[labels == 1]
    assert (stream.arrived_us[positives] < replay.split_us).all()
    if beginning == "matured":
        assert (stream.matured_us[places] < replay.split_us).all()
        replayed = np.unique(stream.anchor[replayed_rows(stream, replay)])
        assert not np.isin(replayed, places).any()
    else:
        late = places[(labels == 0) & (stream.labels[places] == 1)]
        assert len(late) > 0
        assert (stream.emit_us[replayed_rows(stream, replay)] >= replay.split_us).all()


def test_labels_after_a_moment_change_nothing_that_is_said_before_it(stream: LateStream) -> None:
    """Every arm, the models of delay and the controls, on a log whose later half is another."""
    other = small_stream(seed=1)
    cut_us = stream.start_us + 13 * HOUR_US
    later = other.emit_us >= cut_us
    other.emitted.kinds[later] = other.emitted.kinds[later][::-1]
    other.labels[other.matured_us >= cut_us] ^= 1
    other.arrived_us[other.arrived_us >= cut_us] = -1
    replay = small_replay(stream)
    arms = [arm for arm in arms_of(GOAL) if arm.learns and arm.role != "oracle"]
    said = []
    for each in (stream, other):
        learners = linear(each)
        pre_trained = pre_train(each, replay, learners, 0)
        outcomes = told_outcomes(each, replay)
        scores = {
            arm.name: found.log_odds
            for arm, found in replay_arms(each, replay, learners, arms, 0, pre_trained, outcomes)
        }
        scores["recalibrated"] = recalibrated_scores(each, replay, scores[VANILLA])
        scores[BASE_RATE] = base_rate_scores(each, replay)
        said.append(scores)
    served_us = stream.served_us[judged_anchors(stream, replay)]
    before = served_us < cut_us
    for name in said[0]:
        assert np.array_equal(said[0][name][before], said[1][name][before]), name
    changed = [
        name
        for name in said[0]
        if not np.array_equal(said[0][name][~before], said[1][name][~before])
    ]
    assert len(changed) > 10


def measured(
    stream: LateStream, replay: Replay, scores: dict[str, list[np.ndarray]]
) -> tuple[list, list]:
    rows = JudgedRows.of(stream, replay)
    figures = list(measure_arms(rows, scores, {name: [1] for name in scores}, 0, 200))
    arms = [Arm(name, "", "oracle" if name == ORACLE else "learner") for name in scores]
    return figures, leaks(figures, arms)


def test_an_arm_that_knows_the_label_beats_the_oracle_and_raises_the_alarm(
    stream: LateStream,
) -> None:
    """Planted fault: one arm is told a tenth of the final labels before it scores."""
    replay = small_replay(stream)
    learners = linear(stream)
    arms = arms_named(arms_of(GOAL), [PRE_TRAINED, ORACLE, VANILLA, "es_dfm"])
    pre_trained = pre_train(stream, replay, learners, 0)
    outcomes = told_outcomes(stream, replay)
    scores = {
        arm.name: [found.log_odds]
        for arm, found in replay_arms(stream, replay, learners, arms, 0, pre_trained, outcomes)
    }
    _, sound = measured(stream, replay, scores)
    assert sound == []
    labels = stream.labels[judged_anchors(stream, replay)]
    leaked = scores["es_dfm"][0].copy()
    leaked[::10] = np.where(labels[::10] == 1, 4.0, -4.0)
    _, found = measured(stream, replay, scores | {"es_dfm": [leaked]})
    assert [leak.arm for leak in found] == ["es_dfm"]


def test_the_share_of_the_gap_runs_from_pre_trained_to_oracle(stream: LateStream) -> None:
    replay = small_replay(stream)
    labels = stream.labels[judged_anchors(stream, replay)].astype(float)
    towards = {PRE_TRAINED: 0.0, VANILLA: 0.5, ORACLE: 1.0}
    scores = {name: [(2 * labels - 1) * reach] for name, reach in towards.items()}
    figures, _ = measured(stream, replay, scores)
    share = {each.arm: each for each in figures if each.metric == "share_of_log_loss_gap"}
    assert share[PRE_TRAINED].value == pytest.approx(0.0)
    assert share[ORACLE].value == pytest.approx(1.0)
    loss = [np.log1p(np.exp(-reach)) for reach in (0.0, 0.5, 1.0)]
    assert share[VANILLA].value == pytest.approx((loss[1] - loss[0]) / (loss[2] - loss[0]))
    assert share[VANILLA].low == pytest.approx(share[VANILLA].value)
    assert share[VANILLA].high == pytest.approx(share[VANILLA].value)


def test_slices_by_age_and_hour_cover_every_judged_anchor_once(stream: LateStream) -> None:
    replay = small_replay(stream)
    scores = {PRE_TRAINED: [np.zeros(len(judged_anchors(stream, replay)))]}
    figures, _ = measured(stream, replay, scores)
    whole = next(each for each in figures if not each.slice_of)
    for slice_of in ("age of the ad", "hour of day"):
        parts = [
            each for each in figures if each.slice_of == slice_of and each.metric == "log_loss"
        ]
        assert sum(each.rows for each in parts) == whole.rows
        assert sum(each.positives for each in parts) == whole.positives


def test_a_seed_leaves_out_its_own_tenth_of_the_anchors(stream: LateStream) -> None:
    replay = small_replay(stream)
    kept = [kept_anchors(stream, replay, seed) for seed in range(3)]
    for each in kept:
        assert each.mean() == pytest.approx(0.9, abs=0.02)
    assert not np.array_equal(kept[0], kept[1])
    assert np.array_equal(kept[1], kept_anchors(stream, replay, 1))


def test_arms_that_wait_longer_than_maturity_are_not_there() -> None:
    names = [arm.name for arm in waiting_arms(GOAL)]
    assert names == ["wait 15 min", "wait 20 min", "wait 1 h"]
    with pytest.raises(LookupError, match="no arm 'wait 1 d'"):
        arms_named(arms_of(GOAL), ["wait 1 d"])
