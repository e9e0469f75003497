"""The ensemble: honest ranges, and never measurably worse than the best expert."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.learners.ensemble.calibration_layer import CalibrationLayer, fit_layer
from ad_pipeline.learners.ensemble.ensemble import Ensemble, fit_ensemble, split_ranges
from ad_pipeline.learners.ensemble.logistic import row_losses
from ad_pipeline.settings import EnsembleSettings

SETTINGS = EnsembleSettings()
START = 490_000 * HOUR_US


def draw(
    seed: int, positives: int, noise: tuple[float, float], shared: float = 0.5, bias: float = 0.0
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return two calibrated noisy views of a truth (``bias`` added to batch), labels, hours.

    ``noise`` are the views' noises, ``shared`` the share of their variance in common. The base
    rate is about 2 %, and drifts from day to day.
    """
    generator = np.random.default_rng(seed)
    n = positives * 50
    hour = np.sort(generator.integers(0, 120, n))
    middle = np.log(0.02) - 0.5
    truth = generator.normal(0, 1, n)
    day = generator.normal(0, 0.05, 5)[hour // 24]
    labels = generator.random(n) < 1 / (1 + np.exp(-(middle + truth + day)))
    common = generator.normal(size=n)
    views = [
        middle
        + (truth + sd * (shared**0.5 * common + (1 - shared) ** 0.5 * generator.normal(size=n)))
        / (1 + sd * sd)
        for sd in noise
    ]
    logits = {"online": views[0], "batch": views[1] + bias}
    return logits, labels.astype(np.uint8), START + hour * HOUR_US


def naming(mixture: str) -> EnsembleSettings:
    """Return settings that ask for a mixture."""
    return EnsembleSettings.model_validate({"mixture": mixture})


def young(logits: dict[str, np.ndarray], hours: np.ndarray) -> dict[str, np.ndarray]:
    """Return the logits with none of the batch expert before the calibration range."""
    scored = hours >= split_ranges(hours, SETTINGS).calibration.start_us
    return logits | {"batch": np.where(scored, logits["batch"], np.nan)}


def relative_excess(
    ensemble: Ensemble, logits: dict[str, np.ndarray], labels: np.ndarray, hours: np.ndarray
) -> float:
    """(ensemble - best expert in hindsight) / best expert, log loss on the test range."""
    start, end = ensemble.ranges["test"]
    test = (hours >= start) & (hours < end)
    p = ensemble.apply({name: values[test] for name, values in logits.items()})
    ours = -np.log(np.where(labels[test] == 1, p, 1 - p)).sum()
    best = min(row_losses(values[test], labels[test]).sum() for values in logits.values())
    return float((ours - best) / best)


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    hours=st.sets(st.integers(0, 500), min_size=3, max_size=60),
    fit=st.floats(0.05, 0.6),
    calibration=st.floats(0.05, 0.35),
)
def test_ranges_are_disjoint_ordered_whole_hours_and_none_is_empty(
    hours: set[int], fit: float, calibration: float
) -> None:
    moments = np.array(sorted(hours)) * HOUR_US + 17
    settings = EnsembleSettings(fit_share=fit, calibration_share=calibration)
    ranges = split_ranges(moments, settings)
    held = np.array([part.holds(moments) for part in (ranges.fit, ranges.calibration, ranges.test)])
    assert (held.sum(axis=0) == 1).all()
    assert held.any(axis=1).all()
    assert ranges.fit.end_us == ranges.calibration.start_us
    assert ranges.calibration.end_us == ranges.test.start_us
    assert all(bound % HOUR_US == 0 for pair in ranges.to_json().values() for bound in pair)


def test_shares_that_leave_no_test_range_and_too_few_hours_are_refused() -> None:
    with pytest.raises(ValueError, match="test range"):
        split_ranges(
            np.arange(10) * HOUR_US, EnsembleSettings(fit_share=0.6, calibration_share=0.4)
        )
    with pytest.raises(ValueError, match="three ranges"):
        split_ranges(np.arange(2) * HOUR_US, SETTINGS)


def test_labels_of_the_test_range_change_nothing() -> None:
    """The leakage test: with its negative control, labels of the fit range do."""
    logits, labels, hours = draw(1, 2_000, (0.5, 0.5))
    ranges = split_ranges(hours, SETTINGS)
    expected = fit_ensemble(logits, labels, hours, SETTINGS).to_json()
    flipped = np.where(ranges.test.holds(hours), 1 - labels, labels).astype(np.uint8)
    spoilt = {
        name: np.where(ranges.test.holds(hours), 0.0, values) for name, values in logits.items()
    }
    assert fit_ensemble(spoilt, flipped, hours, SETTINGS).to_json() == expected
    rows = np.flatnonzero(ranges.fit.holds(hours))[:500]
    other = labels.copy()
    other[rows] = 1 - other[rows]
    assert fit_ensemble(logits, other, hours, SETTINGS).to_json() != expected


def test_labels_of_the_calibration_range_leave_the_mixture_alone() -> None:
    logits, labels, hours = draw(2, 2_000, (0.5, 0.5))
    ranges = split_ranges(hours, SETTINGS)
    zeroed = np.where(ranges.calibration.holds(hours), 0, labels).astype(np.uint8)
    a, b = (fit_ensemble(logits, given, hours, SETTINGS) for given in (labels, zeroed))
    assert (a.kind, a.weights, a.intercept) == (b.kind, b.weights, b.intercept)


@pytest.mark.parametrize("mixture", ["auto", "online", "batch", "average", "voting", "stacked"])
def test_one_row_gives_the_bits_it_gives_among_many_also_after_json(mixture: str) -> None:
    logits, labels, hours = draw(3, 3_000, (0.5, 0.45), bias=0.4)
    ensemble = fit_ensemble(logits, labels, hours, naming(mixture))
    back = Ensemble.from_json(json.loads(json.dumps(ensemble.to_json(), allow_nan=False)))
    assert back == ensemble
    many = ensemble.apply(logits)
    assert ((many > 0) & (many < 1)).all()
    for row in range(0, len(labels), len(labels) // 50):
        one = {name: values[row : row + 1] for name, values in logits.items()}
        assert back.apply(one).tobytes() == many[row : row + 1].tobytes()


def test_two_equal_views_are_mixed_and_win() -> None:
    logits, labels, hours = draw(4, 5_000, (0.6, 0.6), shared=0.0)
    ensemble = fit_ensemble(logits, labels, hours, SETTINGS)
    assert ensemble.kind in ("average", "stacked")
    assert relative_excess(ensemble, logits, labels, hours) < -0.002


def test_an_expert_that_adds_nothing_is_left_out_of_the_mixture() -> None:
    logits, labels, hours = draw(5, 3_000, (0.3, 0.3))
    logits["batch"] = np.random.default_rng(5).normal(-4, 1, len(labels))
    ensemble = fit_ensemble(logits, labels, hours, SETTINGS)
    assert relative_excess(ensemble, logits, labels, hours) < 0.001
    assert dict(zip(ensemble.experts, ensemble.weights, strict=True)).get("batch", 0.0) < 0.05


def test_a_biased_expert_is_corrected() -> None:
    logits, labels, hours = draw(6, 6_000, (1.5, 0.3), bias=0.7)
    ensemble = fit_ensemble(logits, labels, hours, SETTINGS)
    p = ensemble.apply(logits)
    assert labels.sum() / p.sum() == pytest.approx(1.0, abs=0.1)
    assert relative_excess(ensemble, logits, labels, hours) < -0.01


def test_rows_that_an_expert_did_not_score_are_left_out_of_the_comparison() -> None:
    logits, labels, hours = draw(7, 3_000, (0.5, 0.5))
    early = hours < START + 24 * HOUR_US
    gaps = logits | {"batch": np.where(early, np.nan, logits["batch"])}
    ensemble = fit_ensemble(gaps, labels, hours, SETTINGS)
    assert set(ensemble.experts) == {"batch", "online"}
    first, last = split_ranges(hours, SETTINGS).to_json()["fit"]
    fitted = (hours >= first) & (hours < last) & ~early
    assert ensemble.facts["rows"]["fit"] == fitted.sum()


def test_an_expert_that_came_too_late_is_left_out_and_named() -> None:
    logits, labels, hours = draw(8, 2_000, (0.8, 0.1))
    late = logits | {"batch": np.full(len(labels), np.nan)}
    ensemble = fit_ensemble(late, labels, hours, SETTINGS)
    assert ensemble.kind == "online"
    assert "0 positives" in ensemble.facts["left_out"]["batch"]
    assert np.isfinite(ensemble.apply({"online": logits["online"]})).all()
    with pytest.raises(ValueError, match="no expert scored"):
        fit_ensemble({"batch": late["batch"]}, labels, hours, SETTINGS)


@pytest.mark.parametrize("positives", [0, 1, 30])
def test_a_log_with_next_to_no_positives_keeps_one_expert_as_it_is(positives: int) -> None:
    logits, labels, hours = draw(9, 1_000, (0.5, 0.5))
    rare = np.zeros_like(labels)
    rare[np.flatnonzero(labels)[:: max(1, labels.sum() // max(positives, 1))][:positives]] = 1
    ensemble = fit_ensemble(logits, rare, hours, SETTINGS)
    assert ensemble.calibration.overall.kind == "identity"
    assert ensemble.kind in ("online", "batch", "average", "voting", "stacked")
    assert np.isfinite(ensemble.apply(logits)).all()


def test_a_missing_expert_is_an_error_and_a_missing_logit_shows() -> None:
    logits, labels, hours = draw(10, 3_000, (0.6, 0.6), shared=0.0)
    ensemble = fit_ensemble(logits, labels, hours, SETTINGS)
    with pytest.raises(KeyError):
        ensemble.apply({"online": logits["online"]})
    gap = {"online": np.array([np.nan]), "batch": np.array([-3.0])}
    assert np.isnan(ensemble.apply(gap)).all()


@pytest.mark.parametrize("mixture", ["online", "batch", "average", "voting", "stacked"])
def test_the_mixture_that_the_settings_name_is_taken_whatever_the_rows_say(mixture: str) -> None:
    """The negative control: left to the rows, the noise is in no mixture."""
    logits, labels, hours = draw(11, 2_000, (0.3, 0.3))
    logits["batch"] = np.random.default_rng(11).normal(-4, 1, len(labels))
    ensemble = fit_ensemble(logits, labels, hours, naming(mixture))
    assert ensemble.kind == mixture
    assert ensemble.facts["asked_for"] == mixture
    if mixture in ("average", "voting"):
        assert ensemble.shares == {"batch": 0.5, "online": 0.5}
    chosen = fit_ensemble(logits, labels, hours, SETTINGS)
    assert chosen.kind == "online"
    assert chosen.facts["left_out"]["batch"].startswith("adds nothing to online")


@pytest.mark.parametrize("mixture", ["batch", "average", "voting", "stacked"])
def test_a_mixture_waits_for_an_expert_that_has_not_scored_enough(mixture: str) -> None:
    logits, labels, hours = draw(12, 1_000, (0.5, 0.5))
    logits["batch"] = np.full(len(labels), np.nan)
    ensemble = fit_ensemble(logits, labels, hours, naming(mixture))
    assert (ensemble.kind, ensemble.experts) == ("online", ("online",))
    assert ensemble.facts["asked_for"] == mixture
    assert "batch" in ensemble.facts["left_out"]


def test_voting_is_the_mean_of_the_probabilities_and_averaging_the_mean_of_the_logits() -> None:
    logits, labels, hours = draw(13, 2_000, (0.6, 0.6), shared=0.0)
    voting, average = (
        fit_ensemble(logits, labels, hours, naming(each)) for each in ("voting", "average")
    )
    mean = sum(1 / (1 + np.exp(-values)) for values in logits.values()) / 2
    voted = voting.mix(logits)
    np.testing.assert_allclose(1 / (1 + np.exp(-voted)), mean, rtol=1e-12)
    averaged = (logits["online"] + logits["batch"]) / 2
    np.testing.assert_allclose(average.mix(logits), averaged, rtol=1e-12)
    assert np.abs(voted - averaged).max() > 0.1
    far = {"online": np.array([-900.0, 900.0, 900.0]), "batch": np.array([-800.0, 800.0, -800.0])}
    expected = [-800.0 - np.log(2), 800.0 + np.log(2), 0.0]
    np.testing.assert_allclose(voting.mix(far), expected, rtol=1e-12, atol=1e-12)
    assert np.isnan(voting.mix(far | {"batch": np.full(3, np.nan)})).all()


def test_weights_that_sum_to_another_number_than_one_have_shares_and_a_centre() -> None:
    logits, labels, hours = draw(14, 3_000, (0.5, 0.5))
    ensemble = fit_ensemble(logits, labels, hours, naming("stacked"))
    assert sum(ensemble.shares.values()) == pytest.approx(1.0)
    centre = sum(ensemble.shares[name] * logits[name] for name in ensemble.experts)
    np.testing.assert_allclose(ensemble.centre(logits), centre, rtol=1e-12)
    assert not np.allclose(ensemble.mix(logits), centre)


@pytest.mark.parametrize("seed", range(6))
def test_noise_in_the_place_of_a_young_expert_is_in_no_mixture(seed: int) -> None:
    """It has scored no positive of the fit range; a good expert that is as young is mixed."""
    logits, labels, hours = draw(seed, 2_400, (0.6, 0.6), shared=0.0)
    drawn = np.random.default_rng(seed).normal(logits["batch"].mean(), 0.8, len(labels))
    spoilt = fit_ensemble(young(logits | {"batch": drawn}, hours), labels, hours, SETTINGS)
    assert spoilt.facts["positives"]["fit"] == 0
    assert spoilt.facts["mixed_on"] == ["fit", "calibration"]
    assert (spoilt.kind, spoilt.experts) == ("online", ("online",))
    good = fit_ensemble(young(logits, hours), labels, hours, SETTINGS)
    assert set(good.experts) == {"online", "batch"}
    assert good.kind in ("average", "voting", "stacked")
    assert good.facts["left_out"] == {}


def test_a_copy_of_an_expert_is_in_no_mixture() -> None:
    logits, labels, hours = draw(15, 2_000, (0.5, 0.5))
    ensemble = fit_ensemble(logits | {"batch": logits["online"]}, labels, hours, SETTINGS)
    assert len(ensemble.experts) == 1
    assert len(ensemble.facts["left_out"]) == 1


def test_a_stack_that_was_fitted_on_the_calibration_range_is_calibrated_on_what_it_had_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: of a stack fitted elsewhere, the calibration reads the stack itself."""
    read: list[np.ndarray] = []

    def seen(logits: np.ndarray, *others: object) -> tuple[CalibrationLayer, dict[str, object]]:
        read.append(logits)
        return fit_layer(logits, *others)  # pyright: ignore[reportArgumentType, reportReturnType]

    monkeypatch.setattr("ad_pipeline.learners.ensemble.ensemble.fit_layer", seen)
    logits, labels, hours = draw(16, 2_000, (0.5, 0.5))
    later = split_ranges(hours, SETTINGS).calibration.holds(hours)
    for scores, crossed in ((young(logits, hours), True), (logits, False)):
        ensemble = fit_ensemble(scores, labels, hours, naming("stacked"))
        own = ensemble.mix({name: values[later] for name, values in scores.items()})
        assert np.array_equal(read[-1], own) is not crossed
        np.testing.assert_allclose(read[-1], own, atol=0.3)


@pytest.mark.parametrize(
    ("noise", "shared"),
    [((0.3, 0.7), 0.5), ((1.0, 0.4), 0.3), ((0.5, 0.52), 0.95), ((0.5, 0.5), 0.5)],
)
def test_over_seeds_it_does_not_lose_to_the_best_expert_of_hindsight(
    noise: tuple[float, float], shared: float
) -> None:
    """About 1,000 positives in all, so 250 in the test hours: the few-positives case."""
    excess = []
    for seed in range(16):
        given = draw(1_000 + seed, 1_000, noise, shared)
        excess.append(relative_excess(fit_ensemble(*given, SETTINGS), *given))
    assert np.mean(excess) < 0.001
    assert np.median(excess) <= 0.001


@pytest.mark.slow
@pytest.mark.parametrize("positives", [1_000, 4_000])
def test_over_many_seeds_losses_are_rare(positives: int) -> None:
    scenes = [((0.5, 0.5), 0.5), ((0.3, 0.7), 0.5), ((1.0, 0.4), 0.3), ((0.5, 0.52), 0.95)]
    excess = []
    for noise, shared in scenes:
        for seed in range(25):
            given = draw(1_000 + seed, positives, noise, shared)
            excess.append(relative_excess(fit_ensemble(*given, SETTINGS), *given))
    assert np.mean(excess) < 0.0003
    assert np.mean(np.array(excess) > 0.001) < 0.2
