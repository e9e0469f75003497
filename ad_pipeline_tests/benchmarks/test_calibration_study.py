"""The calibration study sees every row, and tells a right forecast from a wrong one."""

import numpy as np

from benchmarks.evidence.calibration import (
    AD_AGES,
    DECILES,
    DOUBLED,
    GOALS,
    SIMULTANEOUS,
    SLICES,
    TRUTH,
    calibrated,
    claims,
    ratio,
    slices,
)
from benchmarks.studies import Result


def results_of(factor: float, seeds: int = 6) -> list[Result]:
    """Return results in which every forecast says the truth times a factor, but the controls."""
    made = []
    for seed in range(seeds):
        noise = 1 + 0.01 * np.sin(seed)
        values = {}
        for goal in GOALS:
            for forecast in ("online", "batch", "ensemble", TRUTH, DOUBLED):
                said = {TRUTH: 1.0, DOUBLED: 1.9}.get(forecast, factor) * noise
                for name in SLICES:
                    sums = {"rows": 100.0, "score": 10.0 * said, "label": 10.0, "truth": 10.0}
                    values |= {f"{goal}/{forecast}/{name}/{k}": v for k, v in sums.items()}
        made.append(Result("market", seed, 1.0, values))
    return made


def test_deciles_and_ages_each_hold_every_row_once():
    rng = np.random.default_rng(3)
    found = slices(rng.random(997), rng.exponential(40.0, 997))
    assert tuple(found) == SLICES
    deciles = [found[f"decile {place}"] for place in range(1, DECILES + 1)]
    for parts in (deciles, [found[name] for name in AD_AGES]):
        assert (np.sum(parts, axis=0) == 1).all()


def test_a_right_forecast_is_calibrated_and_a_wrong_one_is_not():
    assert all(claim.verdict == "holds" for claim in claims(results_of(1.0)))
    assert all(claim.verdict == "does not hold" for claim in claims(results_of(1.2)))


def test_a_truth_that_does_not_fit_the_labels_fails_the_control():
    broken = results_of(1.0)
    for result in broken:
        result.values[f"click/{TRUTH}/decile 3/label"] = 20.0
    verdicts = {claim.verdict for claim in claims(broken) if ".click." in claim.key}
    assert verdicts == {"does not hold: its control fails"}


def test_intervals_that_hold_together_are_wider():
    each = ratio(results_of(1.0), "click", "online", "all", "truth")
    together = ratio(results_of(1.0), "click", "online", "all", "truth", SIMULTANEOUS)
    assert together.high - together.low > 1.5 * (each.high - each.low)
    assert calibrated(each)
