"""A range in one run or in two: the same tables, checkpoints, snapshots and candidate."""

from itertools import pairwise
from pathlib import Path

import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.left_behind import LeftBehind, differences, left_behind
from ad_pipeline_tests.defs.markets import Market, make_market, run, write_days

DECIDED_ON_THE_WAY = ("serving/", "table monitoring.drift", "table monitoring.candidate_replay")
"""What also tells of the candidates and verdicts of the first half: they are not of the range."""


def made_by(market: Market, *bounds_us: int) -> tuple[LeftBehind, LeftBehind]:
    """Return what runs over consecutive ranges leave: what must be equal, and the objects."""
    for start_us, end_us in pairwise(bounds_us):
        run(market, start_us, end_us)
    found = left_behind(market.deployment)
    kept = {name: sha for name, sha in found.items() if not name.startswith(DECIDED_ON_THE_WAY)}
    objects = {name: sha for name, sha in kept.items() if "/objects/" in name}
    return {name: sha for name, sha in kept.items() if name not in objects}, objects


@pytest.mark.slow
def test_two_halves_leave_what_one_range_leaves(tmp_path: Path):
    """The second half begins where no chunk and no retrain of the whole begins."""
    whole, halves = make_market(tmp_path / "whole"), make_market(tmp_path / "halves")
    for market in (whole, halves):
        write_days(market, range(1))
    start_us = whole.start_us
    middle_us, end_us = start_us + 13 * HOUR_US, start_us + 24 * HOUR_US
    expected, objects = made_by(whole, start_us, end_us)
    found, more_objects = made_by(halves, start_us, middle_us, end_us)
    assert any(name.startswith("table learners.online_predictions") for name in expected)
    assert any(name.startswith("checkpoints/pointers/learners.batch_model") for name in expected)
    assert differences(expected, found) == []
    # Bundles and ensembles of the first half stay beside those of the whole.
    missing = objects.keys() - more_objects.keys()
    assert missing == set()

    # A range that is run again is the range.
    with Warehouse(halves.deployment.warehouse).reader() as connection:
        before = connection.execute("SELECT count(*) FROM events.impressions").fetchall()
    again, _ = made_by(halves, middle_us, end_us)
    with Warehouse(halves.deployment.warehouse).reader() as connection:
        assert connection.execute("SELECT count(*) FROM events.impressions").fetchall() == before
    assert differences(expected, again) == []
