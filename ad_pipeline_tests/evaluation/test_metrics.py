"""The measures against their published definitions, scikit-learn and hand-made cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from ad_pipeline.evaluation import metrics

Floats = NDArray[np.float64]


def published_rce(labels: Floats, predictions: Floats, smoothing: float = 0.0) -> float:
    """RCE as twitter/the-algorithm-ml computes it: clip, and 1e-7 inside each logarithm."""
    epsilon = 1e-7

    def cross_entropy(prediction: Floats, target: Floats) -> Floats:
        kept = np.clip(prediction, epsilon, 1 - epsilon)
        return -target * np.log(kept + epsilon) - (1 - target) * np.log(1 - kept + epsilon)

    target = labels * (1 - smoothing) + 0.5 * smoothing
    rate = np.array([target.mean()])
    return 100 * (1 - cross_entropy(predictions, target).mean() / cross_entropy(rate, rate)[0])


def published_normalized_entropy(labels: Floats, predictions: Floats) -> float:
    """Equation 1 of He et al. with labels in {-1, +1}, p the average empirical rate."""
    signed = 2 * labels - 1
    rate = labels.mean()
    terms = (1 + signed) / 2 * np.log(predictions) + (1 - signed) / 2 * np.log(1 - predictions)
    return -terms.mean() / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))


def forecast(seed: int, rows: int = 4_000, offset: float = -3.0) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    true = metrics.probabilities_of(generator.normal(offset, 1.2, rows))
    labels = (generator.random(rows) < true).astype(np.float64)
    return labels, metrics.probabilities_of(
        metrics.logits_of(true) + generator.normal(0, 0.4, rows)
    )


@st.composite
def samples(draw: st.DrawFn, *, both_classes: bool = False) -> tuple[Floats, Floats, Floats]:
    """Labels, probabilities with many ties, and weights, some of them 0."""
    rows = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=rows, max_size=rows))
    if both_classes:
        labels[0], labels[-1] = 0, 1
    tenths = draw(st.lists(st.integers(0, 10), min_size=rows, max_size=rows))
    weights = draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows))
    if both_classes:
        weights[0], weights[-1] = weights[0] + 1, weights[-1] + 1
    return (
        np.array(labels, np.float64),
        np.array(tenths, np.float64) / 10,
        np.array(weights, np.float64),
    )


@pytest.mark.parametrize("seed", range(4))
def test_normalized_entropy_is_equation_1_of_he_et_al(seed: int):
    labels, predictions = forecast(seed)
    assert metrics.normalized_entropy(labels, predictions) == pytest.approx(
        published_normalized_entropy(labels, predictions), rel=1e-12
    )


def test_normalized_entropy_divides_by_the_rate_of_the_labels_and_not_of_the_predictions():
    labels, predictions = forecast(0)
    doubled = np.minimum(2 * predictions, 0.9)
    by_labels = metrics.log_loss(labels, doubled) / metrics.entropy(labels.mean())
    by_predictions = metrics.log_loss(labels, doubled) / metrics.entropy(doubled.mean())
    assert metrics.normalized_entropy(labels, doubled) == pytest.approx(by_labels, rel=1e-12)
    assert abs(by_labels - by_predictions) > 0.1


def test_the_base_rate_itself_has_normalized_entropy_1_and_rce_0():
    labels, _ = forecast(1)
    constant = np.full(len(labels), labels.mean())
    assert metrics.normalized_entropy(labels, constant) == pytest.approx(1.0, abs=1e-12)
    assert metrics.rce(labels, constant) == pytest.approx(0.0, abs=1e-10)


@given(samples(both_classes=True))
def test_rce_is_100_times_1_minus_normalized_entropy(sample: tuple[Floats, Floats, Floats]):
    labels, predictions, weights = sample
    relative = metrics.normalized_entropy(labels, predictions, weights)
    assert metrics.rce(labels, predictions, weights) == 100 * (1 - relative)


@pytest.mark.parametrize("offset", [0.0, -3.0, -5.0])
def test_rce_agrees_with_the_published_code_on_ordinary_forecasts(offset: float):
    labels, predictions = forecast(2, rows=50_000, offset=offset)
    ordinary = np.maximum(predictions, 1e-4)
    ours, theirs = metrics.rce(labels, ordinary), published_rce(labels, ordinary)
    assert ours == pytest.approx(theirs, abs=0.1)
    assert ours != theirs


def test_at_the_clip_the_published_code_forgives_up_to_log_2_of_loss():
    """Adding 1e-7 to a prediction already clipped to 1e-7 doubles it."""
    labels = np.array([1.0, 0.0])
    predictions = np.array([0.0, 0.5])
    ours = metrics.log_loss(labels, predictions) * 2
    rate_loss = math.log(2)
    theirs = (1 - published_rce(labels, predictions) / 100) * rate_loss * 2
    assert ours - theirs == pytest.approx(math.log(2), abs=1e-5)


def test_label_smoothing_as_published_moves_the_figure_so_it_is_left_out():
    labels, predictions = forecast(3)
    assert abs(published_rce(labels, predictions, 0.05) - metrics.rce(labels, predictions)) > 1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_measures_equal_scikit_learn(seed: int, weighted: bool):
    labels, predictions = forecast(seed)
    coarse = np.round(predictions, 2)
    weights = np.random.default_rng(9).random(len(labels)) if weighted else None
    assert metrics.roc_auc(labels, coarse, weights) == pytest.approx(
        sklearn_metrics.roc_auc_score(labels, coarse, sample_weight=weights), rel=1e-12
    )
    assert metrics.pr_auc(labels, coarse, weights) == pytest.approx(
        sklearn_metrics.average_precision_score(labels, coarse, sample_weight=weights), rel=1e-12
    )
    assert metrics.log_loss(labels, predictions, weights) == pytest.approx(
        sklearn_metrics.log_loss(labels, predictions, sample_weight=weights), rel=1e-12
    )


def test_log_loss_differs_from_scikit_learn_only_beyond_the_clip():
    labels = np.array([1.0, 0.0])
    assert metrics.log_loss(labels, np.array([1e-9, 0.5])) == pytest.approx(
        (-math.log(1e-7) + math.log(2)) / 2
    )


@given(samples(both_classes=True))
def test_roc_auc_is_the_share_of_ordered_pairs_with_ties_one_half(
    sample: tuple[Floats, Floats, Floats],
):
    labels, predictions, weights = sample
    right = pairs = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            order = 0.5 * (1 + np.sign(predictions[i] - predictions[j]))
            right += order * weights[i] * weights[j]
            pairs += weights[i] * weights[j]
    assert metrics.roc_auc(labels, predictions, weights) == pytest.approx(right / pairs, abs=1e-12)


@given(samples())
def test_a_whole_weight_means_that_many_copies_of_the_row(
    sample: tuple[Floats, Floats, Floats],
):
    labels, predictions, weights = sample
    copies = weights.astype(int)
    repeated = np.repeat(labels, copies), np.repeat(predictions, copies)
    for measure in (
        metrics.log_loss,
        metrics.normalized_entropy,
        metrics.rce,
        metrics.roc_auc,
        metrics.pr_auc,
        metrics.calibration_ratio,
        metrics.expected_calibration_error,
    ):
        assert measure(labels, predictions, weights) == pytest.approx(
            measure(*repeated), abs=1e-9, nan_ok=True
        ), measure.__name__


@given(samples(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(sample: tuple[Floats, Floats, Floats], shuffler):
    labels, predictions, weights = sample
    order = list(range(len(labels)))
    shuffler.shuffle(order)
    there = metrics.summarize(labels, predictions, weights)
    back = metrics.summarize(labels[order], predictions[order], weights[order])
    for name in metrics.METRICS:
        assert getattr(there, name) == pytest.approx(getattr(back, name), abs=1e-9, nan_ok=True)


@given(samples())
def test_the_summary_holds_what_the_functions_return(sample: tuple[Floats, Floats, Floats]):
    summary = metrics.summarize(*sample)
    for name in metrics.METRICS:
        assert getattr(summary, name) == pytest.approx(
            getattr(metrics, name)(*sample), rel=1e-12, nan_ok=True
        ), name


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_alone_leaves_undefined_measures_nan(label: float):
    labels = np.full(5, label)
    summary = metrics.summarize(labels, np.linspace(0.1, 0.5, 5))
    undefined = {"normalized_entropy", "rce", "roc_auc"}
    if label == 0.0:
        undefined |= {"pr_auc", "calibration_ratio"}
    assert {name for name in metrics.METRICS if math.isnan(getattr(summary, name))} == undefined
    assert summary.positives == 5 * label


def test_no_rows_and_no_weight_leave_every_measure_nan():
    empty = metrics.summarize(np.empty(0), np.empty(0))
    weightless = metrics.summarize(np.array([0.0, 1.0]), np.array([0.2, 0.3]), np.zeros(2))
    for name in ("base_rate", *metrics.METRICS):
        assert math.isnan(getattr(empty, name)), name
        assert math.isnan(getattr(weightless, name)), name


def test_calibration_error_sees_a_shift_and_not_a_perfect_forecast():
    _, predictions = forecast(5, rows=200_000)
    generator = np.random.default_rng(0)
    perfect = (generator.random(len(predictions)) < predictions).astype(np.float64)
    noise = math.sqrt(2 * 20 * 0.08 * 0.92 / (math.pi * len(perfect)))
    assert metrics.expected_calibration_error(perfect, predictions) < 2 * noise
    shifted = metrics.probabilities_of(metrics.logits_of(predictions) + 0.5)
    gap = shifted.mean() - perfect.mean()
    assert metrics.expected_calibration_error(perfect, shifted) == pytest.approx(gap, rel=0.05)


def test_bins_hold_equal_mass_when_probabilities_are_distinct():
    bins = metrics.equal_mass_bins(np.random.default_rng(0).random(10_000), bins=20)
    assert set(np.bincount(bins, minlength=20)) == {500}


@settings(max_examples=30)
@given(st.floats(-800, 800))
def test_the_logistic_function_neither_overflows_nor_leaves_its_range(logit: float):
    with np.errstate(all="raise", under="ignore"):
        probability = metrics.probabilities_of([logit])[0]
    assert 0 <= probability <= 1
    if abs(logit) < 15:
        assert metrics.logits_of([probability])[0] == pytest.approx(logit, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    ("labels", "predictions", "weights", "words"),
    [
        ([0, 1], [0.1], None, "one shape"),
        ([0, 2], [0.1, 0.2], None, "0 or 1"),
        ([0, 1], [-2.0, 1.5], None, "logits"),
        ([0, 1], [float("nan"), 0.5], None, "NaN"),
        ([0, 1], [0.1, 0.2], [1.0], "labels' shape"),
        ([0, 1], [0.1, 0.2], [1.0, -1.0], "not negative"),
    ],
)
def test_bad_input_is_refused_in_words(labels, predictions, weights, words: str):
    with pytest.raises(ValueError, match=words):
        metrics.summarize(labels, predictions, weights)
