"""Requests are answered in their own rhythm, and one that waits says so whoever let it wait."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ad_pipeline.clocks import MINUTE_US
from ad_pipeline.monitoring.serving_stress import (
    LARGEST_BATCH,
    Clock,
    Peak,
    busiest_minutes,
    in_burst,
    latency_us,
    replay_under_load,
    with_nulls,
)
from ad_pipeline.serving.decisions import Fallback
from ad_pipeline.serving.scorer import Scorer
from ad_pipeline.warehouse import Column, Table, Warehouse
from ad_pipeline_tests.serving import worlds

IMPRESSIONS = Table(
    "events.impressions",
    (Column("impression_id", "VARCHAR", ""), Column("occurred_us", "BIGINT", "")),
    ("impression_id",),
    None,
    "",
)


@dataclass
class MadeTime:
    """A clock that stands still but for what somebody waits or works."""

    seconds: float = 0.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.seconds, self.sleep)


@dataclass
class MadeScorer:
    """Takes so long for a call and so long for each request of it."""

    time: MadeTime
    a_call: float
    a_request: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def score_many(self, requests: pa.Table, /) -> Any:
        n = requests.num_rows
        self.sizes.append(n)
        self.time.seconds += self.a_call + n * self.a_request
        return SimpleNamespace(
            probabilities={"click": requests.column("occurred_us").to_numpy().astype(float)},
            fallbacks=(Fallback("late", np.ones(n, bool)),),
        )


def requests_at(*seconds: float) -> pa.Table:
    return pa.table({"occurred_us": pa.array([int(1e6 * each) for each in seconds], pa.int64())})


def test_a_scorer_that_keeps_up_answers_each_request_alone_and_at_once() -> None:
    time = MadeTime()
    scorer = MadeScorer(time, a_call=0.001)
    answered = replay_under_load(scorer, requests_at(0, 10, 20, 30), 10.0, time.clock)
    assert scorer.sizes == [1, 1, 1, 1, 1], "one of them to warm up"
    assert answered.latencies_us == pytest.approx([1000.0] * 4)
    assert sum(time.slept) == pytest.approx(3.0 - 0.003), "thirty seconds ten times as fast"
    assert answered.fallbacks == {"late": 4}


def test_requests_that_wait_behind_a_slow_one_count_from_when_they_were_due() -> None:
    """A closed loop would have sent them later and called each of them fast."""
    time = MadeTime()
    scorer = MadeScorer(time, a_call=1.0)
    answered = replay_under_load(scorer, requests_at(0, 0.1, 0.2, 5), 1.0, time.clock)
    assert answered.latencies_us == pytest.approx([1e6, 1.9e6, 1.8e6, 1e6])
    assert latency_us(answered, 1.0) == pytest.approx(1.9e6)
    assert answered.behind_us == pytest.approx(1e6)


@given(
    st.lists(st.integers(0, 2_000_000), min_size=1, max_size=600),
    st.floats(0.5, 100.0),
    st.floats(0.0, 0.5),
)
def test_every_request_is_answered_once_in_order_and_never_before_it_is_due(
    gaps_us: list[int], speed: float, a_call: float
) -> None:
    time = MadeTime()
    occurred_us = np.cumsum(gaps_us)
    scorer = MadeScorer(time, a_call, a_request=0.001)
    requests = pa.table({"occurred_us": pa.array(occurred_us, pa.int64())})
    answered = replay_under_load(scorer, requests, speed, time.clock)
    assert np.array_equal(answered.probabilities["click"], occurred_us)
    assert (answered.latencies_us >= 1000 * (1 - 1e-6)).all()
    assert max(scorer.sizes) <= LARGEST_BATCH
    assert sum(scorer.sizes) == len(occurred_us) + 1


def test_no_request_is_an_error_that_says_what_is_missing() -> None:
    time = MadeTime()
    with pytest.raises(ValueError, match="the log has no impressions yet"):
        replay_under_load(MadeScorer(time, 0.0), requests_at(), 1.0, time.clock)


@pytest.mark.parametrize("fast", [True, False])
def test_the_real_scorer_under_real_load_says_what_it_would_say_at_rest(
    world: worlds.World, fast: bool
) -> None:
    requests = worlds.request_table(world.requests[:300]).sort_by("occurred_us")
    scorer = Scorer(world.bundle, world.due)
    span = np.ptp(requests.column("occurred_us").to_numpy()) / 1e6
    answered = replay_under_load(scorer, requests, span / (0.001 if fast else 1.0))
    at_rest = scorer.score_many(requests)
    for goal, said in at_rest.probabilities.items():
        assert np.array_equal(answered.probabilities[goal], said)
    expected = {each.reason: int(each.rows.sum()) for each in at_rest.fallbacks}
    assert answered.fallbacks == expected


def test_nulls_are_those_of_a_server_that_is_out_and_only_in_their_rows(
    world: worlds.World,
) -> None:
    requests = worlds.request_table(world.requests[:20])
    rows = np.arange(20) % 3 == 0
    contract = world.bundle.contract
    nulled = with_nulls(contract, requests, rows)
    for name in contract.columns:
        before, after = requests.column(name).to_pylist(), nulled.column(name).to_pylist()
        assert after == [None if gone else b for gone, b in zip(rows, before, strict=True)]
    assert nulled.column("request_id") == requests.column("request_id")


@pytest.mark.parametrize("seed", range(5))
def test_the_busiest_minutes_are_those_that_counting_finds(tmp_path: Path, seed: int) -> None:
    draws = np.random.default_rng(seed)
    occurred_us = draws.integers(0, 40 * MINUTE_US, draws.integers(1, 60)).tolist()
    minutes = int(draws.integers(3, 12))
    warehouse = Warehouse(tmp_path / "warehouse.duckdb")
    warehouse.create((IMPRESSIONS,))
    ids = [str(place) for place in range(len(occurred_us))]
    with warehouse.writer() as connection:
        rows = pa.table({"impression_id": ids, "occurred_us": pa.array(occurred_us, pa.int64())})
        connection.register("rows", rows)
        connection.execute("INSERT INTO events.impressions BY NAME SELECT * FROM rows")
    found = busiest_minutes(warehouse, minutes)

    def within(start: int) -> int:
        return sum(start <= us // MINUTE_US < start + minutes for us in occurred_us)

    starts = sorted({us // MINUTE_US for us in occurred_us})
    busiest = max(starts, key=lambda start: (within(start), -start))
    assert (found.start_us, found.end_us) == (busiest * MINUTE_US, (busiest + minutes) * MINUTE_US)
    assert found.requests.num_rows == within(busiest)
    assert found.requests.column("occurred_us").to_pylist() == sorted(
        us for us in occurred_us if busiest <= us // MINUTE_US < busiest + minutes
    )


def test_the_burst_is_two_minutes_in_the_middle() -> None:
    seconds = np.arange(0, 600, 10)
    peak = Peak(0, 10 * MINUTE_US, requests_at(*seconds.tolist()))
    assert seconds[in_burst(peak)].tolist() == list(range(240, 360, 10))
