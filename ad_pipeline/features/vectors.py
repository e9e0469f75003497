"""Vectors of users as numbers of an impression: as of what was published when it occurred.

The stores belong to :mod:`ad_pipeline.embeddings`, the room before this one; how numbers become
slots, to :mod:`.encoding`. Here the two meet, for training, scorer, replay and parity alike: which
hour's vectors an impression may read, whether they fit the contract, and the d + 1 numbers that
come out, each row by itself, so that they do not depend on its company. Like the scorer, which
runs it, this imports NumPy, Numba and Arrow only.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import HOUR_US, hour_of, published_hour, timestamp
from ad_pipeline.embeddings.published import (
    PublishedVectors,
    pointer,
    read_published,
)
from ad_pipeline.embeddings.vectors import FoundVectors, StoredVectors, WrongVectors
from ad_pipeline.embeddings.versions import MixedVersions
from ad_pipeline.features import encoding_kernels as kernels
from ad_pipeline.features.encoding import VectorFeatures

OPENED_HOURS = 48
"""Hours whose stores stay opened for the next look-up: they are mapped, and hold no memory."""


FEW_ROWS = 64
"""From here on it pays to look users and ads up once, who come again and again within an hour."""


def check_vectors(features: VectorFeatures, published: PublishedVectors) -> None:
    """Refuse vectors that a contract cannot read.

    Parameters
    ----------
    features : VectorFeatures
    published : PublishedVectors

    Raises
    ------
    WrongVectors
        If they have another dimension than the contract.
    MixedVersions
        If users and engagers are of two encoders: their cosines mean nothing.
    """
    users, engagers = published.users, published.engagers
    hour = timestamp(published.hour_us)
    if users.version != engagers.version:
        raise MixedVersions(
            f"the vectors of {hour} are of users by encoder {users.version} and of engagers by "
            f"{engagers.version}; publish both by one encoder"
        )
    dimensions = {users.layout.codec.dimension, engagers.layout.codec.dimension}
    if dimensions != {features.dimension}:
        raise WrongVectors(
            f"the vectors of {hour}, of encoder {users.version}, have {sorted(dimensions)} numbers "
            f"and the feature contract {features.dimension}; publish with "
            "settings.user_vectors.encoder.dimension as it is now, or serve a bundle trained on "
            "these"
        )


def vector_numbers(
    features: VectorFeatures, published: PublishedVectors, hashes: np.ndarray
) -> np.ndarray:
    """Return the numbers that rows find in the vectors of one hour.

    Parameters
    ----------
    features : VectorFeatures
    published : PublishedVectors
    hashes : ndarray of shape (n, 2), uint64
        From :func:`ad_pipeline.features.encoding.vector_hashes`.

    Returns
    -------
    ndarray of shape (n, d + 1), float64
        The components of the user's vector, and its cosine with the mean direction of the ad's
        engagers. NaN where there is no vector, or one without length.

    Raises
    ------
    WrongVectors, MixedVersions
        As :func:`check_vectors`.
    """
    check_vectors(features, published)
    users, engagers = (
        _found(store, hashes[:, place])
        for place, store in enumerate((published.users, published.engagers))
    )
    numbers = np.empty((len(hashes), features.dimension + 1), np.float64)
    kernels.vector_numbers(users, engagers, numbers)
    return numbers


def _found(store: StoredVectors, ids: np.ndarray) -> np.ndarray:
    """Return the vectors of ids, float32 (n, d); NaN where there is none."""
    if len(ids) < FEW_ROWS:
        return _masked(store.lookup(ids))
    distinct, place = np.unique(ids, return_inverse=True)
    return _masked(store.lookup(distinct))[place.reshape(-1)]


def _masked(found: FoundVectors) -> np.ndarray:
    found.vectors[~found.present] = np.nan
    return found.vectors


def vectors_at(
    features: VectorFeatures,
    root: Path,
    dataset_start_us: int,
    hashes: np.ndarray,
    occurred_us: np.ndarray,
) -> np.ndarray:
    """Return, for each row, the numbers by the vectors that were published when it occurred.

    Parameters
    ----------
    features : VectorFeatures
    root : Path
        Folder of the published vectors.
    dataset_start_us : int
        Before the dataset's start nothing was published.
    hashes : ndarray of shape (n, 2), uint64
    occurred_us : ndarray of shape (n,), int64
        When the impressions occurred.

    Returns
    -------
    ndarray of shape (n, d + 1), float64

    Raises
    ------
    MissingCheckpoint
        If vectors that were due are not there: materialize ``embeddings/user_vectors`` first.
    WrongVectors, MixedVersions
        As :func:`check_vectors`.
    """
    hours_us, hour_of_row = np.unique(occurred_us // HOUR_US * HOUR_US, return_inverse=True)
    due_us = [published_hour(features.lag_hours, hour_us) for hour_us in hours_us.tolist()]
    begun = hour_of(dataset_start_us)
    digests = [resolve(root, pointer(due)) if due >= begun else None for due in due_us]
    return vectors_named(features, root, [digests[hour] for hour in hour_of_row.tolist()], hashes)


def vectors_named(
    features: VectorFeatures,
    root: Path,
    digests: Sequence[str | None],
    hashes: np.ndarray,
    *,
    verify: bool = False,
) -> np.ndarray:
    """Return, for each row, the numbers by the published vectors that it names.

    Parameters
    ----------
    features : VectorFeatures
    root : Path
        Folder of the published vectors.
    digests : sequence of str or None, length n
        As decisions log them under :data:`ad_pipeline.features.encoding.VECTORS_USED`; None or
        empty for none.
    hashes : ndarray of shape (n, 2), uint64
    verify : bool
        Check the SHA-256 of every file first.

    Returns
    -------
    ndarray of shape (n, d + 1), float64

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        If what is named is not there or not intact.
    WrongVectors, MixedVersions
        As :func:`check_vectors`.
    """
    numbers = np.full((len(hashes), features.dimension + 1), np.nan)
    rows_of: dict[str, list[int]] = {}
    for row, digest in enumerate(digests):
        if digest:
            rows_of.setdefault(digest, []).append(row)
    for digest, rows in rows_of.items():
        numbers[rows] = vector_numbers(features, _opened(root, digest, verify), hashes[rows])
    return numbers


@lru_cache(OPENED_HOURS)
def _opened(root: Path, digest: str, verify: bool) -> PublishedVectors:
    """Open what cannot change: a digest names its bytes."""
    return read_published(root, digest, verify=verify)
