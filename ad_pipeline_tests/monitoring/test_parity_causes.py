"""Causes: each planted fault is named by the hypothesis that gives its values, and by no other."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.monitoring.parity.causes import (
    ACT,
    Cause,
    CountsAt,
    Finding,
    Sides,
    feature_findings,
    score_finding,
)
from ad_pipeline.settings import ParitySettings

ROWS = 200
SETTINGS = ParitySettings()
RNG = np.random.default_rng(7)
AGE = RNG.uniform(0.1, 90.0, ROWS)
PRICE = RNG.uniform(1.0, 9.0, ROWS)
DEVICE = [f"device {k % 3}" for k in range(ROWS)]
COUNTRY = [f"country {k % 7}" for k in range(ROWS)]
KEYS = pa.array([f"r{k:03d}" for k in range(ROWS)])


def counts_of_hour(hours: int) -> np.ndarray:
    """Return counts that grow by a different number each hour."""
    return (1_000 + 17 * hours + np.arange(ROWS) % 5 * (hours + 9)).astype(np.int64)


def counts_at(hours: int, rows: np.ndarray) -> Mapping[str, np.ndarray] | None:
    return None if hours > 2 else {"ad.anchors": counts_of_hour(hours)[rows]}


def nothing_counted(rows: np.ndarray) -> Mapping[str, np.ndarray]:
    raise AssertionError("no entity's column differs: nothing is looked up by it")


RIGHT = {
    "age": pa.array(AGE),
    "price": pa.array(PRICE),
    "device": pa.array(DEVICE),
    "country": pa.array(COUNTRY),
    "ad.anchors": pa.array(counts_of_hour(0).astype(np.float64)),
}


def findings(
    changed: Mapping[str, pa.Array], without: str = "", at: CountsAt = counts_at
) -> dict[str, Finding]:
    logged = {name: values for name, values in RIGHT.items() if name != without} | dict(changed)
    sides = Sides(KEYS, logged, RIGHT, ("ad.anchors",))
    return {found.name: found for found in feature_findings(sides, at, nothing_counted, SETTINGS)}


def numbers(values: np.ndarray) -> pa.Array:
    return pa.array(np.asarray(values, np.float64))


def some(values: np.ndarray, right: np.ndarray, share: float) -> pa.Array:
    return numbers(np.where(np.arange(ROWS) < share * ROWS, values, right))


FAULTS: dict[str, tuple[Cause, str, dict[str, pa.Array]]] = {
    "cut to whole": ("float truncation", "age", {"age": numbers(np.trunc(AGE))}),
    "single precision": (
        "float truncation", "age", {"age": numbers(AGE.astype(np.float32).astype(np.float64))}
    ),
    "null burst": ("null burst", "age", {"age": pa.array([None] * 90 + AGE[90:].tolist())}),
    "number as text": (
        "type change", "price", {"price": pa.array([repr(x) for x in PRICE.tolist()])}
    ),
    "other number": ("swapped column", "price", {"price": numbers(AGE)}),
    "other text": ("swapped column", "device", {"device": pa.array(COUNTRY)}),
    "zero": ("default on timeout", "price", {"price": some(np.zeros(ROWS), PRICE, 0.1)}),
    "a modal value": ("default on timeout", "price", {"price": some(PRICE * 0 + 7, PRICE, 0.3)}),
    "three hours stale": (
        "stale aggregate", "ad.anchors", {"ad.anchors": numbers(counts_of_hour(-3))}
    ),
    "an hour ahead": ("leaked backfill", "ad.anchors", {"ad.anchors": numbers(counts_of_hour(1))}),
    "counts of nobody": (
        "default on timeout",
        "ad.anchors",
        {"ad.anchors": some(np.zeros(ROWS), counts_of_hour(0), 0.2)},
    ),
    "noise": ("unexplained", "age", {"age": numbers(AGE + RNG.normal(0, 1, ROWS))}),
    "too long ago": (
        "unexplained", "ad.anchors", {"ad.anchors": numbers(counts_of_hour(0) + 100_003)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_and_nothing_else_is_found(fault: str):
    cause, name, changed = FAULTS[fault]
    found = findings(changed)
    assert set(found) == {name}
    assert found[name].explanation.cause == cause
    if cause != "unexplained":
        assert found[name].explanation.explained == 1.0


def test_equal_sides_have_no_finding():
    assert findings({}) == {}


def test_a_renamed_column_is_named_on_both_of_its_names():
    found = findings({"cost": pa.array(PRICE)}, without="price")
    assert {name: each.explanation.cause for name, each in found.items()} == {
        "price": "renamed column",
        "cost": "renamed column",
    }
    assert found["price"].explanation.evidence == "logged as cost"


def test_two_faults_on_one_feature_are_unexplained_rather_than_half_right():
    halves = np.where(np.arange(ROWS) < ROWS // 2, np.trunc(AGE), 0.0)
    found = findings({"age": numbers(halves)})["age"].explanation
    assert found.cause == "unexplained"
    assert 0 < found.explained < SETTINGS.explained_share
    assert "nearest" in found.evidence


def test_a_leak_from_an_hour_that_is_not_there_yet_is_unexplained_until_it_is():
    leaked = {"ad.anchors": numbers(counts_of_hour(3))}
    assert findings(leaked)["ad.anchors"].explanation.cause == "unexplained"
    known = findings(leaked, at=lambda hours, rows: {"ad.anchors": counts_of_hour(hours)[rows]})
    assert known["ad.anchors"].explanation.cause == "leaked backfill"


def test_severity_follows_the_share_of_rows_and_examples_are_keys_that_differ():
    one = AGE.copy()
    one[4] = np.trunc(one[4])
    found = findings({"age": numbers(one)})["age"]
    assert (found.offending, found.rows, found.severe) == (1, ROWS, False)
    assert found.example_keys == ("r004",)
    assert findings({"age": numbers(np.trunc(AGE))})["age"].severe


@given(
    st.lists(st.floats(0.01, 1e6).filter(lambda x: x % 1 != 0), min_size=1, max_size=40),
    st.integers(0, 39),
)
def test_truncated_rows_are_counted_exactly(exact: list[float], cut: int):
    values = np.array(exact)
    logged = values.copy()
    logged[:cut] = np.trunc(logged[:cut])
    sides = Sides(
        pa.array([str(k) for k in range(len(values))]),
        {"x": pa.array(logged)},
        {"x": pa.array(values)},
        (),
    )
    found = feature_findings(sides, counts_at, nothing_counted, SETTINGS)
    assert sum(each.offending for each in found) == min(cut, len(values))
    # A value below 1 is cut to 0, which is the default as well: both are true.
    assert {each.explanation.cause for each in found} <= {"float truncation", "default on timeout"}


SCORES = RNG.uniform(0.0, 1.0, ROWS)
OTHER = RNG.uniform(0.0, 1.0, ROWS)
FROM_OURS = RNG.uniform(0.0, 1.0, ROWS)


@pytest.mark.parametrize(
    ("logged", "cause"),
    [
        (numbers(OTHER), "version skew"),
        (numbers(FROM_OURS), "logged otherwise than scored"),
        (numbers(SCORES.astype(np.float32).astype(np.float64)), "float truncation"),
        (pa.nulls(ROWS, pa.float64()), "null burst"),
        (numbers(np.nextafter(SCORES, 1.0)), "unexplained"),
    ],
)
def test_a_score_that_is_not_given_again_has_its_cause(logged: pa.Array, cause: Cause):
    found = score_finding(
        "click", KEYS, logged, pa.array(SCORES), {"b" * 64: pa.array(OTHER)},
        pa.array(FROM_OURS), SETTINGS,
    )  # fmt: skip
    assert found is not None
    assert (found.explanation.cause, found.severe, found.offending) == (cause, True, ROWS)


def test_scores_that_are_given_again_are_no_finding():
    right = pa.array(SCORES)
    assert score_finding("click", KEYS, right, right, {}, right, SETTINGS) is None


def test_every_cause_says_what_to_do():
    assert set(ACT) == set(Cause.__args__)
