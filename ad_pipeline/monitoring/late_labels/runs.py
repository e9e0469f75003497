"""Runs of the benchmark: every arm, seed and family on one stream, kept as they come.

A run is one arm under one seed: what it said of the judged anchors, as one file. A benchmark that
was killed goes on with the runs that have none, and what it will cost is said before it starts.
Rates are chosen beforehand, once a family, on a part of the log that ends where the stream begins,
from the same factors for every arm; a rate that suits one loss may not suit another, and an arm
tuned longer than its neighbours would only show who was tuned. What is measured of the runs is
:mod:`.measures`.
"""

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ad_pipeline.checkpoints import replace_file
from ad_pipeline.clocks import HOUR_US, hour_of
from ad_pipeline.evaluation import metrics
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.learners.online import online_hours
from ad_pipeline.monitoring.late_labels.arms import VANILLA, Arm
from ad_pipeline.monitoring.late_labels.prequential import (
    ArmScores,
    Learners,
    Replay,
    base_rate_scores,
    judged_anchors,
    known_at_split,
    pre_train,
    recalibrated_scores,
    replay_arms,
    shown_from,
    told_outcomes,
)
from ad_pipeline.monitoring.late_labels.stream import LateStream

Say = Callable[[str], None]

CODE_VERSION = (1, online_hours.CODE_VERSION)
"""Raise the first when the same stream and settings would give other runs."""

RATES = (0.5, 1.0, 2.0)
"""Factors on a family's learning rates that are tried for every arm."""

LEAST_POSITIVES = 50
"""With fewer to judge by, a rate is not chosen but left as it is."""

_PROBED_ROWS = 4_096


class TooShort(ValueError):
    """The log holds no stretch on which late labels could be judged."""


@dataclass(frozen=True)
class KeptRuns:
    """Runs on disk, one file each, under a folder that belongs to one stream and one set-up.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    def read(self, family: str, arm: Arm, seed: int) -> ArmScores | None:
        """Return a run, None if it was not finished."""
        path = self._path(family, arm, seed)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as found:
            return ArmScores(found["log_odds"], int(found["gradient_examples"]))

    def write(self, family: str, arm: Arm, seed: int, scores: ArmScores) -> None:
        """Keep a run; a process that is killed meanwhile leaves none."""
        path = self._path(family, arm, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".writing")
        with scratch.open("wb") as file:
            np.savez(
                file,
                log_odds=scores.log_odds,
                gradient_examples=np.int64(scores.gradient_examples),
            )
        scratch.replace(path)

    def rates(self, family: str) -> dict[str, float]:
        """Return the rates that were chosen for a family, by arm."""
        path = self.folder / f"{family}.rates.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def keep_rates(self, family: str, rates: Mapping[str, float]) -> None:
        """Keep the rates chosen for a family."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_file(self.folder / f"{family}.rates.json", json.dumps(dict(rates)).encode())

    def _path(self, family: str, arm: Arm, seed: int) -> Path:
        name = re.sub(r"\W+", "_", arm.name)
        return self.folder / f"{family}.{name}.{seed}.npz"


@dataclass(frozen=True)
class Bench:
    """One family of learners on one stream, and the runs of it that are kept.

    Attributes
    ----------
    stream : LateStream
    replay : Replay
    learners : Learners
    kept : KeptRuns
    """

    stream: LateStream
    replay: Replay
    learners: Learners
    kept: KeptRuns

    def scores(self, arm: Arm, seed: int) -> ArmScores:
        """Return a run that is kept.

        Raises
        ------
        LookupError
            If it is not.
        """
        found = self.kept.read(self.learners.name, arm, seed)
        if found is None:
            raise LookupError(f"no run of {self.learners.name}, {arm.name!r}, seed {seed} is kept")
        return found

    def missing(self, arms: Sequence[Arm], seeds: Sequence[int]) -> list[tuple[Arm, int]]:
        """Return the runs that are not kept, seed by seed."""
        return [
            (arm, seed)
            for seed in seeds
            for arm in arms
            if self.kept.read(self.learners.name, arm, seed) is None
        ]

    def run(self, arms: Sequence[Arm], seeds: Sequence[int], say: Say) -> None:
        """Run what is not kept, seed by seed, and keep each run as it comes.

        Parameters
        ----------
        arms : sequence of Arm
        seeds : sequence of int
        say : callable
            Gets a line after every run.
        """
        left = self.missing(arms, seeds)
        if not left:
            return
        family = self.learners.name
        rates = self.chosen_rates(arms)
        changed = ", ".join(f"{name} x {rate:g}" for name, rate in rates.items() if rate != 1.0)
        say(f"{family}: rates other than the settings' own: {changed or 'none'}")
        outcomes = told_outcomes(self.stream, self.replay)
        started, done = time.monotonic(), 0
        for seed in seeds:
            asked = [
                replace(arm, rate=rates.get(arm.name, 1.0)) for arm, each in left if each == seed
            ]
            for arm, scores in self._runs(asked, seed, outcomes):
                self.kept.write(family, arm, seed, scores)
                done += 1
                minutes = (time.monotonic() - started) / done * (len(left) - done) / 60
                say(
                    f"{family} {done}/{len(left)}: {arm.name}, seed {seed}; about {minutes:.1f} "
                    "minutes left"
                )

    def chosen_rates(self, arms: Sequence[Arm]) -> dict[str, float]:
        """Return the factor of each arm that learns, chosen by log loss before the split.

        What was chosen once stays: it is kept beside the runs.
        """
        rates = self.kept.rates(self.learners.name)
        asked = [arm for arm in arms if arm.learns and arm.name not in rates]
        tuning = tuning_replay(self.stream, self.replay)
        if tuning is None:
            rates |= {arm.name: 1.0 for arm in asked}
        elif asked:
            labels = self.stream.labels[judged_anchors(self.stream, tuning)]
            tried = [replace(arm, rate=rate) for arm in asked for rate in RATES]
            pre_trained = pre_train(self.stream, tuning, self.learners, 0)
            outcomes = told_outcomes(self.stream, tuning)
            best: dict[str, float] = {}
            for arm, scores in replay_arms(
                self.stream, tuning, self.learners, tried, 0, pre_trained, outcomes
            ):
                loss = metrics.log_loss(labels, metrics.probabilities_of(scores.log_odds))
                if loss < best.get(arm.name, math.inf):
                    best[arm.name], rates[arm.name] = loss, arm.rate
        self.kept.keep_rates(self.learners.name, rates)
        return rates

    def seconds(self, arms: Sequence[Arm], seeds: Sequence[int]) -> float:
        """Return what the runs that are left will take; some thousand rows are learnt to find out.

        Parameters
        ----------
        arms : sequence of Arm
        seeds : sequence of int
        """
        left = self.missing(arms, seeds)
        learning = [arm for arm in arms if arm.learns]
        if not left or not learning:
            return 0.0
        rows = {arm.name: len(shown_from(self.stream, self.replay, arm)) for arm in learning}
        blocks = max((self.stream.end_us - self.replay.split_us) // self.replay.block_us, 1)
        usual = int(np.median(list(rows.values()))) // blocks
        speeds = _speeds(self.stream, self.learners, learning, max(usual, 1))
        judged = len(judged_anchors(self.stream, self.replay))
        before = len(known_at_split(self.stream, self.replay)[0])
        seconds = sum(
            rows.get(arm.name, 0) * speeds.learn + judged * speeds.score for arm, _ in left
        )
        seconds += len({seed for _, seed in left}) * before * speeds.learn
        untried = [arm for arm in learning if arm.name not in self.kept.rates(self.learners.name)]
        seconds += speeds.begin * len(left) / len(arms)
        tuning = tuning_replay(self.stream, self.replay)
        if tuning is not None:
            span_us = self.replay.split_us - tuning.split_us
            share = span_us / (self.stream.end_us - self.replay.split_us)
            learnt = share * sum(rows[arm.name] for arm in untried)
            seconds += len(RATES) * (learnt * speeds.learn + len(untried) * speeds.begin)
        return seconds

    def _runs(
        self, arms: Sequence[Arm], seed: int, outcomes: np.ndarray
    ) -> Iterator[tuple[Arm, ArmScores]]:
        stream, replay = self.stream, self.replay
        replayed = [arm for arm in arms if arm.learns or arm.role == "frozen"]
        if replayed:
            pre_trained = pre_train(stream, replay, self.learners, seed)
            yield from replay_arms(
                stream, replay, self.learners, replayed, seed, pre_trained, outcomes
            )
        for arm in arms:
            if arm.role == "base_rate":
                yield arm, ArmScores(base_rate_scores(stream, replay), 0)
            elif arm.role == "recalibrated":
                raw = self.scores(replace(arm, name=VANILLA), seed)
                line = recalibrated_scores(stream, replay, raw.log_odds)
                yield arm, ArmScores(line, raw.gradient_examples)


def default_replay(stream: LateStream, block_us: int = HOUR_US) -> Replay:
    """Return where a log is split: in the middle of the time whose labels are final.

    Where what matured before the split would be less than a third of what was served before it, the
    learners begin with labels as they were known at the split instead.

    Raises
    ------
    TooShort
        If the log is too short for its window.
    """
    start_us, known = hour_of(stream.start_us), stream.served_us[stream.labels >= 0]
    last_us = int(known[-1]) if len(known) else start_us
    split_us = hour_of(start_us + (last_us - start_us) // 2)
    if split_us <= start_us:
        span_us = stream.end_us - start_us
        raise TooShort(
            f"window and lateness of {stream.goal.name} are {stream.horizon_us / HOUR_US:.1f} "
            f"hours and the log has {span_us / HOUR_US:.1f}: there are not two hours with final "
            "labels, so nothing to judge; take a longer log"
        )
    before_us = split_us - start_us
    matured = before_us - stream.horizon_us >= before_us / 3
    return Replay(split_us, "matured" if matured else "censored", block_us)


def tuning_replay(stream: LateStream, replay: Replay) -> Replay | None:
    """Return the part of the log on which rates are chosen; None if it has too few labels.

    It ends where the stream begins: nothing that matured later is read.
    """
    before_us = replay.split_us - hour_of(stream.start_us)
    tuning = replace(
        replay,
        split_us=hour_of(stream.start_us + before_us // 2),
        judged_until_us=replay.split_us,
    )
    judged = judged_anchors(stream, tuning)
    known, _ = known_at_split(stream, tuning)
    enough = int(stream.labels[judged].sum()) >= LEAST_POSITIVES and len(known) > 0
    return tuning if enough else None


def identity(stream: LateStream, replay: Replay, learners: Learners) -> str:
    """Return 16 hexadecimal digits of all that the runs of a family follow from."""
    found = hashlib.sha256()
    for array in (
        stream.slots, stream.served_us, stream.labels, stream.matured_us, stream.arrived_us,
        stream.groups, stream.draws, stream.emit_us, stream.anchor, stream.weights,
        stream.emitted.kinds, stream.emitted.wait_us,
    ):  # fmt: skip
        found.update(np.ascontiguousarray(array).tobytes())
    rest = (stream.goal, stream.end_us, replay, learners, CODE_VERSION, RATES)
    found.update(repr(rest).encode())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class _Speeds:
    """Seconds to begin an arm (what compiles, compiles), to learn a row of it, and to score one."""

    begin: float
    learn: float
    score: float


def _speeds(stream: LateStream, learners: Learners, arms: Sequence[Arm], at_once: int) -> _Speeds:
    """Time some thousand rows, learnt so many at once as a block of the stream has."""
    rows = stream.slots[:_PROBED_ROWS]
    labels = (np.arange(len(rows)) % 7 == 0).astype(np.float64)
    ones, told = np.ones(len(rows)), np.zeros((len(rows), kernel.N_OUTCOMES))
    together = list(arms[: learners.side_by_side])
    began = time.perf_counter()
    learner = learners.continued(learners.fresh(0), together, 0)
    learner.learn(rows, labels, ones, told)
    learner.logits(rows)
    begun = time.perf_counter()
    for first in range(0, len(rows), at_once):
        block = slice(first, first + at_once)
        learner.learn(rows[block], labels[block], ones[block], told[block])
    learnt = time.perf_counter()
    learner.logits(rows)
    scored = time.perf_counter()
    each = max(len(rows) * len(together), 1)
    return _Speeds(
        (begun - began) / len(together), (learnt - begun) / each, (scored - learnt) / each
    )
