"""The Complex Feature Enrichment Encoder: when an activity happened, said to the encoder four ways.

========================  ==============================  ====================================
part                      reads                           does
========================  ==============================  ====================================
``absolute_position``     how many activities came after  adds a learned row for each place
``temporal_decay``        age at the as-of time           halves the weight of an activity in
                                                          each pooling head every half-life,
                                                          which is learned
``cyclic_pattern``        time of day, weekday (UTC)      adds a projection of sines and cosines
``relative_position``     time since the activity before  adds a learned row for each octave of
                                                          seconds
========================  ==============================  ====================================

A part that is switched off has no parameters, and what it would read is not handed to the encoder.
How activities are pooled belongs to :mod:`.encoder`.

The functions of parameters are written in the arrays' own namespace: the same text is JAX where it
is trained and NumPy in float64 where a test checks its gradient.

References
----------
Async Learned User Embeddings for Ads Delivery Optimization, arXiv 2406.05898, which names the four
parts and gives no formula: these are ours.
"""

import math
from typing import Any

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.embeddings.sequences import Window
from ad_pipeline.settings import Enrichment

DAY_US = 24 * HOUR_US

DAY_HARMONICS = 2
WEEK_HARMONICS = 3
"""Three tell seven weekdays apart, whatever a weekday means."""

OCTAVES = 32
"""Of gaps in seconds, the first for no activity before; the last begins after 34 years."""

FIRST_HALF_LIVES_DAYS = 0.25, 64.0
"""Of the first and the last head, those between in even ratios."""

_EPOCH_WEEKDAY = 3
"""1970-01-01 was a Thursday, Mondays are 0."""


def parameters_of(enrichment: Enrichment, width: int, heads: int, longest: int) -> dict[str, Any]:
    """Return the first parameters of the parts that are on; what is added begins at 0.

    Parameters
    ----------
    enrichment : Enrichment
    width : int
        h, numbers of an activity.
    heads : int
        Pooling heads.
    longest : int
        Activities of a sequence at most.

    Returns
    -------
    dict
        ``position`` (longest, h), ``log2_half_life_days`` (heads,), ``cycle`` (10, h), ``gap``
        (:data:`OCTAVES`, h), float32.
    """
    parameters = {}
    if enrichment.absolute_position:
        parameters["position"] = np.zeros((longest, width), np.float32)
    if enrichment.temporal_decay:
        first, last = map(math.log2, FIRST_HALF_LIVES_DAYS)
        parameters["log2_half_life_days"] = np.linspace(first, last, heads, dtype=np.float32)
    if enrichment.cyclic_pattern:
        waves = 2 * (DAY_HARMONICS + WEEK_HARMONICS)
        parameters["cycle"] = np.zeros((waves, width), np.float32)
    if enrichment.relative_position:
        parameters["gap"] = np.zeros((OCTAVES, width), np.float32)
    return parameters


def inputs_of(enrichment: Enrichment, window: Window) -> dict[str, np.ndarray]:
    """Return what the parts that are on read of a batch.

    Returns
    -------
    dict
        ``age_days`` float32 (b, L), ``cycle`` float32 (b, L, 10), ``gap`` int32 (b, L).
    """
    inputs = {}
    if enrichment.temporal_decay:
        inputs["age_days"] = (window.age_us / DAY_US).astype(np.float32)
    if enrichment.cyclic_pattern:
        inputs["cycle"] = waves_of(window.occurred_us)
    if enrichment.relative_position:
        inputs["gap"] = gap_octaves(window)
    return inputs


def waves_of(occurred_us: np.ndarray) -> np.ndarray:
    """Return sines and cosines of time of day and weekday, UTC.

    Parameters
    ----------
    occurred_us : ndarray of any shape, int64

    Returns
    -------
    ndarray of shape (..., 10), float32
    """
    of_day = (occurred_us % DAY_US) / DAY_US
    weekday = (occurred_us // DAY_US + _EPOCH_WEEKDAY) % 7 / 7
    turns = [of_day * n for n in range(1, DAY_HARMONICS + 1)]
    turns += [weekday * n for n in range(1, WEEK_HARMONICS + 1)]
    angles = 2.0 * np.pi * np.stack(turns, axis=-1)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def gap_octaves(window: Window) -> np.ndarray:
    """Return the octave of the time since the activity before, int32 (b, L); 0 if there is none.

    The oldest activity of a sequence has none: what lies before it is not read.
    """
    gap_us = np.maximum(window.occurred_us[:, :-1] - window.occurred_us[:, 1:], 0)
    octave = 1 + np.floor(np.log2(1 + gap_us / 1e6)).astype(np.int32)
    out = np.zeros(window.is_there.shape, np.int32)
    out[:, :-1] = np.where(window.is_there[:, 1:], np.minimum(octave, OCTAVES - 1), 0)
    return out


def enriched(parameters: dict[str, Any], inputs: dict[str, Any], content: Any) -> Any:
    """Return a user's activities, float (L, h) newest first, with what the parts add to each."""
    x = content
    if "position" in parameters:
        x = x + parameters["position"][: len(content)]
    if "cycle" in parameters:
        x = x + inputs["cycle"] @ parameters["cycle"]
    if "gap" in parameters:
        x = x + parameters["gap"][inputs["gap"]]
    return x


def log_weights(parameters: dict[str, Any], inputs: dict[str, Any]) -> Any:
    """Return the logarithm of an activity's weight in each head, float (L, heads); 0. without."""
    if "log2_half_life_days" not in parameters:
        return 0.0
    half_lives = 2.0 ** parameters["log2_half_life_days"]
    return -math.log(2.0) * inputs["age_days"][:, None] / half_lives
