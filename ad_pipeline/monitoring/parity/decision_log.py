"""The JSON of the serving log as columns: what was logged, value by value, with its type.

Texts of one layout are read by compiled code (:mod:`.flat_objects`), all others by DuckDB's JSON
reader, a text a value, typed column by column: no Python object is made for a value. Types are kept
as they were logged, since a number that arrives as a text is a fault to be found and not a detail
of reading. How a scorer writes these texts stands in :mod:`ad_pipeline.serving.decisions`; what
they are compared with, elsewhere.
"""

import json
from collections import Counter

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ad_pipeline.features.encoding import FeatureContract, LookedUp
from ad_pipeline.monitoring.parity.flat_objects import flat_columns
from ad_pipeline.serving.decisions import count_columns

INFINITIES = {'"Infinity"': "inf", '"-Infinity"': "-inf"}
"""JSON has no infinity, so a scorer writes these texts."""

_NAMES = "SELECT DISTINCT name FROM (SELECT unnest(json_keys(text)) AS name FROM logged) ORDER BY 1"
_VALUES = "SELECT unnest(from_json(text, $structure)) FROM logged"
_ELEMENTS = (
    "SELECT element, sum(rows)::BIGINT AS rows FROM "
    "(SELECT unnest(from_json(text, '[\"VARCHAR\"]')) AS element, rows FROM logged) "
    "GROUP BY ALL ORDER BY ALL"
)


def features_of(decisions: pa.Table, key: str = "request_id") -> pa.Table:
    """Lay the logged features of decisions out as one column a feature.

    Parameters
    ----------
    decisions : pyarrow.Table
        Rows of ``events.decisions``: ``key`` and ``features``, a JSON object or null.
    key : str

    Returns
    -------
    pyarrow.Table
        In the order of the decisions: ``key`` and every feature that any decision names: float64
        when all its values are numbers, texts when all are texts, else each value's JSON text.
    """
    columns = logged_columns(decisions.column("features"))
    return pa.table({key: decisions.column(key).cast(pa.string()), **columns})


def logged_columns(texts: pa.ChunkedArray) -> dict[str, pa.Array]:
    """Return the members of JSON objects as columns, by name.

    Parameters
    ----------
    texts : Arrow column of texts, shape (n,)
        JSON objects or nulls.

    Returns
    -------
    dict of str to Arrow array of shape (n,)
        float64, texts, or JSON texts where the types are mixed; null where an object lacks the
        member.
    """
    first = next((text for text in texts if text.is_valid), None)
    if first is None:
        return {}
    flat = flat_columns(in_one_piece(texts), _names(first.as_py()))
    if flat is not None:
        return flat
    with duckdb.connect() as parser:
        return exact_columns(parser, texts)


def exact_columns(
    connection: duckdb.DuckDBPyConnection, texts: pa.ChunkedArray
) -> dict[str, pa.Array]:
    """Return the members of any JSON objects as columns; the connection parses."""
    connection.register("logged", pa.table({"text": texts}))
    names = [name for (name,) in connection.execute(_NAMES).fetchall()]
    if not names:
        return {}
    structure = json.dumps(dict.fromkeys(names, "JSON"))
    values = connection.sql(_VALUES, params={"structure": structure}).to_arrow_table()
    return {
        name: _typed(values.column(place).cast(pa.string()).combine_chunks())
        for place, name in enumerate(names)
    }


def _names(text: str) -> tuple[str, ...]:
    """Return the members of a JSON object in their order; none of anything else."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    return tuple(read) if isinstance(read, dict) else ()


def in_one_piece(texts: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece; its texts may be more than 2 GiB."""
    if texts.num_chunks == 1:
        return texts.chunk(0)
    return pa.concat_arrays([chunk.cast(pa.large_string()) for chunk in texts.chunks])


def listed(texts: pa.ChunkedArray) -> dict[str, int]:
    """Count the elements of JSON lists of texts over all rows, by element.

    A log has few different lists, so each is read once.
    """
    different, rows = texts.drop_null().value_counts().flatten()
    lists = [_texts(text) for text in different.to_pylist()]
    if None in lists:
        with duckdb.connect() as parser:
            return exact_lists(parser, different, rows)
    found: Counter[str] = Counter()
    for elements, times in zip(lists, rows.to_pylist(), strict=True):
        for element in elements or ():
            found[element] += times
    return dict(sorted(found.items()))


def exact_lists(
    connection: duckdb.DuckDBPyConnection, texts: pa.Array, rows: pa.Array
) -> dict[str, int]:
    """Count the elements of any JSON lists, each of so many rows; the connection parses."""
    connection.register("logged", pa.table({"text": texts, "rows": rows}))
    return dict(connection.execute(_ELEMENTS).fetchall())


def _texts(text: str) -> list[str] | None:
    """Return the elements of a JSON list of nothing but texts; None if it is another JSON."""
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_plain = isinstance(read, list) and all(isinstance(element, str) for element in read)
    return read if is_plain else None


def logged_inputs_of(
    contract: FeatureContract, logged: pa.Table
) -> tuple[dict[str, pa.Array], LookedUp]:
    """Return what a scorer needs to give the logged scores again.

    Parameters
    ----------
    contract : FeatureContract
    logged : pyarrow.Table of n rows
        From :func:`features_of`.

    Returns
    -------
    columns : dict of str to Arrow array of shape (n,)
        The contract's columns. What was not logged, or with another type, is null: its scores then
        differ from the logged ones, and its own comparison says why.
    counts : LookedUp of n rows
        0 where nothing was logged. Numbers of vectors are unknown: the log has only the name of
        what they were looked up in, the column :data:`~ad_pipeline.features.encoding.VECTORS_USED`.
    """
    columns: dict[str, pa.Array] = {name: _text(logged, name) for name in contract.text_columns}
    columns |= {name: pa.array(_number(logged, name)) for name in contract.numeric}
    counts = LookedUp.nothing(contract, logged.num_rows)
    for name, values in count_columns(contract, counts):
        values[:] = np.nan_to_num(_number(logged, name))
    return columns, counts


def _text(logged: pa.Table, name: str) -> pa.Array:
    if name not in logged.column_names or pa.types.is_null(logged.schema.field(name).type):
        return pa.nulls(logged.num_rows, pa.string())
    return logged.column(name).cast(pa.string()).combine_chunks()


def _number(logged: pa.Table, name: str) -> np.ndarray:
    """Return a logged number, float64 of shape (n,), NaN where there is none."""
    if name not in logged.column_names or not pa.types.is_float64(logged.schema.field(name).type):
        return np.full(logged.num_rows, np.nan)
    return logged.column(name).to_numpy()


def _typed(values: pa.Array) -> pa.Array:
    """Type a column of JSON texts: numbers, texts, or left as they are."""
    if values.null_count == len(values):
        return pa.nulls(len(values))
    if not _any_starts(values, '"'):
        # Arrow rounds a decimal to the nearest float64, as JSON's readers do.
        is_number = not any(_any_starts(values, first) for first in "tf[{")
        return values.cast(pa.float64()) if is_number else values
    coded = values.dictionary_encode()
    distinct: list[str] = coded.dictionary.to_pylist()
    quoted = {text for text in distinct if text[0] == '"'}
    if quoted <= INFINITIES.keys():
        return _typed(pa.array([INFINITIES.get(text, text) for text in distinct])).take(
            coded.indices
        )
    if len(quoted) < len(distinct):
        return values
    return pa.array(json.loads(f"[{','.join(distinct)}]"), pa.string()).take(coded.indices)


def _any_starts(values: pa.Array, first: str) -> bool:
    found = pc.call_function("starts_with", [values], pc.MatchSubstringOptions(first))
    return bool(pc.call_function("any", [found]).as_py())
