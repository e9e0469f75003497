"""Models of delay: what they find, when they are fitted, and that none speaks before its time."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ad_pipeline.checkpoints import read_checkpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.delayed.delay_model_hours import (
    digest_after,
    fit_hours,
    foretell,
    open_delay_models,
    pointer,
)
from ad_pipeline.learners.delayed.delay_models import (
    DelayModels,
    MaturedLabels,
    TooFewLabels,
    fit_delay_models,
)
from ad_pipeline.learners.ftrl import ftrl_kernel as kernel
from ad_pipeline.learners.online.online_hours import learn_hours
from ad_pipeline.learners.orders import record_orders
from ad_pipeline.learners.tables import DELAY_REFITS
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.left_behind import differences
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import LATE_LOSSES, learnt, ready_market, with_settings

BITS = 12
RATES, LATENESS = (0.1, 0.4), (0.2, 0.7)


def matured(rows: int = 40_000, seed: int = 4) -> tuple[MaturedLabels, np.ndarray]:
    """Return labels of two kinds of anchor, which differ in rate and in lateness."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, rows)
    noise = rng.integers(10, 60, (rows, 2))
    positive = rng.random(rows) < np.array(RATES)[kind]
    late = positive & (rng.random(rows) < np.array(LATENESS)[kind])
    slots = np.column_stack((kind, noise)).astype(np.uint32)
    return MaturedLabels(slots, positive, late, np.ones(rows)), kind


def test_both_models_find_what_differs_by_kind_of_anchor() -> None:
    labels, kind = matured()
    models, facts = fit_delay_models(labels, BITS)
    said = models.probabilities(labels.slots)
    for place, (p, c) in enumerate(zip(RATES, LATENESS, strict=True)):
        of_kind = kind == place
        assert said["lateness"][of_kind].mean() == pytest.approx(c, abs=0.04)
        real = (1 - p) / (1 - p + p * c)
        assert said["real_negative"][of_kind].mean() == pytest.approx(real, abs=0.02)
    assert facts["lateness_calibration"] == pytest.approx(1, abs=0.1)
    assert facts["real_negative_calibration"] == pytest.approx(1, abs=0.05)
    assert facts["lateness_rows"] == labels.positive.sum()


def test_thinned_negatives_count_for_those_left_out() -> None:
    labels, _ = matured()
    kept = labels.positive | (np.arange(len(labels.positive)) % 4 == 0)
    weights = np.where(labels.positive, 1.0, 4.0)
    thinned = MaturedLabels(
        labels.slots[kept], labels.positive[kept], labels.late[kept], weights[kept]
    )
    whole, part = (
        fit_delay_models(each, BITS)[0].probabilities(labels.slots)["real_negative"].mean()
        for each in (labels, thinned)
    )
    unweighted = MaturedLabels(
        thinned.slots, thinned.positive, thinned.late, np.ones(int(kept.sum()))
    )
    off = fit_delay_models(unweighted, BITS)[0].probabilities(labels.slots)["real_negative"].mean()
    assert part == pytest.approx(whole, abs=0.01)
    assert off < whole - 0.05


def test_too_few_positives_are_said_and_probabilities_stay_off_their_ends() -> None:
    labels, _ = matured(400)
    with pytest.raises(TooFewLabels, match="100 of each needed"):
        fit_delay_models(labels, BITS)
    models, _ = fit_delay_models(matured()[0], BITS)
    extreme = DelayModels.from_arrays(
        {
            name: array * 1e6 if name.endswith("weights") else array
            for name, array in models.to_arrays().items()
        },
        BITS,
    )
    said = extreme.probabilities(labels.slots)
    assert all(p.min() > 0 and p.max() < 1 for p in said.values())


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    folder = tmp_path_factory.mktemp("late")
    return ready_market(folder, settings=LATE_LOSSES, purchase_observation="1h")


def fitted(market: Market, hours: int | None = None) -> list[tuple[str, int, str, str | None]]:
    end_us = market.end_us if hours is None else market.start_us + hours * HOUR_US
    warehouse = Warehouse(market.deployment.warehouse)
    return [
        (hour.goal, (hour.hour_us - market.start_us) // HOUR_US, hour.cause, hour.digest)
        for hour in fit_hours(warehouse, market.deployment, market.start_us, end_us)
    ]


def test_fits_are_due_on_the_clock_and_other_hours_point_at_the_one_before(market: Market) -> None:
    hours = fitted(market)
    assert hours == fitted(market), "a re-run is the same to the byte"
    purchases = [each for each in hours if each[0] == "purchase"]
    fits = [hour for _, hour, cause, digest in purchases if cause == "schedule" and digest]
    assert fits
    assert all((hour + 1) % 6 == 0 for hour in fits)
    for (_, _, _, before), (_, _, cause, digest) in pairwise(purchases):
        assert cause == "schedule" or digest == before
    manifest = read_checkpoint(market.deployment.checkpoints, str(purchases[-1][3])).manifest
    assert manifest["facts"]["lateness_rows"] > 100


def test_a_row_is_weighed_by_the_models_before_its_hour_and_by_none_earlier(
    market: Market,
) -> None:
    fitted(market)
    deployment = market.deployment
    digests = {
        hour: digest_after(deployment, "purchase", market.start_us + hour * HOUR_US)
        for hour in range(50)
    }
    first = next(hour for hour, digest in digests.items() if digest)
    later = next(h for h, digest in digests.items() if digest and digest != digests[first])
    rng = np.random.default_rng(0)
    at = np.array([first, first + 1, later, later + 1])
    slots = rng.integers(0, 1 << 14, (4, 5)).astype(np.uint32)
    outcomes = np.zeros((4, kernel.N_OUTCOMES))
    outcomes[:, kernel.REAL_NEGATIVE] = 1.0
    foretell(deployment, "purchase", slots, market.start_us + at * HOUR_US + 5, outcomes)
    assert outcomes[0, kernel.LATENESS] == 0, "nothing was in force in the hour of the first fit"
    assert outcomes[0, kernel.REAL_NEGATIVE] == 1
    for row, digest in ((1, digests[first]), (2, digests[later - 1]), (3, digests[later])):
        said = open_delay_models(deployment, str(digest)).probabilities(slots[row : row + 1])
        assert outcomes[row, kernel.LATENESS] == said["lateness"][0]
        assert outcomes[row, kernel.REAL_NEGATIVE] == said["real_negative"][0]


def test_two_halves_of_a_range_learn_late_labels_as_the_whole_does(
    market: Market, tmp_path: Path
) -> None:
    whole, halves = (market.copied_to(tmp_path / name) for name in ("whole", "halves"))
    middle_us, last_us = (market.start_us + hours * HOUR_US for hours in (31, 40))
    for each, bounds in ((whole, [last_us]), (halves, [middle_us, last_us])):
        warehouse, start_us = Warehouse(each.deployment.warehouse), market.start_us
        for end_us in bounds:
            for _ in fit_hours(warehouse, each.deployment, start_us, end_us):
                pass
            for _ in learn_hours(warehouse, each.deployment, start_us, end_us):
                pass
            start_us = end_us
    assert differences(learnt(whole.deployment), learnt(halves.deployment)) == []


def test_models_of_delay_are_fitted_out_of_schedule_when_ordered(
    market: Market, tmp_path: Path
) -> None:
    market = market.copied_to(tmp_path / "ordered")
    warehouse = Warehouse(market.deployment.warehouse)
    hours = [
        (hour.hour_us, hour.digest)
        for hour in fit_hours(warehouse, market.deployment, market.start_us, market.end_us)
        if hour.goal == "purchase"
    ]
    asked_us = hours[-3][0]
    assert (asked_us // HOUR_US + 1) % 6, "not an hour of the schedule"
    with warehouse.writer() as connection:
        record_orders(connection, DELAY_REFITS, [asked_us], cause="drift", evidence="{}")
    again = {
        hour.hour_us: (hour.cause, hour.digest)
        for hour in fit_hours(warehouse, market.deployment, market.start_us, market.end_us)
        if hour.goal == "purchase"
    }
    cause, digest = again[asked_us]
    assert cause == "drift"
    assert digest != dict(hours)[asked_us]
    before = [hour for hour in again if hour < asked_us]
    assert [again[hour][1] for hour in before] == [dict(hours)[hour] for hour in before]


def test_models_that_no_loss_reads_are_not_fitted(market: Market, tmp_path: Path) -> None:
    plain = with_settings(
        market.copied_to(tmp_path / "plain", "checkpoints"), online={"loss": "logistic", "grid": []}
    )
    hours = fitted(plain, 8)
    assert {(cause, digest) for _, _, cause, digest in hours} == {
        ("no loss of this goal needs them", None)
    }
    name = pointer("click", plain.start_us)
    assert not (plain.deployment.checkpoints / "pointers" / f"{name}.json").exists()
