"""Any River classifier can be the online expert: one of River's own goes all the way."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from ad_pipeline.checkpoints import read_checkpoint, resolve
from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.learners.online.online_hours import open_expert, pointer
from ad_pipeline.serving.bundle import open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.warehouse import Warehouse, one_row
from ad_pipeline_tests.defs.graph_shape import assets_of
from ad_pipeline_tests.defs.markets import TINY, Market, make_market, write_days
from ad_pipeline_tests.defs.runs import BESIDE_THE_PATH, failed, run_here

RIVER = {
    "online": {
        "estimator": "river.linear_model.LogisticRegression",
        "estimator_parameters": {"intercept_lr": 0.05},
        "bits": 12,
    }
}
NOT_ASKED = (
    "evaluation/report",
    "monitoring/drift",
    "monitoring/parity",
    "monitoring/parity_findings",
    "monitoring/serving_objectives",
)
"""Assets that neither the expert nor its bundle depends on."""


@pytest.fixture
def river_market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    """Return a market with few impressions whose dataset file names another expert.

    It has the hours of the tiny market, with which this process was loaded.
    """
    made = make_market(tmp_path, replace(TINY, impressions_per_day=1_000), RIVER)
    monkeypatch.setenv("AD_PIPELINE_DATASET", str(made.dataset_file))
    monkeypatch.setenv("AD_PIPELINE_HOME", str(made.root))
    write_days(made, range(1))
    return made


def test_rivers_logistic_regression_goes_through_the_same_asset_into_a_replayed_bundle(
    river_market: Market, definitions: dg.Definitions
):
    start_us, end_us = river_market.start_us, river_market.start_us + DAY_US
    assets = [
        asset.name
        for asset in assets_of(definitions)
        if asset.name not in {*NOT_ASKED, *BESIDE_THE_PATH, "serving/current"}
    ]
    ran = run_here(definitions, assets, start_us, end_us)
    assert ran.success
    evaluations = {found.check_name: found for found in ran.get_asset_check_evaluations()}
    assert {"newest_checkpoint_is_intact", "scores_agree_to_the_bit"} <= set(evaluations)
    assert failed(evaluations) == set()

    deployment = river_market.deployment
    digest = resolve(deployment.checkpoints, pointer("click", end_us - HOUR_US))
    manifest = read_checkpoint(deployment.checkpoints, digest).manifest
    assert manifest["expert"]["expert"] == "river"
    expert = open_expert(deployment.checkpoints, digest).linear_weights()
    assert expert is not None

    bundle = open_bundle(deployment.bundles, resolve(deployment.bundles, CANDIDATE))
    served = {models.goal: models for models in bundle.goals}["click"]
    assert served.online_checkpoint == digest
    assert (served.online.dense().weights == expert.weights).all()
    assert served.online.intercept == expert.intercept != 0

    with Warehouse(deployment.warehouse).reader() as connection:
        (rows, distinct) = one_row(
            connection,
            "SELECT count(*), count(DISTINCT logit) FROM learners.online_predictions "
            "WHERE goal = 'click'",
        )
    assert rows > 500
    assert distinct > 0.5 * rows, "it learnt something"
