"""What is read of a user whom little is known of, and which ranker he is scored by.

The prior gives way as he does more. Three levels, each shrunk to the one above: the mean vector of
all users, of the users of a segment (what a request tells of anybody, such as country and device),
and the user's own vector. A level with n behind it weighs n against the strength of the prior,
n / (n + k): what is at hand decides, and nobody is left without a vector (Efron and Morris, JASA
1973). Or nothing is read of him: a ranker without vectors scores who did less than so much, and the
vectors of others cost him nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

BUCKETS = ((0, 0), (1, 4), (5, 19), (20, None))
"""Activities of a user, from and to."""

SEGMENT = ("country", "device")
"""Columns of a request that say which segment its user is of."""

STRENGTH = 5.0
"""Activities' worth of the prior."""

SEGMENT_STRENGTH = 20.0
"""Users' worth of the mean of all in each segment's mean."""


class NobodyHasVectors(ValueError):
    """There is no vector to take a mean of."""


def segments_of(requests: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Return the segment of each request, texts (n,): its values of some columns."""
    values = zip(*(requests[name].to_pylist() for name in columns), strict=True)
    named = [" ".join(map(str, row)) for row in values] if columns else ["all"] * len(requests)
    return np.array(named, str)


def last_segments(users: int, user: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """Return each user's segment by his last request, texts (users,); "" of who made none.

    Parameters
    ----------
    users : int
        How many there are.
    user : ndarray of shape (n,), int64
        Of requests by time.
    segment : ndarray of shape (n,), str
    """
    found = np.full(users, "", dtype=segment.dtype if len(segment) else str)
    found[user] = segment
    return found


def bucket_of(activities: np.ndarray) -> np.ndarray:
    """Return the place in :data:`BUCKETS` of users with so many activities, int64."""
    firsts = [first for first, _ in BUCKETS]
    return np.searchsorted(firsts, activities, side="right") - 1


def bucket_name(place: int) -> str:
    """Return a bucket for people: ``5–19``, ``20+``."""
    first, last = BUCKETS[place]
    if last is None:
        return f"{first}+"
    return str(first) if first == last else f"{first}–{last}"


@dataclass(frozen=True)
class Prior:
    """Means of users' vectors.

    Attributes
    ----------
    of_all : ndarray of shape (d,), float32
    segments : ndarray of shape (s,)
        Ascending.
    of_segment : ndarray of shape (s, d), float32
        Shrunk to ``of_all``.
    """

    of_all: np.ndarray
    segments: np.ndarray
    of_segment: np.ndarray

    def read(
        self, vectors: np.ndarray, activities: np.ndarray, segment: np.ndarray, strength: float
    ) -> np.ndarray:
        """Return what is read of users.

        Parameters
        ----------
        vectors : ndarray of shape (n, d), float32
            NaN for users without one.
        activities : ndarray of shape (n,), int64
            What each vector knows of its user.
        segment : ndarray of shape (n,)
            One that no user was known of is told nothing of.
        strength : float
            k, activities' worth of the prior.

        Returns
        -------
        ndarray of shape (n, d), float32
            Without NaN.
        """
        place = np.minimum(np.searchsorted(self.segments, segment), len(self.segments) - 1)
        is_known = np.isin(segment, self.segments)
        prior = np.where(is_known[:, np.newaxis], self.of_segment[place], self.of_all)
        has_vector = np.isfinite(vectors[:, 0])
        n = np.where(has_vector, activities, 0).astype(np.float32)
        share = (n / (n + np.float32(strength)))[:, np.newaxis]
        return share * np.where(has_vector[:, np.newaxis], vectors, 0) + (1 - share) * prior


def fit_prior(vectors: np.ndarray, segment: np.ndarray, strength: float) -> Prior:
    """Fit the means.

    Parameters
    ----------
    vectors : ndarray of shape (n, d), float32
        Of the users known at a moment, one a user; those of NaN are left out.
    segment : ndarray of shape (n,)
    strength : float
        Users' worth of the mean of all that each segment's mean is shrunk by, above 0.

    Raises
    ------
    NobodyHasVectors
    """
    known = np.isfinite(vectors[:, 0])
    if not known.any():
        raise NobodyHasVectors("nobody has a vector to take a mean of; encode some users first")
    found = vectors[known].astype(np.float64)
    of_all = found.mean(axis=0)
    segments, place = np.unique(segment[known], return_inverse=True)
    sums = np.zeros((len(segments), found.shape[1]))
    np.add.at(sums, place, found)
    n = np.bincount(place)[:, np.newaxis]
    of_segment = (sums + strength * of_all) / (n + strength)
    return Prior(of_all.astype(np.float32), segments, of_segment.astype(np.float32))
