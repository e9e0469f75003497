"""Parity: every kind of planted disagreement is found, and nothing logged is not agreement."""

import json
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.monitoring import tables
from ad_pipeline.monitoring.parity import comparison as parity
from ad_pipeline.monitoring.parity.decision_log import features_of, logged_columns


def features(**columns: list) -> pa.Table:
    rows = len(next(iter(columns.values())))
    return pa.table({"request_id": [f"r{k}" for k in range(rows)], **columns})


def scores(*rows: tuple[str, str, float | None]) -> pa.Table:
    return pa.table(
        {
            "request_id": pa.array([row[0] for row in rows], pa.string()),
            "goal": pa.array([row[1] for row in rows], pa.string()),
            "probability": pa.array([row[2] for row in rows], pa.float64()),
        }
    )


def of(name: str, result: parity.Parity) -> parity.Rates:
    return next(rate for rate in result.rates if rate.name == name)


def counts(rate: parity.Rates) -> tuple[int, int, int, int]:
    return rate.equal, rate.mismatches, rate.missing, rate.extra


def test_equal_features_in_any_order_and_type_of_number_pass():
    logged = features(age=[1.0, 2.0, float("nan")], place=["x", "y", None])
    recomputed = features(age=[1.0, 2.0, float("nan")], place=["x", "y", None]).take([2, 0, 1])
    result = parity.compare_features(logged, recomputed)
    assert result.passed
    assert counts(of("age", result)) == (3, 0, 0, 0)
    assert counts(of("place", result)) == (2, 0, 0, 0)
    assert parity.compare_features(features(n=[1, 2]), features(n=[1.0, 2.0])).passed


def test_a_planted_mismatch_a_missing_and_an_extra_value_are_told_apart():
    logged = features(age=[1.0, 2.0, None, 4.0, 5.0], place=["x"] * 5)
    recomputed = features(age=[1.0, 2.5, 3.0, None, 5.0], place=["x"] * 5)
    result = parity.compare_features(logged, recomputed)
    assert result.state == "failed"
    age = of("age", result)
    assert counts(age) == (2, 1, 1, 1)
    assert age.first_offending == ("r1", "r2", "r3")
    assert (age.mismatch_rate, age.missing_rate, age.extra_rate) == (0.2, 0.2, 0.2)
    assert result.largest_difference == 0.5
    assert counts(of("place", result)) == (5, 0, 0, 0)


def test_a_difference_in_the_last_bit_is_a_mismatch():
    one = 0.1 + 0.2
    result = parity.compare_features(features(x=[one]), features(x=[np.nextafter(one, 1)]))
    assert counts(of("x", result)) == (0, 1, 0, 0)


def test_a_request_on_one_side_only_fails():
    logged, recomputed = features(x=[1.0, 2.0]), features(x=[1.0])
    assert counts(of("x", parity.compare_features(logged, recomputed))) == (1, 0, 0, 1)
    assert counts(of("x", parity.compare_features(recomputed, logged))) == (1, 0, 1, 0)
    null = pa.table({"request_id": ["r0", "r1"], "x": pa.array([1.0, None])})
    assert parity.compare_features(null, recomputed).state == "failed"


def test_a_feature_on_one_side_only_fails():
    result = parity.compare_features(features(x=[1.0], y=[1.0]), features(x=[1.0]))
    assert result.state == "failed"
    assert counts(of("y", result)) == (0, 0, 0, 1)


def test_a_number_and_the_same_number_as_text_mismatch():
    result = parity.compare_features(features(x=["1.0"]), features(x=[1.0]))
    assert counts(of("x", result)) == (0, 1, 0, 0)


def test_no_decisions_is_a_state_of_its_own_and_never_passed():
    result = parity.compare_features(features(x=[1.0]).slice(0, 0), features(x=[1.0]))
    assert result.state == "no decisions yet"
    assert not result.passed
    nothing = parity.compare_scores(scores(), scores())
    assert nothing.state == "no decisions yet"
    assert not nothing.passed


def test_decisions_that_nothing_recomputed_fail():
    assert (
        parity.compare_features(features(x=[1.0]), features(x=[1.0]).slice(0, 0)).state == "failed"
    )
    assert parity.compare_scores(scores(("r0", "click", 0.1)), scores()).state == "failed"


def test_decisions_without_any_feature_do_not_pass():
    bare = pa.table({"request_id": ["r0"]})
    assert parity.compare_features(bare, bare).state == "failed"


def test_a_repeated_key_is_refused():
    twice = pa.table({"request_id": ["r0", "r0"], "x": [1.0, 1.0]})
    with pytest.raises(parity.RepeatedKey, match="r0"):
        parity.compare_features(twice, features(x=[1.0]))
    with pytest.raises(parity.RepeatedKey):
        parity.compare_scores(scores(("r0", "click", 0.1), ("r0", "click", 0.1)), scores())


def test_equal_scores_pass_in_any_order_with_nan():
    logged = scores(("r0", "click", 0.1), ("r1", "click", float("nan")), ("r0", "purchase", 0.2))
    assert parity.compare_scores(logged, logged.take([2, 1, 0])).passed


def test_two_nans_of_different_bits_are_equal_and_two_zeros_of_different_sign_are_not():
    (other_nan,) = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0123))
    nans = scores(("r0", "click", float("nan"))), scores(("r0", "click", other_nan))
    assert parity.compare_scores(*nans).passed
    zeros = scores(("r0", "click", 0.0)), scores(("r0", "click", -0.0))
    assert parity.compare_scores(*zeros).state == "failed"


def test_one_flipped_bit_in_one_score_of_many_is_found_with_its_key():
    rows = [(f"r{k:05d}", "click", k / 10_000) for k in range(10_000)]
    changed = list(rows)
    changed[7_777] = ("r07777", "click", float(np.nextafter(0.7777, 1)))
    result = parity.compare_scores(scores(*rows), scores(*changed))
    click = of("click", result)
    assert result.state == "failed"
    assert counts(click) == (9_999, 1, 0, 0)
    assert click.first_offending == ("r07777 click",)
    assert 0 < result.largest_difference < 1e-15


def test_a_score_missing_extra_null_or_nan_on_one_side_fails():
    logged = scores(("r0", "click", 0.1), ("r1", "click", 0.1), ("r3", "click", None))
    recomputed = scores(("r0", "click", float("nan")), ("r2", "click", 0.1), ("r3", "click", None))
    result = parity.compare_scores(logged, recomputed)
    assert counts(of("click", result)) == (0, 2, 1, 1)
    assert result.largest_difference == float("inf")


def test_a_goal_scored_on_one_side_only_fails():
    both = scores(("r0", "click", 0.1), ("r0", "purchase", 0.1))
    result = parity.compare_scores(both, scores(("r0", "click", 0.1)))
    assert counts(of("purchase", result)) == (0, 0, 0, 1)
    assert result.first_offending == ("r0 purchase",)


@given(
    st.lists(st.sampled_from(["equal", "mismatch", "missing", "extra"]), min_size=1, max_size=30)
)
def test_counts_are_what_was_planted(plan: list[str]):
    logged = [(f"r{k}", "click", 0.25) for k, fate in enumerate(plan) if fate != "missing"]
    recomputed = [
        (f"r{k}", "click", 0.75 if fate == "mismatch" else 0.25)
        for k, fate in enumerate(plan)
        if fate != "extra"
    ]
    result = parity.compare_scores(scores(*logged), scores(*recomputed))
    if not logged:
        assert result.state == "no decisions yet"
        return
    planted = tuple(plan.count(fate) for fate in ("equal", "mismatch", "missing", "extra"))
    assert counts(of("click", result)) == planted
    assert result.passed == (planted[0] == len(plan))


SCORES = st.none() | st.sampled_from([0.0, -0.0, 0.25, 0.5, float("nan")])


@given(st.lists(st.tuples(SCORES, SCORES, SCORES, SCORES), min_size=1, max_size=20))
def test_scores_by_column_compare_as_the_same_scores_below_each_other(rows: list[tuple]):
    """A goal that only one side has is all missing, or all extra."""
    keys = [f"r{(7 * k) % 23}" for k in range(len(rows))]
    names = ("click", "purchase"), ("click", "view")
    sides = [dict(zip(names[0], list(zip(*rows, strict=True))[:2], strict=True))]
    sides.append(dict(zip(names[1], list(zip(*rows, strict=True))[2:], strict=True)))
    tall = [
        scores(
            *(
                (key, goal, value)
                for goal in side
                for key, value in zip(keys, side[goal], strict=True)
            )
        )
        for side in sides
    ]
    wide = [{g: pa.array(values, pa.float64()) for g, values in side.items()} for side in sides]
    by_column = parity.compare_score_columns(pa.array(keys), *wide)
    assert repr(by_column) == repr(parity.compare_scores(*tall))


def test_a_decision_that_is_there_twice_is_refused_by_column_too():
    column = {"click": pa.array([0.5, 0.5])}
    with pytest.raises(parity.RepeatedKey, match="r0"):
        parity.compare_score_columns(pa.array(["r0", "r0"]), column, column)
    nothing = parity.compare_score_columns(pa.array([], pa.string()), {}, {})
    assert nothing.state == "no decisions yet"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_scores_survive_the_json_of_the_log_bit_for_bit(values: list[float]):
    decisions = [
        {"request_id": f"r{k}", "scores": json.dumps({"click": value})}
        for k, value in enumerate(values)
    ]
    table = pa.Table.from_pylist(decisions)
    logged = logged_columns(table.column("scores"))
    keys = table.column("request_id").combine_chunks()
    assert parity.compare_score_columns(keys, logged, {"click": pa.array(values)}).passed


def test_logged_features_become_columns_of_one_type_each():
    decisions = [
        {"request_id": "r0", "features": json.dumps({"n": 1, "t": "x", "m": 1, "b": True})},
        {"request_id": "r1", "features": json.dumps({"n": 0.5, "t": None, "m": "y"})},
        {"request_id": "r2", "features": None},
    ]
    table = features_of(pa.Table.from_pylist(decisions))
    assert table.column("n").to_pylist() == [1.0, 0.5, None]
    assert table.column("t").to_pylist() == ["x", None, None]
    assert table.column("m").to_pylist() == ["1", '"y"', None]
    assert table.column("b").to_pylist() == ["true", None, None]


def test_results_become_rows_and_an_hour_without_decisions_says_so():
    nothing = parity.compare_scores(scores(), scores())
    rows = tables.parity_rows(0, "", features=nothing, scores=nothing)
    assert tuple(rows.column_names) == tables.PARITY.column_names
    assert rows.column("state").to_pylist() == ["no decisions yet"] * 2
    logged = scores(("r0", "click", 0.1))
    replay = tables.candidate_replay_rows(
        "b0",
        0,
        HOUR_US,
        features=parity.compare_features(features(x=[1.0]), features(x=[2.0])),
        scores=parity.compare_scores(logged, logged),
    ).to_pylist()
    assert [(row["comparison"], row["name"], row["state"]) for row in replay] == [
        ("features", "x", "failed"),
        ("scores", "click", "passed"),
    ]
    assert replay[0]["first_offending"] == "r0"
