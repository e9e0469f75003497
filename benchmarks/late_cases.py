"""What the study of late labels runs: its worlds, the arms of each, and the numbers that are kept.

Formulas are computed and not drawn, but for the mean slopes; each other run makes a world
(:mod:`benchmarks.late_worlds`) and replays arms over it. What is claimed of the numbers stands in
``benchmarks/evidence/delayed_labels.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ad_pipeline.clocks import MINUTE_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.intervals import paired_difference
from ad_pipeline.learners.delayed import losses
from ad_pipeline.learners.delayed.losses import COEFFICIENTS, Event
from ad_pipeline.monitoring.late_labels.arms import (
    ORACLE,
    PRE_TRAINED,
    RECALIBRATED,
    VANILLA,
    VANILLA_IMMEDIATE,
    Arm,
    arms_named,
    arms_of,
)
from ad_pipeline.monitoring.late_labels.deep import DeepLearners
from ad_pipeline.monitoring.late_labels.linear import LinearLearners
from ad_pipeline.monitoring.late_labels.measures import LEAK_LEVEL, JudgedRows
from ad_pipeline.monitoring.late_labels.prequential import Learners
from ad_pipeline.settings import Configuration, DeepSettings, Objective
from benchmarks.fixed_points import DEFECTS, fixed_point, largest_error, largest_logit, rate_of
from benchmarks.late_worlds import BITS, Field, Scored, World, scored
from benchmarks.studies import Values

PU, FNW, FNC = "positive_unlabelled", "fake_negative_weighted", "fake_negative_calibrated"
ES_DFM, HAZARD, DEFER = "es_dfm", "hazard", "defer"
SHORT = World(
    rate=0.345,
    rows_an_hour=3_000,
    before_hours=24,
    judged_hours=24,
    ads=50,
    life_hours=24,
    ad_spread=0.5,
    delays=((1.0, 0.1),),
    window_hours=1,
    observation_minutes=2,
    fields=(Field(30, 0.4), Field(200, 0.6)),
)
"""Twitter's base rate (0.644 nats, the reference entropy of Ktena et al., are H(0.345)), and labels
that take six minutes where ads live a day."""

FLAT = replace(SHORT, ad_spread=0.0, fields=(Field(30, 0.0), Field(200, 0.0)))

LONG = World(
    rate=0.4,
    rows_an_hour=1_000,
    before_hours=192,
    judged_hours=168,
    ads=100,
    life_hours=48,
    ad_spread=0.5,
    delays=((1.0, 16.0),),
    window_hours=64,
    observation_minutes=96,
)
"""Labels take a third of an ad's life."""

STREAM = World(
    rate=0.227,
    rows_an_hour=250,
    before_hours=21 * 24,
    judged_hours=30 * 24,
    ads=200,
    life_hours=240,
    ad_spread=0.3,
    delays=((0.35, 0.3), (0.2, 8.0), (0.45, 120.0)),
    window_hours=7 * 24,
    observation_minutes=15,
    fields=(Field(30, 0.6, 0.05), Field(500, 1.3), Field(100, 0.7)),
    delay_spread=0.5,
)
"""Criteo's rate; about as many labels within an hour and a day as there; ES-DFM's 15 minutes."""

KTENA = (ORACLE, VANILLA_IMMEDIATE, PU, FNW, FNC)
STREAMING = (
    PRE_TRAINED, ORACLE, "wait for maturity", VANILLA_IMMEDIATE, VANILLA, RECALIBRATED,
    PU, FNW, FNC, "delayed_feedback", "fsiw", ES_DFM, DEFER, HAZARD,
)  # fmt: skip
BY_AGE = (ORACLE, VANILLA_IMMEDIATE, FNW, FNC, ES_DFM, HAZARD)

DEEP = DeepSettings(bits=BITS, layers=(64, 32), batch_rows=256)


@dataclass(frozen=True)
class Case:
    """A world, and what is replayed over it.

    Attributes
    ----------
    world : World
    names : tuple of str
        Of the arms.
    deep : bool
        Wide & deep; else linear.
    block_minutes : int
        Between two published states.
    alpha : float
        Rate of the linear learners.
    tuned : bool
        See :func:`.late_worlds.scored`.
    """

    world: World
    names: tuple[str, ...]
    deep: bool = False
    block_minutes: int = 5
    alpha: float = 0.1
    tuned: bool = False

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What is replayed."""
        return arms_named(arms_of(self.world.goal, ()), self.names)

    @property
    def learners(self) -> Learners:
        """Their family."""
        days = self.world.window_hours / 24
        if self.deep:
            return DeepLearners(DEEP, 2 + len(self.world.fields), BITS, days)
        return _linear(self.alpha, days)


def _linear(alpha: float, horizon_days: float = 0.0) -> LinearLearners:
    return LinearLearners(Configuration(alpha=alpha, l1=0.0, l2=0.0), BITS, horizon_days)


CASES = {
    "short": Case(SHORT, KTENA),
    "short, no spread": Case(FLAT, KTENA),
    "short, deep": Case(SHORT, KTENA, deep=True),
    "rare": Case(replace(SHORT, rate=0.005), (ORACLE, VANILLA_IMMEDIATE, FNW)),
    "long": Case(LONG, BY_AGE, block_minutes=60),
    "long, 0.05": Case(replace(LONG, rate=0.05), BY_AGE, block_minutes=60),
    "stream": Case(STREAM, STREAMING, block_minutes=60, alpha=0.2, tuned=True),
}
FORMULAS, BURSTS = "formulas", "bursts"
AGES = ((0, 0.05), (0.05, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 1.01))
"""Of an ad, as shares of its life."""

DRAWS = 200_000
REPLICATES = 1_000
NO_ZERO = 100.0
"""Stands for the error of a loss that has no zero."""


def run(arm: str, seed: int) -> Values:
    """Compute the formulas, or make one world and measure its arms.

    Parameters
    ----------
    arm : str
        'formulas', 'bursts', or a name of :data:`CASES`.
    seed : int

    Returns
    -------
    dict of str to float
        ``error/<loss>``, ``defect/<variant>``, ``damping/<factor>``, ``slope/<loss>``; or
        ``<family>/<loss>/<bursts or spread out>``, largest logits. Of a world:
        ``<arm>/<measure>`` with sums of probabilities over sums of true rates as calibration,
        ``<arm>/age/<place>``, ``leaks``.
    """
    if arm == FORMULAS:
        return _zeros() | _slopes(seed)
    if arm == BURSTS:
        return _bursts()
    case = CASES[arm]
    found = scored(
        case.world,
        seed,
        case.learners,
        case.arms,
        case.block_minutes * MINUTE_US,
        tuned=case.tuned,
    )
    return measured(found) | _leaks(found, case.arms)


def measured(found: Scored) -> Values:
    """Return the measures of every arm of a world."""
    truth = found.truth
    values: Values = {
        "rows": float(len(truth)),
        "rate": float(truth.mean()),
        "naive": float((truth / (1 + truth)).sum() / truth.sum()),
        "late": late_share(found),
    }
    for name in found.arms:
        said = found.probabilities(name)
        summary = metrics.summarize(found.labels, said)
        for measure in ("log_loss", "rce", "pr_auc", "roc_auc"):
            values[f"{name}/{measure}"] = getattr(summary, measure)
        values[f"{name}/calibration"] = float(said.sum() / truth.sum())
        values[f"{name}/examples"] = float(found.arms[name].gradient_examples)
        for place, (low, high) in enumerate(AGES):
            of_age = (found.ad_age >= low) & (found.ad_age < high)
            values[f"{name}/age/{place}"] = float(said[of_age].sum() / truth[of_age].sum())
    return values


def late_share(found: Scored) -> float:
    """Return the share of positives that come after the observation window."""
    rows = JudgedRows.of(found.stream, found.replay)
    return 1 - float(rows.in_window.sum() / rows.labels.sum())


def _leaks(found: Scored, arms: Sequence[Arm]) -> Values:
    """Return how many arms beat the oracle beyond noise, and whether a planted leak is found."""
    rows = JudgedRows.of(found.stream, found.replay)
    oracle = found.probabilities(ORACLE)

    def beats(said: np.ndarray) -> bool:
        difference = paired_difference(
            found.labels, said, oracle, rows.blocks, seed=1, replicates=REPLICATES, level=LEAK_LEVEL
        )
        return difference.high < 0

    leaking = [arm for arm in arms if arm.deployable and beats(found.probabilities(arm.name))]
    return {"leaks": float(len(leaking)), "planted leak": float(beats(found.truth))}


def _zeros() -> Values:
    """Return relative errors of fixed points, and of FNW's slope as PU's times a factor."""
    values: Values = {}
    for loss in (*COEFFICIENTS, "bi_defuse"):
        values[f"error/{loss}"] = largest_error(partial(rate_of, loss))
    for name, (coded, shown) in DEFECTS.items():
        values[f"defect/{name}"] = min(largest_error(partial(fixed_point, coded, shown)), NO_ZERO)
    score = np.linspace(-15, 15, 301)
    f, q = metrics.probabilities_of(score), metrics.probabilities_of(-score)
    for name, factor in {"1 - f^2": q * (1 + f), "1 - f": q}.items():
        errors = []
        for positive in (0.0, 1.0):
            event = Event(f, q, np.full_like(f, positive), 0.0, 0.3, 0.8)
            pu, fnw = (losses.slope_of(*COEFFICIENTS[each](event), f, q) for each in (PU, FNW))
            errors.append(np.abs(fnw / (pu * factor) - 1).max())
        values[f"damping/{name}"] = float(max(errors))
    return values


def _slopes(seed: int) -> Values:
    """Return by how many standard errors mean slopes on the stream differ from those on truth.

    The weights of FNW are taken with the true rate, as its derivation has them: then the mean slope
    of an event of the stream is that of the log loss on final labels; and with its own forecast, as
    it is used: then it is that times (1 - f^2) / (1 + p).
    """
    rng = np.random.default_rng([seed, 5])
    largest: dict[str, float] = {}
    for p in (0.01, 0.05, 0.227, 0.345, 0.5):
        for score in (-3.0, -1.0, 0.5):
            f, q = metrics.probabilities_of(score), metrics.probabilities_of(-score)
            labels = (rng.random(DRAWS) < p).astype(np.float64)
            on_truth = losses.slope_of(labels, 1 - labels, f, q)
            events = (rng.random(DRAWS) < p / (1 + p)).astype(np.float64)
            weighing = {
                "FNW": (p, 1.0),
                "FNW, own weights": (f, (1 - f**2) / (1 + p)),
                "log loss": (None, 1.0),
            }
            for name, (by, factor) in weighing.items():
                of = losses.log_loss if by is None else losses.fake_negative_weighted
                weight = f if by is None else by
                event = Event(weight, 1 - weight, events, 0.0, 0.0, 1.0)
                on_stream = losses.slope_of(*of(event), f, q)
                difference = on_stream.mean() - factor * on_truth.mean()
                error = np.sqrt((on_stream.var() + factor**2 * on_truth.var()) / DRAWS)
                largest[name] = max(largest.get(name, 0.0), abs(float(difference / error)))
    return {f"slope/{name}": value for name, value in largest.items()}


def _deep(rate: float) -> DeepLearners:
    rates = {
        "embedding_rate": rate * DEEP.embedding_rate,
        "dense_rate": rate * DEEP.dense_rate,
    }
    return DeepLearners(DEEP.model_copy(update=rates), 1, BITS, 0.0)


FAMILIES: dict[str, Learners] = {
    "linear, alpha 0.5": _linear(0.5),
    "linear, alpha 0.1": _linear(0.1),
    "deep": _deep(1.0),
    "deep, rates x 10": _deep(10.0),
}
"""That positives are thrown at in bursts."""


def _bursts() -> Values:
    """Return the largest logits, when positives come in bursts and when they are spread out."""
    objectives = {
        "PU": Objective(loss="positive_unlabelled"),
        "PU, clipped": Objective(loss="positive_unlabelled", non_negative=True),
        "FNW": Objective(loss="fake_negative_weighted"),
    }
    return {
        f"{family}/{name}/{'bursts' if in_bursts else 'spread out'}": largest_logit(
            learners, objective, in_bursts=in_bursts
        )
        for family, learners in FAMILIES.items()
        for name, objective in objectives.items()
        for in_bursts in (True, False)
    }
