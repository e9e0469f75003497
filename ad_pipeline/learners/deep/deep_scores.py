"""Scores of wide & deep as a bidder computes them: embeddings looked up, layers multiplied.

NumPy and Numba only, so that a scorer needs no JAX. What is trained where, and how an export is
laid out on disk, does not belong here.

**A row's score does not depend on its company, to the bit.** Every unit of every layer is one chain
of fused multiply-adds, begun at its bias and taken over the inputs in order; rows and units lie
side by side in registers and never meet. Neither the number of rows, nor the block a row falls
into, nor the machine's vector length can show in a score: a fused multiply-add rounds once, in
hardware or in software. A matrix product of a library promises none of this.

**Blocks.** Rows are taken :data:`ROWS` at a time, the last block padded, against panels of
:data:`PANEL` units whose weights lie one after the other: twelve vectors of sums, two of weights
and one of an input are what sixteen registers hold. Up to :data:`CHUNK_ROWS` rows pass a layer
before the next one, so that its weights come from the far cache once for all of them.

**Slots never learnt** have numbers too: wide weights of 0 and embeddings drawn by hash of (seed,
slot, column), so that training and scoring see the same ones and neither stores them.

References
----------
Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, ACM TOMS 34(3), 2008
(panels and register blocks). Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators,
OOPSLA 2014 (the finalizer of the hash).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from ad_pipeline.learners.ftrl.ftrl_expert import link
from ad_pipeline.settings import DelayedLoss, LinkedLoss

LANES = 8
"""Numbers of a vector."""

PANEL = 16
"""Units whose sums a block holds side by side."""

ROWS = 6
"""Rows of a block."""

CHUNK_ROWS = 48
"""Rows that pass a layer together: their units, 400 wide, take 75 KiB."""

GATHERED_ROWS = 240
"""Rows whose embeddings are laid out at a time; a multiple of :data:`CHUNK_ROWS`."""

Gather = Callable[[np.ndarray], np.ndarray]
"""From slots, uint32 (n, F), to their numbers, float32 (n, F, heads + E)."""

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ALL = 2**64 - 1

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)


class Unlearnt(NamedTuple):
    """How the numbers of a slot come about that no row has taught anything.

    Attributes
    ----------
    heads : int
        Wide weights of a slot, one a head: 0 until it is learnt.
    scale : float
        Its embedding is uniform in ``[-scale, scale)``.
    seed : int
        Same seed, same numbers.
    """

    heads: int
    scale: float
    seed: int

    @property
    def word(self) -> np.uint64:
        """The seed, scrambled: two seeds share no draws."""
        mixed = (self.seed + _GOLDEN) & _ALL
        mixed = ((mixed ^ (mixed >> 30)) * _FIRST) & _ALL
        mixed = ((mixed ^ (mixed >> 27)) * _SECOND) & _ALL
        return np.uint64(mixed ^ (mixed >> 31))


class _Panels(NamedTuple):
    """All layers as the kernel walks them: arrays of one dimension, and the units of each layer."""

    weights: np.ndarray
    biases: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class DenseLayers:
    """The deep part behind the embeddings.

    Attributes
    ----------
    weights : tuple of ndarray of shape (inputs, units), float32
        From the embeddings, F * E inputs, to the heads, which are the units of the last layer.
    biases : tuple of ndarray of shape (units,), float32
    leak : float
        Slope of the rectifier below 0; the last layer has no rectifier.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    leak: float

    @property
    def heads(self) -> int:
        """Units of the last layer."""
        return len(self.biases[-1])

    @cached_property
    def panels(self) -> _Panels:
        """The same numbers in the order in which the kernel reads them; laid out once."""
        panels: list[np.ndarray] = []
        biases: list[np.ndarray] = []
        for weights, bias in zip(self.weights, self.biases, strict=True):
            inputs, units = weights.shape
            count = -(-units // PANEL)
            padded = np.zeros((inputs, count * PANEL), np.float32)
            padded[:, :units] = weights
            panels.append(padded.reshape(inputs, count, PANEL).transpose(1, 0, 2).ravel())
            biases.append(np.pad(bias, (0, count * PANEL - units)))
        units = [self.weights[0].shape[0], *map(len, self.biases)]
        return _Panels(
            np.concatenate(panels), np.concatenate(biases), np.array(units, dtype=np.int64)
        )


def flat(array: np.ndarray) -> np.ndarray:
    """Return an array as kernels read it: of one dimension, and read-only: they compile once."""
    view = array.reshape(-1).view()
    view.flags.writeable = False
    return view


def bitmap_of(slots: np.ndarray, bits: int) -> np.ndarray:
    """Return slots below 2**bits as a bitmap, uint64 (ceil(2**bits / 64),); see ExportedDeep."""
    there = np.zeros(max(1 << bits, 64), np.uint8)
    there[slots] = 1
    return np.packbits(there, bitorder="little").view("<u8").astype(np.uint64)


def scores_of_heads(gathered: np.ndarray, layers: DenseLayers) -> np.ndarray:
    """Return every head's score: the sum of the row's wide weights and the deep part's output.

    Parameters
    ----------
    gathered : ndarray of shape (n, F, heads + E), float32
        Numbers of each row's slots: wide weights first.
    layers : DenseLayers
        Of F * E inputs.

    Returns
    -------
    ndarray of shape (n, heads), float32
    """
    panels = layers.panels
    out = np.empty((len(gathered), layers.heads), np.float32)
    _scores(gathered, panels.weights, panels.biases, panels.units, np.float32(layers.leak), out)
    return out


def logits(
    gather: Gather,
    slots: np.ndarray,
    layers: DenseLayers,
    loss: LinkedLoss | DelayedLoss,
    horizon_days: float,
) -> np.ndarray:
    """Return the log odds of rows under a loss's link.

    Parameters
    ----------
    gather : callable
    slots : ndarray of shape (n, F), uint32
    layers : DenseLayers
    loss : str
        What the numbers were trained for: it has as many heads as the layers.
    horizon_days : float
        Window and lateness, for a loss whose link reads them.

    Returns
    -------
    ndarray of shape (n,), float64
    """
    scores = np.empty((layers.heads, len(slots)))
    for start in range(0, len(slots), GATHERED_ROWS):
        rows = slice(start, start + GATHERED_ROWS)
        scores[:, rows] = scores_of_heads(gather(slots[rows]), layers).T
    link(loss, scores[0], scores[1] if layers.heads > 1 else None, horizon_days)
    return scores[0]


def _at(context: Any, builder: Any, signature: Any, arguments: Any, place: int) -> Any:
    array = context.make_array(signature.args[place])(context, builder, arguments[place])
    return builder.gep(array.data, [arguments[place + 1]])


def _load(builder: Any, pointer: Any) -> Any:
    return builder.load(builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)


def _spread(builder: Any, number: Any) -> Any:
    """Return a vector with the same number everywhere."""
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, number, _I32(0))
    everywhere = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, nothing, everywhere)


def _typed_block(
    _typing: Any, x: Any, x_at: Any, x_stride: Any, weights: Any, weights_at: Any, depth: Any,
    biases: Any, biases_at: Any, out: Any, out_at: Any, out_stride: Any, leak: Any,
) -> Any:  # fmt: skip
    vectors = PANEL // LANES

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x_stride, depth, out_stride, leak = (arguments[place] for place in (2, 5, 10, 11))
        first_x, first_weights, first_bias, first_out = (
            _at(context, builder, signature, arguments, place) for place in (0, 3, 6, 8)
        )
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32"
        )
        begun = [
            _load(builder, builder.gep(first_bias, [_I64(part * LANES)])) for part in range(vectors)
        ]
        sums = [
            [cgutils.alloca_once(builder, _VECTOR) for _ in range(vectors)] for _ in range(ROWS)
        ]
        for row in sums:
            for part, number in zip(row, begun, strict=True):
                builder.store(number, part)
        rows = [builder.gep(first_x, [builder.mul(x_stride, _I64(row))]) for row in range(ROWS)]
        with cgutils.for_range(builder, depth) as loop:
            at = builder.gep(first_weights, [builder.mul(loop.index, _I64(PANEL))])
            factors = [
                _load(builder, builder.gep(at, [_I64(part * LANES)])) for part in range(vectors)
            ]
            for row, pointer in zip(sums, rows, strict=True):
                given = _spread(builder, builder.load(builder.gep(pointer, [loop.index])))
                for part, factor in zip(row, factors, strict=True):
                    added = builder.call(multiply_add, [given, factor, builder.load(part)])
                    builder.store(added, part)
        slope = _spread(builder, leak)
        for place, row in enumerate(sums):
            target = builder.gep(first_out, [builder.mul(out_stride, _I64(place))])
            for part, number in enumerate(map(builder.load, row)):
                leaked = builder.fmul(number, slope)
                larger = builder.fcmp_ordered(">", number, leaked)
                pointer = builder.gep(target, [_I64(part * LANES)])
                builder.store(
                    builder.select(larger, number, leaked),
                    builder.bitcast(pointer, _VECTOR.as_pointer()),
                    align=4,
                )
        return context.get_dummy_value()

    place = types.int64
    signature = types.void(
        x, place, place, weights, place, place, biases, place, out, place, place, types.float32
    )
    return signature, generate


_block = cast("Callable[..., None]", intrinsic(_typed_block))
"""``_block(x, at, stride, weights, at, depth, biases, at, out, at, stride, leak)``.

:data:`ROWS` rows of ``depth`` inputs against one panel: biases plus inputs times weights, rectified
with a leak below 1 (1 is no rectifier). All arrays have one dimension, and nothing is checked.
"""


@njit(cache=True, nogil=True, error_model="numpy")
def _scores(
    gathered: np.ndarray,
    weights: np.ndarray,
    biases: np.ndarray,
    units: np.ndarray,
    leak: np.float32,
    out: np.ndarray,
) -> None:
    n_rows, fields, width = gathered.shape
    heads = out.shape[1]
    embedding = width - heads
    stride = (units.max() + PANEL - 1) // PANEL * PANEL
    x = np.zeros(CHUNK_ROWS * stride, np.float32)
    y = np.zeros(CHUNK_ROWS * stride, np.float32)
    for start in range(0, n_rows, CHUNK_ROWS):
        count = min(CHUNK_ROWS, n_rows - start)
        padded = (count + ROWS - 1) // ROWS * ROWS
        for row in range(count):
            for field in range(fields):
                for number in range(embedding):
                    x[row * stride + field * embedding + number] = gathered[
                        start + row, field, heads + number
                    ]
        # Rows of padding hold what was there before: nobody reads what comes of them.
        weights_at = biases_at = 0
        for layer in range(len(units) - 1):
            depth = units[layer]
            slope = leak if layer < len(units) - 2 else np.float32(1.0)
            for unit in range(0, units[layer + 1], PANEL):
                for row in range(0, padded, ROWS):
                    _block(
                        x, row * stride, stride, weights, weights_at, depth, biases, biases_at,
                        y, row * stride + unit, stride, slope,
                    )  # fmt: skip
                weights_at += depth * PANEL
                biases_at += PANEL
            x, y = y, x
        for row in range(count):
            for head in range(heads):
                wide = np.float32(0.0)
                for field in range(fields):
                    wide += gathered[start + row, field, head]
                out[start + row, head] = wide + x[row * stride + head]


@register_jitable(inline="always")
def draw_unlearnt(out, at, slot, heads, lanes, scale, seed):
    """Write what :class:`Unlearnt` says of a slot to ``out`` from ``at`` on; for compiled code.

    Parameters
    ----------
    out : ndarray of one dimension, float32
    at : int
    slot : uint64
    heads, scale, seed
        Of :class:`Unlearnt`, the scale as float32 and the seed as its word.
    lanes : tuple of E floats
        Its length is E, known to the compiler.
    """
    for head in range(heads):
        out[at + head] = np.float32(0.0)
    unit = scale * np.float32(2.0**-23)
    first = seed ^ (slot * np.uint64(_FIRST))
    for column in range(0, len(lanes), 2):
        mixed = first + np.uint64(column + 1) * np.uint64(_GOLDEN)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_FIRST)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SECOND)
        mixed ^= mixed >> np.uint64(31)
        # Two draws of 24 bits, as many as a float32 holds.
        high = np.int64(mixed >> np.uint64(40)) - np.int64(1 << 23)
        out[at + heads + column] = np.float32(high) * unit
        if column + 1 < len(lanes):
            low = np.int64(mixed & np.uint64(0xFFFFFF)) - np.int64(1 << 23)
            out[at + heads + column + 1] = np.float32(low) * unit


def _typed_population_count(_typing: Any, word: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(word), generate


_population_count = cast("Callable[[np.uint64], np.uint64]", intrinsic(_typed_population_count))
"""Number of set bits; for compiled code only."""


def _typed_fetch(_typing: Any, numbers: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        fetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _I32, _I32, _I32]),
            "llvm.prefetch.p0",
        )
        pointer = _at(context, builder, signature, arguments, 0)
        # To be read (0), and soon used again (3), by data instructions (1).
        address = builder.bitcast(pointer, cgutils.voidptr_t)
        builder.call(fetch, [address, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(numbers, types.int64), generate


fetch = cast("Callable[..., None]", intrinsic(_typed_fetch))
"""``fetch(numbers, at)``: ask for the cache line of a number, in an array of one dimension, without
waiting for it; for compiled code only."""


@njit(cache=True, nogil=True, error_model="numpy")
def gather_kept(
    slots: np.ndarray,
    shift: np.uint32,
    present: np.ndarray,
    rank: np.ndarray,
    kept: np.ndarray,
    heads: int,
    lanes: tuple[float, ...],
    scale: np.float32,
    seed: np.uint64,
    out: np.ndarray,
) -> None:
    """Write the numbers of slots, from those of the slots that were learnt.

    Parameters
    ----------
    slots : ndarray of shape (n,), uint32
        Each below the table's slots shifted back: nothing is checked here.
    shift : uint32
        A slot of the table is a slot given without so many of its lowest bits.
    present : ndarray of shape (words,), uint64
        Bit ``slot % 64`` of word ``slot // 64``: the table's slot was learnt.
    rank : ndarray of shape (words,), uint32
        Learnt slots before the word.
    kept : ndarray of shape (learnt slots * (heads + E),), float32
        Numbers of the learnt slots, in order of slot.
    heads, lanes, scale, seed
        See :func:`draw_unlearnt`.
    out : ndarray of shape (n * (heads + E),), float32
    """
    one = np.uint64(1)
    width = heads + len(lanes)
    places = np.empty(len(slots), np.int64)
    for feature in range(len(slots)):
        slot = np.uint64(slots[feature] >> shift)
        word, bit = slot >> np.uint64(6), slot & np.uint64(63)
        bits = present[word]
        places[feature] = -1
        if (bits >> bit) & one:
            before = _population_count(bits & ((one << bit) - one))
            places[feature] = np.int64(np.uint64(rank[word]) + before) * width
            fetch(kept, places[feature])
            fetch(kept, places[feature] + width - 1)
    for feature in range(len(slots)):
        at, place = feature * width, places[feature]
        if place >= 0:
            for head in range(heads):
                out[at + head] = kept[place + head]
            for column in range(len(lanes)):
                out[at + heads + column] = kept[place + heads + column]
        else:
            slot = np.uint64(slots[feature] >> shift)
            draw_unlearnt(out, at, slot, heads, lanes, scale, seed)
