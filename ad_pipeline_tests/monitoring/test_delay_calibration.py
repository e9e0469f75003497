"""Models of delay are judged by labels that matured after their fit; one that is off is found."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.checkpoints import point, read_checkpoint, write_checkpoint
from ad_pipeline.clocks import HOUR_US, hours_between
from ad_pipeline.learners.delayed.delay_model_hours import (
    KIND,
    digest_after,
    fit_hours,
    pointer,
)
from ad_pipeline.monitoring.delay_calibration import (
    HAZARD,
    _quantile,
    calibration_hours,
    judged_models,
)
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import LATE_LOSSES

GOAL = "purchase"
FIRST_FIT_HOURS = LATE_LOSSES["delays"]["refit_every_hours"]


@pytest.fixture(scope="module")
def fitted(late_market: Market) -> Market:
    """Return the market once its models of delay were fitted every six hours."""
    deployment = late_market.deployment
    warehouse = Warehouse(deployment.warehouse)
    for _ in fit_hours(warehouse, deployment, late_market.start_us, late_market.end_us):
        pass
    return late_market


def judged(market: Market, start_us: int, end_us: int) -> list[dict[str, object]]:
    deployment = market.deployment
    rows = calibration_hours(Warehouse(deployment.warehouse), deployment, start_us, end_us)
    return sorted(rows, key=lambda row: tuple(str(value) for value in row.values()))


def test_models_of_a_market_are_right_about_labels_that_they_were_not_fitted_to(
    fitted: Market,
) -> None:
    models = judged_models(judged(fitted, fitted.start_us, fitted.end_us))
    assert {model.model for model in models} == {"lateness", "real_negative", HAZARD}
    assert not [model.name for model in models if model.beyond(1.5)]


def test_a_model_that_takes_every_positive_for_late_is_found(
    fitted: Market, tmp_path: Path
) -> None:
    """Planted fault: the lateness of every hour is that of a model whose weights were turned up."""
    market = fitted.copied_to(tmp_path / "home")
    checkpoints = market.deployment.checkpoints
    for hour_us in hours_between(market.start_us, market.end_us):
        digest = digest_after(market.deployment, GOAL, hour_us)
        if digest is None:
            continue
        kept = read_checkpoint(checkpoints, digest)
        arrays = {name: np.array(array) for name, array in kept.arrays.items()}
        arrays["lateness_weights"] += np.float32(1.0)
        faulty = write_checkpoint(checkpoints, KIND, arrays, dict(kept.manifest))
        point(checkpoints, pointer(GOAL, hour_us), faulty.digest)
    found = judged_models(judged(market, market.start_us, market.end_us))
    off = {model.model for model in found if model.goal == GOAL and model.beyond(1.25)}
    assert "lateness" in off
    assert HAZARD not in off


def test_hours_judged_one_by_one_or_in_one_range_are_the_same(fitted: Market) -> None:
    start_us = fitted.start_us + 5 * HOUR_US
    end_us = start_us + 9 * HOUR_US
    one_by_one = [
        row
        for hour_us in hours_between(start_us, end_us)
        for row in judged(fitted, hour_us, hour_us + HOUR_US)
    ]
    whole = judged(fitted, start_us, end_us)
    assert whole
    assert sorted(map(str, one_by_one)) == sorted(map(str, whole))


def test_before_the_first_fit_nothing_is_judged(fitted: Market) -> None:
    first_us = fitted.start_us + FIRST_FIT_HOURS * HOUR_US
    assert judged(fitted, fitted.start_us, first_us) == []


def hours_of_events(predicted: float, observed: np.ndarray) -> list[dict[str, object]]:
    return [
        {"goal": "click", "model": "lateness", "part": "", "predicted": predicted, "observed": n}
        for n in observed.tolist()
    ]


def test_noise_of_counts_is_within_the_interval_and_a_double_rate_is_beyond() -> None:
    rng = np.random.default_rng(3)
    beyond = 0
    for _ in range(200):
        (model,) = judged_models(hours_of_events(8.0, rng.poisson(8.0, 24).astype(float)))
        beyond += model.low > 1.0 or model.high < 1.0
    assert beyond < 25
    (double,) = judged_models(hours_of_events(8.0, rng.poisson(16.0, 24).astype(float)))
    assert double.beyond(1.25)
    assert double.ratio == pytest.approx(2.0, abs=0.3)


def test_few_events_are_not_judged() -> None:
    (model,) = judged_models(hours_of_events(0.2, np.full(24, 1.0)))
    assert model.ratio == pytest.approx(5.0)
    assert not model.beyond(1.25)


def test_tied_delays_are_expected_together() -> None:
    delays = pa.table(
        {"delay_group": ["", "", "", ""], "delay_us": pa.array([0, 0, 0, 9], pa.int64())}
    )
    by_us, expected = _quantile(delays, np.array(["", "unknown"], dtype=object), 0.25)
    assert by_us.tolist() == [0, 0]
    assert expected.tolist() == [0.75, 0.75]
