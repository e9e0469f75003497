"""The published protocols: what is learnt before what is tested, and each defect and its absence.

Learners here write down what they are shown, so that a test sees the rows and not a figure that
they may have moved. Every defect is looked for with and without its switch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pyarrow.parquet as pq
import pytest

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US
from ad_pipeline.datasets import Dataset, Deployment, load_dataset
from ad_pipeline.learners.delayed.losses import CAP, calibrated_log_odds
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.monitoring.late_labels.arms import ORACLE, PRE_TRAINED, VANILLA, Arm
from ad_pipeline.monitoring.late_labels.prequential import judged_anchors, shown_from
from ad_pipeline.monitoring.late_labels.stream import LateStream
from ad_pipeline.monitoring.published.log import LoggedClicks, read_clicks
from ad_pipeline.monitoring.published.protocols import (
    DEFECTS,
    PROTOCOLS,
    UNCAPPED_LOG_ODDS,
    Defect,
    Protocol,
    Reproduction,
    UnknownChoice,
    defects_named,
    emitted_ahead,
    end_of_tests_us,
    eventual_outcomes,
    goal_of,
    protocol_arms,
    protocol_of,
    published_learners,
    published_replay,
    published_stream,
    uncapped,
    window_us,
)
from ad_pipeline.simulation.conversion_spec import LogFormat, spec_like
from ad_pipeline.simulation.conversions import simulate_conversions

FNC, FNW, DFM = "fake_negative_calibrated", "fake_negative_weighted", "delayed_feedback"

Learnt = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Slots, labels, weights and outcomes of one call."""


@dataclass
class Scribe:
    """A learner that writes down what it is shown and says one half to everything."""

    name: str
    learnt: list[Learnt] = field(default_factory=list)
    steps: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def learn(
        self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray, outcomes: np.ndarray
    ) -> None:
        """Write the rows down."""
        self.learnt.append((slots, labels, weights, outcomes))
        self.steps.append(("learn", slots[:, 0]))

    def logits(self, slots: np.ndarray) -> np.ndarray:
        """Say log odds of 0."""
        self.steps.append(("score", slots[:, 0]))
        return np.zeros((len(slots), 1))

    def column(self, place: int) -> np.ndarray:
        """All that was learnt, of one of the four."""
        return np.concatenate([call[place] for call in self.learnt])


@dataclass(frozen=True)
class Scribes:
    """A family of them: see :class:`.prequential.Learners`."""

    name: str = "scribes"
    side_by_side: int = 1
    made: list[Scribe] = field(default_factory=list, repr=False, compare=False)

    def fresh(self, seed: int) -> Scribe:
        """Return one for what is known at the split."""
        self.made.append(Scribe("before"))
        return self.made[-1]

    def continued(self, pre_trained: object, arms: Sequence[Arm], seed: int) -> Scribe:
        """Return one for an arm."""
        self.made.append(Scribe(arms[0].name))
        return self.made[-1]

    def named(self, name: str) -> Scribe:
        """Return the last one of an arm, or ``before``."""
        return [scribe for scribe in self.made if scribe.name == name][-1]


@dataclass(frozen=True, eq=False)
class Log:
    """A simulated log in a published format."""

    dataset: Dataset
    clicks: LoggedClicks
    truth: Path

    @property
    def protocol(self) -> Protocol:
        """Of its dataset."""
        return protocol_of(self.dataset)


@cache
def logged(
    log_format: LogFormat = "criteo", recorded_days: float | None = None, rows: int = 6_000
) -> Log:
    """Some thousand clicks of ten days."""
    folder = Path(mkdtemp(prefix="published-"))
    spec = replace(spec_like(log_format), rows=rows, days=10, recorded_days=recorded_days)
    log = simulate_conversions(spec, log_format, folder)
    dataset = load_dataset(log.dataset_file)
    goal = goal_of(protocol_of(dataset), dataset)
    return Log(dataset, read_clicks(Deployment(dataset, folder / "home"), goal), log.truth)


@cache
def streamed(
    log: Log, defects: frozenset[Defect] = frozenset(), *, net: bool = False
) -> LateStream:
    """Its stream; a click's only slot is its place, so that scribes write down which it was."""
    goal = goal_of(log.protocol, log.dataset, net=net)
    arms = protocol_arms(log.protocol, goal)
    stream = published_stream(
        log.clicks, log.dataset, log.protocol, goal, arms, 18, net=net, defects=defects
    )
    return replace(stream, slots=np.arange(len(stream), dtype=np.uint32)[:, None])


def quiet(_: str) -> None:
    """Say nothing."""


def shown(
    folder: Path, names: Sequence[str], *defects: Defect, log: Log | None = None
) -> tuple[Scribes, Reproduction]:
    """Run arms with scribes."""
    log = logged() if log is None else log
    asked = frozenset(defects)
    stream = streamed(log, asked)
    scribes = Scribes()
    reproduction = Reproduction(
        protocol=log.protocol,
        stream=stream,
        replay=published_replay(log.protocol, log.dataset, stream, defects=asked),
        learners=scribes,
        folder=folder,
        tested_until_us=end_of_tests_us(log.protocol, log.dataset),
        defects=asked,
    )
    arms = protocol_arms(log.protocol, stream.goal, names, asked)
    reproduction.run(arms, [0], quiet)
    return scribes, reproduction


def test_every_protocol_splits_and_tests_where_it_was_published() -> None:
    criteo, cascade = PROTOCOLS["criteo_conversions"], PROTOCOLS["cascade_conversions"]
    assert 60 * criteo.split_share == 30
    assert 25 * cascade.split_share == pytest.approx(17)
    assert 25 * cascade.tested_until_share == pytest.approx(24.1)
    assert (criteo.block_us, criteo.observation_us) == (HOUR_US, 15 * MINUTE_US)
    assert (cascade.block_us, cascade.observation_us) == (DAY_US // 10, DAY_US // 100)


def learnt_too_early(folder: Path, lag_us: int) -> int:
    """Rows that an arm was shown before they were emitted, as of the click scored after them."""
    log = logged()
    stream, scribes = streamed(log), Scribes()
    replay = replace(published_replay(log.protocol, log.dataset, stream), lag_us=lag_us)
    until_us = end_of_tests_us(log.protocol, log.dataset)
    reproduction = Reproduction(log.protocol, stream, replay, scribes, folder, until_us)
    reproduction.run(protocol_arms(log.protocol, stream.goal, ["fsiw"]), [0], quiet)
    early = 0
    learnt = np.zeros(0, dtype=np.int64)
    for step, places in scribes.named("fsiw").steps:
        if step == "learn":
            learnt = places.astype(np.int64)
        elif len(places):
            block_us = stream.served_us[places].min() // HOUR_US * HOUR_US
            emitted_us = stream.served_us[learnt] + stream.goal.observation_us
            early += int((emitted_us >= block_us).sum())
    return early


def test_what_is_learnt_before_an_hour_is_tested_was_emitted_before_it(tmp_path: Path) -> None:
    assert learnt_too_early(tmp_path / "right", 0) == 0
    assert learnt_too_early(tmp_path / "wrong", -HOUR_US) > 0


def test_the_first_hour_of_the_stream_is_learnt_and_not_tested(tmp_path: Path) -> None:
    _, reproduction = shown(tmp_path, ["fsiw"])
    stream, split_us = reproduction.stream, reproduction.replay.split_us
    judged = judged_anchors(stream, reproduction.replay)
    tested = judged[reproduction.tested(judged)]
    assert stream.served_us[judged].min() < split_us + HOUR_US
    assert stream.served_us[tested].min() >= split_us + HOUR_US
    assert split_us == logged().dataset.start_us + 5 * DAY_US


def test_cascade_trains_beforehand_on_what_has_matured_and_criteo_on_what_was_known() -> None:
    for log_format, beginning in (("criteo", "censored"), ("cascade", "matured")):
        log = logged(log_format)
        stream = streamed(log)
        assert published_replay(log.protocol, log.dataset, stream).beginning == beginning


def test_a_refund_makes_a_net_label_negative_and_leaves_a_gross_one() -> None:
    log = logged("cascade")
    gross, net = streamed(log), streamed(log, net=True)
    known = (gross.labels >= 0) & (net.labels >= 0)
    refunded = known & (log.clicks.retracted_us >= 0)
    assert refunded.sum() > 50
    assert (gross.labels[refunded] == 1).all()
    assert (net.labels[refunded] == 0).all()
    kept = known & (log.clicks.retracted_us < 0)
    assert np.array_equal(gross.labels[kept], net.labels[kept])
    assert gross.goal.lateness_us == 0


def test_every_defect_is_described_and_found_by_its_name() -> None:
    assert DEFECTS.keys() == set(Defect)
    assert defects_named(["delays_in_seconds"]) == {Defect.DELAYS_IN_SECONDS}
    with pytest.raises(UnknownChoice, match="no defect 'haste'; there are window_labels"):
        defects_named(["haste"])


def test_window_labels_at_click_time_come_before_their_conversion_and_never_else() -> None:
    leaking = streamed(logged(), frozenset({Defect.WINDOW_LABELS_AT_CLICK_TIME}))
    assert emitted_ahead(leaking) > 100
    assert emitted_ahead(streamed(logged())) == 0
    assert (np.diff(leaking.emit_us) >= 0).all()
    assert len(leaking.emit_us) == len(streamed(logged()).emit_us)


def test_labels_from_behind_the_split_are_learnt_beforehand_with_the_defect_only(
    tmp_path: Path,
) -> None:
    def from_behind(folder: str, *defects: Defect) -> int:
        scribes, reproduction = shown(tmp_path / folder, [], *defects)
        before = scribes.named("before")
        places, labels = before.column(0)[:, 0], before.column(1)
        arrived_us = reproduction.stream.arrived_us[places]
        assert (reproduction.stream.served_us[places] < reproduction.replay.split_us).all()
        return int(((labels == 1) & (arrived_us >= reproduction.replay.split_us)).sum())

    assert from_behind("right") == 0
    assert from_behind("wrong", Defect.PRE_TRAINED_ON_EVENTUAL_LABELS) > 50


def test_models_of_delay_too_are_fitted_to_eventual_labels_with_the_defect_only(
    tmp_path: Path,
) -> None:
    many = logged(rows=20_000)

    def lateness(folder: str, *defects: Defect) -> float:
        scribes, _ = shown(tmp_path / folder, ["es_dfm"], *defects, log=many)
        return float(scribes.named("es_dfm").column(3)[:, kernel.LATENESS].mean())

    right = lateness("right")
    wrong = lateness("wrong", Defect.PRE_TRAINED_ON_EVENTUAL_LABELS)
    # Half of the conversions take longer than the half of the log that the right one can see.
    assert 0.0 < right < wrong - 0.02


def test_eventual_outcomes_leave_everything_but_the_models_as_it_was() -> None:
    log = logged()
    stream = streamed(log)
    replay = published_replay(log.protocol, log.dataset, stream)
    told = np.full((len(stream.emit_us), kernel.N_OUTCOMES), 7.0)
    found = eventual_outcomes(stream, replay, told)
    models = [kernel.LATENESS, kernel.REAL_NEGATIVE]
    assert (found[:, models] <= 1.0).all()
    assert (np.delete(found, models, axis=1) == 7.0).all()


def test_a_number_of_the_tested_part_moves_the_slots_of_earlier_clicks_with_the_defect_only() -> (
    None
):
    log = logged()
    clicks = log.clicks
    place = clicks.features.column_names.index("int_1")
    values = clicks.features.column("int_1").to_pylist()
    changed = clicks.features.set_column(place, "int_1", [[*values[:-1], 1e9]])
    other = replace(clicks, features=changed)
    goal = goal_of(log.protocol, log.dataset)
    arms = protocol_arms(log.protocol, goal, ["fsiw"])

    def moved(*defects: Defect) -> int:
        slots = [
            published_stream(
                each, log.dataset, log.protocol, goal, arms, 18, defects=frozenset(defects)
            ).slots[:-1]
            for each in (clicks, other)
        ]
        return int((slots[0] != slots[1]).sum())

    assert moved() == 0
    assert moved(Defect.NUMBERS_SCALED_BY_WHOLE_LOG) > 1_000


def delays_learnt(folder: Path, *defects: Defect) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Delays in outcomes of positives, their true delays, and the times to their hours' ends."""
    scribes, reproduction = shown(folder, [DFM], *defects)
    scribe, stream = scribes.named(DFM), reproduction.stream
    positive = scribe.column(1) == 1
    places = scribe.column(0)[positive, 0]
    clicked_us = stream.served_us[places]
    return (
        scribe.column(3)[positive, kernel.DELAY],
        (stream.arrived_us[places] - clicked_us) / DAY_US,
        (HOUR_US - clicked_us % HOUR_US) / DAY_US,
    )


def test_a_positive_has_its_own_delay_and_the_time_to_the_hours_end_with_the_defect(
    tmp_path: Path,
) -> None:
    told, true, _ = delays_learnt(tmp_path / "right")
    assert np.allclose(told, true)
    assert true.max() > 1.0
    told, true, to_end = delays_learnt(tmp_path / "wrong", Defect.DELAYS_TO_HOUR_END)
    assert np.allclose(told, to_end)
    assert (told > true).all()


def test_a_positive_after_the_hours_end_is_never_told_with_the_defect_only(tmp_path: Path) -> None:
    def told_late(folder: str, *defects: Defect) -> int:
        return int((delays_learnt(tmp_path / folder, *defects)[1] > 1 / 24).sum())

    assert told_late("right") > 100
    assert told_late("wrong", Defect.DELAYS_TO_HOUR_END) == 0


def test_delays_are_days_and_seconds_with_the_defect(tmp_path: Path) -> None:
    told, true, _ = delays_learnt(tmp_path, Defect.DELAYS_IN_SECONDS)
    assert np.allclose(told, 86_400 * true)
    stream = streamed(logged())
    for defects, horizon in ((frozenset(), 30.0), ({Defect.DELAYS_IN_SECONDS}, 30 * 86_400.0)):
        learners = published_learners("linear", stream, frozenset(defects))
        assert getattr(learners, "horizon_days", None) == horizon


def test_a_negative_at_a_forecast_beyond_one_costs_46_nats_with_the_defect_and_7_without() -> None:
    raw = np.array([-2.0, calibrated_log_odds(-2.0), calibrated_log_odds(0.3)])
    loss = np.logaddexp(0.0, raw)
    assert loss[2] == pytest.approx(-np.log(CAP))
    without = uncapped(raw)
    assert without[2] == UNCAPPED_LOG_ODDS
    assert np.logaddexp(0.0, without[2]) == pytest.approx(46.05, abs=0.01)
    assert np.array_equal(without[:2], raw[:2])


def test_only_scores_of_fake_negative_calibration_lose_their_cap(tmp_path: Path) -> None:
    for defects in ((), (Defect.CALIBRATION_NOT_CAPPED,)):
        _, reproduction = shown(tmp_path / str(len(defects)), [FNC, FNW], *defects)
        arms = protocol_arms(reproduction.protocol, reproduction.stream.goal, [FNC, FNW])
        kept = reproduction.bench.kept
        for arm in arms:
            scores = reproduction.bench.scores(arm, 0)
            high = replace(scores, log_odds=np.full_like(scores.log_odds, 20.0))
            kept.write("scribes", arm, 0, high)
            expected = UNCAPPED_LOG_ODDS if defects and arm.name == FNC else 20.0
            assert (reproduction.scores(arm, 0).log_odds == expected).all()


def copies_of_vanilla(*defects: Defect) -> tuple[int, int, np.ndarray]:
    """Positives and negatives that vanilla is shown, and how long after the click."""
    log = logged()
    stream = streamed(log, frozenset(defects))
    replay = published_replay(log.protocol, log.dataset, stream)
    arms = protocol_arms(log.protocol, stream.goal, [VANILLA], frozenset(defects))
    (vanilla,) = [arm for arm in arms if arm.name == VANILLA]
    rows = shown_from(stream, replay, vanilla)
    rows = rows[stream.served_us[stream.anchor[rows]] >= replay.split_us]
    positive = stream.emitted.arrived_us[rows] >= 0
    copies = np.bincount(stream.anchor[rows])
    waited_us = stream.emit_us[rows] - stream.served_us[stream.anchor[rows]]
    assert positive.any()
    return int((copies == 2).sum()), int((copies == 1).sum()), waited_us


def test_vanilla_shows_late_positives_again_and_with_the_defects_it_does_not() -> None:
    twice, _, waited_us = copies_of_vanilla()
    assert twice > 100
    assert waited_us.min() == HOUR_US
    twice, once, waited_us = copies_of_vanilla(Defect.VANILLA_WITHOUT_DUPLICATES)
    assert twice == 0
    assert once > 1_000
    assert waited_us.max() == HOUR_US
    twice, once, waited_us = copies_of_vanilla(Defect.VANILLA_WAITS_FOR_MATURITY)
    assert twice == 0
    assert once > 1_000
    assert waited_us.min() == 30 * DAY_US


def test_fake_negative_weights_are_the_live_models_and_with_the_defect_the_pre_trained_ones(
    tmp_path: Path,
) -> None:
    scribes, _ = shown(tmp_path / "right", [FNW])
    assert (scribes.named(FNW).column(2) == 1.0).all()
    scribes, _ = shown(tmp_path / "wrong", [FNW], Defect.WEIGHTS_OF_PRE_TRAINED)
    labels, weights = scribes.named(FNW).column(1), scribes.named(FNW).column(2)
    # The scribe before the split says one half: 1 + f, and (1 - f) (1 + f).
    assert np.unique(weights[labels == 1]).tolist() == [1.5]
    assert np.unique(weights[labels == 0]).tolist() == [0.75]


def test_frozen_weights_are_learnt_by_log_loss_so_that_they_are_not_weighted_twice(
    tmp_path: Path,
) -> None:
    asked: dict[str, str] = {}

    @dataclass(frozen=True)
    class Asking(Scribes):
        def continued(self, pre_trained: object, arms: Sequence[Arm], seed: int) -> Scribe:
            asked[arms[0].name] = arms[0].objective.loss
            return super().continued(pre_trained, arms, seed)

    for defects, loss in (((), FNW), ((Defect.WEIGHTS_OF_PRE_TRAINED,), "logistic")):
        _, reproduction = shown(tmp_path / loss, [FNW], *defects)
        again = replace(reproduction, learners=Asking(), folder=tmp_path / f"{loss} again")
        again.run(protocol_arms(again.protocol, again.stream.goal, [FNW]), [0], quiet)
        assert asked[FNW] == loss


def test_a_window_of_a_quarter_of_an_hour_is_taken_and_with_the_defect_refused() -> None:
    whole = frozenset({Defect.WHOLE_HOUR_WINDOWS})
    assert window_us("0.25") == 15 * MINUTE_US
    assert window_us("2", whole) == 2 * HOUR_US
    with pytest.raises(UnknownChoice, match="whole number of hours"):
        window_us("0.25", whole)
    for text in ("soon", "0", "-1", "nan", "inf"):
        with pytest.raises(UnknownChoice, match="number of hours above 0"):
            window_us(text)


def test_a_label_that_the_log_is_too_short_to_know_is_judged_with_the_defect_only() -> None:
    log = logged("cascade", 10)
    truth = pq.read_table(log.truth)
    clicked_s, first, clicks = np.unique(
        truth.column("clicked_s").to_numpy(), return_index=True, return_counts=True
    )
    start_s = int(streamed(log).served_us[0]) // 10**6 - int(clicked_s[0])
    # Clicks of one second cannot be told apart: of them nothing is asked.
    alone = dict(zip(clicked_s[clicks == 1].tolist(), first[clicks == 1].tolist(), strict=True))
    converted_s = truth.column("converted_s").to_numpy()

    def wrongly_judged(*defects: Defect) -> tuple[int, int]:
        stream = streamed(log, frozenset(defects))
        judged = judged_anchors(stream, published_replay(log.protocol, log.dataset, stream))
        places = [alone.get(us // 10**6 - start_s) for us in stream.served_us[judged].tolist()]
        wrong = [
            place is not None and converted_s[place] >= 0 and label == 0
            for place, label in zip(places, stream.labels[judged].tolist(), strict=True)
        ]
        return len(judged), sum(wrong)

    few, wrong = wrongly_judged()
    assert wrong == 0
    many, wrong = wrongly_judged(Defect.CENSORED_LABELS_JUDGED)
    assert wrong > 10
    assert many > few > 100


def test_a_corrected_run_and_one_with_a_defect_are_kept_apart(tmp_path: Path) -> None:
    _, right = shown(tmp_path, [FNW])
    _, wrong = shown(tmp_path, [FNW], Defect.WEIGHTS_OF_PRE_TRAINED)
    assert right.bench.kept.folder != wrong.bench.kept.folder
    assert right.bench.missing(protocol_arms(right.protocol, right.stream.goal, [FNW]), [0]) == []


def test_arms_of_a_protocol_include_both_ends_of_the_gap() -> None:
    log = logged()
    goal = goal_of(log.protocol, log.dataset)
    names = [arm.name for arm in protocol_arms(log.protocol, goal, ["es_dfm"])]
    assert names == [PRE_TRAINED, "es_dfm", ORACLE]
    with pytest.raises(UnknownChoice, match="no arm 'es dfm'; there are 'base rate'"):
        protocol_arms(log.protocol, goal, ["es dfm"])


def test_a_dataset_without_a_published_protocol_is_refused() -> None:
    with pytest.raises(LookupError, match="no published protocol is known for marketplace"):
        protocol_of(logged().dataset.model_copy(update={"name": "marketplace"}))
