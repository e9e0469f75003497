"""Users' vectors go the whole way into every learner: published, learnt, served and re-checked."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from ad_pipeline.checkpoints import resolve
from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.embeddings.published import NO_ENCODER, read_hour
from ad_pipeline.features.as_served import read_as_served
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.serving.bundle import open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.pointers import USER_VECTORS, read_pointer
from ad_pipeline.serving.promotion import promote
from ad_pipeline.warehouse import Warehouse, one_row, rows_of
from ad_pipeline_tests.defs.graph_shape import assets_of
from ad_pipeline_tests.defs.markets import TINY, Market, drive, make_market, write_days
from ad_pipeline_tests.defs.runs import BESIDE_THE_PATH, failed, run_here

VECTORS = {
    "user_vectors": {
        "encoder": {"dimension": 4, "width": 8, "heads": 2, "bits": 10},
        "training": {"epochs": 1},
        "retrain_every_hours": 8,
        "shard_bits": 1,
    },
    "deep": {"bits": 12, "embedding": 4, "layers": [8], "batch_rows": 128},
    "online": {"bits": 12},
}
NOT_ASKED = (
    "evaluation/report", "monitoring/drift", "monitoring/parity", "monitoring/parity_findings",
    "monitoring/serving_objectives", "serving/current", "embeddings/similar_users",
    "embeddings/candidates", "embeddings/on_demand_vectors", *BESIDE_THE_PATH,
)  # fmt: skip
"""Assets that neither the learners nor their bundle depend on."""

RECHECKED = ("monitoring/parity", "monitoring/parity_findings", "monitoring/serving_objectives")


@pytest.fixture
def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    """Return a market whose learners read vectors; its hours are those of this process."""
    made = make_market(tmp_path, replace(TINY, impressions_per_day=2_000, users=60), VECTORS)
    monkeypatch.setenv("AD_PIPELINE_DATASET", str(made.dataset_file))
    monkeypatch.setenv("AD_PIPELINE_HOME", str(made.root))
    write_days(made, range(1))
    return made


@pytest.mark.slow
def test_vectors_are_learnt_bundled_and_served_and_parity_finds_the_same_bits(
    market: Market, definitions: dg.Definitions
):
    deployment, day_us = market.deployment, market.start_us + DAY_US
    assets = {each.name for each in assets_of(definitions)}
    ran = run_here(definitions, assets - set(NOT_ASKED), market.start_us, day_us)
    assert ran.success
    evaluations = {found.check_name: found for found in ran.get_asset_check_evaluations()}
    asked = {"scores_agree_to_the_bit", "features_agree", "export_equals_its_models"}
    assert asked <= set(evaluations)
    assert not failed(evaluations) & asked

    # The log begins without an encoder and ends with one.
    first, last = (read_hour(deployment.vectors, at) for at in (market.start_us, day_us - HOUR_US))
    assert first.version == NO_ENCODER != last.version
    pointer = read_pointer(deployment.serving, USER_VECTORS)
    assert pointer is not None
    assert (pointer.digest, pointer.position) == (last.digest, day_us)

    contract = FeatureContract.from_dataset(deployment.dataset)
    warehouse = Warehouse(deployment.warehouse)
    with warehouse.reader() as connection:
        query = "SELECT * FROM events.impressions ORDER BY received_us, impression_id"
        rows = rows_of(connection, query, {})
    _, looked_up = read_as_served(deployment, contract, rows)
    known = np.isfinite(looked_up.vectors).mean(axis=1)
    hours = (rows.column("occurred_us").to_numpy() - market.start_us) // HOUR_US
    assert not known[hours < 4].any()
    assert known[hours >= 20].mean() > 0.5

    bundle = open_bundle(deployment.bundles, resolve(deployment.bundles, CANDIDATE))
    assert bundle.contract == contract
    models = {each.goal: each for each in bundle.goals}["click"]
    assert models.deep is not None
    assert models.deep.fields == len(contract.token_names)
    assert models.batch is not None

    # A day is served by what the pointers name, and every score is given again from the log.
    promote(deployment.serving, deployment.bundles, bundle.digest, {}, watermark_us=day_us)
    drive(market, 1)
    events = {name for name in assets if name.startswith("events/")}
    end_us = market.start_us + 2 * DAY_US
    assert run_here(definitions, events, day_us, end_us).success
    run_here(definitions, RECHECKED, day_us, end_us)
    with warehouse.reader() as connection:
        checked = "SELECT count(*), bool_and(state = 'passed') FROM monitoring.parity"
        compared, passed = one_row(connection, checked)
        (used,) = one_row(
            connection,
            "SELECT count(DISTINCT features ->> '$.\"user_vector.published\"') "
            "FROM events.decisions",
        )
    assert compared > 0
    assert passed
    assert used == 1
