"""The table of wide & deep: wide weights and embeddings of slots, and the step that learns them.

It lies outside JAX because what it does is not arithmetic but memory: a batch meets some thousand
of 2^24 slots, and only those may be touched (``docs/adr/0011``). Which slots a row has and what its
gradient is belong to :mod:`.wide_deep`; how slots are looked up, to :mod:`.deep_scores`.

**Row-wise AdaGrad.** A slot keeps one sum of squares for each wide weight and one for its whole
embedding, to which a step adds the *mean* of the squared gradients over the embedding's numbers:

    n ← n + mean_j g_j^2,    v_j ← v_j - rate g_j / √(n + n0)

One number instead of E, and a rate that is the slot's: slots differ in how often they are seen, the
numbers of one embedding hardly do. n0 is :data:`FIRST_SQUARES`, as β is in FTRL: a slot's first
step is as large as its gradient says, not always as large as the rate.

**Duplicates.** Gradients of a slot that a batch meets more than once are summed, in order of rows
and fields, before its one step: the batch's gradient, squared once.

**Slots never learnt** are not stored: their numbers are drawn by hash (:class:`.deep_scores.
Unlearnt`) whenever they are read. A bitmap says which slots were learnt; nothing is written for all
slots, neither when a table is made nor later.

References
----------
Duchi, Hazan and Singer, Adaptive Subgradient Methods, JMLR 12, 2011. Naumov et al., Deep Learning
Recommendation Model for Personalization and Recommendation Systems, arXiv 1906.00091, 2019, whose
public code has the row-wise step. McMahan et al., KDD 2013 (β).
"""

from collections.abc import Mapping

import numpy as np
from numba import njit

from ad_pipeline.learners.deep.deep_scores import Unlearnt, bitmap_of, draw_unlearnt, fetch, flat
from ad_pipeline.learners.ftrl.slot_memory import aligned_zeros

FIRST_SQUARES = 1.0
"""n0: of gradients that are sums over a batch's rows, whose slopes are mostly below 1."""

AHEAD = 24
"""Slots between the one whose memory is fetched and the one that is read or learnt."""

_LINE = 16
"""Numbers of a cache line."""

_SPREAD = np.uint32(0x9E3779B1)
_EMPTY = np.int32(-1)


class EmbeddingTable:
    """2^bits slots, of which those that were learnt have numbers of their own.

    Parameters
    ----------
    bits : int
    embedding : int
        E, numbers of an embedding.
    rate : float
        AdaGrad's.
    unlearnt : Unlearnt
        Wide weights of a slot, and the numbers of slots that were not learnt.

    Attributes
    ----------
    present : ndarray of shape (ceil(2**bits / 64),), uint64
        Bit ``slot % 64`` of word ``slot // 64``: the slot was learnt.
    """

    def __init__(self, bits: int, embedding: int, rate: float, unlearnt: Unlearnt) -> None:
        self.bits = bits
        self.embedding = embedding
        self.rate = rate
        self.unlearnt = unlearnt
        self.present = np.zeros(max((1 << bits) // 64, 1), np.uint64)
        # All that a step reads and writes of a slot lies in one line of the cache where it fits.
        filled = self.width + unlearnt.heads + 1
        stride = 4
        while stride < filled:
            stride = stride * 2 if stride < _LINE else stride + _LINE
        self._cells = aligned_zeros((1 << bits, stride), "float32")
        self._lanes = (0.0,) * embedding

    @property
    def width(self) -> int:
        """Numbers of a slot: heads + E."""
        return self.unlearnt.heads + self.embedding

    @property
    def numbers(self) -> np.ndarray:
        """Wide weights and embeddings, float32 (2**bits, heads + E); 0 where nothing was learnt."""
        return self._cells[:, : self.width]

    @property
    def squares(self) -> np.ndarray:
        """Sums of squared gradients, float32 (2**bits, heads + 1): of wide weights, embeddings."""
        return self._cells[:, self.width : self.width + self.unlearnt.heads + 1]

    @property
    def learnt(self) -> np.ndarray:
        """Slots that were learnt, ascending, uint32."""
        bits = np.unpackbits(self.present.astype("<u8").view(np.uint8), bitorder="little")
        return np.flatnonzero(bits).astype(np.uint32)

    def gather(self, slots: np.ndarray) -> np.ndarray:
        """Return the numbers of slots, uint32 (n, F) below 2**bits; float32 (n, F, heads + E)."""
        out = np.empty((*slots.shape, self.width), np.float32)
        unlearnt = self.unlearnt
        _gather(
            flat(slots), flat(self.present), flat(self._cells), self._cells.shape[1],
            unlearnt.heads, self._lanes, np.float32(unlearnt.scale), unlearnt.word,
            out.reshape(-1),
        )  # fmt: skip
        return out

    def apply(self, slots: np.ndarray, gradients: np.ndarray) -> None:
        """Take one step of row-wise AdaGrad on every slot of a batch.

        A slot whose gradients sum to 0 everywhere stays as it is, learnt or not.

        Parameters
        ----------
        slots : ndarray of shape (n, F), uint32
            Below 2**bits.
        gradients : ndarray of shape (n, F, heads + E), float32
            Of the batch's loss by the numbers that :meth:`gather` returned.
        """
        unlearnt = self.unlearnt
        _step(
            flat(slots), flat(gradients), self.present, self._cells.reshape(-1),
            self._cells.shape[1], unlearnt.heads, self._lanes, np.float32(unlearnt.scale),
            unlearnt.word, np.float32(self.rate), np.float32(FIRST_SQUARES),
        )  # fmt: skip

    def begin_at(self, other: "EmbeddingTable") -> None:
        """Make an untouched table that of another, which may have fewer wide weights a slot.

        Those that the other lacks are untrained.
        """
        heads, others = self.unlearnt.heads, other.unlearnt.heads
        learnt = other.learnt
        self.numbers[learnt, :others] = other.numbers[learnt, :others]
        self.numbers[learnt, heads:] = other.numbers[learnt, others:]
        self.squares[learnt, :others] = other.squares[learnt, :others]
        self.squares[learnt, heads:] = other.squares[learnt, others:]
        self.unlearnt = self.unlearnt._replace(scale=other.unlearnt.scale)
        self.present[:] = other.present

    def state(self) -> dict[str, np.ndarray]:
        """Return the slots that were learnt, with their numbers and sums of squares."""
        learnt = self.learnt
        return {
            "slots": learnt,
            "numbers": self.numbers[learnt],
            "squares": self.squares[learnt],
        }

    def fill(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Make an untouched table that of a :meth:`state`."""
        learnt = np.asarray(arrays["slots"])
        self.numbers[learnt] = arrays["numbers"]
        self.squares[learnt] = arrays["squares"]
        self.present[:] = bitmap_of(learnt, self.bits)


@njit(cache=True, nogil=True, error_model="numpy")
def _gather(
    slots: np.ndarray,
    present: np.ndarray,
    cells: np.ndarray,
    stride: int,
    heads: int,
    lanes: tuple[float, ...],
    scale: np.float32,
    seed: np.uint64,
    out: np.ndarray,
) -> None:
    width = heads + len(lanes)
    for feature in range(min(AHEAD, len(slots))):
        fetch(cells, np.int64(slots[feature]) * stride)
    for feature in range(len(slots)):
        if feature + AHEAD < len(slots):
            fetch(cells, np.int64(slots[feature + AHEAD]) * stride)
        slot = np.uint64(slots[feature])
        at, place = feature * width, np.int64(slot) * stride
        if (present[slot >> np.uint64(6)] >> (slot & np.uint64(63))) & np.uint64(1):
            for head in range(heads):
                out[at + head] = cells[place + head]
            for column in range(len(lanes)):
                out[at + heads + column] = cells[place + heads + column]
        else:
            draw_unlearnt(out, at, slot, heads, lanes, scale, seed)


@njit(cache=True, nogil=True, error_model="numpy")
def _distinct(slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct slots of (n,), in order of appearance, and each one's place in them."""
    bits = 4
    while (1 << bits) < 2 * len(slots):
        bits += 1
    shift = np.uint32(32 - bits)
    last = np.uint32((1 << bits) - 1)
    buckets = np.full(1 << bits, _EMPTY, np.int32)
    met = np.empty(len(slots), np.uint32)
    places = np.empty(len(slots), np.int32)
    count = np.int32(0)
    for feature in range(len(slots)):
        slot = slots[feature]
        at = np.uint32(slot * _SPREAD) >> shift
        while buckets[at] != _EMPTY and met[buckets[at]] != slot:
            at = np.uint32(at + np.uint32(1)) & last
        if buckets[at] == _EMPTY:
            buckets[at] = count
            met[count] = slot
            count += np.int32(1)
        places[feature] = buckets[at]
    return met[:count], places


@njit(cache=True, nogil=True, error_model="numpy")
def _step(
    slots: np.ndarray,
    gradients: np.ndarray,
    present: np.ndarray,
    cells: np.ndarray,
    stride: int,
    heads: int,
    lanes: tuple[float, ...],
    scale: np.float32,
    seed: np.uint64,
    rate: np.float32,
    first_squares: np.float32,
) -> None:
    width = heads + len(lanes)
    met, places = _distinct(slots)
    sums = np.zeros(len(met) * width, np.float32)
    for feature in range(len(slots)):
        to, at = places[feature] * width, feature * width
        for head in range(heads):
            sums[to + head] += gradients[at + head]
        for column in range(len(lanes)):
            sums[to + heads + column] += gradients[at + heads + column]
    for coming in range(min(AHEAD, len(met))):
        fetch(cells, np.int64(met[coming]) * stride)
    for index in range(len(met)):
        if index + AHEAD < len(met):
            fetch(cells, np.int64(met[index + AHEAD]) * stride)
        at = index * width
        moves = False
        for column in range(width):
            moves |= sums[at + column] != np.float32(0.0)
        if not moves:
            continue
        slot = np.uint64(met[index])
        place = np.int64(slot) * stride
        word, bit = slot >> np.uint64(6), np.uint64(1) << (slot & np.uint64(63))
        if not present[word] & bit:
            present[word] |= bit
            draw_unlearnt(cells, place, slot, heads, lanes, scale, seed)
        squares = place + width
        for head in range(heads):
            gradient = sums[at + head]
            cells[squares + head] += gradient * gradient
            slowed = rate / np.sqrt(cells[squares + head] + first_squares)
            cells[place + head] -= slowed * gradient
        squared = np.float32(0.0)
        for column in range(len(lanes)):
            squared += sums[at + heads + column] * sums[at + heads + column]
        cells[squares + heads] += squared / np.float32(len(lanes))
        slowed = rate / np.sqrt(cells[squares + heads] + first_squares)
        for column in range(len(lanes)):
            cells[place + heads + column] -= slowed * sums[at + heads + column]
