"""Vectors of users in the graph: not there unless asked for, and the whole way once they are."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.embeddings.candidate_index import open_index
from ad_pipeline.embeddings.graph_hours import read_graph
from ad_pipeline.embeddings.published import published_hours, read_newest
from ad_pipeline.warehouse import Warehouse, one_row
from ad_pipeline_tests.defs.graph_shape import assets_of
from ad_pipeline_tests.defs.markets import TINY, Market, in_a_process, make_market, run, write_days
from ad_pipeline_tests.embeddings.made_worlds import needs_jax
from ad_pipeline_tests.embeddings.vector_markets import (
    HOURS,
    VECTORS,
    joined_market,
    publish_rates,
    trained,
    warehouse_of,
)

ASSETS = {
    "embeddings/candidates", "embeddings/encoder", "embeddings/on_demand_vectors",
    "embeddings/similar_users", "embeddings/user_vectors", "embeddings/version_lookups",
    "monitoring/user_vector_worth",
}  # fmt: skip
CHECKS = {
    "every_due_user_is_encoded", "neighbours_are_the_nearest_of_all",
    "vectors_are_finite_and_of_one_version", "vectors_know_nothing_after_their_hour",
}  # fmt: skip
SELECTED = '(group:"events" or group:"examples" or group:"embeddings") and not tag:"on_demand"'


@pytest.fixture
def vector_market(tmp_path: Path) -> Market:
    spec = replace(TINY, impressions_per_day=3_000, days=1)
    return make_market(tmp_path, spec, {"user_vectors": VECTORS})


def test_without_the_setting_there_is_no_asset_of_them(definitions: dg.Definitions) -> None:
    assert not {asset.name for asset in assets_of(definitions)} & ASSETS


def test_the_setting_alone_brings_assets_and_checks_that_keep_the_rules(
    vector_market: Market,
) -> None:
    said = subprocess.run(
        [sys.executable, "-m", "ad_pipeline_tests.defs.graph_shape", "--json"],
        env=os.environ | vector_market.environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = json.loads(said.splitlines()[-1])
    assert found["faults"] == []
    lines = {line.split(" (")[0].strip(" ?") for line in found["shape"].splitlines()}
    assert lines >= ASSETS | CHECKS | {"job encode_users", "job value_user_vectors"}


@pytest.mark.slow
@needs_jax
def test_vectors_graph_and_candidates_are_made_by_dagster_and_their_checks_pass(
    vector_market: Market,
) -> None:
    market = vector_market
    write_days(market, range(1))
    first_us, end_us = market.start_us, market.start_us + 14 * HOUR_US
    run(market, first_us, end_us, SELECTED)
    # An hour more continues what the range before left.
    ran = run(market, end_us, end_us + HOUR_US, SELECTED)
    deployment = market.deployment
    assert len(published_hours(deployment.vectors)) == 15
    newest = read_newest(deployment.vectors)
    assert newest.hour_us == end_us
    assert read_graph(deployment.vectors).vectors == newest.digest
    index = open_index(deployment.vectors)
    assert index.version == newest.version
    with Warehouse(deployment.warehouse).reader() as connection:
        assert one_row(connection, "SELECT count(*) FROM embeddings.candidates")[0] > 100
        lookups = "SELECT min(outcome), max(outcome) FROM embeddings.version_lookups"
        assert one_row(connection, lookups) == ("passed", "passed")
    for name in CHECKS:
        assert re.search(f"Asset check '{name}' on '[^']*' passed", ran.stdout)
    asked = {"ops": {"embeddings__on_demand_vectors": {"config": {"user_ids": ["user-000001"]}}}}
    in_a_process(
        market,
        ["dagster", "asset", "materialize", "-m", "ad_pipeline.definitions", "--select",
         "embeddings/on_demand_vectors", "--config-json", json.dumps(asked)],
    )  # fmt: skip
    assert read_newest(deployment.vectors).digest == newest.digest


@pytest.mark.slow
@needs_jax
def test_what_vectors_are_worth_is_asked_by_dagster_and_kept(tmp_path: Path) -> None:
    market = joined_market(tmp_path)
    publish_rates(market)
    trained(market, 0, HOURS)
    asked = {"hour": hour_key(market.start_us + 27 * HOUR_US), "hours": 16, "dimensions": [4],
             "ablation": True}  # fmt: skip
    ran = in_a_process(
        market,
        ["dagster", "asset", "materialize", "-m", "ad_pipeline.definitions", "--select",
         "monitoring/user_vector_worth", "--config-json",
         json.dumps({"ops": {"user_vector_worth": {"config": asked}}})],
    )  # fmt: skip
    for name in ("dimension 4", "without cyclic_pattern", "only content_view"):
        assert f"{name} is measured" in ran.stdout
    query = (
        "SELECT count(*), count(DISTINCT question), count(DISTINCT (goal, question, arm, part, "
        "metric)), min(as_of_us), count(*) FILTER (low > high) FROM monitoring.user_vector_worth"
    )
    with warehouse_of(market).reader() as connection:
        rows, questions, keys, as_of_us, turned = one_row(connection, query)
    assert rows == keys > 20
    assert questions == 7
    assert as_of_us == market.start_us + 28 * HOUR_US - 1
    assert turned == 0
