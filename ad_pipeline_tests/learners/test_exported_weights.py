"""Compact weights are the dense ones, or round them without bias, and cost what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_pipeline.learners.ftrl.exported_weights import (
    EXACT,
    FIXED_POINT,
    LIMIT,
    STEP,
    ExportedWeights,
    WeightsOutOfRange,
    export_size,
    exported,
)
from ad_pipeline.learners.ftrl.ftrl_kernel import linear_logits
from ad_pipeline.learners.online.step import LinearWeights


def sparse_weights(seed: int, slots: int, share: float, dtype: str = "float64") -> LinearWeights:
    """Draw weights within a quarter of the fixed-point range, most of them 0."""
    draw = np.random.default_rng(seed)
    weights = np.where(draw.random(slots) < share, np.clip(draw.normal(0, 0.3, slots), -1, 1), 0.0)
    return LinearWeights(weights.astype(dtype), float(draw.normal()))


def dense_logits(linear: LinearWeights, slots: np.ndarray) -> np.ndarray:
    out = np.empty(len(slots))
    linear_logits(linear.weights, slots, out, linear.intercept)
    return out


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    slots=st.sampled_from([1, 2, 63, 64, 65, 127, 128, 1000, 4096]),
    share=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_exact_weights_are_the_dense_ones_slot_by_slot_and_score_to_the_bit(
    seed: int, slots: int, share: float, dtype: str
) -> None:
    linear = sparse_weights(seed, slots, share, dtype)
    found = ExportedWeights.exact(linear)
    assert found.dense().weights.tobytes() == linear.weights.tobytes()
    assert found.dense().intercept == linear.intercept
    assert found.coordinates == np.count_nonzero(linear.weights) == len(found.kept)
    every = np.arange(slots, dtype=np.uint32)
    assert np.array_equal(found.of_slots(every), linear.weights.astype(np.float64))
    rows = np.random.default_rng(seed).integers(0, slots, (20, 7)).astype(np.uint32)
    assert found.logits(rows).tobytes() == dense_logits(linear, rows).tobytes()
    for row in range(3):
        assert found.logits(rows[row : row + 1])[0] == found.logits(rows)[row]


@pytest.mark.parametrize("place", ["present", "rank", "values"])
def test_a_flipped_bit_of_any_of_the_three_arrays_changes_the_dense_weights(place: str) -> None:
    """The control of the test above: what it compares can differ."""
    linear = sparse_weights(1, 1000, 0.3)
    found = ExportedWeights.exact(linear)
    damaged = getattr(found, place).copy()
    damaged.view(np.uint8)[8] ^= 1
    altered = replace(found, **{place: damaged})
    every = np.arange(1000, dtype=np.uint32)
    assert not np.array_equal(altered.of_slots(every), linear.weights)


def test_arrays_give_the_weights_back_without_a_copy() -> None:
    for form in (EXACT, FIXED_POINT):
        found = exported(sparse_weights(2, 1000, 0.3, "float32"), form, 1, "click")
        arrays = found.to_arrays()
        again = ExportedWeights.from_arrays(arrays, json.loads(json.dumps(found.to_json())))
        assert np.shares_memory(again.values, found.values)
        assert (again.format, again.intercept) == (form, found.intercept)
        assert (again.seed, again.size) == (found.seed, found.size)
        assert found.to_json()["bytes"] == sum(array.nbytes for array in arrays.values())
        assert again.dense().weights.tobytes() == found.dense().weights.tobytes()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 40),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_fixed_point_is_off_by_less_than_a_step_a_feature(
    seed: int, width: int, dtype: str
) -> None:
    linear = sparse_weights(seed, 2048, 0.4, dtype)
    found = ExportedWeights.fixed_point(linear, seed, "click")
    assert found.values.dtype == np.int16
    assert np.abs(found.dense().weights - linear.weights).max() < STEP
    rows = np.random.default_rng(seed).integers(0, 2048, (50, width)).astype(np.uint32)
    off = np.abs(found.logits(rows) - dense_logits(linear, rows))
    assert (off < width * STEP).all()
    assert off.max() > 0.0, "something was rounded"
    assert found.logits(rows).tobytes() == dense_logits(found.dense(), rows).tobytes()


def test_fixed_point_rounds_without_bias() -> None:
    """Over 4,000 goals, which round independently, the mean of each weight is the weight."""
    weights = np.array([0.0, 1e-5, -1e-5, 0.1, -0.1, 1 / 3, -3.999, 2.5 * STEP, -0.3 * STEP])
    linear = LinearWeights(weights, 0.0)
    draws = np.array(
        [
            ExportedWeights.fixed_point(linear, 7, f"goal {number}").dense().weights
            for number in range(4000)
        ]
    )
    share = weights / STEP - np.floor(weights / STEP)
    error = STEP * np.sqrt(share * (1 - share) / len(draws))
    away = np.abs(draws.mean(axis=0) - weights)
    assert (away <= 4 * error + 1e-15).all()
    # The control: rounding to the nearest is biased, and the same bound finds it.
    nearest = np.abs(np.round(weights / STEP) * STEP - weights)
    assert (nearest > 4 * error).any()
    assert (np.ptp(draws, axis=0)[1:] > 0).all(), "every inexact weight is rounded both ways"


def test_a_multiple_of_the_step_stays_as_it_is() -> None:
    weights = np.arange(-32768, 32768) * STEP
    for seed in range(20):
        found = ExportedWeights.fixed_point(LinearWeights(weights, 0.0), seed, "click")
        assert np.array_equal(found.dense().weights, weights)


def test_the_same_export_gives_the_same_bytes_and_another_seed_or_goal_others() -> None:
    linear = sparse_weights(3, 4096, 0.5)

    def values(seed: int, goal: str) -> bytes:
        return ExportedWeights.fixed_point(linear, seed, goal).values.tobytes()

    assert values(1, "click") == values(1, "click")
    assert values(1, "click") != values(2, "click")
    assert values(1, "click") != values(1, "purchase")


@pytest.mark.parametrize("weight", [LIMIT, -LIMIT - STEP, 5.0, -1e9])
def test_a_weight_outside_the_range_is_refused_and_counted_not_cut(weight: float) -> None:
    weights = np.zeros(100)
    weights[3], weights[50] = weight, 0.25
    with pytest.raises(WeightsOutOfRange, match=r"1 of 2 weights of click .* 'exact'"):
        exported(LinearWeights(weights, 0.0), FIXED_POINT, 1, "click")
    assert exported(LinearWeights(weights, 0.0), EXACT, 1, "click").of_slots(
        np.array([3], np.uint32)
    ) == [weight]


def test_the_ends_of_the_range_are_kept() -> None:
    weights = np.array([-LIMIT, LIMIT - STEP])
    found = ExportedWeights.fixed_point(LinearWeights(weights, 0.0), 1, "click")
    assert np.array_equal(found.dense().weights, weights)


@pytest.mark.parametrize("form", [EXACT, FIXED_POINT])
@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(form: str, weight: float) -> None:
    with pytest.raises(ValueError, match="1 weights are not finite"):
        exported(LinearWeights(np.array([0.5, weight]), 0.0), form, 1, "click")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_stated_size_is_the_size_of_the_arrays(dtype: str) -> None:
    linear = sparse_weights(4, 1 << 16, 0.05, dtype)
    size = export_size(linear)
    exact = ExportedWeights.exact(linear)
    fixed = ExportedWeights.fixed_point(linear, 1, "click")
    assert (size.slots, size.coordinates) == (1 << 16, exact.coordinates)
    assert size.dense_bytes == linear.weights.nbytes
    assert size.exact_bytes == exact.nbytes
    assert fixed.nbytes <= size.fixed_point_bytes
    assert size.fixed_point_bytes - fixed.nbytes == 2 * (exact.coordinates - fixed.coordinates)
    assert size.fixed_point_bytes < size.exact_bytes < size.dense_bytes / 4
    assert export_size(LinearWeights(np.zeros(1 << 16), 0.0)).coordinates == 0
