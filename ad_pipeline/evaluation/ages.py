"""Loss by age: on recent events against older ones, and under fresh models against stale ones.

A slice is compared with all other rows of the same range by normalized entropy, since recent hours
may simply have another click rate. Intervals resample whole hours; slice and rest are drawn
together. Which hours are held out is chosen in ``learners``.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.held_out import BASE_RATE, HeldOut
from ad_pipeline.evaluation.intervals import block_multiplicities, percentiles
from ad_pipeline.settings import Settings

EVENT, BATCH_MODEL = "event", "batch model"
RECENT_HOURS = (6, 24)
"""How many of the newest hours are held against the rest of the range."""

MODEL_AGE_HOURS = 6
"""Width of a bin of the batch model's age."""


def loss_by_age(held_out: HeldOut, settings: Settings) -> list[dict[str, Any]]:
    """Return the rows of ``evaluation.loss_by_age`` of one goal.

    Parameters
    ----------
    held_out : HeldOut
    settings : Settings

    Returns
    -------
    list of dict
        For every forecast but the base rate: the newest :data:`RECENT_HOURS` hours and the hours
        before them, then bins of the batch model's age. A slice without rest is left out.
    """
    labels = held_out.labels.astype(np.float64)
    distinct, block = np.unique(held_out.hours_us, return_inverse=True)
    hours = len(distinct)
    draws = (
        block_multiplicities(hours, settings.evaluation.replicates, settings.seed, "loss by age")
        if hours > 1
        else np.empty((0, hours))
    )
    measured: list[dict[str, Any]] = []
    for forecast, probabilities in held_out.probabilities.items():
        if forecast == BASE_RATE:
            continue
        losses = metrics.row_losses(held_out.labels, probabilities)
        for age_of, first, last, inside in _slices(held_out):
            sums = np.array(
                [
                    [np.bincount(block[part], each[part], hours) for part in (inside, ~inside)]
                    for each in (losses, labels, np.ones(len(labels)))
                ]
            )
            once = _entropies(sums.sum(axis=2))
            drawn = _entropies(sums @ draws.T)
            low, high = percentiles(drawn[0], settings.evaluation.level)
            with np.errstate(invalid="ignore", divide="ignore"):
                relative = once[0] / once[1] - 1
                bounds = percentiles(drawn[0] / drawn[1] - 1, settings.evaluation.level)
            measured.append(
                {
                    "goal": held_out.goal,
                    "forecast": forecast,
                    "age_of": age_of,
                    "from_hours": first,
                    "to_hours": last,
                    "rows": int(inside.sum()),
                    "positives": int(labels[inside].sum()),
                    "log_loss": float(losses[inside].mean()),
                    "normalized_entropy": float(once[0]),
                    "low": low,
                    "high": high,
                    "against_rest": float(relative),
                    "against_rest_low": bounds[0],
                    "against_rest_high": bounds[1],
                }
            )
    return measured


def _slices(held_out: HeldOut) -> Iterator[tuple[str, int, int, np.ndarray]]:
    """Yield what ages, from which hour to which, and which rows; every slice has a rest."""
    span = (held_out.end_us - held_out.start_us) // HOUR_US
    event = (held_out.end_us - held_out.hours_us) // HOUR_US - 1
    for recent in RECENT_HOURS:
        for first, last in ((0, recent), (recent, span)):
            inside = (event >= first) & (event < last)
            if inside.any() and not inside.all():
                yield EVENT, first, last, inside
    if held_out.mixture is None:
        return
    ages = held_out.mixture.batch_ages_us
    known = ages >= 0
    bins = ages // (MODEL_AGE_HOURS * HOUR_US)
    for place in np.unique(bins[known]).tolist():
        inside = known & (bins == place)
        if not inside.all():
            first = place * MODEL_AGE_HOURS
            yield BATCH_MODEL, first, first + MODEL_AGE_HOURS, inside


def _entropies(sums: np.ndarray) -> np.ndarray:
    """Return normalized entropies from sums of losses, labels and rows on the first axis."""
    with np.errstate(invalid="ignore", divide="ignore"):
        loss, positives, rows = sums
        rate = positives / rows
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        return np.where((rate > 0) & (rate < 1), loss / rows / entropy, np.nan)
