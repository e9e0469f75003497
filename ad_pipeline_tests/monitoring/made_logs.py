"""Models of logs with planted delays, lives and rates, and their replays, small enough to test.

Delays and lives are exponential, cut off where the model says; everything else is the production
code's own.
"""

import numpy as np

from ad_pipeline.clocks import HOUR_US, MINUTE_US
from ad_pipeline.datasets import Goal
from ad_pipeline.monitoring.delay_report.log_model import PLACES, LogModel
from ad_pipeline.monitoring.delay_report.value import ValueFunction
from ad_pipeline.monitoring.delay_report.what_if import WhatIf, what_if
from ad_pipeline.settings import DelayReportSettings, OnlineSettings, Settings


def planted_model(
    rate: float, delay_us: int, life_us: int, window_us: int, anchors_per_hour: float = 60.0
) -> LogModel:
    """Return a log of some mean delay and ad life, with an observation window of five minutes."""
    quantiles = -np.log1p(-(np.arange(PLACES) + 0.5) / PLACES)
    return LogModel(
        goal=Goal(name="click", window_us=window_us, observation_us=5 * MINUTE_US),
        rate=rate,
        variation=0.3,
        delays_us=np.minimum(quantiles * delay_us, window_us).astype(np.int64),
        lives_us=np.maximum(quantiles * life_us, MINUTE_US).astype(np.int64),
        live=20.0,
        anchors_per_hour=anchors_per_hour,
    )


def stable_ads(rate: float) -> LogModel:
    """Return a log whose labels are late against the window, and soon against an ad's life."""
    return planted_model(rate, 40 * MINUTE_US, 24 * HOUR_US, 4 * HOUR_US, anchors_per_hour=90.0)


def short_lived_ads() -> LogModel:
    """Return a log whose labels take as long as an ad lives."""
    return planted_model(0.1, 4 * HOUR_US, 4 * HOUR_US, 16 * HOUR_US, anchors_per_hour=80.0)


def settings_of(anchors: int, worlds: int, seed: int = 1) -> Settings:
    """Return settings whose replays are of some size."""
    return Settings(seed=seed, delay_report=DelayReportSettings(anchors=anchors, worlds=worlds))


def replayed(
    model: LogModel,
    anchors: int,
    worlds: int = 3,
    value: ValueFunction | None = None,
    seed: int = 1,
) -> WhatIf:
    """Return the replays of a model under the default online learner."""
    return what_if(model, settings_of(anchors, worlds, seed), OnlineSettings(), value)
