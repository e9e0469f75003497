"""Columns as JSON texts, one a row, written by compiled code out of Arrow's and NumPy's buffers.

The serving log is JSON, and a value of it must read back to the same bits. What is written equals
what Python's ``json`` writes, byte for byte: separators, escapes, and the shortest digits that tell
a float from its neighbours. JSON has no infinity, so it is the text ``"Infinity"``; NaN is null.
Chosen rows are written straight from the whole columns: nothing is built of the others, and no
Python object of any value. What a decision's members are stands in :mod:`.decisions`; the texts
are read by :mod:`ad_pipeline.monitoring.parity.flat_objects`.

References
----------
R. Giulietti, "The Schubfach way to render doubles", 2020: section 9 and figure 7.
"""

from collections.abc import Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit, types
from numba.extending import intrinsic
from numba.np.numpy_support import carray

from ad_pipeline import hashing

MEMBER = np.dtype(
    [
        (field, np.int64)
        for field in (
            "kind", "validity", "first", "values", "step", "offsets", "width", "letters", "known",
            "start",
        )
    ]
)  # fmt: skip
"""A column as compiled code reads it; whoever holds members must hold what they point at.

Row r is item ``first + r`` of the bitmap at the address ``validity`` (0: none is missing) and of
``values``, ``step`` bytes apart: numbers or codes. A code c is text ``start + c`` of a dictionary
with the bitmap ``known``; a text without codes has its item's place. A text lies between two
``offsets`` of ``width`` bytes in ``letters``.
"""

_NULL, _FLOAT, _WHOLE, _TEXT, _CODE = range(5)

_LONGEST_VALUE = 24
"""Bytes of -2.2250738585072014e-308; a whole number has 20 at most."""

_LONGEST_ESCAPE = 6
"""Bytes that one byte of a text may become."""

_NUMBERS = {np.dtype(np.float64): _FLOAT, np.dtype(np.int64): _WHOLE}
_DOUBLE = pa.float64().id
_WIDTHS = {pa.string().id: 4, pa.large_string().id: 8}
"""Bytes of an offset, by the type of texts."""

_LAYOUTS = 256
"""Layouts whose labels are kept: a bundle has three, its fallbacks some more."""

_BLOCK_ROWS = 256
"""Rows that are read column by column before they are written: few enough for the cache."""

_LOWEST_POWER, _HIGHEST_POWER = -292, 324


def _powers_of_ten() -> np.ndarray:
    """Return the 128 highest bits of each power, rounded up: uint64 of shape (617, 2)."""
    powers: list[tuple[int, int]] = []
    for exponent in range(_LOWEST_POWER, _HIGHEST_POWER + 1):
        power = 10 ** abs(exponent)
        size = power.bit_length()
        numerator, denominator = (power, 1) if exponent >= 0 else (1 << 2 * size, power)
        shift = 128 - (numerator // denominator).bit_length()
        numerator <<= max(shift, 0)
        denominator <<= max(-shift, 0)
        bits = -(-numerator // denominator)
        powers.append((bits >> 64, bits & (2**64 - 1)))
    return np.array(powers, np.uint64)


_POWERS = _powers_of_ten()

_ESCAPES = np.zeros(256, np.uint8)
"""The letter behind the backslash of a byte that is escaped; ``u`` has four digits behind it."""
_ESCAPES[:32] = ord("u")
_ESCAPES[np.frombuffer(b'\b\f\n\r\t"\\', np.uint8)] = np.frombuffer(b'bfnrt"\\', np.uint8)

_TENS = np.array([10**size for size in range(20)], np.uint64)
_PAIRS = np.frombuffer(b"".join(b"%02d" % pair for pair in range(100)), np.uint8).reshape(100, 2)
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_NULL_TEXT = np.frombuffer(b"null", np.uint8)
_INFINITIES = np.frombuffer(b'"Infinity""-Infinity"', np.uint8)

_U, _E, _MINUS, _PLUS, _POINT, _ZERO, _QUOTE, _BACKSLASH, _COMMA, _SPACE, _OPEN, _CLOSE, _END = (
    np.frombuffer(b'ue-+.0"\\, []}', np.uint8)
)

# Of C's library, which every process has; an address is a whole number to it.
_copy: Any = types.ExternalFunction("memcpy", types.intp(types.intp, types.intp, types.intp))


Column = pa.Array | np.ndarray


def json_objects(
    names: tuple[str, ...], columns: Sequence[Column], rows: np.ndarray
) -> pa.LargeStringArray:
    """Write a JSON object for each of some rows.

    Parameters
    ----------
    names : tuple of str, length at least 1
        Of the members, in their order.
    columns : sequence of Arrow array of shape (n,), or ndarray of shape (n,) or (n, k)
        A member each, a matrix k. Arrow: ``string``, ``large_string``, a dictionary of these,
        ``float64`` or ``null``; NumPy: float64 or int64, any strides.
    rows : ndarray of shape (m,), int64
        Places in ``[0, n)``, in any order.

    Returns
    -------
    pa.LargeStringArray of length m
        What ``json.dumps(…, ensure_ascii=False)`` writes.

    Raises
    ------
    TypeError
        If a column is of another type.
    ValueError
        If there are more or fewer members than names, or a text that was written is not UTF-8.
    """
    members = np.array([member for column in columns for member in _members(column)], MEMBER)
    if len(members) != len(names):
        raise ValueError(f"{len(names)} names for {len(members)} members: {', '.join(names)}")
    labels, label_ends = _labels(names)
    room = (labels.size + 1 + _LONGEST_VALUE * len(names)) * rows.size
    letters = np.empty(room + _LONGEST_ESCAPE * _text_bytes(members, rows), np.uint8)
    ends = np.empty(rows.size + 1, np.int64)
    is_ascii = _write_objects(members, labels, label_ends, rows, letters, ends)
    written = _texts(letters, ends)
    if not is_ascii:
        _check_readable(written)
    return written


def json_lists(
    texts: tuple[str, ...], columns: Sequence[np.ndarray], rows: np.ndarray
) -> pa.LargeStringArray:
    """Write a JSON list of texts for each of some rows.

    Parameters
    ----------
    texts : tuple of str
    columns : sequence of ndarray of shape (n,), bool
        In which rows' lists each text is.
    rows : ndarray of shape (m,), int64
        Places in ``[0, n)``, in any order.

    Returns
    -------
    pa.LargeStringArray of length m
        What ``json.dumps(…, ensure_ascii=False)`` writes.
    """
    if not texts:
        return repeated("[]", rows.size)
    held = [np.ascontiguousarray(column, np.bool_) for column in columns]
    elements, element_ends = _elements(texts)
    letters = np.empty((2 + elements.size + 2 * len(texts)) * rows.size, np.uint8)
    ends = np.empty(rows.size + 1, np.int64)
    addresses = np.array([_address(each) for each in held])
    _write_lists(addresses, elements, element_ends, rows, letters, ends)
    return _texts(letters, ends)


def repeated(text: str, n: int) -> pa.LargeStringArray:
    """Return an array of n times the same text."""
    encoded = text.encode()
    ends = np.arange(n + 1) * len(encoded)
    return pa.LargeStringArray.from_buffers(n, pa.py_buffer(ends), pa.py_buffer(encoded * n))


def _texts(letters: np.ndarray, ends: np.ndarray) -> pa.LargeStringArray:
    letters.resize(ends[-1], refcheck=False)  # gives back what was not needed
    buffers = pa.py_buffer(ends), pa.py_buffer(letters)
    return pa.LargeStringArray.from_buffers(len(ends) - 1, *buffers)


def _check_readable(written: pa.LargeStringArray) -> None:
    try:
        written.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"a text column holds bytes that are not UTF-8 ({error}): no reader of the log could "
            "read it; send texts in UTF-8"
        ) from error


@lru_cache(_LAYOUTS)
def _labels(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return what stands before each value of an object, and where each ends."""
    labels = [f", {encode_basestring(name)}: " for name in names]
    return _joined(["{" + labels[0].removeprefix(", "), *labels[1:]])


@lru_cache(_LAYOUTS)
def _elements(texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the elements of a list, and where each ends."""
    return _joined([encode_basestring(text) for text in texts])


def _joined(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [text.encode() for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(text) for text in encoded])


def _address(values: np.ndarray) -> int:
    return values.__array_interface__["data"][0]  # sooner than `ctypes.data`


def _at(buffer: pa.Buffer | None) -> int:
    return 0 if buffer is None else buffer.address


def _members(column: Column) -> list[tuple[int, ...]]:
    """Return a column as a :data:`MEMBER`, a matrix as one for each of its columns."""
    if isinstance(column, np.ndarray):
        kind = _NUMBERS.get(column.dtype)
        if kind is None:
            raise TypeError(f"numbers are {column.dtype}; only float64 and int64 are written")
        first = _address(column)
        step, *widths = column.strides
        places = [first + widths[0] * k for k in range(column.shape[1])] if widths else [first]
        return [(kind, 0, 0, place, step, 0, 0, 0, 0, 0) for place in places]
    type_ = column.type
    if pa.types.is_null(type_):
        return [(_NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    bitmap, *contents = map(_at, column.buffers())
    bitmap = bitmap if column.null_count else 0
    if type_.id == _DOUBLE:
        return [(_FLOAT, bitmap, column.offset, contents[0], 8, 0, 0, 0, 0, 0)]
    if type_.id in _WIDTHS:
        offsets, letters = contents
        return [(_TEXT, bitmap, column.offset, 0, 0, offsets, _WIDTHS[type_.id], letters, 0, 0)]
    if pa.types.is_dictionary(type_) and type_.value_type.id in _WIDTHS:
        ((_, known, start, _, _, *texts, _, _),) = _members(column.dictionary)
        step = type_.index_type.bit_width // 8
        return [(_CODE, bitmap, column.offset, contents[0], step, *texts, known, start)]
    raise TypeError(f"a column is {type_}; cast it to string (VARCHAR) or float64 (DOUBLE)")


def _high_product(_typing: Any, a: Any, b: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        from llvmlite import ir

        wide, narrow = ir.IntType(128), ir.IntType(64)
        product = builder.mul(*(builder.zext(each, wide) for each in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), narrow)

    return types.uint64(types.uint64, types.uint64), generate


_high: Any = intrinsic(_high_product)
"""The high 64 bits of a product of two uint64."""


@njit(cache=True, inline="always")
def _bit(bitmap: int, place: int) -> bool:
    return (carray(hashing.pointer(bitmap + (place >> 3)), 1, np.uint8)[0] >> (place & 7)) & 1 == 1


@njit(cache=True, inline="always")
def _int64_at(address: int) -> Any:
    return carray(hashing.pointer(address), 1, np.int64)[0]


@njit(cache=True, inline="always")
def _code_at(address: int, width: int) -> Any:
    # Codes are never negative, so a signed type is read as an unsigned one.
    if width == 1:
        return np.int64(carray(hashing.pointer(address), 1, np.uint8)[0])
    if width == 2:
        return np.int64(carray(hashing.pointer(address), 1, np.uint16)[0])
    if width == 4:
        return np.int64(carray(hashing.pointer(address), 1, np.uint32)[0])
    return _int64_at(address)


@njit(cache=True, inline="always")
def _item(member: Any, row: int) -> int:
    """Return the place of a row's value, of a text in its dictionary; -1 for a null."""
    item = member.first + row
    if member.kind == _NULL or (member.validity != 0 and not _bit(member.validity, item)):
        return -1
    if member.kind == _CODE:
        item = member.start + _code_at(member.values + item * member.step, member.step)
        if member.known != 0 and not _bit(member.known, item):
            return -1
    return item


@njit(cache=True, nogil=True)
def _text_bytes(members: np.ndarray, rows: np.ndarray) -> int:
    """Return how many bytes the texts of some rows have."""
    total = 0
    for m in range(members.size):
        member = members[m]
        if member.kind < _TEXT:
            continue
        for row in rows:
            item = _item(member, row)
            if item >= 0:
                place = member.offsets + item * member.width
                total += _code_at(place + member.width, member.width)
                total -= _code_at(place, member.width)
    return total


@njit(cache=True, nogil=True)
def _read(member: Any, rows: np.ndarray, values: np.ndarray, sizes: np.ndarray) -> None:
    """Read a column's values of some rows: the bits of numbers, addresses and sizes of texts.

    The size of a null is -1. Rows that lie far apart are waited for together, not one by one.
    """
    for k in range(rows.size):
        item = _item(member, rows[k])
        sizes[k] = 0
        if item < 0:
            sizes[k] = -1
        elif member.kind < _TEXT:
            values[k] = _int64_at(member.values + item * member.step)
        else:
            place = member.offsets + item * member.width
            start = _code_at(place, member.width)
            values[k] = member.letters + start
            sizes[k] = _code_at(place + member.width, member.width) - start


@njit(cache=True)
def _write_digits(number: np.uint64, out: np.ndarray, at: int) -> int:
    """Write a whole number; return where it ends."""
    size = 1
    while size < 20 and number >= _TENS[size]:
        size += 1
    place = at + size
    while number >= np.uint64(100):
        rest = number // np.uint64(100)
        pair = np.int64(number - rest * np.uint64(100))
        place -= 2
        out[place] = _PAIRS[pair, 0]
        out[place + 1] = _PAIRS[pair, 1]
        number = rest
    if number >= np.uint64(10):
        out[at] = _PAIRS[np.int64(number), 0]
    out[place - 1] = _PAIRS[np.int64(number), 1]
    return at + size


@njit(cache=True, inline="always")
def _scaled(power: np.ndarray, number: np.uint64) -> np.uint64:
    """Return the high bits of a product with a power of ten, rounded to odd."""
    low = power[0] * number
    middle = low + _high(power[1], number)
    high = _high(power[0], number) + np.uint64(middle < low)
    return high | np.uint64(middle > np.uint64(1))


@njit(cache=True)
def _shortest(bits: np.uint64) -> tuple[Any, Any]:
    """Return digits and power of ten of a positive finite float64, the nearest of the fewest."""
    mantissa = bits & np.uint64((1 << 52) - 1)
    exponent = np.int64(bits >> np.uint64(52))
    q = max(exponent, 1) - 1075
    c = mantissa if exponent == 0 else mantissa | np.uint64(1 << 52)
    if -52 <= q <= 0:
        whole = c >> np.uint64(-q)
        if whole << np.uint64(-q) == c:
            return whole, 0
    # Below a power of two, neighbours are half as far away.
    is_closer = mantissa == 0 and exponent > 1
    k = (q * 1262611 - (524031 if is_closer else 0)) >> 22
    h = np.uint64(q + ((-k * 1741647) >> 19) + 1)
    power = _POWERS[-k - _LOWEST_POWER]
    low = _scaled(power, (np.uint64(4) * c - np.uint64(1 if is_closer else 2)) << h)
    middle = _scaled(power, (np.uint64(4) * c) << h)
    high = _scaled(power, (np.uint64(4) * c + np.uint64(2)) << h)
    odd = c & np.uint64(1)  # a border belongs to the even of two neighbours
    low, high = low + odd, high - odd
    digits = middle >> np.uint64(2)
    if digits >= np.uint64(10):
        fewer = digits // np.uint64(10)
        tens = np.uint64(40) * fewer
        is_below, is_above = low <= tens, tens + np.uint64(40) <= high
        if is_below != is_above:
            return fewer + np.uint64(is_above), k + 1
    fours = np.uint64(4) * digits
    is_below, is_above = low <= fours, fours + np.uint64(4) <= high
    if is_below != is_above:
        return digits + np.uint64(is_above), k
    half = fours + np.uint64(2)
    is_up = middle > half or (middle == half and digits & np.uint64(1) == np.uint64(1))
    return digits + np.uint64(is_up), k


@njit(cache=True)
def _write_float(value: float, out: np.ndarray, at: int) -> int:
    """Write a float64 as ``repr`` does, NaN as null; return where it ends."""
    if np.isnan(value):
        _copy(out.ctypes.data + at, _NULL_TEXT.ctypes.data, 4)
        return at + 4
    if np.isinf(value):
        first, size = (0, 10) if value > 0 else (10, 11)
        _copy(out.ctypes.data + at, _INFINITIES.ctypes.data + first, size)
        return at + size
    bits = np.float64(value).view(np.uint64)
    if bits >> np.uint64(63) != 0:
        out[at] = _MINUS
        at += 1
        bits &= np.uint64((1 << 63) - 1)
    digits, power = np.uint64(0), 0
    if bits != 0:
        digits, power = _shortest(bits)
        while digits % np.uint64(10) == 0:
            digits //= np.uint64(10)
            power += 1
    end = _write_digits(digits, out, at)
    size = end - at
    point = size + power  # where the point stands, counted from the first digit
    if -4 < point <= 0:
        zeros = 2 - point
        for place in range(end - 1, at - 1, -1):
            out[place + zeros] = out[place]
        out[at : at + zeros] = _ZERO
        out[at + 1] = _POINT
        return end + zeros
    if size <= point <= 16:
        out[end : at + point] = _ZERO
        out[at + point] = _POINT
        out[at + point + 1] = _ZERO
        return at + point + 2
    if 0 < point <= 16:
        for place in range(end - 1, at + point - 1, -1):
            out[place + 1] = out[place]
        out[at + point] = _POINT
        return end + 1
    if size > 1:
        for place in range(end - 1, at, -1):
            out[place + 1] = out[place]
        out[at + 1] = _POINT
        end += 1
    exponent = point - 1
    out[end] = _E
    out[end + 1] = _MINUS if exponent < 0 else _PLUS
    end += 2
    if abs(exponent) < 10:
        out[end] = _ZERO
        end += 1
    return _write_digits(np.uint64(abs(exponent)), out, end)


@njit(cache=True, inline="always")
def _write_whole(value: int, out: np.ndarray, at: int) -> int:
    if value < 0:
        out[at] = _MINUS
        return _write_digits(np.uint64(0) - np.uint64(value), out, at + 1)
    return _write_digits(np.uint64(value), out, at)


@njit(cache=True)
def _write_text(letters: int, size: int, out: np.ndarray, at: int) -> tuple[int, Any]:
    """Write a text between quotes; return where it ends and whether it is all ASCII."""
    text = carray(hashing.pointer(letters), size, np.uint8)
    seen = np.uint8(0)
    out[at] = _QUOTE
    at += 1
    for k in range(size):
        letter = text[k]
        seen |= letter
        escape = _ESCAPES[letter]
        if escape == 0:
            out[at] = letter
            at += 1
            continue
        out[at] = _BACKSLASH
        out[at + 1] = escape
        at += 2
        if escape == _U:
            out[at] = _ZERO
            out[at + 1] = _ZERO
            out[at + 2] = _HEX[letter >> 4]
            out[at + 3] = _HEX[letter & 15]
            at += 4
    out[at] = _QUOTE
    return at + 1, seen < 128


@njit(cache=True, nogil=True)
def _write_objects(
    members: np.ndarray,
    labels: np.ndarray,
    label_ends: np.ndarray,
    rows: np.ndarray,
    letters: np.ndarray,
    ends: np.ndarray,
) -> bool:
    """Write an object a row behind one another; return whether every text is ASCII."""
    # An array would be counted, atomically, in each call that it is handed to; this one is not.
    out = carray(hashing.pointer(letters.ctypes.data), letters.size, np.uint8)
    values = np.empty((_BLOCK_ROWS, members.size), np.int64)
    sizes = np.empty((_BLOCK_ROWS, members.size), np.int64)
    at = 0
    are_ascii = True
    ends[0] = 0
    for first in range(0, rows.size, _BLOCK_ROWS):
        of_block = rows[first : first + _BLOCK_ROWS]
        for m in range(members.size):
            _read(members[m], of_block, values[:, m], sizes[:, m])
        for k in range(of_block.size):
            label = 0
            for m in range(members.size):
                size = label_ends[m] - label
                _copy(out.ctypes.data + at, labels.ctypes.data + label, size)
                at += size
                label = label_ends[m]
                kind, value = members[m].kind, values[k, m]
                if sizes[k, m] < 0:
                    _copy(out.ctypes.data + at, _NULL_TEXT.ctypes.data, 4)
                    at += 4
                elif kind == _WHOLE:
                    at = _write_whole(value, out, at)
                elif kind == _FLOAT:
                    at = _write_float(np.int64(value).view(np.float64), out, at)
                else:
                    at, is_ascii = _write_text(value, sizes[k, m], out, at)
                    are_ascii &= is_ascii
            out[at] = _END
            at += 1
            ends[first + k + 1] = at
    return are_ascii


@njit(cache=True, nogil=True)
def _write_lists(
    flags: np.ndarray,
    texts: np.ndarray,
    text_ends: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    ends: np.ndarray,
) -> None:
    """Write a list a row behind one another; ``flags`` are addresses of columns of bools."""
    at = 0
    ends[0] = 0
    for k in range(rows.size):
        out[at] = _OPEN
        at += 1
        text, is_first = 0, True
        for f in range(flags.size):
            size = text_ends[f] - text
            if _code_at(flags[f] + rows[k], 1) != 0:
                if not is_first:
                    out[at] = _COMMA
                    out[at + 1] = _SPACE
                    at += 2
                _copy(out.ctypes.data + at, texts.ctypes.data + text, size)
                at += size
                is_first = False
            text = text_ends[f]
        out[at] = _CLOSE
        at += 1
        ends[k + 1] = at
