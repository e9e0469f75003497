"""Identifiers and columns made from buffers hold what pyarrow's own construction would."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.simulation.identifiers import (
    NULL,
    coded_column,
    fixed_width_column,
    flag_column,
    hex_column,
    name_matrix,
    number_column,
    numbers_of_hour,
    tagged,
    text_column,
)
from ad_pipeline.simulation.world import slot_table

NUMBERS = st.lists(st.one_of(st.just(NULL), st.integers(0, (1 << 48) - 1)), max_size=20)


@given(NUMBERS)
def test_a_number_is_written_as_its_letter_and_twelve_hexadecimal_digits(
    numbers: list[int],
) -> None:
    column = hex_column("i", np.array(numbers, dtype=np.int64))
    column.validate(full=True)
    assert column.to_pylist() == [None if n == NULL else f"i{n:012x}" for n in numbers]


@given(st.lists(st.text(st.characters(max_codepoint=127), max_size=6), max_size=8))
def test_a_text_column_holds_its_texts(texts: list[str]) -> None:
    column = text_column(texts)
    column.validate(full=True)
    assert column.to_pylist() == texts


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int64, np.float64])
def test_a_number_column_holds_its_numbers_and_nulls(kind: type) -> None:
    values = np.arange(20, dtype=kind)[::2]
    nulls = np.arange(10) % 3 == 0
    assert number_column(values).equals(pa.array(values))
    assert number_column(values, nulls).equals(pa.array(values, mask=nulls))


def test_flags_and_codes_are_those_given() -> None:
    flags = np.arange(21) % 3 == 1
    assert flag_column(flags).to_pylist() == flags.tolist()
    codes = coded_column(np.array([2, 0, 1, 2]), text_column(["a", "bb", ""]))
    codes.validate(full=True)
    assert codes.to_pylist() == ["", "a", "bb", ""]
    names = name_matrix(["ab", "cd"])
    assert fixed_width_column(names[[1, 0, 1]]).to_pylist() == ["cd", "ab", "cd"]


def test_identifiers_of_hours_and_kinds_never_meet() -> None:
    kinds = [tagged(tag, numbers_of_hour(hour, 5)) for tag in (0, 1, 0xFF) for hour in (0, 1, 999)]
    together = np.concatenate(kinds)
    assert len(np.unique(together)) == len(together)
    assert together.max() < 1 << 48


def test_an_hour_too_full_for_its_identifiers_is_refused() -> None:
    with pytest.raises(ValueError, match="identifiers hold"):
        numbers_of_hour(0, 1 << 24)


def test_a_slot_table_holds_each_choice_as_often_as_its_share_says() -> None:
    weights = np.array([[1.0, 0.0, 3.0], [0.0, 2.0, 0.0]])
    table, shares = slot_table(weights, 8)
    assert table.tolist() == [[0, 0, 2, 2, 2, 2, 2, 2], [1] * 8]
    assert shares.tolist() == [[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]
