"""The log that tests of late labels share: a small market whose learners read models of delay."""

import pytest

from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import LATE_LOSSES, ready_market


@pytest.fixture(scope="session")
def late_market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market whose hours are ready to be learnt; what a test writes must be its own."""
    return ready_market(
        tmp_path_factory.mktemp("late_market"),
        settings=LATE_LOSSES | {"delay_benchmark": {"replicates": 50}},
        purchase_observation="1h",
    )
