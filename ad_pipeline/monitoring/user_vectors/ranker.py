"""The batch ranker with and without some more columns, on rows that neither of them has learnt.

Both are the product's own (:mod:`ad_pipeline.learners.batch.batch_model`), trained on the same rows
with the same settings; only the columns differ, so that the difference is what these are worth.
"""

from dataclasses import dataclass

import numpy as np

from ad_pipeline.evaluation.intervals import paired_difference
from ad_pipeline.evaluation.metrics import probabilities_of
from ad_pipeline.learners.batch.batch_model import (
    TooFewPositives,
    train_batch_model,
    training_slices,
)
from ad_pipeline.monitoring.user_vectors.labelled import Impressions
from ad_pipeline.settings import BatchSettings


class RankerUntrained(ValueError):
    """There are too few positives to train a ranker on; the message says how many."""


@dataclass(frozen=True)
class Split:
    """Which impressions are learnt, and which are tested.

    Attributes
    ----------
    learn_from_us : int
        Vectors were learnt by then.
    test_from_us : int
        What was shown before and has matured by then is learnt; what was shown from then on is
        tested.
    """

    learn_from_us: int
    test_from_us: int

    def learnt(self, shown: Impressions) -> np.ndarray:
        """Tell which rows are learnt, bool (n,)."""
        is_between = (shown.occurred_us >= self.learn_from_us) & (
            shown.occurred_us < self.test_from_us
        )
        return is_between & (shown.matured_us <= self.test_from_us)

    def tested(self, shown: Impressions) -> np.ndarray:
        """Tell which rows are tested, bool (n,)."""
        return shown.occurred_us >= self.test_from_us


@dataclass(frozen=True)
class Gain:
    """What the ranker with more columns gains over the one without.

    Attributes
    ----------
    value : float
        Share of its normalized entropy that the ranker without loses: 0.002 is 0.2 %. The entropy
        is that of the same rows, so it is the share of log loss too.
    low, high : float
        Two-sided 95 % interval of a paired bootstrap over users.
    rows, users : int
    """

    value: float
    low: float
    high: float
    rows: int
    users: int


def ranked(
    shown: Impressions,
    split: Split,
    columns: np.ndarray | None,
    settings: BatchSettings,
    gap_us: int,
    seed: int = 1,
) -> np.ndarray:
    """Train the ranker and return the probabilities of the tested rows, float64.

    Parameters
    ----------
    shown : Impressions
    split : Split
    columns : ndarray of shape (n, V), float, or None
        Behind the ranker's own; NaN is missing.
    settings : BatchSettings
    gap_us : int
        Between what is trained on and what stops the training early.
    seed : int

    Raises
    ------
    RankerUntrained
        If there are too few positives to train on.
    """
    own = shown.dense if columns is None else np.concatenate([shown.dense, columns], axis=1)
    more = own.shape[1] - shown.dense.shape[1]
    names = (*shown.dense_names, *(f"user_vector.{place}" for place in range(more)))
    learnt, tested = split.learnt(shown), split.tested(shown)
    train, valid = training_slices(shown.occurred_us[learnt], settings.validation_share, gap_us)
    model = train_batch_model(
        own[learnt],
        shown.category_hashes[learnt],
        shown.online_logit[learnt],
        shown.labels[learnt],
        train,
        valid,
        names,
        shown.category_names,
        settings,
        seed,
    )
    if isinstance(model, TooFewPositives):
        raise RankerUntrained(f"{model}; take a longer log")
    logits = model.predict_logits(
        own[tested], shown.category_hashes[tested], shown.online_logit[tested]
    )
    return probabilities_of(logits)


def gain_of(
    labels: np.ndarray,
    with_columns: np.ndarray,
    without: np.ndarray,
    user: np.ndarray,
    replicates: int = 400,
) -> Gain:
    """Compare two rankers on the same rows; users are resampled, each with all his rows.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    with_columns, without : ndarray of shape (n,), float64
        Probabilities.
    user : ndarray of shape (n,), int64
    replicates : int
    """
    found = paired_difference(labels, with_columns, without, user, seed=1, replicates=replicates)
    # From 0, since what gains nothing should not read -0.
    value, low, high = (0.0 - each for each in (found.relative, found.high, found.low))
    return Gain(value, low, high, found.rows, found.blocks)
