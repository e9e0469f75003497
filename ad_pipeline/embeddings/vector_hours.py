"""Vectors of users over log hours: who is encoded anew in each, and what the hour publishes.

After hour H the encoder in force encodes everybody where it is new or a full refresh is due, else
the users with news who are due by their tier, each from what our log had by the end of H and no
longer ago than the lookback. Who did nothing for so long leaves the store at a full refresh. For
each ad the mean direction of its engagers stands beside the users, and the pair is published under
one name (:mod:`.published`). Hours follow each other: an hour is a function of the hour before it,
the log and the settings, whatever range it was made in.

On demand, users are encoded at once, whatever their tier: into a store of its own that continues
the newest hour's, so that no published hour changes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ad_pipeline.checkpoints import (
    Checkpoint,
    MissingCheckpoint,
    Swept,
    is_pointed,
    sweep,
    unpoint,
)
from ad_pipeline.clocks import HOUR_US, hour_key, hour_of, hours_between
from ad_pipeline.datasets import Deployment
from ad_pipeline.embeddings import encoder_hours
from ad_pipeline.embeddings.activities import (
    Engagements,
    engagements_of,
    history_of,
    read_activities,
)
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.encoder_hours import settings_of
from ad_pipeline.embeddings.published import (
    NO_ENCODER,
    ever_published,
    last_known_us,
    pointer,
    published_hours,
    read_hour,
    user_hashes,
    write_published,
)
from ad_pipeline.embeddings.refresh import due_for_full, due_for_incremental
from ad_pipeline.embeddings.retrieval import Engaged
from ad_pipeline.embeddings.sequences import NEVER, History, Sequences
from ad_pipeline.embeddings.vectors import (
    WORDS,
    Codec,
    FreshVectors,
    Layout,
    StoredVectors,
    forget_vectors,
    half_precision,
    product_quantized,
    read_vectors,
    write_vectors,
)
from ad_pipeline.hashing import uniform
from ad_pipeline.settings import UserVectorSettings

if TYPE_CHECKING:
    from ad_pipeline.warehouse import Warehouse

CHUNK_HOURS = 24
"""Hours whose activities are read together."""

SAMPLED = 4_096
"""Users that a codec is fitted to or measured on."""

ON_DEMAND = "users/on_demand"

_BLOCK_ENTRIES = 65_536


@dataclass(frozen=True)
class VectorHour:
    """What an hour published.

    Attributes
    ----------
    hour_us : int
        Start of the hour.
    digest : str
        Of the published pair.
    version : str
        Digest of the encoder, or :data:`.published.NO_ENCODER`.
    refresh : str
        "full", "incremental" or "none": there is no encoder yet.
    encoded : int
        Users who got a new vector.
    users, ads : int
        In the stores.
    error : float
        Share of the squared length that storing loses.
    """

    hour_us: int
    digest: str
    version: str
    refresh: str
    encoded: int
    users: int
    ads: int
    error: float


@dataclass(frozen=True)
class KnownUsers:
    """What was known of users at the end of an hour.

    Attributes
    ----------
    ids : ndarray of shape (n,), uint64
        Hashes of all users of the history.
    sequences : Sequences
        One a user, ending with the hour.
    newest_us : ndarray of shape (n,), int64
        When our log had the newest activity; NEVER of who did nothing within the lookback.
    activities : ndarray of shape (n,), int64
        How many are read.
    """

    ids: np.ndarray
    sequences: Sequences
    newest_us: np.ndarray
    activities: np.ndarray

    @classmethod
    def after(
        cls, history: History, ids: np.ndarray, settings: UserVectorSettings, hour_us: int
    ) -> "KnownUsers":
        """Cut a history at the end of an hour.

        Parameters
        ----------
        history : History
        ids : ndarray of shape (n,), uint64
            Of its users.
        settings : UserVectorSettings
        hour_us : int
            Start of the hour.
        """
        longest = {modality.name: modality.longest for modality in settings.encoder.modalities}
        lookback_us = settings.lookback_hours * HOUR_US
        sequences = history.sequences(last_known_us(hour_us), longest, lookback_us=lookback_us)
        activities = np.sum([sequences.lengths(name) for name in longest], axis=0)
        return cls(ids, sequences, sequences.newest_us(), activities)

    def due(
        self, previous: StoredVectors | None, settings: UserVectorSettings, hour_us: int
    ) -> np.ndarray:
        """Tell whom the hour's refresh encodes, bool (n,): everybody known without a store."""
        as_of_us = last_known_us(hour_us)
        refreshed_us = np.full(len(self.ids), NEVER)
        if previous is None or is_full(settings, hour_us):
            return due_for_full(refreshed_us, self.newest_us, as_of_us)
        positions = previous.positions(self.ids)
        refreshed_us[positions >= 0] = previous.refreshed_us[positions[positions >= 0]]
        return due_for_incremental(
            refreshed_us, self.newest_us, self.activities, settings.tiers, as_of_us
        )


def is_full(settings: UserVectorSettings, hour_us: int) -> bool:
    """Tell whether everybody is encoded after an hour, also without a new encoder."""
    return (hour_us + HOUR_US) % (settings.full_refresh_every_hours * HOUR_US) == 0


def advance_hours(
    warehouse: "Warehouse", deployment: Deployment, start_us: int, end_us: int
) -> Iterator[VectorHour]:
    """Encode whom each hour asks for, and publish its stores.

    Parameters
    ----------
    warehouse : Warehouse
        With the events of the hours and of the lookback before them.
    deployment : Deployment
        With the encoders of the hours.
    start_us, end_us : int
        Starts of hours, microseconds.

    Yields
    ------
    VectorHour
        One per hour, in order, after it is durable.

    Raises
    ------
    MissingCheckpoint
        If the hour before was never published, or an hour has no encoder though it had one.
    EmbeddingsExtraMissing
        If JAX is not installed and somebody is due.
    """
    dataset, root = deployment.dataset, deployment.vectors
    settings = settings_of(dataset)
    previous = _users_before(deployment, start_us)
    opened: dict[str, Encoder] = {}
    for chunk_us in range(start_us, end_us, CHUNK_HOURS * HOUR_US):
        chunk_end_us = min(chunk_us + CHUNK_HOURS * HOUR_US, end_us)
        history, ids, engagements = _read(warehouse, deployment, chunk_us, chunk_end_us)
        for hour_us in hours_between(chunk_us, chunk_end_us):
            digest = encoder_hours.digest_after(deployment, hour_us)
            if digest is None and previous is not None:
                raise MissingCheckpoint(
                    f"no encoder is in force after {hour_key(hour_us)}, and one was before; "
                    "materialize embeddings.encoder of that hour first"
                )
            if digest is None:
                yield _without_encoder(deployment, settings, hour_us)
                continue
            if digest not in opened:
                opened = {digest: Encoder.open(deployment.checkpoints, digest)}
            if previous is not None and previous.version != digest:
                previous = None
            known = KnownUsers.after(history, ids, settings, hour_us)
            refresh = _Refresh.of(
                opened[digest], digest, known, settings, dataset.settings.seed, previous, hour_us
            )
            store = refresh.write(deployment, f"users/{hour_key(hour_us)}")
            previous = read_vectors(root, store.digest, verify=False)
            lookback_us = settings.lookback_hours * HOUR_US
            engaged = engagements.as_of(last_known_us(hour_us), lookback_us)
            engagers = write_engagers(deployment, hour_us, previous, engaged)
            pair = write_published(root, hour_us, store, engagers)
            yield VectorHour(
                hour_us,
                pair.digest,
                digest,
                "full" if refresh.is_full else "incremental",
                int(refresh.due.sum()),
                len(previous.ids),
                len(read_vectors(root, engagers.digest, verify=False).ids),
                refresh.layout.codec.error,
            )


def forget_hours(deployment: Deployment, end_us: int) -> tuple[int, Swept]:
    """Remove published hours that ``kept_hours`` does not keep, and what no other hour has of them.

    Parameters
    ----------
    deployment : Deployment
    end_us : int
        Microseconds: ages are in log time, and count back from here.

    Returns
    -------
    hours : int
        Removed.
    swept : Swept
    """
    root = deployment.vectors
    kept_from_us = end_us - settings_of(deployment.dataset).kept_hours * HOUR_US
    old = [hour_us for hour_us in published_hours(root) if hour_us < kept_from_us]
    for hour_us in old:
        unpoint(root, pointer(hour_us))
        for name in ("users", "engagers"):
            forget_vectors(root, f"{name}/{hour_key(hour_us)}")
    return len(old), sweep(root, ever_published(root, kept_from_us))


def known_users(warehouse: "Warehouse", deployment: Deployment, hour_us: int) -> KnownUsers:
    """Return what was known of users at the end of an hour, read for that hour alone."""
    history, ids, _ = _read(warehouse, deployment, hour_us, hour_us + HOUR_US)
    return KnownUsers.after(history, ids, settings_of(deployment.dataset), hour_us)


def engager_centroids(engaged: Engaged, users: StoredVectors) -> tuple[np.ndarray, np.ndarray]:
    """Return for each ad the mean of its engagers' vectors, each at length 1.

    Parameters
    ----------
    engaged : Engaged
    users : StoredVectors
        Engagers who are not in it do not count.

    Returns
    -------
    ids : ndarray of shape (a,), uint64
        Ads that a known user engaged with, ascending.
    vectors : ndarray of shape (a, d), float32
    """
    positions = users.positions(engaged.users)[engaged.rows]
    entries = np.flatnonzero(positions >= 0)
    sums = np.zeros((len(engaged.ad_ids), users.layout.codec.dimension))
    for start in range(0, len(entries), _BLOCK_ENTRIES):
        block = entries[start : start + _BLOCK_ENTRIES]
        np.add.at(sums, engaged.ads[block], users.units(positions[block]).astype(np.float64))
    counts = np.bincount(engaged.ads[entries], minlength=len(engaged.ad_ids))
    known = counts > 0
    return engaged.ad_ids[known], (sums[known] / counts[known, np.newaxis]).astype(np.float32)


def write_engagers(
    deployment: Deployment, hour_us: int, users: StoredVectors, engaged: Engaged
) -> Checkpoint:
    """Write an hour's store of ads' engagers, of the users' version."""
    ids, vectors = engager_centroids(engaged, users)
    layout = Layout(users.version, half_precision(vectors), 0, 1)
    return write_vectors(
        deployment.vectors,
        f"engagers/{hour_key(hour_us)}",
        layout,
        last_known_us(hour_us),
        lambda _: (ids, vectors),
    )


def encode_on_demand(
    warehouse: "Warehouse", deployment: Deployment, hour_us: int, user_ids: Iterable[str]
) -> Checkpoint:
    """Encode some users from what our log had by the end of an hour, whatever their tier.

    Parameters
    ----------
    warehouse : Warehouse
    deployment : Deployment
    hour_us : int
        Start of the newest published hour.
    user_ids : iterable of str
        Users of whom nothing is known get no vector.

    Returns
    -------
    Checkpoint
        Of the store :data:`ON_DEMAND`: the hour's users, with new vectors of these.

    Raises
    ------
    MissingCheckpoint
        If the hour was never published, or before any encoder.
    """
    users = read_hour(deployment.vectors, hour_us).users
    if users.version == NO_ENCODER:
        raise MissingCheckpoint(
            f"there is no encoder after {hour_key(hour_us)}; materialize embeddings.encoder until "
            "one is trained"
        )
    known = known_users(warehouse, deployment, hour_us)
    asked = np.isin(known.ids, user_hashes(list(user_ids))) & (known.newest_us != NEVER)
    encoder = Encoder.open(deployment.checkpoints, users.version)
    fresh = _fresh(encoder, users.layout, known, asked)
    return write_vectors(
        deployment.vectors, ON_DEMAND, users.layout, last_known_us(hour_us), fresh, users
    )


@dataclass(frozen=True)
class _Refresh:
    """An hour's refresh: who is due, and what the store continues."""

    encoder: Encoder
    layout: Layout
    known: KnownUsers
    due: np.ndarray
    previous: StoredVectors | None
    hour_us: int
    is_full: bool

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        version: str,
        known: KnownUsers,
        settings: UserVectorSettings,
        seed: int,
        previous: StoredVectors | None,
        hour_us: int,
    ) -> "_Refresh":
        due = known.due(previous, settings, hour_us)
        full = previous is None or is_full(settings, hour_us)
        if previous is None:
            codec = _codec(encoder, known, due, settings, seed)
            layout = Layout(version, codec, settings.shard_bits, settings.averaged)
        else:
            layout = previous.layout
            previous = previous.only(known.ids[known.newest_us != NEVER]) if full else previous
        return cls(encoder, layout, known, due, previous, hour_us, full)

    def write(self, deployment: Deployment, name: str) -> Checkpoint:
        fresh = _fresh(self.encoder, self.layout, self.known, self.due)
        as_of_us = last_known_us(self.hour_us)
        return write_vectors(deployment.vectors, name, self.layout, as_of_us, fresh, self.previous)


def _codec(
    encoder: Encoder,
    known: KnownUsers,
    due: np.ndarray,
    settings: UserVectorSettings,
    seed: int,
) -> Codec:
    """Fit or measure how a version's vectors are written, on a sample of those who are due."""
    rows = np.flatnonzero(due)
    draws = uniform(seed, known.ids[rows], "embeddings.codec.sample")
    rows = rows[np.argsort(draws, kind="stable")[:SAMPLED]]
    sample = encoder.vectors(known.sequences.take(rows))
    if settings.quantized_parts is None or len(rows) < 2 * WORDS:
        return half_precision(sample)
    return product_quantized(sample, known.ids[rows], settings.quantized_parts, seed)


def _fresh(encoder: Encoder, layout: Layout, known: KnownUsers, due: np.ndarray) -> FreshVectors:
    of_shard = layout.shards(known.ids)

    def fresh(number: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.flatnonzero(due & (of_shard == number))
        return known.ids[rows], encoder.vectors(known.sequences.take(rows))

    return fresh


def _without_encoder(
    deployment: Deployment, settings: UserVectorSettings, hour_us: int
) -> VectorHour:
    """Publish that nobody has a vector yet."""
    nobody = np.zeros(0, np.uint64), np.zeros((0, settings.encoder.dimension), np.float32)
    codec, as_of_us = Codec(settings.encoder.dimension, None, 0.0), last_known_us(hour_us)
    users, engagers = (
        write_vectors(
            deployment.vectors,
            f"{name}/{hour_key(hour_us)}",
            Layout(NO_ENCODER, codec, 0, averaged),
            as_of_us,
            lambda _: nobody,
        )
        for name, averaged in (("users", settings.averaged), ("engagers", 1))
    )
    pair = write_published(deployment.vectors, hour_us, users, engagers)
    return VectorHour(hour_us, pair.digest, NO_ENCODER, "none", 0, 0, 0, 0.0)


def _users_before(deployment: Deployment, start_us: int) -> StoredVectors | None:
    """Return the users' store of the hour before; None at the start of the log."""
    first_us, before_us = hour_of(deployment.dataset.start_us), start_us - HOUR_US
    if start_us <= first_us:
        return None
    if not is_pointed(deployment.vectors, pointer(before_us)):
        raise MissingCheckpoint(
            f"embeddings.user_vectors of {hour_key(start_us)} continue from "
            f"{hour_key(before_us)}, which was never published; materialize "
            f"embeddings.user_vectors from {hour_key(first_us)} on first"
        )
    users = read_hour(deployment.vectors, before_us).users
    return None if users.version == NO_ENCODER else users


def _read(
    warehouse: "Warehouse", deployment: Deployment, start_us: int, end_us: int
) -> tuple[History, np.ndarray, Engagements]:
    """Read what the hours of a range need: histories, hashes of their users, engagements."""
    dataset = deployment.dataset
    settings = settings_of(dataset)
    from_us = start_us + HOUR_US - settings.lookback_hours * HOUR_US
    with warehouse.reader() as connection:
        rows = read_activities(connection, dataset, settings.encoder, from_us, end_us - 1)
    history = history_of(rows, dataset, settings.encoder)
    return history, user_hashes(history.users), engagements_of(rows, dataset)
