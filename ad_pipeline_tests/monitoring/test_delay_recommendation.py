"""Which loss the delay report recommends, and what it says, in worlds whose truth is planted."""

from dataclasses import replace

import numpy as np
import pytest

from ad_pipeline.evaluation.metrics import probabilities_of
from ad_pipeline.evaluation.survival import Estimate
from ad_pipeline.monitoring.delay_report.recommendation import (
    WEIGHTED,
    Recommendation,
    recommendable,
    recommended,
    sentences,
)
from ad_pipeline.monitoring.delay_report.value import second_price
from ad_pipeline.monitoring.delay_report.what_if import LearnersOfKnownRate, WhatIf, arms_of_report
from ad_pipeline.monitoring.late_labels.arms import ORACLE, VANILLA
from ad_pipeline.monitoring.late_labels.linear import LinearLearners
from ad_pipeline.settings import Configuration, DelayReportSettings, Objective
from ad_pipeline_tests.monitoring.made_logs import replayed, short_lived_ads, stable_ads

SETTINGS = DelayReportSettings()
PLAIN = Objective()


def found_in(world: WhatIf, configured: Objective = PLAIN) -> Recommendation:
    return recommended(world, configured, SETTINGS)


def said_of(world: WhatIf, configured: Objective = PLAIN) -> str:
    return " ".join(sentences(found_in(world, configured), world))


@pytest.fixture(scope="module")
def rare() -> WhatIf:
    """One positive in two hundred, ads that live much longer than labels take."""
    return replayed(stable_ads(0.005), 24_000)


@pytest.fixture(scope="module")
def frequent() -> WhatIf:
    """The same with a base rate of 0.345: most positives come after the window of five minutes."""
    return replayed(stable_ads(0.345), 24_000)


@pytest.fixture(scope="module")
def short_lived() -> WhatIf:
    """Labels take as long as an ad lives."""
    return replayed(short_lived_ads(), 80_000, worlds=4, value=second_price)


def test_at_a_base_rate_of_half_a_per_cent_it_says_that_weighting_changes_nothing(
    rare: WhatIf,
) -> None:
    found = found_in(rare)
    assert found.weighting_changes_nothing
    assert abs(found.weighting_log_loss.value) < 0.01
    assert found.arm.name == VANILLA
    assert "Weighting changes nothing here" in said_of(rare)
    assert "less than 1%" in said_of(rare)


def test_at_a_base_rate_of_a_third_and_a_short_window_it_does_not_say_so(frequent: WhatIf) -> None:
    """Negative control: the same log, but for its base rate."""
    found = found_in(frequent)
    assert not found.weighting_changes_nothing
    assert found.weighting_changes_something
    assert found.arm.objective.comes_late
    assert "Weighting changes something here" in said_of(frequent)
    assert "changes nothing" not in said_of(frequent)
    # The plain loss on duplicates has its fixed point at p / (1 + d), d the rate of late positives.
    late = frequent.model.rate * frequent.model.lateness
    assert found.cost(VANILLA).calibration.value == pytest.approx(1 / (1 + late), rel=0.08)


def test_where_labels_take_as_long_as_an_ad_lives_the_hazard_correction_is_recommended(
    short_lived: WhatIf,
) -> None:
    found = found_in(short_lived)
    assert found.arm.name == "hazard"
    assert found.cost(VANILLA).log_loss.value > 0.003
    assert f"Configured is {VANILLA}" in said_of(short_lived)


def test_the_hazard_correction_is_calibrated_at_every_ad_age_and_weighting_alone_is_not(
    short_lived: WhatIf,
) -> None:
    """The planted fault of a weighted loss: young ads too high, ads whose labels wait too low."""
    hazard, weighted, oracle = (
        [each.value for each in short_lived.calibration_by_age(name) if not np.isnan(each.value)]
        for name in ("hazard", WEIGHTED, ORACLE)
    )
    against_oracle = np.array(hazard) / np.array(oracle)
    assert against_oracle.min() > 0.9
    assert against_oracle.max() < 1.1
    off = np.array(weighted) / np.array(oracle)
    assert off.max() / off.min() > 1.25
    assert short_lived.miscalibration_against(WEIGHTED, "hazard").low > 0


def test_what_the_wrong_loss_costs_is_said_in_log_loss_calibration_and_money(
    short_lived: WhatIf,
) -> None:
    cost = found_in(short_lived).cost(VANILLA)
    assert cost.money is not None
    assert cost.money.value > 0
    assert cost.miscalibration > 2 * found_in(short_lived).cost("hazard").miscalibration
    assert found_in(short_lived).cost("hazard").money == Estimate(0.0, 0.0, 0.0)
    assert "of currency lost in 1,000 anchors" in said_of(short_lived)


def test_without_a_value_function_nothing_is_said_of_money(rare: WhatIf) -> None:
    assert all(cost.money is None for cost in found_in(rare).costs)
    assert "currency" not in said_of(rare)


def test_what_is_configured_stays_where_nothing_simpler_or_better_is_known(rare: WhatIf) -> None:
    immediate = Objective(strategy="immediate")
    assert found_in(rare, immediate).arm.objective.shown == "immediate"
    assert "That is what is configured." in said_of(rare, immediate)


def test_a_loss_that_was_not_replayed_cannot_be_judged(rare: WhatIf) -> None:
    with pytest.raises(LookupError, match="was not replayed"):
        found_in(rare, Objective(loss="delayed_feedback"))
    named = [arm.objective.loss for arm in arms_of_report(rare.model, Objective(loss="bi_defuse"))]
    assert "bi_defuse" in named


def test_who_only_waits_or_knows_the_future_is_never_recommended(frequent: WhatIf) -> None:
    chosen = {arm.name for arm in frequent.arms if recommendable(arm)}
    assert {VANILLA, WEIGHTED, "hazard"} <= chosen
    assert not {ORACLE, "wait for maturity", "wait 5 min", "pre-trained"} & chosen


def test_too_few_anchors_are_said_to_be_too_few(frequent: WhatIf) -> None:
    """Planted: two worlds that contradict each other."""
    place = frequent.place(WEIGHTED)
    loss, predicted = frequent.loss.copy(), frequent.predicted.copy()
    loss[:, place] = loss[:, frequent.place(VANILLA)] * np.array([0.9, 1.1, 1.0])
    predicted[:, place] = predicted[:, frequent.place(VANILLA)] * np.array([0.9, 1.1, 1.0])[:, None]
    unsure = replace(frequent, loss=loss, predicted=predicted)
    assert "Too little was replayed" in said_of(unsure)


def test_no_loss_beats_the_oracle_by_being_faster(frequent: WhatIf, short_lived: WhatIf) -> None:
    """All arms of a world learn at the oracle's best rate: who shows rows twice gains nothing."""
    for world in (frequent, short_lived):
        gained = {
            arm.name: -world.loss_against(arm.name, ORACLE).value
            for arm in world.arms
            if recommendable(arm)
        }
        assert max(gained.values()) < SETTINGS.tolerated_loss, gained


@pytest.mark.parametrize("rate", [0.001, 0.005, 0.345])
def test_a_learner_of_a_made_world_knows_the_base_rate_before_it_begins(rate: float) -> None:
    made = LearnersOfKnownRate(Configuration(), 12, 1.0, 16, rate=rate)
    bias = np.zeros((1, 1), dtype=np.uint32)
    assert probabilities_of(made.fresh(0).logits(bias))[0, 0] == pytest.approx(rate, rel=0.05)
    # Negative control: one that begins from nothing says a half.
    untold = LinearLearners(Configuration(), 12, 1.0).fresh(0)
    assert probabilities_of(untold.logits(bias))[0, 0] == 0.5
