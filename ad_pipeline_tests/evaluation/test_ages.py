"""Loss by age: planted faults of recent hours and of stale models are found, and only those."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.datasets import DATA_FOLDER, Deployment, load_dataset
from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.ages import BATCH_MODEL, EVENT, loss_by_age
from ad_pipeline.evaluation.ensemble_of_log import write_ensemble_hours
from ad_pipeline.evaluation.ensemble_plots import ensemble_over_time, in_words
from ad_pipeline.evaluation.held_out import BASE_RATE, ENSEMBLE, HeldOut, MixtureParts
from ad_pipeline.evaluation.spread import spread_of_ensemble
from ad_pipeline.evaluation.tables import ENSEMBLE_HOURS, LOSS_BY_AGE
from ad_pipeline.settings import Settings
from ad_pipeline.warehouse import Warehouse, arrow_rows

HOURS, PER_HOUR = 36, 1_500
START_US = 490_000 * HOUR_US
SETTINGS = Settings()
Row = dict[str, object]


def held_out(
    seed: int = 1, *, recent: float = 0.0, stale: float = 0.0, bias: float = 0.0, busy: bool = False
) -> HeldOut:
    """Return forecasts with planted faults.

    ``recent`` and ``stale`` are noise in the logits of the newest six hours and under batch models
    of 18 hours and more; ``bias`` is added to all; ``busy`` doubles the odds of the newest hours.
    """
    draw = np.random.default_rng(seed)
    hour = np.repeat(np.arange(HOURS), PER_HOUR)
    newest = hour >= HOURS - 6
    age = hour % 24
    truth = draw.normal(-2.5, 1, len(hour)) + np.where(newest & busy, np.log(2), 0.0)
    labels = (draw.random(len(hour)) < metrics.probabilities_of(truth)).astype(np.int8)
    noise = draw.normal(size=len(hour))
    spoilt = truth + bias + noise * np.where(newest, recent, 0.0) + noise * (age >= 18) * stale
    logits = {"online": spoilt, "batch": spoilt + 0.1}
    return HeldOut(
        goal="click",
        start_us=START_US,
        end_us=START_US + HOURS * HOUR_US,
        impression_ids=pa.chunked_array([np.arange(len(hour)).astype(str)]),
        labels=labels,
        hours_us=START_US + hour * HOUR_US,
        serving_us=START_US + hour * HOUR_US,
        probabilities={
            BASE_RATE: np.full(len(hour), labels.mean()),
            ENSEMBLE: metrics.probabilities_of(spoilt),
        },
        mixture=MixtureParts("online", logits, {"online": 1.0}, spoilt, age * HOUR_US),
    )


def slices(found: HeldOut, age_of: str) -> dict[tuple[object, object], Row]:
    """Return the rows of the ensemble by their ages."""
    rows = loss_by_age(found, SETTINGS)
    assert {row["forecast"] for row in rows} == {ENSEMBLE}
    return {(row["from_hours"], row["to_hours"]): row for row in rows if row["age_of"] == age_of}


def test_a_forecast_that_got_worse_is_seen_in_the_newest_hours() -> None:
    rows = slices(held_out(recent=1.0), EVENT)
    assert list(rows) == [(0, 6), (6, HOURS), (0, 24), (24, HOURS)]
    assert rows[0, 6]["rows"] == 6 * PER_HOUR
    assert float(str(rows[0, 6]["against_rest_low"])) > 0.05
    assert float(str(rows[6, HOURS]["against_rest_high"])) < -0.05


@pytest.mark.parametrize("busy", [False, True])
def test_hours_that_are_as_good_as_others_are_not_called_worse_though_busier(busy: bool) -> None:
    """In busy hours the log loss itself is higher."""
    outside = 0
    for seed in range(10):
        rows = slices(held_out(seed, busy=busy), EVENT)
        newest, before = rows[0, 6], rows[6, HOURS]
        low, high = (float(str(newest[f"against_rest_{side}"])) for side in ("low", "high"))
        outside += not low <= 0.02 or not high >= -0.02
        more = float(str(newest["log_loss"])) / float(str(before["log_loss"]))
        assert (more > 1.2) is busy
    assert outside <= 2


def test_a_stale_batch_model_is_seen_in_its_age_and_a_fresh_one_is_not() -> None:
    rows = slices(held_out(stale=1.5), BATCH_MODEL)
    assert list(rows) == [(0, 6), (6, 12), (12, 18), (18, 24)]
    assert float(str(rows[18, 24]["against_rest_low"])) > 0.05
    assert all(float(str(rows[first, first + 6]["against_rest_high"])) < 0 for first in (0, 6, 12))


def test_rows_without_a_batch_model_have_no_age_and_no_range_is_compared_with_nothing() -> None:
    found = held_out()
    assert found.mixture is not None
    never = replace(found.mixture, batch_ages_us=np.full(len(found.labels), -1))
    assert not slices(replace(found, mixture=never), BATCH_MODEL)
    assert not slices(replace(found, mixture=None), BATCH_MODEL)
    short = replace(found, start_us=found.end_us - 6 * HOUR_US)
    kept = short.hours_us >= short.start_us
    short = replace(
        short,
        labels=short.labels[kept],
        hours_us=short.hours_us[kept],
        probabilities={name: each[kept] for name, each in short.probabilities.items()},
        mixture=None,
    )
    assert loss_by_age(short, SETTINGS) == []


def test_the_same_rows_give_the_same_bounds_in_any_order() -> None:
    found = held_out()
    order = np.random.default_rng(5).permutation(len(found.labels))
    assert found.mixture is not None
    mixed = replace(
        found,
        labels=found.labels[order],
        hours_us=found.hours_us[order],
        probabilities={name: each[order] for name, each in found.probabilities.items()},
        mixture=replace(found.mixture, batch_ages_us=found.mixture.batch_ages_us[order]),
    )
    for left, right in zip(loss_by_age(found, SETTINGS), loss_by_age(mixed, SETTINGS), strict=True):
        assert left["against_rest_low"] == pytest.approx(right["against_rest_low"], rel=1e-9)


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({}, "online, predicts what comes; the last 6 hours lose as the others do"),
        ({"bias": 0.5}, "% too much; the last 6 hours lose"),
        ({"bias": -0.5}, "% too little; the last 6 hours lose"),
        ({"recent": 1.0}, "% more"),
    ],
)
def test_the_title_says_what_is_seen_and_nothing_that_is_not(
    faults: dict[str, float], said: str
) -> None:
    found = held_out(3, **faults)  # pyright: ignore[reportArgumentType]
    hours = spread_of_ensemble(found, 0.95)
    assert said in in_words(hours, loss_by_age(found, SETTINGS))


def test_the_picture_is_the_same_for_the_same_rows_and_says_when_there_are_none() -> None:
    found = held_out()
    hours = arrow_rows(ENSEMBLE_HOURS, spread_of_ensemble(found, 0.95))
    ages = arrow_rows(LOSS_BY_AGE, loss_by_age(found, SETTINGS))
    drawn = ensemble_over_time(hours, ages, title="toy")
    assert drawn.startswith(b"\x89PNG")
    assert drawn == ensemble_over_time(hours, ages, title="toy")
    empty = ensemble_over_time(hours.slice(0, 0), ages.slice(0, 0))
    assert empty.startswith(b"\x89PNG")
    assert empty != drawn


def test_tables_and_picture_are_written_and_a_newer_ensemble_replaces_them(tmp_path: Path) -> None:
    dataset = load_dataset(DATA_FOLDER / "marketplace" / "dataset.yaml")
    deployment = Deployment(dataset, tmp_path / "home")
    warehouse = Warehouse(deployment.warehouse)
    first = write_ensemble_hours(warehouse, deployment, [held_out(1, bias=0.5)])
    assert first.pooled["click"].bias > first.pooled["click"].bias_reach
    second = write_ensemble_hours(warehouse, deployment, [held_out(2)])
    assert (deployment.reports / "ensemble.png").read_bytes() == second.picture
    with warehouse.reader() as connection:
        kept = [
            connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()
            for table in (ENSEMBLE_HOURS, LOSS_BY_AGE)
        ]
        bias = connection.execute("SELECT avg(bias) FROM evaluation.ensemble_hours").fetchone()
    assert kept == [(HOURS,), (second.ages.num_rows,)]
    assert bias is not None
    assert bias[0] == pytest.approx(second.pooled["click"].bias)
    nothing = write_ensemble_hours(warehouse, deployment, [])
    assert nothing.pooled == {}
    with warehouse.reader() as connection:
        assert (
            connection.execute("SELECT count(*) FROM evaluation.loss_by_age").fetchone()
            == (kept[1])
        )
