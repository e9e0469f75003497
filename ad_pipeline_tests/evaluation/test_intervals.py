"""Block bootstrap: exact on every draw, repeatable, and honest where the truth is known."""

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from ad_pipeline.evaluation import intervals, metrics

Floats = NDArray[np.float64]


def hourly_rows(
    seed: int, hours: int = 60, rows_an_hour: int = 400, shock: float = 0.0
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Labels, a forecast that does not know the hour's shock to the logit, and the hour."""
    generator = np.random.default_rng(seed)
    hour = np.repeat(np.arange(hours), rows_an_hour)
    logit = generator.normal(-2.0, 1.0, len(hour))
    true = metrics.probabilities_of(logit + generator.normal(0, shock, hours)[hour])
    labels = (generator.random(len(hour)) < true).astype(np.float64)
    return labels, metrics.probabilities_of(logit), hour


@pytest.mark.parametrize("offset", [0.0, 1.5])
def test_every_draw_equals_the_measures_of_rows_copied_by_hand(offset: float):
    """The formulas on block sums and pair counts are exact, with ties, for either rare class."""
    generator = np.random.default_rng(3)
    rows = 400
    blocks = generator.integers(0, 7, rows)
    predictions = np.round(generator.random(rows), 2)
    labels = (generator.random(rows) < np.clip(predictions / 2 + offset / 2, 0, 1)).astype(float)
    draws = intervals.block_multiplicities(7, 25, 5, "interval")
    bounds = intervals.interval(labels, predictions, blocks, 5, 25, 0.8)
    copied: dict[str, list[float]] = {name: [] for name in metrics.METRICS}
    bins = metrics.equal_mass_bins(predictions)
    for draw in draws:
        times = draw[blocks].astype(int)
        y, p = np.repeat(labels, times), np.repeat(predictions, times)
        for name in metrics.METRICS:
            copied[name].append(getattr(metrics, name)(y, p))
        # The bins of the calibration error stay those of the full sample.
        gaps = np.bincount(np.repeat(bins, times), p - y, minlength=20)
        copied["expected_calibration_error"][-1] = np.abs(gaps).sum() / len(y)
    for name, values in copied.items():
        assert bounds[name] == pytest.approx(np.quantile(values, [0.1, 0.9]), rel=1e-9), name


def test_chunks_of_the_average_precision_make_no_difference(monkeypatch: pytest.MonkeyPatch):
    rows = hourly_rows(0, hours=12)
    whole = intervals.interval(*rows, 1, 50)["pr_auc"]
    monkeypatch.setattr(intervals, "_CHUNK_CELLS", 200)
    assert intervals.interval(*rows, 1, 50)["pr_auc"] == pytest.approx(whole, rel=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    rows = hourly_rows(0)
    assert intervals.interval(*rows, 7, 60) == intervals.interval(*rows, 7, 60)
    assert intervals.interval(*rows, 7, 60) != intervals.interval(*rows, 8, 60)


def test_the_draws_do_not_depend_on_the_order_of_rows():
    labels, predictions, hours = hourly_rows(0)
    order = np.random.default_rng(1).permutation(len(labels))
    there = intervals.interval(labels, predictions, hours, 7, 60)
    back = intervals.interval(labels[order], predictions[order], hours[order], 7, 60)
    for name in metrics.METRICS:
        assert there[name] == pytest.approx(back[name], rel=1e-9)


def test_two_purposes_of_one_seed_draw_differently_and_every_draw_has_all_blocks():
    one = intervals.block_multiplicities(50, 30, 1, "interval")
    other = intervals.block_multiplicities(50, 30, 1, "paired difference")
    assert (one.sum(axis=1) == 50).all()
    assert not np.array_equal(one, other)


def test_one_block_has_no_interval_and_says_so():
    labels, predictions, _ = hourly_rows(0, hours=2)
    result = intervals.intervals(labels, predictions, np.zeros(len(labels)), 1, 50)
    assert result.blocks == 1
    assert all(math.isnan(bound) for pair in result.bounds.values() for bound in pair)
    difference = intervals.paired_difference(
        labels, predictions, predictions, np.zeros(len(labels)), 1, 50
    )
    assert difference.relative == 0
    assert math.isnan(difference.upper)


def test_no_positive_leaves_only_what_can_be_measured():
    _, predictions, hours = hourly_rows(0, hours=10)
    bounds = intervals.interval(np.zeros(len(hours)), predictions, hours, 1, 50)
    assert not math.isnan(bounds["log_loss"][0])
    for name in ("normalized_entropy", "rce", "roc_auc", "pr_auc", "calibration_ratio"):
        assert math.isnan(bounds[name][0]), name


def test_an_interval_over_hours_is_wider_than_one_over_rows_when_hours_differ():
    """The reason for blocks: a shock shared by an hour's rows is invisible to a row bootstrap."""
    labels, predictions, hours = hourly_rows(2, hours=40, shock=0.6)
    over_hours = intervals.interval(labels, predictions, hours, 1, 200)["calibration_ratio"]
    scattered = np.random.default_rng(0).permutation(hours)
    over_rows = intervals.interval(labels, predictions, scattered, 1, 200)["calibration_ratio"]
    assert over_hours[1] - over_hours[0] > 2 * (over_rows[1] - over_rows[0])


def test_the_paired_difference_finds_a_gain_that_separate_intervals_hide():
    labels, predictions, hours = hourly_rows(4, hours=80, shock=0.4)
    worse = metrics.probabilities_of(
        metrics.logits_of(predictions) + np.random.default_rng(0).normal(0, 0.15, len(labels))
    )
    difference = intervals.paired_difference(labels, predictions, worse, hours, 1, 300)
    ours = intervals.interval(labels, predictions, hours, 1, 300)["log_loss"]
    theirs = intervals.interval(labels, worse, hours, 1, 300)["log_loss"]
    assert ours[1] > theirs[0]
    assert difference.high < 0
    assert difference.low < difference.relative < difference.high
    assert difference.relative <= difference.upper <= difference.high
    expected = metrics.log_loss(labels, predictions) / metrics.log_loss(labels, worse) - 1
    assert difference.relative == pytest.approx(expected, rel=1e-9)


def test_a_forecast_does_not_differ_from_itself():
    labels, predictions, hours = hourly_rows(4)
    difference = intervals.paired_difference(labels, predictions, predictions, hours, 1, 50)
    assert (difference.relative, difference.low, difference.high, difference.upper) == (0, 0, 0, 0)


def test_the_budget_cuts_the_replicates_of_pr_auc_and_the_result_says_so(
    monkeypatch: pytest.MonkeyPatch,
):
    rows = hourly_rows(0, hours=10)
    monkeypatch.setattr(intervals, "RANK_BUDGET", 1)
    result = intervals.intervals(*rows, 1, 300)
    assert result.pr_auc_replicates == intervals.MINIMUM_RANK_REPLICATES
    assert result.replicates == 300


def test_blocks_of_another_shape_are_refused():
    labels, predictions, hours = hourly_rows(0, hours=2)
    with pytest.raises(ValueError, match="blocks"):
        intervals.interval(labels, predictions, hours[:-1], 1, 10)


@pytest.mark.slow
def test_intervals_cover_the_known_truth_about_as_often_as_they_say():
    """120 logs of 60 hours with shocks; nominal 95 %, percentile bounds reach a little less.

    Three standard errors of a 95 % share over 120 logs are 6 points.
    """
    truth = {"calibration_ratio": [], "log_loss": [], "roc_auc": [], "pr_auc": []}
    whole = [hourly_rows(10_000 + k, hours=200, rows_an_hour=600, shock=0.5) for k in range(6)]
    expected = {
        name: float(np.mean([getattr(metrics, name)(y, p) for y, p, _ in whole])) for name in truth
    }
    logs = 120
    for seed in range(logs):
        bounds = intervals.interval(*hourly_rows(seed, shock=0.5), seed, 300)
        for name, hits in truth.items():
            low, high = bounds[name]
            hits.append(low <= expected[name] <= high)
    coverage = {name: float(np.mean(hits)) for name, hits in truth.items()}
    assert all(0.88 <= share <= 1.0 for share in coverage.values()), coverage


@pytest.mark.slow
def test_a_paired_upper_bound_is_passed_by_the_truth_as_seldom_as_it_says():
    """The promotion gate's bound: 5 % of 200 logs, give or take three standard errors."""
    generator = np.random.default_rng(0)
    wide = hourly_rows(50_000, hours=2_000, rows_an_hour=300, shock=0.5)
    logit = metrics.logits_of(wide[1])
    rival = metrics.probabilities_of(0.9 * logit + 0.1)
    expected = metrics.log_loss(wide[0], wide[1]) / metrics.log_loss(wide[0], rival) - 1
    above = []
    for seed in range(200):
        labels, predictions, hours = hourly_rows(seed, rows_an_hour=300, shock=0.5)
        other = metrics.probabilities_of(0.9 * metrics.logits_of(predictions) + 0.1)
        bound = intervals.paired_difference(
            labels, predictions, other, hours, int(generator.integers(1_000_000)), 300
        )
        above.append(expected > bound.upper)
    assert np.mean(above) < 0.12


@pytest.mark.slow
def test_400_replicates_of_a_million_rows_take_seconds():
    generator = np.random.default_rng(0)
    predictions = metrics.probabilities_of(generator.normal(-3.5, 1, 1_000_000))
    labels = (generator.random(len(predictions)) < predictions).astype(np.float64)
    hours = generator.integers(0, 144, len(predictions))
    begun = time.perf_counter()
    intervals.interval(labels, predictions, hours, 1, 400)
    assert time.perf_counter() - begun < 30


@pytest.mark.parametrize("blocks", [6, 24])
def test_the_reach_of_a_sum_covers_as_often_as_it_says(blocks: int):
    generator = np.random.default_rng(blocks)
    parts = generator.normal(2.0, 1.5, (2_000, blocks))
    covered = [
        abs(row.sum() - 2.0 * blocks) <= intervals.reach_of_sum(row - row.mean()) for row in parts
    ]
    assert 0.935 < np.mean(covered) < 0.965


def test_the_reach_of_two_blocks_is_unknown():
    assert np.isnan(intervals.reach_of_sum([1.0, -1.0]))
