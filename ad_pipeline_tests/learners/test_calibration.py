"""Calibration: monotone, the same for one row as for many, and modest when positives are few."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.learners.calibration import (
    IDENTITY,
    Calibration,
    Kind,
    fit_calibration,
    fit_kind,
)
from ad_pipeline.learners.logistic import fit_logistic, row_losses

KINDS: list[Kind] = ["identity", "shift", "platt", "isotonic"]


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
        ({}, {"identity"}),
        ({"shift": 0.5}, {"shift"}),
        ({"slope": 0.6, "shift": -1.2}, {"platt"}),
        ({"bend": 4.0, "shift": -1.5, "slope": 0.3}, {"isotonic"}),
    ],
)
def test_the_simplest_map_that_the_data_ask_for_is_chosen(truth: dict, expected: set) -> None:
    logits, labels, hours = draw(3, 120_000, **truth)
    calibration, trials = fit_calibration(logits, labels, hours, 5)
    assert calibration.kind in expected
    assert [trial.name for trial in trials] == KINDS
    assert labels.sum() / (1 / (1 + np.exp(-calibration.apply(logits)))).sum() == pytest.approx(
        1.0, abs=0.03
    )


def test_a_sound_score_is_left_alone_when_positives_are_few() -> None:
    """Of 40 sound scores with about 400 positives, at most a few are touched."""
    kinds = []
    for seed in range(40):
        logits, labels, hours = draw(100 + seed, 6_000)
        kinds.append(fit_calibration(logits, labels, hours, 5)[0].kind)
    assert kinds.count("identity") >= 36


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
