"""How the state of the FTRL kernel moves between memory and registers; no arithmetic of learning.

A slot's state is ``(2, K)`` numbers: z of every configuration, then √n of every configuration, so
that eight configurations of float32 fill one cache line. A row is gathered into short arrays of
*lanes* (feature by feature, the configurations of a feature side by side), computed there by plain
loops that the compiler turns into vector instructions, and scattered back. What this file adds to
Numba is what plain loops cannot say: fetch a slot before it is needed, move a slot's numbers as one
vector, add up lanes in a fixed order, round without bias.

The number of configurations is known when the kernel is compiled: it is the length of a tuple of
floats, ``lanes``. Only compiled code may call these functions, and none checks anything.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

LINE_BYTES = 64
WIDTH = 8
"""Lanes are padded to a multiple of this, so that no remainder is computed one by one."""

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_FLOAT = ir.FloatType()
_DOUBLE = ir.DoubleType()


def aligned_zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return an array of zeros that begins where a cache line does.

    A slot of 64 bytes then lies in one line, not in two.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + LINE_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    return raw[start : start + size].view(dtype).reshape(shape)


def _array(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value)


def _vector(builder: Any, pointer: Any, kind: Any) -> tuple[Any, int]:
    """Return the pointer as one to a vector, and the alignment that may be assumed."""
    bits = getattr(kind.element, "width", 64 if isinstance(kind.element, ir.DoubleType) else 32)
    return builder.bitcast(pointer, kind.as_pointer()), bits // 8


def _load(builder: Any, pointer: Any, kind: Any) -> Any:
    address, align = _vector(builder, pointer, kind)
    return builder.load(address, align=align)


def _store(builder: Any, value: Any, pointer: Any) -> None:
    address, align = _vector(builder, pointer, value.type)
    builder.store(value, address, align=align)


def _whole(kind: Any, number: int) -> Any:
    """Return a vector with the same whole number everywhere."""
    return ir.Constant(kind, [number] * kind.count)


def _typed_prefetch(_typing: Any, flat: Any, slot: Any, lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = _array(context, builder, signature.args[0], arguments[0])
        numbers = 2 * signature.args[2].count
        size = numbers * (8 if isinstance(array.data.type.pointee, ir.DoubleType) else 4)
        first = builder.gep(
            array.data, [builder.mul(builder.zext(arguments[1], _I64), _I64(numbers))]
        )
        address = builder.ptrtoint(first, _I64)
        fetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32]),
            "llvm.prefetch.p0",
        )
        lines = set(range(0, size, LINE_BYTES))
        if LINE_BYTES % size and size % LINE_BYTES:
            lines.add(size - 1)  # a slot may begin in the middle of a line
        for offset in sorted(lines):
            pointer = builder.inttoptr(builder.add(address, _I64(offset)), cgutils.voidptr_t)
            # To be written (1), and soon used again (3), by data instructions (1).
            builder.call(fetch, [pointer, _I32(1), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(flat, types.uint32, lanes), generate


prefetch = cast("Callable[..., None]", intrinsic(_typed_prefetch))
"""``prefetch(flat, slot, lanes)``: ask for the cache lines of a slot without waiting for them."""


def _typed_move(_typing: Any, target: Any, to: Any, source: Any, at: Any, lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source_array = _array(context, builder, signature.args[2], arguments[2])
        target_array = _array(context, builder, signature.args[0], arguments[0])
        kind = ir.VectorType(source_array.data.type.pointee, signature.args[4].count)
        moved = _load(builder, builder.gep(source_array.data, [arguments[3]]), kind)
        _store(builder, moved, builder.gep(target_array.data, [arguments[1]]))
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64, lanes), generate


_move = cast("Callable[..., None]", intrinsic(_typed_move))
"""``_move(target, to, source, at, lanes)``: copy as many numbers as there are lanes."""


def _typed_equal(_typing: Any, first: Any, at: Any, second: Any, other: Any, lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = signature.args[4].count
        arrays = [
            _array(context, builder, signature.args[place], arguments[place]) for place in (0, 2)
        ]
        bits = 64 if isinstance(arrays[0].data.type.pointee, ir.DoubleType) else 32
        kind = ir.VectorType(ir.IntType(bits), count)
        a, b = (
            _load(builder, builder.gep(array.data, [arguments[place]]), kind)
            for array, place in zip(arrays, (1, 3), strict=True)
        )
        differs = builder.bitcast(builder.icmp_unsigned("!=", a, b), ir.IntType(count))
        return builder.icmp_unsigned("==", differs, differs.type(0))

    return types.boolean(first, types.int64, second, types.int64, lanes), generate


_equal = cast("Callable[..., bool]", intrinsic(_typed_equal))
"""``_equal(first, at, second, other, lanes)``: whether as many numbers have the same bits."""


def _typed_gather_pairs(_typing: Any, state: Any, slots: Any, at: Any, z: Any, s: Any, to: Any):
    """Eight slots of (z, √n) in float32: one 64-bit number each."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            _array(context, builder, signature.args[place], arguments[place])
            for place in (0, 1, 3, 4)
        ]
        narrow, wide = ir.VectorType(_I32, WIDTH), ir.VectorType(_I64, WIDTH)
        places = _load(builder, builder.gep(arrays[1].data, [arguments[2]]), narrow)
        base = builder.insert_element(
            ir.Constant(wide, ir.Undefined), builder.ptrtoint(arrays[0].data, _I64), _I32(0)
        )
        base = builder.shuffle_vector(base, ir.Constant(wide, ir.Undefined), _whole(narrow, 0))
        address = builder.add(base, builder.shl(builder.zext(places, wide), _whole(wide, 3)))
        pointers = ir.VectorType(_I64.as_pointer(), WIDTH)
        mask = ir.VectorType(ir.IntType(1), WIDTH)
        gather = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(wide, [pointers, _I32, mask, wide]),
            "llvm.masked.gather.v8i64.v8p0",
        )
        pairs = builder.call(
            gather,
            [
                builder.inttoptr(address, pointers),
                _I32(8),
                _whole(mask, 1),
                ir.Constant(wide, ir.Undefined),
            ],
        )
        floats = ir.VectorType(_FLOAT, WIDTH)
        high = builder.lshr(pairs, _whole(wide, 32))
        for half, array in ((pairs, arrays[2]), (high, arrays[3])):
            numbers = builder.bitcast(builder.trunc(half, narrow), floats)
            _store(builder, numbers, builder.gep(array.data, [arguments[5]]))
        return context.get_dummy_value()

    return types.void(state, slots, types.int64, z, s, types.int64), generate


_gather_pairs = cast("Callable[..., None]", intrinsic(_typed_gather_pairs))


def _typed_join_pairs(_typing: Any, z: Any, s: Any, pairs: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            _array(context, builder, signature.args[place], arguments[place]) for place in range(3)
        ]
        narrow, wide = ir.VectorType(_I32, WIDTH), ir.VectorType(_I64, WIDTH)
        low, high = (
            builder.zext(_load(builder, builder.gep(array.data, [arguments[3]]), narrow), wide)
            for array in arrays[:2]
        )
        joined = builder.or_(low, builder.shl(high, _whole(wide, 32)))
        _store(builder, joined, builder.gep(arrays[2].data, [arguments[3]]))
        return context.get_dummy_value()

    return types.void(z, s, pairs, types.int64), generate


_join_pairs = cast("Callable[..., None]", intrinsic(_typed_join_pairs))


def _typed_sum(_typing: Any, terms: Any, features: Any, out: Any, lanes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = signature.args[3].count
        array = _array(context, builder, signature.args[0], arguments[0])
        given = array.data.type.pointee
        # Of one configuration the eight partial sums are one vector; of more, eight vectors.
        width, parts = (WIDTH, 1) if count == 1 else (count, WIDTH)
        kind = ir.VectorType(_DOUBLE, width)
        sums = [
            cgutils.alloca_once_value(builder, ir.Constant(kind, [0.0] * width))
            for _ in range(parts)
        ]
        blocks = builder.sdiv(arguments[1], _I64(WIDTH))
        with cgutils.for_range(builder, blocks) as loop:
            block = builder.mul(loop.index, loop.index.type(WIDTH * count))
            for part, partial in enumerate(sums):
                place = builder.add(block, block.type(part * width))
                term = _load(builder, builder.gep(array.data, [place]), ir.VectorType(given, width))
                if not isinstance(given, ir.DoubleType):
                    term = builder.fpext(term, kind)
                builder.store(builder.fadd(builder.load(partial), term), partial)
        found = [builder.load(partial) for partial in sums]
        for half in (4, 2, 1):
            if count == 1:
                halves = ir.VectorType(_I32, half)
                low, high = (
                    builder.shuffle_vector(
                        found[0],
                        found[0],
                        ir.Constant(halves, list(range(first, first + half))),
                    )
                    for first in (0, half)
                )
                found = [builder.fadd(low, high)]
            else:
                found = [builder.fadd(found[j], found[j + half]) for j in range(half)]
        _store(builder, found[0], _array(context, builder, signature.args[2], arguments[2]).data)
        return context.get_dummy_value()

    return types.void(terms, types.int64, out, lanes), generate


sum_lanes = cast("Callable[..., None]", intrinsic(_typed_sum))
"""``sum_lanes(terms, features, out, lanes)``: float64 sums over features, by configuration.

Feature f goes to partial sum f mod 8, and the eight are added as ((0 + 4) + (2 + 6)) + ((1 + 5) +
(3 + 7)): always this order, so a sum does not depend on how many configurations or rows there are.
``features`` is a multiple of eight; the terms of missing features are 0.
"""


def _float_bits(_typing: Any, number: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _I32)

    return types.uint32(types.float32), generate


def _float_of_bits(_typing: Any, bits: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.uint32), generate


_bits_of = cast("Callable[[np.float32], np.uint32]", intrinsic(_float_bits))
_of_bits = cast("Callable[[np.uint32], np.float32]", intrinsic(_float_of_bits))

_EXPONENT = 0x7F800000
_HALF_STEP = 2.0**-55
"""From an int32 to half a unit in the last place of a float32: 2^-32 of it, times 2^-23."""


def unbiased_sum(number: Any, change: Any, draw: Any) -> Any:
    """Return ``number + change``, rounded up or down by ``draw`` so that the mean is exact.

    In float32 a small change to a large number is lost by rounding to the nearest, each time; here
    it is made with the probability that makes up for it. In float64 the plain sum is returned.

    Parameters
    ----------
    number, change : float32 or float64
    draw : uint32
        Uniform.

    References
    ----------
    Gupta et al., Deep Learning with Limited Numerical Precision, ICML 2015, section 3
    (stochastic rounding).
    """
    raise NotImplementedError("for compiled code only")


@overload(unbiased_sum, inline="always")
def _unbiased_sum(number: Any, change: Any, draw: Any) -> Any:
    if number == types.float32:

        def rounded(number: Any, change: Any, draw: Any) -> Any:
            power = _of_bits(np.uint32(_bits_of(number) & np.uint32(_EXPONENT)))
            dither = np.float32(np.int32(draw)) * np.float32(_HALF_STEP) * power
            return np.float32(number + np.float32(change + dither))

        return rounded

    def plain(number: Any, change: Any, draw: Any) -> Any:
        return number + change

    return plain


def gather(flat: Any, coming: Any, at: int, width: int, z: Any, s: Any, lanes: Any) -> None:
    """Copy the state of a row's slots into lanes.

    Parameters
    ----------
    flat : ndarray of shape (2**bits * 2 * K,), float32 or float64
        The state as one dimension.
    coming : ndarray, uint32, one dimension
        Slots; the row's begin at ``at``, and there are ``width`` of them, a multiple of eight.
    z, s : ndarray of shape (width * K,)
    lanes : tuple of K floats
    """
    raise NotImplementedError("for compiled code only")


@overload(gather, inline="always")
def _gather(flat: Any, coming: Any, at: Any, width: Any, z: Any, s: Any, lanes: Any) -> Any:
    if flat.dtype == types.float32 and lanes.count == 1:

        def pairs(flat: Any, coming: Any, at: Any, width: Any, z: Any, s: Any, lanes: Any) -> Any:
            for feature in range(0, width, WIDTH):
                _gather_pairs(flat, coming, at + feature, z, s, feature)

        return pairs

    def vectors(flat: Any, coming: Any, at: Any, width: Any, z: Any, s: Any, lanes: Any) -> Any:
        count = len(lanes)
        for feature in range(width):
            place = np.int64(coming[at + feature]) * (2 * count)
            _move(z, feature * count, flat, place, lanes)
            _move(s, feature * count, flat, place + count, lanes)

    return vectors


def scatter(
    whole: Any, coming: Any, at: int, width: int, z: Any, s: Any, next_z: Any, next_s: Any,
    gathered: Any, computed: Any, met_again: Any, lanes: Any,
) -> int:  # fmt: skip
    """Copy lanes back into a row's slots, except where another feature has been meanwhile.

    A slot whose state is not the one that was gathered belongs to two features of the row; it is
    left as it is and listed, for the caller to visit again.

    Parameters
    ----------
    whole : ndarray
        From :func:`whole_slots`.
    coming, at, width, lanes
        See :func:`gather`; the features here are without the padding.
    z, s, next_z, next_s : ndarray of shape (padded width * K,)
        As gathered, and as computed from it.
    gathered, computed : ndarray of shape (padded width,), uint64
        Scratch.
    met_again : ndarray of shape (width,), int64
        Receives the features that were left out, in order.

    Returns
    -------
    int
        How many were left out.
    """
    raise NotImplementedError("for compiled code only")


@overload(scatter, inline="always")
def _scatter(
    whole: Any, coming: Any, at: Any, width: Any, z: Any, s: Any, next_z: Any, next_s: Any,
    gathered: Any, computed: Any, met_again: Any, lanes: Any,
) -> Any:  # fmt: skip
    if whole.dtype == types.uint64:

        def joined(
            whole: Any, coming: Any, at: Any, width: Any, z: Any, s: Any, next_z: Any,
            next_s: Any, gathered: Any, computed: Any, met_again: Any, lanes: Any,
        ) -> Any:  # fmt: skip
            for feature in range(0, width, WIDTH):
                _join_pairs(z, s, gathered, feature)
                _join_pairs(next_z, next_s, computed, feature)
            left_out = 0
            for feature in range(width):
                slot = coming[at + feature]
                if whole[slot] == gathered[feature]:
                    whole[slot] = computed[feature]
                else:
                    met_again[left_out] = feature
                    left_out += 1
            return left_out

        return joined

    def vectors(
        whole: Any, coming: Any, at: Any, width: Any, z: Any, s: Any, next_z: Any, next_s: Any,
        gathered: Any, computed: Any, met_again: Any, lanes: Any,
    ) -> Any:  # fmt: skip
        count = len(lanes)
        left_out = 0
        for feature in range(width):
            place = np.int64(coming[at + feature]) * (2 * count)
            lane = feature * count
            if _equal(whole, place, z, lane, lanes) and _equal(
                whole, place + count, s, lane, lanes
            ):
                _move(whole, place, next_z, lane, lanes)
                _move(whole, place + count, next_s, lane, lanes)
            else:
                met_again[left_out] = feature
                left_out += 1
        return left_out

    return vectors


def whole_slots(flat: Any, lanes: Any) -> Any:
    """Return the state as :func:`scatter` writes it: one number a slot where 64 bits hold it."""
    raise NotImplementedError("for compiled code only")


@overload(whole_slots)
def _whole_slots(flat: Any, lanes: Any) -> Any:
    if flat.dtype == types.float32 and lanes.count == 1:

        def pairs(flat: Any, lanes: Any) -> Any:
            return flat.view(np.uint64)

        return pairs

    def numbers(flat: Any, lanes: Any) -> Any:
        return flat

    return numbers


def repeat(numbers: Any, features: int, out: Any, lanes: Any) -> None:
    """Write K numbers beside each other, once for every feature."""
    raise NotImplementedError("for compiled code only")


@overload(repeat, inline="always")
def _repeat(numbers: Any, features: Any, out: Any, lanes: Any) -> Any:
    if lanes.count == 1:

        def filled(numbers: Any, features: Any, out: Any, lanes: Any) -> Any:
            number = numbers[0]
            for feature in range(features):
                out[feature] = number

        return filled

    def vectors(numbers: Any, features: Any, out: Any, lanes: Any) -> Any:
        for feature in range(features):
            _move(out, feature * len(lanes), numbers, 0, lanes)

    return vectors
