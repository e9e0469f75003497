"""Sequences: what was known of whom when, held to a loop over the table's rows."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from ad_pipeline.embeddings.sequences import (
    NOTHING,
    SHORTEST,
    History,
    Sequences,
    padded_length,
)
from ad_pipeline.settings import Modality

MODALITIES = (Modality(name="clicks", tokens=2), Modality(name="looks", tokens=1, vector=2))


class Row(NamedTuple):
    """One activity, as the table has it."""

    user_id: str
    occurred_us: int
    received_us: int
    modality: str
    tokens: Any
    vector: list[float]


def table_of(rows: list[Row]) -> pa.Table:
    types = {
        "user_id": pa.string(),
        "occurred_us": pa.int64(),
        "received_us": pa.int64(),
        "modality": pa.string(),
        "tokens": pa.list_(pa.uint32()),
        "vector": pa.list_(pa.float32()),
    }
    return pa.table(
        {
            name: pa.array([getattr(row, name) for row in rows], type_)
            for name, type_ in types.items()
        }
    )


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    """Activities of few users at few moments, so that ties and late rows are common."""
    times = st.integers(0, 6)
    row = st.builds(
        lambda user, occurred, late, modality, token, number: Row(
            f"u{user}", occurred, occurred + late, modality, [token] * (token % 4), [number, 1.0]
        ),
        st.integers(0, 3), times, times, st.sampled_from(["clicks", "looks", "not asked for"]),
        st.integers(1, 9), st.integers(-2, 2).map(float),
    )  # fmt: skip
    return draw(st.lists(row, min_size=1, max_size=25))


def known(rows: list[Row], user: str, modality: str, as_of_us: int, most: int) -> list[Any]:
    """Return what should be seen of a user, the newest first: a loop over the rows."""
    tokens, width = next((m.tokens, m.vector) for m in MODALITIES if m.name == modality)
    seen = []
    for row in rows:
        if (row.user_id, row.modality) == (user, modality) and row.received_us <= as_of_us:
            padded = (row.tokens + [NOTHING] * tokens)[:tokens]
            seen.append((row.received_us, row.occurred_us, padded, row.vector[:width]))
    return sorted(seen, reverse=True)[:most]


def windows(sequences: Sequences, modality: str) -> list[list[Any]]:
    """Return what the sequences say, a list of activities a sequence, in the form of `known`."""
    length = int(padded_length(sequences.lengths(modality)).max())
    window = sequences.newest_first(modality, np.arange(len(sequences)), length)
    return [
        [
            (
                window.occurred_us[row, at],
                list(window.tokens[row, at]),
                list(window.vectors[row, at]),
                window.age_us[row, at],
            )
            for at in range(length)
            if window.is_there[row, at]
        ]
        for row in range(len(sequences))
    ]


@given(logs(), st.integers(-1, 13), st.integers(1, 4))
@budget(max_examples=60, deadline=None)
def test_a_sequence_is_the_newest_of_what_the_log_had(
    rows: list[Row], as_of_us: int, most: int
) -> None:
    history = History.of_table(table_of(rows), MODALITIES)
    assert history.users.to_pylist() == sorted({row.user_id for row in rows})
    sequences = history.sequences(as_of_us, {"clicks": most, "looks": most})
    for modality in ("clicks", "looks"):
        for user, found in zip(
            history.users.to_pylist(), windows(sequences, modality), strict=True
        ):
            expected = [
                (occurred, tokens, vector, max(as_of_us - occurred, 0))
                for _, occurred, tokens, vector in known(rows, user, modality, as_of_us, most)
            ]
            assert found == expected


@given(logs(), st.randoms(use_true_random=False))
@budget(max_examples=40, deadline=None)
def test_any_reading_order_gives_the_same_history(rows: list[Row], random: Any) -> None:
    history = History.of_table(table_of(rows), MODALITIES)
    random.shuffle(rows)
    again = History.of_table(table_of(rows), MODALITIES)
    assert again.users.equals(history.users)
    for name, of in history.modalities.items():
        for field, array in vars(of).items():
            assert np.array_equal(array, getattr(again.modalities[name], field)), field


@given(logs(), st.integers(0, 12), st.integers(0, 12))
@budget(max_examples=40, deadline=None)
def test_moments_of_one_user_stand_side_by_side(rows: list[Row], early: int, late: int) -> None:
    history = History.of_table(table_of(rows), MODALITIES)
    longest = {"clicks": 3, "looks": 3}
    users = np.zeros(2, np.int64)
    both = history.sequences(np.array([early, late]), longest, users)
    for place, moment in enumerate((early, late)):
        alone = history.sequences(moment, longest, users[:1])
        assert windows(both, "clicks")[place] == windows(alone, "clicks")[0]
    assert (both.identities()[0] == both.identities()[1]) == (early == late)
    taken = both.take(np.array([1, 1, 0]))
    assert list(taken.as_of_us) == [late, late, early]


@given(st.integers(0, 5_000))
def test_a_length_is_padded_to_the_next_power_of_two(length: int) -> None:
    (padded,) = padded_length(np.array([length]))
    assert padded >= max(length, SHORTEST)
    assert padded == SHORTEST or padded < 2 * length
    assert padded & (padded - 1) == 0


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=40),
    st.integers(1, 7),
)
@budget(max_examples=40, deadline=None)
def test_batches_have_every_sequence_once_in_its_own_shape(
    lengths: list[tuple[int, int]], size: int
) -> None:
    first = np.zeros(len(lengths), np.int64)
    clicks, looks = np.array(lengths, np.int64).T
    history = History.of_table(table_of([Row("u", 0, 0, "clicks", [1], [])]), ())
    sequences = Sequences(
        history, first, first, {"clicks": (first, clicks), "looks": (first, looks)}
    )
    batches = list(sequences.batches(size))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch.rows) <= size
        assert {*padded_length(clicks[batch.rows])} == {batch.lengths["clicks"]}
        assert {*padded_length(looks[batch.rows])} == {batch.lengths["looks"]}
    shapes = [tuple(batch.lengths.values()) for batch in batches if len(batch.rows) < size]
    assert len(set(shapes)) == len(shapes), "at most one batch of a shape is not full"
    padded = sum(sum(batch.lengths.values()) * len(batch.rows) for batch in batches)
    assert sequences.padding_share() == pytest.approx(1 - (clicks.sum() + looks.sum()) / padded)


def test_a_modality_that_nobody_has_is_empty() -> None:
    history = History.of_table(table_of([Row("u", 5, 5, "clicks", [1], [])]), MODALITIES)
    sequences = history.sequences(9, {"clicks": 4, "looks": 4})
    assert windows(sequences, "looks") == [[]]
    assert windows(sequences, "clicks") == [[(5, [1, NOTHING], [], 4)]]


def test_null_tokens_are_none() -> None:
    rows = [
        Row("u", at, at, "clicks", tokens, []) for at, tokens in enumerate([[7], [None, 8], None])
    ]
    history = History.of_table(table_of(rows), MODALITIES)
    found = history.modalities["clicks"].tokens
    assert found.tolist() == [[7, NOTHING], [NOTHING, 8], [NOTHING, NOTHING]]


def test_rows_that_cannot_be_read_are_named() -> None:
    rows = [Row("u", 0, 0, "clicks", [1], []), Row("u", 1, 1, "looks", [1], [1.0, 2.0])]
    with pytest.raises(ValueError, match=r"row 1: its vector has 1 numbers.*takes 2"):
        History.of_table(table_of([rows[0], rows[1]._replace(vector=[1.0])]), MODALITIES)
    with pytest.raises(ValueError, match=r"row 1: its vector .* not finite"):
        History.of_table(table_of([rows[0], rows[1]._replace(vector=[1.0, np.nan])]), MODALITIES)
    table = table_of([rows[0], rows[1]._replace(user_id=None)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="row 1: user_id is null"):
        History.of_table(table, MODALITIES)
    with pytest.raises(ValueError, match=r"lack columns \['received_us'\]"):
        History.of_table(table_of(rows).drop_columns(["received_us"]), MODALITIES)
