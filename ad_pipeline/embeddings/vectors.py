"""The vectors of users as they are stored: by version, in shards, read without being loaded.

A store is a small checkpoint that names a checkpoint for each shard. A shard holds the users whose
hash begins with its number, so that shards laid end to end are in the order of the hashes whatever
their number is, and each is written alone: memory is that of one shard, and a shard in which
nothing changed is the same checkpoint. Readers map the files into memory and find users by binary
search.

Vectors are kept in half precision, or product-quantized where memory counts more; either way the
store states what that costs. A store has one version, the digest of the encoder's checkpoint, so
that the last vectors of a user, whose mean is read, are of one space. Who is encoded when belongs
to :mod:`ad_pipeline.embeddings.refresh`.

References
----------
H. Jégou, M. Douze, C. Schmid, "Product quantization for nearest neighbor search", PAMI 33 (2011).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from ad_pipeline import hashing
from ad_pipeline.checkpoints import (
    Checkpoint,
    is_pointed,
    point,
    pointed_names,
    read_checkpoint,
    resolve,
    unpoint,
    unswept,
    write_checkpoint,
)
from ad_pipeline.embeddings.faiss_runtime import in_one_thread
from ad_pipeline.embeddings.refresh import mean_of_last, taken_in
from ad_pipeline.embeddings.sequences import NEVER
from ad_pipeline.embeddings.versions import MixedVersions

KIND = "embeddings.vectors"
SHARD_KIND = "embeddings.vectors_of_shard"

WORDS = 256
"""Of a codebook: a code is a byte."""

ABSENT = -1
"""Place of who is not there."""

_BLOCK_ROWS = 8_192

FreshVectors = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Told a shard's number, returns ids (m,) uint64, each once, and vectors (m, d) float32."""


class WrongVectors(ValueError):
    """Vectors or their store are not what the caller says they are."""


@dataclass(frozen=True)
class Codec:
    """How a vector is written.

    Attributes
    ----------
    dimension : int
    codebooks : ndarray of shape (parts, 256, dimension / parts), float32, or None
        None: each component in float16.
    error : float
        Of vectors that nothing was fitted to: squared distance of what is read from what was
        written, over the squared length of the latter.
    """

    dimension: int
    codebooks: np.ndarray | None
    error: float

    @property
    def width(self) -> int:
        """Numbers written for a vector: float16 ones, or bytes."""
        return self.dimension if self.codebooks is None else len(self.codebooks)

    def written(self, vectors: np.ndarray) -> np.ndarray:
        """Return what is written of vectors, float32 (n, d): float16 (n, d) or uint8 (n, parts).

        Raises
        ------
        WrongVectors
            If the dimension is another, or a component is not finite, or not in float16.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise WrongVectors(
                f"vectors of shape {vectors.shape} for a store of {self.dimension} dimensions"
            )
        bad = np.flatnonzero(~(np.abs(vectors) <= np.finfo(np.float16).max).all(axis=1))
        if bad.size:
            raise WrongVectors(
                f"vector {bad[0]} (and {bad.size - 1} more) has a component that is not finite or "
                "beyond float16; look at the encoder's training"
            )
        if self.codebooks is None:
            return vectors.astype(np.float16)
        codes = np.empty((len(vectors), self.width), np.uint8)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            block = vectors[start : start + _BLOCK_ROWS].astype(np.float32)
            parts = block.reshape(len(block), self.width, -1)
            for place, book in enumerate(self.codebooks):
                far = (book**2).sum(axis=1) - 2 * parts[:, place] @ book.T
                codes[start : start + len(block), place] = far.argmin(axis=1)
        return codes

    def read(self, codes: np.ndarray) -> np.ndarray:
        """Return vectors, float32 (…, d), of what was written, (…, width)."""
        if self.codebooks is None:
            return codes.astype(np.float32)
        words = self.codebooks[np.arange(self.width), codes]
        return words.reshape(*codes.shape[:-1], self.dimension)


def half_precision(sample: np.ndarray) -> Codec:
    """Return the codec of float16, its error measured on a sample (n, d)."""
    return _measured(Codec(sample.shape[1], None, 0.0), sample)


def product_quantized(sample: np.ndarray, ids: np.ndarray, parts: int, seed: int) -> Codec:
    """Fit codebooks to a sample of vectors.

    Parameters
    ----------
    sample : ndarray of shape (n, d), float32
    ids : ndarray of shape (n,), uint64
        Of the sample's users: four in five are fitted to, the error is of the others.
    parts : int
        Bytes a vector; must divide d.
    seed : int

    Returns
    -------
    Codec

    Raises
    ------
    WrongVectors
        If parts do not divide d, or there are too few vectors for 256 words.
    ModuleNotFoundError
        If FAISS is not there: it is in the extra ``embeddings``. Reading needs none.
    """
    dimension = sample.shape[1]
    fitted = hashing.uniform(seed, ids, "embeddings.codec.fitted") < 0.8
    if dimension % parts or fitted.sum() < WORDS or fitted.all():
        raise WrongVectors(
            f"{int(fitted.sum())} vectors of {dimension} dimensions for {parts} parts; parts must "
            f"divide the dimension, and {2 * WORDS} vectors or more are needed"
        )
    with in_one_thread() as faiss:
        quantizer = faiss.ProductQuantizer(dimension, parts, 8)
        quantizer.cp.seed = seed % 2**31
        quantizer.cp.min_points_per_centroid = 1
        quantizer.train(np.ascontiguousarray(sample[fitted], np.float32))
        books = faiss.vector_to_array(quantizer.centroids).reshape(parts, WORDS, -1)
    return _measured(Codec(dimension, books, 0.0), sample[~fitted])


def _measured(codec: Codec, held_out: np.ndarray) -> Codec:
    lost = codec.read(codec.written(held_out)).astype(np.float64) - held_out
    length = float((held_out.astype(np.float64) ** 2).sum())
    error = float((lost**2).sum()) / length if length else 0.0
    return Codec(codec.dimension, codec.codebooks, error)


@dataclass(frozen=True)
class Layout:
    """What all shards of a store have in common.

    Attributes
    ----------
    version : str
        Digest of the encoder's checkpoint.
    codec : Codec
    shard_bits : int
        There are 2^shard_bits shards; in [0, 16].
    averaged : int
        Vectors of a user that are kept, and whose mean is read.
    """

    version: str
    codec: Codec
    shard_bits: int
    averaged: int

    def shards(self, ids: np.ndarray) -> np.ndarray:
        """Return the shard of each id, uint64 (n,): the highest bits, int64 (n,)."""
        if not self.shard_bits:
            return np.zeros(ids.shape, np.int64)
        return (ids >> np.uint64(64 - self.shard_bits)).astype(np.int64)


@dataclass(frozen=True)
class Shard:
    """The users whose hash begins with a shard's number.

    Attributes
    ----------
    ids : ndarray of shape (n,), uint64
        Ascending.
    held : ndarray of shape (n, averaged, width)
        What is written of each one's last vectors, the newest first.
    counts : ndarray of shape (n,), uint8
        How many there are, at least 1.
    norms : ndarray of shape (n,), float32
        Length of what is read, the mean.
    refreshed_us : ndarray of shape (n,), int64
        Up to when the log was known to each one's newest vector.
    """

    ids: np.ndarray
    held: np.ndarray
    counts: np.ndarray
    norms: np.ndarray
    refreshed_us: np.ndarray

    @classmethod
    def empty(cls, layout: Layout) -> "Shard":
        """Return a shard without users."""
        width = layout.codec.width
        dtype = np.float16 if layout.codec.codebooks is None else np.uint8
        return cls(
            np.zeros(0, np.uint64),
            np.zeros((0, layout.averaged, width), dtype),
            np.zeros(0, np.uint8),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
        )

    def only(self, ids: np.ndarray) -> "Shard":
        """Return those of the users who are among some, uint64 (m,)."""
        places = np.flatnonzero(np.isin(self.ids, ids))
        return Shard(*(getattr(self, name)[places] for name in ARRAYS))


ARRAYS = tuple(field.name for field in fields(Shard))
"""A shard's arrays, as its checkpoint names them."""


@dataclass(frozen=True)
class FoundVectors:
    """What a lookup found.

    Attributes
    ----------
    vectors : ndarray of shape (n, d), float32
        Zeros for who is absent.
    present : ndarray of shape (n,), bool
    norms : ndarray of shape (n,), float32
        Of the vectors.
    """

    vectors: np.ndarray
    present: np.ndarray
    norms: np.ndarray


@dataclass(frozen=True)
class StoredVectors:
    """An opened store.

    Attributes
    ----------
    layout : Layout
    watermark_us : int
        Up to when the log was known to whoever was encoded last.
    shards : tuple of Shard
        Their arrays memory-mapped.
    """

    layout: Layout
    watermark_us: int
    shards: tuple[Shard, ...]

    @property
    def version(self) -> str:
        """Digest of the encoder's checkpoint."""
        return self.layout.version

    @cached_property
    def starts(self) -> np.ndarray:
        """Position of each shard's first user, and the number of users: int64 (shards + 1,)."""
        return np.concatenate([[0], np.cumsum([len(shard.ids) for shard in self.shards])])

    @cached_property
    def ids(self) -> np.ndarray:
        """All users, ascending: uint64 (n,). A position is a place in it."""
        return np.concatenate([shard.ids for shard in self.shards])

    @property
    def refreshed_us(self) -> np.ndarray:
        """Up to when the log was known to each user's newest vector: int64 (n,)."""
        return np.concatenate([shard.refreshed_us for shard in self.shards])

    def __len__(self) -> int:
        """Return the number of users."""
        return int(self.starts[-1])

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Return the position of each id, uint64 (m,), by binary search; -1 for who is absent."""
        ids = np.asarray(ids, np.uint64)
        found = np.full(ids.shape, ABSENT, np.int64)
        of_shard = self.layout.shards(ids)
        for number in np.unique(of_shard):
            rows = np.flatnonzero(of_shard == number)
            places = places_of(self.shards[number].ids, ids[rows])
            found[rows] = np.where(places == ABSENT, ABSENT, self.starts[number] + places)
        return found

    def refreshed_of(self, ids: np.ndarray) -> np.ndarray:
        """Return up to when the log was known to users' newest vectors, uint64 (m,) to int64 (m,).

        :data:`.sequences.NEVER` for who is absent.
        """
        moments = np.full(ids.shape, NEVER, np.int64)
        of_shard = self.layout.shards(ids)
        for number in np.unique(of_shard):
            shard, rows = self.shards[number], np.flatnonzero(of_shard == number)
            places = places_of(shard.ids, ids[rows])
            there = places != ABSENT
            moments[rows[there]] = shard.refreshed_us[places[there]]
        return moments

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what is read of users, the mean of their last vectors, and its length.

        Parameters
        ----------
        positions : ndarray of shape (m,), int64
            None negative.

        Returns
        -------
        vectors : ndarray of shape (m, d), float32
        norms : ndarray of shape (m,), float32
        """
        vectors = np.empty((len(positions), self.layout.codec.dimension), np.float32)
        norms = np.empty(len(positions), np.float32)
        of_shard = np.searchsorted(self.starts, positions, side="right") - 1
        for number in np.unique(of_shard):
            shard, rows = self.shards[number], np.flatnonzero(of_shard == number)
            places = positions[rows] - self.starts[number]
            held = self.layout.codec.read(shard.held[places])
            vectors[rows] = mean_of_last(held, shard.counts[places])
            norms[rows] = shard.norms[places]
        return vectors, norms

    def units(self, positions: np.ndarray) -> np.ndarray:
        """Return users' vectors at length 1, float32 (m, d); a vector of zeros stays one."""
        vectors, norms = self.read(positions)
        vectors /= np.where(norms > 0, norms, np.float32(1))[:, None]
        return vectors

    def lookup(self, ids: np.ndarray) -> FoundVectors:
        """Return the vectors of users, uint64 (n,); absent ones are masked."""
        positions = self.positions(ids)
        present = positions >= 0
        vectors = np.zeros((len(positions), self.layout.codec.dimension), np.float32)
        norms = np.zeros(len(positions), np.float32)
        vectors[present], norms[present] = self.read(positions[present])
        return FoundVectors(vectors, present, norms)


def places_of(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Find hashes by binary search.

    Parameters
    ----------
    ids : ndarray of shape (n,), uint64
        Ascending.
    wanted : ndarray of any shape, uint64

    Returns
    -------
    ndarray of the same shape, int64
        Places in ``ids``; :data:`ABSENT` for those that are not in it.
    """
    if not len(ids):
        return np.full(wanted.shape, ABSENT, np.int64)
    place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[place] == wanted, place, ABSENT)


def refreshed(
    shard: Shard, layout: Layout, ids: np.ndarray, vectors: np.ndarray, as_of_us: int
) -> Shard:
    """Return a shard with new vectors taken in; everybody else stays as he is.

    Parameters
    ----------
    shard : Shard
    layout : Layout
    ids : ndarray of shape (m,), uint64
        Each once, in any order.
    vectors : ndarray of shape (m, d), float32
    as_of_us : int
        Up to when the log was known to them.

    Raises
    ------
    WrongVectors
        If an id comes twice, ids and vectors differ in number, or a vector cannot be written.
    """
    order = np.argsort(ids, kind="stable")
    ids = np.asarray(ids, np.uint64)[order]
    twice = ids[1:][ids[1:] == ids[:-1]]
    if twice.size or len(ids) != len(vectors):
        raise WrongVectors(
            f"{len(ids)} ids for {len(vectors)} vectors, user {twice[0]} twice"
            if twice.size
            else f"{len(ids)} ids for {len(vectors)} vectors; one vector a user is needed"
        )
    newest = layout.codec.written(vectors)[order]
    everybody = np.union1d(shard.ids, ids)
    held = np.zeros((len(everybody), *shard.held.shape[1:]), shard.held.dtype)
    counts = np.zeros(len(everybody), np.uint8)
    norms = np.zeros(len(everybody), np.float32)
    refreshed_us = np.full(len(everybody), as_of_us)
    before, now = np.searchsorted(everybody, shard.ids), np.searchsorted(everybody, ids)
    held[before], counts[before], norms[before] = shard.held, shard.counts, shard.norms
    refreshed_us[before], refreshed_us[now] = shard.refreshed_us, as_of_us
    held[now], counts[now] = taken_in(held[now], counts[now], newest)
    read = mean_of_last(layout.codec.read(held[now]), counts[now]).astype(np.float64)
    norms[now] = np.sqrt((read**2).sum(axis=1))
    return Shard(everybody, held, counts, norms, refreshed_us)


def write_vectors(
    root: Path,
    name: str,
    layout: Layout,
    watermark_us: int,
    fresh: FreshVectors,
    previous: StoredVectors | None = None,
    staying: Callable[[int], np.ndarray] | None = None,
) -> Checkpoint:
    """Write a store shard by shard, and move its pointer when all of it is there.

    Parameters
    ----------
    root : Path
        Folder of the checkpoints.
    name : str
        Of the store, such as its hour; see :func:`pointer`.
    layout : Layout
    watermark_us : int
        Up to when the log was known to the encoder.
    fresh : callable
        What was encoded anew of a shard. Asked for each shard once, in order.
    previous : StoredVectors, optional
        The store that this one continues; None at a version's first.
    staying : callable, optional
        Told a shard's number, returns the ids of whom the store before may hand on; everybody if
        left out. Asked right before ``fresh`` is.

    Returns
    -------
    Checkpoint
        Equal for equal content; a re-run writes nothing.

    Raises
    ------
    MixedVersions
        If the previous store is of another version: its vectors cannot be averaged with these.
    WrongVectors
        If it is laid out in another way or knows more of the log, a user is in no such shard, or
        :func:`refreshed` refuses a vector.
    """
    if previous is not None:
        _check_continues(previous, layout, watermark_us)
    digests = []
    with unswept(root):
        for number in range(2**layout.shard_bits):
            before = Shard.empty(layout) if previous is None else previous.shards[number]
            if staying is not None:
                before = before.only(staying(number))
            ids, vectors = fresh(number)
            strangers = ids[layout.shards(np.asarray(ids, np.uint64)) != number]
            if len(strangers):
                raise WrongVectors(
                    f"user {strangers[0]} (and {len(strangers) - 1} more) is not in shard {number} "
                    f"of {2**layout.shard_bits}; hand each user to the shard of its highest bits"
                )
            shard = refreshed(before, layout, ids, vectors, watermark_us)
            arrays = {name: getattr(shard, name) for name in ARRAYS}
            facts = {"version": layout.version, "shard": number, "shard_bits": layout.shard_bits}
            digests.append(write_checkpoint(root, SHARD_KIND, arrays, facts).digest)
        books = layout.codec.codebooks
        store = write_checkpoint(
            root,
            KIND,
            {} if books is None else {"codebooks": books},
            {
                "version": layout.version,
                "watermark_us": watermark_us,
                "dimension": layout.codec.dimension,
                "error": layout.codec.error,
                "shard_bits": layout.shard_bits,
                "averaged": layout.averaged,
                "shards": digests,
            },
        )
        # Its shards first, so that no sweep finds them without a name; readers follow the store's.
        for number, digest in enumerate(digests):
            point(root, f"{pointer(name)}/{store.digest}/{number}", digest)
        point(root, pointer(name), store.digest)
        _forget_shards(root, name, but=store.digest)
    return store


def read_vectors(root: Path, digest: str, *, verify: bool = True) -> StoredVectors:
    """Open a store, its arrays memory-mapped.

    Parameters
    ----------
    root : Path
        Folder of the checkpoints.
    digest : str
        Of the store's checkpoint.
    verify : bool
        Check the SHA-256 of every file first.

    Raises
    ------
    MissingCheckpoint, CorruptCheckpoint
        As :func:`ad_pipeline.checkpoints.read_checkpoint`.
    WrongVectors
        If the checkpoint is of another kind.
    """
    store = read_checkpoint(root, digest, verify=verify)
    facts = store.manifest
    if facts["kind"] != KIND:
        raise WrongVectors(f"{store.path} is a {facts['kind']}, not a {KIND}")
    books = store.arrays.get("codebooks")
    codec = Codec(facts["dimension"], None if books is None else np.array(books), facts["error"])
    layout = Layout(facts["version"], codec, facts["shard_bits"], facts["averaged"])
    opened = [read_checkpoint(root, shard, verify=verify).arrays for shard in facts["shards"]]
    shards = [Shard(*(each[name] for name in ARRAYS)) for each in opened]
    return StoredVectors(layout, facts["watermark_us"], tuple(shards))


def read_named(root: Path, name: str, *, verify: bool = True) -> StoredVectors:
    """Open the store of a name; see :func:`read_vectors`."""
    return read_vectors(root, resolve(root, pointer(name)), verify=verify)


def forget_vectors(root: Path, name: str) -> None:
    """Let the next sweep take a store, and those of its shards that no other store has."""
    unpoint(root, pointer(name))
    _forget_shards(root, name)


def pointer(name: str) -> str:
    """Return the name of the checkpoint pointer of a store; its shards' stand below it."""
    return f"{KIND}/{name}"


def _forget_shards(root: Path, name: str, but: str = "") -> None:
    for each in pointed_names(root, pointer(name)):
        kept = each.startswith(f"{pointer(name).replace(':', '')}/{but}/") if but else False
        if not kept and is_pointed(root, each):
            unpoint(root, each)


def _check_continues(previous: StoredVectors, layout: Layout, watermark_us: int) -> None:
    before = previous.layout
    if before.version != layout.version:
        raise MixedVersions(
            f"vectors of version {layout.version} cannot continue a store of version "
            f"{before.version}; begin a store with a full refresh"
        )
    same_codec = np.array_equal(
        np.zeros(0) if before.codec.codebooks is None else before.codec.codebooks,
        np.zeros(0) if layout.codec.codebooks is None else layout.codec.codebooks,
    )
    if not same_codec or (before.shard_bits, before.averaged, before.codec.dimension) != (
        layout.shard_bits,
        layout.averaged,
        layout.codec.dimension,
    ):
        raise WrongVectors(
            f"the store of version {before.version} is laid out in another way; continue it with "
            "its own layout, or begin a new one with a full refresh"
        )
    if watermark_us < previous.watermark_us:
        raise WrongVectors(
            f"watermark {watermark_us} is before that of the store it continues, "
            f"{previous.watermark_us}; a store does not unlearn"
        )
