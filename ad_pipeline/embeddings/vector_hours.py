"""Vectors of users over log hours: who is encoded anew in each, and what the hour publishes.

After hour H the encoder in force encodes everybody where it is new or a full refresh is due, else
the users with news who are due by their tier, each from what our log had by the end of H and no
longer ago than the lookback. Who did less than ``fewest_activities`` in it gets no vector, and
leaves the store at a full refresh. For each ad the mean direction of its :mod:`.engagers` stands
beside the users, and the pair is published under one name (:mod:`.published`). Hours follow each
other: an hour is a function of the hour before it, the log and the settings, whatever range it was
made in and in however many :mod:`.parts`.

On demand, users are encoded at once, whatever their tier: into a store of its own that continues
the newest hour's, so that no published hour changes.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
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
from ad_pipeline.embeddings.activities import read_activities
from ad_pipeline.embeddings.encoder import Encoder
from ad_pipeline.embeddings.encoder_hours import settings_of
from ad_pipeline.embeddings.engagers import EngagerSums, write_engagers
from ad_pipeline.embeddings.parts import Part, Parts, read_parts
from ad_pipeline.embeddings.published import (
    NO_ENCODER,
    ever_published,
    last_known_us,
    pointer,
    published_hours,
    read_hour,
    write_published,
)
from ad_pipeline.embeddings.refresh import due_for_full, due_for_incremental
from ad_pipeline.embeddings.sequences import NEVER, Sequences
from ad_pipeline.embeddings.vectors import (
    WORDS,
    Codec,
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
        Hashes of all users of the part.
    sequences : Sequences
        One a user, ending with the hour.
    newest_us : ndarray of shape (n,), int64
        When our log had the newest activity; NEVER of who did fewer than
        ``fewest_activities`` within the lookback.
    activities : ndarray of shape (n,), int64
        How many are read.
    """

    ids: np.ndarray
    sequences: Sequences
    newest_us: np.ndarray
    activities: np.ndarray

    @classmethod
    def after(cls, part: Part, settings: UserVectorSettings, hour_us: int) -> "KnownUsers":
        """Cut what users did at the end of an hour.

        Parameters
        ----------
        part : Part
        settings : UserVectorSettings
        hour_us : int
            Start of the hour.
        """
        longest = {modality.name: modality.longest for modality in settings.encoder.modalities}
        lookback_us = settings.lookback_hours * HOUR_US
        as_of_us = last_known_us(hour_us)
        sequences = part.history.sequences(as_of_us, longest, lookback_us=lookback_us)
        activities = np.sum([sequences.lengths(name) for name in longest], axis=0)
        enough = activities >= settings.fewest_activities
        newest_us = np.where(enough, sequences.newest_us(), NEVER)
        return cls(part.ids, sequences, newest_us, activities)

    def due(
        self, previous: StoredVectors | None, settings: UserVectorSettings, hour_us: int
    ) -> np.ndarray:
        """Tell whom the hour's refresh encodes, bool (n,): everybody known without a store."""
        as_of_us = last_known_us(hour_us)
        if previous is None or is_full(settings, hour_us):
            never = np.full(len(self.ids), NEVER)
            return due_for_full(never, self.newest_us, as_of_us)
        refreshed_us = previous.refreshed_of(self.ids)
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
    settings = settings_of(deployment.dataset)
    previous = _users_before(deployment, start_us)
    opened: dict[str, Encoder] = {}
    for chunk_us in range(start_us, end_us, CHUNK_HOURS * HOUR_US):
        chunk_end_us = min(chunk_us + CHUNK_HOURS * HOUR_US, end_us)
        with _parts(warehouse, deployment, chunk_us, chunk_end_us) as parts:
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
                refresh = _Refresh(deployment, parts, opened[digest], digest, previous, hour_us)
                published, previous = refresh.publish()
                yield published


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


def known_users(
    warehouse: "Warehouse", deployment: Deployment, hour_us: int
) -> Iterator[KnownUsers]:
    """Yield what was known of users at the end of an hour, read for that hour alone, by part."""
    settings = settings_of(deployment.dataset)
    with _parts(warehouse, deployment, hour_us, hour_us + HOUR_US) as parts:
        for part in parts:
            yield KnownUsers.after(part, settings, hour_us)


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
        Of their activities alone is read; who did fewer than ``fewest_activities`` gets no vector.

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
    dataset, asked = deployment.dataset, list(user_ids)
    settings, span = settings_of(dataset), _span(deployment, hour_us, hour_us + HOUR_US)
    with warehouse.reader() as connection:
        rows = read_activities(connection, dataset, settings.encoder, *span, asked)
    known = KnownUsers.after(Part.of_rows(rows, dataset, settings.encoder), settings, hour_us)
    due = known.newest_us != NEVER
    encoder = Encoder.open(deployment.checkpoints, users.version)

    def fresh(shard: int) -> tuple[np.ndarray, np.ndarray]:
        return _encoded(encoder, known, due & (users.layout.shards(known.ids) == shard))

    return write_vectors(
        deployment.vectors, ON_DEMAND, users.layout, last_known_us(hour_us), fresh, users
    )


class _Refresh:
    """An hour's refresh: who is due, and what the store continues; a part of the users at a time.

    Parameters
    ----------
    deployment : Deployment
    parts : Parts
    encoder : Encoder
    version : str
        Its digest.
    previous : StoredVectors or None
        The store before, if it is of the encoder.
    hour_us : int
    """

    def __init__(
        self,
        deployment: Deployment,
        parts: Parts,
        encoder: Encoder,
        version: str,
        previous: StoredVectors | None,
        hour_us: int,
    ) -> None:
        self.deployment, self.parts, self.encoder = deployment, parts, encoder
        self.previous, self.hour_us = previous, hour_us
        self.settings = settings = settings_of(deployment.dataset)
        self.is_full = previous is None or is_full(settings, hour_us)

        # Not a method: the cache would keep this object, and the object the cache.
        @lru_cache(maxsize=1)
        def known(number: int) -> tuple[KnownUsers, np.ndarray]:
            found = KnownUsers.after(parts.part(number), settings, hour_us)
            return found, found.due(previous, settings, hour_us)

        self.known = known
        """Told a part's number, returns what is known of its users, and who of them is due."""
        if previous is None:
            self.layout = Layout(version, self._codec(), settings.shard_bits, settings.averaged)
        else:
            self.layout = previous.layout

    def publish(self) -> tuple[VectorHour, StoredVectors]:
        """Write both stores under one name; return what was published, and the users."""
        root, hour_us, layout = self.deployment.vectors, self.hour_us, self.layout
        as_of_us, lookback_us = last_known_us(hour_us), self.settings.lookback_hours * HOUR_US
        name = f"users/{hour_key(hour_us)}"
        staying = self._staying if self.is_full and self.previous is not None else None
        store = write_vectors(root, name, layout, as_of_us, self._fresh, self.previous, staying)
        users = read_vectors(root, store.digest, verify=False)
        sums = EngagerSums(layout.codec.dimension)
        for part in self.parts:
            sums.add(part.engagements.as_of(as_of_us, lookback_us), users)
        engagers = write_engagers(self.deployment, hour_us, layout.version, sums)
        pair = write_published(root, hour_us, store, engagers)
        published = VectorHour(
            hour_us,
            pair.digest,
            layout.version,
            "full" if self.is_full else "incremental",
            sum(int((shard.refreshed_us == as_of_us).sum()) for shard in users.shards),
            len(users),
            len(sums.ids),
            layout.codec.error,
        )
        return published, users

    def _of_shard(self, shard: int) -> Iterator[tuple[KnownUsers, np.ndarray, np.ndarray]]:
        """Yield known users, who of them is due, and who is of the shard, by part."""
        for number in self.parts.of_shard(shard, self.layout.shard_bits):
            known, due = self.known(number)
            yield known, due, self.layout.shards(known.ids) == shard

    def _fresh(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        found = [
            _encoded(self.encoder, known, due & own) for known, due, own in self._of_shard(shard)
        ]
        ids, vectors = zip(*found, strict=True)
        return np.concatenate(ids), np.concatenate(vectors)

    def _staying(self, shard: int) -> np.ndarray:
        """Return who keeps his earlier vectors in a full refresh: who did enough lately."""
        return np.concatenate(
            [known.ids[own & (known.newest_us != NEVER)] for known, _, own in self._of_shard(shard)]
        )

    def _codec(self) -> Codec:
        """Fit or measure how a version's vectors are written, on a sample of those who are due."""
        seed, parts = self.deployment.dataset.settings.seed, range(2**self.parts.bits)
        ids, draws = np.zeros(0, np.uint64), np.zeros(0)
        for known, due in map(self.known, parts):
            ids = np.concatenate([ids, known.ids[due]])
            own = uniform(seed, known.ids[due], "embeddings.codec.sample")
            draws = np.concatenate([draws, own])
            drawn = np.lexsort((ids, draws))[:SAMPLED]
            ids, draws = ids[drawn], draws[drawn]
        by_id = np.argsort(ids)
        sample = np.empty((len(ids), self.settings.encoder.dimension), np.float32)
        for known, due in map(self.known, parts):
            of_part, vectors = _encoded(self.encoder, known, due & np.isin(known.ids, ids))
            sample[by_id[np.searchsorted(ids[by_id], of_part)]] = vectors
        parts_of_vector = self.settings.quantized_parts
        if parts_of_vector is None or len(ids) < 2 * WORDS:
            return half_precision(sample)
        return product_quantized(sample, ids, parts_of_vector, seed)


def _encoded(
    encoder: Encoder, known: KnownUsers, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and new vectors of those asked for, bool (n,)."""
    rows = np.flatnonzero(asked)
    return known.ids[rows], encoder.vectors(known.sequences.take(rows))


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


def _parts(
    warehouse: "Warehouse", deployment: Deployment, start_us: int, end_us: int
) -> AbstractContextManager[Parts]:
    """Read what the hours of a range need of users, by part."""
    span = _span(deployment, start_us, end_us)
    return read_parts(warehouse, deployment, settings_of(deployment.dataset), *span)


def _span(deployment: Deployment, start_us: int, end_us: int) -> tuple[int, int]:
    """Return the first and the last moment of what the hours of a range look back at."""
    lookback_hours = settings_of(deployment.dataset).lookback_hours
    return start_us + HOUR_US - lookback_hours * HOUR_US, end_us - 1
