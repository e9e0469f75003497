"""The way back from a slot to what was hashed into it, with collisions shown.

A hashed learner's weights have no names; here each value that was ever encoded is written down
beside its slot, once, in the hour of its first appearance. Slots are made by the functions and
seeds that :mod:`ad_pipeline.features.encoding` makes them by; a test holds the two to each other.
What a weight *means* belongs to the learners.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ad_pipeline import hashing
from ad_pipeline.clocks import HOUR_US, hour_of
from ad_pipeline.features.bucket_labels import (
    anchor_words,
    number_label,
    rate_words,
    vector_words,
)
from ad_pipeline.features.encoding import (
    BIAS,
    CROSS,
    Columns,
    FeatureContract,
    number_words,
    read_columns,
)
from ad_pipeline.features.tables import INVERSE_DICTIONARY, TABLES
from ad_pipeline.warehouse import Warehouse, replace_hours, rows_of, select

if TYPE_CHECKING:
    import duckdb

    from ad_pipeline.datasets import Dataset


_NEW_TOKENS = """
SELECT m.slot, m.feature, m.value, MIN(m.first_hour_us) AS first_hour_us
FROM met AS m
WHERE NOT EXISTS (
    SELECT 1
    FROM features.inverse_dictionary AS d
    WHERE d.slot = m.slot AND d.feature = m.feature AND d.value = m.value
      AND d.first_hour_us < $start_us
)
GROUP BY m.slot, m.feature, m.value
ORDER BY first_hour_us, m.feature, m.value, m.slot
"""

_MOVED_TOKENS = """
DELETE FROM features.inverse_dictionary AS d
USING met AS m
WHERE d.slot = m.slot AND d.feature = m.feature AND d.value = m.value
  AND d.first_hour_us >= $end_us
"""

_COUNTS = """
SELECT first_hour_us, COUNT(*)
FROM features.inverse_dictionary
WHERE first_hour_us >= $start_us AND first_hour_us < $end_us
GROUP BY first_hour_us
"""


_TOKENS_OF_SLOTS = """
SELECT d.slot, d.feature, d.value
FROM asked AS a
INNER JOIN features.inverse_dictionary AS d ON d.slot = a.slot
WHERE d.first_hour_us < $end_us
ORDER BY d.slot, d.feature, d.value
"""


class _Seen:
    """Tokens met so far, by feature: those that come again are let through no more."""

    def __init__(self) -> None:
        self._hashes: dict[str, np.ndarray] = {}

    def first_rows(self, feature: str, hashes: np.ndarray) -> np.ndarray:
        """Return the first row of each hash that this feature has not had before, ascending."""
        distinct, rows = np.unique(hashes, return_index=True)
        before = self._hashes.get(feature, np.zeros(0, np.uint64))
        new = ~np.isin(distinct, before, assume_unique=True)
        self._hashes[feature] = np.union1d(before, distinct[new])
        return np.sort(rows[new])


def new_tokens(contract: FeatureContract, columns: Columns) -> pa.Table:
    """Return the tokens that occur in some impressions, each once.

    Parameters
    ----------
    contract : FeatureContract
    columns : mapping of str to Arrow column of shape (n,)
        See :func:`ad_pipeline.features.encoding.read_columns`.

    Returns
    -------
    pa.Table
        slot uint32, feature string, value string: categoricals, numbers by bucket, crosses, in
        order of feature and first appearance. Values are told apart by their 64-bit hashes.
    """
    hours = np.zeros(len(next(iter(columns.values()), ())), np.int64)
    return _tokens(contract, columns, hours, _Seen()).drop_columns("first_hour_us")


def standing_tokens(contract: FeatureContract, hour_us: int) -> pa.Table:
    """Return the tokens that no impression brings: the bias, every bucket of rates and of vectors.

    Parameters
    ----------
    contract : FeatureContract
    hour_us : int
        What to say as their first hour.

    Returns
    -------
    pa.Table
        slot, feature, value, first_hour_us.
    """
    labels = {"rate": rate_words(), "anchors": anchor_words()}
    parts = [_standing(contract, BIAS, {0: ""}, hour_us)]
    for feature in contract.rate_names:
        what = feature.rpartition(".")[2]
        parts.append(_standing(contract, feature, labels[what], hour_us))
    if contract.vectors is not None:
        words = vector_words(contract.vectors.dimension)
        parts += [_standing(contract, name, words, hour_us) for name in contract.vector_names]
    return pa.concat_tables(parts)


def write_dictionary(
    warehouse: Warehouse,
    contract: FeatureContract,
    dataset: "Dataset",
    start_us: int,
    end_us: int,
    *,
    chunk_hours: int = 24,
) -> dict[int, int]:
    """Write down the tokens first seen in a range of hours; a re-run writes the same rows.

    Hours may be written in any order: a token that an earlier hour turns out to have had moves to
    that hour.

    Parameters
    ----------
    warehouse : Warehouse
    contract : FeatureContract
    dataset : Dataset
        Its first hour also gets the standing tokens.
    start_us, end_us : int
        Hours ``[start_us, end_us)``.
    chunk_hours : int
        Hours read from the warehouse at once.

    Returns
    -------
    dict of int to int
        New tokens by hour, zeros included.
    """
    warehouse.create(TABLES)
    seen = _Seen()
    parts = []
    first_us = hour_of(dataset.start_us)
    if start_us <= first_us < end_us:
        parts.append(standing_tokens(contract, first_us))
    for chunk_start in range(hour_of(start_us), end_us, chunk_hours * HOUR_US):
        chunk_end = min(chunk_start + chunk_hours * HOUR_US, end_us)
        table = _received(warehouse, contract, chunk_start, chunk_end)
        hours = _int64(table["received_us"])
        hours -= hours % HOUR_US
        parts.append(
            _tokens(contract, {name: table[name] for name in contract.columns}, hours, seen)
        )
    met = pa.concat_tables(parts) if parts else standing_tokens(contract, first_us).slice(0, 0)
    return _write(warehouse, met, hour_of(start_us), end_us)


def collisions(connection: "duckdb.DuckDBPyConnection") -> pa.Table:
    """Return the slots that more than one token falls into.

    Parameters
    ----------
    connection : DuckDBPyConnection
        From :meth:`ad_pipeline.warehouse.Warehouse.reader`.

    Returns
    -------
    pa.Table
        slot uint32, tokens int64, meanings list of ``feature=value``; fullest slots first.
    """
    return rows_of(connection, select("features.collisions"))


def tokens_of_slots(warehouse: Warehouse, end_us: int, slots: np.ndarray) -> pa.Table:
    """Return everything that fell into some slots before an hour.

    Parameters
    ----------
    warehouse : Warehouse
    end_us : int
        Start of an hour, microseconds: tokens first seen in it or later are left out, so that a
        re-run gives the same rows.
    slots : ndarray of shape (n,), uint32

    Returns
    -------
    pa.Table
        slot uint32, feature string, value string, ordered by all three.
    """
    asked = pa.table({"slot": pa.array(slots, pa.uint32())})
    with warehouse.reader() as connection:
        connection.register("asked", asked)
        return rows_of(connection, _TOKENS_OF_SLOTS, {"end_us": end_us})


def _tokens(
    contract: FeatureContract, columns: Columns, hours: np.ndarray, seen: _Seen
) -> pa.Table:
    """Return the tokens not seen before, with the hour of their first row.

    ``hours`` (n,), int64, ascend with the rows.
    """
    read = read_columns(contract, columns)
    parts = []
    for feature in contract.categorical:
        hashes = read.hashes[:, contract.text_columns.index(feature)]
        rows = seen.first_rows(feature, hashes)
        values = _texts(columns[feature], rows)
        parts.append(_table(contract, feature, hashes[rows], values, hours[rows]))
    words = number_words(read.numbers)
    number_seeds = contract.word_seeds[1 : 1 + len(contract.numeric)]
    number_hashes = hashing.hash_words(words, number_seeds)
    for j, feature in enumerate(contract.numeric):
        rows = seen.first_rows(feature, number_hashes[:, j])
        values = [number_label(word) for word in words[rows, j].tolist()]
        parts.append(_table(contract, feature, number_hashes[rows, j], values, hours[rows]))
    left, right = contract.cross_positions
    pair_hashes = hashing.combine_columns(read.hashes, left, right, contract.cross_seeds)
    for j, (pair, feature) in enumerate(zip(contract.crosses, contract.cross_names, strict=True)):
        rows = seen.first_rows(feature, pair_hashes[:, j])
        texts = (_texts(columns[name], rows) for name in pair)
        values = [CROSS.join(both) for both in zip(*texts, strict=True)]
        parts.append(_table(contract, feature, pair_hashes[rows, j], values, hours[rows]))
    empty = _table(contract, BIAS, np.zeros(0, np.uint64), [], hours[:0])
    return pa.concat_tables([empty, *parts])


def _standing(
    contract: FeatureContract, feature: str, labels: dict[int, str], hour_us: int
) -> pa.Table:
    words = np.array(list(labels), np.int64).reshape(-1, 1)
    seeds = np.array([hashing.seed_of(feature)], np.uint64)
    hashes = hashing.hash_words(words, seeds)[:, 0]
    return _table(
        contract, feature, hashes, list(labels.values()), np.full(len(labels), hour_us, np.int64)
    )


def _table(
    contract: FeatureContract,
    feature: str,
    hashes: np.ndarray,
    values: Sequence[str],
    hours: np.ndarray,
) -> pa.Table:
    return pa.table(
        {
            "slot": pa.array(hashing.slot_of(hashes, contract.bits), pa.uint32()),
            "feature": pa.array([feature] * len(values), pa.string()),
            "value": pa.array(values, pa.string()),
            "first_hour_us": pa.array(hours, pa.int64()),
        }
    )


def _texts(column: pa.Array | pa.ChunkedArray, rows: np.ndarray) -> list[str]:
    taken = column.take(pa.array(rows)).to_pylist()
    return [hashing.MISSING_LABEL if text is None else text for text in taken]


def _int64(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.int64)


def _received(
    warehouse: Warehouse, contract: FeatureContract, start_us: int, end_us: int
) -> pa.Table:
    """Read the features of the impressions received in ``[start_us, end_us)``, in log order."""
    query = select("features.impressions_received")
    columns = ", ".join(["received_us", *(f'"{name}"' for name in contract.columns)])
    chosen = f"SELECT {columns} FROM ({query})"
    with warehouse.reader() as connection:
        return rows_of(connection, chosen, {"start_us": start_us, "end_us": end_us})


def _write(warehouse: Warehouse, met: pa.Table, start_us: int, end_us: int) -> dict[int, int]:
    """Replace the hours by what was met in them and not before, and take it out of later hours."""
    with warehouse.writer() as connection:
        connection.register("met", met)
        replace_hours(
            connection,
            INVERSE_DICTIONARY,
            _NEW_TOKENS,
            {"start_us": start_us},
            start_us,
            end_us,
        )
        connection.execute(
            _MOVED_TOKENS,
            {"end_us": end_us},
        )
        written = connection.execute(
            _COUNTS,
            {"start_us": start_us, "end_us": end_us},
        ).fetchall()
        connection.unregister("met")
    return dict.fromkeys(range(start_us, end_us, HOUR_US), 0) | dict(written)
