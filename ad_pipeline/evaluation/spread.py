r"""How far experts stand apart, and how far off their mixture is, hour by hour.

The log loss of a logit s is softplus(s) - y s: linear in the label, convex in the logit. With
shares w that sum to 1 and the centre c = sum of w s,

    loss of the mixture = mean loss of its experts - ambiguity - correction,

where the ambiguity, sum of w loss(s) - loss(c), is never below 0 and is what mixing gains: the
ensemble's variance in the units of the loss (Krogh and Vedelsby, Neural network ensembles, NIPS
1995, for squared loss; Wood et al., A unified theory of diversity in ensemble learning, JMLR 24,
2023, for log loss). For an average of logits it does not depend on the labels. The correction is
what intercept, slope and calibration gain after that. The bias is predicted less observed.

An expert that the mixture does not read has no part in the ambiguity; how far it stands from the
mixture is in the variance of the logits, which counts all of them alike. Which rows are measured is
the caller's to say.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.held_out import ENSEMBLE, HeldOut
from ad_pipeline.evaluation.intervals import reach_of_sum

EVEN = "average"
"""The mixture that needs no fit: equal shares of the logits."""


@dataclass(frozen=True)
class Spread:
    """Hours pooled: the means of a range.

    Attributes
    ----------
    ambiguity, logit_variance, bias : float
        Means over rows; NaN without rows.
    bias_reach : float
        Half the width of the bias's interval, hours as independent units; NaN with fewer than
        three hours.
    """

    ambiguity: float
    logit_variance: float
    bias: float
    bias_reach: float


def hourly_spread(
    goal: str,
    mixture: str,
    labels: np.ndarray,
    hours_us: np.ndarray,
    logits: Mapping[str, np.ndarray],
    shares: Mapping[str, float],
    centre: np.ndarray,
    probabilities: np.ndarray,
    level: float,
) -> Iterator[dict[str, Any]]:
    """Measure the experts of a mixture, and the mixture, in every hour.

    Parameters
    ----------
    goal, mixture : str
    labels : ndarray of shape (n,), 0 or 1
        Matured.
    hours_us : ndarray of shape (n,), int64
        Hour in which each row matured.
    logits : mapping of str to ndarray of shape (n,), float64
        By expert, all finite.
    shares : mapping of str to float
        Of the experts that the mixture reads; they sum to 1.
    centre : ndarray of shape (n,), float64
        Logit of the experts by their shares.
    probabilities : ndarray of shape (n,), float64
        Of the mixture, after its calibration.
    level : float
        Coverage of the bias's interval.

    Yields
    ------
    dict
        One row of ``evaluation.ensemble_hours`` per hour, rising.
    """
    from scipy.special import ndtri

    quantile = float(ndtri((1 + level) / 2))
    losses = metrics.row_losses(labels, probabilities)
    own = {name: _losses(labels, values) for name, values in logits.items()}
    experts = sum((share * own[name] for name, share in shares.items()), np.zeros(len(labels)))
    ambiguity = experts - _losses(labels, centre)
    apart = np.mean([np.square(values - centre) for values in logits.values()], axis=0)
    # By chance alone the sum of labels strays this far from that of right probabilities; the labels
    # themselves would say 0 in an hour without a positive.
    chance = probabilities * (1 - probabilities)
    for hour_us in np.unique(hours_us):
        here = hours_us == hour_us
        rows, positives = int(here.sum()), int(labels[here].sum())
        predicted = float(probabilities[here].sum())
        bias = (predicted - positives) / rows
        reach = quantile * float(np.sqrt(chance[here].sum())) / rows
        loss, mean, gain = (float(each[here].sum()) / rows for each in (losses, experts, ambiguity))
        yield {
            "hour_us": int(hour_us),
            "goal": goal,
            "mixture": mixture,
            "rows": rows,
            "positives": positives,
            "probability_sum": predicted,
            "log_loss": loss,
            "expert_log_loss": mean,
            "ambiguity": gain,
            "correction": mean - gain - loss,
            "logit_variance": float(apart[here].sum()) / rows,
            "bias": bias,
            "bias_low": bias - reach,
            "bias_high": bias + reach,
        }


def spread_of_even_mixture(rows: pa.Table, experts: Sequence[str], level: float) -> Iterator[dict]:
    """Measure the unfitted average of the experts, hour by hour, on rows that all of them scored.

    Parameters
    ----------
    rows : pyarrow.Table
        Columns of ``scored_rows.sql``.
    experts : sequence of str
    level : float

    Yields
    ------
    dict
        Rows of ``evaluation.expert_spread``, goals in order of name.
    """
    goals = rows.column("goal").to_numpy(zero_copy_only=False)
    labels = rows.column("label").to_numpy(zero_copy_only=False)
    matured_us = rows.column("matured_us").to_numpy()
    matrix = np.column_stack(
        [rows.column(f"{name}_logit").cast(pa.float64()).to_numpy() for name in experts]
    )
    scored = np.isfinite(matrix).all(axis=1)
    for goal in sorted(set(goals)):
        here = scored & (goals == goal)
        centre = matrix[here].mean(axis=1)
        yield from hourly_spread(
            goal,
            EVEN,
            labels[here],
            matured_us[here] - matured_us[here] % HOUR_US,
            {name: matrix[here, place] for place, name in enumerate(experts)},
            dict.fromkeys(experts, 1 / len(experts)),
            centre,
            metrics.probabilities_of(centre),
            level,
        )


def spread_of_ensemble(held_out: HeldOut, level: float) -> list[dict[str, Any]]:
    """Return the rows of ``evaluation.ensemble_hours`` of one goal.

    Raises
    ------
    ValueError
        If the forecasts do not say what the mixture is made of.
    """
    parts = held_out.mixture
    if parts is None:
        raise ValueError(f"{held_out.goal}: the parts of the mixture are not known")
    return list(
        hourly_spread(
            held_out.goal,
            parts.kind,
            held_out.labels,
            held_out.hours_us,
            parts.logits,
            parts.shares,
            parts.centre,
            held_out.probabilities[ENSEMBLE],
            level,
        )
    )


def pooled(records: Sequence[Mapping[str, Any]], level: float) -> Spread:
    """Return the means over some hours of :func:`hourly_spread`, every row counted once."""
    rows = np.array([record["rows"] for record in records], dtype=np.float64)
    if not rows.sum():
        return Spread(*[float("nan")] * 4)

    def mean(name: str) -> float:
        return float((rows * [record[name] for record in records]).sum() / rows.sum())

    bias = mean("bias")
    moved = rows * np.array([record["bias"] - bias for record in records]) / rows.sum()
    return Spread(mean("ambiguity"), mean("logit_variance"), bias, reach_of_sum(moved, level))


def _losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Log loss in nats, not clipped: the decomposition holds to rounding."""
    return np.logaddexp(0.0, np.where(labels == 1, -logits, logits))
