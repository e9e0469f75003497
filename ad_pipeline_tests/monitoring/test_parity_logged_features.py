"""Features that are not read because their text is as it should be: what reading them would say."""

import json
import math
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.features.encoding import FeatureContract, LookedUp, RateGoal
from ad_pipeline.monitoring.parity import logged_features as under_test
from ad_pipeline.monitoring.parity.comparison import compare_features
from ad_pipeline.monitoring.parity.decision_log import exact_lists, features_of, listed
from ad_pipeline.serving.decisions import count_columns, features_json

KEY = "request_id"

CONTRACT = FeatureContract(
    categorical=("publisher",),
    numeric=("price",),
    crosses=(),
    entities=("publisher",),
    goals=(RateGoal("click", "impression"),),
    rate_strength=20.0,
    rate_window_hours=24,
    rate_lag_hours=1,
    bits=10,
)

Inputs = tuple[dict[str, pa.Array], LookedUp]

texts = st.none() | st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
prices = st.none() | st.floats(allow_nan=False)
rows_given = st.lists(st.tuples(texts, prices, st.integers(0, 2**40)), min_size=1, max_size=12)


def made(rows: list[tuple[str | None, float | None, int]]) -> tuple[pa.Table, Inputs, pa.Table]:
    """Return decisions as a scorer logs them, what it was given, and the same as a table."""
    publishers, given_prices, anchors = zip(*rows, strict=True)
    counts = LookedUp.nothing(CONTRACT, len(rows))
    counts.counts[:, 0, 0] = anchors
    columns: dict[str, pa.Array] = {
        "publisher": pa.array(publishers, pa.string()),
        "price": pa.array(given_prices, pa.float64()),
    }
    written = features_json(CONTRACT, columns, counts, np.arange(len(rows)))
    keys = pa.array([f"r{row:04d}" for row in range(len(rows))])
    decisions = pa.table({KEY: keys, "features": written.cast(pa.string())})
    as_floats = {
        name: pa.array(values.astype(np.float64))
        for name, values in count_columns(CONTRACT, counts)
    }
    return decisions, (columns, counts), pa.table({KEY: keys, **columns, **as_floats})


def changed(decisions: pa.Table, row: int, text: str) -> pa.Table:
    features = decisions.column("features").to_pylist()
    features[row] = text
    return decisions.set_column(1, "features", pa.array(features, pa.string()))


@settings(max_examples=40, deadline=None)
@given(rows_given)
def test_what_is_not_read_is_what_reading_would_give(rows: list[Any]) -> None:
    decisions, inputs, recomputed = made(rows)
    found = under_test.logged_features(CONTRACT, decisions, recomputed, inputs)
    assert found is recomputed
    unread = compare_features(found, recomputed)
    assert unread == compare_features(features_of(decisions), recomputed)
    assert unread.passed


@settings(max_examples=50, deadline=None)
@given(rows_given)
def test_a_table_agrees_with_itself_as_it_does_with_its_copy(rows: list[Any]) -> None:
    _, _, table = made(rows)
    for name, nan in (("price", pa.array([math.nan] * len(rows))), ("none", pa.nulls(len(rows)))):
        table = table.append_column(f"other {name}", nan)
    copy = pa.table(table.columns, names=table.column_names)
    assert compare_features(table, table) == compare_features(table, copy)


@pytest.mark.parametrize(
    "planted", [{"price": 2.0000000000000004}, {"publisher": "q"}, {"publisher.click.anchors": 8}]
)
def test_one_value_among_thousands_is_read_and_found(planted: dict[str, Any]) -> None:
    decisions, inputs, recomputed = made([("p", 2.0, 7)] * 9_001)
    row = 9_000 - 1  # a row that is not read whatever its text is, in the last block of texts
    assert row % -(-9_001 // under_test.READ_ALL_THE_SAME)
    text = json.loads(decisions.column("features")[row].as_py()) | planted
    logged = under_test.logged_features(
        CONTRACT, changed(decisions, row, json.dumps(text)), recomputed, inputs
    )
    assert logged is not recomputed
    result = compare_features(logged, recomputed)
    assert [rate.name for rate in result.rates if rate.equal < rate.rows] == list(planted)
    assert result.first_offending == (f"r{row:04d}",)


def test_other_spaces_and_no_text_at_all_are_read() -> None:
    decisions, inputs, recomputed = made([("p", 2.0, 7)] * 3)
    text = json.loads(decisions.column("features")[1].as_py())
    spaced = changed(decisions, 1, json.dumps(text, separators=(",", ":")))
    logged = under_test.logged_features(CONTRACT, spaced, recomputed, inputs)
    assert logged is not recomputed
    assert compare_features(logged, recomputed).passed
    nothing = pa.table({KEY: decisions.column(KEY), "features": pa.nulls(3, pa.string())})
    logged = under_test.logged_features(CONTRACT, nothing, recomputed, inputs)
    assert compare_features(logged, recomputed).state == "failed"


def test_not_a_number_on_our_side_is_not_the_null_that_it_is_written_as() -> None:
    decisions, inputs, recomputed = made([("p", None, 7), ("p", 1.0, 7)])
    columns, counts = inputs
    columns = columns | {"price": pa.array([math.nan, 1.0])}
    recomputed = recomputed.set_column(2, "price", columns["price"])
    logged = under_test.logged_features(CONTRACT, decisions, recomputed, (columns, counts))
    (price,) = (r for r in compare_features(logged, recomputed).rates if r.name == "price")
    assert (price.equal, price.missing) == (1, 1)


def test_decisions_without_an_impression_are_read() -> None:
    decisions, inputs, recomputed = made([("p", 2.0, 7)] * 3)
    logged = under_test.logged_features(CONTRACT, decisions, recomputed.slice(0, 2), inputs)
    assert logged.column("price").to_pylist() == [2.0] * 3


def test_a_writer_that_lies_to_both_sides_is_caught_by_the_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decisions, inputs, recomputed = made([("p", 2.5, 7)] * 600)

    def lying(*arguments: Any) -> pa.Array:
        written = [text.replace("2.5", "2.4") for text in features_json(*arguments).to_pylist()]
        return pa.array(written, pa.large_string())

    monkeypatch.setattr(under_test, "features_json", lying)
    lies = [text.replace("2.5", "2.4") for text in decisions.column("features").to_pylist()]
    logged = under_test.logged_features(
        CONTRACT, decisions.set_column(1, "features", pa.array(lies)), recomputed, inputs
    )
    assert set(logged.column("price").to_pylist()) == {2.4}


elements = st.lists(st.sampled_from(["a", "b, c", 'q"', "é"]) | st.integers(0, 2), max_size=3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.none() | elements, min_size=1, max_size=5))
def test_elements_of_lists_are_counted_as_duckdb_counts_them(lists: list[Any]) -> None:
    written = [None if each is None else json.dumps(each) for each in lists]
    found = listed(pa.chunked_array([pa.array(written, pa.string())]))
    with duckdb.connect() as parser:
        once = pa.array([1] * len(written), pa.int64())
        assert found == exact_lists(parser, pa.array(written, pa.string()), once)
