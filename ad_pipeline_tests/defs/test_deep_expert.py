"""Wide & deep goes the whole way: the ensemble weighs three experts, and the bundle replays it."""

import sys
from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from ad_pipeline.checkpoints import read_checkpoint, resolve
from ad_pipeline.clocks import DAY_US, HOUR_US
from ad_pipeline.learners.deep import deep_hours
from ad_pipeline.learners.deep.wide_deep import WideDeep
from ad_pipeline.learners.ensemble.ensembles import open_ensemble
from ad_pipeline.serving.bundle import open_bundle
from ad_pipeline.serving.candidate import CANDIDATE
from ad_pipeline.serving.retention import checkpoints_in_use
from ad_pipeline.warehouse import Warehouse, one_row
from ad_pipeline_tests.defs.graph_shape import assets_of
from ad_pipeline_tests.defs.markets import TINY, Market, make_market, write_days
from ad_pipeline_tests.defs.runs import BESIDE_THE_PATH, failed, run_here

DEEP = {
    "deep": {"bits": 12, "embedding": 4, "layers": [16, 8], "batch_rows": 128},
    "online": {"bits": 12},
}
NOT_ASKED = (
    "evaluation/report", "monitoring/drift", "monitoring/parity",
    "monitoring/parity_findings", "monitoring/serving_objectives", "serving/current",
    *BESIDE_THE_PATH,
)  # fmt: skip
"""Assets that neither the expert nor its bundle depends on."""


@pytest.fixture
def deep_market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Market:
    """Return a market whose settings ask for wide & deep; its hours are those of this process."""
    made = make_market(tmp_path, replace(TINY, impressions_per_day=2_000), DEEP)
    monkeypatch.setenv("AD_PIPELINE_DATASET", str(made.dataset_file))
    monkeypatch.setenv("AD_PIPELINE_HOME", str(made.root))
    write_days(made, range(1))
    return made


def run_day(market: Market, definitions: dg.Definitions) -> dg.ExecuteInProcessResult:
    assets = [each.name for each in assets_of(definitions) if each.name not in NOT_ASKED]
    return run_here(definitions, assets, market.start_us, market.start_us + DAY_US)


@pytest.mark.slow
def test_the_ensemble_weighs_three_experts_and_the_bundle_replays_them_to_the_bit(
    deep_market: Market, definitions: dg.Definitions
):
    ran = run_day(deep_market, definitions)
    assert ran.success
    evaluations = {found.check_name: found for found in ran.get_asset_check_evaluations()}
    asked = {
        "deep_extra_is_installed", "newest_deep_checkpoint_is_intact", "scores_agree_to_the_bit",
        "export_equals_its_models",
    }  # fmt: skip
    assert asked <= set(evaluations)
    assert not failed(evaluations) & asked

    deployment = deep_market.deployment
    fitted = open_ensemble(deployment, "click")
    assert fitted is not None
    facts = fitted.ensemble.facts
    weighed = {*fitted.ensemble.experts, *facts["left_out"]}
    weighed |= {trial["name"] for trial in facts["mixtures"]}
    assert "deep" in weighed
    assert "positives before the test range" not in facts["left_out"].get("deep", "")

    bundle = open_bundle(deployment.bundles, resolve(deployment.bundles, CANDIDATE))
    served = {models.goal: models for models in bundle.goals}["click"]
    last_us = deep_market.start_us + DAY_US - HOUR_US
    assert served.deep is not None
    assert served.deep_checkpoint == deep_hours.digest_after(deployment, "click", last_us)
    assert served.deep_checkpoint in checkpoints_in_use(deployment)
    checkpoint = read_checkpoint(deployment.checkpoints, served.deep_checkpoint)
    learner = WideDeep.restore(checkpoint.arrays, checkpoint.manifest["expert"])
    generator = np.random.default_rng(1)
    rows = generator.integers(0, 1 << 12, (500, served.deep.fields)).astype(np.uint32)
    assert np.array_equal(served.deep.logits(rows), learner.logits(rows))


@pytest.mark.slow
def test_without_jax_everything_else_is_made_and_a_check_warns(
    deep_market: Market, definitions: dg.Definitions, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "jax", None)
    ran = run_day(deep_market, definitions)
    assert ran.success
    evaluations = {found.check_name: found for found in ran.get_asset_check_evaluations()}
    warned = evaluations["deep_extra_is_installed"]
    assert not warned.passed
    assert warned.severity == dg.AssetCheckSeverity.WARN
    assert "pip install ad_pipeline[deep]" in (warned.description or "")
    assert {"newest_checkpoint_is_intact", "scores_agree_to_the_bit"} <= set(evaluations)
    assert not failed(evaluations) & {"newest_checkpoint_is_intact", "scores_agree_to_the_bit"}
    shown = ran.asset_materializations_for_node("learners__deep_model")
    assert any("pip install" in str(each.metadata) for each in shown)
    deployment = deep_market.deployment
    with Warehouse(deployment.warehouse).reader() as connection:
        assert one_row(connection, "SELECT count(*) FROM learners.deep_predictions") == (0,)
    fitted = open_ensemble(deployment, "click")
    assert fitted is not None
    assert "deep" in fitted.ensemble.facts["left_out"]
    bundle = open_bundle(deployment.bundles, resolve(deployment.bundles, CANDIDATE))
    assert all(models.deep is None for models in bundle.goals)
