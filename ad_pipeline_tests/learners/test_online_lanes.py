"""Lanes in the online step: a learner that is behind resumes exactly, and says how far behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ad_pipeline.checkpoints import read_checkpoint
from ad_pipeline.clocks import HOUR_US, MINUTE_US
from ad_pipeline.learners.online.lanes import LANES, LaneRows, Lanes
from ad_pipeline.learners.online.online_hours import LearnedHour, learn_hours
from ad_pipeline.learners.online.step import Examples, online_hour
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import TINY, Market
from ad_pipeline_tests.learners.markets import ready_market, with_settings

HOUR = 490_000 * HOUR_US
CAPACITY = 20
HOURS = 8


class Recorder:
    """An expert that remembers what it was taught, micro-batch by micro-batch."""

    width = 1

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def learn(
        self, slots: np.ndarray, labels: np.ndarray, weights: np.ndarray, outcomes: np.ndarray
    ) -> None:
        self.batches.append(slots[:, 0].tolist())

    def logits(self, slots: np.ndarray) -> np.ndarray:
        return np.full((len(slots), 1), float(sum(map(len, self.batches))))

    def advance(self, elapsed_us: int) -> None:
        pass


def test_a_slice_scores_first_and_then_learns_what_the_lanes_give_it() -> None:
    """A burst of eight in the first slice; a click in the third goes before what is left of it."""
    emit_us = HOUR + np.array([1, 2, 3, 4, 5, 6, 7, 8, 25 * MINUTE_US, 26 * MINUTE_US])
    rows = LaneRows(
        slots=np.arange(10, dtype=np.uint32)[:, None],
        labels=np.zeros(10, np.uint8),
        weights=np.ones(10),
        emit_us=emit_us,
        is_engagement=np.array([0, 0, 0, 0, 0, 0, 0, 1, 0, 1], dtype=bool),
    )
    lanes, recorder = Lanes(LaneRows.none(), 2), Recorder()
    served_us = HOUR + np.arange(6) * 10 * MINUTE_US
    scores = online_hour(
        recorder,  # pyright: ignore[reportArgumentType]
        np.zeros((6, 1), np.uint32),
        served_us,
        rows,
        10 * MINUTE_US,
        HOUR,
        chosen=lambda places: lanes.next_batch(rows.taken(places)),
    )
    assert recorder.batches == [[0, 7], [1, 2], [8, 9], [3, 4], [5, 6]]
    assert scores.logits[:, 0].tolist() == [0, 2, 4, 6, 8, 10]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market that is ready to be learnt; tests learn copies of it."""
    online = {"bits": 14, "micro_batch_minutes": 20}
    spec = replace(TINY, impressions_per_day=12_000, click_rate=0.05)
    folder = tmp_path_factory.mktemp("ready")
    return ready_market(folder, days=1, settings={"online": online}, spec=spec)


def with_capacity(ready: Market, root: Path, capacity: int | None) -> Market:
    """Return a copy of the market whose slices learn so many rows at most."""
    return with_settings(ready.copied_to(root), online={"micro_batch_capacity": capacity})


def learnt(market: Market, first: int = 0, last: int = HOURS) -> list[LearnedHour]:
    """Learn some hours in one call."""
    start_us = market.start_us + first * HOUR_US
    end_us = market.start_us + last * HOUR_US
    return list(
        learn_hours(Warehouse(market.deployment.warehouse), market.deployment, start_us, end_us)
    )


def of_goal(hours: list[LearnedHour], goal: str = "click") -> list[LearnedHour]:
    return [hour for hour in hours if hour.goal == goal]


def lanes_of(hour: LearnedHour) -> dict[str, Any]:
    assert hour.lanes is not None
    return hour.lanes


@pytest.fixture(scope="module")
def behind(
    ready: Market, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Market, list[LearnedHour]]:
    """Return a market whose slices may learn too little, and what was learnt of it in one range."""
    market = with_capacity(ready, tmp_path_factory.mktemp("behind") / "home", CAPACITY)
    return market, learnt(market)


def test_a_learner_that_is_behind_says_so_and_its_engagements_do_not_wait(
    behind: tuple[Market, list[LearnedHour]],
) -> None:
    market, hours = behind
    clicks = of_goal(hours)
    told = [lanes_of(hour) for hour in clicks]
    assert told[-1]["waiting_negatives"] > 3 * CAPACITY
    assert told[-1]["waiting_engagements"] == 0
    assert told[-1]["oldest_waiting_us"] > HOUR_US
    for hour, lanes in zip(clicks, told, strict=True):
        assert sum(lanes["learnt"].values()) <= 3 * CAPACITY
        assert (lanes["order"], lanes["capacity"]) == (list(LANES), CAPACITY)
        manifest = read_checkpoint(market.deployment.checkpoints, hour.digest).manifest
        assert manifest["lanes"] == lanes
    kinds = ("immediate_positive", "delayed_positive")
    shown = sum(hour.learned.get(kind, 0) for hour in clicks for kind in kinds)
    taught = sum(
        lanes["learnt"][lane]
        for lanes in told
        for lane in ("fresh engagements", "waiting engagements")
    )
    assert taught == shown > 20


def test_hours_learnt_one_by_one_are_those_of_one_range(
    ready: Market, behind: tuple[Market, list[LearnedHour]], tmp_path: Path
) -> None:
    market, hours = behind
    again = with_capacity(ready, tmp_path / "again", CAPACITY)
    one_by_one = [hour for place in range(HOURS) for hour in learnt(again, place, place + 1)]
    assert [hour.digest for hour in one_by_one] == [hour.digest for hour in hours]
    assert market.deployment.checkpoints != again.deployment.checkpoints


def test_a_checkpoint_that_lost_what_waits_is_noticed(
    ready: Market,
    behind: tuple[Market, list[LearnedHour]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Planted fault, for the test above."""
    _, hours = behind
    again = with_capacity(ready, tmp_path / "again", CAPACITY)
    first = learnt(again, 0, 4)
    monkeypatch.setattr(LaneRows, "from_arrays", lambda _: LaneRows.none())
    digests = [hour.digest for hour in of_goal([*first, *learnt(again, 4)])]
    whole = [hour.digest for hour in of_goal(hours)]
    assert digests[:4] == whole[:4]
    assert digests[4:] != whole[4:]


def test_without_a_capacity_and_with_a_large_one_the_model_is_the_same(
    ready: Market, tmp_path: Path
) -> None:
    markets = [with_capacity(ready, tmp_path / str(c), c) for c in (None, 10**6)]
    models = [
        [read_checkpoint(m.deployment.checkpoints, h.digest) for h in of_goal(learnt(m, 0, 3))]
        for m in markets
    ]
    for plain, lanes in zip(*models, strict=True):
        assert not any(name.startswith("waiting_") for name in plain.arrays)
        assert len(lanes.arrays["waiting_emit_us"]) == 0
        for name, array in plain.arrays.items():
            assert np.asarray(array).tobytes() == np.asarray(lanes.arrays[name]).tobytes()


def test_examples_without_lanes_are_learnt_as_they_come() -> None:
    emit_us = HOUR + np.arange(4) * 20 * MINUTE_US // 2
    examples = Examples(np.arange(4, dtype=np.uint32)[:, None], np.zeros(4), np.ones(4), emit_us)
    recorder = Recorder()
    none = np.empty((0, 1), np.uint32)
    online_hour(
        recorder,  # pyright: ignore[reportArgumentType]
        none, np.empty(0, np.int64), examples, 20 * MINUTE_US, HOUR,
    )  # fmt: skip
    assert recorder.batches == [[0, 1], [2, 3]]
