"""The one path from a value to a 64-bit hash and on to a slot, in training and in scoring.

XXH64 in Numba over Arrow's own buffers: a column of a million strings and the single string of a
request pass through the same loop, so they cannot disagree. Pseudo-random draws are hashes too
(seed, identity, purpose), so that a re-run draws the same. What gets hashed together (features,
crosses, entities) is the feature contract's business and does not belong here.

Nothing here imports pandas: pyarrow's ``array()`` and ``to_numpy()`` would, so values are laid into
Arrow buffers by hand and read out of them with ``np.frombuffer``.

Numba's cache of a function knows only the file that the function stands in. A compiled function of
another module must therefore never call one of these; it hands arrays back and calls from Python.

References
----------
Y. Collet, "xxHash fast digest algorithm", XXH64 specification, revision 0.1.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
from numba import njit

MISSING = b"\xff"
"""What a null hashes as. The byte 0xFF is in no UTF-8 text, so no value is taken for a null."""

MISSING_LABEL = "(missing)"
"""How a null reads where a value is shown."""

MAXIMUM_BITS = 32
"""Slots are uint32."""

BLOCK_ROWS = 4_096
"""Rows that are encoded at a time, so that a block of some forty columns fits into the cache."""

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)

_INDEX_TYPES = {
    pa.int8(): np.int8,
    pa.int16(): np.int16,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint8(): np.uint8,
    pa.uint16(): np.uint16,
    pa.uint32(): np.uint32,
    pa.uint64(): np.uint64,
}

_MISSING_BYTES = np.frombuffer(MISSING, np.uint8)
_NOTHING = np.zeros(0, np.uint8)


@njit(cache=True, inline="always")
def _rotated(x: np.uint64, left: int) -> np.uint64:
    return (x << np.uint64(left)) | (x >> np.uint64(64 - left))


@njit(cache=True, inline="always")
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotated(lane + word * _P2, 31) * _P1


@njit(cache=True, inline="always")
def _merged(h: np.uint64, lane: np.uint64) -> np.uint64:
    return (h ^ _round(np.uint64(0), lane)) * _P1 + _P4


@njit(cache=True, inline="always")
def _avalanched(h: np.uint64) -> np.uint64:
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@njit(cache=True, inline="always")
def _word_taken(h: np.uint64, word: np.uint64) -> np.uint64:
    return _rotated(h ^ _round(np.uint64(0), word), 27) * _P1 + _P4


@njit(cache=True, inline="always")
def _bytes_read(data: np.ndarray, at: int, size: int) -> np.uint64:
    word = np.uint64(0)
    for k in range(size):
        word |= np.uint64(data[at + k]) << np.uint64(8 * k)
    return word


@njit(cache=True)
def _xxh64(data: np.ndarray, start: int, end: int, seed: np.uint64) -> np.uint64:
    """XXH64 of ``data[start:end]``, read as little-endian words."""
    at = start
    if end - start >= 32:
        lane1 = seed + _P1 + _P2
        lane2 = seed + _P2
        lane3 = seed
        lane4 = seed - _P1
        while at + 32 <= end:
            lane1 = _round(lane1, _bytes_read(data, at, 8))
            lane2 = _round(lane2, _bytes_read(data, at + 8, 8))
            lane3 = _round(lane3, _bytes_read(data, at + 16, 8))
            lane4 = _round(lane4, _bytes_read(data, at + 24, 8))
            at += 32
        h = _rotated(lane1, 1) + _rotated(lane2, 7) + _rotated(lane3, 12) + _rotated(lane4, 18)
        h = _merged(_merged(_merged(_merged(h, lane1), lane2), lane3), lane4)
    else:
        h = seed + _P5
    h += np.uint64(end - start)
    while at + 8 <= end:
        h = _word_taken(h, _bytes_read(data, at, 8))
        at += 8
    if at + 4 <= end:
        h = _rotated(h ^ (_bytes_read(data, at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    while at < end:
        h = _rotated(h ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    return _avalanched(h)


@njit(cache=True, nogil=True)
def _hash_texts(
    data: np.ndarray,
    offsets: np.ndarray,
    validity: np.ndarray,
    first: int,
    seed: np.uint64,
    missing: np.uint64,
    hashes: np.ndarray,
    column: int,
) -> None:
    """Hash ``offsets``-delimited texts from ``first`` on into a column of ``hashes``.

    ``validity`` is Arrow's bitmap, empty if all are there.
    """
    for i in range(hashes.shape[0]):
        at = first + i
        if validity.size > 0 and (validity[at >> 3] >> (at & 7)) & 1 == 0:
            hashes[i, column] = missing
        else:
            hashes[i, column] = _xxh64(data, offsets[at], offsets[at + 1], seed)


@njit(cache=True, nogil=True)
def _take_hashes(
    of_values: np.ndarray,
    indices: np.ndarray,
    validity: np.ndarray,
    first: int,
    missing: np.uint64,
    hashes: np.ndarray,
    column: int,
) -> None:
    """Spread the hashes of a dictionary's values over its indices from ``first`` on."""
    for i in range(hashes.shape[0]):
        at = first + i
        if validity.size > 0 and (validity[at >> 3] >> (at & 7)) & 1 == 0:
            hashes[i, column] = missing
        else:
            hashes[i, column] = of_values[indices[at], 0]


@njit(cache=True)
def _hash_bytes(data: np.ndarray, seed: np.uint64) -> np.uint64:
    return _xxh64(data, 0, data.size, seed)


@njit(cache=True, nogil=True)
def _hash_words(words: np.ndarray, seeds: np.ndarray, hashes: np.ndarray) -> None:
    """XXH64 of each word's eight little-endian bytes, one seed a column."""
    for i in range(words.shape[0]):
        for j in range(words.shape[1]):
            h = seeds[j] + _P5 + np.uint64(8)
            hashes[i, j] = _avalanched(_word_taken(h, words[i, j]))


@njit(cache=True, nogil=True)
def _hash_pairs(
    hashes: np.ndarray, left: np.ndarray, right: np.ndarray, seeds: np.ndarray, pairs: np.ndarray
) -> None:
    """XXH64 of the sixteen little-endian bytes of two columns' words, one seed a pair."""
    for i in range(hashes.shape[0]):
        for j in range(left.size):
            h = seeds[j] + _P5 + np.uint64(16)
            h = _word_taken(h, hashes[i, left[j]])
            pairs[i, j] = _avalanched(_word_taken(h, hashes[i, right[j]]))


@njit(cache=True, nogil=True)
def _lay_slots(
    hashes: np.ndarray, positions: np.ndarray, shift: np.uint64, slots: np.ndarray, first: int
) -> None:
    for i in range(hashes.shape[0]):
        for k in range(positions.size):
            slots[i, first + k] = np.uint32(hashes[i, positions[k]] >> shift)


@njit(cache=True, nogil=True)
def _unit_draws(hashes: np.ndarray, draws: np.ndarray) -> None:
    for i in range(hashes.size):
        draws[i] = np.float64(hashes[i] >> np.uint64(11)) * 2.0**-53


def seed_of(name: str) -> int:
    """Return the hash seed that belongs to a name, e.g. of a feature.

    Parameters
    ----------
    name : str
        Any text.

    Returns
    -------
    int
        XXH64 of the name's UTF-8 bytes under seed 0, in ``[0, 2^64)``.
    """
    return int(_hash_bytes(np.frombuffer(name.encode(), np.uint8), np.uint64(0)))


def hash_strings(array: pa.Array | pa.ChunkedArray, seed: int) -> np.ndarray:
    """Hash a column of texts without leaving its Arrow buffers.

    Parameters
    ----------
    array : pa.Array or pa.ChunkedArray of shape (n,)
        ``string``, ``large_string``, ``null``, or a dictionary of the first two; nulls allowed.
    seed : int
        In ``[0, 2^64)``; see :func:`seed_of`.

    Returns
    -------
    ndarray of shape (n,), uint64
        XXH64 of each value's UTF-8 bytes; a null hashes as :data:`MISSING`. A value's hash does not
        depend on how Arrow stores it.

    Raises
    ------
    TypeError
        If the column is of another type.
    """
    return TextColumns([array], [seed]).hashes(0, len(array))[:, 0]


class TextColumns:
    """Columns of texts side by side, opened once to be hashed in blocks of rows.

    Parameters
    ----------
    columns : sequence of h Arrow columns of shape (n,) each
        See :func:`hash_strings`.
    seeds : sequence of int, length h
        One seed a column.

    Raises
    ------
    TypeError
        If a column is of a type that is not hashed.
    """

    def __init__(self, columns: Sequence[pa.Array | pa.ChunkedArray], seeds: Sequence[int]) -> None:
        self._opened = [_opened(column, seed) for column, seed in zip(columns, seeds, strict=True)]

    def hashes(self, start: int, end: int) -> np.ndarray:
        """Return the hashes of rows [start, end): uint64 (end - start, h), C-contiguous."""
        hashes = np.empty((end - start, len(self._opened)), np.uint64)
        # By block, then by column: a block's rows stay in the cache while columns are filled.
        for low in range(start, end, BLOCK_ROWS):
            high = min(low + BLOCK_ROWS, end)
            block = hashes[low - start : high - start]
            for j, chunks in enumerate(self._opened):
                for chunk in chunks:
                    if chunk.start < high and chunk.end > low:
                        chunk.hash_rows(low, high, block, j)
        return hashes


def hash_values(values: Sequence[str | None], seed: int) -> np.ndarray:
    """Hash Python strings through the loop that hashes columns.

    Parameters
    ----------
    values : sequence of str or None, length n
        ``None`` is a null.
    seed : int
        In ``[0, 2^64)``.

    Returns
    -------
    ndarray of shape (n,), uint64
        Equal to :func:`hash_strings` of the same values.
    """
    return hash_strings(string_array(values), seed)


def hash_rows(columns: Sequence[Sequence[str | None]], seeds: Sequence[int]) -> np.ndarray:
    """Hash several short columns of Python strings at once: what :func:`hash_values` gives, sooner.

    Parameters
    ----------
    columns : sequence of h sequences of str or None, of length n each
        ``None`` is a null.
    seeds : sequence of int, length h
        One seed a column.

    Returns
    -------
    ndarray of shape (n, h), uint64, C-contiguous
    """
    rows = len(columns[0]) if columns else 0
    texts = string_array([value for column in columns for value in column])
    validity, offsets, data = texts.buffers()
    validity, data = _view(validity, np.uint8), _view(data, np.uint8)
    offsets = _view(offsets, np.int64)
    hashes = np.empty((rows, len(columns)), np.uint64)
    for j, seed in enumerate(seeds):
        _hash_texts(
            data, offsets, validity, j * rows, np.uint64(seed), _hash_of_missing(seed), hashes, j
        )
    return hashes


def string_array(values: Sequence[str | None]) -> pa.LargeStringArray:
    """Lay Python strings into an Arrow array without importing pandas, as ``pa.array`` would.

    Parameters
    ----------
    values : sequence of str or None, length n
        ``None`` becomes a null.

    Returns
    -------
    pa.LargeStringArray of length n
    """
    texts = [b"" if value is None else value.encode() for value in values]
    offsets = np.zeros(len(texts) + 1, np.int64)
    offsets[1:] = list(accumulate(map(len, texts)))
    validity = None
    if None in values:
        present = np.fromiter((value is not None for value in values), np.bool_, len(texts))
        validity = pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.LargeStringArray.from_buffers(
        len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(texts)), validity
    )


def hash_words(words: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Hash a matrix of whole numbers, one seed a column.

    Parameters
    ----------
    words : ndarray of shape (n, k), int64 or uint64
        Read as eight little-endian bytes each.
    seeds : ndarray of shape (k,), uint64
        One seed a column.

    Returns
    -------
    ndarray of shape (n, k), uint64
        XXH64 of the bytes.
    """
    words = np.ascontiguousarray(words).view(np.uint64)
    hashes = np.empty(words.shape, np.uint64)
    _hash_words(words, np.asarray(seeds, np.uint64), hashes)
    return hashes


def combine(a: np.ndarray, b: np.ndarray, seed: int = 0) -> np.ndarray:
    """Hash two columns of hashes into one; the order matters.

    Parameters
    ----------
    a, b : ndarray of shape (n,), uint64
        Hashes of the two values of each row.
    seed : int
        In ``[0, 2^64)``; a cross takes its own, see :func:`seed_of`.

    Returns
    -------
    ndarray of shape (n,), uint64
        XXH64 of the sixteen bytes ``a``, ``b`` (little-endian).
    """
    both = np.column_stack((np.asarray(a, np.uint64), np.asarray(b, np.uint64)))
    return combine_columns(both, np.array([0]), np.array([1]), np.array([seed], np.uint64))[:, 0]


def combine_columns(
    hashes: np.ndarray, left: np.ndarray, right: np.ndarray, seeds: np.ndarray
) -> np.ndarray:
    """Hash pairs of columns of a matrix of hashes; see :func:`combine`.

    Parameters
    ----------
    hashes : ndarray of shape (n, h), uint64
        Hashes of each row's values.
    left, right : ndarray of shape (k,), int64
        Columns of each pair.
    seeds : ndarray of shape (k,), uint64
        One seed a pair.

    Returns
    -------
    ndarray of shape (n, k), uint64
    """
    pairs = np.empty((hashes.shape[0], left.size), np.uint64)
    _hash_pairs(hashes, left, right, np.asarray(seeds, np.uint64), pairs)
    return pairs


def slot_of(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Return the slots that hashes fall into: their highest bits.

    Parameters
    ----------
    hashes : ndarray of any shape, uint64
        Hashes of tokens.
    bits : int
        There are 2^bits slots; in [1, 32].

    Returns
    -------
    ndarray of the same shape, uint32
        In ``[0, 2^bits)``.

    Raises
    ------
    ValueError
        If ``bits`` is out of its range.
    """
    return (np.asarray(hashes, np.uint64) >> _shift(bits)).astype(np.uint32)


def lay_slots(
    hashes: np.ndarray, positions: np.ndarray, bits: int, slots: np.ndarray, first: int
) -> None:
    """Write the slots of chosen columns of hashes beside each other; see :func:`slot_of`.

    Parameters
    ----------
    hashes : ndarray of shape (n, h), uint64
    positions : ndarray of shape (k,), int64
        Columns of ``hashes``, in the order of the slots.
    bits : int
        There are 2^bits slots; in [1, 32].
    slots : ndarray of shape (n, F), uint32
        Receives columns ``first`` to ``first + k``.
    first : int
    """
    _lay_slots(hashes, positions, _shift(bits), slots, first)


def uniform(seed: int, ids: pa.Array | pa.ChunkedArray | np.ndarray, purpose: str) -> np.ndarray:
    """Draw one number per identity, the same in every run and in any order.

    Parameters
    ----------
    seed : int
        The deployment's seed, in ``[-2^63, 2^64)``.
    ids : Arrow column of texts, or ndarray of uint64, of shape (n,)
        Whom the draws are for.
    purpose : str
        What the draw decides; two purposes draw independently.

    Returns
    -------
    ndarray of shape (n,), float64
        In ``[0, 1)``: the 53 highest bits of the hash of (seed, purpose, identity).
    """
    drawing_seed = int(
        combine(np.array([seed % 2**64], np.uint64), np.array([seed_of(purpose)], np.uint64))[0]
    )
    if isinstance(ids, np.ndarray):
        words = ids.astype(np.uint64, copy=False).reshape(-1, 1)
        hashes = hash_words(words, np.array([drawing_seed], np.uint64))[:, 0]
    else:
        hashes = hash_strings(ids, drawing_seed)
    draws = np.empty(hashes.size, np.float64)
    _unit_draws(hashes, draws)
    return draws


def _view(buffer: pa.Buffer | None, dtype: type[np.generic], count: int = -1) -> np.ndarray:
    """View a buffer as an array; always read-only, so that Numba compiles one variant."""
    view = np.zeros(0, dtype) if buffer is None else np.frombuffer(buffer, dtype, count)
    view.flags.writeable = False
    return view


def _shift(bits: int) -> np.uint64:
    if not 1 <= bits <= MAXIMUM_BITS:
        raise ValueError(f"bits is {bits}; slots are uint32, so write 1 to {MAXIMUM_BITS}")
    return np.uint64(64 - bits)


def _hash_of_missing(seed: int) -> np.uint64:
    return np.uint64(_hash_bytes(_MISSING_BYTES, np.uint64(seed)))


@dataclass(frozen=True)
class _Chunk:
    """An Arrow chunk of a column, its buffers viewed and its dictionary hashed once.

    Attributes
    ----------
    start, end : int
        Its rows in the column.
    offset : int
        Its first row in the buffers.
    validity : ndarray of uint8
        Arrow's bitmap; empty if no value is missing.
    places : ndarray of integers
        Offsets of texts, or indices into the dictionary; empty if all values are missing.
    data : ndarray
        The texts' bytes; or the dictionary's hashes, of shape (d, 1).
    seed, missing : uint64
    """

    start: int
    end: int
    offset: int
    validity: np.ndarray
    places: np.ndarray
    data: np.ndarray
    seed: np.uint64
    missing: np.uint64

    def hash_rows(self, start: int, end: int, hashes: np.ndarray, column: int) -> None:
        """Write those rows of the column's [start, end) that are here into ``hashes``."""
        low, high = max(start, self.start), min(end, self.end)
        first = self.offset + low - self.start
        target = hashes[low - start : high - start]
        if not self.places.size:
            target[:, column] = self.missing
        elif self.data.ndim == 2:
            _take_hashes(self.data, self.places, self.validity, first, self.missing, target, column)
        else:
            _hash_texts(
                self.data, self.places, self.validity, first, self.seed, self.missing, target,
                column,
            )  # fmt: skip


def _opened(column: pa.Array | pa.ChunkedArray, seed: int) -> list[_Chunk]:
    missing = _hash_of_missing(seed)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else (column,)
    bounds = [0, *accumulate(map(len, chunks))]
    return [
        _Chunk(start, end, chunk.offset, *_buffers(chunk, seed), np.uint64(seed), missing)
        for chunk, (start, end) in zip(chunks, pairwise(bounds), strict=True)
    ]


def _buffers(chunk: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return validity, places and data of a :class:`_Chunk`."""
    kind = chunk.type
    rows = chunk.offset + len(chunk)
    if pa.types.is_null(kind) or not len(chunk):
        return _NOTHING, _NOTHING, _NOTHING
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        width = np.int32 if pa.types.is_string(kind) else np.int64
        validity, offsets, data = chunk.buffers()
        return _view(validity, np.uint8), _view(offsets, width, rows + 1), _view(data, np.uint8)
    if pa.types.is_dictionary(kind) and kind.index_type in _INDEX_TYPES:
        validity, indices = chunk.buffers()[:2]
        of_values = TextColumns([chunk.dictionary], [seed]).hashes(0, len(chunk.dictionary))
        return (
            _view(validity, np.uint8), _view(indices, _INDEX_TYPES[kind.index_type], rows),
            of_values,
        )  # fmt: skip
    raise TypeError(f"a column of type {kind} cannot be hashed; cast it to string (VARCHAR) first")
