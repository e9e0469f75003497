"""Calibration: monotone, the same for one row as for many, and modest when positives are few."""

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.evaluation import metrics
from ad_pipeline.learners.ensemble.calibration import (
    IDENTITY,
    LOWEST_SLOPE,
    SHRUNK_SD,
    Calibration,
    Kind,
    fit_calibration,
    fit_kind,
)
from ad_pipeline.learners.ensemble.logistic import fit_logistic, row_losses

KINDS: tuple[Kind, ...] = get_args(Kind)


def draw(
    seed: int, n: int, slope: float = 1.0, shift: float = 0.0, bend: float = 0.0, rate: float = -3.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits, labels and hours; the truth is ``slope * logit + shift + bend * max(…)``."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(rate, 1.0, n)
    truth = slope * logits + shift + bend * np.maximum(logits - rate, 0)
    labels = (generator.random(n) < 1 / (1 + np.exp(-truth))).astype(np.uint8)
    return logits, labels, generator.integers(0, 48, n)


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_gives_the_bits_it_gives_among_many(kind: Kind) -> None:
    logits, labels, _ = draw(1, 60_000, 0.8, 0.3)
    calibration = fit_kind(kind, logits, labels)
    grid = np.concatenate((np.linspace(-50, 50, 999), logits[:500]))
    many = calibration.apply(grid)
    for place in range(0, len(grid), 13):
        assert (
            calibration.apply(grid[place : place + 1]).tobytes()
            == many[place : place + 1].tobytes()
        )


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 50), slope=st.floats(0.3, 2.0),
    bend=st.floats(-0.5, 2.0),
)  # fmt: skip
def test_a_greater_logit_never_gets_a_smaller_probability(
    kind: Kind, seed: int, slope: float, bend: float
) -> None:
    logits, labels, _ = draw(seed, 20_000, slope, 0.2, bend)
    calibration = fit_kind(kind, logits, labels)
    grid = np.linspace(-30, 30, 4_001)
    assert (np.diff(calibration.apply(grid)) > 0).all()  # strictly: no ranking is lost


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 50), slope=st.floats(-2.0, 2.0))
def test_auc_does_not_move_by_a_bit(kind: Kind, seed: int, slope: float) -> None:
    """On logits; of scores that rank backwards too, and of scores that say nothing."""
    logits, labels, _ = draw(seed, 4_000, slope, 0.2)
    ties = np.round(logits, 1)  # many rows of one score
    for scores in (logits, ties):
        calibrated = fit_kind(kind, scores, labels).apply(scores)
        before, after = (ranks(each) for each in (scores, calibrated))
        assert metrics.roc_auc(labels, after) == metrics.roc_auc(labels, before)


def test_a_map_that_ties_scores_moves_auc() -> None:
    """The negative control of the test above: a line with slope 0."""
    logits, labels, _ = draw(1, 4_000)
    tied = Calibration("platt", 0.0, 0.0, 0.3).apply(logits)
    assert metrics.roc_auc(labels, ranks(logits)) > 0.6
    assert metrics.roc_auc(labels, ranks(tied)) == 0.5


def ranks(logits: np.ndarray) -> np.ndarray:
    """Return scores as probabilities that keep order and ties exactly, float64 (n,)."""
    _, place = np.unique(logits, return_inverse=True)
    return (1.0 + place) / (2.0 + place.max())


@pytest.mark.parametrize("kind", ["platt", "beta", "shrunk"])
def test_scores_that_rank_backwards_get_the_lowest_slope_and_not_none(kind: Kind) -> None:
    logits, labels, _ = draw(8, 60_000, slope=-1.0, shift=-6.0)
    calibration = fit_kind(kind, logits, labels)
    lowest = min(calibration.slope, calibration.upper_slope)
    assert lowest >= LOWEST_SLOPE
    if kind != "shrunk":  # which is held close to 1
        assert lowest == LOWEST_SLOPE


def test_the_beta_map_finds_the_slopes_of_both_ends() -> None:
    """Kull, Silva Filho and Flach: logit q = a ln p - b ln (1 - p) + c."""
    generator = np.random.default_rng(9)
    logits = generator.normal(0.0, 2.0, 400_000)
    p = 1 / (1 + np.exp(-logits))
    truth = 0.5 * np.log(p) - 1.5 * np.log1p(-p) + 0.3
    labels = (generator.random(len(p)) < 1 / (1 + np.exp(-truth))).astype(np.uint8)
    beta = fit_kind("beta", logits, labels)
    assert (beta.slope, beta.upper_slope, beta.shift) == pytest.approx((0.5, 1.5, 0.3), abs=0.02)
    assert beta.apply(logits) == pytest.approx(truth, abs=0.2)
    platt = fit_kind("platt", logits, labels).apply(logits)
    assert row_losses(beta.apply(logits), labels).mean() < row_losses(platt, labels).mean() - 0.003


def test_a_beta_map_of_equal_slopes_is_their_line() -> None:
    grid = np.linspace(-40, 40, 999)
    line = Calibration("platt", 0.7, 0.7, 0.2).apply(grid)
    nearly = Calibration("beta", 0.7, 0.7 + 1e-13, 0.2).apply(grid)
    assert nearly == pytest.approx(line, abs=1e-10)


def test_the_shrunk_line_goes_the_way_that_its_prior_lets_it() -> None:
    """With all logits equal only the shift can move: by I / (I + precision) of the way, about."""
    logits = np.zeros(4_000)
    labels = (np.arange(4_000) % 4 == 0).astype(np.uint8)
    way = fit_kind("shrunk", logits, labels).shift / fit_kind("platt", logits, labels).shift
    information, precision = 4_000 * 0.22, 1 / SHRUNK_SD**2
    assert way == pytest.approx(information / (information + precision), abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_json_keeps_every_bit(kind: Kind) -> None:
    logits, labels, _ = draw(2, 30_000, 0.7, 0.4, 1.0)
    calibration = fit_kind(kind, logits, labels)
    back = Calibration.from_json(json.loads(json.dumps(calibration.to_json(), allow_nan=False)))
    assert back == calibration
    assert back.apply(logits).tobytes() == calibration.apply(logits).tobytes()


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ({}, {"shrunk"}),
        ({"shift": 1.5}, {"shift"}),
        ({"slope": 0.4, "shift": -1.2}, {"platt", "beta"}),
        ({"bend": 4.0, "shift": -1.5, "slope": 0.3}, {"isotonic"}),
    ],
)
def test_the_simplest_map_that_the_data_ask_for_is_chosen(truth: dict, expected: set) -> None:
    logits, labels, hours = draw(3, 120_000, **truth)
    calibration, trials = fit_calibration(logits, labels, hours, 5)
    assert calibration.kind in expected
    assert tuple(trial.name for trial in trials) == KINDS[1:]
    assert labels.sum() / (1 / (1 + np.exp(-calibration.apply(logits)))).sum() == pytest.approx(
        1.0, abs=0.03
    )


def test_a_sound_score_is_hardly_touched_when_positives_are_few() -> None:
    """Of 40 sound scores with about 400 positives: what it costs on average, and at the worst."""
    fresh, fresh_labels, _ = draw(99, 200_000)
    sound = row_losses(fresh, fresh_labels).mean()
    kinds, costs = [], []
    for seed in range(40):
        logits, labels, hours = draw(100 + seed, 6_000)
        found = fit_calibration(logits, labels, hours, 5)[0]
        kinds.append(found.kind)
        costs.append(row_losses(found.apply(fresh), fresh_labels).mean() / sound - 1)
    assert kinds.count("shrunk") >= 38
    assert np.mean(costs) < 0.0005
    assert np.max(costs) < 0.004


def test_a_few_hundred_positives_bring_a_score_that_is_off_closer() -> None:
    """The negative control of the test above: what the identity would have kept."""
    fresh, fresh_labels, _ = draw(99, 200_000, shift=0.15)
    kept = row_losses(fresh, fresh_labels).mean()
    gains = []
    for seed in range(40):
        given = draw(100 + seed, 6_000, shift=0.15)
        found = fit_calibration(*given, 5)[0]
        gains.append(1 - row_losses(found.apply(fresh), fresh_labels).mean() / kept)
    assert np.mean(gains) > 0.001


def test_fewer_than_a_hundred_positives_calibrate_nothing() -> None:
    logits, labels, hours = draw(4, 2_000, shift=1.0)
    assert labels.sum() > 100
    assert fit_calibration(logits, labels, hours, 5)[1] != ()
    few = np.flatnonzero(labels)[99:]
    labels[few] = 0
    assert fit_calibration(logits, labels, hours, 5) == (IDENTITY, ())
    nothing = np.zeros(0)
    assert fit_calibration(nothing, nothing, nothing.astype(np.int64), 5)[0] == IDENTITY


def test_the_isotonic_table_brings_a_bent_score_close_to_its_truth() -> None:
    logits, labels, _ = draw(5, 200_000, slope=0.4, shift=-1.0, bend=1.5)
    fresh, fresh_labels, _ = draw(6, 200_000, slope=0.4, shift=-1.0, bend=1.5)
    truth = 0.4 * fresh - 1.0 + 1.5 * np.maximum(fresh + 3.0, 0)
    best = row_losses(truth, fresh_labels).mean()
    isotonic = fit_kind("isotonic", logits, labels).apply(fresh)
    platt = fit_kind("platt", logits, labels).apply(fresh)
    assert row_losses(isotonic, fresh_labels).mean() < best + 0.0005
    assert row_losses(platt, fresh_labels).mean() > best + 0.0005


def test_the_small_logistic_fit_finds_the_optimum_that_scipy_finds() -> None:
    from scipy.optimize import minimize

    generator = np.random.default_rng(7)
    columns = np.column_stack((generator.normal(size=(4_000, 3)), np.ones(4_000)))
    score = columns @ np.array([1.0, 0.2, -0.8, -2.0])
    labels = (generator.random(4_000) < 1 / (1 + np.exp(-score))).astype(float)
    mean, sd = np.array([1.0, 0.0, 0.0, 0.0]), np.full(4, 0.3)
    bounded = np.array([True, True, True, False])
    found = fit_logistic(columns, labels, mean, sd, bounded)

    def objective(at: np.ndarray) -> float:
        return float(
            row_losses(columns @ at, labels).sum() + 0.5 * np.square((at - mean) / sd).sum()
        )

    theirs = minimize(objective, mean, method="L-BFGS-B", bounds=[(0, None)] * 3 + [(None, None)])
    assert found[2] == 0.0  # its free optimum is negative
    assert found == pytest.approx(theirs.x, abs=2e-3)
    assert objective(found) <= theirs.fun + 1e-9


def test_separable_and_one_class_rows_have_finite_answers() -> None:
    logits = np.linspace(-3, 3, 400)
    for labels in (logits > 0, np.zeros(400, bool), np.ones(400, bool)):
        platt = fit_kind("platt", logits, labels.astype(np.uint8))
        assert np.isfinite(platt.apply(logits)).all()
