"""The market that the tests of this room run: loaded in this process, materialized once.

The partitions of a dataset are read when the definitions are imported, so this process has one
dataset: the tiny market. Other datasets are loaded in processes of their own (``test_graph.py``).
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from ad_pipeline_tests.defs.markets import (
    Market,
    drive,
    in_a_process,
    make_market,
    write_days,
)

TINY_MARKET = make_market(Path(os.environ["AD_PIPELINE_HOME"]) / "tiny")

os.environ["AD_PIPELINE_DATASET"] = str(TINY_MARKET.dataset_file)


@pytest.fixture(scope="session")
def market() -> Market:
    """Return the market after its whole life; tests only read it.

    One day is learnt and its bundle promoted, a driver serves the second day through that bundle,
    then that day and the tail of its labels are learnt: by ``ad_pipeline run`` each time, whose
    words are kept beside the market's home.
    """
    write_days(TINY_MARKET, range(1))
    for day in ("first", "second"):
        ran = in_a_process(TINY_MARKET, ["ad_pipeline.cli", "run", str(TINY_MARKET.dataset_file)])
        (TINY_MARKET.dataset_file.parent / f"{day}_run.txt").write_text(ran.stdout)
        if day == "first":
            drive(TINY_MARKET, 1)
    return TINY_MARKET


@pytest.fixture
def own_market(market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    """Return a copy of the market that a test may damage; this process works on it.

    Without what is of no use there: Dagster's records and the pictures.
    """
    copied = market.copied_to(tmp_path / "home", "dagster_home", "reports")
    monkeypatch.setenv("AD_PIPELINE_HOME", str(copied.root))
    return copied


@pytest.fixture
def new_market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    """Return a market of which nothing is known yet; this process works on it."""
    monkeypatch.setenv("AD_PIPELINE_HOME", str(tmp_path / "new"))
    return replace(TINY_MARKET, root=tmp_path / "new")


@pytest.fixture(scope="session")
def definitions() -> dg.Definitions:
    """Return the definitions as this process has them: those of the tiny market."""
    from ad_pipeline.definitions import defs

    loaded = defs()
    assert isinstance(loaded, dg.Definitions)
    return loaded


@pytest.fixture(scope="session")
def instance(market: Market) -> Iterator[dg.DagsterInstance]:
    """Return the Dagster instance that the market was run in; tests only read it."""
    with dg.DagsterInstance.from_config(str(market.dagster_home)) as found:
        yield found
