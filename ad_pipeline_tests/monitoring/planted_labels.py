"""A small market with a fault in its labels."""

from pathlib import Path

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from benchmarks.label_faults import plant

HOUR = 36
"""Of the market: past the hours that warm up, in its second day's traffic."""


def planted(market: Market, root: Path, statement: str, hours: int = 1) -> Market:
    """Return a copy of a market with a fault in its events, its labels joined anew.

    Parameters
    ----------
    market : Market
        As :func:`ad_pipeline_tests.learners.markets.ready_market` leaves it.
    root : Path
        Of the copy.
    statement : str
        Of :mod:`benchmarks.label_faults`; it spoils hours from :data:`HOUR` on.
    hours : int
    """
    copy = market.copied_to(root)
    start_us = market.start_us + HOUR * HOUR_US
    span = (start_us, start_us + hours * HOUR_US)
    log = (copy.start_us, copy.end_us)
    plant(Warehouse(copy.deployment.warehouse), copy.deployment.dataset, statement, span, log)
    return copy
