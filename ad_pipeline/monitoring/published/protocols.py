"""The published streaming protocols on the logs they were published for, and what is wrong in them.

A protocol says where a log is split, which copies each method is shown, in which blocks it learns
and is tested, and how figures are averaged: train on what was emitted in hour t, test on the clicks
of hour t + 1 with their final labels. Replay, losses and learners are the benchmark's own
(:mod:`..late_labels.prequential`, :mod:`..late_labels.arms`); here is only what makes them that
protocol.

The public code has defects that move its figures. None of them is here unless it is asked for:
:class:`Defect` names each, and a run with one beside a run without says how much of a published
figure it explains. Reading the log is :mod:`.log`, figures and tables are
:mod:`.figures`.

Where this is not the published code even with all its defects: the learners are this project's
(FTRL over hashed slots, or wide & deep with the published layers) and learn one pass before the
split; methods that need models of delay take lateness and real negatives from logistic models,
fitted once at the split; ``fsiw`` is shown each click after the window instead of at its hour's
end; ``defuse`` tells kinds of positives apart, as derived in its paper.

References
----------
Yang et al., ES-DFM, AAAI 2021, section 5, and its public code (ThyrixYang/es_dfm, src/data.py,
src/stream_train_test.py). Luo et al., WWW 2026 (arXiv 2601.19965), section 5, and its public code
(alimama-tech/NetCVR, examples/). Chen et al., DEFUSE, WWW 2022; Gu et al., DEFER, KDD 2021; Yang
and Zhan, GDFM, NeurIPS 2022 (public code of each).
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ad_pipeline.clocks import DAY_US, HOUR_US, MINUTE_US, hour_of
from ad_pipeline.datasets import Dataset, Goal
from ad_pipeline.examples.strategies import FIRST_KINDS, KINDS, EmittedRows, among
from ad_pipeline.learners.delayed.delay_models import (
    LATENESS,
    REAL_NEGATIVE,
    MaturedLabels,
    TooFewLabels,
    fit_delay_models,
)
from ad_pipeline.learners.delayed.losses import calibrated_log_odds
from ad_pipeline.learners.delayed.shown_examples import POSITIVE_KINDS
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.monitoring.late_labels.arms import (
    ORACLE,
    PRE_TRAINED,
    VANILLA,
    Arm,
    arms_named,
    arms_of,
)
from ad_pipeline.monitoring.late_labels.prequential import (
    ArmScores,
    BenchLearner,
    Learners,
    Replay,
    pre_train,
    replay_arms,
    told_outcomes,
)
from ad_pipeline.monitoring.late_labels.runs import Bench, KeptRuns, Say, identity
from ad_pipeline.monitoring.late_labels.stream import (
    ALL_STRATEGIES,
    UNKNOWN,
    LateStream,
    WorldRows,
    stream_of_world,
)
from ad_pipeline.monitoring.published.log import LoggedClicks, encode_clicks
from ad_pipeline.settings import (
    Configuration,
    DeepSettings,
    DelaySettings,
    Objective,
    StrategyName,
)

WAIT_FOR_MATURITY = "wait for maturity"

UNCAPPED_LOG_ODDS = 20.0 * math.log(10.0)
"""Of a probability held 1e-20 below 1: a negative there costs 46 nats."""

SECONDS_OF_A_DAY = 86_400.0

LAYERS = (256, 256, 128)
"""Of wide & deep, as published (ES-DFM, public code)."""

HOURS_OF_ALL = 10**6
"""Longer than any log: models of delay are fitted once, and to all there is before."""


class Defect(StrEnum):
    """What public code does wrong; :data:`DEFECTS` says it in words."""

    WINDOW_LABELS_AT_CLICK_TIME = "window_labels_at_click_time"
    PRE_TRAINED_ON_EVENTUAL_LABELS = "pre_trained_on_eventual_labels"
    NUMBERS_SCALED_BY_WHOLE_LOG = "numbers_scaled_by_whole_log"
    DELAYS_TO_HOUR_END = "delays_to_hour_end"
    DELAYS_IN_SECONDS = "delays_in_seconds"
    CALIBRATION_NOT_CAPPED = "calibration_not_capped"
    VANILLA_WITHOUT_DUPLICATES = "vanilla_without_duplicates"
    VANILLA_WAITS_FOR_MATURITY = "vanilla_waits_for_maturity"
    WEIGHTS_OF_PRE_TRAINED = "weights_of_pre_trained"
    WHOLE_HOUR_WINDOWS = "whole_hour_windows"
    CENSORED_LABELS_JUDGED = "censored_labels_judged"


DEFECTS: Mapping[Defect, str] = {
    Defect.WINDOW_LABELS_AT_CLICK_TIME: "DEFUSE's code emits the copy that is labelled after the "
    "window at the click itself: up to a window of labels from the future",
    Defect.PRE_TRAINED_ON_EVENTUAL_LABELS: "es_dfm and others train beforehand, models of delay "
    "included, on labels that came up to a whole attribution window after the split",
    Defect.NUMBERS_SCALED_BY_WHOLE_LOG: "es_dfm scales numbers by the smallest and the largest of "
    "the whole file, the tested part included",
    Defect.DELAYS_TO_HOUR_END: "es_dfm's delayed-feedback stream shows each click once, at the end "
    "of its hour, takes the time until then for the delay of a positive, and never corrects it",
    Defect.DELAYS_IN_SECONDS: "es_dfm's delays are raw seconds, not days",
    Defect.CALIBRATION_NOT_CAPPED: "es_dfm scores fake-negative calibration by b / (1 - b) without "
    "a cap: where that exceeds 1, a negative costs 46 nats",
    Defect.VANILLA_WITHOUT_DUPLICATES: "DEFER's and DEFUSE's 'vanilla' waits for the window and "
    "loses later positives; es_dfm's shows them again",
    Defect.VANILLA_WAITS_FOR_MATURITY: "GDFM's 'vanilla' waits for the whole attribution window",
    Defect.WEIGHTS_OF_PRE_TRAINED: "NetCVR's fake-negative weights come from the model as it was "
    "before the stream, not from the one that learns",
    Defect.WHOLE_HOUR_WINDOWS: "es_dfm and DEFER read the window's length as a whole number of "
    "hours: a quarter of an hour works as the default only",
    Defect.CENSORED_LABELS_JUDGED: "clicks are judged whose labels the log is too short to know: a "
    "conversion after its end counts as none",
}


class UnknownChoice(LookupError):
    """What was asked for is no arm, defect, window or share; the message says what is."""


def defects_named(names: Sequence[str]) -> frozenset[Defect]:
    """Return defects by their names.

    Raises
    ------
    UnknownChoice
        If there is none of a name.
    """
    unknown = [name for name in names if name not in set(Defect)]
    if unknown:
        raise UnknownChoice(f"no defect {unknown[0]!r}; there are {', '.join(Defect)}")
    return frozenset(map(Defect, names))


@dataclass(frozen=True)
class Protocol:
    """One published protocol.

    Attributes
    ----------
    name : str
    split_share, tested_until_share : float
        Of the days of clicks: where the stream begins, and where the tests end.
    block_us : int
        Microseconds of emissions between two tests.
    observation_us : int
        Window of the methods that wait for one.
    vanilla_wait_us : int
        Window of the arm without a correction.
    beginning : {'matured', 'censored'}
        What is learnt before the split; see :mod:`..late_labels.prequential`.
    arms : tuple of str
        Names of :mod:`..late_labels.arms`, pre-trained and oracle among them.
    """

    name: str
    split_share: float
    tested_until_share: float
    block_us: int
    observation_us: int
    vanilla_wait_us: int
    beginning: Literal["matured", "censored"]
    arms: tuple[str, ...]


PROTOCOLS: Mapping[str, Protocol] = {
    # Days 0 to 30 and 30 to 60. Nothing has matured at the split: a gap would leave no days.
    "criteo_conversions": Protocol(
        name="ES-DFM on Criteo",
        split_share=0.5,
        tested_until_share=1.0,
        block_us=HOUR_US,
        observation_us=15 * MINUTE_US,
        vanilla_wait_us=HOUR_US,
        beginning="censored",
        arms=(
            PRE_TRAINED, VANILLA, "delayed_feedback", "fsiw", "fake_negative_calibrated",
            "fake_negative_weighted", "es_dfm", ORACLE,
        ),
    ),
    # Days 17.1 to 24.1 are tested in tenths of a day, as in the code; the paper says hundredths.
    "cascade_conversions": Protocol(
        name="NetCVR on CASCADE",
        split_share=17 / 25,
        tested_until_share=24.1 / 25,
        block_us=DAY_US // 10,
        observation_us=DAY_US // 100,
        vanilla_wait_us=DAY_US // 100,
        beginning="matured",
        arms=(
            PRE_TRAINED, WAIT_FOR_MATURITY, VANILLA, "fake_negative_calibrated",
            "fake_negative_weighted", "defer", "es_dfm", "defuse", ORACLE,
        ),
    ),
}  # fmt: skip
"""By name of the dataset."""


def protocol_of(dataset: Dataset) -> Protocol:
    """Return the protocol of a dataset.

    Raises
    ------
    LookupError
        If none was published on it.
    """
    if dataset.name not in PROTOCOLS:
        raise LookupError(
            f"no published protocol is known for {dataset.name}; there are those of "
            f"{', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[dataset.name]


def window_us(text: str, defects: frozenset[Defect] = frozenset()) -> int:
    """Return the microseconds of an observation window that is given in hours, as in ``0.25``.

    Raises
    ------
    UnknownChoice
        If it is no number above 0; under ``whole_hour_windows``, if it is no whole one.
    """
    whole = Defect.WHOLE_HOUR_WINDOWS in defects
    try:
        hours = float(int(text)) if whole else float(text)
    except ValueError:
        hours = 0.0
    if not 0 < hours < math.inf:
        number = "whole number" if whole else "number"
        raise UnknownChoice(f"window of {text!r} hours: write a {number} of hours above 0")
    return round(hours * HOUR_US)


def goal_of(
    protocol: Protocol, dataset: Dataset, *, net: bool = False, observation_us: int | None = None
) -> Goal:
    """Return the goal that a protocol is run for: the dataset's only one.

    Parameters
    ----------
    protocol : Protocol
    dataset : Dataset
    net : bool
        Whether a conversion that is taken back counts as none. If not, no label has to wait until
        it could be.
    observation_us : int, optional
        Another window than the protocol's.
    """
    goal = dataset.goals[0]
    changed = {"observation_us": observation_us or protocol.observation_us}
    if not net:
        changed["lateness_us"] = 0
    return goal.model_copy(update=changed)


def protocol_arms(
    protocol: Protocol,
    goal: Goal,
    names: Sequence[str] = (),
    defects: frozenset[Defect] = frozenset(),
) -> tuple[Arm, ...]:
    """Return the arms of a protocol.

    Parameters
    ----------
    protocol : Protocol
    goal : Goal
    names : sequence of str
        Of those wanted; empty for all. Pre-trained and oracle always come along.
    defects : frozenset of Defect

    Raises
    ------
    UnknownChoice
        If there is no arm of a name.
    """
    known = arms_of(goal)
    unknown = [name for name in names if name not in {arm.name for arm in known}]
    if unknown:
        there = ", ".join(repr(arm.name) for arm in known)
        raise UnknownChoice(f"no arm {unknown[0]!r}; there are {there}")
    wanted = [PRE_TRAINED, *names, ORACLE] if names else [*protocol.arms]
    vanilla: dict[str, object] = {"wait_us": protocol.vanilla_wait_us}
    if Defect.VANILLA_WITHOUT_DUPLICATES in defects:
        vanilla["objective"] = Objective(strategy="wait_observation")
    if Defect.VANILLA_WAITS_FOR_MATURITY in defects:
        vanilla = {"objective": Objective(strategy="wait_maturity")}
    return tuple(
        replace(arm, **vanilla) if arm.name == VANILLA else arm
        for arm in arms_named(known, list(dict.fromkeys(wanted)))
    )


def published_stream(
    clicks: LoggedClicks,
    dataset: Dataset,
    protocol: Protocol,
    goal: Goal,
    arms: Sequence[Arm],
    bits: int,
    *,
    net: bool = False,
    defects: frozenset[Defect] = frozenset(),
) -> LateStream:
    """Return what the arms of a protocol are replayed over.

    Parameters
    ----------
    clicks : LoggedClicks
    dataset : Dataset
    protocol : Protocol
    goal : Goal
        From :func:`goal_of`.
    arms : sequence of Arm
        Whose rows are emitted, beside those of all arms of the protocol: so a stream is the same
        one, and runs on it are found again, whichever of them are asked for.
    bits : int
        2^bits slots.
    net : bool
        Whether a conversion that is taken back counts as none.
    defects : frozenset of Defect
        Those of the stream are in it.
    """
    whole = Defect.NUMBERS_SCALED_BY_WHOLE_LOG in defects
    split_us = _split_us(protocol, dataset)
    fitted = np.full(len(clicks), True) if whole else clicks.served_us < split_us
    last_us = clicks.recorded_us
    if Defect.CENSORED_LABELS_JUDGED in defects:
        last_us = max(last_us, int(clicks.served_us[-1]) + goal.window_us + goal.lateness_us)
    arms = [*protocol_arms(protocol, goal, (), defects), *arms]
    world = WorldRows(
        slots=encode_clicks(clicks, dataset, fitted, bits),
        slot_bits=bits,
        served_us=clicks.served_us,
        arrived_us=clicks.arrived_us,
        ads=clicks.groups,
        groups=clicks.groups,
        retracted_us=clicks.retracted_us if net else None,
    )
    stream = stream_of_world(
        world,
        goal,
        hour_of(last_us) + HOUR_US,
        dataset.settings,
        sorted({arm.wait_us for arm in arms if arm.wait_us is not None}),
        _strategies(arms),
    )
    if Defect.WINDOW_LABELS_AT_CLICK_TIME in defects:
        return emitted_at_click_time(stream)
    return stream


def published_replay(
    protocol: Protocol,
    dataset: Dataset,
    stream: LateStream,
    kept_share: float = 1.0,
    defects: frozenset[Defect] = frozenset(),
) -> Replay:
    """Return how a protocol replays its stream.

    Models of delay are fitted once, at the split. Where nothing has matured by then they take a
    label for final at half the age that the log has.

    Parameters
    ----------
    protocol : Protocol
    dataset : Dataset
    stream : LateStream
    kept_share : float
        Of the clicks that a seed learns; see :class:`.prequential.Replay`.
    defects : frozenset of Defect
    """
    split_us = _split_us(protocol, dataset)
    eventual = Defect.PRE_TRAINED_ON_EVENTUAL_LABELS in defects
    final_us = None
    if protocol.beginning == "censored":
        final_us = min((split_us - hour_of(stream.start_us)) // 2, stream.horizon_us)
    return Replay(
        split_us,
        "censored" if eventual else protocol.beginning,
        protocol.block_us,
        kept_share=kept_share,
        delays=DelaySettings(refit_every_hours=HOURS_OF_ALL, lookback_hours=HOURS_OF_ALL),
        final_after_us=final_us,
    )


def published_learners(
    family: Literal["linear", "deep"],
    stream: LateStream,
    defects: frozenset[Defect] = frozenset(),
) -> Learners:
    """Return the learners of a family: FTRL, or wide & deep with the published layers.

    Parameters
    ----------
    family : {'linear', 'deep'}
    stream : LateStream
    defects : frozenset of Defect
        With delays in seconds the horizon of ``delayed_feedback`` is in seconds too.
    """
    horizon_days = stream.horizon_us / DAY_US
    if Defect.DELAYS_IN_SECONDS in defects:
        horizon_days *= SECONDS_OF_A_DAY
    if family == "linear":
        from ad_pipeline.monitoring.late_labels.linear import LinearLearners

        return LinearLearners(Configuration(), stream.slot_bits, horizon_days)
    from ad_pipeline.monitoring.late_labels.deep import DeepLearners

    settings = DeepSettings(bits=stream.slot_bits, layers=LAYERS)
    return DeepLearners(settings, stream.slots.shape[1], stream.slot_bits, horizon_days)


def emitted_at_click_time(stream: LateStream) -> LateStream:
    """Return a stream whose window-labelled copies are emitted at the click: a planted leak."""
    rows = stream.emitted
    first = among(rows.kinds, FIRST_KINDS) & (rows.wait_us > 0)
    emit_us = np.where(first, np.maximum(rows.anchor_us, rows.serving_us), stream.emit_us)
    order = np.argsort(emit_us, kind="stable")
    return replace(
        stream,
        emitted=EmittedRows(**{name: values[order] for name, values in vars(rows).items()}),
        emit_us=emit_us[order],
        anchor=stream.anchor[order],
        weights=stream.weights[order],
    )


def emitted_ahead(stream: LateStream) -> int:
    """Return how many emitted positives no log could have shown yet; 0 without a leak."""
    return int((stream.emitted.arrived_us > stream.emit_us).sum())


def arrived_at_once(stream: LateStream, split_us: int) -> LateStream:
    """Return a stream whose clicks before the split have their final label at once."""
    early = (stream.served_us < split_us) & (stream.arrived_us >= 0)
    return replace(stream, arrived_us=np.where(early, stream.served_us, stream.arrived_us))


def shown_at_hour_end(stream: LateStream, split_us: int) -> tuple[LateStream, np.ndarray]:
    """Return a stream of one copy a click, at the end of its hour, with the label of then.

    Returns
    -------
    LateStream
    outcomes : ndarray of shape (m, N_OUTCOMES), float64
        With the time until then as the delay of a positive, days.
    """
    places = np.flatnonzero(stream.served_us >= split_us)
    served_us, anchor_us = stream.served_us[places], stream.anchor_us[places]
    emit_us = served_us // HOUR_US * HOUR_US + HOUR_US
    arrived_us = stream.arrived_us[places]
    positive = (arrived_us >= 0) & (arrived_us < emit_us)
    rows = EmittedRows(
        kinds=np.where(positive, KINDS.index("immediate_positive"), KINDS.index("negative")).astype(
            np.int8
        ),
        wait_us=np.full(len(places), stream.goal.observation_us),
        anchor_us=anchor_us,
        serving_us=served_us,
        arrived_us=np.where(positive, arrived_us, UNKNOWN),
    )
    outcomes = np.zeros((len(places), kernel.N_OUTCOMES))
    outcomes[:, kernel.REAL_NEGATIVE] = 1.0
    outcomes[:, kernel.WAITED] = outcomes[:, kernel.DELAY] = (emit_us - anchor_us) / DAY_US
    shown = replace(
        stream, emitted=rows, emit_us=emit_us, anchor=places, weights=np.ones(len(places))
    )
    return shown, outcomes


def in_seconds(outcomes: np.ndarray) -> np.ndarray:
    """Return outcomes whose times are seconds instead of days."""
    found = outcomes.copy()
    found[:, [kernel.WAITED, kernel.DELAY]] *= SECONDS_OF_A_DAY
    return found


def weighted_beforehand(stream: LateStream, pre_trained: BenchLearner) -> LateStream:
    """Return a stream with the fake-negative weights of a model that stands still.

    Parameters
    ----------
    stream : LateStream
    pre_trained : BenchLearner
        Of one arm.
    """
    score = pre_trained.logits(stream.slots)[:, 0][stream.anchor]
    f = np.exp(-np.logaddexp(0.0, -score))
    negative = np.where(among(stream.emitted.kinds, POSITIVE_KINDS), 1.0, 1.0 - f)
    return replace(stream, weights=stream.weights * (1.0 + f) * negative)


def uncapped(log_odds: np.ndarray) -> np.ndarray:
    """Return calibrated log odds as if nothing had held them below a probability of 1."""
    return np.where(log_odds >= calibrated_log_odds(0.0) - 1e-9, UNCAPPED_LOG_ODDS, log_odds)


def eventual_outcomes(stream: LateStream, replay: Replay, outcomes: np.ndarray) -> np.ndarray:
    """Return outcomes by models of delay that were fitted to the final labels before the split."""
    early = np.flatnonzero((stream.served_us < replay.split_us) & (stream.labels >= 0))
    positive = stream.labels[early] == 1
    window = stream.anchor_us[early] + stream.goal.observation_us
    late = positive & (stream.arrived_us[early] > window)
    known = MaturedLabels(stream.slots[early], positive, late, np.ones(len(early)))
    try:
        models, _ = fit_delay_models(known, stream.slot_bits)
    except TooFewLabels:
        return outcomes
    said = models.probabilities(stream.slots[stream.anchor])
    found = outcomes.copy()
    found[:, kernel.LATENESS], found[:, kernel.REAL_NEGATIVE] = said[LATENESS], said[REAL_NEGATIVE]
    return found


@dataclass(frozen=True)
class Reproduction:
    """A protocol on one stream with one family of learners, and the runs of it that are kept.

    Attributes
    ----------
    protocol : Protocol
    stream : LateStream
    replay : Replay
    learners : Learners
    folder : Path
        Of runs, of any protocol and defects.
    tested_until_us : int
        Clicks from then on are not tested.
    defects : frozenset of Defect
    """

    protocol: Protocol
    stream: LateStream
    replay: Replay
    learners: Learners
    folder: Path
    tested_until_us: int
    defects: frozenset[Defect] = frozenset()

    @cached_property
    def bench(self) -> Bench:
        """The runs of this stream and these defects, and what they cost."""
        said = "+".join(sorted(self.defects)) or "corrected"
        of_stream = identity(self.stream, self.replay, self.learners)
        kept = KeptRuns(self.folder / of_stream / said)
        return Bench(self.stream, self.replay, self.learners, kept)

    @cached_property
    def outcomes(self) -> np.ndarray:
        """What every emitted row tells beside its label, float64 (m, N_OUTCOMES)."""
        outcomes = told_outcomes(self.stream, self.replay)
        if Defect.PRE_TRAINED_ON_EVENTUAL_LABELS in self.defects:
            return eventual_outcomes(self.stream, self.replay, outcomes)
        return outcomes

    def run(self, arms: Sequence[Arm], seeds: Sequence[int], say: Say) -> None:
        """Run what is not kept, seed by seed, and keep each run as it comes.

        Parameters
        ----------
        arms : sequence of Arm
        seeds : sequence of int
        say : callable
            Gets a line after every run.
        """
        left = self.bench.missing(arms, seeds)
        if not left:
            return
        rates = self.bench.chosen_rates(arms)
        outcomes = self.outcomes
        started, done = time.monotonic(), 0
        for seed in seeds:
            asked = [
                replace(arm, rate=rates.get(arm.name, 1.0)) for arm, each in left if each == seed
            ]
            if not asked:
                continue
            for arm, scores in self._runs(asked, seed, outcomes):
                self.bench.kept.write(self.learners.name, arm, seed, scores)
                done += 1
                minutes = (time.monotonic() - started) / done * (len(left) - done) / 60
                say(f"{done}/{len(left)}: {arm.name}, seed {seed}; about {minutes:.1f} min left")

    def scores(self, arm: Arm, seed: int) -> ArmScores:
        """Return a kept run as it is scored.

        Raises
        ------
        LookupError
            If it is not kept.
        """
        found = self.bench.scores(arm, seed)
        if arm.name == "fake_negative_calibrated" and (
            Defect.CALIBRATION_NOT_CAPPED in self.defects
        ):
            return replace(found, log_odds=uncapped(found.log_odds))
        return found

    def tested(self, judged: np.ndarray) -> np.ndarray:
        """Return which of some anchors the protocol tests, bool (s,).

        The first block is learnt before anything is tested.
        """
        served_us = self.stream.served_us[judged]
        first_us = self.replay.split_us + self.protocol.block_us
        return (served_us >= first_us) & (served_us < self.tested_until_us)

    def _runs(
        self, arms: Sequence[Arm], seed: int, outcomes: np.ndarray
    ) -> Iterator[tuple[Arm, ArmScores]]:
        known = self.stream
        if Defect.PRE_TRAINED_ON_EVENTUAL_LABELS in self.defects:
            known = arrived_at_once(known, self.replay.split_us)
        pre_trained = pre_train(known, self.replay, self.learners, seed)
        for stream, told, some in self._parts(arms, pre_trained, outcomes):
            yield from replay_arms(
                stream, self.replay, self.learners, some, seed, pre_trained, told
            )

    def _parts(
        self, arms: Sequence[Arm], pre_trained: BenchLearner, outcomes: np.ndarray
    ) -> Iterator[tuple[LateStream, np.ndarray, list[Arm]]]:
        """Yield arms with what they are shown: those with a defect of their own apart."""
        plain: list[Arm] = []
        for arm in arms:
            if arm.name == "fake_negative_weighted" and (
                Defect.WEIGHTS_OF_PRE_TRAINED in self.defects
            ):
                weighted = weighted_beforehand(self.stream, pre_trained)
                yield weighted, outcomes, [replace(arm, objective=Objective(strategy="immediate"))]
            elif arm.name == "delayed_feedback":
                stream, told = self.stream, outcomes
                if Defect.DELAYS_TO_HOUR_END in self.defects:
                    stream, told = shown_at_hour_end(stream, self.replay.split_us)
                if Defect.DELAYS_IN_SECONDS in self.defects:
                    told = in_seconds(told)
                yield stream, told, [arm]
            else:
                plain.append(arm)
        yield self.stream, outcomes, plain


def _split_us(protocol: Protocol, dataset: Dataset) -> int:
    return dataset.start_us + hour_of(int(protocol.split_share * _span_us(dataset)))


def end_of_tests_us(protocol: Protocol, dataset: Dataset) -> int:
    """Return when the tests of a protocol end, microseconds."""
    return dataset.start_us + int(protocol.tested_until_share * _span_us(dataset))


def _span_us(dataset: Dataset) -> int:
    if dataset.end_us is None:
        raise LookupError(
            f"{dataset.path} names no end of its clicks, of which the protocol takes shares: "
            "write 'end:'"
        )
    return dataset.end_us - dataset.start_us


def _strategies(arms: Sequence[Arm]) -> list[StrategyName]:
    """Return the strategies whose rows some arms are shown, and one in any case."""
    shown: set[StrategyName] = {"windowed"}
    shown |= {arm.objective.shown for arm in arms if arm.role == "learner"}
    return [name for name in ALL_STRATEGIES if name in shown]
