"""The compiled writer of JSON beside Python's own, byte for byte."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.serving.json_objects import json_lists, json_objects, repeated

INT64 = np.iinfo(np.int64)

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    ["", '"', "\\", "\\u0041", "\x00\x1f\x7f", "\b\f\n\r\t", "ä€😀", "null", "a" * 300]
)
floats = st.floats() | st.integers(0, 2**64 - 1).map(
    lambda bits: float(np.uint64(bits).view(np.float64))
)


def _whole(rows: int) -> np.ndarray:
    return np.arange(rows)


def _python(value: Any) -> Any:
    """Return what Python's writer is given: JSON knows neither NaN nor infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _expected(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    return [
        json.dumps(dict(zip(names, map(_python, row), strict=True)), ensure_ascii=False)
        for row in rows
    ]


@st.composite
def columns(draw: st.DrawFn, n: int) -> tuple[Any, list[tuple[Any, ...]]]:
    """Return a column of n rows, of any layout, and its members as Python has them."""
    kind = draw(st.sampled_from(["text", "code", "float", "null", "numbers", "matrix"]))
    before, after = draw(st.integers(0, 9)), draw(st.integers(0, 3))
    size = before + n + after

    def of(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    column: Any
    if kind == "null":
        column = pa.nulls(size)
    elif kind == "text":
        column = pa.array(
            of(st.none() | texts), draw(st.sampled_from([pa.string(), pa.large_string()]))
        )
    elif kind == "code":
        index = draw(st.sampled_from([pa.int8(), pa.uint16(), pa.int32(), pa.int64()]))
        hidden, *known = draw(st.lists(st.none() | texts, min_size=2, max_size=5))
        dictionary = pa.array([hidden, *known], pa.string()).slice(1)
        codes = of(st.none() | st.integers(0, len(known) - 1))
        column = pa.DictionaryArray.from_arrays(pa.array(codes, index), dictionary)
        taken = [None if code is None else known[code] for code in codes]
        return column.slice(before, n), [(value,) for value in taken[before : before + n]]
    elif kind == "float":
        column = pa.array(of(st.none() | floats), pa.float64())
    elif kind == "numbers":
        values = np.array(of(floats | st.just(0.0)), np.float64)
        return values[before : before + n], [(v,) for v in values[before : before + n].tolist()]
    else:
        wide = np.array(of(st.tuples(*3 * [st.integers(INT64.min, INT64.max)])), np.int64)
        matrix = wide.reshape(size, 3)[before : before + n, ::2]
        return matrix, [tuple(row) for row in matrix.tolist()]
    column = column.slice(before, n)
    return column, [(value,) for value in column.to_pylist()]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n=st.integers(0, 8))
def test_objects_are_what_python_writes_byte_for_byte(data: st.DataObject, n: int) -> None:
    drawn = data.draw(st.lists(columns(n), min_size=1, max_size=4))
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=12)) if n else []
    members = [sum((each[row] for _, each in drawn), ()) for row in rows]
    width = sum(2 if getattr(column, "ndim", 1) == 2 else 1 for column, _ in drawn)
    named = st.lists(texts, min_size=width, max_size=width, unique=True)
    names = tuple(data.draw(named))
    found = json_objects(names, [column for column, _ in drawn], np.array(rows, np.int64))
    found.validate(full=True)
    assert found.to_pylist() == _expected(names, members)


@settings(max_examples=100, deadline=None)
@given(st.lists(floats, min_size=1, max_size=200))
def test_a_float_has_the_digits_of_its_repr(values: list[float]) -> None:
    written = json_objects(("x",), [np.array(values)], _whole(len(values)))
    assert written.to_pylist() == _expected(("x",), [(value,) for value in values])


def test_floats_where_writers_of_digits_go_wrong_have_those_of_their_repr() -> None:
    """Borders of exponents and their neighbours, whole numbers, ties, denormals, fixed point."""
    with np.errstate(over="ignore"):
        powers = np.concatenate(
            [2.0 ** np.arange(-1074, 1024), [float(f"1e{k}") for k in range(-323, 309)]]
        )
        near = np.concatenate([powers, np.nextafter(powers, 0), np.nextafter(powers, np.inf)])
    rng = np.random.default_rng(3)
    denormal = rng.integers(1, 2**52, 2_000, np.uint64).view(np.float64)
    anything = rng.integers(0, 2**64, 50_000, np.uint64).view(np.float64)
    whole = np.concatenate([np.arange(2_000.0), rng.integers(2**50, 2**63, 2_000).astype(float)])
    short = np.round(rng.random(5_000) * 1_000, 2)
    known = np.array([0.0, -0.0, 5e-324, 9.5e-5, 1e-4, 1e16, 1e22, 9007199254740993.0, 2.0**-44])
    values = np.concatenate([near, -near, denormal, anything, whole, short, known])
    written = json_objects(("x",), [values], _whole(values.size))
    assert written.to_pylist() == _expected(("x",), [(value,) for value in values.tolist()])


@settings(max_examples=100, deadline=None)
@given(data=st.data(), n=st.integers(1, 8))
def test_lists_are_what_python_writes_byte_for_byte(data: st.DataObject, n: int) -> None:
    elements = tuple(data.draw(st.lists(texts, max_size=4)))
    flags = [np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for _ in elements]
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=12))
    found = json_lists(elements, flags, np.array(rows, np.int64))
    found.validate(full=True)
    assert found.to_pylist() == [
        json.dumps(
            [text for text, there in zip(elements, flags, strict=True) if there[row]],
            ensure_ascii=False,
        )
        for row in rows
    ]


def test_rows_beyond_one_block_are_written_in_their_order() -> None:
    rng = np.random.default_rng(5)
    rows = rng.permutation(5_000)
    numbers, letters = rng.random(5_000), [f"t{k % 7}" for k in range(5_000)]
    found = json_objects(("x", "t"), [numbers, pa.array(letters)], rows)
    expected = [(numbers.tolist()[row], letters[row]) for row in rows.tolist()]
    assert found.to_pylist() == _expected(("x", "t"), expected)


def test_a_text_that_no_reader_could_read_is_refused_when_it_is_written() -> None:
    offsets, broken = np.array([0, 1, 3], np.int32), b"a\xff\xfe"
    column = pa.StringArray.from_buffers(2, pa.py_buffer(offsets), pa.py_buffer(broken))
    with pytest.raises(ValueError, match="not UTF-8"):
        json_objects(("t",), [column], _whole(2))
    assert json_objects(("t",), [column], _whole(1)).to_pylist() == ['{"t": "a"}']


def test_columns_that_are_not_written_are_refused() -> None:
    for column, named in (
        (pa.array([1, 2]), "int64"),
        (pa.array([b"a", b"b"]), "binary"),
        (pa.array([1, 2]).dictionary_encode(), "dictionary"),
        (np.zeros(2, np.float32), "float32"),
    ):
        with pytest.raises(TypeError, match=named):
            json_objects(("x",), [column], _whole(2))
    with pytest.raises(ValueError, match="2 names for 3 members"):
        json_objects(("x", "y"), [np.zeros((2, 3))], _whole(2))


def test_one_text_is_repeated() -> None:
    assert repeated("ä{}", 3).to_pylist() == 3 * ["ä{}"]
    assert repeated("", 2).to_pylist() == ["", ""]
    assert repeated("{}", 0).to_pylist() == []
