"""The market with vectors that tests of hours read; each works on a copy if it writes."""

import pytest

from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.embeddings.vector_markets import HOURS, advanced, joined_market, trained


@pytest.fixture(scope="session")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market whose labels are joined; nothing was learnt yet."""
    return joined_market(tmp_path_factory.mktemp("joined"))


@pytest.fixture(scope="session")
def published(joined: Market, tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return the market with the encoders and vectors of its first hours; tests only read it."""
    market = joined.copied_to(tmp_path_factory.mktemp("published") / "home")
    trained(market, 0, HOURS)
    advanced(market, 0, HOURS)
    return market
