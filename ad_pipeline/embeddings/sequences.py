"""What users did, as sequences that end at a moment: jagged, point in time, batched by length.

A :class:`History` holds every activity once, a modality at a time: users one after the other, each
user's activities in the order in which *our log had them*. What was known of a user at a moment is
therefore a prefix, and a :class:`Sequences` of any number of (user, moment) pairs is nothing but
where those prefixes end: training looks at a user at many moments and copies nothing. What an
activity is about (:mod:`.content`) and how it is encoded (:mod:`.enrichment`, :mod:`.encoder`) do
not belong here.

**Point in time.** An activity with ``received_us`` after the moment is not there, whenever it
occurred: the pipeline could not have known it. Ages, gaps and times of day are of ``occurred_us``.

**Lengths.** A sequence is padded to the next power of two of its length, in each modality alone.
The padded shape of a user is thus a function of that user, and batches are of one shape each.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.hashing import combine, hash_strings, seed_of
from ad_pipeline.settings import Modality

NEVER = np.iinfo(np.int64).min
"""Moment of what has not happened: a user's vector, or a user's activity."""

NOTHING = 0
"""The slot of no token, which pads an activity's tokens."""

SHORTEST = 8
"""Sequences are padded to at least so many activities: fewer shapes are compiled."""

USER = "user_id"
"""What ids of users are hashed as, in stores and in the feature contract: one name a user."""

NEVER_NULL = "user_id", "occurred_us", "received_us", "modality"
COLUMNS = (*NEVER_NULL, "tokens")


@dataclass(frozen=True)
class Activities:
    """All activities of one modality, user after user, in the order in which our log had them.

    Attributes
    ----------
    offsets : ndarray of shape (users + 1,), int64
        Activities of user u are ``offsets[u]`` to ``offsets[u + 1]``.
    occurred_us, received_us : ndarray of shape (m,), int64
        ``received_us`` ascends within a user.
    tokens : ndarray of shape (m, T), uint32
        Slots; :data:`NOTHING` where there are fewer.
    vectors : ndarray of shape (m, W), float32
        Vectors that came with the activities; W is 0 if there are none.
    """

    offsets: np.ndarray
    occurred_us: np.ndarray
    received_us: np.ndarray
    tokens: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class History:
    """What all users did.

    Attributes
    ----------
    users : pa.LargeStringArray of length n
        Ids, distinct and ascending.
    modalities : mapping of str to Activities
    """

    users: pa.LargeStringArray
    modalities: Mapping[str, Activities]

    @classmethod
    def of_table(cls, table: pa.Table, modalities: Sequence[Modality]) -> "History":
        """Lay a table of activities out by user; the order of its rows does not matter.

        Parameters
        ----------
        table : pa.Table
            Columns ``user_id`` and ``modality`` (texts), ``occurred_us`` and ``received_us``
            (int64), ``tokens`` (lists of uint32; null for none), and ``vector`` (lists of float)
            if a modality asks for it. Rows of modalities that are not asked for are left out.
        modalities : sequence of Modality
            How many tokens and numbers of each are read.

        Raises
        ------
        ValueError
            If a column is missing, a value that is needed is null, or a vector has another width
            than its modality says or is not finite; names the row.
        """
        _check_columns(table, modalities)
        users = table["user_id"].cast(pa.large_string()).combine_chunks().unique()
        users = users.take(pc.sort_indices(users))  # pyright: ignore[reportAttributeAccessIssue]
        codes = pc.index_in(table["user_id"].cast(pa.large_string()), value_set=users)  # pyright: ignore[reportAttributeAccessIssue]
        user = codes.to_numpy().astype(np.int64)
        return cls(users, {m.name: _activities(table, user, len(users), m) for m in modalities})

    def places(self, users: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Return the places of users, int64 (n,): -1 of null and of who is not there."""
        found = pc.index_in(users.cast(pa.large_string()), value_set=self.users)  # pyright: ignore[reportAttributeAccessIssue]
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]

    def sequences(
        self,
        as_of_us: int | np.ndarray,
        longest: Mapping[str, int],
        users: np.ndarray | None = None,
        lookback_us: int | None = None,
    ) -> "Sequences":
        """Return what was known of users at moments: the newest activities of each modality.

        Parameters
        ----------
        as_of_us : int or ndarray of shape (n,), int64
            A moment for all, or one each, microseconds; what our log had then is known.
        longest : mapping of str to int
            Modalities to look at, and how many activities of each at most.
        users : ndarray of shape (n,), int64, optional
            Places in :attr:`users`; every user once if left out.
        lookback_us : int, optional
            Leave out what our log had so long before the moment, or longer.
        """
        user = np.arange(len(self.users)) if users is None else np.asarray(users, np.int64)
        moment = np.broadcast_to(np.asarray(as_of_us, np.int64), user.shape)
        spans = {}
        for name, most in longest.items():
            of = self.modalities[name]
            last = _known_until(of, user, moment)
            first = np.maximum(of.offsets[user], last - most)
            if lookback_us is not None:
                first = np.maximum(first, _known_until(of, user, moment - lookback_us))
            spans[name] = first, last
        return Sequences(self, user, moment, spans)


@dataclass(frozen=True)
class Batch:
    """Sequences of one shape.

    Attributes
    ----------
    rows : ndarray of shape (b,), int64
        Places of the sequences.
    lengths : mapping of str to int
        Activities that each is padded to, in each modality.
    """

    rows: np.ndarray
    lengths: Mapping[str, int]


@dataclass(frozen=True)
class Sequences:
    """What was known of users at moments; several rows may be of one user.

    Attributes
    ----------
    history : History
    user : ndarray of shape (n,), int64
        Places in the history's users.
    as_of_us : ndarray of shape (n,), int64
    spans : mapping of str to (first, last), each of shape (n,), int64
        Where the activities lie in the history's, a pair a modality.
    """

    history: History
    user: np.ndarray
    as_of_us: np.ndarray
    spans: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.user)

    def lengths(self, modality: str) -> np.ndarray:
        """Return the activities of each sequence, int64 (n,)."""
        first, last = self.spans[modality]
        return last - first

    def newest_us(self) -> np.ndarray:
        """Return when our log had each sequence's newest activity, int64 (n,); NEVER of none."""
        newest = np.full(len(self), NEVER, np.int64)
        for name, (first, last) in self.spans.items():
            some = last > first
            received_us = self.history.modalities[name].received_us[last[some] - 1]
            newest[some] = np.maximum(newest[some], received_us)
        return newest

    def of_modalities(self, names: Iterable[str]) -> "Sequences":
        """Return the same sequences with what they hold of some modalities alone."""
        spans = {name: self.spans[name] for name in names}
        return Sequences(self.history, self.user, self.as_of_us, spans)

    def take(self, rows: np.ndarray) -> "Sequences":
        """Return some of the sequences, by their places, which may repeat."""
        spans = {name: (first[rows], last[rows]) for name, (first, last) in self.spans.items()}
        return Sequences(self.history, self.user[rows], self.as_of_us[rows], spans)

    def identities(self) -> np.ndarray:
        """Return a hash of user id and moment, uint64 (n,): what random choices are made by."""
        # Not the hash that names a user: this one only orders what is learnt.
        users = hash_strings(self.history.users, seed_of("user"))[self.user]
        return combine(users, self.as_of_us.astype(np.uint64), seed_of("sequence"))

    def newest_first(self, modality: str, rows: np.ndarray, length: int) -> "Window":
        """Return the activities of some sequences, padded to one length, the newest first.

        Parameters
        ----------
        modality : str
        rows : ndarray of shape (b,), int64
            Places of sequences of at most ``length`` activities; -1 for an empty one.
        length : int
        """
        of = self.history.modalities[modality]
        first, last = (np.append(side, 0)[rows] for side in self.spans[modality])
        places = last[:, np.newaxis] - 1 - np.arange(length)
        is_there = places >= first[:, np.newaxis]
        places = np.where(is_there, places, 0)
        if not len(of.tokens):
            shape = (len(rows), length)
            nothing = np.zeros(shape, np.int64)
            tokens = np.zeros((*shape, of.tokens.shape[1]), np.uint32)
            return Window(is_there, tokens, _no_vectors(shape, of), nothing, nothing)
        as_of_us = np.append(self.as_of_us, 0)[rows]
        occurred_us = of.occurred_us[places]
        return Window(
            is_there,
            np.where(is_there[..., np.newaxis], of.tokens[places], np.uint32(NOTHING)),
            np.where(is_there[..., np.newaxis], of.vectors[places], np.float32(0.0)),
            np.where(is_there, occurred_us, 0),
            np.where(is_there, np.maximum(as_of_us[:, np.newaxis] - occurred_us, 0), 0),
        )

    def batches(self, size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield every sequence once, at most ``size`` of one padded shape at a time.

        Parameters
        ----------
        size : int
        order : ndarray of shape (n,), int64, optional
            Places of sequences, which may repeat; as they stand if left out. A batch is yielded
            when it is full, those that never are at the end, by shape.
        """
        order = np.arange(len(self)) if order is None else order
        names = list(self.spans)
        padded = np.stack([padded_length(self.lengths(name)) for name in names], axis=1)[order]
        shapes, shape_of = np.unique(padded, axis=0, return_inverse=True)
        shape_of = shape_of.reshape(-1)
        batches = []
        for shape in range(len(shapes)):
            places = np.flatnonzero(shape_of == shape)
            lengths = dict(zip(names, map(int, shapes[shape]), strict=True))
            for start in range(0, len(places), size):
                taken = places[start : start + size]
                full_at = taken[-1] if len(taken) == size else len(order)
                batches.append((full_at, shape, Batch(order[taken], lengths)))
        for _, _, batch in sorted(batches, key=lambda found: found[:2]):
            yield batch

    def padding_share(self) -> float:
        """Return the share of padded activities that are padding; 0 of none."""
        lengths = [self.lengths(name) for name in self.spans]
        real = sum(int(length.sum()) for length in lengths)
        padded = sum(int(padded_length(length).sum()) for length in lengths)
        return 1.0 - real / padded if padded else 0.0


@dataclass(frozen=True)
class Window:
    """Activities of a batch, newest first; zeros where nothing is.

    Attributes
    ----------
    is_there : ndarray of shape (b, L), bool
    tokens : ndarray of shape (b, L, T), uint32
    vectors : ndarray of shape (b, L, W), float32
    occurred_us : ndarray of shape (b, L), int64
    age_us : ndarray of shape (b, L), int64
        At the as-of time, at least 0.
    """

    is_there: np.ndarray
    tokens: np.ndarray
    vectors: np.ndarray
    occurred_us: np.ndarray
    age_us: np.ndarray


def padded_length(lengths: np.ndarray) -> np.ndarray:
    """Return the power of two that each length is padded to, at least :data:`SHORTEST`; int64."""
    longer = np.maximum(lengths, SHORTEST) - 1
    return np.int64(1) << (np.frexp(longer.astype(np.float64))[1]).astype(np.int64)


def _check_columns(table: pa.Table, modalities: Sequence[Modality]) -> None:
    asked = [*COLUMNS, *(["vector"] if any(m.vector for m in modalities) else [])]
    missing = [name for name in asked if name not in table.column_names]
    if missing:
        raise ValueError(f"activities lack columns {missing}; they have {table.column_names}")
    for name in NEVER_NULL:
        if table[name].null_count:
            row = table[name].is_null().to_pylist().index(True)
            raise ValueError(f"activities, row {row}: {name} is null; leave the row out")


def _activities(table: pa.Table, user: np.ndarray, users: int, modality: Modality) -> Activities:
    rows = np.flatnonzero(pc.equal(table["modality"], modality.name).to_numpy())  # pyright: ignore[reportAttributeAccessIssue]
    own = table.take(pa.array(rows))
    tokens, _ = _fixed_width(own["tokens"], modality.tokens, np.dtype(np.uint32))
    vectors = np.zeros((len(rows), 0), np.float32)
    if modality.vector:
        vectors, widths = _fixed_width(own["vector"], modality.vector, np.dtype(np.float32))
        wrong = (widths != modality.vector) | ~np.isfinite(vectors).all(axis=1)
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"activities, row {rows[at]}: its vector has {widths[at]} numbers or one that is "
                f"not finite; modality {modality.name!r} takes {modality.vector} finite ones"
            )
    occurred_us, received_us = (
        own[name].to_numpy().astype(np.int64) for name in ("occurred_us", "received_us")
    )
    content = [*vectors.T[::-1], *tokens.T[::-1]]
    order = _ordered(content, (occurred_us, received_us, user[rows]))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user[rows], minlength=users))])
    return Activities(
        offsets.astype(np.int64),
        occurred_us[order],
        received_us[order],
        tokens[order],
        vectors[order],
    )


def _ordered(content: Sequence[np.ndarray], keys: Sequence[np.ndarray]) -> np.ndarray:
    """Return the order of activities by keys, the last first, and among equals by content.

    So no reading order shows, and only those of one microsecond are compared by what may be
    hundreds of numbers.
    """
    order = np.lexsort(tuple(keys))
    if not len(order):
        return order
    same = np.all([key[order][1:] == key[order][:-1] for key in keys], axis=0)
    tied = np.append(same, False) | np.append(False, same)
    equals = order[tied]
    order[tied] = equals[np.lexsort(tuple(key[equals] for key in (*content, *keys)))]
    return order


def _fixed_width(
    lists: pa.ChunkedArray, width: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first ``width`` values of each list, padded by 0, and the lists' lengths."""
    whole = lists.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(whole), 0).to_numpy().astype(np.int64)  # pyright: ignore[reportAttributeAccessIssue]
    flat = pc.list_flatten(whole)  # pyright: ignore[reportAttributeAccessIssue]
    if dtype == np.uint32:
        flat = pc.fill_null(flat, NOTHING)
    values = flat.to_numpy(zero_copy_only=False).astype(dtype)
    starts = np.cumsum(lengths) - lengths
    column = np.arange(width)
    is_there = column < lengths[:, np.newaxis]
    out = np.zeros((len(lengths), width), dtype)
    out[is_there] = values[(starts[:, np.newaxis] + column)[is_there]]
    return out, lengths


def _known_until(of: Activities, user: np.ndarray, moment_us: np.ndarray) -> np.ndarray:
    """Return where each user's known activities end: a binary search for all at once."""
    low, high = of.offsets[user], of.offsets[user + 1]
    while (is_open := low < high).any():
        middle = (low + high) // 2
        known = is_open.copy()
        known[is_open] = of.received_us[middle[is_open]] <= moment_us[is_open]
        low = np.where(known, middle + 1, low)
        high = np.where(is_open & ~known, middle, high)
    return low


def _no_vectors(shape: tuple[int, int], of: Activities) -> np.ndarray:
    return np.zeros((*shape, of.vectors.shape[1]), np.float32)
