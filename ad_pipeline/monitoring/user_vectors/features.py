"""Vectors as columns of a ranker: as of the last refresh before each impression, and nothing later.

Which vector an impression could have read follows from when its user was refreshed last, so how
often vectors are refreshed is an argument here, and their price is measured by varying it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.sequences import History
from ad_pipeline.monitoring.user_vectors.labelled import UNKNOWN

EVERYTHING = 2**31
"""More activities than a user has."""


@dataclass(frozen=True)
class Engagements:
    """Who engaged with which ad, e engagements in any order.

    Attributes
    ----------
    user, ad : ndarray of shape (e,), int64
        Places in a history's users, and among the ads.
    received_us : ndarray of shape (e,), int64
    """

    user: np.ndarray
    ad: np.ndarray
    received_us: np.ndarray


def refreshed_us(
    occurred_us: np.ndarray, interval_us: int, phase: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return when a user was last refreshed before an impression, int64 (n,).

    Parameters
    ----------
    occurred_us : ndarray of shape (n,), int64
    interval_us : int
        Between two refreshes of a user.
    phase : ndarray of shape (n,), or float
        In [0, 1): a refresh of everybody is spread over the interval, as a fleet of encoders would;
        0 refreshes all at once.
    """
    offset = (np.asarray(phase) * interval_us).astype(np.int64)
    return (occurred_us - 1 - offset) // interval_us * interval_us + offset


def activity_counts(history: History, user: np.ndarray, as_of_us: np.ndarray) -> np.ndarray:
    """Return how many activities our log had of users at moments, int64 (n,); 0 of the unknown."""
    counts = np.zeros(len(user), np.int64)
    known = user != UNKNOWN
    everything = dict.fromkeys(history.modalities, EVERYTHING)
    sequences = history.sequences(as_of_us[known], everything, user[known])
    counts[known] = sum(sequences.lengths(name) for name in history.modalities)
    return counts


def vectors_at(
    encoder: Encoder, history: History, user: np.ndarray, as_of_us: np.ndarray
) -> np.ndarray:
    """Return the vectors of users at moments; each (user, moment) is encoded once.

    Parameters
    ----------
    encoder : Encoder
    history : History
    user : ndarray of shape (n,), int64
        :data:`.labelled.UNKNOWN` for who is not in the history.
    as_of_us : ndarray of shape (n,), int64

    Returns
    -------
    ndarray of shape (n, d), float32
        NaN for a user of whom our log had nothing yet that the encoder reads: such users are in no
        store.
    """
    found = np.full((len(user), encoder.settings.dimension), np.nan, np.float32)
    known = np.flatnonzero(user != UNKNOWN)
    asked, place = np.unique(
        np.stack([user[known], as_of_us[known]], 1), axis=0, return_inverse=True
    )
    sequences = history.sequences(asked[:, 1], encoder.longest, asked[:, 0])
    is_any = sum(sequences.lengths(name) for name in encoder.longest) > 0
    some = np.flatnonzero(is_any)
    vectors = np.full((len(asked), found.shape[1]), np.nan, np.float32)
    vectors[some] = encoder.vectors(sequences.take(some))
    found[known] = vectors[place.reshape(-1)]
    return found


def engager_centroids(
    encoder: Encoder, history: History, engagements: Engagements, ads: int, as_of_us: int
) -> np.ndarray:
    """Return the direction of each ad's engagers: the mean of their unit vectors, made of length 1.

    Returns
    -------
    ndarray of shape (ads, d), float32
        NaN for ads that nobody engaged with by then.
    """
    known = engagements.received_us <= as_of_us
    pairs = np.unique(np.stack([engagements.user[known], engagements.ad[known]], 1), axis=0)
    users, place = np.unique(pairs[:, 0], return_inverse=True)
    units = _units(vectors_at(encoder, history, users, np.full(len(users), as_of_us)))
    sums = np.zeros((ads, units.shape[1]))
    np.add.at(sums, pairs[:, 1], np.nan_to_num(units[place.reshape(-1)]))
    sums[np.bincount(pairs[:, 1], minlength=ads) == 0] = np.nan
    return _units(sums).astype(np.float32)


def engager_cosines(
    vectors: np.ndarray,
    ad: np.ndarray,
    occurred_us: np.ndarray,
    every_us: int,
    centroids_at: Callable[[int], np.ndarray],
) -> np.ndarray:
    """Return the cosine of each impression's user with the engagers of its ad.

    Parameters
    ----------
    vectors : ndarray of shape (n, d), float32
        Of the users.
    ad, occurred_us : ndarray of shape (n,), int64
    every_us : int
        Centroids are made anew so often, and the last before an impression is read.
    centroids_at : callable
        Gets a moment and returns :func:`engager_centroids`.

    Returns
    -------
    ndarray of shape (n,), float64
        NaN without a vector, or without engagers.
    """
    made_us = refreshed_us(occurred_us, every_us)
    units = _units(vectors)
    found = np.full(len(ad), np.nan)
    for moment_us in np.unique(made_us):
        rows = made_us == moment_us
        found[rows] = (units[rows] * centroids_at(int(moment_us))[ad[rows]]).sum(axis=1)
    return found


def match_logits(
    encoder: Encoder, vectors: np.ndarray, ad_tokens: np.ndarray, ad: np.ndarray, task: str
) -> np.ndarray:
    """Return what the two towers say of each user and ad: log odds of a task, float64 (n,).

    NaN without a vector.
    """
    found = np.full(len(ad), np.nan)
    known = np.isfinite(vectors[:, 0])
    logits = encoder.logits(vectors[known], ad_tokens[ad[known]])
    found[known] = logits[:, encoder.settings.tasks.index(task)]
    return found


def _units(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
