"""What impressions of one hour may read of users: a pair of stores under one name.

Each log hour publishes the vectors of users, and for each ad the mean direction of the users who
engaged with it lately (its *engagers*), both of one encoder, so that a ranker may compare a user
with an ad's engagers. The pair has one digest, which names to the byte what a model has read. Until
an encoder was trained, both stores are empty and of the version :data:`NO_ENCODER`: a reader finds
everybody absent, and an hour that was never published still is an error.

Who writes the stores belongs to :mod:`ad_pipeline.embeddings.vector_hours`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ad_pipeline.checkpoints import (
    Checkpoint,
    MissingCheckpoint,
    manifests,
    point,
    pointed_names,
    read_checkpoint,
    resolve,
    unswept,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US, Moments, hour_key, hour_start, timestamp
from ad_pipeline.embeddings.sequences import USER
from ad_pipeline.embeddings.vectors import StoredVectors, WrongVectors, read_vectors
from ad_pipeline.embeddings.versions import MixedVersions
from ad_pipeline.hashing import hash_strings, hash_values, seed_of

KIND = "embeddings.published"

AD = "ad_id"
"""What ids of ads are hashed as, here and in the feature contract."""

NO_ENCODER = "none"
"""Version of the stores of hours before the first encoder; nobody is in them."""


@dataclass(frozen=True)
class PublishedVectors:
    """What impressions of one hour may read.

    Attributes
    ----------
    hour_us : int
        Start of the log hour whose end the stores know.
    users : StoredVectors
        By :func:`user_hashes`.
    engagers : StoredVectors
        By :func:`ad_hashes`: for each ad the mean of its engagers' vectors,
        each at length 1. Of the users' version.
    digest : str
        Of the checkpoint that names the pair.
    """

    hour_us: int
    users: StoredVectors
    engagers: StoredVectors
    digest: str

    @property
    def version(self) -> str:
        """Digest of the encoder's checkpoint, or :data:`NO_ENCODER`."""
        return self.users.version


def user_hashes(ids: pa.Array | pa.ChunkedArray | Sequence[str]) -> np.ndarray:
    """Return the hash of each user, uint64 (n,): that of the feature contract."""
    return _hashes(ids, USER)


def ad_hashes(ids: pa.Array | pa.ChunkedArray | Sequence[str]) -> np.ndarray:
    """Return the hash of each ad, uint64 (n,): that of the feature contract."""
    return _hashes(ids, AD)


def pointer(hour_us: int) -> str:
    """Return the name of the checkpoint pointer of an hour's pair."""
    return f"{KIND}/{hour_key(hour_us)}"


def last_known_us(hour_us: Moments) -> Moments:
    """Return the last microsecond of an hour: what its stores know the log up to, inclusive."""
    return hour_us + (HOUR_US - 1)


def published_hours(root: Path) -> list[int]:
    """Return the hours that were published, ascending, microseconds."""
    names = [name.rpartition("/")[2] for name in pointed_names(root, KIND)]
    # A pointer's file has the key without its colon.
    return sorted(hour_start(f"{name[:-2]}:{name[-2:]}") for name in names)


def ever_published(root: Path, from_us: int) -> set[str]:
    """Return the digests of all pairs of the hours from a moment on, and of what they consist of.

    A late file publishes an hour anew, and decisions made before name the pair that it replaced.

    Parameters
    ----------
    root : Path
    from_us : int
        Start of the first hour, microseconds.

    Returns
    -------
    set of str
        Of pairs, their stores and the stores' shards.
    """
    found: set[str] = set()
    with unswept(root):
        for digest, pair in manifests(root, KIND):
            if pair["hour_us"] >= from_us:
                found |= {digest, pair["users"], pair["engagers"]}
                for store in (pair["users"], pair["engagers"]):
                    found.update(read_checkpoint(root, store, verify=False).manifest["shards"])
    return found


def read_newest(root: Path, *, verify: bool = True) -> PublishedVectors:
    """Open what the newest hour published; see :func:`read_published`.

    Raises
    ------
    MissingCheckpoint
        If no hour was published yet.
    """
    hours = published_hours(root)
    if not hours:
        raise MissingCheckpoint(
            f"no vectors of users in {root}; materialize embeddings.user_vectors first"
        )
    return read_hour(root, hours[-1], verify=verify)


def write_published(
    root: Path, hour_us: int, users: Checkpoint, engagers: Checkpoint
) -> Checkpoint:
    """Name a pair of stores and point the hour at it.

    Parameters
    ----------
    root : Path
        Folder that holds the stores, :attr:`ad_pipeline.datasets.Deployment.vectors`.
    hour_us : int
        Start of the hour whose end the stores know.
    users, engagers : Checkpoint
        From :func:`ad_pipeline.embeddings.vectors.write_vectors`.

    Returns
    -------
    Checkpoint
        Equal for equal stores and hour.

    Raises
    ------
    MixedVersions
        If the stores are of two encoders.
    WrongVectors
        If one of them knows more of the log than the hour's end.
    """
    versions = [store.manifest["version"] for store in (users, engagers)]
    if versions[0] != versions[1]:
        raise MixedVersions(
            f"users of version {versions[0]} were to be published with ads' engagers of version "
            f"{versions[1]}; write both stores of {hour_key(hour_us)} with one encoder"
        )
    for name, store in (("users", users), ("engagers", engagers)):
        watermark_us = store.manifest["watermark_us"]
        if watermark_us > last_known_us(hour_us):
            raise WrongVectors(
                f"the store of {name} of {hour_key(hour_us)} knows the log up to "
                f"{timestamp(watermark_us)}, after the hour's end; write it as of the hour"
            )
    facts = {
        "hour_us": hour_us,
        "version": versions[0],
        "users": users.digest,
        "engagers": engagers.digest,
    }
    with unswept(root):
        pair = write_checkpoint(root, KIND, {}, facts)
        point(root, pointer(hour_us), pair.digest)
    return pair


def read_published(root: Path, digest: str, *, verify: bool = True) -> PublishedVectors:
    """Open a pair by its digest, arrays memory-mapped.

    Parameters
    ----------
    root : Path
        As for :func:`write_published`.
    digest : str
        Of the pair's checkpoint.
    verify : bool
        Check the SHA-256 of every file first.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        If the pair, a store or a shard is not there, or has other bytes.
    WrongVectors
        If the checkpoint is of another kind.
    """
    pair = read_checkpoint(root, digest, verify=verify)
    facts = pair.manifest
    if facts["kind"] != KIND:
        raise WrongVectors(f"{pair.path} is a {facts['kind']}, not a {KIND}")
    users, engagers = (
        read_vectors(root, facts[name], verify=verify) for name in ("users", "engagers")
    )
    return PublishedVectors(facts["hour_us"], users, engagers, digest)


def read_hour(root: Path, hour_us: int, *, verify: bool = True) -> PublishedVectors:
    """Open what an hour published; see :func:`read_published`.

    Raises
    ------
    MissingCheckpoint
        If the hour was never published.
    """
    return read_published(root, resolve(root, pointer(hour_us)), verify=verify)


def _hashes(ids: pa.Array | pa.ChunkedArray | Sequence[str], name: str) -> np.ndarray:
    if isinstance(ids, pa.Array | pa.ChunkedArray):
        return hash_strings(ids, seed_of(name))
    return hash_values(ids, seed_of(name))
