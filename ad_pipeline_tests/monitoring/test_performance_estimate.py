"""The estimate is the realised loss once labels are final, right on average before, and doubted."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.monitoring.performance_estimate import (
    MEASURES,
    NO_PAST,
    Anchors,
    Delays,
    PastErrors,
    Recalibration,
    departure,
    estimate,
    fit_reference,
    positive_probability,
    updated,
)

WINDOW_US = 12 * HOUR_US
PLACES_US = (np.arange(1, 65) * WINDOW_US // 64).astype(np.int64)
"""Of labels that take any time up to the window, each as likely."""
UNIFORM = Delays(PLACES_US, 1_000_000)


def probabilities(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def final(logits: np.ndarray, labels: np.ndarray) -> Anchors:
    n = len(logits)
    return Anchors(
        logits,
        labels.astype(bool),
        np.ones(n, bool),
        np.full(n, WINDOW_US),
        np.zeros(n, np.int64),
        (UNIFORM,),
    )


def drawn(
    rng: np.random.Generator,
    n: int,
    truth: Callable[[np.ndarray], np.ndarray] = lambda logits: logits,
    delays: Delays = UNIFORM,
    spread: float = 1.0,
) -> tuple[Anchors, np.ndarray]:
    """Return anchors of ages up to the window, and the labels that they will have."""
    logits = rng.normal(-2.0, spread, n)
    labels = rng.random(n) < probabilities(truth(logits))
    ages_us = rng.integers(0, WINDOW_US, n)
    took_us = PLACES_US[rng.integers(0, len(PLACES_US), n)]
    engaged = labels & (took_us <= ages_us)
    group = np.zeros(n, np.int64)
    return Anchors(logits, engaged, np.zeros(n, bool), ages_us, group, (delays,)), labels


rows = st.lists(
    st.tuples(st.floats(-8, 8), st.booleans(), st.integers(0, WINDOW_US)), min_size=1, max_size=30
)


@given(rows)
def test_with_every_label_final_it_is_the_realised_value(drawn_rows: list) -> None:
    logits, labels, _ = (np.array(column) for column in zip(*drawn_rows, strict=True))
    found = estimate(final(logits, labels), Recalibration(0.0, np.ones(2), np.eye(2)))
    p = metrics.probabilities_of(logits)
    expected = metrics.summarize(labels.astype(int), p)
    assert found["log_loss"].value == pytest.approx(expected.log_loss, rel=1e-12)
    assert found["observed_over_predicted"].value == pytest.approx(labels.sum() / p.sum())
    np.testing.assert_allclose(
        found["normalized_entropy"].value, expected.normalized_entropy, rtol=1e-12
    )
    if 0 < labels.sum() < len(labels):
        assert all(each.low == each.value == each.high for each in found.values())


@given(rows)
def test_before_any_label_can_have_come_it_is_the_entropy_of_the_scores(drawn_rows: list) -> None:
    logits = np.array([row[0] for row in drawn_rows])
    n = len(logits)
    none = np.zeros(n, bool)
    young = Anchors(logits, none, none, np.zeros(n, np.int64), np.zeros(n, np.int64), (UNIFORM,))
    p = metrics.probabilities_of(logits)
    found = estimate(young, Recalibration.as_served())
    assert found["log_loss"].value == pytest.approx(
        float((-p * np.log(p) - (1 - p) * np.log1p(-p)).mean())
    )
    assert found["observed_over_predicted"].value == pytest.approx(1.0)


@given(rows)
def test_it_is_what_a_loop_over_every_delay_says(drawn_rows: list) -> None:
    """Bayes' rule by enumeration: every label and place of the delay, those ruled out left out."""
    logits, wanted, ages_us = (np.array(column) for column in zip(*drawn_rows, strict=True))
    engaged = wanted & (ages_us >= PLACES_US[0])
    n = len(logits)
    waiting = Anchors(
        logits, engaged, np.zeros(n, bool), ages_us, np.zeros(n, np.int64), (UNIFORM,)
    )
    total = 0.0
    for logit, is_engaged, age_us in zip(logits, engaged, ages_us, strict=True):
        p = 1.0 / (1.0 + np.exp(-logit))
        masses = {1: 0.0, 0: 0.0 if is_engaged else 1.0 - p}
        for place_us in PLACES_US:
            if (place_us <= age_us) == bool(is_engaged):
                masses[1] += p / len(PLACES_US)
        positive = masses[1] / (masses[0] + masses[1])
        total += positive * -np.log(p) + (1 - positive) * -np.log(1 - p)
    found = estimate(waiting, Recalibration.as_served())["log_loss"].value
    assert found == pytest.approx(total / n, rel=1e-9)


@given(st.floats(0.001, 0.999), st.floats(0.0, 0.999))
def test_waiting_makes_a_positive_less_likely_and_never_impossible(p: float, due: float) -> None:
    (waited,) = positive_probability(np.array([p]), np.array([due]))
    assert 0 < waited <= p
    (longer,) = positive_probability(np.array([p]), np.array([due + (1 - due) / 2]))
    assert longer < waited or due == longer


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_is_right_on_average_where_labels_so_far_taken_for_final_are_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    off: dict[str, list[float]] = {"estimate": [], "naive": []}
    for _ in range(300):
        anchors, labels = drawn(rng, 300)
        p = probabilities(anchors.logits)
        came = metrics.log_loss(labels.astype(int), p)
        said = estimate(anchors, Recalibration.as_served())["log_loss"].value
        off["estimate"].append(said - came)
        off["naive"].append(metrics.log_loss(anchors.engaged.astype(int), p) - came)

    def deviations(name: str) -> float:
        return abs(np.mean(off[name])) / (np.std(off[name]) / np.sqrt(len(off[name])))

    assert deviations("estimate") < 4.0
    assert deviations("naive") > 20.0


def test_level_and_slope_are_those_of_another_optimizer() -> None:
    rng = np.random.default_rng(5)
    anchors, _ = drawn(rng, 4_000, lambda logits: 0.4 + 0.7 * logits)
    prior = Recalibration(-2.0, np.array([0.1, -0.1]), np.diag([0.3, 0.2]))
    due = anchors.due()

    def loss(shift: np.ndarray) -> float:
        odds = anchors.logits + shift[0] + shift[1] * (anchors.logits + 2.0)
        p = probabilities(odds)
        fit = np.where(anchors.engaged, np.log(p), np.log1p(-p * due)).sum()
        return float(-fit + 0.5 * ((shift - prior.shift) ** 2 / [0.3, 0.2]).sum())

    expected = minimize(loss, np.zeros(2), tol=1e-10).x
    # With F beyond doubt; what doubt does to it is tested below.
    certain = Delays(PLACES_US, 10**15)
    sure = Anchors(
        anchors.logits, anchors.engaged, anchors.final, anchors.ages_us, anchors.group, (certain,)
    )
    np.testing.assert_allclose(updated(prior, sure).shift, expected, atol=1e-4)


def test_delays_read_off_few_labels_move_level_and_slope_less() -> None:
    anchors, _ = drawn(np.random.default_rng(6), 4_000, lambda logits: logits + 1.0)
    prior = Recalibration(-2.0, np.zeros(2), np.eye(2) * 0.1)
    moved = []
    for positives in (10, 100, 10**9):
        doubted = Anchors(
            anchors.logits, anchors.engaged, anchors.final, anchors.ages_us, anchors.group,
            (Delays(PLACES_US, positives),),
        )  # fmt: skip
        moved.append(updated(prior, doubted).shift[0])
    assert 0 < moved[0] < moved[1] < moved[2]
    assert moved[2] == pytest.approx(1.0, abs=0.25)


def test_the_doubt_about_delays_is_the_spread_over_redrawn_ones() -> None:
    rng = np.random.default_rng(7)
    anchors, _ = drawn(rng, 200, delays=Delays(PLACES_US, 50))
    effects = rng.normal(size=(200, 1))
    sums = []
    for _ in range(4_000):
        redrawn = np.sort(PLACES_US[rng.integers(0, len(PLACES_US), 50)])
        sums.append(float(effects[:, 0] @ Delays(redrawn, 50).arrived_by(anchors.ages_us)))
    assert anchors.delay_covariance(effects)[0, 0] == pytest.approx(np.var(sums), rel=0.1)


def overconfident(logits: np.ndarray) -> np.ndarray:
    """Return the true log odds of scores that say too much."""
    return -2.0 + 0.5 * (logits + 2.0)


def test_intervals_keep_their_level_where_scores_are_overconfident() -> None:
    """Planted fault: the same intervals around what the scores expect of themselves."""
    rng = np.random.default_rng(8)
    kept = {"recalibrated": 0, "as served": 0}
    streams = 150
    for _ in range(streams):
        before, outcome = drawn(rng, 6_000, overconfident, spread=2.0)
        reference = fit_reference(
            final(before.logits, outcome), np.repeat(np.arange(12), 500), 0.02
        )
        cohort, labels = drawn(rng, 1_500, overconfident, spread=2.0)
        came = metrics.log_loss(labels.astype(int), probabilities(cohort.logits))
        for name, belief in (
            ("recalibrated", updated(reference, cohort)),
            ("as served", Recalibration.as_served()),
        ):
            said = estimate(cohort, belief, level=0.95)["log_loss"]
            kept[name] += said.low <= came <= said.high
    assert kept["recalibrated"] >= 0.9 * streams
    assert kept["as served"] < 0.7 * streams


def test_a_wander_between_cohorts_is_found_and_doubted() -> None:
    rng = np.random.default_rng(9)
    logits = rng.normal(-1.0, 1.0, 60_000)
    cohorts = np.repeat(np.arange(30), 2_000)
    doubts = []
    for wander in (0.0, 0.3):
        level = rng.normal(0.0, wander, 30)[cohorts]
        labels = rng.random(len(logits)) < probabilities(logits + level)
        doubts.append(fit_reference(final(logits, labels), cohorts, 0.01).covariance[0, 0] ** 0.5)
    assert doubts[0] < 0.1
    assert doubts[1] == pytest.approx(0.3, abs=0.12)


def drifted_slope(logits: np.ndarray) -> np.ndarray:
    return -2.0 - 0.5 * (logits + 2.0)


@pytest.mark.parametrize(
    ("truth", "slope"), [(drifted_slope, True), (lambda logits: logits - 1.2, False)]
)
def test_labels_so_far_tell_of_drift_and_of_which(
    truth: Callable[[np.ndarray], np.ndarray], slope: bool
) -> None:
    rng = np.random.default_rng(10)
    before, outcome = drawn(rng, 6_000)
    reference = fit_reference(final(before.logits, outcome), np.repeat(np.arange(12), 500), 0.05)
    cohort, _ = drawn(rng, 1_500, truth)
    found = departure(reference, cohort)
    assert found.p_value < 1e-4
    assert (found.slope < -0.5) == slope
    assert (found.level < -0.5) != slope or slope


def test_labels_that_go_on_as_before_ring_as_seldom_as_said() -> None:
    rng = np.random.default_rng(11)
    before, outcome = drawn(rng, 50_000)
    reference = fit_reference(final(before.logits, outcome), np.repeat(np.arange(10), 5_000), 0.001)
    chances = [departure(reference, drawn(rng, 1_000)[0]).p_value for _ in range(400)]
    assert 0.02 < np.mean(np.array(chances) < 0.05) < 0.09
    assert 0.4 < np.mean(chances) < 0.6


def test_without_a_label_that_could_have_come_nothing_departs() -> None:
    n = 50
    none = np.zeros(n, bool)
    ages = np.zeros(n, np.int64)
    young = Anchors(np.linspace(-3, 1, n), none, none, ages, ages, (UNIFORM,))
    reference = Recalibration(-1.0, np.zeros(2), np.eye(2) * 0.01)
    assert departure(reference, young).p_value == 1.0
    np.testing.assert_allclose(updated(reference, young).shift, 0.0, atol=1e-9)


def test_one_score_for_all_is_estimated_and_its_level_watched() -> None:
    rng = np.random.default_rng(12)
    before = final(np.full(3_000, -2.0), rng.random(3_000) < probabilities(np.array(-2.0)))
    reference = fit_reference(before, np.repeat(np.arange(6), 500), 0.05)
    for shift, departs in ((0.0, False), (1.0, True)):
        cohort, labels = drawn(rng, 2_000, lambda logits, by=shift: logits + by, spread=0.0)
        assert (departure(reference, cohort).p_value < 1e-4) == departs
        said = estimate(cohort, updated(reference, cohort))["log_loss"]
        came = metrics.log_loss(labels.astype(int), probabilities(cohort.logits))
        assert np.isfinite([said.low, said.high]).all()
        assert departs or said.low <= came <= said.high


def past(deviation: float, judged: int, missed: int = 0) -> PastErrors:
    return PastErrors({measure: np.full(judged, deviation) for measure in MEASURES}, missed)


def test_errors_of_the_past_widen_intervals_and_never_narrow_them() -> None:
    least = norm.ppf(0.975)
    assert past(0.0, 500).reach("log_loss", 0.95) == pytest.approx(least, rel=0.01)
    assert NO_PAST.reach("log_loss", 0.95) > least
    reaches = [past(off, 20).reach("log_loss", 0.95) for off in (0.0, 1.0, 2.0, 4.0)]
    assert reaches[0] == reaches[1]
    assert reaches[1] < reaches[2] < reaches[3]


def test_a_miss_now_and_then_is_chance_and_most_of_them_are_not() -> None:
    assert past(0.0, 20).p_value(0.95) == 1.0
    assert past(0.0, 20, 2).p_value(0.95) > 0.5
    assert past(0.0, 20, 10).p_value(0.95) < 1e-3
