"""The benchmark of late labels on a deployment's own log: every way of learning, on every family.

Puts the parts together: a sample of a goal's log (:mod:`.log_stream`), its split and its runs
(:mod:`.runs`), what is measured of them (:mod:`.measures`), and the rows that the warehouse keeps.
One sample for all families, so that they can be read beside one another. What it will cost is said
before it starts. How any of those parts works does not belong here.
"""

import importlib.util
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa

from ad_pipeline.clocks import DAY_US, MINUTE_US, timestamp
from ad_pipeline.datasets import Deployment, Goal
from ad_pipeline.monitoring.late_labels.arms import (
    ORACLE,
    PRE_TRAINED,
    VANILLA,
    Arm,
    arms_named,
    arms_of,
)
from ad_pipeline.monitoring.late_labels.benchmark_plots import arms_picture
from ad_pipeline.monitoring.late_labels.linear import LinearLearners
from ad_pipeline.monitoring.late_labels.log_stream import NothingToReplay, log_stream
from ad_pipeline.monitoring.late_labels.measures import JudgedRows, Measured, leaks, measure_arms
from ad_pipeline.monitoring.late_labels.prequential import Learners, Replay, judged_anchors
from ad_pipeline.monitoring.late_labels.runs import (
    Bench,
    KeptRuns,
    Say,
    TooShort,
    default_replay,
    identity,
)
from ad_pipeline.monitoring.late_labels.stream import LateStream
from ad_pipeline.monitoring.tables import DELAY_BENCHMARK, TABLES
from ad_pipeline.settings import DeepSettings
from ad_pipeline.warehouse import Warehouse, arrow_rows

Family = Literal["linear", "deep"]
FAMILIES: tuple[Family, ...] = get_args(Family)

ALWAYS = (PRE_TRAINED, ORACLE, VANILLA)
"""Arms that every other is measured against."""

FULL_SEEDS = 10

DEEP_BATCH_ROWS = 256
"""At most: an hour of a sampled log has few examples, and what fills a batch up costs as much."""

FOLDER = "delay_benchmark"
"""Below a deployment's home: the runs. Its pictures are among the reports."""


@dataclass(frozen=True)
class Asked:
    """What is to be run.

    Attributes
    ----------
    goals : tuple of str
        Empty: every goal of the dataset.
    families : tuple of {'linear', 'deep'}
    arms : tuple of str
        Names of arms, beside those that all are measured against; empty: all.
    seeds : int or None
        None: as the settings say.
    anchors : int or None
        About how many are sampled, of all goals together; None: as the settings say.
    full : bool
        All anchors and ten seeds, where nothing else is asked for.
    fresh : bool
        Runs that are kept are thrown away.
    """

    goals: tuple[str, ...] = ()
    families: tuple[Family, ...] = FAMILIES
    arms: tuple[str, ...] = ()
    seeds: int | None = None
    anchors: int | None = None
    full: bool = False
    fresh: bool = False


@dataclass(frozen=True)
class FamilyMeasured:
    """What the arms of one family did.

    Attributes
    ----------
    figures : tuple of Measured
    leaks : tuple of Measured
        Arms that beat the oracle beyond noise.
    rates : dict of str to float
        Factor on the learning rates that each arm was given.
    identity : str
        Of all that its runs follow from.
    """

    figures: tuple[Measured, ...]
    leaks: tuple[Measured, ...]
    rates: dict[str, float]
    identity: str


@dataclass(frozen=True)
class GoalMeasured:
    """The benchmark of one goal.

    Attributes
    ----------
    goal : Goal
    anchors, judged : int
        Sampled, and of them those that every arm is judged by.
    replay : Replay
    end_us : int
        End of the log.
    seeds : int
    families : dict of str to FamilyMeasured
    picture : bytes
        PNG, as it is among the reports.
    """

    goal: Goal
    anchors: int
    judged: int
    replay: Replay
    end_us: int
    seeds: int
    families: dict[str, FamilyMeasured]
    picture: bytes

    @property
    def described(self) -> str:
        """What was replayed, and which part of it the arms are judged by."""
        return (
            f"{self.judged:,} of {self.anchors:,} anchors judged, served from "
            f"{timestamp(self.replay.split_us)}; checkpoint {self.replay.beginning}; "
            f"{self.seeds} seeds"
        )


def record_benchmark(
    warehouse: Warehouse, deployment: Deployment, asked: Asked, say: Say
) -> tuple[dict[str, GoalMeasured], dict[str, str]]:
    """Run what is missing, measure all, keep the figures and draw them.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    asked : Asked
    say : callable
        Gets the time budget before anything runs, and a line after every run.

    Returns
    -------
    dict of str to GoalMeasured
        By goal.
    dict of str to str
        Why a goal or a family was left out.

    Raises
    ------
    LookupError
        If the dataset has no goal, or the benchmark no arm, of a name that was asked for.
    """
    warehouse.create(TABLES)
    families, left_out = _installed(asked.families)
    measured: dict[str, GoalMeasured] = {}
    goals = _goals(deployment, asked.goals)
    anchors = _anchors_of_a_goal(deployment, asked, len(goals))
    for goal in goals:
        try:
            prepared = _prepared(warehouse, deployment, goal, families, asked, anchors)
        except (NothingToReplay, TooShort) as error:
            left_out[goal.name] = str(error)
            continue
        for line in prepared.budget():
            say(line)
        for bench in prepared.benches.values():
            bench.run(prepared.arms, prepared.seeds, say)
        found = _measured(prepared, deployment)
        _write(warehouse, found)
        deployment.reports.mkdir(parents=True, exist_ok=True)
        picture_file(deployment, goal.name).write_bytes(found.picture)
        measured[goal.name] = found
    for name, why in left_out.items():
        say(f"{name} is left out: {why}")
    return measured, left_out


def picture_file(deployment: Deployment, goal: str) -> Path:
    """Return where the picture of a goal lies."""
    return deployment.reports / f"{FOLDER}.{goal}.png"


@dataclass(frozen=True)
class _Prepared:
    """All that the runs of one goal follow from."""

    goal: Goal
    stream: LateStream
    replay: Replay
    arms: tuple[Arm, ...]
    seeds: range
    benches: dict[str, Bench]

    def budget(self) -> list[str]:
        """Return a line a family: runs that are kept and left, and the minutes they will take."""
        lines = []
        for family, bench in self.benches.items():
            runs = len(self.arms) * len(self.seeds)
            left = len(bench.missing(self.arms, self.seeds))
            minutes = bench.seconds(self.arms, self.seeds) / 60
            lines.append(
                f"{self.goal.name}, {family}: {len(self.arms)} arms x {len(self.seeds)} seeds on "
                f"{len(self.stream):,} anchors; of the runs {runs - left} are kept, {left} are "
                f"left: about {minutes:.1f} minutes"
            )
        return lines


def families_named(names: Sequence[str]) -> tuple[Family, ...]:
    """Return families by name.

    Raises
    ------
    LookupError
        If there is none of a name; the message lists those there are.
    """
    known: dict[str, Family] = {family: family for family in FAMILIES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise LookupError(f"no family {unknown[0]!r}; there are {', '.join(known)}")
    return tuple(known[name] for name in names)


def _goals(deployment: Deployment, names: Sequence[str]) -> list[Goal]:
    goals = {goal.name: goal for goal in deployment.dataset.goals}
    unknown = [name for name in names if name not in goals]
    if unknown:
        raise LookupError(
            f"{deployment.dataset.name} has no goal {unknown[0]!r}; it has {', '.join(goals)}"
        )
    return [goals[name] for name in names or goals]


def _anchors_of_a_goal(deployment: Deployment, asked: Asked, goals: int) -> int | None:
    """Return how many anchors are sampled of each goal, None for all: the goals share them."""
    if asked.full and asked.anchors is None:
        return None
    return (asked.anchors or deployment.dataset.settings.delay_benchmark.anchors) // goals


def _installed(families: Sequence[Family]) -> tuple[list[Family], dict[str, str]]:
    """Return the families that can be run here, and why the others cannot."""
    if "deep" in families and importlib.util.find_spec("jax") is None:
        why = "it needs JAX, which is not installed: `pip install ad_pipeline[deep]`"
        return [each for each in families if each != "deep"], {"deep": why}
    return list(families), {}


def _prepared(
    warehouse: Warehouse,
    deployment: Deployment,
    goal: Goal,
    families: Sequence[Family],
    asked: Asked,
    anchors: int | None,
) -> _Prepared:
    settings = deployment.dataset.settings.delay_benchmark
    arms = arms_of(goal)
    if asked.arms:
        chosen = {*ALWAYS, *(arm.name for arm in arms_named(arms, asked.arms))}
        arms = tuple(arm for arm in arms if arm.name in chosen)
    seeds = asked.seeds or (FULL_SEEDS if asked.full else settings.seeds)
    stream = log_stream(warehouse, deployment, goal, anchors)
    replay = default_replay(stream, settings.block_minutes * MINUTE_US)
    benches = {}
    for family in families:
        learners = _LEARNERS[family](deployment, stream)
        folder = deployment.home / FOLDER / goal.name / identity(stream, replay, learners)
        if asked.fresh and folder.exists():
            shutil.rmtree(folder)
        benches[family] = Bench(stream, replay, learners, KeptRuns(folder))
    return _Prepared(goal, stream, replay, arms, range(seeds), benches)


def _linear(deployment: Deployment, stream: LateStream) -> Learners:
    online = deployment.dataset.settings.online.of_goal(stream.goal.name)
    configuration = online.configurations()[0]
    return LinearLearners(configuration, stream.slot_bits, stream.horizon_us / DAY_US)


def _deep(deployment: Deployment, stream: LateStream) -> Learners:
    from ad_pipeline.monitoring.late_labels.deep import DeepLearners

    settings = deployment.dataset.settings.deep or DeepSettings()
    smaller = {
        "batch_rows": min(settings.batch_rows, DEEP_BATCH_ROWS),
        "bits": min(settings.bits, stream.slot_bits),
    }
    return DeepLearners(
        settings.model_copy(update=smaller),
        stream.slots.shape[1],
        stream.slot_bits,
        stream.horizon_us / DAY_US,
    )


_LEARNERS: Mapping[Family, Callable[[Deployment, LateStream], Learners]] = {
    "linear": _linear,
    "deep": _deep,
}


def _measured(prepared: _Prepared, deployment: Deployment) -> GoalMeasured:
    """Measure the kept runs of all families on the same rows."""
    settings = deployment.dataset.settings
    rows = JudgedRows.of(prepared.stream, prepared.replay)
    families = {}
    for family, bench in prepared.benches.items():
        runs = {
            arm.name: [bench.scores(arm, seed) for seed in prepared.seeds] for arm in prepared.arms
        }
        figures = tuple(
            measure_arms(
                rows,
                {name: [each.log_odds for each in found] for name, found in runs.items()},
                {name: [each.gradient_examples for each in found] for name, found in runs.items()},
                settings.seed,
                settings.delay_benchmark.replicates,
            )
        )
        families[family] = FamilyMeasured(
            figures,
            tuple(leaks(figures, prepared.arms)),
            bench.kept.rates(family),
            bench.kept.folder.name,
        )
    judged = len(judged_anchors(prepared.stream, prepared.replay))
    title = (
        f"{deployment.dataset.name}, {prepared.goal.name}: {judged:,} anchors that all arms are "
        f"judged by, {len(prepared.seeds)} seeds"
    )
    return GoalMeasured(
        goal=prepared.goal,
        anchors=len(prepared.stream),
        judged=judged,
        replay=prepared.replay,
        end_us=prepared.stream.end_us,
        seeds=len(prepared.seeds),
        families=families,
        picture=arms_picture(
            {family: each.figures for family, each in families.items()}, title=title
        ),
    )


def _write(warehouse: Warehouse, measured: GoalMeasured) -> None:
    """Put a goal's figures in the place of those of its last benchmark."""
    found = benchmark_rows(measured)
    with warehouse.writer() as connection:
        connection.register("found", found)
        connection.execute(
            f"DELETE FROM {DELAY_BENCHMARK.name} WHERE goal = $goal",
            {"goal": measured.goal.name},
        )
        connection.execute(f"INSERT INTO {DELAY_BENCHMARK.name} BY NAME SELECT * FROM found")


def benchmark_rows(measured: GoalMeasured) -> pa.Table:
    """Return a goal's figures as rows of ``monitoring.delay_benchmark``."""
    return arrow_rows(
        DELAY_BENCHMARK,
        [
            {
                "goal": measured.goal.name,
                "family": family,
                "arm": figure.arm,
                "slice_of": figure.slice_of,
                "part": figure.part,
                "metric": figure.metric,
                "value": figure.value,
                "low": figure.low,
                "high": figure.high,
                "rows": figure.rows,
                "positives": figure.positives,
                "seeds": measured.seeds,
                "rate": each.rates.get(figure.arm, 1.0),
                "beginning": measured.replay.beginning,
                "split_us": measured.replay.split_us,
                "end_us": measured.end_us,
                "runs": each.identity,
            }
            for family, each in measured.families.items()
            for figure in each.figures
        ],
    )
