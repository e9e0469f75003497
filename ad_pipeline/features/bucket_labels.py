"""What each bucket of a number, a rate, a count or a vector stands for, in words.

For whoever names slots: the inverse dictionary and the explanation of a score. Which bucket a value
falls into is decided by :mod:`.encoding`.
"""

import math

from ad_pipeline import hashing
from ad_pipeline.features import encoding_kernels as kernels


def number_label(word: int) -> str:
    """Return the range of numbers that a bucket stands for, e.g. ``[1, 1.378)``."""
    if word == kernels.MISSING_WORD:
        return hashing.MISSING_LABEL
    if word in (kernels.INFINITE_WORD, -1 - kernels.INFINITE_WORD):
        return "inf" if word > 0 else "-inf"
    bucket = word if word >= 0 else -1 - word
    # The highest bucket ends at 2^1024, which float64 does not have.
    last = 1024 * kernels.NUMBER_STEPS
    low, high = (
        math.inf if edge >= last else 2.0 ** (edge / kernels.NUMBER_STEPS) - 1
        for edge in (bucket, bucket + 1)
    )
    return f"[{low:.4g}, {high:.4g})" if word >= 0 else f"(-{high:.4g}, -{low:.4g}]"


def rate_words() -> dict[int, str]:
    """Return every bucket that a rate can fall into, and the range it stands for."""
    edge = math.log((1 - kernels.LOWEST_RATE) / kernels.LOWEST_RATE) * kernels.RATE_STEPS
    return {
        word: " to ".join(
            f"{1 / (1 + math.exp(-bound / kernels.RATE_STEPS)):.3g}" for bound in (word, word + 1)
        )
        for word in range(math.floor(-edge), math.floor(edge) + 1)
    }


def anchor_words() -> dict[int, str]:
    """Return every bucket that an int32 count of anchors can fall into, and its range."""
    return {word: f"{2**word - 1} to {2 ** (word + 1) - 2}" for word in range(32)}


def vector_words(dimension: int) -> dict[int, str]:
    """Return every bucket that a number of a d-dimensional vector can fall into, and its range.

    Ranges are of cosines.
    """
    steps = kernels.VECTOR_STEPS * math.sqrt(dimension)
    found = {
        word: f"[{max(word / steps, -1.0):.3g}, {min((word + 1) / steps, 1.0):.3g})"
        for word in range(math.floor(-steps), math.floor(steps) + 1)
    }
    return {kernels.MISSING_WORD: hashing.MISSING_LABEL} | found
