"""Models of delay that losses rest on: how late positives come, and which negatives are real.

Both are logistic models over the hashed slots that the learners see, fitted to anchors that have
matured, so that every label is final:

- *lateness*, P(arrives after the observation window | y = 1, x), on positives;
- *real negative*, P(y = 0 | not positive when the window is over, x), on observed negatives.

They are apart from the learner whose examples they weigh, since weights that come out of the
learner itself repeat its errors, and refitted, since public code that freezes them grows stale. How
long labels take as a distribution is ``examples.label_delays``; when to fit, and on which hours, is
:mod:`.delay_model_hours`.

References
----------
Yang et al., ES-DFM, AAAI 2021, section 4.3 (two classifiers besides the model; there d is
estimated, here c = d / p, so that d <= p by construction). Yasui et al., FSIW, WWW 2020.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ad_pipeline.hashing import seed_of, slot_of
from ad_pipeline.learners.delayed.losses import CERTAIN
from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert, LinearWeights
from ad_pipeline.settings import Configuration

LATENESS, REAL_NEGATIVE = "lateness", "real_negative"
NAMES = (LATENESS, REAL_NEGATIVE)

NEEDED_BY = frozenset({"es_dfm", "es_dfm_rn", "defer", "defuse", "fsiw", "ulc"})
"""Losses that read one of them."""

PASSES = 3
"""Over the matured rows; more fit noise of rare slots, fewer leave the common ones unlearnt."""

MINIMUM_POSITIVES = 100
"""Fewer late or fewer timely positives: no model, and rows are taken as logged."""

CONFIGURATIONS = tuple(
    Configuration(alpha=alpha, beta=1.0, l1=l1, l2=l2)
    for alpha in (0.05, 0.1, 0.3)
    for l1, l2 in ((0.5, 1.0), (0.0, 0.0))
)
"""Tried side by side, each model choosing its own: what keeps noise of rare slots out of a model of
few late positives is what hides from a model of many negatives which of them are real."""

_BIAS = "bias of a model of delay"


class TooFewLabels(ValueError):
    """There are too few matured positives to fit a model of delay."""


@dataclass(frozen=True)
class MaturedLabels:
    """What is known of matured anchors.

    Attributes
    ----------
    slots : ndarray of shape (n, F), uint32
    positive : ndarray of shape (n,), bool
    late : ndarray of shape (n,), bool
        Positive, and not yet when the observation window was over.
    weights : ndarray of shape (n,), float64
        How many anchors a row stands for.
    """

    slots: np.ndarray
    positive: np.ndarray
    late: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class DelayModels:
    """Both models of one goal.

    Attributes
    ----------
    lateness, real_negative : LinearWeights
    """

    lateness: LinearWeights
    real_negative: LinearWeights

    def probabilities(self, slots: np.ndarray) -> dict[str, np.ndarray]:
        """Return what both say of rows, float64 (n,) by name, within [1e-6, 1 - 1e-6].

        Parameters
        ----------
        slots : ndarray of shape (n, F), uint32
        """
        given = with_bias(slots, len(self.lateness.weights))
        found = {}
        for name in NAMES:
            model: LinearWeights = getattr(self, name)
            p = np.exp(-np.logaddexp(0.0, -model.logits(given)))
            found[name] = np.clip(p, CERTAIN, 1.0 - CERTAIN)
        return found

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the slots that have a weight, and the weights, by name."""
        arrays: dict[str, np.ndarray] = {}
        for name in NAMES:
            weights = getattr(self, name).weights
            kept = np.flatnonzero(weights)
            arrays[f"{name}_slots"] = kept.astype(np.uint32)
            arrays[f"{name}_weights"] = weights[kept]
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], bits: int) -> Self:
        """Return the models of :meth:`to_arrays` over 2^bits slots."""
        dense = {}
        for name in NAMES:
            weights = np.zeros(1 << bits, np.float32)
            weights[arrays[f"{name}_slots"]] = arrays[f"{name}_weights"]
            dense[name] = LinearWeights(weights, 0.0)
        return cls(**dense)


def with_bias(slots: np.ndarray, n_slots: int) -> np.ndarray:
    """Return the slots with one more column, the same in every row, uint32 (n, F + 1)."""
    hashed = np.full((len(slots), 1), seed_of(_BIAS), dtype=np.uint64)
    return np.hstack((slots, slot_of(hashed, n_slots.bit_length() - 1)))


def fit_delay_models(labels: MaturedLabels, bits: int) -> tuple[DelayModels, dict[str, Any]]:
    """Fit both models.

    Parameters
    ----------
    labels : MaturedLabels
        In the order of maturity.
    bits : int
        2^bits slots.

    Returns
    -------
    models : DelayModels
    facts : dict
        Of each model: rows, share, the configuration of :data:`CONFIGURATIONS` whose log loss was
        least on the last sixth of the rows, which it was not fitted to then, and its calibration
        there.

    Raises
    ------
    TooFewLabels
        If there are fewer than :data:`MINIMUM_POSITIVES` late positives, or timely ones.
    """
    late, timely = int(labels.late.sum()), int((labels.positive & ~labels.late).sum())
    if min(late, timely) < MINIMUM_POSITIVES:
        raise TooFewLabels(
            f"{late} matured positives came after the window and {timely} within it; "
            f"{MINIMUM_POSITIVES} of each needed"
        )
    slots = with_bias(labels.slots, 1 << bits)
    targets = {LATENESS: labels.late, REAL_NEGATIVE: ~labels.positive}
    observed = {LATENESS: labels.positive, REAL_NEGATIVE: ~labels.positive | labels.late}
    facts: dict[str, Any] = {}
    found: dict[str, LinearWeights] = {}
    for name in NAMES:
        rows = np.flatnonzero(observed[name])
        held = len(rows) * 5 // 6
        early = _fitted(slots, targets[name], labels.weights, rows[:held], bits, CONFIGURATIONS)
        log_odds = early.logits(slots[rows[held:]])
        weights = labels.weights[rows[held:]]
        told = targets[name][rows[held:]]
        losses = weights @ np.logaddexp(0.0, np.where(told[:, None], -log_odds, log_odds))
        best = int(np.argmin(losses))
        said = 1.0 / (1.0 + np.exp(-log_odds[:, best]))
        facts[f"{name}_rows"] = len(rows)
        facts[f"{name}_mean"] = float(np.average(targets[name][rows], weights=labels.weights[rows]))
        facts[f"{name}_calibration"] = float((weights * said).sum() / (weights * told).sum())
        facts[f"{name}_alpha"] = CONFIGURATIONS[best].alpha
        facts[f"{name}_l1"] = CONFIGURATIONS[best].l1
        chosen = (CONFIGURATIONS[best],)
        whole = _fitted(slots, targets[name], labels.weights, rows, bits, chosen)
        found[name] = whole.linear_weights()
    return DelayModels(found[LATENESS], found[REAL_NEGATIVE]), facts


def _fitted(
    slots: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    rows: np.ndarray,
    bits: int,
    configurations: tuple[Configuration, ...],
) -> FTRLExpert:
    expert = FTRLExpert(bits, configurations, "float32")
    for _ in range(PASSES):
        expert.learn(slots[rows], targets[rows], weights[rows])
    return expert
