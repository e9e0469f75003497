"""Objects of one layout, read by compiled code: what DuckDB and Python read, or no answer."""

import json
import math
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ad_pipeline.monitoring.parity.decision_log import exact_columns, logged_columns
from ad_pipeline.monitoring.parity.flat_objects import flat_columns

NAMES = ("n", "t", "é %s.click")

NUMBERS = st.floats() | st.integers(-(2**70), 2**70) | st.integers(-20, 20)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
MEMBERS = [
    NUMBERS,
    TEXTS,
    st.none(),
    st.sampled_from(["Infinity", "-Infinity"]),
    st.booleans(),
    st.lists(st.integers(0, 3), max_size=2),
    st.sampled_from(["1", "1.0", "", "null", "a", "b"]),
]

FORMS: list[dict[str, Any]] = [{}, {"ensure_ascii": False}, {"indent": 1}]
FORMS.append({"separators": (",", ":"), "ensure_ascii": False})


@st.composite
def logs(draw: st.DrawFn) -> list[str | None]:
    """Texts of a log: mostly of one layout and one kind of value a member."""
    kinds = {
        name: draw(st.sampled_from(MEMBERS)) | draw(st.sampled_from(MEMBERS)) for name in NAMES
    }
    rows: list[str | None] = []
    form = draw(st.sampled_from(FORMS))
    for _ in range(draw(st.integers(1, 6))):
        row = {name: draw(kind) for name, kind in kinds.items()}
        fate = draw(st.sampled_from(["sound"] * 12 + ["missing", "extra", "turned", "no row"]))
        if fate == "missing":
            del row["t"]
        elif fate == "extra":
            row["x"] = 1
        elif fate == "turned":
            row = dict(reversed(row.items()))
        rows.append(None if fate == "no row" else json.dumps(row, **form))
    return rows


def same(one: pa.Array, other: pa.Array) -> bool:
    """Return whether types, nulls and values are equal, numbers bit for bit, any NaN being one."""
    if not pa.types.is_float64(one.type) or one.type != other.type:
        return one.equals(other)
    return list(map(repr, one.to_pylist())) == list(map(repr, other.to_pylist()))


@given(logs())
@example([json.dumps({"n": 1e22, "t": 1e23, "é %s.click": 9007199254740993})])
@example(['{"n": -0, "t": -0.0, "é %s.click": 0e0}'])
def test_the_fast_reading_is_the_exact_one(rows: list[str | None]):
    texts = pa.chunked_array([pa.array(rows, pa.string())])
    with duckdb.connect() as connection:
        found, exact = logged_columns(texts), exact_columns(connection, texts)
    assert list(found) == list(exact)
    assert all(same(found[name], exact[name]) for name in exact)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_are_read_as_python_reads_them(values: list[float]):
    usual = [value for value in values if value == 0 or -99 < math.log10(abs(value)) < 99] or [0.5]
    found = flat_columns(pa.array([f'{{"n": {value!r}}}' for value in usual]), ["n"])
    assert found is not None
    assert list(map(repr, found["n"].to_pylist())) == list(map(repr, usual))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", '{"n": 1', '{"n": 1}}', '{"n" 1}', '{"n": }', '{"n": 01}',
        '{"n": 1.}', '{"n": .5}', '{"n": +1}', '{"n": -}', '{"n": 1e}', '{"n": 1e400}', '{"n": -0}',
        '{"n": nul}', '{"n": NaN}', '{"n": true}', '{"n": "a\\\\b"}', '{"n": "a\nb"}', '{"n": "a}',
        '{"n": [1]}', '{"n": 1, "m": 1}', '{"m": 1}', '{"n": 1,}', '{"n": 1 2}', '{"n": 1, "n": 2}',
        ' {"n": 1}', '{"n": 1} ', '{"n":1}',
    ],
)  # fmt: skip
def test_what_is_not_expected_is_not_answered(text: str):
    sound = ['{"n": 1}', None, '{"n": null}']
    assert flat_columns(pa.array(sound), ["n"]) is not None
    assert flat_columns(pa.array([*sound, text]), ["n"]) is None


def test_a_slice_of_a_column_is_read_from_where_it_starts():
    rows = [f'{{"n": {k}, "t": "{"x" * k}"}}' if k % 5 else None for k in range(40)]
    column = pa.array(rows).slice(13, 20)
    found = flat_columns(column, ["n", "t"])
    assert found is not None
    expected = [json.loads(text) if text else {"n": None, "t": None} for text in rows[13:33]]
    assert found["n"].to_pylist() == [row["n"] for row in expected]
    assert found["t"].to_pylist() == [row["t"] for row in expected]


def test_text_that_is_no_json_is_refused_wherever_it_stands():
    for rows in (['{"n": 1}', '{"n": 1'], ['{"n": 1', '{"n": 1}']):
        with pytest.raises(duckdb.Error, match=r"JSON|json"):
            logged_columns(pa.chunked_array([pa.array(rows)]))
