"""Objectives of serving: kept, left, or merely measured."""

import pyarrow as pa
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.monitoring.parity.objectives import Measured, measured_objectives
from ad_pipeline.settings import ParitySettings

SETTINGS = ParitySettings(
    coverage={"age": 0.9}, age_hours={"rates": 2.0}, fallback_share={"missing column": 0.1}
)


def measured(
    logged: list[float | None],
    age_hours: float = 1.0,
    fallbacks: dict[str, int] | None = None,
    score: float | None = 0.1,
) -> dict[str, Measured]:
    rows = len(logged)
    found = measured_objectives(
        SETTINGS,
        ("age", "never_logged"),
        {"age": pa.array(logged, pa.float64())},
        {"rates": pa.array([age_hours * HOUR_US] * rows, pa.float64())},
        fallbacks or {},
        [pa.array([score] * rows, pa.float64())],
        rows,
    )
    return {f"{each.measure} {each.name}".strip(): each for each in found}


def left(found: dict[str, Measured]) -> set[str]:
    return {name for name, each in found.items() if not each.kept}


def test_a_sound_hour_keeps_all_and_what_has_no_objective_is_measured_all_the_same():
    found = measured([1.0] * 10)
    assert left(found) == set()
    assert found["coverage never_logged"].value == 0.0
    assert found["coverage never_logged"].objective is None


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        ({"logged": [None] * 2 + [1.0] * 8}, "coverage age"),
        ({"logged": [1.0] * 10, "age_hours": 3.0}, "age_hours rates"),
        (
            {"logged": [1.0] * 10, "fallbacks": {"missing column age: null": 2}},
            "fallback_share missing column age: null",
        ),
        ({"logged": [1.0] * 10, "score": None}, "error_share"),
    ],
)
def test_each_objective_that_is_left_is_found(planted: dict, name: str):
    assert left(measured(**planted)) == {name}


def test_a_fallback_without_objective_is_only_measured():
    assert (
        left(measured([1.0] * 10, fallbacks={"stale snapshot: a later one was due": 10})) == set()
    )
