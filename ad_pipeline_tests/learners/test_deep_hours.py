"""Wide & deep over log hours: continued as if never interrupted, scored before it learns.

On a simulated market up to where learners begin. What a learner does with its rows is
``test_wide_deep.py``; the whole path with three experts, ``defs/test_deep_expert.py``.
"""

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ad_pipeline.checkpoints import (
    CorruptCheckpoint,
    MissingCheckpoint,
    point,
    read_checkpoint,
    resolve,
    unpoint,
    write_checkpoint,
)
from ad_pipeline.clocks import HOUR_US, hour_key
from ad_pipeline.datasets import Deployment
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.learners.deep import deep_hours
from ad_pipeline.learners.deep.wide_deep import WideDeep
from ad_pipeline.learners.delayed.delay_model_hours import fit_hours
from ad_pipeline.learners.delayed.shown_hours import encoded_slots
from ad_pipeline.learners.online.online_checkpoints import OtherLearner
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.learners.online.quarantine import decide
from ad_pipeline.learners.online.recovery import begin
from ad_pipeline.learners.online.retention import DEEP, prune
from ad_pipeline.learners.tables import TABLES
from ad_pipeline.warehouse import Warehouse, rows_of, select
from ad_pipeline_tests.defs.left_behind import LeftBehind, differences, left_behind
from ad_pipeline_tests.defs.markets import TINY, Market
from ad_pipeline_tests.learners.markets import ready_market

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None,
    reason="JAX is not installed: pip install ad_pipeline[deep]",
)

DEEP_SETTINGS: dict[str, Any] = {
    "bits": 10, "embedding": 4, "layers": [16, 8], "batch_rows": 128,
    "by_goal": {"purchase": {"loss": "defer"}},
}  # fmt: skip
HOURS = 8


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market that is ready to be learnt; a test works on a copy of it."""
    market = ready_market(
        tmp_path_factory.mktemp("ready"),
        days=1,
        settings={"deep": DEEP_SETTINGS, "online": {"bits": 12}},
        spec=replace(TINY, impressions_per_day=3_000),
        purchase_observation="1h",
    )
    span = market.start_us, market.start_us + HOURS * HOUR_US
    for _ in fit_hours(Warehouse(market.deployment.warehouse), market.deployment, *span):
        pass
    return market


@pytest.fixture
def market(ready: Market, tmp_path: Path) -> Market:
    return ready.copied_to(tmp_path / "home")


def with_settings(market: Market, folder: Path, deep: Mapping[str, Any] | None) -> Market:
    """Return the market with other settings of wide & deep; None takes it out."""
    written = yaml.safe_load(market.dataset_file.read_text())
    written["settings"]["deep"] = deep
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return replace(market, dataset_file=path)


def continued(market: Market, first: int, last: int) -> list[deep_hours.ContinuedHour]:
    deployment, hour = market.deployment, market.start_us + first * HOUR_US
    end_us = market.start_us + last * HOUR_US
    return list(
        deep_hours.continue_hours(Warehouse(deployment.warehouse), deployment, hour, end_us)
    )


def scored(market: Market, first: int, last: int) -> int:
    """Score some hours and return the rows of the predictions."""
    deployment, hour = market.deployment, market.start_us + first * HOUR_US
    end_us = market.start_us + last * HOUR_US
    warehouse = Warehouse(deployment.warehouse)
    return sum(each.rows for each in deep_hours.score_hours(warehouse, deployment, hour, end_us))


def models(deployment: Deployment) -> LeftBehind:
    """Return every pointer of wide & deep, and what it points at."""
    return {
        name: digest
        for name, digest in left_behind(deployment).items()
        if name.startswith((f"checkpoints/pointers/{deep_hours.KIND}", "checkpoints/objects/"))
    }


def pointed(left: LeftBehind) -> LeftBehind:
    """Return the pointers among them: objects of models that nothing points at stay for a while."""
    return {name: digest for name, digest in left.items() if "/pointers/" in name}


@pytest.mark.slow
@needs_jax
def test_a_killed_run_that_goes_on_ends_in_the_bytes_of_one_that_was_not(
    market: Market, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = market.copied_to(tmp_path / "other")
    hours = continued(market, 0, HOURS)
    assert sum(hour.learnt for hour in hours) > 400
    undisturbed = models(market.deployment)
    assert len({hour.digest for hour in hours if hour.goal == "click"}) > HOURS // 2

    sound, left = deep_hours.write_checkpoint, 7

    def dying(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return sound(*arguments)

    monkeypatch.setattr(deep_hours, "write_checkpoint", dying)
    with pytest.raises(KeyboardInterrupt):
        continued(other, 0, HOURS)
    monkeypatch.undo()
    assert differences(undisturbed, models(other.deployment)), "it died before the end"
    continued(other, 3, HOURS)
    assert not differences(undisturbed, models(other.deployment))


@pytest.mark.slow
@needs_jax
def test_hours_without_a_model_are_caught_up_on_and_give_the_same_bytes(
    market: Market, tmp_path: Path
) -> None:
    other = market.copied_to(tmp_path / "other")
    continued(market, 0, HOURS)
    late = continued(other, HOURS - 2, HOURS)
    assert {hour.hour_us for hour in late} == {
        market.start_us + place * HOUR_US for place in (HOURS - 2, HOURS - 1)
    }
    assert not differences(models(market.deployment), models(other.deployment))
    # One goal's models lost, the other's not: the lost ones alone are made again.
    deployment, before = other.deployment, models(other.deployment)
    for place in range(3, HOURS):
        unpoint(
            deployment.checkpoints,
            deep_hours.pointer("click", other.start_us + place * HOUR_US),
        )
    assert differences(before, models(deployment))
    continued(other, HOURS - 1, HOURS)
    assert not differences(before, models(deployment))


@needs_jax
def test_an_hour_is_scored_by_the_model_that_the_hour_before_it_left(market: Market) -> None:
    continued(market, 0, HOURS)
    assert scored(market, 0, HOURS) > 400
    deployment = market.deployment
    contract = FeatureContract.from_dataset(deployment.dataset)
    hour_us = market.start_us + 5 * HOUR_US
    span = {"start_us": hour_us, "end_us": hour_us + HOUR_US}
    with Warehouse(deployment.warehouse).reader() as connection:
        served = rows_of(connection, select("features.impressions_received"), span)
        said = rows_of(
            connection,
            "SELECT logit, model_hash FROM learners.deep_predictions WHERE goal = 'purchase' "
            "AND serving_us >= $start_us AND serving_us < $end_us "
            "ORDER BY serving_us, impression_id",
            span,
        )
    slots = encoded_slots(deployment, contract, served)

    def by_learner(after_us: int) -> np.ndarray:
        digest = resolve(deployment.checkpoints, deep_hours.pointer("purchase", after_us))
        checkpoint = read_checkpoint(deployment.checkpoints, digest)
        return WideDeep.restore(checkpoint.arrays, checkpoint.manifest["expert"]).logits(slots)

    logits = said.column("logit").to_numpy()
    assert np.array_equal(logits, by_learner(hour_us - HOUR_US))
    assert not np.array_equal(logits, by_learner(hour_us)), "which would be of the hour itself"


@needs_jax
def test_an_hour_that_is_left_out_is_not_learnt(market: Market) -> None:
    deployment = market.deployment
    spoilt_us = market.start_us + 3 * HOUR_US
    before = {(hour.goal, hour.hour_us): hour for hour in continued(market, 0, 5)}
    with Warehouse(deployment.warehouse).writer() as connection:
        decide(connection, {"click": spoilt_us}, "left_out", "a test", {})
    after = {(hour.goal, hour.hour_us): hour for hour in continued(market, 3, 5)}
    assert before["click", spoilt_us].learnt > 0
    assert after["click", spoilt_us].learnt == 0
    assert after["click", spoilt_us].digest == before["click", spoilt_us - HOUR_US].digest
    assert after["click", spoilt_us + HOUR_US].digest != before["click", spoilt_us + HOUR_US].digest
    assert after["purchase", spoilt_us].digest == before["purchase", spoilt_us].digest


@needs_jax
def test_a_recovery_takes_wide_and_deep_back_too_and_ends_where_one_that_never_saw_the_hour_does(
    market: Market, tmp_path: Path
) -> None:
    def learnt(learning: Market, first: int, last: int) -> LeftBehind:
        warehouse = Warehouse(learning.deployment.warehouse)
        span = market.start_us + first * HOUR_US, market.start_us + last * HOUR_US
        for _ in learn_hours(warehouse, learning.deployment, *span):
            pass
        continued(learning, first, last)
        return models(learning.deployment)

    never_saw = market.copied_to(tmp_path / "never_saw")
    spoilt = {"click": market.start_us + 3 * HOUR_US}
    warehouse = Warehouse(never_saw.deployment.warehouse)
    warehouse.create(TABLES)
    with warehouse.writer() as connection:
        decide(connection, spoilt, "left_out", "a test", {})
    expected = pointed(learnt(never_saw, 0, 6))
    saw = pointed(learnt(market, 0, 6))

    begin(Warehouse(market.deployment.warehouse), market.deployment, spoilt, "a test", {})
    first = hour_key(spoilt["click"]).replace(":", "")
    earlier = {name: digest for name, digest in saw.items() if Path(name).stem < first}
    assert pointed(models(market.deployment)) == earlier != {}
    assert pointed(learnt(market, 3, 6)) == expected
    assert expected != saw, "an hour left out would be noticed"


@needs_jax
def test_a_continuation_that_is_not_due_leaves_its_examples_to_the_next(
    market: Market, tmp_path: Path
) -> None:
    each = sum(hour.learnt for hour in continued(market, 0, 6))
    rare = with_settings(market, tmp_path, DEEP_SETTINGS | {"every_hours": 3})
    rare = rare.copied_to(tmp_path / "rare", "checkpoints")
    hours = continued(rare, 0, 4) + continued(rare, 4, 6)
    due = [(hour.hour_us + HOUR_US) // HOUR_US % 3 == 0 for hour in hours]
    assert [hour.learnt > 0 for hour in hours if hour.goal == "click"] == due[::2]
    assert sum(hour.learnt for hour in hours) == each
    whole = rare.copied_to(tmp_path / "whole", "checkpoints")
    continued(whole, 0, 6)
    assert not differences(models(rare.deployment), models(whole.deployment))


@needs_jax
def test_other_settings_do_not_go_on_from_a_model_but_how_often_may_change(
    market: Market, tmp_path: Path
) -> None:
    continued(market, 0, 2)
    often = with_settings(market, tmp_path, DEEP_SETTINGS | {"every_hours": 2})
    assert continued(often, 2, 3)[0].digest
    other = with_settings(market, tmp_path, DEEP_SETTINGS | {"layers": [16, 4]})
    with pytest.raises(OtherLearner, match=r"deep model of .* layers is .* settings\.deep"):
        continued(other, 2, 3)


@needs_jax
def test_a_checkpoint_whose_canaries_score_otherwise_is_refused(market: Market) -> None:
    deployment = market.deployment
    digest = continued(market, 0, 2)[-1].digest
    assert digest is not None
    assert deep_hours.open_deep(deployment, digest).exported.learnt > 100
    checkpoint = read_checkpoint(deployment.checkpoints, digest)
    arrays = dict(checkpoint.arrays)
    arrays["canary_logits"] = np.nextafter(arrays["canary_logits"], np.inf)
    told = {name: checkpoint.manifest[name] for name in ("goal", "expert")}
    planted = write_checkpoint(deployment.checkpoints, deep_hours.KIND, arrays, told)
    with pytest.raises(CorruptCheckpoint, match="canary rows score"):
        deep_hours.open_deep(deployment, planted.digest)


@needs_jax
def test_models_that_retention_removed_are_asked_for_before_their_scores_are_replaced(
    market: Market,
) -> None:
    deployment = market.deployment
    continued(market, 0, HOURS)
    rows = scored(market, 0, HOURS)
    few = deployment.dataset.settings.checkpoints.model_copy(
        update={"hourly_hours": 2, "daily_days": 0, "at_least": 1}
    )
    settings = deployment.dataset.settings.model_copy(update={"checkpoints": few})
    dataset = deployment.dataset.model_copy(update={"settings": settings})
    first_us = market.start_us
    pruned = prune(replace(deployment, dataset=dataset), needed_hours=[first_us])
    kept = [market.start_us + place * HOUR_US for place in (HOURS - 2, HOURS - 1)]
    assert set(kept) <= set(pruned.kept_us[f"click{DEEP}"]) <= {first_us, *kept}
    assert pruned.removed_us[f"click{DEEP}"]
    assert pruned.swept.removed > 0
    with pytest.raises(MissingCheckpoint, match=r"materialize learners/deep_model from"):
        scored(market, 4, 5)
    continued(market, 1, HOURS)
    assert scored(market, 0, HOURS) == rows


def test_without_jax_nothing_is_learnt_and_every_hour_says_what_to_install(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    assert "pip install ad_pipeline[deep]" in deep_hours.missing_extra(market.deployment)
    hours = continued(market, 0, 2)
    assert {hour.digest for hour in hours} == {None}
    assert all("pip install ad_pipeline[deep]" in hour.cause for hour in hours)
    assert scored(market, 0, 2) == 0


def test_without_the_settings_there_is_no_expert_whatever_models_are_there(
    market: Market, tmp_path: Path
) -> None:
    none = with_settings(market, tmp_path, None)
    assert deep_hours.missing_extra(none.deployment) == ""
    assert {hour.cause for hour in continued(none, 0, 1)} == {deep_hours.NOT_ASKED_FOR}
    planted = write_checkpoint(market.deployment.checkpoints, deep_hours.KIND, {}, {})
    name = deep_hours.pointer("click", market.start_us)
    point(market.deployment.checkpoints, name, planted.digest)
    assert deep_hours.digest_after(market.deployment, "click", market.start_us) is not None
    assert deep_hours.digest_after(none.deployment, "click", market.start_us) is None
