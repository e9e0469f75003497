"""A click log of any length for the speed benchmarks, as Parquet and as Vowpal Wabbit's text.

26 categories of 10 to 10^6 Zipf-distributed values and 13 numbers with gaps, as in public display
logs, and clicks of a logistic truth over all of them: a learner has something to learn, and two
learners can be held to the same loss. Rows come in chunks that depend on the seed and their place
alone, so memory does not grow with the log. What is measured with it belongs to the benchmarks.
"""

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ad_pipeline.features.encoding import FeatureContract, number_words
from ad_pipeline.features.encoding_kernels import MISSING_WORD

CATEGORIES = tuple(f"c{place:02d}" for place in range(1, 27))
NUMBERS = tuple(f"n{place:02d}" for place in range(1, 14))
LABEL = "click"

CHUNK_ROWS = 122_880
"""Rows of a chunk, and of a Parquet row group: as many as DuckDB puts into one."""

_ZIPF_EXPONENT = 1.1
_SPREAD = 0x9E379  # odd, so that no two ranks below 2^20 get one text
_EFFECT = 0.25
_MISSING_SHARE = 0.05
_BASE_LOGIT = -3.5


@dataclass(frozen=True)
class ClickLog:
    """A world from which any number of rows can be drawn.

    Attributes
    ----------
    seed : int
        Of the truth and of the rows.
    """

    seed: int

    @cached_property
    def cardinalities(self) -> np.ndarray:
        """Number of values of each category, int64 of shape (26,)."""
        return np.geomspace(10, 1e6, len(CATEGORIES)).astype(np.int64)

    @cached_property
    def _values(self) -> list[pa.Array]:
        """Texts of each category's values: five hexadecimal digits, as if hashed.

        Public logs have eight; longer texts cost whoever reads text more than whoever reads codes.
        """
        longest = pa.array(
            [f"{rank * _SPREAD % 2**20:05x}" for rank in range(int(self.cardinalities[-1]))]
        )
        return [longest.slice(0, int(size)) for size in self.cardinalities]

    @cached_property
    def _effects(self) -> list[np.ndarray]:
        """What each value adds to the logit, by category."""
        generator = np.random.default_rng((self.seed, 0))
        return [generator.normal(0.0, _EFFECT, size) for size in self.cardinalities.tolist()]

    def chunk(self, index: int, rows: int = CHUNK_ROWS) -> pa.Table:
        """Draw the first rows of one chunk.

        Parameters
        ----------
        index : int
            Which chunk; at least 0.
        rows : int

        Returns
        -------
        pa.Table
            :data:`LABEL` (uint8), :data:`CATEGORIES` (dictionaries of string), :data:`NUMBERS`
            (float64 with nulls).
        """
        generator = np.random.default_rng((self.seed, 1, index))
        logits = np.full(rows, _BASE_LOGIT)
        columns: dict[str, pa.Array] = {}
        for name, size, texts, effects in zip(
            CATEGORIES, self.cardinalities.tolist(), self._values, self._effects, strict=True
        ):
            ranks = _zipf(generator.random(rows), size)
            logits += effects[ranks]
            columns[name] = pa.DictionaryArray.from_arrays(pa.array(ranks), texts)
        for place, name in enumerate(NUMBERS):
            # Counts of a heavy tail, whole, as "times seen so far" or "seconds since" are.
            numbers = np.floor(np.exp(generator.normal(0.25 * place, 1.5, rows)))
            missing = generator.random(rows) < _MISSING_SHARE
            slope = _EFFECT * (-1) ** place
            logits += np.where(missing, 0.0, slope * (np.log1p(numbers) - 0.25 * place))
            columns[name] = pa.array(numbers, mask=missing)
        clicks = generator.random(rows) < 1.0 / (1.0 + np.exp(-logits))
        return pa.table({LABEL: pa.array(clicks.astype(np.uint8)), **columns})

    def chunks(self, rows: int, first: int = 0) -> Iterator[pa.Table]:
        """Draw ``rows`` rows, chunk by chunk, from chunk ``first`` on."""
        for index, start in enumerate(range(0, rows, CHUNK_ROWS)):
            yield self.chunk(first + index, min(CHUNK_ROWS, rows - start))


def feature_contract(bits: int) -> FeatureContract:
    """Return the contract of all 39 features, with neither crosses nor rates."""
    return FeatureContract(
        categorical=CATEGORIES,
        numeric=NUMBERS,
        crosses=(),
        entities=(),
        goals=(),
        rate_strength=1.0,
        rate_window_hours=1,
        rate_lag_hours=0,
        bits=bits,
    )


def write_parquet_and_vw_text(chunks: Iterable[pa.Table], parquet: Path, text: Path) -> None:
    """Write rows twice: as a user's log, and as Vowpal Wabbit reads it.

    The text has a token a feature, a letter and the value, and numbers in the buckets that our
    encoding puts them into: what we compute while training, Vowpal Wabbit finds in the file.

    Parameters
    ----------
    chunks : iterable of pa.Table
        See :meth:`ClickLog.chunk`.
    parquet, text : Path
        Files to write.
    """
    writer: pq.ParquetWriter | None = None
    try:
        with text.open("wb") as lines:
            for chunk in chunks:
                plain = chunk.cast(_plain(chunk.schema))
                writer = writer or pq.ParquetWriter(parquet, plain.schema)
                writer.write_table(plain)
                tokens = [plain.column(name).combine_chunks() for name in CATEGORIES]
                words = number_words(
                    np.column_stack([chunk.column(name).to_numpy() for name in NUMBERS])
                )
                words[words == MISSING_WORD] = -1
                tokens += [pa.array(words[:, place]).cast(pa.string()) for place in range(13)]
                lettered = [
                    _joined(letter, token, separator="")
                    for letter, token in zip(string.ascii_letters, tokens, strict=False)
                ]
                _write_lines(lines, chunk.column(LABEL).to_numpy(), lettered)
    finally:
        if writer is not None:
            writer.close()


def write_vw_slots(text: Path, labels: np.ndarray, slots: np.ndarray) -> None:
    """Write hashed rows as Vowpal Wabbit reads them: it takes a whole number as the slot itself.

    Parameters
    ----------
    text : Path
        File to write.
    labels : ndarray of shape (n,), 0 or 1
    slots : ndarray of shape (n, F), uint32
    """
    with text.open("wb") as lines:
        for start in range(0, len(slots), CHUNK_ROWS):
            part = slots[start : start + CHUNK_ROWS]
            tokens = [pa.array(part[:, place]).cast(pa.string()) for place in range(part.shape[1])]
            _write_lines(lines, labels[start : start + CHUNK_ROWS], tokens)


def _zipf(uniform: np.ndarray, size: int) -> np.ndarray:
    """Turn uniform draws into ranks of [0, size) by the inverse of a bounded Pareto's CDF."""
    power = 1.0 - _ZIPF_EXPONENT
    tail = (size + 1.0) ** power
    return ((1.0 - uniform * (1.0 - tail)) ** (1.0 / power)).astype(np.int32) - 1


def _plain(schema: pa.Schema) -> pa.Schema:
    return pa.schema(
        [
            field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field
            for field in schema
        ]
    )


def _write_lines(lines: BinaryIO, labels: np.ndarray, tokens: list[pa.Array]) -> None:
    heads = pa.array(np.where(labels > 0, "1 |", "-1 |"))
    joined = _joined(heads, *tokens, separator=" ")
    lines.write(_joined(joined, "\n", separator="").buffers()[2])


def _joined(*parts: pa.Array | str, separator: str) -> pa.Array:
    from pyarrow import compute  # not for readers of this module's names: it takes a while

    return compute.call_function("binary_join_element_wise", [*parts, separator])
