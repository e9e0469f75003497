"""Who gets a new vector, and what is read while the next one is on its way.

Vectors are computed apart from requests (asynchronously), so each has an age. A full refresh
encodes everybody; an incremental one those who did something since their vector was computed, the
active ones more often; a user whom somebody asks for is encoded on demand. What is read is the mean
of a user's last few vectors, which one odd session cannot turn around (read path of SUM, arXiv
2311.09544).

Everything here is a function of arrays and a moment that is given; when refreshes run, and where
vectors are kept, belongs elsewhere.
"""

from collections.abc import Sequence

import numpy as np

from ad_pipeline.embeddings.sequences import NEVER
from ad_pipeline.settings import RefreshTier


def due_for_full(
    refreshed_us: np.ndarray, last_activity_us: np.ndarray, as_of_us: int
) -> np.ndarray:
    """Tell whom a full refresh encodes: all who did anything by then, or who have a vector.

    Parameters
    ----------
    refreshed_us, last_activity_us : ndarray of shape (n,), int64
        As for :func:`due_for_incremental`.
    as_of_us : int
        The refresh's moment.

    Returns
    -------
    ndarray of shape (n,), bool
    """
    known = (last_activity_us != NEVER) & (last_activity_us <= as_of_us)
    return known | (refreshed_us != NEVER)


def due_for_incremental(
    refreshed_us: np.ndarray,
    last_activity_us: np.ndarray,
    activities: np.ndarray,
    tiers: Sequence[RefreshTier],
    as_of_us: int,
) -> np.ndarray:
    """Tell whom an incremental refresh encodes: news, and a vector as old as the tier allows.

    Parameters
    ----------
    refreshed_us : ndarray of shape (n,), int64
        Up to when the user's newest vector knows the log; :data:`NEVER` without one.
    last_activity_us : ndarray of shape (n,), int64
        When the log had the user's newest activity; :data:`NEVER` without one.
    activities : ndarray of shape (n,), int64
        How many the user had lately: it says the tier.
    tiers : sequence of RefreshTier
        By ascending activity, the first from 0 on.
    as_of_us : int
        The refresh's moment. Activity after it is not news yet.

    Returns
    -------
    ndarray of shape (n,), bool
    """
    from_activities = np.array([tier.from_activities for tier in tiers])
    interval_us = np.array([tier.interval_us for tier in tiers], np.int64)
    of_user = interval_us[np.searchsorted(from_activities, activities, side="right") - 1]
    has_news = (
        (last_activity_us != NEVER)
        & (last_activity_us > refreshed_us)
        & (last_activity_us <= as_of_us)
    )
    # Compared by adding to neither end: NEVER is too far away for a difference in int64.
    old_enough = (refreshed_us == NEVER) | (refreshed_us <= as_of_us - of_user)
    return has_news & old_enough


def taken_in(
    held: np.ndarray, counts: np.ndarray, newest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put users' newest vectors before those that they have; the oldest leaves when all are held.

    Parameters
    ----------
    held : ndarray of shape (n, h, w)
        What is kept of each user's last vectors, the newest first.
    counts : ndarray of shape (n,), uint8
        How many of the h are there.
    newest : ndarray of shape (n, w)

    Returns
    -------
    pair of ndarray
        Held and counts anew.
    """
    pushed = np.concatenate([newest[:, None], held[:, :-1]], axis=1)
    return pushed, np.minimum(counts + 1, held.shape[1]).astype(np.uint8)


def mean_of_last(held: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return what is read of each user: the mean of the vectors held.

    Parameters
    ----------
    held : ndarray of shape (n, h, d), float32
        Of one version, the newest first.
    counts : ndarray of shape (n,), integer
        How many of the h are there, at least 1.

    Returns
    -------
    ndarray of shape (n, d), float32
        Summed from the newest on, so that a user's mean has the same bits in any company.
    """
    total = held[:, 0].astype(np.float32)
    for place in range(1, held.shape[1]):
        total += np.where((counts > place)[:, None], held[:, place], np.float32(0))
    return total / counts[:, None].astype(np.float32)
