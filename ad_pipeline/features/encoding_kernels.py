"""The compiled loops of encoding: numbers to buckets and slots, counts to rates.

Explicit scalar loops over Arrow's own buffers and plain arrays, no fast-math. They stand in one
file because Numba's cache of a function knows only its own file; for the same reason none of them
hashes. What the columns mean is :mod:`.encoding`.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numba.np.numpy_support import carray

from ad_pipeline import hashing

MISSING_WORD = -(2**62)
"""Bucket of a null or NaN number."""

INFINITE_WORD = 2**61
_PRIOR_ENGAGEMENTS = 1.0
_PRIOR_ANCHORS = 100.0
LOWEST_RATE = 1e-6
RATE_STEPS = 4
NUMBER_STEPS = 4
VECTOR_STEPS = 1.5
_COUNTS_KNOWN = 1_024

_ALL_MISSING, _FLOAT64, _INT64, _INT32 = range(4)
_NUMBER_TYPES = {pa.float64(): _FLOAT64, pa.int64(): _INT64, pa.int32(): _INT32}
"""BIGINT and INTEGER too: prices of the contract are whole numbers."""


def number_contents(name: str, chunk: pa.Array) -> tuple[int, int, int, int, int]:
    """Return kind, width, places, data and size of a chunk of numbers; see `hashing.SEGMENT`."""
    if pa.types.is_null(chunk.type):
        return _ALL_MISSING, 0, 0, 0, 0
    if chunk.type not in _NUMBER_TYPES:
        raise TypeError(f"column {name} is {chunk.type}; cast it to float64 (DOUBLE) first")
    width = chunk.type.bit_width // 8
    return _NUMBER_TYPES[chunk.type], width, chunk.buffers()[1].address, 0, 0


@njit(cache=True, nogil=True)
def read_numbers(segments: np.ndarray, low: int, high: int, numbers: np.ndarray) -> None:
    """Write rows [low, high) of `hashing.SEGMENT`s of numbers into columns; NaN if missing."""
    for s in range(segments.size):
        segment = segments[s]
        start, end = max(low, segment.start), min(high, segment.end)
        if start >= end:
            continue
        to = numbers[start - low : end - low, segment.column]
        first = segment.offset + start - segment.start
        last = first + end - start
        address = hashing.pointer(segment.places)
        if segment.kind == _FLOAT64:
            to[:] = carray(address, last, np.float64)[first:]
        elif segment.kind == _INT64:
            to[:] = carray(address, last, np.int64)[first:]
        elif segment.kind == _INT32:
            to[:] = carray(address, last, np.int32)[first:]
        else:
            to[:] = math.nan
        if segment.validity != 0:
            validity = carray(hashing.pointer(segment.validity), (last + 7) >> 3, np.uint8)
            for i in range(to.size):
                if (validity[(first + i) >> 3] >> ((first + i) & 7)) & 1 == 0:
                    to[i] = math.nan


@njit(cache=True, nogil=True)
def lay_number_slots(
    segments: np.ndarray,
    low: int,
    high: int,
    known_words: np.ndarray,
    word_slots: np.ndarray,
    missing_slots: np.ndarray,
    slots: np.ndarray,
    first_place: int,
) -> bool:
    """Write the slots of numbers of rows [low, high); False if one is not among `word_slots`."""
    for s in range(segments.size):
        segment = segments[s]
        start, end = max(low, segment.start), min(high, segment.end)
        if start >= end:
            continue
        to = slots[start - low : end - low, first_place + segment.column]
        first = segment.offset + start - segment.start
        last = first + end - start
        address = hashing.pointer(segment.places)
        bitmap_bytes = 0 if segment.validity == 0 else (last + 7) >> 3
        validity = carray(hashing.pointer(segment.validity), bitmap_bytes, np.uint8)
        of_words = word_slots[1 + segment.column]
        missing: Any = missing_slots[1 + segment.column]
        if segment.kind == _FLOAT64:
            numbers = carray(address, last, np.float64)
            found = _take_slots(numbers, validity, first, known_words, of_words, missing, to)
        elif segment.kind == _INT64:
            numbers = carray(address, last, np.int64)
            found = _take_slots(numbers, validity, first, known_words, of_words, missing, to)
        elif segment.kind == _INT32:
            numbers = carray(address, last, np.int32)
            found = _take_slots(numbers, validity, first, known_words, of_words, missing, to)
        else:
            to[:] = missing
            found = True
        if not found:
            return False
    return True


@njit(cache=True, nogil=True)
def _take_slots(
    numbers: np.ndarray,
    validity: np.ndarray,
    first: int,
    known_words: np.ndarray,
    of_words: np.ndarray,
    missing: np.uint32,
    out: np.ndarray,
) -> bool:
    middle = of_words.size // 2
    for i in range(out.size):
        at = first + i
        x = np.float64(numbers[at])
        if validity.size > 0 and (validity[at >> 3] >> (at & 7)) & 1 == 0:
            out[i] = missing
        elif 0.0 <= x < known_words.size and x == np.float64(np.int64(x)):
            out[i] = of_words[known_words[np.int64(x)] + middle]
        else:
            word = _number_word(x)
            if word == MISSING_WORD:
                out[i] = missing
            elif -middle <= word < middle:
                out[i] = of_words[word + middle]
            else:
                return False
    return True


@cache
def known_words() -> np.ndarray:
    """Return the buckets of the whole numbers below `_COUNTS_KNOWN`, int64."""
    known = np.empty((1, _COUNTS_KNOWN), np.int64)
    number_words(np.arange(float(_COUNTS_KNOWN))[None], np.zeros(0, np.int64), known)
    return known[0]


@njit(cache=True, nogil=True)
def _number_word(x: float) -> int:
    if math.isnan(x):
        return MISSING_WORD
    if math.isinf(x):
        return INFINITE_WORD if x > 0 else -1 - INFINITE_WORD
    bucket = math.floor(math.log2(1.0 + abs(x)) * NUMBER_STEPS)
    return bucket if x >= 0 else -1 - bucket


@njit(cache=True, nogil=True)
def number_words(numbers: np.ndarray, known: np.ndarray, words: np.ndarray) -> None:
    """Write the log bucket of each number; `known` are those of 0, 1, 2, ... or empty."""
    # Most numbers of a log are small counts; their logarithms are taken once.
    for i in range(numbers.shape[0]):
        for j in range(numbers.shape[1]):
            x = numbers[i, j]
            if 0.0 <= x < known.size and x == np.float64(np.int64(x)):
                words[i, j] = known[np.int64(x)]
            else:
                words[i, j] = _number_word(x)


@njit(cache=True, nogil=True)
def _within_rates(rate: float) -> float:
    return min(max(rate, LOWEST_RATE), 1.0 - LOWEST_RATE)


@njit(cache=True, nogil=True)
def _smoothed_rate(
    anchors: int, engagements: int, all_anchors: int, all_engagements: int, strength: float
) -> float:
    prior = _within_rates((all_engagements + _PRIOR_ENGAGEMENTS) / (all_anchors + _PRIOR_ANCHORS))
    return _within_rates((engagements + strength * prior) / (anchors + strength))


@njit(cache=True)
def smoothed_rates(
    counts: np.ndarray, totals: np.ndarray, strength: float, rates: np.ndarray
) -> None:
    """Write the smoothed rates of :func:`.encoding.smoothed_rates`."""
    for i in range(rates.shape[0]):
        for e in range(rates.shape[1]):
            for g in range(rates.shape[2]):
                rates[i, e, g] = _smoothed_rate(
                    counts[i, e, 2 * g],
                    counts[i, e, 2 * g + 1],
                    totals[i, 2 * g],
                    totals[i, 2 * g + 1],
                    strength,
                )


@njit(cache=True, nogil=True)
def _rate_logit(
    anchors: int, engagements: int, all_anchors: int, all_engagements: int, strength: float
) -> float:
    rate = _smoothed_rate(anchors, engagements, all_anchors, all_engagements, strength)
    return math.log(rate / (1.0 - rate))


@njit(cache=True, nogil=True)
def rate_words(counts: np.ndarray, totals: np.ndarray, strength: float, words: np.ndarray) -> None:
    """Write the buckets of each entity's rate and count, goal by goal."""
    goals = counts.shape[2] // 2
    for i in range(counts.shape[0]):
        at = 0
        for e in range(counts.shape[1]):
            for g in range(goals):
                anchors = counts[i, e, 2 * g]
                logit = _rate_logit(
                    anchors,
                    counts[i, e, 2 * g + 1],
                    totals[i, 2 * g],
                    totals[i, 2 * g + 1],
                    strength,
                )
                words[i, at] = np.int64(math.floor(logit * RATE_STEPS))
                words[i, at + 1] = np.int64(math.floor(math.log2(1.0 + anchors)))
                at += 2


@njit(cache=True, nogil=True)
def dense_rows(
    numbers: np.ndarray,
    counts: np.ndarray,
    totals: np.ndarray,
    strength: float,
    matrix: np.ndarray,
) -> None:
    """Write numbers, then the logit of each rate and the logarithm of each count."""
    goals = counts.shape[2] // 2
    for i in range(matrix.shape[0]):
        at = numbers.shape[1]
        for j in range(at):
            matrix[i, j] = numbers[i, j]
        for e in range(counts.shape[1]):
            for g in range(goals):
                anchors = counts[i, e, 2 * g]
                matrix[i, at] = _rate_logit(
                    anchors,
                    counts[i, e, 2 * g + 1],
                    totals[i, 2 * g],
                    totals[i, 2 * g + 1],
                    strength,
                )
                matrix[i, at + 1] = math.log1p(np.float64(anchors))
                at += 2


@njit(cache=True, nogil=True)
def vector_numbers(users: np.ndarray, engagers: np.ndarray, numbers: np.ndarray) -> None:
    """Write users' vectors, (n, d), and their cosines with others, (n, d + 1); NaN is unknown."""
    dimension = users.shape[1]
    for i in range(users.shape[0]):
        product, of_user, of_engagers = 0.0, 0.0, 0.0
        for j in range(dimension):
            mine, theirs = np.float64(users[i, j]), np.float64(engagers[i, j])
            numbers[i, j] = mine
            product += mine * theirs
            of_user += mine * mine
            of_engagers += theirs * theirs
        # A vector without length has no direction.
        numbers[i, dimension] = math.nan
        lengths = math.sqrt(of_user) * math.sqrt(of_engagers)
        if lengths > 0.0:
            numbers[i, dimension] = min(max(product / lengths, -1.0), 1.0)


@njit(cache=True, nogil=True)
def vector_words(numbers: np.ndarray, words: np.ndarray) -> None:
    """Write the buckets of :func:`vector_numbers`, the components taken at unit length."""
    dimension = numbers.shape[1] - 1
    scale = VECTOR_STEPS * math.sqrt(np.float64(dimension))
    for i in range(numbers.shape[0]):
        squares = 0.0
        for j in range(dimension):
            squares += numbers[i, j] * numbers[i, j]
        length = math.sqrt(squares)
        for j in range(numbers.shape[1]):
            divisor = length if j < dimension and length > 0.0 else 1.0
            cosine = numbers[i, j] / divisor
            if math.isnan(cosine):
                words[i, j] = MISSING_WORD
            else:
                words[i, j] = np.int64(math.floor(min(max(cosine, -1.0), 1.0) * scale))
