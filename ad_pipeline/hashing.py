"""The one path from a value to a 64-bit hash and on to a slot, in training and in scoring.

XXH64 in Numba over Arrow's own buffers: a column of a million strings and the single string of a
request pass through the same loop, so they cannot disagree. Pseudo-random draws are hashes too
(seed, identity, purpose), so that a re-run draws the same. What gets hashed together (features,
crosses, entities) is the feature contract's business and does not belong here.

Nothing here imports pandas: pyarrow's ``array()`` and ``to_numpy()`` would, so values are laid into
Arrow buffers by hand and read out of them with ``np.frombuffer``.

A single request in a dictionary is read by compiled code too, through functions of Python's stable
C interface, which every interpreter exports by name: forty values would take Python longer to walk
than it takes to learn them.

Numba's cache of a function knows only the file that the function stands in. A compiled function of
another module must therefore never call one of these; it hands arrays back and calls from Python.

References
----------
Y. Collet, "xxHash fast digest algorithm", XXH64 specification, revision 0.1.1.
"""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.numpy_support import carray

MISSING = b"\xff"
"""What a null hashes as. The byte 0xFF is in no UTF-8 text, so no value is taken for a null."""

MISSING_LABEL = "(missing)"
"""How a null reads where a value is shown."""

MAXIMUM_BITS = 32
"""Slots are uint32."""

BLOCK_ROWS = 2_048
"""Rows that are encoded at a time, so that a block of some forty columns fits into the cache."""

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)

WORDS_KNOWN = 512
"""Slots of the whole numbers of [-512, 512) are looked up: few buckets lie outside."""

SEGMENT = np.dtype(
    [
        (field, np.int64)
        for field in (
            "column", "start", "end", "offset", "validity",
            "kind", "width", "places", "data", "size",
        )
    ]
)  # fmt: skip
"""An Arrow chunk of a column as compiled code reads it.

Rows ``[start, end)`` of the column, from row ``offset`` of the buffers on; what the places are and
how many bytes each has; addresses of the bitmap (0 if no value is missing), of the places (numbers,
offsets of texts, or indices into a dictionary) and of what they point into, ``size`` items. Whoever
holds segments must hold what they point at.
"""

_ALL_MISSING, _TEXTS, _DICTIONARY = 0, 1, 2

_MISSING_BYTES = np.frombuffer(MISSING, np.uint8)

# Python's stable C interface. Objects and places in memory go in and out as addresses; a type is
# known by its address, which differs from process to process and so is an argument, never a
# constant of compiled code. None of these may be called without the interpreter's lock.
_dict_next: Any = types.ExternalFunction("PyDict_Next", types.int32(*4 * (types.intp,)))
_own: Any = types.ExternalFunction("Py_IncRef", types.void(types.intp))
_release: Any = types.ExternalFunction("Py_DecRef", types.void(types.intp))
_utf8_of: Any = types.ExternalFunction(
    "PyUnicode_AsUTF8AndSize", types.CPointer(types.uint8)(types.intp, types.intp)
)
_float_of: Any = types.ExternalFunction("PyFloat_AsDouble", types.float64(types.intp))
_error_is_set: Any = types.ExternalFunction("PyErr_Occurred", types.intp())
_clear_error: Any = types.ExternalFunction("PyErr_Clear", types.void())

_KINDS = (
    str, type(None), float, int, bool, np.float64, np.float32, np.int64, np.int32, np.bool_,
)  # fmt: skip
"""What :class:`NamedValues` reads: text, nothing, then numbers."""

_NAME_BITS = 10
_NAMES = 1 << _NAME_BITS
"""Places for names whose seeds are kept."""

_FIRST_NAME = len(_KINDS)

_KNOWN = np.zeros(len(_KINDS) + 2 * _NAMES, np.int64)
_KNOWN[: len(_KINDS)] = [id(kind) for kind in _KINDS]


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
    shift: np.uint64,
    out: np.ndarray,
) -> None:
    """Hash ``offsets``-delimited texts from ``first`` on, shifted.

    ``validity`` is Arrow's bitmap, empty if all are there.
    """
    for i in range(out.size):
        at = first + i
        if validity.size > 0 and (validity[at >> 3] >> (at & 7)) & 1 == 0:
            out[i] = missing >> shift
        else:
            out[i] = _xxh64(data, offsets[at], offsets[at + 1], seed) >> shift


@njit(cache=True)
def _hash_text_columns(
    data: np.ndarray,
    offsets: np.ndarray,
    validity: np.ndarray,
    seeds: np.ndarray,
    missing: np.ndarray,
    hashes: np.ndarray,
) -> None:
    """Hash the columns of a table of texts that lie one after the other."""
    rows = hashes.shape[0]
    for j in range(hashes.shape[1]):
        _hash_texts(
            data, offsets, validity, j * rows, seeds[j], missing[j], np.uint64(0), hashes[:, j]
        )


def _typed_pointer(_typing: Any, address: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


pointer: Any = intrinsic(_typed_pointer)
"""Turn an address, int64, into what ``carray`` of Numba takes; for compiled code only."""


@njit(cache=True, nogil=True)
def _read_segments(
    segments: np.ndarray,
    seeds: np.ndarray,
    missing: np.ndarray,
    low: int,
    high: int,
    places: np.ndarray,
    shift: np.uint64,
    out: np.ndarray,
) -> None:
    """Hash rows [low, high) of every column that has a place (not -1) into it, shifted."""
    for s in range(segments.size):
        segment = segments[s]
        place = places[segment.column]
        start, end = max(low, segment.start), min(high, segment.end)
        if place < 0 or start >= end:
            continue
        first = segment.offset + start - segment.start
        last = first + end - start
        to = out[start - low : end - low, place]
        nothing: Any = missing[segment.column]
        seed: Any = seeds[segment.column]
        bitmap_bytes = 0 if segment.validity == 0 else (last + 7) >> 3
        validity = carray(pointer(segment.validity), bitmap_bytes, np.uint8)
        if segment.kind == _DICTIONARY:
            of_values = carray(pointer(segment.data), segment.size, np.uint64)
            if segment.width == 1:
                codes = carray(pointer(segment.places), last, np.uint8)
                _take_hashes(of_values, codes, validity, first, nothing, shift, to)
            elif segment.width == 2:
                codes = carray(pointer(segment.places), last, np.uint16)
                _take_hashes(of_values, codes, validity, first, nothing, shift, to)
            elif segment.width == 4:
                codes = carray(pointer(segment.places), last, np.uint32)
                _take_hashes(of_values, codes, validity, first, nothing, shift, to)
            else:
                codes = carray(pointer(segment.places), last, np.uint64)
                _take_hashes(of_values, codes, validity, first, nothing, shift, to)
        elif segment.kind == _TEXTS:
            data = carray(pointer(segment.data), segment.size, np.uint8)
            if segment.width == 4:
                offsets = carray(pointer(segment.places), last + 1, np.int32)
                _hash_texts(data, offsets, validity, first, seed, nothing, shift, to)
            else:
                offsets = carray(pointer(segment.places), last + 1, np.int64)
                _hash_texts(data, offsets, validity, first, seed, nothing, shift, to)
        else:
            to[:] = nothing >> shift


@njit(cache=True, nogil=True)
def _take_hashes(
    of_values: np.ndarray,
    codes: np.ndarray,
    validity: np.ndarray,
    first: int,
    missing: np.uint64,
    shift: np.uint64,
    out: np.ndarray,
) -> None:
    """Spread the hashes of a dictionary's values over its codes from ``first`` on."""
    for i in range(out.size):
        at = first + i
        if validity.size > 0 and (validity[at >> 3] >> (at & 7)) & 1 == 0:
            out[i] = missing >> shift
        else:
            out[i] = of_values[codes[at]] >> shift


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
    hashes: np.ndarray,
    positions: np.ndarray,
    shift: np.uint64,
    slots: np.ndarray,
    places: np.ndarray,
) -> None:
    for i in range(hashes.shape[0]):
        for k in range(positions.size):
            slots[i, places[k]] = np.uint32(hashes[i, positions[k]] >> shift)


@njit(cache=True, nogil=True)
def _lay_word_slots(
    words: np.ndarray,
    known: np.ndarray,
    seeds: np.ndarray,
    first_seed: int,
    shift: np.uint64,
    slots: np.ndarray,
    first: int,
) -> None:
    middle = known.shape[1] // 2
    for i in range(words.shape[0]):
        for k in range(words.shape[1]):
            word, which = words[i, k], first_seed + k
            if -middle <= word < middle:
                slots[i, first + k] = known[which, word + middle]
            else:
                h = _word_taken(seeds[which] + _P5 + np.uint64(8), np.uint64(word))
                slots[i, first + k] = np.uint32(_avalanched(h) >> shift)


@njit(cache=True)  # with the interpreter's lock
def read_named_values(
    row: int, known: np.ndarray, room: np.ndarray, slots: np.ndarray, values: np.ndarray, shift: int
) -> int:
    """Read the dictionary at an address; return how many values are there, or -1.

    See :class:`NamedValues`. A compiled function elsewhere that calls this one must see to it that
    its own cached code does not outlive a change of this file.

    ``known`` holds the addresses of types, then of names, then the names' seeds; ``room`` what C
    functions write (a position, a key, a value, a length), then the seeds of what was read.
    """
    position = room.ctypes.data
    seeds = room[4:]
    kinds = known[:_FIRST_NAME]
    found = 0
    room[0] = 0
    while _dict_next(row, position, position + 8, position + 16) != 0:
        name = room[1]
        # A name is known by its address: the table owns a reference, so no other takes its place.
        # Objects of one size lie at regular distances, so the address is spread first.
        place = _FIRST_NAME + np.int64((np.uint64(name) * _P1) >> np.uint64(64 - _NAME_BITS))
        if known[place] != name:
            if _kind_of(name) != kinds[0]:
                return -1
            room[3] = -1
            text = _utf8_of(name, position + 24)
            if room[3] < 0:  # a surrogate without its partner has no UTF-8
                _clear_error()
                return -1
            _own(name)
            if known[place] != 0:
                _release(known[place])
            known[place] = name
            known[place + _NAMES] = np.int64(_xxh64(text, 0, room[3], np.uint64(0)))
        seed = np.uint64(known[place + _NAMES])
        kind = _kind_of(room[2])
        if kind == kinds[0]:
            room[3] = -1
            text = _utf8_of(room[2], position + 24)
            if room[3] < 0:
                _clear_error()
                return -1
            taken, number = _xxh64(text, 0, room[3], seed), 1.0
        elif kind == kinds[1]:
            continue
        else:
            if not _is_among(kind, kinds[2:]):
                return -1
            taken, number = seed, _float_of(room[2])
            if number == -1.0 and _error_is_set() != 0:  # too large for a float
                _clear_error()
                return -1
            if np.isnan(number):
                continue
            if np.isinf(number):
                return -1
        place = found
        while place > 0 and np.uint64(seeds[place - 1]) > seed:
            seeds[place] = seeds[place - 1]
            slots[place], values[place] = slots[place - 1], values[place - 1]
            place -= 1
        seeds[place] = np.int64(seed)
        slots[place], values[place] = np.uint32(taken >> np.uint64(shift)), number
        found += 1
    return found


@njit(cache=True, inline="always")
def _kind_of(value: int) -> int:
    """Return the address of an object's type: the second word of every object (PEP 384)."""
    return carray(pointer(value), (2,), np.int64)[1]


@njit(cache=True, inline="always")
def _is_among(kind: int, kinds: np.ndarray) -> bool:
    place = 0
    while place < kinds.size and kinds[place] != kind:
        place += 1
    return place < kinds.size


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
        self._seeds = np.array(seeds, np.uint64)
        self._missing = np.array([_hash_of_missing(seed) for seed in seeds], np.uint64)
        self._held: list[object] = list(columns)
        self._segments = segments_of(columns, self._contents)

    def _contents(self, chunk: pa.Array, column: int) -> tuple[int, int, int, int, int]:
        """Return a segment's kind, width, places, data and size."""
        kind = chunk.type
        if pa.types.is_null(kind):
            return _ALL_MISSING, 0, 0, 0, 0
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            _, offsets, data = chunk.buffers()
            width = 4 if pa.types.is_string(kind) else 8
            address, size = (data.address, data.size) if data else (0, 0)
            return _TEXTS, width, offsets.address, address, size
        if pa.types.is_dictionary(kind):
            dictionary = TextColumns([chunk.dictionary], [int(self._seeds[column])])
            of_values = dictionary.hashes(0, len(chunk.dictionary))
            self._held.append(of_values)
            # Indices are never negative, so a signed type is read as an unsigned one.
            width = kind.index_type.bit_width // 8
            return (
                _DICTIONARY,
                width,
                chunk.buffers()[1].address,
                of_values.ctypes.data,
                len(of_values),
            )
        raise TypeError(
            f"a column of type {kind} cannot be hashed; cast it to string (VARCHAR) first"
        )

    def hashes(self, start: int, end: int) -> np.ndarray:
        """Return the hashes of rows [start, end): uint64 (end - start, h), C-contiguous."""
        hashes = np.empty((end - start, self._seeds.size), np.uint64)
        places = np.arange(self._seeds.size)
        # By block, then by column: a block's rows stay in the cache while columns are filled.
        block = BLOCK_ROWS if self._seeds.size > 1 else max(end - start, 1)
        for low in range(start, end, block):
            high = min(low + block, end)
            self.read(low, high, places, hashes[low - start : high - start])
        return hashes

    def read(self, start: int, end: int, places: np.ndarray, hashes: np.ndarray) -> None:
        """Write the hashes of rows [start, end) of some columns.

        Parameters
        ----------
        start, end : int
        places : ndarray of shape (h,), int64
            Column of ``hashes`` for each column of texts; -1 leaves one out.
        hashes : ndarray of shape (end - start, any), uint64
        """
        _read_segments(
            self._segments, self._seeds, self._missing, start, end, places, np.uint64(0), hashes
        )

    def lay_slots(
        self, start: int, end: int, places: np.ndarray, bits: int, slots: np.ndarray
    ) -> None:
        """Write the slots, uint32, of rows [start, end) of some columns; see :meth:`read`."""
        _read_segments(
            self._segments, self._seeds, self._missing, start, end, places, _shift(bits), slots
        )


def segments_of(
    columns: Sequence[pa.Array | pa.ChunkedArray],
    contents: Callable[[pa.Array, int], tuple[int, int, int, int, int]],
) -> np.ndarray:
    """Return the segments of columns, by column and row; their buffers must outlive them.

    Parameters
    ----------
    columns : sequence of Arrow columns
    contents : callable
        Told a chunk and the place of its column, returns ``kind``, ``width``, ``places``, ``data``
        and ``size`` of its segment.

    Returns
    -------
    ndarray of :data:`SEGMENT`
    """
    segments: list[tuple[int, ...]] = []
    for place, column in enumerate(columns):
        start = 0
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else (column,):
            rows = len(chunk)
            if rows:
                bitmap = chunk.buffers()[0] if chunk.null_count else None
                validity = bitmap.address if bitmap else 0
                kind, *where = contents(chunk, place)
                segments.append((place, start, start + rows, chunk.offset, validity, kind, *where))
            start += rows
    return np.array(segments, SEGMENT)


class WordSlots:
    """Slots of whole numbers: what :func:`hash_words` and :func:`slot_of` give, sooner.

    Parameters
    ----------
    seeds : ndarray of shape (k,), uint64
        One seed a column of words.
    bits : int
        There are 2^bits slots; in [1, 32].

    Attributes
    ----------
    known : ndarray of shape (k, 2 * WORDS_KNOWN), uint32
        Slots of the words from ``-WORDS_KNOWN`` on, for each seed.
    """

    def __init__(self, seeds: np.ndarray, bits: int) -> None:
        self._seeds = seeds
        self._shift = _shift(bits)
        words = np.repeat(np.arange(-WORDS_KNOWN, WORDS_KNOWN)[:, None], seeds.size, axis=1)
        self.known = np.ascontiguousarray(slot_of(hash_words(words, seeds), bits).T)

    def of_word(self, word: int) -> np.ndarray:
        """Return the slots of one word under each seed, uint32 of shape (k,)."""
        words = np.full((1, self._seeds.size), word, np.int64)
        slots = np.empty(words.shape, np.uint32)
        self.lay(words, 0, slots, 0)
        return slots[0]

    def lay(self, words: np.ndarray, first_seed: int, slots: np.ndarray, first: int) -> None:
        """Write the slots of columns of words beside each other.

        Parameters
        ----------
        words : ndarray of shape (n, k), int64
        first_seed : int
            Which seed the first column of ``words`` has; the others follow.
        slots : ndarray of shape (n, F), uint32
            Receives columns ``first`` to ``first + k``.
        first : int
        """
        _lay_word_slots(words, self.known, self._seeds, first_seed, self._shift, slots, first)


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
    missing = np.array([_hash_of_missing(seed) for seed in seeds], np.uint64)
    _hash_text_columns(data, offsets, validity, np.array(seeds, np.uint64), missing, hashes)
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
    hashes: np.ndarray, positions: np.ndarray, bits: int, slots: np.ndarray, places: np.ndarray
) -> None:
    """Write the slots of chosen columns of hashes; see :func:`slot_of`.

    Parameters
    ----------
    hashes : ndarray of shape (n, h), uint64
    positions, places : ndarray of shape (k,), int64
        Columns of ``hashes``, and the columns of ``slots`` that they fill.
    bits : int
        There are 2^bits slots; in [1, 32].
    slots : ndarray of shape (n, F), uint32
    """
    _lay_slots(hashes, positions, _shift(bits), slots, places)


class NamedValues:
    """Reads one row of named values at a time, in a dictionary, into arrays that it keeps.

    A text is hashed under its name's seed and has the value 1; a number has its name's seed as its
    hash, and is the value; ``None`` and NaN are left out. What is read is ordered by the name's
    seed, so that the order in which a dictionary was filled reaches no sum. The arrays are good
    until the next row is read: threads need one of these each.
    """

    def __init__(self) -> None:
        self._make_room(64)

    def _make_room(self, width: int) -> None:
        room = np.empty(4 + width, np.int64)
        slots, values = np.empty(width, np.uint32), np.empty(width, np.float64)
        self._width = width
        self._arrays = _KNOWN, room, slots, values
        self._rows = [
            (slots[:found].reshape(1, found), values[:found].reshape(1, found))
            for found in range(width + 1)
        ]

    def arrays_for(self, row: dict[Any, Any]) -> tuple[np.ndarray, ...]:
        """Return the arrays of :func:`read_named_values`, with room for a row."""
        if len(row) > self._width:
            self._make_room(2 * len(row))
        return self._arrays

    def read(self, row: dict[Any, Any], bits: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return slots uint32 (1, F) and values float64 (1, F) of the values that are there.

        Parameters
        ----------
        row : dict
            Of exactly that type.
        bits : int
            There are 2^bits slots; in [1, 32].

        Returns
        -------
        pair of ndarray, or None
            None if a name is no text, a text has no UTF-8, or a value is neither a text nor a
            finite number of Python's or NumPy's common types: whoever asked must look for himself.
        """
        known, room, slots, values = self.arrays_for(row)
        found = read_named_values(id(row), known, room, slots, values, 64 - bits)
        return None if found < 0 else self._rows[found]


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
    drawing_seed = _drawing_seed(seed, purpose)
    if isinstance(ids, np.ndarray):
        words = ids.astype(np.uint64, copy=False).reshape(-1, 1)
        hashes = hash_words(words, np.array([drawing_seed], np.uint64))[:, 0]
    else:
        hashes = hash_strings(ids, drawing_seed)
    draws = np.empty(hashes.size, np.float64)
    _unit_draws(hashes, draws)
    return draws


@cache
def _drawing_seed(seed: int, purpose: str) -> int:
    words = np.array([seed % 2**64, seed_of(purpose)], np.uint64)
    return int(combine(words[:1], words[1:])[0])


def _view(buffer: pa.Buffer | None, dtype: type[np.generic], count: int = -1) -> np.ndarray:
    """View a buffer as an array; always read-only, so that Numba compiles one variant."""
    view = np.zeros(0, dtype) if buffer is None else np.frombuffer(buffer, dtype, count)
    view.flags.writeable = False
    return view


def _shift(bits: int) -> np.uint64:
    if not 1 <= bits <= MAXIMUM_BITS:
        raise ValueError(f"bits is {bits}; slots are uint32, so write 1 to {MAXIMUM_BITS}")
    return np.uint64(64 - bits)


def hashes_of_missing(seeds: Sequence[int]) -> np.ndarray:
    """Return what a null hashes to under each seed, uint64 of shape (S,)."""
    return np.array([_hash_of_missing(seed) for seed in seeds], np.uint64)


@cache
def _hash_of_missing(seed: int) -> np.uint64:
    return np.uint64(_hash_bytes(_MISSING_BYTES, np.uint64(seed)))
