"""Faults of labels, planted in the events of a small market whose labels are then joined anew."""

from pathlib import Path

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market

HOUR = 36
"""Of the market: past the hours that warm up, in its second day's traffic."""

FLOOD = (
    "INSERT INTO events.engagements BY NAME SELECT 'bot ' || impression_id AS event_id, "
    "impression_id, 'click' AS goal, received_us + 1 AS occurred_us, "
    "received_us + 1 AS received_us, received_us + 1 AS logged_us, received_us + 1 AS read_us "
    "FROM events.impressions "
    "WHERE advertiser_id = $advertiser AND received_us >= $start_us AND received_us < $end_us"
)
"""Every impression of one advertiser is clicked."""

STALL = (
    "DELETE FROM events.engagements WHERE goal = 'click' AND received_us >= $start_us "
    "AND received_us < $end_us"
)
"""The click stream stands still for an hour."""

REFUNDS = (
    "INSERT INTO events.retractions BY NAME SELECT 'refund ' || event_id AS event_id, "
    "event_id AS engagement_event_id, 'fraud' AS reason, $start_us + 60000000 AS occurred_us, "
    "$start_us + 60000000 AS received_us, $start_us + 60000000 AS logged_us "
    "FROM events.engagements "
    "WHERE goal = 'click' AND received_us >= $start_us - 2 * 3600000000 "
    "AND received_us < $start_us - 900000000"
)
"""The clicks of nearly two hours are taken back at once."""

LATE = (
    "UPDATE events.engagements SET received_us = received_us + 2 * 3600000000 WHERE goal = 'click' "
    "AND received_us >= $start_us - 2 * 3600000000 AND received_us < $end_us - 2 * 3600000000"
)
"""What should have come two hours before comes in the hour, before the labels are final."""


def planted(market: Market, root: Path, statement: str, hours: int = 1, **values: str) -> Market:
    """Return a copy of a market with a fault in its events, its labels joined anew.

    Parameters
    ----------
    market : Market
        As :func:`ad_pipeline_tests.learners.markets.ready_market` leaves it.
    root : Path
        Of the copy.
    statement : str
        With ``$start_us`` and ``$end_us``: from :data:`HOUR` on.
    hours : int
    **values
        Of the statement's other names.
    """
    copy = market.copied_to(root)
    start_us = market.start_us + HOUR * HOUR_US
    warehouse = Warehouse(copy.deployment.warehouse)
    bound = {"start_us": start_us, "end_us": start_us + hours * HOUR_US, **values}
    named = {name: value for name, value in bound.items() if f"${name}" in statement}
    with warehouse.writer() as connection:
        (changed,) = connection.execute(statement, named).fetchone() or (0,)
    assert changed > 20
    join_labels(warehouse, copy.deployment.dataset, copy.start_us, copy.end_us)
    return copy


def largest_advertiser(market: Market) -> str:
    """Return the advertiser with most impressions."""
    with Warehouse(market.deployment.warehouse).reader() as connection:
        (name,) = connection.execute(
            "SELECT advertiser_id FROM events.impressions GROUP BY ALL ORDER BY count(*) DESC, 1"
        ).fetchone() or ("",)
    return name
