"""Every knob of the pipeline, with its default and its reason.

A dataset file may set any of them under ``settings:``; everything else about a deployment stands
in :mod:`ad_pipeline.datasets`. Values that follow from the data, and state of any kind, do not
belong here.
"""

import hashlib
import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]
PositiveInt = Annotated[int, Field(gt=0)]


class Group(BaseModel):
    """A group of settings: immutable, and strict about unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OnlineSettings(Group):
    """The micro-batch learner (McMahan et al., KDD 2013, Algorithm 1)."""

    estimator: str = Field(
        default="ftrl", description="'ftrl', or the dotted path of any River classifier."
    )
    estimator_parameters: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="Keyword arguments of a River classifier."
    )
    bits: Annotated[int, Field(ge=8, le=28)] = Field(default=20, description="2^bits hashed slots.")
    alpha: Annotated[float, Field(gt=0)] = 0.1
    beta: Annotated[float, Field(ge=0)] = 1.0
    l1: Annotated[float, Field(ge=0)] = 0.5
    l2: Annotated[float, Field(ge=0)] = 1.0
    micro_batch_minutes: PositiveInt = Field(
        default=10, description="Within an hour: score this many minutes of log, then learn them."
    )
    kind_weights: dict[str, float] = Field(
        default_factory=lambda: {
            "immediate_positive": 1.0,
            "negative": 1.0,
            "delayed_positive": 1.0,
            "confirmed_negative": 0.0,
            "retraction": 0.0,
        },
        description="Example weight by kind; 0 leaves the kind out.",
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

    lookback_hours: PositiveInt = Field(default=168, description="Matured hours that are split.")
    fit_share: Share = 0.5
    calibration_share: Share = 0.25
    folds: Annotated[int, Field(ge=2)] = 5


class EvaluationSettings(Group):
    """Intervals around every figure."""

    replicates: PositiveInt = 400
    level: Share = 0.95


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


class Settings(Group):
    """All settings of one deployment."""

    seed: int = Field(default=1, description="Enters the hash behind every random choice.")
    online: OnlineSettings = OnlineSettings()
    batch: BatchSettings = BatchSettings()
    rates: RateSettings = RateSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    promotion: PromotionSettings = PromotionSettings()
    drift: DriftSettings = DriftSettings()

    def digest(self) -> str:
        """Return the SHA-256 of the settings' canonical JSON, hexadecimal."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
