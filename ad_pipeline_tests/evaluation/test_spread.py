"""Variance and bias of a mixture: the parts add up, and planted faults are seen in their hours."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.evaluation import metrics
from ad_pipeline.evaluation.held_out import ENSEMBLE, HeldOut, MixtureParts
from ad_pipeline.evaluation.spread import (
    hourly_spread,
    pooled,
    spread_of_ensemble,
    spread_of_even_mixture,
)

HOURS, PER_HOUR = 24, 2_000
LATE = np.arange(HOURS) >= 18
START_US = 490_000 * HOUR_US


class World:
    """Labels, and two experts who know the truth but for some noise of their own."""

    def __init__(self, seed: int = 1, hours: int = HOURS) -> None:
        draw = np.random.default_rng(seed)
        self.hour = np.repeat(np.arange(hours), PER_HOUR)
        truth = draw.normal(-2.5, 0.8, len(self.hour))
        self.labels = (draw.random(len(truth)) < metrics.probabilities_of(truth)).astype(np.int8)
        self.draw = draw
        self.logits = {name: truth + draw.normal(0, 0.1, len(truth)) for name in ("a", "b")}

    def spoil(self, by: np.ndarray | float) -> None:
        """Add something to expert b in the late hours."""
        late = LATE[self.hour]
        self.logits["b"] = self.logits["b"] + np.where(late, by, 0.0)

    def measured(self, shares: dict[str, float] | None = None) -> list[dict[str, Any]]:
        """Return the hours of the mixture with some shares, even ones by default."""
        shares = shares or {"a": 0.5, "b": 0.5}
        centre = sum(share * self.logits[name] for name, share in shares.items())
        assert isinstance(centre, np.ndarray)
        probabilities = metrics.probabilities_of(centre)
        return list(
            hourly_spread(
                "click",
                "stacked",
                self.labels,
                START_US + self.hour * HOUR_US,
                self.logits,
                shares,
                centre,
                probabilities,
                0.95,
            )
        )


def of(records: list[dict[str, Any]], name: str) -> np.ndarray:
    """Return one measure of every hour."""
    return np.array([record[name] for record in records])


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.5}, {"a": 0.2, "b": 0.8}, {"a": 1.0}])
def test_the_loss_is_that_of_the_experts_less_ambiguity_and_correction(
    shares: dict[str, float],
) -> None:
    world = World()
    world.spoil(world.draw.normal(0, 1, len(world.hour)))
    records = world.measured(shares)
    parts = of(records, "expert_log_loss") - of(records, "ambiguity") - of(records, "correction")
    np.testing.assert_allclose(parts, of(records, "log_loss"), rtol=1e-12)
    own = [metrics.log_loss(world.labels, metrics.probabilities_of(world.logits[name]))
           for name in shares]  # fmt: skip
    assert of(records, "expert_log_loss").mean() == pytest.approx(
        sum(share * loss for share, loss in zip(shares.values(), own, strict=True))
    )
    if len(shares) > 1:
        assert (of(records, "ambiguity") > 0).all()
    else:
        np.testing.assert_allclose(of(records, "ambiguity"), 0.0, atol=1e-15)
    assert np.abs(of(records, "correction")).max() < 1e-12


def test_the_ambiguity_of_an_average_of_logits_does_not_depend_on_the_labels() -> None:
    """The negative control: that of an average of probabilities does."""
    world = World()
    world.spoil(1.5)
    before = of(world.measured(), "ambiguity")
    world.labels = 1 - world.labels
    np.testing.assert_allclose(of(world.measured(), "ambiguity"), before, rtol=1e-9)
    mean = np.mean([metrics.probabilities_of(each) for each in world.logits.values()], axis=0)
    voted = [
        of(
            list(
                hourly_spread(
                    "click", "voting", labels, world.hour, world.logits, {"a": 0.5, "b": 0.5},
                    metrics.logits_of(mean), mean, 0.95,
                )
            ),
            "ambiguity",
        )
        for labels in (world.labels, 1 - world.labels)
    ]  # fmt: skip
    assert not np.allclose(*voted, rtol=0.01)


def test_a_biased_expert_is_seen_in_bias_and_variance_of_its_hours_and_in_no_other() -> None:
    world = World()
    clean = world.measured()
    world.spoil(0.8)
    spoilt = world.measured()
    low, variance = of(spoilt, "bias_low"), of(spoilt, "logit_variance")
    assert (low[LATE] > 0).all()
    assert (variance[LATE] > 4 * of(clean, "logit_variance")[LATE]).all()
    for name in ("bias", "logit_variance", "ambiguity", "log_loss"):
        np.testing.assert_array_equal(of(spoilt, name)[~LATE], of(clean, name)[~LATE])
    assert np.mean((of(clean, "bias_low") > 0) | (of(clean, "bias_high") < 0)) < 0.2


def test_a_spread_expert_is_seen_in_variance_and_ambiguity() -> None:
    world = World()
    clean = world.measured()
    world.spoil(world.draw.normal(0, 1, len(world.hour)))
    spoilt = world.measured()
    assert (of(spoilt, "ambiguity")[LATE] > 5 * of(clean, "ambiguity")[LATE]).all()
    assert (of(spoilt, "logit_variance")[LATE] > 5 * of(clean, "logit_variance")[LATE]).all()
    np.testing.assert_array_equal(of(spoilt, "ambiguity")[~LATE], of(clean, "ambiguity")[~LATE])


def test_an_expert_that_the_mixture_does_not_read_is_in_the_variance_alone() -> None:
    world = World()
    clean = world.measured({"a": 1.0})
    world.spoil(3.0)
    spoilt = world.measured({"a": 1.0})
    assert (of(spoilt, "logit_variance")[LATE] > 4).all()
    for name in ("ambiguity", "bias", "log_loss", "expert_log_loss"):
        np.testing.assert_array_equal(of(spoilt, name), of(clean, name))


def test_the_interval_of_the_bias_covers_zero_as_often_as_it_says() -> None:
    covered = []
    for seed in range(20):
        world = World(seed)
        truth = world.logits["a"]
        world.labels = (world.draw.random(len(truth)) < metrics.probabilities_of(truth)).astype(
            np.int8
        )
        records = world.measured({"a": 1.0})
        covered += list((of(records, "bias_low") <= 0) & (of(records, "bias_high") >= 0))
    assert 0.92 <= np.mean(covered) <= 0.98


def test_an_hour_without_a_positive_has_an_interval() -> None:
    world = World()
    world.labels[:] = 0
    records = world.measured()
    assert (of(records, "bias_low") < of(records, "bias_high")).all()
    assert np.isfinite(of(records, "log_loss")).all()


def test_pooled_hours_count_every_row_once_and_see_a_bias_beyond_its_interval() -> None:
    world = World()
    clean = pooled(world.measured(), 0.95)
    assert abs(clean.bias) < 2 * clean.bias_reach
    world.spoil(0.8)
    records = world.measured()
    records[0] = records[0] | {"rows": 0, "bias": 99.0}
    spoilt = pooled(records, 0.95)
    assert spoilt.bias == pytest.approx(of(records[1:], "bias").mean())
    assert spoilt.bias > spoilt.bias_reach > 0
    assert spoilt.logit_variance > clean.logit_variance
    assert np.isnan(pooled([], 0.95).bias)
    assert np.isnan(pooled(records[1:3], 0.95).bias_reach)


def test_the_unfitted_mixture_reads_rows_that_every_expert_scored_goal_by_goal() -> None:
    world = World(hours=2)
    n = len(world.hour)
    early = world.hour == 0
    rows = pa.table(
        {
            "goal": np.where(np.arange(n) % 2 == 0, "click", "purchase"),
            "matured_us": START_US + world.hour * HOUR_US + 5,
            "label": world.labels,
            "a_logit": world.logits["a"],
            "b_logit": pa.array(world.logits["b"], mask=early),
        }
    )
    records = list(spread_of_even_mixture(rows, ("a", "b"), 0.95))
    assert [(each["goal"], each["hour_us"]) for each in records] == [
        (goal, START_US + HOUR_US) for goal in ("click", "purchase")
    ]
    assert {each["rows"] for each in records} == {PER_HOUR // 2}
    both = np.mean([world.logits["a"][~early], world.logits["b"][~early]], axis=0)
    expected = metrics.probabilities_of(both).sum()
    assert sum(each["probability_sum"] for each in records) == pytest.approx(expected)


def test_forecasts_without_the_parts_of_their_mixture_are_refused() -> None:
    world = World(hours=3)
    centre = world.logits["a"]
    held_out = HeldOut(
        goal="click",
        start_us=START_US,
        end_us=START_US + 3 * HOUR_US,
        impression_ids=pa.chunked_array([np.arange(len(centre)).astype(str)]),
        labels=world.labels,
        hours_us=START_US + world.hour * HOUR_US,
        serving_us=START_US + world.hour * HOUR_US,
        probabilities={ENSEMBLE: metrics.probabilities_of(centre)},
        mixture=MixtureParts("a", world.logits, {"a": 1.0}, centre, np.full(len(centre), -1)),
    )
    assert len(spread_of_ensemble(held_out, 0.95)) == 3
    with pytest.raises(ValueError, match="parts of the mixture"):
        spread_of_ensemble(HeldOut(**{**vars(held_out), "mixture": None}), 0.95)
