"""What goes wrong between the exchange and the log: duplicates, broken rows, lost parents.

Faults only add rows; the row that the truth speaks of always arrives, late at most (lateness is a
delay and drawn in `delays.py`). Every kind of fault here is one that the room `events` must find.
"""

import numpy as np

from ad_pipeline.clocks import HOUR_US, MINUTE_US, SECOND_US
from ad_pipeline.simulation.identifiers import NULL, tagged
from ad_pipeline.simulation.outcomes import CLICK, UNKNOWN_GOAL
from ad_pipeline.simulation.rows import Rows, replaced, row_count, stacked, take
from ad_pipeline.simulation.spec import FaultRates, MarketplaceSpec

BAD_TAG, ORPHAN_TAG, CLOCK_TAG = 0xBB, 0x0F, 0xCC
PLANTED_AT_HOUR = 10
"""The planted duplicates copy a row of this hour of each day."""


def with_duplicates(
    rows: Rows, changeable: str, rng: np.random.Generator, rates: FaultRates, hour: int
) -> Rows:
    """Add copies of rows: the log is at-least-once.

    Parameters
    ----------
    rows : Rows
    changeable : str
        Integer column in which a changed copy differs, by one.
    rng : numpy.random.Generator
    rates : FaultRates
    hour : int
        Hour of the world; in hour 10 of each day the first row is also sent again much later.

    Returns
    -------
    Rows
        The given rows, then the copies.
    """
    count = row_count(rows)
    chosen = np.flatnonzero(rng.random(count) < rates.duplicate)
    copies = take(rows, chosen)
    again_later = rng.random(len(chosen)) < 0.5
    wait = rng.integers(SECOND_US, 10 * MINUTE_US, len(chosen))
    changed = again_later & (rng.random(len(chosen)) < rates.changed_duplicate)
    copies["received_us"] = copies["received_us"] + np.where(again_later, wait, 0)
    copies[changeable] = copies[changeable] + changed
    parts = [rows, copies]
    if hour % 24 == PLANTED_AT_HOUR and count and rates.planted_duplicate_hours > 0:
        planted = take(rows, np.array([0]))
        planted["received_us"] = planted["received_us"] + round(
            rates.planted_duplicate_hours * HOUR_US
        )
        parts.append(planted)
    return stacked(parts)


def broken_impressions(rows: Rows, rng: np.random.Generator, rates: FaultRates) -> Rows:
    """Impressions that break the contract: without a key, or received before they occurred.

    Parameters
    ----------
    rows : Rows
        Sound impressions to copy from.
    rng : numpy.random.Generator
    rates : FaultRates

    Returns
    -------
    Rows
        Only the broken ones; their requests are their own.
    """
    broken = _sampled(rows, rng, rates.bad_row)
    count = row_count(broken)
    keyless = rng.random(count) < 0.5
    ahead = rng.integers(30 * SECOND_US, 10 * MINUTE_US, count)
    return replaced(
        broken,
        impression=np.where(keyless, NULL, tagged(CLOCK_TAG, broken["impression"])),
        request=tagged(BAD_TAG, broken["request"]),
        # The clock of the sender runs ahead.
        occurred_us=np.where(keyless, broken["occurred_us"], broken["received_us"] + ahead),
    )


def broken_engagements(impressions: Rows, rng: np.random.Generator, rates: FaultRates) -> Rows:
    """Engagements that break the contract, five kinds in equal shares.

    No key, no impression, an unknown goal, before its impression, received before it occurred.

    Parameters
    ----------
    impressions : Rows
        Sound impressions to refer to.
    rng : numpy.random.Generator
    rates : FaultRates

    Returns
    -------
    Rows
    """
    parents = _sampled(impressions, rng, rates.bad_row)
    count = row_count(parents)
    kind = rng.integers(0, 5, count)
    span = rng.integers(30 * SECOND_US, 10 * MINUTE_US, count)
    occurred = parents["occurred_us"] + span
    received = np.maximum(occurred, parents["received_us"]) + SECOND_US
    return {
        "event": np.where(kind == 0, NULL, tagged(BAD_TAG, parents["impression"])),
        "impression": np.where(kind == 1, NULL, parents["impression"]),
        "goal": np.where(kind == 2, UNKNOWN_GOAL, CLICK).astype(np.int16),
        "value": np.zeros(count, dtype=np.int64),
        "occurred_us": np.select(
            [kind == 3, kind == 4], [parents["occurred_us"] - span, received + span], occurred
        ),
        "received_us": received,
    }


def orphans(impressions: Rows, rng: np.random.Generator, rates: FaultRates) -> Rows:
    """Engagements whose impression never reaches the log.

    Orphans that resolve need no planting: an impression may take minutes to the log, and its
    click seconds.
    """
    parents = _sampled(impressions, rng, rates.orphan)
    count = row_count(parents)
    occurred = parents["occurred_us"] + rng.integers(SECOND_US, 10 * MINUTE_US, count)
    return {
        "event": tagged(ORPHAN_TAG, parents["impression"]),
        "impression": tagged(ORPHAN_TAG, parents["impression"]),
        "goal": np.full(count, CLICK, dtype=np.int16),
        "value": np.zeros(count, dtype=np.int64),
        "occurred_us": occurred,
        "received_us": occurred + SECOND_US,
    }


def faulty_impressions(spec: MarketplaceSpec, rows: Rows, hour: int) -> Rows:
    """One hour's impressions as the log gets them."""
    rng = spec.stream("impression faults", hour)
    doubled = with_duplicates(rows, "paid_price", rng, spec.fault_rates, hour)
    return stacked([doubled, broken_impressions(rows, rng, spec.fault_rates)])


def faulty_engagements(spec: MarketplaceSpec, rows: Rows, impressions: Rows, hour: int) -> Rows:
    """One hour's engagements as the log gets them."""
    rng = spec.stream("engagement faults", hour)
    return stacked(
        [
            with_duplicates(rows, "value", rng, spec.fault_rates, hour),
            broken_engagements(impressions, rng, spec.fault_rates),
            orphans(impressions, rng, spec.fault_rates),
        ]
    )


def _sampled(rows: Rows, rng: np.random.Generator, rate: float) -> Rows:
    """Copy about `rate` of the rows, in their order."""
    return take(rows, np.flatnonzero(rng.random(row_count(rows)) < rate))
