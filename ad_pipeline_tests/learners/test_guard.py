"""The guard trips on labels that cannot be and on nothing else; its figures are as defined."""

from dataclasses import replace

import numpy as np
import pytest

from ad_pipeline.learners.online.guard import (
    COMPARED_WITH,
    SAMPLED_EXAMPLES,
    Evidence,
    Verdict,
    evidence_of,
    judge,
    sampled,
)
from ad_pipeline.settings import GuardSettings

SETTINGS = GuardSettings()
HOURS = 40
POISONED = 30


def drawn(seed: int, rate: float = 0.05, rows: int = 2_000) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of a model that is right, and labels drawn from them."""
    generator = np.random.default_rng(seed)
    logits = np.log(rate / (1 - rate)) + generator.normal(0.0, 0.8, rows)
    labels = (generator.random(rows) < 1 / (1 + np.exp(-logits))).astype(np.uint8)
    return logits, labels


def seen(logits: np.ndarray, labels: np.ndarray) -> Evidence:
    return evidence_of(logits, labels, np.ones(len(labels)), len(labels))


def verdicts_of(hours: list[Evidence]) -> list[Verdict]:
    """Judge one hour after the other, as a learner does."""
    recent: list[Evidence] = []
    verdicts: list[Verdict] = []
    for evidence in hours:
        verdicts.append(judge(evidence, recent[-SETTINGS.recent_hours :], SETTINGS))
        if verdicts[-1].state in COMPARED_WITH:
            recent.append(evidence)
    return verdicts


def test_the_figures_are_those_of_the_definition():
    logits, labels = np.array([0.5, -2.0, 1.0]), np.array([1, 0, 0])
    weights = np.array([1.0, 2.0, 0.0])
    found = evidence_of(logits, labels, weights, 3)
    p = 1 / (1 + np.exp(-logits[:2]))
    losses = np.array([-np.log(p[0]), -np.log(1 - p[1])])
    entropies = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert found.loss == pytest.approx((losses[0] + 2 * losses[1]) / 3)
    assert found.expected_loss == pytest.approx((entropies[0] + 2 * entropies[1]) / 3)
    variance = p * (1 - p) * logits[:2] ** 2
    excess = losses - entropies
    assert found.surprise == pytest.approx(
        (excess[0] + 2 * excess[1]) / np.sqrt(variance[0] + 4 * variance[1])
    )
    assert (found.observed, found.expected) == (1.0, pytest.approx(p[0] + 2 * p[1]))
    assert found.largest_logit == 2.0


def test_a_model_that_is_right_is_surprised_like_a_standard_normal():
    surprises = [seen(*drawn(seed)).surprise for seed in range(300)]
    assert abs(np.mean(surprises)) < 0.2
    assert 0.85 < np.std(surprises) < 1.15


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_labels_that_a_model_expects_trip_nothing(seed: int, rate: float):
    """The negative control: drift of a fifth and a busy evening are no accident either."""
    generator = np.random.default_rng(seed)
    hours = []
    for number in range(HOURS):
        logits, labels = drawn(1000 * seed + number, rate, int(generator.integers(1_000, 4_000)))
        hours.append(seen(logits + np.log(1.2) * np.sin(number), labels))
    states = [verdict.state for verdict in verdicts_of(hours)]
    assert states == ["warming_up"] * SETTINGS.warm_up_hours + ["passed"] * (
        HOURS - SETTINGS.warm_up_hours
    )


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3])
@pytest.mark.parametrize(
    ("fault", "poison"),
    [
        ("flipped", lambda labels: 1 - labels),
        ("all positive", np.ones_like),
        ("none positive", np.zeros_like),
    ],
)
def test_labels_that_cannot_be_trip_it_in_their_own_hour(rate: float, fault: str, poison):
    hours = []
    for number in range(HOURS):
        logits, labels = drawn(number, rate, 5_000)
        hours.append(seen(logits, poison(labels) if number == POISONED else labels))
    verdicts = verdicts_of(hours)
    assert [n for n, found in enumerate(verdicts) if found.state == "tripped"] == [POISONED]
    assert "where the model expected" in verdicts[POISONED].reason


def test_numbers_that_have_blown_up_trip_it_from_the_first_hour_on():
    logits, labels = drawn(1)
    sound = seen(logits, labels)
    assert judge(sound, [], SETTINGS).state == "warming_up"
    for evidence in (
        seen(logits * 100, labels),
        seen(np.where(np.arange(len(logits)) == 7, np.nan, logits), labels),
        replace(sound, largest_weight=float("inf")),
        replace(sound, largest_weight=float("nan")),
    ):
        assert judge(evidence, [], SETTINGS).state == "tripped"


def test_a_few_examples_and_the_rest_of_a_log_are_not_judged():
    recent = [seen(*drawn(seed)) for seed in range(20)]
    logits, labels = drawn(99, rows=40)
    assert judge(seen(logits, 1 - labels), recent, SETTINGS).state == "too_few"
    logits, labels = drawn(99, rows=300)  # the log has ended, late positives still come
    assert judge(seen(logits, np.ones_like(labels)), recent, SETTINGS).state == "too_few"
    assert judge(seen(np.empty(0), np.empty(0)), recent, SETTINGS).state == "too_few"


def test_what_is_certain_and_small_does_not_trip_it():
    """A million examples make a tenth too many positives certain; it is no accident."""
    recent = [seen(*drawn(seed)) for seed in range(20)]
    logits, labels = drawn(99, rows=400_000)
    found = seen(logits - 0.1, labels)
    assert found.miscalibration > 3 * SETTINGS.limit
    assert judge(found, recent, SETTINGS).state == "passed"


def test_a_sample_is_even_and_bounded():
    assert sampled(5).tolist() == [0, 1, 2, 3, 4]
    assert len(sampled(0)) == 0
    places = sampled(1_000_000)
    assert len(places) == SAMPLED_EXAMPLES
    assert places[0] == 0
    assert places[-1] == 999_999
    assert set(np.diff(places)) <= {50, 51}
