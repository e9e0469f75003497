"""What tests of this room share: a market whose learners read models of delay, and a bundle."""

import pytest

from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import LATE_LOSSES, ready_market
from ad_pipeline_tests.serving import worlds


@pytest.fixture(scope="session")
def late_market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market whose hours are ready to be learnt; what a test writes must be its own."""
    return ready_market(
        tmp_path_factory.mktemp("late_market"),
        settings=LATE_LOSSES | {"delay_benchmark": {"replicates": 50}},
        purchase_observation="1h",
    )


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.World:
    """Return a small trained bundle with its requests; tests only read it."""
    return worlds.build(tmp_path_factory.mktemp("world"))
