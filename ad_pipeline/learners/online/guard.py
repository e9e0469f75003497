"""Whether an hour's labels are what the online model could expect.

The model as it began the hour scores a sample of the hour's examples. By its own probabilities it
expects a loss, with a variance; how far the loss that came lies above it is its surprise, and how
far the positives lie from those expected its miscalibration. Both are compared with the recent
hours, since no model expects quite right, and count only when they are large as well as certain: a
busy hour makes anything certain. What is done about a suspect hour is :mod:`.recovery`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ad_pipeline.settings import GuardSettings

SAMPLED_EXAMPLES = 20_000
"""Of an hour, evenly spaced: a guard of fixed cost, certain of anything that matters."""

MAD_TO_DEVIATION = 1.4826
"""Standard deviations of a normal variable in one median absolute deviation."""

State = Literal["passed", "warming_up", "too_few", "tripped", "left_out", "accepted"]

COMPARED_WITH: tuple[State, ...] = ("passed", "warming_up")
"""States of the hours that later ones are compared with."""


@dataclass(frozen=True)
class Evidence:
    """What an hour's examples say about the model that met them.

    Attributes
    ----------
    examples : int
        Of the hour, with a weight above 0.
    loss, expected_loss : float
        Weighted mean log loss of the sampled ones, and what the model expected of it; nats.
    surprise : float
        Standard deviations between the two, by the model's own variance.
    observed, expected : float
        Weighted positives, and the model's sum of probabilities.
    miscalibration : float
        Standard deviations between those two.
    largest_logit : float
        Of a sampled example, absolute; infinity if one is not finite.
    largest_weight : float
        Of the model after the hour, absolute; 0 for an expert that is not linear.
    """

    examples: int
    loss: float
    expected_loss: float
    surprise: float
    observed: float
    expected: float
    miscalibration: float
    largest_logit: float
    largest_weight: float

    @property
    def excess_loss(self) -> float:
        """Loss above the expected one, relative to it."""
        return self.loss / self.expected_loss - 1 if self.expected_loss > 0 else 0.0

    @property
    def calibration(self) -> float:
        """Observed over expected positives."""
        return self.observed / self.expected if self.expected > 0 else 1.0


@dataclass(frozen=True)
class Verdict:
    """What the guard says about an hour.

    Attributes
    ----------
    state : str
        "passed", "warming_up", "too_few" or "tripped"; recovery knows two more.
    reason : str
        With its figures, for people.
    """

    state: State
    reason: str


def sampled(rows: int) -> np.ndarray:
    """Return which of an hour's examples the guard looks at, int64, evenly spaced."""
    return np.unique(np.linspace(0, rows - 1, min(rows, SAMPLED_EXAMPLES)).astype(np.int64))


def evidence_of(
    logits: np.ndarray, labels: np.ndarray, weights: np.ndarray, examples: int
) -> Evidence:
    """Return what examples say about the model that scored them.

    The loss of label y at log odds l differs from its expectation under the model's p by
    -(y - p) l, whose variance is p (1 - p) l².

    Parameters
    ----------
    logits : ndarray of shape (n,), float64
        By the model as it began the hour.
    labels : ndarray of shape (n,), 0 or 1
    weights : ndarray of shape (n,), float64
        Rows of weight 0 are left out.
    examples : int
        Of the whole hour.

    Returns
    -------
    Evidence
        ``largest_weight`` is 0: see :func:`dataclasses.replace`.
    """
    counts = weights > 0
    logits, labels, weights = logits[counts], labels[counts].astype(np.float64), weights[counts]
    finite = bool(np.isfinite(logits).all())
    largest = float(np.abs(logits).max(initial=0.0)) if finite else float("inf")
    if not len(logits) or not finite:
        return Evidence(examples, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, largest, 0.0)
    p = np.exp(-np.logaddexp(0.0, -logits))
    total = weights.sum()
    losses = np.logaddexp(0.0, logits) - labels * logits
    expected = np.logaddexp(0.0, logits) - p * logits
    spread = weights**2 * p * (1 - p)
    return Evidence(
        examples=examples,
        loss=float((weights * losses).sum() / total),
        expected_loss=float((weights * expected).sum() / total),
        surprise=_in_deviations((weights * (losses - expected)).sum(), (spread * logits**2).sum()),
        observed=float((weights * labels).sum()),
        expected=float((weights * p).sum()),
        miscalibration=_in_deviations((weights * (labels - p)).sum(), spread.sum()),
        largest_logit=largest,
        largest_weight=0.0,
    )


def judge(evidence: Evidence, recent: Sequence[Evidence], settings: GuardSettings) -> Verdict:
    """Say whether an hour is suspect.

    Parameters
    ----------
    evidence : Evidence
        Of the hour.
    recent : sequence of Evidence
        Of hours before it that were not suspect, none older than ``recent_hours``.
    settings : GuardSettings
    """
    for what, largest in (
        ("a score", evidence.largest_logit), ("a weight", evidence.largest_weight),
    ):  # fmt: skip
        if not largest <= settings.largest_logit:
            return Verdict("tripped", f"{what} reached {largest:g}, numbers have blown up")
    if evidence.examples < settings.minimum_examples:
        return Verdict("too_few", f"{evidence.examples} examples")
    usual = float(np.median([hour.examples for hour in recent])) if recent else 0.0
    if evidence.examples < settings.minimum_share * usual:
        return Verdict("too_few", f"{evidence.examples} examples where {usual:g} are usual")
    if len(recent) < settings.warm_up_hours:
        return Verdict("warming_up", f"{len(recent)} hours to compare with")
    surprise = _against(evidence.surprise, [hour.surprise for hour in recent])
    miscalibration = _against(evidence.miscalibration, [hour.miscalibration for hour in recent])
    usual_calibration = float(np.median([hour.calibration for hour in recent]))
    lowest = usual_calibration / settings.calibration_factor
    highest = usual_calibration * settings.calibration_factor
    shown = (
        f"loss {evidence.loss:.4f} where the model expected {evidence.expected_loss:.4f} "
        f"({surprise:+.1f} deviations from the recent hours), {evidence.observed:.0f} positives "
        f"where it expected {evidence.expected:.0f} ({miscalibration:+.1f})"
    )
    is_surprised = surprise > settings.limit and evidence.excess_loss > settings.excess_loss
    is_miscalibrated = abs(miscalibration) > settings.limit and not (
        lowest <= evidence.calibration <= highest
    )
    return Verdict("tripped" if is_surprised or is_miscalibrated else "passed", shown)


def _in_deviations(difference: float, variance: float) -> float:
    return float(difference / np.sqrt(variance)) if variance > 0 else 0.0


def _against(value: float, recent: Sequence[float]) -> float:
    """Return a value's distance from the median of recent ones in their robust deviations.

    At least one deviation of the model's own is one here: a few quiet hours prove nothing.
    """
    middle = float(np.median(recent))
    deviation = MAD_TO_DEVIATION * float(np.median(np.abs(np.asarray(recent) - middle)))
    return (value - middle) / max(deviation, 1.0)
