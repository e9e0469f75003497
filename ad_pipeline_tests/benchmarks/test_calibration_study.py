"""The calibration study sees every row, and tells a right forecast from a wrong one."""

from collections.abc import Iterable

import numpy as np
import pytest

from benchmarks import calibration_stream
from benchmarks.evidence.calibration import (
    AD_AGES,
    BY_SLICE,
    DECILES,
    DOUBLED,
    GOALS,
    MARKET,
    OVERALL,
    POSITIVES,
    SIMULTANEOUS,
    SLICES,
    STILL,
    STREAM,
    TRUTH,
    UNCALIBRATED,
    calibrated,
    claims,
    of_arm,
    ratio,
    slices,
    strictly,
)
from benchmarks.studies import Result


def results_of(factor: float, seeds: int = 6) -> list[Result]:
    """Return results in which every forecast says the truth times a factor, but the controls."""
    controls = {TRUTH: 1.0, DOUBLED: 1.9, UNCALIBRATED: 1.5}
    made = []
    for seed in range(seeds):
        noise = 1 + 0.01 * np.sin(seed)
        values = {}
        for goal in GOALS:
            for forecast in ("online", "batch", "ensemble", *controls):
                said = controls.get(forecast, factor) * noise
                values |= _sums(f"{goal}/{forecast}", SLICES, said)
                values[f"{goal}/{forecast}/loss"] = 0.3 + 0.1 * (said - noise) ** 2
        made += [Result(arm, seed, 1.0, dict(values)) for arm in (MARKET, STILL)]
        stream = {}
        for forecast in (OVERALL, BY_SLICE, UNCALIBRATED):
            said = controls.get(forecast, factor) * noise
            of_publisher = 0.7 * said if forecast == OVERALL else said
            stream |= _sums(f"{STREAM}/{forecast}", _deciles("all"), said)
            for place in range(len(calibration_stream.SPEC.publishers)):
                names = _deciles(f"publisher {place + 1}")
                stream |= _sums(f"{STREAM}/{forecast}", names, of_publisher)
        made.append(Result(STREAM, seed, 1.0, stream))
    return made


def _deciles(of: str) -> list[str]:
    return [f"{of}, decile {place}" for place in range(1, DECILES + 1)]


def _sums(prefix: str, names: Iterable[str], said: float) -> dict[str, float]:
    sums = {"rows": 5000.0, "score": 500.0 * said, "label": 500.0, "truth": 500.0}
    return {f"{prefix}/{name}/{k}": v for name in names for k, v in sums.items()}


def test_deciles_and_ages_each_hold_every_row_once():
    rng = np.random.default_rng(3)
    found = slices(rng.random(997), rng.exponential(40.0, 997))
    assert tuple(found) == SLICES
    deciles = [found[f"decile {place}"] for place in range(1, DECILES + 1)]
    for parts in (deciles, [found[name] for name in AD_AGES]):
        assert (np.sum(parts, axis=0) == 1).all()


def test_a_right_forecast_is_calibrated_and_a_wrong_one_is_not():
    assert all(claim.verdict == "holds" for claim in claims(results_of(1.0)))
    wrong = [claim for claim in claims(results_of(1.2)) if "costs_nothing" not in claim.key]
    assert all(claim.verdict == "does not hold" for claim in wrong)


def test_a_truth_that_does_not_fit_the_labels_fails_the_control():
    broken = results_of(1.0)
    for result in of_arm(broken, MARKET):
        result.values[f"click/{TRUTH}/decile 3/label"] = 800.0
    kinds = (".all", ".deciles", ".ad_age")
    verdicts = {
        claim.verdict
        for claim in claims(broken)
        if ".click." in claim.key and claim.key.endswith(kinds)
    }
    assert verdicts == {"does not hold: its control fails"}


def test_intervals_that_hold_together_are_wider():
    market = of_arm(results_of(1.0), MARKET)
    each = ratio(market, "click", "online", "all", "truth")
    together = ratio(market, "click", "online", "all", "truth", SIMULTANEOUS)
    assert together.high - together.low > 1.5 * (each.high - each.low)
    assert calibrated(each)


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.03, True), (1.06, False)])
def test_the_strict_limits_are_strict_and_ask_only_deciles_with_enough_positives(
    factor: float, holds: bool
) -> None:
    market = of_arm(results_of(factor), MARKET)
    names = SLICES[1 : DECILES + 1]
    found = strictly(market, "click/ensemble", names)
    assert (found.asked, found.holds) == (DECILES, holds)
    market[2].values["click/ensemble/decile 4/label"] = POSITIVES - 1.0  # in one seed only
    assert strictly(market, "click/ensemble", names).asked == DECILES - 1
    assert strictly(market, "click/ensemble", ()).holds is False


@pytest.mark.parametrize("arm", [MARKET, STILL, STREAM])
def test_a_control_that_is_calibrated_fails_the_strict_claims(arm: str) -> None:
    results = results_of(1.0)
    for result in of_arm(results, arm):
        for name in result.values:
            is_control = f"/{DOUBLED}/" in name or f"/{UNCALIBRATED}/" in name
            if is_control and name.endswith("/score"):
                result.values[name] = 500.0
    world = {MARKET: "drifting_strict", STILL: "stationary_strict", STREAM: ".stream."}[arm]
    verdicts = {claim.verdict for claim in claims(results) if world in claim.key}
    assert verdicts == {"does not hold: its control fails"}


def test_a_calibration_that_costs_something_is_found() -> None:
    results = results_of(1.0)
    for result in results:
        if result.arm != STREAM:
            result.values["click/ensemble/loss"] = (
                result.values[f"click/{UNCALIBRATED}/loss"] * 1.01
            )
    found = {claim.key: claim.verdict for claim in claims(results) if "costs" in claim.key}
    assert found["calibration.click.costs_nothing"] == "does not hold"
    assert found["calibration.purchase.costs_nothing"] == "holds"


def test_a_stream_is_the_same_for_a_seed_and_its_truth_fits_its_labels() -> None:
    spec = calibration_stream.StreamSpec(rows=60_000, publisher_sd=0.6)
    stream = calibration_stream.scored(3, spec)
    again = calibration_stream.scored(3, spec)
    assert np.array_equal(stream.by_slice, again.by_slice)
    assert stream.labels.sum() / stream.truth.sum() == pytest.approx(1.0, abs=0.1)
    assert 1 / (1 + np.exp(-stream.mixed.mean())) != pytest.approx(stream.truth.mean(), rel=0.01)
    assert stream.corrected > 0
