"""Faults of labels, planted in the events of a log whose labels are then joined anew.

Statements with ``$start_us`` and ``$end_us``, the hours that they spoil; those about an advertiser
name it as ``$advertiser``. They stand here once, for the tests and for the evidence.
"""

from ad_pipeline.datasets import Dataset
from ad_pipeline.examples.label_join import join_labels
from ad_pipeline.warehouse import Warehouse, bound, one_row

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

LEAST_CHANGED = 20
"""Rows that a fault must change to be one."""


def plant(
    warehouse: Warehouse,
    dataset: Dataset,
    statement: str,
    span: tuple[int, int],
    joined: tuple[int, int],
) -> None:
    """Change the events of some hours, and join the labels that it can change anew.

    Parameters
    ----------
    warehouse : Warehouse
        With events and labels.
    dataset : Dataset
    statement : str
    span, joined : tuple of int
        Hours that are spoilt, and hours whose labels are joined: start and end, microseconds.

    Raises
    ------
    ValueError
        If hardly anything changed: nothing could be found then.
    """
    values = {
        "start_us": span[0],
        "end_us": span[1],
        "advertiser": largest_advertiser(warehouse),
    }
    with warehouse.writer() as connection:
        (changed,) = one_row(connection, statement, bound(statement, values))
    if changed < LEAST_CHANGED:
        raise ValueError(f"only {changed} rows changed; plant the fault in a busier hour")
    join_labels(warehouse, dataset, *joined)


def largest_advertiser(warehouse: Warehouse) -> str:
    """Return the advertiser with most impressions."""
    with warehouse.reader() as connection:
        (name,) = one_row(
            connection,
            "SELECT advertiser_id FROM events.impressions GROUP BY ALL "
            "ORDER BY count(*) DESC, 1 LIMIT 1",
        )
    return name
