"""Every knob of the pipeline, with its default and its reason.

A dataset file may set any of them under ``settings:``; everything else about a deployment stands
in :mod:`ad_pipeline.datasets`. Values that follow from the data, and state of any kind, do not
belong here.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]
KeptShare = Annotated[float, Field(ge=0.0001, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]

StrategyName = Literal[
    "immediate",
    "immediate_confirmed",
    "windowed",
    "windowed_confirmed",
    "two_copies",
    "wait_observation",
    "wait_maturity",
    "matched",
]
"""Which copies of an impression are shown, and when: ``ad_pipeline/examples/strategies.py``."""

LinkedLoss = Literal["logistic", "probit", "cloglog", "squared", "poisson"]
"""Losses that take every row's label for what it says; each with its link."""

DelayedLoss = Literal[
    "delayed_feedback",
    "positive_unlabelled",
    "fake_negative_weighted",
    "fake_negative_weighted_rn",
    "fake_negative_calibrated",
    "fake_negative_calibrated_rn",
    "es_dfm",
    "es_dfm_rn",
    "defer",
    "defuse",
    "bi_defuse",
    "fsiw",
    "ulc",
    "hazard",
]
"""Losses of labels that come late: ``ad_pipeline/learners/delayed/losses.py``."""

Mixing = Literal["none", "linear", "quadratic"]
"""What an activity sees of the user's others before all are pooled."""

STRATEGY_OF_LOSS: Mapping[str, StrategyName] = {
    "delayed_feedback": "windowed_confirmed",
    "positive_unlabelled": "immediate",
    "fake_negative_weighted": "immediate",
    "fake_negative_weighted_rn": "immediate_confirmed",
    "fake_negative_calibrated": "immediate",
    "fake_negative_calibrated_rn": "immediate_confirmed",
    "es_dfm": "windowed",
    "es_dfm_rn": "windowed_confirmed",
    "defer": "two_copies",
    "defuse": "windowed",
    "bi_defuse": "windowed",
    "fsiw": "wait_observation",
    "ulc": "wait_observation",
    "hazard": "matched",
}
"""The stream whose masses each of them corrects; on another one it would be wrong."""


WATCHING = frozenset(
    {
        "alerts",
        "delay_benchmark",
        "delay_report",
        "drift",
        "drift_actions",
        "fallbacks",
        "label_quality",
        "parity",
        "performance_estimate",
        "serving_log",
        "stress",
    }
)
"""Groups that decide what people are told, or what answers a request whose inputs are missing. No
model follows from them, so that a threshold may be changed without one looking like another's.
`label_quality` is one only while it does not act."""


class Group(BaseModel):
    """A group of settings: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ExampleSettings(Group):
    """What a learner that runs alongside the stream is shown of it."""

    negative_rate: KeptShare = Field(
        default=1.0,
        description="Share of the requests whose negatives are kept, drawn by hash of the request; "
        "each kept one weighs 1 / rate, so that means stay as they are (McMahan et al., KDD 2013, "
        "section 6.1). Positives and retractions are always kept.",
    )
    negative_rate_by_goal: dict[str, KeptShare] = Field(
        default_factory=dict,
        description="Instead of negative_rate, for the goals named: a chain's later goals have few "
        "anchors and can keep them all.",
    )

    def negative_rate_of(self, goal: str) -> float:
        """Return the share of requests whose negatives a goal keeps."""
        return self.negative_rate_by_goal.get(goal, self.negative_rate)


class FeatureDropoutSettings(Group):
    """What learners learn without, so that what is missing when served is nothing new to them."""

    share: Share = Field(
        default=0.05, description="Of the impressions: those that lose values of their columns."
    )
    whole: Share = Field(
        default=0.5,
        description="Of these: those that lose all columns, and no counts instead of old ones. The "
        "others lose each column with a chance of their own, from none to all.",
    )
    aged_share: Share = Field(
        default=0.05, description="Of the impressions: those whose counts are old, or not there."
    )
    aged_hours: PositiveInt = Field(
        default=6, description="By which counts are older at most: what an outage of a night costs."
    )


class RateControlSettings(Group):
    """When the online learner's rates are raised, slowed or frozen."""

    minimum_rows: PositiveInt = Field(
        default=30, description="A micro-batch with fewer examples says nothing about the rate."
    )
    warm_up_micro_batches: PositiveInt = Field(
        default=30, description="Micro-batches to compare with before anything rings: five hours."
    )
    tolerated_surprise: Annotated[float, Field(ge=0)] = Field(
        default=0.5,
        description="Page-Hinkley's delta: a rise by so many standard deviations is noise.",
    )
    threshold: Annotated[float, Field(gt=0)] = Field(
        default=12.0,
        description="Page-Hinkley's lambda: summed surprise above what is tolerated that rings.",
    )
    doublings: PositiveInt = Field(
        default=2, description="By which a ring raises the rate: what was learnt counts a quarter."
    )
    calm_micro_batches: PositiveInt = Field(
        default=144, description="Without a ring before the clock runs at half speed: a day."
    )
    explosion: Annotated[float, Field(gt=1)] = Field(
        default=3.0, description="Times the usual loss at which learning stops."
    )
    longest_freeze_micro_batches: PositiveInt = Field(
        default=12, description="After which the loss is taken for the world's: two hours."
    )


class Objective(Group):
    """What a learner minimizes, and on which stream of examples."""

    loss: LinkedLoss | DelayedLoss = Field(
        default="logistic",
        description="Loss and link. Those for labels that come late bring their own stream of "
        "examples; the others learn from that of `strategy`.",
    )
    strategy: StrategyName | None = Field(
        default=None,
        description="Which copies of an impression are learnt, and when; None: what the loss asks "
        "for, else the label after the observation window and a positive again when it arrives.",
    )
    non_negative: bool = Field(
        default=False,
        description="positive_unlabelled: a burst of positives takes back no more than negatives "
        "gave (Kiryo et al., NeurIPS 2017); off as published by Ktena et al.",
    )

    @property
    def comes_late(self) -> bool:
        """Whether the loss is one of labels that come late."""
        return self.loss in STRATEGY_OF_LOSS

    @property
    def shown(self) -> StrategyName:
        """The strategy whose rows are learnt."""
        return self.strategy or STRATEGY_OF_LOSS.get(self.loss, "windowed")

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        """Refuse a loss on a stream whose masses it does not correct."""
        own = STRATEGY_OF_LOSS.get(self.loss)
        if own is not None and self.strategy not in (None, own):
            raise ValueError(
                f"loss {self.loss!r} corrects the stream {own!r}, not {self.strategy!r}; leave "
                "strategy out, or name another loss beside it"
            )
        return self


class Configuration(Objective):
    """One parameterization of the FTRL learner (McMahan et al., KDD 2013, Algorithm 1)."""

    alpha: Annotated[float, Field(gt=0)] = Field(default=0.1, description="Learning rate.")
    beta: Annotated[float, Field(ge=0)] = Field(
        default=1.0, description="Smooths the learning rate of slots seldom seen."
    )
    l1: Annotated[float, Field(ge=0)] = Field(
        default=0.5, description="A slot weighs exactly 0 while its |z| is at most this."
    )
    l2: Annotated[float, Field(ge=0)] = Field(default=1.0, description="Pulls weights towards 0.")
    half_life_hours: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Hours of log after which what was learnt counts half; None forgets nothing.",
    )
    schedule: Literal["adagrad", "decayed", "adam"] = Field(
        default="adagrad",
        description="How a slot's rate follows its gradients: their sum (FTRL), a decayed sum "
        "(as RMSProp), or that with a smoothed direction (as Adam).",
    )
    forgetting: Share = Field(
        default=0.001, description="decayed and adam: share of the sum forgotten at each visit."
    )
    momentum: Share = Field(
        default=0.9, description="adam: share of the last direction that goes on."
    )
    admission: Literal["always", "count", "poisson"] = Field(
        default="always",
        description="When a slot is learnt: from its first visit, from its n-th, or from one "
        "that a draw admits (McMahan et al., section 3.1).",
    )
    admission_count: PositiveInt = Field(
        default=2, description="count: the visit that admits a slot."
    )
    admission_probability: Share = Field(
        default=0.1, description="poisson: with which each visit admits a slot."
    )
    bits: Annotated[int, Field(ge=8, le=28)] | None = Field(
        default=None, description="Fewer hashed slots than the others; None: as many."
    )


class DelaySettings(Group):
    """How long labels take: when that is estimated anew, and on what."""

    refit_every_hours: PositiveInt = Field(
        default=24, description="Hours of log between two fits, counted from 1970: at midnight."
    )
    lookback_hours: PositiveInt = Field(
        default=168, description="Matured hours a fit reads: a week has every weekday."
    )
    maximum_rows: PositiveInt = Field(
        default=300_000,
        description="Negatives that a model of delay is fitted to, drawn by hash of the "
        "impression, each for the inverse of the share: memory is flat.",
    )
    group_by: Literal["ad_id", "campaign_id", "advertiser_id"] | None = Field(
        default="campaign_id",
        description="Column of an impression whose values have distributions of their own.",
    )
    least_positives: PositiveInt = Field(
        default=200,
        description="With fewer, a group has the distribution of all: 256 quantiles of fewer "
        "delays would repeat them.",
    )
    calibrated_factor: Annotated[float, Field(gt=1)] = Field(
        default=1.25,
        description="Observed over predicted events of a model of delay, either way, beyond which "
        "it warns if the whole interval is: its loss would be off by as much.",
    )
    calibration_hours: PositiveInt = Field(
        default=168, description="Matured hours over which models of delay are judged."
    )


class OnlineSettings(Configuration):
    """The micro-batch learner: what it is, and in which steps it learns."""

    estimator: str = Field(
        default="ftrl", description="'ftrl', or the dotted path of any River classifier."
    )
    estimator_parameters: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="Keyword arguments of a River classifier."
    )
    # Not None: it is the number that the configurations of the grid are measured by.
    bits: Annotated[int, Field(ge=8, le=28)] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=20, description="2^bits hashed slots."
    )
    dtype: Literal["float32", "float64"] = Field(
        default="float32",
        description="Of the state. Sums in float32 are rounded at random, so that they do not "
        "drift; float64 is for comparisons and takes twice the memory.",
    )
    grid: tuple[dict[str, float | int | str | bool | None], ...] = Field(
        default=(),
        description="More configurations, learnt in the same walk of memory: each names what "
        "differs from the settings above. The best of them serves.",
    )
    by_goal: dict[str, Mapping[str, float | int | str | bool | None]] = Field(
        default_factory=dict,
        description="Of a goal: what differs for it from the configuration above, as its loss. The "
        "entries of the grid then differ from that.",
    )
    rate_control: RateControlSettings | None = Field(
        default=None,
        description="Lets rates follow the stream, each move logged; None: they fall as Algorithm "
        "1 and the half-life say.",
    )
    selection_lookback_hours: PositiveInt = Field(
        default=72, description="Matured hours over which the grid is judged: days and nights."
    )
    selection_level: Share = Field(
        default=0.95,
        description="Of the interval beyond which another configuration must be better to serve.",
    )
    micro_batch_minutes: PositiveInt = Field(
        default=10, description="Within an hour: score this many minutes of log, then learn them."
    )
    micro_batch_capacity: PositiveInt | None = Field(
        default=None,
        description="Examples of a goal that a slice may learn; what is over waits for the next "
        "one, by lane: fresh engagements, waiting engagements, fresh negatives, waiting negatives. "
        "None: a slice learns all of its own.",
    )
    checkpoint_micro_batches: PositiveInt | None = Field(
        default=None,
        description="Also keep a checkpoint after every so many slices inside an hour, for hours "
        "that take long to learn: a process that dies goes on there. None: it learns the hour "
        "again.",
    )
    kind_weights: dict[str, float] = Field(
        default_factory=lambda: {
            "immediate_positive": 1.0,
            "negative": 1.0,
            "delayed_positive": 1.0,
            "matched_negative": 1.0,
            "confirmed_negative": 1.0,
            "confirmed_positive": 1.0,
            "retraction": 0.0,
        },
        description="Example weight by kind, on top of the loss's own; 0 leaves the kind out.",
    )
    recency_half_life_hours: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="An example weighs half as much for every so many hours from serving to "
        "emission. Positives that come late then count for less than their negatives.",
    )

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        """Refuse a configuration that could not be learnt before anything is."""
        for goal, differences in self.by_goal.items():
            unknown = sorted(set(differences) - (Configuration.model_fields.keys() - {"bits"}))
            if unknown:
                raise ValueError(f"by_goal.{goal} names {unknown}; it may name what a grid may")
            self.of_goal(goal)
        if self.by_goal and self.estimator != "ftrl":
            raise ValueError("by_goal needs the estimator 'ftrl'; leave one of them out")
        for place, configuration in enumerate(self.configurations()):
            if configuration.bits is not None and configuration.bits > self.bits:
                raise ValueError(
                    f"configuration {place} of the grid has {configuration.bits} bits; write at "
                    f"most bits, {self.bits}"
                )
        if self.grid and self.estimator != "ftrl":
            raise ValueError("a grid needs the estimator 'ftrl'; leave one of them out")
        return self

    def of_goal(self, goal: str) -> "OnlineSettings":
        """Return the settings of one goal, with what differs for it."""
        differences = self.by_goal.get(goal, {})
        return type(self).model_validate(self.model_dump() | dict(differences) | {"by_goal": {}})

    def configurations(self) -> tuple[Configuration, ...]:
        """Return what is learnt side by side: these settings, then those of the grid."""
        names = Configuration.model_fields.keys()
        base = {name: getattr(self, name) for name in names} | {"bits": None}
        entries = ({}, *self.grid)
        return tuple(Configuration.model_validate(base | entry) for entry in entries)


class DeepSettings(Objective):
    """The wide & deep expert (Ktena et al., RecSys 2019, section 4.2); needs the extra `deep`."""

    bits: Annotated[int, Field(ge=8, le=28)] = Field(
        default=18,
        description="2^bits rows of the table of embeddings: the highest bits of the online "
        "expert's slots, so at most as many.",
    )
    embedding: PositiveInt = Field(
        default=8, description="Numbers of a feature's embedding, beside its wide weight."
    )
    layers: tuple[PositiveInt, ...] = Field(
        default=(400, 300, 200, 100), description="Units of the hidden layers, as published."
    )
    leak: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.01, description="Slope of the rectifier below 0."
    )
    batch_rows: Annotated[int, Field(ge=128, le=4096)] = Field(
        default=1024, description="Examples of a step: more are faster, fewer are fresher."
    )
    embedding_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.05, description="Learning rate of the table: row-wise AdaGrad."
    )
    dense_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.01, description="Learning rate of the layers: AdaGrad."
    )
    every_hours: PositiveInt = Field(
        default=1,
        description="Log hours between two continuations, counted from 1970; each learns all that "
        "was emitted since the one before.",
    )
    by_goal: dict[str, Mapping[str, str | bool | None]] = Field(
        default_factory=dict, description="Of a goal: another loss, strategy or non_negative."
    )

    def of_goal(self, goal: str) -> "DeepSettings":
        """Return the settings of one goal, with what differs for it."""
        differences = self.by_goal.get(goal, {})
        return type(self).model_validate(self.model_dump() | dict(differences) | {"by_goal": {}})

    @model_validator(mode="after")
    def _check_goals(self) -> Self:
        """Refuse what could not be learnt before anything is."""
        if self.loss != "logistic" and not self.comes_late:
            raise ValueError(f"loss {self.loss!r} is the online expert's; write 'logistic' here")
        for goal, differences in self.by_goal.items():
            unknown = sorted(set(differences) - Objective.model_fields.keys())
            if unknown:
                raise ValueError(f"by_goal.{goal} names {unknown}; it may name an objective only")
            self.of_goal(goal)
        return self


class CheckpointSettings(Group):
    """Which hours' checkpoints of the online model are kept; ages are in log time."""

    hourly_hours: PositiveInt = Field(
        default=24,
        description=(
            "Every hour's, this far back: what a guard or a person finds within a day is "
            "undone without replaying more than the hours since."
        ),
    )
    daily_days: Annotated[int, Field(ge=0)] = Field(
        default=14,
        description=(
            "The last one of each day, this far back: a fortnight covers a label that matures "
            "late, and from any of them at most a day is replayed more."
        ),
    )
    at_least: PositiveInt = Field(
        default=3, description="The newest ones, however old the others are."
    )


class GuardSettings(Group):
    """When an hour's examples are suspect, and what is done without a person."""

    recent_hours: PositiveInt = Field(
        default=24, description="Hours of log that an hour is compared with: a day and its night."
    )
    warm_up_hours: PositiveInt = Field(
        default=12,
        description="Hours to compare with before any is judged: a young model is often surprised.",
    )
    minimum_examples: PositiveInt = Field(
        default=50, description="Fewer: the hour can neither be judged nor do much harm."
    )
    minimum_share: Share = Field(
        default=0.2,
        description=(
            "Of the usual hour's examples. Below it traffic has stopped, and what still comes is "
            "late positives only."
        ),
    )
    limit: Annotated[float, Field(gt=0)] = Field(
        default=5.0,
        description="Robust standard deviations from the recent hours before anything is suspect.",
    )
    excess_loss: Annotated[float, Field(gt=0)] = Field(
        default=0.5,
        description=(
            "Loss above what the model itself expected, relative to it: flipped labels more than "
            "double it, a clean hour of a simulated log stays below half of it."
        ),
    )
    calibration_factor: Annotated[float, Field(gt=1)] = Field(
        default=3.0,
        description="Observed over expected positives, against the recent hours, either way.",
    )
    largest_logit: Annotated[float, Field(gt=0)] = Field(
        default=30.0,
        description="Of a score or a single weight: odds beyond it are a numeric fault, no ad.",
    )
    automatic_recoveries: Annotated[int, Field(ge=0)] = Field(
        default=2,
        description=(
            "Hours of a goal that are quarantined without a person, within recent_hours. More of "
            "them are no accident but a change of the world, which somebody has to accept."
        ),
    )


class BatchSettings(Group):
    """The LightGBM expert, retrained on matured rows."""

    retrain_every_hours: PositiveInt = 24
    lookback_hours: PositiveInt = Field(default=96, description="Matured hours a retrain reads.")
    validation_share: Share = Field(
        default=0.15, description="Latest part of those hours: early stopping."
    )
    minimum_positives: PositiveInt = Field(
        default=100, description="Fewer: no model, and it says so."
    )
    maximum_rows: PositiveInt = Field(
        default=600_000,
        description="Rows drawn by hash of the impression above this, so memory is flat.",
    )
    leaves: PositiveInt = 31
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    rounds: PositiveInt = 200
    early_stopping_rounds: PositiveInt = 15
    minimum_leaf_rows: PositiveInt = 100
    maximum_bins: PositiveInt = 63
    top_categories: PositiveInt = Field(
        default=64, description="Codes per categorical; the rest share one."
    )


class RateSettings(Group):
    """Hourly published counts by entity, read as smoothed rates."""

    window_hours: PositiveInt = Field(default=72, description="Counts look back this far.")
    publication_lag_hours: Annotated[int, Field(ge=0)] = Field(
        default=1,
        description="Hours between the end of a counted hour and its snapshot being served.",
    )
    prior_strength: Annotated[float, Field(gt=0)] = Field(
        default=50.0,
        description="Anchors' worth of the overall rate mixed into each entity's rate.",
    )


class EnsembleSettings(Group):
    """Mixing and calibration: shares of the matured hours, in order of maturity."""

    mixture: Literal["auto", "online", "batch", "deep", "average", "voting", "stacked"] = Field(
        default="auto",
        description=(
            "'auto' lets the matured rows choose. Otherwise always one expert alone, the average "
            "of the log odds, the average of the probabilities (voting), or fitted weights; while "
            "an expert that it needs has not scored enough, what 'auto' would take."
        ),
    )
    lookback_hours: PositiveInt = Field(default=168, description="Matured hours that are split.")
    fit_share: Share = 0.5
    calibration_share: Share = 0.25
    folds: Annotated[int, Field(ge=2)] = 5
    calibration_slice: str | None = Field(
        default=None,
        description=(
            "A categorical feature or entity, as in publisher_id. Values of it with at least 30 "
            "positives in the calibration range get a correction of their own where that is "
            "measurably better than one map for all. None: one map; a slice costs an order of "
            "scores between slices that nobody has checked."
        ),
    )


class EvaluationSettings(Group):
    """Intervals around every figure."""

    replicates: PositiveInt = 400
    level: Share = 0.95


class ExportSettings(Group):
    """What a bundle keeps of the online expert."""

    weights: Literal["exact", "q2.13"] = Field(
        default="exact",
        description="'exact' drops zeros only; 'q2.13' also rounds weights to 16 bits at random "
        "(McMahan et al., KDD 2013, section 5.1), which is a quarter of the bytes and moves a "
        "score by less than 2^-13 a feature. Weights outside [-4, 4) are refused, not cut.",
    )
    dictionary_tokens: PositiveInt = Field(
        default=1_000_000,
        description="Names of exported slots that a bundle carries for `explain`, at most: some "
        "tens of MB. Above it the slots that were learnt least go without.",
    )


class FallbackSettings(Group):
    """The fallback ladder of a bundle: what its defaults are fitted on, and when they answer."""

    hours: PositiveInt = Field(
        default=48,
        description="Log hours of matured rows, the newest: two days have two nights.",
    )
    maximum_rows: PositiveInt = Field(
        default=100_000,
        description="Rows of a goal read for it, thinned by hash: a second for each goal.",
    )
    least_share: Share = Field(
        default=0.6,
        description="Of the columns that are usually there, below which no mixture answers but the "
        "best column's rate, or the base rate. Chosen by measurement: docs/adr/"
        "0013-fallback-ladder.md.",
    )
    stale_hours: PositiveInt | None = Field(
        default=48,
        description="By which counts may be older than those due, beyond which a scorer takes none "
        "rather than them. Measured: the same page. None: whatever their age.",
    )


class PromotionSettings(Group):
    """When a candidate bundle may replace the current one."""

    margin: Annotated[float, Field(gt=0)] = Field(
        default=0.05,
        description="Relative log loss by which a candidate must be shown not to be worse.",
    )


class DriftSettings(Group):
    """Drift: the reference hours, the statistic and its alarm."""

    current_hours: PositiveInt = 24
    sample_rows: PositiveInt = Field(
        default=20_000, description="Fixed, so cost does not grow with time."
    )
    top_categories: PositiveInt = 50
    psi_threshold: Annotated[float, Field(gt=0)] = Field(
        default=0.2,
        description="The customary 'significant shift' of the population stability index.",
    )
    minimum_drifted_columns: PositiveInt = 1
    retrain_cooldown_hours: PositiveInt = Field(
        default=6, description="Log hours between two retrains."
    )


class ServingLogSettings(Group):
    """The serving log: which decisions are written down."""

    share: KeptShare = Field(
        default=1.0,
        description="Share of the requests, chosen by a hash of their id, whose decision is "
        "logged; the bundle carries it to the scorer. Writing costs about as much as scoring.",
    )


class ParitySettings(Group):
    """Parity of what was served: its objectives, its hypotheses, and what it holds back."""

    stale_hours: PositiveInt = Field(
        default=6, description="Earlier snapshots tried as the cause of a wrong count, by hour."
    )
    leaked_hours: PositiveInt = Field(
        default=3, description="Later snapshots tried as the cause of a wrong count, by hour."
    )
    explained_share: Share = Field(
        default=0.8,
        description="Share of the differing rows that a hypothesis must give bit for bit to be "
        "named their cause; two faults at once are honestly unexplained.",
    )
    severe_share: Share = Field(
        default=0.01,
        description="Share of differing rows from which a finding is severe, not a warning.",
    )
    guard_hours: PositiveInt = Field(
        default=3,
        description="Newest hours with decisions whose scores must be given again before another "
        "bundle may serve: a broken scorer would break that one, too.",
    )
    coverage: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={}, description="Least share of values that are not null, by feature."
    )
    age_hours: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={"rates": 26.0},
        description="Most hours from the end of the counts to a request. The default lets a day be "
        "served from one snapshot, as the simulated bidder does; with hourly refreshes set 2.",
    )
    fallback_share: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={"missing column": 0.01, "no snapshot": 0.01, "rung": 0.01},
        description="Most decisions with a fallback, by how its reason begins.",
    )
    error_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Most decisions without a score of some goal."
    )


class DriftActionSettings(Group):
    """From drift to action: what counts as drift beside the inputs, and how often is acted on it.

    How often the defaults find a change, and how seldom they ring without: ``docs/evidence.md``.
    """

    act: bool = Field(
        default=True, description="False: verdicts are told, and no run is started by them."
    )
    lookback_hours: PositiveInt = Field(
        default=168,
        description="Matured hours that the detectors are replayed over: a week has every weekday, "
        "and their state follows from the tables alone.",
    )
    maximum_rows: PositiveInt = Field(
        default=200_000,
        description="Matured rows of a goal and expert read for it, thinned by hash: a fixed cost.",
    )
    loss_threshold: Annotated[float, Field(gt=0)] = Field(
        default=12.0,
        description="Standard deviations, summed up beyond the tolerated, from which Page and "
        "Hinkley's test rings on loss or calibration.",
    )
    tolerated_deviation: Annotated[float, Field(ge=0)] = Field(
        default=0.5, description="Standard deviations an hour may be off without adding up."
    )
    warm_up_hours: PositiveInt = Field(
        default=12, description="Matured hours to compare with before the test may ring."
    )
    new_category_share: Share = Field(
        default=0.02,
        description="Share of the rows beyond what an unchanged log brings: what a model knows "
        "nothing of.",
    )
    delay_index: Annotated[float, Field(gt=0)] = Field(
        default=0.2, description="Index of the delays of positives, as that of a column."
    )
    cooldown_hours: dict[str, PositiveInt] = Field(
        default_factory=dict,
        description="By action: log hours between two of a kind; settings.drift."
        "retrain_cooldown_hours of those not named.",
    )
    raise_rate_doublings: Annotated[int, Field(ge=1, le=4)] = Field(
        default=1,
        description="By which the online rate is raised; only under settings.online.rate_control, "
        "which lowers it again.",
    )
    effect_hours: PositiveInt = Field(
        default=24,
        description="Matured hours before and after an action whose loss is compared: a day and "
        "its night on both sides.",
    )


class DelayReportSettings(Group):
    """The delay report: what it reads, how much it replays, and from when on it warns."""

    lookback_hours: PositiveInt = Field(
        default=336,
        description="Log hours whose anchors are read: a fortnight. Delays of long ago are others, "
        "and memory is flat.",
    )
    retired_after_hours: PositiveInt = Field(
        default=24,
        description="An ad that was not shown for so long has ended, and one first seen so long "
        "after the log's start was born in it: a day and its night.",
    )
    largest_groups: PositiveInt = Field(
        default=8,
        description="Groups of settings.delays.group_by whose delays are told: as many as a "
        "picture holds.",
    )
    anchors: Annotated[int, Field(ge=1_000)] = Field(
        default=150_000,
        description="Of the made worlds together: ten seconds for a goal. Fewer make the intervals "
        "wider and let the simpler loss win more often.",
    )
    worlds: Annotated[int, Field(ge=2, le=64)] = Field(
        default=4,
        description="Made worlds that share the anchors: the intervals are over them, and need at "
        "least two. More of them are smaller, and each learns less.",
    )
    tolerated_loss: Share = Field(
        default=0.001,
        description="Relative log loss by which a simpler loss may be worse than the best one and "
        "still be recommended: what an ensemble may be worse than its best expert.",
    )
    tolerated_miscalibration: Share = Field(
        default=0.02,
        description="The same of what it is off by ad age: bids move in such steps.",
    )
    calibrated_factor: Annotated[float, Field(gt=1)] = Field(
        default=1.25,
        description="Observed over predicted positives of a bucket of ad ages, either way, beyond "
        "which it warns if the whole interval is: bids of a fifth too much or too little.",
    )
    minimum_positives: PositiveInt = Field(
        default=30,
        description="Positives of a bucket of ad ages, expected or observed, from which on it is "
        "judged: as many as a calibration of its own takes.",
    )
    value_function: Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+$")] | None = Field(
        default=None,
        description="package.module:function from predicted and true probabilities to the value of "
        "each anchor, micro-currency; None: the report says nothing of money. Ready: "
        "ad_pipeline.monitoring.delay_report.value:second_price.",
    )


class DelayBenchmarkSettings(Group):
    """The benchmark of late labels: how much of the log it replays, and how often."""

    anchors: Annotated[int, Field(ge=1_000)] = Field(
        default=60_000,
        description="Sampled by hash of the impression, of all goals together, the same for both "
        "families: five seeds of all arms take less than half an hour on two cores. `--full` takes "
        "all.",
    )
    seeds: Annotated[int, Field(ge=2, le=100)] = Field(
        default=5, description="Each leaves out another tenth of the anchors. `--full` takes ten."
    )
    block_minutes: PositiveInt = Field(
        default=60, description="Of log between two states that are served from."
    )
    replicates: PositiveInt = Field(default=300, description="Draws of the paired block bootstrap.")


class StressSettings(Group):
    """Serving under load: what is replayed, how fast, and when it is too slow."""

    minutes: Annotated[int, Field(ge=3)] = Field(
        default=10, description="Of the log, the busiest in a row; two of them lose all columns."
    )
    speed: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Seconds of the log in a second: an hour's traffic in a minute."
    )
    older_hours: PositiveInt = Field(
        default=3, description="By which old counts are: a batch of a night that failed."
    )
    latency_ms: Annotated[float, Field(gt=0)] = Field(
        default=50.0,
        description="Of 99 requests in 100, beyond which it warns: half of what an exchange waits "
        "for a bid.",
    )


class LabelQualitySettings(Group):
    """When the labels of an hour, or of one advertiser in it, are not what was to be expected."""

    act: bool = Field(
        default=False,
        description="Leave suspect hours and slices out before they are learnt; False: only tell. "
        "Off, since models then follow from these thresholds: turned on, they enter the digest.",
    )
    slices: tuple[str, ...] = Field(
        default=("advertiser_id",),
        description="Columns of an impression whose values are judged on their own. A constant "
        "column of each source of the dataset file makes the source one of them.",
    )
    largest_parts: PositiveInt = Field(
        default=100,
        description="Values of a slice that are judged: those with most anchors. More of them make "
        "each less certain, and rows of a small one do little harm.",
    )
    reference_hours: PositiveInt = Field(
        default=72, description="Hours that one is compared with: three days and nights."
    )
    warm_up_hours: PositiveInt = Field(
        default=24, description="Of these before any hour is judged: a day has its night."
    )
    excluded_hours: PositiveInt = Field(
        default=24,
        description="For which suspect labels are not compared with. Older ones are: what lasted "
        "longer than a day is the world's new state.",
    )
    calm_hours: PositiveInt = Field(
        default=2, description="In a row, after which learning goes on that a suspect hour halted."
    )
    minimum_expected: Annotated[float, Field(gt=0)] = Field(
        default=8.0,
        description="Expected positives below which none at all proves nothing: even without "
        "overdispersion e^-8 is no rarer than a bad day.",
    )
    minimum_observed: PositiveInt = Field(
        default=20, description="Fewer positives cannot have jumped, nor do much harm."
    )
    jump_factor: Annotated[float, Field(gt=1)] = Field(
        default=2.5,
        description="Observed over expected positives from which on they jumped; the calibration "
        "factor of the guard is 3, and it knows features.",
    )
    stall_share: Share = Field(
        default=0.3, description="Observed over expected positives up to which they stalled."
    )
    late_factor: Annotated[float, Field(gt=1)] = Field(
        default=3.0, description="The same of labels that came late, or too late to count."
    )
    retraction_factor: Annotated[float, Field(gt=1)] = Field(
        default=3.0, description="The same of retractions."
    )
    least_spread: Annotated[float, Field(gt=0)] = Field(
        default=0.2,
        description="By which the rate of an hour varies at least beyond chance, relative: three "
        "days are too few to believe that it varies less.",
    )
    correlated_hours: PositiveInt = Field(
        default=6,
        description="Neighbouring hours that err together: their mean is as uncertain as if there "
        "were so many times fewer.",
    )
    false_alarms_per_day: Annotated[float, Field(gt=0)] = Field(
        default=0.01,
        description="Of a goal, over all slices and tests of an hour (Bonferroni): its level is "
        "this over 24. One in a hundred days.",
    )
    largest_share: Share = Field(
        default=0.5,
        description="Of the expected positives up to which suspect parts are their own trouble. "
        "Beyond it the goal is judged with them.",
    )


class PerformanceEstimateSettings(Group):
    """Loss and calibration while labels mature: of what, how sure, and when it is withdrawn."""

    cohort_hours: PositiveInt = Field(
        default=6, description="Anchors of so many last hours are estimated together."
    )
    reference_hours: PositiveInt = Field(
        default=72,
        description="Final labels before them that scores are recalibrated on: three days have "
        "twelve cohorts that say how much these differ.",
    )
    least_positives: PositiveInt = Field(
        default=100,
        description="Among these labels, before anything is estimated.",
    )
    least_wander: Annotated[float, Field(gt=0)] = Field(
        default=0.05,
        description="By which log odds, and their slope, vary between cohorts at least, standard "
        "deviation: a dozen cohorts are too few to believe that they vary less.",
    )
    level: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        default=0.95, description="Of the intervals, each by itself."
    )
    alarm_p_value: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.001,
        description="An estimate is withdrawn when labels so far, or misses of past intervals, "
        "are less likely than that; of an hour, goal and expert.",
    )
    past_hours: PositiveInt = Field(
        default=168,
        description="Of estimates whose labels have matured: how far they were off widens the "
        "intervals, and too many misses withdraw the next ones.",
    )
    one_in: PositiveInt = Field(
        default=1,
        description="Anchors, drawn by a hash: more than 1 for logs with millions in a window.",
    )


class AlertSettings(Group):
    """What is told as wrong, for how long, and to whom."""

    lookback_hours: PositiveInt = Field(
        default=24,
        description="Log hours in which a finding of one hour counts as wrong now: whoever was "
        "away for a night still sees it.",
    )
    quarantined_share: Share = Field(
        default=0.01,
        description="Of an hour's rows of a log table: more broken ones than one in a hundred are "
        "a writer's fault, no accident of transport.",
    )
    late_share: Share = Field(
        default=0.05,
        description="Of the rows: those that came after their hour was sealed. Labels made without "
        "them are short by as many.",
    )
    least_rows: PositiveInt = Field(
        default=100,
        description="Of an hour of a log table, for either share to be judged: one of seven says "
        "nothing.",
    )
    scorer_grace_minutes: Annotated[int, Field(ge=0)] = Field(
        default=60,
        description="Of log, after the pointer moved, before a scorer that reports another bundle "
        "is told: one that refreshes hourly has its turn.",
    )
    webhook: str = Field(
        default="AD_PIPELINE_WEBHOOK",
        description="Environment variable with the URL that alerts are posted to; while it is not "
        "set, nobody is called. Such a URL is a secret, so it stands in no file.",
    )
    webhook_seconds: Annotated[float, Field(gt=0)] = Field(
        default=2.0,
        description="After which an endpoint that does not answer is left for the next tick.",
    )


SENTENCE_WIDTHS = 64, 128, 256
"""Numbers of a sentence's vector: those whose first ones were trained to do alone."""


class Modality(Group):
    """One kind of activity; its module has parameters of its own."""

    name: str = Field(
        description="As column `modality` of the activities has it; `ad_<goal>` are engagements of "
        "a goal."
    )
    content: Literal["id", "text", "sentence", "vector"] = Field(
        default="id",
        description="What `content_id` holds: an id; a text, read as a bag of hashed n-grams; a "
        "text, read by the sentence encoder of the extra `sentences`; or the numbers that a model "
        "of the user's own made of an image or a text: `[0.1, -2.5]`.",
    )
    tokens: Annotated[int, Field(ge=0)] = Field(
        default=8, description="Slots of an activity that are read; more are cut off, fewer padded."
    )
    vector: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Numbers of the vector that comes with an activity, 0 for none; of a sentence "
        "64, 128 or 256.",
    )
    longest: Annotated[int, Field(ge=8)] = Field(
        default=128,
        description="Activities of a user that are read: the newest ones. Fewer than eight would "
        "be padded to eight.",
    )

    @model_validator(mode="after")
    def _check_content(self) -> Self:
        if not self.tokens and not self.vector:
            raise ValueError(f"modality {self.name!r} reads nothing; give it tokens or a vector")
        if self.content == "vector" and not self.vector:
            raise ValueError(f"modality {self.name!r}: write how many numbers its vector has")
        if self.content == "sentence" and self.vector not in SENTENCE_WIDTHS:
            raise ValueError(
                f"modality {self.name!r} reads sentences by {self.vector} numbers; write vector: "
                f"{', '.join(map(str, SENTENCE_WIDTHS[:-1]))} or {SENTENCE_WIDTHS[-1]}"
            )
        return self


class Enrichment(Group):
    """The four parts of the Complex Feature Enrichment Encoder; one that is off has no parameters.

    Reference: Async Learned User Embeddings for Ads Delivery Optimization, arXiv 2406.05898.
    """

    absolute_position: bool = Field(
        default=True, description="How many activities came after this one."
    )
    temporal_decay: bool = Field(
        default=True, description="Age at the as-of time, by half-lives that are learned."
    )
    cyclic_pattern: bool = Field(default=True, description="Time of day and weekday, UTC.")
    relative_position: bool = Field(
        default=True, description="Time that had passed since the activity before."
    )


class EncoderSettings(Group):
    """What a user's vector is made of (arXiv 2406.05898); needs the extra `embeddings`."""

    modalities: tuple[Modality, ...] = Field(
        default=(Modality(name="ad_click"),),
        min_length=1,
        description="Kinds of activity, each encoded by a module of its own.",
    )
    enrichment: Enrichment = Enrichment()
    bits: Annotated[int, Field(ge=8, le=28)] = Field(
        default=16, description="2^bits slots of activities' tokens, and as many of ads'."
    )
    width: PositiveInt = Field(default=32, description="Numbers of an activity in the encoder.")
    heads: PositiveInt = Field(
        default=4, description="Queries that pool a modality, each with its own half-life."
    )
    mixing: Mixing = Field(
        default="none",
        description="Self-attention between the activities of a modality before they are pooled: "
        "none, linear or quadratic in their number. Pooling alone was as good where it was "
        "measured (`benchmarks/speed/embeddings.py`) and costs least.",
    )
    dimension: PositiveInt = Field(default=32, description="d, numbers of a user's vector.")
    ad_columns: tuple[str, ...] = Field(
        default=("ad_id", "campaign_id", "advertiser_id"),
        min_length=1,
        description="Columns of an impression that say what its ad is: the slots of an ad, and of "
        "engagements with it.",
    )
    tasks: tuple[str, ...] = Field(
        default=("click",), min_length=1, description="Goals whose labels are learnt, a head each."
    )

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        names = [modality.name for modality in self.modalities]
        if len(set(names)) < len(names):
            raise ValueError(f"a modality is named twice: {names}")
        return self


class TrainingSettings(Group):
    """How an encoder is trained."""

    contrastive: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="Weight of the user-to-user term: the two halves of a user's activities should "
        "find each other among those of the batch; 0 leaves it out.",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="Of the user-to-user term: lower looks at the nearest users only."
    )
    batch_sequences: Annotated[int, Field(ge=2)] = Field(
        default=64, description="Sequences of a step."
    )
    ads_per_sequence: PositiveInt = Field(
        default=16,
        description="Labelled ads that share one encoding of their user in a step; a user with "
        "more has several rows.",
    )
    table_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="Learning rate of the tables of slots: row-wise AdaGrad."
    )
    dense_rate: Annotated[float, Field(gt=0)] = Field(
        default=0.001, description="Learning rate of everything else: Adam."
    )
    epochs: PositiveInt = Field(default=3, description="Times that every label is learnt.")
    seed: int = Field(default=0, description="Same seed, same first weights and order.")


NEXT = "next"
"""Task of what users did next, beside the goals."""


class NextActionSettings(Group):
    """What users did next as a task of the encoder: told from what others did.

    Reference: Pancha et al., PinnerFormer, KDD 2022 (dense all-action loss).
    """

    horizon_hours: PositiveInt = Field(
        default=24,
        description="All that a user did in so many hours, counted from 1970, shares one sequence, "
        "which ends before them: longer costs less, and shorter teaches more of what just was.",
    )
    maximum: PositiveInt = Field(
        default=100_000,
        description="Actions of `labels_lookback_hours` that an encoder is trained on, drawn by "
        "hash of user and moment above this, each with one of somebody else.",
    )
    modalities: tuple[str, ...] | None = Field(
        default=None,
        description="Kinds of activity that are foretold, of those that the encoder reads. None: "
        "all but engagements of a goal, whose labels are learnt. Only what has tokens is.",
    )


class RefreshTier(Group):
    """Users of some activity, and how old their vectors may grow while there is news of them."""

    from_activities: Annotated[int, Field(ge=0)] = Field(
        description="The tier begins with users of so many activities within the lookback."
    )
    interval_minutes: PositiveInt = Field(
        description="A vector younger than this is not computed again, whatever the user does."
    )

    @property
    def interval_us(self) -> int:
        """The interval in microseconds."""
        return self.interval_minutes * 60_000_000


class UserVectorSettings(Group):
    """Users' vectors: how learned, kept fresh and stored; and how similar users are found by them.

    Needs the extra `embeddings`.
    """

    encoder: EncoderSettings = EncoderSettings()
    training: TrainingSettings = TrainingSettings()
    next_actions: NextActionSettings | None = Field(
        default=NextActionSettings(),
        description="None: goals alone are learnt, of which positives are few.",
    )
    retrain_every_hours: PositiveInt = Field(
        default=168,
        description="Log hours between two encoders, counted from 1970; the first is trained as "
        "soon as a full refresh finds labels enough. A new one is a new space: "
        "everybody is encoded anew, and whatever learnt from the old vectors must learn again.",
    )
    lookback_hours: PositiveInt = Field(
        default=336,
        description="Of activities that a user's vector and an ad's engagers are made of: two "
        "weeks have every weekday twice.",
    )
    fewest_activities: PositiveInt = Field(
        default=5,
        description="Within the lookback: who did less is not encoded, has no vector, and leaves "
        "at a full refresh. In made markets vectors cost clicks of users without activities, and "
        "no gain was shown below 5 (docs/evidence.md, cold_start).",
    )
    activities_in_memory: PositiveInt = Field(
        default=5_000_000,
        description="Activities of the lookback that are held at once, some 250 bytes each while "
        "they are laid out. Beyond it users are dealt to parts by their hash and encoded part by "
        "part; the vectors are the same to the byte.",
    )
    labels_lookback_hours: PositiveInt = Field(
        default=168, description="Matured hours that an encoder is trained on."
    )
    minimum_positives: PositiveInt = Field(
        default=100,
        description="Of the first task: with fewer, no encoder is trained yet, and it says so.",
    )
    maximum_labels: PositiveInt = Field(
        default=100_000,
        description="Impressions that an encoder is trained on, drawn by hash of the impression "
        "above this: memory is flat, and it takes minutes.",
    )
    checkpoint_steps: PositiveInt = Field(
        default=500,
        description="Steps of training after which a checkpoint is kept: a run that dies goes on "
        "there.",
    )
    publication_lag_hours: Annotated[int, Field(ge=0)] = Field(
        default=1, description="Hours between the end of an hour and its vectors being served."
    )
    kept_hours: PositiveInt = Field(
        default=336,
        description="Published hours that are kept: whoever learns from served rows reads the "
        "vectors of their hours again. At least the longest of the lookbacks of `batch`, "
        "`ensemble`, `delays` and `fallbacks`, the time until the last label matures, and the lag.",
    )
    full_refresh_every_hours: PositiveInt = Field(
        default=24,
        description="Log hours between two refreshes of everybody, counted from 1970; the hours "
        "between encode the users who are due by `tiers`.",
    )
    tiers: tuple[RefreshTier, ...] = Field(
        default=(
            RefreshTier(from_activities=0, interval_minutes=7 * 24 * 60),
            RefreshTier(from_activities=1, interval_minutes=24 * 60),
            RefreshTier(from_activities=5, interval_minutes=60),
            RefreshTier(from_activities=20, interval_minutes=5),
        ),
        description="By ascending activity, the first from 0: what is known of somebody who did "
        "much lately ages fastest.",
    )
    averaged: Annotated[int, Field(ge=1, le=255)] = Field(
        default=3,
        description="Vectors of a user whose mean is read (SUM, arXiv 2311.09544: the last three).",
    )
    shard_bits: Annotated[int, Field(ge=0, le=16)] = Field(
        default=4, description="2^bits shards: one is in memory at a time while they are written."
    )
    quantized_parts: PositiveInt | None = Field(
        default=None,
        description="Bytes a vector, product-quantized; must divide the dimension. None: float16, "
        "as while there are too few users to fit codebooks to.",
    )
    tolerated_rotation_error: Share = Field(
        default=0.1,
        description="Held-out error of a rotation between two versions, as a share of the squared "
        "length, above which vectors are refused and not turned.",
    )
    neighbours: PositiveInt = Field(default=50, description="Similar users that are kept of each.")
    exact_users: PositiveInt = Field(
        default=4_096, description="Up to so many users all pairs are compared: it takes seconds."
    )
    clusters_per_root: Annotated[float, Field(gt=0)] = Field(
        default=2.0,
        description="Clusters, in square roots of the number of users: to find one's cluster and "
        "to search some of them then cost alike.",
    )
    probes: PositiveInt = Field(
        default=12,
        description="Clusters that are searched for a user at least: the own and the nearest.",
    )
    aimed_recall: Share | None = Field(
        default=0.97,
        description="Of a sample's true neighbours that lie in the clusters searched: more are, up "
        "to a quarter of them, if that takes it. None leaves it at `probes`. The graph's check "
        "asks for 0.95 of another sample.",
    )
    half_life_hours: Annotated[float, Field(gt=0)] = Field(
        default=72.0,
        description="Hours after which what a similar user engaged with speaks half as loudly.",
    )
    popularity_strength: Annotated[float, Field(gt=0)] = Field(
        default=200.0,
        description="An ad's share of everybody's engagements speaks like so many engagements of "
        "similar users: what few of them say is shrunk to what is popular. Near 0, popular ads "
        "come behind all that similar users speak for.",
    )
    candidates: PositiveInt = Field(default=50, description="Ads that are listed for a user.")
    budget_metric: str = Field(
        default="remaining_budget",
        description="Metric of events.campaign_kpis that says what a campaign has left to spend.",
    )

    @property
    def taught_encoder(self) -> EncoderSettings:
        """The encoder with all that it is taught: :data:`NEXT` is the last of its tasks."""
        if self.next_actions is None:
            return self.encoder
        return self.encoder.model_copy(update={"tasks": (*self.encoder.tasks, NEXT)})

    @model_validator(mode="after")
    def _check_next_actions(self) -> Self:
        """Refuse to foretell what is not read, and a goal of the task's name."""
        if self.next_actions is None:
            return self
        read = [modality.name for modality in self.encoder.modalities]
        if unread := sorted(set(self.next_actions.modalities or ()) - set(read)):
            raise ValueError(f"next_actions.modalities has {unread}; write some of {read}")
        if NEXT in self.encoder.tasks:
            raise ValueError(
                f"encoder.tasks has {NEXT!r}, as what users did next is called; rename the goal, "
                "or write next_actions: null"
            )
        return self

    @model_validator(mode="after")
    def _check_tiers(self) -> Self:
        """Refuse tiers of which a user could have none, or two."""
        begins = [tier.from_activities for tier in self.tiers]
        if not begins or begins[0] != 0 or begins != sorted(set(begins)):
            raise ValueError(
                f"tiers begin with {begins} activities; let the first begin with 0 and each other "
                "with more than the one before"
            )
        return self

    @model_validator(mode="after")
    def _check_fewest(self) -> Self:
        """Refuse to ask for more activities than are read of a user."""
        most = sum(modality.longest for modality in self.encoder.modalities)
        if self.fewest_activities > most:
            raise ValueError(
                f"fewest_activities is {self.fewest_activities}, but at most {most} are read of a "
                "user (encoder.modalities, longest), so nobody would have a vector; lower it"
            )
        return self


class Settings(Group):
    """All settings of one deployment."""

    seed: int = Field(default=1, description="Enters the hash behind every random choice.")
    examples: ExampleSettings = ExampleSettings()
    feature_dropout: FeatureDropoutSettings | None = Field(
        default=None, description="None: what is learnt is what was served, whole."
    )
    delays: DelaySettings = DelaySettings()
    online: OnlineSettings = OnlineSettings()
    deep: DeepSettings | None = Field(
        default=None, description="None: there is no wide & deep expert."
    )
    user_vectors: UserVectorSettings | None = Field(
        default=None, description="None: there are no vectors of users."
    )
    checkpoints: CheckpointSettings = CheckpointSettings()
    guard: GuardSettings = GuardSettings()
    batch: BatchSettings = BatchSettings()
    rates: RateSettings = RateSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    export: ExportSettings = ExportSettings()
    fallbacks: FallbackSettings | None = Field(
        default=FallbackSettings(),
        description="None: bundles have no ladder; whatever is missing, the mixture answers.",
    )
    promotion: PromotionSettings = PromotionSettings()
    drift: DriftSettings = DriftSettings()
    serving_log: ServingLogSettings = ServingLogSettings()
    parity: ParitySettings = ParitySettings()
    drift_actions: DriftActionSettings = DriftActionSettings()
    delay_report: DelayReportSettings = DelayReportSettings()
    delay_benchmark: DelayBenchmarkSettings = DelayBenchmarkSettings()
    stress: StressSettings = StressSettings()
    label_quality: LabelQualitySettings = LabelQualitySettings()
    performance_estimate: PerformanceEstimateSettings = PerformanceEstimateSettings()
    alerts: AlertSettings = AlertSettings()

    @model_validator(mode="after")
    def _check_mixture(self) -> Self:
        """Refuse a mixture of an expert that is not there."""
        if self.ensemble.mixture == "deep" and self.deep is None:
            raise ValueError("ensemble.mixture names 'deep', which is not there; write deep: {}")
        return self

    def strategies_of(self, goal: str) -> tuple[StrategyName, ...]:
        """Return what the learners of a goal are shown: names of strategies, each once."""
        learners: list[Objective] = [*self.online.of_goal(goal).configurations()]
        if self.deep is not None:
            learners.append(self.deep.of_goal(goal))
        return tuple(dict.fromkeys(each.shown for each in learners))

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of what models follow from, hexadecimal.

        That is all groups but the watching; vectors of users only where there are some, and not how
        many activities memory holds.
        """
        watching = WATCHING - ({"label_quality"} if self.label_quality.act else set())
        left_out: dict[str, Any] = dict.fromkeys(watching, True)
        no_vectors = self.user_vectors is None
        left_out["user_vectors"] = True if no_vectors else {"activities_in_memory"}
        followed = self.model_dump(mode="json", exclude=left_out)
        canonical = json.dumps(followed, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
