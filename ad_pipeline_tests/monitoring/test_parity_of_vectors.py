"""Served vectors are looked up again by the name in the log; a stale cache of them is accused."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from ad_pipeline.clocks import HOUR_US, hours_between
from ad_pipeline.datasets import Deployment
from ad_pipeline.monitoring.parity.recheck import record_parity
from ad_pipeline.simulation.faulty_scorer import stale_vectors, swapped_columns
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.features.made_vectors import with_vectors
from benchmarks import served_hours
from benchmarks.served_hours import (
    SERVED_DAY,
    counted_market,
    drawn_bundle,
    hours_of_days,
    serve,
)

SPEC = replace(served_hours.SPEC, impressions_per_day=2_000)
STALE_HOUR, SWAPPED_HOUR, SOUND_HOUR = 26, 28, 30
SERVED_HOURS = 8


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """Return a market whose scorer reads vectors, for some hours not those that it logs."""
    home = tmp_path_factory.mktemp("served")
    market = counted_market(home / "market", SPEC)
    start_us, end_us = hours_of_days(market, range(SPEC.days))
    market = with_vectors(market, hours_between(start_us + 20 * HOUR_US, end_us), 3)
    faults = {
        STALE_HOUR: stale_vectors(2),
        SWAPPED_HOUR: swapped_columns("user_id", "ad_id"),  # both sides of a vector's look-up
    }
    return serve(market, home / "served", SPEC, drawn_bundle(market, SPEC), faults)


def findings(served: Deployment) -> Mapping[tuple[int, str], set[tuple[str, str]]]:
    start_us, _ = hours_of_days(served, range(SERVED_DAY, SERVED_DAY + 1))
    warehouse = Warehouse(served.warehouse)
    record_parity(warehouse, served, start_us, start_us + SERVED_HOURS * HOUR_US)
    with warehouse.reader() as connection:
        rows = connection.execute(
            "SELECT (hour_us - $start_us) // 3600000000, comparison, cause, "
            "CASE WHEN comparison = 'scores' THEN evidence ELSE '' END "
            "FROM monitoring.parity_findings",
            {"start_us": served.dataset.start_us},
        ).fetchall()
        compared, passed = connection.execute(
            "SELECT count(*), bool_and(state = 'passed') FROM monitoring.parity "
            "WHERE hour_us = $hour_us",
            {"hour_us": served.dataset.start_us + SOUND_HOUR * HOUR_US},
        ).fetchall()[0]
    assert compared > 0
    assert passed, "in a sound hour every score is given again, and every feature"
    found: dict[tuple[int, str], set[tuple[str, str]]] = {}
    for hour, comparison, cause, evidence in rows:
        found.setdefault((hour, comparison), set()).add((cause, evidence))
    return found


def test_a_stale_cache_of_vectors_is_named_by_the_scores_that_its_hours_vectors_give(
    served: Deployment,
) -> None:
    found = findings(served)
    assert found == {
        (STALE_HOUR, "scores"): {
            ("stale aggregate", "the user vectors of 2 h before those it names")
        },
        # What was swapped was logged as it arrived, vectors were looked up by it: scores agree.
        (SWAPPED_HOUR, "features"): {("swapped column", "")},
    }


def test_what_used_no_vectors_is_given_again_too(served: Deployment) -> None:
    """The served hours' log has the name everywhere; without one the numbers are unknown."""
    warehouse = Warehouse(served.warehouse)
    with warehouse.reader() as connection:
        named = connection.execute(
            "SELECT count(DISTINCT features ->> '$.\"user_vector.published\"'), "
            "count(*) FILTER (features ->> '$.\"user_vector.published\"' IS NULL) "
            "FROM events.decisions"
        ).fetchall()[0]
    assert named == (24, 0)
