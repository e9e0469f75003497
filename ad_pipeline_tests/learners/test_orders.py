"""Orders from outside the schedule: kept by hour, carried out as of it, the same in a re-run."""

from pathlib import Path

import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.learners.orders import orders, record_orders
from ad_pipeline.learners.tables import DELAY_REFITS, RATE_ORDERS, TABLES
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import ready_market, with_settings

ORDERED = 3
"""Hour of the day after which something is ordered."""

SAID = {"cause": "drift", "evidence": "{}"}


def test_a_later_order_of_an_hour_replaces_the_earlier_one(tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    warehouse.create(TABLES)
    with warehouse.writer() as connection:
        record_orders(connection, DELAY_REFITS, [0, HOUR_US], cause="drift", evidence="{}")
        record_orders(connection, DELAY_REFITS, [HOUR_US], cause="a person", evidence="{}")
        found = orders(connection, DELAY_REFITS, 0, 2 * HOUR_US)
        assert orders(connection, DELAY_REFITS, 2 * HOUR_US, 9 * HOUR_US) == {}
    assert {hour: order["cause"] for hour, order in found.items()} == {
        0: "drift",
        HOUR_US: "a person",
    }


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market that is ready to be learnt; tests learn copies of it."""
    return ready_market(tmp_path_factory.mktemp("ready"), days=1)


def learnt(market: Market, hours: int = 6) -> list[str]:
    warehouse = Warehouse(market.deployment.warehouse)
    end_us = market.start_us + hours * HOUR_US
    return [
        hour.digest
        for hour in learn_hours(warehouse, market.deployment, market.start_us, end_us)
        if hour.goal == "click"
    ]


def raise_after(market: Market, hour: int) -> None:
    warehouse = Warehouse(market.deployment.warehouse)
    warehouse.create(TABLES)
    with warehouse.writer() as connection:
        record_orders(
            connection,
            RATE_ORDERS,
            [market.start_us + hour * HOUR_US],
            goals="click",
            doublings=2,
            **SAID,
        )


@pytest.mark.parametrize("controlled", [True, False])
def test_a_rate_order_holds_from_the_next_hour_and_only_where_a_control_lowers_it_again(
    ready: Market, tmp_path: Path, controlled: bool
) -> None:
    market = ready.copied_to(tmp_path / "plain")
    if controlled:
        market = with_settings(market, online={"rate_control": {}})
    ordered = market.copied_to(tmp_path / "ordered")
    raise_after(ordered, ORDERED)
    plain, raised = learnt(market), learnt(ordered)
    assert raised == learnt(ordered), "a re-run reads the order and gives the same bytes"
    assert raised[: ORDERED + 1] == plain[: ORDERED + 1]
    assert (raised[ORDERED + 1] != plain[ORDERED + 1]) is controlled
    with Warehouse(ordered.deployment.warehouse).reader() as connection:
        moves = connection.execute(
            "SELECT hour_us, goal, doublings FROM learners.rate_moves WHERE move = 'order'"
        ).fetchall()
    made = [(market.start_us + (ORDERED + 1) * HOUR_US, "click", 2)]
    assert moves == (made if controlled else [])
