"""JSON objects that are all laid out alike, read by compiled code: the common case of a log.

A scorer writes the same members in the same order a million times over, so that a reader need not
look for them: it expects each label where the last object had it, and reads what stands behind it.
Whatever it does not expect (another order, an escaped text, ``true``, a list, types that are mixed
within a member, a number that no float64 is sure to hold) it leaves to
:mod:`ad_pipeline.monitoring.parity.decision_log`, which reads every JSON, and to which it is equal
wherever it answers. Nothing here decides what is valid or what a value means.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit, types
from numba.np.numpy_support import carray

from ad_pipeline import hashing

_NULL, _NUMBER, _DIGITS, _TEXT, _INFINITY = 0, 1, 2, 3, 4
"""What a value is; of ``_DIGITS``, a number, only the place is known yet."""

_KINDS = 5

_UNEXPECTED = -1

_QUOTE, _BACKSLASH, _MINUS, _PLUS, _POINT = (ord(c) for c in '"\\-+.')
_CLOSE, _ZERO, _NINE, _E, _CAPITAL_E, _N = (ord(c) for c in "}09eEn")

_POWERS = np.array([10.0**k for k in range(23)])
"""Powers of ten that float64 holds exactly."""

_EXACT_DIGITS = 15
"""Whole numbers of so many digits are below 2^53."""

_INFINITY_BYTES = np.frombuffer(b"Infinity", np.uint8)
_NULL_BYTES = np.frombuffer(b"null", np.uint8)

SEPARATORS = ((", ", ": "), (",", ":"))
"""Between members and behind labels: as Python writes them, and as nearly all others do."""

# Of C's library, which every process has; an address is a whole number to it.
_differ: Any = types.ExternalFunction("memcmp", types.int32(types.intp, types.intp, types.intp))

LONGEST = 2**31 - 1
"""Bytes of a column of texts: Arrow's offsets are int32."""


def flat_columns(texts: pa.Array, names: Sequence[str]) -> dict[str, pa.Array] | None:
    """Return the members of JSON objects as columns, if all are of one layout.

    Parameters
    ----------
    texts : Arrow array of shape (n,), ``string`` or ``large_string``
        JSON or nulls.
    names : sequence of str
        The members that every object is expected to have, in this order.

    Returns
    -------
    dict of str to Arrow array of shape (n,), or None
        float64, string or null, by name; null where the object or the member is. None if any object
        is not as expected, or a member has both numbers and texts: nothing is known then, not even
        that the texts are JSON.

    Notes
    -----
    A number of at most 15 digits, times or divided by 10^22 at most, is one correctly rounded
    operation on two exact float64 (W. Clinger, "How to read floating point numbers
    accurately", PLDI 1990, section 3); Arrow reads the others.
    """
    if not names or len(set(names)) < len(names):
        return None
    n = len(texts)
    validity, offsets, data = (_view(buffer) for buffer in texts.buffers())
    width = np.int32 if pa.types.is_string(texts.type) else np.int64
    # Only the offsets of these rows: a cast of a slice would make those of its whole column wide.
    offsets = offsets.view(width)[texts.offset : texts.offset + n + 1].astype(np.int64)
    kinds = np.empty((len(names), n), np.uint8)
    numbers = np.empty((len(names), n))
    starts = np.empty((len(names), n), np.int64)
    sizes = np.empty((len(names), n), np.int32)
    found = np.zeros((len(names), _KINDS), np.int64)

    def read(between: str, behind: str) -> bool:
        labels = [f'{between}"{name}"{behind}'.encode() for name in names]
        labels[0] = b"{" + labels[0].removeprefix(between.encode())
        ends = np.cumsum(list(map(len, labels)))
        found[:] = 0
        return _read_objects(
            data, offsets, validity, texts.offset, np.frombuffer(b"".join(labels), np.uint8), ends,
            kinds, numbers, starts, sizes, found,
        )  # fmt: skip

    if not any(read(*separators) for separators in SEPARATORS):
        return None
    columns: dict[str, pa.Array] = {}
    for place, name in enumerate(names):
        nulls, plain, digits, quoted, _ = found[place].tolist()
        where = kinds[place], starts[place], sizes[place]
        if nulls == n:
            columns[name] = pa.nulls(n)
        elif not quoted:
            if digits:
                rows = np.flatnonzero(kinds[place] == _DIGITS)
                numbers[place][rows] = _arrow_reads(data, starts[place][rows], sizes[place][rows])
            columns[name] = _laid(pa.float64(), kinds[place], nulls, [numbers[place]])
        elif plain or digits or (length := int(_length(*where))) > LONGEST:
            return None
        else:
            ends, letters = np.zeros(n + 1, np.int32), np.empty(length, np.uint8)
            _gather(data, *where, ends, letters)
            columns[name] = _laid(pa.string(), kinds[place], nulls, [ends, letters])
    return dict(sorted(columns.items()))


def _view(buffer: pa.Buffer | None) -> np.ndarray:
    """View a buffer read-only, so that Numba compiles one variant."""
    view = np.zeros(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8)
    view.flags.writeable = False
    return view


def _laid(
    kind: pa.DataType, kinds: np.ndarray, nulls: int, contents: Sequence[np.ndarray]
) -> pa.Array:
    """Lay values into an Arrow array."""
    bitmap = np.packbits(kinds != _NULL, bitorder="little") if nulls else None
    buffers = [None if bitmap is None else pa.py_buffer(bitmap), *map(pa.py_buffer, contents)]
    return pa.Array.from_buffers(kind, len(kinds), buffers, nulls)


def _arrow_reads(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return numbers out of their digits, float64 of the shape of the starts."""
    kinds = np.full(len(starts), _DIGITS, np.uint8)
    ends, letters = np.zeros(len(starts) + 1, np.int32), np.empty(int(sizes.sum()), np.uint8)
    _gather(data, kinds, starts, sizes, ends, letters)
    return pc.cast(_laid(pa.string(), kinds, 0, [ends, letters]), pa.float64()).to_numpy()


@njit(cache=True, nogil=True)
def _length(kinds: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> int:
    total = 0
    for row in range(kinds.size):
        if kinds[row] != _NULL:
            total += sizes[row]
    return total


@njit(cache=True, nogil=True)
def _gather(
    data: np.ndarray,
    kinds: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    ends: np.ndarray,
    letters: np.ndarray,
) -> None:
    """Copy pieces behind one another."""
    at = 0
    for row in range(kinds.size):
        if kinds[row] != _NULL:
            start = starts[row]
            for k in range(sizes[row]):
                letters[at + k] = data[start + k]
            at += sizes[row]
        ends[row + 1] = at


@njit(cache=True, inline="always")
def _stands_at(data: np.ndarray, at: int, end: int, expected: np.ndarray) -> bool:
    size = expected.size
    if at + size > end:
        return False
    return _differ(data.ctypes.data + at, expected.ctypes.data, size) == 0


@njit(cache=True, inline="always")
def _is_digit(data: np.ndarray, at: int, end: int) -> bool:
    return at < end and _ZERO <= data[at] <= _NINE


@njit(cache=True)
def _read_number(
    data: np.ndarray, start: int, end: int, numbers: np.ndarray, row: int
) -> tuple[int, int]:
    """Read a number; return what it is and where it ends."""
    at = start
    negative = data[at] == _MINUS
    if negative:
        at += 1
    if not _is_digit(data, at, end):
        return _UNEXPECTED, at
    mantissa, power, digits = 0, 0, at
    if data[at] == _ZERO:
        at += 1
    else:
        while _is_digit(data, at, end):
            mantissa = mantissa * 10 + (data[at] - _ZERO)
            at += 1
    digits = at - digits
    is_whole = True
    if at < end and data[at] == _POINT:
        is_whole = False
        at += 1
        if not _is_digit(data, at, end):
            return _UNEXPECTED, at
        point = at
        while _is_digit(data, at, end):
            mantissa = mantissa * 10 + (data[at] - _ZERO)
            at += 1
        power = point - at
        digits -= power
    exact = digits <= _EXACT_DIGITS
    if at < end and (data[at] == _E or data[at] == _CAPITAL_E):
        is_whole = False
        at += 1
        falls = at < end and data[at] == _MINUS
        if falls or (at < end and data[at] == _PLUS):
            at += 1
        first = at
        written = 0
        while _is_digit(data, at, end) and at - first < 3:
            written = written * 10 + (data[at] - _ZERO)
            at += 1
        if at == first or at - first == 3:
            return _UNEXPECTED, at
        power += -written if falls else written
    # Readers differ on what -0 is, and on what is too long for any float64.
    if (negative and is_whole and mantissa == 0 and exact) or at - start > 64:
        return _UNEXPECTED, at
    if not exact or power > 22 or power < -22:
        return _DIGITS, at
    value = float(mantissa)
    value = value * _POWERS[power] if power >= 0 else value / _POWERS[-power]
    numbers[row] = -value if negative else value
    return _NUMBER, at


@njit(cache=True)
def _read_objects(
    letters: np.ndarray,
    offsets: np.ndarray,
    validity: np.ndarray,
    first: int,
    labels: np.ndarray,
    label_ends: np.ndarray,
    kinds: np.ndarray,
    parsed: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    found: np.ndarray,
) -> bool:
    """Read every object; return whether each was as expected.

    ``validity`` is Arrow's bitmap from row ``-first`` on, empty if all are there.
    """
    # An array would be counted, atomically, in each call that it is handed to; these are not.
    data = carray(hashing.pointer(letters.ctypes.data), letters.size, np.uint8)
    numbers = carray(hashing.pointer(parsed.ctypes.data), parsed.shape, np.float64)
    members = label_ends.size
    for row in range(offsets.size - 1):
        bit = first + row
        if validity.size > 0 and (validity[bit >> 3] >> (bit & 7)) & 1 == 0:
            for place in range(members):
                kinds[place, row] = _NULL
                found[place, _NULL] += 1
            continue
        at, end = offsets[row], offsets[row + 1]
        label_start = 0
        for place in range(members):
            label = labels[label_start : label_ends[place]]
            label_start = label_ends[place]
            if not _stands_at(data, at, end, label):
                return False
            at += label.size
            if at == end:
                return False
            start = at
            if data[at] == _QUOTE:
                start += 1
                at += 1
                while at < end and data[at] != _QUOTE:
                    if data[at] == _BACKSLASH or data[at] < 32:
                        return False
                    at += 1
                if at == end:
                    return False
                kind, after = _TEXT, at + 1
                sign = 1 if start < at and data[start] == _MINUS else 0
                if at - start - sign == 8 and _stands_at(data, start + sign, at, _INFINITY_BYTES):
                    kind = _INFINITY
                    numbers[place, row] = -np.inf if sign else np.inf
            elif data[at] == _N:
                if not _stands_at(data, at, end, _NULL_BYTES):
                    return False
                kind, after = _NULL, at + 4
            else:
                kind, after = _read_number(data, at, end, numbers[place], row)
                at = after
                if kind == _UNEXPECTED:
                    return False
            kinds[place, row] = kind
            found[place, kind] += 1
            if kind >= _DIGITS:
                starts[place, row] = start
                sizes[place, row] = at - start
            at = after
        if at + 1 != end or data[at] != _CLOSE:
            return False
    return True
