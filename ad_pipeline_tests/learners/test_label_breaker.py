"""Suspect labels are not learnt: a goal is halted by itself, a suspect advertiser alone left out.

Faults are planted in the events of a small market. What must come out says the same market whose
suspect examples never existed.
"""

from itertools import pairwise
from pathlib import Path

import pytest

from ad_pipeline.clocks import HOUR_US
from ad_pipeline.features.encoding import FeatureContract
from ad_pipeline.learners.batch.batch_hours import train_after
from ad_pipeline.learners.batch.batch_model import BatchModel
from ad_pipeline.learners.online.grid_hours import select_hours
from ad_pipeline.learners.online.label_breaker import LabelDecisions, leave_out_by_labels
from ad_pipeline.learners.online.quarantine import LABELS, decide
from ad_pipeline.learners.tables import QUARANTINED_HOURS, QUARANTINED_SLICES, TABLES
from ad_pipeline.monitoring.label_quality_hours import record_label_quality
from ad_pipeline.warehouse import Warehouse
from ad_pipeline_tests.defs.markets import Market
from ad_pipeline_tests.learners.markets import ready_market, with_settings
from ad_pipeline_tests.learners.test_recovery import learn, models, predictions, states
from ad_pipeline_tests.monitoring.planted_labels import HOUR, planted
from benchmarks.label_faults import FLOOD, STALL, largest_advertiser

END = HOUR + 6
LAST = HOUR + 10
"""By then the anchors of the hour have matured."""
GOAL = "click"
ACT = {"label_quality": {"act": True}}

REMOVE = (
    "DELETE FROM examples.training_examples WHERE goal = 'click' AND emit_us >= $start_us "
    "AND emit_us < $end_us AND impression_id IN "
    "(SELECT impression_id FROM events.impressions WHERE advertiser_id = $advertiser)"
)

REMOVE_MATURED = (
    "DELETE FROM examples.labelled_impressions WHERE goal = 'click' AND impression_id IN "
    "(SELECT states.impression_id FROM examples.label_states AS states "
    "INNER JOIN events.impressions AS shown ON shown.impression_id = states.impression_id "
    "WHERE states.goal = 'click' AND shown.advertiser_id = $advertiser "
    "AND states.state IN ('provisional_negative', 'immediate_positive', 'delayed_positive') "
    "AND states.state_us >= $start_us AND states.state_us < $end_us)"
)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Market:
    return ready_market(tmp_path_factory.mktemp("ready"), settings=ACT)


@pytest.fixture(scope="module")
def flooded(ready: Market, tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market with a flood of clicks of one advertiser, judged and not learnt yet."""
    root = tmp_path_factory.mktemp("flooded") / "home"
    market = planted(ready, root, FLOOD)
    judge(market)
    return market


@pytest.fixture(scope="module")
def stalled(ready: Market, tmp_path_factory: pytest.TempPathFactory) -> Market:
    """Return a market whose click stream stood still for two hours, judged and not learnt yet."""
    market = planted(ready, tmp_path_factory.mktemp("stalled") / "home", STALL, hours=2)
    judge(market)
    return market


def warehouse_of(market: Market) -> Warehouse:
    return Warehouse(market.deployment.warehouse)


def at(market: Market, hour: int) -> int:
    return market.start_us + hour * HOUR_US


def judge(market: Market) -> None:
    record_label_quality(warehouse_of(market), market.deployment, market.start_us, market.end_us)


def leave_out(market: Market, first: int = 0, last: int = END) -> LabelDecisions:
    span = (at(market, first), at(market, last))
    return leave_out_by_labels(warehouse_of(market), market.deployment, *span)


def halted(decided: LabelDecisions, market: Market, goal: str = GOAL) -> list[int]:
    return [
        (row["hour_us"] - market.start_us) // HOUR_US
        for row in decided.hours
        if row["goal"] == goal
    ]


def accept(market: Market, hour: int) -> None:
    with warehouse_of(market).writer() as connection:
        decide(connection, {GOAL: at(market, hour)}, "accepted", "a person", {})


def test_without_an_advertiser_to_the_bit_as_if_its_rows_had_never_existed(
    flooded: Market, tmp_path: Path
):
    market, never = flooded.copied_to(tmp_path / "left out"), flooded.copied_to(tmp_path / "never")
    decided = leave_out(market)
    assert decided.hours == []
    (row,) = decided.slices
    advertiser = largest_advertiser(warehouse_of(flooded))
    assert (row["hour_us"], row["part"], row["verdict"]) == (at(market, HOUR), advertiser, "jumped")
    span = {"start_us": at(never, HOUR), "end_us": at(never, HOUR + 1), "advertiser": advertiser}
    with warehouse_of(never).writer() as connection:
        (removed,) = connection.execute(REMOVE, span).fetchone() or (0,)
    assert removed > 20
    for one in (market, never):
        learn(one, 0, END)
    assert dict(models(market, 0, END)) == dict(models(never, 0, END))
    assert predictions(market, 0, END) == predictions(never, 0, END)


def test_the_comparison_sees_an_advertiser_that_was_not_left_out(flooded: Market, tmp_path: Path):
    """The negative control: without the decision its rows are learnt."""
    left_out, learnt = flooded.copied_to(tmp_path / "left"), flooded.copied_to(tmp_path / "learnt")
    leave_out(left_out)
    for one in (left_out, learnt):
        learn(one, 0, HOUR + 1)
    a, b = dict(models(left_out, 0, HOUR + 1)), dict(models(learnt, 0, HOUR + 1))
    assert {name for name in a if a[name] != b[name]} == {f"{GOAL} {HOUR}"}


def test_a_stalled_goal_is_halted_until_enough_hours_were_calm(stalled: Market, tmp_path: Path):
    market = stalled.copied_to(tmp_path / "market")
    calm = market.deployment.dataset.settings.label_quality.calm_hours
    decided = leave_out(market)
    assert halted(decided, market) == list(range(HOUR, HOUR + 2 + calm))
    assert "stalled" in decided.hours[0]["evidence"]
    learn(market, 0, END)
    assert states(market)[HOUR : HOUR + 2 + calm] == ["left_out"] * (2 + calm)
    assert "left_out" not in states(market)[:HOUR] + states(market)[HOUR + 2 + calm :]


def test_decisions_are_the_same_however_the_hours_are_split(stalled: Market, tmp_path: Path):
    market = stalled.copied_to(tmp_path / "market")
    whole = leave_out(market)
    bounds = [0, HOUR - 12, *range(HOUR - 1, END + 1)]
    parts = [leave_out(market, first, last) for first, last in pairwise(bounds)]
    assert [row for one in parts for row in one.hours] == sorted(
        whole.hours, key=lambda row: row["hour_us"]
    )


def test_a_person_who_accepts_an_hour_lets_the_goal_learn_on(stalled: Market, tmp_path: Path):
    market = stalled.copied_to(tmp_path / "market")
    leave_out(market)
    accept(market, HOUR + 1)
    assert halted(leave_out(market), market) == [HOUR]
    learn(market, 0, END)
    assert states(market)[HOUR : HOUR + 2] == ["left_out", "accepted"]


def test_whoever_accepts_an_hour_accepts_its_parts(flooded: Market, tmp_path: Path):
    accepted, learnt = flooded.copied_to(tmp_path / "accepted"), flooded.copied_to(tmp_path / "all")
    leave_out(accepted)
    accept(accepted, HOUR)
    for one in (accepted, learnt):
        learn(one, 0, HOUR + 1)
    assert dict(models(accepted, 0, HOUR + 1)) == dict(models(learnt, 0, HOUR + 1))


def test_a_persons_own_decision_is_never_touched(stalled: Market, tmp_path: Path):
    market = stalled.copied_to(tmp_path / "market")
    warehouse_of(market).create(TABLES)
    with warehouse_of(market).writer() as connection:
        decide(connection, {GOAL: at(market, HOUR)}, "left_out", "fraud desk", {})
    leave_out(market)
    with warehouse_of(market).reader() as connection:
        found = connection.execute(
            f"SELECT cause FROM {QUARANTINED_HOURS.name} ORDER BY hour_us"
        ).fetchall()
    assert found[0] == ("fraud desk",)
    assert found[1:]
    assert set(found[1:]) == {(LABELS,)}


def test_nothing_is_left_out_unless_the_settings_act(flooded: Market, tmp_path: Path):
    market = with_settings(flooded.copied_to(tmp_path / "tells"), label_quality={"act": False})
    assert leave_out(market) == LabelDecisions([], [])
    with warehouse_of(market).reader() as connection:
        for table in (QUARANTINED_HOURS, QUARANTINED_SLICES):
            assert connection.execute(f"SELECT * FROM {table.name}").fetchall() == []


def test_batch_training_leaves_the_same_rows_out(flooded: Market, tmp_path: Path):
    """To the bit the model of a log whose matured rows of these anchors never existed."""
    market = flooded.copied_to(tmp_path / "left out")
    learn(market, 0, LAST)
    span = (market.start_us, at(market, LAST))
    assert list(select_hours(warehouse_of(market), market.deployment, *span))
    never = market.copied_to(tmp_path / "never")
    everything = trained(market)
    leave_out(market)
    bounds = {"start_us": at(never, HOUR), "end_us": at(never, HOUR + 1)}
    with warehouse_of(never).writer() as connection:
        (removed,) = connection.execute(
            REMOVE_MATURED, bounds | {"advertiser": largest_advertiser(warehouse_of(flooded))}
        ).fetchone() or (0,)
    assert removed > 20
    assert trained(market) == trained(never) != everything


def trained(market: Market) -> dict[str, bytes]:
    """Return arrays and files of the click model that is trained after the last hour."""
    deployment = market.deployment
    contract = FeatureContract.from_dataset(deployment.dataset)
    goal, hour_us = deployment.dataset.goal(GOAL), at(market, LAST - 1)
    model = train_after(warehouse_of(market), deployment, contract, goal, hour_us)
    assert isinstance(model, BatchModel)
    arrays, _, files = model.to_checkpoint()
    return {name: array.tobytes() for name, array in arrays.items()} | dict(files)
