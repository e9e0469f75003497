"""Suspect labels are found in their hour and named rightly, and clean ones are left in peace."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import gamma, nbinom, poisson

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.monitoring.label_quality import (
    ALL,
    NOT_COMPARED_WITH,
    SUSPECT,
    Expectation,
    Part,
    Series,
    expectation,
    judge_hour,
)
from ad_pipeline.monitoring.label_quality_hours import (
    described,
    record_label_quality,
    suspect_labels,
)
from ad_pipeline.settings import LabelQualitySettings
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import ready_market
from ad_pipeline_tests.monitoring.planted_labels import HOUR, planted
from benchmarks.label_faults import FLOOD, LATE, REFUNDS, STALL, largest_advertiser

SETTINGS = LabelQualitySettings()
WHOLE: Part = (ALL, "")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Market:
    return ready_market(tmp_path_factory.mktemp("clean"))


def judged(market: Market) -> list[dict]:
    warehouse = Warehouse(market.deployment.warehouse)
    return record_label_quality(warehouse, market.deployment, market.start_us, market.end_us)


def verdicts(rows: Sequence[dict], market: Market, hour: int, goal: str = "click") -> dict:
    at_us = market.start_us + hour * HOUR_US
    return {
        (row["slice_of"], row["part"]): row["verdict"]
        for row in rows
        if row["hour_us"] == at_us and row["goal"] == goal
    }


def suspect_hours(rows: Sequence[dict], market: Market, goal: str = "click") -> set[int]:
    return {
        (row["hour_us"] - market.start_us) // HOUR_US
        for row in rows
        if row["goal"] == goal and row["verdict"] in SUSPECT
    }


@pytest.mark.parametrize("seed", [2, 3])
def test_nothing_is_suspect_in_a_clean_log(seed: int, clean: Market, tmp_path: Path):
    """The negative control; twenty seeds are in the evidence."""
    market = clean if seed == 2 else ready_market(tmp_path, seed)
    rows = judged(market)
    assert not [row for row in rows if row["verdict"] in SUSPECT]
    assert verdicts(rows, market, HOUR)[WHOLE] == "as expected"
    assert verdicts(rows, market, 3)[WHOLE] == "warming up"


def test_a_click_flood_of_one_advertiser_is_that_advertisers_alone(clean: Market, tmp_path: Path):
    advertiser = largest_advertiser(Warehouse(clean.deployment.warehouse))
    market = planted(clean, tmp_path / "flood", FLOOD)
    rows = judged(market)
    found = verdicts(rows, market, HOUR)
    assert found.pop(("advertiser_id", advertiser)) == "jumped"
    assert set(found.values()) <= {"as expected", "too few"}
    assert suspect_hours(rows, market) == {HOUR}
    (row,) = [row for row in rows if row["verdict"] == "jumped"]
    assert "ad_pipeline recover --goal click --hour 2026-03-03-12:00" in described(row)
    assert advertiser in described(row)


def test_a_click_stream_that_stands_still_is_the_whole_goals(clean: Market, tmp_path: Path):
    market = planted(clean, tmp_path / "stall", STALL)
    rows = judged(market)
    assert verdicts(rows, market, HOUR)[WHOLE] == "stalled"
    assert suspect_hours(rows, market) == {HOUR}


def test_a_wave_of_refunds_is_told_from_a_change_of_the_rate(clean: Market, tmp_path: Path):
    market = planted(clean, tmp_path / "refunds", REFUNDS)
    rows = judged(market)
    assert verdicts(rows, market, HOUR)[WHOLE] == "retracted a lot"
    assert suspect_hours(rows, market) == {HOUR}


def test_labels_that_come_late_are_missed_first_and_then_named_late(clean: Market, tmp_path: Path):
    market = planted(clean, tmp_path / "late", LATE)
    rows = judged(market)
    assert verdicts(rows, market, HOUR - 2)[WHOLE] == "stalled"
    assert verdicts(rows, market, HOUR)[WHOLE] == "late"
    late = [row for row in rows if row["verdict"] == "late" and row["slice_of"] == ALL]
    assert late[0]["late_share"] > 0.3
    assert suspect_hours(rows, market) <= {HOUR - 2, HOUR - 1, HOUR, HOUR + 1}


def test_labels_after_maturity_are_counted_as_too_late(clean: Market, tmp_path: Path):
    lost = LATE.replace("+ 2 * 36", "+ 4 * 36").replace("- 2 * 36", "- 4 * 36")
    market = planted(clean, tmp_path / "lost", lost)
    rows = judged(market)
    at_us = market.start_us + HOUR * HOUR_US
    (row,) = [
        r for r in rows if r["hour_us"] == at_us and (r["goal"], r["slice_of"]) == ("click", ALL)
    ]
    assert row["too_late"] > 20
    assert row["verdict"] == "late"
    assert row["late"] < row["too_late"]


def test_a_range_gives_the_same_rows_however_it_is_split(clean: Market, tmp_path: Path):
    """With a suspect hour in it, which later hours of another run must know of."""
    market = planted(clean, tmp_path / "split", STALL)
    whole = judged(market)
    warehouse = Warehouse(market.deployment.warehouse)
    parts: list[dict] = []
    for first_us in range(market.start_us, market.end_us, 13 * HOUR_US):
        last_us = min(first_us + 13 * HOUR_US, market.end_us)
        parts += record_label_quality(warehouse, market.deployment, first_us, last_us)
    assert repr(parts) == repr(whole)
    assert [row["verdict"] for row in suspect_labels(warehouse)].count("stalled") >= 1


def test_every_anchor_is_counted_in_one_hour(clean: Market):
    """Against a recount that knows nothing of states: one anchor an impression."""
    rows = [row for row in judged(clean) if row["goal"] == "click"]
    with Warehouse(clean.deployment.warehouse).reader() as connection:
        (impressions,) = connection.execute(
            "SELECT count(*) FROM events.impressions"
        ).fetchone() or (0,)
    assert sum(row["anchors"] for row in rows if row["slice_of"] == ALL) == impressions
    assert sum(row["anchors"] for row in rows if row["slice_of"] == "advertiser_id") == impressions


def steady(hours: int, anchors: int, rate: float, lags: int = 3) -> Series:
    """Return hours that are all the same: half of the positives an hour late."""
    series = Series.empty(hours, lags)
    series.known[:] = series.firsts[:] = anchors
    series.positives[:, 0] = series.positives[:, 1] = rate * anchors / 2
    series.positives[0, 1] = 0
    series.late[:, 1] = series.positives[:, 1]
    return series


def test_late_positives_are_due_when_traffic_has_stopped():
    series = steady(40, 1000, 0.1)
    series.firsts[39] = series.known[39] = 0
    series.positives[39, 0] = 0
    found = judge_hour({WHOLE: series}, 39, {}, 2, SETTINGS)[WHOLE]
    assert found.positives_due == pytest.approx(50, rel=0.01)
    assert found.verdict == "as expected"


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (0.0, "stalled"),
        (0.2, "stalled"),
        (0.5, "as expected"),
        (2.0, "as expected"),
        (4.0, "jumped"),
    ],
)
def test_a_verdict_needs_a_large_effect(factor: float, verdict: str):
    series = steady(60, 10_000, 0.2)
    series.positives[59] *= factor
    series.late[59] *= factor
    assert judge_hour({WHOLE: series}, 59, {}, 2, SETTINGS)[WHOLE].verdict == verdict


@pytest.mark.parametrize(("anchors", "verdict"), [(20, "too few"), (2_000, "stalled")])
def test_a_verdict_needs_certainty(anchors: int, verdict: str):
    series = steady(60, anchors, 0.2)
    series.positives[59] = series.late[59] = 0
    assert judge_hour({WHOLE: series}, 59, {}, 2, SETTINGS)[WHOLE].verdict == verdict


def test_a_suspect_hour_is_not_compared_with_but_a_lasting_change_becomes_usual():
    series = steady(120, 1000, 0.1)
    series.positives[60:] *= 4
    suspects: dict[int, frozenset[Part]] = {}
    said = []
    for hour in range(30, 120):
        found = judge_hour({WHOLE: series}, hour, suspects, 2, SETTINGS)[WHOLE]
        if found.verdict in NOT_COMPARED_WITH:
            suspects[hour] = frozenset([WHOLE])
        said.append(found.verdict)
    assert set(said[:30]) == {"as expected"}
    assert set(said[30 : 30 + SETTINGS.excluded_hours]) <= {"jumped", "late"}
    assert set(said[-10:]) == {"as expected"}


def test_if_most_parts_are_suspect_the_goal_is():
    large, small = steady(60, 9_000, 0.1), steady(60, 1_000, 0.1)
    everything = steady(60, 10_000, 0.1)
    for series, factor in ((large, 5), (everything, 4.6)):
        series.positives[59] *= factor
    parts = {WHOLE: everything, ("advertiser_id", "a"): large, ("advertiser_id", "b"): small}
    found = judge_hour(parts, 59, {}, 2, SETTINGS)
    assert found[WHOLE].verdict == found["advertiser_id", "a"].verdict == "jumped"
    assert found["advertiser_id", "b"].verdict == "as expected"


@given(mean=st.floats(0.5, 200), spread=st.floats(0.01, 1.0), count=st.integers(0, 400))
def test_the_expectation_is_a_poisson_whose_mean_is_gamma(mean: float, spread: float, count: int):
    """Parity with the mixture, integrated numerically."""
    means = gamma.ppf((np.arange(4000) + 0.5) / 4000, 1 / spread, scale=mean * spread)
    mixed = float(np.mean(poisson.sf(count - 1, means)))
    assert Expectation(mean, spread).at_least(count) == pytest.approx(mixed, abs=2e-3)


@given(
    mean=st.floats(1e-6, 1e5),
    spread=st.floats(1e-4, 10.0),
    count=st.integers(0, 200_000),
    level=st.floats(1e-9, 0.3),
)
def test_its_tails_and_bounds_are_those_of_the_negative_binomial(
    mean: float, spread: float, count: int, level: float
):
    """Parity with SciPy's distribution, which is too slow to import where labels are judged."""
    expected, shape = Expectation(mean, spread), 1 / spread
    reference = nbinom(shape, shape / (shape + mean))
    assert expected.at_most(count) == pytest.approx(reference.cdf(count), rel=1e-9, abs=1e-300)
    assert expected.at_least(count) == pytest.approx(reference.sf(count - 1), rel=1e-9, abs=1e-300)
    assert expected.bounds(level) == (reference.ppf(level), reference.isf(level))


def test_hours_that_vary_more_allow_more():
    exposure = np.full(72, 100.0)
    quiet = expectation(np.full(72, 100.0), exposure, 100.0, SETTINGS)
    wild = expectation(np.tile([20.0, 180.0], 36), exposure, 100.0, SETTINGS)
    assert quiet.mean == pytest.approx(wild.mean)
    assert wild.bounds(1e-5)[1] > 1.5 * quiet.bounds(1e-5)[1]
    assert quiet.relative_variance >= SETTINGS.least_spread**2


def test_false_alarms_of_overdispersed_hours_stay_below_their_level():
    """Twenty logs of 500 judged hours whose rates wander, six neighbours together."""
    reach, judged_hours, seeds, alarms = SETTINGS.reference_hours, 500, range(20), 0
    hours = reach + judged_hours
    for seed in seeds:
        rng = np.random.default_rng(seed)
        shocks = np.exp(np.repeat(rng.normal(0, 0.25, hours // 6 + 1), 6)[:hours])
        series = Series.empty(hours, 1)
        series.known[:] = series.firsts[:] = 400
        series.positives[:, 0] = rng.poisson(40 * shocks)
        for hour in range(reach, hours):
            part = series.between(hour - reach, hour + 1)
            found = judge_hour({WHOLE: part}, reach, {}, 2, SETTINGS)[WHOLE]
            alarms += found.verdict in SUSPECT
    assert alarms <= len(seeds) * judged_hours / 24 * SETTINGS.false_alarms_per_day
