"""The calibration layer: slices only where they help, versions that are their content."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.checkpoints import CorruptCheckpoint
from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.learners.ensemble.calibration import IDENTITY, Calibration
from ad_pipeline.learners.ensemble.calibration_layer import (
    BY_SLICE,
    OVERALL,
    SLICE_POSITIVES,
    CalibrationLayer,
    Correction,
    Slices,
    fit_layer,
)
from ad_pipeline.learners.ensemble.ensemble import fit_ensemble, split_ranges
from ad_pipeline.learners.ensemble.logistic import row_losses
from ad_pipeline.settings import EnsembleSettings

RANGE = (490_000 * HOUR_US, 490_048 * HOUR_US)
HASHES = np.array([2**64 - 1, 7, 3, 2**63, 11, 5], dtype=np.uint64)
"""Of six slices, in no order, some beyond what a signed number holds."""


def draw(
    seed: int, n: int, shifts: tuple[float, ...] = (0.0,) * 6, bend: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Slices]:
    """Return logits, labels, hours and slices; each slice's truth is off by its shift.

    That of the first is also off by ``bend`` times its distance from the mean.
    """
    generator = np.random.default_rng(seed)
    # Two big slices, three middling ones, and one with next to no rows.
    place = generator.choice(6, n, p=[0.4, 0.3, 0.12, 0.1, 0.078, 0.002])
    logits = generator.normal(-3.0, 1.0, n)
    truth = logits + np.array(shifts)[place] + bend * (logits + 3.0) * (place == 0)
    labels = (generator.random(n) < 1 / (1 + np.exp(-truth))).astype(np.uint8)
    names = {int(each): f"p{number}" for number, each in enumerate(HASHES)}
    slices = Slices("publisher", HASHES[place], names)
    return logits, labels, generator.integers(0, 48, n), slices


def fitted(seed: int, n: int, *planted) -> CalibrationLayer:
    """Fit a layer to such rows."""
    logits, labels, hours, slices = draw(seed, n, *planted)
    return fit_layer(logits, labels, hours, RANGE, 5, slices)[0]


APART = (0.5, -0.4, 0.3, 0.0, -0.6, 0.8)


def test_slices_that_differ_get_corrections_and_score_better_on_fresh_rows() -> None:
    layer = fitted(1, 60_000, APART)
    fresh, labels, _, slices = draw(2, 60_000, APART)
    by_slice = row_losses(layer.apply(fresh, slices.hashes), labels).mean()
    overall = row_losses(layer.overall.apply(fresh), labels).mean()
    assert by_slice < overall * 0.99
    found = {each.name: each.calibration.shift for each in layer.corrections}
    assert set(found) == {"p0", "p1", "p2", "p3", "p4"}  # the sixth has too few positives
    differences = {name: shift - found["p3"] for name, shift in found.items()}
    for name, shift in zip(("p0", "p1", "p2", "p4"), (0.5, -0.4, 0.3, -0.6), strict=True):
        assert differences[name] == pytest.approx(shift, abs=0.15)


def test_where_slices_do_not_differ_noise_makes_no_corrections() -> None:
    """The negative control: of 30 logs without a difference, at most one is taken for one."""
    taken = [fitted(seed, 20_000) for seed in range(100, 130)]
    corrected = [layer for layer in taken if layer.corrections]
    assert len(corrected) <= 1
    fresh, labels, _, slices = draw(99, 200_000)
    for layer in corrected:
        cost = (
            row_losses(layer.apply(fresh, slices.hashes), labels).mean()
            / row_losses(layer.overall.apply(fresh), labels).mean()
        )
        assert cost < 1.001


def test_a_slice_with_a_slope_of_its_own_gets_a_map_of_another_kind() -> None:
    logits, labels, hours, slices = draw(3, 200_000, APART, 0.6)
    layer, trials = fit_layer(logits, labels, hours, RANGE, 5, slices)
    kinds = {each.name: each.calibration.kind for each in layer.corrections}
    assert kinds["p0"] in ("platt", "beta")
    assert set(trials) >= {OVERALL, BY_SLICE, "p0"}
    of_slice = slices.hashes == HASHES[0]
    fresh, labels, _, slices = draw(4, 200_000, APART, 0.6)
    of_slice = slices.hashes == HASHES[0]
    truth = fresh[of_slice] + 0.5 + 0.6 * (fresh[of_slice] + 3.0)
    ours = layer.apply(fresh, slices.hashes)[of_slice]
    best = row_losses(truth, labels[of_slice]).mean()
    assert row_losses(ours, labels[of_slice]).mean() < best * 1.001


def test_few_positives_correct_nothing() -> None:
    logits, labels, hours, slices = draw(5, 2_000, APART)
    places = np.flatnonzero(labels)
    labels[places[SLICE_POSITIVES - 1 :]] = 0
    layer, trials = fit_layer(logits, labels, hours, RANGE, 5, slices)
    assert layer.overall == IDENTITY
    assert layer.corrections == ()
    assert trials == {OVERALL: (), BY_SLICE: ()}
    nothing = np.zeros(0)
    empty = Slices("publisher", np.zeros(0, np.uint64), {})
    assert fit_layer(nothing, nothing, nothing, RANGE, 5, empty)[0].overall == IDENTITY


def test_an_unseen_slice_has_the_overall_map() -> None:
    layer = fitted(1, 60_000, APART)
    logits = np.linspace(-8, 2, 50)
    for unseen in (0, 4, 12, 2**64 - 2):
        hashes = np.full(50, unseen, dtype=np.uint64)
        assert layer.apply(logits, hashes).tobytes() == layer.overall.apply(logits).tobytes()
    assert layer.apply(logits, np.full(50, HASHES[0]))[0] != layer.overall.apply(logits)[0]


def test_slices_left_out_are_refused_where_they_matter() -> None:
    with pytest.raises(ValueError, match="differs by publisher"):
        fitted(1, 60_000, APART).apply(np.zeros(3))
    alone = CalibrationLayer(IDENTITY, RANGE, 0, 0)
    assert alone.apply(np.ones(3)).tolist() == [1.0, 1.0, 1.0]


def test_one_row_gives_the_bits_it_gives_among_many() -> None:
    layer = fitted(3, 100_000, APART, 0.6)
    logits, _, _, slices = draw(4, 600)
    logits[5] = np.nan
    many = layer.apply(logits, slices.hashes)
    assert np.isnan(many[5])
    for row in range(len(logits)):
        one = layer.apply(logits[row : row + 1], slices.hashes[row : row + 1])
        assert one.tobytes() == many[row : row + 1].tobytes()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 50), bend=st.floats(-1.5, 1.5), n=st.sampled_from([3_000, 30_000]))
def test_auc_within_a_slice_does_not_move_by_a_bit(seed: int, bend: float, n: int) -> None:
    logits, labels, hours, slices = draw(seed, n, APART, bend)
    layer, _ = fit_layer(logits, labels, hours, RANGE, 5, slices)
    calibrated = layer.apply(logits, slices.hashes)
    for each in np.unique(slices.hashes):
        rows = slices.hashes == each
        if not 0 < labels[rows].sum() < rows.sum():
            continue
        order = np.argsort(logits[rows], kind="stable")
        assert (np.diff(calibrated[rows][order]) > 0).all()
        before, after = (
            metrics.roc_auc(labels[rows], metrics.probabilities_of(values[rows]))
            for values in (logits, calibrated)
        )
        assert after == before


def test_the_version_is_the_content_and_json_keeps_every_bit() -> None:
    layer = fitted(3, 100_000, APART, 0.6)
    text = json.dumps(layer.to_json(), allow_nan=False)
    back = CalibrationLayer.from_json(json.loads(text))
    assert back == layer
    assert back.version == layer.version == json.loads(text)["version"]
    assert fitted(3, 100_000, APART, 0.6).version == layer.version
    assert fitted(4, 100_000, APART, 0.6).version != layer.version


@pytest.mark.parametrize(
    "change",
    [
        {"overall": Calibration("shift", shift=0.1).to_json()},
        {"matured_us": [0, HOUR_US]},
        {"positives": 1},
        {"column": "country"},
        {"corrections": []},
    ],
)
def test_a_changed_layer_is_refused_by_its_version(change: dict) -> None:
    correction = Correction(3, "p2", Calibration("shift", shift=0.2), 10, 5)
    layer = CalibrationLayer(IDENTITY, RANGE, 10, 5, "publisher", (correction,))
    assert CalibrationLayer.from_json(layer.to_json()) == layer
    with pytest.raises(CorruptCheckpoint, match="restore"):
        CalibrationLayer.from_json(layer.to_json() | change)


def test_a_fit_cannot_see_the_test_range_and_says_which_range_it_saw() -> None:
    """With its negative control: labels of the calibration range do change the version."""
    logits, labels, _, slices = draw(6, 80_000, APART)
    hours = (490_000 + np.arange(80_000) * 96 // 80_000) * HOUR_US
    options = EnsembleSettings()
    ranges = split_ranges(hours, options)

    def layer_of(scores: np.ndarray, given: np.ndarray, hashes: np.ndarray) -> CalibrationLayer:
        by = Slices("publisher", hashes, slices.names)
        return fit_ensemble({"online": scores}, given, hours, options, slices=by).calibration

    expected = layer_of(logits, labels, slices.hashes)
    assert expected.corrections
    assert expected.matured_us == (ranges.calibration.start_us, ranges.calibration.end_us)
    assert expected.rows == ranges.calibration.holds(hours).sum()
    tested = ranges.test.holds(hours)
    spoilt = layer_of(
        np.where(tested, 9.0, logits),
        np.where(tested, 1 - labels, labels).astype(np.uint8),
        np.where(tested, HASHES[0], slices.hashes),
    )
    assert spoilt.version == expected.version
    calibrating = ranges.calibration.holds(hours) & (np.arange(80_000) % 50 == 0)
    other = np.where(calibrating, 1 - labels, labels).astype(np.uint8)
    assert layer_of(logits, other, slices.hashes).version != expected.version
