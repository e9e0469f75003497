"""The streams and the reference learners that the online learner is judged on are what they say."""

import numpy as np
import pytest

from ad_pipeline.learners.ftrl.ftrl_expert import FTRLExpert
from ad_pipeline.settings import Configuration
from benchmarks.click_streams import Shape, clicks, coefficients
from benchmarks.reference_learners import GradientDescent

SHAPE = Shape((5, 50, 2_000), spread=0.8, relevant=0.5)


def test_the_same_seed_gives_the_same_rows_and_parts_share_the_truth():
    first, again, other = (clicks(SHAPE, 3, 500, part=part) for part in (0, 0, 1))
    assert first.slots.tobytes() == again.slots.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.slots.tobytes() != other.slots.tobytes()
    by_slot = coefficients(SHAPE, 3)
    assert np.array_equal(other.truth, by_slot[other.slots].sum(axis=1))
    assert not np.array_equal(by_slot, coefficients(SHAPE, 4))


def test_labels_are_as_frequent_as_the_truth_says():
    stream = clicks(SHAPE, 1, 200_000)
    expected = 1 / (1 + np.exp(-stream.truth))
    assert stream.labels.mean() == pytest.approx(expected.mean(), rel=0.02)


def test_tokens_follow_the_zipf_law_in_their_own_field():
    stream = clicks(Shape((1_000,), exponent=1.1), 1, 200_000)
    counts = np.bincount(stream.slots[:, 0], minlength=1_000)
    assert counts[0] / counts[9] == pytest.approx(10**1.1, rel=0.1)
    even = clicks(Shape((1_000,), exponent=0.0), 1, 200_000)
    counts = np.bincount(even.slots[:, 0], minlength=1_000)
    assert counts.max() < 2 * counts.min()


def test_spread_fades_with_the_size_of_a_field():
    by_slot = coefficients(Shape((100, 10_000), spread=1.0, fading=0.25), 1)
    small, large = by_slot[:100].std(), by_slot[100:-1].std()
    assert large / small == pytest.approx(100**-0.25, rel=0.2)
    assert np.mean(coefficients(SHAPE, 1)[:-1] != 0) == pytest.approx(0.5, abs=0.05)


def test_compact_rows_are_the_same_tokens_under_other_numbers():
    stream = clicks(SHAPE, 1, 1_000)
    compact = stream.compact()
    pairs = {*zip(stream.slots.ravel().tolist(), compact.slots.ravel().tolist(), strict=True)}
    assert len(pairs) == len(np.unique(stream.slots)) == len(np.unique(compact.slots))
    assert compact.bits < stream.bits
    assert compact.slots.max() < 1 << compact.bits


def test_gradient_descent_with_rates_per_coordinate_is_ftrl_without_regularisation():
    stream = clicks(SHAPE, 1, 5_000)
    theirs, weights = GradientDescent(0.2).learn(stream.slots, stream.labels, 1 << stream.bits)
    ours = FTRLExpert(stream.bits, (Configuration(alpha=0.2, beta=1.0, l1=0.0, l2=0.0),))
    logits = ours.predict_then_learn(stream.slots, stream.labels)[:, 0]
    assert np.abs(logits - theirs).max() < 1e-9
    assert np.abs(ours.linear_weights().weights - weights).max() < 1e-9
    assert np.count_nonzero(weights) > 500
    # Negative control: one rate for all is another learner.
    other, _ = GradientDescent(0.2, rate="global gradients").learn(
        stream.slots, stream.labels, 1 << stream.bits
    )
    assert np.abs(logits - other).max() > 0.01


@pytest.mark.parametrize("rate", ["per coordinate", "global gradients", "global rows"])
def test_gradient_descent_is_the_loop_of_the_textbook(rate):
    stream = clicks(SHAPE, 2, 300)
    learner = GradientDescent(0.5, beta=1.0, rate=rate, at_least=2)
    logits, weights = learner.learn(stream.slots, stream.labels, 1 << stream.bits)
    w: dict[int, float] = {}
    seen: dict[int, int] = {}
    squares: dict[int, float] = {}
    for row, (slots, label) in enumerate(
        zip(stream.slots.tolist(), stream.labels.tolist(), strict=True)
    ):
        logit = sum(w.get(slot, 0.0) for slot in slots)
        assert logits[row] == pytest.approx(logit, abs=1e-12)
        gradient = 1 / (1 + np.exp(-logit)) - label
        for slot in slots:
            seen[slot] = seen.get(slot, 0) + 1
        counted = [slot for slot in slots if seen[slot] >= 2]
        for slot in counted:
            squares[slot] = squares.get(slot, 0.0) + gradient**2
        for slot in counted:
            total = {
                "per coordinate": squares[slot],
                "global gradients": sum(squares.values()),
                "global rows": row + 1.0,
            }[rate]
            w[slot] = w.get(slot, 0.0) - 0.5 / (1.0 + total**0.5) * gradient
    assert set(np.flatnonzero(weights)) == set(w)
    assert set(w) == {slot for slot, times in seen.items() if times >= 2}
    assert all(weights[slot] == pytest.approx(value, abs=1e-12) for slot, value in w.items())
