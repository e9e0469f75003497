"""The batch ranker with and without some more columns, on rows that neither of them has learnt.

Both are the product's own (:mod:`ad_pipeline.learners.batch.batch_model`), trained on the same rows
with the same settings; only the columns differ, so that the difference is what these are worth.

One training of trees on few rows is a draw: where it stops early, and what it splits by, moves its
loss by more than most columns do. So where training is cheap it is done several times, each on the
rows of other users, and losses are means over trainings: of rankers, not of one averaged ranker.
"""

from dataclasses import dataclass

import numpy as np

from ad_pipeline.evaluation.intervals import paired_loss_difference
from ad_pipeline.evaluation.metrics import CLIP, probabilities_of
from ad_pipeline.hashing import uniform
from ad_pipeline.learners.batch.batch_model import (
    TooFewPositives,
    train_batch_model,
    training_slices,
)
from ad_pipeline.monitoring.user_vectors.labelled import UNKNOWN, Impressions
from ad_pipeline.settings import BatchSettings

USER_SHARE = 0.8
"""Of users, whose rows one of several trainings learns."""

MOST_TRAININGS = 16
TRAINED_ROWS = 400_000
"""So many rows are learnt in all before a further training is left out."""


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


def trainings_of(rows: int) -> int:
    """Return how often a ranker of so many learnt rows is trained."""
    return max(1, min(MOST_TRAININGS, TRAINED_ROWS // max(rows, 1)))


def ranked(
    shown: Impressions,
    split: Split,
    columns: np.ndarray | None,
    settings: BatchSettings,
    gap_us: int,
    trainings: int = 1,
) -> np.ndarray:
    """Train the ranker and return what it says of the tested rows.

    Parameters
    ----------
    shown : Impressions
    split : Split
    columns : ndarray of shape (n, V), float, or None
        Behind the ranker's own; NaN is missing.
    settings : BatchSettings
    gap_us : int
        Between what is trained on and what stops the training early.
    trainings : int
        One learns all rows; each of several those of :data:`USER_SHARE` of the users, the same
        users whatever the columns.

    Returns
    -------
    ndarray of shape (trainings, t), float64
        Probabilities.

    Raises
    ------
    RankerUntrained
        If there are too few positives to train on.
    """
    own = shown.dense if columns is None else np.concatenate([shown.dense, columns], axis=1)
    more = own.shape[1] - shown.dense.shape[1]
    names = (*shown.dense_names, *(f"user_vector.{place}" for place in range(more)))
    tested = split.tested(shown)
    of_tested = own[tested], shown.category_hashes[tested], shown.online_logit[tested]
    said = np.empty((trainings, int(tested.sum())))
    for training in range(trainings):
        learnt = split.learnt(shown)
        if trainings > 1:
            learnt &= _drawn_users(shown.user, training)
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
            seed=1,
        )
        if isinstance(model, TooFewPositives):
            raise RankerUntrained(f"{model}; take a longer log")
        said[training] = probabilities_of(model.predict_logits(*of_tested))
    return said


def mean_losses(targets: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Return what each row loses on average over trainings.

    Parameters
    ----------
    targets : ndarray of shape (t,), float
        Labels, or true probabilities: log loss is then the expected one.
    said : ndarray of shape (trainings, t), float64
        From :func:`ranked`.

    Returns
    -------
    ndarray of shape (t,), float64
        Nats.
    """
    clipped = np.clip(said, CLIP, 1.0 - CLIP)
    return -(targets * np.log(clipped) + (1.0 - targets) * np.log1p(-clipped)).mean(axis=0)


def gain_of(
    with_columns: np.ndarray, without: np.ndarray, user: np.ndarray, replicates: int = 400
) -> Gain:
    """Compare two rankers on the same rows; users are resampled, each with all his rows.

    Parameters
    ----------
    with_columns, without : ndarray of shape (n,), float64
        Losses, from :func:`mean_losses`.
    user : ndarray of shape (n,), int64
    replicates : int
    """
    found = paired_loss_difference(with_columns, without, user, seed=1, replicates=replicates)
    # From 0, since what gains nothing should not read -0.
    value, low, high = (0.0 - each for each in (found.relative, found.high, found.low))
    return Gain(value, low, high, found.rows, found.blocks)


def _drawn_users(user: np.ndarray, training: int) -> np.ndarray:
    """Tell which rows a training may learn, bool (n,): who is unknown counts as another each."""
    alone = len(user) + np.arange(len(user))
    who = np.where(user == UNKNOWN, alone, user).astype(np.uint64)
    return uniform(training, who, "monitoring.user_vectors.ranker") < USER_SHARE
